//! Accepts clients, and lets their requests finish when the edge shuts down.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::forward::{self, Edge, Ends};
use crate::limits::{
    ACCEPT_RETRY, DRAIN_TIMEOUT, HEAD_READ_TIMEOUT, MAX_CLIENT_CONNECTIONS, MAX_HEAD_BYTES,
    MAX_HEADERS, TUNNEL_DRAIN_TIMEOUT,
};
use crate::socket;

/// Serves until `shutdown`, then until the requests in flight are done, within bounds.
pub(crate) async fn serve(edge: Arc<Edge>, listener: TcpListener, shutdown: CancellationToken) {
    let connections = TaskTracker::new();
    let room = Arc::new(Semaphore::new(MAX_CLIENT_CONNECTIONS));
    let cut_off = CancellationToken::new();
    while let Some((stream, place)) = accept(&listener, &room, &shutdown).await {
        let (stream, client) = stream;
        let edge = Arc::clone(&edge);
        let (shutdown, cut_off) = (shutdown.clone(), cut_off.clone());
        connections.spawn(async move {
            let open = edge.metrics.connections.clone();
            open.inc();
            tokio::select! {
                () = serve_client(edge, stream, client, shutdown) => {}
                () = cut_off.cancelled() => {}
            }
            open.dec();
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    edge.tunnels.close();
    let requests = async {
        if tokio::time::timeout(DRAIN_TIMEOUT, connections.wait())
            .await
            .is_err()
        {
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
    cut_off.cancel();
    connections.wait().await;
    // A request may have become a tunnel while it was waited for.
    edge.end_tunnels.cancel();
    edge.tunnels.wait().await;
}

/// The next client and its place among [`MAX_CLIENT_CONNECTIONS`]; `None` at shutdown.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<((TcpStream, SocketAddr), tokio::sync::OwnedSemaphorePermit)> {
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

async fn serve_client(
    edge: Arc<Edge>,
    stream: TcpStream,
    client: SocketAddr,
    shutdown: CancellationToken,
) {
    socket::prepare(&stream);
    let Ok(edge_end) = stream.local_addr() else {
        return; // Gone already.
    };
    let ends = Ends {
        client,
        edge: edge_end,
    };
    let service = service_fn(move |request| {
        let edge = Arc::clone(&edge);
        async move { Ok::<_, Infallible>(forward::answer(edge, ends, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_READ_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%client, %error, "a client's connection ended");
    }
}
