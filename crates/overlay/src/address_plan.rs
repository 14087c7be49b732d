//! Where every address comes from (ADR 0004).
//!
//! ```text
//!   bits   0        48      64            96            128
//!          | cluster | node  | env network | instance    |
//! ```
//!
//! The cluster's /48 is a random ULA, a node's /64 holds all its instances, and because the env's
//! network sits at the same place in every address, both ends of a connection can decide by mask
//! alone whether they share an env. Network 0 is the platform's own: a node's first address is
//! `<node /64>::1`. Nothing is looked up and nothing is stored: the plan is arithmetic, both ways.
//!
//! IPv4 is for egress only. An instance's IPv4 address is its node's private matter, translated
//! before it leaves the node: the low [`EGRESS_BITS`] bits of its id, in 100.64.0.0/10. The planner
//! gives no two instances ids that agree in those.
//!
//! Deliberately absent: who may talk to whom. That is the node's firewall, which uses
//! [`same_env`]'s mask.

use std::net::{Ipv4Addr, Ipv6Addr};

use model::{EnvNetwork, InstanceId, NodeId};

/// Length of the cluster's prefix, in bits.
pub const CLUSTER_PREFIX_BITS: u8 = 48;
/// Length of a node's prefix, in bits.
pub const NODE_PREFIX_BITS: u8 = 64;
/// The network of the platform itself: nodes, edges, resolvers.
pub const PLATFORM_NETWORK: EnvNetwork = EnvNetwork(0);
/// The number of a node's own address within the platform's network.
pub const NODE_SELF: InstanceId = InstanceId(1);
/// The number of the address at which a node is probed, within the platform's network.
pub const NODE_PROBE: InstanceId = InstanceId(2);

/// The number of the address behind a node that takes only packets of the least MTU: what is larger is answered by Packet Too Big.
pub const NODE_TOO_BIG: InstanceId = InstanceId(3);

/// How many bits of an instance's id are in its IPv4 address.
pub const EGRESS_BITS: u8 = 22;
/// 100.64.0.0/10, the addresses that providers translate (RFC 6598): no public address, and not
/// among those that people number their own networks with.
const EGRESS_PREFIX: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);

const CLUSTER_MASK: u128 = !0 << 80;
const ENV_MASK: u128 = 0xffff_ffff << 32;

/// What an address of the cluster says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// The node it is on.
    pub node: NodeId,
    /// The env's network; [`PLATFORM_NETWORK`] is the platform's own.
    pub network: EnvNetwork,
    /// The instance; in the platform's network, a number of the platform's.
    pub instance: InstanceId,
}

/// The address of an instance. Only the first 48 bits of `cluster` count.
pub fn instance_address(
    cluster: Ipv6Addr,
    node: NodeId,
    network: EnvNetwork,
    instance: InstanceId,
) -> Ipv6Addr {
    let bits = (cluster.to_bits() & CLUSTER_MASK)
        | u128::from(node.0) << 64
        | u128::from(network.0) << 32
        | u128::from(instance.0);
    Ipv6Addr::from_bits(bits)
}

/// What an instance sends to the internet from.
pub fn egress_address(instance: InstanceId) -> Ipv4Addr {
    Ipv4Addr::from_bits(EGRESS_PREFIX.to_bits() | (instance.0 & ((1 << EGRESS_BITS) - 1)))
}

/// A node's /64, as its first address.
pub fn node_prefix(cluster: Ipv6Addr, node: NodeId) -> Ipv6Addr {
    instance_address(cluster, node, PLATFORM_NETWORK, InstanceId(0))
}

/// A node's own address: `<node /64>::1`.
pub fn node_address(cluster: Ipv6Addr, node: NodeId) -> Ipv6Addr {
    instance_address(cluster, node, PLATFORM_NETWORK, NODE_SELF)
}

/// The address at which a member's peers probe it: `<node /64>::2`. It always goes the direct way, also where what is sent to the rest of the
/// /64 is relayed ([`crate::topology`]).
pub fn probe_address(cluster: Ipv6Addr, node: NodeId) -> Ipv6Addr {
    instance_address(cluster, node, PLATFORM_NETWORK, NODE_PROBE)
}

/// An address that is reached by no packet: the node answers those that are larger than the least MTU by Packet Too Big, and drops others. So it can be seen
/// whether these messages are made and come back.
pub fn too_big_address(cluster: Ipv6Addr, node: NodeId) -> Ipv6Addr {
    instance_address(cluster, node, PLATFORM_NETWORK, NODE_TOO_BIG)
}

/// What an address says, if it belongs to this cluster.
pub fn locate(cluster: Ipv6Addr, address: Ipv6Addr) -> Option<Location> {
    let bits = address.to_bits();
    if (bits ^ cluster.to_bits()) & CLUSTER_MASK != 0 {
        return None;
    }
    // Each part is cut to its own width on purpose.
    #[allow(clippy::cast_possible_truncation, reason = "the mask is the meaning")]
    Some(Location {
        node: NodeId((bits >> 64) as u16),
        network: EnvNetwork((bits >> 32) as u32),
        instance: InstanceId(bits as u32),
    })
}

/// The env network of an instance's address, whichever cluster it is of.
pub fn env_network(address: Ipv6Addr) -> EnvNetwork {
    let [.., high, low, _, _] = address.segments();
    EnvNetwork(u32::from(high) << 16 | u32::from(low))
}

/// Whether two addresses are of the same cluster and the same env network, by mask alone.
pub fn same_env(a: Ipv6Addr, b: Ipv6Addr) -> bool {
    (a.to_bits() ^ b.to_bits()) & (CLUSTER_MASK | ENV_MASK) == 0
}

/// Who belongs to the platform's own network in the cluster of `address`: an address, and the bits
/// of it that count.
pub fn platform_peers(address: Ipv6Addr) -> (Ipv6Addr, Ipv6Addr) {
    let cluster = Ipv6Addr::from_bits(address.to_bits() & CLUSTER_MASK);
    (cluster, Ipv6Addr::from_bits(CLUSTER_MASK | ENV_MASK))
}

/// The lowest env network above `highest_ever`, the highest one that was ever given out.
/// Numbers are never used twice, so that a late packet of a destroyed env meets nobody.
/// Absent when all 2^32 - 1 are used up.
pub fn next_network(highest_ever: EnvNetwork) -> Option<EnvNetwork> {
    highest_ever.0.checked_add(1).map(EnvNetwork)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cluster() -> Ipv6Addr {
        Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 0, 0, 0, 0, 0)
    }

    #[test]
    fn an_address_reads_in_its_parts() {
        let address = instance_address(
            cluster(),
            NodeId(2),
            EnvNetwork(0x0001_0002),
            InstanceId(0xabcd_ef01),
        );
        assert_eq!(address.to_string(), "fd12:3456:789a:2:1:2:abcd:ef01");
        assert_eq!(env_network(address), EnvNetwork(0x0001_0002));
        assert_eq!(
            node_address(cluster(), NodeId(0x1f)).to_string(),
            "fd12:3456:789a:1f::1"
        );
        assert_eq!(
            node_prefix(cluster(), NodeId(0x1f)).to_string(),
            "fd12:3456:789a:1f::"
        );
    }

    #[test]
    fn egress_is_from_the_low_bits_of_the_id() {
        for (id, address) in [
            (1, "100.64.0.1"),
            (0x003f_ffff, "100.127.255.255"),
            (0xffc0_0000, "100.64.0.0"),
            (0xabcd_ef01, "100.77.239.1"),
        ] {
            assert_eq!(egress_address(InstanceId(id)).to_string(), address);
        }
    }

    #[test]
    fn another_cluster_is_not_ours() {
        assert_eq!(
            locate(
                cluster(),
                Ipv6Addr::new(0xfd12, 0x3456, 0x789b, 1, 0, 1, 0, 1)
            ),
            None
        );
    }

    #[test]
    fn networks_run_out_rather_than_wrap() {
        assert_eq!(next_network(PLATFORM_NETWORK), Some(EnvNetwork(1)));
        assert_eq!(next_network(EnvNetwork(u32::MAX)), None);
    }

    proptest! {
        #[test]
        fn the_plan_can_be_read_back(prefix: u128, node: u16, network: u32, instance: u32) {
            let prefix = Ipv6Addr::from_bits(prefix);
            let address = instance_address(prefix, NodeId(node), EnvNetwork(network), InstanceId(instance));
            prop_assert_eq!(
                locate(prefix, address),
                Some(Location { node: NodeId(node), network: EnvNetwork(network), instance: InstanceId(instance) })
            );
            let node_bits = node_prefix(prefix, NodeId(node)).to_bits();
            prop_assert_eq!(address.to_bits() >> 64, node_bits >> 64);
        }

        #[test]
        fn the_platforms_peers_are_those_of_its_network(
            prefix in any::<u128>(),
            ours in any::<bool>(),
            network in 0_u32..3,
            (node, instance) in any::<(u16, u32)>(),
        ) {
            let own = Ipv6Addr::from_bits(prefix);
            let other = Ipv6Addr::from_bits(if ours { prefix } else { !prefix });
            let peer = instance_address(other, NodeId(node), EnvNetwork(network), InstanceId(instance));
            let (peers, mask) = platform_peers(own);
            let matches = peer.to_bits() & mask.to_bits() == peers.to_bits();
            prop_assert_eq!(matches, ours && network == PLATFORM_NETWORK.0);
        }

        #[test]
        fn the_mask_agrees_with_the_parts(
            a in (0_u16..3, 0_u32..3, 0_u32..3),
            b in (0_u16..3, 0_u32..3, 0_u32..3),
        ) {
            let at = |(node, network, instance)| {
                instance_address(cluster(), NodeId(node), EnvNetwork(network), InstanceId(instance))
            };
            prop_assert_eq!(same_env(at(a), at(b)), a.1 == b.1);
            prop_assert_eq!(at(a) == at(b), a == b);
        }
    }
}
