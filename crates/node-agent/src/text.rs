//! Text for people: errors with their causes on one line, and a guest's words made safe to print.

use std::error::Error;
use std::fmt::Write as _;

/// An error with its causes, on one line, for logs and reports.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {next}");
        cause = next.source();
    }
    text
}

/// A guest's words on one line, cut to `limit` bytes: they are read in tables and logs.
pub(crate) fn plain(text: &str, limit: usize) -> String {
    let mut plain: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if plain.len() > limit {
        plain.truncate(plain.floor_char_boundary(limit));
        plain.push('…');
    }
    plain
}
