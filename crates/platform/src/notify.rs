//! What a role tells the systemd that started it (sd_notify(3)): that it does its work, which process does, and which listening sockets to keep.
//!
//! A kept socket listens on while the role is started again, so that no client is refused meanwhile: those that connect wait in
//! the kernel's queue for the next process. systemd closes it when the unit is stopped. Where no unit started this process,
//! all of this is nothing.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg_addr, socket_with,
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// Most sockets that are looked at: as many as the unit of the edge may have kept.
const MOST: usize = 4096;
/// How long one message waits where nobody reads those before it.
const SEND_TIMEOUT: Duration = Duration::from_secs(3);

/// Whether the last message found no room. The next ones do not wait then: there may be one for each of thousands of sockets.
static HAS_NO_ROOM: AtomicBool = AtomicBool::new(false);

/// The role does its work.
pub(crate) fn ready() {
    notify("READY=1", &[]);
}

/// Another process is the unit's main one from now on. What this one says after it is not heard.
pub(crate) fn main_process(pid: i32) {
    notify(&format!("MAINPID={pid}"), &[]);
}

/// The sockets that the process before this one had kept, by their names. No program that this one starts has them: the process of WireGuard outlives it, and
/// would listen for ever. Blocks.
pub(crate) fn kept() -> Vec<(String, TcpListener)> {
    let numbers = match sd_notify::listen_fds() {
        Ok(numbers) => numbers,
        Err(error) => {
            tracing::warn!(%error, "cannot use the sockets that systemd kept");
            return Vec::new();
        }
    };
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').chain(std::iter::repeat(""));
    (numbers.zip(names).take(MOST))
        .filter_map(|(number, name)| Some((name.to_owned(), listener_at(number).ok()?)))
        .collect()
}

/// A copy of a socket by the number of its descriptor.
fn listener_at(number: i32) -> io::Result<TcpListener> {
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    let socket = pidfd_getfd(this, number, PidfdGetfdFlags::empty())?;
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Has systemd keep a listening socket for the next process of this unit.
pub(crate) fn keep(name: &str, socket: BorrowedFd<'_>) {
    notify(&format!("FDSTORE=1\nFDNAME={name}"), &[socket]);
}

/// Has systemd keep the socket of this name no longer.
pub(crate) fn stop_keeping(name: &str) {
    notify(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]);
}

fn notify(message: &str, sockets: &[BorrowedFd<'_>]) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&name, message, sockets) {
        tracing::warn!(%error, message, "cannot tell systemd");
    }
}

fn send(name: &OsStr, message: &str, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let address = match name.as_bytes() {
        [b'@', abstract_name @ ..] => SocketAddrUnix::new_abstract_name(abstract_name)?,
        path => SocketAddrUnix::new(path)?,
    };
    let from = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::other("more than one socket at a time"));
    }
    let message = [IoSlice::new(message.as_bytes())];
    let mut flags = SendFlags::NOSIGNAL;
    flags.set(SendFlags::DONTWAIT, HAS_NO_ROOM.load(Ordering::Relaxed));
    set_socket_timeout(&from, Timeout::Send, Some(SEND_TIMEOUT))?;
    let sent = sendmsg_addr(&from, &address, &message, &mut ancillary, flags);
    HAS_NO_ROOM.store(sent == Err(Errno::AGAIN), Ordering::Relaxed);
    match sent {
        Ok(_) => Ok(()),
        Err(Errno::AGAIN) => Err(io::Error::other("it does not read what it is told")),
        Err(error) => Err(error.into()),
    }
}
