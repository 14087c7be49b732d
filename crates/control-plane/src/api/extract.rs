//! Parsing at the border, for every route: bodies, queries, paths, and the refusals that several routes give.

use std::time::Duration;

use ::api::{MAX_BODY_BYTES, MAX_WAIT_MS};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use http::StatusCode;
use http::request::Parts;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use model::{EnvKey, Generation, Incarnation, LeaderSession};
use scheduler::apply::not_frozen;
use scheduler::cluster_state::ClusterState;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::callers::log_unreadable;
use crate::failure::ApiFailure;
use crate::limits::{MAX_REASON_CHARS, MAX_STRANGERS_BODY_BYTES, REFUSED_BODY_GRACE};
use crate::state::App;

/// A body: an object of JSON.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = ApiFailure;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiFailure> {
        Self::of_up_to(MAX_BODY_BYTES, request, app).await
    }
}

/// The body of a call that anybody may make: it is read before it is known who calls.
pub(crate) struct StrangersBody<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for StrangersBody<T> {
    type Rejection = ApiFailure;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiFailure> {
        let Body(body) = Body::of_up_to(MAX_STRANGERS_BODY_BYTES, request, app).await?;
        Ok(Self(body))
    }
}

impl<T: DeserializeOwned> Body<T> {
    /// Reads a body of up to so many bytes.
    async fn of_up_to(most: usize, request: Request, app: &App) -> Result<Self, ApiFailure> {
        let (head, body) = request.into_parts();
        let refused = |status, what: String| {
            log_unreadable(app, &head, &what);
            ApiFailure::new(status, "bad_body", what)
        };
        let mut body = Limited::new(body, most);
        let bytes = (&mut body).collect().await;
        let bytes = bytes.map_err(|error| {
            if error.is::<LengthLimitError>() {
                answer_first(body);
                refused(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the body is over {most} bytes"),
                )
            } else {
                refused(
                    StatusCode::BAD_REQUEST,
                    format!("the body could not be read: {error}"),
                )
            }
        })?;
        let bytes = bytes.to_bytes();
        // What is read would take an array for a struct, its fields by their places.
        if bytes
            .trim_ascii_start()
            .first()
            .is_some_and(|byte| *byte != b'{')
        {
            let what = "the body is not an object of JSON";
            log_unreadable(app, &head, what);
            return Err(ApiFailure::bad_request(what));
        }
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            let what = format!("the body is not as expected: {}", unexpected(&error));
            log_unreadable(app, &head, &what);
            ApiFailure::bad_request(what)
        })
    }
}

/// What is wrong with JSON, and where, without its text: that may be a secret, and ends in somebody's log.
fn unexpected(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let without = || {
        let (before, rest) = text.split_once(": string \"")?;
        let (_, expected) = rest.rsplit_once("\", expected ")?;
        Some(format!("{before}: a string, expected {expected}"))
    };
    let text = without().unwrap_or(text);
    if text.chars().count() <= MAX_REASON_CHARS {
        return text;
    }
    let start: String = text.chars().take(MAX_REASON_CHARS).collect();
    let (line, column) = (error.line(), error.column());
    format!("{start}… at line {line} column {column}")
}

/// Drops the rest of a body once the refusal is on its way. Over HTTP/2 the stream would be reset before, and the refusal be lost; afterwards the
/// reset says that the rest is not needed (NO_ERROR; RFC 9113, 8.1). No more of it is read meanwhile than its window has.
fn answer_first(body: impl Send + 'static) {
    tokio::spawn(async move {
        tokio::time::sleep(REFUSED_BODY_GRACE).await;
        drop(body);
    });
}

/// The query of the URL.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<App> for Params<T> {
    type Rejection = ApiFailure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiFailure> {
        Query::from_request_parts(parts, app)
            .await
            .map(|Query(params)| Self(params))
            .map_err(|rejection: QueryRejection| {
                let what = rejection.body_text();
                let what = what.trim_start_matches("Failed to deserialize query string: ");
                ApiFailure::bad_request(format!("the parameters are not as expected: {what}")).hint(
                    "docs/api.md and /openapi.json have those of each call, with their bounds",
                )
            })
    }
}

/// What the path has in its places.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<App> for Path<T> {
    type Rejection = ApiFailure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiFailure> {
        axum::extract::Path::from_request_parts(parts, app)
            .await
            .map(|axum::extract::Path(captured)| Self(captured))
            .map_err(|rejection: PathRejection| ApiFailure::bad_request(rejection.body_text()))
    }
}

/// `{app}` and `{env}` of the path.
pub(crate) struct InEnv(pub(crate) EnvKey);

impl FromRequestParts<App> for InEnv {
    type Rejection = ApiFailure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiFailure> {
        let Path(key) = Path::from_request_parts(parts, app).await?;
        Ok(Self(key))
    }
}

/// The query of a member's long poll; fields of a newer member are ignored.
#[derive(Debug, Deserialize)]
pub(crate) struct Poll {
    /// What the member has: the counter of its generation.
    #[serde(default)]
    pub(crate) after: u64,
    /// And the incarnation; a member of before incarnations leaves it out.
    #[serde(default)]
    pub(crate) incarnation: Incarnation,
    /// And the session of the leader that counted it, where what it has is of one; a member of before sessions leaves it out.
    #[serde(default)]
    pub(crate) session: LeaderSession,
    #[serde(default)]
    pub(crate) wait_ms: u64,
}

impl Poll {
    /// The generation that the member has.
    pub(crate) fn has(&self) -> Generation {
        Generation {
            incarnation: self.incarnation,
            counter: self.after,
        }
    }
}

/// The wait that is granted.
pub(crate) fn granted(wait_ms: u64) -> Duration {
    Duration::from_millis(wait_ms.min(MAX_WAIT_MS))
}

/// 409 where a record of the env cannot be read: then it is not known what there is of it, and nothing of it is changed.
pub(crate) fn readable(cluster: &ClusterState, key: &EnvKey) -> Result<(), ApiFailure> {
    Ok(not_frozen(cluster, key)?)
}

/// 404 for an env; 409 for one whose record cannot be read.
pub(crate) fn no_such_env(cluster: &ClusterState, key: &EnvKey) -> ApiFailure {
    if let Err(refused) = readable(cluster, key) {
        return refused;
    }
    ApiFailure::not_found("env_not_found", format!("there is no env {key}"))
        .hint("`platform envs` lists those there are")
}

/// 409 for an env that is being destroyed.
pub(crate) fn is_destroyed(key: &EnvKey) -> ApiFailure {
    ApiFailure::conflict("env_destroying", format!("{key} is being destroyed"))
        .hint("wait until `platform envs` no longer lists it")
}
