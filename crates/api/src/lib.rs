//! Messages of the one HTTPS API, a module for each kind of caller. Paths are in [`paths`]; bodies are JSON.
//!
//! - [`user`]: people and their programs, with a bearer token.
//! - [`node`] and [`edge`]: members, with the client certificate they got when they enrolled. They only dial out: they
//!   fetch their whole desired state by long poll, and report.
//! - [`member`]: what nodes and edges have in common: who they are, by which key, and who the others are.
//! - [`enrollment`]: the holder of a one-time enrollment token, for one call.
//! - [`certificates`]: the certificates of hosts, which users add. [`acme`]: those that the server orders.
//! - [`event`]: what changed in the cluster.
//! - [`why`]: why something is as it is.
//! - [`exec`]: what travels on an exec stream, between a user and a guest.
//! - [`openapi`]: the description of what users call, for programs.
//! - [`forward`]: what travels on a forward stream, between a user's machine and a port of an instance.
//!
//! Requests of members name their [`protocol`] version. Messages between members and the server ignore unknown fields
//! on receipt; requests of users do not.

pub mod acme;
pub mod certificates;
pub mod edge;
pub mod enrollment;
pub mod event;
pub mod exec;
pub mod forward;
pub mod member;
pub mod node;
pub mod openapi;
pub mod protocol;
mod unreadable;
pub mod user;
pub mod why;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Paths of the API. `{app}` and so on are axum's captures.
pub mod paths {
    /// GET, anyone: the description of what users call ([`crate::openapi`]), of every server, whether it leads or not.
    pub const OPENAPI: &str = "/openapi.json";
    /// GET, anyone: 200 while the server runs.
    pub const HEALTHZ: &str = "/healthz";
    /// GET, anyone: 200 while the server leads or knows which one does, else 503.
    pub const READYZ: &str = "/readyz";
    /// GET, anyone: 200 when the server answers. POST nothing else.
    pub const HEALTH: &str = "/v1/health";
    /// POST [`crate::enrollment::EnrollRequest`] -> [`crate::enrollment::EnrollResponse`].
    pub const ENROLL: &str = "/v1/enroll";
    /// GET, a node or an edge: `?after=COUNTER&incarnation=INCARNATION&session=SESSION&seen=COUNTER&wait_ms=N` ->
    /// [`crate::member::MemberState`], or 204 when nothing newer came within the wait. The generation that it names is the one that it has
    /// applied; session and counter are those of the overlay's changes that it has applied, 0 where it has none. A member of before the overlay
    /// names no session. `&measured=RUN` names the run of [`crate::member::MeasurementRequest`] that it took last, 0 for none; a member that
    /// measures nothing names none.
    pub const MEMBER: &str = "/v1/member";
    /// POST, a node or an edge, also by a certificate that is out of its dates: [`crate::member::CertificateRequest`] ->
    /// [`crate::member::CertificateResponse`].
    pub const MEMBER_CERTIFICATE: &str = "/v1/member/certificate";
    /// POST, a node or an edge: [`crate::member::OverlayReport`] -> 204: how it is reached, and what it knows of its links.
    pub const MEMBER_OVERLAY: &str = "/v1/member/overlay";
    /// POST, a node or an edge: [`crate::member::Measurement`] -> 204: what it was asked to measure.
    pub const MEMBER_MEASUREMENT: &str = "/v1/member/measurement";
    /// GET, a node: `?session=SESSION&after=COUNTER&wait_ms=N` -> [`crate::node::DirectoryChanges`], or 204 when nothing newer came within the
    /// wait.
    pub const NODE_DIRECTORY: &str = "/v1/node/directory";
    /// GET, a node: `?after=COUNTER&incarnation=INCARNATION&wait_ms=N` -> [`crate::node::DesiredState`], or 204 when nothing
    /// newer came within the wait.
    pub const NODE_DESIRED: &str = "/v1/node/desired";
    /// POST, a node: [`crate::node::ReportDelta`] -> [`crate::node::ReportAnswer`].
    pub const NODE_REPORT: &str = "/v1/node/report";
    /// GET, a node: `?wait_ms=N` -> `Vec<StreamRequest>`: streams it is asked to open.
    pub const NODE_STREAMS: &str = "/v1/node/streams";
    /// POST, a node: the body is the stream: lines of JSON ([`crate::node::LogLine`]), or one answer of
    /// [`crate::node::StreamWanted`]. GET with an upgrade to [`crate::exec::EXEC_PROTOCOL`], for a command, or
    /// to [`crate::forward::FORWARD_PROTOCOL`], for a connection.
    pub const NODE_STREAM: &str = "/v1/node/streams/{stream}";
    /// POST, a node: [`crate::node::StreamRefused`]: the node cannot open a stream that it was asked for.
    pub const NODE_STREAM_REFUSED: &str = "/v1/node/streams/{stream}/refused";
    /// GET, a node: `?instance=ID` -> `Vec<SecretBundle>`: what an instance placed on it boots with.
    pub const NODE_SECRETS: &str = "/v1/node/secrets";
    /// GET, an edge: `?after=COUNTER&incarnation=INCARNATION&session=SESSION&wait_ms=N` -> [`crate::edge::RouteTable`], or 204. An edge that
    /// names its incarnation takes differences; one of another session than the leader's gets the whole table.
    pub const EDGE_ROUTES: &str = "/v1/edge/routes";
    /// GET, an edge: `?after=COUNTER&incarnation=INCARNATION&session=SESSION&wait_ms=N` -> [`crate::edge::CertificateTable`], or 204. Edges that do
    /// not know it never ask, and get no key.
    pub const EDGE_CERTIFICATES: &str = "/v1/edge/certificates";
    /// GET, an edge: `?after=COUNTER&incarnation=INCARNATION&session=SESSION&https=BOOL&wait_ms=N` -> [`crate::edge::ChallengeTable`], or 204. The table
    /// that it names is the one by which it answers. `https`: whether it has a port for HTTPS.
    pub const EDGE_CHALLENGES: &str = "/v1/edge/challenges";
    /// POST, an edge: [`crate::edge::HostCertificateRequest`] -> [`crate::edge::HostCertificateResponse`]. For hosts that a route leads from only.
    pub const EDGE_HOST_CERTIFICATE: &str = "/v1/edge/host-certificate";
    /// GET, a node: `?registry=HOST` -> [`crate::node::PullSecret`], or 204 when the cluster is not logged in there. For
    /// registries that the node's instances come from only.
    pub const NODE_PULL_SECRET: &str = "/v1/node/pull-secret";
    /// GET, a user -> `Vec<RegistryRow>`. POST [`crate::user::RegistryLoginRequest`] -> [`crate::user::RegistryRow`]: logs the
    /// cluster in. DELETE `?registry=HOST`: logs it out.
    pub const REGISTRIES: &str = "/v1/registries";
    /// GET, a user -> `Vec<CertificateRow>`. POST [`crate::certificates::AddCertificateRequest`] -> [`crate::certificates::CertificateRow`]. DELETE
    /// `?name=NAME`: edges have it no more.
    pub const CERTIFICATES: &str = "/v1/certificates";
    /// GET, a user -> [`crate::acme::AcmeStatus`]. PUT [`crate::acme::AcmeRequest`] -> [`crate::acme::AcmeStatus`]: certificates are ordered from now
    /// on. DELETE: none is ordered any more, and those there are lapse.
    pub const ACME: &str = "/v1/certificates/acme";
    /// POST, a user: `?name=NAME` -> 204: the name is tried again now.
    pub const ACME_RETRY: &str = "/v1/certificates/acme/retry";
    /// GET, a user -> [`crate::certificates::IngressCaRow`]. It is no secret.
    pub const INGRESS_CA: &str = "/v1/certificates/ca";
    /// GET, a user -> `Vec<ImageRow>`: the image caches of the nodes that are online.
    pub const IMAGES: &str = "/v1/images";
    /// POST, a user: [`crate::user::CreateTokenRequest`] -> [`crate::user::CreateTokenResponse`]. GET -> `Vec<TokenRow>`.
    pub const TOKENS: &str = "/v1/tokens";
    /// DELETE, a user: the token, by its id, lets nobody in any more.
    pub const TOKEN: &str = "/v1/tokens/{token}";
    /// GET, a user -> [`crate::user::WhoAmI`].
    pub const WHOAMI: &str = "/v1/whoami";
    /// GET, a user -> `Vec<OrgRow>`: those that the caller has a role in. POST [`crate::user::CreateOrgRequest`] -> [`crate::user::OrgRow`].
    pub const ORGS: &str = "/v1/orgs";
    /// DELETE, a user: removes an org that has no app.
    pub const ORG: &str = "/v1/orgs/{org}";
    /// GET, a user -> `Vec<AppRow>`: those of the caller's orgs.
    pub const APPS: &str = "/v1/apps";
    /// PUT, a user: [`crate::user::MoveAppRequest`] -> 204: another org owns the app. DELETE: frees the name of an app that has nothing.
    pub const APP: &str = "/v1/apps/{app}";
    /// GET, a user -> `Vec<UserRow>`: those that the caller sees.
    pub const USERS: &str = "/v1/users";
    /// PUT, a user: [`crate::user::GrantRequest`] -> 204: gives a user a role, or takes it. DELETE: removes the user.
    pub const USER: &str = "/v1/users/{user}";
    /// GET, a user: `?user=` -> `Vec<UserTokenRow>`. POST [`crate::user::CreateUserTokenRequest`] -> [`crate::user::CreateUserTokenResponse`].
    pub const USER_TOKENS: &str = "/v1/user-tokens";
    /// DELETE, a user: the token, by its id, lets nobody in any more.
    pub const USER_TOKEN: &str = "/v1/user-tokens/{token}";
    /// GET, a user -> [`crate::user::CaRow`]. POST [`crate::user::RotateCaRequest`] -> [`crate::user::CaRow`].
    pub const CA: &str = "/v1/ca";
    /// GET, a user -> `Vec<EdgeRow>`.
    pub const EDGES: &str = "/v1/edges";
    /// DELETE, a user: removes a revoked edge, which is a member no longer.
    pub const EDGE: &str = "/v1/edges/{edge}";
    /// GET, a user: `?counter=N` -> [`crate::user::Acknowledgements`]: which members have applied the membership of this generation.
    pub const MEMBERS: &str = "/v1/members";
    /// POST, a user: the node or edge `{member}` may do what members do; what hardware it claims counts from now on -> 204.
    pub const APPROVE: &str = "/v1/members/{member}/approve";
    /// POST, a user: the node or edge `{member}` may do nothing any more -> [`crate::user::RevokeResponse`].
    pub const REVOKE: &str = "/v1/members/{member}/revoke";
    /// POST, a user: the node or edge `{member}` is to have other keys -> 204.
    pub const ROTATE_KEYS: &str = "/v1/members/{member}/rotate-keys";
    /// GET, a user -> [`crate::user::NetworkStatus`]. PATCH [`crate::user::NetworkSettingsRequest`] -> [`crate::user::NetworkStatus`].
    pub const NETWORK: &str = "/v1/network";
    /// POST, a user: [`crate::user::DoctorRequest`] -> [`crate::user::NetworkDiagnosis`], once the members have measured. One at a time: 409.
    pub const NETWORK_DOCTOR: &str = "/v1/network/doctor";
    /// GET, a user -> `Vec<NodeRow>`.
    pub const NODES: &str = "/v1/nodes";
    /// DELETE, users: removes a node, which is a member no longer; query: [`RemoveNodeQuery`](super::user::RemoveNodeQuery).
    pub const NODE: &str = "/v1/nodes/{node}";
    /// PUT, users: whether the node takes instances: [`SchedulingRequest`](super::user::SchedulingRequest) ->
    /// [`NodeRow`](super::user::NodeRow).
    pub const NODE_SCHEDULING: &str = "/v1/nodes/{node}/scheduling";
    /// PUT, users: whose apps the node runs: [`NodeOrgRequest`](super::user::NodeOrgRequest) -> 204.
    pub const NODE_ORG: &str = "/v1/nodes/{node}/org";
    /// PATCH, users: sets and removes labels of the node: [`LabelsRequest`](super::user::LabelsRequest) -> 204.
    pub const NODE_LABELS: &str = "/v1/nodes/{node}/labels";
    /// POST, users: the node is to stop instances that it runs and the store does not know:
    /// [`StopUnknownRequest`](super::user::StopUnknownRequest) -> [`StopUnknownResponse`](super::user::StopUnknownResponse).
    pub const NODE_STOP_UNKNOWN: &str = "/v1/nodes/{node}/stop-unknown";
    /// GET, a user: `?app=&env=` -> `Vec<InstanceRow>`.
    pub const INSTANCES: &str = "/v1/instances";
    /// GET, a user: `?app=&env=` -> `Vec<EndedRow>`: the instances that are gone and whose records are kept.
    pub const ENDED_INSTANCES: &str = "/v1/ended-instances";
    /// GET, a user: `?app=&env=` -> `Vec<VolumeRow>`.
    pub const VOLUMES: &str = "/v1/volumes";
    /// DELETE, a user: delete a volume that no instance has, and all that is in it.
    pub const VOLUME: &str = "/v1/volumes/{volume}";
    /// GET, a user, with an upgrade to [`crate::exec::EXEC_PROTOCOL`] and
    /// [`crate::user::ExecQuery`] -> 101, then frames both ways.
    pub const EXEC: &str = "/v1/instances/{instance}/exec";
    /// POST, a user: [`crate::user::DeployRequest`] -> [`crate::user::PlanResponse`]: what a deploy would do. Nothing of it is done.
    pub const PLAN: &str = "/v1/apps/{app}/envs/{env}/plan";
    /// POST, a user: [`crate::user::RunRequest`] -> [`crate::user::RunResponse`]: a command in an instance of its own.
    pub const RUNS: &str = "/v1/apps/{app}/envs/{env}/runs";
    /// GET, a user, with an upgrade to [`crate::exec::EXEC_PROTOCOL`] and [`crate::user::AttachQuery`] -> 101, then frames both ways: the
    /// command that the instance was made for.
    pub const ATTACH: &str = "/v1/instances/{instance}/attach";
    /// DELETE, a user: end the command that the instance was made for.
    pub const RUN: &str = "/v1/runs/{instance}";
    /// GET, a user, with an upgrade to [`crate::forward::FORWARD_PROTOCOL`] -> 101, then frames both ways: one TCP connection to a port
    /// of the instance.
    pub const FORWARD: &str = "/v1/instances/{instance}/forward/{port}";
    /// POST, a user: [`crate::user::SignalRequest`].
    pub const SIGNAL: &str = "/v1/instances/{instance}/signal";
    /// GET, a user: `?app=&env=` -> `Vec<StatsRow>`.
    pub const STATS: &str = "/v1/stats";
    /// GET, a user -> `Vec<EnvRow>`.
    pub const ENVS: &str = "/v1/envs";
    /// POST, a user: [`crate::user::DeployRequest`] -> [`crate::user::DeployResponse`]. DELETE: destroy the env.
    pub const ENV: &str = "/v1/apps/{app}/envs/{env}";
    /// POST, a user: [`crate::user::ScaleRequest`] -> [`crate::user::EnvRow`].
    pub const SCALE: &str = "/v1/apps/{app}/envs/{env}/scale";
    /// POST, a user: nothing -> [`crate::user::DeployResponse`]: a new release as the wanted one, with the
    /// newest versions of its secret bundles.
    pub const REDEPLOY: &str = "/v1/apps/{app}/envs/{env}/redeploy";
    /// GET, a user -> `Vec<ReleaseRow>`, the newest first.
    pub const RELEASES: &str = "/v1/apps/{app}/envs/{env}/releases";
    /// GET, a user -> [`crate::user::ReleaseDetails`].
    pub const RELEASE: &str = "/v1/apps/{app}/envs/{env}/releases/{release}";
    /// POST, a user: [`crate::user::RollbackRequest`] -> [`crate::user::DeployResponse`]: a new release that is the same as an older one.
    pub const ROLLBACK: &str = "/v1/apps/{app}/envs/{env}/rollback";
    /// GET, a user -> `Vec<SecretRow>`. The env need not exist yet.
    pub const SECRETS: &str = "/v1/apps/{app}/envs/{env}/secrets";
    /// POST, a user: [`crate::user::SetSecretsRequest`] -> [`crate::user::SecretRow`]. DELETE: delete the bundle.
    pub const SECRET: &str = "/v1/apps/{app}/envs/{env}/secrets/{bundle}";
    /// GET, a user: `?release=N&after=REVISION&wait_ms=N` -> [`crate::user::RolloutStatus`].
    pub const ROLLOUT: &str = "/v1/apps/{app}/envs/{env}/rollout";
    /// GET, a user: [`crate::event::EventsQuery`] -> [`crate::event::EventPage`]: what changed, of what the caller sees.
    pub const EVENTS: &str = "/v1/events";
    /// GET, a user: [`crate::why::WhyQuery`] -> [`crate::why::Why`]: the story of an instance, a process type or a node.
    pub const WHY: &str = "/v1/why";
    /// GET, a user: `?follow=&process=&instance=&tail=` -> lines of JSON ([`crate::node::LogLine`]).
    pub const LOGS: &str = "/v1/apps/{app}/envs/{env}/logs";
}

pub use unreadable::Unreadable;

/// The header by which a caller names one call that makes a release or a run, 1 to [`MAX_IDEMPOTENCY_KEY_BYTES`] visible ASCII characters
/// (draft-ietf-httpapi-idempotency-key-header; its quotes may be left out). The same user's same call for the same env, made again because its answer
/// was lost, is answered as the first time and makes nothing more, as long as the release is kept, or the run is one of the last of its env.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Longest [`IDEMPOTENCY_KEY`], in bytes.
pub const MAX_IDEMPOTENCY_KEY_BYTES: usize = 128;

/// Longest long poll that a server grants, in milliseconds.
pub const MAX_WAIT_MS: u64 = 30_000;
/// Largest request body that a server reads, in bytes (streams excepted).
pub const MAX_BODY_BYTES: usize = 9 * 1024 * 1024;

/// [`ApiError::code`] that callers decide by.
pub mod error_code {
    /// The server does not serve the member's version of the protocol.
    pub const PROTOCOL_VERSION: &str = "protocol_version";
    /// The cluster has no member with the key of the certificate.
    pub const NOT_A_MEMBER: &str = "not_a_member";
    /// A user has to approve the member first.
    pub const NOT_APPROVED: &str = "not_approved";
    /// A user revoked the member.
    pub const REVOKED: &str = "revoked";
    /// The certificate is out of its dates: it opens its renewal only.
    pub const CERTIFICATE_EXPIRED: &str = "certificate_expired";
    /// The enrollment token lets nobody in: it is not known, was used or has expired.
    pub const TOKEN_REFUSED: &str = "token_refused";
    /// The key that a machine enrolls with is that of a member that was revoked, or of another kind.
    pub const KEY_TAKEN: &str = "key_taken";
    /// No server leads at the moment. Nothing was done: the request may be sent again.
    pub const NO_LEADER: &str = "no_leader";
    /// The leader changed while it was asked: what was asked may have been done or not.
    pub const LEADER_CHANGED: &str = "leader_changed";
}

/// Every error of the API, with the status that fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApiError {
    /// Stable, for programs: `image_not_found`.
    pub code: String,
    /// For people: what failed, with its subject and its cause.
    pub message: String,
    /// What to do about it, where we know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The same request may succeed after this time, in milliseconds: a registry asked for it. Absent: nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// The type of the body of every error (RFC 9457).
pub const PROBLEM_JSON: &str = "application/problem+json";

/// [`ApiError`] as it is sent: a problem (RFC 9457) with members of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Problem {
    /// `urn:platform:problem:` and the code.
    pub r#type: String,
    /// What the status says, as HTTP calls it.
    pub title: String,
    /// The status.
    pub status: u16,
    /// [`ApiError::message`], which is there too, for callers of before.
    pub detail: String,
    /// The error.
    #[serde(flatten)]
    pub error: ApiError,
}

impl Problem {
    /// The error, answered with this status.
    pub fn new(status: u16, title: &str, error: ApiError) -> Self {
        Self {
            r#type: format!("urn:platform:problem:{}", error.code),
            title: title.to_owned(),
            status,
            detail: error.message.clone(),
            error,
        }
    }
}
