//! Empty disks: what `e2fsck` and the kernel say about them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::unix::fs::MetadataExt as _;
use std::time::Instant;

use root_disk::{DiskError, Limits, build, format_empty};
use support::archive::Tar;
use support::{LoopMount, fsck};

const MIB: u64 = 1024 * 1024;

#[test]
fn every_size_is_clean_sparse_and_quick() {
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
        let start = Instant::now();
        format_empty(&path, size, "scratch").unwrap();
        let took = start.elapsed();
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.len(), size);
        assert!(
            metadata.blocks() * 512 < MIB + size / 1000,
            "{size}: {} sectors",
            metadata.blocks()
        );
        assert!(took.as_millis() < 1000, "{size}: {took:?}");
        if size <= 20 * 1024 * MIB {
            fsck(&path);
        }
    }
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
fn the_kernel_writes_on_it() {
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
fn scratch_and_root_make_an_overlay() {
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
