//! What a node is to do: its desired state against what it sees.
//!
//! By level and idempotent: asked again with nothing changed, it answers nothing new. A node stops
//! only what is named as a stop. A desired state of another cluster, for another node, or older
//! than the one taken up is refused whole, and then everything goes on as it is.
//!
//! Deliberately absent: how an instance starts and stops ([`crate::instance`]).

use std::collections::{BTreeMap, BTreeSet};

use contract::api::DesiredState;
use contract::instance::{InstanceSpec, InstanceState};
use contract::{Generation, InstanceId, NodeId};

/// What a node knows of itself when it compares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The cluster it enrolled in.
    pub cluster: String,
    /// The node it is.
    pub node: NodeId,
    /// The generation it has taken up; 0 before the first.
    pub generation: Generation,
    /// Every instance it knows of.
    pub instances: BTreeMap<InstanceId, SeenInstance>,
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
    /// Begin the life of an instance; a stopped one of the same id is forgotten first.
    Start(Box<InstanceSpec>),
    /// Ask an instance to stop.
    Stop(InstanceId),
    /// A stopped instance that the control plane has forgotten: forget it, its record and logs too.
    Forget(InstanceId),
    /// An instance that nobody named: leave it as it is and report it.
    KeepUnknown(InstanceId),
}

/// Why a desired state is not taken up. Everything goes on as it is.
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
    /// It is older than the one taken up: the store was restored from a backup, and the control
    /// plane will count past it once it has this node's report.
    #[error("the desired state has generation {theirs}, generation {ours} was taken up already")]
    Older {
        /// The generation taken up.
        ours: Generation,
        /// The generation offered.
        theirs: Generation,
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
    if desired.generation < seen.generation {
        return Err(DesiredRefused::Older {
            ours: seen.generation,
            theirs: desired.generation,
        });
    }
    let mut named = BTreeSet::new();
    let ids = desired.instances.iter().map(|spec| spec.id);
    for id in ids.chain(desired.stop.iter().copied()) {
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
                NodeAction::Forget(*id)
            } else {
                NodeAction::KeepUnknown(*id)
            });
        }
    }
    for spec in &desired.instances {
        let start = match seen.instances.get(&spec.id) {
            None => true,
            // Stopped by an earlier word, wanted again by a later one.
            Some(known) => known.stop_asked && known.state == InstanceState::Stopped,
        };
        if start {
            actions.push(NodeAction::Start(Box::new(spec.clone())));
        }
    }
    Ok(actions)
}
