//! Who answers a request: this server, when it leads, or the one that does.
//!
//! A follower forwards every request whole, upgrades and streams included, to the leader's address, with its own server certificate.
//! Whose certificate its caller showed goes along in a header, which is taken from a server of this cluster only. So there is one
//! place where things are decided, read and waited for, and every server may be asked. A request that was forwarded is not
//! forwarded again.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ::api::{error_code, paths};
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use http::header::{ALLOW, CONTENT_TYPE, UPGRADE};
use http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::TokioIo;
use identity::ServerCertificate;
use model::Term;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use scheduler::lease::Answerer;
use tokio::io::copy_bidirectional;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::authority::Authority;
use crate::callers::{Peer, SeenFrom, ShownCertificate, user_token};
use crate::connection::{ALPN, Admission};
use crate::election::{CurrentRole, Role};
use crate::enrollment_rate::EnrollmentRate;
use crate::failure::{ApiFailure, REVOKED, method_not_allowed};
use crate::limits::{
    FORWARD_CONNECT_TIMEOUT, FORWARD_KEEPALIVE, LEADER_RETRY, MAX_CONNECTIONS_OF_A_USER,
    MAX_USER_CONNECTIONS, REVOKED_GRACE,
};
use crate::options::ServerError;
use crate::shares::Shares;
use crate::tls::Tls;
use crate::users::Users;

/// The certificate that the caller of a forwarded request showed: its key, whom it was issued to and whether it is within its dates (`3059.. n1
/// current`), or `nobody`.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("platform-forwarded-for");
/// The address that a forwarded request came from.
const FORWARDED_FROM: HeaderName = HeaderName::from_static("platform-forwarded-from");
/// A caller without a certificate.
const NOBODY: &str = "nobody";

/// Whose certificate a connection was made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shown {
    /// None: a user, or who enrolls.
    Nobody,
    /// A node's or an edge's.
    Member(ShownCertificate),
    /// Another server's: it forwards.
    Server,
}

/// What decides whose a connection is.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) users: Users,
    pub(crate) shares: Shares,
    pub(crate) enrollments: EnrollmentRate,
}

/// What connects to the server that leads.
#[derive(Clone)]
pub(crate) struct Servers {
    /// For polls and reports of members: one HTTP/2 connection.
    polls: reqwest::Client,
    /// For users and streams, each on an HTTP/1.1 connection of its own: a slow reader holds up no other.
    streams: reqwest::Client,
}

impl Servers {
    pub(crate) fn new(
        authority: &Authority,
        certificate: &ServerCertificate,
    ) -> Result<Self, ServerError> {
        Ok(Self {
            polls: client(authority, certificate, true)?,
            streams: client(authority, certificate, false)?,
        })
    }
}

/// Answers requests, or has the leader do it.
#[derive(Clone)]
pub(crate) struct Dispatch {
    role: CurrentRole,
    door: Door,
    tls: watch::Receiver<Arc<Tls>>,
    shutdown: CancellationToken,
}

impl Dispatch {
    pub(crate) fn new(
        role: CurrentRole,
        door: Door,
        tls: watch::Receiver<Arc<Tls>>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            role,
            door,
            tls,
            shutdown,
        }
    }

    /// The connections that there may be.
    pub(crate) fn shares(&self) -> &Shares {
        &self.door.shares
    }

    /// Answers a request that came from this address.
    pub(crate) async fn answer(
        &self,
        shown: &Shown,
        from: SocketAddr,
        admission: &Admission,
        request: Request<Incoming>,
    ) -> Response {
        if let Some(answer) = self.by_itself(&request) {
            return answer;
        }
        let enrolls = request.uri().path() == paths::ENROLL && *shown != Shown::Server;
        if enrolls && let Err(wait) = self.door.enrollments.check(from, Instant::now()) {
            return too_many_enrollments(wait);
        }
        let response = self.dispatched(shown, from, admission, request).await;
        if enrolls && response.status().is_client_error() {
            self.door.enrollments.refused(from, Instant::now());
        }
        if let Shown::Member(certificate) = shown
            && response.headers().contains_key(REVOKED)
        {
            let (shares, key) = (self.door.shares.clone(), certificate.key.clone());
            tokio::spawn(async move {
                tokio::time::sleep(REVOKED_GRACE).await;
                shares.close(&key);
            });
        }
        response
    }

    /// What every server answers by itself. A load balancer in front of the servers asks each of them: is it alive, can it answer? A program asks
    /// what it may call.
    fn by_itself(&self, request: &Request<Incoming>) -> Option<Response> {
        let path = request.uri().path();
        if !matches!(path, paths::HEALTHZ | paths::READYZ | paths::OPENAPI) {
            return None;
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = method_not_allowed().into_response();
            let allowed = HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(ALLOW, allowed);
            return Some(response);
        }
        Some(match (path, self.role.now()) {
            (paths::OPENAPI, _) => {
                ([(CONTENT_TYPE, "application/json")], description()).into_response()
            }
            (paths::READYZ, Role::Waiting) => no_leader("no server leads at the moment"),
            _ => "ok\n".into_response(),
        })
    }

    async fn dispatched(
        &self,
        shown: &Shown,
        from: SocketAddr,
        admission: &Admission,
        mut request: Request<Incoming>,
    ) -> Response {
        if admission.is_stranger()
            && let Some(hash) = user_token(request.headers())
            && let Ok(Some(name)) = Box::pin(self.door.users.of_token(&hash)).await
            && !admission.admit_user(&self.door.shares, name.to_string())
        {
            return too_many_connections();
        }
        let said = request.headers_mut().remove(FORWARDED_FOR);
        let first_from = request.headers_mut().remove(FORWARDED_FROM);
        // Only another server of the cluster is believed where a request first came from.
        let from = match shown {
            Shown::Nobody | Shown::Member(_) => Some(from.ip()),
            Shown::Server => {
                first_from.and_then(|value| value.to_str().ok().and_then(|text| text.parse().ok()))
            }
        };
        let (peer, is_forwarded) = match shown {
            Shown::Nobody => (None, false),
            Shown::Member(certificate) => (Some(certificate.clone()), false),
            Shown::Server => match forwarded_for(said.as_ref()) {
                Ok(peer) => (peer, true),
                Err(failure) => return failure.into_response(),
            },
        };
        let role = self.role.now();
        match (role.answerer(is_forwarded), role) {
            (Answerer::Me, Role::Leading { router, .. }) => {
                request.extensions_mut().insert(Peer(peer));
                request.extensions_mut().insert(SeenFrom(from));
                let request = request.map(Body::new);
                router.oneshot(request).await.unwrap_or_else(|e| match e {})
            }
            (Answerer::Leader, Role::Following { term, leader }) => {
                // On the heap: what is answered here has no room for it.
                Box::pin(self.forward(peer, from, request, term, &leader)).await
            }
            (Answerer::Me | Answerer::Leader | Answerer::Nobody, _) => {
                no_leader("no server leads at the moment")
            }
        }
    }

    /// Has the leader answer. What it answers is this server's answer, errors included.
    async fn forward(
        &self,
        peer: Option<ShownCertificate>,
        from: Option<IpAddr>,
        mut request: Request<Incoming>,
        term: Term,
        leader: &str,
    ) -> Response {
        let upgrade = request.headers().contains_key(UPGRADE);
        let is_poll = peer.is_some() && !upgrade && !is_stream(request.uri().path());
        let servers = self.tls.borrow().servers.clone();
        let client = if is_poll {
            &servers.polls
        } else {
            &servers.streams
        };
        let upgrade = upgrade.then(|| hyper::upgrade::on(&mut request));
        let forwarded = match forwarded(peer, from, request, leader) {
            Ok(forwarded) => forwarded,
            Err(failure) => return failure.into_response(),
        };
        let mut role = self.role.clone();
        let answered = tokio::select! {
            answered = client.execute(forwarded) => answered,
            // It was stopped or cut off: it may never answer.
            () = role.changed_from(term) => return unavailable(
                error_code::LEADER_CHANGED,
                "the leader changed while it was asked: what was asked may have been done or not",
            ),
        };
        let response = match answered {
            Ok(response) => response,
            Err(error) => {
                let cause = display::chain(&error);
                tracing::debug!(leader, cause, "the leader did not answer");
                let message = format!("the leader at {leader} does not answer: {cause}");
                return if error.is_connect() {
                    no_leader(&message)
                } else {
                    unavailable(error_code::LEADER_CHANGED, &message)
                };
            }
        };
        match upgrade {
            Some(upgrade) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let mut answer = Response::new(Body::empty());
                *answer.status_mut() = response.status();
                answer.headers_mut().clone_from(response.headers());
                tokio::spawn(join(upgrade, response, self.shutdown.clone()));
                answer
            }
            _ => http::Response::<reqwest::Body>::from(response).map(Body::new),
        }
    }
}

/// The description of the API, made when it is first asked for.
fn description() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| ::api::openapi::document().to_string())
}

/// Joins two connections that speak something else than HTTP from now on, until one of them ends.
async fn join(
    caller: hyper::upgrade::OnUpgrade,
    leader: reqwest::Response,
    shutdown: CancellationToken,
) {
    let (Ok(caller), Ok(mut leader)) = tokio::join!(caller, leader.upgrade()) else {
        return; // One has left already.
    };
    let mut caller = TokioIo::new(caller);
    tokio::select! {
        _ = copy_bidirectional(&mut caller, &mut leader) => {}
        () = shutdown.cancelled() => {}
    }
}

/// The same request, to the leader.
fn forwarded(
    peer: Option<ShownCertificate>,
    from: Option<IpAddr>,
    request: Request<Incoming>,
    leader: &str,
) -> Result<reqwest::Request, ApiFailure> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri = format!("{}{path}", leader.trim_end_matches('/'));
    parts.uri = uri.parse::<Uri>().map_err(|error| {
        tracing::error!(leader, %error, "the address of the leader is no URL");
        ApiFailure::internal(&error)
    })?;
    // The connection to the leader has its own.
    parts.version = http::Version::HTTP_11;
    parts.headers.remove(http::header::HOST);
    let shown = peer.map_or_else(|| NOBODY.to_owned(), |peer| peer.to_string());
    let shown = HeaderValue::try_from(shown).map_err(|error| ApiFailure::internal(&error))?;
    parts.headers.insert(FORWARDED_FOR, shown);
    if let Some(from) = from {
        let from = HeaderValue::try_from(from.to_string());
        let from = from.map_err(|error| ApiFailure::internal(&error))?;
        parts.headers.insert(FORWARDED_FROM, from);
    }
    let body = if body.is_end_stream() {
        reqwest::Body::default()
    } else {
        reqwest::Body::wrap_stream(Body::new(body).into_data_stream())
    };
    let request = http::Request::from_parts(parts, body);
    reqwest::Request::try_from(request).map_err(|error| ApiFailure::internal(&error))
}

fn forwarded_for(said: Option<&HeaderValue>) -> Result<Option<ShownCertificate>, ApiFailure> {
    let text = said.and_then(|value| value.to_str().ok());
    match text {
        Some(NOBODY) => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|()| unknown_caller()),
        None => Err(unknown_caller()),
    }
}

fn unknown_caller() -> ApiFailure {
    ApiFailure::bad_request(format!(
        "a server forwards a request without saying for whom ({FORWARDED_FOR})"
    ))
}

/// Whether a member's request is a stream of logs or of a command.
fn is_stream(path: &str) -> bool {
    path.strip_prefix(paths::NODE_STREAMS)
        .is_some_and(|stream| stream.starts_with('/'))
}

/// 429: many were refused from there, or of all.
fn too_many_enrollments(wait: Duration) -> Response {
    let failure = ApiFailure::new(
        StatusCode::TOO_MANY_REQUESTS,
        "too_many_enrollments",
        "many machines were refused lately: nothing was looked at, and no token was spent",
    );
    failure.retry_after(wait).into_response()
}

/// 503: the user has as many connections as may be, or all users have.
fn too_many_connections() -> Response {
    let failure = ApiFailure::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "too_many_connections",
        format!(
            "there are {MAX_CONNECTIONS_OF_A_USER} connections with this token already, or {MAX_USER_CONNECTIONS} of all users"
        ),
    );
    let mut response = failure
        .hint("end other commands, such as `platform logs --follow`, and try again")
        .into_response();
    let close = HeaderValue::from_static("close");
    response
        .headers_mut()
        .insert(http::header::CONNECTION, close);
    response
}

/// 503: nothing was done, and another server leads in a moment.
fn no_leader(message: &str) -> Response {
    unavailable(error_code::NO_LEADER, message)
}

/// 503: another server leads in a moment.
fn unavailable(code: &'static str, message: &str) -> Response {
    let failure = ApiFailure::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
        .hint("try again in a moment: another server takes over within 10 s")
        .retry_after(LEADER_RETRY);
    failure.into_response()
}

fn client(
    authority: &Authority,
    certificate: &ServerCertificate,
    h2: bool,
) -> Result<reqwest::Client, ServerError> {
    fn failed(error: impl std::fmt::Display) -> ServerError {
        ServerError::Tls(error.to_string())
    }
    let roots = authority.roots()?;
    let chain = CertificateDer::pem_slice_iter(certificate.cert_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes()).map_err(failed)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(failed)?;
    let builder = reqwest::Client::builder();
    let builder = if h2 {
        tls.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
        builder
            .http2_keep_alive_interval(FORWARD_KEEPALIVE)
            .http2_keep_alive_timeout(FORWARD_KEEPALIVE)
            .http2_keep_alive_while_idle(true)
    } else {
        builder.http1_only()
    };
    builder
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(FORWARD_CONNECT_TIMEOUT)
        .tcp_keepalive(FORWARD_KEEPALIVE)
        .tcp_nodelay(true)
        .build()
        .map_err(failed)
}
