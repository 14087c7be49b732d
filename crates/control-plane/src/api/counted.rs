//! Counts the requests that this server answers.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::response::Response;
use http::Method;

use crate::state::App;

/// A request that is being answered.
pub(super) struct Counting {
    started: Instant,
    method: &'static str,
}

impl Counting {
    pub(super) fn begin(request: &Request) -> Self {
        let method = match *request.method() {
            Method::GET => "GET",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::PATCH => "PATCH",
            Method::DELETE => "DELETE",
            _ => "other",
        };
        Self {
            started: Instant::now(),
            method,
        }
    }

    /// Counts it under the template of its path: what is no path of the API has one series.
    pub(super) fn end(self, app: &App, path: Option<&MatchedPath>, response: &Response) {
        let path = path.map_or("other", MatchedPath::as_str);
        let status = response.status().as_u16();
        (app.metrics).answered(self.method, path, status, self.started.elapsed());
    }
}
