//! Where a member's own packets go out: from an address of its own, by its own link.

// ring: the probes have what does something in a namespace, and begin here.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, bind, ipproto, socket_with};
use socket2::SockRef;

use crate::Place;
use crate::probe::within;

/// An own address of a member, and the link by which it sends. Several members of one machine have routes to the same prefix, so the kernel alone would send
/// what one asks by the link of another.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file of the network namespace; absent: the caller's.
    pub namespace: Option<PathBuf>,
    /// The link's name; absent: the one to which the routes of the machine lead.
    pub link: Option<String>,
    /// The address.
    pub address: Ipv6Addr,
}

impl Source {
    pub(crate) fn of(place: &Place, address: Ipv6Addr) -> Self {
        Self {
            namespace: place.namespace.clone(),
            link: Some(place.link.clone()),
            address,
        }
    }

    /// A socket of ICMPv6, which needs CAP_NET_RAW, for what `set` sets.
    pub(crate) async fn icmp(
        &self,
        set: fn(&OwnedFd) -> io::Result<()>,
    ) -> io::Result<std::net::UdpSocket> {
        let socket = self.open(SocketType::RAW, ipproto::ICMPV6, 0, set).await?;
        // It is none of UDP, and is sent to and received from all the same.
        Ok(socket.into())
    }

    /// A socket of TCP at this port, 0 for any.
    pub(crate) async fn tcp(&self, port: u16) -> io::Result<OwnedFd> {
        let set = |socket: &OwnedFd| {
            // Of a run just before.
            Ok(rustix::net::sockopt::set_socket_reuseaddr(socket, true)?)
        };
        self.open(SocketType::STREAM, ipproto::TCP, port, set).await
    }

    async fn open(
        &self,
        kind: SocketType,
        protocol: Protocol,
        port: u16,
        set: fn(&OwnedFd) -> io::Result<()>,
    ) -> io::Result<OwnedFd> {
        let (link, address) = (self.link.clone(), self.address);
        let open = move || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::INET6, kind, flags, Some(protocol))?;
            set(&socket)?;
            let link = link.as_deref().map(str::as_bytes);
            SockRef::from(&socket).bind_device(link)?;
            bind(&socket, &SocketAddrV6::new(address, port, 0, 0))?;
            io::Result::Ok(socket)
        };
        match self.namespace.clone() {
            None => open(),
            Some(namespace) => within(namespace, open).await,
        }
    }
}
