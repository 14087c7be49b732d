//! One instance, completely described: the planner chose everything, the node only obeys.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use crate::ids::{
    AppName, Digest, EnvKey, EnvName, InstanceId, ProcessName, ReleaseNumber, Timestamp, VolumeId,
};

/// Everything a node needs to run one instance. Immutable: a change is another instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// The instance.
    pub id: InstanceId,
    /// Its app.
    pub app: AppName,
    /// Its env.
    pub env: EnvName,
    /// Its process type.
    pub process: ProcessName,
    /// The release it runs.
    pub release: ReleaseNumber,
    /// What of the process type it runs.
    #[serde(default, skip_serializing_if = "Runs::is_app")]
    pub runs: Runs,
    /// The image to run, pinned for this node's architecture.
    pub image: PinnedImage,
    /// Replaces the image's Cmd; the image's Entrypoint stays. Absent: the image's own.
    pub command: Option<Vec<String>>,
    /// User to run as, in the OCI form `user[:group]`. Absent: the image's User, else root.
    pub user: Option<String>,
    /// Who is PID 1 of the app's PID namespace. Absent: the image where its command is known to insist on it
    /// (`node_core::boot`), else the platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<Init>,
    /// The manifest's variables for this process, the `[env]` table merged in.
    pub variables: BTreeMap<String, String>,
    /// Ports the app listens on, in the manifest's order; the first becomes `PORT`.
    pub ports: Vec<Port>,
    /// When to call it ready. Absent: ready once the app has run for a moment
    /// (`node_core::instance::SETTLE_MS`), so that one that exits at once is never called ready.
    pub healthcheck: Option<HealthCheck>,
    /// When to call it dead, so that it is replaced. Absent: never, as long as its app and its VM run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<HealthCheck>,
    /// How to stop it.
    pub stop: StopPolicy,
    /// What to do when it ends by itself.
    pub restart: RestartPolicy,
    /// CPU request, in thousandths of a core.
    pub cpu_millis: u32,
    /// Memory of the microVM, a hard cap, in bytes.
    pub memory_bytes: u64,
    /// Size of the scratch disk, in bytes; sparse on the host.
    pub scratch_bytes: u64,
    /// The instance's one overlay address (ADR 0004).
    pub address: Ipv6Addr,
    /// What it may reach outside of the cluster. Specs from before this field: everything, as it was then.
    #[serde(default, skip_serializing_if = "EgressPolicy::is_all")]
    pub egress: EgressPolicy,
    /// Secret bundles, files under `/run/secrets/<bundle>/`. Their content is fetched by the node
    /// when the instance is to boot, and kept in memory only.
    pub secrets: Vec<SecretVersion>,
    /// Volumes, at `/mnt/volumes/<name>`; all of one ordinal.
    pub volumes: Vec<AttachedVolume>,
}

impl InstanceSpec {
    /// The env it belongs to.
    pub fn env_key(&self) -> EnvKey {
        EnvKey {
            app: self.app.clone(),
            env: self.env.clone(),
        }
    }

    /// Which of its process type's volumes it has; absent when it has none.
    pub fn ordinal(&self) -> Option<u32> {
        self.volumes.first().map(|volume| volume.ordinal)
    }
}

/// What of a process type an instance runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Runs {
    /// The app.
    #[default]
    App,
    /// The release command, once, before the release is rolled out. It has no ports, checks and volumes.
    ReleaseCommand,
    /// A command of a user (`platform run`), once, in an instance of its own. It has no ports, checks and volumes.
    Command {
        /// Whether its user is at the other end of its streams: it begins when they are, and ends when they leave. Else
        /// it begins at once, and its output goes to the instance's log.
        attached: bool,
        /// When it is ended, should it still run then.
        ends_at: Timestamp,
    },
}

impl Runs {
    /// Whether it is the app.
    pub fn is_app(&self) -> bool {
        *self == Self::App
    }

    /// Whether it is a command of a user.
    pub fn is_command(&self) -> bool {
        matches!(self, Self::Command { .. })
    }

    /// Whether it is a command of a user that begins when they are at the other end of its streams.
    pub fn is_attached(&self) -> bool {
        matches!(self, Self::Command { attached: true, .. })
    }
}

/// Who is PID 1 of the PID namespace that an app lives in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// The platform: it reaps orphans and passes signals on, and the app is a process like any other. As with
    /// `docker run --init`.
    #[default]
    Platform,
    /// The app itself, for images with an init of their own that insists on being PID 1.
    Image,
}

impl Init {
    /// Whether it is the platform, the default.
    pub fn is_platform(&self) -> bool {
        *self == Self::Platform
    }
}

/// What an instance may reach outside of the cluster (ADR 0004). Neighbours of its env and names are no egress. What is
/// not allowed is refused with an error at once.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum EgressPolicy {
    /// The internet, and the private networks that the machine reaches: all, or those that a setting of the cluster names.
    #[default]
    All,
    /// The internet, and no private network (RFC 1918, RFC 2544). Link-local addresses, RFC 6598 and clouds' metadata are reached by nobody.
    Internet,
    /// Nothing.
    None,
}

impl EgressPolicy {
    /// Whether it is everything, the default.
    pub fn is_all(&self) -> bool {
        *self == Self::All
    }

    /// Its word in the manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Internet => "internet",
            Self::None => "none",
        }
    }
}

/// An image by immutable digest (ADR 0002: nothing ever runs by tag).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PinnedImage {
    /// Registry host, with the port where it is not the default.
    pub registry: String,
    /// Repository within the registry.
    pub repository: String,
    /// Digest of the image manifest (not of an index) for the node's architecture.
    pub digest: Digest,
}

impl std::fmt::Display for PinnedImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}@{}", self.registry, self.repository, self.digest)
    }
}

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1, routed by host name.
    Http,
    /// HTTP/2 in clear text with prior knowledge (RFC 9113, 3.3), gRPC above all, routed by host name. Of no concern to nodes: specs of
    /// instances have [`Self::Http`] in its place.
    H2c,
    /// Bytes.
    Tcp,
}

/// How the edge tells the app who the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// The guest's adapter reads the PROXY v2 header and hands on a plain connection.
    Strip,
    /// The app reads the PROXY v2 header itself, once the guest's adapter found it in order.
    V2,
}

/// One port of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The port the app listens on, 1 to 65535.
    pub port: u16,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Whether edges speak PROXY v2 to it. Absent: they do not.
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// How to find out whether an instance is well. Probes are made by the node, over the network or
/// by init, so no tool inside the image is needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// The kind of probe.
    pub probe: Probe,
    /// Time from one probe's end to the next one's start, in milliseconds.
    pub interval_ms: u64,
    /// A probe that has not answered by then has failed, in milliseconds.
    pub timeout_ms: u64,
    /// Failures before this age of the instance do not count, in milliseconds.
    pub grace_ms: u64,
    /// Consecutive successes that make it ready.
    pub healthy: u32,
    /// Consecutive failures that make it unready, and after the grace, restart it.
    pub unhealthy: u32,
}

/// One kind of probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Probe {
    /// GET `path`; 200 to 399 is a success.
    Http {
        /// Port to connect to.
        port: u16,
        /// Path, with a leading slash.
        path: String,
        /// The header `Host`. Absent: the instance's address and the port.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        /// Further headers, by name.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        headers: BTreeMap<String, String>,
    },
    /// Connect; accepted is a success.
    Tcp {
        /// Port to connect to.
        port: u16,
    },
    /// Run in the guest; exit code 0 is a success.
    Command {
        /// Program and arguments.
        command: Vec<String>,
    },
}

/// How an instance is asked to stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopPolicy {
    /// Signal name (`SIGTERM`). Absent: the image's `StopSignal`, else SIGTERM.
    pub signal: Option<String>,
    /// SIGKILL follows after this long, in milliseconds.
    pub timeout_ms: u64,
}

/// When an instance that ended by itself is started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// Which endings lead to a restart.
    pub when: RestartWhen,
    /// Restarts in a row, without a stable run between, before it is given up as failed.
    pub max_retries: u32,
}

/// Which endings lead to a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartWhen {
    /// Every ending.
    Always,
    /// Exit code other than 0, a signal, or a lost VMM.
    OnFailure,
    /// None.
    Never,
}

/// One version of a secret bundle of the instance's env. A version never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretVersion {
    /// The bundle's name.
    pub name: String,
    /// Counts from 1.
    pub version: u32,
    /// Mode of its files in the guest. Absent: 0444.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

/// A secret bundle as delivered to the node that needs it; never written to a disk in clear.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretBundle {
    /// The bundle's name: `/run/secrets/<name>/`.
    pub name: String,
    /// File name to content.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl std::fmt::Debug for SecretBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretBundle")
            .field("name", &self.name)
            .field("files", &self.files.keys())
            .finish()
    }
}

/// A volume that a process type asks for; each of its instances has one of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The volume's name: `/mnt/volumes/<name>`.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Where it is found beside `/mnt/volumes/<name>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Whose it is in the guest: `user[:group]`. Absent: the app's user's, or what the image says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// A volume attached to an instance: at no time is it attached to another one as well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedVolume {
    /// The volume; its disk lies on one node and never moves.
    pub id: VolumeId,
    /// Its name: `/mnt/volumes/<name>`.
    pub name: String,
    /// Which of the process type's instances it belongs to, from 0.
    pub ordinal: u32,
    /// Its size in bytes, for good.
    pub size_bytes: u64,
    /// As [`Volume::path`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// As [`Volume::owner`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// True when its node once said that it has the disk: one that is missing now was lost, and is
    /// not silently made anew.
    pub made: bool,
}

/// Where an instance is in its life. The node owns this; everyone else has its last report.
///
/// ```text
///   created --> preparing --> booting --> running, not ready <--> running, ready
///                 ^   |          |                |                     |
///                 |   |          |                |                     |  ends or fails
///                 |   v          v                v                     v
///                 +-- backoff <--+----------------+---------------------+
///                                |
///                                +--> failed                 retries exhausted, or cannot run
///                                |
///                                +--> stopping --> stopped   its policy does not restart it
///
///   every state --> stopping --> stopped                     it was asked to stop
/// ```
///
/// The machine with all its transitions is `node_core::instance`. Every report has the state as words of JSON:
/// `api::node::InstanceReport`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceState {
    /// Known, nothing done yet.
    Created,
    /// Its image is being fetched and its disks made.
    Preparing,
    /// Its VMM runs, the app not yet.
    Booting,
    /// The app runs.
    Running {
        /// Whether it takes traffic: its health check passes, or it has none and has run for a moment.
        ready: bool,
        /// When the app was started, this time. Absent: the node cannot read it.
        started_at: Option<Timestamp>,
    },
    /// It was asked to stop, or its last restart is waited for.
    Stopping,
    /// It ended on request, or ended by itself and its policy says not to restart.
    Stopped,
    /// It ended and waits for its restart's backoff.
    Backoff,
    /// It is given up: retries exhausted, or its image cannot be run.
    Failed,
    /// A state that this program does not know, because its node is newer. It may run: it counts as neither ready nor
    /// stopped. No node reports it of itself.
    Unknown,
}

impl InstanceState {
    /// Whether the app runs, ready or not.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Running { .. })
    }

    /// Whether the app runs and takes traffic.
    pub fn is_ready(self) -> bool {
        matches!(self, Self::Running { ready: true, .. })
    }

    /// When the app was started, where it runs and its node could read that.
    pub fn started_at(self) -> Option<Timestamp> {
        match self {
            Self::Running { started_at, .. } => started_at,
            _ => None,
        }
    }
}

impl std::fmt::Display for InstanceState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Created => "created",
            Self::Preparing => "preparing",
            Self::Booting => "booting",
            Self::Running { .. } => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Backoff => "backoff",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        })
    }
}

/// How the app in an instance ended (ADR 0003).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ExitEvent {
    /// 0 to 255; a death by signal n reads 128 + n; 127 not found, 126 not executable.
    pub exit_code: u8,
    /// The signal that ended it, by number, if one did.
    pub signal: Option<u8>,
    /// True when the guest's kernel killed the app's main process because memory ran out.
    pub oom_killed: bool,
    /// True when the platform had asked it to stop.
    pub requested_stop: bool,
    /// When, by the guest's clock.
    pub at: Timestamp,
}

impl std::fmt::Display for ExitEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.signal {
            Some(signal) => write!(
                f,
                "killed by signal {signal} (exit code {})",
                self.exit_code
            )?,
            None => write!(f, "exit code {}", self.exit_code)?,
        }
        if self.oom_killed {
            f.write_str(", out of memory")?;
        }
        Ok(())
    }
}
