//! One request: to a backend that takes it, and its answer back.
//!
//! A request is given to another backend only while that cannot do harm: nothing of its body was
//! read by the failed one, and either the failed one was never reached or the method is safe
//! (RFC 9110, 9.2.2). An idle connection may be closed by its backend at the very moment it is
//! used, so only requests that may be sent twice go on one; all others open their own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Instant;

use api::edge::AppProtocol;
use http::StatusCode;
use http1::{BadChunk, ForClient, Framing, Version, write_response};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access_log::AccessLog;
use crate::answer::Answer;
use crate::backend::{BackendConnection, Backends, ConnectError};
use crate::balance::{NoInstance, Upstream};
use crate::body::Body;
use crate::challenges::Challenges;
use crate::client::Stream;
use crate::date::with_date;
use crate::error_pages::ErrorPages;
use crate::exchange::{Cut, Download, Exchange, NoAnswer, Passing};
pub(crate) use crate::https_policy::Scheme;
use crate::https_policy::{Https, strict_transport_security};
use crate::limits::{
    LINGER_TIMEOUT, MAX_ALL_STREAMS, MAX_ALL_WAITING_FRAMES, MAX_DRAINED_BYTES, MAX_HEADERS,
    MAX_INTERIM_ANSWERS, MAX_REFUSED, QUEUE_TIMEOUT, TUNNEL_IDLE_TIMEOUT,
};
use crate::metrics::{EdgeMetrics, Failure};
use crate::proxy_header;
use crate::routes::{HostRoute, Routes};
use crate::session::{After, Asked, Session, Summary};
use crate::shares::Shares;
use crate::trusted::TrustedProxies;
use crate::tunnel::{self, TunnelEnd};
use crate::upload::{Upload, UploadError};

/// Bytes of a line of an app that are logged.
const MAX_LOGGED_LINE_BYTES: usize = 200;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Edge {
    pub(crate) metrics: EdgeMetrics,
    pub(crate) routes: Routes,
    pub(crate) backends: Backends,
    pub(crate) shares: Shares,
    pub(crate) trusted_proxies: TrustedProxies,
    pub(crate) access_log: Option<AccessLog>,
    pub(crate) error_pages: ErrorPages,
    /// How clients reach it by HTTPS; unset where they cannot.
    pub(crate) https: OnceLock<Https>,
    /// What authorities of ACME ask for.
    pub(crate) challenges: Challenges,
    /// Clients' connections over TLS to the port for HTTPS.
    pub(crate) tls_connections: TaskTracker,
    /// Upgraded connections.
    pub(crate) tunnels: TaskTracker,
    /// Ends the tunnels.
    pub(crate) end_tunnels: CancellationToken,
    /// Set when another process takes the place of this one: ends what is open then.
    pub(crate) handed_over: OnceLock<CancellationToken>,
    /// A place for each request over HTTP/2.
    pub(crate) streams: Arc<Semaphore>,
    /// Room for frames of bodies that wait, of all connections of HTTP/2.
    pub(crate) waiting_frames: Arc<Semaphore>,
    /// A place for each connection beyond its client's share that is waited for.
    pub(crate) refused: Semaphore,
}

impl Default for Edge {
    fn default() -> Self {
        let metrics = EdgeMetrics::default();
        Self {
            routes: Routes::new(metrics.series()),
            metrics,
            backends: Backends::default(),
            shares: Shares::default(),
            trusted_proxies: TrustedProxies::default(),
            access_log: None,
            error_pages: ErrorPages::default(),
            https: OnceLock::new(),
            challenges: Challenges::default(),
            tls_connections: TaskTracker::new(),
            tunnels: TaskTracker::new(),
            end_tunnels: CancellationToken::new(),
            handed_over: OnceLock::new(),
            streams: Arc::new(Semaphore::new(MAX_ALL_STREAMS)),
            waiting_frames: Arc::new(Semaphore::new(MAX_ALL_WAITING_FRAMES)),
            refused: Semaphore::new(MAX_REFUSED),
        }
    }
}

/// The two ends of a client's connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) client: SocketAddr,
    pub(crate) edge: SocketAddr,
    /// By what the client speaks to the edge: what `X-Forwarded-Proto` says.
    pub(crate) scheme: Scheme,
}

/// Why there was no answer to pass on.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("could not connect to {0}: {1}")]
    Connect(SocketAddr, #[source] ConnectError),
    #[error("{0}")]
    NoAnswer(#[from] NoAnswer),
    #[error("the body that {0} answered with is malformed: {1}")]
    Malformed(SocketAddr, #[source] BadChunk),
    #[error("{0} switched to another protocol, which nobody asked for")]
    Switched(SocketAddr),
    #[error(
        "{0} answered {1} in the place of 101: over HTTP/2 that would say that the WebSocket is open"
    )]
    NotSwitched(SocketAddr, u16),
}

impl Failed {
    fn kind(&self) -> Failure {
        match self {
            Self::Connect(_, ConnectError::Full) | Self::NoAnswer(NoAnswer::TooLate(_)) => {
                Failure::Timeout
            }
            Self::Connect(..) => Failure::Connect,
            Self::NoAnswer(
                NoAnswer::ClientStalled | NoAnswer::ClientSlow | NoAnswer::Client(_),
            ) => Failure::Client,
            Self::NoAnswer(NoAnswer::Broken(..) | NoAnswer::Malformed(..))
            | Self::Malformed(..)
            | Self::Switched(_)
            | Self::NotSwitched(..) => Failure::Broken,
        }
    }

    /// Whether another backend may be tried, as far as the failed one goes.
    fn is_harmless(&self, is_safe: bool) -> bool {
        match self {
            Self::Connect(..) => true,
            Self::NoAnswer(NoAnswer::Broken(_, error)) => is_safe || was_refused(error),
            _ => false,
        }
    }

    /// What the client is told; `None`: it is gone.
    fn answer(&self) -> Option<Answer> {
        let status = match self {
            Self::NoAnswer(NoAnswer::Client(error)) => {
                return match error {
                    UploadError::Broken(_) => None,
                    UploadError::Ended => Some(Answer::broken_body()),
                    UploadError::Malformed(error) => Some(Answer::bad_body(*error)),
                };
            }
            Self::Connect(_, ConnectError::Full) => return Some(Answer::instances_are_busy()),
            Self::Connect(_, ConnectError::TimedOut) | Self::NoAnswer(NoAnswer::TooLate(_)) => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::NoAnswer(NoAnswer::ClientStalled | NoAnswer::ClientSlow) => {
                StatusCode::REQUEST_TIMEOUT
            }
            _ => StatusCode::BAD_GATEWAY,
        };
        Some(Answer::unavailable(status))
    }
}

/// Whether a backend has said that it did nothing of a request (REFUSED_STREAM; RFC 9113, 8.7), or never had it.
fn was_refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused || was_never_made(error)
}

/// Whether the connection of a request takes none any more, and the backend did nothing of it (GOAWAY; RFC 9113, 6.8). Another connection to the same may.
fn was_never_made(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotConnected
}

/// How a request went.
pub(crate) enum Forwarded {
    /// An app answered.
    Answered(After),
    /// The edge answers. With `is_whole` all of the request was read.
    Own { answer: Answer, is_whole: bool },
    /// The client is gone.
    Gone,
}

/// One request on its way.
pub(crate) struct Request<'a, S> {
    pub(crate) edge: &'a Edge,
    pub(crate) ends: Ends,
    pub(crate) to: &'a HostRoute,
    pub(crate) asked: Asked,
    pub(crate) session: &'a mut Session<S>,
    pub(crate) summary: &'a mut Summary,
    /// The cookie that its answer sets.
    pub(crate) cookie: Option<String>,
    /// Until when it waits for room on a connection to an instance that speaks HTTP/2.
    pub(crate) room_until: Option<tokio::time::Instant>,
}

/// An answer whose head was read.
struct Begun {
    backend: BackendConnection,
    /// Bytes of the answer's head, in the backend's buffer.
    head: usize,
    /// Bytes of the request's head that the backend has not taken yet.
    unsent: usize,
}

impl<S: Stream> Request<'_, S> {
    /// Gives the request to a backend. Its head is `session.to_backend`; its body is in the client's buffer, and comes.
    pub(crate) async fn forward(mut self) -> Forwarded {
        let (to, asked) = (self.to, self.asked);
        let proxy_header = to
            .route
            .proxy_protocol
            .map(|_| proxy_header::encode(self.ends.client, self.ends.edge, None));
        let body = Body::of_request(asked.framing);
        let may_be_refused = to.route.protocol == AppProtocol::H2c;
        let mut upload = Upload::new(body, to.counted.received.clone(), may_be_refused);
        let mut failure: Option<Failed> = None;
        let mut attempts = to.attempts(self.session.wanted);
        loop {
            let lease = match attempts.next().await {
                Ok(lease) => lease,
                Err(NoInstance::Free) if failure.is_none() => {
                    let (process, env) = (&to.route.process, &to.route.env);
                    let (request, host) = (&self.session.request_id, &self.session.host);
                    tracing::warn!(request, host, %env, %process, "each instance has as many requests as it may have (`hard_limit`)");
                    return Forwarded::Own {
                        answer: Answer::instances_are_busy(),
                        is_whole: upload.is_done(),
                    };
                }
                Err(_) => break,
            };
            self.cookie = (to.cookies.as_ref())
                .filter(|_| attempts.is_new_home(&lease))
                .and_then(|cookies| cookies.set(lease.place, self.session.scheme == Scheme::Https));
            if let Some(earlier) = failure.take() {
                let host = &self.session.host;
                tracing::info!(host, error = %earlier, "trying another instance");
            }
            let upstream = lease.upstream();
            let tried = self.try_backend(upstream, proxy_header.as_deref(), &mut upload);
            match tried.await {
                Ok(begun) => match self.pass(begun, &mut upload).await {
                    Ok(after) => {
                        self.summary.received_bytes = upload.bytes;
                        return Forwarded::Answered(after);
                    }
                    Err(error) => {
                        to.counted.failed(error.kind());
                        failure = Some(error);
                        break;
                    }
                },
                Err(error) => {
                    to.counted.failed(error.kind());
                    let is_harmless = error.is_harmless(asked.is_safe);
                    failure = Some(error);
                    if upload.is_begun() || !is_harmless {
                        break;
                    }
                }
            }
        }
        self.summary.received_bytes = upload.bytes;
        let is_whole = upload.is_done();
        let Some(error) = failure else {
            // The route has lost its instances since it was looked up.
            return Forwarded::Own {
                answer: Answer::not_now(),
                is_whole,
            };
        };
        self.summary.error = Some(error.to_string());
        let Some(answer) = error.answer() else {
            return Forwarded::Gone;
        };
        let (process, env) = (&to.route.process, &to.route.env);
        let (request, host) = (&self.session.request_id, &self.session.host);
        if error.kind() == Failure::Client {
            tracing::info!(request, host, client = %self.ends.client, %env, %process, %error, "a request did not come whole");
        } else {
            tracing::warn!(request, host, client = %self.ends.client, %env, %process, %error, "no instance answered");
        }
        Forwarded::Own { answer, is_whole }
    }

    /// Gives the request to one backend: on an idle connection if that is allowed and there is one,
    /// else, or if that one turned out to be closed, on a new one.
    async fn try_backend(
        &mut self,
        upstream: &Arc<Upstream>,
        proxy_header: Option<&[u8]>,
        upload: &mut Upload,
    ) -> Result<Begun, Failed> {
        let (asked, address) = (self.asked, upstream.address);
        if self.to.route.protocol == AppProtocol::H2c {
            let backends = &self.edge.backends;
            // Whichever instances it tries.
            let until = || tokio::time::Instant::now() + QUEUE_TIMEOUT;
            let until = *self.room_until.get_or_insert_with(until);
            let backend = backends.connect_http2(upstream, until).await;
            let backend = backend.map_err(|error| Failed::Connect(address, error))?;
            match self.ask(backend, upload).await {
                Err(NoAnswer::Broken(_, error)) if was_never_made(&error) && !upload.is_begun() => {
                }
                result => return Ok(result?),
            }
            let backend = backends.connect_http2(upstream, until).await;
            let backend = backend.map_err(|error| Failed::Connect(address, error))?;
            return Ok(self.ask(backend, upload).await?);
        }
        let may_reuse = asked.is_safe && asked.framing == Framing::Empty && !asked.wants_upgrade;
        if may_reuse && let Some(backend) = self.reusable(address, proxy_header.is_some()) {
            match self.ask(backend, upload).await {
                Err(NoAnswer::Broken(..)) => {}
                result => return Ok(result?),
            }
        }
        let backend = self.edge.backends.connect(upstream, proxy_header).await;
        let backend = backend.map_err(|error| Failed::Connect(address, error))?;
        Ok(self.ask(backend, upload).await?)
    }

    /// The connection that this client's connection holds, where it leads there; else an idle one of all.
    fn reusable(&mut self, address: SocketAddr, names_client: bool) -> Option<BackendConnection> {
        if let Some(held) = self.session.held.take() {
            if held.address == address && held.names_client == names_client && held.is_open() {
                return Some(held);
            }
            self.edge.release(held);
        }
        // One that names a client is never another's.
        (!names_client)
            .then(|| self.edge.backends.idle(address))
            .flatten()
    }

    /// Sends the request, until the head of its answer is there. Interim answers pass.
    async fn ask(
        &mut self,
        mut backend: BackendConnection,
        upload: &mut Upload,
    ) -> Result<Begun, NoAnswer> {
        let begun = Instant::now();
        let address = backend.address;
        let session = &mut *self.session;
        upload.retry();
        session.to_client.clear();
        let mut exchange = Exchange {
            client: &mut session.client,
            backend: &mut backend,
            upload,
            head: &session.to_backend,
            to_client: &mut session.to_client,
            written: 0,
            timer: &mut session.timer,
        };
        let mut says_continue = self.asked.expects_continue;
        for _ in 0..MAX_INTERIM_ANSWERS {
            let end = match exchange.head(says_continue).await {
                // Nothing can be said behind half an interim answer.
                Err(_) if exchange.written > 0 => {
                    let error = io::ErrorKind::WriteZero.into();
                    return Err(UploadError::Broken(error).into());
                }
                end => end?,
            };
            says_continue = false;
            let head = &mut exchange.backend.buffer.data_mut()[..end];
            let read = session.response.read(head, MAX_HEADERS);
            read.map_err(|error| NoAnswer::Malformed(address, error))?;
            let bytes = &exchange.backend.buffer.data()[..end];
            for line in &session.response.dropped {
                let line = String::from_utf8_lossy(line.of(bytes));
                let (process, env) = (&self.to.route.process, &self.to.route.env);
                tracing::warn!(
                    request = session.request_id, host = session.host, %env, %process,
                    line = display::one_line(&line, MAX_LOGGED_LINE_BYTES),
                    "an app's answer has a line that is no header; it is left out"
                );
            }
            if !(100..200).contains(&session.response.status) || session.response.status == 101 {
                let (written, unsent) = (exchange.written, exchange.head.len());
                session.to_client.drain(..written);
                self.summary.app_seconds = Some(begun.elapsed().as_secs_f64());
                self.summary.backend = Some(address);
                return Ok(Begun {
                    backend,
                    head: end,
                    unsent,
                });
            }
            // The edge itself says 100.
            if session.response.status != 100 && self.asked.version == Version::Http11 {
                let made = ForClient {
                    framing: Framing::Empty,
                    closes: false,
                    version: Version::Http11,
                    date: "",
                    hsts: None,
                };
                write_response(exchange.to_client, &session.response, bytes, made);
            }
            exchange.backend.buffer.consume(end);
        }
        let error = http1::BadResponse::StatusLine;
        Err(NoAnswer::Malformed(address, error))
    }

    /// Passes an answer on, or joins the two connections of an upgrade that the backend agreed to.
    async fn pass(&mut self, begun: Begun, upload: &mut Upload) -> Result<After, Failed> {
        let Begun {
            mut backend,
            head,
            unsent,
        } = begun;
        upload.settle();
        let (asked, session) = (self.asked, &mut *self.session);
        let response = &session.response;
        let status = response.status;
        let switches = status == 101;
        if switches && !asked.wants_upgrade {
            return Err(Failed::Switched(backend.address));
        }
        if (200..300).contains(&status) && session.client.stream.opens_by_success() {
            return Err(Failed::NotSwitched(backend.address, status));
        }
        let framing = response.framing(asked.is_head);
        let (framing_to_client, passing) = match (framing, asked.version) {
            (Framing::Chunked, Version::Http10) => (Framing::UntilClose, Passing::Unchunked),
            (Framing::UntilClose, Version::Http11) => (Framing::Chunked, Passing::Chunked),
            (framing, _) => (framing, Passing::Whole),
        };
        let backend_keeps = response.keeps_alive && framing != Framing::UntilClose;
        // A client whose upload was not wanted is told to stop.
        let closes = !asked.keeps
            || framing_to_client == Framing::UntilClose
            || (!upload.is_done() && status >= 400);
        let hsts = strict_transport_security(&self.to.route.settings, session.scheme);
        with_date(|date| {
            let made = ForClient {
                framing: framing_to_client,
                closes,
                version: asked.version,
                date,
                hsts: hsts.as_deref(),
            };
            let bytes = &backend.buffer.data()[..head];
            write_response(&mut session.to_client, response, bytes, made);
        });
        if let Some(cookie) = &self.cookie {
            add_line(&mut session.to_client, "Set-Cookie", cookie);
        }
        backend.buffer.consume(head);
        let body = if switches { Framing::Empty } else { framing };
        let mut download = Download::new(
            Body::of_response(body),
            passing,
            self.to.counted.sent.clone(),
        );
        let mut exchange = Exchange {
            client: &mut session.client,
            backend: &mut backend,
            upload,
            head: &session.to_backend[session.to_backend.len() - unsent..],
            to_client: &mut session.to_client,
            written: 0,
            timer: &mut session.timer,
        };
        // A body that is malformed from its begin is no answer.
        let checked = exchange.check(&mut download);
        checked.map_err(|error| Failed::Malformed(exchange.backend.address, error))?;
        self.summary.status = status;
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        (self.to.counted).answered(status, asked.since.elapsed());
        // Such a client takes the end of the connection for that of the answer.
        let ends_by_close = framing_to_client == Framing::UntilClose;
        if ends_by_close {
            exchange.client.stream.reset_at_close(true);
        }
        let passed = exchange.body(&mut download).await;
        let is_sent = exchange.head.is_empty();
        self.summary.sent_bytes = download.bytes;
        if let Err(error) = passed {
            self.cut(&error);
            return Ok(After::Cut);
        }
        if ends_by_close {
            exchange.client.stream.reset_at_close(false);
        }
        if switches {
            self.tunnel(backend).await;
            return Ok(After::Cut);
        }
        let is_done = upload.is_done();
        let backend_keeps = backend_keeps && !download.is_without_trailers;
        if is_done && is_sent && backend_keeps && backend.buffer.is_empty() {
            let earlier = self.session.held.replace(backend);
            if let Some(earlier) = earlier {
                self.edge.release(earlier);
            }
        }
        Ok(match (closes, is_done) {
            (false, true) => After::Next,
            (false, false) => self.drain(upload).await,
            (true, true) => After::Close,
            (true, false) => After::Linger,
        })
    }

    fn cut(&mut self, error: &Cut) {
        let session = &*self.session;
        let (process, env) = (&self.to.route.process, &self.to.route.env);
        let (request, host) = (&session.request_id, &session.host);
        if matches!(error, Cut::Backend(..) | Cut::Malformed(..)) {
            tracing::warn!(request, host, %env, %process, %error, "an answer was cut off");
        } else {
            tracing::debug!(request, host, %env, %process, %error, "an answer was cut off");
        }
        self.summary.error = Some(error.to_string());
    }

    async fn tunnel(&mut self, mut backend: BackendConnection) {
        let session = &mut *self.session;
        let _counted = self.edge.tunnels.token();
        let open = self.edge.metrics.count_tunnel();
        // What it carries may tell its end by that of the connection alone.
        session.client.stream.reset_at_close(true);
        backend.stream.reset_at_close(true);
        let client = &mut session.client;
        let has_ended = client.has_ended;
        let carried = tunnel::carry(
            (&mut client.stream, &mut client.buffer),
            (&mut backend.stream, &mut backend.buffer),
            has_ended,
            Some(TUNNEL_IDLE_TIMEOUT),
            &mut session.timer,
            |_, _| {},
        );
        let ended = tokio::select! {
            ended = carried => ended,
            () = self.edge.end_tunnels.cancelled() => Err(TunnelEnd::CutOff),
        };
        match ended {
            Ok(()) => {
                session.client.stream.reset_at_close(false);
                backend.stream.reset_at_close(false);
            }
            Err(error) => {
                tracing::debug!(address = %backend.address, %error, "an upgraded connection broke");
            }
        }
        drop(open);
    }

    /// Reads what is left of a body that the app answered without, so that the next request can be read, where that is not much.
    async fn drain(&mut self, upload: &mut Upload) -> After {
        let client = &mut self.session.client;
        let drained =
            std::future::poll_fn(|context| upload.poll_drain(context, client, MAX_DRAINED_BYTES));
        match tokio::time::timeout(LINGER_TIMEOUT, drained).await {
            Ok(true) => After::Next,
            Ok(false) | Err(_) => After::Linger,
        }
    }
}

/// Adds a header to a head that was written, before its empty line.
fn add_line(head: &mut Vec<u8>, name: &str, value: &str) {
    head.truncate(head.len() - 2);
    for part in [name, ": ", value, "\r\n\r\n"] {
        head.extend_from_slice(part.as_bytes());
    }
}

impl Edge {
    /// Gives the connection to whoever needs one next, where a route leads there still.
    pub(crate) fn release(&self, connection: BackendConnection) {
        if self.routes.leads_to(connection.address) {
            self.backends.release(connection);
        }
    }
}
