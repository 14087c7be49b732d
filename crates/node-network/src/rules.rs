//! The rule set of the namespace, as text for `nft -f`. Pure.
//!
//! nft cannot compare two fields of a packet, so "the same env" is spelled out: each tap leads to
//! its env's chain, which compares the destination under a mask that leaves the node's bits out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use guest_protocol::RESOLVER;
use model::InstanceId;

use crate::host_network::HostNetwork;
use crate::names::{INSIDE_LINK, UPLINK, tap_name};

/// The one table that follows from the instances. Loading it again replaces it, all at once.
pub(crate) const TABLE: &str = "inet platform";
/// The table of counted connections. It is never deleted: the counts go on while rules are replaced.
const COUNTS: &str = "inet platform_counts";
/// Cluster and env network, whatever the node and the instance.
const ENV_MASK: &str = "ffff:ffff:ffff:0:ffff:ffff::";
/// Errors that must reach whoever sent the packet they are about (RFC 4890, 4.3.1); without Packet
/// Too Big, large packets vanish and connections hang (ADR 0004).
const ICMPV6_ERRORS: &str =
    "{ destination-unreachable, packet-too-big, time-exceeded, parameter-problem }";

/// Rate at which an instance may send, and at which packets are forwarded to it, in megabytes a second. Packets
/// above it are dropped, so that no instance takes the node's whole network.
const MEGABYTES_PER_SECOND: u32 = 250;
/// Burst above [`MEGABYTES_PER_SECOND`], in megabytes.
const BURST_MEGABYTES: u32 = 25;
/// The limits drop their state of a tap that sent nothing for this long.
const LIMIT_MEMORY: &str = "1m";

/// The network of the uplink, one of those reserved by RFC 6890. `slirp4netns` gives the namespace its
/// address 100, has 2 itself, and answers for names at 3, which is [`RESOLVER`].
pub(crate) const UPLINK_NETWORK: &str = "192.0.0.0/25";
/// The namespace's own address at the uplink.
const UPLINK_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 100);
/// Destinations that no instance reaches, whatever the machine can reach: "this network"; other instances; loopback;
/// metadata of clouds (169.254.0.0/16; 192.0.0.192 and 100.100.100.200 are in the other blocks;
/// 168.63.129.16), which hand the machine's credentials to whoever asks; our own link; multicast;
/// reserved and broadcast.
const DENIED: &str = "{ 0.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 168.63.129.16, 169.254.0.0/16, \
     192.0.0.0/24, 224.0.0.0/4, 240.0.0.0/4 }";
/// TCP ports of the machine's own addresses that instances reach: what an edge serves, so that an app may
/// call its own public URL.
const PUBLIC_PORTS: &str = "{ 80, 443 }";
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
/// Refusals that one instance is sent, in messages a second; further packets are dropped without an answer. The
/// kernel's own limit is one for the whole machine.
const REFUSALS_PER_SECOND: u32 = 100;
/// How long a UDP exchange counts after its last packet, in seconds, when there was at most one packet each way,
/// as with names.
pub(crate) const UDP_MEMORY_SECONDS: u32 = 10;

/// An instance as the rules know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// The instance.
    pub instance: InstanceId,
    /// Its address in the cluster.
    pub address: Ipv6Addr,
    /// Its address for egress, which no other instance of the node has.
    pub ipv4: Ipv4Addr,
}

/// An address's cluster and env network, with node and instance zero: what [`ENV_MASK`] leaves.
fn env_of(address: Ipv6Addr) -> Ipv6Addr {
    let mut segments = address.segments();
    for segment in [3, 6, 7] {
        segments[segment] = 0;
    }
    Ipv6Addr::from(segments)
}

fn chain_of(env: Ipv6Addr) -> String {
    let [_, _, _, _, high, low, _, _] = env.segments();
    format!("from_env_{high:04x}{low:04x}")
}

/// The rules for exactly these instances; `cluster_prefix` is the cluster's /48.
pub(crate) fn ruleset(
    cluster_prefix: Ipv6Addr,
    endpoints: &[Endpoint],
    host: &HostNetwork,
) -> String {
    let platform = env_of(cluster_prefix);
    let endpoints: BTreeMap<InstanceId, &Endpoint> =
        endpoints.iter().map(|m| (m.instance, m)).collect();
    // An instance in network 0 would have the platform's rights: it gets no chain, so no rights.
    let envs: BTreeSet<Ipv6Addr> = endpoints
        .values()
        .map(|endpoint| env_of(endpoint.address))
        .filter(|env| *env != platform)
        .collect();
    let mut text = counts();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{"
    );
    for set in ["sent", "received", "refused"] {
        let _ = writeln!(
            text,
            "\tset {set} {{\n\t\ttype ifname; size 65535; flags dynamic,timeout; timeout {LIMIT_MEMORY};\n\t}}"
        );
    }
    let limit = format!(
        "limit rate over {MEGABYTES_PER_SECOND} mbytes/second burst {BURST_MEGABYTES} mbytes"
    );
    let _ = write!(
        text,
        "\tchain pin {{\n\
         \t\ttype filter hook prerouting priority raw; policy drop;\n\
         \t\tiifname \"lo\" accept\n\
         \t\tiifname \"t*\" update @sent {{ iifname {limit} }} drop\n\
         \t\tip6 saddr {{ ::, fe80::/10 }} ip6 hoplimit 255 icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept\n\
         \t\tiifname \"{INSIDE_LINK}\" ip6 saddr & {ENV_MASK} == {platform} accept\n\
         \t\tiifname \"{UPLINK}\" ip daddr {UPLINK_ADDRESS} accept\n"
    );
    if !endpoints.is_empty() {
        let pins = |address: fn(&Endpoint) -> String| {
            let pins: Vec<String> = endpoints
                .values()
                .map(|endpoint| {
                    format!(
                        "\"{}\" . {}",
                        tap_name(endpoint.instance),
                        address(endpoint)
                    )
                })
                .collect();
            pins.join(", ")
        };
        let _ = writeln!(
            text,
            "\t\tiifname . ip6 saddr {{ {} }} accept\n\t\tiifname . ip saddr {{ {} }} accept",
            pins(|endpoint| endpoint.address.to_string()),
            pins(|endpoint| endpoint.ipv4.to_string()),
        );
    }
    text.push_str("\t}\n");
    for env in &envs {
        let _ = write!(
            text,
            "\tchain {} {{\n\t\tip6 daddr & {ENV_MASK} == {env} accept\n\t}}\n",
            chain_of(*env)
        );
    }
    text.push_str(&egress(host));
    let _ = write!(
        text,
        "\tchain forward {{\n\
         \t\ttype filter hook forward priority filter; policy drop;\n\
         \t\toifname \"t*\" update @received {{ oifname {limit} }} drop\n\
         \t\ticmpv6 type {ICMPV6_ERRORS} accept\n\
         \t\tct state established,related accept\n\
         \t\tiifname \"{INSIDE_LINK}\" oifname \"t*\" accept\n\
         \t\tiifname \"t*\" meta nfproto ipv4 goto egress\n"
    );
    if !envs.is_empty() {
        let jumps: Vec<String> = endpoints
            .values()
            .filter(|endpoint| env_of(endpoint.address) != platform)
            .map(|endpoint| {
                format!(
                    "\"{}\" : goto {}",
                    tap_name(endpoint.instance),
                    chain_of(env_of(endpoint.address))
                )
            })
            .collect();
        let _ = writeln!(text, "\t\tiifname vmap {{ {} }}", jumps.join(", "));
    }
    let _ = write!(
        text,
        "\t}}\n\
         \tchain input {{\n\
         \t\ttype filter hook input priority filter; policy drop;\n\
         \t\tiifname \"lo\" accept\n\
         \t\ticmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, echo-request }} accept\n\
         \t\ticmpv6 type {ICMPV6_ERRORS} accept\n\
         \t\tct state established,related accept\n\
         \t\tiifname \"t*\" meta nfproto ipv4 goto refuse\n\
         \t}}\n\
         }}\n"
    );
    text
}

/// Limits on the connections of one instance, in the cluster and by egress.
fn counts() -> String {
    let mut text = format!("add table {COUNTS}\n");
    for (set, flags) in [
        ("connections", "flags dynamic;".to_owned()),
        ("egress_by_tap", "flags dynamic;".to_owned()),
        ("egress_of_node", "flags dynamic;".to_owned()),
        (
            "egress_udp",
            format!("flags dynamic,timeout; timeout {LIMIT_MEMORY};"),
        ),
    ] {
        let _ = writeln!(
            text,
            "add set {COUNTS} {set} {{ type ifname; size 65535; {flags} }}"
        );
    }
    let _ = write!(
        text,
        "add chain {COUNTS} forward {{ type filter hook forward priority filter - 1; policy accept; }}\n\
         flush chain {COUNTS} forward\n"
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
            "add rule {COUNTS} forward iifname \"t*\" {which}ct state new {over} reject with icmpx admin-prohibited"
        );
    }
    text
}

/// Which destinations egress reaches, and how it is translated. Other packets are refused at once.
fn egress(host: &HostNetwork) -> String {
    let mut text = String::new();
    let own: Vec<String> = host.own.iter().map(ToString::to_string).collect();
    let mut set = |name: &str, elements: &str| {
        let _ = write!(
            text,
            "\tset {name} {{\n\t\ttype ipv4_addr; flags interval; auto-merge;\n"
        );
        if !elements.is_empty() {
            let _ = writeln!(text, "\t\telements = {elements}");
        }
        text.push_str("\t}\n");
    };
    set("denied", DENIED);
    set(
        "machine",
        &match own.as_slice() {
            [] => String::new(),
            own => format!("{{ {} }}", own.join(", ")),
        },
    );
    let names = host.resolver.map_or_else(String::new, |_| {
        format!(
            "\t\tip daddr {RESOLVER} meta l4proto {{ tcp, udp }} th dport 53 oifname \"{UPLINK}\" accept\n"
        )
    });
    let _ = write!(
        text,
        "\tchain translate {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\toifname \"{UPLINK}\" meta nfproto ipv4 masquerade\n\
         \t}}\n\
         \tchain refuse {{\n\
         \t\tupdate @refused {{ iifname limit rate over {REFUSALS_PER_SECOND}/second burst {REFUSALS_PER_SECOND} packets }} drop\n\
         \t\tmeta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn reject with tcp reset\n\
         \t\treject with icmpx admin-prohibited\n\
         \t}}\n\
         \tchain egress {{\n\
         \t\ttcp flags & (fin | syn | rst | ack) != syn goto refuse\n\
         {names}\
         \t\toifname \"{UPLINK}\" ip daddr @machine tcp dport {PUBLIC_PORTS} accept\n\
         \t\tip daddr @machine goto refuse\n\
         \t\tip daddr @denied goto refuse\n\
         \t\toifname \"{UPLINK}\" meta l4proto {{ tcp, udp, icmp }} accept\n\
         \t\tgoto refuse\n\
         \t}}\n"
    );
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::host_network::own_addresses;
    use expect_test::{Expect, expect};

    fn endpoint(id: u32, address: &str) -> Endpoint {
        Endpoint {
            instance: InstanceId(id),
            address: address.parse().unwrap(),
            ipv4: Ipv4Addr::from_bits(0x6440_0000 | id),
        }
    }

    fn check(instances: &[(u32, &str)], expected: &Expect) {
        let endpoints: Vec<_> = instances
            .iter()
            .map(|(id, address)| endpoint(*id, address))
            .collect();
        let host = HostNetwork::default();
        let cluster = "fd12:3456:789a::".parse().unwrap();
        expected.assert_eq(&ruleset(cluster, &endpoints, &host));
    }

    fn check_egress(own: &str, resolver: Option<&str>, expected: &Expect) {
        let host = HostNetwork {
            own: own_addresses(own).unwrap(),
            resolver: resolver.map(|address| address.parse().unwrap()),
        };
        // The frame keeps the indentation, which `expect!` would take off.
        expected.assert_eq(&format!("table {{\n{}}}\n", egress(&host)));
    }

    #[test]
    fn names_are_resolved_where_the_machine_has_a_resolver() {
        check_egress(
            r#"[{"dst":"203.0.113.2"},{"dst":"203.0.113.255"},{"dst":"10.1.0.0/16"}]"#,
            Some("203.0.113.53"),
            &expect![[r#"
                table {
                	set denied {
                		type ipv4_addr; flags interval; auto-merge;
                		elements = { 0.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 168.63.129.16, 169.254.0.0/16, 192.0.0.0/24, 224.0.0.0/4, 240.0.0.0/4 }
                	}
                	set machine {
                		type ipv4_addr; flags interval; auto-merge;
                		elements = { 10.1.0.0/16, 203.0.113.2, 203.0.113.255 }
                	}
                	chain translate {
                		type nat hook postrouting priority srcnat; policy accept;
                		oifname "uplink" meta nfproto ipv4 masquerade
                	}
                	chain refuse {
                		update @refused { iifname limit rate over 100/second burst 100 packets } drop
                		meta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn reject with tcp reset
                		reject with icmpx admin-prohibited
                	}
                	chain egress {
                		tcp flags & (fin | syn | rst | ack) != syn goto refuse
                		ip daddr 192.0.0.3 meta l4proto { tcp, udp } th dport 53 oifname "uplink" accept
                		oifname "uplink" ip daddr @machine tcp dport { 80, 443 } accept
                		ip daddr @machine goto refuse
                		ip daddr @denied goto refuse
                		oifname "uplink" meta l4proto { tcp, udp, icmp } accept
                		goto refuse
                	}
                }
            "#]],
        );
    }

    #[test]
    fn names_are_refused_where_the_machine_has_no_resolver() {
        check_egress(
            "[]",
            None,
            &expect![[r#"
                table {
                	set denied {
                		type ipv4_addr; flags interval; auto-merge;
                		elements = { 0.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 168.63.129.16, 169.254.0.0/16, 192.0.0.0/24, 224.0.0.0/4, 240.0.0.0/4 }
                	}
                	set machine {
                		type ipv4_addr; flags interval; auto-merge;
                	}
                	chain translate {
                		type nat hook postrouting priority srcnat; policy accept;
                		oifname "uplink" meta nfproto ipv4 masquerade
                	}
                	chain refuse {
                		update @refused { iifname limit rate over 100/second burst 100 packets } drop
                		meta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn reject with tcp reset
                		reject with icmpx admin-prohibited
                	}
                	chain egress {
                		tcp flags & (fin | syn | rst | ack) != syn goto refuse
                		oifname "uplink" ip daddr @machine tcp dport { 80, 443 } accept
                		ip daddr @machine goto refuse
                		ip daddr @denied goto refuse
                		oifname "uplink" meta l4proto { tcp, udp, icmp } accept
                		goto refuse
                	}
                }
            "#]],
        );
    }

    #[test]
    fn rules_without_instances_admit_nothing() {
        check(
            &[],
            &expect![[r#"
                add table inet platform_counts
                add set inet platform_counts connections { type ifname; size 65535; flags dynamic; }
                add set inet platform_counts egress_by_tap { type ifname; size 65535; flags dynamic; }
                add set inet platform_counts egress_of_node { type ifname; size 65535; flags dynamic; }
                add set inet platform_counts egress_udp { type ifname; size 65535; flags dynamic,timeout; timeout 1m; }
                add chain inet platform_counts forward { type filter hook forward priority filter - 1; policy accept; }
                flush chain inet platform_counts forward
                add rule inet platform_counts forward iifname "t*" ct state new add @connections { iifname ct count over 2048 } reject with icmpx admin-prohibited
                add rule inet platform_counts forward iifname "t*" oifname "uplink" meta l4proto tcp ct state new add @egress_by_tap { iifname ct count over 512 } reject with icmpx admin-prohibited
                add rule inet platform_counts forward iifname "t*" oifname "uplink" meta l4proto tcp ct state new add @egress_of_node { oifname ct count over 4096 } reject with icmpx admin-prohibited
                add rule inet platform_counts forward iifname "t*" oifname "uplink" meta l4proto udp ip daddr != 192.0.0.3 ct state new update @egress_udp { iifname limit rate over 20/second burst 200 packets } reject with icmpx admin-prohibited
                table inet platform
                delete table inet platform
                table inet platform {
                	set sent {
                		type ifname; size 65535; flags dynamic,timeout; timeout 1m;
                	}
                	set received {
                		type ifname; size 65535; flags dynamic,timeout; timeout 1m;
                	}
                	set refused {
                		type ifname; size 65535; flags dynamic,timeout; timeout 1m;
                	}
                	chain pin {
                		type filter hook prerouting priority raw; policy drop;
                		iifname "lo" accept
                		iifname "t*" update @sent { iifname limit rate over 250 mbytes/second burst 25 mbytes } drop
                		ip6 saddr { ::, fe80::/10 } ip6 hoplimit 255 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
                		iifname "host" ip6 saddr & ffff:ffff:ffff:0:ffff:ffff:: == fd12:3456:789a:: accept
                		iifname "uplink" ip daddr 192.0.0.100 accept
                	}
                	set denied {
                		type ipv4_addr; flags interval; auto-merge;
                		elements = { 0.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 168.63.129.16, 169.254.0.0/16, 192.0.0.0/24, 224.0.0.0/4, 240.0.0.0/4 }
                	}
                	set machine {
                		type ipv4_addr; flags interval; auto-merge;
                	}
                	chain translate {
                		type nat hook postrouting priority srcnat; policy accept;
                		oifname "uplink" meta nfproto ipv4 masquerade
                	}
                	chain refuse {
                		update @refused { iifname limit rate over 100/second burst 100 packets } drop
                		meta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn reject with tcp reset
                		reject with icmpx admin-prohibited
                	}
                	chain egress {
                		tcp flags & (fin | syn | rst | ack) != syn goto refuse
                		oifname "uplink" ip daddr @machine tcp dport { 80, 443 } accept
                		ip daddr @machine goto refuse
                		ip daddr @denied goto refuse
                		oifname "uplink" meta l4proto { tcp, udp, icmp } accept
                		goto refuse
                	}
                	chain forward {
                		type filter hook forward priority filter; policy drop;
                		oifname "t*" update @received { oifname limit rate over 250 mbytes/second burst 25 mbytes } drop
                		icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
                		ct state established,related accept
                		iifname "host" oifname "t*" accept
                		iifname "t*" meta nfproto ipv4 goto egress
                	}
                	chain input {
                		type filter hook input priority filter; policy drop;
                		iifname "lo" accept
                		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, echo-request } accept
                		icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
                		ct state established,related accept
                		iifname "t*" meta nfproto ipv4 goto refuse
                	}
                }
            "#]],
        );
    }

    #[test]
    fn instances_of_two_envs_are_kept_apart() {
        check(
            &[
                (0xa1, "fd12:3456:789a:3:0:7:0:a1"),
                (0xa2, "fd12:3456:789a:3:0:7:0:a2"),
                (0xa3, "fd12:3456:789a:3:0:8:0:a3"),
            ],
            &expect![[r#"
                add table inet platform_counts
                add set inet platform_counts connections { type ifname; size 65535; flags dynamic; }
                add set inet platform_counts egress_by_tap { type ifname; size 65535; flags dynamic; }
                add set inet platform_counts egress_of_node { type ifname; size 65535; flags dynamic; }
                add set inet platform_counts egress_udp { type ifname; size 65535; flags dynamic,timeout; timeout 1m; }
                add chain inet platform_counts forward { type filter hook forward priority filter - 1; policy accept; }
                flush chain inet platform_counts forward
                add rule inet platform_counts forward iifname "t*" ct state new add @connections { iifname ct count over 2048 } reject with icmpx admin-prohibited
                add rule inet platform_counts forward iifname "t*" oifname "uplink" meta l4proto tcp ct state new add @egress_by_tap { iifname ct count over 512 } reject with icmpx admin-prohibited
                add rule inet platform_counts forward iifname "t*" oifname "uplink" meta l4proto tcp ct state new add @egress_of_node { oifname ct count over 4096 } reject with icmpx admin-prohibited
                add rule inet platform_counts forward iifname "t*" oifname "uplink" meta l4proto udp ip daddr != 192.0.0.3 ct state new update @egress_udp { iifname limit rate over 20/second burst 200 packets } reject with icmpx admin-prohibited
                table inet platform
                delete table inet platform
                table inet platform {
                	set sent {
                		type ifname; size 65535; flags dynamic,timeout; timeout 1m;
                	}
                	set received {
                		type ifname; size 65535; flags dynamic,timeout; timeout 1m;
                	}
                	set refused {
                		type ifname; size 65535; flags dynamic,timeout; timeout 1m;
                	}
                	chain pin {
                		type filter hook prerouting priority raw; policy drop;
                		iifname "lo" accept
                		iifname "t*" update @sent { iifname limit rate over 250 mbytes/second burst 25 mbytes } drop
                		ip6 saddr { ::, fe80::/10 } ip6 hoplimit 255 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
                		iifname "host" ip6 saddr & ffff:ffff:ffff:0:ffff:ffff:: == fd12:3456:789a:: accept
                		iifname "uplink" ip daddr 192.0.0.100 accept
                		iifname . ip6 saddr { "t000000a1" . fd12:3456:789a:3:0:7:0:a1, "t000000a2" . fd12:3456:789a:3:0:7:0:a2, "t000000a3" . fd12:3456:789a:3:0:8:0:a3 } accept
                		iifname . ip saddr { "t000000a1" . 100.64.0.161, "t000000a2" . 100.64.0.162, "t000000a3" . 100.64.0.163 } accept
                	}
                	chain from_env_00000007 {
                		ip6 daddr & ffff:ffff:ffff:0:ffff:ffff:: == fd12:3456:789a::7:0:0 accept
                	}
                	chain from_env_00000008 {
                		ip6 daddr & ffff:ffff:ffff:0:ffff:ffff:: == fd12:3456:789a::8:0:0 accept
                	}
                	set denied {
                		type ipv4_addr; flags interval; auto-merge;
                		elements = { 0.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 168.63.129.16, 169.254.0.0/16, 192.0.0.0/24, 224.0.0.0/4, 240.0.0.0/4 }
                	}
                	set machine {
                		type ipv4_addr; flags interval; auto-merge;
                	}
                	chain translate {
                		type nat hook postrouting priority srcnat; policy accept;
                		oifname "uplink" meta nfproto ipv4 masquerade
                	}
                	chain refuse {
                		update @refused { iifname limit rate over 100/second burst 100 packets } drop
                		meta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn reject with tcp reset
                		reject with icmpx admin-prohibited
                	}
                	chain egress {
                		tcp flags & (fin | syn | rst | ack) != syn goto refuse
                		oifname "uplink" ip daddr @machine tcp dport { 80, 443 } accept
                		ip daddr @machine goto refuse
                		ip daddr @denied goto refuse
                		oifname "uplink" meta l4proto { tcp, udp, icmp } accept
                		goto refuse
                	}
                	chain forward {
                		type filter hook forward priority filter; policy drop;
                		oifname "t*" update @received { oifname limit rate over 250 mbytes/second burst 25 mbytes } drop
                		icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
                		ct state established,related accept
                		iifname "host" oifname "t*" accept
                		iifname "t*" meta nfproto ipv4 goto egress
                		iifname vmap { "t000000a1" : goto from_env_00000007, "t000000a2" : goto from_env_00000007, "t000000a3" : goto from_env_00000008 }
                	}
                	chain input {
                		type filter hook input priority filter; policy drop;
                		iifname "lo" accept
                		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, echo-request } accept
                		icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
                		ct state established,related accept
                		iifname "t*" meta nfproto ipv4 goto refuse
                	}
                }
            "#]],
        );
    }

    #[test]
    fn an_instance_in_network_0_gets_no_rights() {
        let text = ruleset(
            "fd12:3456:789a::".parse().unwrap(),
            &[endpoint(1, "fd12:3456:789a:3::9")],
            &HostNetwork::default(),
        );
        assert!(!text.contains("vmap"));
    }
}
