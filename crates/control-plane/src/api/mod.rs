//! The routes, and what all of them share: bounds, parsing at the border, errors as JSON.

mod calls;
mod deploy;
mod edges;
mod enrolling;
mod envs;
mod images;
mod logs;
mod nodes;
mod registries;
mod secrets;
mod volumes;

use std::time::Duration;

use api::{MAX_BODY_BYTES, MAX_WAIT_MS, paths};
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query, Request};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{delete, get, post};
use http::StatusCode;
use http::request::Parts;
use model::EnvKey;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::failure::ApiFailure;
use crate::limits::REQUEST_TIMEOUT;
use crate::state::App;

/// Every path of [`api::paths`].
pub(crate) fn router(app: App) -> Router {
    let bounded = Router::new()
        .route(paths::HEALTH, get(|| async { StatusCode::OK }))
        .route(paths::ENROLL, post(enrolling::enroll))
        .route(paths::TOKENS, post(enrolling::create_token))
        .route(paths::NODE_DESIRED, get(nodes::desired))
        .route(paths::NODE_REPORT, post(nodes::report))
        .route(paths::NODE_STREAMS, get(nodes::streams))
        .route(paths::NODE_STREAM_REFUSED, post(nodes::refuse_stream))
        .route(paths::NODE_SECRETS, get(secrets::for_node))
        .route(paths::NODE_PULL_SECRET, get(registries::for_node))
        .route(paths::EDGE_ROUTES, get(edges::routes))
        .route(
            paths::REGISTRIES,
            get(registries::list)
                .post(registries::log_in)
                .delete(registries::log_out),
        )
        .route(paths::IMAGES, get(images::images))
        .route(paths::NODES, get(envs::nodes))
        .route(paths::INSTANCES, get(envs::instances))
        .route(paths::VOLUMES, get(volumes::volumes))
        .route(paths::VOLUME, delete(volumes::delete))
        .route(paths::ENVS, get(envs::envs))
        .route(paths::ENV, post(deploy::deploy).delete(envs::destroy))
        .route(paths::REDEPLOY, post(deploy::redeploy))
        .route(paths::SECRETS, get(secrets::list))
        .route(paths::SECRET, post(secrets::set).delete(secrets::delete))
        .route(paths::SCALE, post(envs::scale))
        .route(paths::ROLLOUT, get(envs::rollout))
        .route(paths::SIGNAL, post(calls::signal))
        .route(paths::STATS, get(calls::stats))
        .layer(from_fn(within_bounds));
    let streaming = Router::new()
        .route(
            paths::NODE_STREAM,
            post(nodes::stream).get(nodes::exec_stream),
        )
        .route(paths::EXEC, get(calls::exec))
        .route(paths::LOGS, get(logs::to_user));
    bounded
        .merge(streaming)
        .fallback(|| async { ApiFailure::not_found("no_such_path", "the API has no such path") })
        .method_not_allowed_fallback(|| async {
            ApiFailure::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "the path has no such method",
            )
        })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(app)
}

/// Cuts a request that takes too long: a body that trickles in, a registry that stalls.
async fn within_bounds(request: Request, next: Next) -> Result<Response, ApiFailure> {
    tokio::time::timeout(REQUEST_TIMEOUT, next.run(request))
        .await
        .map_err(|_| {
            ApiFailure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too_slow",
                format!(
                    "the request was not done within {} s",
                    REQUEST_TIMEOUT.as_secs()
                ),
            )
        })
}

/// A body of JSON.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = ApiFailure;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiFailure> {
        let bytes =
            Bytes::from_request(request, app)
                .await
                .map_err(|rejection: BytesRejection| {
                    let status = rejection.status();
                    let what = if status == StatusCode::PAYLOAD_TOO_LARGE {
                        format!("the body is over {MAX_BODY_BYTES} bytes")
                    } else {
                        format!("the body could not be read: {}", rejection.body_text())
                    };
                    ApiFailure::new(status, "bad_body", what)
                })?;
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|e| ApiFailure::bad_request(format!("the body is not as expected: {e}")))
    }
}

/// The query of the URL.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<App> for Params<T> {
    type Rejection = ApiFailure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiFailure> {
        Query::from_request_parts(parts, app)
            .await
            .map(|Query(params)| Self(params))
            .map_err(|rejection: QueryRejection| ApiFailure::bad_request(rejection.body_text()))
    }
}

/// `{app}` and `{env}` of the path.
pub(crate) struct InEnv(pub(crate) EnvKey);

impl FromRequestParts<App> for InEnv {
    type Rejection = ApiFailure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiFailure> {
        Path::from_request_parts(parts, app)
            .await
            .map(|Path(key)| Self(key))
            .map_err(|rejection: PathRejection| ApiFailure::bad_request(rejection.body_text()))
    }
}

/// The query of a long poll.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Poll {
    #[serde(default)]
    pub(crate) after: u64,
    #[serde(default)]
    pub(crate) wait_ms: u64,
}

/// The wait that is granted.
pub(crate) fn granted(wait_ms: u64) -> Duration {
    Duration::from_millis(wait_ms.min(MAX_WAIT_MS))
}

/// 404 for an env.
pub(crate) fn no_such_env(key: &EnvKey) -> ApiFailure {
    ApiFailure::not_found("env_not_found", format!("there is no env {key}"))
        .hint("`platform envs` lists those there are")
}

/// 409 for an env that is being destroyed.
pub(crate) fn is_destroyed(key: &EnvKey) -> ApiFailure {
    ApiFailure::conflict("env_destroying", format!("{key} is being destroyed"))
        .hint("wait until `platform envs` no longer lists it")
}
