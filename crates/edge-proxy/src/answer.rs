//! The edge's own answers: short, plain text, naming the host and the cause.

use api::edge::Route;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{Either, Full};

use crate::response_body::AnswerBody;

/// Seconds after which a client may ask again when no instance is ready.
const RETRY_AFTER_SECONDS: u64 = 2;

/// An answer of the edge itself: what happened, and a line on what it means.
pub(crate) fn plain(status: StatusCode, what: &str, meaning: &str) -> Response<AnswerBody> {
    let text = format!("{}: {what}\n\n{meaning}\n", status.as_u16());
    let mut response = Response::new(Either::Right(Full::new(Bytes::from(text))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

pub(crate) fn unknown_host(host: &str) -> Response<AnswerBody> {
    plain(
        StatusCode::NOT_FOUND,
        &format!("no app answers for `{host}`"),
        "This edge has no route for that host. Hosts are given in the `[routes]` table of an \
         app's manifest; `platform deploy` makes them known.",
    )
}

pub(crate) fn no_routes_yet() -> Response<AnswerBody> {
    ask_again(plain(
        StatusCode::SERVICE_UNAVAILABLE,
        "this edge knows no route yet",
        "Nothing with a route was deployed, or `platform server` has not answered this edge yet; \
         its log says which.",
    ))
}

pub(crate) fn none_ready(host: &str, route: &Route) -> Response<AnswerBody> {
    ask_again(plain(
        StatusCode::SERVICE_UNAVAILABLE,
        &format!(
            "no instance of `{}` in {} is ready to answer for `{host}`",
            route.process, route.env
        ),
        "`platform ps` shows its instances and what they wait for.",
    ))
}

fn ask_again(mut response: Response<AnswerBody>) -> Response<AnswerBody> {
    response
        .headers_mut()
        .insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
    response
}
