//! The edge's own answers: short, plain text for the public. They name the host and no more: which app, instance or address
//! is meant is for the operator, in the edge's log, under the same request id.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher as _;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{Either, Full};

use crate::response_body::AnswerBody;

/// Seconds after which a client may ask again when no instance is ready.
const RETRY_AFTER_SECONDS: u64 = 2;

/// The header that has the request id.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Links an answer of the edge to a line of its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestId(u64);

impl RequestId {
    /// Another one each time; those of an edge that restarted begin elsewhere.
    pub(crate) fn next() -> Self {
        static NEXT: LazyLock<AtomicU64> =
            LazyLock::new(|| AtomicU64::new(RandomState::new().hash_one("request")));
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

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
        "There is nothing at this address.",
    )
}

pub(crate) fn no_routes_yet(id: RequestId) -> Response<AnswerBody> {
    ask_again(unavailable(StatusCode::SERVICE_UNAVAILABLE, id))
}

pub(crate) fn none_ready(id: RequestId) -> Response<AnswerBody> {
    ask_again(unavailable(StatusCode::SERVICE_UNAVAILABLE, id))
}

/// The answer when an app gave none; the cause is in the log under this id.
pub(crate) fn unavailable(status: StatusCode, id: RequestId) -> Response<AnswerBody> {
    let what = match status {
        StatusCode::GATEWAY_TIMEOUT => "the app did not answer in time",
        StatusCode::REQUEST_TIMEOUT => "the request's body did not come in time",
        StatusCode::SERVICE_UNAVAILABLE => "the app is not available at the moment",
        _ => "the app did not answer",
    };
    let mut response = plain(status, what, &format!("Request id: {id}"));
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn ask_again(mut response: Response<AnswerBody>) -> Response<AnswerBody> {
    response
        .headers_mut()
        .insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
    response
}
