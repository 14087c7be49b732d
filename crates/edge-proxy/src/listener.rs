//! Accepts clients, and lets their requests finish when the edge shuts down.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::Stream;
use crate::connection::Taken;
use crate::forward::{Edge, Ends, Scheme};
use crate::limits::{
    ACCEPT_RETRY, DRAIN_TIMEOUT, IDLE_SWEEP, MAX_CLIENT_CONNECTIONS, TUNNEL_DRAIN_TIMEOUT,
};
use crate::socket;
use crate::trusted;
use crate::{connection, http2};

/// Serves until `shutdown`, then until the requests in flight are done, within bounds.
pub(crate) async fn serve(edge: Arc<Edge>, listener: TcpListener, shutdown: CancellationToken) {
    socket::prepare_listener(&listener);
    // Without a token in each: what a connection waits for costs each of its requests.
    let mut connections = JoinSet::new();
    let room = Arc::new(Semaphore::new(MAX_CLIENT_CONNECTIONS));
    let sweeping = sweep(Arc::clone(&edge));
    let accepting = async {
        while let Some(((mut stream, client), place)) = accept(&listener, &room, &shutdown).await {
            while connections.try_join_next().is_some() {}
            let edge = Arc::clone(&edge);
            let shutdown = shutdown.clone();
            connections.spawn(async move {
                let _open = edge.metrics.count_connection();
                if let Some(ends) = ends_of(&edge, &mut stream, client, Scheme::Http).await {
                    match Taken::of(&edge, ends.client.ip()) {
                        Some(taken) => serve_client(edge, stream, ends, taken, shutdown).await,
                        None => connection::refuse(edge, stream, ends).await,
                    }
                }
                drop(place);
            });
        }
    };
    tokio::select! {
        () = accepting => {}
        () = sweeping => {}
    }
    drop(listener);
    edge.tunnels.close();
    let ended = async {
        while connections.join_next().await.is_some() {}
        // Any of them may become a tunnel, too.
        edge.tls_connections.close();
        edge.tls_connections.wait().await;
        edge.tunnels.wait().await;
    };
    tokio::select! {
        () = ended => {}
        () = edge.hurries() => {}
    }
    let requests = async {
        let ended = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIMEOUT, ended).await.is_err() {
            tracing::warn!(
                connections = connections.len(),
                "requests that did not finish within {} s are cut off",
                DRAIN_TIMEOUT.as_secs()
            );
        }
    };
    let tunnels = async {
        if tokio::time::timeout(TUNNEL_DRAIN_TIMEOUT, edge.tunnels.wait())
            .await
            .is_err()
        {
            edge.end_tunnels.cancel();
        }
    };
    tokio::join!(requests, tunnels);
    // A request may have become a tunnel while it was waited for.
    edge.end_tunnels.cancel();
    connections.shutdown().await;
    edge.tunnels.wait().await;
}

/// The next client and its place among [`MAX_CLIENT_CONNECTIONS`]; `None` at shutdown.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<((TcpStream, SocketAddr), OwnedSemaphorePermit)> {
    let next = async {
        let place = Arc::clone(room).acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok(accepted) => return Some((accepted, place)),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        accepted = next => accepted,
    }
}

/// The two ends of a connection: where a trusted proxy begins it with a header of the PROXY protocol, those that it names. `None`: it broke.
pub(crate) async fn ends_of(
    edge: &Edge,
    stream: &mut TcpStream,
    peer: SocketAddr,
    scheme: Scheme,
) -> Option<Ends> {
    let mut ends = Ends {
        client: peer,
        edge: stream.local_addr().ok()?,
        scheme,
    };
    if edge.trusted_proxies.contains(peer.ip()) {
        match trusted::take_header(stream).await {
            Ok(Some((client, edge))) => (ends.client, ends.edge) = (client, edge),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%peer, %error, "a trusted proxy's connection is closed: its PROXY header cannot be read");
                return None;
            }
        }
    }
    Some(ends)
}

/// Serves a client on a connection that is prepared, until it ends; after `shutdown` until the request in flight is done.
pub(crate) async fn serve_client<S>(
    edge: Arc<Edge>,
    stream: S,
    ends: Ends,
    taken: Taken,
    shutdown: CancellationToken,
) where
    S: Stream + 'static,
{
    let (shared, ending) = (Arc::clone(&edge), shutdown.clone());
    let served = connection::serve(shared, stream, ends, taken, ending).await;
    if let Some((client, taken)) = served {
        // Apart, so that a connection of HTTP/1.1 has no memory for it.
        let serving = http2::serve(edge, client.stream, client.buffer, ends, taken, shutdown);
        Box::pin(serving).await;
    }
}

/// Closes idle connections to backends that nobody used, for ever.
async fn sweep(edge: Arc<Edge>) {
    loop {
        tokio::time::sleep(IDLE_SWEEP).await;
        edge.backends.sweep();
    }
}
