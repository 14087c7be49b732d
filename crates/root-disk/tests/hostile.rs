//! Images that want to do harm: each is a typed error, the host is as it was, and no disk is there. And what
//! looks alike and must pass.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use oci::{Compression, LayerFile};
use root_disk::{ArchiveProblem, DiskError, EntryProblem, LayerError, Limits, build};
use support::archive::{Header, Tar, digest, layer_of, stored_layer};
use support::{compare, fsck};

/// The error of a build that must fail, after which everything around it is as it was: the disk that was
/// there, and what the names in the archive would reach if they were paths of the host.
#[track_caller]
fn refused(layers: &[LayerFile], dir: &Path, limits: &Limits) -> DiskError {
    let output = dir.join("out");
    fs::create_dir_all(output.join("d")).unwrap();
    for canary in ["disk", "file", "f", "l", "d/f", "../x", "../file"] {
        fs::write(output.join(canary), b"as it was").unwrap();
    }
    let before = seen(dir);
    let error = build(layers, &output.join("disk"), limits).unwrap_err();
    assert_eq!(seen(dir), before);
    error
}

/// Everything that is in a folder: what would change if it was made anew, written or given to another.
fn seen(dir: &Path) -> Vec<String> {
    compare::walk(dir)
        .iter()
        // A file was made in this one, and is gone.
        .filter(|(path, _)| *path != Path::new("out"))
        .map(|(path, metadata)| {
            let changed = (metadata.ctime(), metadata.ctime_nsec());
            format!("{} {} {changed:?}", path.display(), metadata.ino())
        })
        .collect()
}

#[track_caller]
fn layer_error(tars: &[&Tar]) -> LayerError {
    let dir = tempfile::tempdir().unwrap();
    let layers: Vec<LayerFile> = tars.iter().map(|tar| tar.layer(dir.path())).collect();
    match refused(&layers, dir.path(), &Limits::default()) {
        error @ DiskError::Layer { .. } if error.is_transient() => panic!("transient: {error:?}"),
        DiskError::Layer { number, source, .. } => {
            assert_eq!(number, tars.len());
            *source
        }
        error => panic!("{error:?}"),
    }
}

#[track_caller]
fn entry_problem(tars: &[&Tar]) -> EntryProblem {
    match layer_error(tars) {
        LayerError::Entry { source, .. } => source,
        error => panic!("{error:?}"),
    }
}

#[track_caller]
fn archive_problem(tar: &Tar) -> ArchiveProblem {
    match layer_error(&[tar]) {
        LayerError::Archive { source, .. } => source,
        error => panic!("{error:?}"),
    }
}

fn tar(make: impl FnOnce(&mut Tar) -> &mut Tar) -> Tar {
    tar_by(|tar| {
        make(tar);
    })
}

fn tar_by(make: impl FnOnce(&mut Tar)) -> Tar {
    let mut tar = Tar::default();
    make(&mut tar);
    tar
}

#[track_caller]
fn passes(tars: &[&Tar]) {
    let dir = tempfile::tempdir().unwrap();
    let layers: Vec<LayerFile> = tars.iter().map(|tar| tar.layer(dir.path())).collect();
    let disk = dir.path().join("disk");
    if let Err(error) = build(&layers, &disk, &Limits::default()) {
        panic!("{error:?}");
    }
    fsck(&disk);
}

#[test]
fn hostile_names_are_refused() {
    for (name, problem) in [
        ("../x", EntryProblem::AboveRoot),
        ("a/../../x", EntryProblem::AboveRoot),
        ("/../etc/passwd", EntryProblem::AboveRoot),
        ("a/..", EntryProblem::RootNotDirectory),
        ("..", EntryProblem::AboveRoot),
        ("", EntryProblem::EmptyName),
        ("x/", EntryProblem::SlashAfterFile),
    ] {
        assert_eq!(
            entry_problem(&[&tar(|t| t.file(name, b"x"))]),
            problem,
            "{name}"
        );
    }
    let nul = tar(|t| t.pax(&[("path", b"a\0b")]).file("x", b""));
    assert_eq!(entry_problem(&[&nul]), EntryProblem::NulInPath);
    let long = tar(|t| t.file(&"n".repeat(256), b""));
    assert_eq!(entry_problem(&[&long]), EntryProblem::PathTooLong);
    let deep = tar(|t| t.directory(&"d/".repeat(4096)));
    assert_eq!(entry_problem(&[&deep]), EntryProblem::PathTooLong);
    // Deeper than any path, step by step through symlinks.
    let deeper = tar_by(|t| {
        t.directory(&"d/".repeat(2000))
            .symlink("s", &"d/".repeat(2000))
            .directory(&format!("s/{}", "e/".repeat(100)));
    });
    assert_eq!(entry_problem(&[&deeper]), EntryProblem::TooDeep);
    passes(&[&tar(|t| t.directory(&"d/".repeat(2000)))]);
    passes(&[&tar(|t| {
        t.file(".//a/./b", b"x").directory("./").directory("/")
    })]);
    // Of the image's root, as docker and containerd have them; the host's file is untouched (`refused` shows how).
    passes(&[&tar(|t| {
        t.file("/etc/passwd", b"x")
            .file("//x", b"x")
            .file("a/../b", b"x")
    })]);
}

#[test]
fn the_root_stays_a_directory() {
    for name in ["/", ".", "./", "././/"] {
        for type_flag in [b'0', b'1', b'2', b'3', b'6'] {
            let header = Header {
                name: name.as_bytes(),
                type_flag,
                link: b"/etc",
                ..Header::default()
            };
            let problem = entry_problem(&[&tar(|t| t.entry(&header, b""))]);
            assert_eq!(
                problem,
                EntryProblem::RootNotDirectory,
                "{name} {type_flag}"
            );
        }
    }
}

#[test]
fn entries_below_symlinks_stay_in_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let canary = dir.path().join("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("file"), b"as it was").unwrap();
    let absolute = canary.to_str().unwrap();
    let beneath = |target: &str| {
        [
            tar(|t| {
                t.file("file", b"")
                    .symlink("link", target)
                    .file("link/file", b"pwned")
            }),
            tar(|t| {
                t.file("file", b"")
                    .symlink("link", target)
                    .directory("link/sub/")
            }),
            tar(|t| {
                t.file("file", b"")
                    .symlink("link", target)
                    .symlink("link/sub", "x")
            }),
            tar(|t| {
                t.file("file", b"")
                    .symlink("link", target)
                    .file("link/.wh.file", b"")
            }),
        ]
    };
    // Within the image these are ordinary: the kernel of a guest follows them to the same place.
    for target in [
        absolute,
        &format!("../../../../../../../../..{absolute}"),
        "..",
        "nothing",
    ] {
        for beneath in &beneath(target) {
            passes(&[beneath]);
        }
    }
    for target in ["link", "./link/x", "file"] {
        for beneath in &beneath(target) {
            let problem = entry_problem(&[beneath]);
            assert!(
                matches!(
                    problem,
                    EntryProblem::NotThroughDirectory { .. } | EntryProblem::SymlinkLoop
                ),
                "{target}: {problem:?}"
            );
        }
    }
    assert_eq!(fs::read_dir(&canary).unwrap().count(), 1);
    assert_eq!(fs::read(canary.join("file")).unwrap(), b"as it was");

    let below_file = tar(|t| t.file("f", b"").file("f/x", b""));
    assert!(matches!(
        entry_problem(&[&below_file]),
        EntryProblem::NotThroughDirectory { .. }
    ));
    let mut spiral = Tar::default();
    spiral.directory("d0/");
    for number in 0..50 {
        spiral.symlink(
            &format!("s{}", number + 1),
            &if number == 0 {
                "d0".to_owned()
            } else {
                format!("s{number}")
            },
        );
    }
    assert_eq!(
        entry_problem(&[&tar_by(|t| {
            t.0.clone_from(&spiral.0);
            t.file("s50/x", b"");
        })]),
        EntryProblem::SymlinkLoop
    );
    passes(&[&tar_by(|t| {
        t.0.clone_from(&spiral.0);
        t.file("s40/x", b"");
    })]);
    for target in ["", &"t".repeat(4096)] {
        assert_eq!(
            entry_problem(&[&tar(|t| t.symlink("l", target))]),
            EntryProblem::SymlinkTarget
        );
    }
    passes(&[&tar(|t| {
        t.symlink("l", &"t".repeat(4095))
            .symlink("m", &"t".repeat(60))
            .symlink("n", &"t".repeat(59))
    })]);
    passes(&[&tar(|t| {
        t.symlink("l", "/etc/passwd").symlink("m", "../../..")
    })]);
    passes(&[
        &tar(|t| t.symlink("l", "x")),
        &tar(|t| t.file("l", b"a file now")),
    ]);
}

#[test]
fn hostile_hard_links_are_refused() {
    for target in ["../../etc/passwd", "a/../../f", "..", ""] {
        let problem = entry_problem(&[&tar(|t| t.file("f", b"").hard_link("l", target))]);
        assert!(
            !matches!(problem, EntryProblem::HardLinkTarget { .. }),
            "{target}: {problem:?}"
        );
    }
    for target in [
        "/etc/passwd",
        "none",
        "d",
        ".",
        "s/none",
        "nowhere/f",
        "l",
        ".wh.f",
        ".wh..wh.plnk/f",
    ] {
        let made = tar(|t| {
            t.directory("d/")
                .file("d/f", b"")
                .file("f", b"")
                .symlink("s", "d")
                .symlink("nowhere", "/etc")
                .hard_link("l", target)
        });
        let problem = entry_problem(&[&made]);
        assert!(
            matches!(problem, EntryProblem::HardLinkTarget { .. }),
            "{target}: {problem:?}"
        );
    }
    for target in ["f/x", "loop/f"] {
        let made = tar(|t| {
            t.file("f", b"")
                .symlink("loop", "loop")
                .hard_link("l", target)
        });
        let problem = entry_problem(&[&made]);
        assert!(
            matches!(
                problem,
                EntryProblem::NotThroughDirectory { .. } | EntryProblem::SymlinkLoop
            ),
            "{target}: {problem:?}"
        );
    }
    let itself = tar(|t| t.file("f", b"").hard_link("f", "f"));
    assert!(matches!(
        entry_problem(&[&itself]),
        EntryProblem::HardLinkTarget { .. }
    ));
    let swallowed = tar(|t| t.file("d/f", b"").hard_link("d", "d/f"));
    assert!(matches!(
        entry_problem(&[&swallowed]),
        EntryProblem::HardLinkTarget { .. }
    ));
    let many = tar_by(|t| {
        t.file("f", b"");
        for number in 0..65_000 {
            t.hard_link(&format!("l{number}"), "f");
        }
    });
    assert_eq!(entry_problem(&[&many]), EntryProblem::TooManyLinks);
    passes(&[
        &tar(|t| t.file("f", b"x")),
        &tar(|t| {
            t.hard_link("l", "f")
                .hard_link("m", "/f")
                .hard_link("l", "f")
        }),
    ]);
    passes(&[&tar(|t| t.symlink("s", "x").hard_link("l", "s"))]);
}

#[test]
fn malformed_whiteouts_are_refused() {
    let base = tar(|t| t.directory("d/").file("d/f", b"f"));
    for name in [
        ".wh.",
        "d/.wh.",
        ".wh..",
        ".wh...",
        ".wh.d/f",
        ".wh..wh..opq/f",
    ] {
        let problem = entry_problem(&[&base, &tar(|t| t.file(name, b""))]);
        assert!(
            matches!(problem, EntryProblem::Whiteout { .. }),
            "{name}: {problem:?}"
        );
    }
    passes(&[
        &base,
        &tar(|t| {
            t.file(".wh.none", b"")
                .file("none/.wh.x", b"")
                .file(".wh.d", b"")
                .file(".wh.d", b"")
        }),
    ]);
    passes(&[&tar(|t| t.file(".wh.x", b"").file("a.wh.b", b""))]);
}

#[test]
fn headers_with_contradicting_sizes_are_refused() {
    for (header, pax) in [(1024, &b"0"[..]), (0, b"1024"), (512, b"511")] {
        let made = tar(|t| {
            t.pax(&[("size", pax)])
                .raw(
                    &Header {
                        size: header,
                        ..Header::default()
                    },
                    |_| {},
                )
                .content(&[0x41; 1024])
        });
        assert!(matches!(
            archive_problem(&made),
            ArchiveProblem::SizesDisagree { .. }
        ));
    }
    passes(&[&tar(|t| t.pax(&[("size", b"3")]).file("f", b"abc"))]);
}

#[test]
fn malformed_extended_headers_are_refused() {
    for records in [
        &b"garbage"[..],
        b"12 path=a/b",
        b"99999 path=x\n",
        b"5 a=b\n",
        b"-7 a=b\n",
        b"13 path=a/b\n",
        b"99999999999999999999999 a=b\n",
    ] {
        let made = tar(|t| {
            t.entry(
                &Header {
                    name: b"x",
                    type_flag: b'x',
                    ..Header::default()
                },
                records,
            )
            .file("f", b"")
        });
        assert!(
            matches!(archive_problem(&made), ArchiveProblem::Pax { .. }),
            "{}",
            records.escape_ascii()
        );
    }
    for (key, value) in [
        ("size", &b"-1"[..]),
        ("size", b"99999999999999999999"),
        ("uid", b"-1"),
        ("uid", b"4294967296"),
        ("gid", b"x"),
        ("mtime", b"now"),
    ] {
        let made = tar(|t| t.pax(&[(key, value)]).file("f", b""));
        assert!(
            matches!(archive_problem(&made), ArchiveProblem::Pax { .. }),
            "{key}"
        );
    }
    let twice = tar(|t| t.pax(&[("path", b"a"), ("path", b"b")]).file("f", b""));
    assert!(matches!(
        archive_problem(&twice),
        ArchiveProblem::Pax { .. }
    ));
    for (key, value) in [("path", b"a"), ("linkpath", b"a"), ("size", b"1")] {
        let global = tar(|t| t.pax_of_type(b'g', &[(key, value)]).file("f", b""));
        assert!(
            matches!(archive_problem(&global), ArchiveProblem::Pax { .. }),
            "{key}"
        );
    }
    for two_names in [
        tar(|t| t.long(b'L', b"a").pax(&[("path", b"b")]).file("f", b"")),
        tar(|t| t.pax(&[("path", b"b")]).long(b'L', b"a").file("f", b"")),
        tar(|t| {
            t.file("a", b"")
                .pax(&[("linkpath", b"a")])
                .long(b'K', b"b")
                .hard_link("f", "x")
        }),
    ] {
        assert_eq!(archive_problem(&two_names), ArchiveProblem::NamesDisagree);
    }
    for stacked in [
        tar(|t| {
            t.pax(&[("path", b"a")])
                .pax(&[("path", b"b")])
                .file("f", b"")
        }),
        tar(|t| t.long(b'L', b"a").long(b'L', b"b").file("f", b"")),
        tar(|t| {
            t.pax(&[("path", b"a")])
                .pax_of_type(b'g', &[("comment", b"c")])
                .file("f", b"")
        }),
        tar(|t| t.pax(&[("path", b"a")])),
        tar(|t| t.long(b'L', b"a")),
    ] {
        assert_eq!(archive_problem(&stacked), ArchiveProblem::StackedHeaders);
    }
    let large = tar(|t| t.pax(&[("comment", &vec![b'c'; 2 << 20])]).file("f", b""));
    assert!(
        matches!(layer_error(&[&large]), LayerError::OverLimit(limit) if limit.limit == "MAX_PAX_BYTES")
    );
    let attribute = tar(|t| {
        t.pax(&[("SCHILY.xattr.user.x", &vec![b'v'; 1 << 20])])
            .file("f", b"")
    });
    assert!(matches!(
        layer_error(&[&attribute]),
        LayerError::OverLimit(_)
    ));
    let attribute = tar(|t| {
        t.pax(&[("SCHILY.xattr.user.x", &vec![b'v'; 5000])])
            .file("f", b"")
    });
    assert!(matches!(
        entry_problem(&[&attribute]),
        EntryProblem::XattrsTooLarge { .. }
    ));
    let attribute = tar(|t| {
        t.pax(&[("SCHILY.xattr.system.posix_acl_access", b"acl")])
            .file("f", b"")
    });
    assert!(matches!(
        entry_problem(&[&attribute]),
        EntryProblem::Xattr { .. }
    ));
    passes(&[&tar_by(|t| {
        t.pax_of_type(b'g', &[("comment", b"of git archive")]);
        t.pax(&[
            ("SCHILY.xattr.com.apple.quarantine", b"q"),
            ("SCHILY.xattr.user.y", &[b'v'; 4000]),
        ])
        .file("f", b"");
        t.long(b'L', b"long").long(b'K', b"f").hard_link("x", "y");
    })]);
}

#[test]
fn malformed_headers_are_refused() {
    let negative = tar_by(|t| {
        t.raw(&Header::default(), |block| {
            block[124..136].fill(0xff);
        });
    });
    assert_eq!(
        archive_problem(&negative),
        ArchiveProblem::HeaderNumber { field: "size" }
    );
    let text = tar_by(|t| {
        t.raw(&Header::default(), |block| {
            block[124..136].copy_from_slice(b"0000000019z\0");
        });
    });
    assert_eq!(
        archive_problem(&text),
        ArchiveProblem::HeaderNumber { field: "size" }
    );
    let mut sum = tar(|t| t.file("f", b""));
    sum.0[0] ^= 1;
    assert_eq!(archive_problem(&sum), ArchiveProblem::HeaderChecksum);
    for type_flag in [b'D', b'M', b'V', b'X', b'8', 0xff] {
        let made = tar(|t| {
            t.entry(
                &Header {
                    type_flag,
                    ..Header::default()
                },
                b"",
            )
        });
        assert_eq!(
            archive_problem(&made),
            ArchiveProblem::EntryType { type_flag }
        );
    }
    let mut lone = tar(|t| t.file("f", b""));
    lone.0.resize(lone.0.len() + 512, 0);
    lone.file("g", b"");
    assert_eq!(archive_problem(&lone), ArchiveProblem::LoneZeroBlock);
    let device = tar(|t| {
        t.entry(
            &Header {
                type_flag: b'3',
                device: (5000, 1),
                ..Header::default()
            },
            b"",
        )
    });
    assert_eq!(
        entry_problem(&[&device]),
        EntryProblem::Number {
            field: "device number"
        }
    );
    // Without an end, and with something after it, as some programs write.
    let dir = tempfile::tempdir().unwrap();
    let bare = tar(|t| t.file("f", b"f")).0;
    for bytes in [
        bare.clone(),
        [bare.clone(), vec![0; 1024], b"after".to_vec()].concat(),
        // Of umoci insert, and as Go's reader takes it: the last content has no padding, or a part of it.
        bare[..513].to_vec(),
        bare[..1023].to_vec(),
        Vec::new(),
    ] {
        let layer = layer_of(dir.path(), &bytes, Compression::None);
        build(&[layer], &dir.path().join("disk"), &Limits::default()).unwrap();
    }
    for length in [1, 511, 512] {
        let layer = layer_of(dir.path(), &bare[..length], Compression::None);
        let error = refused(&[layer], dir.path(), &Limits::default());
        assert!(format!("{error:?}").contains("Truncated"), "{error:?}");
    }
}

#[test]
fn malformed_sparse_maps_are_refused() {
    let huge = format!("{}", i64::MAX);
    for (map, size, content) in [
        ("0,4,2,4", "10", &b"12345678"[..]),
        ("4,4,0,4", "10", b"12345678"),
        ("0,4", "3", b"1234"),
        ("0,4", "10", b"12345"),
        ("0,5", "10", b"1234"),
        ("0,4,4", "10", b"1234"),
        ("0,x", "10", b"1234"),
        ("0,-4", "10", b"1234"),
        (&format!("{huge},4"), &huge, b"1234"),
        (&format!("0,{huge},{huge},{huge}"), &huge, b"1234"),
    ] {
        let made = tar_by(|t| {
            t.pax(&[
                ("GNU.sparse.realsize", size.as_bytes()),
                ("GNU.sparse.map", map.as_bytes()),
            ])
            .file("f", content);
        });
        let problem = archive_problem(&made);
        assert!(
            matches!(
                problem,
                ArchiveProblem::Sparse { .. } | ArchiveProblem::Pax { .. }
            ),
            "{map}: {problem:?}"
        );
    }
    for content in ["1\n0\n4\n", "99999999999\n", "x\n", "-1\n", "1\n0\n"] {
        let mut content = content.as_bytes().to_vec();
        content.resize(512, 0);
        let made = tar_by(|t| {
            t.pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.realsize", b"10"),
            ])
            .file("f", &content);
        });
        assert!(matches!(
            archive_problem(&made),
            ArchiveProblem::Sparse { .. }
        ));
    }
    let bomb = tar_by(|t| {
        t.pax(&[
            ("GNU.sparse.realsize", huge.as_bytes()),
            ("GNU.sparse.map", b"0,4"),
        ])
        .file("f", b"1234");
    });
    assert!(
        matches!(layer_error(&[&bomb]), LayerError::OverLimit(limit) if limit.limit == "expanded_bytes")
    );
    passes(&[&tar_by(|t| {
        t.pax(&[
            ("GNU.sparse.realsize", b"6442450944"),
            ("GNU.sparse.map", b"5,4,5000,4"),
        ])
        .file("f", b"12345678");
    })]);
}

#[test]
fn layers_with_other_bytes_than_their_digests_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let archive = tar(|t| t.file("f", &[7; 100_000])).finish();
    let limits = Limits::default();
    for compression in Compression::ALL {
        let good = layer_of(dir.path(), &archive, compression);
        let stored = fs::read(&good.path).unwrap();
        // Truncated, changed, and with more at its end.
        let mut changed = stored.clone();
        let middle = changed.len() / 2;
        changed[middle] ^= 1;
        for bad in [
            &stored[..stored.len() - 7],
            &changed,
            &[&stored[..], b"more"].concat(),
            b"",
        ] {
            let path = dir.path().join("bad");
            fs::write(&path, bad).unwrap();
            let error = refused(
                &[LayerFile {
                    path,
                    size: bad.len() as u64,
                    ..good.clone()
                }],
                dir.path(),
                &limits,
            );
            let DiskError::Layer { source, .. } = &error else {
                panic!("{error:?}")
            };
            assert!(
                matches!(**source, LayerError::Digest { .. }),
                "{compression}: {error:?}"
            );
            assert!(error.is_transient());
        }
        let error = refused(
            &[LayerFile {
                diff_id: digest(b"other"),
                ..good.clone()
            }],
            dir.path(),
            &limits,
        );
        let DiskError::Layer { source, .. } = &error else {
            panic!("{error:?}")
        };
        assert!(matches!(**source, LayerError::DiffId { .. }), "{error:?}");
        assert!(!error.is_transient());
        // Truncated before its digest was taken.
        if compression != Compression::None {
            for cut in [0, 1, 5, stored.len() / 2, stored.len() - 1] {
                let layer = stored_layer(dir.path(), &stored[..cut], &archive, compression);
                let error = refused(&[layer], dir.path(), &limits);
                let DiskError::Layer { source, .. } = &error else {
                    panic!("{error:?}")
                };
                assert!(
                    matches!(
                        **source,
                        LayerError::Decompress { .. } | LayerError::DiffId { .. }
                    ),
                    "{compression} {cut}: {error:?}"
                );
            }
        }
        fs::remove_file(&good.path).unwrap();
        let error = refused(&[good], dir.path(), &limits);
        assert!(error.is_transient(), "{error:?}");
    }
    assert!(matches!(
        refused(&[], dir.path(), &limits),
        DiskError::NoLayers
    ));
}

/// The decoder would reserve the dictionary that a header of a few bytes names.
#[test]
fn an_xz_layer_that_asks_for_gigabytes_of_memory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let archive = tar(|t| t.file("f", b"content")).finish();
    let honest = layer_of(dir.path(), &archive, Compression::Xz);
    let mut stored = fs::read(&honest.path).unwrap();
    // The stream's header has 12 bytes. The block's: its length in words less one, flags, the id of LZMA2, one byte of
    // properties (the size of the dictionary), padding, CRC-32.
    let end = 12 + 4 * usize::from(stored[12]);
    assert_eq!(stored[14..16], [0x21, 1]);
    stored[16] = 40;
    let mut sum = flate2::Crc::new();
    sum.update(&stored[12..end]);
    stored[end..end + 4].copy_from_slice(&sum.sum().to_le_bytes());
    let layer = stored_layer(dir.path(), &stored, &archive, Compression::Xz);
    let error = display::chain(&refused(&[layer], dir.path(), &Limits::default()));
    assert!(error.contains("as xz") && error.contains("mem"), "{error}");
}

#[test]
fn decompression_bombs_end_at_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        expanded_bytes: 1 << 28,
        ..Limits::default()
    };
    // 512 MiB of zeros in a file that says so, in each compression.
    let mut head = Tar::default();
    head.raw(
        &Header {
            size: 1 << 29,
            ..Header::default()
        },
        |_| {},
    );
    let whole = || {
        std::io::Read::chain(
            head.0.as_slice(),
            std::io::Read::take(std::io::repeat(0), 1 << 29),
        )
    };
    let zstd = zstd::encode_all(whole(), 1).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::copy(&mut whole(), &mut gzip).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    std::io::copy(&mut whole(), &mut bzip2).unwrap();
    let options = lzma_rust2::XzOptions::with_preset(0);
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    std::io::copy(&mut whole(), &mut xz).unwrap();
    for (stored, compression) in [
        (zstd, Compression::Zstd),
        (gzip.finish().unwrap(), Compression::Gzip),
        (bzip2.finish().unwrap(), Compression::Bzip2),
        (xz.finish().unwrap(), Compression::Xz),
    ] {
        let layer = stored_layer(dir.path(), &stored, b"", compression);
        let error = refused(std::slice::from_ref(&layer), dir.path(), &limits);
        let DiskError::Layer { source, .. } = &error else {
            panic!("{error:?}")
        };
        assert!(
            matches!(&**source, LayerError::OverLimit(limit) if limit.limit == "expanded_bytes"),
            "{error:?}"
        );
    }
    // More bytes after the archive's end.
    let after = stored_layer(
        dir.path(),
        &zstd::encode_all(std::io::Read::take(std::io::repeat(0), 1 << 29), 1).unwrap(),
        b"",
        Compression::Zstd,
    );
    let error = refused(&[after], dir.path(), &limits);
    assert!(format!("{error:?}").contains("expanded_bytes"), "{error:?}");

    let entries = tar_by(|t| {
        for number in 0..2000 {
            t.file(&number.to_string(), b"");
        }
    });
    let layers = [entries.layer(dir.path())];
    for limits in [
        Limits {
            entries: 1999,
            ..Limits::default()
        },
        Limits {
            tree_bytes: 100_000,
            ..Limits::default()
        },
        Limits {
            layers: 0,
            ..Limits::default()
        },
        Limits {
            disk_bytes: 100_000,
            ..Limits::default()
        },
    ] {
        let error = format!("{:?}", refused(&layers, dir.path(), &limits));
        assert!(error.contains("OverLimit"), "{error}");
    }
    let content = [tar(|t| t.file("f", &[1; 3_000_000])).layer(dir.path())];
    let error = refused(
        &content,
        dir.path(),
        &Limits {
            disk_bytes: 2_000_000,
            ..Limits::default()
        },
    );
    assert!(format!("{error:?}").contains("disk_bytes"), "{error:?}");
}

#[test]
fn ten_million_empty_entries_end_at_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    let one = tar(|t| t.file("same", b"")).0;
    let many = one.repeat(10_000);
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    for _ in 0..1000 {
        std::io::Write::write_all(&mut encoder, &many).unwrap();
    }
    let layer = stored_layer(
        dir.path(),
        &encoder.finish().unwrap(),
        b"",
        Compression::Zstd,
    );
    let error = format!("{:?}", refused(&[layer], dir.path(), &Limits::default()));
    assert!(error.contains("OverLimit"), "{error}");
}

/// An archive with some of everything, and where its headers are.
fn varied() -> (Vec<u8>, Vec<usize>) {
    let made = tar_by(|t| {
        t.directory("d/")
            .file("d/f", &[1; 700])
            .symlink("s", "d")
            .file("s/g", b"g");
        t.hard_link("h", "d/f")
            .long(b'L', &[b'n'; 150])
            .file("x", b"long");
        t.pax(&[
            ("path", b"p"),
            ("mtime", b"-1.5"),
            ("SCHILY.xattr.user.a", b"v"),
        ])
        .file("x", b"pax");
        t.pax(&[
            ("GNU.sparse.realsize", b"9000"),
            ("GNU.sparse.map", b"5,4,5000,4"),
        ])
        .file("sparse", b"12345678");
        t.file("d/.wh.f", b"").file(".wh..wh..opq", b"");
        t.entry(
            &Header {
                name: b"c",
                type_flag: b'3',
                device: (1, 3),
                ..Header::default()
            },
            b"",
        );
    });
    let headers = (0..made.0.len())
        .step_by(512)
        .filter(|at| &made.0[at + 257..at + 262] == b"ustar")
        .collect();
    (made.finish(), headers)
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        failure_persistence: None,
        ..proptest::prelude::ProptestConfig::with_cases(400)
    })]

    /// Whatever is changed in an archive, it is refused, or the disk is clean; and nothing panics.
    #[test]
    fn changed_archives(
        in_headers in proptest::collection::vec((0_usize..1000, 0_usize..512, proptest::num::u8::ANY), 0..4),
        anywhere in proptest::collection::vec((0_usize..100_000, proptest::num::u8::ANY), 0..3),
        cut in proptest::option::weighted(0.2, 0_usize..20_000),
    ) {
        let (mut archive, headers) = varied();
        for (at, value) in anywhere {
            let at = at % archive.len();
            archive[at] = value;
        }
        for (header, byte, value) in in_headers {
            let header = &mut archive[headers[header % headers.len()]..][..512];
            // Digits more often than other bytes.
            header[byte] = if value < 128 { b'0' + value % 8 } else { value };
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        archive.truncate(cut.unwrap_or(usize::MAX));
        // In memory: nothing here waits for a disk.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let disk = dir.path().join("disk");
        let limits = Limits { disk_bytes: 1 << 26, ..Limits::default() };
        let layer = layer_of(dir.path(), &archive, Compression::None);
        match build(&[layer], &disk, &limits) {
            Ok(_) => fsck(&disk),
            Err(error) => assert!(matches!(error, DiskError::Layer { .. }), "{error:?}"),
        }
    }
}
