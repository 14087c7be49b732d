//! Whole trees, against GNU tar: a hard one, and one of this machine's. `images` has the real ones.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

use oci::{Compression, LayerFile};
use root_disk::{Limits, build};
use support::archive::{Header, Tar, layer_of};
use support::{LoopMount, compare, fsck, oracle};

fn check(layers: &[LayerFile], dir: &Path) {
    let disk = dir.join("disk");
    let built = build(layers, &disk, &Limits::default()).unwrap();
    fsck(&disk);
    let again = build(layers, &dir.join("again"), &Limits::default()).unwrap();
    assert_eq!(built, again);
    fs::remove_file(dir.join("again")).unwrap();
    let Some(mount) = LoopMount::new(&disk, "ro") else {
        return;
    };
    let theirs = dir.join("theirs");
    fs::create_dir(&theirs).unwrap();
    oracle::unpack(layers, &theirs);
    compare::assert_same(mount.path(), &theirs, true);
}

#[test]
fn a_tree_of_edge_cases_is_as_the_kernel_sees_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = Tar::default();
    tar.directory("./").directory("many/").directory("deep/");
    for number in 0..20_000 {
        let name = format!("many/a file with a longer name, number {number}");
        tar.entry(
            &Header {
                name: name.as_bytes(),
                mtime: -number,
                ..Header::default()
            },
            b"",
        );
    }
    for number in 0..3000 {
        tar.directory(&format!("deep/{number}/"));
    }
    for depth in 1..=300 {
        tar.directory(&"deeper/".repeat(depth));
    }
    tar.symlink("symlink-4000", &"s".repeat(4000))
        .symlink("symlink-60", &"s".repeat(60));
    tar.entry(
        &Header {
            name: b"owner",
            uid: 4_000_000_000,
            gid: 3_999_999_999,
            mode: 0o7777,
            ..Header::default()
        },
        b"x",
    );
    tar.entry(
        &Header {
            name: b"null",
            type_flag: b'3',
            device: (1, 3),
            mode: 0o666,
            ..Header::default()
        },
        b"",
    );
    tar.entry(
        &Header {
            name: b"loop",
            type_flag: b'4',
            device: (7, 300),
            mode: 0o660,
            ..Header::default()
        },
        b"",
    );
    tar.entry(
        &Header {
            name: b"pipe",
            type_flag: b'6',
            ..Header::default()
        },
        b"",
    );
    tar.pax(&[("mtime", b"-2147483647.999999999")])
        .file("1901", b"");
    tar.pax(&[
        ("mtime", b"-0.000000001"),
        ("SCHILY.xattr.trusted.t", &[0xff; 2000]),
    ])
    .file("1969", b"");
    tar.pax(&[("mtime", b"15032385535.999999999")])
        .file("2446", b"");
    for byte in (1..=255_u8).filter(|byte| !b"/.".contains(byte)) {
        tar.entry(
            &Header {
                name: &[b'n', byte, 0x80, byte],
                ..Header::default()
            },
            &[byte],
        );
    }
    // Longer than a run of blocks, then one of nothing but short runs.
    let big: Vec<u8> = (0..150_u32 << 18).flat_map(u32::to_le_bytes).collect();
    tar.entry(
        &Header {
            name: b"big",
            ..Header::default()
        },
        &big,
    );
    let mut runs = vec![0; 32 << 20];
    for block in runs.chunks_exact_mut(8192) {
        block[0] = 1;
    }
    tar.file("runs", &runs)
        .file("short-runs", &runs[..9 * 8192])
        .hard_link("big-too", "big");
    check(
        &[layer_of(dir.path(), &tar.finish(), Compression::Zstd)],
        dir.path(),
    );
    // The kernel finds a name among many by its hash.
    let output = Command::new("debugfs")
        .args(["-R", "htree_dump many"])
        .arg(dir.path().join("disk"))
        .output()
        .unwrap();
    let dump = String::from_utf8_lossy(&output.stdout);
    assert!(dump.contains("Root node dump:"), "{dump:.400}");
}

#[test]
fn a_sparse_tree_with_attributes_by_gnu_tar() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root may make devices and owners");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let sparse = File::create(tree.join("sparse")).unwrap();
    sparse
        .write_all_at(b"in the middle", (3 << 30) + 5)
        .unwrap();
    sparse.set_len(6 << 30).unwrap();
    fs::write(tree.join("file"), b"content").unwrap();
    fs::hard_link(tree.join("file"), tree.join("same")).unwrap();
    fs::write(tree.join(OsStr::from_bytes(b"\xff\xfe")), b"x").unwrap();
    std::os::unix::fs::chown(tree.join("file"), Some(4_000_000_000), Some(100_000)).unwrap();
    for (name, value) in [
        ("user.a", &b"1"[..]),
        ("trusted.b", &[2; 200]),
        ("user.c", b""),
    ] {
        rustix::fs::setxattr(
            tree.join("same"),
            name,
            value,
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
    }
    let tar = dir.path().join("tar");
    let status = Command::new("tar")
        .args(["-cSf"])
        .arg(&tar)
        .args([
            "--format=posix",
            "--xattrs",
            "--xattrs-include=*",
            "--numeric-owner",
            "-C",
        ])
        .arg(&tree)
        .arg(".")
        .status()
        .unwrap();
    assert!(status.success());
    check(
        &[layer_of(
            dir.path(),
            &fs::read(&tar).unwrap(),
            Compression::Gzip,
        )],
        dir.path(),
    );
}

#[test]
fn directories_of_this_machine_become_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let tar = dir.path().join("tar");
    let parts: Vec<&str> = [
        "etc/alternatives",
        "usr/share/zoneinfo",
        "usr/lib/systemd",
        "usr/share/perl",
        "usr/sbin",
    ]
    .into_iter()
    .filter(|part| Path::new("/").join(part).exists())
    .collect();
    let status = Command::new("tar")
        .arg("-cf")
        .arg(&tar)
        .args(["--format=posix", "--xattrs", "--numeric-owner", "-C", "/"])
        .args(parts)
        .status()
        .unwrap();
    assert!(status.success());
    let layer = layer_of(dir.path(), &fs::read(&tar).unwrap(), Compression::Gzip);
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    build(std::slice::from_ref(&layer), &disk, &Limits::default()).unwrap();
    fsck(&disk);
    let Some(mount) = LoopMount::new(&disk, "ro") else {
        return;
    };
    let theirs = dir.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    oracle::unpack(&[layer], &theirs);
    // Directories that the archive does not tell of have the time of their making there.
    compare::assert_same(mount.path(), &theirs, false);
}

/// More inodes than the blocks need groups for; and a disk that ends right behind a group's begin.
#[test]
fn disks_of_many_sizes_are_clean() {
    let dir = tempfile::tempdir().unwrap();
    for count in [32_000, 33_000, 70_000] {
        let mut tar = Tar::default();
        for number in 0..count {
            tar.file(&format!("{}/{number}", number % 97), b"");
        }
        let disk = dir.path().join("disk");
        build(
            &[layer_of(dir.path(), &tar.finish(), Compression::Zstd)],
            &disk,
            &Limits::default(),
        )
        .unwrap();
        fsck(&disk);
        drop(LoopMount::new(&disk, "ro"));
    }
    // Blocks of content such that the last group begins with the last blocks of the disk.
    for blocks in 32_746..32_749 {
        let mut tar = Tar::default();
        tar.file("f", &vec![1; blocks * 4096]);
        let disk = dir.path().join("disk");
        let built = build(&[tar.layer(dir.path())], &disk, &Limits::default()).unwrap();
        assert_eq!(built.size_bytes, disk.metadata().unwrap().size());
        fsck(&disk);
    }
}
