//! Empty disks: what `e2fsck` and the kernel say about them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::unix::fs::MetadataExt as _;
use std::time::Instant;

use root_disk::{DiskError, format_empty};
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
