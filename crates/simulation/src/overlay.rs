//! What members are told of the overlay, and nodes of the envs that they run: kept as the control plane keeps it, and checked after each commit.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::enrollment::Member;
use model::NodeId;
use overlay::topology::HubFaults;
use scheduler::cluster_state::{ClusterState, Instance, InstancePhase, Node};
use scheduler::directory::DirectoryIndex;
use scheduler::leader::Batch;
use scheduler::peers::PeerIndex;

use crate::simulator::Simulator;

/// Names the counting; one does for all terms, because each begins anew and nobody carries a number over.
const SESSION: u64 = 1;

/// What is told, as it is published.
#[derive(Clone, Default)]
pub(crate) struct Told {
    peers: PeerIndex,
    directory: DirectoryIndex,
    /// What does not work of the hubs.
    faults: Arc<HubFaults>,
}

impl Told {
    pub(crate) fn new(cluster: &ClusterState) -> Self {
        Self {
            peers: PeerIndex::new(cluster),
            directory: DirectoryIndex::default(),
            faults: Arc::default(),
        }
    }

    /// Takes a batch that the store has, as `control_plane::commit_loop` does.
    pub(crate) fn update(&mut self, simulator: &Simulator, batch: &Batch) {
        let cluster = &batch.after;
        let nodes = batch.changes.nodes.keys().map(|id| Member::Node(*id));
        let edges = batch.changes.edges.keys().map(|id| Member::Edge(*id));
        let changed: Vec<_> = nodes.chain(edges).collect();
        let everybody = batch.changes.counters.everybody > 0;
        if batch.changes.counters.membership > 0 {
            self.faults = Arc::new(faults(cluster, batch.changes.counters.membership));
        }
        let faults = Arc::clone(&self.faults);
        let concerned = self.peers.update(cluster, &changed, &faults, everybody);
        let nodes = self.directory.update(cluster, &batch.touched);
        if !concerned.is_empty() {
            self.check_peers(simulator, cluster);
        }
        if !nodes.is_empty() {
            self.check_directories(simulator, cluster);
        }
        self.check_at_rest(simulator, cluster, &changed, batch);
    }

    /// Nobody is told of a member that may do nothing, and everybody the same as by one who computes it anew.
    fn check_peers(&self, simulator: &Simulator, cluster: &ClusterState) {
        let mut fresh = PeerIndex::new(cluster);
        fresh.update(cluster, &[], &self.faults, false);
        for id in cluster.nodes.keys() {
            let member = Member::Node(*id);
            let mut told = self.peers.changes(cluster, member, SESSION, None);
            for peer in told.peers.keys() {
                let is_approved = cluster.nodes.get(peer).is_some_and(Node::is_approved);
                if !is_approved {
                    simulator.violate(format!(
                        "{peer} was revoked or removed and is a peer of {member}"
                    ));
                }
            }
            let expected = fresh.changes(cluster, member, SESSION, None);
            told.counter = expected.counter;
            if told != expected {
                simulator.violate(format!(
                    "{member} is told {told:?}, and it should be {expected:?}"
                ));
            }
        }
    }

    /// A node knows all instances of the envs that it runs, and nothing of others.
    fn check_directories(&self, simulator: &Simulator, cluster: &ClusterState) {
        if !cluster.unreadable.is_empty() {
            return;
        }
        for node in cluster.nodes.keys() {
            let told = self.directory.changes(*node, None);
            let told: BTreeSet<_> = (told.envs.values())
                .flat_map(|env| env.instances.keys().copied())
                .collect();
            let expected = expected(cluster, *node);
            if told != expected {
                simulator.violate(format!(
                    "the directory of {node} has {told:?}, and it should have {expected:?}"
                ));
            }
        }
    }

    /// What says nothing new raises nothing, and wakes nobody.
    fn check_at_rest(
        &self,
        simulator: &Simulator,
        cluster: &ClusterState,
        changed: &[Member],
        batch: &Batch,
    ) {
        let mut again = self.clone();
        let woken = again.peers.update(cluster, changed, &self.faults, false);
        let nodes = again.directory.update(cluster, &batch.touched);
        let counters = |told: &Self| (told.peers.counter(), told.directory.counter());
        if !woken.is_empty() || !nodes.is_empty() || counters(&again) != counters(self) {
            simulator.violate(format!(
                "nothing is new, and {woken:?} and {nodes:?} are told of it"
            ));
        }
    }
}

/// Other faults of hubs with each change of the membership: one hub dead, and hubs that some members do not reach. Nothing is drawn, so the same seeds meet
/// the same cases as without.
fn faults(cluster: &ClusterState, membership: u64) -> HubFaults {
    let nodes: Vec<NodeId> = cluster.nodes.keys().copied().collect();
    // Hubs are those with low numbers.
    let hub = |at: u64| {
        usize::try_from(at % 6)
            .ok()
            .and_then(|at| nodes.get(at))
            .copied()
    };
    let members = nodes
        .iter()
        .filter(|id| u64::from(id.0) % 3 == membership % 3);
    HubFaults {
        dead: hub(membership).into_iter().collect(),
        unreached: members
            .filter_map(|id| Some((*id, hub(u64::from(id.0) + membership)?)))
            .collect(),
    }
}

/// The instances that a node is to know: those of every env of which it has one that is not gone.
fn expected(cluster: &ClusterState, node: NodeId) -> BTreeSet<model::InstanceId> {
    let is_gone = |instance: &Instance| matches!(instance.phase, InstancePhase::Gone { .. });
    let there: Vec<_> = (cluster.instances.iter())
        .filter(|(_, instance)| !is_gone(instance))
        .collect();
    let envs: BTreeSet<_> = (there.iter())
        .filter(|(_, instance)| instance.node == node)
        .map(|(_, instance)| instance.spec.env_key())
        .collect();
    there
        .into_iter()
        .filter(|(_, instance)| envs.contains(&instance.spec.env_key()))
        .map(|(id, _)| *id)
        .collect()
}
