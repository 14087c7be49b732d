//! The logs of the roles: lines for people on standard error.

use std::io::IsTerminal as _;

use clap::Args;
use tracing_subscriber::EnvFilter;

/// Levels where neither `--log` nor `RUST_LOG` says otherwise.
const DEFAULT_FILTER: &str = "info";

/// How much a role says.
#[derive(Debug, Args)]
pub(crate) struct LogArguments {
    /// How much to say on standard error: error, warn, info, debug or trace, also by part
    /// (`info,edge_proxy=debug`)
    #[arg(long, value_name = "LEVEL", env = "RUST_LOG", default_value = DEFAULT_FILTER)]
    log: String,
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
        let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(colours)
            .with_target(false)
            .init();
        Ok(())
    }
}
