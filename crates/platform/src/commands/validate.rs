//! `platform validate`: is the manifest right?

use std::path::PathBuf;

use clap::Args;

use crate::commands::manifest_file::{self, Source};
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments};
use crate::printed::Mistake;

const EXAMPLES: &str = "\
Examples:
  platform validate                                 ./platform.toml
  platform validate apps/*/platform.toml
  platform validate --format json - < shop.toml     mistakes as a JSON array

Exit status: 0 when every file is right, 1 when one is not.";

/// Check manifests: every mistake with its place and what to do about it
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The manifests; `-` is standard input
    #[arg(value_name = "FILE", default_value = manifest_file::DEFAULT)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    format: FormatArguments,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut mistakes = Vec::new();
    let mut unread = false;
    for file in &arguments.files {
        let source = match Source::read(file) {
            Ok(source) => source,
            // The others are still to be looked at.
            Err(failure) => {
                failure.report();
                unread = true;
                continue;
            }
        };
        match source.decode() {
            Ok(manifest) => {
                if arguments.format.format == Format::Text {
                    output::line(format!(
                        "{}: a valid manifest of {}",
                        source.name, manifest.app
                    ))?;
                }
            }
            Err(found) => {
                if arguments.format.format == Format::Text {
                    source.show(&found);
                }
                mistakes.push((source.name, found));
            }
        }
    }
    if arguments.format.format == Format::Json {
        let several = arguments.files.len() > 1;
        let mut all = Vec::new();
        for (name, found) in &mistakes {
            // Which file is only a question where there are several.
            let file = several.then_some(name.as_str());
            all.extend(found.iter().map(|mistake| Mistake::new(mistake, file)));
        }
        output::json(json_shapes::MISTAKES, &all)?;
    }
    if unread || !mistakes.is_empty() {
        Err(Failure::Said)
    } else {
        Ok(())
    }
}
