//! What the planner may decide. Every action is complete: ids, addresses and nodes are chosen.

use std::sync::Arc;

use model::instance::InstanceSpec;
use model::{EnvKey, InstanceId, NodeId, Timestamp, VolumeId};

use crate::cluster_state::{Rollout, VolumeKey};

/// One change. Everything in it is chosen: [`crate::apply`] only carries it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A new volume; the instance that needs it comes next.
    MakeVolume(Box<PlannedVolume>),
    /// The disk of a deleted volume is gone: its record is deleted.
    DeleteVolume {
        /// The volume.
        id: VolumeId,
    },
    /// A new instance.
    Create(Box<PlacedInstance>),
    /// An instance is wanted no longer.
    Terminate {
        /// The instance.
        id: InstanceId,
        /// Why, for people.
        reason: String,
    },
    /// An instance is gone: its record is deleted, and that of an ended instance is made.
    Delete {
        /// The instance.
        id: InstanceId,
        /// When.
        at: Timestamp,
    },
    /// The record of an ended instance is deleted ([`crate::ended::expired`]).
    PruneEnded {
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
    pub spec: Arc<InstanceSpec>,
    /// Where it runs.
    pub node: NodeId,
    /// When it was planned.
    pub created_at: Timestamp,
}

/// A new volume and its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedVolume {
    /// The volume.
    pub id: VolumeId,
    /// What it belongs to.
    pub key: VolumeKey,
    /// Where its disk will be, for good.
    pub node: NodeId,
    /// Its size, in bytes.
    pub size_bytes: u64,
    /// When it was planned.
    pub created_at: Timestamp,
}
