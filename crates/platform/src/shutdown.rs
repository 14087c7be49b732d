//! How a role is asked to stop.

use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// Cancelled by the first SIGINT or SIGTERM. The second one ends the process at once.
pub(crate) fn until_asked_to_stop() -> Result<CancellationToken, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let asked = CancellationToken::new();
    let token = asked.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = interrupt.recv() => 130,
                _ = terminate.recv() => 143,
            }
        };
        next().await;
        tracing::info!("stopping");
        token.cancel();
        let status = next().await;
        std::process::exit(status);
    });
    Ok(asked)
}
