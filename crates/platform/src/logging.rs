//! The logs of the roles on standard error: lines for people, or JSON for programs.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Levels where neither `--log` nor `RUST_LOG` says otherwise.
const DEFAULT_FILTER: &str = "info";

/// How much a role says.
#[derive(Debug, Args)]
pub(crate) struct LogArguments {
    /// How much to say on standard error: error, warn, info, debug or trace, also by part
    /// (`info,edge_proxy=debug`)
    #[arg(long, value_name = "LEVEL", env = "RUST_LOG", hide_env_values = true, default_value = DEFAULT_FILTER)]
    log: String,
    /// How to say it: lines for people, or an object of JSON a line for programs
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        env = "PLATFORM_LOG_FORMAT",
        hide_env_values = true,
        default_value_t = LogFormat::Text
    )]
    log_format: LogFormat,
}

/// What a line of the log looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// `2026-01-31T12:00:00Z  INFO new routes generation=7 hosts=2`
    Text,
    /// `{"timestamp":…,"level":"INFO","message":"new routes","generation":7,"hosts":2,"target":…}`
    Json,
}

impl LogArguments {
    /// Sends log lines to standard error from now on.
    pub(crate) fn start(&self) -> Result<(), crate::failure::Failure> {
        // A variable that is set to nothing counts as absent.
        let log = if self.log.is_empty() {
            DEFAULT_FILTER
        } else {
            &self.log
        };
        let filter: EnvFilter = log.parse().map_err(|error| {
            crate::failure::Failure::new(format!("`{log}` is not a log level: {error}"))
                .hint("try `--log debug`")
        })?;
        let lines = tracing_subscriber::fmt()
            .with_env_filter(filter)
            // A line that cannot be written, as on a full disk, is lost. Without this it would be told on standard error, and that panics.
            .log_internal_errors(false)
            .with_writer(std::io::stderr);
        if self.log_format == LogFormat::Json {
            lines.json().flatten_event(true).init();
            return Ok(());
        }
        let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        lines.with_ansi(colours).with_target(false).init();
        Ok(())
    }
}
