//! Which interface is meant and how it is made, and why there is none.

use std::io;
use std::path::PathBuf;

use process_handle::PortHolder;
use process_handle::control::ControlError;
use process_handle::detached::StartError;

use crate::settings::Contradiction;

/// Smallest MTU, in bytes: that of IPv6 (RFC 8200, 5).
pub const MIN_MTU: u16 = 1280;
/// Largest MTU, in bytes: jumbo frames of 9000 less what WireGuard adds over IPv6, rounded up.
pub const MAX_MTU: u16 = 9000;

/// Which interface, and how it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceOptions {
    /// The name of the link, up to 15 bytes.
    pub name: String,
    /// The file of the network namespace in which the link is; absent: the caller's own. The socket is always in the caller's.
    pub namespace: Option<PathBuf>,
    /// The UDP port; it is the same over both families.
    pub port: u16,
    /// The largest packet within the tunnels, in bytes, from [`MIN_MTU`] to [`MAX_MTU`].
    pub mtu: u16,
    /// The program that has the command `wireguard`, which becomes the process: `platform`, as a rule the caller's own.
    pub program: PathBuf,
    /// A folder of the role, in which the process has its control socket. It is made where it is not there.
    pub run_dir: PathBuf,
    /// Whether the kernel's WireGuard is not to be used.
    pub force_userspace: bool,
}

/// Why there is no interface, or why it was not set.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// The settings contradict themselves.
    #[error(transparent)]
    Contradiction(#[from] Contradiction),
    /// The options cannot be followed.
    #[error("the WireGuard interface {name} cannot be made: {why}")]
    Options {
        /// Its name.
        name: String,
        /// What of them, and what is possible.
        why: &'static str,
    },
    /// The kernel refused.
    #[error("cannot {what} of the WireGuard interface {name}; hint: {hint}")]
    Kernel {
        /// What was to be done.
        what: &'static str,
        /// The interface.
        name: String,
        /// What to do.
        hint: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Its UDP port is somebody else's.
    #[error(
        "UDP port {port} of the WireGuard interface {name} is taken by {holder}; hint: give this member another one (`--overlay-port PORT` of `platform node join` or \
         `platform edge join`, then restart its service), or end that program"
    )]
    Port {
        /// The interface.
        name: String,
        /// The port.
        port: u16,
        /// Who has it.
        holder: PortHolder,
    },
    /// The process does not do what it is asked.
    #[error("cannot ask the process of the WireGuard interface {name}")]
    Process {
        /// The interface.
        name: String,
        /// Why.
        #[source]
        source: ControlError,
    },
}

impl InterfaceOptions {
    /// Whether they are possible.
    pub(crate) fn check(&self) -> Result<(), InterfaceError> {
        let fits = (1..=15).contains(&self.name.len())
            && self
                .name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let wrong = if !fits {
            "its name is 1 to 15 letters, digits and hyphens"
        } else if !(MIN_MTU..=MAX_MTU).contains(&self.mtu) {
            "its MTU is from 1280 to 9000 bytes"
        } else if self.port == 0 {
            "its port is from 1 to 65535"
        } else {
            return Ok(());
        };
        Err(InterfaceError::Options {
            name: self.name.clone(),
            why: wrong,
        })
    }
}
