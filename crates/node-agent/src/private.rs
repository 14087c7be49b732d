//! Keeps what tenants have on this machine from its other users: folders 0700, files 0600, whatever the umask that the agent
//! was started with.
//!
//! New files follow the process's umask, which [`enter`] sets. What an agent before this one left open is closed by
//! [`close_all`]. VMs get open descriptors of what is theirs, so no VM's user needs a name of a file here. (Firecracker opens a
//! root disk by its name within its jail, and the driver lets everybody read that one file: the folders above stay closed.)

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::Mode;

/// Mode bits of the machine's other users.
const OTHERS: u32 = 0o077;

/// Sets the umask of this process: what it makes from now on is closed to other users.
pub(crate) fn enter() {
    rustix::process::umask(Mode::from_raw_mode(OTHERS));
}

/// How much was open to other users.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Opened {
    pub(crate) folders: u64,
    pub(crate) files: u64,
}

/// Makes a folder, and closes it and everything in it. Symbolic links are not followed, and no other file system is entered.
/// Blocks.
///
/// # Errors
/// The folder cannot be made or read, or a mode cannot be changed.
pub(crate) fn close_all(folder: &Path) -> io::Result<Opened> {
    make(folder)?;
    let device = fs::symlink_metadata(folder)?.dev();
    let mut opened = Opened::default();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        opened.folders += u64::from(close(&folder)?);
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                if entry.metadata().is_ok_and(|found| found.dev() == device) {
                    folders.push(entry.path());
                }
            } else if kind.is_file() {
                opened.files += u64::from(close(&entry.path())?);
            }
        }
    }
    Ok(opened)
}

/// Makes a folder, and closes it and the folders right in it, whose content may be other users'. Blocks.
///
/// # Errors
/// As of [`close_all`].
pub(crate) fn close_folders(folder: &Path) -> io::Result<Opened> {
    make(folder)?;
    let mut opened = Opened {
        folders: u64::from(close(folder)?),
        files: 0,
    };
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            opened.folders += u64::from(close(&entry.path())?);
        }
    }
    Ok(opened)
}

fn make(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
}

/// Whether it was open to others. What was removed meanwhile was not.
fn close(path: &Path) -> io::Result<bool> {
    let done = || -> io::Result<bool> {
        let mode = fs::symlink_metadata(path)?.permissions().mode();
        let open = mode & OTHERS != 0;
        if open {
            fs::set_permissions(path, fs::Permissions::from_mode(mode & !OTHERS))?;
        }
        Ok(open)
    };
    match done() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn case_an_installation_that_other_users_can_read_is_closed_once() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("node");
        let log = data.join("instances/0000000a/log");
        fs::create_dir_all(&log).unwrap();
        let outside = dir.path().join("outside");
        for (path, bits) in [
            (log.join("current"), 0o644),
            (data.join("desired.json"), 0o640),
            (outside.clone(), 0o666),
        ] {
            fs::write(&path, "tenant").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(bits)).unwrap();
        }
        std::os::unix::fs::symlink(&outside, data.join("link")).unwrap();
        for path in [&data, &data.join("instances"), &log] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let found = close_all(&data).unwrap();
        assert_eq!(found.files, 2);
        assert!(found.folders >= 3, "{found:?}");
        for path in [&data, &data.join("instances/0000000a"), &log] {
            assert_eq!(mode(path), 0o700, "{}", path.display());
        }
        assert_eq!(mode(&log.join("current")), 0o600);
        assert_eq!(mode(&data.join("desired.json")), 0o600);
        assert_eq!(mode(&outside), 0o666, "what a link leads to is not ours");
        assert_eq!(close_all(&data).unwrap(), Opened::default());
    }

    #[test]
    fn the_run_folder_is_closed_and_what_vms_users_have_in_it_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let theirs = run.join("0000000a/vsock");
        fs::create_dir_all(&theirs).unwrap();
        for path in [&run, &run.join("0000000a"), &theirs] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        assert_eq!(close_folders(&run).unwrap().folders, 2);
        assert_eq!(mode(&run), 0o700);
        assert_eq!(mode(&run.join("0000000a")), 0o700);
        assert_eq!(mode(&theirs), 0o755);
    }
}
