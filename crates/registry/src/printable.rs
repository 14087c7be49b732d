//! An excerpt of an untrusted text, for a terminal.

use crate::limits::MAX_MESSAGE_CHARACTERS;

/// The beginning of a text, without control characters.
pub(crate) fn printable(text: &str) -> String {
    text.trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_MESSAGE_CHARACTERS)
        .collect()
}
