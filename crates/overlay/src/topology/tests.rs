//! Packets are sent as WireGuard would: to the peer with the longest prefix of the destination, and dropped by a receiver whose longest
//! prefix of the source is another peer's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::*;
use crate::address_plan::{node_address, probe_address};

const CLUSTER: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 0, 0, 0, 0, 0);
/// Sender, its home, the home of the receiver, the receiver.
const MAX_HOPS: usize = 3;

fn covers((prefix, bits): (Ipv6Addr, u8), address: Ipv6Addr) -> bool {
    let differ = prefix.to_bits() ^ address.to_bits();
    differ.leading_zeros() >= u32::from(bits)
}

/// The peer to which an address goes.
fn next(peers: &Peers, address: Ipv6Addr) -> Option<NodeId> {
    let routes = (peers.iter()).flat_map(|(peer, routes)| routes.iter().map(move |r| (*peer, *r)));
    let covering = routes.filter_map(|(peer, route)| {
        let prefix = route.prefix(CLUSTER);
        covers(prefix, address).then_some((prefix.1, peer))
    });
    covering.max().map(|(_, peer)| peer)
}

/// All members, each with its peers.
struct Overlay(BTreeMap<NodeId, Peers>);

impl Overlay {
    fn new(topology: &Topology) -> Self {
        let members = topology.members.iter();
        Self(members.map(|id| (*id, topology.peers(*id))).collect())
    }

    /// The members through which a packet goes to `to`, that too.
    fn path(
        &self,
        from: (NodeId, Ipv6Addr),
        to: (NodeId, Ipv6Addr),
    ) -> Result<Vec<NodeId>, String> {
        let (mut at, mut path) = (from.0, Vec::new());
        while at != to.0 {
            let then = next(&self.0[&at], to.1).ok_or(format!("{at} has no route to {}", to.0))?;
            if next(&self.0[&then], from.1) != Some(at) {
                return Err(format!("{then} drops what {} sends by {at}", from.0));
            }
            path.push(then);
            if path.len() > MAX_HOPS {
                return Err(format!("{} reaches {} by {path:?}", from.0, to.0));
            }
            at = then;
        }
        Ok(path)
    }

    fn check(&self, from: NodeId, to: NodeId) -> Result<(), String> {
        let own = |id| (id, node_address(CLUSTER, id));
        self.path(own(from), own(to)).map(|_| ())
    }
}

fn members() -> impl Strategy<Value = BTreeMap<NodeId, Member>> {
    let hub = prop_oneof![
        4 => Just(HubRole::Automatic),
        1 => Just(HubRole::Preferred),
        1 => Just(HubRole::Never),
    ];
    let is_edge = prop::bool::weighted(0.1);
    let member = (0_u8..4, hub, is_edge).prop_map(|(region, hub, is_edge)| Member {
        region: format!("region-{region}").into(),
        hub,
        is_edge,
    });
    prop::collection::btree_map((1_u16..200).prop_map(NodeId), member, 1..40)
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![
        Just(Mode::Mesh),
        (0_u16..20).prop_map(|local_mesh| Mode::Hubs { local_mesh }),
    ]
}

fn dead_hubs(dead: BTreeSet<NodeId>) -> HubFaults {
    HubFaults {
        dead,
        ..HubFaults::default()
    }
}

fn faults() -> impl Strategy<Value = HubFaults> {
    let id = || (1_u16..200).prop_map(NodeId);
    let dead = prop::collection::btree_set(id(), 0..20);
    let unreached = prop::collection::btree_set((id(), id()), 0..400);
    (dead, unreached).prop_map(|(dead, unreached)| HubFaults { dead, unreached })
}

proptest! {
    #[test]
    fn everybody_reaches_everybody_without_a_loop(
        members in members(), mode in mode(), faults in faults(),
    ) {
        let topology = Topology::new(&members, mode, &faults);
        let overlay = Overlay::new(&topology);
        for from in members.keys() {
            for to in members.keys() {
                let are_edges = members[from].is_edge && members[to].is_edge;
                if are_edges && from != to && mode != Mode::Mesh {
                    prop_assert!(overlay.check(*from, *to).is_err(), "edges have no business with each other");
                } else if let Err(what) = overlay.check(*from, *to) {
                    prop_assert!(false, "{what}");
                }
            }
        }
    }

    #[test]
    fn peers_are_mutual_and_no_prefix_has_two(members in members(), mode in mode(), faults in faults()) {
        let topology = Topology::new(&members, mode, &faults);
        let overlay = Overlay::new(&topology);
        for (id, peers) in &overlay.0 {
            let mut prefixes = BTreeSet::new();
            for (peer, routes) in peers {
                prop_assert!(peer != id && overlay.0[peer].contains_key(id), "{peer} is no peer of {id}");
                prop_assert!(!routes.is_empty());
                for route in routes {
                    prop_assert!(prefixes.insert(route.prefix(CLUSTER)), "{id}: two have {route:?}");
                    prop_assert!(*route != Route::Member(*id), "{id} sends itself away");
                }
            }
        }
    }

    #[test]
    fn nobody_sends_as_an_edge_but_the_edge(members in members(), mode in mode(), faults in faults()) {
        let overlay = Overlay::new(&Topology::new(&members, mode, &faults));
        let is_edge = |id: &&NodeId| members[id].is_edge;
        for edge in members.keys().filter(is_edge) {
            for node in members.keys().filter(|id| !is_edge(id)) {
                prop_assert_eq!(next(&overlay.0[node], node_address(CLUSTER, *edge)), Some(*edge));
            }
        }
    }

    #[test]
    fn probes_take_the_direct_way(members in members(), mode in mode(), faults in faults()) {
        let overlay = Overlay::new(&Topology::new(&members, mode, &faults));
        let probe = |id| (id, probe_address(CLUSTER, id));
        for (from, peers) in &overlay.0 {
            for to in peers.keys() {
                prop_assert_eq!(overlay.path(probe(*from), probe(*to)), Ok(vec![*to]));
            }
        }
    }

    #[test]
    fn one_that_does_not_reach_its_home_has_another_and_nobody_else_moves(
        members in members(), which in any::<prop::sample::Index>(),
    ) {
        let mode = Mode::Hubs { local_mesh: 0 };
        let before = Topology::new(&members, mode, &HubFaults::default());
        let homed: Vec<_> = members.keys().filter(|id| before.hubs_of(**id).len() > 1).copied().collect();
        prop_assume!(!homed.is_empty());
        let member = homed[which.index(homed.len())];
        let home = before.home(member).unwrap();
        let unreached = BTreeSet::from([(member, home)]);
        let after = Topology::new(&members, mode, &HubFaults { unreached, ..HubFaults::default() });
        prop_assert!(after.home(member).is_some_and(|other| other != home));
        // It is probed on.
        prop_assert_eq!(&after.peers(member)[&home], &vec![Route::Probe(home)]);
        for other in members.keys().filter(|other| **other != member) {
            prop_assert_eq!(before.home(*other), after.home(*other));
        }
        // Of what others send, only hubs change anything.
        for other in members.keys().filter(|other| **other != member && !after.is_hub(**other)) {
            prop_assert_eq!(before.peers(*other), after.peers(*other));
        }
    }

    #[test]
    fn a_hub_that_is_gone_moves_those_whose_home_it_is_and_nobody_else(
        members in members(), which in any::<prop::sample::Index>(),
    ) {
        let mode = Mode::Hubs { local_mesh: 0 };
        let before = Topology::new(&members, mode, &HubFaults::default());
        let hubs: Vec<_> = before.hubs.keys().copied().collect();
        // Edges alone have none.
        prop_assume!(!hubs.is_empty());
        let dead = hubs[which.index(hubs.len())];
        let after = Topology::new(&members, mode, &dead_hubs([dead].into()));
        let mut others = members.iter().filter(|(id, member)| **id != dead && !member.is_edge);
        prop_assert!(!after.is_hub(dead) || others.all(|(_, member)| member.hub == HubRole::Never));
        for id in members.keys().filter(|id| **id != dead) {
            let (home, moved) = (before.home(*id), after.home(*id));
            let new_hub = |hub: NodeId| !before.is_hub(hub);
            // Where another takes the place of the dead one, it may get some of the others', too.
            prop_assert!(
                home == moved || home == Some(dead) || moved.is_none_or(new_hub) || home.is_none_or(|home| !after.is_hub(home)),
                "{id} was at {home:?} and is at {moved:?}, and {dead} is gone"
            );
        }
    }
}

fn large(count: u16, regions: u16) -> BTreeMap<NodeId, Member> {
    let member = |id: u16| Member {
        region: format!("region-{}", id % regions).into(),
        ..Member::default()
    };
    (1..=count).map(|id| (NodeId(id), member(id))).collect()
}

#[test]
fn hubs_keep_a_thousand_members_to_a_few_peers_each() {
    const MEMBERS: u16 = 1000;
    for regions in [1, 4, 20] {
        let members = large(MEMBERS, regions);
        let topology = Topology::new(
            &members,
            Mode::Hubs { local_mesh: 0 },
            &HubFaults::default(),
        );
        let overlay = Overlay::new(&topology);
        let of_hubs = usize::from(MEMBERS / regions) + topology.hubs.len();
        let mut all = 0;
        for (id, peers) in &overlay.0 {
            all += peers.len();
            let most = if topology.is_hub(*id) {
                of_hubs
            } else {
                HUBS_OF_A_LARGE_REGION
            };
            assert!(peers.len() <= most, "{id} has {} peers", peers.len());
        }
        let hubs = topology.hubs.len();
        assert!(all <= 2 * 3 * usize::from(MEMBERS) + hubs * hubs, "{all}");
        // No hub has much more to do than another.
        for (hub, homed) in &topology.hubs {
            let fair = usize::from(MEMBERS) / hubs;
            assert!(
                homed.len() < 2 * fair,
                "{hub} is the home of {}",
                homed.len()
            );
        }
        for (from, to) in (1..=MEMBERS).zip((1..=MEMBERS).map(|id| id * 7 % MEMBERS + 1)) {
            overlay.check(NodeId(from), NodeId(to)).unwrap();
        }
    }
}

#[test]
fn a_member_more_concerns_the_hubs_and_itself_only() {
    let mode = Mode::Hubs { local_mesh: 0 };
    let before = Topology::new(&large(400, 4), mode, &HubFaults::default());
    let after = Topology::new(&large(401, 4), mode, &HubFaults::default());
    let changed = (before.members.iter()).filter(|id| before.peers(**id) != after.peers(**id));
    let changed: Vec<_> = changed.collect();
    assert_eq!(changed, after.hubs.keys().collect::<Vec<_>>());
}

#[test]
fn a_cluster_in_which_nobody_may_be_a_hub_has_some_all_the_same() {
    let mut members = large(5, 2);
    for member in members.values_mut() {
        member.hub = HubRole::Never;
    }
    let topology = Topology::new(
        &members,
        Mode::Hubs { local_mesh: 0 },
        &HubFaults::default(),
    );
    assert!(topology.home(NodeId(5)).is_some());
    let all_dead: BTreeSet<_> = members.keys().copied().collect();
    let members = large(5, 2);
    let topology = Topology::new(&members, Mode::Hubs { local_mesh: 0 }, &dead_hubs(all_dead));
    assert!(topology.home(NodeId(5)).is_some());
}
