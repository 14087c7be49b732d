//! Follows what authorities of ACME ask for. What the edge asks by tells the server which table it answers by.

use std::sync::Arc;
use std::time::Duration;

use api::{MAX_WAIT_MS, error_code};
use api_client::ApiClient;
use blocking_work::blocking;

use crate::forward::Edge;
use crate::limits::{CHALLENGES_UNKNOWN_PAUSE, FIRST_POLL_RETRY, MAX_POLL_RETRY};

/// What a server of before answers.
const NO_SUCH_PATH: &str = "no_such_path";

/// Follows it for ever. `https`: whether the edge has a port for HTTPS.
pub(crate) async fn follow(edge: Arc<Edge>, client: ApiClient, https: bool) {
    let mut pause = FIRST_POLL_RETRY;
    // The last error, which is logged once.
    let mut last: Option<String> = None;
    loop {
        let wait = Duration::from_millis(MAX_WAIT_MS);
        let polled = client.edge_challenges(edge.challenges.has(), https, wait);
        match polled.await {
            Ok(news) => {
                last = None;
                pause = FIRST_POLL_RETRY;
                let Some(table) = news else { continue };
                let asked = table.challenges.len();
                let taking = Arc::clone(&edge);
                for (host, error) in blocking(move || taking.challenges.take(table)).await {
                    tracing::warn!(host, error, "a challenge of ACME cannot be answered");
                }
                tracing::debug!(asked, "other challenges of ACME");
                continue;
            }
            Err(error) if error.code() == Some(NO_SUCH_PATH) => {
                tokio::time::sleep(CHALLENGES_UNKNOWN_PAUSE).await;
                continue;
            }
            Err(error) => {
                let reason = Some(error.to_string());
                if last != reason {
                    tracing::warn!(
                        server = client.server(), %error, hint = error.hint(),
                        "the challenges of ACME cannot be fetched"
                    );
                }
                if error.code() == Some(error_code::REVOKED) {
                    edge.challenges.clear();
                }
                last = reason;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_POLL_RETRY);
    }
}
