//! The app's log: standard output, a line at a time.

use std::io::{self, Write as _};

pub(crate) fn log(line: &str) {
    // A failure to write to the log cannot be logged.
    let _ = writeln!(io::stdout().lock(), "{line}");
}
