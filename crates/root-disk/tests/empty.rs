//! Empty disks: what `e2fsck` and the kernel say about them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::unix::fs::MetadataExt as _;

use root_disk::{DiskError, Limits, build, format_empty, format_volume};
use support::archive::Tar;
use support::{LoopMount, fsck};

const MIB: u64 = 1024 * 1024;

#[test]
fn an_empty_disk_of_any_size_is_clean_and_sparse() {
    let dir = tempfile::tempdir().unwrap();
    for size in [
        MIB,
        10 * MIB + 123,
        64 * MIB,
        128 * MIB,
        128 * MIB + 4096,
        129 * MIB,
        1024 * MIB,
        20 * 1024 * MIB,
        1024 * 1024 * MIB,
    ] {
        let path = dir.path().join(format!("{size}.ext4"));
        format_empty(&path, size, "scratch").unwrap();
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.len(), size);
        assert!(
            metadata.blocks() * 512 < MIB + size / 1000,
            "{size}: {} sectors",
            metadata.blocks()
        );
        if size <= 20 * 1024 * MIB {
            fsck(&path);
        }
    }
}

#[test]
fn a_volume_of_any_size_is_clean_and_sparse() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("volume");
    for mib in [16, 127, 128, 1024, 1025, 3000, 20 * 1024] {
        format_volume(&path, mib * MIB, "data", 7).unwrap();
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.len(), mib * MIB);
        let used = metadata.blocks() * 512;
        assert!(used < MIB + mib * MIB / 1000, "{mib} MiB: {used} bytes");
        fsck(&path);
    }
    let uuid = |path: &std::path::Path| std::fs::read(path).unwrap()[1024 + 0x68..][..16].to_vec();
    let other = dir.path().join("other");
    format_volume(&path, 16 * MIB, "data", 1).unwrap();
    format_volume(&other, 16 * MIB, "data", 2).unwrap();
    assert_ne!(uuid(&path), uuid(&other));
    let refused = format_volume(&path, 15 * MIB, "data", 1);
    assert!(matches!(refused, Err(DiskError::Size { .. })));
}

/// What a guest leaves behind that is killed: the next mount mends it.
#[test]
fn the_kernel_recovers_a_volume_after_its_writer_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (path, killed) = (dir.path().join("volume"), dir.path().join("killed"));
    format_volume(&path, 64 * MIB, "data", 7).unwrap();
    {
        let Some(mount) = LoopMount::new(&path, "rw") else {
            return;
        };
        for number in 0..200 {
            let file = std::fs::File::create(mount.path().join(format!("file-{number}"))).unwrap();
            std::io::Write::write_all(&mut &file, b"content").unwrap();
            file.sync_all().unwrap();
        }
        // As the disk is at this moment, mounted and with its journal in use.
        std::fs::copy(&path, &killed).unwrap();
    }
    let features = std::fs::read(&killed).unwrap()[1024 + 0x60];
    assert_eq!(features & 4, 4, "its journal is to be replayed");
    {
        let mount = LoopMount::new(&killed, "rw").unwrap();
        for number in 0..200 {
            let file = mount.path().join(format!("file-{number}"));
            assert_eq!(std::fs::read(file).unwrap(), b"content");
        }
    }
    fsck(&killed);
    fsck(&path);
}

#[test]
fn sizes_and_labels_out_of_range_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    assert!(matches!(
        format_empty(&path, 4096, "x"),
        Err(DiskError::Size { .. })
    ));
    assert!(matches!(
        format_empty(&path, 1 << 50, "x"),
        Err(DiskError::Size { .. })
    ));
    assert!(matches!(
        format_empty(&path, MIB, "more than sixteen bytes"),
        Err(DiskError::Label { .. })
    ));
    assert!(!path.exists());
}

#[test]
fn the_kernel_writes_on_a_scratch_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    format_empty(&path, 300 * MIB, "scratch").unwrap();
    {
        let Some(mount) = LoopMount::new(&path, "rw") else {
            return;
        };
        for number in 0..3000 {
            std::fs::write(mount.path().join(format!("file-{number}")), b"content").unwrap();
        }
        std::fs::write(mount.path().join("big"), vec![7; 200 * MIB as usize]).unwrap();
    }
    fsck(&path);
}

/// The two disks of a guest, as its init mounts them.
#[test]
fn a_root_disk_and_a_scratch_disk_make_an_overlay() {
    let dir = tempfile::tempdir().unwrap();
    let (root, scratch) = (dir.path().join("root"), dir.path().join("scratch"));
    let mut tar = Tar::default();
    tar.directory("etc/")
        .file("etc/keep", b"keep")
        .file("etc/change", b"as in the image")
        .file("gone", b"")
        .hard_link("same", "etc/keep");
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    tar.pax(&[("SCHILY.xattr.security.capability", capability)])
        .file("ping", b"ping");
    build(&[tar.layer(dir.path())], &root, &Limits::default()).unwrap();
    format_empty(&scratch, 64 * MIB, "scratch").unwrap();
    {
        let Some(lower) = LoopMount::new(&root, "ro") else {
            return;
        };
        let Some(upper) = LoopMount::new(&scratch, "rw") else {
            return;
        };
        for name in ["upper", "work"] {
            std::fs::create_dir(upper.path().join(name)).unwrap();
        }
        let overlay = LoopMount::overlay(lower.path(), upper.path());
        let at = |name: &str| overlay.path().join(name);
        std::fs::write(at("etc/change"), b"changed").unwrap();
        std::fs::remove_file(at("gone")).unwrap();
        std::fs::write(at("ping"), b"pong").unwrap();
        std::fs::create_dir(at("etc/new")).unwrap();
        assert_eq!(std::fs::read(at("etc/change")).unwrap(), b"changed");
        assert_eq!(std::fs::read(at("same")).unwrap(), b"keep");
        assert!(!at("gone").exists());
        assert_eq!(
            std::fs::read(lower.path().join("etc/change")).unwrap(),
            b"as in the image"
        );
    }
    fsck(&root);
    fsck(&scratch);
}
