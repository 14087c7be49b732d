//! `cargo xtask simulate`: runs of the simulated cluster. The simulation is a program of its own, so that
//! the other tasks do not wait for the node's crates to be built.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// `--seed N` replays one run and prints its trace; `--seeds N` makes many, `--first N` says where.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds the simulation and runs it.
///
/// # Errors
/// It cannot be built, or a run failed.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let status = Command::new("cargo")
        .args(["run", "--release", "--quiet", "-p", "simulation", "--"])
        .args(&options.arguments)
        .current_dir(root)
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("the simulation failed");
    }
    Ok(())
}
