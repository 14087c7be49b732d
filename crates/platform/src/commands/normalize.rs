//! `platform normalize`: a manifest as canonical JSON.

use std::path::PathBuf;

use clap::Args;

use crate::commands::manifest_file;
use crate::failure::Failure;
use crate::output;

const EXAMPLES: &str = "\
Example:
  platform normalize | jq .processes.web.scaling

Every default is filled in. Manifests that mean the same give the same bytes.";

/// Print a manifest as canonical JSON, with every default filled in
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The manifest; `-` is standard input
    #[arg(value_name = "FILE", default_value = manifest_file::DEFAULT)]
    file: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let valid = manifest_file::read_valid(&arguments.file)?;
    output::line(manifest::normalize(&valid.manifest))?;
    Ok(())
}
