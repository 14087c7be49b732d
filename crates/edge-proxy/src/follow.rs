//! Enrolls the edge (ADR 0004), follows the server's route table, and keeps it on disk for when the server is out of reach.

// ring: the crate's root has the public options and errors, and starts the edge by them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::MAX_WAIT_MS;
use api::edge::RouteTable;
use api::enrollment::{EnrollRole, Hardware};
use api_client::{ApiClient, ClientError};
use membership::{Applicant, JoinError, Membership};
use serde::{Deserialize, Serialize};
use state_file::{StateFileError, StateFormat};

use crate::forward::Edge;
use crate::limits::{FIRST_POLL_RETRY, MAX_POLL_RETRY};
use crate::{EdgeError, EdgeOptions};

const FILE: &str = "routes.json";

/// `routes.json`: the newest route table.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct RoutesFile(pub(crate) RouteTable);

impl StateFormat for RoutesFile {
    const VERSION: u32 = 1;
}

/// Serves the table that was kept last. A file that cannot be used is set aside, and the table is fetched. Blocks.
pub(crate) fn load(edge: &Edge, data_dir: &Path) -> Result<(), StateFileError> {
    match state_file::read::<RoutesFile>(&data_dir.join(FILE)) {
        Ok(Some(RoutesFile(table))) => {
            tracing::info!(
                generation = table.generation.counter,
                hosts = table.routes.len(),
                "serving the routes kept on disk"
            );
            edge.routes.take(&table);
            Ok(())
        }
        Ok(None) => Ok(()),
        Err(StateFileError::Format { path, source }) => {
            let aside = state_file::set_aside(&path)?;
            tracing::error!(
                path = %path.display(), cause = %source, kept = %aside.display(),
                "cannot use the routes on disk; none are served until the server sends them"
            );
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// A client with which this edge is known to the server. Enrolls if it never did; while the server
/// cannot be reached, it tries again.
pub(crate) async fn join(options: &EdgeOptions) -> Result<ApiClient, EdgeError> {
    let applicant = Applicant {
        role: EnrollRole::Edge,
        server: options.server.clone(),
        token: options.token.clone(),
        name: options.name.clone(),
        region: options.region.clone(),
        // Nothing is placed on an edge.
        hardware: Hardware::default(),
    };
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
    membership.client().map_err(EdgeError::Client)
}

/// Follows the server's table for ever. While the server is out of reach, the last one serves.
pub(crate) async fn follow(edge: Arc<Edge>, client: ApiClient, data_dir: PathBuf) {
    let path = data_dir.join(FILE);
    let mut pause = FIRST_POLL_RETRY;
    // The last error, which is logged once.
    let mut last: Option<String> = None;
    loop {
        let after = edge.routes.generation();
        match client
            .routes(after, Duration::from_millis(MAX_WAIT_MS))
            .await
        {
            Ok(news) => {
                if last.take().is_some() {
                    tracing::info!(server = client.server(), "the server is back");
                }
                pause = FIRST_POLL_RETRY;
                let Some(table) = news else { continue };
                if take(&edge, &path, table).await {
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

fn longer(pause: Duration) -> Duration {
    (pause * 2).min(MAX_POLL_RETRY)
}

/// Replaces the table by a newer one and saves it; false: it is not newer, so the server that sent it is
/// asked again after a pause.
async fn take(edge: &Edge, path: &Path, table: RouteTable) -> bool {
    if !edge.routes.take(&table) {
        tracing::warn!(
            sent = %table.generation,
            known = %edge.routes.generation(),
            "the server sent a table that is not newer; it is refused"
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
    edge.backends
        .keep_only(|address| edge.routes.leads_to(address));
    tracing::info!(
        generation = table.generation.counter,
        hosts = edge.routes.hosts(),
        changed = table.routes.len() + table.removed.len(),
        "new routes"
    );
    // With what cannot be read yet, so that it is read by a later version.
    let mut whole = edge.routes.whole();
    for (host, route) in table.unreadable {
        whole.routes.remove(&host);
        whole.unreadable.insert(host, route);
    }
    let path = path.to_owned();
    let kept = blocking_work::blocking(move || state_file::write(&path, &RoutesFile(whole))).await;
    if let Err(error) = kept {
        // It serves all the same; a restart begins with an older table.
        tracing::error!(%error, "the routes could not be kept on disk");
    }
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn routes_json_of_each_version_is_read_with_and_without_added_fields() {
        state_file::fixtures::check::<RoutesFile>(&[include_str!(
            "fixtures/routes/version-1.json"
        )]);
    }
}
