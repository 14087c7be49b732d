//! Errors, each with its subject and a hint.

use std::io;
use std::time::Duration;

/// Why an operation on the workload network failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The suffix cannot be part of an interface's name.
    #[error(
        "`{0}` cannot name a workload network: use 1 to {max} lowercase letters, digits and hyphens",
        max = crate::MAX_SUFFIX_BYTES
    )]
    Suffix(String),
    /// The cluster's prefix is not a /48.
    #[error("`{0}` is not the first address of a /48: everything after the third group must be 0")]
    Prefix(std::net::Ipv6Addr),
    /// The MTU is one that IPv6 does not allow (RFC 8200, 5), or larger than a tap takes.
    #[error("an MTU of {0} bytes does not work: from 1280 to 65521 are possible")]
    Mtu(u32),
    /// A program could not be started.
    #[error("cannot start `{command}`; hint: {hint}")]
    Start {
        /// The command line.
        command: String,
        /// What to do.
        hint: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("`{command}` failed: {stderr}; hint: {hint}")]
    Command {
        /// The command line, and for a batch the line that failed.
        command: String,
        /// What it wrote to standard error.
        stderr: String,
        /// What to do.
        hint: &'static str,
    },
    /// A program did not end in time, and was killed.
    #[error("`{command}` did not end within {} s", limit.as_secs())]
    CommandTimeout {
        /// The command line.
        command: String,
        /// How long it was given.
        limit: Duration,
    },
    /// A kernel setting could not be written.
    #[error("cannot set {setting}; hint: {hint}")]
    Setting {
        /// Its path below `/proc/sys`.
        setting: String,
        /// What to do.
        hint: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel was not told where the instance's address is.
    #[error("cannot add the neighbour of the tap {link}; hint: is this process root?")]
    Neighbour {
        /// The tap.
        link: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The network namespace could not be entered or examined.
    #[error("cannot enter the network namespace {name}; hint: is this process root?")]
    Namespace {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The machine has no IPv4 route to other networks, so its instances have no egress.
    #[error(
        "this machine has no default route for IPv4, so its instances have no egress; hint: add one \
         (`ip route add default via ..`), and egress begins within seconds"
    )]
    NoUplink,
    /// The processes of the machine could not be examined.
    #[error("cannot look for the running slirp4netns; hint: is this process root?")]
    Process {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A running VMM holds the tap, so this instance runs already.
    #[error("the tap {name} is in use: the instance's VMM still runs")]
    TapBusy {
        /// The tap.
        name: String,
    },
    /// The tap could not be made.
    #[error("cannot make the tap {name}; hint: {hint}")]
    Tap {
        /// The tap.
        name: String,
        /// What to do.
        hint: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}
