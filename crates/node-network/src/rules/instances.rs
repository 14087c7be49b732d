//! The instances in the rules: elements of named sets, and a chain for each env.

// ring: the two halves of one rule set share its name and its masks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use model::InstanceId;

use super::{ENV_MASK, TABLE};
use crate::names::{link_local_of, tap_name};

/// The sets and the map that the rules look instances up in.
pub(super) const SETS: &str = "\tset ipv6_sources {
\t\ttype ifname . ipv6_addr;
\t}
\tset ipv4_sources {
\t\ttype ifname . ipv4_addr;
\t}
\tset link_local {
\t\ttype ifname . ipv6_addr;
\t}
\tmap env_of_tap {
\t\ttype ifname : verdict;
\t}
";

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
pub(super) fn env_of(address: Ipv6Addr) -> Ipv6Addr {
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

/// What changes from the instances `before` to those `after`. Empty: nothing does.
pub(crate) fn change(
    cluster_prefix: Ipv6Addr,
    before: &BTreeMap<InstanceId, Endpoint>,
    after: &BTreeMap<InstanceId, Endpoint>,
) -> String {
    let differs = |of: &BTreeMap<InstanceId, Endpoint>, endpoint: &Endpoint| {
        of.get(&endpoint.instance) != Some(endpoint)
    };
    let gone: Vec<_> = before.values().filter(|e| differs(after, e)).collect();
    let new: Vec<_> = after.values().filter(|e| differs(before, e)).collect();
    if gone.is_empty() && new.is_empty() {
        return String::new();
    }
    // An instance in network 0 would have the platform's rights: it gets no chain, so no rights.
    let platform = env_of(cluster_prefix);
    let envs = |of: &BTreeMap<InstanceId, Endpoint>| -> BTreeSet<Ipv6Addr> {
        let envs = of.values().map(|endpoint| env_of(endpoint.address));
        envs.filter(|env| *env != platform).collect()
    };
    let (envs_before, envs_after) = (envs(before), envs(after));
    let mut text = elements("delete", platform, &gone);
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
    each("env_of_tap", &|e| {
        let env = env_of(e.address);
        let tap = tap_name(e.instance);
        (env != platform).then(|| format!("\"{tap}\" : goto {}", chain_of(env)))
    });
    text
}
