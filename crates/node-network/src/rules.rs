//! The rule set of the namespace, as text for `nft -f`. Pure.
//!
//! The rules are the same for every set of instances: they look up the instances in named sets and a map, so a start or a
//! stop changes a few elements ([`change`]) and nothing else. nft cannot compare two fields of a packet, so "the same env"
//! is spelled out: each tap leads to its env's chain, which compares the destination under a mask that leaves the node's
//! bits out.

mod env;
mod instances;
mod overlay;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use ::overlay::private_networks::{DENIED, PRIVATE};
use guest_protocol::RESOLVER;
use model::{InstanceId, NodeId};

use crate::host_network::HostNetwork;
use crate::names::{INSIDE_LINK, OVERLAY_LINK, UPLINK};

pub use instances::Endpoint;
pub(crate) use instances::change;
pub use overlay::OverlayAccess;

/// The table of what may pass. Loading it again replaces it, all at once.
pub(crate) const TABLE: &str = "inet platform";
/// The table of limits. It is never deleted: the counts go on while [`TABLE`] is replaced.
pub(crate) const LIMITS: &str = "inet platform_counts";
/// Cluster and env network, whatever the node and the instance.
const ENV_MASK: &str = "ffff:ffff:ffff:0:ffff:ffff::";
/// Ports at which edges alone reach instances (`overlay::ingress`).
const INGRESS_PORTS: &str = "61001-65535";
/// Errors that must reach whoever sent the packet they are about (RFC 4890, 4.3.1); without Packet
/// Too Big, large packets vanish and connections hang (ADR 0004). They pass where the connection that they are about exists.
const ICMPV6_ERRORS: &str =
    "{ destination-unreachable, packet-too-big, time-exceeded, parameter-problem }";

/// Rate at which an instance may send, and at which packets are forwarded to it, in megabytes a second. Packets
/// above it are dropped, so that no instance takes the node's whole network.
const MEGABYTES_PER_SECOND: u32 = 250;
/// Burst above [`MEGABYTES_PER_SECOND`], in megabytes.
const BURST_MEGABYTES: u32 = 25;
/// The limits forget a tap that sent nothing for this long.
const LIMIT_MEMORY: &str = "1m";

/// The network of the uplink, one of those reserved by RFC 6890. `slirp4netns` gives the namespace its
/// address 100, has 2 itself, and answers for names at 3, which is [`RESOLVER`].
pub(crate) const UPLINK_NETWORK: &str = "192.0.0.0/25";
/// The namespace's own address at the uplink.
const UPLINK_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 100);
/// TCP ports of the machine's own addresses that instances reach: what an edge serves, so that an app may
/// call its own public URL.
const PUBLIC_PORTS: [u16; 2] = [80, 443];
/// Most open connections that one instance has begun, UDP exchanges among them. The kernel holds 262144 for a
/// namespace.
const MAX_CONNECTIONS: u32 = 2048;
/// Most open TCP connections of one instance by egress: `slirp4netns` takes 256 KiB of memory for each.
const MAX_EGRESS_CONNECTIONS: u32 = 512;
/// The same of all instances together: 1 GiB of memory, eight instances at their own limit.
const MAX_EGRESS_CONNECTIONS_OF_NODE: u32 = 4096;
/// UDP exchanges that one instance may begin by egress: rate a second, and burst. Questions to the resolver do
/// not count. `slirp4netns` holds a socket for each exchange until it was silent for four minutes.
const UDP_PER_SECOND: (u32, u32) = (20, 200);
/// Questions that one instance may send to the node's resolver: rate a second, and burst.
const NAMES_PER_SECOND: (u32, u32) = (1000, 2000);
/// Refusals that one instance is sent, in messages a second; further packets are dropped without an answer. The
/// kernel's own limit is one for the whole machine.
const REFUSALS_PER_SECOND: u32 = 100;
/// How long a UDP exchange counts after its last packet, in seconds, when there was at most one packet each way,
/// as with names.
pub(crate) const UDP_MEMORY_SECONDS: u32 = 10;

/// What the rules are to admit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// The instances of the node.
    pub(crate) endpoints: &'a BTreeMap<InstanceId, Endpoint>,
    /// Who sends to them from other machines.
    pub(crate) access: &'a OverlayAccess,
}

/// All rules, for exactly this. Limits that count go on.
pub(crate) fn ruleset(
    cluster_prefix: Ipv6Addr,
    node: NodeId,
    wanted: Wanted<'_>,
    host: &HostNetwork,
) -> String {
    let mut text = limits();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{"
    );
    text.push_str(instances::SETS);
    text.push_str(overlay::SETS);
    let platform = env::env_of(cluster_prefix);
    let _ = write!(
        text,
        "\tchain pin {{\n\
         \t\ttype filter hook prerouting priority raw; policy drop;\n\
         \t\tiifname \"lo\" accept\n\
         \t\tiifname \"{OVERLAY_LINK}\" goto from_overlay\n\
         \t\tip6 saddr :: ip6 hoplimit 255 icmpv6 type nd-neighbor-solicit accept\n\
         \t\tiifname . ip6 saddr @link_local ip6 hoplimit 255 icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept\n\
         \t\tiifname \"{INSIDE_LINK}\" ip6 saddr fe80::/10 ip6 hoplimit 255 icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept\n\
         \t\tiifname \"{INSIDE_LINK}\" ip6 saddr & {ENV_MASK} == {platform} accept\n\
         \t\tiifname \"{UPLINK}\" ip daddr {UPLINK_ADDRESS} accept\n\
         \t\tiifname . ip6 saddr @ipv6_sources accept\n\
         \t\tiifname . ip saddr @ipv4_sources accept\n\
         \t}}\n"
    );
    text.push_str(&egress());
    text.push_str(&overlay::chains(cluster_prefix, node));
    let _ = write!(
        text,
        "\tchain forward {{\n\
         \t\ttype filter hook forward priority filter; policy drop;\n\
         {relayed}\
         \t\tct state established,related accept\n\
         \t\ticmpv6 type {ICMPV6_ERRORS} drop\n\
         \t\tiifname \"{INSIDE_LINK}\" oifname \"t*\" accept\n\
         {forwarded}\
         \t\tiifname \"t*\" meta nfproto ipv4 goto egress\n\
         \t\tiifname vmap @env_of_tap\n\
         \t}}\n\
         \tchain input {{\n\
         \t\ttype filter hook input priority filter; policy drop;\n\
         \t\tiifname \"lo\" accept\n\
         \t\ticmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, echo-request }} accept\n\
         \t\tct state established,related accept\n\
{received}\
         \t\tiifname \"t*\" ip daddr {RESOLVER} meta l4proto {{ tcp, udp }} th dport 53 accept\n\
         \t\tiifname \"t*\" meta nfproto ipv4 goto refuse\n\
         \t}}\n\
         }}\n",
        received = overlay::received(cluster_prefix, node),
        relayed = overlay::relayed(),
        forwarded = overlay::forwarded(cluster_prefix),
    );
    text.push_str(&host_change(host));
    let nothing = Wanted {
        endpoints: &BTreeMap::new(),
        access: &OverlayAccess::default(),
    };
    text.push_str(&change(cluster_prefix, nothing, wanted));
    text
}

/// What changes when the machine's own addresses or resolver do, the private networks that are reached, or where the servers are.
pub(crate) fn host_change(host: &HostNetwork) -> String {
    let own: Vec<String> = host.own.iter().map(ToString::to_string).collect();
    let resolver = host.resolver.map(|_| RESOLVER.to_string());
    let private: Vec<String> = host.private.0.iter().map(ToString::to_string).collect();
    // Where a server shares its address with an edge, the edge's ports stay open.
    let servers = host.servers.union(&host.told_servers);
    let servers = servers.filter(|server| !PUBLIC_PORTS.contains(&server.port()));
    let servers: Vec<String> = servers
        .map(|server| format!("{} . {}", server.ip(), server.port()))
        .collect();
    let mut text = String::new();
    for (set, elements) in [
        ("machine", own.join(", ")),
        ("resolver", resolver.unwrap_or_default()),
        ("private_reached", private.join(", ")),
        ("servers", servers.join(", ")),
    ] {
        let _ = writeln!(text, "flush set {TABLE} {set}");
        if !elements.is_empty() {
            let _ = writeln!(text, "add element {TABLE} {set} {{ {elements} }}");
        }
    }
    text
}

/// Limits on the packets and connections of one instance, in the cluster and by egress.
fn limits() -> String {
    let mut text = format!("add table {LIMITS}\n");
    let forgets = format!("flags dynamic,timeout; timeout {LIMIT_MEMORY};");
    for (set, flags) in [
        ("connections", "flags dynamic;"),
        ("egress_by_tap", "flags dynamic;"),
        ("egress_of_node", "flags dynamic;"),
        ("egress_udp", &forgets),
        ("names", &forgets),
        ("sent", &forgets),
        ("received", &forgets),
    ] {
        let _ = writeln!(
            text,
            "add set {LIMITS} {set} {{ type ifname; size 65535; {flags} }}"
        );
    }
    let rate = format!(
        "limit rate over {MEGABYTES_PER_SECOND} mbytes/second burst {BURST_MEGABYTES} mbytes"
    );
    let _ = write!(
        text,
        "add chain {LIMITS} prerouting {{ type filter hook prerouting priority raw - 1; policy accept; }}\n\
         flush chain {LIMITS} prerouting\n\
         add rule {LIMITS} prerouting iifname \"t*\" update @sent {{ iifname {rate} }} drop\n\
         add chain {LIMITS} forward {{ type filter hook forward priority filter - 1; policy accept; }}\n\
         flush chain {LIMITS} forward\n\
         add rule {LIMITS} forward oifname \"t*\" update @received {{ oifname {rate} }} drop\n"
    );
    let (rate, burst) = NAMES_PER_SECOND;
    let _ = write!(
        text,
        "add chain {LIMITS} input {{ type filter hook input priority filter - 1; policy accept; }}\n\
         flush chain {LIMITS} input\n\
         add rule {LIMITS} input iifname \"t*\" udp dport 53 update @names {{ iifname limit rate over {rate}/second burst {burst} packets }} drop\n\
         add rule {LIMITS} input iifname \"t*\" meta l4proto {{ tcp, udp }} ct state new add @connections {{ iifname ct count over {MAX_CONNECTIONS} }} reject with icmpx admin-prohibited\n"
    );
    let by_egress = format!("oifname \"{UPLINK}\"");
    let (rate, burst) = UDP_PER_SECOND;
    for (which, over) in [
        (
            String::new(),
            format!("add @connections {{ iifname ct count over {MAX_CONNECTIONS} }}"),
        ),
        (
            format!("{by_egress} meta l4proto tcp "),
            format!("add @egress_by_tap {{ iifname ct count over {MAX_EGRESS_CONNECTIONS} }}"),
        ),
        (
            format!("{by_egress} meta l4proto tcp "),
            format!(
                "add @egress_of_node {{ oifname ct count over {MAX_EGRESS_CONNECTIONS_OF_NODE} }}"
            ),
        ),
        (
            format!("{by_egress} meta l4proto udp ip daddr != {RESOLVER} "),
            format!(
                "update @egress_udp {{ iifname limit rate over {rate}/second burst {burst} packets }}"
            ),
        ),
    ] {
        let _ = writeln!(
            text,
            "add rule {LIMITS} forward iifname \"t*\" {which}ct state new {over} reject with icmpx admin-prohibited"
        );
    }
    text
}

/// Which destinations egress reaches, and how it is translated. Other packets are refused at once.
fn egress() -> String {
    let private = PRIVATE.map(|network| network.to_string()).join(", ");
    let denied = DENIED.map(|(network, _)| network.to_string()).join(", ");
    let public = PUBLIC_PORTS.map(|port| port.to_string()).join(", ");
    format!(
        "\tset denied {{\n\
         \t\ttype ipv4_addr; flags interval; auto-merge;\n\
         \t\telements = {{ {denied} }}\n\
         \t}}\n\
         \tset private {{\n\
         \t\ttype ipv4_addr; flags interval;\n\
         \t\telements = {{ {private} }}\n\
         \t}}\n\
         \tset private_reached {{\n\
         \t\ttype ipv4_addr; flags interval; auto-merge;\n\
         \t}}\n\
         \tset servers {{\n\
         \t\ttype ipv4_addr . inet_service;\n\
         \t}}\n\
         \tset machine {{\n\
         \t\ttype ipv4_addr; flags interval; auto-merge;\n\
         \t}}\n\
         \tset resolver {{\n\
         \t\ttype ipv4_addr;\n\
         \t}}\n\
         \tset refused {{\n\
         \t\ttype ifname; size 65535; flags dynamic,timeout; timeout {LIMIT_MEMORY};\n\
         \t}}\n\
         \tchain translate {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\toifname \"{UPLINK}\" meta nfproto ipv4 masquerade\n\
         \t}}\n\
         \tchain refuse {{\n\
         \t\tupdate @refused {{ iifname limit rate over {REFUSALS_PER_SECOND}/second burst {REFUSALS_PER_SECOND} packets }} drop\n\
         \t\tmeta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn reject with tcp reset\n\
         \t\treject with icmpx admin-prohibited\n\
         \t}}\n\
         \tchain egress_all {{\n\
         \t\toifname \"{UPLINK}\" ip daddr @machine tcp dport {{ {public} }} accept\n\
         \t\tip daddr @machine goto refuse\n\
         \t\tip daddr @denied goto refuse\n\
         \t\tip daddr . tcp dport @servers goto refuse\n\
         \t\tip daddr @private ip daddr != @private_reached goto refuse\n\
         \t\toifname \"{UPLINK}\" meta l4proto {{ tcp, udp, icmp }} accept\n\
         \t\tgoto refuse\n\
         \t}}\n\
         \tchain egress_internet {{\n\
         \t\tip daddr @private goto refuse\n\
         \t\tgoto egress_all\n\
         \t}}\n\
         \tchain egress {{\n\
         \t\ttcp flags & (fin | syn | rst | ack) != syn goto refuse\n\
         \t\tip daddr @resolver meta l4proto {{ tcp, udp }} th dport 53 oifname \"{UPLINK}\" accept\n\
         \t\tiifname vmap @egress_of_tap\n\
         \t\tgoto refuse\n\
         \t}}\n"
    )
}
