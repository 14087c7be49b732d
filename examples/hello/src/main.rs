//! An example app, as a team would write it without knowing the platform: a web server and a worker in one
//! program.
//!
//! `hello` (or `hello web`) serves HTTP; `hello worker` logs a line every few seconds. Both read
//! `/etc/hello/hello.toml` from the image, may be told otherwise by variables, end on SIGTERM after
//! what they had begun, and need no root. What the platform puts into the environment
//! (`PLATFORM_*`, `PORT`) is shown on the page, and nothing else of it is used.

mod config;
mod request;
mod server;
mod worker;

use std::io::{self, Write as _};
use std::process::ExitCode;

use config::Config;

/// Everything goes to standard output, a line at a time.
pub(crate) fn log(line: &str) {
    // If no one reads our log there is no one to tell.
    let _ = writeln!(io::stdout().lock(), "{line}");
}

fn main() -> ExitCode {
    let mode = std::env::args().nth(1).unwrap_or_else(|| "web".to_owned());
    let result = Config::load().and_then(|config| match mode.as_str() {
        "web" => server::run(&config),
        "worker" => worker::run(&config),
        other => Err(format!(
            "unknown mode `{other}`: it must be `web` or `worker`"
        )),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            let _ = writeln!(io::stderr().lock(), "hello: {message}");
            ExitCode::FAILURE
        }
    }
}
