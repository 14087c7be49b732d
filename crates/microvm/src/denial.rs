//! Why a file cannot be executed or opened: the component of its path that forbids it.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, StatVfsMountFlags, accessat, statvfs};

/// What forbids a file to be executed or opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denial {
    /// The path leads through this folder, which this process may not enter.
    Folder {
        /// The folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Its owner's user id.
        owner: u32,
    },
    /// The file system is mounted `noexec`: no program on it is executed.
    NoExec {
        /// Where it is mounted.
        mount_point: PathBuf,
    },
    /// The file's own permission bits forbid it.
    Mode {
        /// The file's permission bits.
        mode: u32,
        /// The file's owner's user id.
        owner: u32,
    },
    /// Nothing that is to be seen in the path: a security module (`AppArmor`, SELinux), say.
    Unseen,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder { path, mode, owner } => write!(
                f,
                "the folder {} (mode {mode:04o}, owner {owner}) may not be entered",
                path.display()
            ),
            Self::NoExec { mount_point } => write!(
                f,
                "the file system at {} is mounted noexec; hint: remount it with `exec`, or move the \
                 program to another file system",
                mount_point.display()
            ),
            Self::Mode { mode, owner } => write!(
                f,
                "the file's mode {mode:04o} (owner {owner}) forbids it; hint: chmod"
            ),
            Self::Unseen => f.write_str(
                "no folder on the way, mode or mount forbids it; hint: does a security module \
                 (AppArmor, SELinux)? see dmesg",
            ),
        }
    }
}

/// What stops this process from executing a program; nothing when it can be executed.
pub(crate) fn to_execution(program: &Path) -> Option<Denial> {
    let no_exec = || {
        let stat = statvfs(program).ok()?;
        stat.f_flag
            .contains(StatVfsMountFlags::NOEXEC)
            .then(|| Denial::NoExec {
                mount_point: mount_point(program),
            })
    };
    folder(program)
        .or_else(no_exec)
        .or_else(|| file_mode(program, Access::EXEC_OK))
}

/// What stopped this process from opening a file, as far as it can be seen.
pub(crate) fn to_opening(path: &Path) -> Denial {
    folder(path)
        .or_else(|| file_mode(path, Access::READ_OK))
        .or_else(|| file_mode(path, Access::WRITE_OK))
        .unwrap_or(Denial::Unseen)
}

/// The first folder on the way that may not be entered.
fn folder(path: &Path) -> Option<Denial> {
    let mut folders: Vec<_> = path.ancestors().skip(1).collect();
    folders.reverse();
    let closed = folders
        .into_iter()
        .find(|folder| !folder.as_os_str().is_empty() && !may(folder, Access::EXEC_OK))?;
    let metadata = closed.metadata().ok()?;
    Some(Denial::Folder {
        path: closed.to_owned(),
        mode: metadata.mode() & 0o7777,
        owner: metadata.uid(),
    })
}

fn file_mode(path: &Path, access: Access) -> Option<Denial> {
    if may(path, access) {
        return None;
    }
    let metadata = path.metadata().ok()?;
    Some(Denial::Mode {
        mode: metadata.mode() & 0o7777,
        owner: metadata.uid(),
    })
}

/// By the effective user, as the kernel will check it.
fn may(path: &Path, access: Access) -> bool {
    accessat(CWD, path, access, AtFlags::EACCESS).is_ok()
}

/// The topmost folder of the path's file system, seen from the path.
fn mount_point(path: &Path) -> PathBuf {
    let device = |path: &Path| path.metadata().ok().map(|metadata| metadata.dev());
    let here = device(path);
    path.ancestors()
        .take_while(|folder| device(folder) == here)
        .last()
        .unwrap_or(path)
        .to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_program_without_an_executable_bit_is_named_with_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        fs::write(&program, "").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o640)).unwrap();
        let denial = to_execution(&program).unwrap();
        assert!(
            matches!(denial, Denial::Mode { mode: 0o640, .. }),
            "{denial}"
        );
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(to_execution(&program), None);
    }

    #[test]
    fn the_mount_point_is_the_topmost_folder_of_the_file_system() {
        assert_eq!(
            mount_point(Path::new("/proc/self/status")),
            Path::new("/proc")
        );
    }
}
