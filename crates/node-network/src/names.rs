//! Names of interfaces and namespaces, and addresses that are derived. Pure.

use std::net::Ipv6Addr;

use model::{InstanceId, NodeId};

use crate::NetworkError;

/// The longest suffix, in bytes: `plat-<suffix>` must fit an interface's 15 (IFNAMSIZ - 1).
pub const MAX_SUFFIX_BYTES: usize = 10;

/// Identifies one of several workload networks on a machine (`a1b2c3`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suffix(String);

impl Suffix {
    /// From 1 to [`MAX_SUFFIX_BYTES`] lowercase letters, digits and hyphens.
    pub fn new(text: &str) -> Result<Self, NetworkError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if text.is_empty() || text.len() > MAX_SUFFIX_BYTES || !text.bytes().all(allowed) {
            return Err(NetworkError::Suffix(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }

    /// The named network namespace.
    pub fn namespace(&self) -> String {
        format!("platform-{}", self.0)
    }

    /// The machine's end of the link into the namespace.
    pub fn host_link(&self) -> String {
        format!("plat-{}", self.0)
    }
}

/// The namespace's end of the veth pair whose other end is in the machine's own network.
pub(crate) const INSIDE_LINK: &str = "host";

/// The namespace's link to the other members of the overlay, by WireGuard.
pub const OVERLAY_LINK: &str = "overlay";

/// The namespace's link for egress; it exists while `slirp4netns` runs.
pub(crate) const UPLINK: &str = "uplink";
/// The TCP port at which members send back what other members send them while their links are measured (RFC 862).
pub const ECHO_PORT: u16 = 7;
/// The name that earlier agents gave to [`UPLINK`]. Their namespaces and `slirp4netns` processes are
/// still there when such an agent is upgraded.
pub(crate) const OLD_UPLINK: &str = "world";

/// The tap of an instance, inside the namespace: `t<8 hexadecimal digits>`.
pub fn tap_name(instance: InstanceId) -> String {
    format!("t{instance}")
}

/// The MAC address of an instance's NIC: locally administered, unicast, and derived from the id, so
/// that both ends know it without asking. The tap's own address differs in the second byte.
pub fn mac_of(instance: InstanceId) -> [u8; 6] {
    let [a, b, c, d] = instance.0.to_be_bytes();
    [0x02, 0x01, a, b, c, d]
}

pub(crate) fn tap_mac_of(instance: InstanceId) -> [u8; 6] {
    let mut mac = mac_of(instance);
    mac[1] = 0x02;
    mac
}

/// The link-local address that the guest's kernel gives itself from its MAC address (RFC 4291, appendix A).
pub(crate) fn link_local_of(instance: InstanceId) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac_of(instance);
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        pair(a ^ 0x02, b),
        pair(c, 0xff),
        pair(0xfe, d),
        pair(e, f),
    )
}

pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The node's /64, as its first address.
pub(crate) fn node_prefix(cluster_prefix: Ipv6Addr, node: NodeId) -> Ipv6Addr {
    Ipv6Addr::from_bits(cluster_prefix.to_bits() | (u128::from(node.0) << 64))
}

/// An address of network 0 on this node: 1 is the machine's, 2 the namespace's own, 3 is behind a link that takes no large packets.
pub(crate) fn platform_address(cluster_prefix: Ipv6Addr, node: NodeId, number: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(node_prefix(cluster_prefix, node).to_bits() | u128::from(number))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn names_fit_an_interface() {
        let suffix = Suffix::new("abcdefghij").unwrap();
        assert!(suffix.host_link().len() <= 15);
        assert!(tap_name(InstanceId(u32::MAX)).len() <= 15);
    }

    #[test]
    fn a_suffix_of_wrong_characters_or_length_is_refused() {
        for wrong in ["", "abcdefghijk", "Abc", "a/b", "a b", "a.b"] {
            assert!(Suffix::new(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn macs_are_local_unicast_and_differ_at_both_ends() {
        let instance = InstanceId(0x0102_0304);
        assert_eq!(mac_text(mac_of(instance)), "02:01:01:02:03:04");
        assert_eq!(mac_text(tap_mac_of(instance)), "02:02:01:02:03:04");
    }

    #[test]
    fn the_link_local_address_is_made_of_the_mac_address() {
        assert_eq!(
            link_local_of(InstanceId(0x0102_0304)).to_string(),
            "fe80::1:1ff:fe02:304"
        );
    }

    #[test]
    fn platform_addresses_are_in_network_0() {
        let prefix = "fd12:3456:789a::".parse().unwrap();
        assert_eq!(
            platform_address(prefix, NodeId(3), 1),
            "fd12:3456:789a:3::1".parse::<Ipv6Addr>().unwrap()
        );
    }
}
