//! `platform resolver`: the process that answers for names in a node's network namespace. Agents start it.

use std::path::PathBuf;

use clap::Args;
use resolver::process::{ProcessOptions, run as answer};

use crate::failure::Failure;

/// Answer for the names of instances until the agent says to end
///
/// Nodes start this by themselves. It outlives them, and gives up all rights once it runs.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// File of the network namespace in which it answers; it asks the machine's name servers in this one
    #[arg(long, value_name = "FILE")]
    namespace: PathBuf,
    /// Where it listens for its agent
    #[arg(long, value_name = "SOCKET")]
    control: PathBuf,
}

/// Answers.
pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { namespace, control } = arguments;
    answer(&ProcessOptions { namespace, control })?;
    Ok(())
}
