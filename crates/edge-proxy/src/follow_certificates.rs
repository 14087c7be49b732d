//! Follows the server's certificates, and keeps them on disk for when it is out of reach.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::edge::CertificateTable;
use api::{MAX_WAIT_MS, error_code};
use api_client::ApiClient;
use blocking_work::blocking;

use crate::kept_certificates::Kind;
use crate::limits::{FIRST_POLL_RETRY, MAX_POLL_RETRY, SWEEP_INTERVAL};
use crate::tls::Tls;

/// Follows them for ever. While the server is out of reach, the last ones serve. Once the edge is revoked it has none.
pub(crate) async fn follow(tls: Arc<Tls>, client: ApiClient) {
    tls.hosts.ask_by(client.clone());
    let mut pause = FIRST_POLL_RETRY;
    // The last error, which is logged once.
    let mut last: Option<String> = None;
    let mut swept = Instant::now();
    loop {
        if swept.elapsed() >= SWEEP_INTERVAL {
            swept = Instant::now();
            sweep(&tls).await;
        }
        let has = tls.certificates.has();
        let wait = Duration::from_millis(MAX_WAIT_MS);
        match client.edge_certificates(has, wait).await {
            Ok(news) => {
                last = None;
                pause = FIRST_POLL_RETRY;
                let Some(table) = news else { continue };
                if take(&tls, table).await {
                    continue;
                }
            }
            Err(error) => {
                let reason = Some(error.to_string());
                if last != reason {
                    tracing::warn!(
                        server = client.server(), %error, hint = error.hint(),
                        "the certificates cannot be fetched; serving by the last ones"
                    );
                }
                if error.code() == Some(error_code::REVOKED) {
                    remove_all(&tls, last != reason).await;
                }
                last = reason;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_POLL_RETRY);
    }
}

/// Takes what is newer, and keeps it on disk; false: it is not newer.
async fn take(tls: &Arc<Tls>, table: CertificateTable) -> bool {
    let tickets = table.tickets.clone();
    let generation = table.generation;
    let routes = (tls.edge.routes.generation(), tls.edge.routes.term());
    let Some(taken) = tls.certificates.take(table, routes) else {
        tracing::warn!(
            sent = %generation,
            "the server sent certificates that are not newer, or is a leader that was taken for dead; they are refused"
        );
        return false;
    };
    if let Some(keys) = tickets
        && let Err(error) = tls.tickets.set(&keys)
    {
        tracing::error!(%error, "cannot use the keys of session tickets; upgrade `platform` on the edge");
    }
    for (name, reason) in &taken.unusable {
        tracing::error!(
            name,
            reason,
            "cannot use a certificate; upgrade `platform` on the edge"
        );
    }
    tls.count_certificates();
    tracing::info!(
        changed = taken.written.len() + taken.removed.len(),
        all = tls.certificates.len(),
        "new certificates"
    );
    let files = tls.files.clone();
    let removed = taken.removed.into_iter().map(|name| (name, None));
    let written = (taken.written.into_iter()).map(|(name, pem)| (name, Some(pem)));
    let changes: Vec<_> = removed.chain(written).collect();
    if let Err(error) = blocking(move || files.keep(Kind::Kept, changes)).await {
        // It serves all the same. A restart before they are written begins with older ones.
        tracing::error!(
            error = %display::chain(&error), left = tls.files.left(),
            "certificates could not be kept on disk; they are tried again"
        );
    }
    true
}

/// The edge was revoked: it has no certificate any more, in memory and on disk.
async fn remove_all(tls: &Arc<Tls>, is_first: bool) {
    tls.certificates.clear();
    tls.tickets.clear();
    tls.count_certificates();
    let files = tls.files.clone();
    match blocking(move || files.remove_all()).await {
        Ok(()) if is_first => tracing::warn!("this edge was revoked: its certificates are removed"),
        Ok(()) => {}
        Err(error) => {
            let error = display::chain(&error);
            tracing::error!(%error, "this edge was revoked, and its certificates could not be removed from disk");
        }
    }
}

/// Removes the certificates of the ingress CA of hosts that are routed no longer, or have another one.
async fn sweep(tls: &Arc<Tls>) {
    let is_wanted =
        |host: &str| tls.edge.routes.serves(host) && tls.certificates.kept_for(host).is_none();
    let gone = tls.certificates.sweep_issued(is_wanted);
    tls.count_certificates();
    let files = tls.files.clone();
    let gone = gone.into_iter().map(|host| (host, None));
    if let Err(error) = blocking(move || files.keep(Kind::Issued, gone)).await {
        let error = display::chain(&error);
        tracing::error!(%error, "certificates of hosts could not be removed from disk; that is tried again");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::certificates::tests::{certificate, table};
    use crate::forward::Edge;

    #[tokio::test]
    async fn certificates_that_could_not_be_written_are_there_after_the_next_change_and_a_restart()
    {
        let dir = tempfile::tempdir().unwrap();
        let open = async || {
            let tls = Tls::open(Arc::new(Edge::default()), dir.path()).await;
            Arc::new(tls.unwrap())
        };
        let tls = open().await;
        let pem = certificate(&["a.test"], 30);
        let folder = dir.path().join("certificates");
        std::fs::write(&folder, "").unwrap();
        assert!(take(&tls, table(1, None, &[("a", &pem)], &[])).await);
        std::fs::remove_file(&folder).unwrap();
        let other = certificate(&["b.test"], 30);
        assert!(take(&tls, table(2, Some(1), &[("b", &other)], &[])).await);
        let again = open().await;
        assert!(again.certificates.kept_for("b.test").is_some());
        assert!(again.certificates.kept_for("a.test").is_some());
    }
}
