//! What becomes of certificates while this server leads: keys of tickets are made anew in time, and what ends soon is told.

use api::event::{Actor, Event, EventKind};
use model::Timestamp;

use crate::certificates::{CertificatesError, shown_name};
use crate::clock::now;
use crate::limits::CERTIFICATE_LOOK_INTERVAL;
use crate::not_committed::NotCommitted;
use crate::state::{App, Topic};

/// Makes other keys of tickets in time, and tells of certificates that end soon, until the term ends.
pub(crate) async fn keep_current(app: App) {
    loop {
        if let Err(error) = look(&app).await {
            let cause = display::chain(&error);
            tracing::warn!(cause, "cannot look after the certificates; trying again");
        }
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(CERTIFICATE_LOOK_INTERVAL) => {}
        }
    }
}

async fn look(app: &App) -> Result<(), CertificatesError> {
    let certificates = &app.certificates;
    if certificates.rotate_tickets(now()).await? {
        app.topics.notify(std::iter::once(Topic::Certificates));
    }
    let (all, ending) = certificates.ending(now());
    app.metrics.set_certificates(all, ending.len());
    for (name, not_after) in ending {
        if !certificates.warns_first(&name) {
            continue;
        }
        let name = shown_name(&name);
        let message = ends(name, not_after, now());
        tracing::warn!(name, "a certificate ends soon: {message}");
        record(app, Actor::Server, EventKind::CertificateExpiring, message).await;
    }
    Ok(())
}

/// When a certificate ends, for people.
fn ends(name: &str, not_after: Timestamp, now: Timestamp) -> String {
    let day = 24 * 60 * 60 * 1000;
    if not_after <= now {
        format!(
            "{name}: it has ended, {} days ago",
            now.millis_since(not_after) / day
        )
    } else {
        format!(
            "{name}: it ends in {} days",
            not_after.millis_since(now) / day
        )
    }
}

/// Writes an event of a certificate.
pub(crate) async fn record(app: &App, by: impl Into<Actor>, kind: EventKind, message: String) {
    record_event(app, Event::new(now(), by.into(), kind, message)).await;
}

/// Writes an event.
pub(crate) async fn record_event(app: &App, event: Event) {
    let told = app.leader.submit(move |leader| {
        leader.record_event(event);
        Ok::<_, NotCommitted>(())
    });
    if let Err(error) = told.await {
        tracing::warn!(
            error = display::chain(&error),
            "what happened to a certificate is no event"
        );
    }
}
