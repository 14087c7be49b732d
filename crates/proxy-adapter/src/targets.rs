//! Where the app listens, for the forwarder: the kernel's tables of TCP sockets, read for each connection. What was found is
//! not kept: the app may listen elsewhere now, and what it has on loopback may be private.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::getsockname;

/// Bytes of a table that are read at most. Listeners come first in it, 150 bytes each.
const MAX_TABLE_BYTES: u64 = 1024 * 1024;
/// Bytes read at a time: the kernel gives a page at most.
const READ_BYTES: usize = 4096;
/// A listener's state in the table.
const LISTEN: &str = "0A";

/// The tables.
pub(crate) struct Targets {
    /// `/proc/net/tcp` and `/proc/net/tcp6`.
    tables: Vec<OwnedFd>,
    /// The forwarder's own listener, which would forward to itself.
    own: Option<SocketAddr>,
}

impl Targets {
    pub(crate) fn new(tables: Vec<OwnedFd>, listener: &OwnedFd) -> Self {
        let own = getsockname(listener).ok();
        Self {
            tables,
            own: own.and_then(|own| own.try_into().ok()),
        }
    }

    /// Where a port's listener is reached. The instance's own IPv6 address is never the answer: the kernel finds what
    /// listens there by itself.
    pub(crate) fn find(&self, port: u16) -> Option<SocketAddr> {
        let mut best: Option<(u8, IpAddr)> = None;
        for table in &self.tables {
            read_listeners(table, |address, listening| {
                if listening == port
                    && self.own != Some(SocketAddr::new(address, port))
                    && let Some(found) = rank(address)
                {
                    best = Some(best.map_or(found, |best| best.min(found)));
                }
            });
            if best.is_some_and(|(rank, _)| rank == 0) {
                break;
            }
        }
        Some(SocketAddr::new(best?.1, port))
    }
}

/// The order in which a listener's address is chosen, lowest first, and the address to connect to. One on loopback
/// comes last: only the manifest's ports may be reached there, and no other address is private.
fn rank(address: IpAddr) -> Option<(u8, IpAddr)> {
    let address = address.to_canonical();
    match address {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Some((0, Ipv4Addr::LOCALHOST.into())),
        IpAddr::V4(ipv4) => Some((if ipv4.is_loopback() { 2 } else { 1 }, address)),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => Some((3, address)),
        IpAddr::V6(_) => None,
    }
}

/// Gives each listener's address and port.
fn read_listeners(table: &OwnedFd, mut listener: impl FnMut(IpAddr, u16)) {
    let mut text = Vec::new();
    let mut buffer = [0; READ_BYTES];
    let mut offset = 0;
    let mut header = true;
    while offset < MAX_TABLE_BYTES {
        let length = match rustix::io::pread(table, &mut buffer, offset) {
            Ok(0) => return,
            Ok(length) => length,
            Err(Errno::INTR) => continue,
            Err(_) => return,
        };
        offset += length as u64;
        text.extend_from_slice(&buffer[..length]);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            if std::mem::take(&mut header) {
                continue;
            }
            match std::str::from_utf8(&line).ok().and_then(parse) {
                Some((address, port)) => listener(address, port),
                // The first connection: there are no more listeners.
                None => return,
            }
        }
    }
}

/// A listener's address and port, of a line of the table.
fn parse(line: &str) -> Option<(IpAddr, u16)> {
    let mut words = line.split_ascii_whitespace();
    let (address, port) = words.nth(1)?.split_once(':')?;
    if words.nth(1)? != LISTEN {
        return None;
    }
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of 4 bytes in network order, each printed as a number of this machine.
    let word = |at: usize| {
        let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let address = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let octets: [u8; 16] = words.concat().try_into().ok()?;
            Ipv6Addr::from(octets).into()
        }
        _ => return None,
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs::File;
    use std::net::TcpListener;

    use super::{Targets, parse, rank};

    #[test]
    fn listeners_are_read_from_the_kernels_table() {
        for (line, expected) in [
            (
                "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 1 1 0 100 0 0 10 0",
                Some("0.0.0.0:8080"),
            ),
            (
                "  1: 0100007F:0050 00000000:0000 0A 0",
                Some("127.0.0.1:80"),
            ),
            (
                "  2: 0000000000000000FFFF00000100007F:0050 00000000000000000000000000000000:0000 0A 0",
                Some("[::ffff:127.0.0.1]:80"),
            ),
            (
                "  3: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0",
                Some("[::1]:80"),
            ),
            ("  4: 0100007F:0050 0100007F:9999 01 0", None),
            ("nonsense", None),
            ("  5: 01:0050 00000000:0000 0A 0", None),
        ] {
            let expected = expected.map(|text| text.parse().unwrap());
            let found = parse(line).map(std::net::SocketAddr::from);
            assert_eq!(found, expected, "{line}");
        }
    }

    #[test]
    fn a_public_address_comes_before_a_private_one() {
        let order = ["0.0.0.0", "100.64.0.7", "127.0.0.1", "::1"];
        let ranks = order.map(|text| rank(text.parse().unwrap()).unwrap().0);
        assert!(ranks.is_sorted_by(|a, b| a < b), "{ranks:?}");
        assert_eq!(rank("fd00::7".parse().unwrap()), None);
    }

    #[test]
    fn the_place_of_a_port_is_where_the_app_listens_now() {
        let tables =
            ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| File::open(path).unwrap().into());
        let own = TcpListener::bind("[::1]:0").unwrap();
        let own_port = own.local_addr().unwrap().port();
        let targets = Targets::new(tables.into(), &own.into());
        assert_eq!(targets.find(own_port), None);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let port = address.port();
        assert_eq!(targets.find(port), Some(address));
        drop(listener);
        let moved = TcpListener::bind(("127.0.0.2", port)).unwrap();
        assert_eq!(targets.find(port), Some(moved.local_addr().unwrap()));
        drop(moved);
        assert_eq!(targets.find(port), None);
    }
}
