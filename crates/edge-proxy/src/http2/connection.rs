//! A client's connection of HTTP/2: its frames and all its streams, on one task.
//!
//! ```text
//!   serving --> (shutdown, or idle for long) GOAWAY --> streams that began end --> closed
//!      \-> flooded: GOAWAY of ENHANCE_YOUR_CALM --> closed
//!      \-> no answer to a PING, or a head that does not end --> cut off
//! ```

use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use h2::server::{self, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::client_stream::ClientStream;
use super::meter::{Meter, Metered};
use crate::answer;
use crate::buffer::Buffer;
use crate::client::Stream;
use crate::connection::{self, Taken};
use crate::forward::{Edge, Ends};
use crate::limits::{
    CONNECTION_WINDOW, HEAD_READ_TIMEOUT, IDLE_TIMEOUT, LINGER_TIMEOUT, MAX_HEADER_LIST_BYTES,
    MAX_LOCAL_RESETS, MAX_STREAMS, MAX_UNSEEN_RESETS, PING_INTERVAL, PING_TIMEOUT,
    SMALL_FRAMES_BUDGET, STREAM_SEND_BUFFER, STREAM_WINDOW, WAITING_FRAMES,
};
use crate::timer::Timer;

type Frames<S> = server::Connection<Metered<S>, Bytes>;

/// Serves a client that begins with the preface of HTTP/2, of which `begin` was read, until its connection ends; after `shutdown` until its requests in
/// flight are answered. `taken`: of the client's share.
pub(crate) async fn serve<S: Stream>(
    edge: Arc<Edge>,
    stream: S,
    begin: Buffer,
    ends: Ends,
    taken: Taken,
    shutdown: CancellationToken,
) {
    // Apart, so that its memory is not kept.
    let Some(mut watch) = Box::pin(shake_hands(&edge, stream, begin, ends.client)).await else {
        return;
    };
    let mut ending = pin!(shutdown.cancelled());
    let mut streams = FuturesUnordered::new();
    poll_fn(|context| {
        while let Poll::Ready(begun) = watch.poll_request(context) {
            let Some((request, respond)) = begun else {
                break;
            };
            if let Some(begun) =
                begin_stream(&edge, ends.client.ip(), (request, respond), &watch.meter)
            {
                let (stream, taken, place) = begun;
                let (edge, shutdown) = (Arc::clone(&edge), shutdown.clone());
                let serving = connection::serve(edge, stream, ends, taken, shutdown);
                // Boxed: beside those under way there is room for one more in the set of them, also while the connection is idle.
                let serving = Box::pin(serving);
                streams.push(async move {
                    serving.await;
                    drop(place);
                });
            }
        }
        while let Poll::Ready(Some(())) = streams.poll_next_unpin(context) {}
        if ending.as_mut().poll(context).is_ready() {
            watch.end(context);
        }
        watch.poll_end(context, !streams.is_empty())
    })
    .await;
    drop(taken);
}

/// The preface and the first SETTINGS of both sides. `None`: they did not come.
async fn shake_hands<S: Stream>(
    edge: &Edge,
    stream: S,
    begin: Buffer,
    client: SocketAddr,
) -> Option<Watch<S>> {
    let meter = Arc::new(Meter::default());
    let stream = Metered::new(stream, begin, Arc::clone(&meter));
    let handshake = builder().handshake(stream);
    let mut frames = match tokio::time::timeout(HEAD_READ_TIMEOUT, handshake).await {
        Ok(Ok(frames)) => frames,
        Ok(Err(error)) => {
            tracing::debug!(%client, %error, "a connection of HTTP/2 did not begin");
            return None;
        }
        Err(_) => return None,
    };
    let pings = frames.ping_pong()?;
    let room = Arc::clone(&edge.waiting_frames);
    Some(Watch::new(frames, pings, meter, room))
}

/// The time by which the runtime's timers go.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn builder() -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(STREAM_SEND_BUFFER)
        .max_local_error_reset_streams(Some(MAX_LOCAL_RESETS))
        .max_pending_accept_reset_streams(MAX_UNSEEN_RESETS)
        .data_frame_budget(SMALL_FRAMES_BUDGET)
        .enable_connect_protocol();
    builder
}

/// A request that is to be served, what of its client's share it takes, and its place among all.
type Begun = (ClientStream, Taken, OwnedSemaphorePermit);

/// The stream of a request; `None`: it was answered, or reset. One beyond its client's share takes no place of all, whose answer the client might not read: it
/// has a head only, for which there is always room.
fn begin_stream(
    edge: &Edge,
    client: IpAddr,
    (request, mut respond): (Request<RecvStream>, SendResponse<Bytes>),
    meter: &Arc<Meter>,
) -> Option<Begun> {
    let Some(taken) = Taken::of(edge, client) else {
        tracing::debug!(%client, "a client has as many connections as it may have");
        // It fails where the client has taken its request back.
        let _ = respond.send_response(answer::client_has_its_share(), true);
        return None;
    };
    let Ok(place) = Arc::clone(&edge.streams).try_acquire_owned() else {
        tracing::warn!("there are as many requests over HTTP/2 as there may be; one is refused");
        respond.send_reset(Reason::REFUSED_STREAM);
        return None;
    };
    match ClientStream::new(request, respond, Arc::clone(meter)) {
        Ok(stream) => Some((stream, taken, place)),
        Err(reason) => {
            tracing::debug!(%reason, "a request is malformed");
            None
        }
    }
}

/// A connection's frames, and how long it may go on.
struct Watch<S> {
    frames: Frames<S>,
    pings: PingPong,
    meter: Arc<Meter>,
    /// Room for frames that wait, and what the connection has of it.
    room: Arc<Semaphore>,
    has_room: Option<OwnedSemaphorePermit>,
    timer: Timer,
    /// When anything was read last, and how often it was by then.
    heard: Instant,
    reads: u64,
    /// Since when there is a head, or a frame, without its end, and its number.
    within: Option<(u64, Instant)>,
    /// Since when there has been no request.
    idle: Option<Instant>,
    pinged: Option<Instant>,
    /// Whether it takes no more requests.
    is_ending: bool,
    /// Whether there will be no frames any more.
    has_ended: bool,
    /// Until when it may go on at most.
    until: Option<Instant>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Watch<S> {
    fn new(frames: Frames<S>, pings: PingPong, meter: Arc<Meter>, room: Arc<Semaphore>) -> Self {
        let begun = now();
        Self {
            frames,
            pings,
            meter,
            room,
            has_room: None,
            timer: Timer::new(begun + IDLE_TIMEOUT),
            heard: begun,
            reads: 0,
            within: None,
            idle: Some(begun),
            pinged: None,
            is_ending: false,
            has_ended: false,
            until: None,
        }
    }

    /// Moves frames; ready with a request, or, when the connection has ended, with none.
    fn poll_request(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<(Request<RecvStream>, SendResponse<Bytes>)>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        match self.frames.poll_accept(context) {
            Poll::Ready(Some(Ok(begun))) => Poll::Ready(Some(begun)),
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(%error, "a client's connection of HTTP/2 broke");
                self.has_ended = true;
                Poll::Ready(None)
            }
            Poll::Ready(None) => {
                self.has_ended = true;
                Poll::Ready(None)
            }
            Poll::Pending if self.meter.is_flooded() && self.until.is_none() => {
                tracing::info!(
                    "a client of HTTP/2 sends frames that ask for nothing; its connection ends"
                );
                self.cut_off();
                self.poll_request(context)
            }
            Poll::Pending if self.until.is_none() && !self.takes_room() => {
                tracing::warn!(
                    "frames of clients of HTTP/2 that wait to be passed on take all the memory that they may; a connection ends"
                );
                self.cut_off();
                self.poll_request(context)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Whether there was room for as many frames as have waited on the connection at once.
    fn takes_room(&mut self) -> bool {
        let needed = self.meter.most_waiting().saturating_sub(WAITING_FRAMES);
        let has = self.has_room.as_ref();
        let has = has.map_or(0, OwnedSemaphorePermit::num_permits);
        if needed <= has {
            return true;
        }
        let more = (needed - has).next_multiple_of(WAITING_FRAMES);
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let Ok(more) = Arc::clone(&self.room).try_acquire_many_owned(more) else {
            return false;
        };
        match &mut self.has_room {
            Some(has) => has.merge(more),
            none => *none = Some(more),
        }
        true
    }

    /// Takes no more requests. Those that are under way end.
    fn end(&mut self, context: &Context<'_>) {
        if !self.is_ending {
            self.is_ending = true;
            self.meter.await_pong();
            self.frames.graceful_shutdown();
            // The GOAWAY is to be written.
            context.waker().wake_by_ref();
        }
    }

    /// Ends it with what is under way.
    fn cut_off(&mut self) {
        self.is_ending = true;
        self.until = Some(now() + LINGER_TIMEOUT);
        self.frames.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
    }

    /// Ready: it has ended, or is to be.
    fn poll_end(&mut self, context: &mut Context<'_>, is_busy: bool) -> Poll<()> {
        if self.has_ended && !is_busy {
            return Poll::Ready(());
        }
        let is_busy = is_busy || self.frames.has_streams();
        self.notice(context, now(), is_busy);
        loop {
            let due = self.due();
            self.timer.set(due);
            if self.timer.poll(context).is_pending() {
                return Poll::Pending;
            }
            if self.until.is_some() || self.within.is_some() {
                return Poll::Ready(());
            }
            if self.idle.is_some() {
                self.end(context);
                self.until = Some(now() + LINGER_TIMEOUT);
            } else if self.pinged.is_some() {
                tracing::debug!("a client of HTTP/2 does not answer a PING; its connection ends");
                return Poll::Ready(());
            } else {
                self.pinged = Some(now());
                self.meter.await_pong();
                if self.pings.send_ping(Ping::opaque()).is_err() {
                    return Poll::Ready(());
                }
            }
        }
    }

    /// Follows what happened since the last time.
    fn notice(&mut self, context: &mut Context<'_>, now: Instant, is_busy: bool) {
        let reads = self.meter.reads();
        if reads != self.reads {
            (self.reads, self.heard) = (reads, now);
        }
        if self.pinged.is_some() && self.pings.poll_pong(context).is_ready() {
            self.pinged = None;
        }
        self.within = match (self.meter.within(), self.within) {
            (None, _) => None,
            (Some(number), Some((known, since))) if known == number => Some((known, since)),
            (Some(number), _) => Some((number, now)),
        };
        if self.has_ended {
            // Requests that are under way find out that the client is gone.
            self.until.get_or_insert(now + LINGER_TIMEOUT);
        } else if is_busy {
            self.idle = None;
        } else {
            self.meter.is_idle();
            if self.has_room.is_some() {
                self.end(context);
            }
            if self.idle.is_none() {
                self.idle = Some(now);
            }
        }
        if self.is_ending && !is_busy {
            // It closes when the client has acknowledged that.
            self.until.get_or_insert(now + LINGER_TIMEOUT);
        }
    }

    fn due(&self) -> Instant {
        if let Some(until) = self.until {
            until
        } else if let Some((_, since)) = self.within {
            since + HEAD_READ_TIMEOUT
        } else if let Some(since) = self.idle {
            since + IDLE_TIMEOUT
        } else if let Some(since) = self.pinged {
            since + PING_TIMEOUT
        } else {
            self.heard + PING_INTERVAL
        }
    }
}
