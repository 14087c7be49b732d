//! The calls of edges.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;

use super::extract::{Params, Poll, granted};
use crate::callers::EdgeCaller;
use crate::failure::ApiFailure;
use crate::state::{App, Topic};

/// The whole route table, once it is newer than the one the edge has.
pub(crate) async fn routes(
    State(app): State<App>,
    EdgeCaller { edge, protocol }: EdgeCaller,
    Params(poll): Params<Poll>,
) -> Result<Response, ApiFailure> {
    let newer = app
        .wait_for(Topic::Routes, granted(poll.wait_ms), |published| {
            (published.routes.generation.0 > poll.after).then(|| published.routes.clone())
        })
        .await?;
    Ok(match newer {
        Some(table) => {
            let generation = table.generation.0;
            tracing::debug!(%edge, protocol, generation, "an edge gets the route table");
            Json(table).into_response()
        }
        None => StatusCode::NO_CONTENT.into_response(),
    })
}
