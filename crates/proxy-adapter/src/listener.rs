//! The listeners.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::OwnedFd;

use crate::targets::Targets;

/// A port of the adapter: where edges connect, and which port of the app they reach.
#[derive(Debug)]
pub struct Listener {
    /// A listening socket, non-blocking.
    pub fd: OwnedFd,
    /// The app's address and port.
    pub app: SocketAddrV6,
    /// Whether the header is removed before the app gets the bytes.
    pub strip: bool,
    /// Peers that may connect: those whose address equals this one in the bits of [`Self::peers_mask`].
    pub peers: Ipv6Addr,
    /// The bits of [`Self::peers`] that are compared.
    pub peers_mask: Ipv6Addr,
}

impl Listener {
    pub(crate) fn admits(&self, peer: Ipv6Addr) -> bool {
        peer.to_bits() & self.peers_mask.to_bits() == self.peers.to_bits()
    }
}

/// What a process listens on.
pub(crate) enum Port {
    /// A port of the adapter.
    Ingress(Listener),
    /// The forwarder's listener.
    Forwarded {
        fd: OwnedFd,
        targets: Targets,
        notices: Notices,
    },
}

impl Port {
    pub(crate) fn fd(&self) -> &OwnedFd {
        match self {
            Self::Ingress(listener) => &listener.fd,
            Self::Forwarded { fd, .. } => fd,
        }
    }
}

/// Most ports that are reported.
const MAX_NOTICES: usize = 256;

/// Reports to init each port that is forwarded to, once.
pub(crate) struct Notices {
    pipe: OwnedFd,
    reported: BTreeSet<u16>,
}

impl Notices {
    pub(crate) fn new(pipe: OwnedFd) -> Self {
        Self {
            pipe,
            reported: BTreeSet::new(),
        }
    }

    pub(crate) fn report(&mut self, port: u16) {
        if self.reported.len() < MAX_NOTICES && self.reported.insert(port) {
            // Init reads them all; a port that it does not get is not shown.
            let _ = rustix::io::write(&self.pipe, &port.to_ne_bytes());
        }
    }
}
