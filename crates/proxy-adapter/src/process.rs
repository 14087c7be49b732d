//! The processes: their names, their arguments, their output.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use crate::listener::{Listener, Notices, Port};
use crate::server::{ADAPTER_LIMITS, Limits, serve};
use crate::targets::Targets;

/// The adapter's name: the first argument of its process, and its name in lists of processes.
pub const ADAPTER_NAME: &str = "platform-proxy";
/// The forwarder's name, likewise.
pub const FORWARDER_NAME: &str = "platform-fwd";
/// Says in an argument that the header is removed.
const STRIP: &str = "strip";
/// Says in an argument that the app gets the header.
const V2: &str = "v2";

/// What the forwarder is given.
#[derive(Debug)]
pub struct Forwarder<'a> {
    /// A listening socket, non-blocking, whose connections have the address that their clients connected to.
    pub listener: BorrowedFd<'a>,
    /// `/proc/net/tcp` and `/proc/net/tcp6`.
    pub tables: [BorrowedFd<'a>; 2],
    /// The writing end of a pipe. The forwarder writes each port that it forwards to there once, two bytes in the
    /// machine's order.
    pub ports: BorrowedFd<'a>,
    /// Memory of the machine, in bytes: the bounds follow from it.
    pub memory_bytes: u64,
}

/// The arguments of a process that serves these listeners: [`ADAPTER_NAME`], and five for each listener. The process
/// keeps the listeners' descriptors under their present numbers.
pub fn adapter_arguments(listeners: &[Listener]) -> Vec<String> {
    let mut arguments = vec![ADAPTER_NAME.to_owned()];
    for listener in listeners {
        arguments.extend([
            listener.fd.as_raw_fd().to_string(),
            listener.app.to_string(),
            if listener.strip { STRIP } else { V2 }.to_owned(),
            listener.peers.to_string(),
            listener.peers_mask.to_string(),
        ]);
    }
    arguments
}

/// The arguments of a process that forwards: [`FORWARDER_NAME`] and five numbers. The process keeps the descriptors under
/// their present numbers.
pub fn forwarder_arguments(forwarder: &Forwarder<'_>) -> Vec<String> {
    let [ipv4, ipv6] = forwarder.tables;
    let fds = [forwarder.listener, ipv4, ipv6, forwarder.ports];
    let mut arguments = vec![FORWARDER_NAME.to_owned()];
    arguments.extend(fds.map(|fd| fd.as_raw_fd().to_string()));
    arguments.push(forwarder.memory_bytes.to_string());
    arguments
}

/// The listeners that [`adapter_arguments`] describes, given the arguments after the name.
fn listeners(
    mut arguments: impl Iterator<Item = String>,
    inherited: impl Fn(RawFd) -> OwnedFd,
) -> Option<Vec<Port>> {
    let mut listeners = Vec::new();
    while let Some(fd) = arguments.next() {
        listeners.push(Port::Ingress(Listener {
            fd: inherited(fd.parse().ok()?),
            app: arguments.next()?.parse().ok()?,
            strip: arguments.next()? == STRIP,
            peers: arguments.next()?.parse().ok()?,
            peers_mask: arguments.next()?.parse().ok()?,
        }));
    }
    Some(listeners)
}

/// What [`forwarder_arguments`] describes, given the arguments after the name.
fn forwarded(
    mut arguments: impl Iterator<Item = String>,
    inherited: impl Fn(RawFd) -> OwnedFd,
) -> Option<(Vec<Port>, Limits)> {
    let mut fd = || Some(inherited(arguments.next()?.parse().ok()?));
    let (listener, ipv4, ipv6, ports) = (fd()?, fd()?, fd()?, fd()?);
    let memory_bytes = arguments.next()?.parse().ok()?;
    let port = Port::Forwarded {
        targets: Targets::new(vec![ipv4, ipv6], &listener),
        fd: listener,
        notices: Notices::new(ports),
    };
    Some((vec![port], Limits::of_forwarder(memory_bytes)))
}

/// Logs a line. One write: the line arrives whole or, where init is slow, not at all.
fn log(line: &str) {
    let _ = rustix::io::write(io::stdout(), [line, "\n"].concat().as_bytes());
}

/// The adapter's process, given the [`adapter_arguments`] after the name, and the way to take over a descriptor
/// that this process was started with. Logs to standard output. Returns only when it cannot go on.
pub fn run_adapter(arguments: impl Iterator<Item = String>, inherited: impl Fn(RawFd) -> OwnedFd) {
    // Executed by way of /proc/self/exe, its name in lists of processes would be `exe`.
    let _ = rustix::thread::set_name(c"platform-proxy");
    let listeners = listeners(arguments, inherited).map(|listeners| (listeners, ADAPTER_LIMITS));
    run("PROXY adapter", listeners);
}

/// The forwarder's process, likewise, given the [`forwarder_arguments`] after the name.
pub fn run_forwarder(
    arguments: impl Iterator<Item = String>,
    inherited: impl Fn(RawFd) -> OwnedFd,
) {
    let _ = rustix::thread::set_name(c"platform-fwd");
    run("forwarder", forwarded(arguments, inherited));
}

fn run(name: &'static str, served: Option<(Vec<Port>, Limits)>) {
    match served {
        Some((ports, limits)) => {
            let error = serve(name, ports, limits, log);
            log(&[name, ": ", &error.to_string()].concat());
        }
        None => log(&[name, ": its arguments are malformed"].concat()),
    }
}
