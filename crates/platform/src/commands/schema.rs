//! `platform schema`: the JSON Schema of a manifest.

use clap::Args;

use crate::failure::Failure;
use crate::output;

const EXAMPLES: &str = "\
Example:
  platform schema > platform.schema.json     for an editor's completion and checks";

/// Print the JSON Schema (2020-12) of a manifest
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {}

pub(crate) fn run() -> Result<(), Failure> {
    output::json(&manifest::schema())
}
