//! The cache: shared builds, damage noticed, no partial disk.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use oci::LayerFile;
use root_disk::{DiskCache, DiskError};
use support::archive::{Tar, digest};

fn a_layer(dir: &Path) -> LayerFile {
    let mut tar = Tar::default();
    for number in 0..200 {
        tar.file(&format!("file-{number}"), &vec![1; 100_000]);
    }
    tar.layer(dir)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_disk_is_built_found_listed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let layer = a_layer(dir.path());
    let disks = dir.path().join("disks");
    let image = digest(b"image");
    let cache = DiskCache::open(&disks).unwrap();
    assert_eq!(cache.lookup(&image).unwrap(), None);
    assert!(!cache.remove(&image).unwrap());
    let built = cache.build(&image, std::slice::from_ref(&layer)).unwrap();
    assert_eq!(digest(&fs::read(&built.path).unwrap()), built.sha256);
    assert_eq!(
        names(&disks),
        [
            format!("{}.ext4", image.hex()),
            format!("{}.json", image.hex())
        ]
    );
    for cache in [&cache, &DiskCache::open(&disks).unwrap()] {
        assert_eq!(cache.lookup(&image).unwrap().as_ref(), Some(&built));
    }
    let listed = cache.list().unwrap();
    assert_eq!(
        (&listed[0].digest, &listed[0].path, listed[0].size_bytes),
        (&image, &built.path, built.size_bytes)
    );
    assert!(listed[0].allocated_bytes >= 20_000_000 && listed.len() == 1);
    // A cached disk is returned without reading the layers.
    fs::remove_file(&layer.path).unwrap();
    assert_eq!(cache.build(&image, &[layer]).unwrap(), built);
    assert!(cache.remove(&image).unwrap());
    assert_eq!(cache.lookup(&image).unwrap(), None);
    assert!(names(&disks).is_empty());
}

#[test]
fn a_damaged_disk_or_record_is_removed_and_built_again() {
    let dir = tempfile::tempdir().unwrap();
    let layer = a_layer(dir.path());
    let disks = dir.path().join("disks");
    let image = digest(b"image");
    let cache = DiskCache::open(&disks).unwrap();
    let built = cache.build(&image, std::slice::from_ref(&layer)).unwrap();
    let record = built.path.with_extension("json");

    let flip = |path: &Path| {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 1_000_000).unwrap();
        byte[0] ^= 1;
        std::os::unix::fs::FileExt::write_all_at(&file, &byte, 1_000_000).unwrap();
    };
    let newer = format!(
        r#"{{"version":2,"sha256":"{}","size_bytes":{}}}"#,
        built.sha256, built.size_bytes
    );
    let damages: [(&str, &dyn Fn()); 7] = [
        ("a bit", &|| flip(&built.path)),
        ("shorter", &|| {
            fs::File::options()
                .write(true)
                .open(&built.path)
                .unwrap()
                .set_len(5_000_000)
                .unwrap();
        }),
        ("empty", &|| fs::write(&built.path, b"").unwrap()),
        ("no disk", &|| fs::remove_file(&built.path).unwrap()),
        ("no JSON", &|| fs::write(&record, b"{").unwrap()),
        ("newer record", &|| fs::write(&record, &newer).unwrap()),
        ("no record", &|| fs::remove_file(&record).unwrap()),
    ];
    for (name, damage) in damages {
        damage();
        assert_eq!(cache.lookup(&image).unwrap(), None, "{name}");
        assert!(cache.list().unwrap().is_empty(), "{name}");
        assert_eq!(
            cache.build(&image, std::slice::from_ref(&layer)).unwrap(),
            built,
            "{name}"
        );
    }
}

#[test]
fn records_without_a_version_and_with_unknown_fields_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let layer = a_layer(dir.path());
    let disks = dir.path().join("disks");
    let image = digest(b"image");
    let built = DiskCache::open(&disks)
        .unwrap()
        .build(&image, std::slice::from_ref(&layer))
        .unwrap();
    let record = built.path.with_extension("json");
    let (sha256, size) = (&built.sha256, built.size_bytes);
    for text in [
        format!(r#"{{"sha256":"{sha256}","size_bytes":{size}}}"#),
        format!(r#"{{"version":1,"sha256":"{sha256}","size_bytes":{size},"later":[1]}}"#),
    ] {
        fs::write(&record, &text).unwrap();
        let cache = DiskCache::open(&disks).unwrap();
        assert_eq!(
            cache.lookup(&image).unwrap().as_ref(),
            Some(&built),
            "{text}"
        );
    }
}

#[test]
fn concurrent_callers_share_one_build() {
    let dir = tempfile::tempdir().unwrap();
    let layer = a_layer(dir.path());
    let disks = dir.path().join("disks");
    let image = digest(b"image");
    let cache = DiskCache::open(&disks).unwrap();
    let inodes: Vec<u64> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let disk = cache.build(&image, std::slice::from_ref(&layer)).unwrap();
                    std::os::unix::fs::MetadataExt::ino(&disk.path.metadata().unwrap())
                })
            })
            .collect();
        callers
            .into_iter()
            .map(|caller| caller.join().unwrap())
            .collect()
    });
    assert!(inodes.iter().all(|inode| *inode == inodes[0]));
}

#[test]
fn a_refused_layer_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut layer = a_layer(dir.path());
    let disks = dir.path().join("disks");
    let image = digest(b"image");
    let cache = DiskCache::open(&disks).unwrap();
    layer.diff_id = digest(b"other");
    let error = cache.build(&image, &[layer]).unwrap_err();
    assert!(
        matches!(&error, DiskError::Layer { number: 1, .. }),
        "{error:?}"
    );
    assert!(!error.is_transient());
    assert!(matches!(cache.build(&image, &[]), Err(DiskError::NoLayers)));
    assert!(names(&disks).is_empty());
    assert_eq!(cache.lookup(&image).unwrap(), None);
}

#[test]
fn unfinished_files_of_a_killed_process_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(".unfinished-x"), b"half").unwrap();
    DiskCache::open(dir.path()).unwrap();
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_full_disk_is_reported_and_leaves_no_file() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root may mount");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let layer = a_layer(dir.path());
    let small = dir.path().join("small");
    fs::create_dir(&small).unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "none"])
        .arg(&small)
        .status()
        .unwrap();
    assert!(mount.success());
    let cache = DiskCache::open(&small.join("disks")).unwrap();
    let result = cache.build(&digest(b"image"), std::slice::from_ref(&layer));
    let left = names(&small.join("disks"));
    let enlarged = Command::new("mount")
        .args(["-o", "remount,size=64m"])
        .arg(&small)
        .status()
        .unwrap();
    let again = cache.build(&digest(b"image"), &[layer]);
    support::umount(&small);
    let error = result.unwrap_err();
    assert!(
        matches!(error, DiskError::NoSpace { .. }) && error.is_transient(),
        "{error:?}"
    );
    assert!(left.is_empty(), "{left:?}");
    assert!(enlarged.success());
    again.unwrap();
}
