//! The attacks' reports: one line each, on standard output.

use std::io::{self, Write as _};

/// Prints what an attack did.
pub(crate) fn report(line: &str) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{line}")?;
    out.flush()
}
