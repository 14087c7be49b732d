//! What is wrong with a manifest, where, and what to do about it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};

/// Most diagnostics given for one text; the last one then says how many there are.
pub const MAX_DIAGNOSTICS: usize = 200;

/// Whether a diagnostic stops the manifest from being used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// It does.
    Error,
    /// It does not; the manifest means something, but perhaps not what was meant.
    Warning,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// What kind of mistake a diagnostic is about. The texts are stable, for programs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Code {
            /// Every code, in the order of the reference page.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The stable text of it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// When it is given, for the reference page.
            pub fn describe(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

codes! {
    /// The text is not UTF-8.
    Encoding = "encoding",
    /// The text is larger than a manifest may be (1 MiB).
    TooLarge = "too_large",
    /// Tables or arrays lie too deep within each other.
    TooDeep = "too_deep",
    /// The text is not TOML.
    Syntax = "syntax",
    /// The text uses what TOML 1.1 added; manifests are TOML 1.0.
    Toml11 = "toml_1_1",
    /// A key or a table is defined twice.
    DuplicateKey = "duplicate_key",
    /// An invisible character that makes a line read otherwise than it is.
    HiddenCharacter = "hidden_character",
    /// A key that does not exist there.
    UnknownKey = "unknown_key",
    /// A host or a variable with dots in its name that is not in quotes.
    UnquotedName = "unquoted_name",
    /// A key that must be there is not.
    MissingKey = "missing_key",
    /// A key that does not go with another one.
    NotWithThis = "not_with_this",
    /// A value of another type than the key wants.
    WrongType = "wrong_type",
    /// A text that has not the form it must have: a name, a size, a duration, a path.
    InvalidValue = "invalid_value",
    /// A text that is none of those allowed.
    NotAllowed = "not_allowed",
    /// A number, size or duration that is too small or too large.
    OutOfRange = "out_of_range",
    /// Too few or too many items, or a text that is too long.
    WrongLength = "wrong_length",
    /// The image is named by tag, not by digest.
    ImageByTag = "image_by_tag",
    /// A variable with a name that the platform keeps for itself.
    ReservedName = "reserved_name",
    /// The same name or number twice in one list.
    Duplicate = "duplicate",
    /// A route to a process that does not exist.
    UnknownProcess = "unknown_process",
    /// A route or health check to a port that does not exist.
    UnknownPort = "unknown_port",
    /// A route to a port that does not speak HTTP.
    NotHttp = "not_http",
    /// Keys of routes that do not fit each other: `burst` without `rate_limit`, `preload` without what it needs, `host` without `tls`, a port of edges for a
    /// host and for whoever connects.
    Conflict = "conflict",
    /// `scaling.min` is larger than `scaling.max`.
    MinAboveMax = "min_above_max",
    /// A rollout that could never replace an instance.
    NoProgress = "no_progress",
    /// More mistakes than are shown.
    TooMany = "too_many",
    /// Warning: a route leads to a process without a health check.
    NoHealthcheck = "no_healthcheck",
    /// Warning: a health check of type `http` asks a port that speaks HTTP/2 only.
    ProbeProtocol = "probe_protocol",
    /// Warning: a TCP route has a port at which edges listen only where their operators allow it.
    PortOfEdges = "port_of_edges",
    /// Warning: the variable is set by the platform as well.
    Overridden = "overridden",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One mistake. As JSON it is `{code, path, line, column, message, hint}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Whether it stops the manifest from being used.
    pub severity: Severity,
    /// What kind of mistake.
    pub code: Code,
    /// The file, as the caller named it.
    pub file: Arc<str>,
    /// Dotted path of the key or value it is about: `processes.web.ports[0].port`. Empty: the
    /// whole file, or a place that belongs to no key.
    pub path: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters (Unicode scalar values), from 1.
    pub column: usize,
    /// The place as bytes of the text.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Serialize for Diagnostic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Diagnostic", 6)?;
        out.serialize_field("code", self.code.as_str())?;
        out.serialize_field("path", &self.path)?;
        out.serialize_field("line", &self.line)?;
        out.serialize_field("column", &self.column)?;
        out.serialize_field("message", &self.message)?;
        out.serialize_field("hint", &self.hint)?;
        out.end()
    }
}

/// `file:line:column: message`, for logs; [`crate::render`] makes the form for people.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}:{}: {}",
            self.file, self.line, self.column, self.message
        )?;
        if !self.path.is_empty() {
            write!(f, " (at {})", self.path)?;
        }
        Ok(())
    }
}

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// Into a table.
    Key(String),
    /// Into an array.
    Index(usize),
}

/// A place in the tree of values.
pub(crate) type Path = Vec<Step>;

/// The path as it is shown: bare keys joined by dots, others quoted, indexes in brackets.
pub(crate) fn dotted(path: &[Step]) -> String {
    let mut out = String::new();
    for step in path {
        match step {
            Step::Index(index) => {
                out.push('[');
                out.push_str(&index.to_string());
                out.push(']');
            }
            Step::Key(key) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(&shown_key(key));
            }
        }
    }
    out
}

/// The key as TOML writes it, shortened where it is very long.
pub(crate) fn shown_key(key: &str) -> String {
    let bare = !key.is_empty()
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let short = crate::formats::shown(key);
    if bare {
        short
    } else {
        format!("\"{}\"", short.replace('\\', "\\\\").replace('"', "\\\""))
    }
}

/// Finds lines and columns of byte offsets in time that does not grow with the text.
#[derive(Debug)]
pub(crate) struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        let newlines = text.bytes().enumerate().filter(|(_, b)| *b == b'\n');
        let starts = std::iter::once(0)
            .chain(newlines.map(|(i, _)| i + 1))
            .collect();
        Self { text, starts }
    }

    /// Line and column from 1; the column counts characters.
    pub(crate) fn position(&self, offset: usize) -> (usize, usize) {
        let offset = offset.min(self.text.len());
        let line = self
            .starts
            .partition_point(|start| *start <= offset)
            .saturating_sub(1);
        let start = self.starts.get(line).copied().unwrap_or(0);
        let before = &self.text.as_bytes()[start..offset];
        // Every byte that does not continue a character begins one.
        let column = before.iter().filter(|b| (**b & 0xC0) != 0x80).count();
        (line + 1, column + 1)
    }

    /// The line that has this offset in it, without its end, and where it starts.
    pub(crate) fn line_at(&self, offset: usize) -> (usize, &'t str) {
        let (line, _) = self.position(offset);
        let start = self.starts.get(line - 1).copied().unwrap_or(0);
        let end = self.starts.get(line).copied().unwrap_or(self.text.len());
        (start, self.text[start..end].trim_end_matches(['\n', '\r']))
    }
}

/// Gathers diagnostics of one text; keeps at most [`MAX_DIAGNOSTICS`] and counts the rest.
#[derive(Debug)]
pub(crate) struct Sink<'t> {
    file: Arc<str>,
    lines: Lines<'t>,
    kept: Vec<Diagnostic>,
    dropped: usize,
}

/// What a diagnostic says, before its place is known.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) code: Code,
    pub(crate) span: Range<usize>,
    pub(crate) path: Path,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl<'t> Sink<'t> {
    pub(crate) fn new(file: &str, text: &'t str) -> Self {
        Self {
            file: file.into(),
            lines: Lines::new(text),
            kept: Vec::new(),
            dropped: 0,
        }
    }

    /// True when nothing was reported.
    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// True when something was reported that is not a mere warning.
    pub(crate) fn has_errors(&self) -> bool {
        self.kept.iter().any(|d| d.severity == Severity::Error)
    }

    /// True when there is no room for more; whoever looks for mistakes may stop.
    pub(crate) fn is_full(&self) -> bool {
        self.kept.len() >= MAX_DIAGNOSTICS
    }

    pub(crate) fn report(&mut self, severity: Severity, finding: Finding) {
        if self.is_full() {
            self.dropped += 1;
            return;
        }
        let (line, column) = self.lines.position(finding.span.start);
        self.kept.push(Diagnostic {
            severity,
            code: finding.code,
            file: Arc::clone(&self.file),
            path: dotted(&finding.path),
            line,
            column,
            span: finding.span,
            message: finding.message,
            hint: finding.hint,
        });
    }

    pub(crate) fn error(&mut self, finding: Finding) {
        self.report(Severity::Error, finding);
    }

    /// Everything that was reported, in the order of the text.
    pub(crate) fn finish(self) -> Vec<Diagnostic> {
        let mut all = self.kept;
        all.sort_by(|a, b| {
            (a.span.start, a.span.end, &a.path, a.code).cmp(&(
                b.span.start,
                b.span.end,
                &b.path,
                b.code,
            ))
        });
        all.dedup();
        if self.dropped > 0
            && let Some(last) = all.last().cloned()
        {
            all.push(Diagnostic {
                code: Code::TooMany,
                message: format!("and at least {} more mistakes", self.dropped),
                hint: Some("mend the ones above first".to_owned()),
                path: String::new(),
                ..last
            });
        }
        all
    }
}

/// The diagnostics as a JSON array of `{code, path, line, column, message, hint}`.
pub fn to_json(diagnostics: &[Diagnostic]) -> serde_json::Value {
    diagnostics
        .iter()
        .map(|d| {
            serde_json::json!({
                "code": d.code.as_str(),
                "path": d.path,
                "line": d.line,
                "column": d.column,
                "message": d.message,
                "hint": d.hint,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns_count_characters() {
        let lines = Lines::new("a = 1\nü = 'é'\r\n");
        assert_eq!(lines.position(0), (1, 1));
        assert_eq!(lines.position(5), (1, 6));
        assert_eq!(lines.position(6), (2, 1));
        assert_eq!(lines.position(8), (2, 2));
        assert_eq!(lines.position(1000), (3, 1));
        assert_eq!(lines.line_at(8), (6, "ü = 'é'"));
    }

    #[test]
    fn paths_are_toml_keys() {
        let path = [
            Step::Key("routes".to_owned()),
            Step::Key("shop.example.com".to_owned()),
            Step::Index(2),
            Step::Key("a\"b\u{202e}".to_owned()),
        ];
        assert_eq!(
            dotted(&path),
            r#"routes."shop.example.com"[2]."a\"b\\u{202e}""#
        );
    }
}
