//! `platform wireguard`: the process that is a node's or an edge's WireGuard interface on a kernel without WireGuard. Agents start it.

use std::path::PathBuf;

use clap::Args;
use wireguard::process::{ProcessOptions, run as carry};

use crate::failure::Failure;

/// Be a WireGuard interface until the agent says to end
///
/// Nodes and edges start this by themselves where the kernel has no WireGuard. It outlives them, and gives up all rights once it runs.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Name of the link
    #[arg(long)]
    name: String,
    /// File of the network namespace in which the link is, this one by default
    #[arg(long, value_name = "FILE")]
    namespace: Option<PathBuf>,
    /// UDP port
    #[arg(long)]
    port: u16,
    /// Largest packet within the tunnels, in bytes
    #[arg(long)]
    mtu: u16,
    /// Where it listens for its agent
    #[arg(long, value_name = "SOCKET")]
    control: PathBuf,
    /// Have the kernel neither cut nor join packets; PLATFORM_WIREGUARD_NO_OFFLOAD=1 of the agent sets it
    #[arg(long)]
    no_offload: bool,
}

/// Carries packets.
pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments {
        name,
        namespace,
        port,
        mtu,
        control,
        no_offload,
    } = arguments;
    carry(&ProcessOptions {
        name,
        namespace,
        port,
        mtu,
        control,
        offload: !no_offload,
    })?;
    Ok(())
}
