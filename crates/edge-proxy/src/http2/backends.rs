//! Connections to instances that speak HTTP/2 in clear text with prior knowledge (RFC 9113, 3.3). All clients share them: one carries as many requests as the
//! instance allows (SETTINGS_MAX_CONCURRENT_STREAMS), and only then there is another one, up to a number of them. One that allows none asks for no more: there is
//! no other beside it.
//!
//! ```text
//!   room on a connection --> a stream
//!   none, and few connections, each of which allows some --> another connection --> a stream
//!   none --> waits until a request ends, the instance allows more, or a connection ends --> looks again
//!                   \-> not in time: full
//! ```

use std::collections::BTreeMap;
use std::future::{Future as _, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use h2::Ping;
use h2::client::{Builder, SendRequest};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{timeout, timeout_at};

use super::backend_stream::{BackendStream, InUse, RequestStream, Uses};
use crate::limits::{
    BACKEND_SMALL_FRAMES_BUDGET, BACKEND_STREAM_WINDOW, BACKEND_STREAMS, CONNECT_TIMEOUT,
    MAX_HEAD_BYTES, MAX_IDLE_AGE, MAX_SHARED_CONNECTIONS, MAX_TAKEN_BACK, STREAM_SEND_BUFFER,
};
use crate::socket;

/// All windows of a connection together: no limit (RFC 9113, 6.9.1).
const LARGEST_WINDOW: u32 = (1 << 31) - 1;

/// The connections of each instance.
#[derive(Debug, Default)]
pub(crate) struct SharedConnections {
    instances: Mutex<BTreeMap<SocketAddr, Arc<Instance>>>,
}

#[derive(Debug, Default)]
struct Instance {
    /// Held while one is opened: who comes meanwhile uses it, too.
    connections: tokio::sync::Mutex<Vec<Shared>>,
    /// There may be room for a request on one of them.
    room: Arc<Notify>,
}

/// Why there is no stream for a request.
#[derive(Debug)]
pub(crate) enum NoStream {
    /// There is no connection.
    Broken(io::Error),
    /// It was not made in time.
    TimedOut,
    /// The instance allows no more requests at once, and none ended in time.
    Full,
}

#[derive(Debug)]
struct Shared {
    requests: SendRequest<Bytes>,
    has_ended: Arc<AtomicBool>,
    uses: Arc<Uses>,
    used: Instant,
}

impl Shared {
    /// Whether it takes no more requests: it is over, the instance has said that it goes (GOAWAY; RFC 9113, 6.8), or many requests were taken back on it. What is
    /// under way on it goes on.
    fn has_ended(&self) -> bool {
        // A clone waits for no request before it, so this is an answer and no wait.
        let mut asks = self.requests.clone();
        let ready = asks.poll_ready(&mut Context::from_waker(Waker::noop()));
        let is_worn = self.uses.taken_back.load(Ordering::Relaxed) >= MAX_TAKEN_BACK;
        is_worn || self.has_ended.load(Ordering::Relaxed) || matches!(ready, Poll::Ready(Err(_)))
    }

    fn streams(&self) -> usize {
        self.uses.now.load(Ordering::Relaxed)
    }

    /// How many requests at once the instance allows, as far as it has said.
    fn allowed(&self) -> usize {
        let allowed = self.requests.current_max_send_streams();
        allowed.min(BACKEND_STREAMS)
    }

    fn request(&mut self) -> BackendStream {
        self.used = Instant::now();
        let in_use = InUse::of(&self.uses);
        let stream = RequestStream::new(self.requests.clone(), in_use);
        BackendStream::Http2(Box::new(stream))
    }
}

impl Instance {
    /// A stream; `None`: there is no room on its connections, and they are as many as there may be.
    async fn take(&self, address: SocketAddr) -> io::Result<Option<BackendStream>> {
        let mut connections = self.connections.lock().await;
        connections.retain(|shared| !shared.has_ended());
        for shared in connections.iter_mut() {
            if shared.streams() < shared.allowed() {
                return Ok(Some(shared.request()));
            }
        }
        let wants_no_more = connections.iter().any(|shared| shared.allowed() == 0);
        if wants_no_more || connections.len() >= MAX_SHARED_CONNECTIONS {
            return Ok(None);
        }
        let mut shared = connect(address, &self.room).await?;
        let stream = (shared.allowed() > 0).then(|| shared.request());
        connections.push(shared);
        // It has more room than for this one.
        self.room.notify_waiters();
        Ok(stream)
    }
}

impl SharedConnections {
    /// A stream for one request to this instance; where there is no room, it is waited for until then.
    pub(crate) async fn open(
        &self,
        address: SocketAddr,
        until: tokio::time::Instant,
    ) -> Result<BackendStream, NoStream> {
        loop {
            let instance = Arc::clone(self.lock().entry(address).or_default());
            let mut freed = pin!(instance.room.notified());
            // What happens from now on counts.
            freed.as_mut().enable();
            let taken = timeout(CONNECT_TIMEOUT, instance.take(address)).await;
            let taken = taken.map_err(|_| NoStream::TimedOut)?;
            if let Some(stream) = taken.map_err(NoStream::Broken)? {
                return Ok(stream);
            }
            let freed = timeout_at(until, freed).await;
            freed.map_err(|_| NoStream::Full)?;
        }
    }

    /// Drops those of instances to which no route leads any more. What is under way on them goes on.
    pub(crate) fn keep_only(&self, wanted: impl Fn(SocketAddr) -> bool) {
        self.lock().retain(|address, _| wanted(*address));
    }

    /// Closes those that nobody has used for a while.
    pub(crate) fn sweep(&self) {
        self.lock().retain(|_, instance| {
            // One that is locked is in use.
            let Ok(mut connections) = instance.connections.try_lock() else {
                return true;
            };
            connections.retain(|shared| {
                let is_idle = shared.streams() == 0 && shared.used.elapsed() >= MAX_IDLE_AGE;
                !shared.has_ended() && !is_idle
            });
            !connections.is_empty()
        });
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) async fn count(&self, address: SocketAddr) -> usize {
        let instance = self.lock().get(&address).map(Arc::clone);
        match instance {
            Some(instance) => instance.connections.lock().await.len(),
            None => 0,
        }
    }

    /// How many requests are under way on those that take more.
    #[cfg(test)]
    pub(crate) async fn streams(&self, address: SocketAddr) -> usize {
        let instance = self.lock().get(&address).map(Arc::clone);
        match instance {
            Some(instance) => {
                let connections = instance.connections.lock().await;
                connections.iter().map(Shared::streams).sum()
            }
            None => 0,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<SocketAddr, Arc<Instance>>> {
        self.instances
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is at the other end of a connection is no HTTP/2.
#[derive(Debug, thiserror::Error)]
#[error("it does not speak HTTP/2 in clear text, which `protocol = \"h2c\"` of its port says: {0}")]
struct NotHttp2(h2::Error);

/// `room` is told whenever there may be more of it.
async fn connect(address: SocketAddr, room: &Arc<Notify>) -> io::Result<Shared> {
    let stream = TcpStream::connect(address).await?;
    socket::prepare(&stream);
    let handshake = Builder::new()
        .enable_push(false)
        .initial_window_size(BACKEND_STREAM_WINDOW)
        .initial_connection_window_size(LARGEST_WINDOW)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .max_send_buffer_size(STREAM_SEND_BUFFER)
        .data_frame_budget(BACKEND_SMALL_FRAMES_BUDGET)
        .handshake(stream);
    let (requests, mut connection) = handshake.await.map_err(io::Error::other)?;
    let mut pings = connection.ping_pong();
    let has_ended = Arc::new(AtomicBool::new(false));
    let (ended, told) = (Arc::clone(&has_ended), Arc::clone(room));
    tokio::spawn(async move {
        let mut allowed = connection.max_concurrent_send_streams();
        let serving = poll_fn(|context| {
            let polled = pin!(&mut connection).poll(context);
            let now = connection.max_concurrent_send_streams();
            if now != allowed {
                allowed = now;
                told.notify_waiters();
            }
            polled
        });
        if let Err(error) = serving.await {
            tracing::debug!(%address, %error, "a connection of HTTP/2 to an instance broke");
        }
        ended.store(true, Ordering::Relaxed);
        told.notify_waiters();
    });
    if let Some(pings) = &mut pings {
        // Its answer is behind its SETTINGS: then it is known what it allows, and that it speaks HTTP/2.
        let answered = pings.ping(Ping::opaque()).await;
        answered.map_err(|error| io::Error::other(NotHttp2(error)))?;
    }
    Ok(Shared {
        requests,
        has_ended,
        uses: Arc::new(Uses::new(Arc::clone(room))),
        used: Instant::now(),
    })
}
