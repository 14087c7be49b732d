//! An example app, as a team would write it without knowing the platform: a web server and a worker in one
//! program.
//!
//! `hello` (or `hello web`) serves HTTP; `hello worker` logs a line every few seconds. Both read
//! `/etc/hello/hello.toml` from the image, which variables override, end on SIGTERM after the requests in
//! progress, and need no root. The page shows the platform's variables (`PLATFORM_*`, `PORT`), of which only
//! `PORT` is used.

mod config;
mod log;
mod request;
mod server;
mod signals;
mod worker;

use std::io::{self, Write as _};
use std::process::ExitCode;

use config::Config;

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
