//! One request: from its host to a route, to a backend that takes it, to an answer.
//!
//! A request is given to another backend only while that cannot do harm: nothing of its body was
//! read by the failed one, and either the failed one was never reached or the method is safe
//! (RFC 9110, 9.2.2). An idle connection may be closed by its backend at the very moment it is
//! used, so only requests that may be sent twice go on one; all others open their own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{Either, Full};
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::TokioIo;
use model::Generation;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answer::{self, RequestId};
use crate::backend::{Backends, ConnectError, Lease};
use crate::headers::{self, AskedHost};
use crate::limits::{MAX_ATTEMPTS, REQUEST_STALL_TIMEOUT, RESPONSE_HEAD_TIMEOUT};
use crate::metrics::{EdgeMetrics, Failure, Unrouted};
use crate::proxy_header;
use crate::request_body::Upload;
use crate::response_body::{AnswerBody, BackendBody};
use crate::routes::{HostRoute, Routes};

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Edge {
    pub(crate) metrics: EdgeMetrics,
    pub(crate) routes: Routes,
    pub(crate) backends: Arc<Backends>,
    /// Upgraded connections.
    pub(crate) tunnels: TaskTracker,
    /// Ends the tunnels.
    pub(crate) end_tunnels: CancellationToken,
}

impl Default for Edge {
    fn default() -> Self {
        let metrics = EdgeMetrics::default();
        Self {
            routes: Routes::new(metrics.series()),
            metrics,
            backends: Arc::default(),
            tunnels: TaskTracker::new(),
            end_tunnels: CancellationToken::new(),
        }
    }
}

/// The two ends of a client's connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) client: SocketAddr,
    pub(crate) edge: SocketAddr,
}

/// Why a backend gave no answer.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error("could not connect to {0}: {1}")]
    Connect(SocketAddr, #[source] ConnectError),
    #[error("the connection to {0} broke before it answered: {1}")]
    Broken(SocketAddr, #[source] hyper::Error),
    #[error("{0} did not answer within {limit} s", limit = RESPONSE_HEAD_TIMEOUT.as_secs())]
    TooLate(SocketAddr),
    #[error(
        "the request's body stalled for {limit} s",
        limit = REQUEST_STALL_TIMEOUT.as_secs()
    )]
    ClientStalled,
}

impl NoAnswer {
    fn kind(&self) -> Failure {
        match self {
            Self::Connect(..) => Failure::Connect,
            Self::Broken(..) => Failure::Broken,
            Self::TooLate(_) => Failure::Timeout,
            Self::ClientStalled => Failure::Client,
        }
    }
}

/// Answers one request, whatever happens.
pub(crate) async fn answer(
    edge: Arc<Edge>,
    ends: Ends,
    request: Request<Incoming>,
) -> Response<AnswerBody> {
    let started = Instant::now();
    let host = match headers::asked_host(&request) {
        Ok(host) => host,
        Err(error) => {
            edge.metrics.unrouted(Unrouted::BadRequest);
            return answer::plain(
                StatusCode::BAD_REQUEST,
                &error.to_string(),
                "HTTP/1.1 requests name exactly one host (RFC 9112, 3.2).",
            );
        }
    };
    if request.method() == Method::CONNECT {
        edge.metrics.unrouted(Unrouted::BadRequest);
        return answer::plain(
            StatusCode::METHOD_NOT_ALLOWED,
            "CONNECT is not offered",
            "This is a reverse proxy: it leads to its own apps only.",
        );
    }
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let response = match edge.routes.find(&host.name) {
        None if edge.routes.generation() == Generation::default() => {
            edge.metrics.unrouted(Unrouted::NoRoutesYet);
            let id = RequestId::next();
            tracing::warn!(request = %id, host = host.name, "this edge knows no route yet");
            answer::no_routes_yet(id)
        }
        None => {
            edge.metrics.unrouted(Unrouted::UnknownHost);
            answer::unknown_host(&host.name)
        }
        Some(to) => {
            let response = if to.route.backends.is_empty() {
                none_ready(&host.name, &to)
            } else {
                forward(&edge, ends, &host, &to, request).await
            };
            to.counted.answered(response.status(), started.elapsed());
            response
        }
    };
    tracing::debug!(
        client = %ends.client, host = host.name, %method, path,
        status = response.status().as_u16(), millis = started.elapsed().as_millis(),
        "answered"
    );
    response
}

async fn forward(
    edge: &Arc<Edge>,
    ends: Ends,
    host: &AskedHost,
    to: &HostRoute,
    mut request: Request<Incoming>,
) -> Response<AnswerBody> {
    let upgrade = headers::wanted_upgrade(&request);
    let client_upgrade = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut head, body) = request.into_parts();
    head.uri = origin_form(&head.uri);
    head.version = Version::HTTP_11;
    head.extensions.clear();
    headers::for_backend(&mut head.headers, host, ends.client.ip(), upgrade.as_ref());
    let proxy_header = to
        .route
        .proxy_protocol
        .map(|_| proxy_header::encode(ends.client, ends.edge));
    let safe = headers::is_safe(&head.method);
    let may_reuse = safe && body.is_end_stream() && upgrade.is_none() && proxy_header.is_none();
    // The header names one client: its connection is never another's.
    let may_keep = proxy_header.is_none();
    let upload = Upload::new(body, to.counted.received.clone());

    let mut addresses = to.in_turn();
    edge.backends.failed_last(&mut addresses);
    addresses.truncate(MAX_ATTEMPTS);
    let mut failure = None;
    for address in addresses {
        if let Some(earlier) = failure.take() {
            tracing::info!(host = host.name, error = %earlier, "trying another instance");
        }
        let tried = try_backend(
            edge,
            address,
            &head,
            &upload,
            proxy_header.as_deref(),
            may_reuse,
        )
        .await;
        match tried {
            Ok((lease, mut response)) => {
                headers::for_client(&mut response);
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    return switch(edge, client_upgrade, response, address);
                }
                *response.version_mut() = Version::HTTP_11;
                let lease = may_keep.then_some(lease);
                return response.map(|body| {
                    Either::Left(BackendBody::new(body, lease, to.counted.sent.clone()))
                });
            }
            Err(error) => {
                to.counted.failed(error.kind());
                let harmless = match &error {
                    NoAnswer::Connect(..) => true,
                    NoAnswer::Broken(_, error) => safe || error.is_canceled(),
                    NoAnswer::TooLate(_) | NoAnswer::ClientStalled => false,
                };
                failure = Some(error);
                if upload.is_started() || !harmless {
                    break;
                }
            }
        }
    }
    match failure {
        Some(error) => {
            let id = RequestId::next();
            let (process, env) = (&to.route.process, &to.route.env);
            tracing::warn!(
                request = %id, host = host.name, client = %ends.client, %env, %process, %error, "no instance answered"
            );
            answer::unavailable(status_of(&error), id)
        }
        None => none_ready(&host.name, to),
    }
}

/// Gives the request to one backend: on an idle connection if that is allowed and there is one,
/// else, or if that one turned out to be closed, on a new one.
async fn try_backend(
    edge: &Edge,
    address: SocketAddr,
    head: &Parts,
    upload: &Arc<Upload>,
    proxy_header: Option<&[u8]>,
    may_reuse: bool,
) -> Result<(Lease, Response<Incoming>), NoAnswer> {
    if may_reuse && let Some(lease) = edge.backends.idle(address) {
        match send(lease, address, head, upload).await {
            Err(NoAnswer::Broken(..)) => {}
            result => return result,
        }
    }
    let lease = edge
        .backends
        .connect(address, proxy_header)
        .await
        .map_err(|error| NoAnswer::Connect(address, error))?;
    send(lease, address, head, upload).await
}

async fn send(
    mut lease: Lease,
    address: SocketAddr,
    head: &Parts,
    upload: &Arc<Upload>,
) -> Result<(Lease, Response<Incoming>), NoAnswer> {
    let request = Request::from_parts(head.clone(), upload.begin());
    let mut sending = std::pin::pin!(lease.sender.send_request(request));
    let response = loop {
        let (moved, waits_for_client) = upload.progress();
        let limit = if waits_for_client {
            REQUEST_STALL_TIMEOUT
        } else {
            RESPONSE_HEAD_TIMEOUT
        };
        tokio::select! {
            response = &mut sending => break response,
            () = tokio::time::sleep_until((moved + limit).into()) => {
                // Another wait, if the body went on meanwhile.
                if upload.progress() == (moved, waits_for_client) {
                    return Err(if waits_for_client {
                        NoAnswer::ClientStalled
                    } else {
                        NoAnswer::TooLate(address)
                    });
                }
            }
        }
    };
    match response {
        Ok(response) => Ok((lease, response)),
        Err(error) => Err(NoAnswer::Broken(address, error)),
    }
}

fn origin_form(uri: &Uri) -> Uri {
    let path = uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    // A path and query of a valid URI is a valid URI.
    Uri::try_from(path.as_str()).unwrap_or_default()
}

/// Joins the two connections of an upgrade that the backend agreed to.
fn switch(
    edge: &Arc<Edge>,
    client: Option<hyper::upgrade::OnUpgrade>,
    mut response: Response<Incoming>,
    address: SocketAddr,
) -> Response<AnswerBody> {
    let Some(client) = client else {
        let id = RequestId::next();
        tracing::warn!(request = %id, %address, "answered 101 to a request without an Upgrade header");
        return answer::unavailable(StatusCode::BAD_GATEWAY, id);
    };
    let backend = hyper::upgrade::on(&mut response);
    let end = edge.end_tunnels.clone();
    let open = edge.metrics.tunnels.clone();
    edge.tunnels.spawn(async move {
        open.inc();
        let joined = async {
            let (client, backend) = tokio::try_join!(client, backend)?;
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            tokio::io::copy_bidirectional(&mut client, &mut backend)
                .await
                .map_err(Box::<dyn std::error::Error + Send + Sync>::from)
        };
        tokio::select! {
            ended = joined => if let Err(error) = ended {
                tracing::debug!(%address, %error, "an upgraded connection broke");
            },
            () = end.cancelled() => {}
        }
        open.dec();
    });
    response.map(|_| Either::Right(Full::default()))
}

/// The answer when no instance of the app is ready.
fn none_ready(host: &str, to: &HostRoute) -> Response<AnswerBody> {
    let id = RequestId::next();
    let (process, env) = (&to.route.process, &to.route.env);
    tracing::warn!(request = %id, host, %env, %process, "no instance is ready");
    answer::none_ready(id)
}

/// The status when no backend gave an answer.
fn status_of(error: &NoAnswer) -> StatusCode {
    match error {
        NoAnswer::Connect(_, ConnectError::TimedOut) | NoAnswer::TooLate(_) => {
            StatusCode::GATEWAY_TIMEOUT
        }
        NoAnswer::Connect(..) | NoAnswer::Broken(..) => StatusCode::BAD_GATEWAY,
        NoAnswer::ClientStalled => StatusCode::REQUEST_TIMEOUT,
    }
}
