//! One connection: TLS, whose it is, its requests, its end.
//!
//! A client that offers HTTP/2 gets it: then one connection carries all polls and reports of a member. Dead ones are noticed by PINGs.

// ring: a connection hands its requests to the dispatch, which asks whose connection it is.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::RootCertStore;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::callers::ShownCertificate;
use crate::clock::now;
use crate::dispatch::{Dispatch, Shown};
use crate::http2::{Requests, WithRequests};
use crate::limits::{
    CONNECTION_WINDOW_BYTES, HANDSHAKE_TIMEOUT, HEAD_TIMEOUT, MAX_HEADER_BYTES,
    MAX_STREAMS_OF_A_SERVER, MAX_STREAMS_OF_OTHERS, PING_INTERVAL, PING_TIMEOUT, STRANGER_TIMEOUT,
    STREAM_WINDOW_BYTES,
};
use crate::shares::{Activity, Busy, Peer, Place, Shares};
use crate::tls::Tls;

/// HTTP/2 and 1.1 in ALPN.
pub(crate) const ALPN: [&[u8]; 2] = [H2, b"http/1.1"];
const H2: &[u8] = b"h2";

/// Whose a connection is, as far as that is known.
#[derive(Debug)]
pub(crate) struct Admission {
    place: Mutex<Place>,
    activity: Activity,
    /// When another gets its place, and whether it is a stranger's.
    current: watch::Sender<(CancellationToken, bool)>,
    /// Until when a stranger may stay one.
    deadline: Instant,
}

impl Admission {
    fn new(place: Place, deadline: Instant) -> Self {
        let current = watch::Sender::new(current(&place));
        Self {
            place: Mutex::new(place),
            activity: Activity::idle(std::time::Instant::now()),
            current,
            deadline,
        }
    }

    /// Whether it is not known whose it is.
    pub(crate) fn is_stranger(&self) -> bool {
        self.current.borrow().1
    }

    /// It is this user's. False: the user has as many as may be.
    pub(crate) fn admit_user(&self, shares: &Shares, name: String) -> bool {
        let activity = self.activity.clone();
        let now = std::time::Instant::now();
        let Some(admitted) = shares.admit_active(Peer::User(name), activity, now) else {
            return false;
        };
        let now = current(&admitted);
        // What was the stranger's is free.
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = admitted;
        self.current.send_replace(now);
        true
    }

    /// Returns when the connection is to be closed: another gets its place, or a stranger's time is over.
    async fn is_over(&self) {
        let mut current = self.current.subscribe();
        loop {
            let (closed, is_stranger) = current.borrow_and_update().clone();
            tokio::select! {
                () = closed.cancelled() => return,
                () = sleep_until(self.deadline), if is_stranger => return,
                changed = current.changed() => if changed.is_err() { return },
            }
        }
    }
}

fn current(place: &Place) -> (CancellationToken, bool) {
    let is_stranger = matches!(place.peer(), Peer::Stranger(_));
    (place.closed().clone(), is_stranger)
}

/// The body of an answer. Its request is under way until all of it has been sent.
struct Answer {
    body: Body,
    _busy: Busy,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Serves a connection until it ends, or `shutdown`.
///
/// There are thousands, and each is a future of this: what it needs for its handshake, or for HTTP/1.1 only, is on the heap for as long as that takes.
pub(crate) async fn serve(
    stream: TcpStream,
    from: SocketAddr,
    tls: Arc<Tls>,
    dispatch: Dispatch,
    shares: Shares,
    shutdown: CancellationToken,
) {
    let admitted = Box::pin(admit(stream, from, &tls, shares, &shutdown)).await;
    drop(tls);
    let Some((stream, connection)) = admitted else {
        return;
    };
    if stream.get_ref().1.alpn_protocol() == Some(H2) {
        let admission = Arc::clone(&connection.admission);
        let serving = connection.http2(stream, dispatch);
        let finish = |serving: Pin<&mut Http2>| {
            serving.get_mut().connection.as_mut().graceful_shutdown();
        };
        until_its_end(serving, finish, from, &admission, &shutdown).await;
    } else {
        Box::pin(connection.http1(stream, dispatch, &shutdown)).await;
    }
}

/// A connection whose client is known, as far as its certificate says.
#[derive(Clone)]
struct Admitted {
    from: SocketAddr,
    shown: Arc<Shown>,
    admission: Arc<Admission>,
}

/// The TLS handshake, and a place among the connections. Absent: it is closed.
async fn admit(
    stream: TcpStream,
    from: SocketAddr,
    tls: &Tls,
    shares: Shares,
    shutdown: &CancellationToken,
) -> Option<(TlsStream<TcpStream>, Admitted)> {
    let deadline = Instant::now() + STRANGER_TIMEOUT;
    // Without a place it is closed at once: those who came just before are about to show who they are.
    let stranger = shares.admit(Peer::stranger(from.ip()))?;
    // Small answers must not wait for each other.
    let _ = stream.set_nodelay(true);
    let handshake = timeout(HANDSHAKE_TIMEOUT, tls.acceptor.accept(stream));
    let handshake = tokio::select! {
        handshake = handshake => handshake,
        () = stranger.closed().cancelled() => return None,
        () = shutdown.cancelled() => return None,
    };
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%from, %error, "no TLS");
            return None;
        }
        Err(_) => {
            tracing::debug!(%from, "the TLS handshake took too long");
            return None;
        }
    };
    let shown = match shown(&stream, &tls.roots) {
        Ok(shown) => shown,
        Err(error) => {
            tracing::warn!(%from, %error, "refused a client certificate");
            return None;
        }
    };
    // Whoever has shown a certificate is a stranger no longer, and leaves that place to others.
    let place = match &shown {
        Shown::Nobody => Some(stranger),
        // Anybody can make one that no CA signed: it stays a stranger's connection, for as long as those may be.
        Shown::Member(certificate) if !certificate.is_signed => Some(stranger),
        Shown::Member(certificate) => {
            drop(stranger);
            shares.admit(Peer::Member(certificate.key.clone()))
        }
        Shown::Server => {
            drop(stranger);
            shares.admit(Peer::Server)
        }
    };
    let Some(place) = place else {
        tracing::debug!(%from, ?shown, "refused a connection: it has as many as may be");
        return None;
    };
    let connection = Admitted {
        from,
        shown: Arc::new(shown),
        admission: Arc::new(Admission::new(place, deadline)),
    };
    Some((stream, connection))
}

type Http2 = WithRequests<
    hyper::server::conn::http2::Connection<TokioIo<TlsStream<TcpStream>>, Answering, Requests>,
>;

/// Answers the requests of a connection.
struct Answering {
    connection: Admitted,
    dispatch: Dispatch,
}

impl Service<Request<Incoming>> for Answering {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let Admitted {
            from,
            shown,
            admission,
        } = self.connection.clone();
        let dispatch = self.dispatch.clone();
        Box::pin(async move {
            if *shown != Shown::Nobody {
                return Ok(dispatch.answer(&shown, from, &admission, request).await);
            }
            let busy = admission.activity.begin();
            let response = dispatch.answer(&shown, from, &admission, request).await;
            Ok(response.map(|body| Body::new(Answer { body, _busy: busy })))
        })
    }
}

impl Admitted {
    fn answering(self, dispatch: Dispatch) -> Answering {
        Answering {
            connection: self,
            dispatch,
        }
    }

    fn http2(self, stream: TlsStream<TcpStream>, dispatch: Dispatch) -> Http2 {
        let (streams, requests) = match *self.shown {
            Shown::Server => (MAX_STREAMS_OF_A_SERVER, Requests::Spawned),
            Shown::Nobody | Shown::Member(_) => (MAX_STREAMS_OF_OTHERS, Requests::in_place()),
        };
        let is_member = matches!(*self.shown, Shown::Member(_));
        let serving = hyper::server::conn::http2::Builder::new(requests.clone())
            .timer(TokioTimer::new())
            // A member does not read it, and each second's would stay in the connection's table of headers (RFC 7541, 2.3.2).
            .auto_date_header(!is_member)
            .max_concurrent_streams(streams)
            .max_header_list_size(MAX_HEADER_BYTES)
            // What is sent and not read yet is held here.
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .serve_connection(TokioIo::new(stream), self.answering(dispatch));
        WithRequests::new(serving, requests)
    }

    async fn http1(
        self,
        stream: TlsStream<TcpStream>,
        dispatch: Dispatch,
        shutdown: &CancellationToken,
    ) {
        let (from, admission) = (self.from, Arc::clone(&self.admission));
        let serving = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), self.answering(dispatch))
            .with_upgrades();
        until_its_end(
            serving,
            hyper::server::conn::http1::UpgradeableConnection::graceful_shutdown,
            from,
            &admission,
            shutdown,
        )
        .await;
    }
}

/// `finish`: has it end once the requests under way are answered.
async fn until_its_end<C: Future<Output = hyper::Result<()>>>(
    serving: C,
    finish: impl Fn(Pin<&mut C>),
    from: SocketAddr,
    admission: &Admission,
    shutdown: &CancellationToken,
) {
    let mut serving = std::pin::pin!(serving);
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = admission.is_over() => {
            tracing::debug!(%from, "closed a connection: its time is over, or another gets its place");
            return;
        }
        () = shutdown.cancelled() => {
            finish(serving.as_mut());
            serving.as_mut().await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%from, error = %display::chain(&error), "a connection failed");
    }
}

/// Whose certificate the client showed, if it showed one.
fn shown(
    stream: &TlsStream<TcpStream>,
    roots: &RootCertStore,
) -> Result<Shown, identity::MemberCertificateError> {
    let (_, tls) = stream.get_ref();
    match tls.peer_certificates().and_then(<[_]>::first) {
        None => Ok(Shown::Nobody),
        Some(certificate)
            if identity::is_server_certificate(certificate)
                && identity::is_signed_by(roots, certificate) =>
        {
            Ok(Shown::Server)
        }
        Some(der) => {
            let certificate = identity::MemberCertificate::of_der(der)?;
            let is_signed = identity::is_signed_by(roots, der);
            let shown = ShownCertificate::of(&certificate, is_signed, now());
            Ok(Shown::Member(shown))
        }
    }
}
