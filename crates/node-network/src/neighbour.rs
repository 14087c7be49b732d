//! A permanent neighbour, by rtnetlink: the one message for which `ip` would read every link of the namespace first, so that a
//! start would cost more the more instances there are.

use std::io;
use std::net::Ipv6Addr;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice::name_to_index, recv,
    sendto, socket, socket_with,
};

// From linux/netlink.h, linux/rtnetlink.h, linux/neighbour.h.
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const RTM_NEWNEIGH: u16 = 28;
const AF_INET6: u8 = 10;
const NUD_PERMANENT: u16 = 0x80;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// Bytes of `nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// Most bytes of the kernel's answer that are read: a header, the error, and the beginning of the question.
const ANSWER_BYTES: usize = 512;

/// Says in the calling thread's namespace that this address is at this MAC, for as long as the link is there. Blocks.
///
/// # Errors
/// There is no such link, or the kernel's refusal.
pub(crate) fn set_permanent(link: &str, address: Ipv6Addr, mac: [u8; 6]) -> io::Result<()> {
    let index = name_to_index(socket(AddressFamily::INET6, SocketType::DGRAM, None)?, link)?;
    // Protocol 0 of netlink is rtnetlink.
    let kernel = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let message = message(index, address, mac);
    let to = SocketAddrNetlink::new(0, 0);
    sendto(&kernel, &message, SendFlags::empty(), &to)?;
    let mut answer = [0; ANSWER_BYTES];
    let (length, _) = recv(&kernel, &mut answer[..], RecvFlags::empty())?;
    outcome(&answer[..length])
}

fn message(index: u32, address: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    let mut body = vec![AF_INET6, 0, 0, 0];
    body.extend(index.to_ne_bytes());
    body.extend(NUD_PERMANENT.to_ne_bytes());
    // Flags and type.
    body.extend([0, 0]);
    for (kind, value) in [(NDA_DST, &address.octets()[..]), (NDA_LLADDR, &mac[..])] {
        // An attribute is its length, its kind and its value, at a multiple of four bytes.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        body.extend(length.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
    let length = u32::try_from(HEADER_BYTES + body.len()).unwrap_or(u32::MAX);
    message.extend(length.to_ne_bytes());
    message.extend(RTM_NEWNEIGH.to_ne_bytes());
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE | NLM_F_CREATE;
    message.extend(flags.to_ne_bytes());
    // Sequence and port: there is one question.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// What the kernel answered: an error of 0 is its acknowledgement.
fn outcome(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok());
    let error = answer.get(HEADER_BYTES..HEADER_BYTES + 4);
    let error = error.and_then(|bytes| bytes.try_into().ok());
    match (kind.map(u16::from_ne_bytes), error.map(i32::from_ne_bytes)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(errno)) => Err(io::Error::from_raw_os_error(errno.wrapping_neg())),
        _ => Err(io::Error::other("the kernel's answer is not understood")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_refusal_is_the_kernels_error() {
        let answer = |errno: i32| {
            let mut bytes = vec![0; HEADER_BYTES];
            bytes[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
            bytes.extend(errno.to_ne_bytes());
            bytes
        };
        outcome(&answer(0)).unwrap();
        let refused = outcome(&answer(-libc::ENODEV)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENODEV));
        outcome(&[0; 8]).unwrap_err();
    }

    #[test]
    fn a_link_that_is_not_there_is_an_error() {
        set_permanent("no-such-link", Ipv6Addr::LOCALHOST, [2, 0, 0, 0, 0, 1]).unwrap_err();
    }
}
