//! `platform manual`: the man pages, which the package has.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Command};

use crate::failure::Failure;

/// Write the man pages of every command to a folder
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct Arguments {
    /// The folder; it is there
    folder: PathBuf,
}

/// Writes the pages of `command`, which is the whole command line.
pub(crate) fn run(arguments: &Arguments, command: Command) -> Result<(), Failure> {
    clap_mangen::generate_to(command, &arguments.folder).with_context(|| {
        format!(
            "cannot write the man pages to {}",
            arguments.folder.display()
        )
    })?;
    Ok(())
}
