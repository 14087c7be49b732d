//! Names in the run directory of a VM, and the sockets between guest and node.
//!
//! ```text
//! <run dir>/        the agent's, closed to others
//!   vm.json         the record (see `record`)
//!   console.fifo    console.log, console.log.1 (see `console`)
//!   qmp.sock        QEMU's monitor
//!   jail/           the root of the VMM, empty from outside (see `view` and `firecracker::jail`)
//!   vsock/          belongs to the VM's user, which can write nowhere else
//!     device        QEMU connects here to the vsock device
//!     api           Firecracker's API
//!     guest         the host connects here; the guest connects to `guest_<port>`
//! ```

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use blocking_work::blocking;
use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat};

const VSOCK_DIR: &str = "vsock";
/// The vsock device's own socket, relative to [`vsock_dir`].
pub(crate) const DEVICE_SOCKET: &str = "device";
/// Firecracker's API, relative to [`vsock_dir`].
pub(crate) const API_SOCKET: &str = "api";
/// The stem of the guest's sockets, relative to [`vsock_dir`].
pub(crate) const GUEST_SOCKET: &str = "guest";

pub(crate) fn vsock_dir(run_dir: &Path) -> PathBuf {
    run_dir.join(VSOCK_DIR)
}

pub(crate) fn jail_dir(run_dir: &Path) -> PathBuf {
    run_dir.join("jail")
}

/// The record (see `record`).
pub(crate) fn record(run_dir: &Path) -> PathBuf {
    run_dir.join("vm.json")
}

/// The record while it is written: an agent that is killed then leaves it.
pub(crate) fn unfinished_record(run_dir: &Path) -> PathBuf {
    run_dir.join("vm.json.new")
}

/// The console's FIFO (see `console`).
pub(crate) fn console_fifo(run_dir: &Path) -> PathBuf {
    run_dir.join("console.fifo")
}

pub(crate) fn qmp_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("qmp.sock")
}

/// The Unix socket of the guest's vsock, by the hybrid convention: the host dials this path and
/// says `CONNECT <port>\n`; what the guest dials arrives at `<this>_<port>`.
pub fn guest_socket(run_dir: &Path) -> PathBuf {
    vsock_dir(run_dir).join(GUEST_SOCKET)
}

/// Listens for what the guest of this run directory dials at a vsock port. Do this before
/// [`crate::boot`], and again after a restart of the agent; a stale socket is replaced. The VM's
/// user is given the right to connect, which a socket bound by hand would not have. Blocks; the caller has entered the
/// runtime.
///
/// # Errors
/// The directory or the socket cannot be made.
pub fn listen_for_guest(run_dir: &Path, port: u32) -> io::Result<tokio::net::UnixListener> {
    make_dirs(run_dir)?;
    let dir = vsock_dir(run_dir);
    let name = format!("{GUEST_SOCKET}_{port}");
    let listener = bind(&dir, &name)?;
    let owner = fs::metadata(&dir)?;
    give(&dir.join(name), owner.uid(), owner.gid())?;
    listener.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(listener)
}

/// Makes the run directory and the one for sockets, closed to other users.
pub(crate) fn make_dirs(run_dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(vsock_dir(run_dir))
}

/// Gives the socket directory, and what was already bound there, to the VM's user.
pub(crate) fn give_sockets(run_dir: &Path, uid: u32) -> io::Result<()> {
    let dir = vsock_dir(run_dir);
    for entry in fs::read_dir(&dir)? {
        give(&entry?.path(), uid, uid)?;
    }
    give(&dir, uid, uid)
}

/// Does not follow symbolic links, because the directory's owner is not trusted.
fn give(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    chownat(
        CWD,
        path,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    Ok(())
}

/// Binds by the directory's descriptor, because a socket's path is limited to 107 bytes.
pub(crate) fn bind(dir: &Path, name: &str) -> io::Result<std::os::unix::net::UnixListener> {
    remove_if_there(&dir.join(name))?;
    let dir = open_dir(dir)?;
    std::os::unix::net::UnixListener::bind(short_path(&dir, name))
}

/// Connects in the same way. A listener whose queue is full is an error at once, and never waited for.
pub(crate) async fn connect(dir: &Path, name: &str) -> io::Result<tokio::net::UnixStream> {
    let dir = dir.to_owned();
    let dir = blocking(move || open_dir(&dir)).await?;
    tokio::net::UnixStream::connect(short_path(&dir, name)).await
}

fn open_dir(dir: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(dir)
}

fn short_path(dir: &fs::File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the run directory of a VM that has ended, its console with it. No error when there is none.
///
/// # Errors
/// It holds the record of a VM whose end was not seen, which is the only thing that names its processes; or a
/// file cannot be removed.
pub fn remove_run_dir(run_dir: &Path) -> io::Result<()> {
    if record(run_dir).try_exists()? {
        return Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!(
                "{} holds the record of a VM that may run",
                run_dir.display()
            ),
        ));
    }
    match fs::remove_dir_all(run_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the sockets, the FIFO and, last, the record of a VM that has ended. The console's files stay to be read;
/// the node's listeners stay open.
pub(crate) fn clear(run_dir: &Path) -> io::Result<()> {
    let sockets = vsock_dir(run_dir);
    for path in [
        sockets.join(DEVICE_SOCKET),
        sockets.join(API_SOCKET),
        sockets.join(GUEST_SOCKET),
        qmp_socket(run_dir),
        console_fifo(run_dir),
        unfinished_record(run_dir),
    ] {
        remove_if_there(&path)?;
    }
    match fs::remove_dir(jail_dir(run_dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    remove_if_there(&record(run_dir))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::os::fd::AsFd as _;

    use super::*;

    #[tokio::test]
    async fn connecting_to_a_program_that_hangs_is_an_error_and_no_wait() {
        let dir = tempfile::tempdir().unwrap();
        let listener = bind(dir.path(), "qmp.sock").unwrap();
        // Nobody accepts, and the queue has one place.
        rustix::net::listen(listener.as_fd(), 0).unwrap();
        let mut connected = Vec::new();
        let error = loop {
            assert!(connected.len() < 10, "the queue is never full");
            match connect(dir.path(), "qmp.sock").await {
                Ok(stream) => connected.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
