//! The node agent: reconciles one machine with the desired state of the control plane.
//!
//! The decisions are `node-core`'s: what to start and stop (`node_core::reconcile`), how an instance
//! lives (`node_core::instance`), what its guest runs (`node_core::boot`). This crate performs them:
//!
//! ```text
//! agent ── desired state, reports ── server     one per node
//!   └ instance_handle one per instance: starts it, stops it, reads its status
//!   └ instance_task   its task: its life cycle, its events and effects
//!       ├ guest_link  vsock: config in, logs and exit out
//!       │  └ guest_calls  commands, signals, stats of a running guest
//!       ├ secrets     fetched to boot with, in memory only
//!       └ probes      health, over the network or by a command
//!   ═══ host: traits for VMM, network, images, disks, server, files, logs ═══
//! adapters            the real ones: microvm, node-network, images, volumes, api-client, files
//! streams             what the server asks to be opened: logs, exec, calls
//! overlay_link, names   beside the agent: the other members, and what the resolver of the instances knows
//! ```
//!
//! Nothing above the line touches the machine: crate `simulation` runs it on a simulated one.
//!
//! The agent may be killed at any moment: everything it needs is on disk or can be observed on the
//! machine, and its VMs and their connections go on without it.

mod adapters;
mod admission;
pub mod agent;
mod backlog;
mod boots;
mod clock;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod directory;
mod ended_logs;
mod exec;
mod forward;
mod framed;
mod guest_calls;
mod guest_link;
mod hardware;
mod holders;
pub mod host;
mod images;
mod instance_handle;
mod instance_task;
mod lane;
mod line_filter;
mod logins;
mod logs;
mod machine;
mod metrics;
mod names;
mod node;
mod node_disk;
mod open_files;
mod overlay_link;
mod owner;
mod private;
mod probes;
mod record;
mod reporting;
mod secrets;
mod streams;
mod unreadable;
mod upkeep;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

pub use crate::clock::Clock;
pub use crate::directory::Directory;
pub use crate::metrics::NodeMetrics;

/// How a node runs.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// Where identity, desired state, disks and logs are kept.
    pub data_dir: PathBuf,
    /// Where sockets and records of running microVMs are kept; lost at reboot, as the VMs are.
    pub run_dir: PathBuf,
    /// The server's URL; needed to enroll, remembered afterwards.
    pub server: Option<String>,
    /// The one-time enrollment token; needed once.
    pub token: Option<String>,
    /// Wanted name, the host name.
    pub name: String,
    /// Region the machine is in.
    pub region: String,
    /// Folder with the guest's kernel and initramfs (`cargo xtask guest`).
    pub guest_dir: PathBuf,
    /// Memory that instances may use, in bytes; absent: most of the machine's.
    pub memory_bytes: Option<u64>,
    /// What cached layers and root disks may take together, in bytes; absent: a fifth of what others leave of the disk, and
    /// at most 20 GiB. What instances run from and the last releases stay also where they take more.
    pub image_cache_bytes: Option<u64>,
    /// Registries, `host[:port]`, that may be spoken to without TLS. The loopback always may.
    pub insecure_registries: BTreeSet<String>,
    /// Mirrors by the registry they stand in for ([`registry::RegistryOptions::mirrors`]).
    pub registry_mirrors: BTreeMap<String, Vec<String>>,
    /// Where it tells metrics and readiness; nowhere by default.
    pub metrics_listen: Option<SocketAddr>,
    /// How its peers reach it, as far as its operator says.
    pub underlay: membership::UnderlayOptions,
}

/// Where a node that is to be taken down keeps its things.
#[derive(Debug, Clone)]
pub struct DownOptions {
    /// As in [`NodeOptions`].
    pub data_dir: PathBuf,
    /// As in [`NodeOptions`].
    pub run_dir: PathBuf,
}

/// Why a node cannot run.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// One of its folders cannot be used.
    #[error("cannot use the folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent runs on the same data folder.
    #[error("another agent runs on {}; stop it first", .0.display())]
    Busy(PathBuf),
    /// Its run folder has the VMs of another node.
    #[error(
        "the folder {} belongs to node {node} of cluster {cluster}, whose microVMs may run; \
         hint: name this node's own folder by --run-dir, or take that node down with its own --data-dir; \
         where that is lost, remove node.json from the run folder",
        run_dir.display()
    )]
    AnothersRunFolder {
        /// The run folder.
        run_dir: PathBuf,
        /// The node that it belongs to.
        node: model::NodeId,
        /// That node's cluster.
        cluster: String,
    },
    /// No VMM can run here.
    #[error(transparent)]
    Driver(#[from] microvm::NoDriver),
    /// A program is missing.
    #[error(transparent)]
    Programs(#[from] microvm::ProgramsError),
    /// The guest's kernel or initramfs is missing.
    #[error("cannot find what guests boot")]
    Guest(#[source] io::Error),
    /// The address of its metrics is taken, or not this machine's.
    #[error(transparent)]
    Metrics(#[from] ::metrics::CannotListen),
    /// The disk cannot be measured.
    #[error("cannot measure the disk of {}", path.display())]
    Disk {
        /// The data folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The machine's hardware cannot be read.
    #[error("cannot read the hardware of this machine")]
    Hardware(#[source] io::Error),
    /// It is no member of a cluster and could not become one.
    #[error(transparent)]
    Join(#[from] membership::JoinError),
    /// Its folder holds another kind of member.
    #[error("the data folder belongs to {0}, which is no node")]
    NotANode(api::enrollment::Member),
    /// Its credentials are damaged.
    #[error("cannot use the credentials in member.json of the data folder")]
    Client(#[source] api_client::ClientError),
    /// A state file cannot be read.
    #[error(transparent)]
    State(#[from] state_file::StateFileError),
    /// The registry client cannot be made.
    #[error("cannot prepare to fetch images")]
    Registry(#[source] registry::SetupError),
    /// The workload network cannot be made or removed.
    #[error("cannot set up the workload network")]
    Network(#[from] node_network::NetworkError),
    /// What an agent before this one left cannot be taken over.
    #[error("cannot resume the instances of this node")]
    Resume(#[source] host::HostError),
    /// The interface to the other members cannot be removed.
    #[error("cannot remove the interface of the overlay")]
    Overlay(#[from] wireguard::interface::InterfaceError),
    /// The resolver cannot be ended.
    #[error("cannot end the resolver of the instances")]
    Resolver(#[from] resolver::agent::ResolverError),
    /// Some microVMs could not be ended.
    #[error("cannot end every microVM: {0}")]
    Left(String),
}

/// Runs the agent until `shutdown`. Its microVMs go on without it.
///
/// # Errors
/// What kept it from starting. Once it runs, it goes on whatever happens to the server.
pub async fn run(options: NodeOptions, shutdown: CancellationToken) -> Result<(), NodeError> {
    node::run(options, shutdown).await
}

/// Joins the cluster and keeps what proves it, for [`run`]. A machine that has joined before is left as it is, and no token is
/// looked at.
///
/// # Errors
/// What this machine lacks, or why the server refused. No token is spent unless the server accepted it.
pub async fn join(options: &NodeOptions) -> Result<membership::Membership, NodeError> {
    node::join(options).await
}

/// Deletes what says which node this machine was, so that it can join anew: the cluster does not know it any more.
///
/// # Errors
/// Its agent or its microVMs run.
pub async fn leave(data_dir: &Path, run_dir: &Path) -> Result<(), NodeError> {
    node::leave(data_dir, run_dir).await
}

/// The driver that would run the VMs of a node on this machine, whose guest folder this is, and why. Changes nothing.
///
/// # Errors
/// What keeps every driver from running here.
pub async fn driver(guest_dir: PathBuf) -> Result<api::node::DriverChoice, NodeError> {
    node::driver(guest_dir).await
}

/// Stops every microVM of this node and removes its network from the machine.
///
/// # Errors
/// What could not be removed.
pub async fn down(options: &DownOptions) -> Result<(), NodeError> {
    node::down(options).await
}
