#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;

use model::EdgeId;
use proptest::prelude::*;

use super::*;
use crate::apply::{Command, apply};
use crate::cluster_state::Edge;
use crate::fixtures::cluster;
use model::Timestamp;

const SESSION: u64 = 7;

fn at(number: u16) -> Member {
    Member::Node(NodeId(number))
}

fn underlay(last: u8, nat: bool) -> RecordedUnderlay {
    RecordedUnderlay {
        endpoint: Some(SocketAddr::from(([10, 0, 0, last], 51_820))),
        is_behind_nat: nat,
        is_advertised: false,
        mtu: None,
    }
}

/// Nodes with keys and endpoints, in this many regions.
fn members(count: u16, regions: u16, mode: Mode) -> ClusterState {
    let mut cluster = cluster(count);
    cluster.settings.mode = mode;
    cluster.last_node = count;
    for (id, node) in (1..=count).map(|id| (NodeId(id), id)) {
        let changed = cluster.nodes.get_mut(&id).unwrap();
        changed.region = format!("r{}", node % regions);
        changed.wireguard_key = Some(format!("wg{node}"));
        changed.underlay = Some(underlay((node % 250) as u8, false));
    }
    cluster
}

const HUBS: Mode = Mode::Hubs { local_mesh: 0 };

/// What a member makes of what it is told.
#[derive(Debug, Clone, Default, PartialEq)]
struct Told {
    position: Option<u64>,
    mtu: u32,
    is_hub: bool,
    number: Option<NodeId>,
    peers: BTreeMap<NodeId, Peer>,
    edges: BTreeSet<NodeId>,
}

impl Told {
    fn take(&mut self, changes: OverlayChanges) {
        assert_eq!(changes.session, SESSION);
        assert!(changes.since.is_none() || changes.since == self.position);
        if changes.since.is_none() {
            self.peers.clear();
        }
        self.peers.retain(|id, _| !changes.removed.contains(id));
        self.peers.extend(changes.peers);
        if let Some(edges) = changes.edges {
            self.edges = edges;
        }
        self.position = Some(changes.counter);
        (self.mtu, self.is_hub, self.number) = (changes.mtu, changes.is_hub, changes.number);
    }
}

fn whole(index: &PeerIndex, cluster: &ClusterState, member: Member) -> Told {
    let mut told = Told::default();
    told.take(index.changes(cluster, member, SESSION, None));
    told.position = None;
    told
}

#[derive(Debug, Clone)]
enum Step {
    Endpoint(u16, u8, bool),
    Region(u16, u16),
    Label(u16, Option<&'static str>),
    Revoke(u16),
    Edge(u16),
    Mode(Mode),
    Mtu(u32),
    Faults(BTreeSet<NodeId>, BTreeSet<(NodeId, NodeId)>),
    Nothing(u16),
}

fn step(count: u16) -> impl Strategy<Value = Step> {
    let node = 1..=count;
    prop_oneof![
        (node.clone(), any::<u8>(), any::<bool>())
            .prop_map(|(n, last, nat)| Step::Endpoint(n, last, nat)),
        (node.clone(), 0..3_u16).prop_map(|(n, region)| Step::Region(n, region)),
        (
            node.clone(),
            prop::sample::select(vec![None, Some("preferred"), Some("never")])
        )
            .prop_map(|(n, label)| Step::Label(n, label)),
        node.clone().prop_map(Step::Revoke),
        (1..5_u16).prop_map(Step::Edge),
        prop::sample::select(vec![Mode::Mesh, HUBS, Mode::Hubs { local_mesh: 4 }])
            .prop_map(Step::Mode),
        prop::sample::select(vec![1280, 1420]).prop_map(Step::Mtu),
        (
            prop::collection::btree_set(node.clone().prop_map(NodeId), 0..3),
            prop::collection::btree_set(
                (node.clone().prop_map(NodeId), node.clone().prop_map(NodeId)),
                0..9
            ),
        )
            .prop_map(|(dead, unreached)| Step::Faults(dead, unreached)),
        node.prop_map(Step::Nothing),
    ]
}

/// Takes a step; gives the member that it changes.
fn take(cluster: &mut ClusterState, step: &Step, faults: &mut Arc<HubFaults>) -> Vec<Member> {
    let edit = |cluster: &mut ClusterState,
                number: u16,
                change: &dyn Fn(&mut crate::cluster_state::Node)| {
        change(cluster.nodes.get_mut(&NodeId(number)).unwrap());
        vec![at(number)]
    };
    match step {
        Step::Endpoint(number, last, nat) => edit(cluster, *number, &|node| {
            node.underlay = Some(underlay(*last, *nat));
        }),
        Step::Region(number, region) => {
            edit(cluster, *number, &|node| node.region = format!("r{region}"))
        }
        Step::Label(number, label) => edit(cluster, *number, &|node| {
            let key = HUB_LABEL.parse().unwrap();
            match label {
                Some(value) => drop(node.labels.insert(key, value.parse().unwrap())),
                None => drop(node.labels.remove(&key)),
            }
        }),
        Step::Revoke(number) => {
            let (member, now) = (at(*number), Timestamp(1));
            let _ = apply(cluster, &Command::Revoke { member, now });
            vec![member]
        }
        Step::Edge(number) => {
            let id = EdgeId(*number);
            let edge = Edge {
                name: format!("edge-{number}"),
                region: "r0".to_owned(),
                identity: MemberIdentity::default(),
                number: Some(NodeId(100 + number)),
                wireguard_key: Some(format!("edge{number}")),
                underlay: Some(underlay(*number as u8, false)),
                enrolled_at: Timestamp(0),
            };
            if cluster.edges.remove(&id).is_none() {
                cluster.edges.insert(id, edge);
            }
            vec![Member::Edge(id)]
        }
        Step::Mode(mode) => {
            cluster.settings.mode = *mode;
            Vec::new()
        }
        Step::Mtu(mtu) => {
            cluster.settings.mtu = *mtu;
            Vec::new()
        }
        Step::Faults(dead, unreached) => {
            *faults = Arc::new(HubFaults {
                dead: dead.clone(),
                unreached: unreached.clone(),
            });
            Vec::new()
        }
        Step::Nothing(number) => vec![at(*number)],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn differences_add_up_to_the_whole_and_only_who_is_concerned_is_woken(
        steps in prop::collection::vec((step(9), 1..4_usize), 1..24),
        hubs in any::<bool>(),
    ) {
        let mut cluster = members(9, 2, if hubs { HUBS } else { Mode::Mesh });
        let mut faults = Arc::default();
        let mut index = PeerIndex::new(&cluster);
        let everyone = |cluster: &ClusterState| {
            let nodes = cluster.nodes.keys().map(|id| Member::Node(*id));
            let edges = cluster.edges.keys().map(|id| Member::Edge(*id));
            nodes.chain(edges).collect::<Vec<_>>()
        };
        // Each asks when it is woken, some of them later than others.
        let mut told: BTreeMap<Member, Told> = BTreeMap::new();
        for member in everyone(&cluster) {
            told.entry(member).or_default().take(index.changes(&cluster, member, SESSION, None));
        }
        let mut asleep: BTreeSet<Member> = BTreeSet::new();
        for (round, (step, patience)) in steps.iter().enumerate() {
            let before: Vec<_> = everyone(&cluster)
                .into_iter()
                .map(|member| (member, whole(&index, &cluster, member)))
                .collect();
            let counter = index.counter();
            let changed = take(&mut cluster, step, &mut faults);
            let concerned = index.update(&cluster, &changed, &faults, false);
            prop_assert_eq!(index.counter() > counter, !concerned.is_empty());
            for (member, before) in before {
                let after = whole(&index, &cluster, member);
                if before != after {
                    prop_assert!(concerned.contains(&member), "{member} is not told of {step:?}");
                } else if !matches!(step, Step::Revoke(_) | Step::Edge(_) | Step::Mode(_)) {
                    prop_assert!(!concerned.contains(&member), "{member} is woken for {step:?}, which is nothing to it");
                }
            }
            asleep.extend(concerned);
            if round % patience == 0 {
                for member in std::mem::take(&mut asleep) {
                    let told = told.entry(member).or_default();
                    let position = told.position;
                    told.take(index.changes(&cluster, member, SESSION, position));
                    let mut now = told.clone();
                    now.position = None;
                    prop_assert_eq!(now, whole(&index, &cluster, member));
                }
            }
            // One that knows nothing of the others computes the same.
            let fresh = {
                let mut fresh = PeerIndex::new(&cluster);
                fresh.update(&cluster, &[], &faults, false);
                fresh
            };
            for member in everyone(&cluster) {
                prop_assert_eq!(whole(&fresh, &cluster, member), whole(&index, &cluster, member));
            }
        }
    }
}

#[test]
fn a_revoked_member_is_in_nobodys_peers_and_has_none() {
    for mode in [Mode::Mesh, HUBS] {
        let mut cluster = members(30, 2, mode);
        let mut index = PeerIndex::new(&cluster);
        let number = index
            .topology()
            .hubs()
            .next()
            .map_or(NodeId(1), |(hub, _)| hub);
        let (member, now) = (Member::Node(number), Timestamp(1));
        apply(&mut cluster, &Command::Revoke { member, now }).unwrap();
        let concerned = index.update(&cluster, &[member], &Arc::default(), false);
        assert!(concerned.contains(&member));
        assert!(whole(&index, &cluster, member).peers.is_empty());
        for other in 1..=30 {
            assert!(
                !whole(&index, &cluster, at(other))
                    .peers
                    .contains_key(&number)
            );
        }
    }
}

#[test]
fn who_is_behind_a_nat_keeps_its_mappings_alive_and_is_no_hub() {
    let mut cluster = members(4, 1, HUBS);
    cluster.nodes.get_mut(&NodeId(1)).unwrap().underlay = Some(underlay(1, true));
    let index = PeerIndex::new(&cluster);
    assert!(!index.topology().is_hub(NodeId(1)));
    let peers = whole(&index, &cluster, at(1)).peers;
    assert_eq!(peers.len(), 2);
    assert!(
        peers
            .values()
            .all(|peer| peer.keepalive_seconds == Some(25))
    );
    let peers = whole(&index, &cluster, at(4)).peers;
    assert!(peers.values().all(|peer| peer.keepalive_seconds.is_none()));
}

#[test]
fn a_member_of_before_the_overlay_has_no_place_in_it() {
    let mut cluster = members(3, 1, Mode::Mesh);
    cluster.nodes.get_mut(&NodeId(2)).unwrap().underlay = None;
    let index = PeerIndex::new(&cluster);
    let peers: Vec<_> = whole(&index, &cluster, at(1)).peers.into_keys().collect();
    assert_eq!(peers, [NodeId(3)]);
    let told = whole(&index, &cluster, at(2));
    assert_eq!((told.peers.len(), told.number), (0, Some(NodeId(2))));
}

#[test]
fn a_change_in_a_large_cluster_wakes_few_and_costs_little() {
    for (count, regions) in [(300, 3), (1000, 5)] {
        let mut cluster = members(count, regions, HUBS);
        let mut index = PeerIndex::new(&cluster);
        // A worker is reached elsewhere: its home, and those that would be.
        let worker = (1..=count)
            .find(|number| !index.topology().is_hub(NodeId(*number)))
            .unwrap();
        cluster.nodes.get_mut(&NodeId(worker)).unwrap().underlay = Some(underlay(251, false));
        let concerned = index.update(&cluster, &[at(worker)], &Arc::default(), false);
        assert!((1..=3).contains(&concerned.len()), "{concerned:?}");
        // A report that says nothing new raises nothing.
        let counter = index.counter();
        let all: Vec<_> = cluster.nodes.keys().map(|id| Member::Node(*id)).collect();
        assert!(
            index
                .update(&cluster, &all, &Arc::default(), false)
                .is_empty()
        );
        assert_eq!(index.counter(), counter);
        // Each worker is told two or three peers, whatever the cluster's size.
        let peers = index.changes(&cluster, at(worker), SESSION, None).peers;
        assert!(peers.len() <= 3, "{}", peers.len());
    }
}
