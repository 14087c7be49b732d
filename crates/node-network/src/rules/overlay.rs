//! The overlay in the rules: what comes in by the link to the other members, and who may send it.
//!
//! A peer's AllowedIPs pin its /64 (or, behind a hub, the cluster's /48); the env within is the sender's word. So a source passes only where its node is
//! known to have instances of that env, and only to instances of the same env: a chain for each env compares, which a map of sources
//! leads to. All of this is in `prerouting`, for each packet: what is refused makes no entry of a connection, and established connections are no way around it.

// ring: the parts of one rule set share its name and its masks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::Ipv6Addr;

use model::{EnvNetwork, NodeId};

use super::env::{chain_of, env_of};
use super::{ENV_MASK, ICMPV6_ERRORS, INGRESS_PORTS, TABLE};
use crate::names::{ECHO_PORT, INSIDE_LINK, OVERLAY_LINK, node_prefix, platform_address};

/// What of an address is cluster, node and env.
const SENDER_MASK: &str = "ffff:ffff:ffff:ffff:ffff:ffff::";
/// The payload of the largest packet that every link of IPv6 takes, in bytes.
const SMALL_PAYLOAD: u32 = 1280 - 40;
/// All of an address but its node.
const ALL_BUT_NODE: &str = "ffff:ffff:ffff:0:ffff:ffff:ffff:ffff";

/// The sets and the map that the rules look other members up in.
pub(super) const SETS: &str = "\tset edges {
\t\ttype ipv6_addr;
\t}
\tmap env_of_sender {
\t\ttype ipv6_addr : verdict;
\t}
\tset relays {
\t\ttype ifname;
\t}
";

/// Who may send to this node's instances.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OverlayAccess {
    /// Other nodes, each with an env of which it has instances. Those of an env that this node has none of admit nothing.
    pub neighbours: BTreeSet<(NodeId, EnvNetwork)>,
    /// Edges: they reach the ports of instances that are theirs ([`Endpoint::edge_ports`](super::Endpoint::edge_ports)).
    pub edges: BTreeSet<NodeId>,
    /// Whether this node passes packets on between other members.
    pub is_hub: bool,
}

/// The senders that are elements of the map: the /96 of each, and its env.
pub(super) struct Neighbours(BTreeMap<Ipv6Addr, Ipv6Addr>);

impl Neighbours {
    /// Those of the envs of this node.
    pub(super) fn new(
        cluster_prefix: Ipv6Addr,
        envs: &BTreeSet<Ipv6Addr>,
        access: &OverlayAccess,
    ) -> Self {
        let sender = |(node, env): &(NodeId, EnvNetwork)| {
            let prefix = node_prefix(cluster_prefix, *node).to_bits();
            let sender = Ipv6Addr::from_bits(prefix | (u128::from(env.0) << 32));
            let env = env_of(sender);
            envs.contains(&env).then_some((sender, env))
        };
        Self(access.neighbours.iter().filter_map(sender).collect())
    }

    /// A line that adds or deletes those that others do not have.
    pub(super) fn without(&self, verb: &str, others: &Self) -> String {
        let differing = self
            .0
            .iter()
            .filter(|(sender, _)| !others.0.contains_key(sender));
        let elements: Vec<_> = differing
            .map(|(sender, env)| format!("{sender} : goto {}", chain_of(*env)))
            .collect();
        line(verb, "env_of_sender", &elements)
    }
}

/// What changes of the edges, and of whether packets are passed on.
pub(super) fn change(
    cluster_prefix: Ipv6Addr,
    before: &OverlayAccess,
    after: &OverlayAccess,
) -> String {
    let edges = |of: &OverlayAccess, others: &OverlayAccess| -> Vec<_> {
        let differing = of.edges.difference(&others.edges);
        differing
            .map(|edge| platform_address(cluster_prefix, *edge, 1).to_string())
            .collect()
    };
    let relays = |of: &OverlayAccess, others: &OverlayAccess| {
        let is_new = of.is_hub && !others.is_hub;
        Vec::from_iter(is_new.then(|| format!("\"{OVERLAY_LINK}\"")))
    };
    line("delete", "edges", &edges(before, after))
        + &line("add", "edges", &edges(after, before))
        + &line("delete", "relays", &relays(before, after))
        + &line("add", "relays", &relays(after, before))
}

fn line(verb: &str, set: &str, elements: &[String]) -> String {
    if elements.is_empty() {
        return String::new();
    }
    format!(
        "{verb} element {TABLE} {set} {{ {} }}\n",
        elements.join(", ")
    )
}

/// The chain for what comes in by the link, and the one that clamps segments.
pub(super) fn chains(cluster_prefix: Ipv6Addr, node: NodeId) -> String {
    let (cluster, own) = (cluster_prefix, node_prefix(cluster_prefix, node));
    let platform = env_of(cluster_prefix);
    let address = |of, number| platform_address(cluster_prefix, of, number);
    let any = NodeId(0);
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "\tchain from_overlay {{\n\
         \t\tip6 saddr {own}/64 drop\n\
         \t\tip6 saddr != {cluster}/48 drop\n\
         \t\tip6 daddr != {cluster}/48 drop\n\
         \t\tiifname @relays ip6 daddr != {own}/64 notrack accept\n\
         \t\tip6 daddr != {own}/64 drop\n\
         \t\tip6 saddr @edges ip6 daddr . tcp dport @edge_ports accept\n\
         \t\tip6 saddr & {ALL_BUT_NODE} {{ {one}, {two} }} ip6 daddr {{ {own_one}, {own_two} }} icmpv6 type {{ echo-request, echo-reply }} accept\n\
         \t\tip6 saddr & {ALL_BUT_NODE} {{ {one}, {two} }} ip6 daddr {own_three} ip6 length > {SMALL_PAYLOAD} icmpv6 type echo-request accept\n\
         \t\tip6 saddr & {ALL_BUT_NODE} == {two} ip6 daddr {own_two} tcp dport {ECHO_PORT} accept\n\
         \t\tip6 saddr & {ALL_BUT_NODE} == {two} ip6 daddr {own_two} tcp sport {ECHO_PORT} accept\n\
         \t\tip6 saddr & {ENV_MASK} == {platform} icmpv6 type {ICMPV6_ERRORS} accept\n\
         \t\tip6 saddr & {SENDER_MASK} vmap @env_of_sender\n\
         \t}}\n\
         \tchain segments {{\n\
         \t\ttype filter hook forward priority mangle; policy accept;\n\
         \t\toifname \"{OVERLAY_LINK}\" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu\n\
         \t\tiifname \"{OVERLAY_LINK}\" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu\n\
         \t}}\n",
        one = address(any, 1),
        two = address(any, 2),
        own_one = address(node, 1),
        own_two = address(node, 2),
        own_three = address(node, 3),
    );
    text
}

/// What comes in for the namespace itself: what members send to be sent back, while links are measured. `from_overlay` has compared who they are.
pub(super) fn received(cluster_prefix: Ipv6Addr, node: NodeId) -> String {
    let own = platform_address(cluster_prefix, node, 2);
    format!("\t\tiifname \"{OVERLAY_LINK}\" ip6 daddr {own} tcp dport {ECHO_PORT} accept\n")
}

/// What is passed on between members. It stands before all others of the chain `forward`: no connection is kept of it.
pub(super) fn relayed() -> String {
    format!("\t\tiifname \"{OVERLAY_LINK}\" oifname \"{OVERLAY_LINK}\" accept\n")
}

/// What comes in for the machine and for instances: `from_overlay` has compared envs. What goes out follows from the rules of taps.
pub(super) fn forwarded(cluster_prefix: Ipv6Addr) -> String {
    let platform = env_of(cluster_prefix);
    format!(
        "\t\tiifname {{ \"{INSIDE_LINK}\", \"{OVERLAY_LINK}\" }} oifname {{ \"{INSIDE_LINK}\", \"{OVERLAY_LINK}\" }} icmpv6 type {{ echo-request, echo-reply }} accept\n\
         \t\tiifname \"{OVERLAY_LINK}\" oifname \"t*\" ip6 saddr @edges accept\n\
         \t\tmeta nfproto ipv6 meta l4proto {{ tcp, udp }} th dport {INGRESS_PORTS} goto refuse\n\
         \t\tiifname \"{OVERLAY_LINK}\" oifname \"t*\" ip6 saddr & {ENV_MASK} != {platform} accept\n"
    )
}
