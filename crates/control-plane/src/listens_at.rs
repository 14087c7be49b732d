//! Where a server is reached, whatever its URL: members keep their instances from all of it (ADR 0004).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Addresses that members are told at most.
const MAX_ADDRESSES: usize = 64;

/// Where a listener is reached: its address, or with an unspecified one every IPv4 address of the machine, as it is now. Loopback is left out.
pub(crate) fn listens_at(listener: SocketAddr) -> BTreeSet<SocketAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    if listener.ip().is_unspecified() {
        // blocks: a read of one small file of /proc, which is in memory
        let routes = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
        addresses.extend(local_addresses(&routes).map(IpAddr::V4));
    } else {
        addresses.push(listener.ip());
    }
    let addresses = addresses.into_iter().filter(|ip| !ip.is_loopback());
    addresses
        .map(|ip| SocketAddr::new(ip, listener.port()))
        .take(MAX_ADDRESSES)
        .collect()
}

/// The machine's own addresses in the kernel's table of routes: each is a leaf, and the line after it says what it is.
fn local_addresses(fib_trie: &str) -> impl Iterator<Item = Ipv4Addr> {
    let lines = fib_trie.lines().zip(fib_trie.lines().skip(1));
    lines.filter_map(|(leaf, what)| {
        let leaf = leaf.trim().strip_prefix("|-- ")?;
        let is_own = what.contains("/32 host LOCAL");
        leaf.parse().ok().filter(|_| is_own)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn own_addresses_are_those_of_hosts() {
        let routes = "\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/31 1 0 0
        |-- 127.0.0.1
           /32 host LOCAL
     +-- 192.0.2.0/30 2 0 2
        |-- 192.0.2.0
           /24 link UNICAST
        |-- 192.0.2.2
           /32 host LOCAL
     |-- 192.0.2.255
        /32 link BROADCAST
Local:
  +-- 0.0.0.0/0 3 0 5
";
        let own: Vec<_> = local_addresses(routes).map(|ip| ip.to_string()).collect();
        assert_eq!(own, ["127.0.0.1", "192.0.2.2"]);
    }

    #[test]
    fn one_address_is_what_it_is() {
        let at = |listener: &str| listens_at(listener.parse().unwrap());
        assert_eq!(at("192.0.2.7:7400").len(), 1);
        assert!(at("127.0.0.1:7400").is_empty());
        // Of a machine's own addresses, whichever there are, each with the port.
        assert!(at("[::]:7400").iter().all(|address| address.port() == 7400));
    }
}
