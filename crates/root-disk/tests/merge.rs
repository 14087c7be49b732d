//! Layers on top of each other, mounted by the kernel, against what GNU tar makes of them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use oci::{Compression, LayerFile};
use root_disk::{BuiltDisk, Limits, build};
use support::archive::{Header, Tar, layer_of};
use support::{LoopMount, compare, fsck, oracle};

fn built(layers: &[LayerFile], disk: &Path) -> BuiltDisk {
    match build(layers, disk, &Limits::default()) {
        Ok(built) => built,
        Err(error) => panic!("{error:?}"),
    }
}

/// Builds, checks with `e2fsck`, mounts, and compares with the other unpacking.
fn check(layers: &[LayerFile], directory_times: bool) {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    built(layers, &disk);
    fsck(&disk);
    let Some(mount) = LoopMount::new(&disk, "ro") else {
        return;
    };
    let theirs = dir.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    oracle::unpack(layers, &theirs);
    compare::assert_same(mount.path(), &theirs, directory_times);
}

/// The paths of a disk, with the content of files and the targets of symlinks.
fn listed(layers: &[LayerFile]) -> Option<Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    built(layers, &disk);
    fsck(&disk);
    let mount = LoopMount::new(&disk, "ro")?;
    let mut lines = Vec::new();
    for (path, metadata) in compare::walk(mount.path()).into_iter().skip(1) {
        let full = mount.path().join(&path);
        let path = path.display();
        lines.push(if metadata.is_dir() {
            format!("{path}/")
        } else if metadata.is_symlink() {
            format!("{path} -> {}", fs::read_link(full).unwrap().display())
        } else {
            format!("{path}: {}", fs::read_to_string(full).unwrap())
        });
    }
    Some(lines)
}

#[track_caller]
fn check_list(tars: &[&Tar], expected: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let layers: Vec<LayerFile> = tars.iter().map(|tar| tar.layer(dir.path())).collect();
    if let Some(lines) = listed(&layers) {
        assert_eq!(lines, expected);
    }
}

#[test]
fn one_layer_with_every_kind_of_entry_is_merged() {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = Tar::default();
    tar.directory("./")
        .directory("etc/")
        .file("etc/passwd", b"root:x:0:0\n");
    tar.symlink("etc/link", "passwd")
        .symlink("etc/far", &"long/".repeat(50))
        .hard_link("etc/same", "etc/passwd");
    tar.entry(
        &Header {
            name: b"bin/su",
            mode: 0o4755,
            ..Header::default()
        },
        b"#!",
    );
    tar.entry(
        &Header {
            name: b"zero",
            type_flag: b'3',
            device: (1, 5),
            ..Header::default()
        },
        b"",
    );
    tar.entry(
        &Header {
            name: b"big-minor",
            type_flag: b'4',
            device: (259, 70000),
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
    tar.entry(
        &Header {
            name: b"\xff\xfe not utf-8 \x01",
            uid: 4_000_000_000,
            gid: 70_000,
            ..Header::default()
        },
        b"x",
    );
    tar.pax(&[
        ("mtime", b"-1000000000.123456789"),
        ("SCHILY.xattr.user.key", b"value\0with nul"),
    ])
    .file("old", b"old");
    tar.pax(&[("mtime", b"9000000000.5")]).file("far", b"far");
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    tar.pax(&[("SCHILY.xattr.security.capability", capability)])
        .file("ping", b"ping");
    tar.pax(&[
        ("SCHILY.xattr.user.large", &[b'v'; 3000]),
        ("SCHILY.xattr.user.a", b""),
        ("SCHILY.xattr.security.x", b"y"),
    ])
    .file("large-attribute", b"");
    tar.file(&"n".repeat(255), b"long name").file(
        &format!("{}/{}", "d".repeat(200), "n".repeat(200)),
        b"long path",
    );
    tar.file("big", &vec![7; 3_000_001])
        .file("zeros", &[0; 100_000]);
    let archive = tar.finish();
    for compression in Compression::ALL {
        check(&[layer_of(dir.path(), &archive, compression)], false);
    }
}

/// The layers of a docker archive are ranges of one file.
#[test]
fn a_layer_is_read_from_a_range_of_a_larger_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = Tar::default();
    tar.file("a", b"content");
    let whole = layer_of(dir.path(), &tar.finish(), Compression::Gzip);
    let stored = std::fs::read(&whole.path).unwrap();
    let path = dir.path().join("larger");
    std::fs::write(&path, [&[7; 1000], &stored[..], &[9; 1000]].concat()).unwrap();
    let range = LayerFile {
        path,
        offset: 1000,
        ..whole.clone()
    };
    assert_eq!(
        built(&[range], &dir.path().join("range")),
        built(&[whole], &dir.path().join("whole"))
    );
}

#[test]
fn upper_layers_hide_replace_and_add() {
    let dir = tempfile::tempdir().unwrap();
    let mut base = Tar::default();
    base.directory("a/")
        .file("a/1", b"1")
        .file("a/2", b"2")
        .directory("a/sub/")
        .file("a/sub/x", b"x");
    base.directory("b/")
        .file("b/1", b"1")
        .file("keep", b"keep")
        .file("gone", &[1; 10_000]);
    base.file("becomes-directory", b"file");
    base.symlink("becomes-plain", "keep")
        .file("first", b"shared")
        .hard_link("second", "first");
    let mut upper = Tar::default();
    upper
        .file("a/.wh.1", b"")
        .file("a/3", b"3")
        .directory("b/")
        .file("b/.wh..wh..opq", b"")
        .file("b/2", b"2");
    upper
        .file(".wh.gone", b"")
        .directory("becomes-directory/")
        .file("becomes-directory/y", b"y");
    upper
        .file("becomes-plain", b"plain")
        .file("first", b"apart");
    upper
        .hard_link("third", "second")
        .file(".wh.never-was", b"")
        .file("none/.wh.x", b"");
    let layers = [base.layer(dir.path()), upper.layer(dir.path())];
    check(&layers, false);
}

#[test]
fn whiteouts_spare_entries_of_their_own_layer_in_any_order() {
    let mut base = Tar::default();
    base.directory("d/")
        .file("d/old", b"old")
        .directory("d/sub/")
        .file("d/sub/old", b"old");
    let mut upper = Tar::default();
    upper
        .file("d/new", b"new")
        .file("d/sub/new", b"new")
        .file("d/.wh..wh..opq", b"")
        .file("new", b"")
        .file(".wh.new", b"");
    check_list(
        &[&base, &upper],
        &["d/", "d/new: new", "d/sub/", "d/sub/new: new", "new: "],
    );
    let mut upper = Tar::default();
    upper.file(".wh.d", b"").file("d/new", b"new");
    check_list(&[&base, &upper], &["d/", "d/new: new"]);
    let mut upper = Tar::default();
    upper.file("d/new", b"new").file(".wh.d", b"");
    check_list(&[&base, &upper], &["d/", "d/new: new"]);
    let mut upper = Tar::default();
    upper.file(".wh..wh..opq", b"");
    check_list(&[&base, &upper], &[]);
}

#[test]
fn a_file_replaces_a_directory_and_all_below_it() {
    let mut base = Tar::default();
    base.file("d/x/y", b"y").file("d/z", b"z");
    let mut upper = Tar::default();
    upper.file("d", b"now a file");
    check_list(&[&base, &upper], &["d: now a file"]);
}

#[test]
fn access_control_lists_have_the_kernels_format() {
    let dir = tempfile::tempdir().unwrap();
    let acl = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\xe8\x03\0\0\x04\0\x04\0\xff\xff\xff\xff\
        \x10\0\x06\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
    let name = "system.posix_acl_access";
    let mut tar = Tar::default();
    tar.pax(&[("SCHILY.xattr.system.posix_acl_access", acl)])
        .entry(
            &Header {
                name: b"acl",
                mode: 0o664,
                ..Header::default()
            },
            b"",
        );
    let disk = dir.path().join("disk");
    built(&[tar.layer(dir.path())], &disk);
    fsck(&disk);
    let Some(mount) = LoopMount::new(&disk, "ro") else {
        return;
    };
    let mut value = [0; 100];
    let length =
        rustix::fs::lgetxattr(mount.path().join("acl"), name, value.as_mut_slice()).unwrap();
    assert_eq!(value[..length], acl[..]);
}

#[test]
fn paths_lead_through_symlinks_of_the_image() {
    let mut base = Tar::default();
    base.directory("usr/")
        .directory("usr/bin/")
        .symlink("bin", "usr/bin")
        .symlink("sbin", "/bin");
    base.directory("run/")
        .directory("var/")
        .symlink("var/run", "/run")
        .symlink("usr/up", "../run");
    let mut upper = Tar::default();
    upper
        .file("bin/tool", b"t")
        .file("sbin/other", b"o")
        .file("var/run/x/y", b"y")
        .file("usr/up/z", b"z");
    check_list(
        &[&base, &upper],
        &[
            "bin -> usr/bin",
            "run/",
            "run/x/",
            "run/x/y: y",
            "run/z: z",
            "sbin -> /bin",
            "usr/",
            "usr/bin/",
            "usr/bin/other: o",
            "usr/bin/tool: t",
            "usr/up -> ../run",
            "var/",
            "var/run -> /run",
        ],
    );
}

#[test]
fn removed_content_is_zeroed_and_takes_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let mut base = Tar::default();
    base.file("secret", &b"hidden ".repeat(2_000_000))
        .file("keep", b"k");
    let mut upper = Tar::default();
    upper.file(".wh.secret", b"");
    let disk = dir.path().join("disk");
    built(&[base.layer(dir.path()), upper.layer(dir.path())], &disk);
    fsck(&disk);
    assert!(
        !fs::read(&disk)
            .unwrap()
            .windows(6)
            .any(|bytes| bytes == b"hidden")
    );
    assert!(disk.metadata().unwrap().blocks() * 512 < 200_000);
}

#[test]
fn a_disk_does_not_depend_on_compression_and_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = Tar::default();
    for number in 0..3000 {
        tar.file(&format!("d/file-{number}"), number.to_string().as_bytes());
    }
    let archive = tar.finish();
    let first = built(
        &[layer_of(dir.path(), &archive, Compression::None)],
        &dir.path().join("1"),
    );
    let second = built(
        &[layer_of(dir.path(), &archive, Compression::Zstd)],
        &dir.path().join("2"),
    );
    assert_eq!(first, second);
    assert!(fs::read(dir.path().join("1")).unwrap() == fs::read(dir.path().join("2")).unwrap());
    let other = built(
        &[
            layer_of(dir.path(), &archive, Compression::None),
            Tar::default().layer(dir.path()),
        ],
        &dir.path().join("3"),
    );
    assert_ne!(first.sha256, other.sha256);
}

#[test]
fn sparse_files_of_every_format_are_merged() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let file = fs::File::create(tree.join("sparse")).unwrap();
    for (at, bytes) in [
        (0, &b"begin"[..]),
        (1_000_001, b"middle"),
        (6 << 30, b"end"),
    ] {
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, at).unwrap();
    }
    file.set_len((6 << 30) + 12345).unwrap();
    for number in 0..60 {
        std::os::unix::fs::FileExt::write_all_at(&file, b"piece", (1 << 30) + number * 100_000)
            .unwrap();
    }
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let output = std::process::Command::new("tar")
            .args(["-cS"])
            .args(format)
            .arg("-C")
            .arg(&tree)
            .arg(".")
            .output()
            .unwrap();
        assert!(output.status.success());
        check(
            &[layer_of(dir.path(), &output.stdout, Compression::Gzip)],
            true,
        );
    }
}

/// Distroless images of 2021 and rules of bazel: charliecloud#1170, rules_docker#1577, kaniko#726.
#[test]
fn case_names_with_a_leading_slash_are_of_the_images_root() {
    let mut base = Tar::default();
    base.directory("./")
        .directory("/usr/")
        .directory("/usr/bin/");
    base.file("/usr/bin/tool", b"t").file("usr/bin/other", b"o");
    base.symlink("//usr/bin/python", "/usr/bin/tool")
        .hard_link("/usr/bin/same", "/usr/bin/tool");
    base.file("usr/lib/../bin/by-dots", b"d");
    let mut upper = Tar::default();
    upper.file("/usr/bin/.wh.other", b"");
    check_list(
        &[&base, &upper],
        &[
            "usr/",
            "usr/bin/",
            "usr/bin/by-dots: d",
            "usr/bin/python -> /usr/bin/tool",
            "usr/bin/same: t",
            "usr/bin/tool: t",
        ],
    );
}

/// Docker's own layers of the years of aufs: the first whiteout is a file, the others are hard links to it.
#[test]
fn case_whiteouts_of_any_type_hide() {
    let mut base = Tar::default();
    for name in ["a", "b", "c", "d", "e", "f", "g"] {
        base.file(&format!("lists/{name}"), b"old");
    }
    base.file("opaque/old", b"old").file("opaque2/old", b"old");
    let whiteout = |name: &'static [u8], type_flag| Header {
        name,
        type_flag,
        link: b"lists/.wh.a",
        ..Header::default()
    };
    let mut upper = Tar::default();
    upper
        .file("lists/.wh.a", b"")
        .hard_link("lists/.wh.b", "lists/.wh.a");
    upper.entry(&whiteout(b"lists/.wh.c", b'2'), b"");
    upper.entry(&whiteout(b"lists/.wh.d", b'3'), b"");
    upper.entry(&whiteout(b"lists/.wh.e/", b'5'), b"");
    upper.entry(&whiteout(b"lists/.wh.f", b'6'), b"");
    upper.file("lists/.wh.g", b"with content");
    upper.hard_link("opaque/.wh..wh..opq", "lists/.wh.a");
    upper.directory("opaque2/.wh..wh..opq/");
    check_list(&[&base, &upper], &["lists/", "opaque/", "opaque2/"]);
}

#[test]
fn case_files_of_aufs_are_left_out_and_its_links_kept() {
    let mut base = Tar::default();
    base.directory("lists/")
        .file("lists/old", b"x")
        .file("keep", b"k");
    let mut upper = Tar::default();
    upper
        .file(".wh..wh.aufs", b"")
        .directory(".wh..wh.orph/")
        .file(".wh..wh.orph/left", b"over")
        .directory(".wh..wh.plnk/");
    upper.file("lists/.wh..wh.", b"").file(".wh..wh.x", b"");
    upper
        .file(".wh..wh.plnk/12.34", b"linked")
        .file(".wh..wh.plnk/unused", b"nobody names it");
    upper
        .hard_link("one", ".wh..wh.plnk/12.34")
        .hard_link("two", "/.wh..wh.plnk/12.34");
    upper.file("lists/.wh.old", b"");
    let expected = ["keep: k", "lists/", "one: linked", "two: linked"];
    check_list(&[&base, &upper], &expected);
    // Only for its own layer.
    let mut later = Tar::default();
    later.file("three", b"3");
    check_list(
        &[&base, &upper, &later],
        &[
            "keep: k",
            "lists/",
            "one: linked",
            "three: 3",
            "two: linked",
        ],
    );
}

/// Layers whose media type names another compression, and none.
#[test]
fn case_the_first_bytes_of_a_layer_decide_its_compression() {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = Tar::default();
    tar.file("f", &[7; 100_000]);
    let archive = tar.finish();
    let honest = layer_of(dir.path(), &archive, Compression::None);
    let expected = built(&[honest], &dir.path().join("honest"));
    let all = Compression::ALL;
    for stored in all {
        for compression in all {
            let layer = LayerFile {
                compression,
                ..layer_of(dir.path(), &archive, stored)
            };
            assert_eq!(built(&[layer], &dir.path().join("disk")), expected);
        }
    }
    // Streams in a row, as parallel compressors write them.
    for compression in Compression::ALL {
        let halves = archive.split_at(archive.len() / 2);
        let [first, second] = [halves.0, halves.1]
            .map(|half| std::fs::read(layer_of(dir.path(), half, compression).path).unwrap());
        let stored = [first, second].concat();
        let layer = support::archive::stored_layer(dir.path(), &stored, &archive, compression);
        assert_eq!(built(&[layer], &dir.path().join("disk")), expected);
    }
    // A frame that is skipped before the data, as seekable zstd has it.
    let mut skipped = vec![0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
    skipped.extend(zstd::encode_all(archive.as_slice(), 1).unwrap());
    let layer = support::archive::stored_layer(dir.path(), &skipped, &archive, Compression::Gzip);
    assert_eq!(built(&[layer], &dir.path().join("disk")), expected);
}

/// `umoci insert` does not close its archives: after the last content there is neither padding nor an end.
#[test]
fn case_an_archive_may_end_with_its_last_content() {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = Tar::default();
    tar.file("first", &[b'f'; 512]).file("last", b"whole");
    let padding = 512 - 5;
    for missing in [padding, padding - 1, 1, 0] {
        let archive = &tar.0[..tar.0.len() - missing];
        let Some(lines) = listed(&[layer_of(dir.path(), archive, Compression::Gzip)]) else {
            return;
        };
        assert_eq!(
            lines,
            [
                format!("first: {}", "f".repeat(512)),
                "last: whole".to_owned()
            ]
        );
    }
}

#[test]
fn case_pax_headers_and_long_names_go_together() {
    let long = format!("opt/{}/{}", "d".repeat(60), "f".repeat(60));
    let attribute: &[(&str, &[u8])] = &[("mtime", b"5")];
    let mut tar = Tar::default();
    // As rust's `tar` writes it, and the other way around.
    tar.pax(attribute)
        .long(b'L', long.as_bytes())
        .file("x", b"ok");
    tar.long(b'L', b"second").pax(attribute).file("x", b"ok");
    tar.long(b'K', long.as_bytes())
        .pax(&[("path", b"third")])
        .long(b'L', b"third")
        .hard_link("x", "y");
    check_list(
        &[&tar],
        &[
            "opt/",
            &format!("opt/{}/", "d".repeat(60)),
            &format!("{long}: ok"),
            "second: ok",
            "third: ok",
        ],
    );
}

#[test]
fn case_a_size_in_the_header_of_an_entry_without_content_is_ignored() {
    let sized = |name: &'static [u8], type_flag, size| Header {
        name,
        type_flag,
        size,
        link: b"a",
        ..Header::default()
    };
    let mut tar = Tar::default();
    tar.file("a", b"hello");
    tar.raw(&sized(b"b", b'1', 5), |_| {});
    tar.raw(&sized(b"c", b'2', 5), |_| {});
    tar.raw(&sized(b"d/", b'5', 4096), |_| {});
    tar.raw(&sized(b"e/", 0, 512), |_| {});
    tar.pax(&[("size", b"5")])
        .raw(&sized(b"f", b'1', 0), |_| {});
    tar.file("g", b"g");
    check_list(
        &[&tar],
        &[
            "a: hello", "b: hello", "c -> a", "d/", "e/", "f: hello", "g: g",
        ],
    );
}

#[test]
fn case_global_headers_are_ignored() {
    let mut tar = Tar::default();
    tar.pax_of_type(
        b'g',
        &[
            ("comment", b"of git archive"),
            ("mtime", b"1"),
            ("uid", b"7"),
            ("SCHILY.xattr.user.a", b"v"),
        ],
    );
    tar.file("a", b"a");
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    built(&[tar.layer(dir.path())], &disk);
    let Some(mount) = LoopMount::new(&disk, "ro") else {
        return;
    };
    let metadata = mount.path().join("a").metadata().unwrap();
    assert_eq!((metadata.uid(), metadata.mtime()), (0, 1_000_000_000));
}

/// As the kernel would resolve them in the image: docker-squash#104, and a merged /usr.
#[test]
fn case_entries_below_links_are_where_the_image_has_them() {
    let mut base = Tar::default();
    base.directory("usr/bin/")
        .file("usr/bin/busybox", b"b")
        .symlink("bin", "usr/bin");
    base.symlink("up", "../../../usr")
        .symlink("data", "/var/lib/data")
        .symlink("cache", "data/cache");
    let mut upper = Tar::default();
    // A hard link to a name behind a link of the lower layer.
    upper.hard_link("bin/sh", "bin/busybox");
    upper.file("up/by-dots", b"u");
    // To nothing that is there yet: containerd makes it.
    upper.file("cache/x", b"x").directory("data/");
    upper.file("data/y", b"y");
    check_list(
        &[&base, &upper],
        &[
            "bin -> usr/bin",
            "cache -> data/cache",
            "data/",
            "data/y: y",
            "up -> ../../../usr",
            "usr/",
            "usr/bin/",
            "usr/bin/busybox: b",
            "usr/bin/sh: b",
            "usr/by-dots: u",
            "var/",
            "var/lib/",
            "var/lib/data/",
            "var/lib/data/cache/",
            "var/lib/data/cache/x: x",
        ],
    );
}

/// As many layers as an image may have when it is deployed.
#[test]
fn case_one_limit_on_layers_holds_from_the_deploy_to_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let most = oci::ImageLimits::default().layers;
    assert_eq!(most as u64, Limits::default().layers);
    let layers: Vec<_> = (0..most)
        .map(|number| {
            let mut tar = Tar::default();
            tar.file("last", number.to_string().as_bytes());
            tar.layer(dir.path())
        })
        .collect();
    if let Some(lines) = listed(&layers) {
        assert_eq!(lines, [format!("last: {}", most - 1)]);
    }
}
