//! Why commands are not carried out.

use crate::access::AccessRefused;
use api::enrollment::Member;
use model::{AppName, EdgeId, EnvKey, InstanceId, NodeId, ReleaseNumber, VolumeId};

/// Most labels of a node.
pub const MAX_NODE_LABELS: usize = 64;
/// Most envs of an app; one that has nothing but secret bundles counts.
pub const MAX_ENVS_OF_AN_APP: usize = 2_000;
/// Most secret bundles of an env.
pub const MAX_BUNDLES_OF_AN_ENV: usize = 256;

/// Why a command was not carried out. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no such node.
    #[error("there is no node {0}")]
    NoNode(NodeId),
    /// The node has instances or volumes, and was to be removed.
    #[error("node {node} still has {instances} instances and {volumes} volumes")]
    NodeNotEmpty {
        /// The node.
        node: NodeId,
        /// Its instances, those that terminate among them.
        instances: usize,
        /// Its volumes.
        volumes: usize,
    },
    /// Records of what the node has cannot be read.
    #[error("{records} records of what node {node} has cannot be read")]
    NodeUnreadable {
        /// The node.
        node: NodeId,
        /// How many.
        records: usize,
    },
    /// The node is there, and was to be given up.
    #[error("node {0} is not lost: it reports, or may report yet")]
    NodeNotLost(NodeId),
    /// The node would have too many labels.
    #[error("a node has at most {MAX_NODE_LABELS} labels, and {0} would have more")]
    TooManyLabels(NodeId),
    /// The number was given already.
    #[error("node {0} is there already")]
    NodeExists(NodeId),
    /// The number was given already.
    #[error("edge {0} is there already")]
    EdgeExists(EdgeId),
    /// The number was given already.
    #[error("the number {0} was given to another member of the overlay")]
    NumberTaken(NodeId),
    /// There is no such edge.
    #[error("there is no edge {0}")]
    NoEdge(EdgeId),
    /// There is no such member.
    #[error("there is no member {0}")]
    NoMember(Member),
    /// The member was revoked.
    #[error("{0} was revoked")]
    MemberRevoked(Member),
    /// The edge was not revoked, and was to be removed.
    #[error("edge {0} is not revoked")]
    EdgeNotRevoked(EdgeId),
    /// Another member has the key, or the member's keys are others than those that the change is of.
    #[error("{0} cannot have this key")]
    KeyTaken(Member),
    /// Another member has the key of WireGuard: with it, this one would take its packets.
    #[error("{0} cannot have this WireGuard key: another member has it")]
    WireguardKeyTaken(Member),
    /// Who may do what does not change so.
    #[error(transparent)]
    Access(#[from] AccessRefused),
    /// There is no such token.
    #[error("there is no such enrollment token")]
    NoToken,
    /// The enrollment token is not known, or another machine joined with it.
    #[error("the enrollment token is spent")]
    TokenSpent,
    /// The version of the secret bundle does not follow its newest one.
    #[error("version {version} of the secret bundle {bundle} of {env} is not the next one")]
    SecretVersion {
        /// The env.
        env: EnvKey,
        /// The bundle.
        bundle: String,
        /// The version.
        version: u32,
    },
    /// There is no such env.
    #[error("there is no env {0}")]
    NoEnv(EnvKey),
    /// The env is there already.
    #[error("env {0} is there already")]
    EnvExists(EnvKey),
    /// The app has as many envs as it may have.
    #[error("app {0} has {MAX_ENVS_OF_AN_APP} envs, and may have no more")]
    TooManyEnvs(AppName),
    /// The env has as many secret bundles as it may have.
    #[error("env {0} has {MAX_BUNDLES_OF_AN_ENV} secret bundles, and may have no more")]
    TooManyBundles(EnvKey),
    /// The env is being destroyed.
    #[error("env {0} is being destroyed")]
    EnvDestroying(EnvKey),
    /// The env is not being destroyed, and was to be removed.
    #[error("env {0} is not being destroyed")]
    EnvNotDestroying(EnvKey),
    /// A record of the env cannot be read, so nothing of it is changed.
    #[error("nothing of env {env} is changed: {record}")]
    EnvFrozen {
        /// The env.
        env: EnvKey,
        /// The record, and why it cannot be read.
        record: String,
    },
    /// The env has an instance, and was to be removed.
    #[error("env {env} still has instance {instance}")]
    EnvNotEmpty {
        /// The env.
        env: EnvKey,
        /// One of its instances.
        instance: InstanceId,
    },
    /// The release is there already.
    #[error("env {env} has a release {number} already")]
    ReleaseExists {
        /// The env.
        env: EnvKey,
        /// The release.
        number: ReleaseNumber,
    },
    /// There is no such instance.
    #[error("there is no instance {0}")]
    NoInstance(InstanceId),
    /// The id is taken.
    #[error("instance {0} is there already")]
    InstanceExists(InstanceId),
    /// The instance is terminating already.
    #[error("instance {0} is terminating already")]
    InstanceTerminating(InstanceId),
    /// Its node has not said that the instance is gone.
    #[error("the node of instance {0} has not said that it is gone")]
    InstanceNotGone(InstanceId),
    /// There is no such record of an ended instance.
    #[error("there is no record of an ended instance {0}")]
    NoEndedInstance(InstanceId),
    /// There is no such volume.
    #[error("there is no volume {0}")]
    NoVolume(VolumeId),
    /// The id is taken, or another volume belongs to the same thing.
    #[error("volume {0} is there already")]
    VolumeExists(VolumeId),
    /// An instance has the volume.
    #[error("volume {volume} belongs to instance {instance}")]
    VolumeInUse {
        /// The volume.
        volume: VolumeId,
        /// The instance.
        instance: InstanceId,
    },
    /// The volume is being deleted already.
    #[error("volume {0} is being deleted already")]
    VolumeDeleting(VolumeId),
    /// Its node has not said that the disk is gone.
    #[error("the node of volume {0} has not said that its disk is gone")]
    VolumeNotDeleted(VolumeId),
    /// There is no such secret bundle.
    #[error("env {env} has no secret bundle {bundle}")]
    NoSecretBundle {
        /// The env.
        env: EnvKey,
        /// The bundle.
        bundle: String,
    },
}
