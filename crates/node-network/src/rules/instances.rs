//! The instances in the rules: elements of named sets, and a chain for each env.

// ring: the two halves of one rule set share its name and its masks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use model::InstanceId;
use model::instance::EgressPolicy;

use super::env::{chain_of, env_of};
use super::overlay::{self, Neighbours};
use super::{ENV_MASK, TABLE, Wanted};
use crate::names::{link_local_of, tap_name};

/// The sets and the map that the rules look instances up in.
pub(super) const SETS: &str = "\tset ipv6_sources {
\t\ttype ifname . ipv6_addr;
\t}
\tset ipv4_sources {
\t\ttype ifname . ipv4_addr;
\t}
\tset edge_ports {
\t\ttype ipv6_addr . inet_service;
\t}
\tset link_local {
\t\ttype ifname . ipv6_addr;
\t}
\tmap env_of_tap {
\t\ttype ifname : verdict;
\t}
	map egress_of_tap {
		type ifname : verdict;
	}
";

/// An instance as the rules know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The instance.
    pub instance: InstanceId,
    /// Its address in the cluster.
    pub address: Ipv6Addr,
    /// Its address for egress, which no other instance of the node has.
    pub ipv4: Ipv4Addr,
    /// What it reaches outside of the cluster.
    pub egress: EgressPolicy,
    /// The TCP ports at which edges of other machines reach it (`overlay::ingress::edge_port`): no others.
    pub edge_ports: BTreeSet<u16>,
}

/// The envs of these instances. One in network 0 would have the platform's rights: it gets no chain, so no rights.
fn envs(cluster_prefix: Ipv6Addr, of: &BTreeMap<InstanceId, Endpoint>) -> BTreeSet<Ipv6Addr> {
    let envs = of.values().map(|endpoint| env_of(endpoint.address));
    envs.filter(|env| *env != env_of(cluster_prefix)).collect()
}

/// What changes from one state to another. Empty: nothing does.
pub(crate) fn change(cluster_prefix: Ipv6Addr, before: Wanted<'_>, after: Wanted<'_>) -> String {
    let differs = |of: Wanted<'_>, endpoint: &Endpoint| {
        of.endpoints.get(&endpoint.instance) != Some(endpoint)
    };
    let gone = (before.endpoints.values()).filter(|e| differs(after, e));
    let new = (after.endpoints.values()).filter(|e| differs(before, e));
    let (gone, new): (Vec<_>, Vec<_>) = (gone.collect(), new.collect());
    let is_same_access = before.access == after.access;
    if gone.is_empty() && new.is_empty() && is_same_access {
        return String::new();
    }
    let platform = env_of(cluster_prefix);
    let envs_before = envs(cluster_prefix, before.endpoints);
    let envs_after = envs(cluster_prefix, after.endpoints);
    let neighbours_before = Neighbours::new(cluster_prefix, &envs_before, before.access);
    let neighbours_after = Neighbours::new(cluster_prefix, &envs_after, after.access);
    let mut text = elements("delete", platform, &gone);
    text.push_str(&neighbours_before.without("delete", &neighbours_after));
    for env in envs_after.difference(&envs_before) {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "add chain {TABLE} {chain}\n\
             add rule {TABLE} {chain} ip6 daddr & {ENV_MASK} == {env} accept\n",
            chain = chain_of(*env),
        );
    }
    text.push_str(&elements("add", platform, &new));
    text.push_str(&neighbours_after.without("add", &neighbours_before));
    text.push_str(&overlay::change(
        cluster_prefix,
        before.access,
        after.access,
    ));
    for env in envs_before.difference(&envs_after) {
        let chain = chain_of(*env);
        let _ = write!(
            text,
            "flush chain {TABLE} {chain}\ndelete chain {TABLE} {chain}\n"
        );
    }
    text
}

/// Adds or deletes the elements of these instances.
fn elements(verb: &str, platform: Ipv6Addr, endpoints: &[&Endpoint]) -> String {
    let mut text = String::new();
    let mut each = |set: &str, element: &dyn Fn(&Endpoint) -> Option<String>| {
        let elements: Vec<String> = endpoints.iter().filter_map(|e| element(e)).collect();
        if !elements.is_empty() {
            let elements = elements.join(", ");
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{verb} element {TABLE} {set} {{ {elements} }}");
        }
    };
    let of_tap = |endpoint: &Endpoint, what: String| {
        Some(format!("\"{}\" . {what}", tap_name(endpoint.instance)))
    };
    each("ipv6_sources", &|e| of_tap(e, e.address.to_string()));
    each("ipv4_sources", &|e| of_tap(e, e.ipv4.to_string()));
    each("link_local", &|e| {
        of_tap(e, link_local_of(e.instance).to_string())
    });
    each("edge_ports", &|e| {
        let ports = e.edge_ports.iter();
        let ports: Vec<_> = ports
            .map(|port| format!("{} . {port}", e.address))
            .collect();
        (!ports.is_empty()).then(|| ports.join(", "))
    });
    each("env_of_tap", &|e| {
        let env = env_of(e.address);
        let tap = tap_name(e.instance);
        (env != platform).then(|| format!("\"{tap}\" : goto {}", chain_of(env)))
    });
    each("egress_of_tap", &|e| {
        let chain = match e.egress {
            EgressPolicy::All => "egress_all",
            EgressPolicy::Internet => "egress_internet",
            EgressPolicy::None => "refuse",
        };
        Some(format!("\"{}\" : goto {chain}", tap_name(e.instance)))
    });
    text
}
