//! `platform fmt`: manifests in the one layout.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use manifest::{Diagnostic, Manifest};

use crate::commands::manifest_file::{self, Source};
use crate::failure::Failure;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  platform fmt                          ./platform.toml, in place
  platform fmt --check apps/*.toml      for CI: changes nothing, shows what would change
  platform fmt - < shop.toml            from standard input to standard output

Comments stay with what they belong to; what the manifest means never changes.";

/// Write manifests in the one layout, in place
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The manifests; `-` is standard input
    #[arg(value_name = "FILE", default_value = manifest_file::DEFAULT)]
    files: Vec<PathBuf>,
    /// Change nothing; show what would change, and end with 1 if anything would
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut said = false;
    for file in &arguments.files {
        let source = match Source::read(file) {
            Ok(source) => source,
            // The others are still to be looked at.
            Err(failure) => {
                failure.report();
                said = true;
                continue;
            }
        };
        let (before, after) = match formatted(&source) {
            Ok(texts) => texts,
            Err(mistakes) => {
                source.show(&mistakes);
                said = true;
                continue;
            }
        };
        if arguments.check {
            let changes = manifest::diff(&source.name, before, &after);
            if !changes.is_empty() {
                output::write(&changes)?;
                said = true;
            }
        } else if manifest_file::is_stdin(file) {
            output::write(&after)?;
        } else if before != after {
            replace(file, &after)
                .with_context(|| format!("cannot write the manifest `{}`", file.display()))?;
            output::note(format!("{}: formatted", source.name));
        }
    }
    if said { Err(Failure::Said) } else { Ok(()) }
}

/// The text, before and after.
fn formatted(source: &Source) -> Result<(&str, String), Vec<Diagnostic>> {
    let Ok(text) = std::str::from_utf8(&source.bytes) else {
        // Its one way to say that bytes are no text.
        return Err(Manifest::from_bytes(&source.name, &source.bytes)
            .err()
            .unwrap_or_default());
    };
    Ok((text, manifest::fmt(&source.name, text)?))
}

/// Replaces a file as a whole: whoever reads it meanwhile sees the old text or the new one. A
/// link keeps leading to it, and it keeps its mode.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let file = fs::canonicalize(file)?;
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = file.with_file_name(name);
    let mut new = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&beside)?;
    let result = (|| {
        new.write_all(text.as_bytes())?;
        new.set_permissions(fs::metadata(&file)?.permissions())?;
        new.sync_all()?;
        fs::rename(&beside, &file)
    })();
    if result.is_err() {
        // What matters is why it failed.
        let _ = fs::remove_file(&beside);
    }
    result
}
