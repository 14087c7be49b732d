//! What a node is to do: its desired state against what it sees.
//!
//! By level and idempotent: asked again with nothing changed, it answers nothing new. A node stops
//! only what is named as a stop, and removes only the volumes that are named. A desired state of another
//! cluster, for another node, older than the applied one, or of a leader of before is refused whole, and then everything goes on
//! as it is.
//!
//! Deliberately absent: how an instance starts and stops ([`crate::instance`]).

use std::collections::{BTreeMap, BTreeSet};

use api::node::DesiredState;
use model::instance::{InstanceSpec, InstanceState};
use model::{Generation, InstanceId, NodeId, Term, VolumeId};

/// What a node knows of itself when it compares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The cluster it enrolled in.
    pub cluster: String,
    /// The node it is.
    pub node: NodeId,
    /// The generation it has applied; 0 before the first.
    pub generation: Generation,
    /// The term of the leader that it was of.
    pub term: Term,
    /// Every instance it knows of.
    pub instances: BTreeMap<InstanceId, SeenInstance>,
    /// Every volume whose disk it has, and whether an instance that it knows of has it.
    pub volumes: BTreeMap<VolumeId, bool>,
}

/// What a node knows of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenInstance {
    /// Where it is in its life.
    pub state: InstanceState,
    /// Whether it was asked to stop ([`crate::instance::Lifecycle::stop_asked`]).
    pub stop_asked: bool,
}

/// One thing for the node to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeAction {
    /// Begin the life of an instance; a stopped one of the same id is reaped first.
    Start(Box<InstanceSpec>),
    /// Ask an instance to stop.
    Stop(InstanceId),
    /// A stopped instance that the control plane has deleted: reap it, its record and logs too.
    Reap(InstanceId),
    /// An instance that the desired state does not name: leave it as it is and report it.
    KeepUnknown(InstanceId),
    /// A volume was deleted: remove its disk.
    RemoveVolume(VolumeId),
}

/// Why a desired state is not applied. Everything goes on as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DesiredRefused {
    /// It is of another cluster.
    #[error("the desired state is of cluster {theirs}, this node belongs to {ours}")]
    OtherCluster {
        /// The cluster this node enrolled in.
        ours: String,
        /// The cluster named.
        theirs: String,
    },
    /// It is for another node.
    #[error("the desired state is for node {theirs}, this is {ours}")]
    OtherNode {
        /// This node.
        ours: NodeId,
        /// The node named.
        theirs: NodeId,
    },
    /// It is older than the applied one, of the same incarnation: a copy of the store was put back by hand, and the server
    /// will count past it once it has this node's report.
    #[error("the desired state has generation {theirs}, generation {ours} is applied already")]
    Older {
        /// The applied generation.
        ours: Generation,
        /// The generation offered.
        theirs: Generation,
    },
    /// It is of a leader of before, which was stopped for a while and does not know yet that another leads.
    #[error(
        "the desired state is of the leader of term {theirs}, one of term {ours} is applied already"
    )]
    OlderTerm {
        /// The term of the applied one.
        ours: Term,
        /// The term offered.
        theirs: Term,
    },
    /// It names an instance twice, or to run and to stop.
    #[error("the desired state names instance {0} twice")]
    NamedTwice(InstanceId),
}

/// What is to be done so that the node comes to the desired state.
pub fn reconcile(desired: &DesiredState, seen: &Seen) -> Result<Vec<NodeAction>, DesiredRefused> {
    if desired.cluster != seen.cluster {
        return Err(DesiredRefused::OtherCluster {
            ours: seen.cluster.clone(),
            theirs: desired.cluster.clone(),
        });
    }
    if desired.node != seen.node {
        return Err(DesiredRefused::OtherNode {
            ours: seen.node,
            theirs: desired.node,
        });
    }
    if desired.generation.is_before(seen.generation) {
        return Err(DesiredRefused::Older {
            ours: seen.generation,
            theirs: desired.generation,
        });
    }
    let same_incarnation = desired.generation.incarnation == seen.generation.incarnation;
    if same_incarnation && desired.term < seen.term {
        return Err(DesiredRefused::OlderTerm {
            ours: seen.term,
            theirs: desired.term,
        });
    }
    let mut named = BTreeSet::new();
    let ids = desired.instances.iter().map(|spec| spec.id);
    let unreadable = desired.unreadable.keys().copied();
    for id in ids.chain(unreadable).chain(desired.stop.iter().copied()) {
        if !named.insert(id) {
            return Err(DesiredRefused::NamedTwice(id));
        }
    }

    let mut actions = Vec::new();
    for (id, instance) in &seen.instances {
        let gone = instance.stop_asked && instance.state == InstanceState::Stopped;
        if desired.stop.contains(id) {
            if !instance.stop_asked {
                actions.push(NodeAction::Stop(*id));
            }
        } else if !named.contains(id) {
            actions.push(if gone {
                NodeAction::Reap(*id)
            } else {
                NodeAction::KeepUnknown(*id)
            });
        }
    }
    for id in &desired.remove_volumes {
        // A volume that an instance still has is removed when the instance is gone.
        if seen.volumes.get(id) == Some(&false) {
            actions.push(NodeAction::RemoveVolume(*id));
        }
    }
    for spec in &desired.instances {
        let start = match seen.instances.get(&spec.id) {
            None => true,
            // Stopped by an earlier desired state, wanted again by a later one.
            Some(known) => known.stop_asked && known.state == InstanceState::Stopped,
        };
        if start {
            actions.push(NodeAction::Start(Box::new(spec.clone())));
        }
    }
    Ok(actions)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use scheduler::fixtures::{process, spec};

    fn wanted(id: u32) -> InstanceSpec {
        InstanceSpec {
            id: InstanceId(id),
            ..spec(process(1))
        }
    }

    fn desired(run: &[u32], stop: &[u32]) -> DesiredState {
        DesiredState {
            cluster: "c".to_owned(),
            node: NodeId(1),
            generation: Generation {
                counter: 5,
                ..Generation::default()
            },
            term: Term(3),
            instances: run.iter().map(|id| wanted(*id)).collect(),
            unreadable: BTreeMap::new(),
            stop: stop.iter().map(|id| InstanceId(*id)).collect(),
            remove_volumes: Vec::new(),
            pinned_images: Vec::new(),
        }
    }

    const RUNNING: InstanceState = InstanceState::Running {
        ready: true,
        started_at: None,
    };

    fn seen(instances: &[(u32, InstanceState, bool)]) -> Seen {
        let known = |(id, state, stop_asked): &(u32, InstanceState, bool)| {
            let (state, stop_asked) = (*state, *stop_asked);
            (InstanceId(*id), SeenInstance { state, stop_asked })
        };
        Seen {
            cluster: "c".to_owned(),
            node: NodeId(1),
            generation: Generation {
                counter: 5,
                ..Generation::default()
            },
            term: Term(3),
            instances: instances.iter().map(known).collect(),
            volumes: BTreeMap::new(),
        }
    }

    #[test]
    fn only_what_is_named_starts_and_stops() {
        let seen = seen(&[
            (1, RUNNING, false),
            (2, RUNNING, false),
            (3, InstanceState::Stopping, true),
            (4, RUNNING, false),
            (5, InstanceState::Stopped, true),
            (6, InstanceState::Stopped, false),
            (7, InstanceState::Stopped, true),
            (8, InstanceState::Stopped, false),
        ]);
        let actions = reconcile(&desired(&[1, 7, 8, 9], &[2, 3, 10]), &seen).unwrap();
        assert_eq!(
            actions,
            [
                NodeAction::Stop(InstanceId(2)),
                NodeAction::KeepUnknown(InstanceId(4)),
                NodeAction::Reap(InstanceId(5)),
                NodeAction::KeepUnknown(InstanceId(6)),
                NodeAction::Start(Box::new(wanted(7))),
                NodeAction::Start(Box::new(wanted(9))),
            ]
        );
    }

    #[test]
    fn an_empty_state_stops_nothing() {
        let seen = seen(&[(1, RUNNING, false)]);
        let actions = reconcile(&desired(&[], &[]), &seen).unwrap();
        assert_eq!(actions, [NodeAction::KeepUnknown(InstanceId(1))]);
    }

    #[test]
    fn a_volume_is_removed_when_it_is_named_and_nobody_has_it() {
        let mut seen = seen(&[]);
        seen.volumes = [1, 2, 3].map(|id| (VolumeId(id), id == 2)).into();
        let mut desired = desired(&[], &[]);
        assert_eq!(reconcile(&desired, &seen).unwrap(), []);
        desired.remove_volumes = [2, 3, 4].map(VolumeId).into();
        let actions = reconcile(&desired, &seen).unwrap();
        assert_eq!(actions, [NodeAction::RemoveVolume(VolumeId(3))]);
    }

    #[test]
    fn a_state_of_a_leader_of_before_is_refused_whatever_its_generation() {
        let seen = seen(&[(1, RUNNING, false)]);
        let mut stale = desired(&[], &[1]);
        stale.term = Term(2);
        stale.generation.counter = 99;
        let refused = reconcile(&stale, &seen).unwrap_err();
        let (ours, theirs) = (Term(3), Term(2));
        assert_eq!(refused, DesiredRefused::OlderTerm { ours, theirs });
        // A leader of later is obeyed, and so is any of a restored store, whose terms may have begun anew.
        let mut newer = desired(&[], &[1]);
        newer.term = Term(4);
        assert_eq!(reconcile(&newer, &seen).unwrap().len(), 1);
        stale.generation.incarnation = model::Incarnation(7);
        assert_eq!(reconcile(&stale, &seen).unwrap().len(), 1);
    }

    #[test]
    fn a_foreign_older_or_contradictory_desired_state_is_refused_whole() {
        let seen = seen(&[]);
        let mut other = desired(&[1], &[]);
        other.cluster = "d".to_owned();
        let refused = reconcile(&other, &seen).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the desired state is of cluster d, this node belongs to c"
        );
        let mut other = desired(&[1], &[]);
        other.node = NodeId(2);
        let refused = reconcile(&other, &seen).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the desired state is for node n2, this is n1"
        );
        let mut older = desired(&[1], &[]);
        older.generation = Generation {
            counter: 4,
            ..Generation::default()
        };
        let refused = reconcile(&older, &seen).unwrap_err();
        let (ours, theirs) = (
            Generation {
                counter: 5,
                ..Generation::default()
            },
            Generation {
                counter: 4,
                ..Generation::default()
            },
        );
        assert_eq!(refused, DesiredRefused::Older { ours, theirs });
        for twice in [
            desired(&[1, 1], &[]),
            desired(&[1], &[1]),
            desired(&[], &[1, 1]),
        ] {
            let refused = reconcile(&twice, &seen).unwrap_err();
            assert_eq!(refused, DesiredRefused::NamedTwice(InstanceId(1)));
        }
    }
}
