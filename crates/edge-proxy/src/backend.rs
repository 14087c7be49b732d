//! Connections to backends: opened within a time, kept for the next request, dropped when no
//! route leads there any more.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::balance::Upstream;
use crate::buffer::Buffer;
use crate::http2::{BackendStream, NoStream, SharedConnections};
use crate::limits::{CONNECT_TIMEOUT, MAX_IDLE_AGE, MAX_IDLE_PER_BACKEND, QUEUE_TIMEOUT};
use crate::socket;

/// Idle connections.
#[derive(Debug, Default)]
pub(crate) struct Backends {
    idle: Mutex<BTreeMap<SocketAddr, Vec<Idle>>>,
    /// Connections to instances that speak HTTP/2.
    pub(crate) shared: SharedConnections,
}

#[derive(Debug)]
struct Idle {
    connection: BackendConnection,
    since: Instant,
}

/// Why there is no connection to a backend.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("it did not accept the connection within {} s", CONNECT_TIMEOUT.as_secs())]
    TimedOut,
    #[error("{0}")]
    Refused(#[from] io::Error),
    #[error(
        "it allows no more requests at once (SETTINGS_MAX_CONCURRENT_STREAMS), and none ended within {} s",
        QUEUE_TIMEOUT.as_secs()
    )]
    Full,
}

/// A connection to a backend. It belongs to one client's connection while a request of it, or the next, uses it.
#[derive(Debug)]
pub(crate) struct BackendConnection {
    pub(crate) stream: BackendStream,
    pub(crate) address: SocketAddr,
    /// What it sent.
    pub(crate) buffer: Buffer,
    /// Whether its first bytes name a client, whose alone it is.
    pub(crate) names_client: bool,
}

impl BackendConnection {
    /// Whether it can take a request, as far as anybody knows: the backend has not closed it, and has sent nothing that was not asked for.
    pub(crate) fn is_open(&self) -> bool {
        self.buffer.is_empty() && self.stream.is_quiet()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backends {
    /// Keeps the connection for a later request to the same backend.
    pub(crate) fn release(&self, connection: BackendConnection) {
        if connection.names_client || !connection.is_open() {
            return;
        }
        let mut idle = lock(&self.idle);
        let kept = idle.entry(connection.address).or_default();
        if kept.len() < MAX_IDLE_PER_BACKEND {
            kept.push(Idle {
                connection,
                since: Instant::now(),
            });
        }
    }

    /// An idle connection to this backend, the one used last.
    pub(crate) fn idle(&self, address: SocketAddr) -> Option<BackendConnection> {
        let mut idle = lock(&self.idle);
        let kept = idle.get_mut(&address)?;
        while let Some(one) = kept.pop() {
            if one.since.elapsed() >= MAX_IDLE_AGE {
                // Those below are older.
                kept.clear();
            } else if one.connection.is_open() {
                return Some(one.connection);
            }
        }
        None
    }

    /// A new connection, on which `proxy_header` was written first.
    pub(crate) async fn connect(
        &self,
        upstream: &Arc<Upstream>,
        proxy_header: Option<&[u8]>,
    ) -> Result<BackendConnection, ConnectError> {
        let address = upstream.address;
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, open(address, proxy_header))
            .await
            .unwrap_or(Err(ConnectError::TimedOut));
        note(upstream, opened.is_ok());
        Ok(BackendConnection {
            stream: BackendStream::Tcp(opened?),
            address,
            buffer: Buffer::default(),
            names_client: proxy_header.is_some(),
        })
    }

    /// One for a single request to a backend that speaks HTTP/2: a stream of a connection that all clients share. Room on one is waited for until then.
    pub(crate) async fn connect_http2(
        &self,
        upstream: &Arc<Upstream>,
        until: tokio::time::Instant,
    ) -> Result<BackendConnection, ConnectError> {
        let address = upstream.address;
        let opened = self.shared.open(address, until).await;
        let opened = opened.map_err(|error| match error {
            NoStream::Broken(error) => ConnectError::Refused(error),
            NoStream::TimedOut => ConnectError::TimedOut,
            NoStream::Full => ConnectError::Full,
        });
        // One that is full can be reached.
        let could = matches!(opened, Ok(_) | Err(ConnectError::Full));
        note(upstream, could);
        Ok(BackendConnection {
            stream: opened?,
            address,
            buffer: Buffer::default(),
            names_client: false,
        })
    }

    /// Drops what is kept for backends that no route leads to any more.
    pub(crate) fn keep_only(&self, wanted: impl Fn(SocketAddr) -> bool) {
        lock(&self.idle).retain(|address, _| wanted(*address));
        self.shared.keep_only(&wanted);
    }

    /// How many connections are idle.
    #[cfg(test)]
    pub(crate) fn idle_connections(&self) -> usize {
        lock(&self.idle).values().map(Vec::len).sum()
    }

    /// Closes idle connections that are old, or that their backend closed.
    pub(crate) fn sweep(&self) {
        self.shared.sweep();
        lock(&self.idle).retain(|_, kept| {
            kept.retain(|one| one.since.elapsed() < MAX_IDLE_AGE && one.connection.is_open());
            !kept.is_empty()
        });
    }
}

/// Whether a connection to the backend could be made just now.
fn note(upstream: &Arc<Upstream>, could: bool) {
    if could {
        upstream.accepted();
    } else {
        upstream.refused();
    }
}

async fn open(address: SocketAddr, proxy_header: Option<&[u8]>) -> Result<TcpStream, ConnectError> {
    let mut stream = TcpStream::connect(address).await?;
    socket::prepare(&stream);
    if let Some(header) = proxy_header {
        stream.write_all(header).await?;
    }
    Ok(stream)
}
