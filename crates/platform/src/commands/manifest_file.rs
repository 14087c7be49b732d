//! The manifest file of a command: read, validated, and its mistakes shown.

use std::io::{IsTerminal as _, Read as _};
use std::path::Path;

use manifest::{Colour, Diagnostic, MAX_TEXT_BYTES, Manifest};
use model::AppName;

use crate::failure::Failure;

/// The manifest where none is named.
pub(crate) const DEFAULT: &str = "platform.toml";
/// Standard input, in place of a file.
const STDIN: &str = "-";

/// A file that may be a manifest.
pub(crate) struct Source {
    /// What diagnostics call it.
    pub(crate) name: String,
    /// What is in it, if it is text at all.
    pub(crate) bytes: Vec<u8>,
}

impl Source {
    /// Reads the file, or standard input for `-`; one byte more than a manifest may have, so that
    /// a larger one is seen to be.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let limit = MAX_TEXT_BYTES as u64 + 1;
        let mut bytes = Vec::new();
        let (name, result) = if is_stdin(path) {
            let stdin = std::io::stdin().lock();
            (
                "standard input".to_owned(),
                stdin.take(limit).read_to_end(&mut bytes),
            )
        } else {
            let read =
                std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes));
            (path.display().to_string(), read)
        };
        match result {
            Ok(_) => Ok(Self { name, bytes }),
            Err(error) => {
                let missing = error.kind() == std::io::ErrorKind::NotFound;
                let error = anyhow::Error::from(error)
                    .context(format!("cannot read the manifest `{name}`"));
                let failure = Failure::Because { error, hint: None };
                Err(if missing {
                    failure.hint("go to the app's folder, or name the manifest")
                } else {
                    failure
                })
            }
        }
    }

    /// What it means, or every mistake.
    pub(crate) fn decode(&self) -> Result<Manifest, Vec<Diagnostic>> {
        let decoded = Manifest::from_bytes(&self.name, &self.bytes)?;
        self.show(&decoded.warnings);
        Ok(decoded.manifest)
    }

    /// Prints diagnostics to standard error, for people.
    pub(crate) fn show(&self, diagnostics: &[Diagnostic]) {
        let wanted = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let colour = if wanted {
            Colour::Always
        } else {
            Colour::Never
        };
        let text = String::from_utf8_lossy(&self.bytes);
        let shown = manifest::render(&text, diagnostics, colour);
        if !shown.is_empty() {
            crate::output::note(shown.trim_end());
        }
    }
}

/// Whether standard input is meant.
pub(crate) fn is_stdin(path: &Path) -> bool {
    path == Path::new(STDIN)
}

/// A manifest that is right.
pub(crate) struct Valid {
    /// As written.
    pub(crate) text: String,
    /// What it means.
    pub(crate) manifest: Manifest,
}

/// Reads a manifest that must be right; its mistakes are shown.
pub(crate) fn read_valid(path: &Path) -> Result<Valid, Failure> {
    let source = Source::read(path)?;
    match source.decode() {
        Ok(manifest) => Ok(Valid {
            // It was decoded, so it is text.
            text: String::from_utf8_lossy(&source.bytes).into_owned(),
            manifest,
        }),
        Err(mistakes) => {
            source.show(&mistakes);
            Err(Failure::Said)
        }
    }
}

/// The app that a manifest names; `None` when there is no such file.
pub(crate) fn app_of(path: &Path) -> Result<Option<AppName>, Failure> {
    if !path.exists() {
        return Ok(None);
    }
    Ok(Some(read_valid(path)?.manifest.app))
}
