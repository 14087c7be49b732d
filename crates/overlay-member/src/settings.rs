//! From what the server says to what the interface is set to. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use membership::OverlayState;
use wireguard::settings::{Key, PeerSettings, Prefix, PrivateKey, Settings};

/// Length of the cluster's prefix, in bits.
const CLUSTER_BITS: u8 = overlay::address_plan::CLUSTER_PREFIX_BITS;

/// The interface of this state; absent: this member has no number or no key yet. A peer that cannot be set costs no other: one without a key that can be
/// read is left out, an endpoint within the tunnels is not used, and of a range that two have the first one gets it.
pub(crate) fn of(state: &OverlayState) -> Option<Settings> {
    state.number?;
    let private_key: Key = state.private_key.base64()?.parse().ok()?;
    let inside = Prefix {
        address: state.cluster_prefix,
        bits: CLUSTER_BITS,
    };
    let mut owned = BTreeSet::new();
    let mut peers = BTreeMap::new();
    for (number, peer) in &state.peers {
        let Ok(key) = peer.wireguard_public_key.parse::<Key>() else {
            tracing::warn!(peer = %number, name = peer.name, "a peer has a key that cannot be read; it is left out");
            continue;
        };
        let is_outside = |endpoint: &SocketAddr| match endpoint {
            SocketAddr::V6(v6) => !inside.contains(*v6.ip()),
            SocketAddr::V4(_) => true,
        };
        let allowed = peer.allowed.iter().map(|(address, bits)| Prefix {
            address: *address,
            bits: *bits,
        });
        let settings = PeerSettings {
            endpoint: peer.endpoint.filter(is_outside),
            allowed: allowed.filter(|prefix| owned.insert(*prefix)).collect(),
            keepalive: peer.keepalive_seconds,
        };
        peers.insert(key, settings);
    }
    Some(Settings {
        private_key: PrivateKey(private_key),
        inside,
        peers,
        seen: BTreeMap::new(),
    })
}
