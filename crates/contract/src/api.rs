//! Messages of the one HTTPS API. Paths are in [`paths`]; bodies are JSON.
//!
//! Three kinds of callers: users with a bearer token, nodes and edges with the client certificate
//! they got when they enrolled, and whoever holds a one-time token, for [`EnrollRequest`] only.
//! Nodes and edges only dial out: they fetch their whole desired state by long poll, and report.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::calls::ExecWanted;
use crate::ids::{
    Digest, EdgeId, EnvKey, Generation, InstanceId, NodeId, ProcessName, ReleaseNumber, Timestamp,
    VolumeId,
};
use crate::instance::{ExitEvent, InstanceSpec, InstanceState, PinnedImage, ProxyProtocol};

/// Paths of the API. `{app}` and so on are axum's captures.
pub mod paths {
    /// GET, anyone: 200 when the server answers. POST nothing else.
    pub const HEALTH: &str = "/v1/health";
    /// POST [`super::EnrollRequest`] -> [`super::EnrollResponse`].
    pub const ENROLL: &str = "/v1/enroll";
    /// GET, a node: `?after=GENERATION&wait_ms=N` -> [`super::DesiredState`], or 204 when nothing
    /// newer came within the wait.
    pub const NODE_DESIRED: &str = "/v1/node/desired";
    /// POST, a node: [`super::NodeReport`].
    pub const NODE_REPORT: &str = "/v1/node/report";
    /// GET, a node: `?wait_ms=N` -> `Vec<StreamRequest>`: streams it is asked to open.
    pub const NODE_STREAMS: &str = "/v1/node/streams";
    /// POST, a node: the body is the stream: lines of JSON ([`super::LogLine`]), or one answer of
    /// [`crate::calls`]. GET with an upgrade to [`crate::calls::EXEC_PROTOCOL`], for a command.
    pub const NODE_STREAM: &str = "/v1/node/streams/{stream}";
    /// GET, a node: `?instance=ID` -> `Vec<SecretBundle>`: what an instance placed on it boots with.
    pub const NODE_SECRETS: &str = "/v1/node/secrets";
    /// GET, an edge: `?after=GENERATION&wait_ms=N` -> [`super::RouteTable`], or 204.
    pub const EDGE_ROUTES: &str = "/v1/edge/routes";
    /// GET, a node: `?registry=HOST` -> [`super::PullSecret`], or 204 when the cluster is not logged in there. For
    /// registries that the node's instances come from only.
    pub const NODE_PULL_SECRET: &str = "/v1/node/pull-secret";
    /// GET, a user -> `Vec<RegistryRow>`. POST [`super::RegistryLoginRequest`] -> [`super::RegistryRow`]: logs the
    /// cluster in. DELETE `?registry=HOST`: logs it out.
    pub const REGISTRIES: &str = "/v1/registries";
    /// GET, a user -> `Vec<ImageRow>`: the image caches of the nodes that are online.
    pub const IMAGES: &str = "/v1/images";
    /// POST, a user: [`super::CreateTokenRequest`] -> [`super::CreateTokenResponse`].
    pub const TOKENS: &str = "/v1/tokens";
    /// GET, a user -> `Vec<NodeRow>`.
    pub const NODES: &str = "/v1/nodes";
    /// GET, a user: `?app=&env=` -> `Vec<InstanceRow>`.
    pub const INSTANCES: &str = "/v1/instances";
    /// GET, a user: `?app=&env=` -> `Vec<VolumeRow>`.
    pub const VOLUMES: &str = "/v1/volumes";
    /// DELETE, a user: delete a volume that no instance has, and all that is in it.
    pub const VOLUME: &str = "/v1/volumes/{volume}";
    /// GET, a user, with an upgrade to [`crate::calls::EXEC_PROTOCOL`] and
    /// [`crate::calls::ExecQuery`] -> 101, then frames both ways.
    pub const EXEC: &str = "/v1/instances/{instance}/exec";
    /// POST, a user: [`crate::calls::SignalRequest`].
    pub const SIGNAL: &str = "/v1/instances/{instance}/signal";
    /// GET, a user: `?app=&env=` -> `Vec<StatsRow>`.
    pub const STATS: &str = "/v1/stats";
    /// GET, a user -> `Vec<EnvRow>`.
    pub const ENVS: &str = "/v1/envs";
    /// POST, a user: [`super::DeployRequest`] -> [`super::DeployResponse`]. DELETE: destroy the env.
    pub const ENV: &str = "/v1/apps/{app}/envs/{env}";
    /// POST, a user: [`super::ScaleRequest`] -> [`super::EnvRow`].
    pub const SCALE: &str = "/v1/apps/{app}/envs/{env}/scale";
    /// POST, a user: nothing -> [`super::DeployResponse`]: a new release as the wanted one, with the
    /// newest versions of its secret bundles.
    pub const REDEPLOY: &str = "/v1/apps/{app}/envs/{env}/redeploy";
    /// GET, a user -> `Vec<SecretRow>`. The env need not exist yet.
    pub const SECRETS: &str = "/v1/apps/{app}/envs/{env}/secrets";
    /// POST, a user: [`super::SetSecretsRequest`] -> [`super::SecretRow`]. DELETE: delete the bundle.
    pub const SECRET: &str = "/v1/apps/{app}/envs/{env}/secrets/{bundle}";
    /// GET, a user: `?release=N&after=REVISION&wait_ms=N` -> [`super::RolloutStatus`].
    pub const ROLLOUT: &str = "/v1/apps/{app}/envs/{env}/rollout";
    /// GET, a user: `?follow=&process=&instance=&tail=` -> lines of JSON ([`super::LogLine`]).
    pub const LOGS: &str = "/v1/apps/{app}/envs/{env}/logs";
}

/// Longest long poll that a server grants, in milliseconds.
pub const MAX_WAIT_MS: u64 = 30_000;
/// Largest request body that a server reads, in bytes (streams excepted).
pub const MAX_BODY_BYTES: usize = 9 * 1024 * 1024;

/// Every error of the API, with the status that fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// Stable, for programs: `image_not_found`.
    pub code: String,
    /// For people: what failed, with its subject and its cause.
    pub message: String,
    /// What to do about it, where we know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// What a token lets its one user become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnrollRole {
    /// A machine that runs instances.
    Node,
    /// An ingress proxy.
    Edge,
}

impl std::fmt::Display for EnrollRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Edge => "edge",
        })
    }
}

/// Asks to join the cluster (ADR 0004): the one call that needs neither bearer token nor certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrollRequest {
    /// The secret part of the one-time token.
    pub token: String,
    /// Wanted name, the machine's host name; made unique by the server.
    pub name: String,
    /// Region the machine is in.
    pub region: String,
    /// PKCS#10 certificate request in PEM, for the key that never leaves the machine.
    pub csr_pem: String,
    /// WireGuard public key in base64; nodes only.
    pub wireguard_public_key: Option<String>,
    /// What the machine has.
    pub hardware: Hardware,
}

/// What a machine has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// Architecture in the OCI's words: `amd64`, `arm64`.
    pub arch: String,
    /// Logical CPUs.
    pub cpus: u32,
    /// Memory that instances may use, in bytes.
    pub memory_bytes: u64,
}

/// The answer to [`EnrollRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrollResponse {
    /// Who the caller is from now on.
    pub member: Member,
    /// Its name in the cluster.
    pub name: String,
    /// The cluster's random id; desired state of another cluster is refused.
    pub cluster: String,
    /// The cluster's /48, as its first address.
    pub cluster_prefix: Ipv6Addr,
    /// MTU of the overlay, in bytes.
    pub mtu: u32,
    /// The signed client certificate, PEM.
    pub certificate_pem: String,
    /// The cluster's CA, PEM.
    pub ca_pem: String,
}

/// A member of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Member {
    /// A node.
    Node(NodeId),
    /// An edge.
    Edge(EdgeId),
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(id) => id.fmt(f),
            Self::Edge(id) => id.fmt(f),
        }
    }
}

/// Everything one node is to run. Whole, never a difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DesiredState {
    /// The cluster's random id: state of another cluster is refused.
    pub cluster: String,
    /// The node this is for.
    pub node: NodeId,
    /// Grows with every change for this node; an older one is refused.
    pub generation: Generation,
    /// The instances to run.
    pub instances: Vec<InstanceSpec>,
    /// Instances this node once had that are to be stopped and forgotten. An unknown instance that
    /// is in neither list (an empty or restored store) is left running and reported.
    pub stop: Vec<InstanceId>,
    /// Volumes of this node that were deleted: their disks are to be removed. One that is not named
    /// is kept, whoever knows of it.
    #[serde(default)]
    pub remove_volumes: Vec<VolumeId>,
    /// Images whose disks are to stay in the node's cache although nothing runs them now: those of the last
    /// releases, for a way back. Sorted.
    #[serde(default)]
    pub keep_images: Vec<Digest>,
}

/// What a node sees and does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeReport {
    /// The generation it has taken up.
    pub generation: Generation,
    /// Which VMM driver it uses, and why.
    pub driver: DriverChoice,
    /// Whether its instances reach the world outside of the cluster; absent until it has looked.
    #[serde(default)]
    pub egress: Option<EgressState>,
    /// What it has.
    pub hardware: Hardware,
    /// Every instance it knows of, those to be stopped too.
    pub instances: Vec<InstanceReport>,
    /// Every volume whose disk it has.
    #[serde(default)]
    pub volumes: Vec<VolumeId>,
    /// The root disks in its cache, those last used first; at most [`MAX_REPORTED_IMAGES`].
    #[serde(default)]
    pub images: Vec<CachedImage>,
}

/// Root disks in [`NodeReport::images`].
pub const MAX_REPORTED_IMAGES: usize = 500;

/// A root disk in a node's cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CachedImage {
    /// The image it was built from; another repository's name of the same digest shares the disk.
    pub image: PinnedImage,
    /// What the disk takes on the host, in bytes.
    pub size_bytes: u64,
    /// When it was last built or looked up.
    pub last_used: Timestamp,
    /// Instances of the node that use it.
    pub instances: u32,
    /// Whether it stays, used or not, for it is one of the last releases.
    pub kept: bool,
}

/// A root disk in a node's cache, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRow {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub node_name: String,
    /// The disk.
    pub cached: CachedImage,
}

/// What to show to a registry. Its `Debug` shows no secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum PullSecret {
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

impl PullSecret {
    /// The user's name, where it has one.
    pub fn user(&self) -> Option<&str> {
        match self {
            Self::Basic { user, .. } => Some(user),
            Self::IdentityToken { .. } => None,
        }
    }
}

impl std::fmt::Debug for PullSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PullSecret({})", self.user().unwrap_or("token"))
    }
}

/// Logs the cluster in to a registry: the server resolves with it, and nodes pull with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryLoginRequest {
    /// The registry, as in image references: `ghcr.io`, `docker.io`, `registry.example.com:5000`.
    pub registry: String,
    /// What to show there. It is tried before it is kept.
    pub secret: PullSecret,
}

/// A registry that the cluster is logged in to, for people; the secret is never shown again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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

/// The VMM driver a node uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriverChoice {
    /// `firecracker`, `qemu-kvm` or `qemu-tcg`.
    pub name: String,
    /// Why this one.
    pub reason: String,
}

/// Whether the instances of a node reach the world outside of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressState {
    /// They do.
    pub on: bool,
    /// By what, or why not and what to do.
    pub reason: String,
}

/// What a node says about one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceReport {
    /// The instance.
    pub id: InstanceId,
    /// Where it is in its life.
    pub state: InstanceState,
    /// Whether its health check passes (or it has none and runs).
    pub ready: bool,
    /// Times it was started again.
    pub restarts: u32,
    /// For people: what it does or waits for (`fetching 3 of 5 layers`, `next start in 4 s`).
    pub detail: String,
    /// How it last ended.
    pub last_exit: Option<ExitEvent>,
    /// Why it failed, where it did: the operation, its subject, its cause.
    pub failure: Option<String>,
    /// The last lines it logged before its last end; at most [`MAX_LAST_WORDS`].
    pub last_words: Vec<String>,
    /// When the app was started, this time.
    pub started_at: Option<Timestamp>,
}

/// Lines in [`InstanceReport::last_words`].
pub const MAX_LAST_WORDS: usize = 20;

/// A stream that a node is asked to open at [`paths::NODE_STREAM`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamRequest {
    /// Its id: a random number, in hexadecimal.
    pub stream: String,
    /// What to send.
    pub wanted: StreamWanted,
}

/// What a node is to send on a stream, and how it opens it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum StreamWanted {
    /// By POST: lines of JSON ([`LogLine`]).
    Logs(LogsWanted),
    /// By GET with an upgrade: a command's streams.
    Exec(ExecWanted),
    /// By POST: `Vec<InstanceStats>`.
    Stats {
        /// Of which instances.
        instances: Vec<InstanceId>,
    },
    /// By POST: [`SignalAnswer`](crate::calls::SignalAnswer).
    Signal {
        /// To the app of which instance.
        instance: InstanceId,
        /// Signal name.
        signal: String,
    },
}

/// Which log lines are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogsWanted {
    /// Of which instances.
    pub instances: Vec<InstanceId>,
    /// At most this many lines of the past, for each instance.
    pub tail: u32,
    /// Only lines at or after this time.
    pub since: Option<Timestamp>,
    /// Whether to go on with new lines until the reader leaves.
    pub follow: bool,
    /// Of the past, only what the instance said before it was last started again.
    pub previous: bool,
}

/// The query of [`paths::LOGS`]: which of the env's lines are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogsQuery {
    /// Only of this process type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessName>,
    /// Only of this instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// At most this many lines of the past, for each instance. Absent: [`DEFAULT_TAIL`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<u32>,
    /// Only lines at or after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Whether to go on with new lines until the reader leaves.
    #[serde(default)]
    pub follow: bool,
    /// Of the past, only what each instance said before it was last started again.
    #[serde(default)]
    pub previous: bool,
}

/// Lines of the past for each instance, where [`LogsQuery::tail`] does not say.
pub const DEFAULT_TAIL: u32 = 100;
/// Longest line of a stream of [`LogLine`]s, in bytes with its line feed: a log piece in which
/// every byte is escaped, and the rest of the line.
pub const MAX_STREAM_LINE_BYTES: usize = 6 * crate::guest::MAX_LOG_PIECE_BYTES + 1024;

/// One line of an instance's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLine {
    /// The instance.
    pub instance: InstanceId,
    /// Its process type.
    pub process: ProcessName,
    /// When the guest read it.
    pub at: Timestamp,
    /// `stdout`, `stderr` or `platform`.
    pub stream: crate::guest::Stream,
    /// The text; bytes that are not UTF-8 are replaced.
    pub text: String,
    /// True when the line goes on in the next one of this stream.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// Where hosts lead. Whole, never a difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteTable {
    /// Grows with every change.
    pub generation: Generation,
    /// Host name, lowercase, without a port, to where it leads.
    pub routes: BTreeMap<String, Route>,
}

/// Where one host leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The env it belongs to.
    pub env: EnvKey,
    /// The process type it leads to.
    pub process: ProcessName,
    /// Whether the edge starts each connection with a PROXY v2 header.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The ready instances; empty: none is ready, the edge answers 503.
    pub backends: Vec<Backend>,
}

/// One ready instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// The instance.
    pub instance: InstanceId,
    /// Its address and the app's port.
    pub address: SocketAddr,
}

/// Asks for a one-time enrollment token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateTokenRequest {
    /// What its user becomes.
    pub role: EnrollRole,
    /// Seconds until it expires, 1 to 86400.
    pub ttl_seconds: u64,
}

/// A one-time enrollment token; this is the only time it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateTokenResponse {
    /// The token, for `platform node --token`. It carries the CA's fingerprint, so that the new
    /// machine knows the right server.
    pub token: String,
    /// What its user becomes.
    pub role: EnrollRole,
    /// When it expires.
    pub expires_at: Timestamp,
}

/// Asks for a new release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    /// The manifest, as written.
    pub manifest: String,
    /// The image reference; a tag is resolved once, now.
    pub image: String,
}

/// A release that was recorded; its rollout has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployResponse {
    /// The release.
    pub release: ReleaseNumber,
    /// The digest the reference named or its tag led to (ADR 0002).
    pub image_ref_digest: Digest,
    /// The image manifest's digest for each architecture of the cluster's nodes.
    pub resolved_image_digest: BTreeMap<String, Digest>,
    /// The tag that was resolved, if the reference had one.
    pub pinned_tag: Option<String>,
}

/// Sets how many instances of processes are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaleRequest {
    /// Process type to instances.
    pub processes: BTreeMap<ProcessName, u32>,
}

/// How a rollout goes. `revision` changes whenever anything of it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceRow {
    /// The instance.
    pub id: InstanceId,
    /// Its env.
    pub env: EnvKey,
    /// Its process type.
    pub process: ProcessName,
    /// Its release.
    pub release: ReleaseNumber,
    /// Its node.
    pub node: NodeId,
    /// The node's name.
    pub node_name: String,
    /// Its address.
    pub address: Ipv6Addr,
    /// Whether it is on its way out.
    pub leaving: bool,
    /// When it was planned.
    pub created_at: Timestamp,
    /// What its node says; absent until the node has said anything.
    pub report: Option<InstanceReport>,
}

/// One node, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
    /// Whether its instances reach the world outside of the cluster; absent until it reported.
    pub egress: Option<EgressState>,
    /// When it last reported.
    pub seen_at: Option<Timestamp>,
    /// Whether it reported lately.
    pub online: bool,
    /// Instances placed on it.
    pub instances: u32,
    /// Its /64, as its first address.
    pub prefix: Ipv6Addr,
}

/// Most bytes of one file of a secret bundle.
pub const MAX_SECRET_BYTES: usize = 64 * 1024;
/// Most bytes of a secret bundle: names and contents of its files.
pub const MAX_BUNDLE_BYTES: usize = 256 * 1024;
/// Most bytes of all bundles of one process type. On their way into a guest they are three to four
/// times as long, and share [`crate::guest::MAX_BOOT_FRAME_BYTES`] with the variables.
pub const MAX_PROCESS_SECRETS_BYTES: usize = 512 * 1024;
/// Longest name of a file of a secret bundle, in bytes.
pub const MAX_SECRET_NAME_BYTES: usize = 255;

/// Changes files of a secret bundle: a new version, with the other files as in the newest one.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// One secret bundle, for people; what is in its files is shown to nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvRow {
    /// The env.
    pub env: EnvKey,
    /// The newest release.
    pub release: ReleaseNumber,
    /// How far its rollout is.
    pub phase: RolloutPhase,
    /// Wanted and ready instances by process type.
    pub processes: BTreeMap<ProcessName, (u32, u32)>,
    /// Host names that lead to it.
    pub hosts: Vec<String>,
}
