//! Who is whose WireGuard peer, and what goes to which (ADR 0004).
//!
//! ```text
//!   mesh                       hubs: two regions
//!
//!   a --- b                    w --+-- H1 ====== H3 --+-- y
//!   | \ / |                        :   ||\\    //||   :
//!   | / \ |                        :   || \\  // ||   :        --  home: all that it sends and gets
//!   c --- d                    v --:-- H2 ====== H4 --:-- z    :   standby: probes only
//!                                                              ==  every hub is every other's peer
//! ```
//!
//! In a mesh everybody is everybody's peer. With hubs, a member has one **home**, a hub of its region, and everything that it sends and
//! gets goes through that. WireGuard drops a packet that comes from another peer than the one to which an answer would go, so both ways have to
//! be the same: a packet goes from the sender to its home, from there to the home of the receiver, and to the receiver. The other hubs of the
//! region are peers too, so that a handshake is there when a home is gone. What goes to them is only their probe address
//! ([`address_plan::probe_address`]), which always takes the direct way.
//!
//! **Edges** are every node's peers, in both modes, and no hub relays for them: nodes let edges in to every env, so a packet of an edge has to come from that edge
//! itself, which WireGuard compares (its /64 is that peer's, and no other's). Edges are no hubs, have no home, and with hubs are no peers of each other.
//!
//! A hub has one peer for each member of its region and one for each other hub, any other node two or three, and those of its region where
//! that is small ([`Mode::Hubs::local_mesh`]). All is computed from members, mode and the [faults](HubFaults) alone: whoever computes it gets the same.
//!
//! Deliberately absent: endpoints, keys, and when a hub is dead.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::sync::Arc;

use model::NodeId;
use serde::{Deserialize, Serialize};

use crate::address_plan::{CLUSTER_PREFIX_BITS, NODE_PREFIX_BITS, node_prefix, probe_address};

/// Up to so many members a mesh is well; beyond, every change concerns too many.
pub const MESH_UP_TO: usize = 50;
/// A region has so many hubs.
pub const HUBS: usize = 2;
/// And so many from [`LARGE_REGION`] members on.
pub const HUBS_OF_A_LARGE_REGION: usize = 3;
/// See [`HUBS_OF_A_LARGE_REGION`].
pub const LARGE_REGION: usize = 100;

/// How the members of a cluster reach one another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Every member is every other's peer: O(n²) peers in all.
    #[default]
    Mesh,
    /// Members peer with the hubs of their region: O(n) peers in all.
    Hubs {
        /// In a region of up to so many members, those that are no hubs are peers of each other too. 0: nowhere.
        #[serde(default)]
        local_mesh: u16,
    },
}

/// Whether a member may be a hub.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum HubRole {
    /// Where its region needs one: those with the lowest numbers first.
    #[default]
    Automatic,
    /// Before all that are [`HubRole::Automatic`].
    Preferred,
    /// Only where nobody else is left in the cluster.
    Never,
}

/// What decides of a member over its peers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// The name of its region.
    pub region: Arc<str>,
    /// Whether it may be a hub.
    pub hub: HubRole,
    /// Whether it is an edge: no hub, and every node's peer.
    pub is_edge: bool,
}

/// What does not work of the hubs for now, whatever they may be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HubFaults {
    /// Those that are no hubs now. Where all of a cluster are dead, none is.
    pub dead: BTreeSet<NodeId>,
    /// A member, and a hub that it alone does not reach: that is no home of it while it has another hub.
    pub unreached: BTreeSet<(NodeId, NodeId)>,
}

/// What goes to a peer, and may come from it (WireGuard's AllowedIPs).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    /// All of the cluster that goes nowhere else.
    Cluster,
    /// A member's /64.
    Member(NodeId),
    /// The probe address of a member whose /64 goes elsewhere.
    Probe(NodeId),
}

impl Route {
    /// The prefix in this cluster, and its length in bits.
    pub fn prefix(self, cluster: Ipv6Addr) -> (Ipv6Addr, u8) {
        match self {
            Self::Cluster => {
                let bits = cluster.to_bits() & (!0 << (128 - u32::from(CLUSTER_PREFIX_BITS)));
                (Ipv6Addr::from_bits(bits), CLUSTER_PREFIX_BITS)
            }
            Self::Member(node) => (node_prefix(cluster, node), NODE_PREFIX_BITS),
            Self::Probe(node) => (probe_address(cluster, node), 128),
        }
    }
}

/// The peers of one member: each with what goes to it, in order.
pub type Peers = BTreeMap<NodeId, Vec<Route>>;

/// Who is a hub, and whose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    mode: Mode,
    /// The members, in the order of their numbers. A topology of thousands is small: each change makes another, which many hold for a while.
    members: Vec<NodeId>,
    /// The nodes of each region, in the order of their numbers.
    regions: BTreeMap<Arc<str>, Vec<NodeId>>,
    edges: BTreeSet<NodeId>,
    /// The hubs of each member that is none, its home first.
    hubs_of: BTreeMap<NodeId, Vec<NodeId>>,
    /// Every hub, with the members whose home it is.
    hubs: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// Every hub, with the members that would come to it.
    standby_for: BTreeMap<NodeId, BTreeSet<NodeId>>,
}

impl Topology {
    /// The topology of these members.
    pub fn new(members: &BTreeMap<NodeId, Member>, mode: Mode, faults: &HubFaults) -> Self {
        let mut topology = Self {
            mode,
            members: Vec::with_capacity(members.len()),
            ..Self::default()
        };
        for (id, member) in members {
            topology.members.push(*id);
            if member.is_edge {
                topology.edges.insert(*id);
                continue;
            }
            let region = topology.regions.entry(member.region.clone()).or_default();
            region.push(*id);
        }
        if matches!(mode, Mode::Hubs { .. }) {
            topology.choose_hubs(members, faults);
        }
        topology
    }

    /// Finds the hubs of each region, and a home for everybody else.
    fn choose_hubs(&mut self, members: &BTreeMap<NodeId, Member>, faults: &HubFaults) {
        let may = |id: &NodeId| members[id].hub != HubRole::Never;
        let mut of_regions =
            self.hubs_by_region(members, |id| may(id) && !faults.dead.contains(id));
        if of_regions.is_empty() {
            of_regions = self.hubs_by_region(members, may);
        }
        if of_regions.is_empty() {
            of_regions = self.hubs_by_region(members, |_| true);
        }
        let everywhere: Vec<NodeId> = of_regions.values().flatten().copied().collect();
        for hub in &everywhere {
            self.hubs.insert(*hub, BTreeSet::new());
            self.standby_for.insert(*hub, BTreeSet::new());
        }
        for (id, member) in members {
            if self.hubs.contains_key(id) || member.is_edge {
                continue;
            }
            // A region without a hub goes to those of others.
            let hubs = of_regions.get(&member.region).unwrap_or(&everywhere);
            let mut hubs = hubs.clone();
            hubs.sort_by_key(|hub| std::cmp::Reverse(weight(*id, *hub)));
            hubs.truncate(HUBS_OF_A_LARGE_REGION);
            // One that it does not reach stays a peer: by that it is noticed when it does.
            hubs.sort_by_key(|hub| faults.unreached.contains(&(*id, *hub)));
            for (place, hub) in hubs.iter().enumerate() {
                let of = if place == 0 {
                    &mut self.hubs
                } else {
                    &mut self.standby_for
                };
                of.entry(*hub).or_default().insert(*id);
            }
            self.hubs_of.insert(*id, hubs);
        }
    }

    /// The hubs of each region that has some, of those that may.
    fn hubs_by_region(
        &self,
        members: &BTreeMap<NodeId, Member>,
        may: impl Fn(&NodeId) -> bool,
    ) -> BTreeMap<Arc<str>, Vec<NodeId>> {
        let regions = self.regions.iter().filter_map(|(region, of_region)| {
            let count = if of_region.len() < LARGE_REGION {
                HUBS
            } else {
                HUBS_OF_A_LARGE_REGION
            };
            let mut hubs: Vec<NodeId> = of_region.iter().filter(|id| may(id)).copied().collect();
            hubs.sort_by_key(|id| (members[id].hub != HubRole::Preferred, *id));
            hubs.truncate(count);
            (!hubs.is_empty()).then(|| (region.clone(), hubs))
        });
        regions.collect()
    }

    /// The members, in the order of their numbers.
    pub fn members(&self) -> impl Iterator<Item = NodeId> {
        self.members.iter().copied()
    }

    /// Whether this is a member.
    pub fn has(&self, member: NodeId) -> bool {
        self.members.binary_search(&member).is_ok()
    }

    /// The hubs, each with the members whose home it is.
    pub fn hubs(&self) -> impl Iterator<Item = (NodeId, &BTreeSet<NodeId>)> {
        self.hubs.iter().map(|(hub, homed)| (*hub, homed))
    }

    /// Whether packets between two members may go by way of hubs, where they are no peers.
    pub fn is_relayed(&self, one: NodeId, other: NodeId) -> bool {
        !self.edges.contains(&one) && !self.edges.contains(&other)
    }

    /// Whether this member relays for others.
    pub fn is_hub(&self, member: NodeId) -> bool {
        self.hubs.contains_key(&member)
    }

    /// The hub through which a member sends and gets everything; absent for a hub, an edge, and in a mesh.
    pub fn home(&self, member: NodeId) -> Option<NodeId> {
        self.hubs_of.get(&member)?.first().copied()
    }

    /// The hubs of a member that is none itself, its home first.
    pub fn hubs_of(&self, member: NodeId) -> &[NodeId] {
        self.hubs_of.get(&member).map_or(&[], Vec::as_slice)
    }

    /// The peers of a member, none where it is none. This costs what there are peers and routes.
    pub fn peers(&self, member: NodeId) -> Peers {
        if !self.has(member) {
            return Peers::new();
        }
        match self.mode {
            Mode::Mesh => {
                let others = self.members.iter().filter(|other| **other != member);
                others
                    .map(|other| (*other, vec![Route::Member(*other)]))
                    .collect()
            }
            Mode::Hubs { .. } if self.edges.contains(&member) => {
                let nodes = self.members.iter().filter(|id| !self.edges.contains(id));
                nodes.map(|id| (*id, vec![Route::Member(*id)])).collect()
            }
            Mode::Hubs { .. } if self.is_hub(member) => self.peers_of_hub(member),
            Mode::Hubs { local_mesh } => {
                let mut peers = self.edges_as_peers();
                let hubs = self.hubs_of.get(&member).into_iter().flatten();
                for (place, hub) in hubs.enumerate() {
                    let route = if place == 0 {
                        Route::Cluster
                    } else {
                        Route::Probe(*hub)
                    };
                    peers.insert(*hub, vec![route]);
                }
                let mut regions = self.regions.values();
                let near = regions.find(|nodes| nodes.binary_search(&member).is_ok());
                let near = near.filter(|near| near.len() <= usize::from(local_mesh));
                for other in near.into_iter().flatten() {
                    if *other != member && !self.is_hub(*other) {
                        peers.insert(*other, vec![Route::Member(*other)]);
                    }
                }
                peers
            }
        }
    }

    fn edges_as_peers(&self) -> Peers {
        let edges = self.edges.iter();
        edges
            .map(|edge| (*edge, vec![Route::Member(*edge)]))
            .collect()
    }

    fn peers_of_hub(&self, hub: NodeId) -> Peers {
        let mut peers = self.edges_as_peers();
        for (other, homed) in &self.hubs {
            if *other == hub {
                for member in homed {
                    peers.insert(*member, vec![Route::Member(*member)]);
                }
            } else {
                let routes = std::iter::once(other).chain(homed);
                peers.insert(*other, routes.map(|id| Route::Member(*id)).collect());
            }
        }
        for member in self.standby_for.get(&hub).into_iter().flatten() {
            peers.insert(*member, vec![Route::Probe(*member)]);
        }
        peers
    }
}

/// How much a member prefers a hub (rendezvous hashing): a hub that comes or goes moves only those whose home it is.
fn weight(member: NodeId, hub: NodeId) -> (u64, NodeId) {
    // SplitMix64: any two numbers that differ are far apart.
    let mut z = (u64::from(member.0) << 16 | u64::from(hub.0)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31), hub)
}

#[cfg(test)]
mod tests;
