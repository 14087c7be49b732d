//! `platform schema`: the JSON Schema of a manifest, and of what commands print.

use clap::Args;

use crate::failure::Failure;
use crate::json_shapes::{self, SHAPES};
use crate::output;

const EXAMPLES: &str = "\
Examples:
  platform schema > platform.schema.json     for an editor's completion and checks
  platform schema ps                         what `platform ps --format json` prints
  platform schema ps --ended";

/// Print the JSON Schema (2020-12) of a manifest, or of what a command prints with `--format json`
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// A command: the schema of what it prints [default: that of a manifest]
    #[arg(value_name = "COMMAND", num_args = 0.., allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.command.is_empty() {
        return output::json(json_shapes::MANIFEST_SCHEMA, &manifest::schema());
    }
    let command = arguments.command.join(" ");
    let schema = json_shapes::schema_of(&command).ok_or_else(|| unknown(&command))?;
    output::json(json_shapes::MANIFEST_SCHEMA, &schema)
}

/// The refusal of a command that prints no JSON, with those that do.
fn unknown(command: &str) -> Failure {
    let all: Vec<_> = (SHAPES.iter())
        .flat_map(json_shapes::Documented::commands)
        .collect();
    let command = output::one_line(command);
    Failure::new(format!("`platform {command}` prints no JSON"))
        .hint(format!("these do: {}", all.join(", ")))
}
