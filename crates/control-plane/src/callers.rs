//! The kinds of callers: a user by token, a node or an edge by certificate. A handler names the kind it serves by taking
//! it as an argument; other callers never reach it. A member is served only when it speaks a protocol version that this
//! server serves ([`api::protocol`]).

use std::sync::PoisonError;

use api::enrollment::Member;
use api::error_code;
use api::protocol::{self, PROTOCOL_HEADER, SERVED_PROTOCOL_VERSIONS};
use axum::extract::FromRequestParts;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use identity::UserToken;
use model::{EdgeId, NodeId};
use scheduler::cluster_state::TokenHash;

use crate::failure::ApiFailure;
use crate::limits::MAX_LOGGED_REASON;
use crate::state::App;

/// The member whose certificate the connection was made with, if it was made with one. Put into
/// each request by [`crate::serve`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) Option<Member>);

/// A user with a token.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) name: String,
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

impl FromRequestParts<App> for User {
    type Rejection = ApiFailure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiFailure> {
        let Some(header) = parts.headers.get(AUTHORIZATION) else {
            return Err(match peer(parts) {
                Some(member) => forbidden(format!("this call is for users, not for {member}")),
                None => unauthorized("this call needs a user's token")
                    .hint("send `Authorization: Bearer pu1_..`; the first is in client.json"),
            });
        };
        let unknown = || unauthorized("the user's token is not known to this cluster");
        let hash = token_hash(header).ok_or_else(unknown)?;
        match app.users.of_token(&hash).await? {
            Some(name) => Ok(Self { name }),
            None => Err(unknown().hint("is the client configuration of this cluster?")),
        }
    }
}

/// The hash of the user's token in a request's head, where there is one of its form.
pub(crate) fn user_token(headers: &HeaderMap) -> Option<TokenHash> {
    token_hash(headers.get(AUTHORIZATION)?)
}

fn token_hash(header: &HeaderValue) -> Option<TokenHash> {
    let (scheme, token) = header.to_str().ok()?.split_once(' ')?;
    let is_bearer = scheme.eq_ignore_ascii_case("bearer");
    let token = is_bearer.then(|| token.trim().parse::<UserToken>().ok());
    Some(token.flatten()?.secret_hash())
}

impl FromRequestParts<App> for NodeCaller {
    type Rejection = ApiFailure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiFailure> {
        match member(parts, app, "a node")? {
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
        match member(parts, app, "an edge")? {
            member @ Member::Edge(edge) => {
                let protocol = check_protocol(&parts.headers, app, Some(member))?;
                Ok(Self { edge, protocol })
            }
            Member::Node(id) => Err(forbidden(format!("this call is for edges, not for {id}"))),
        }
    }
}

fn peer(parts: &Parts) -> Option<Member> {
    parts.extensions.get::<Peer>().and_then(|peer| peer.0)
}

/// The member that calls, if it is of the cluster still.
fn member(parts: &Parts, app: &App, wanted: &str) -> Result<Member, ApiFailure> {
    let Some(member) = peer(parts) else {
        return Err(unauthorized(&format!(
            "this call needs the client certificate of {wanted}"
        ))
        .hint("enroll first; users' tokens do not open it"));
    };
    if app.published.borrow().cluster.has_member(member) {
        Ok(member)
    } else {
        Err(ApiFailure::new(
            StatusCode::FORBIDDEN,
            error_code::NOT_A_MEMBER,
            format!("{member} is not a member of this cluster"),
        )
        .hint("was the store restored from before it enrolled? enroll again with a new token"))
    }
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
    let Some(member) = peer(parts) else { return };
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

fn unauthorized(message: &str) -> ApiFailure {
    ApiFailure::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
}

fn forbidden(message: String) -> ApiFailure {
    ApiFailure::new(StatusCode::FORBIDDEN, "forbidden", message)
}
