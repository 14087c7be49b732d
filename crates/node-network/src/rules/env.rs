//! An env as the rules know it: what its addresses have in common, and its chain.

use std::net::Ipv6Addr;

/// An address's cluster and env network, with node and instance zero: what the mask of envs leaves.
pub(super) fn env_of(address: Ipv6Addr) -> Ipv6Addr {
    let mut segments = address.segments();
    for segment in [3, 6, 7] {
        segments[segment] = 0;
    }
    Ipv6Addr::from(segments)
}

/// The chain that compares destinations with an env.
pub(super) fn chain_of(env: Ipv6Addr) -> String {
    let [_, _, _, _, high, low, _, _] = env.segments();
    format!("from_env_{high:04x}{low:04x}")
}
