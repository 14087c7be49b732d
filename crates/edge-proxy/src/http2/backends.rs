//! Connections to instances that speak HTTP/2 in clear text with prior knowledge (RFC 9113, 3.3). All clients share them: one carries as many requests as the
//! instance allows, and only then there is another one.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use h2::Ping;
use h2::client::{Builder, SendRequest};
use tokio::net::TcpStream;

use super::backend_stream::{BackendStream, InUse, RequestStream, Uses};
use crate::limits::{
    BACKEND_STREAM_WINDOW, BACKEND_STREAMS, MAX_HEAD_BYTES, MAX_IDLE_AGE, MAX_TAKEN_BACK,
    STREAM_SEND_BUFFER,
};
use crate::socket;

/// All windows of a connection together: no limit (RFC 9113, 6.9.1).
const LARGEST_WINDOW: u32 = (1 << 31) - 1;

/// The connections of each instance.
#[derive(Debug, Default)]
pub(crate) struct SharedConnections {
    instances: Mutex<BTreeMap<SocketAddr, Instance>>,
}

/// Held while one is opened: who comes meanwhile uses it, too.
type Instance = Arc<tokio::sync::Mutex<Vec<Shared>>>;

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

    fn request(&mut self) -> BackendStream {
        self.used = Instant::now();
        let in_use = InUse::of(&self.uses);
        let stream = RequestStream::new(self.requests.clone(), in_use);
        BackendStream::Http2(Box::new(stream))
    }
}

impl SharedConnections {
    /// A stream for one request to this instance.
    pub(crate) async fn open(&self, address: SocketAddr) -> io::Result<BackendStream> {
        let instance = Arc::clone(self.lock().entry(address).or_default());
        let mut connections = instance.lock().await;
        connections.retain(|shared| !shared.has_ended());
        for shared in connections.iter_mut() {
            if shared.streams()
                < shared
                    .requests
                    .current_max_send_streams()
                    .min(BACKEND_STREAMS)
            {
                return Ok(shared.request());
            }
        }
        let mut shared = connect(address).await?;
        let stream = shared.request();
        connections.push(shared);
        Ok(stream)
    }

    /// Drops those of instances to which no route leads any more. What is under way on them goes on.
    pub(crate) fn keep_only(&self, wanted: impl Fn(SocketAddr) -> bool) {
        self.lock().retain(|address, _| wanted(*address));
    }

    /// Closes those that nobody has used for a while.
    pub(crate) fn sweep(&self) {
        self.lock().retain(|_, instance| {
            // One that is locked is in use.
            let Ok(mut connections) = instance.try_lock() else {
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
            Some(instance) => instance.lock().await.len(),
            None => 0,
        }
    }

    /// How many requests are under way on those that take more.
    #[cfg(test)]
    pub(crate) async fn streams(&self, address: SocketAddr) -> usize {
        let instance = self.lock().get(&address).map(Arc::clone);
        match instance {
            Some(instance) => instance.lock().await.iter().map(Shared::streams).sum(),
            None => 0,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<SocketAddr, Instance>> {
        self.instances
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is at the other end of a connection is no HTTP/2.
#[derive(Debug, thiserror::Error)]
#[error("it does not speak HTTP/2 in clear text, which `protocol = \"h2c\"` of its port says: {0}")]
struct NotHttp2(h2::Error);

async fn connect(address: SocketAddr) -> io::Result<Shared> {
    let stream = TcpStream::connect(address).await?;
    socket::prepare(&stream);
    let handshake = Builder::new()
        .enable_push(false)
        .initial_window_size(BACKEND_STREAM_WINDOW)
        .initial_connection_window_size(LARGEST_WINDOW)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .max_send_buffer_size(STREAM_SEND_BUFFER)
        .handshake(stream);
    let (requests, mut connection) = handshake.await.map_err(io::Error::other)?;
    let mut pings = connection.ping_pong();
    let has_ended = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&has_ended);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%address, %error, "a connection of HTTP/2 to an instance broke");
        }
        ended.store(true, Ordering::Relaxed);
    });
    if let Some(pings) = &mut pings {
        // Its answer is behind its SETTINGS: then it is known what it allows, and that it speaks HTTP/2.
        let answered = pings.ping(Ping::opaque()).await;
        answered.map_err(|error| io::Error::other(NotHttp2(error)))?;
    }
    Ok(Shared {
        requests,
        has_ended,
        uses: Arc::default(),
        used: Instant::now(),
    })
}
