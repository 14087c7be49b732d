//! The adapter's process: its name, its arguments, its output.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use crate::listener::Listener;
use crate::server::{LIMITS, serve};

/// The adapter's name: the first argument of its process, and its name in lists of processes.
pub const NAME: &str = "platform-proxy";
/// Says in an argument that the header is removed.
const STRIP: &str = "strip";
/// Says in an argument that the app gets the header.
const V2: &str = "v2";

/// The arguments of a process that serves these listeners: [`NAME`], and five for each listener. The process
/// keeps the listeners' descriptors under their present numbers.
pub fn arguments(listeners: &[Listener]) -> Vec<String> {
    let mut arguments = vec![NAME.to_owned()];
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

/// The listeners that [`arguments`] describes, given the arguments after the name.
fn listeners(
    mut arguments: impl Iterator<Item = String>,
    inherited: impl Fn(RawFd) -> OwnedFd,
) -> Option<Vec<Listener>> {
    let mut listeners = Vec::new();
    while let Some(fd) = arguments.next() {
        listeners.push(Listener {
            fd: inherited(fd.parse().ok()?),
            app: arguments.next()?.parse().ok()?,
            strip: arguments.next()? == STRIP,
            peers: arguments.next()?.parse().ok()?,
            peers_mask: arguments.next()?.parse().ok()?,
        });
    }
    Some(listeners)
}

/// The adapter's process, given the [`arguments`] after the name, and the way to take over a descriptor
/// that this process was started with. Logs to standard output. Returns only when it cannot go on.
pub fn run(arguments: impl Iterator<Item = String>, inherited: impl Fn(RawFd) -> OwnedFd) {
    // Executed by way of /proc/self/exe, its name in lists of processes would be `exe`.
    let _ = rustix::thread::set_name(c"platform-proxy");
    let log = |line: &str| {
        // One write: the line arrives whole or, where init is slow, not at all.
        let _ = rustix::io::write(io::stdout(), [line, "\n"].concat().as_bytes());
    };
    match listeners(arguments, inherited) {
        Some(listeners) => {
            let error = serve(listeners, LIMITS, log);
            log(&["PROXY adapter: ", &error.to_string()].concat());
        }
        None => log("PROXY adapter: its arguments are malformed"),
    }
}
