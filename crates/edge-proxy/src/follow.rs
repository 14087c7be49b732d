//! Enrolls the edge (ADR 0004), follows the server's route table, and keeps it on disk for when the server is out of reach.

// ring: the crate's root has the public options and errors, and starts the edge by them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::MAX_WAIT_MS;
use api::edge::RouteTable;
use api::enrollment::{EnrollRole, Hardware};
use api_client::{ApiClient, ClientError};
use blocking_work::blocking;
use membership::{Applicant, JoinError, Membership};
use metrics::Waits;
use state_file::StateFileError;
use tokio::sync::Mutex;

use crate::forward::Edge;
use crate::kept_routes::KeptRoutes;
use crate::limits::{FIRST_POLL_RETRY, MAX_POLL_RETRY};
use crate::{EdgeError, EdgeOptions, overlay_link};

/// Serves the table that was kept last. Blocks.
pub(crate) fn take_kept(edge: &Edge, data_dir: &Path) -> Result<KeptRoutes, StateFileError> {
    let kept = KeptRoutes::open(data_dir, &edge.routes)?;
    let hosts = edge.routes.hosts();
    edge.metrics.hosts.set(hosts_of(edge));
    if hosts > 0 {
        let generation = edge.routes.generation().counter;
        tracing::info!(generation, hosts, "serving the routes kept on disk");
    }
    Ok(kept)
}

/// A client with which this edge is known to the server. Enrolls if it never did; while the server
/// cannot be reached, it tries again.
pub(crate) async fn join(options: &EdgeOptions) -> Result<(ApiClient, Membership), EdgeError> {
    let folder = options.data_dir.clone();
    if matches!(blocking(move || Membership::load(&folder)).await, Ok(None)) {
        overlay_link::end_former(&options.data_dir).await;
    }
    let applicant = applicant(options);
    let mut pause = FIRST_POLL_RETRY;
    let membership = loop {
        match Membership::load_or_join(&options.data_dir, &applicant).await {
            Err(JoinError::Enroll(error @ ClientError::Connect { .. })) => {
                tracing::warn!(%error, "trying again in {} ms", pause.as_millis());
                tokio::time::sleep(pause).await;
                pause = longer(pause);
            }
            joined => break joined?,
        }
    };
    tracing::info!(
        edge = %membership.member, name = membership.name, server = membership.server,
        "member of the cluster"
    );
    let client = membership.client().map_err(EdgeError::Client)?;
    Ok((client, membership))
}

pub(crate) fn applicant(options: &EdgeOptions) -> Applicant {
    Applicant {
        role: EnrollRole::Edge,
        server: options.server.clone(),
        token: options.token.clone(),
        name: options.name.clone(),
        region: options.region.clone(),
        // Nothing is placed on an edge.
        hardware: Hardware::default(),
        underlay: options.underlay,
    }
}

/// Follows the server's table for ever; with the first one, what waited for it is over. While the server is out of reach, the last one serves.
pub(crate) async fn follow(
    edge: Arc<Edge>,
    client: ApiClient,
    kept: Arc<Mutex<KeptRoutes>>,
    mut first: Option<Waits>,
) {
    let mut pause = FIRST_POLL_RETRY;
    // The last error, which is logged once.
    let mut last: Option<String> = None;
    loop {
        let has = edge.routes.has();
        // The first answer says also that there is nothing to have: it is not waited for.
        let wait = match first {
            Some(_) => Duration::ZERO,
            None => Duration::from_millis(MAX_WAIT_MS),
        };
        match client.routes(has, wait).await {
            Ok(news) => {
                if last.take().is_some() {
                    tracing::info!(server = client.server(), "the server is back");
                }
                pause = FIRST_POLL_RETRY;
                let Some(table) = news else {
                    drop(first.take());
                    continue;
                };
                if take(&edge, &kept, table).await {
                    drop(first.take());
                    continue;
                }
            }
            Err(error) => {
                let reason = Some(error.to_string());
                if last != reason {
                    tracing::warn!(
                        server = client.server(), %error, hint = error.hint(),
                        "the routes cannot be fetched; serving the last ones"
                    );
                }
                last = reason;
            }
        }
        tokio::time::sleep(pause).await;
        pause = longer(pause);
    }
}

fn hosts_of(edge: &Edge) -> i64 {
    i64::try_from(edge.routes.hosts()).unwrap_or(i64::MAX)
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).min(MAX_POLL_RETRY)
}

/// Takes what is newer, and keeps it on disk; false: it is not newer, so the server that sent it is asked again after a pause.
async fn take(edge: &Arc<Edge>, kept: &Arc<Mutex<KeptRoutes>>, table: RouteTable) -> bool {
    if !edge.routes.take(&table) {
        tracing::warn!(
            sent = %table.generation,
            of_term = %table.term,
            known = %edge.routes.generation(),
            term = %edge.routes.term(),
            "the server sent a table that is not newer, or is of a leader that was taken for dead; it is refused"
        );
        return false;
    }
    for (host, route) in &table.unreadable {
        tracing::error!(
            host,
            reason = route.reason(),
            "cannot read the route of a host, so it leads where it led; upgrade `platform` on the edge"
        );
    }
    edge.metrics.hosts.set(hosts_of(edge));
    edge.backends
        .keep_only(|address| edge.routes.leads_to(address));
    tracing::info!(
        generation = table.generation.counter,
        hosts = edge.routes.hosts(),
        changed = table.routes.len() + table.removed.len(),
        "new routes"
    );
    // Held until it is written, also where nobody waits for that any more.
    let (edge, mut kept) = (Arc::clone(edge), Arc::clone(kept).lock_owned().await);
    let kept = blocking(move || kept.keep(&table, &edge.routes));
    if let Err(error) = kept.await {
        // It serves all the same; a restart begins with an older table.
        tracing::error!(error = %display::chain(&error), "the routes could not be kept on disk");
    }
    true
}
