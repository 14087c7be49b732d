//! The network, by rtnetlink: loopback up, the one interface with its addresses and default routes.
//!
//! IPv4 is routed by the IPv6 gateway (`RTA_VIA`, RFC 8950), so there is no second gateway and no ARP.
//!
//! Duplicate address detection is off (`accept_dad`, `IFA_F_NODAD`): the address is the instance's
//! alone by construction, and waiting would cost a second of every boot. Building messages is pure.

use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, OwnedFd};

use guest_protocol::GuestNetwork;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

use crate::plan::INTERFACE;

// From linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h.
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 0x1;
const IFLA_MTU: u16 = 4;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 0x02;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_VIA: u16 = 18;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;

/// Smallest MTU of IPv6, in bytes (RFC 8200, 5).
const MIN_MTU: u32 = 1280;

/// Why the network could not be configured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// The interface does not exist, or its setting cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Too small an MTU.
    #[error("{0} bytes are less than the {MIN_MTU} that IPv6 needs")]
    Mtu(u32),
    /// The kernel refused.
    #[error("{what}: {source}")]
    Refused {
        /// The request.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

/// Brings the guest's network up.
///
/// # Errors
/// The interface is missing, or the kernel refused a setting.
pub(crate) fn configure(network: &GuestNetwork) -> Result<(), NetworkError> {
    for setting in ["accept_dad", "accept_ra"] {
        let path = format!("/proc/sys/net/ipv6/conf/{INTERFACE}/{setting}");
        fs::write(&path, "0").map_err(|source| NetworkError::File { path, source })?;
    }
    let (loopback, interface) = (index("lo")?, index(INTERFACE)?);
    let mut socket = Socket::open()?;
    socket.request("loopback up", link_up(loopback, None))?;
    socket.request("interface up", link_up(interface, Some(network.mtu)))?;
    for (family, address) in [
        (AF_INET6, &network.address.octets()[..]),
        (AF_INET, &network.ipv4.octets()[..]),
    ] {
        socket.request("address", add_address(family, interface, address))?;
        let route = add_default_route(family, interface, network.gateway);
        socket.request("default route", route)?;
    }
    Ok(())
}

/// Gives the guest's interface another MTU; connections go on.
///
/// # Errors
/// It is too small for IPv6, whose addresses the kernel would take from the interface; the kernel refused, or there is no interface.
pub(crate) fn set_mtu(mtu: u32) -> Result<(), NetworkError> {
    if mtu < MIN_MTU {
        return Err(NetworkError::Mtu(mtu));
    }
    let interface = index(INTERFACE)?;
    Socket::open()?.request("MTU of the interface", link_up(interface, Some(mtu)))
}

fn index(interface: &str) -> Result<u32, NetworkError> {
    let path = format!("/sys/class/net/{interface}/ifindex");
    fs::read_to_string(&path)
        .and_then(|text| text.trim().parse().map_err(io::Error::other))
        .map_err(|source| NetworkError::File { path, source })
}

struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    fn open() -> Result<Self, NetworkError> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // Protocol 0 of netlink is rtnetlink.
            None,
        )
        .map_err(|source| NetworkError::Refused {
            what: "netlink socket",
            source: source.into(),
        })?;
        Ok(Self { fd, sequence: 0 })
    }

    fn request(&mut self, what: &'static str, message: Message) -> Result<(), NetworkError> {
        self.sequence += 1;
        self.exchange(&message.finish(self.sequence))
            .map_err(|source| NetworkError::Refused { what, source })
    }

    fn exchange(&self, message: &[u8]) -> io::Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(self.fd.as_fd(), message, SendFlags::empty(), &kernel)?;
        let mut answer = [0_u8; 4096];
        loop {
            let (_, length) = recv(self.fd.as_fd(), &mut answer, RecvFlags::empty())?;
            if let Some(code) = answer_code(&answer[..length.min(4096)], self.sequence) {
                return match code {
                    0 => Ok(()),
                    error => Err(io::Error::from_raw_os_error(-error)),
                };
            }
        }
    }
}

/// The kernel's error code for the request with this number: 0, or a negative errno. `None`: the
/// bytes answer something else.
fn answer_code(bytes: &[u8], sequence: u32) -> Option<i32> {
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let answered = u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?);
    let code = i32::from_ne_bytes(*bytes.get(16..)?.first_chunk()?);
    (kind == NLMSG_ERROR && answered == sequence).then_some(code)
}

/// A request being built.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16, head: &[u8]) -> Self {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        bytes.extend_from_slice(head);
        Self { bytes }
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        // Attributes here are at most 18 bytes.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

fn link_up(index: u32, mtu: Option<u32>) -> Message {
    let mut head = vec![AF_UNSPEC, 0, 0, 0];
    for field in [index, IFF_UP, IFF_UP] {
        head.extend_from_slice(&field.to_ne_bytes());
    }
    let message = Message::new(RTM_NEWLINK, 0, &head);
    match mtu {
        Some(mtu) => message.attribute(IFLA_MTU, &mtu.to_ne_bytes()),
        None => message,
    }
}

fn add_address(family: u8, index: u32, address: &[u8]) -> Message {
    // An address of one machine: all of its bits are the prefix.
    let bits = u8::try_from(address.len() * 8).unwrap_or(u8::MAX);
    let mut head = vec![family, bits, IFA_F_NODAD, 0];
    head.extend_from_slice(&index.to_ne_bytes());
    Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &head).attribute(IFA_LOCAL, address)
}

fn add_default_route(family: u8, index: u32, gateway: Ipv6Addr) -> Message {
    let mut head = vec![
        family,
        0,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_STATIC,
        0,
        RTN_UNICAST,
    ];
    head.extend_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    let message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &head)
        .attribute(RTA_OIF, &index.to_ne_bytes());
    if family == AF_INET6 {
        return message.attribute(RTA_GATEWAY, &gateway.octets());
    }
    let mut via = [0; 18];
    via[..2].copy_from_slice(&u16::from(AF_INET6).to_ne_bytes());
    via[2..].copy_from_slice(&gateway.octets());
    message.attribute(RTA_VIA, &via)
}

#[cfg(test)]
mod tests {
    use guest_protocol::{GATEWAY, RESOLVER};

    use super::{AF_INET, AF_INET6, add_address, add_default_route, answer_code, link_up};

    #[test]
    fn messages_have_their_length_and_number() {
        for message in [
            link_up(1, None),
            link_up(2, Some(1420)),
            add_address(AF_INET6, 2, &GATEWAY.octets()),
            add_address(AF_INET, 2, &RESOLVER.octets()),
            add_default_route(AF_INET6, 2, GATEWAY),
            add_default_route(AF_INET, 2, GATEWAY),
        ] {
            let bytes = message.finish(7);
            assert_eq!(
                u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize,
                bytes.len()
            );
            assert_eq!(bytes.len() % 4, 0);
            assert_eq!(bytes[8..12], 7_u32.to_ne_bytes());
        }
    }

    #[test]
    fn only_the_answer_to_this_request_counts() {
        let mut answer = vec![0; 20];
        answer[4..6].copy_from_slice(&2_u16.to_ne_bytes());
        answer[8..12].copy_from_slice(&7_u32.to_ne_bytes());
        answer[16..20].copy_from_slice(&(-17_i32).to_ne_bytes());
        assert_eq!(answer_code(&answer, 7), Some(-17));
        assert_eq!(answer_code(&answer, 8), None);
        assert_eq!(answer_code(&answer[..10], 7), None);
    }
}
