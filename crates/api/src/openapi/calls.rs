//! Every call of users.

use super::Answer::{Frames, Json, Lines, Nothing, Page, Text};
use super::{Call, fields_of, of};
use crate::acme::{AcmeRequest, AcmeRetryQuery, AcmeStatus};
use crate::certificates::{AddCertificateRequest, CertificateQuery, CertificateRow, IngressCaRow};
use crate::event::{EventPage, EventsQuery};
use crate::exec::EXEC_PROTOCOL;
use crate::forward::FORWARD_PROTOCOL;
use crate::node::LogLine;
use crate::paths;
use crate::user::{
    Acknowledgements, AcknowledgementsQuery, AppRow, AppsQuery, AttachQuery, CaRow,
    CreateOrgRequest, CreateTokenRequest, CreateTokenResponse, CreateUserTokenRequest,
    CreateUserTokenResponse, DeployQuery, DeployRequest, DeployResponse, DoctorRequest, EdgeRow,
    EndedRow, EnvRow, EnvsQuery, ExecQuery, GrantRequest, ImageRow, InstanceRow, InstancesQuery,
    LabelsRequest, LogsQuery, MoveAppRequest, NetworkDiagnosis, NetworkSettingsRequest,
    NetworkStatus, NewestReleaseQuery, NodeOrgRequest, NodeRow, NodesQuery, OrgQuery, OrgRow,
    PlanResponse, RegistryLoginRequest, RegistryQuery, RegistryRow, ReleaseDetails, ReleaseRow,
    RemoveNodeQuery, RevokeResponse, RollbackRequest, RolloutQuery, RolloutStatus, RotateCaRequest,
    RunRequest, RunResponse, ScaleRequest, SchedulingRequest, SecretRow, SetSecretsRequest,
    SignalRequest, StatsQuery, StatsRow, StopUnknownRequest, StopUnknownResponse, TokenRow,
    UserRow, UserTokenRow, UserTokensQuery, UsersQuery, VolumeRow, VolumesQuery, WhoAmI,
};
use crate::why::{Why, WhyQuery};

const ANYONE: &str = "a token";
const VIEWER: &str = "viewer of the app's org";
const DEPLOYER: &str = "deployer of the app's org";
const ADMIN: &str = "admin of the org";
const CLUSTER_VIEWER: &str = "viewer of the cluster";
const CLUSTER_ADMIN: &str = "admin of the cluster";

/// Where a release is made: what does not fit, what cannot be, and what a registry answers.
const OF_DEPLOYS: &[u16] = &[409, 422, 502, 504];

/// Every call of users, by subject.
pub const CALLS: &[Call] = &[
    Call::new("GET", paths::OPENAPI, "")
        .without_token()
        .does("This document")
        .answers(200, Json(of::<serde_json::Value>)),
    Call::new("GET", paths::HEALTHZ, "")
        .without_token()
        .does("Is this server alive?")
        .answers(200, Text),
    Call::new("GET", paths::READYZ, "")
        .without_token()
        .does("Does this server lead, or know which one does?")
        .answers(200, Text)
        .refuses(&[503]),
    Call::new("GET", paths::HEALTH, "")
        .without_token()
        .does("Does the server that leads answer?")
        .answers(200, Nothing)
        .refuses(&[400, 503]),
    Call::new("GET", paths::WHOAMI, ANYONE)
        .does("The user, and what the token opens")
        .answers(200, Json(of::<WhoAmI>)),
    Call::new("GET", paths::ORGS, ANYONE)
        .does("Orgs in which the caller has a role")
        .answers(200, Json(of::<Vec<OrgRow>>)),
    Call::new("POST", paths::ORGS, CLUSTER_ADMIN)
        .does("Makes an org")
        .body(of::<CreateOrgRequest>)
        .answers(201, Json(of::<OrgRow>))
        .refuses(&[409, 422]),
    Call::new("DELETE", paths::ORG, CLUSTER_ADMIN)
        .does("Removes an org that has no app")
        .refuses(&[409]),
    Call::new("GET", paths::APPS, VIEWER)
        .does("Apps of the caller's orgs, by page")
        .query(fields_of::<AppsQuery>)
        .answers(200, Page(of::<Vec<AppRow>>)),
    Call::new("PUT", paths::APP, "admin of both orgs")
        .does("Another org owns the app")
        .body(of::<MoveAppRequest>)
        .refuses(&[409, 422]),
    Call::new("DELETE", paths::APP, ADMIN)
        .does("Frees the name of an app that has nothing")
        .refuses(&[409]),
    Call::new("GET", paths::USERS, ANYONE)
        .does("Users that the caller sees, by page")
        .query(fields_of::<UsersQuery>)
        .answers(200, Page(of::<Vec<UserRow>>)),
    Call::new("PUT", paths::USER, ADMIN)
        .does("Gives a role, or takes it")
        .body(of::<GrantRequest>)
        .refuses(&[409, 422]),
    Call::new("DELETE", paths::USER, CLUSTER_ADMIN)
        .does("Removes a user")
        .refuses(&[409]),
    Call::new("GET", paths::USER_TOKENS, ANYONE)
        .does("Tokens of users that the caller sees, by page")
        .query(fields_of::<UserTokensQuery>)
        .answers(200, Page(of::<Vec<UserTokenRow>>)),
    Call::new("POST", paths::USER_TOKENS, ANYONE)
        .does("Makes a token")
        .body(of::<CreateUserTokenRequest>)
        .answers(201, Json(of::<CreateUserTokenResponse>))
        .refuses(&[404, 409, 422]),
    Call::new("DELETE", paths::USER_TOKEN, ANYONE)
        .does("The token lets nobody in any more")
        .refuses(&[409]),
    Call::new("GET", paths::ENVS, VIEWER)
        .does("Envs, by page")
        .query(fields_of::<EnvsQuery>)
        .answers(200, Page(of::<Vec<EnvRow>>)),
    Call::new("POST", paths::ENV, DEPLOYER)
        .does("A release, of a manifest and an image")
        .query(fields_of::<DeployQuery>)
        .keyed()
        .body(of::<DeployRequest>)
        .answers(201, Json(of::<DeployResponse>))
        .refuses(OF_DEPLOYS),
    Call::new("DELETE", paths::ENV, ADMIN)
        .does("Destroys the env")
        .answers(202, Nothing)
        .refuses(&[409]),
    Call::new("POST", paths::PLAN, DEPLOYER)
        .does("What a deploy would do; nothing of it is done")
        .query(fields_of::<OrgQuery>)
        .body(of::<DeployRequest>)
        .answers(200, Json(of::<PlanResponse>))
        .refuses(OF_DEPLOYS),
    Call::new("POST", paths::REDEPLOY, DEPLOYER)
        .does("The same release with the newest versions of secrets")
        .query(fields_of::<NewestReleaseQuery>)
        .keyed()
        .answers(201, Json(of::<DeployResponse>))
        .refuses(&[409, 422]),
    Call::new("GET", paths::RELEASES, VIEWER)
        .does("Releases that are kept, the newest first")
        .answers(200, Json(of::<Vec<ReleaseRow>>))
        .refuses(&[409]),
    Call::new("GET", paths::RELEASE, DEPLOYER)
        .does("A release with its manifest")
        .answers(200, Json(of::<ReleaseDetails>))
        .refuses(&[409]),
    Call::new("POST", paths::ROLLBACK, DEPLOYER)
        .does("A release that is the same as an older one")
        .query(fields_of::<NewestReleaseQuery>)
        .keyed()
        .body(of::<RollbackRequest>)
        .answers(201, Json(of::<DeployResponse>))
        .refuses(&[409, 422]),
    Call::new("GET", paths::ROLLOUT, VIEWER)
        .does("How a release comes up; a long poll")
        .query(fields_of::<RolloutQuery>)
        .answers(200, Json(of::<RolloutStatus>))
        .refuses(&[409]),
    Call::new("POST", paths::SCALE, DEPLOYER)
        .does("How many instances of each process type")
        .body(of::<ScaleRequest>)
        .answers(200, Json(of::<EnvRow>))
        .refuses(&[409, 422]),
    Call::new("GET", paths::SECRETS, VIEWER)
        .does("Secret bundles: names, versions, no values")
        .answers(200, Json(of::<Vec<SecretRow>>)),
    Call::new("POST", paths::SECRET, DEPLOYER)
        .does("A version of a bundle")
        .query(fields_of::<OrgQuery>)
        .body(of::<SetSecretsRequest>)
        .answers(200, Json(of::<SecretRow>))
        .refuses(&[409, 422]),
    Call::new("DELETE", paths::SECRET, DEPLOYER)
        .does("Deletes a bundle")
        .refuses(&[409]),
    Call::new("POST", paths::RUNS, DEPLOYER)
        .does("A command in a microVM of its own")
        .keyed()
        .body(of::<RunRequest>)
        .answers(201, Json(of::<RunResponse>))
        .refuses(&[409, 422, 429]),
    Call::new("GET", paths::ATTACH, DEPLOYER)
        .does("The streams of a command in a microVM of its own: an upgrade")
        .query(fields_of::<AttachQuery>)
        .answers(101, Frames(EXEC_PROTOCOL))
        .refuses(&[409, 426, 429, 501, 502]),
    Call::new("DELETE", paths::RUN, DEPLOYER)
        .does("Ends a command in a microVM of its own")
        .refuses(&[409]),
    Call::new("GET", paths::LOGS, VIEWER)
        .does("Lines of instances' logs; for ever with `follow`")
        .query(fields_of::<LogsQuery>)
        .answers(200, Lines(of::<LogLine>))
        .refuses(&[409, 429]),
    Call::new("GET", paths::INSTANCES, VIEWER)
        .does("Instances, by page")
        .query(fields_of::<InstancesQuery>)
        .answers(200, Page(of::<Vec<InstanceRow>>)),
    Call::new("GET", paths::ENDED_INSTANCES, VIEWER)
        .does("Instances that are gone, and how, by page")
        .query(fields_of::<InstancesQuery>)
        .answers(200, Page(of::<Vec<EndedRow>>)),
    Call::new("GET", paths::EXEC, DEPLOYER)
        .does("A command beside the app: an upgrade")
        .query(fields_of::<ExecQuery>)
        .answers(101, Frames(EXEC_PROTOCOL))
        .refuses(&[409, 422, 426, 429, 501, 502]),
    Call::new("GET", paths::FORWARD, DEPLOYER)
        .does("A TCP connection to a port of an instance: an upgrade")
        .answers(101, Frames(FORWARD_PROTOCOL))
        .refuses(&[409, 426, 429, 501, 502]),
    Call::new("POST", paths::SIGNAL, DEPLOYER)
        .does("A signal to the app")
        .body(of::<SignalRequest>)
        .refuses(&[409, 422, 501, 502]),
    Call::new("GET", paths::EVENTS, VIEWER)
        .does("What changed, by whom and when; a long poll")
        .query(fields_of::<EventsQuery>)
        .answers(200, Json(of::<EventPage>))
        .refuses(&[422]),
    Call::new("GET", paths::WHY, VIEWER)
        .does("The story of an instance, a process type or a node")
        .query(fields_of::<WhyQuery>)
        .answers(200, Json(of::<Why>))
        .refuses(&[404, 422]),
    Call::new("GET", paths::STATS, VIEWER)
        .does("What instances use")
        .query(fields_of::<StatsQuery>)
        .answers(200, Json(of::<Vec<StatsRow>>)),
    Call::new("GET", paths::VOLUMES, VIEWER)
        .does("Volumes, by page")
        .query(fields_of::<VolumesQuery>)
        .answers(200, Page(of::<Vec<VolumeRow>>)),
    Call::new("DELETE", paths::VOLUME, ADMIN)
        .does("Deletes a volume that no instance has")
        .answers(202, Nothing)
        .refuses(&[409]),
    Call::new("GET", paths::NODES, CLUSTER_VIEWER)
        .does("Nodes, by page")
        .query(fields_of::<NodesQuery>)
        .answers(200, Page(of::<Vec<NodeRow>>)),
    Call::new("DELETE", paths::NODE, CLUSTER_ADMIN)
        .does("Removes a node")
        .query(fields_of::<RemoveNodeQuery>)
        .refuses(&[409]),
    Call::new("PUT", paths::NODE_SCHEDULING, CLUSTER_ADMIN)
        .does("Cordon, uncordon, drain")
        .body(of::<SchedulingRequest>)
        .refuses(&[409]),
    Call::new("PUT", paths::NODE_ORG, CLUSTER_ADMIN)
        .does("Whose apps the node runs")
        .body(of::<NodeOrgRequest>)
        .refuses(&[409]),
    Call::new("PATCH", paths::NODE_LABELS, CLUSTER_ADMIN)
        .does("Sets and removes labels")
        .body(of::<LabelsRequest>)
        .refuses(&[409, 422]),
    Call::new("POST", paths::NODE_STOP_UNKNOWN, CLUSTER_ADMIN)
        .does("Stops what the store does not know")
        .body(of::<StopUnknownRequest>)
        .answers(200, Json(of::<StopUnknownResponse>))
        .refuses(&[409]),
    Call::new("GET", paths::EDGES, CLUSTER_VIEWER)
        .does("Edges")
        .answers(200, Json(of::<Vec<EdgeRow>>)),
    Call::new("DELETE", paths::EDGE, CLUSTER_ADMIN)
        .does("Removes an edge that was revoked")
        .refuses(&[409]),
    Call::new("GET", paths::MEMBERS, CLUSTER_VIEWER)
        .does("Who has applied what was told to all")
        .query(fields_of::<AcknowledgementsQuery>)
        .answers(200, Json(of::<Acknowledgements>)),
    Call::new("POST", paths::APPROVE, CLUSTER_ADMIN)
        .does("The machine may do what members do")
        .refuses(&[409]),
    Call::new("POST", paths::REVOKE, CLUSTER_ADMIN)
        .does("The machine may do nothing any more")
        .answers(200, Json(of::<RevokeResponse>))
        .refuses(&[409]),
    Call::new("POST", paths::ROTATE_KEYS, CLUSTER_ADMIN)
        .does("The machine is to have other keys")
        .refuses(&[409]),
    Call::new("GET", paths::TOKENS, CLUSTER_VIEWER)
        .does("Enrollment tokens")
        .answers(200, Json(of::<Vec<TokenRow>>)),
    Call::new("POST", paths::TOKENS, CLUSTER_ADMIN)
        .does("Makes an enrollment token")
        .body(of::<CreateTokenRequest>)
        .answers(201, Json(of::<CreateTokenResponse>))
        .refuses(&[404, 409, 422]),
    Call::new("DELETE", paths::TOKEN, CLUSTER_ADMIN).does("It lets no machine in any more"),
    Call::new("GET", paths::CA, CLUSTER_VIEWER)
        .does("The cluster's CA")
        .answers(200, Json(of::<CaRow>)),
    Call::new("POST", paths::CA, CLUSTER_ADMIN)
        .does("Replaces the CA")
        .body(of::<RotateCaRequest>)
        .answers(200, Json(of::<CaRow>))
        .refuses(&[409]),
    Call::new("GET", paths::NETWORK, CLUSTER_VIEWER)
        .does("The overlay")
        .answers(200, Json(of::<NetworkStatus>)),
    Call::new("PATCH", paths::NETWORK, CLUSTER_ADMIN)
        .does("Sets how the overlay is")
        .body(of::<NetworkSettingsRequest>)
        .answers(200, Json(of::<NetworkStatus>))
        .refuses(&[409, 422]),
    Call::new("POST", paths::NETWORK_DOCTOR, CLUSTER_ADMIN)
        .does("Measures every link")
        .body(of::<DoctorRequest>)
        .answers(200, Json(of::<NetworkDiagnosis>))
        .refuses(&[404, 409, 422]),
    Call::new("GET", paths::REGISTRIES, CLUSTER_VIEWER)
        .does("Logins at registries")
        .answers(200, Json(of::<Vec<RegistryRow>>)),
    Call::new("POST", paths::REGISTRIES, CLUSTER_ADMIN)
        .does("Logs the cluster in")
        .body(of::<RegistryLoginRequest>)
        .answers(200, Json(of::<RegistryRow>))
        .refuses(&[404, 422, 502, 504]),
    Call::new("DELETE", paths::REGISTRIES, CLUSTER_ADMIN)
        .does("Logs the cluster out")
        .query(fields_of::<RegistryQuery>)
        .refuses(&[404, 422]),
    Call::new("GET", paths::CERTIFICATES, CLUSTER_VIEWER)
        .does("Certificates of hosts")
        .answers(200, Json(of::<Vec<CertificateRow>>)),
    Call::new("POST", paths::CERTIFICATES, CLUSTER_ADMIN)
        .does("Takes a certificate with its key; one of the same name is replaced")
        .body(of::<AddCertificateRequest>)
        .answers(200, Json(of::<CertificateRow>))
        .refuses(&[409, 422]),
    Call::new("DELETE", paths::CERTIFICATES, CLUSTER_ADMIN)
        .does("Removes a certificate")
        .query(fields_of::<CertificateQuery>)
        .refuses(&[404, 422]),
    Call::new("GET", paths::ACME, CLUSTER_VIEWER)
        .does("Whether certificates are ordered by ACME, and how it goes")
        .answers(200, Json(of::<AcmeStatus>)),
    Call::new("PUT", paths::ACME, CLUSTER_ADMIN)
        .does("Certificates are ordered by ACME from now on")
        .body(of::<AcmeRequest>)
        .answers(200, Json(of::<AcmeStatus>))
        .refuses(&[409, 422, 502, 504]),
    Call::new("DELETE", paths::ACME, CLUSTER_ADMIN)
        .does("No certificate is ordered any more; those there are lapse"),
    Call::new("POST", paths::ACME_RETRY, CLUSTER_ADMIN)
        .does("A name whose order failed is tried again now")
        .query(fields_of::<AcmeRetryQuery>)
        .refuses(&[404, 409, 422]),
    Call::new("GET", paths::INGRESS_CA, ANYONE)
        .does("The CA of hosts without a certificate of their own")
        .answers(200, Json(of::<IngressCaRow>)),
    Call::new("GET", paths::IMAGES, CLUSTER_VIEWER)
        .does("What nodes have in their caches")
        .answers(200, Json(of::<Vec<ImageRow>>)),
];
