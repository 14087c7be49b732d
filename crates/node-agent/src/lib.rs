//! The node agent: reconciles one machine with what the control plane wants of it.

mod guest_link;
mod logs;
mod probes;

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

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
}

/// Where a node that is to be taken down keeps its things.
#[derive(Debug, Clone)]
pub struct DownOptions {
    /// As in [`NodeOptions`].
    pub data_dir: PathBuf,
    /// As in [`NodeOptions`].
    pub run_dir: PathBuf,
}

/// Why a node stopped.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {}

/// Runs the agent until `shutdown`. Its microVMs go on without it.
///
/// # Errors
/// What kept it from starting.
pub async fn run(options: NodeOptions, shutdown: CancellationToken) -> Result<(), NodeError> {
    let _ = options;
    shutdown.cancelled().await;
    Ok(())
}

/// Stops every microVM of this node and removes its network from the machine.
///
/// # Errors
/// What could not be removed.
#[allow(clippy::unused_async, reason = "it will stop machines")]
pub async fn down(options: &DownOptions) -> Result<(), NodeError> {
    let _ = options;
    Ok(())
}
