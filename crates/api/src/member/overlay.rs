//! What a member is told of the overlay, and what it says of its place in it (ADR 0004).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use model::NodeId;
use overlay::address_plan::CLUSTER_PREFIX_BITS;
use overlay::private_networks::PrivateNetworks;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The UDP port of a member's WireGuard where nobody chose another.
pub const DEFAULT_OVERLAY_PORT: u16 = 51_820;
/// The bytes that WireGuard adds to a packet over IPv6, which is the larger: 40 of IPv6, 8 of UDP, 32 of its own.
pub const WIREGUARD_OVERHEAD: u32 = 80;
/// The smallest MTU that the overlay may have, in bytes: the least that IPv6 asks for (RFC 8200).
pub const MIN_OVERLAY_MTU: u32 = 1280;
/// The largest MTU that the overlay may have, in bytes: that of an underlay with jumbo frames, without what WireGuard adds.
pub const MAX_OVERLAY_MTU: u32 = 9000 - WIREGUARD_OVERHEAD;
/// How long a member's error may be, in bytes.
pub const MAX_OVERLAY_ERROR_BYTES: usize = 1000;
/// How many links a member may report of.
pub const MAX_REPORTED_LINKS: usize = 4096;
/// Seconds between the keepalives of a member behind a NAT: below the half minute after which NATs begin to forget (RFC 4787, 4.3).
pub const KEEPALIVE_SECONDS: u16 = 25;

/// What changed for a member of the overlay since what it has, or all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayChanges {
    /// Who counts: another one after each change of the leader. A difference is only made of what the same session gave.
    pub session: u64,
    /// Grows within the session with every change.
    pub counter: u64,
    /// The counter of which this is the difference; absent: this is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// The member's own number, the 16 bits of its /64. Absent: it has none yet, because it has named no WireGuard key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<NodeId>,
    /// MTU of the overlay, the taps and the guests, in bytes.
    pub mtu: u32,
    /// Which private networks instances of egress `all` reach. Absent: all, as a server of before the setting means.
    #[serde(default, skip_serializing_if = "PrivateNetworks::is_all")]
    pub private_networks: PrivateNetworks,
    /// Whether it relays for others.
    #[serde(default)]
    pub is_hub: bool,
    /// The peers that are new or other than before.
    #[serde(default)]
    pub peers: BTreeMap<NodeId, Peer>,
    /// Those that are its peers no longer. Empty in a whole one.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub removed: BTreeSet<NodeId>,
    /// Where the server that says this answers, every address of its machine among them where it listens at all: no instance gets there. Empty: a server of
    /// before the field.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub servers: BTreeSet<SocketAddr>,
    /// The numbers of all edges, which reach every instance, peers of this member or not. Absent: they are as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edges: Option<BTreeSet<NodeId>>,
}

/// What kind of member a peer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerKind {
    /// It runs instances.
    #[default]
    Node,
    /// It lets the internet in.
    Edge,
}

/// A WireGuard peer of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name, for people.
    pub name: String,
    /// What kind of member it is.
    #[serde(default)]
    pub kind: PeerKind,
    /// Its WireGuard public key, base64.
    pub wireguard_public_key: String,
    /// Where it was last known to be reached. Absent: it is not known; it may call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives to it. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalive_seconds: Option<u16>,
    /// What goes to it and may come from it (WireGuard's AllowedIPs): prefixes, with their length in bits.
    pub allowed: Vec<(Ipv6Addr, u8)>,
}

impl Peer {
    /// Whether this peer is the member's home: the hub to which all goes that goes to no other peer ([`overlay::topology`]).
    pub fn is_home(&self) -> bool {
        (self.allowed.iter()).any(|(_, bits)| *bits == CLUSTER_PREFIX_BITS)
    }

    /// Whether this peer is reached at its probe address only: a hub that takes the home's place when that is dead, or, to a hub, a member that
    /// would come to it.
    pub fn is_standby(&self) -> bool {
        (self.allowed.iter()).all(|(_, bits)| *bits == 128)
    }
}

/// How a member is reached by others, as far as it knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Underlay {
    /// The UDP port of its WireGuard.
    pub port: u16,
    /// Where its peers reach it, where its operator says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<SocketAddr>,
    /// The address that it sends to the server from. Where the server sees another one, a NAT is between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<IpAddr>,
    /// MTU of its way to the server, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

impl Underlay {
    /// Whether packets of the overlay of this MTU fit into one of the underlay. True where the underlay's MTU is not known.
    pub fn fits(&self, overlay_mtu: u32) -> bool {
        self.mtu
            .is_none_or(|mtu| overlay_mtu + WIREGUARD_OVERHEAD <= mtu)
    }
}

/// What a member says of its place in the overlay: when it starts, when anything of it changed, and now and then.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayReport {
    /// How it is reached.
    pub underlay: Underlay,
    /// Its WireGuard public key, base64. It counts where none is recorded of it: others come with a certificate
    /// ([`super::CertificateRequest`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wireguard_public_key: Option<String>,
    /// What it knows of its links to its peers. At most [`MAX_REPORTED_LINKS`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub links: BTreeMap<NodeId, LinkReport>,
    /// Why its end of the overlay is not as it is to be, for people; absent: it is. At most [`MAX_OVERLAY_ERROR_BYTES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Not sent: up to which change, counted by this agent alone, interface and rules are as they are to be. Absent: they were not made yet.
    #[serde(skip)]
    pub applied: Option<u64>,
}

/// What a member knows of the link to one of its peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LinkReport {
    /// Seconds since the last handshake. Absent: there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_age_seconds: Option<u64>,
    /// Whether the peer's probe address answers in the tunnel. Absent: it is not probed. Members probe their hubs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<bool>,
}
