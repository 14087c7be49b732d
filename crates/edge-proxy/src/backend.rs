//! Connections to backends: opened within a time, kept for the next request, dropped when no
//! route leads there any more.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::limits::{
    AVOID_AFTER_FAILURE, CONNECT_TIMEOUT, MAX_HEAD_BYTES, MAX_HEADERS, MAX_IDLE_AGE,
    MAX_IDLE_PER_BACKEND,
};
use crate::request_body::ClientBody;
use crate::socket;

/// Idle connections, and which backends failed lately.
#[derive(Debug, Default)]
pub(crate) struct Backends {
    idle: Mutex<BTreeMap<SocketAddr, Vec<Idle>>>,
    failed: Mutex<BTreeMap<SocketAddr, Instant>>,
}

#[derive(Debug)]
struct Idle {
    sender: SendRequest<ClientBody>,
    since: Instant,
}

/// Why there is no connection to a backend.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("it did not accept the connection within {} s", CONNECT_TIMEOUT.as_secs())]
    TimedOut,
    #[error("{0}")]
    Refused(#[from] io::Error),
    #[error("{0}")]
    Handshake(#[from] hyper::Error),
}

/// A connection in use for one request.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) sender: SendRequest<ClientBody>,
    address: SocketAddr,
    backends: Arc<Backends>,
}

impl Lease {
    /// Keeps the connection for a later request to the same backend.
    pub(crate) fn release(self) {
        if self.sender.is_closed() {
            return;
        }
        let mut idle = lock(&self.backends.idle);
        let kept = idle.entry(self.address).or_default();
        if kept.len() < MAX_IDLE_PER_BACKEND {
            kept.push(Idle {
                sender: self.sender,
                since: Instant::now(),
            });
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backends {
    /// An idle connection to this backend, the one used last.
    pub(crate) fn idle(self: &Arc<Self>, address: SocketAddr) -> Option<Lease> {
        let mut idle = lock(&self.idle);
        let kept = idle.get_mut(&address)?;
        kept.retain(|one| !one.sender.is_closed() && one.since.elapsed() < MAX_IDLE_AGE);
        let last = kept.iter().rposition(|one| one.sender.is_ready())?;
        Some(Lease {
            sender: kept.remove(last).sender,
            address,
            backends: Arc::clone(self),
        })
    }

    /// A new connection, on which `proxy_header` was written first.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        address: SocketAddr,
        proxy_header: Option<&[u8]>,
    ) -> Result<Lease, ConnectError> {
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, open(address, proxy_header))
            .await
            .unwrap_or(Err(ConnectError::TimedOut));
        match opened {
            Ok(sender) => {
                lock(&self.failed).remove(&address);
                Ok(Lease {
                    sender,
                    address,
                    backends: Arc::clone(self),
                })
            }
            Err(error) => {
                lock(&self.failed).insert(address, Instant::now());
                Err(error)
            }
        }
    }

    /// Puts the backends that failed lately last, and keeps the order otherwise.
    pub(crate) fn failed_last(&self, addresses: &mut [SocketAddr]) {
        let mut failed = lock(&self.failed);
        if failed.is_empty() {
            return;
        }
        failed.retain(|_, since| since.elapsed() < AVOID_AFTER_FAILURE);
        addresses.sort_by_key(|address| failed.contains_key(address));
    }

    /// Drops what is kept for backends that no route leads to any more.
    pub(crate) fn keep_only(&self, wanted: impl Fn(SocketAddr) -> bool) {
        lock(&self.idle).retain(|address, _| wanted(*address));
        lock(&self.failed).retain(|address, _| wanted(*address));
    }
}

async fn open(
    address: SocketAddr,
    proxy_header: Option<&[u8]>,
) -> Result<SendRequest<ClientBody>, ConnectError> {
    let mut stream = TcpStream::connect(address).await?;
    socket::prepare(&stream);
    if let Some(header) = proxy_header {
        stream.write_all(header).await?;
    }
    let (sender, connection) = http1::Builder::new()
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await?;
    // It ends when the backend closes, or when the sender was dropped. Whoever waits for an
    // answer gets the error; the end of an idle connection is not reported.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%address, %error, "a backend's connection ended");
        }
    });
    Ok(sender)
}
