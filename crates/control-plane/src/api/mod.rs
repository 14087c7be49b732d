//! The routes of the API.

mod access;
mod acme;
mod ca;
mod calls;
mod certificates;
mod counted;
mod deploy;
mod doctor;
mod edges;
mod enrolling;
mod envs;
mod events;
pub(crate) mod extract;
mod images;
mod lists;
mod logs;
mod members;
mod network;
mod nodes;
mod plan;
mod registries;
mod releases;
mod repeated;
mod runs;
mod secrets;
mod volumes;
mod why;

use api::openapi::call_of;
use api::paths;
use axum::Router;
use axum::body::HttpBody as _;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, patch, post, put};
use http::{HeaderValue, StatusCode, Version, header};

use crate::failure::{ApiFailure, method_not_allowed};
use crate::limits::REQUEST_TIMEOUT;
use crate::state::App;

/// Every path of [`api::paths`].
pub(crate) fn router(app: App) -> Router {
    let bounded = Router::new()
        .route(paths::HEALTH, get(|| async { StatusCode::OK }))
        .route(paths::ENROLL, post(enrolling::enroll))
        .route(
            paths::TOKENS,
            get(enrolling::tokens).post(enrolling::create_token),
        )
        .route(paths::TOKEN, delete(enrolling::revoke_token))
        .route(paths::WHOAMI, get(access::whoami))
        .route(paths::ORGS, get(access::orgs).post(access::create_org))
        .route(paths::ORG, delete(access::remove_org))
        .route(paths::APPS, get(access::apps))
        .route(paths::APP, put(access::move_app).delete(access::remove_app))
        .route(paths::USERS, get(access::users))
        .route(paths::USER, put(access::grant).delete(access::remove_user))
        .route(
            paths::USER_TOKENS,
            get(access::tokens).post(access::create_token),
        )
        .route(paths::USER_TOKEN, delete(access::revoke_token))
        .route(paths::MEMBER, get(members::state))
        .route(paths::MEMBER_CERTIFICATE, post(members::certificate))
        .route(paths::MEMBER_OVERLAY, post(network::report))
        .route(paths::NETWORK, get(network::show).patch(network::set))
        .route(paths::MEMBER_MEASUREMENT, post(doctor::answer))
        .route(paths::NETWORK_DOCTOR, post(doctor::run))
        .route(paths::NODE_DIRECTORY, get(network::directory))
        .route(paths::MEMBERS, get(members::acknowledgements))
        .route(paths::APPROVE, post(members::approve))
        .route(paths::REVOKE, post(members::revoke))
        .route(paths::ROTATE_KEYS, post(members::rotate_keys))
        .route(paths::CA, get(ca::show).post(ca::rotate))
        .route(paths::EDGES, get(members::edges))
        .route(paths::EDGE, delete(members::remove_edge))
        .route(paths::NODE_DESIRED, get(nodes::desired))
        .route(paths::NODE_REPORT, post(nodes::report))
        .route(paths::NODE_STREAMS, get(nodes::streams))
        .route(paths::NODE_STREAM_REFUSED, post(nodes::refuse_stream))
        .route(paths::NODE_SECRETS, get(secrets::for_node))
        .route(paths::NODE_PULL_SECRET, get(registries::for_node))
        .route(paths::EDGE_ROUTES, get(edges::routes))
        .route(paths::EDGE_CERTIFICATES, get(certificates::for_edge))
        .route(paths::EDGE_HOST_CERTIFICATE, post(certificates::for_host))
        .route(
            paths::CERTIFICATES,
            get(certificates::list)
                .post(certificates::add)
                .delete(certificates::remove),
        )
        .route(paths::EDGE_CHALLENGES, get(acme::for_edge))
        .route(
            paths::ACME,
            get(acme::show).put(acme::set).delete(acme::unset),
        )
        .route(paths::ACME_RETRY, post(acme::retry))
        .route(paths::INGRESS_CA, get(certificates::ca))
        .route(
            paths::REGISTRIES,
            get(registries::list)
                .post(registries::log_in)
                .delete(registries::log_out),
        )
        .route(paths::IMAGES, get(images::images))
        .route(paths::NODES, get(lists::nodes))
        .route(paths::NODE, delete(nodes::remove))
        .route(paths::NODE_SCHEDULING, put(nodes::set_scheduling))
        .route(paths::NODE_STOP_UNKNOWN, post(nodes::stop_unknown))
        .route(paths::NODE_LABELS, patch(nodes::set_labels))
        .route(paths::NODE_ORG, put(nodes::set_org))
        .route(paths::INSTANCES, get(lists::instances))
        .route(paths::ENDED_INSTANCES, get(lists::ended_instances))
        .route(paths::VOLUMES, get(lists::volumes))
        .route(paths::VOLUME, delete(volumes::delete))
        .route(paths::ENVS, get(lists::envs))
        .route(paths::ENV, post(deploy::deploy).delete(envs::destroy))
        .route(paths::REDEPLOY, post(deploy::redeploy))
        .route(paths::WHY, get(why::why))
        .route(paths::EVENTS, get(events::events))
        .route(paths::RELEASES, get(releases::list))
        .route(paths::RELEASE, get(releases::show))
        .route(paths::ROLLBACK, post(releases::rollback))
        .route(paths::PLAN, post(plan::plan))
        .route(paths::RUNS, post(runs::run))
        .route(paths::RUN, delete(runs::end))
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
        .route(paths::ATTACH, get(calls::attach))
        .route(paths::FORWARD, get(calls::forward))
        .route(paths::LOGS, get(logs::to_user));
    bounded
        .merge(streaming)
        .fallback(|| async { ApiFailure::not_found("no_such_path", "the API has no such path") })
        .method_not_allowed_fallback(|| async { method_not_allowed() })
        .layer(from_fn_with_state(app.clone(), around))
        .with_state(app)
}

/// What is done around every call. It is one layer: each would be a future of its own for each of thousands of polls that wait.
async fn around(
    State(app): State<App>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let counting = counted::Counting::begin(&request);
    let may_be_unread = request.version() <= Version::HTTP_11 && !request.body().is_end_stream();
    let mut answered = match unasked_query(&request, path.as_ref()) {
        Some(refused) => refused.into_response(),
        None => members::while_a_member(&app, request, next).await,
    };
    counting.end(&app, path.as_ref(), &answered);
    let is_refused = answered.status().is_client_error() || answered.status().is_server_error();
    if may_be_unread && is_refused {
        // A connection with an unread body ends. A client that is not told so sends its next request there, and gets no answer.
        let headers = answered.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answered
}

/// Refuses the query of a call that has none: a parameter that nobody reads would be ignored otherwise.
fn unasked_query(request: &Request, path: Option<&MatchedPath>) -> Option<ApiFailure> {
    let has_query = request.uri().query().is_some_and(|query| !query.is_empty());
    let call = call_of(request.method().as_str(), path?.as_str())?;
    let (method, path) = (call.method, call.path);
    (has_query && !call.has_query())
        .then(|| ApiFailure::bad_request(format!("{method} {path} has no parameters")))
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
