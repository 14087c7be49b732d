//! Real images, mounted by the kernel, against what `umoci unpack` makes of them; and one that is hard for
//! any program. They take minutes and some GiB: `make images` makes the images and runs this.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, chown, lchown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use root_disk::{Limits, build};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use support::{LoopMount, compare, fsck, oci};

/// OCI layouts, `DIRECTORY:TAG`, one a line.
fn wanted() -> Option<String> {
    let images = std::env::var("ROOT_DISK_IMAGES").ok();
    if images.is_none() {
        eprintln!("skipped: it takes minutes; `make images` runs it");
    }
    images
}

/// Two builds are equal, `e2fsck` finds nothing, and the kernel shows what `umoci` unpacks.
fn compare(image: &str) {
    // Not on a tmpfs: it has no user attributes, and the trees are large.
    let dir = tempfile::Builder::new().tempdir_in("/var/tmp").unwrap();
    let layers = oci::layers(image);
    let disk = dir.path().join("disk");
    let start = Instant::now();
    let built = build(&layers, &disk, &Limits::default()).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let again = build(&layers, &dir.path().join("again"), &Limits::default()).unwrap();
    assert_eq!(built, again);
    fsck(&disk);
    let mount = LoopMount::new(&disk, "ro").expect("root");
    let theirs = oci::unpack(image, dir.path());
    compare::assert_same(mount.path(), &theirs, true);
    eprintln!(
        "{image}: {} paths as umoci has them, e2fsck clean, two builds equal; {} MiB in {seconds:.2} s",
        compare::walk(mount.path()).len(),
        built.size_bytes >> 20,
    );
}

#[test]
fn real_images_are_as_umoci_unpacks_them() {
    for image in wanted().iter().flat_map(|images| images.lines()) {
        compare(image);
    }
}

/// 20 000 files in one directory, a file of 1 GiB, one of 6 GiB that is nearly all holes, targets of 4000
/// bytes, owners beyond 2^31, devices, and times before 1970.
#[test]
fn an_image_of_edge_cases_is_as_umoci_unpacks_it() {
    if wanted().is_none() {
        return;
    }
    let dir = tempfile::Builder::new().tempdir_in("/var/tmp").unwrap();
    let tree = dir.path().join("tree");
    make_hard_tree(&tree);
    let archive = dir.path().join("tar");
    let status = Command::new("tar")
        .args(["-cSf", archive.to_str().unwrap()])
        .args(["--format=posix", "--sort=name", "--numeric-owner"])
        .args(["--xattrs", "--xattrs-include=*", "-C"])
        .arg(&tree)
        .arg(".")
        .status()
        .unwrap();
    assert!(status.success());
    fs::remove_dir_all(&tree).unwrap();
    let image = oci::image_of(&archive, dir.path());
    compare(&image);
}

fn make_hard_tree(tree: &Path) {
    let many = tree.join("many");
    fs::create_dir_all(&many).unwrap();
    for number in 0..20_000 {
        fs::write(
            many.join(format!("a file with a longer name, number {number}")),
            number.to_string(),
        )
        .unwrap();
    }
    let large = File::create(tree.join("large")).unwrap();
    for mebibyte in 0..1024_u64 {
        let content: Vec<u8> = (mebibyte << 17..(mebibyte + 1) << 17)
            .flat_map(u64::to_le_bytes)
            .collect();
        large.write_all_at(&content, mebibyte << 20).unwrap();
    }
    let sparse = File::create(tree.join("sparse")).unwrap();
    for at in [0, (3 << 30) + 5, (5 << 30) - 1] {
        sparse.write_all_at(b"not a hole", at).unwrap();
    }
    sparse.set_len(6 << 30).unwrap();
    for length in [1, 59, 60, 61, 4000, 4095] {
        symlink("t".repeat(length), tree.join(format!("symlink-{length}"))).unwrap();
    }
    lchown(tree.join("symlink-60"), Some(4_000_000_000), Some(65_536)).unwrap();
    fs::write(tree.join("owner"), b"x").unwrap();
    chown(tree.join("owner"), Some(4_000_000_000), Some(4_294_967_294)).unwrap();
    let modes = [
        ("plain", 0o4755),
        ("group", 0o2711),
        ("all", 0o7777),
        ("none", 0),
    ];
    for (name, mode) in modes {
        let path = tree.join(name);
        fs::write(&path, b"x").unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        fs::hard_link(&path, tree.join(format!("{name}-too"))).unwrap();
    }
    for (name, kind, major, minor) in [
        ("null", FileType::CharacterDevice, 1, 3),
        ("disk", FileType::BlockDevice, 259, 70_000),
        ("pipe", FileType::Fifo, 0, 0),
    ] {
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(
            CWD,
            tree.join(name),
            kind,
            Mode::from_raw_mode(0o620),
            device,
        )
        .unwrap();
    }
    for (name, value) in [
        // No empty one: umoci takes it for none, GNU tar and the kernel do not.
        ("user.text", &b"1"[..]),
        ("user.large", &[0xff; 2000]),
        ("trusted.t", &[0; 64]),
        (
            "security.capability",
            b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ),
    ] {
        rustix::fs::setxattr(tree.join("owner"), name, value, XattrFlags::empty()).unwrap();
    }
    for (name, seconds, nanoseconds) in [
        ("1901", -2_147_483_647, 1),
        ("1969", -1, 999_999_999),
        ("1970", 0, 0),
        // The last that umoci can set; `trees` has ext4's last.
        ("2262", 9_223_372_036, 0),
    ] {
        fs::create_dir(tree.join(name)).unwrap();
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, tree.join(name), &times, AtFlags::empty()).unwrap();
    }
}
