//! What changed, as users read it.
//!
//! A user of the whole cluster reads every event. A user of orgs reads those of their apps, by the org that owned the app when it happened:
//! what another org did with an app's name before is not told.

use ::api::event::{EVENTS_LISTED, EventKind, EventPage, EventsQuery, MAX_EVENTS_LISTED};
use axum::Json;
use axum::extract::State;
use model::OrgName;
use store::EventFilter;
use tokio::time::Instant;

use super::extract::{Params, granted};
use crate::access::{Anyone, User};
use crate::failure::ApiFailure;
use crate::state::{App, Published, Topic};

/// The events that a user wants, and may see.
pub(crate) async fn events(
    State(app): State<App>,
    Anyone(user): Anyone,
    Params(query): Params<EventsQuery>,
) -> Result<Json<EventPage>, ApiFailure> {
    let kinds = match &query.kind {
        Some(word) => EventKind::named(word).map_err(|error| {
            ApiFailure::refused("event_kind_unknown", error.to_string())
                .hint("`platform events` shows the kinds of what happened")
        })?,
        None => Vec::new(),
    };
    let limit = query.limit.unwrap_or(EVENTS_LISTED);
    if !(1..=MAX_EVENTS_LISTED).contains(&limit) {
        let text = format!("`limit` is {limit}: an answer has 1 to {MAX_EVENTS_LISTED} events");
        return Err(ApiFailure::bad_request(text));
    }
    let last = last(&app);
    let mut filter = EventFilter {
        // A number that is not given yet is of a store that was restored since: what comes next is wanted.
        after: query.after.map(|after| after.min(last)),
        orgs: seen_by(&user),
        app: query.app,
        env: query.env,
        process: None,
        instance: query.instance,
        node: query.node,
        kinds,
        since: query.since,
        // One more says whether there is more.
        limit: limit + 1,
    };
    let mut page = page(&app, &filter, limit, last).await?;
    let wait_ms = query
        .wait_ms
        .filter(|_| filter.after.is_some())
        .unwrap_or(0);
    let until = Instant::now() + granted(wait_ms);
    let mut known = last;
    while page.events.is_empty() {
        let wait = until.saturating_duration_since(Instant::now());
        let newer = |published: &Published| {
            let now = published.cluster.event_log.last();
            (now > known).then_some(now)
        };
        let Some(now) = app.wait_for(Topic::Events, wait, newer).await? else {
            break;
        };
        known = now;
        filter.orgs = seen_by(&user.again(&app)?);
        // What was looked at is not looked at again.
        filter.after = Some(page.next);
        page = self::page(&app, &filter, limit, known).await?;
    }
    Ok(Json(page))
}

/// The orgs whose events a user reads; absent: all, and the cluster's.
pub(super) fn seen_by(user: &User) -> Option<Vec<OrgName>> {
    match user.grants.cluster {
        Some(_) => None,
        None => Some(user.grants.orgs.keys().cloned().collect()),
    }
}

fn last(app: &App) -> u64 {
    app.published.borrow().cluster.event_log.last()
}

/// What is there. `last`: the number of the last event before it is read.
async fn page(
    app: &App,
    filter: &EventFilter,
    limit: u32,
    last: u64,
) -> Result<EventPage, ApiFailure> {
    let mut events = app.store.events(filter).await?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = events.len() > limit;
    if more && filter.after.is_some() {
        events.truncate(limit);
    } else if more {
        // The newest are wanted.
        events.remove(0);
    }
    let read = events.last().map_or(0, |event| event.number);
    let next = if filter.after.is_some() && more {
        read
    } else {
        read.max(last).max(filter.after.unwrap_or(0))
    };
    // Of the newest, nothing comes next that is there already.
    let more = more && filter.after.is_some();
    Ok(EventPage { events, next, more })
}
