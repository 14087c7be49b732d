//! Connections to backends: opened within a time, kept for the next request, dropped when no
//! route leads there any more.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::buffer::Buffer;
use crate::limits::{
    AVOID_AFTER_FAILURE, CONNECT_TIMEOUT, MAX_ATTEMPTS, MAX_IDLE_AGE, MAX_IDLE_PER_BACKEND,
};
use crate::routes::HostRoute;
use crate::socket;

/// Idle connections, and which backends failed lately.
#[derive(Debug, Default)]
pub(crate) struct Backends {
    idle: Mutex<BTreeMap<SocketAddr, Vec<Idle>>>,
    failed: Mutex<BTreeMap<SocketAddr, Instant>>,
    /// How many `failed` has.
    failures: AtomicUsize,
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
}

/// A connection to a backend. It belongs to one client's connection while a request of it, or the next, uses it.
#[derive(Debug)]
pub(crate) struct BackendConnection {
    pub(crate) stream: TcpStream,
    pub(crate) address: SocketAddr,
    /// What it sent.
    pub(crate) buffer: Buffer,
    /// Whether its first bytes name a client, whose alone it is.
    pub(crate) names_client: bool,
}

impl BackendConnection {
    /// Whether it can take a request, as far as anybody knows: the backend has not closed it, and has sent nothing that was not asked for.
    pub(crate) fn is_open(&self) -> bool {
        let unread = self.stream.try_read(&mut [0]);
        self.buffer.is_empty()
            && matches!(unread, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// The backends to try for one request, in their order.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Attempts {
    addresses: [Option<SocketAddr>; MAX_ATTEMPTS],
}

impl Attempts {
    pub(crate) fn iter(&self) -> impl Iterator<Item = SocketAddr> {
        self.addresses.into_iter().flatten()
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
        address: SocketAddr,
        proxy_header: Option<&[u8]>,
    ) -> Result<BackendConnection, ConnectError> {
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, open(address, proxy_header))
            .await
            .unwrap_or(Err(ConnectError::TimedOut));
        let has_failed = opened.is_err();
        if has_failed || self.failures.load(Ordering::Relaxed) > 0 {
            let mut failed = lock(&self.failed);
            if has_failed {
                failed.insert(address, Instant::now());
            } else {
                failed.remove(&address);
            }
            self.failures.store(failed.len(), Ordering::Relaxed);
        }
        Ok(BackendConnection {
            stream: opened?,
            address,
            buffer: Buffer::default(),
            names_client: proxy_header.is_some(),
        })
    }

    /// The backends of a route, beginning with the one whose turn it is; those that failed lately are last.
    pub(crate) fn attempts(&self, to: &HostRoute) -> Attempts {
        let mut attempts = Attempts::default();
        let mut places = attempts.addresses.iter_mut();
        let in_turn = to.in_turn();
        if self.failures.load(Ordering::Relaxed) == 0 {
            for (address, place) in in_turn.zip(places) {
                *place = Some(address);
            }
            return attempts;
        }
        let mut failed = lock(&self.failed);
        failed.retain(|_, since| since.elapsed() < AVOID_AFTER_FAILURE);
        self.failures.store(failed.len(), Ordering::Relaxed);
        for is_failed in [false, true] {
            let those = in_turn.clone();
            let those = those.filter(|address| failed.contains_key(address) == is_failed);
            for (address, place) in those.zip(places.by_ref()) {
                *place = Some(address);
            }
        }
        attempts
    }

    /// Drops what is kept for backends that no route leads to any more.
    pub(crate) fn keep_only(&self, wanted: impl Fn(SocketAddr) -> bool) {
        lock(&self.idle).retain(|address, _| wanted(*address));
        let mut failed = lock(&self.failed);
        failed.retain(|address, _| wanted(*address));
        self.failures.store(failed.len(), Ordering::Relaxed);
    }

    /// How many connections are idle.
    #[cfg(test)]
    pub(crate) fn idle_connections(&self) -> usize {
        lock(&self.idle).values().map(Vec::len).sum()
    }

    /// Closes idle connections that are old, or that their backend closed.
    pub(crate) fn sweep(&self) {
        lock(&self.idle).retain(|_, kept| {
            kept.retain(|one| one.since.elapsed() < MAX_IDLE_AGE && one.connection.is_open());
            !kept.is_empty()
        });
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
