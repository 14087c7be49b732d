//! The calls of edges.

use api::edge::HasRoutes;
use api::enrollment::Member;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;

use super::extract::{Params, Poll, granted};
use crate::callers::EdgeCaller;
use crate::clock::now;
use crate::failure::ApiFailure;
use crate::state::{App, Topic};

/// The routes, once they are others than those that the edge has: what changed, where that is known and the edge asked for
/// it, else all.
pub(crate) async fn routes(
    State(app): State<App>,
    EdgeCaller { edge, protocol }: EdgeCaller,
    Params(poll): Params<Poll>,
) -> Result<Response, ApiFailure> {
    let has = HasRoutes {
        generation: poll.has(),
        session: poll.session,
    };
    app.members.seen(Member::Edge(edge), now());
    let newer = app
        .wait_for(Topic::Routes, granted(poll.wait_ms), |published| {
            let incarnation = published.cluster.incarnation;
            published.routes.news(incarnation, app.session, has)
        })
        .await?;
    Ok(match newer {
        Some(mut table) => {
            table.term = app.term;
            let generation = table.generation.counter;
            let changed = table.routes.len() + table.removed.len();
            tracing::debug!(%edge, protocol, generation, changed, "an edge gets routes");
            Json(table).into_response()
        }
        None => StatusCode::NO_CONTENT.into_response(),
    })
}
