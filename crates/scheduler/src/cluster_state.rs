//! What the control plane knows, as one value: the planner's input.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use api::enrollment::Hardware;
use api::node::InstanceReport;
use api::user::RolloutPhase;
use manifest::Manifest;
use model::instance::{InstanceSpec, PinnedImage};
use model::{
    Digest, EnvKey, EnvNetwork, Generation, InstanceId, NodeId, ProcessName, ReleaseNumber,
    Timestamp, VolumeId,
};
use serde::{Deserialize, Serialize};

/// Everything the planner looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterState {
    /// Settings of the whole cluster.
    pub settings: ClusterSettings,
    /// Every node that was not removed.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Every env, those on their way out too.
    pub envs: BTreeMap<EnvKey, Env>,
    /// Every instance that is not forgotten.
    pub instances: BTreeMap<InstanceId, Instance>,
    /// Every volume; they outlive instances, releases and envs.
    pub volumes: BTreeMap<VolumeId, Volume>,
}

impl ClusterState {
    /// The instance that has this volume, one on its way out too: until its node said that it is
    /// gone it may write.
    pub fn user_of(&self, volume: VolumeId) -> Option<&Instance> {
        let has = |instance: &&Instance| instance.spec.volumes.iter().any(|v| v.id == volume);
        self.instances.values().find(has)
    }
}

/// Settings of the whole cluster, made at its birth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSettings {
    /// Random id; state of another cluster is refused.
    pub id: String,
    /// The random ULA /48, as its first address (ADR 0004).
    pub prefix: Ipv6Addr,
    /// MTU of the overlay, the taps and the guests, in bytes.
    pub mtu: u32,
}

/// One node, as the planner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its region.
    pub region: String,
    /// What it has.
    pub hardware: Hardware,
    /// Whether it reported lately. Nothing new is placed on a node that did not.
    pub online: bool,
    /// The generation of its desired state. It grows whenever an instance of this node is created,
    /// begins to leave or is forgotten, and past any larger one that the node reports (the store
    /// was restored from a backup).
    pub generation: Generation,
}

/// One env.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Env {
    /// Its 32 bits of its instances' addresses.
    pub network: EnvNetwork,
    /// Its releases.
    pub releases: BTreeMap<ReleaseNumber, Release>,
    /// The rollout of the newest release, or of the one reverted to.
    pub rollout: Rollout,
    /// Instances wanted, where `scale` set another number than the manifest's `scaling.min`.
    pub scale: BTreeMap<ProcessName, u32>,
    /// True from `destroy` until nothing of it is left.
    pub destroying: bool,
}

/// An immutable (image digest, manifest, secret versions).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The manifest.
    pub manifest: Manifest,
    /// The digest the user gave (ADR 0002).
    pub image_ref_digest: Digest,
    /// The image to run, for each architecture.
    pub resolved: BTreeMap<String, PinnedImage>,
    /// The version of each secret bundle that the manifest names, as it was when this was made.
    #[serde(default)]
    pub secrets: BTreeMap<String, u32>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// How an env gets from one release to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// The release that was deployed last: what `phase` and `reason` are about.
    pub release: ReleaseNumber,
    /// The release whose instances are wanted: `release`, or `previous` after a revert.
    pub wanted: ReleaseNumber,
    /// How far it is.
    pub phase: RolloutPhase,
    /// Why it waits, failed or reverted.
    pub reason: String,
    /// The last release that was rolled out wholly: what a revert goes back to.
    pub previous: Option<ReleaseNumber>,
    /// When it began.
    pub started_at: Timestamp,
}

/// One instance: what was decided, and what its node says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Everything its node needs.
    pub spec: InstanceSpec,
    /// Where it runs.
    pub node: NodeId,
    /// True once it was decided that it goes; it is forgotten when its node says it is gone.
    pub terminating: bool,
    /// When it was planned.
    pub created_at: Timestamp,
    /// What its node last said; absent until it said anything, or when it no longer lists it.
    pub report: Option<InstanceReport>,
    /// True once it was ready at any time: it is then no longer a candidate that never came up.
    pub was_ready: bool,
    /// True once its node, with the stop taken up, said that it is gone; the planner then forgets
    /// it. The rule is [`crate::reports::apply_report`].
    pub stop_acknowledged: bool,
}

/// What a volume belongs to. It is made when an instance first needs it, and found by this again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VolumeKey {
    /// The env. A later env of the same name finds the volume, too.
    pub env: EnvKey,
    /// The process type.
    pub process: ProcessName,
    /// Its name in the manifest.
    pub name: String,
    /// Which of the process type's instances it belongs to, from 0.
    pub ordinal: u32,
}

impl std::fmt::Display for VolumeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            env,
            process,
            name,
            ordinal,
        } = self;
        write!(f, "{name} {ordinal} of {env} {process}")
    }
}

/// One volume: a disk on one node, which only a user deletes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// What it belongs to.
    pub key: VolumeKey,
    /// The node its disk is on, for good.
    pub node: NodeId,
    /// Its size in bytes, for good.
    pub size_bytes: u64,
    /// When it was planned.
    pub created_at: Timestamp,
    /// True once its node said that it has the disk.
    pub made: bool,
    /// True from the user's word until nothing of it is left.
    pub deleting: bool,
    /// True once its node, with the deletion taken up, said that the disk is gone; the planner then
    /// forgets it. The rule is [`crate::reports::apply_volume_report`].
    pub deletion_acknowledged: bool,
}
