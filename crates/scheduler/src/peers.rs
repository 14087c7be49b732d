//! What each member is told of the overlay, and who is to be told when something changes (ADR 0004).
//!
//! Who is whose peer is [`overlay::topology`]'s business; this adds keys and endpoints, and counts. Each change that any member sees raises one
//! counter, and what it concerns keeps the number: a member that has applied the changes up to some number is told those above it.
//!
//! ```text
//!   a member's key, endpoint, name ---> its peers            its region, its role, it came or went, a hub does not work
//!                 |                                                              |
//!                 +--> concerned at 8: n1, n2  <--- the members whose peers differ between two topologies
//! ```
//!
//! Nothing of it is stored: it follows from the cluster state. A server that begins to lead counts anew, under another session, and tells every
//! member everything once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::enrollment::Member;
use api::member::{Approval, KEEPALIVE_SECONDS, OverlayChanges, Peer, PeerKind};
use model::NodeId;
use overlay::private_networks::PrivateNetworks;
use overlay::topology::{self, HubFaults, HubRole, Mode, Topology};

use crate::cluster_state::ClusterState;
use crate::membership::MemberIdentity;
use crate::table::Table;
use crate::underlay::RecordedUnderlay;

/// The label of a node that says whether it may be a hub: `preferred` or `never`.
pub const HUB_LABEL: &str = "hub";
/// What that label may be.
pub const HUB_LABEL_VALUES: [&str; 2] = ["preferred", "never"];
/// How many changed links are remembered. Beyond, everything is told once to whoever asks.
const MAX_LINKS: usize = 1 << 20;

/// A member that has a place in the overlay: it is approved, has a key and a number, and said how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Attached {
    member: Member,
    name: String,
    key: String,
    underlay: RecordedUnderlay,
    place: topology::Member,
}

impl Attached {
    /// Whether its peers are told the same of it.
    fn looks_like(&self, other: &Self) -> bool {
        self.member == other.member
            && self.name == other.name
            && self.key == other.key
            && self.underlay.endpoint == other.underlay.endpoint
    }

    fn kind(&self) -> PeerKind {
        match self.member {
            Member::Node(_) => PeerKind::Node,
            Member::Edge(_) => PeerKind::Edge,
        }
    }
}

/// What a member is told of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct OfItself {
    approval: Approval,
    rotates: bool,
    number: Option<NodeId>,
}

/// What every member is told of the overlay. A copy costs nothing.
#[derive(Debug, Clone, Default)]
pub struct PeerIndex {
    /// The newest change.
    counter: u64,
    mode: Mode,
    mtu: u32,
    private_networks: PrivateNetworks,
    faults: Arc<HubFaults>,
    topology: Arc<Topology>,
    /// Each member with when what its peers are told of it last changed.
    attached: Table<NodeId, (Attached, u64)>,
    of_itself: Table<Member, OfItself>,
    /// When what goes from a member to a peer last changed, or when the peer ceased to be one.
    links: Table<(NodeId, NodeId), u64>,
    /// The members that ceased to be everybody's peer in a mesh, by when.
    gone: Table<(u64, NodeId), ()>,
    /// The links before this are forgotten, and who was gone.
    links_begin: u64,
    /// When everything that a member is told changed.
    anew: Table<NodeId, u64>,
    /// The numbers of all edges, and when they last changed.
    edges: Arc<BTreeSet<NodeId>>,
    edges_changed: u64,
    /// When anything changed that a member is told, and not everybody.
    concerned: Table<Member, u64>,
    /// When anything changed that everybody is told who has a place.
    all_concerned: u64,
}

impl PeerIndex {
    /// What members are told in this cluster state.
    pub fn new(cluster: &ClusterState) -> Self {
        let mut index = Self::default();
        let nodes = cluster.nodes.keys().map(|id| Member::Node(*id));
        let edges = cluster.edges.keys().map(|id| Member::Edge(*id));
        let all: Vec<_> = nodes.chain(edges).collect();
        index.update(cluster, &all, &Arc::default(), false);
        index
    }

    /// The newest change.
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// When anything last changed that this member is told; 0: never.
    pub fn concerned_at(&self, member: Member) -> u64 {
        let own = self.concerned.get(&member).copied().unwrap_or(0);
        let number = self.of_itself.get(&member).and_then(|known| known.number);
        let has_place = number.is_some_and(|number| self.member_of(number) == Some(member));
        if has_place {
            own.max(self.all_concerned)
        } else {
            own
        }
    }

    /// Who is a hub, and whose.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The hubs that are taken for dead.
    pub fn dead(&self) -> &BTreeSet<NodeId> {
        &self.faults.dead
    }

    /// The member with a number in the overlay.
    pub fn member_of(&self, number: NodeId) -> Option<Member> {
        self.attached.get(&number).map(|(known, _)| known.member)
    }

    /// Takes notice of what changed: these members, the settings, and what does not work of the hubs. `everybody`: all are told something else, whoever they
    /// are. Gives those that are concerned.
    pub fn update(
        &mut self,
        cluster: &ClusterState,
        changed: &[Member],
        faults: &Arc<HubFaults>,
        everybody: bool,
    ) -> BTreeSet<Member> {
        let next = self.counter + 1;
        let settings = &cluster.settings;
        let mode_changed = self.mode != settings.mode;
        let told_to_all_changed =
            self.mtu != settings.mtu || self.private_networks != settings.private_networks;
        let mut moved = mode_changed || self.faults != *faults;
        let mut concerned = BTreeSet::new();
        let mut seen_otherwise = Vec::new();
        for member in changed {
            moved |= self.take(cluster, *member, next, &mut seen_otherwise, &mut concerned);
        }
        (self.mode, self.mtu) = (settings.mode, settings.mtu);
        if told_to_all_changed {
            self.private_networks.clone_from(&settings.private_networks);
        }
        if moved {
            self.faults = Arc::clone(faults);
            let places = self.attached.iter();
            let places: BTreeMap<_, _> = places
                .map(|(id, (known, _))| (*id, known.place.clone()))
                .collect();
            let topology = Topology::new(&places, self.mode, faults);
            let before = std::mem::replace(&mut self.topology, Arc::new(topology));
            if mode_changed {
                self.tell_anew(next);
            } else {
                self.compare(&before, next, &mut concerned);
            }
            self.take_edges(next);
        }
        for number in seen_otherwise {
            for peer in self.topology.peers(number).keys() {
                concerned.extend(self.member_of(*peer));
            }
        }
        if told_to_all_changed || everybody {
            concerned.extend(self.of_itself.iter().map(|(member, _)| *member));
        }
        if !concerned.is_empty() || self.all_concerned == next {
            self.counter = next;
        }
        for member in &concerned {
            self.concerned.insert(*member, next);
        }
        if self.all_concerned == next {
            // Nothing is noted for each of them: a mesh of thousands would be copied with every member that joins.
            concerned.extend(self.attached.values().map(|(known, _)| known.member));
        }
        if self.links.len() + self.gone.len() > MAX_LINKS {
            self.links.clear();
            self.gone.clear();
            self.links_begin = next;
        }
        concerned
    }

    /// Takes notice of one member. Gives whether the topology may be another.
    fn take(
        &mut self,
        cluster: &ClusterState,
        member: Member,
        next: u64,
        seen_otherwise: &mut Vec<NodeId>,
        concerned: &mut BTreeSet<Member>,
    ) -> bool {
        let of_itself = cluster.identity(member).map(|identity| OfItself {
            approval: identity.approval,
            rotates: identity.rotate_since.is_some(),
            number: number_of(cluster, member),
        });
        let known = self.of_itself.get(&member).cloned();
        let number = known.as_ref().and_then(|known| known.number);
        if known != of_itself {
            concerned.insert(member);
        }
        let now = of_itself.as_ref().and_then(|now| now.number);
        // Nothing is copied for a member that only reported.
        if known != of_itself {
            match of_itself {
                Some(now) => self.of_itself.insert(member, now),
                None => drop(self.of_itself.remove(&member)),
            }
        }
        let mut moved = false;
        // Another number: the one before is nobody's.
        if let Some(before) = number.filter(|before| Some(*before) != now)
            && self.member_of(before) == Some(member)
        {
            self.attached.remove(&before);
            moved = true;
        }
        let Some(number) = now else {
            return moved;
        };
        let before = self.attached.get_shared(&number);
        let before = before.as_deref();
        match attached(cluster, member) {
            Some(now) => {
                let at = match before {
                    Some((before, at)) if before.looks_like(&now) => *at,
                    Some(_) => {
                        seen_otherwise.push(number);
                        next
                    }
                    None => next,
                };
                match before {
                    Some((before, _)) => {
                        moved |= before.place != now.place;
                        // Its keepalives: to each of its peers.
                        if before.underlay.is_behind_nat != now.underlay.is_behind_nat {
                            self.anew.insert(number, next);
                            concerned.insert(member);
                        }
                    }
                    None => moved = true,
                }
                if before.is_none_or(|(before, _)| *before != now) {
                    self.attached.insert(number, (now, at));
                }
            }
            None if before.is_some_and(|(before, _)| before.member == member) => {
                self.attached.remove(&number);
                concerned.insert(member);
                moved = true;
            }
            None => {}
        }
        moved
    }

    /// Everybody is told everything.
    fn tell_anew(&mut self, next: u64) {
        for number in self.attached.keys() {
            self.anew.insert(*number, next);
        }
        self.all_concerned = next;
    }

    /// Finds the members whose peers, or whose own part, differ from those of the topology before.
    fn compare(&mut self, before: &Topology, next: u64, concerned: &mut BTreeSet<Member>) {
        let after = Arc::clone(&self.topology);
        if self.mode == Mode::Mesh {
            // Who is new is told everything, and to the others it is news by what is told of itself.
            for number in after.members().filter(|id| !before.has(*id)) {
                self.anew.insert(number, next);
                self.all_concerned = next;
            }
            for number in before.members().filter(|id| !after.has(*id)) {
                self.gone.insert((next, number), ());
                self.all_concerned = next;
            }
            return;
        }
        for number in after.members() {
            let mut is_concerned = before.is_hub(number) != after.is_hub(number);
            if before.has(number) {
                let (had, has) = (before.peers(number), after.peers(number));
                let ids: BTreeSet<_> = had.keys().chain(has.keys()).copied().collect();
                for other in ids {
                    if had.get(&other) != has.get(&other) {
                        self.links.insert((number, other), next);
                        is_concerned = true;
                    }
                }
            } else {
                self.anew.insert(number, next);
                is_concerned = true;
            }
            if is_concerned {
                concerned.extend(self.member_of(number));
            }
        }
    }

    /// Every node lets every edge in, so each is told when one comes or goes.
    fn take_edges(&mut self, next: u64) {
        let is_edge = |known: &Attached| matches!(known.member, Member::Edge(_));
        let edges = self.attached.iter();
        let edges: BTreeSet<_> = edges
            .filter(|(_, (known, _))| is_edge(known))
            .map(|(id, _)| *id)
            .collect();
        if edges == *self.edges {
            return;
        }
        self.edges = Arc::new(edges);
        self.edges_changed = next;
        self.all_concerned = next;
    }

    /// What a member is told that has applied the changes up to `seen`, where those are of this session; `None`: it knows nothing of it.
    pub fn changes(
        &self,
        cluster: &ClusterState,
        member: Member,
        session: u64,
        seen: Option<u64>,
    ) -> OverlayChanges {
        let number = self.of_itself.get(&member).and_then(|known| known.number);
        let mut changes = OverlayChanges {
            session,
            counter: self.counter,
            since: None,
            number,
            mtu: cluster.settings.mtu,
            private_networks: cluster.settings.private_networks.clone(),
            is_hub: number.is_some_and(|number| self.topology.is_hub(number)),
            peers: BTreeMap::new(),
            removed: BTreeSet::new(),
            servers: BTreeSet::new(),
            edges: None,
        };
        let own = number.and_then(|number| Some((number, self.attached.get(&number)?)));
        let own = own.filter(|(_, (known, _))| known.member == member);
        let Some((number, (known, _))) = own else {
            // It has no place: no peers, whatever it had.
            changes.edges = Some(BTreeSet::new());
            return changes;
        };
        let anew = self.anew.get(&number).copied().unwrap_or(0);
        let since =
            seen.filter(|seen| *seen <= self.counter && *seen >= self.links_begin && *seen >= anew);
        let is_news = |at: u64| since.is_none_or(|since| at > since);
        let peers = self.topology.peers(number);
        if let Some(since) = since {
            let links = self
                .links
                .range((number, NodeId(0))..=(number, NodeId(u16::MAX)));
            let of_links = links.filter(|(_, at)| **at > since);
            let of_links = of_links.map(|((_, other), _)| *other);
            let of_mesh = self.gone.range((since + 1, NodeId(0))..);
            let gone = of_links.chain(of_mesh.map(|((_, other), ())| *other));
            changes.removed = gone.filter(|other| !peers.contains_key(other)).collect();
        }
        for (other, routes) in peers {
            let Some((peer, at)) = self.attached.get(&other) else {
                continue;
            };
            let link = self.links.get(&(number, other)).copied().unwrap_or(0);
            if !is_news((*at).max(link)) {
                continue;
            }
            let prefix = cluster.settings.prefix;
            let is_behind_nat = known.underlay.is_behind_nat;
            let told = Peer {
                name: peer.name.clone(),
                kind: peer.kind(),
                wireguard_public_key: peer.key.clone(),
                endpoint: peer.underlay.endpoint,
                keepalive_seconds: is_behind_nat.then_some(KEEPALIVE_SECONDS),
                allowed: routes.iter().map(|route| route.prefix(prefix)).collect(),
            };
            changes.peers.insert(other, told);
        }
        if is_news(self.edges_changed) {
            changes.edges = Some(self.edges.as_ref().clone());
        }
        changes.since = since;
        changes
    }
}

/// A member's number in the overlay; absent: it has none yet.
pub fn number_of(cluster: &ClusterState, member: Member) -> Option<NodeId> {
    match member {
        Member::Node(id) => cluster.nodes.contains_key(&id).then_some(id),
        Member::Edge(id) => cluster.edges.get(&id)?.number,
    }
}

/// Whether a member may be a hub. Only a node that others reach without its calling them is one by itself, and one that a user prefers.
pub fn hub_role(cluster: &ClusterState, member: Member) -> HubRole {
    let Member::Node(id) = member else {
        return HubRole::Never;
    };
    let Some(node) = cluster.nodes.get(&id) else {
        return HubRole::Never;
    };
    let Some(underlay) = node.underlay else {
        return HubRole::Never;
    };
    let label = (node.labels.iter()).find(|(key, _)| key.as_str() == HUB_LABEL);
    match label.map(|(_, value)| value.as_str()) {
        Some("preferred") => HubRole::Preferred,
        Some("never") => HubRole::Never,
        _ if underlay.is_reachable() => HubRole::Automatic,
        _ => HubRole::Never,
    }
}

/// The member's place in the overlay, where it has one.
fn attached(cluster: &ClusterState, member: Member) -> Option<Attached> {
    let is_approved = |identity: &MemberIdentity| identity.approval == Approval::Approved;
    let (name, region, key, underlay) = match member {
        Member::Node(id) => {
            let node = cluster.nodes.get(&id)?;
            is_approved(&node.identity).then_some(())?;
            (
                &node.name,
                &node.region,
                node.wireguard_key.as_ref()?,
                node.underlay?,
            )
        }
        Member::Edge(id) => {
            let edge = cluster.edges.get(&id)?;
            is_approved(&edge.identity).then_some(())?;
            (
                &edge.name,
                &edge.region,
                edge.wireguard_key.as_ref()?,
                edge.underlay?,
            )
        }
    };
    Some(Attached {
        member,
        name: name.clone(),
        key: key.clone(),
        underlay,
        place: topology::Member {
            region: region.as_str().into(),
            hub: hub_role(cluster, member),
            is_edge: matches!(member, Member::Edge(_)),
        },
    })
}

#[cfg(test)]
#[path = "peers_bench.rs"]
mod bench;
#[cfg(test)]
#[path = "peers_tests.rs"]
mod tests;
