//! The parser's words for people, and what to do about each error.

// ring: the bounds of a manifest's syntax are named once, in the module that reads it with these words.

use std::ops::Range;

use toml_parser::{Expected, ParseError};

use super::{MAX_DEPTH, MAX_KEY_BYTES};
use crate::diagnostic::{Code, Finding, Path};
use crate::formats::shown;

pub(super) const NEWLINE_IN_INLINE: &str = "a new line within an inline table";
pub(super) const COMMENT_IN_INLINE: &str = "a comment within an inline table";
pub(super) const TRAILING_COMMA: &str = "a comma after the last value of an inline table";
pub(super) const NO_SECONDS: &str = "a time without seconds";
pub(super) const ESCAPE_11: &str = "the escape `\\e` or `\\x`";

/// The message and the hint for an error at this place.
pub(super) fn explain(
    text: &str,
    code: Code,
    error: &ParseError,
    span: &Range<usize>,
) -> (String, Option<String>) {
    let hint = match code {
        Code::Toml11 => {
            let hint = match error.description() {
                NEWLINE_IN_INLINE | COMMENT_IN_INLINE => {
                    "write the table on one line, or as a `[table]` of its own"
                }
                TRAILING_COMMA => "remove the comma before the `}`",
                NO_SECONDS => "write the seconds as well, such as `07:32:00`",
                _ => "write it as `\\u00XX`",
            };
            format!("that is TOML 1.1, manifests are TOML 1.0: {hint}")
        }
        Code::WrongLength => format!("a key has at most {MAX_KEY_BYTES} bytes"),
        Code::TooDeep => format!("at most {MAX_DEPTH} levels are read; a manifest needs 5"),
        _ => return syntax(text, error, span),
    };
    (error.description().to_owned(), Some(hint))
}

const YAML: &str = "this looks like YAML; manifests are TOML: https://toml.io/en/v1.0.0";

/// The one finding about a text that is no TOML because it is YAML: its first lines are `key:` or `key: value`, and no
/// line begins a table or has a key and a `=`.
pub(super) fn looks_like_yaml(text: &str) -> Option<Finding> {
    let is_key = |key: &str| {
        let key = key.trim_matches(['"', '\'']);
        !key.is_empty()
            && key
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_-./".contains(&b))
    };
    let mut first = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let (begin, content) = (at, line.trim());
        at += line.len();
        if content.is_empty() || content.starts_with(['#', '%']) || content == "---" {
            continue;
        }
        if content.starts_with('[')
            || content
                .split_once('=')
                .is_some_and(|(key, _)| is_key(key.trim()))
        {
            return None;
        }
        if first.is_none() {
            let (key, value) = content.split_once(':')?;
            if !is_key(key) || !(value.is_empty() || value.starts_with(' ')) {
                return None;
            }
            let indent = line.len() - line.trim_start().len();
            first = Some(begin + indent..begin + indent + content.len());
        }
    }
    Some(Finding {
        code: Code::Syntax,
        span: first?,
        path: Path::new(),
        message: "a key and its value are joined by `=`, not by `:`".to_owned(),
        hint: Some(YAML.to_owned()),
    })
}

/// What stands at and around the place of an error.
struct Surroundings<'t> {
    /// From the place on.
    at: &'t str,
    /// From the start of the line to the place.
    before: &'t str,
    /// From the place to the end of the line or a comment, trimmed.
    word: &'t str,
}

fn syntax(text: &str, error: &ParseError, span: &Range<usize>) -> (String, Option<String>) {
    let at = text.get(span.start..).unwrap_or_default();
    let all_before = text.get(..span.start).unwrap_or_default();
    let line_start = all_before.rfind('\n').map_or(0, |newline| newline + 1);
    let surroundings = Surroundings {
        at,
        before: all_before.get(line_start..).unwrap_or_default(),
        word: at
            .split(['\n', '\r', '#', ',', ']', '}'])
            .next()
            .unwrap_or_default()
            .trim(),
    };
    if let Some((message, hint)) = known(error, &surroundings) {
        return (message, Some(hint));
    }
    let mut message = error.description().to_owned();
    if let Some(expected) = error.expected().filter(|expected| !expected.is_empty()) {
        let words: Vec<String> = expected
            .iter()
            .map(|expected| match expected {
                Expected::Literal("\n") => "a new line".to_owned(),
                Expected::Literal(literal) => format!("`{literal}`"),
                Expected::Description(words) => (*words).to_owned(),
                _ => "something else".to_owned(),
            })
            .collect();
        message.push_str(", expected ");
        message.push_str(&words.join(", "));
    }
    (message, None)
}

/// A name with other characters than a bare key may have, before its `=` or in the head of a table: a host with a port or a
/// wildcard, a variable with a blank.
fn unquoted(description: &str, before: &str, at: &str) -> Option<String> {
    if !description.starts_with("invalid unquoted key") && description != "key with no value" {
        return None;
    }
    let rest = at.split('\n').next().unwrap_or_default();
    let line = format!("{before}{rest}");
    let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let wants_quotes = |name: &str| {
        !name.is_empty() && !name.contains(['"', '\'']) && name.chars().any(|c| !is_bare(c))
    };
    let line = line.trim();
    if let Some(head) = line.strip_prefix('[') {
        let head = head.split(']').next()?.trim_start_matches('[').trim();
        let (table, name) = head.split_once('.')?;
        return wants_quotes(name)
            .then(|| format!("quote the name: `[{table}.\"{}\"]`", shown(name)));
    }
    let name = line.split_once('=')?.0.trim();
    wants_quotes(name).then(|| format!("quote the name: `\"{}\" = …`", shown(name)))
}

/// Mistakes that people make.
fn known(error: &ParseError, place: &Surroundings<'_>) -> Option<(String, String)> {
    let Surroundings { at, before, word } = place;
    let line = before.trim();
    let description = error.description();
    let plain = |hint: &str| Some((description.to_owned(), hint.to_owned()));
    let first = at.chars().next();
    match first {
        Some('\r') if !at.starts_with("\r\n") => {
            return plain("end lines with LF or CR LF, not with a lone CR");
        }
        Some(c) if c.is_control() && c != '\n' && c != '\r' && c != '\t' => {
            return plain("remove the control character; in a value, write it as `\\u00XX`");
        }
        Some('\u{FEFF}') => {
            return plain("a byte order mark may only be at the start of the file; remove it");
        }
        Some('\u{201C}' | '\u{201D}' | '\u{2018}' | '\u{2019}') => {
            return Some((
                "typographic quotes do not enclose a text".to_owned(),
                "use straight quotes: \" or '".to_owned(),
            ));
        }
        _ => {}
    }
    if line.starts_with("---") || line.starts_with("- ") || at.starts_with("---") {
        return plain(YAML);
    }
    if line.is_empty() && at.starts_with('{') {
        return plain("this looks like JSON; manifests are TOML: https://toml.io/en/v1.0.0");
    }
    if let Some(hint) = unquoted(description, before, at) {
        return plain(&hint);
    }
    if at.starts_with(':') || line.ends_with(':') {
        return plain("a key and its value are joined by `=`: `key = \"value\"`");
    }
    if description == "missing escaped value" {
        return Some((
            "this escape does not exist".to_owned(),
            "there are \\b \\t \\n \\f \\r \\\" \\\\ \\uXXXX and \\UXXXXXXXX; a text in single quotes \
             has no escapes"
                .to_owned(),
        ));
    }
    let value_begins = line.ends_with(['=', ',', '[']);
    if !value_begins {
        return None;
    }
    if word.is_empty() {
        return Some((
            "there is no value".to_owned(),
            "write one after the `=`".to_owned(),
        ));
    }
    let is_word = word.starts_with(|c: char| c.is_alphabetic() || c == '~' || c == '/');
    if !is_word {
        return None;
    }
    let hint = match *word {
        "yes" | "on" | "True" | "TRUE" => "write `true`".to_owned(),
        "no" | "off" | "False" | "FALSE" => "write `false`".to_owned(),
        "null" | "nil" | "None" | "~" => "TOML has no null: leave the key out".to_owned(),
        _ => format!(
            "put the text in quotes: \"{}\"",
            shown(word.trim_matches(['"', '\'']))
        ),
    };
    Some((format!("`{}` is not a value", shown(word)), hint))
}
