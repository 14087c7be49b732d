//! The kinds of callers: a user by token ([`crate::access`]), a node or an edge by certificate. A handler names the kind it serves by taking
//! it as an argument; other callers never reach it. A member is served only when it speaks a protocol version that this
//! server serves ([`api::protocol`]).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::{Arc, PoisonError};

use api::enrollment::Member;
use api::error_code;
use api::member::Approval;
use api::protocol::{self, PROTOCOL_HEADER, SERVED_PROTOCOL_VERSIONS};
use axum::extract::FromRequestParts;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use identity::{MemberCertificate, UserToken};
use model::{EdgeId, NodeId, PublicKey, Timestamp};
use scheduler::cluster_state::TokenHash;

use crate::failure::ApiFailure;
use crate::limits::MAX_LOGGED_REASON;
use crate::state::App;

/// The certificate that a connection was made with, if it was made with a member's. Put into each request by [`crate::dispatch`].
#[derive(Debug, Clone)]
pub(crate) struct Peer(pub(crate) Option<ShownCertificate>);

/// The address that a request came from, of the connection that it first came by. Put into each request by [`crate::dispatch`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct SeenFrom(pub(crate) Option<IpAddr>);

impl FromRequestParts<App> for SeenFrom {
    type Rejection = ApiFailure;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiFailure> {
        Ok(parts.extensions.get().copied().unwrap_or(Self(None)))
    }
}

/// What is known of a member by the certificate that it showed, and whose key it proved to have. Who it is the cluster state says, by that key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShownCertificate {
    /// The key that it has.
    pub(crate) key: PublicKey,
    /// The member that the certificate was issued to.
    pub(crate) issued_to: Member,
    /// Whether a CA of the cluster signed the certificate. Anybody can make one that none did, and have a key.
    pub(crate) is_signed: bool,
    /// Whether the certificate is signed, and was within its dates when the connection was made.
    pub(crate) is_current: bool,
}

impl ShownCertificate {
    pub(crate) fn of(certificate: &MemberCertificate, is_signed: bool, now: Timestamp) -> Self {
        Self {
            key: certificate.key.clone(),
            issued_to: certificate.issued_to,
            is_signed,
            is_current: is_signed && certificate.is_current(now),
        }
    }
}

const CURRENT: &str = "current";
const OUT_OF_DATE: &str = "out-of-date";
const UNSIGNED: &str = "unsigned";

impl fmt::Display for ShownCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let good = match (self.is_signed, self.is_current) {
            (true, true) => CURRENT,
            (true, false) => OUT_OF_DATE,
            (false, _) => UNSIGNED,
        };
        write!(f, "{} {} {good}", self.key, self.issued_to)
    }
}

impl FromStr for ShownCertificate {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let words: Vec<_> = text.split(' ').collect();
        let [key, issued_to, good] = words.as_slice() else {
            return Err(());
        };
        Ok(Self {
            key: key.parse().map_err(drop)?,
            issued_to: issued_to.parse().map_err(drop)?,
            is_signed: *good != UNSIGNED,
            is_current: match *good {
                CURRENT => true,
                OUT_OF_DATE | UNSIGNED => false,
                _ => return Err(()),
            },
        })
    }
}

/// A node with its certificate, and the protocol version that it speaks: one that is served.
#[derive(Debug)]
pub(crate) struct NodeCaller {
    pub(crate) node: NodeId,
    pub(crate) protocol: u32,
}

/// An edge with its certificate, and the protocol version that it speaks: one that is served.
#[derive(Debug)]
pub(crate) struct EdgeCaller {
    pub(crate) edge: EdgeId,
    pub(crate) protocol: u32,
}

/// The hash of the user's token in a request's head, where there is one of its form.
pub(crate) fn user_token(headers: &HeaderMap) -> Option<TokenHash> {
    token_hash(headers.get(AUTHORIZATION)?)
}

pub(crate) fn token_hash(header: &HeaderValue) -> Option<TokenHash> {
    let (scheme, token) = header.to_str().ok()?.split_once(' ')?;
    let is_bearer = scheme.eq_ignore_ascii_case("bearer");
    let token = is_bearer.then(|| token.trim().parse::<UserToken>().ok());
    Some(token.flatten()?.secret_hash())
}

impl FromRequestParts<App> for NodeCaller {
    type Rejection = ApiFailure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiFailure> {
        match approved(parts, app, "a node").await? {
            member @ Member::Node(node) => {
                let protocol = check_protocol(&parts.headers, app, Some(member))?;
                Ok(Self { node, protocol })
            }
            Member::Edge(id) => Err(forbidden(format!("this call is for nodes, not for {id}"))),
        }
    }
}

impl FromRequestParts<App> for EdgeCaller {
    type Rejection = ApiFailure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiFailure> {
        match approved(parts, app, "an edge").await? {
            member @ Member::Edge(edge) => {
                let protocol = check_protocol(&parts.headers, app, Some(member))?;
                Ok(Self { edge, protocol })
            }
            Member::Node(id) => Err(forbidden(format!("this call is for edges, not for {id}"))),
        }
    }
}

/// A node or an edge, by the key that is recorded of it, in any approval but revoked; its certificate may be out of its dates.
#[derive(Debug)]
pub(crate) struct KnownCaller {
    pub(crate) member: Member,
    /// The key by which it comes.
    pub(crate) key: PublicKey,
    /// Whether its certificate is within its dates.
    pub(crate) is_current: bool,
    /// Whether it may do what members do.
    pub(crate) is_approved: bool,
}

impl FromRequestParts<App> for KnownCaller {
    type Rejection = ApiFailure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiFailure> {
        let caller = known(parts, app, "a node or an edge").await?;
        check_protocol(&parts.headers, app, Some(caller.member))?;
        Ok(caller)
    }
}

pub(crate) fn peer(parts: &Parts) -> Option<&ShownCertificate> {
    parts.extensions.get::<Peer>()?.0.as_ref()
}

/// The member that calls, which may do what members do.
async fn approved(parts: &Parts, app: &App, wanted: &str) -> Result<Member, ApiFailure> {
    let caller = known(parts, app, wanted).await?;
    let member = caller.member;
    if !caller.is_approved {
        return Err(ApiFailure::new(
            StatusCode::FORBIDDEN,
            error_code::NOT_APPROVED,
            format!("{member} waits for approval"),
        )
        .hint(format!(
            "`platform {}s approve {member}` lets it in",
            member.role()
        )));
    }
    if !caller.is_current {
        return Err(ApiFailure::new(
            StatusCode::FORBIDDEN,
            error_code::CERTIFICATE_EXPIRED,
            format!("the certificate of {member} is out of its dates: it opens its renewal and nothing else"),
        )
        .hint("is the agent of this version? it renews by itself. Are the clocks of both machines right?"));
    }
    Ok(member)
}

/// The member that calls, by its key.
async fn known(parts: &Parts, app: &App, wanted: &str) -> Result<KnownCaller, ApiFailure> {
    let Some(shown) = peer(parts) else {
        return Err(unauthorized(&format!(
            "this call needs the client certificate of {wanted}"
        ))
        .hint("enroll first; users' tokens do not open it"));
    };
    let member = match app.member_of(&shown.key) {
        Some(member) => member,
        None => app.first_seen(shown).await?,
    };
    let published = Arc::clone(&app.published.borrow());
    let identity = published.cluster.identity(member);
    // Of a record that cannot be read the key is known, and nothing more.
    let approval = identity.map_or(Approval::Approved, |identity| identity.approval);
    if let Approval::Revoked { .. } = approval {
        return Err(ApiFailure::new(
            StatusCode::FORBIDDEN,
            error_code::REVOKED,
            format!("{member} was revoked"),
        )
        .hint("`platform node down` ends what it runs; `platform tokens create --replaces` lets the machine in again"));
    }
    let is_next = identity.is_some_and(|identity| identity.next_key.as_ref() == Some(&shown.key));
    if is_next {
        app.complete_key(member, shown.key.clone()).await?;
    }
    Ok(KnownCaller {
        member,
        key: shown.key.clone(),
        is_current: shown.is_current,
        is_approved: approval == Approval::Approved,
    })
}

/// The caller speaks a protocol version that this server serves.
#[derive(Debug)]
pub(crate) struct Protocol;

impl FromRequestParts<App> for Protocol {
    type Rejection = ApiFailure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiFailure> {
        check_protocol(&parts.headers, app, None).map(|_| Self)
    }
}

/// The protocol version of a caller. A member that is too old or too new is refused, which is logged once, until it is
/// served again.
fn check_protocol(
    headers: &HeaderMap,
    app: &App,
    member: Option<Member>,
) -> Result<u32, ApiFailure> {
    let header = headers.get(PROTOCOL_HEADER);
    // A value that is not text is not a number either.
    let text = header.map(|value| value.to_str().unwrap_or_default());
    let checked = protocol::check(text, &SERVED_PROTOCOL_VERSIONS);
    let mut refused = app.refused.lock().unwrap_or_else(PoisonError::into_inner);
    match checked {
        Ok(version) => {
            if let Some(member) = member {
                refused.remove(&member);
            }
            Ok(version)
        }
        Err(refusal) => {
            if let Some(member) = member
                && refused.insert(member)
            {
                tracing::warn!(%member, %refusal, "refused a member");
            }
            let message = refusal.to_string();
            Err(ApiFailure::new(
                StatusCode::BAD_REQUEST,
                error_code::PROTOCOL_VERSION,
                message,
            ))
        }
    }
}

/// Logs that a message of a member could not be read, once for each reason that differs from the last.
pub(crate) fn log_unreadable(app: &App, parts: &Parts, reason: &str) {
    let Some(member) = peer(parts).map(|peer| peer.issued_to) else {
        return;
    };
    let reason: String = reason.chars().take(MAX_LOGGED_REASON).collect();
    let mut unreadable = app
        .unreadable
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if unreadable.get(&member) != Some(&reason) {
        let path = parts.uri.path();
        let protocol = parts.headers.get(PROTOCOL_HEADER);
        tracing::warn!(%member, path, ?protocol, reason, "refused a message that cannot be read");
        unreadable.insert(member, reason);
    }
}

pub(crate) fn unauthorized(message: &str) -> ApiFailure {
    ApiFailure::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
}

pub(crate) fn forbidden(message: String) -> ApiFailure {
    ApiFailure::new(StatusCode::FORBIDDEN, "forbidden", message)
}
