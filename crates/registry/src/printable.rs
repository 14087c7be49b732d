//! An excerpt of an untrusted text, for a terminal.

use crate::limits::MAX_MESSAGE_BYTES;

/// The beginning of a text, without control characters.
pub(crate) fn printable(text: &str) -> String {
    display::one_line(text, MAX_MESSAGE_BYTES)
}
