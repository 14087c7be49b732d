//! What a role tells the systemd that started it (sd_notify(3)): that it does its work, and which listening socket to keep.
//!
//! A kept socket listens on while the role is started again, so that no client is refused meanwhile: those that connect wait in
//! the kernel's queue for the next process. systemd closes it when the unit is stopped. Where no unit started this process,
//! all of this is nothing.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;

use edge_proxy::KeepPorts;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg_addr, socket_with,
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// The descriptor of the first socket that systemd hands over (sd_listen_fds(3)).
const FIRST: i32 = 3;
/// Most sockets that are looked at: as many as the unit of the edge may have kept.
const MOST: i32 = 4096;
/// What the names of the sockets of TCP routes begin with; the port follows.
const PORT_PREFIX: &str = "tcp-";
/// A listening socket of a role, by the name under which it is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kept {
    /// For plain HTTP.
    Http,
    /// For HTTPS.
    Https,
}

impl Kept {
    fn name(self) -> &'static str {
        match self {
            Self::Http => "listener",
            Self::Https => "listener-tls",
        }
    }
}

/// The role does its work.
pub(crate) fn ready() {
    notify("READY=1", &[]);
}

/// The socket that the process before this one had kept, if it listens on this address. Others are not kept any longer.
pub(crate) fn kept_listener(kept: Kept, address: SocketAddr) -> Option<TcpListener> {
    let count = handed_over()?;
    let found = (FIRST..FIRST.saturating_add(count)).find_map(|number| {
        let listener = listener_at(number).ok()?;
        (listener.local_addr().ok()? == address).then_some(listener)
    });
    if found.is_none() && count > 0 {
        stop_keeping(kept);
    }
    found
}

/// The sockets of TCP routes that the process before this one had kept.
pub(crate) fn kept_ports() -> Vec<TcpListener> {
    let Some(count) = handed_over() else {
        return Vec::new();
    };
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let numbers = (FIRST..FIRST.saturating_add(count)).zip(names.split(':'));
    let of_ports = numbers.filter(|(_, name)| name.starts_with(PORT_PREFIX));
    of_ports
        .filter_map(|(number, _)| listener_at(number).ok())
        .collect()
}

/// Has systemd keep the sockets of TCP routes.
#[derive(Debug)]
pub(crate) struct Ports;

impl KeepPorts for Ports {
    fn keep(&self, listener: &tokio::net::TcpListener) {
        if let Ok(address) = listener.local_addr() {
            let message = format!("FDSTORE=1\nFDNAME={PORT_PREFIX}{}", address.port());
            notify(&message, &[listener.as_fd()]);
        }
    }

    fn stop_keeping(&self, address: SocketAddr) {
        let message = format!("FDSTOREREMOVE=1\nFDNAME={PORT_PREFIX}{}", address.port());
        notify(&message, &[]);
    }
}

/// How many descriptors systemd handed over to this process.
fn handed_over() -> Option<i32> {
    let number = |name| std::env::var(name).ok()?.parse::<i32>().ok();
    if number("LISTEN_PID")? != getpid().as_raw_nonzero().get() {
        return None;
    }
    Some(number("LISTEN_FDS")?.min(MOST))
}

/// Has systemd keep that socket no longer.
pub(crate) fn stop_keeping(kept: Kept) {
    notify(&format!("FDSTOREREMOVE=1\nFDNAME={}", kept.name()), &[]);
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
pub(crate) fn keep_listener(kept: Kept, listener: impl AsFd) {
    let message = format!("FDSTORE=1\nFDNAME={}", kept.name());
    notify(&message, &[listener.as_fd()]);
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
    sendmsg_addr(
        &from,
        &address,
        &message,
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}
