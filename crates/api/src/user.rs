//! What users and the server say to each other.
//!
//! The server refuses fields of a request that it does not know: a misspelt one would be ignored otherwise. A client
//! ignores fields of an answer that it does not know: the server may be newer.

mod access;
mod lists;
mod logs;
mod network;
mod network_doctor;
mod plan;
mod queries;
mod releases;
mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use guest_protocol::GuestStats;
use model::instance::{ExitEvent, Runs};
use model::{
    Digest, EdgeId, EnvKey, InstanceId, LabelKey, LabelValue, NodeId, OrgName, ProcessName,
    ReleaseNumber, Timestamp, VolumeId,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::enrollment::{EnrollRole, Hardware, Member};
use crate::member::Approval;
use crate::node::{CachedImage, DriverChoice, EgressState, InstanceReport, PullSecret};

pub use access::{
    AppRow, CreateOrgRequest, CreateUserTokenRequest, CreateUserTokenResponse, GrantRequest,
    Grants, MAX_TOKEN_NOTE_BYTES, MAX_TOKENS_OF_A_USER, MAX_USER_TOKEN_SECONDS, MoveAppRequest,
    NotARole, OrgRow, Role, UserRow, UserTokenRow, WhoAmI,
};
pub use lists::{
    AppsQuery, DEFAULT_PAGE, EnvsQuery, InstancesQuery, MAX_PAGE, NodesQuery, Paged,
    UserTokensQuery, UsersQuery, VolumesQuery,
};
pub use logs::{DEFAULT_TAIL, LogsQuery, MAX_LOG_TEXT_BYTES};
pub use network::{NetworkMember, NetworkSettingsRequest, NetworkStatus, NetworkWarning};
pub use network_doctor::{
    DiagnosedMember, DoctorRequest, FindingSeverity, MAX_DOCTOR_MEMBERS, MeasurementState,
    NetworkDiagnosis, NetworkFinding,
};
pub use plan::{ManifestChange, PlanResponse, PlannedPlace, PlannedProcess};
pub use queries::{
    AcknowledgementsQuery, DeployQuery, NewestReleaseQuery, OrgQuery, RegistryQuery, RolloutQuery,
    StatsQuery,
};
pub use releases::{ReleaseDetails, ReleaseRow, RollbackRequest};
pub use run::{
    AttachQuery, DEFAULT_COMMAND_LIFETIME_MS, MAX_COMMAND_LIFETIME_MS, RunRequest, RunResponse,
};

/// A root disk in a node's cache, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageRow {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub node_name: String,
    /// The disk.
    pub cached: CachedImage,
}

/// Logs the cluster in to a registry: the server resolves with it, and nodes pull with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistryLoginRequest {
    /// The registry, as in image references: `ghcr.io`, `docker.io`, `registry.example.com:5000`.
    pub registry: String,
    /// What to show there. It is tried before it is kept.
    #[serde(deserialize_with = "strict_secret")]
    #[schemars(with = "StrictSecret")]
    pub secret: PullSecret,
}

/// [`PullSecret`] as users write it, with no unknown fields; a node ignores those.
#[derive(Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum StrictSecret {
    /// A user's name and password, or an access token in its place.
    Basic {
        /// Name.
        user: String,
        /// Password.
        password: String,
    },
    /// An OAuth2 refresh token.
    IdentityToken {
        /// The token.
        token: String,
    },
}

fn strict_secret<'de, D: serde::Deserializer<'de>>(from: D) -> Result<PullSecret, D::Error> {
    Ok(match StrictSecret::deserialize(from)? {
        StrictSecret::Basic { user, password } => PullSecret::Basic { user, password },
        StrictSecret::IdentityToken { token } => PullSecret::IdentityToken { token },
    })
}

/// A registry that the cluster is logged in to, for people; the secret is never shown again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RegistryRow {
    /// The registry.
    pub registry: String,
    /// As whom; absent for a token.
    pub user: Option<String>,
    /// The name of the user's token that logged it in.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// Asks for a one-time enrollment token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTokenRequest {
    /// What its user becomes.
    pub role: EnrollRole,
    /// Seconds until it expires, 1 to 86400.
    #[schemars(range(min = 1, max = 86_400))]
    pub ttl_seconds: u64,
    /// The region that the machine is in. Absent: the machine says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Whether a user has to approve the machine once it has joined.
    #[serde(default)]
    pub approve: bool,
    /// The node or edge whose place the machine takes, with its name and number: its machine was wiped, or another stands there. Its keys
    /// open nothing from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<Member>,
    /// The org whose apps the node runs, and no other's. Absent: every org's, or those of the node whose place the machine takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org: Option<OrgName>,
    /// The server's URL that the token carries. Absent: the one that the server names itself by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
}

impl CreateTokenRequest {
    /// A token for this role, for any region, without approval.
    pub fn new(role: EnrollRole, ttl_seconds: u64) -> Self {
        Self {
            role,
            ttl_seconds,
            region: None,
            approve: false,
            replaces: None,
            org: None,
            server: None,
        }
    }
}

/// A one-time enrollment token; this is the only time it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreateTokenResponse {
    /// The token, for `platform node join --token-file`. It carries the server's URL and the CA's fingerprint, so that the new
    /// machine finds and knows the right server.
    pub token: String,
    /// By what it is listed and revoked.
    #[serde(default)]
    pub id: String,
    /// What its user becomes.
    pub role: EnrollRole,
    /// When it expires.
    pub expires_at: Timestamp,
}

/// An enrollment token, for people; its secret is never shown again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenRow {
    /// By what it is revoked.
    pub id: String,
    /// What its user becomes.
    pub role: EnrollRole,
    /// The region that the machine is in; absent: the machine says.
    #[serde(default)]
    pub region: Option<String>,
    /// Whether a user has to approve the machine.
    #[serde(default)]
    pub approve: bool,
    /// Whose place the machine takes.
    #[serde(default)]
    pub replaces: Option<Member>,
    /// The org whose apps the node runs, and no other's; absent: every org's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org: Option<OrgName>,
    /// Who made it; absent: a server of a version before did.
    #[serde(default)]
    pub by: Option<String>,
    /// When it expires.
    pub expires_at: Timestamp,
    /// When it was used, if it was.
    pub used_at: Option<Timestamp>,
    /// By whom.
    pub used_by: Option<Member>,
}

/// An edge, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EdgeRow {
    /// The edge.
    pub id: EdgeId,
    /// Its name.
    pub name: String,
    /// Its region.
    pub region: String,
    /// When it joined.
    pub enrolled_at: Timestamp,
    /// When it last asked for routes or for the membership, in this term of the server.
    #[serde(default)]
    pub seen_at: Option<Timestamp>,
    /// Whether it may do anything.
    #[serde(default)]
    pub approval: Approval,
    /// Its key's fingerprint, for people; absent: none is recorded.
    #[serde(default)]
    pub key: Option<String>,
}

/// The cluster's CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CaRow {
    /// The fingerprint of the one that signs, for people to compare.
    pub fingerprint: String,
    /// The certificates of those that are trusted, PEM, the one that signs first: for `client.json`.
    pub pem: String,
    /// Whether one before it is trusted too.
    pub trusts_before: bool,
    /// The counter of the membership with these.
    pub counter: u64,
}

/// Replaces the cluster's CA.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateCaRequest {
    /// Whether the one before is trusted no more; else another one begins to sign.
    #[serde(default)]
    pub finish: bool,
}

/// The answer to a revocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RevokeResponse {
    /// The counter of the membership without it ([`crate::member::MemberState::generation`]).
    pub counter: u64,
    /// Instances that are planned elsewhere.
    pub instances: u32,
}

/// Which members have applied a membership.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Acknowledgements {
    /// Every approved member.
    pub members: Vec<Acknowledgement>,
}

/// Whether one member has applied it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Acknowledgement {
    /// The member.
    pub member: Member,
    /// Its name.
    pub name: String,
    /// Whether it has.
    pub acknowledged: bool,
    /// Whether it has said in this term of the server what it has applied.
    pub heard: bool,
}

/// Asks for a new release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    /// The process types that the release is of; the others stay as they are. Empty: all.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub only: BTreeSet<ProcessName>,
    /// The manifest, as written.
    pub manifest: String,
    /// The image reference; a tag is resolved once, now.
    pub image: String,
}

/// A release that was recorded; its rollout has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeployResponse {
    /// The release.
    pub release: ReleaseNumber,
    /// The digest the reference named or its tag led to (ADR 0002).
    pub image_ref_digest: Digest,
    /// The image manifest's digest for each architecture of the cluster's nodes.
    pub resolved_image_digest: BTreeMap<String, Digest>,
    /// The tag that was resolved, if the reference had one.
    pub pinned_tag: Option<String>,
    /// For people: what is probably not as it is meant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Sets how many instances of processes are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScaleRequest {
    /// Process type to instances.
    pub processes: BTreeMap<ProcessName, u32>,
}

/// How a rollout goes. `revision` changes whenever anything of it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RolloutStatus {
    /// For the next long poll.
    pub revision: u64,
    /// The release rolled out.
    pub release: ReleaseNumber,
    /// How far it is.
    pub phase: RolloutPhase,
    /// Why it waits, failed or reverted; empty when there is nothing to say.
    pub reason: String,
    /// The release that serves meanwhile or after a revert.
    pub previous: Option<ReleaseNumber>,
    /// Its instances.
    pub instances: Vec<InstanceRow>,
}

/// How far a rollout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RolloutPhase {
    /// Instances start, become ready, replace the old.
    Rolling,
    /// Every process type has all its instances ready on this release, and no old one is left.
    Done,
    /// It could not become healthy and there was nothing to go back to.
    Failed,
    /// It could not become healthy; the previous release was kept or restored.
    Reverted,
    /// A newer release took over.
    Superseded,
}

/// One instance, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceRow {
    /// The instance.
    pub id: InstanceId,
    /// Its env.
    pub env: EnvKey,
    /// Its process type.
    pub process: ProcessName,
    /// Its release.
    pub release: ReleaseNumber,
    /// What of the process type it runs.
    #[serde(default, skip_serializing_if = "Runs::is_app")]
    pub runs: Runs,
    /// Its node.
    pub node: NodeId,
    /// The node's name.
    pub node_name: String,
    /// Its address.
    pub address: Ipv6Addr,
    /// Whether it is wanted no longer.
    pub terminating: bool,
    /// Whether its node is not heard any more: then the report is the last there was.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub node_offline: bool,
    /// When it was planned.
    pub created_at: Timestamp,
    /// What its node says; absent until the node has said anything.
    pub report: Option<InstanceReport>,
}

/// One instance that is gone, for people. Its node keeps its log for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EndedRow {
    /// The instance.
    pub id: InstanceId,
    /// Its env, which need not exist any more.
    pub env: EnvKey,
    /// Its process type.
    pub process: ProcessName,
    /// The release that it ran.
    pub release: ReleaseNumber,
    /// The node that it ran on.
    pub node: NodeId,
    /// The node's name; its number once the node was removed.
    pub node_name: String,
    /// When it was planned.
    pub created_at: Timestamp,
    /// When it was known to be gone.
    pub ended_at: Timestamp,
    /// Why it was terminated.
    pub reason: String,
    /// Times it was started again.
    pub restarts: u32,
    /// How its app last ended, where its node said so.
    pub last_exit: Option<ExitEvent>,
    /// Why it failed, where it did.
    pub failure: Option<String>,
}

impl EndedRow {
    /// How it ended: its failure or its app's end, and why it was terminated. On one line unless a failure has several.
    pub fn how(&self) -> String {
        let exit = self.last_exit.as_ref().map(ToString::to_string);
        let what = match (&self.failure, exit) {
            (Some(failure), Some(exit)) if !failure.contains(&exit) => {
                Some(format!("{failure} ({exit})"))
            }
            (Some(failure), _) => Some(failure.clone()),
            (None, exit) => exit,
        };
        let parts = [what.as_deref(), Some(self.reason.as_str())];
        let said = parts.into_iter().flatten().filter(|part| !part.is_empty());
        said.collect::<Vec<_>>().join("; ")
    }
}

/// One node, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeRow {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its region.
    pub region: String,
    /// What it has.
    pub hardware: Hardware,
    /// The driver it uses; absent until it reported.
    pub driver: Option<DriverChoice>,
    /// Whether its instances reach the internet; absent until it reported.
    pub egress: Option<EgressState>,
    /// When it last reported.
    pub seen_at: Option<Timestamp>,
    /// Whether it reported lately.
    pub online: bool,
    /// Whether it has not reported since the server began to lead, and may still do so in time.
    #[serde(default)]
    pub not_heard_yet: bool,
    /// Whether it takes instances.
    #[serde(default)]
    pub scheduling: Scheduling,
    /// Its labels, which process types may ask for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// The org whose apps it runs, and no other's; absent: every org's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org: Option<OrgName>,
    /// Instances placed on it.
    pub instances: u32,
    /// What is promised to its instances and volumes; absent from a server that does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promised: Option<PromisedRow>,
    /// Its /64, as its first address.
    pub prefix: Ipv6Addr,
    /// What of its reports is over the bounds and was left out, field by field, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exceeded: Vec<String>,
    /// What is wrong with who reports as this node, and what to do, for people. Usually none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What runs on it and the store does not know: it was restored from an older backup. It is left running.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown_instances: Vec<InstanceId>,
    /// Whether it may do anything.
    #[serde(default)]
    pub approval: Approval,
    /// Its key's fingerprint, for people; absent: none is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What it says that it has, where that is more than was approved: `hardware` is what counts. Absent: no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed: Option<Hardware>,
    /// What is on it and has a record that the server cannot read. It is left as it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable_records: Vec<UnreadableRow>,
    /// The record of the node itself that the server cannot read, and why, for people; usually absent. Such a node takes nothing. Where
    /// nothing of it can be read, all else of this row is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

/// An instance or a volume of a node with a record that the server cannot read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnreadableRow {
    /// The record, and why it cannot be read, for people.
    pub record: String,
    /// What is counted for it in what is promised on the node, without what runs an instance.
    pub promised: PromisedRow,
    /// Whether any of that is assumed, because the record does not say it.
    pub assumed: bool,
}

/// Whether a node takes instances. A user decides it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scheduling {
    /// It does.
    #[default]
    Schedulable,
    /// It keeps those that it has, and gets no others.
    Cordoned,
    /// It gets no others, and those that it has are replaced on other nodes.
    Draining {
        /// Whether instances with volumes are terminated too. They start again when the node takes instances again: a volume never
        /// moves.
        with_volumes: bool,
    },
}

/// Says whether a node takes instances from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SchedulingRequest {
    /// What is decided.
    pub scheduling: Scheduling,
}

/// Gives a node to an org, or to all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeOrgRequest {
    /// The org whose apps it runs from now on, and no other's. Absent: every org's.
    pub org: Option<OrgName>,
}

/// Sets and removes labels of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelsRequest {
    /// Key to value; `null`: the label is removed. Labels that are not named stay.
    pub labels: BTreeMap<LabelKey, Option<LabelValue>>,
}

/// Asks a node to stop instances that it runs and the store does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StopUnknownRequest {
    /// These; empty: every one that it has reported by now.
    #[serde(default)]
    pub instances: Vec<InstanceId>,
}

/// The answer to [`StopUnknownRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StopUnknownResponse {
    /// The instances that the node is told to stop. They are named until it has said that they are gone.
    pub instances: Vec<InstanceId>,
}

/// The query of [`paths::NODE`](crate::paths::NODE): how a node is removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveNodeQuery {
    /// Whether the node is given up with what it has: its instances are replaced elsewhere, its volumes are deleted, and what was in them
    /// is lost. Only a node that is offline can be. Otherwise only a node that has nothing is removed.
    #[serde(default)]
    pub lost: bool,
}

/// What the instances and volumes of a node are promised, those that terminate among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PromisedRow {
    /// CPU requests, in thousandths of a core.
    pub cpu_millis: u64,
    /// Memory, what runs the instances included, in bytes.
    pub memory_bytes: u64,
    /// Disk: scratch disks, volumes and logs, in bytes.
    pub disk_bytes: u64,
}

/// Most bytes of one file of a secret bundle.
pub const MAX_SECRET_BYTES: usize = 64 * 1024;
/// Most bytes of a secret bundle: names and contents of its files.
pub const MAX_BUNDLE_BYTES: usize = 256 * 1024;
/// Most bytes of all bundles of one process type. On their way into a guest they are three to four
/// times as long, and share [`guest_protocol::MAX_BOOT_FRAME_BYTES`] with the variables.
pub const MAX_PROCESS_SECRETS_BYTES: usize = 512 * 1024;
/// Longest name of a file of a secret bundle, in bytes.
pub const MAX_SECRET_NAME_BYTES: usize = 255;

/// Changes files of a secret bundle: a new version, with the other files as in the newest one.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetSecretsRequest {
    /// File name to content.
    pub set: BTreeMap<String, Vec<u8>>,
    /// Files that the new version does not have.
    #[serde(default)]
    pub unset: Vec<String>,
}

impl std::fmt::Debug for SetSecretsRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SetSecretsRequest")
            .field("set", &self.set.keys())
            .field("unset", &self.unset)
            .finish()
    }
}

/// One secret bundle, for people; the contents of its files are never shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretRow {
    /// The bundle.
    pub name: String,
    /// Its newest version.
    pub version: u32,
    /// The names of that version's files.
    pub files: Vec<String>,
    /// The version that the wanted release runs with; absent when it does not use the bundle.
    pub live: Option<u32>,
    /// When the newest version was made.
    pub created_at: Timestamp,
}

/// One volume, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeRow {
    /// The volume.
    pub id: VolumeId,
    /// Its env, which need not exist any more.
    pub env: EnvKey,
    /// Its process type.
    pub process: ProcessName,
    /// Its name.
    pub name: String,
    /// Which of the process type's instances it belongs to, from 0.
    pub ordinal: u32,
    /// Its size in bytes; on the node it takes what was written to it.
    pub size_bytes: u64,
    /// The node its disk is on.
    pub node: NodeId,
    /// The node's name.
    pub node_name: String,
    /// The instance that has it now.
    pub instance: Option<InstanceId>,
    /// Whether its node said that the disk is there.
    pub made: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// When it was planned.
    pub created_at: Timestamp,
}

/// One env, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EnvRow {
    /// The env.
    pub env: EnvKey,
    /// The newest release.
    pub release: ReleaseNumber,
    /// The release whose instances are wanted: the newest one, or that which a failed rollout went back to. Absent when
    /// it failed and there was none.
    #[serde(default)]
    pub serving: Option<ReleaseNumber>,
    /// How far the rollout of the newest release is.
    pub phase: RolloutPhase,
    /// Wanted instances by process type, and those that are ready or have done their work.
    pub processes: BTreeMap<ProcessName, (u32, u32)>,
    /// Host names that lead to it.
    pub hosts: Vec<String>,
    /// What waits in it, and why, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits: Vec<String>,
    /// A record of it that the server cannot read, and why, for people; usually absent. Nothing of such an env is changed. Where it is the
    /// env's own record, `release` is 0 and `phase` is `failed`: neither is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

/// Longest command with its arguments, in bytes; it travels in the query of a URL.
pub const MAX_EXEC_COMMAND_BYTES: usize = 16 * 1024;

/// The query of [`paths::EXEC`](crate::paths::EXEC): a command to run beside the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecQuery {
    /// Program and arguments, as a JSON array of strings.
    #[serde(with = "json_text")]
    #[schemars(with = "String")]
    pub command: Vec<String>,
    /// Rows of the user's terminal; with `columns`, or neither: then it runs on pipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u16>,
    /// Columns of the user's terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<u16>,
    /// Type of the user's terminal, the value of `TERM`: see [`is_terminal_type`]. Absent: the app's own, else `xterm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal_type: Option<String>,
}

/// Longest type of a terminal, in bytes.
const MAX_TERMINAL_TYPE_BYTES: usize = 64;

/// Whether this can be the type of a terminal, as terminfo names them (`xterm-256color`).
pub fn is_terminal_type(text: &str) -> bool {
    (1..=MAX_TERMINAL_TYPE_BYTES).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/')
}

/// A list as one value of a query.
mod json_text {
    use serde::de::{Deserialize, Deserializer, Error as _};
    use serde::ser::{Error as _, Serializer};

    pub(super) fn serialize<S: Serializer>(list: &[String], to: S) -> Result<S::Ok, S::Error> {
        let text = serde_json::to_string(list).map_err(S::Error::custom)?;
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
        let text = String::deserialize(from)?;
        serde_json::from_str(&text)
            .map_err(|error| D::Error::custom(format!("not a JSON array of strings: {error}")))
    }
}

/// The body of POST [`paths::SIGNAL`](crate::paths::SIGNAL).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SignalRequest {
    /// Signal name or number: `SIGHUP`, `HUP`, `1`.
    pub signal: String,
}

/// The stats of one instance, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StatsRow {
    /// The instance.
    pub id: InstanceId,
    /// Its env.
    pub env: EnvKey,
    /// Its process type.
    pub process: ProcessName,
    /// Its node.
    pub node: NodeId,
    /// The node's name.
    #[serde(default)]
    pub node_name: String,
    /// What its guest says; absent when it did not answer.
    pub stats: Option<GuestStats>,
    /// Why there are none.
    pub reason: Option<String>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_command_travels_as_one_value_of_a_query() {
        let query = ExecQuery {
            command: vec!["sh".to_owned(), "-c".to_owned(), "a & \"b\"".to_owned()],
            rows: Some(24),
            columns: Some(80),
            terminal_type: Some("xterm-256color".to_owned()),
        };
        let value = serde_json::to_value(&query).unwrap();
        assert_eq!(value["command"], r#"["sh","-c","a & \"b\""]"#);
        assert_eq!(serde_json::from_value::<ExecQuery>(value).unwrap(), query);
    }

    #[test]
    fn a_terminal_has_a_type_that_terminfo_could_have() {
        for text in ["xterm", "screen-256color", "rxvt+pcfkeys"] {
            assert!(is_terminal_type(text), "{text}");
        }
        for text in ["", "a b", "../x", "x\u{1b}", &"x".repeat(65)] {
            assert!(!is_terminal_type(text), "{text:?}");
        }
    }
}
