//! An independent unpacking: GNU tar as root, layer on layer, whiteouts applied between.

use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use oci::{Compression, LayerFile};

/// Unpacks layers into an empty directory.
pub(crate) fn unpack(layers: &[LayerFile], root: &Path) {
    for layer in layers {
        let archive = decompressed(layer);
        hide(&archive, root);
        let mut tar = Command::new("tar")
            .args([
                "--xattrs",
                "--xattrs-include=*",
                "--acls",
                "--numeric-owner",
                "--same-owner",
                "-xpf",
                "-",
            ])
            .args(["--exclude=.wh.*", "--delay-directory-restore"])
            .arg("-C")
            .arg(root)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut tar.stdin.take().unwrap(), &archive).unwrap();
        assert!(tar.wait().unwrap().success());
    }
}

/// What `PROGRAM -dc` makes of a file.
fn filtered(program: &str, path: &Path) -> Vec<u8> {
    let output = Command::new(program)
        .arg("-dc")
        .stdin(fs::File::open(path).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

fn decompressed(layer: &LayerFile) -> Vec<u8> {
    let stored = fs::read(&layer.path).unwrap();
    match layer.compression {
        Compression::None => stored,
        Compression::Gzip => {
            let mut archive = Vec::new();
            flate2::read::MultiGzDecoder::new(stored.as_slice())
                .read_to_end(&mut archive)
                .unwrap();
            archive
        }
        Compression::Zstd => zstd::decode_all(stored.as_slice()).unwrap(),
        // The programs that docker runs, or has the code of.
        Compression::Bzip2 => filtered("bzip2", &layer.path),
        Compression::Xz => filtered("xz", &layer.path),
    }
}

/// Applies the whiteouts of a layer to what is below it.
fn hide(archive: &[u8], root: &Path) {
    let mut list = Command::new("tar")
        .args(["-tf", "-", "--quoting-style=literal"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = list.stdin.take().unwrap();
    let names = std::thread::scope(|scope| {
        scope.spawn(move || std::io::Write::write_all(&mut input, archive).unwrap());
        let mut names = Vec::new();
        list.stdout.take().unwrap().read_to_end(&mut names).unwrap();
        names
    });
    assert!(list.wait().unwrap().success());
    for name in names.split(|byte| *byte == b'\n') {
        let path = Path::new(std::ffi::OsStr::from_bytes(name));
        let Some(file) = path
            .file_name()
            .and_then(|file| file.as_bytes().strip_prefix(b".wh."))
        else {
            continue;
        };
        let folder = root.join(path.parent().unwrap());
        if file == b".wh..opq" {
            for entry in fs::read_dir(&folder).into_iter().flatten() {
                remove(&entry.unwrap().path());
            }
        } else {
            remove(&folder.join(std::ffi::OsStr::from_bytes(file)));
        }
    }
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}
