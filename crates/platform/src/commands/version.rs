//! `platform version`: which program this is.

use clap::Args;

use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments};
use crate::printed::ProgramVersion;

/// Print the version, as `platform --version` does
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    match arguments.format.format {
        Format::Text => Ok(output::line(format_args!("platform {version}"))?),
        Format::Json => output::json(json_shapes::VERSION, &ProgramVersion { version }),
    }
}
