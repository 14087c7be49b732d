//! Texts that must have a certain form: the pattern for the schema, and the same rule by hand for
//! the decoder, with a message and a hint that a pattern cannot give.
//!
//! The two must accept the same texts; `tests/schema_agrees.rs` holds them against each other.

use model::ids::MAX_NAME_BYTES;

use crate::suggest;
use crate::units;

/// A DNS label that starts with a letter (`model::ProcessName` and its siblings).
pub(crate) const LABEL: &str = "^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$";
/// Name of an environment variable: what docker and the system take.
pub(crate) const VARIABLE_NAME: &str = r"^[^=\x00]{1,255}$";
/// Key or value of a label of a node (`model::ids::is_node_label`).
pub(crate) const NODE_LABEL: &str = "^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$";
/// No NUL, which ends a string in C.
pub(crate) const TEXT: &str = r"^[^\x00]*$";
/// See [`units`].
pub(crate) const DURATION: &str = "^[0-9]{1,6}(ms|s|m|h)$";
/// See [`units`].
pub(crate) const SIZE: &str = "^[0-9]{1,6}(KiB|MiB|GiB|TiB)$";
/// DNS labels joined by dots.
pub(crate) const HOST_NAME: &str =
    r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$";
/// A repository, perhaps with a registry and a tag (which then means nothing), and the digest.
pub(crate) const IMAGE: &str = r"^[A-Za-z0-9._:\[\]-]+(/[a-z0-9._-]+)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?@sha256:[0-9a-f]{64}$";
/// `user` or `user:group`, names or numbers.
pub(crate) const USER: &str = r"^[A-Za-z0-9_][A-Za-z0-9._-]*(:[A-Za-z0-9_][A-Za-z0-9._-]*)?$";
/// What stands in an HTTP request line, without a fragment.
pub(crate) const HTTP_PATH: &str = r"^/[!-\x22$-~]*$";

/// A protocol's name for ALPN (RFC 7301, 3.1), as all that are registered are.
pub(crate) const ALPN_PROTOCOL: &str = "^[!-~]{1,64}$";
/// A token (RFC 9110, 5.6.2).
pub(crate) const HEADER_NAME: &str = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$";
/// Visible ASCII characters, and spaces between them (RFC 9110, 5.5).
pub(crate) const HEADER_VALUE: &str = r"^[!-~]([ -~]*[!-~])?$";
/// Permissions of a file, in octal: its owner reads it.
pub(crate) const FILE_MODE: &str = "^0[4-7][0-7]{2}$";
/// An absolute path in the guest.
pub(crate) const GUEST_PATH: &str = r"^(/\.?[A-Za-z0-9_@+-][A-Za-z0-9._@+-]*)+$";

/// What is wrong with a text, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// What is wrong.
    pub(crate) message: String,
    /// What to write instead.
    pub(crate) hint: String,
    /// True for an image that is named by tag: it has a code of its own.
    pub(crate) by_tag: bool,
}

fn refuse<T>(message: impl Into<String>, hint: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal {
        message: message.into(),
        hint: hint.into(),
        by_tag: false,
    })
}

/// Checks a text against the rule that `pattern` stands for.
pub(crate) fn check(pattern: &str, text: &str) -> Result<(), Refusal> {
    match pattern {
        LABEL => label(text),
        VARIABLE_NAME => variable_name(text),
        NODE_LABEL => node_label(text),
        TEXT => no_nul(text),
        DURATION => duration(text),
        SIZE => size(text),
        HOST_NAME => host_name(text),
        IMAGE => image(text),
        USER => user(text),
        HTTP_PATH => http_path(text),
        ALPN_PROTOCOL => alpn_protocol(text),
        HEADER_NAME => header_name(text),
        HEADER_VALUE => header_value(text),
        FILE_MODE => file_mode(text),
        GUEST_PATH => guest_path(text),
        // A pattern without a rule would let everything pass; the test `every_pattern_has_a_rule`
        // sees to it that there is none.
        _ => refuse(
            "no rule for this text",
            "this is a fault of the platform; please report it",
        ),
    }
}

/// What a text of this pattern is called, for "expected ...".
pub(crate) fn noun(pattern: &str) -> &'static str {
    match pattern {
        LABEL => "a name",
        VARIABLE_NAME => "the name of a variable",
        NODE_LABEL => "a label",
        DURATION => "a duration such as \"10s\"",
        SIZE => "a size such as \"256MiB\"",
        HOST_NAME => "a host name",
        IMAGE => "an image reference",
        USER => "a user",
        HTTP_PATH => "a path such as \"/healthz\"",
        ALPN_PROTOCOL => "the name of a protocol",
        HEADER_NAME => "the name of a header",
        HEADER_VALUE => "the value of a header",
        FILE_MODE => "a mode such as \"0444\"",
        GUEST_PATH => "a path such as \"/var/lib/mysql\"",
        _ => "a string",
    }
}

/// Longest text that is shown whole in a message, in characters.
const SHOWN_CHARS: usize = 64;

/// The text as it may appear in a message: short, and without control characters.
pub(crate) fn shown(text: &str) -> String {
    let mut out: String = text
        .chars()
        .take(SHOWN_CHARS)
        .flat_map(|c| {
            let hidden = display::is_hidden(c);
            let escaped = hidden.then(|| c.escape_unicode());
            let plain = (!hidden).then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect();
    if text.chars().nth(SHOWN_CHARS).is_some() {
        out.push('…');
    }
    out
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!(bytes.first(), Some(b'a'..=b'z'))
        && bytes.len() <= MAX_NAME_BYTES
        && bytes.last() != Some(&b'-')
        && bytes
            .iter()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

fn label(text: &str) -> Result<(), Refusal> {
    if is_label(text) {
        return Ok(());
    }
    let rule = "a name is one DNS label: 1 to 63 lowercase letters, digits and hyphens, starting \
                with a letter and not ending with a hyphen";
    let mut guess: String = text
        .chars()
        .map(|c| {
            if c == '_' || c == '.' || c == ' ' {
                '-'
            } else {
                c.to_ascii_lowercase()
            }
        })
        .collect();
    guess.truncate(guess.trim_end_matches('-').len());
    let hint = if is_label(&guess) {
        format!("write `{guess}`; {rule}")
    } else {
        rule.to_owned()
    };
    refuse(format!("`{}` is not a valid name", shown(text)), hint)
}

fn variable_name(text: &str) -> Result<(), Refusal> {
    let ok = !text.contains(['=', '\0']) && (1..=255).contains(&text.chars().count());
    if ok {
        return Ok(());
    }
    refuse(
        format!("`{}` is not a valid name of a variable", shown(text)),
        "use 1 to 255 characters without `=` and NUL, such as `RUST_LOG` or `discovery.type`",
    )
}

fn node_label(text: &str) -> Result<(), Refusal> {
    if model::ids::is_node_label(text) {
        return Ok(());
    }
    refuse(
        format!("`{}` is not valid in a label of a node", shown(text)),
        "use 1 to 63 letters, digits and `.`, `_`, `-`, `/`, starting and ending with a letter or digit",
    )
}

fn file_mode(text: &str) -> Result<(), Refusal> {
    let octal = |bytes: &[u8]| bytes.iter().all(|b| matches!(b, b'0'..=b'7'));
    match text.as_bytes() {
        [b'0', b'4'..=b'7', rest @ ..] if rest.len() == 2 && octal(rest) => Ok(()),
        _ => refuse(
            format!("`{}` is not a mode", shown(text)),
            "write four octal digits whose first is 0 and by which the owner reads the file, such as \"0444\" or \"0400\"",
        ),
    }
}

fn guest_path(text: &str) -> Result<(), Refusal> {
    let ok = |name: &str| {
        let rest = name.strip_prefix('.').unwrap_or(name).as_bytes();
        rest.first().is_some_and(|first| *first != b'.')
            && rest
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'@' | b'+' | b'-'))
    };
    match text.strip_prefix('/') {
        Some(names) if names.split('/').all(ok) => Ok(()),
        _ => refuse(
            format!("`{}` is not a path in the guest", shown(text)),
            "write it from the root on, without `.`, `..` and a slash at the end, such as \"/var/lib/mysql\"",
        ),
    }
}

fn no_nul(text: &str) -> Result<(), Refusal> {
    if !text.contains('\0') {
        return Ok(());
    }
    refuse(
        "the text has a NUL character in it",
        "remove the `\\u0000`: no program can receive it",
    )
}

fn duration(text: &str) -> Result<(), Refusal> {
    if units::parse_duration(text).is_some() {
        return Ok(());
    }
    let hint = match units::guess_duration(text) {
        Some(guess) => format!("write \"{guess}\"; units are ms, s, m and h"),
        None => "write a whole number of at most 6 digits and one unit (ms, s, m, h), such as \
                 \"10s\" or \"90s\""
            .to_owned(),
    };
    refuse(format!("`{}` is not a duration", shown(text)), hint)
}

fn size(text: &str) -> Result<(), Refusal> {
    if units::parse_size(text).is_some() {
        return Ok(());
    }
    let hint = match units::guess_size(text) {
        Some(guess) => format!("write \"{guess}\"; units are KiB, MiB, GiB and TiB"),
        None => "write a whole number of at most 6 digits and one unit (KiB, MiB, GiB, TiB), such \
                 as \"256MiB\" or \"1GiB\""
            .to_owned(),
    };
    refuse(format!("`{}` is not a size", shown(text)), hint)
}

fn is_host_name(text: &str) -> bool {
    text.split('.').all(|part| {
        let bytes = part.as_bytes();
        !bytes.is_empty()
            && bytes.len() <= MAX_NAME_BYTES
            && bytes[0] != b'-'
            && bytes[bytes.len() - 1] != b'-'
            && bytes
                .iter()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    })
}

fn host_name(text: &str) -> Result<(), Refusal> {
    if is_host_name(text) {
        return Ok(());
    }
    let message = format!("`{}` is not a host name", shown(text));
    let rest = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    let bare = rest.unwrap_or(text);
    let bare = bare.split(['/', ':']).next().unwrap_or_default();
    let guess = bare.trim_end_matches('.').to_ascii_lowercase();
    if is_host_name(&guess) && guess != text {
        return refuse(
            message,
            format!("write \"{guess}\": in lowercase, without scheme, port, path and trailing dot"),
        );
    }
    if text.starts_with("*.") {
        return refuse(message, "wildcards are not supported; name each host");
    }
    if !text.is_ascii() {
        return refuse(
            message,
            "write an international name in its ASCII form (`xn--...`)",
        );
    }
    refuse(
        message,
        "write labels of lowercase letters, digits and hyphens joined by dots, such as \"shop.example.com\"",
    )
}

/// A tag as the OCI distribution spec has it.
fn is_tag(tag: &str) -> bool {
    let bytes = tag.as_bytes();
    bytes.len() <= 128
        && bytes
            .first()
            .is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn image(text: &str) -> Result<(), Refusal> {
    let repository_ok = |named: &str| {
        let (path, last) = named.rsplit_once('/').unwrap_or(("", named));
        let (last, tag) = match last.split_once(':') {
            Some((last, tag)) if !path.is_empty() => (last, Some(tag)),
            // A lone part may be a host with a port: its colons are among its letters.
            _ => (last, None),
        };
        let host_byte = |b: u8| {
            b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':' | b'[' | b']')
        };
        let part_byte =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
        let parts = path.split('/').filter(|_| !path.is_empty()).chain([last]);
        let parts_ok = parts.enumerate().all(|(i, part)| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| if i == 0 { host_byte(b) } else { part_byte(b) })
        });
        parts_ok && tag.is_none_or(is_tag)
    };
    let is_digest = |digest: &str| {
        digest.len() == 64
            && digest
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let Some((repository, digest)) = text.split_once('@') else {
        return Err(Refusal {
            message: format!("the image `{}` is not pinned by digest", shown(text)),
            hint: "a tag can move, and then a release would not be what was tested: write \
                   `name@sha256:...`, or leave `image` out and give the tag to `platform deploy`, \
                   which resolves it once and says what it pinned"
                .to_owned(),
            by_tag: true,
        });
    };
    if repository_ok(repository) && digest.strip_prefix("sha256:").is_some_and(is_digest) {
        return Ok(());
    }
    if repository_ok(repository) {
        return refuse(
            format!("`{}` is not a digest", shown(digest)),
            "a digest is `sha256:` and 64 lowercase hexadecimal digits",
        );
    }
    refuse(
        format!("`{}` is not an image reference", shown(text)),
        "write `registry/name@sha256:...`, the name in lowercase",
    )
}

fn user(text: &str) -> Result<(), Refusal> {
    let name_ok = |name: &str| {
        let bytes = name.as_bytes();
        bytes
            .first()
            .is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
            && bytes
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    let ok = match text.split_once(':') {
        Some((name, group)) => name_ok(name) && name_ok(group),
        None => name_ok(text),
    };
    if ok {
        return Ok(());
    }
    refuse(
        format!("`{}` is not a user", shown(text)),
        "write a name or number of the image's users, with a group if wanted: \"shop\" or \
         \"1000:1000\"",
    )
}

fn http_path(text: &str) -> Result<(), Refusal> {
    let allowed = |b: &u8| matches!(b, b'!'..=b'"' | b'$'..=b'~');
    let printable = text.as_bytes().iter().all(allowed);
    if text.starts_with('/') && printable {
        return Ok(());
    }
    let message = format!("`{}` is not an absolute path", shown(text));
    if printable && !text.contains("://") {
        return refuse(message, format!("write \"/{text}\""));
    }
    refuse(
        message,
        "start with `/` and use printable ASCII without spaces and `#`; percent-encode the rest, such as \"/a%20b\"",
    )
}

fn header_name(text: &str) -> Result<(), Refusal> {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+.^_`|~-".contains(&b);
    if (1..=64).contains(&text.len()) && text.bytes().all(is_token) {
        return Ok(());
    }
    refuse(
        format!("`{}` is not the name of a header", shown(text)),
        "write 1 to 64 letters, digits and hyphens without a colon, such as `X-Forwarded-Proto`",
    )
}

fn alpn_protocol(text: &str) -> Result<(), Refusal> {
    if (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(());
    }
    refuse(
        format!("`{}` is no name of a protocol", shown(text)),
        "write 1 to 64 visible ASCII characters, such as `postgresql` or `h2`",
    )
}

fn header_value(text: &str) -> Result<(), Refusal> {
    let printable = text.bytes().all(|b| matches!(b, b' '..=b'~'));
    if printable && !text.is_empty() && text.trim_matches(' ') == text {
        return Ok(());
    }
    refuse(
        format!("`{}` is not the value of a header", shown(text)),
        "use printable ASCII characters, with spaces only between them",
    )
}

/// A hint for a value that is none of the allowed ones.
pub(crate) fn choice_hint(text: &str, allowed: &[&str]) -> String {
    let upper = text.to_ascii_uppercase();
    let with_prefix = format!("SIG{upper}");
    let meant = allowed
        .iter()
        .find(|a| a.eq_ignore_ascii_case(text) || ***a == with_prefix)
        .copied()
        .or_else(|| suggest::nearest(text, allowed.iter().copied()));
    let list = allowed
        .iter()
        .map(|a| format!("\"{a}\""))
        .collect::<Vec<_>>()
        .join(", ");
    match meant {
        Some(meant) if allowed.len() > 8 => format!("did you mean \"{meant}\"?"),
        Some(meant) => format!("did you mean \"{meant}\"? Allowed: {list}"),
        None => format!("allowed: {list}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;

    use super::*;

    const ALL: [&str; 15] = [
        NODE_LABEL,
        LABEL,
        VARIABLE_NAME,
        TEXT,
        DURATION,
        SIZE,
        HOST_NAME,
        IMAGE,
        USER,
        HTTP_PATH,
        ALPN_PROTOCOL,
        HEADER_NAME,
        HEADER_VALUE,
        FILE_MODE,
        GUEST_PATH,
    ];

    /// The rules by hand accept what their patterns accept, and nothing else.
    #[test]
    fn every_pattern_has_its_rule() {
        let mut runner = TestRunner::deterministic();
        for pattern in ALL {
            let regex = regex::Regex::new(pattern).unwrap();
            let inside = pattern.trim_start_matches('^').trim_end_matches('$');
            let good = proptest::string::string_regex(inside).unwrap().boxed();
            let near = (
                good.clone(),
                any::<proptest::sample::Index>(),
                "[a-zA-Z0-9.:/@_ #-]|\\PC",
            );
            let near = near.prop_map(|(text, at, piece)| {
                let mut chars: Vec<char> = text.chars().collect();
                let at = at.index(chars.len() + 1);
                chars.splice(at..(at + 1).min(chars.len()), piece.chars());
                chars.into_iter().collect::<String>()
            });
            let texts = prop_oneof![good, near, "[a-z0-9.:/-]{0,8}", "\\PC{0,4}"];
            for _ in 0..4000 {
                let text = texts.new_tree(&mut runner).unwrap().current();
                let by_hand = check(pattern, &text);
                assert_eq!(by_hand.is_ok(), regex.is_match(&text), "{pattern} {text:?}");
            }
        }
    }

    #[test]
    fn the_schema_has_no_other_patterns() {
        fn patterns<'v>(value: &'v serde_json::Value, out: &mut Vec<&'v str>) {
            match value {
                serde_json::Value::Object(map) => {
                    out.extend(map.get("pattern").and_then(serde_json::Value::as_str));
                    let named = map.get("patternProperties").and_then(|p| p.as_object());
                    out.extend(
                        named
                            .into_iter()
                            .flatten()
                            .map(|(pattern, _)| pattern.as_str()),
                    );
                    for value in map.values() {
                        patterns(value, out);
                    }
                }
                serde_json::Value::Array(items) => {
                    for value in items {
                        patterns(value, out);
                    }
                }
                _ => {}
            }
        }
        let schema = crate::schema();
        let mut found = Vec::new();
        patterns(&schema, &mut found);
        assert!(found.len() >= ALL.len());
        assert!(
            found.iter().all(|pattern| ALL.contains(pattern)),
            "{found:?}"
        );
    }

    #[test]
    fn texts_in_messages_are_short_and_visible() {
        assert_eq!(shown("a\u{202e}b\0"), "a\\u{202e}b\\u{0}");
        assert_eq!(shown(&"x".repeat(100)).chars().count(), SHOWN_CHARS + 1);
    }
}
