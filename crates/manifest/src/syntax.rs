//! From bytes to a tree of values with their places: TOML 1.0, in bounded time.
//!
//! The text is read twice. First as a stream of events (`toml_parser`), which finds every error of
//! the grammar at once, everything that only TOML 1.1 allows, and nesting that would be too deep
//! to build or drop a tree of. Then, unless the grammar is broken, as a tree (`toml`), which knows
//! about keys and tables that are defined twice. The events also say which key a place belongs to.

mod explain;
mod scan;

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use crate::diagnostic::{Code, Finding, Path, Sink};
use display::is_bidi_control;
use scan::{Scan, error_span, scan};

/// Largest text that is read, in bytes.
pub const MAX_TEXT_BYTES: usize = 1024 * 1024;
/// Deepest nesting of arrays, inline tables and dotted keys. A manifest needs 5.
pub const MAX_DEPTH: usize = 32;

/// Longest key, in bytes, as it is spelled. The names of a manifest have at most 253.
pub const MAX_KEY_BYTES: usize = 1024;

/// A tree of values, and what of it cannot be trusted.
pub(crate) struct Parsed<'t> {
    /// The document.
    pub(crate) root: Spanned<DeTable<'t>>,
    /// Places of values that were reported already, in order.
    pub(crate) bad: Vec<Range<usize>>,
}

/// The bytes as text; what is not UTF-8 is reported.
pub(crate) fn text_of(bytes: &[u8]) -> Result<&str, Box<(String, Finding)>> {
    let error = match std::str::from_utf8(bytes) {
        Ok(text) => return Ok(text),
        Err(error) => error,
    };
    let utf16 = bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]);
    let hint = if utf16 || bytes.get(1) == Some(&0) || bytes.first() == Some(&0) {
        "this looks like UTF-16: save the file as UTF-8"
    } else {
        "save the file as UTF-8"
    };
    // Only the part up to the mistake is needed to say where it is.
    let good = error.valid_up_to().min(MAX_TEXT_BYTES);
    let readable = String::from_utf8_lossy(&bytes[..good]).into_owned();
    let at = readable.len();
    Err(Box::new((
        readable,
        Finding {
            code: Code::Encoding,
            span: at..at,
            path: Path::new(),
            message: "the file is not UTF-8 text".to_owned(),
            hint: Some(hint.to_owned()),
        },
    )))
}

/// Reads the text. Absent: it is so broken that its structure is not worth a look.
pub(crate) fn parse<'t>(text: &'t str, sink: &mut Sink<'_>) -> Option<Parsed<'t>> {
    if text.len() > MAX_TEXT_BYTES {
        sink.error(Finding {
            code: Code::TooLarge,
            span: 0..0,
            path: Path::new(),
            message: format!("the text is {} bytes long", text.len()),
            hint: Some(format!("a manifest has at most {MAX_TEXT_BYTES} bytes")),
        });
        return None;
    }
    hidden_characters(text, sink);
    let scan = scan(text);
    let broken = !scan.grammar.is_empty() || scan.too_deep;
    if broken && let Some(finding) = explain::looks_like_yaml(text) {
        // What TOML makes of each line would help nobody.
        sink.error(finding);
        return None;
    }
    let mut bad = scan.bad_values.clone();
    for (code, error) in scan.grammar.iter().chain(&scan.values) {
        let finding = scan.finding(text, *code, error);
        sink.error(finding);
        if sink.is_full() {
            return None;
        }
    }
    if broken {
        return None;
    }
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let seen = scan
            .values
            .iter()
            .any(|(_, seen)| error_span(seen).start == span.start)
            || scan.bad_values.iter().any(|value| touches(value, &span));
        if !seen {
            bad.push(span.clone());
            sink.error(scan.tree_finding(error.message(), span));
        }
        if sink.is_full() {
            return None;
        }
    }
    numbers(root.get_ref(), &scan, sink, &mut bad);
    bad.sort_by_key(|range| (range.start, range.end));
    Some(Parsed { root, bad })
}

/// Whether two places have something in common; a place of no length is at its offset.
fn touches(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start <= b.start && b.start < a.end.max(a.start + 1)
        || b.start <= a.start && a.start < b.end.max(b.start + 1)
}

/// Numbers that TOML's grammar allows and its types do not: beyond 64 bits.
fn numbers(root: &DeTable<'_>, scan: &Scan<'_>, sink: &mut Sink<'_>, bad: &mut Vec<Range<usize>>) {
    // The nesting is bounded by `MAX_DEPTH`, still a list is as short as a recursion.
    let mut open: Vec<&Spanned<DeValue<'_>>> = root.values().collect();
    while let Some(value) = open.pop() {
        let problem = match value.get_ref() {
            DeValue::Integer(number) => integer(number).is_none().then_some(
                "this integer does not fit in 64 bits: it must be from -2^63 to 2^63 - 1",
            ),
            DeValue::Float(number) => {
                let text = number.as_str();
                let finite = text.parse::<f64>().is_ok_and(f64::is_finite);
                let named = text.contains("inf") || text.contains("nan");
                (!finite && !named).then_some("this number is too large for a 64-bit float")
            }
            DeValue::Array(items) => {
                open.extend(items.iter());
                None
            }
            DeValue::Table(table) => {
                open.extend(table.values());
                None
            }
            DeValue::String(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => None,
        };
        if sink.is_full() {
            return;
        }
        let span = value.span();
        if let Some(problem) = problem.filter(|_| !bad.iter().any(|bad| touches(bad, &span))) {
            bad.push(span);
            sink.error(scan.tree_finding(problem, value.span()));
        }
    }
}

/// The integer's value, where it fits.
pub(crate) fn integer(number: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// Characters that cannot be seen and change how a line reads, wherever they are.
fn hidden_characters(text: &str, sink: &mut Sink<'_>) {
    if text.is_ascii() {
        return;
    }
    for (at, c) in text.char_indices().filter(|(_, c)| is_bidi_control(*c)) {
        sink.error(Finding {
            code: Code::HiddenCharacter,
            span: at..at + c.len_utf8(),
            path: Path::new(),
            message: format!(
                "the invisible character U+{:04X} makes this line read otherwise than it is",
                u32::from(c)
            ),
            hint: Some(format!(
                "remove it; where a value needs it, write \"\\u{:04X}\"",
                u32::from(c)
            )),
        });
        if sink.is_full() {
            return;
        }
    }
}
