//! `/run`: a file system in memory that starts with the image's own `/run`.
//!
//! Images put directories into `/run` for the user they run as (`/run/postgresql`, `/run/mysqld`):
//! an empty file system over them would break those, so they are copied first. An image
//! whose `/run` is larger than [`MAX_BYTES`] keeps it on the overlay, which is as short-lived.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

/// Most bytes of file content copied from an image's `/run`.
const MAX_BYTES: u64 = 1024 * 1024;
/// Most files and directories copied.
const MAX_ENTRIES: u32 = 1024;

/// Bytes of a file that are copied between two words of it.
const COPIED_AT_ONCE: u64 = 1024 * 1024;

/// Mounts `/run`.
///
/// # Errors
/// The kernel refuses, or the image's `/run` cannot be read.
pub(crate) fn mount() -> io::Result<()> {
    let run = Path::new("/run");
    fs::create_dir_all(run)?;
    let configuration = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&configuration, "mode", "755")?;
    fsconfig_create(&configuration)?;
    let mounted = fsmount(
        &configuration,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
    )?;
    let target = PathBuf::from(format!("/proc/self/fd/{}", mounted.as_raw_fd()));
    let mut budget = Budget {
        bytes: MAX_BYTES,
        entries: MAX_ENTRIES,
        copied: &mut |_, _| {},
    };
    if !copy_children(run, &target, &mut budget)? {
        return Ok(());
    }
    move_mount(
        &mounted,
        "",
        CWD,
        "/run",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}

/// Is told of so many more files and bytes that are done.
pub(crate) type Done<'d> = dyn FnMut(u64, u64) + 'd;

/// How much may be copied.
pub(crate) struct Budget<'d> {
    /// Bytes of file content.
    pub(crate) bytes: u64,
    /// Files and directories.
    pub(crate) entries: u32,
    /// Told of what is copied.
    pub(crate) copied: &'d mut Done<'d>,
}

/// Copies the content of a directory. False: it exceeds the budget.
pub(crate) fn copy_children(from: &Path, to: &Path, budget: &mut Budget<'_>) -> io::Result<bool> {
    // Few names, and no descriptor kept open on the way down.
    let names: Vec<OsString> = fs::read_dir(from)?
        .take(budget.entries as usize + 1)
        .map(|entry| Ok(entry?.file_name()))
        .collect::<io::Result<_>>()?;
    for name in names {
        if !copy(&from.join(&name), &to.join(&name), budget)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The content of a file, in pieces, so that a large one is heard of while it is copied.
fn copy_content(from: &Path, to: &Path, copied: &mut Done<'_>) -> io::Result<()> {
    let (mut from, mut to) = (fs::File::open(from)?, fs::File::create_new(to)?);
    loop {
        match io::copy(&mut (&mut from).take(COPIED_AT_ONCE), &mut to)? {
            0 => return Ok(()),
            bytes => copied(0, bytes),
        }
    }
}

fn copy(from: &Path, to: &Path, budget: &mut Budget<'_>) -> io::Result<bool> {
    let metadata = fs::symlink_metadata(from)?;
    let kind = metadata.file_type();
    let bytes = if kind.is_file() { metadata.len() } else { 0 };
    if budget.entries == 0 || budget.bytes < bytes {
        return Ok(false);
    }
    budget.entries -= 1;
    budget.bytes -= bytes;
    (budget.copied)(1, 0);
    if kind.is_dir() {
        fs::create_dir(to)?;
    } else if kind.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from)?, to)?;
    } else if kind.is_file() {
        copy_content(from, to, budget.copied)?;
    } else {
        // Sockets and pipes belong to programs that are not running.
        return Ok(true);
    }
    let owner = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
    chownat(
        CWD,
        to,
        Some(owner.0),
        Some(owner.1),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    if !kind.is_symlink() {
        fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    }
    if kind.is_dir() {
        return copy_children(from, to, budget);
    }
    Ok(true)
}
