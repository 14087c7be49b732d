//! Two trees on the host, compared in everything that a program in them could see.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Every path of a tree, from its root, in order; the root is the empty one.
pub(crate) fn walk(root: &Path) -> BTreeMap<PathBuf, Metadata> {
    let mut found = BTreeMap::new();
    let mut left = vec![PathBuf::new()];
    while let Some(path) = left.pop() {
        let full = root.join(&path);
        let metadata = fs::symlink_metadata(&full).unwrap();
        if metadata.is_dir() {
            for entry in fs::read_dir(&full).unwrap() {
                left.push(path.join(entry.unwrap().file_name()));
            }
        }
        found.insert(path, metadata);
    }
    found
}

fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut names = vec![0; 64 * 1024];
    let length = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap();
    names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let name = OsString::from_vec(name.to_vec());
            let mut value = vec![0; 64 * 1024];
            let length = rustix::fs::lgetxattr(path, &name, value.as_mut_slice()).unwrap();
            value.truncate(length);
            (name, value)
        })
        .collect()
}

/// What is told of one path, as text. Times of directories may be left out.
fn describe(root: &Path, path: &Path, metadata: &Metadata, directory_times: bool) -> String {
    let full = root.join(path);
    let kind = metadata.file_type();
    let mut text = format!(
        "{:o} {}:{}",
        metadata.mode(),
        metadata.uid(),
        metadata.gid()
    );
    if !metadata.is_dir() {
        text += &format!(" links {}", metadata.nlink());
    }
    if !metadata.is_dir() || directory_times {
        text += &format!(" time {}.{:09}", metadata.mtime(), metadata.mtime_nsec());
    }
    if kind.is_file() {
        text += &format!(" size {}", metadata.len());
    }
    if kind.is_symlink() {
        text += &format!(" -> {}", fs::read_link(&full).unwrap().display());
    }
    if kind.is_char_device() || kind.is_block_device() {
        text += &format!(" device {:x}", metadata.rdev());
    }
    text + &format!(" {:?}", xattrs(&full))
}

/// Fails with the first differences.
pub(crate) fn assert_same(ours: &Path, theirs: &Path, directory_times: bool) {
    let our_paths = walk(ours);
    let their_paths = walk(theirs);
    let mut differences = Vec::new();
    for path in our_paths.keys().chain(their_paths.keys()) {
        match (our_paths.get(path), their_paths.get(path)) {
            (Some(our), Some(their)) => {
                let our_text = describe(ours, path, our, directory_times);
                let their_text = describe(theirs, path, their, directory_times);
                if our_text != their_text {
                    differences.push(format!("{}:\n  {our_text}\n  {their_text}", path.display()));
                } else if our.is_file()
                    && our.len() > 0
                    && !same_content(&ours.join(path), &theirs.join(path), our.len())
                {
                    differences.push(format!("{}: other content", path.display()));
                }
            }
            (our, _) => differences.push(format!(
                "{}: only {}",
                path.display(),
                if our.is_some() { "ours" } else { "theirs" }
            )),
        }
    }
    differences.dedup();
    let count = differences.len();
    differences.truncate(20);
    assert!(
        count == 0,
        "{count} differences:\n{}",
        differences.join("\n")
    );
    assert_eq!(groups(&our_paths), groups(&their_paths), "hard links");
}

/// Which paths are one file.
fn groups(paths: &BTreeMap<PathBuf, Metadata>) -> Vec<Vec<&PathBuf>> {
    let mut by_inode: BTreeMap<u64, Vec<&PathBuf>> = BTreeMap::new();
    for (path, metadata) in paths {
        if !metadata.is_dir() && metadata.nlink() > 1 {
            by_inode.entry(metadata.ino()).or_default().push(path);
        }
    }
    let mut groups: Vec<_> = by_inode.into_values().collect();
    groups.sort();
    groups
}

/// Data where either has data; what both have as holes is equal.
fn same_content(ours: &Path, theirs: &Path, size: u64) -> bool {
    use std::os::unix::fs::FileExt as _;
    let ours = fs::File::open(ours).unwrap();
    let theirs = fs::File::open(theirs).unwrap();
    let (mut our_bytes, mut their_bytes) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < size {
        let next = |file: &fs::File| match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
            Ok(next) => next,
            Err(_) => size,
        };
        at = next(&ours).min(next(&theirs));
        if at >= size {
            break;
        }
        let length = usize::try_from((size - at).min(1 << 20)).unwrap();
        ours.read_exact_at(&mut our_bytes[..length], at).unwrap();
        theirs
            .read_exact_at(&mut their_bytes[..length], at)
            .unwrap();
        if our_bytes[..length] != their_bytes[..length] {
            return false;
        }
        at += length as u64;
    }
    true
}
