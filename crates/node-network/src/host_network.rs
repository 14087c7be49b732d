//! The machine's own IPv4 network, from which the rules of egress follow. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use overlay::private_networks::PrivateNetworks;

/// Addresses `address/bits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Block(pub(crate) Ipv4Addr, pub(crate) u8);

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(address, 32) => write!(f, "{address}"),
            Self(address, bits) => write!(f, "{address}/{bits}"),
        }
    }
}

/// The machine's own IPv4 network, as far as the rules depend on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostNetwork {
    /// The private networks that instances of egress `all` reach.
    pub(crate) private: PrivateNetworks,
    /// Where the servers answer. Instances do not reach the control plane.
    pub(crate) servers: BTreeSet<SocketAddrV4>,
    /// The same, as the servers themselves said it.
    pub(crate) told_servers: BTreeSet<SocketAddrV4>,
    /// The machine's own addresses, broadcast addresses of its networks among them. Instances are kept from
    /// them: a connection of `slirp4netns` comes from the machine itself, so its firewall does not apply.
    pub(crate) own: BTreeSet<Block>,
    /// The first name server of the machine that has an IPv4 address.
    pub(crate) resolver: Option<Ipv4Addr>,
}

/// The machine's own addresses, from `ip -4 -json route show table local`. Loopback is left out, because the
/// rules always deny it.
pub(crate) fn own_addresses(routes: &str) -> Result<BTreeSet<Block>, serde_json::Error> {
    #[derive(serde::Deserialize)]
    struct Route {
        dst: Option<String>,
    }
    let routes: Vec<Route> = serde_json::from_str(routes.trim())?;
    Ok(routes
        .into_iter()
        .filter_map(|route| block(&route.dst?))
        .filter(|Block(address, _)| !address.is_loopback())
        .collect())
}

fn block(text: &str) -> Option<Block> {
    if text == "default" {
        return Some(Block(Ipv4Addr::UNSPECIFIED, 0));
    }
    let (address, bits) = text.split_once('/').unwrap_or((text, "32"));
    let bits = bits.parse().ok().filter(|bits| *bits <= 32)?;
    Some(Block(address.parse().ok()?, bits))
}

/// The first name server with an IPv4 address, from the text of `/etc/resolv.conf`.
pub(crate) fn first_resolver(resolv_conf: &str) -> Option<Ipv4Addr> {
    resolv_conf.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn own_addresses_leave_out_loopback() {
        let routes = r#"[
            {"type":"local","dst":"127.0.0.0/8","dev":"lo","flags":[]},
            {"type":"local","dst":"127.0.0.1","dev":"lo"},
            {"type":"broadcast","dst":"127.255.255.255","dev":"lo"},
            {"type":"local","dst":"203.0.113.2","dev":"up","prefsrc":"203.0.113.2"},
            {"type":"broadcast","dst":"203.0.113.255","dev":"up"},
            {"type":"local","dst":"198.51.100.0/24","dev":"lo"},
            {}
        ]"#;
        let own: Vec<String> = own_addresses(routes)
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(own, ["198.51.100.0/24", "203.0.113.2", "203.0.113.255"]);
        assert!(own_addresses("nonsense").is_err());
        for wrong in ["1.2.3.4/33", "1.2.3.4; drop", "", "::1"] {
            assert_eq!(block(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_first_ipv4_name_server_is_the_resolver() {
        for (text, first) in [
            ("", None),
            ("# nameserver 192.0.2.1\nsearch example.org\n", None),
            (
                "nameserver ::1\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n",
                Some("192.0.2.1"),
            ),
            (
                "options edns0\n  nameserver\t127.0.0.53  \n",
                Some("127.0.0.53"),
            ),
            ("nameserver\nnameserver nonsense\n", None),
        ] {
            assert_eq!(
                first_resolver(text),
                first.map(|a| a.parse().unwrap()),
                "{text}"
            );
        }
    }
}
