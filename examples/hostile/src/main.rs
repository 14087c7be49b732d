//! A hostile tenant: a program that is root in its guest, knows the guest protocol and breaks it. The
//! cluster test deploys it beside a well-behaved app, runs one attack after the other by `platform exec`,
//! and measures what each costs the node and the other app.
//!
//! Each attack prints one line that says what it did. The test shows that an attack hurts its own
//! instance only.

mod attacks;
mod connection;
mod output;
mod report;

use std::io::{self, Write as _};
use std::process::ExitCode;

const USAGE: &str = "usage: hostile wait | die | frames | hellos | connections COUNT | lines MEGABYTES \
     | records CONNECTIONS | console MEGABYTES | ends | failure | redial SECONDS";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["wait"] => output::wait(),
        ["die"] => return output::die(),
        ["frames"] => attacks::frames(),
        ["hellos"] => attacks::hellos(),
        ["connections", count] => number(count).and_then(attacks::connections),
        ["lines", megabytes] => number(megabytes).and_then(output::lines),
        ["records", count] => number(count).and_then(attacks::records),
        ["console", megabytes] => number(megabytes).and_then(output::consoles),
        ["ends"] => attacks::ends(),
        ["failure"] => attacks::failure(),
        ["redial", seconds] => number(seconds).and_then(attacks::redial),
        _ => Err(io::Error::other(USAGE)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "hostile: {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(word: &str) -> io::Result<usize> {
    word.parse()
        .map_err(|error| io::Error::other(format!("{word}: {error}")))
}
