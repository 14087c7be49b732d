//! The rule set of the namespace, as text for `nft -f`. Pure.
//!
//! nft cannot compare two fields of a packet, so "the same env" is spelled out: each tap leads to
//! its env's chain, which compares the destination under a mask that leaves the node's bits out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::Ipv6Addr;

use contract::InstanceId;

use crate::names::{INSIDE_LINK, tap_name};

/// The one table. Loading it again replaces it, all at once.
pub(crate) const TABLE: &str = "inet platform";
/// Cluster and env network, whatever the node and the instance.
const ENV_MASK: &str = "ffff:ffff:ffff:0:ffff:ffff::";
/// Errors that must reach whoever sent the packet they are about (RFC 4890, 4.3.1); without Packet
/// Too Big, large packets vanish and connections hang (ADR 0004).
const ICMPV6_ERRORS: &str =
    "{ destination-unreachable, packet-too-big, time-exceeded, parameter-problem }";

/// What an instance may send, and what may be forwarded to it, in megabytes a second; so that one
/// does not have the node's network for itself. Above it packets are dropped.
const MEGABYTES_PER_SECOND: u32 = 250;
/// How far it may be above for a moment, in megabytes.
const BURST_MEGABYTES: u32 = 25;
/// A tap that is quiet for this long is forgotten by the limits.
const LIMIT_MEMORY: &str = "1m";

/// An address's cluster and env network, with node and instance zero: what [`ENV_MASK`] leaves.
fn env_of(address: Ipv6Addr) -> Ipv6Addr {
    let mut segments = address.segments();
    for outside in [3, 6, 7] {
        segments[outside] = 0;
    }
    Ipv6Addr::from(segments)
}

fn chain_of(env: Ipv6Addr) -> String {
    let [_, _, _, _, high, low, _, _] = env.segments();
    format!("from_env_{high:04x}{low:04x}")
}

/// The rules for exactly these instances; `cluster_prefix` is the cluster's /48.
pub(crate) fn ruleset(cluster_prefix: Ipv6Addr, instances: &[(InstanceId, Ipv6Addr)]) -> String {
    let platform = env_of(cluster_prefix);
    let instances: BTreeMap<InstanceId, Ipv6Addr> = instances.iter().copied().collect();
    // An instance in network 0 would have the platform's rights: it gets no chain, so no rights.
    let envs: BTreeSet<Ipv6Addr> = instances
        .values()
        .map(|address| env_of(*address))
        .filter(|env| *env != platform)
        .collect();
    let mut text = format!("table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n");
    // Writing to a String cannot fail.
    for set in ["sent", "received"] {
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
         \t\tiifname \"{INSIDE_LINK}\" ip6 saddr & {ENV_MASK} == {platform} accept\n"
    );
    if !instances.is_empty() {
        let pins: Vec<String> = instances
            .iter()
            .map(|(id, address)| format!("\"{}\" . {address}", tap_name(*id)))
            .collect();
        let _ = writeln!(
            text,
            "\t\tiifname . ip6 saddr {{ {} }} accept",
            pins.join(", ")
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
    let _ = write!(
        text,
        "\tchain forward {{\n\
         \t\ttype filter hook forward priority filter; policy drop;\n\
         \t\toifname \"t*\" update @received {{ oifname {limit} }} drop\n\
         \t\ticmpv6 type {ICMPV6_ERRORS} accept\n\
         \t\tct state established,related accept\n\
         \t\tiifname \"{INSIDE_LINK}\" oifname \"t*\" accept\n"
    );
    if !envs.is_empty() {
        let jumps: Vec<String> = instances
            .iter()
            .filter(|(_, address)| env_of(**address) != platform)
            .map(|(id, address)| {
                format!(
                    "\"{}\" : goto {}",
                    tap_name(*id),
                    chain_of(env_of(*address))
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
         \t}}\n\
         }}\n"
    );
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use expect_test::{Expect, expect};

    fn check(instances: &[(u32, &str)], expected: &Expect) {
        let instances: Vec<_> = instances
            .iter()
            .map(|(id, address)| (InstanceId(*id), address.parse().unwrap()))
            .collect();
        expected.assert_eq(&ruleset("fd12:3456:789a::".parse().unwrap(), &instances));
    }

    #[test]
    fn none_yet() {
        check(
            &[],
            &expect![[r#"
                table inet platform
                delete table inet platform
                table inet platform {
                	set sent {
                		type ifname; size 65535; flags dynamic,timeout; timeout 1m;
                	}
                	set received {
                		type ifname; size 65535; flags dynamic,timeout; timeout 1m;
                	}
                	chain pin {
                		type filter hook prerouting priority raw; policy drop;
                		iifname "lo" accept
                		iifname "t*" update @sent { iifname limit rate over 250 mbytes/second burst 25 mbytes } drop
                		ip6 saddr { ::, fe80::/10 } ip6 hoplimit 255 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
                		iifname "host" ip6 saddr & ffff:ffff:ffff:0:ffff:ffff:: == fd12:3456:789a:: accept
                	}
                	chain forward {
                		type filter hook forward priority filter; policy drop;
                		oifname "t*" update @received { oifname limit rate over 250 mbytes/second burst 25 mbytes } drop
                		icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
                		ct state established,related accept
                		iifname "host" oifname "t*" accept
                	}
                	chain input {
                		type filter hook input priority filter; policy drop;
                		iifname "lo" accept
                		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, echo-request } accept
                		icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
                		ct state established,related accept
                	}
                }
            "#]],
        );
    }

    #[test]
    fn two_envs() {
        check(
            &[
                (0xa1, "fd12:3456:789a:3:0:7:0:a1"),
                (0xa2, "fd12:3456:789a:3:0:7:0:a2"),
                (0xa3, "fd12:3456:789a:3:0:8:0:a3"),
            ],
            &expect![[r#"
                table inet platform
                delete table inet platform
                table inet platform {
                	set sent {
                		type ifname; size 65535; flags dynamic,timeout; timeout 1m;
                	}
                	set received {
                		type ifname; size 65535; flags dynamic,timeout; timeout 1m;
                	}
                	chain pin {
                		type filter hook prerouting priority raw; policy drop;
                		iifname "lo" accept
                		iifname "t*" update @sent { iifname limit rate over 250 mbytes/second burst 25 mbytes } drop
                		ip6 saddr { ::, fe80::/10 } ip6 hoplimit 255 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
                		iifname "host" ip6 saddr & ffff:ffff:ffff:0:ffff:ffff:: == fd12:3456:789a:: accept
                		iifname . ip6 saddr { "t000000a1" . fd12:3456:789a:3:0:7:0:a1, "t000000a2" . fd12:3456:789a:3:0:7:0:a2, "t000000a3" . fd12:3456:789a:3:0:8:0:a3 } accept
                	}
                	chain from_env_00000007 {
                		ip6 daddr & ffff:ffff:ffff:0:ffff:ffff:: == fd12:3456:789a::7:0:0 accept
                	}
                	chain from_env_00000008 {
                		ip6 daddr & ffff:ffff:ffff:0:ffff:ffff:: == fd12:3456:789a::8:0:0 accept
                	}
                	chain forward {
                		type filter hook forward priority filter; policy drop;
                		oifname "t*" update @received { oifname limit rate over 250 mbytes/second burst 25 mbytes } drop
                		icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
                		ct state established,related accept
                		iifname "host" oifname "t*" accept
                		iifname vmap { "t000000a1" : goto from_env_00000007, "t000000a2" : goto from_env_00000007, "t000000a3" : goto from_env_00000008 }
                	}
                	chain input {
                		type filter hook input priority filter; policy drop;
                		iifname "lo" accept
                		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, echo-request } accept
                		icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
                		ct state established,related accept
                	}
                }
            "#]],
        );
    }

    #[test]
    fn an_instance_in_network_0_gets_no_rights() {
        let text = ruleset(
            "fd12:3456:789a::".parse().unwrap(),
            &[(InstanceId(1), "fd12:3456:789a:3::9".parse().unwrap())],
        );
        assert!(!text.contains("vmap"));
    }
}
