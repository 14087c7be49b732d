//! The ingress proxy: HTTP/1.1 from clients to ready instances, by host name.
//!
//! An edge enrolls once with a one-time token and its own key, then fetches the route table by
//! long poll and keeps it on disk: it goes on serving while the server is away, and after its own
//! restart. What it does with a request is in `forward`; every limit has its name in `limits`.
//!
//! Deliberately absent: TLS to clients, HTTP/2, caching, rewriting, access rules. The edge
//! decides nothing about routes: the control plane does.

mod answer;
mod backend;
mod body;
mod forward;
mod headers;
mod limits;
mod listener;
mod proxy_header;
mod routes;
mod socket;
mod state_file;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use state_file::StateFileError;

/// How an edge runs.
#[derive(Debug, Clone)]
pub struct EdgeOptions {
    /// Where identity and the last route table are kept.
    pub data_dir: PathBuf,
    /// Where clients connect, in plain HTTP.
    pub listen: SocketAddr,
    /// The server's URL; needed to enroll, remembered afterwards.
    pub server: Option<String>,
    /// The one-time enrollment token; needed once.
    pub token: Option<String>,
    /// Wanted name, the host name.
    pub name: String,
    /// Region the machine is in.
    pub region: String,
}

/// Why an edge could not start.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// The address is taken, or not this machine's.
    #[error("cannot listen on {listen}")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Its files cannot be used.
    #[error(transparent)]
    State(#[from] StateFileError),
}

/// Runs the edge until `shutdown`, then finishes the requests in flight, within bounds.
///
/// # Errors
/// What kept it from starting. Once it serves, it goes on whatever happens to the server.
pub async fn run(options: EdgeOptions, shutdown: CancellationToken) -> Result<(), EdgeError> {
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|source| EdgeError::Listen {
            listen: options.listen,
            source,
        })?;
    let edge = Arc::new(forward::Edge::default());
    listener::serve(edge, listener, shutdown).await;
    Ok(())
}
