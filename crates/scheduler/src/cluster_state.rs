//! What the control plane knows, as one value: the planner's input.
//!
//! [`crate::apply`] is the only code that changes it. The life of an instance here is what the control plane decided and
//! what the node acknowledged; what the VM does is the node's truth ([`Instance::report`]).
//!
//! ```text
//!                  first ready report              Terminate
//!      New ---------------------> Established ---------------+
//!       |                                                    v     no longer there, in a report of the
//!       +----------------------- Terminate ----------> Terminating ----------------------------> Gone --Delete--> (none)
//!                                                            node's current generation
//! ```
//!
//! A volume, whose disk outlives instances, releases and envs:
//!
//! ```text
//!                the disk is there               a user deletes it
//!      Planned -----------------> Made ----------------------+
//!       |                                                    v     no longer there, in a report of the
//!       +------------- a user deletes it -------------> Deleting -----------------> Deleted --DeleteVolume--> (none)
//!                                                            node's current generation
//! ```
//!
//! The instances and volumes of a node that was removed are deleted from any state.

// ring: what is derived of the state follows what changed of it, and a change has records of the state.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use api::enrollment::{EnrollRole, Hardware, Member};
use api::node::{DriverChoice, EgressState, InstanceHolds, MAX_MACHINE_BYTES, MAX_MACHINE_CPUS};
use api::user::RolloutPhase;
pub use api::user::Scheduling;
use manifest::Manifest;
use model::instance::{ExitEvent, PinnedImage};
use model::{
    Digest, EdgeId, EnvKey, EnvNetwork, Generation, Incarnation, InstanceId, LabelKey, LabelValue,
    NodeId, OrgName, ProcessName, ReleaseNumber, Timestamp, UserName, VolumeId,
};
use overlay::private_networks::PrivateNetworks;
use overlay::topology::Mode;
use serde::{Deserialize, Serialize};

pub use crate::instances::{Instance, InstancePhase, Volume, VolumeKey, VolumePhase};

use crate::access::Access;
use crate::changes::Changes;
use crate::event_log::EventLog;
use crate::host_claims::HostClaims;
use crate::instances::{Instances, Volumes};
use crate::keyed_runs::KeyedRuns;
pub use crate::membership::{MemberIdentity, MemberKeys};
use crate::numbers::FreedNumbers;
use crate::table::Table;
use crate::underlay::RecordedUnderlay;
pub use api::member::Approval;

/// Everything the control plane knows of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterState {
    /// Settings of the whole cluster.
    pub settings: ClusterSettings,
    /// The life of the store that this is of: another one after a backup was restored.
    pub incarnation: Incarnation,
    /// Since when deadlines count: when this server began to lead, or its clock was last set. Not stored.
    pub counting_since: Timestamp,
    /// Every node that was not removed.
    pub nodes: Table<NodeId, Node>,
    /// Every edge that was not removed.
    pub edges: Table<EdgeId, Edge>,
    /// The enrollment tokens that were made, those that were used too.
    pub tokens: Table<TokenHash, TokenRecord>,
    /// Orgs, the apps that they own, users and their tokens.
    pub access: Access,
    /// The highest number in the overlay that a node or an edge ever had ([`crate::numbers`]). 0 before the first.
    pub last_node: u16,
    /// The same of edges, by which people call them.
    pub last_edge: u16,
    /// When numbers became free. Not stored.
    pub freed: FreedNumbers,
    /// Every env, those that are being destroyed too.
    pub envs: Table<EnvKey, Env>,
    /// The hosts that the envs claim.
    pub host_claims: HostClaims,
    /// Every instance that is not deleted.
    pub instances: Instances,
    /// Every volume; they outlive instances, releases and envs.
    pub volumes: Volumes,
    /// The newest version of each secret bundle of each env, of envs that have no release yet too.
    pub secrets: Table<EnvKey, BTreeMap<String, u32>>,
    /// The instances that are gone and whose records are still kept ([`crate::ended`]).
    pub ended: Table<InstanceId, EndedInstance>,
    /// The highest env network that was ever given out; 0 before the first.
    pub last_network: EnvNetwork,
    /// Counts the changes of what members are told about each other ([`crate::membership`]).
    pub last_membership: u64,
    /// The events so far, in number.
    pub event_log: EventLog,
    /// Which member has which key.
    pub member_keys: MemberKeys,
    /// The records that this server cannot read. Usually none.
    pub unreadable: Vec<UnreadableRecord>,
}

impl ClusterState {
    /// The generation of a node's desired state; absent when there is no such node.
    pub fn generation(&self, node: NodeId) -> Option<Generation> {
        let counter = self.nodes.get(&node)?.generation;
        Some(Generation {
            incarnation: self.incarnation,
            counter,
        })
    }

    /// Takes over what is not stored: which nodes are heard, since when deadlines count, and when numbers became free.
    pub fn hear_as(&mut self, other: &Self) {
        self.freed.clone_from(&other.freed);
        self.counting_since = other.counting_since;
        let presence_in = |id: &NodeId| other.nodes.get(id).map(|node| node.presence);
        let changed = (self.nodes.iter()).filter_map(|(id, node)| {
            let presence = presence_in(id).unwrap_or_default();
            (node.presence != presence).then_some((*id, presence))
        });
        let changed: Vec<_> = changed.collect();
        for (id, presence) in changed {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.presence = presence;
            }
        }
    }

    /// As it is loaded from a store: nobody was heard yet.
    pub fn clear_presence(&mut self) {
        self.counting_since = Timestamp(0);
        self.freed = FreedNumbers::default();
        for node in self.nodes.values_mut() {
            node.presence = Presence::NotHeardYet;
        }
        for instance in self.instances.values_mut() {
            instance.ready_since = None;
        }
    }

    /// How long a deadline of something on this node has been running that began at `at`, in milliseconds: only the time counts
    /// in which the node is heard, since it was last lost sight of.
    pub fn heard_for(&self, node: NodeId, at: Timestamp, now: Timestamp) -> u64 {
        let from = self.heard_from(node, at, now);
        from.map_or(0, |from| now.millis_since(from))
    }

    /// From when [`Self::heard_for`] counts; absent while the node is not heard.
    pub fn heard_from(&self, node: NodeId, at: Timestamp, now: Timestamp) -> Option<Timestamp> {
        match self.nodes.get(&node)?.presence {
            Presence::Heard { since, .. } => Some(counted_from(at, since, now)),
            Presence::NotHeardYet | Presence::Lapsed { .. } => None,
        }
    }

    /// How long a deadline has been running that began at `at`, in milliseconds: the time before this server led does not count.
    pub fn led_for(&self, at: Timestamp, now: Timestamp) -> u64 {
        now.millis_since(counted_from(at, self.counting_since, now))
    }

    /// Whether this is a member, also when its record cannot be read.
    pub fn has_member(&self, member: Member) -> bool {
        match member {
            Member::Node(id) => self.has_node(id),
            Member::Edge(id) => self.edges.contains_key(&id),
        }
    }

    /// Whether the node is a member, also when its record cannot be read.
    pub fn has_node(&self, node: NodeId) -> bool {
        self.nodes.contains_key(&node) || self.unreadable_node(node).is_some()
    }

    /// Brings the index of keys to what changed of the members.
    pub(crate) fn index_keys(&mut self, changes: &Changes) {
        for id in changes.nodes.keys() {
            let (member, node) = (Member::Node(*id), self.nodes.get(id));
            let identity = node.map(|node| &node.identity);
            let key = node.and_then(|node| node.wireguard_key.as_ref());
            self.member_keys.update(member, identity, key);
        }
        for id in changes.edges.keys() {
            let (member, edge) = (Member::Edge(*id), self.edges.get(id));
            let identity = edge.map(|edge| &edge.identity);
            let key = edge.and_then(|edge| edge.wireguard_key.as_ref());
            self.member_keys.update(member, identity, key);
        }
    }

    pub(crate) fn add_secret_version(&mut self, env: &EnvKey, bundle: &str, version: u32) {
        if let Some(bundles) = self.secrets.get_mut(env) {
            bundles.insert(bundle.to_owned(), version);
        } else {
            let bundles = BTreeMap::from([(bundle.to_owned(), version)]);
            self.secrets.insert(env.clone(), bundles);
        }
    }

    /// The newest version of a secret bundle; 0 where there is none.
    pub fn secret_version(&self, env: &EnvKey, bundle: &str) -> u32 {
        let bundles = self.secrets.get(env);
        let version = bundles.and_then(|bundles| bundles.get(bundle));
        version.copied().unwrap_or(0)
    }

    /// The next version of a secret bundle. A number is not given twice while a release has it: one that is gone back to has what it had, or nothing,
    /// where the bundle was deleted and made anew meanwhile. `None`: the numbers are used up.
    pub fn next_secret_version(&self, env: &EnvKey, bundle: &str) -> Option<u32> {
        let releases = self.envs.get(env).into_iter();
        let releases = releases.flat_map(|env| env.releases.values());
        let named = releases.flat_map(|release| {
            let kept = release.kept.values().map(|kept| &kept.secrets);
            let all = std::iter::once(&release.secrets).chain(kept);
            all.filter_map(|secrets| secrets.get(bundle).copied())
        });
        named
            .chain([self.secret_version(env, bundle)])
            .max()?
            .checked_add(1)
    }

    /// The first unreadable record of this env, if there is one. Such an env is frozen: nothing of it is planned or
    /// changed, because what the record says (which volumes an instance has, which release is wanted) is not known.
    pub fn frozen_by(&self, env: &EnvKey) -> Option<&UnreadableRecord> {
        (self.unreadable.iter()).find(|record| record.env.as_ref() == Some(env))
    }

    /// The first unreadable record of this node itself, if there is one.
    pub fn unreadable_node(&self, node: NodeId) -> Option<&UnreadableRecord> {
        (self.unreadable.iter()).find(|record| record.subject == Subject::Node(node))
    }

    /// The instances whose records cannot be read. Their ids, addresses, volumes and memory stay taken, and their
    /// nodes are never told to stop them.
    pub fn unreadable_instances(&self) -> impl Iterator<Item = (InstanceId, Option<NodeId>)> {
        (self.unreadable.iter()).filter_map(|record| match record.subject {
            Subject::Instance(id) => Some((id, record.node)),
            _ => None,
        })
    }
}

/// A stored record that this server cannot read: a newer server wrote it, or it is damaged. It is kept as it is, and
/// never treated as absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableRecord {
    /// What the record is about.
    pub subject: Subject,
    /// The env it belongs to, where it belongs to one.
    pub env: Option<EnvKey>,
    /// The node it belongs to, where it belongs to one.
    pub node: Option<NodeId>,
    /// What it is counted as on its node; absent where it is of neither an instance nor a volume.
    pub holds: Option<CountedAs>,
    /// Why it cannot be read, for people.
    pub cause: String,
}

/// What the subject of an unreadable record is counted as on its node: what can still be read of the record, and what is
/// assumed of an instance or a volume where that cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CountedAs {
    /// CPU, in thousandths of a core.
    pub cpu_millis: u64,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Scratch disk, or the volume, in bytes.
    pub disk_bytes: u64,
    /// Whether it is an instance, which costs its node's overhead beside.
    pub is_instance: bool,
    /// Whether any of it is assumed.
    pub is_assumed: bool,
}

impl CountedAs {
    /// What an instance is assumed to ask for of the processors, in thousandths of a core, where its record does not say.
    pub const ASSUMED_CPU_MILLIS: u64 = 1000;
    /// The memory that an instance is assumed to have, in bytes, where its record does not say.
    pub const ASSUMED_MEMORY_BYTES: u64 = 1 << 30;
    /// The disk that an instance or a volume is assumed to have, in bytes, where its record does not say.
    pub const ASSUMED_DISK_BYTES: u64 = 10 << 30;
    /// Largest CPU request of an instance, in thousandths of a core: all of the largest machine.
    pub const MAX_CPU_MILLIS: u64 = MAX_MACHINE_CPUS as u64 * 1000;

    /// An instance of which so much can be read: CPU in thousandths of a core, memory and scratch disk in bytes. What no machine has is
    /// not believed.
    pub fn of_instance(
        cpu_millis: Option<u64>,
        memory_bytes: Option<u64>,
        scratch_bytes: Option<u64>,
    ) -> Self {
        let cpu = cpu_millis.filter(|millis| *millis <= Self::MAX_CPU_MILLIS);
        let memory = memory_bytes.filter(|bytes| *bytes <= MAX_MACHINE_BYTES);
        let disk = scratch_bytes.filter(|bytes| *bytes <= MAX_MACHINE_BYTES);
        Self {
            cpu_millis: cpu.unwrap_or(Self::ASSUMED_CPU_MILLIS),
            memory_bytes: memory.unwrap_or(Self::ASSUMED_MEMORY_BYTES),
            disk_bytes: disk.unwrap_or(Self::ASSUMED_DISK_BYTES),
            is_instance: true,
            is_assumed: cpu.is_none() || memory.is_none() || disk.is_none(),
        }
    }

    /// A volume of which the size can be read, in bytes, or not. One that no machine has is not believed.
    pub fn of_volume(size_bytes: Option<u64>) -> Self {
        let size = size_bytes.filter(|bytes| *bytes <= MAX_MACHINE_BYTES);
        Self {
            cpu_millis: 0,
            memory_bytes: 0,
            disk_bytes: size.unwrap_or(Self::ASSUMED_DISK_BYTES),
            is_instance: false,
            is_assumed: size.is_none(),
        }
    }
}

impl std::fmt::Display for UnreadableRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { subject, cause, .. } = self;
        write!(f, "the record of {subject} cannot be read: {cause}")
    }
}

/// What a record is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A node.
    Node(NodeId),
    /// An env.
    Env(EnvKey),
    /// A release of an env.
    Release(EnvKey, ReleaseNumber),
    /// An instance.
    Instance(InstanceId),
    /// A volume.
    Volume(VolumeId),
    /// A row whose key cannot be read, in words.
    Row(String),
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(id) => write!(f, "node {id}"),
            Self::Env(key) => write!(f, "env {key}"),
            Self::Release(key, number) => write!(f, "release {number} of {key}"),
            Self::Instance(id) => write!(f, "instance {id}"),
            Self::Volume(id) => write!(f, "volume {id}"),
            Self::Row(row) => f.write_str(row),
        }
    }
}

/// Settings of the whole cluster: chosen when it is created, all but the first two changed live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSettings {
    /// Random id; state of another cluster is refused.
    pub id: String,
    /// The random ULA /48, as its first address (ADR 0004).
    pub prefix: Ipv6Addr,
    /// MTU of the overlay, the taps and the guests, in bytes.
    pub mtu: u32,
    /// How members reach one another over the overlay.
    #[serde(default)]
    pub mode: Mode,
    /// Which private networks instances of egress `all` reach.
    #[serde(default)]
    pub private_networks: PrivateNetworks,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its region.
    pub region: String,
    /// By what it is known.
    pub identity: MemberIdentity,
    /// What counts of what it has: what it last reported, and no more than was approved.
    pub hardware: Hardware,
    /// What it said that it has when it joined, or when a user last approved what it says.
    pub approved: Hardware,
    /// What it last reported, where that is more than was approved. It is named, and not believed.
    pub claimed: Option<Hardware>,
    /// Its WireGuard public key, base64.
    pub wireguard_key: Option<String>,
    /// How it is reached over the underlay. Absent: it did not say, because its agent is of before the overlay.
    pub underlay: Option<RecordedUnderlay>,
    /// The VMM driver it uses; absent until it reported.
    pub driver: Option<DriverChoice>,
    /// Whether its instances reach networks outside of the cluster; absent until it reported.
    pub egress: Option<EgressState>,
    /// When it last reported something new, or was last heard before it lapsed; absent until it reported.
    pub seen_at: Option<Timestamp>,
    /// When it joined.
    pub enrolled_at: Timestamp,
    /// Whether it is heard. Nothing new is placed on a node that is not. Not stored: only the server that
    /// listens to the nodes knows.
    pub presence: Presence,
    /// Whether it takes instances.
    pub scheduling: Scheduling,
    /// What it runs that the cluster state does not know there, as after a restore. It is counted as promised, and left running until a user has it
    /// stopped. At most [`MAX_REPORTED_INSTANCES`](api::node::MAX_REPORTED_INSTANCES).
    pub unknown: BTreeMap<InstanceId, UnknownInstance>,
    /// What processes may ask for (`labels`). Users set them: what a node says of itself attracts nothing to it.
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// The org whose apps it runs, and no other's. Absent: every org's. Admins of the cluster set it: what a node says of itself attracts nothing to it.
    pub org: Option<OrgName>,
    /// The counter of its desired state's generation ([`ClusterState::generation`]). It grows whenever an instance of this node is created, begins to
    /// terminate or is deleted, and past any larger one that the node reports (the store was restored from a backup).
    pub generation: u64,
}

/// An instance that a node runs and the cluster state does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnknownInstance {
    /// What it holds of its node, as the node says; absent: an agent that does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds: Option<InstanceHolds>,
    /// Whether a user wants it to end.
    #[serde(default)]
    pub stop: bool,
}

impl UnknownInstance {
    /// What it is counted as.
    pub fn counted(self) -> CountedAs {
        let holds = self.holds;
        CountedAs::of_instance(
            holds.map(|holds| holds.cpu_millis),
            holds.map(|holds| holds.memory_bytes),
            holds.map(|holds| holds.disk_bytes),
        )
    }
}

/// Highest counter of a node's desired state that a record may have. Counting up from here no store runs out of numbers; a record that
/// says more is damaged, and cannot be read.
pub const MAX_GENERATION: u64 = 1 << 62;

impl Node {
    /// Whether it may do what nodes do.
    pub fn is_approved(&self) -> bool {
        self.identity.approval == Approval::Approved
    }

    /// Whether a user may give it up with all that it has.
    pub fn may_be_given_up(&self) -> bool {
        self.has_lapsed() || matches!(self.identity.approval, Approval::Revoked { .. })
    }

    /// Takes what it says that it has. More than was approved is named, and not believed: a node that could say what it likes would
    /// attract everybody's instances, and their secrets with them.
    pub fn set_hardware(&mut self, said: &Hardware) {
        // What was approved cannot be read of its record any more: no more is known than it says.
        if self.approved == Hardware::default() {
            self.approved = said.clone();
        }
        // It is measured once the node runs, after it joined.
        if let (None, Some(disk)) = (self.approved.disk, said.disk) {
            self.approved.disk = Some(disk);
        }
        self.hardware = said.within(&self.approved);
        self.claimed = said.exceeds(&self.approved).then(|| said.clone());
    }

    /// Whether it runs apps of this owner; absent: nobody's.
    pub fn takes_apps_of(&self, owner: Option<&OrgName>) -> bool {
        self.org.is_none() || self.org.as_ref() == owner
    }

    /// Whether it reported lately.
    pub fn is_online(&self) -> bool {
        matches!(self.presence, Presence::Heard { .. })
    }

    /// Whether it was heard, or had the time to be, and is not any more. A node that a server has not heard yet is not.
    pub fn has_lapsed(&self) -> bool {
        matches!(self.presence, Presence::Lapsed { .. })
    }
}

/// Whether a node is heard, by the server that leads now. A server that begins to lead knows of no node: nothing is reverted, replaced or
/// torn down because of a node that it has not heard yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Presence {
    /// It has not reported since this server leads, and may still do so in time.
    #[default]
    NotHeardYet,
    /// It reports.
    Heard {
        /// Since when, without a gap.
        since: Timestamp,
        /// The version of the protocol that its agent speaks ([`api::protocol`]).
        protocol: u32,
    },
    /// It does not report any more, or did not in time after this server began to lead.
    Lapsed {
        /// Since when that is known.
        since: Timestamp,
    },
}

/// `at`, or `floor` where that is later. A time that has not come yet was written before the clock was set back.
fn counted_from(at: Timestamp, floor: Timestamp, now: Timestamp) -> Timestamp {
    if at > now { floor } else { at.max(floor) }
}

/// The SHA-256 of an enrollment token's secret.
pub type TokenHash = [u8; 32];

/// A one-time token without its secret, of which the store keeps a hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// What its user becomes.
    pub role: EnrollRole,
    /// When it expires.
    pub expires_at: Timestamp,
    /// When it was used, if it was, and by whom.
    pub used: Option<(Timestamp, Member)>,
    /// The region that the machine is in. Absent: the machine says.
    pub region: Option<String>,
    /// Whether a user has to approve the machine.
    pub approve: bool,
    /// Whose place the machine takes.
    pub replaces: Option<Member>,
    /// Who made it, for people. Absent: it is not known.
    pub by: Option<String>,
    /// The org whose apps the node runs, and no other's. Absent: every org's, or those of the node whose place the machine takes.
    pub org: Option<OrgName>,
}

/// How long the record of a token that expired unused is kept, in milliseconds: it says so to a late caller.
pub const KEPT_EXPIRED_MS: u64 = 24 * 60 * 60 * 1000;

impl TokenRecord {
    /// A token that lets a machine into this role, whichever region it is in.
    pub fn new(role: EnrollRole, expires_at: Timestamp) -> Self {
        Self {
            role,
            expires_at,
            used: None,
            region: None,
            approve: false,
            replaces: None,
            by: None,
            org: None,
        }
    }

    /// Whether its record is kept no longer: it expired unused a day ago.
    pub fn is_prunable(&self, now: Timestamp) -> bool {
        self.used.is_none() && now.millis_since(self.expires_at) > KEPT_EXPIRED_MS
    }
}

/// One edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// Its name.
    pub name: String,
    /// Its region.
    pub region: String,
    /// By what it is known.
    pub identity: MemberIdentity,
    /// Its number in the overlay, of those that nodes have. Absent until it has a WireGuard key: it is of before the overlay.
    pub number: Option<NodeId>,
    /// Its WireGuard public key, base64.
    pub wireguard_key: Option<String>,
    /// How it is reached over the underlay.
    pub underlay: Option<RecordedUnderlay>,
    /// When it joined.
    pub enrolled_at: Timestamp,
}

/// One env.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Env {
    /// Its 32 bits of its instances' addresses.
    pub network: EnvNetwork,
    /// Its releases.
    pub releases: Table<ReleaseNumber, Release>,
    /// The rollout of the newest release, or of the one reverted to.
    pub rollout: Rollout,
    /// Instances wanted, where `scale` set another number than the manifest's `scaling.min`.
    pub scale: BTreeMap<ProcessName, u32>,
    /// True from `destroy` until nothing of it is left.
    pub destroying: bool,
    /// How the rollout of each release ended; absent of one that goes on, and of those of servers of before.
    pub outcomes: BTreeMap<ReleaseNumber, RolloutPhase>,
    /// Runs of commands that were asked for with a key.
    pub runs: KeyedRuns,
}

impl Env {
    /// The newest release that was rolled out wholly, among those before this one that are kept: what a rollback goes to.
    pub fn before(&self, release: ReleaseNumber) -> Option<ReleaseNumber> {
        let mut before = self
            .releases
            .range(..release)
            .rev()
            .map(|(number, _)| *number);
        let is_whole = |number: &ReleaseNumber| {
            self.outcomes.get(number) == Some(&RolloutPhase::Done)
                || self.rollout.previous == Some(*number)
        };
        before.find(is_whole)
    }
}

/// An immutable (image digest, manifest, secret versions).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The process types that it leaves as they were (`platform deploy --only`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kept: BTreeMap<ProcessName, KeptProcess>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it. Absent: a server of before did not write it down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<UserName>,
    /// The image reference as the user gave it. Absent: a server of before did not write it down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The release that this one is the same as, because a user went back to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_to: Option<ReleaseNumber>,
    /// What the caller named the call that made it ([`api::IDEMPOTENCY_KEY`]), so that the same call, made again, makes no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// A digest of the call that had the key, which tells it from another. Absent: a server of before did not write it down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_call: Option<String>,
}

impl Release {
    /// The image of a process, for each architecture.
    pub fn images_of(&self, process: &ProcessName) -> &BTreeMap<String, PinnedImage> {
        let kept = self.kept.get(process);
        kept.map_or(&self.resolved, |kept| &kept.resolved)
    }

    /// The versions of secret bundles that a process has.
    pub fn secrets_of(&self, process: &ProcessName) -> &BTreeMap<String, u32> {
        let kept = self.kept.get(process);
        kept.map_or(&self.secrets, |kept| &kept.secrets)
    }

    /// The variables that a process has beside its own.
    pub fn variables_of(&self, process: &ProcessName) -> &BTreeMap<String, String> {
        let kept = self.kept.get(process);
        kept.map_or(&self.manifest.env, |kept| &kept.env)
    }
}

/// What a process type has of the release in which it was deployed last, where a later release was of others only. The process
/// itself and its routes are in that release's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptProcess {
    /// [`Manifest::env`].
    pub env: BTreeMap<String, String>,
    /// [`Release::resolved`].
    pub resolved: BTreeMap<String, PinnedImage>,
    /// [`Release::secrets`].
    pub secrets: BTreeMap<String, u32>,
}

/// How an env gets from one release to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The release commands that were started, by process type. Nothing else is rolled out before all have completed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub release_commands: BTreeMap<ProcessName, ReleaseCommand>,
}

/// How far a release command is. It is started once and never again, whatever becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReleaseCommand {
    /// It has an instance, or had one.
    Started,
    /// It ended with exit code 0.
    Completed {
        /// When that was known.
        at: Timestamp,
    },
}

/// An instance that is gone. The record says where its log is kept and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedInstance {
    /// Its env, which need not exist any more.
    pub env: EnvKey,
    /// Its process type.
    pub process: ProcessName,
    /// The release that it ran.
    pub release: ReleaseNumber,
    /// The node that it ran on, which keeps its log.
    pub node: NodeId,
    /// When it was planned.
    pub created_at: Timestamp,
    /// When it was known to be gone.
    pub ended_at: Timestamp,
    /// Why it was terminated, for people.
    pub reason: String,
    /// Times it was started again.
    pub restarts: u32,
    /// How its app last ended, where its node said so.
    pub last_exit: Option<ExitEvent>,
    /// Why it failed, where it did.
    pub failure: Option<String>,
}
