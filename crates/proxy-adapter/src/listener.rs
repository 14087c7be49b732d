//! One port of the adapter.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::OwnedFd;

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
