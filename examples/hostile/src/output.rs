//! Attacks by output: the app's own, and the consoles that root may open.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use crate::report::report;

/// Sequences that a terminal obeys: clear, title, carriage return, cursor up, backspace, C1's CSI, a bell; and
/// a line that looks like the platform's.
pub(crate) const ESCAPES: &str = "\x1b[2J\x1b[H\x1b]0;owned\x07\rfaked\x1b[1A\x08\u{9b}2J\n2026-01-01T00:00:00Z web 00000001 # ended: exit code 0";
/// Bytes of one write.
const PIECE_BYTES: usize = 64 * 1024;

/// The app itself: it does nothing, for ever.
pub(crate) fn wait() -> io::Result<()> {
    report("waiting")?;
    loop {
        std::thread::park();
    }
}

/// An app that fails, and whose last output is escape sequences.
pub(crate) fn die() -> ExitCode {
    let _ = writeln!(io::stderr(), "{ESCAPES}");
    ExitCode::from(3)
}

/// Lines on the app's own standard output, as fast as they are taken.
pub(crate) fn lines(megabytes: usize) -> io::Result<()> {
    let line = format!(
        "{ESCAPES} {} \x1b[2J\r{}\n",
        "flood".repeat(10),
        "x".repeat(60)
    );
    let path = standard_output_of_the_app()?;
    let (written, seconds) = flood(&path, line.as_bytes(), megabytes)?;
    report(&format!("{written} MiB of lines in {seconds:.1} s"))
}

/// The serial console by each of its names, and the kernel's log at the level that is shown.
pub(crate) fn consoles(megabytes: usize) -> io::Result<()> {
    for (path, line) in [
        ("/dev/ttyS0", format!("{ESCAPES} {}\n", "serial".repeat(20))),
        (
            "/dev/console",
            format!("{} no newline", "console".repeat(9)),
        ),
        ("/dev/kmsg", "<0>a forged panic\n".to_owned()),
    ] {
        let outcome = match flood(&PathBuf::from(path), line.as_bytes(), megabytes) {
            Ok((written, seconds)) => format!("{path}: {written} MiB in {seconds:.1} s"),
            Err(error) => format!("{path}: {error}"),
        };
        report(&outcome)?;
    }
    Ok(())
}

/// Writes this many MiB to a file. The kernel log's device takes one line at a time, and an eighth of that.
/// Returns the MiB written and the seconds it took.
fn flood(path: &PathBuf, line: &[u8], megabytes: usize) -> io::Result<(usize, f64)> {
    let begun = Instant::now();
    let mut file = OpenOptions::new().write(true).open(path)?;
    let repeated = if path.ends_with("kmsg") {
        1
    } else {
        PIECE_BYTES / line.len()
    };
    let piece = line.repeat(repeated);
    // A line costs the kernel's log more than its bytes.
    let wanted = (megabytes << 20) / if repeated == 1 { 8 } else { 1 };
    let mut written = 0;
    while written < wanted {
        file.write_all(&piece)?;
        written += piece.len();
    }
    Ok((written >> 20, begun.elapsed().as_secs_f64()))
}

/// The pipe of the app's output, which init reads: standard output of the process `hostile wait`.
fn standard_output_of_the_app() -> io::Result<PathBuf> {
    for process in fs::read_dir("/proc")?.flatten() {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        if command.ends_with(b"hostile\0wait\0") {
            return Ok(process.path().join("fd/1"));
        }
    }
    Err(io::Error::other("the process `hostile wait` does not run"))
}
