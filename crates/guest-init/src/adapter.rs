//! Init's side of the PROXY adapter (`proxy_adapter`): its listeners and its process.
//!
//! Init opens the listeners before the app starts, and keeps them: while a process that ended is replaced,
//! connections wait instead of being refused.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Instant;

use guest_protocol::BootConfig;
use model::instance::ProxyProtocol;
use proxy_adapter::Listener;
use rustix::net::sockopt::{set_ipv6_v6only, set_socket_reuseaddr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};

use crate::confined::Confined;
use crate::plan::ADAPTER_CGROUP;
use crate::spawn::StartError;

/// Most memory of the adapter, in bytes, the kernel's buffers of its connections included. The kernel kills
/// it above this limit, and it is started again.
const MAX_MEMORY_BYTES: u64 = 48 * 1024 * 1024;
/// Connections of one port that wait for the adapter.
const BACKLOG: i32 = 1024;

/// The adapter of this guest.
pub(crate) struct Adapter {
    listeners: Vec<Listener>,
    process: Confined,
}

/// Why the adapter could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdapterError {
    /// It cannot listen: its port is in use, for one.
    #[error("listen on [{address}]:{port}: {source}")]
    Listen {
        /// The instance's address.
        address: Ipv6Addr,
        /// The ingress port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// Another preparation failed.
    #[error("{what}: {source}")]
    Prepare {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Its process did not start.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Adapter {
    /// Listens on the adapter's ports and starts its process. Returns also the process's output, to be read.
    ///
    /// # Errors
    /// A port is taken, or the process does not start.
    pub(crate) fn start(
        config: &BootConfig,
        now: Instant,
    ) -> Result<(Self, OwnedFd), AdapterError> {
        let address = config.network.address;
        let listeners = config
            .proxy
            .iter()
            .map(|port| {
                let fd =
                    listen_on(address, port.ingress).map_err(|error| AdapterError::Listen {
                        address,
                        port: port.ingress,
                        source: error.into(),
                    })?;
                Ok(Listener {
                    fd,
                    app: SocketAddrV6::new(address, port.port, 0, 0),
                    strip: port.mode == ProxyProtocol::Strip,
                    peers: port.peers,
                    peers_mask: port.peers_mask,
                })
            })
            .collect::<Result<Vec<_>, AdapterError>>()?;
        let arguments = proxy_adapter::adapter_arguments(&listeners);
        let (process, output) = Confined::prepare(arguments, ADAPTER_CGROUP, MAX_MEMORY_BYTES, now)
            .map_err(|(what, source)| AdapterError::Prepare { what, source })?;
        let mut adapter = Self { listeners, process };
        adapter.run(now)?;
        Ok((adapter, output))
    }

    fn run(&mut self, now: Instant) -> Result<(), StartError> {
        let kept: Vec<BorrowedFd<'_>> = self.listeners.iter().map(|l| l.fd.as_fd()).collect();
        self.process.run(&kept, now)
    }

    /// Whether the adapter's process has this pid.
    pub(crate) fn has_pid(&self, pid: i32) -> bool {
        self.process.has_pid(pid)
    }

    /// Handles the end of the process: it is replaced after a pause.
    pub(crate) fn ended(&mut self, now: Instant) {
        self.process.ended(now);
    }

    /// When [`Self::tick`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.process.due()
    }

    /// Replaces a process that ended, once the pause is over.
    ///
    /// # Errors
    /// The process does not start; the next try is after another pause.
    pub(crate) fn tick(&mut self, now: Instant) -> Result<(), StartError> {
        if self.process.is_due(now) {
            return self.run(now);
        }
        Ok(())
    }
}

/// A listening socket of IPv6 alone, whose connections do not keep an app from listening on their port.
pub(crate) fn listen_on(address: Ipv6Addr, port: u16) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = socket_with(AddressFamily::INET6, SocketType::STREAM, flags, None)?;
    set_socket_reuseaddr(&fd, true)?;
    set_ipv6_v6only(&fd, true)?;
    bind(&fd, &SocketAddrV6::new(address, port, 0, 0))?;
    listen(&fd, BACKLOG)?;
    Ok(fd)
}
