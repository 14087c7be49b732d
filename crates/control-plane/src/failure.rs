//! Refusals and failures, as the API tells them.

use std::error::Error;
use std::time::Duration;

use api::{ApiError, PROBLEM_JSON, Problem, error_code};
use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use scheduler::apply::Refused;
use store::StoreError;

use crate::limits::LEADER_RETRY;
use crate::not_committed::NotCommitted;

/// The error that a caller gets instead of an answer.
#[derive(Debug)]
pub(crate) struct ApiFailure {
    status: StatusCode,
    error: ApiError,
}

impl ApiFailure {
    pub(crate) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            error: ApiError {
                code: code.to_owned(),
                message: message.into(),
                hint: None,
                retry_after_ms: None,
            },
        }
    }

    /// The error, without its status.
    pub(crate) fn into_error(self) -> ApiError {
        self.error
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.error.hint = Some(hint.into());
        self
    }

    /// The same request may succeed after this time.
    pub(crate) fn retry_after(mut self, wait: Duration) -> Self {
        self.error.retry_after_ms = u64::try_from(wait.as_millis()).ok();
        self
    }

    /// What failed, with its subject and its cause.
    pub(crate) fn reason(&self) -> &str {
        &self.error.message
    }

    /// As [`ApiFailure::reason`].
    pub(crate) fn message(self) -> String {
        self.error.message
    }

    /// 400: the request is not one of this API.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// 422: understood, and it cannot be done as asked.
    pub(crate) fn refused(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message)
    }

    /// 404.
    pub(crate) fn not_found(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// 409: it conflicts with the cluster state.
    pub(crate) fn conflict(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, message)
    }

    /// 500: the cause goes to the log; the caller learns what failed.
    pub(crate) fn internal(error: &(dyn Error + 'static)) -> Self {
        let cause = display::chain(error);
        tracing::error!(%cause, "a request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_failed", cause)
            .hint("this is not the request's fault; the server's log has more")
    }

    /// 504: a registry keeps us waiting.
    pub(crate) fn registry_too_slow(registry: &str, what: &str, waited: Duration) -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "registry_too_slow",
            format!(
                "{registry} did not answer for {what} within {} s",
                waited.as_secs()
            ),
        )
    }

    /// 503: the server is about to end.
    pub(crate) fn stopping() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "server_stopping",
            "the server is stopping",
        )
        .hint("try again when it is back")
    }
}

/// 405.
pub(crate) fn method_not_allowed() -> ApiFailure {
    ApiFailure::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "the path has no such method",
    )
}

/// A header of the answer to a member that was revoked: whoever it is connected to closes the connection.
pub(crate) const REVOKED: HeaderName = HeaderName::from_static("platform-revoked");

impl IntoResponse for ApiFailure {
    fn into_response(self) -> Response {
        let is_revoked = self.error.code == error_code::REVOKED;
        let wait = self.error.retry_after_ms;
        let title = self.status.canonical_reason().unwrap_or_default();
        let problem = Problem::new(self.status.as_u16(), title, self.error);
        let mut response = (self.status, Json(problem)).into_response();
        let content_type = HeaderValue::from_static(PROBLEM_JSON);
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer realm=\"platform\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
        }
        if let Some(wait) = wait {
            // In whole seconds, and not before the time.
            let seconds = HeaderValue::from(wait.div_ceil(1000).max(1));
            response.headers_mut().insert(RETRY_AFTER, seconds);
        }
        if is_revoked {
            let yes = HeaderValue::from_static("yes");
            response.headers_mut().insert(REVOKED, yes);
        }
        response
    }
}

impl ApiFailure {
    /// 503: the store does not answer. Nothing was done; where it is away for long, nobody leads.
    pub(crate) fn no_store() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            error_code::NO_LEADER,
            "the store does not answer",
        )
        .hint("is the database there? the server's log says what it finds")
        .retry_after(LEADER_RETRY)
    }

    fn of_store(error: &StoreError) -> Self {
        let failure = Self::internal(error);
        error.hint().into_iter().fold(failure, Self::hint)
    }

    /// 503: this server leads no longer.
    fn term_is_over(error: &StoreError) -> Self {
        let code = match error {
            StoreError::LeaseLost { .. } => error_code::NO_LEADER,
            _ => error_code::LEADER_CHANGED,
        };
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, error.to_string())
            .hint("try again in a moment: another server takes over within 10 s")
            .retry_after(LEADER_RETRY)
    }
}

impl From<StoreError> for ApiFailure {
    fn from(error: StoreError) -> Self {
        if error.ends_the_term() {
            return Self::term_is_over(&error);
        }
        Self::of_store(&error)
    }
}

impl From<NotCommitted> for ApiFailure {
    fn from(error: NotCommitted) -> Self {
        if error.is_stopping() {
            return Self::stopping();
        }
        if let Some(error) = error.ends_the_term() {
            return Self::term_is_over(error);
        }
        let Some(hint) = error.hint() else {
            return Self::internal(&error);
        };
        // The database's disk is full, or somebody else has it locked.
        let cause = display::chain(&error);
        tracing::error!(%cause, "the store cannot write");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_failed", cause).hint(hint)
    }
}

/// What to do about a record that cannot be read.
pub(crate) const UNREADABLE_HINT: &str = "start a server that is at least as new as the one that wrote the record, or \
     restore the store from a backup";

impl From<Refused> for ApiFailure {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::EnvFrozen { .. } => Self::conflict("refused", text).hint(UNREADABLE_HINT),
            Refused::TooManyEnvs(_) => Self::refused("too_many_envs", text)
                .hint("`platform destroy` and `platform secrets delete` end what is not needed"),
            Refused::TooManyBundles(_) => Self::refused("too_many_bundles", text).hint(
                "`platform secrets delete` removes one that is not needed; a bundle has many files",
            ),
            _ => Self::conflict("refused", text),
        }
    }
}

impl From<identity::KeyError> for ApiFailure {
    fn from(error: identity::KeyError) -> Self {
        Self::internal(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_to_try_again_is_in_the_header_in_whole_seconds() {
        for (millis, seconds) in [(1, "1"), (1_000, "1"), (1_001, "2"), (5_000, "5")] {
            let failure = ApiFailure::conflict("later", "not now");
            let failure = failure.retry_after(Duration::from_millis(millis));
            let response = failure.into_response();
            assert_eq!(response.headers()[RETRY_AFTER], seconds, "{millis}");
        }
        let response = ApiFailure::conflict("never", "no").into_response();
        assert!(!response.headers().contains_key(RETRY_AFTER));
    }
}
