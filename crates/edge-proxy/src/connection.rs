//! A client's connection: one request after another, each read, answered and reported, on one task.

use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http1::{
    ForBackend, Framing, HeadEnd, Name, Refusal, RequestLimits, Target, Version, find_request_end,
    write_request,
};
use model::Generation;
use tokio_util::sync::CancellationToken;

use crate::access_log::Entry;
use crate::answer::{self, Answer, Form};
use crate::client::{Client, Stream, poll_write};
use crate::forward::{Edge, Ends, Forwarded, Request, Scheme};
use crate::http2;
use crate::https_policy::{self, Plain, strict_transport_security};
use crate::limits::{
    BACKEND_HELD, BUFFER_BYTES, CLIENT_WRITE_TIMEOUT, HEAD_READ_TIMEOUT, IDLE_TIMEOUT,
    LINGER_TIMEOUT, MAX_EMPTY_LINES, MAX_HEAD_BYTES, MAX_HEADERS, MAX_REQUEST_ID_BYTES,
    MAX_TARGET_BYTES,
};
use crate::metrics::Unrouted;
use crate::routes::HostRoute;
use crate::session::{After, Asked, Session, Summary};
use crate::shares::Share;
use crate::timer::Timer;

const LIMITS: RequestLimits = RequestLimits {
    fields: MAX_HEADERS,
    target_bytes: MAX_TARGET_BYTES,
};

/// What a client that was gone is in the access log, as in nginx's.
const CLIENT_GONE: u16 = 499;

struct Connection<S> {
    edge: Arc<Edge>,
    ends: Ends,
    /// Whether who connected is believed what it says of clients.
    is_trusted: bool,
    /// The address of who connected.
    peer: String,
    session: Session<S>,
}

/// What came of waiting for a request.
enum Next {
    /// A head of so many bytes is at the begin of the client's buffer.
    Head(usize),
    Refused(Refusal),
    /// The client is gone or idle, or the edge shuts down.
    Ended,
}

/// What a client's connection, or its stream, takes of the client's share.
#[derive(Debug)]
pub(crate) enum Taken {
    /// A trusted proxy has any number.
    Nothing,
    One(#[expect(dead_code, reason = "it is given back when this is dropped")] Share),
}

impl Taken {
    /// `None`: the client has all that it may have.
    pub(crate) fn of(edge: &Edge, client: IpAddr) -> Option<Self> {
        let client = client.to_canonical();
        if edge.trusted_proxies.contains(client) {
            return Some(Self::Nothing);
        }
        edge.shares.take(client).map(Self::One)
    }
}

/// Serves a client until its connection ends; after `shutdown` until the request in flight is answered. Gives the connection back, with what it takes of the
/// client's share, where the client begins it with the preface of HTTP/2.
pub(crate) async fn serve<S: Stream>(
    edge: Arc<Edge>,
    stream: S,
    ends: Ends,
    taken: Taken,
    shutdown: CancellationToken,
) -> Option<(Client<S>, Taken)> {
    let is_trusted = matches!(taken, Taken::Nothing);
    let mut connection = Connection::new(edge, stream, ends, is_trusted);
    let ended = connection.serve(&shutdown).await;
    if let Some(held) = connection.session.held.take() {
        connection.edge.release(held);
    }
    (ended == Served::SpeaksHttp2).then_some((connection.session.client, taken))
}

/// Tells a client that it has as many connections as it may have. It has no right to a place, so only some of those are waited for that still send
/// something, and may not see why they are refused.
pub(crate) async fn refuse<S: Stream>(edge: Arc<Edge>, stream: S, ends: Ends) {
    tracing::debug!(client = %ends.client, "a client has as many connections as it may have");
    let place = edge.refused.try_acquire();
    let mut connection = Connection::new(Arc::clone(&edge), stream, ends, false);
    if place.is_ok() {
        let told = connection.tell_refused(true);
        let _ = tokio::time::timeout(LINGER_TIMEOUT, told).await;
    } else {
        connection.tell_refused(false).await;
    }
}

/// A request that was refused, or not waited for.
#[derive(Debug, Clone, Copy, Default)]
struct Unread {
    /// Whether it asks for JSON, as far as that was looked at.
    wants_json: bool,
}

/// How a connection went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    Ended,
    /// Its first bytes are the preface of HTTP/2, and all that was read of it.
    SpeaksHttp2,
}

impl<S: Stream> Connection<S> {
    fn new(edge: Arc<Edge>, stream: S, ends: Ends, is_trusted: bool) -> Self {
        let peer = ends.client.ip().to_canonical().to_string();
        let timer = Timer::new(Instant::now() + HEAD_READ_TIMEOUT);
        Self {
            edge,
            ends,
            is_trusted,
            peer,
            session: Session::new(Client::new(stream), timer),
        }
    }

    async fn serve(&mut self, shutdown: &CancellationToken) -> Served {
        let edge = Arc::clone(&self.edge);
        let mut ending = pin!(edge.closes_idle(shutdown));
        let mut is_first = true;
        loop {
            let after = match self.next(ending.as_mut(), is_first).await {
                Next::Head(length) if is_first && self.begins_http2(length) => {
                    return Served::SpeaksHttp2;
                }
                Next::Head(length) => self.answer(length, shutdown).await,
                Next::Refused(refusal) => {
                    self.session.host.clear();
                    // Its head was not read whole: what it asks for is not known.
                    self.refuse(refusal, false, Instant::now()).await
                }
                Next::Ended => {
                    self.say_end().await;
                    return Served::Ended;
                }
            };
            is_first = false;
            match after {
                After::Next => continue,
                After::Close if self.session.client.buffer.is_empty() => self.say_end().await,
                After::Close | After::Linger => self.linger().await,
                After::Cut => {}
            }
            return Served::Ended;
        }
    }

    /// Whether the first head is the preface of HTTP/2. Over TLS, ALPN says so (RFC 9113, 3.3).
    fn begins_http2(&self, length: usize) -> bool {
        self.ends.scheme == Scheme::Http
            && self.session.client.buffer.data()[..length] == *http2::PREFACE_HEAD
    }

    /// Waits for the next head, with an idle connection's patience until its first byte.
    async fn next(
        &mut self,
        mut ending: Pin<&mut impl Future<Output = ()>>,
        is_first: bool,
    ) -> Next {
        let Session { client, timer, .. } = &mut self.session;
        let since = Instant::now();
        let mut is_idle = client.buffer.is_empty();
        let mut is_resting = is_first;
        if !is_first {
            timer.set(if is_idle {
                since + BACKEND_HELD
            } else {
                since + HEAD_READ_TIMEOUT
            });
        }
        let (mut scanned, mut empty_lines) = (0, 0);
        poll_fn(|context| {
            let session = &mut self.session;
            loop {
                if let Some(next) = begun(&mut session.client, &mut scanned, &mut empty_lines) {
                    return Poll::Ready(next);
                }
                match session.client.poll_read(context, MAX_HEAD_BYTES) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Next::Ended),
                    Poll::Ready(Ok(_)) if is_idle => {
                        is_idle = false;
                        if !is_first {
                            session.timer.set(Instant::now() + HEAD_READ_TIMEOUT);
                        }
                    }
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => break,
                }
            }
            if is_idle && ending.as_mut().poll(context).is_ready() {
                return Poll::Ready(Next::Ended);
            }
            while session.timer.poll(context).is_ready() {
                if is_resting || !is_idle {
                    return Poll::Ready(Next::Ended);
                }
                is_resting = true;
                if let Some(held) = session.held.take() {
                    self.edge.release(held);
                }
                session.shrink();
                session.timer.set(since + session.idle_timeout);
            }
            Poll::Pending
        })
        .await
    }

    /// Answers one request, whatever happens.
    async fn answer(&mut self, length: usize, shutdown: &CancellationToken) -> After {
        let since = Instant::now();
        let mut summary = Summary::default();
        let session = &mut self.session;
        session.host.clear();
        let bytes = &session.client.buffer.data()[..length];
        if let Err(refusal) = session.request.read(bytes, LIMITS) {
            let wants_json = http1::refused_wants_json(bytes);
            return self.refuse(refusal, wants_json, since).await;
        }
        let request = &session.request;
        let asked = Asked {
            since,
            version: request.version,
            framing: request.framing,
            is_head: request.method.of(bytes) == b"HEAD",
            is_safe: request.is_safe(bytes),
            wants_upgrade: request.wants_upgrade,
            wants_json: request.wants_json,
            expects_continue: request.expects_continue,
            keeps: request.keeps_alive && !shutdown.is_cancelled(),
        };
        if self.edge.access_log.is_some() || tracing::enabled!(tracing::Level::DEBUG) {
            summary.method = String::from_utf8_lossy(request.method.of(bytes)).into_owned();
            if let Target::Path(path) = request.target {
                let path = path.of(bytes).split(|byte| *byte == b'?').next();
                summary.path = String::from_utf8_lossy(path.unwrap_or_default()).into_owned();
            }
        }
        if let Ok(authority) = request.host(bytes) {
            let host = authority.host.iter();
            (session.host).extend(host.map(|byte| char::from(byte.to_ascii_lowercase())));
        }
        self.name_client(length);
        let after = self.route(length, asked, &mut summary).await;
        self.report(since, &summary);
        after
    }

    /// Finds out who the client is, by what it came, and under which id the request is in the log.
    fn name_client(&mut self, length: usize) {
        let Session {
            client,
            request,
            request_id,
            client_address,
            behind,
            scheme,
            ..
        } = &mut self.session;
        *scheme = self.ends.scheme;
        if !self.is_trusted {
            answer::write_request_id(request_id);
            if client_address.is_empty() {
                client_address.push_str(&self.peer);
            }
            return;
        }
        let bytes = &client.buffer.data()[..length];
        let given = request.values(Name::XRequestId, bytes).next();
        let is_usable = |id: &&[u8]| {
            (1..=MAX_REQUEST_ID_BYTES).contains(&id.len())
                && id
                    .iter()
                    .all(|byte| byte.is_ascii_graphic() && !b"\"\\".contains(byte))
        };
        match given.filter(is_usable) {
            Some(id) => *request_id = String::from_utf8_lossy(id).into_owned(),
            None => answer::write_request_id(request_id),
        }
        let trusted = &self.edge.trusted_proxies;
        let named = trusted.client_of(request.values(Name::XForwardedFor, bytes));
        *behind = named.map_or(0, |(_, behind)| behind);
        *client_address = named.map_or_else(|| self.peer.clone(), |(named, _)| named.to_string());
        let said = request.said(Name::XForwardedProto, bytes, *behind);
        *scheme = https_policy::scheme(self.ends.scheme, said);
    }

    async fn route(&mut self, length: usize, asked: Asked, summary: &mut Summary) -> After {
        if let Some(file) = self.challenge(length) {
            self.session.client.buffer.consume(length);
            return self.respond_to_challenge(&file, asked, summary).await;
        }
        let session = &mut self.session;
        if session.request.target == Target::Server {
            session.client.buffer.consume(length);
            return self.respond_to_options(asked, summary).await;
        }
        let edge = Arc::clone(&self.edge);
        let host = &session.host;
        let own = match edge.routes.find(host) {
            None if edge.routes.generation() == Generation::default() => {
                edge.metrics.unrouted(Unrouted::NoRoutesYet);
                let request = &session.request_id;
                tracing::warn!(request, host, "this edge knows no route yet");
                Answer::not_now()
            }
            None => {
                edge.metrics.unrouted(Unrouted::UnknownHost);
                Answer::unknown_host(host)
            }
            Some(to) => match self.redirect(&to, length) {
                None => return self.send(length, &to, asked, summary).await,
                Some(answer) => {
                    to.counted.answered(answer.status, asked.since.elapsed());
                    answer
                }
            },
        };
        self.session.client.buffer.consume(length);
        let is_whole = asked.framing == Framing::Empty;
        self.respond(&own, Ok(asked), is_whole, summary).await
    }

    /// The file that an authority of ACME asks for. No success is the answer to who asks for a WebSocket.
    fn challenge(&self, length: usize) -> Option<String> {
        if self.session.client.stream.opens_by_success() {
            return None;
        }
        let bytes = &self.session.client.buffer.data()[..length];
        let request = &self.session.request;
        let Target::Path(path) = request.target else {
            return None;
        };
        let file = self.edge.challenges.file(path.of(bytes))?;
        matches!(request.method.of(bytes), b"GET" | b"HEAD").then_some(file)
    }

    async fn respond_to_challenge(
        &mut self,
        file: &str,
        asked: Asked,
        summary: &mut Summary,
    ) -> After {
        tracing::info!(host = self.session.host, client = %self.ends.client, "an authority of ACME asked whether the host leads here");
        let closes = !asked.keeps || asked.framing != Framing::Empty;
        summary.status = 200;
        let session = &mut self.session;
        session.to_client.clear();
        let form = form(Ok(asked), closes, &session.request_id);
        summary.sent_bytes = answer::write_challenge(&mut session.to_client, file, form) as u64;
        self.write_out(closes).await
    }

    /// The answer to a request in plain HTTP that is to come by HTTPS.
    fn redirect(&self, to: &HostRoute, length: usize) -> Option<Answer> {
        let session = &self.session;
        let bytes = &session.client.buffer.data()[..length];
        let request = &session.request;
        let said = request.said(Name::XForwardedProto, bytes, session.behind);
        let path = match request.target {
            Target::Path(path) => path.of(bytes),
            Target::Server => b"/",
        };
        let plain = Plain {
            scheme: session.scheme,
            by_proxy: self.is_trusted && said.is_some(),
            host: &session.host,
            path,
        };
        let url = https_policy::redirect(self.edge.https.get(), &to.route.settings, plain)?;
        let method = request.method.of(bytes);
        let status = https_policy::redirect_status(matches!(method, b"GET" | b"HEAD"));
        Some(Answer::redirect(status, url))
    }

    /// Gives the request to the app that its host leads to.
    async fn send(
        &mut self,
        length: usize,
        to: &HostRoute,
        asked: Asked,
        summary: &mut Summary,
    ) -> After {
        let (process, env) = (&to.route.process, &to.route.env);
        let (host, request) = (&self.session.host, &self.session.request_id);
        let (mut own, mut is_whole) = (None, asked.framing == Framing::Empty);
        let client = || {
            let named = self.session.client_address.parse();
            named.unwrap_or(self.ends.client.ip())
        };
        let in_flight = to.admit(client);
        if to.route.backends.is_empty() {
            tracing::warn!(request, host, %env, %process, "no instance is ready");
            own = Some(Answer::not_now());
        } else if let Err(refused) = in_flight {
            tracing::debug!(request, host, %env, %process, ?refused, "a request is not let in");
            own = Some(Answer::not_admitted(refused));
        }
        self.take_settings(length, to);
        let session = &mut self.session;
        if own.is_none() {
            session.to_backend.clear();
            let bytes = &session.client.buffer.data()[..length];
            let made = ForBackend {
                peer: &self.peer,
                client: &session.client_address,
                scheme: self.ends.scheme.as_str(),
                is_trusted: self.is_trusted,
                behind: session.behind,
                request_id: &session.request_id,
            };
            write_request(&mut session.to_backend, &session.request, bytes, made);
        }
        session.client.buffer.consume(length);
        if own.is_none() {
            let request = Request {
                edge: &self.edge,
                ends: self.ends,
                to,
                asked,
                session,
                summary,
                cookie: None,
                room_until: None,
            };
            match request.forward().await {
                Forwarded::Answered(after) => return after,
                Forwarded::Gone => {
                    summary.status = CLIENT_GONE;
                    return After::Cut;
                }
                Forwarded::Own {
                    answer,
                    is_whole: read,
                } => {
                    own = Some(answer);
                    is_whole = read;
                }
            }
        }
        let Some(own) = own else { return After::Cut };
        // A browser that comes while the app is away is to remember it, too (RFC 6797, 7.1).
        let hsts = strict_transport_security(&to.route.settings, self.session.scheme);
        let own = own.with_hsts(hsts);
        to.counted.answered(own.status, asked.since.elapsed());
        self.respond(&own, Ok(asked), is_whole, summary).await
    }

    /// What the route's settings say of this request and of the connection.
    fn take_settings(&mut self, length: usize, to: &HostRoute) {
        let session = &mut self.session;
        let idle = to.route.settings.idle_timeout_ms;
        session.idle_timeout = idle.map_or(IDLE_TIMEOUT, Duration::from_millis);
        session.wanted = None;
        let Some(cookies) = &to.cookies else { return };
        let bytes = &session.client.buffer.data()[..length];
        let fields = session.request.fields.iter();
        let of_cookies =
            fields.filter(|field| field.name.of(bytes).eq_ignore_ascii_case(b"cookie"));
        session.wanted = cookies.wanted(of_cookies.map(|field| field.value.of(bytes)));
    }

    /// Answers what is no request. Where the next one would begin is not known, so the connection ends.
    async fn refuse(&mut self, refusal: Refusal, wants_json: bool, since: Instant) -> After {
        self.edge.metrics.unrouted(Unrouted::BadRequest);
        answer::write_request_id(&mut self.session.request_id);
        self.session.client_address.clone_from(&self.peer);
        self.session.scheme = self.ends.scheme;
        let mut summary = Summary {
            error: Some(refusal.to_string()),
            ..Summary::default()
        };
        let answer = Answer::refused(refusal);
        let asked = Err(Unread { wants_json });
        let after = self.respond(&answer, asked, false, &mut summary).await;
        self.report(since, &summary);
        after
    }

    /// With `waits` for what it still sends. Without, it is told in the edge's own words, which are few: nothing is waited for to write them.
    async fn tell_refused(&mut self, waits: bool) {
        let answer = Answer::client_has_its_share();
        let page = self.edge.error_pages.of(answer.status.as_u16());
        let session = &mut self.session;
        answer::write_request_id(&mut session.request_id);
        let form = Form {
            page: page.as_deref().filter(|_| waits),
            ..form(Err(Unread::default()), true, &session.request_id)
        };
        answer::write(&mut session.to_client, &answer, form);
        self.write_out(true).await;
        if waits {
            self.linger().await;
        } else {
            self.shutdown().await;
            let client = &mut self.session.client;
            // What has come already makes no reset of the end.
            poll_fn(|context| Poll::Ready(poll_discard(client, context).is_ready())).await;
        }
    }

    /// Answers by itself. With `is_whole` all of the request was read.
    async fn respond(
        &mut self,
        answer: &Answer,
        asked: Result<Asked, Unread>,
        is_whole: bool,
        summary: &mut Summary,
    ) -> After {
        let closes = !is_whole || !asked.is_ok_and(|asked| asked.keeps);
        summary.status = answer.status.as_u16();
        let session = &mut self.session;
        session.to_client.clear();
        let page = self.edge.error_pages.of(summary.status);
        let form = Form {
            page: page.as_deref(),
            ..form(asked, closes, &session.request_id)
        };
        let bytes = answer::write(&mut session.to_client, answer, form);
        summary.sent_bytes = bytes as u64;
        self.write_out(closes).await
    }

    async fn respond_to_options(&mut self, asked: Asked, summary: &mut Summary) -> After {
        let closes = !asked.keeps || asked.framing != Framing::Empty;
        summary.status = 200;
        let session = &mut self.session;
        session.to_client.clear();
        let form = form(Ok(asked), closes, &session.request_id);
        answer::write_options(&mut session.to_client, form);
        self.write_out(closes).await
    }

    /// Writes an answer of the edge's own to the client.
    async fn write_out(&mut self, closes: bool) -> After {
        let Session {
            client,
            timer,
            to_client,
            ..
        } = &mut self.session;
        timer.set(Instant::now() + CLIENT_WRITE_TIMEOUT);
        let mut written = 0;
        let done = poll_fn(|context| {
            let polled = poll_write_out(client, to_client, &mut written, context);
            if polled.is_pending() && timer.poll(context).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            polled
        });
        match done.await {
            Err(_) => After::Cut,
            Ok(()) if closes => After::Linger,
            Ok(()) => After::Next,
        }
    }

    /// Tells who speaks TLS that this is the end, and not a cut (RFC 8446, 6.1).
    async fn say_end(&mut self) {
        if self.ends.scheme == Scheme::Https {
            self.shutdown().await;
        }
    }

    async fn shutdown(&mut self) {
        let stream = &mut self.session.client.stream;
        let ended = poll_fn(|context| Pin::new(&mut *stream).poll_shutdown(context));
        let _ = tokio::time::timeout(LINGER_TIMEOUT, ended).await;
    }

    /// Ends the sending side, and reads for a moment what the client still sends: a connection that is closed with unread bytes is reset, and the
    /// client may never see its answer.
    async fn linger(&mut self) {
        self.shutdown().await;
        let client = &mut self.session.client;
        let read = poll_fn(|context| poll_discard(client, context));
        let _ = tokio::time::timeout(LINGER_TIMEOUT, read).await;
    }

    /// Tells of a request that is over.
    fn report(&self, since: Instant, summary: &Summary) {
        let session = &self.session;
        tracing::debug!(
            request = session.request_id,
            client = session.client_address,
            host = session.host,
            method = summary.method,
            path = summary.path,
            status = summary.status,
            millis = since.elapsed().as_millis(),
            error = summary.error,
            "answered"
        );
        let Some(log) = &self.edge.access_log else {
            return;
        };
        let took = since.elapsed();
        log.write(&Entry {
            time: crate::access_log::before(took),
            request_id: &session.request_id,
            client: &session.client_address,
            scheme: session.scheme.as_str(),
            method: &summary.method,
            host: &session.host,
            path: &summary.path,
            status: summary.status,
            received_bytes: summary.received_bytes,
            sent_bytes: summary.sent_bytes,
            seconds: took.as_secs_f64(),
            app_seconds: summary.app_seconds,
            backend: summary.backend.map(|address| address.to_string()),
            error: summary.error.clone(),
        });
    }
}

/// What has come of the next head, if it is enough to say.
fn begun<S>(client: &mut Client<S>, scanned: &mut usize, empty_lines: &mut usize) -> Option<Next> {
    while client.buffer.data().starts_with(b"\r\n") {
        client.buffer.consume(2);
        *empty_lines += 1;
        if *empty_lines > MAX_EMPTY_LINES {
            return Some(Next::Refused(Refusal::RequestLine));
        }
    }
    let bytes = client.buffer.data();
    if matches!(bytes, [] | [b'\r']) {
        return None;
    }
    match find_request_end(bytes, *scanned) {
        HeadEnd::At(end) => return Some(Next::Head(end)),
        HeadEnd::BareLineFeed => return Some(Next::Refused(Refusal::BareLineFeed)),
        HeadEnd::NotYet(line) => *scanned = line,
    }
    let refusal = if bytes.len() >= MAX_HEAD_BYTES {
        Some(Refusal::of_endless(bytes, LIMITS))
    } else {
        Refusal::of_begun(bytes, LIMITS)
    };
    refusal.map(Next::Refused)
}

fn form(asked: Result<Asked, Unread>, closes: bool, request_id: &str) -> Form<'_> {
    Form {
        wants_json: match asked {
            Ok(asked) => asked.wants_json,
            Err(unread) => unread.wants_json,
        },
        is_head: asked.is_ok_and(|asked| asked.is_head),
        version: asked.map_or(Version::Http11, |asked| asked.version),
        closes,
        request_id,
        page: None,
    }
}

/// Reads what comes, for nobody. Ready: nothing more comes.
fn poll_discard<S: Stream>(client: &mut Client<S>, context: &mut Context<'_>) -> Poll<()> {
    loop {
        client.buffer.clear();
        match client.poll_read(context, BUFFER_BYTES) {
            Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
            Poll::Ready(Ok(_)) => {}
            Poll::Pending => return Poll::Pending,
        }
    }
}

fn poll_write_out<S: Stream>(
    client: &mut Client<S>,
    bytes: &[u8],
    written: &mut usize,
    context: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while *written < bytes.len() {
        let polled = poll_write(&mut client.stream, context, &bytes[*written..], &[]);
        *written += std::task::ready!(polled)?;
    }
    Pin::new(&mut client.stream).poll_flush(context)
}
