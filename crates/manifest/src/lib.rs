//! The TOML manifest of an app (ADR 0002): read it, validate it, format it, publish its schema.
//!
//! A manifest cannot be wrong silently: [`Manifest::from_toml`] gives every mistake at once, in the
//! order of the text, each with its place, its dotted path and a hint; unknown keys are mistakes at
//! every level. The way of a text:
//!
//! 1. [`syntax`]: bytes -> a tree of values with places (TOML 1.0, bounded in size and depth);
//! 2. [`structure`]: the tree against the schema -> the values that are right;
//! 3. [`semantics`]: values that must go together;
//! 4. [`resolve`]: what it means, every default filled in: [`Manifest`].
//!
//! There is one definition of what may be written: the types in [`authored`]. Schema, reference
//! page, decoder and formatter all read it. Deliberately absent: I/O, exit codes and colours'
//! detection, which are the command line's; and any second version of the manifest.

mod authored;
mod diagnostic;
mod document;
mod formats;
mod layout;
mod model;
mod normalize;
mod reference;
mod render;
mod resolve;
mod schema;
mod semantics;
mod structure;
mod suggest;
mod syntax;
mod units;

pub use authored::MAX_INSTANCES;
pub use diagnostic::{Code, Diagnostic, MAX_DIAGNOSTICS, Severity, to_json};
pub use layout::{diff, fmt};
pub use model::{Deploy, Manifest, Process, Resources, RouteTarget, Scaling, Strategy};
pub use normalize::normalize;
pub use reference::reference_page;
pub use render::{Colour, render};
pub use syntax::{MAX_DEPTH, MAX_KEY_BYTES, MAX_TEXT_BYTES};

use diagnostic::Sink;

/// The JSON Schema (2020-12) of a manifest, for editors and other tools.
///
/// It states the structure: keys, types, forms, ranges of numbers. What must go together, and the
/// bounds of durations and sizes, only [`Manifest::from_toml`] knows; the descriptions name them.
pub fn schema() -> serde_json::Value {
    schema::Shape::get().published()
}

/// A manifest that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// What it means.
    pub manifest: Manifest,
    /// What is allowed and yet perhaps not meant; in the order of the text.
    pub warnings: Vec<Diagnostic>,
}

impl Manifest {
    /// Reads a manifest. `file_name` is only what diagnostics call it.
    ///
    /// # Errors
    /// Every mistake, in the order of the text; never empty.
    pub fn from_toml(file_name: &str, text: &str) -> Result<Decoded, Vec<Diagnostic>> {
        let mut sink = Sink::new(file_name, text);
        let manifest = decode(text, &mut sink);
        let (errors, warnings): (Vec<_>, Vec<_>) = sink
            .finish()
            .into_iter()
            .partition(|d| d.severity == Severity::Error);
        match manifest {
            Some(manifest) if errors.is_empty() => Ok(Decoded { manifest, warnings }),
            _ => Err(errors),
        }
    }

    /// Reads a manifest from the bytes of a file, which may not be UTF-8.
    ///
    /// # Errors
    /// As [`Self::from_toml`], and one for bytes that are not text.
    pub fn from_bytes(file_name: &str, bytes: &[u8]) -> Result<Decoded, Vec<Diagnostic>> {
        Self::from_toml(file_name, text(file_name, bytes)?)
    }
}

/// The bytes of a file as the text that [`fmt`] and [`Manifest::from_toml`] take. To show the
/// error with [`render`], give it the bytes as text with what is none of it replaced.
///
/// # Errors
/// One, for bytes that are not UTF-8.
pub fn text<'b>(file_name: &str, bytes: &'b [u8]) -> Result<&'b str, Vec<Diagnostic>> {
    syntax::text_of(bytes).map_err(|refused| {
        let (readable, finding) = *refused;
        let mut sink = Sink::new(file_name, &readable);
        sink.error(finding);
        sink.finish()
    })
}

/// Everything but the sorting: absent when there were errors.
fn decode(text: &str, sink: &mut Sink<'_>) -> Option<Manifest> {
    let parsed = syntax::parse(text, sink)?;
    let shape = schema::Shape::get();
    let mut checked = structure::check(shape, &parsed, sink);
    if sink.is_full() {
        return None;
    }
    // An app without a name still has processes and routes to look at; its name goes nowhere.
    if let Some(root) = checked.value.as_object_mut() {
        root.entry("app").or_insert_with(|| "unnamed".into());
    }
    let value = std::mem::take(&mut checked.value);
    let written: authored::Manifest = match serde_json::from_value(value) {
        Ok(written) => written,
        Err(error) => {
            // The structure was found right, so this is a fault of ours; say so, do not guess.
            if sink.is_empty() {
                sink.error(diagnostic::Finding {
                    code: Code::InvalidValue,
                    span: 0..0,
                    path: Vec::new(),
                    message: format!("the manifest could not be read: {error}"),
                    hint: Some("this is a fault of the platform; please report it".to_owned()),
                });
            }
            return None;
        }
    };
    semantics::check(&written, &checked, parsed.root.get_ref(), sink);
    if sink.has_errors() {
        return None;
    }
    resolve::resolve(&written)
}
