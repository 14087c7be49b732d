//! What is to change now.

use contract::instance::InstanceSpec;
use contract::{EnvKey, InstanceId, NodeId, ProcessName, Timestamp};

use crate::world::{Rollout, World};

/// What is to change, and what waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The changes, in order. Empty: nothing is to change.
    pub actions: Vec<Action>,
    /// What waits, and why.
    pub findings: Vec<Finding>,
}

/// One change. Everything in it is chosen; whoever carries it out only obeys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A new instance.
    Create(Box<PlacedInstance>),
    /// An instance begins to leave.
    Leave {
        /// The instance.
        id: InstanceId,
        /// Why, for people.
        reason: String,
    },
    /// An instance is gone; nothing more is kept of it.
    Forget {
        /// The instance.
        id: InstanceId,
    },
    /// A rollout's new state.
    SetRollout {
        /// The env.
        env: EnvKey,
        /// Its rollout from now on.
        rollout: Rollout,
    },
    /// A destroyed env of which nothing is left.
    RemoveEnv {
        /// The env.
        env: EnvKey,
    },
}

/// A new instance and its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedInstance {
    /// Everything its node needs.
    pub spec: InstanceSpec,
    /// Where it runs.
    pub node: NodeId,
    /// When it was planned.
    pub created_at: Timestamp,
}

/// What waits, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The env.
    pub env: EnvKey,
    /// The process type, where it is about one.
    pub process: Option<ProcessName>,
    /// For people.
    pub message: String,
}

/// What is to change in this world at `now`. `draw` gives random numbers for new ids.
pub fn plan(world: &World, now: Timestamp, draw: &mut dyn FnMut() -> u32) -> Plan {
    let _ = (world, now, draw);
    todo!()
}

/// Carries one action out on the world; the store does the same on its tables. The generation of
/// the node concerned grows with each Create, Leave and Forget.
pub fn apply(world: &mut World, action: &Action) {
    let _ = (world, action);
    todo!()
}
