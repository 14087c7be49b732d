//! What a manifest means, once it was read: names parsed, sizes in bytes, times in milliseconds,
//! every default filled in. The rest of the platform works with these types only.

use std::collections::BTreeMap;

use model::instance::{EgressPolicy, HealthCheck, Init, Port, RestartPolicy, StopPolicy, Volume};
use model::{AppName, ProcessName, RouteSettings};
use serde::{Deserialize, Serialize};

/// A whole manifest (ADR 0002).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The app.
    pub app: AppName,
    /// The image, pinned by digest, where the manifest names it instead of `deploy --image`.
    pub image: Option<String>,
    /// Plain variables for every process.
    pub env: BTreeMap<String, String>,
    /// Process types; at least one.
    pub processes: BTreeMap<ProcessName, Process>,
    /// Host name (lowercase) to where it leads, and TCP routes under their names ([`model::route_name`]).
    pub routes: BTreeMap<String, RouteTarget>,
}

/// One process type: what command runs, and how it scales (ADR 0001).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Replaces the image's Cmd; absent: the image's own.
    pub command: Option<Vec<String>>,
    /// User to run as; absent: the image's, else root.
    pub user: Option<String>,
    /// Who is PID 1; absent: the image where its command is known to insist on it, else the platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<Init>,
    /// Variables of this process; they win over [`Manifest::env`].
    pub env: BTreeMap<String, String>,
    /// Secret bundles.
    pub secrets: Vec<String>,
    /// Modes of the files of secret bundles, by name; 0444 for others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secret_modes: BTreeMap<String, u32>,
    /// What its instances may reach outside of the cluster, the manifest's own `egress` merged in. Releases from before this
    /// key: everything.
    #[serde(default, skip_serializing_if = "EgressPolicy::is_all")]
    pub egress: EgressPolicy,
    /// How to stop it.
    pub stop: StopPolicy,
    /// When to start it again.
    pub restart: RestartPolicy,
    /// Ports, in order; the first becomes `PORT`.
    pub ports: Vec<Port>,
    /// When it is ready.
    pub healthcheck: Option<HealthCheck>,
    /// When it is dead, and replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<HealthCheck>,
    /// The region whose nodes run it; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Labels that its nodes must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What it needs.
    pub resources: Resources,
    /// How many run.
    pub scaling: Scaling,
    /// Volumes, at `/mnt/volumes/<name>`.
    pub volumes: Vec<Volume>,
    /// How a new release replaces the old.
    pub deploy: Deploy,
}

/// What an instance needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// A request, in thousandths of a core.
    pub cpu_millis: u32,
    /// A hard cap, in bytes.
    pub memory_bytes: u64,
    /// Size of the writable scratch disk, in bytes.
    pub scratch_bytes: u64,
}

/// How many instances run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scaling {
    /// At first, and never fewer but by `scale`.
    pub min: u32,
    /// Never more.
    pub max: u32,
}

/// How a new release replaces the old.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deploy {
    /// In which way.
    pub strategy: Strategy,
    /// How many fewer than wanted may be ready meanwhile.
    pub max_unavailable: u32,
    /// How many more than wanted may exist meanwhile.
    pub max_surge: u32,
    /// Whether a release that cannot become healthy gives way to the one before.
    pub auto_revert: bool,
    /// How long a new instance must be ready on end until it counts, in milliseconds. Releases from before this key: 0.
    #[serde(default)]
    pub min_healthy_ms: u64,
    /// How long a new instance may take until it is ready, from when its image and disks are there, in milliseconds. Absent: five
    /// minutes, or the grace of its health check and a minute, whichever is more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// What runs once, in an instance of its own, before the release is rolled out. Absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_command: Option<Vec<String>>,
}

/// In which way a new release replaces the old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Some at a time, by `max_surge` and `max_unavailable`.
    Rolling,
    /// All at once: the old are terminated and the new created, and nobody serves meanwhile.
    Immediate,
    /// One new instance first; the others, rolling, once that one counts.
    Canary,
    /// All the new beside the old; traffic goes to the new, and the old are terminated, when all the new count.
    BlueGreen,
}

/// Where a host name leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTarget {
    /// The process type.
    pub process: ProcessName,
    /// One of its ports.
    pub port: u16,
    /// How edges treat what comes for it.
    #[serde(default, skip_serializing_if = "RouteSettings::is_default")]
    pub settings: RouteSettings,
}
