//! What commands print with `--format json` where it is no type of the API: the fields and what they mean, as docs/json.md has them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use api::enrollment::{EnrollRole, Member};
use api::user::{Acknowledgement, CaRow, DeployResponse, Grants, RolloutStatus, SecretRow};
use manifest::Diagnostic;
use model::image::ImageConfig;
use model::{Digest, EnvKey, InstanceId, ReleaseNumber, UserName};
use schemars::JsonSchema;
use serde::Serialize;

/// A release and how its rollout ended.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Deployed {
    /// The release.
    pub(crate) release: DeployResponse,
    /// How its rollout ended, or how far it is where `--timeout` was over first.
    pub(crate) rollout: RolloutStatus,
}

/// A secret bundle that was set.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SecretsSet {
    /// The bundle.
    pub(crate) bundle: SecretRow,
    /// The release that runs with it; null without `--deploy`.
    pub(crate) release: Option<ReleaseNumber>,
}

/// An env that was destroyed.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Destroyed {
    /// The env.
    pub(crate) env: EnvKey,
    /// Whether its last instance is gone; false with `--no-wait`.
    pub(crate) gone: bool,
}

/// What a command removed, whatever it is.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Removed {
    /// What is gone.
    removed: RemovedThing,
}

/// A thing that is gone.
#[derive(Debug, Serialize, JsonSchema)]
struct RemovedThing {
    /// What kind of thing.
    kind: RemovedKind,
    /// Its name; of a token, its id.
    name: String,
    /// The id of a node or an edge: `n2`, `e1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// The env of a secret bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    env: Option<EnvKey>,
}

/// What a command can remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RemovedKind {
    /// A secret bundle of an env.
    SecretBundle,
    /// A node.
    Node,
    /// An edge.
    Edge,
    /// The cluster's login to a registry.
    RegistryLogin,
    /// The certificate of hosts.
    Certificate,
    /// A token with which a machine joins.
    EnrollmentToken,
    /// A user.
    User,
    /// A token of a user.
    UserToken,
    /// An org.
    Org,
    /// An app.
    App,
    /// A cluster that was known here.
    Context,
}

impl Removed {
    /// A thing that its name says all of.
    pub(crate) fn new(kind: RemovedKind, name: impl Into<String>) -> Self {
        let gone = RemovedThing {
            kind,
            name: name.into(),
            id: None,
            env: None,
        };
        Self { removed: gone }
    }

    /// A node or an edge.
    pub(crate) fn member(member: Member, name: &str) -> Self {
        let kind = match member {
            Member::Node(_) => RemovedKind::Node,
            Member::Edge(_) => RemovedKind::Edge,
        };
        let mut removed = Self::new(kind, name);
        removed.removed.id = Some(member.to_string());
        removed
    }

    /// A secret bundle.
    pub(crate) fn bundle(name: &str, env: EnvKey) -> Self {
        let mut removed = Self::new(RemovedKind::SecretBundle, name);
        removed.removed.env = Some(env);
        removed
    }
}

/// A signal that an app was sent.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Signalled {
    /// The instance.
    pub(crate) instance: InstanceId,
    /// The signal's name: `SIGHUP`, `SIGRTMIN+3`.
    pub(crate) signal: String,
}

/// The cluster's CA, and who has learnt of it.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct CaRotation {
    /// The CA.
    pub(crate) ca: CaRow,
    /// Every approved member, and whether it trusts what `ca` says.
    pub(crate) members: Vec<Acknowledgement>,
}

/// A mistake in a manifest.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Mistake {
    /// What kind of mistake; docs/manifest.md lists them.
    code: &'static str,
    /// Dotted path of the key or value, such as `processes.web.ports[0].port`. Empty: the whole file, or a place that belongs to no key.
    path: String,
    /// Line, from 1.
    line: usize,
    /// Column in characters, from 1.
    column: usize,
    /// What is wrong.
    message: String,
    /// What to do about it.
    hint: Option<String>,
    /// The file, where several were named.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
}

impl Mistake {
    /// The mistake, of this file where several were named.
    pub(crate) fn new(mistake: &Diagnostic, file: Option<&str>) -> Self {
        Self {
            code: mistake.code.as_str(),
            path: mistake.path.clone(),
            line: mistake.line,
            column: mistake.column,
            message: mistake.message.clone(),
            hint: mistake.hint.clone(),
            file: file.map(str::to_owned),
        }
    }
}

/// A cluster that is known here.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ContextRow {
    /// Its name here.
    pub(crate) name: String,
    /// The URL of its server; null: its file is damaged.
    pub(crate) server: Option<String>,
    /// Whether commands are for it.
    pub(crate) current: bool,
}

/// A cluster that was logged in to.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct LoggedIn {
    /// As what it is kept.
    pub(crate) context: ContextRow,
    /// The user that the token is of.
    pub(crate) user: UserName,
    /// What the token opens.
    pub(crate) grants: Grants,
}

/// A server that is set up on this machine.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ServerSetUp {
    /// Its cluster; null where the server was set up before, and other options were kept.
    pub(crate) cluster: Option<ClusterSetUp>,
    /// Whether options were kept that are not those of before; a server that runs goes by them once it is started again.
    pub(crate) options_changed: bool,
    /// How it is started.
    pub(crate) start: RoleStart,
}

/// The cluster of a server that is set up.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ClusterSetUp {
    /// The cluster's random id.
    pub(crate) id: String,
    /// The fingerprint of its CA: `sha256:` and 64 hexadecimal digits.
    pub(crate) ca_fingerprint: String,
    /// The server's URL.
    pub(crate) server: String,
    /// The file with the first admin's configuration.
    pub(crate) client_config: PathBuf,
    /// The file with the key that opens backups: keep a copy apart from them.
    pub(crate) key_file: PathBuf,
    /// Whether it was made just now; else it was there before.
    pub(crate) is_new: bool,
}

/// How a role that is set up on this machine is started.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct RoleStart {
    /// Whether its unit of systemd runs now, and starts with the machine.
    pub(crate) started: bool,
    /// The command that starts it; null where it runs, or where nothing has to be done.
    pub(crate) command: Option<String>,
}

/// A backup of the store.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct BackedUp {
    /// The file.
    pub(crate) file: PathBuf,
    /// Its size, in bytes.
    pub(crate) size_bytes: u64,
    /// The file with the key that opens it, which is not in it: keep a copy apart.
    pub(crate) key_file: PathBuf,
}

/// A backup that was put in the place of the store, or could be.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RestoredBackup {
    /// Whether it was only shown that it can be restored, and nothing was changed.
    pub(crate) rehearsed: bool,
    /// The id of its cluster.
    pub(crate) cluster: String,
    /// How many nodes it knows.
    pub(crate) nodes: usize,
    /// How many envs.
    pub(crate) envs: usize,
    /// How many instances.
    pub(crate) instances: usize,
    /// How many volumes; what is in them is on the nodes.
    pub(crate) volumes: usize,
    /// How many secret bundles and registry logins were opened.
    pub(crate) secrets: usize,
    /// What in it cannot be read, for people. It is kept as it is.
    pub(crate) unreadable: Vec<String>,
    /// Where the store that was there is kept; null: there was none, or nothing was changed.
    pub(crate) replaced: Option<PathBuf>,
}

/// A machine that is a member of a cluster.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct JoinedMember {
    /// As what.
    pub(crate) role: EnrollRole,
    /// The id of the node or the edge that it is: `n2`, `e1`.
    pub(crate) id: String,
    /// Its name in the cluster.
    pub(crate) name: String,
    /// Its region.
    pub(crate) region: String,
    /// The server's URL.
    pub(crate) server: String,
    /// The cluster's random id.
    pub(crate) cluster: String,
    /// The fingerprint of its key, to compare before it is approved; null: its certificate cannot be read.
    pub(crate) key: Option<String>,
    /// Whether it joined just now; else it had joined before.
    pub(crate) is_new: bool,
    /// Of one that joined just now: whether a user has to approve it first.
    pub(crate) pending: bool,
    /// Whether options were kept that are not those of before; a role that runs goes by them once it is started again.
    pub(crate) options_changed: bool,
    /// How its role is started.
    pub(crate) start: RoleStart,
}

/// A role of which nothing is left running on this machine.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TakenDown {
    /// The role.
    pub(crate) role: EnrollRole,
    /// Its data folder, which stays.
    pub(crate) data_dir: PathBuf,
}

/// A local port that leads to a port of an instance.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Forwarding {
    /// Where it listens: `127.0.0.1:5432`, `[::1]:5432`.
    pub(crate) local: SocketAddr,
    /// The port of the instance.
    pub(crate) port: u16,
    /// The instance; with `--process` later connections may go to another one.
    pub(crate) instance: InstanceId,
}

/// This program.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ProgramVersion {
    /// Its version (Semantic Versioning).
    pub(crate) version: &'static str,
}

/// An image, as its registry or a file has it.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct InspectedImage {
    /// The reference as it was given.
    pub(crate) reference: String,
    /// The digest of the index or manifest that the reference names.
    pub(crate) digest: Digest,
    /// Whether that is an index, for several platforms.
    pub(crate) is_index: bool,
    /// Every Linux image of the reference, in the index's order.
    pub(crate) platforms: Vec<OfferedImage>,
    /// The requested images, by architecture and variant.
    pub(crate) images: BTreeMap<String, DescribedImage>,
}

/// An image of an index.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct OfferedImage {
    /// Its platform: `linux/amd64`.
    pub(crate) platform: String,
    /// The digest of its manifest.
    pub(crate) digest: Digest,
}

/// An image for one platform.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct DescribedImage {
    /// The digest of its manifest.
    pub(crate) digest: Digest,
    /// The size of its layers as stored, in bytes.
    pub(crate) size_bytes: u64,
    /// What it says of how it is run.
    pub(crate) config: ImageConfig,
    /// Its layers, the lowest first.
    pub(crate) layers: Vec<ImageLayer>,
}

/// A layer of an image.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ImageLayer {
    /// Its digest as stored.
    pub(crate) digest: Digest,
    /// Its size as stored, in bytes.
    pub(crate) size_bytes: u64,
    /// How it is compressed.
    pub(crate) compression: String,
    /// Its digest once it is unpacked.
    pub(crate) diff_id: Digest,
}

/// A root disk that was built.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RootDiskReport {
    /// The reference as it was given.
    pub(crate) reference: String,
    /// The digest of the index or manifest that the reference names.
    pub(crate) image_digest: Digest,
    /// The digest of the manifest of the image that was built.
    pub(crate) resolved_digest: Digest,
    /// Its platform: `linux/amd64`.
    pub(crate) platform: String,
    /// The file of the disk.
    pub(crate) output: PathBuf,
    /// The size of the disk with its holes, in bytes.
    pub(crate) size_bytes: u64,
    /// The checksum of the disk.
    pub(crate) sha256: Digest,
    /// The time of the whole command.
    pub(crate) seconds: f64,
    /// The time until the image was here.
    pub(crate) fetch_seconds: f64,
    /// The time of the build.
    pub(crate) build_seconds: f64,
}
