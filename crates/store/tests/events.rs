//! Events are written with what they tell of, read by what they are about, and deleted when they are old.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;

use api::event::{Actor, Event, EventKind, MAX_EVENTS};
use model::{InstanceId, NodeId, OrgName, Timestamp};
use scheduler::changes::Changes;
use scheduler::event_log::PrunedEvents;
use store::EventFilter;
use support::*;

on_both_stores!(
    events_are_read_by_what_they_are_about,
    the_last_number_outlives_the_server,
    a_replaced_event_is_gone_and_a_batch_of_any_size_is_written,
    old_events_are_deleted_a_bounded_number_at_a_time,
    an_event_that_cannot_be_written_leaves_nothing,
);

const NONE: [u64; 0] = [];

/// An event of an instance on a node, of an app of an org; 0: of none.
fn event(number: u64, kind: EventKind, app: &str, instance: u32, node: u16) -> Event {
    let org: Option<OrgName> = (!app.is_empty()).then(|| format!("org-{app}").parse().unwrap());
    Event {
        number,
        app: (!app.is_empty()).then(|| app.parse().unwrap()),
        env: (!app.is_empty()).then(|| "prod".parse().unwrap()),
        process: (instance > 0).then(|| "web".parse().unwrap()),
        org,
        instance: (instance > 0).then_some(InstanceId(instance)),
        node: (node > 0).then_some(NodeId(node)),
        ..Event::new(
            Timestamp(NOW.0 + number),
            Actor::Node(NodeId(1)),
            kind,
            format!("event {number}"),
        )
    }
}

async fn write_events(store: &LedStore, events: Vec<Event>) {
    let changes = Changes {
        pruned_events: PrunedEvents::after(&events),
        events,
        ..Changes::default()
    };
    store.write(store.term, &changes).await.unwrap();
}

async fn numbers(store: &LedStore, filter: EventFilter) -> Vec<u64> {
    let limit = if filter.limit == 0 {
        1_000
    } else {
        filter.limit
    };
    let filter = EventFilter { limit, ..filter };
    let events = store.events(&filter).await.unwrap();
    events.iter().map(|event| event.number).collect()
}

fn all() -> EventFilter {
    EventFilter::default()
}

async fn events_are_read_by_what_they_are_about(place: Place) {
    let store = place.open().await;
    let written = vec![
        event(1, EventKind::NodeJoined, "", 0, 1),
        event(2, EventKind::InstanceScheduled, "shop", 7, 1),
        event(3, EventKind::InstanceReady, "shop", 7, 1),
        event(4, EventKind::InstanceScheduled, "blog", 8, 2),
        event(6, EventKind::SecretSet, "shop", 0, 0),
    ];
    write_events(&store, written.clone()).await;
    let everything = EventFilter { limit: 9, ..all() };
    assert_eq!(store.events(&everything).await.unwrap(), written);
    let org = |name: &str| Some(vec![name.parse().unwrap()]);
    let seen = async |filter| numbers(&store, filter).await;
    // The newest, in order; and the oldest after a number.
    assert_eq!(seen(EventFilter { limit: 2, ..all() }).await, [4, 6]);
    let after = |after, limit| EventFilter {
        after: Some(after),
        limit,
        ..all()
    };
    assert_eq!(seen(after(0, 2)).await, [1, 2]);
    assert_eq!(seen(after(2, 9)).await, [3, 4, 6]);
    assert_eq!(seen(after(6, 9)).await, NONE);
    assert_eq!(seen(after(u64::MAX, 9)).await, NONE);
    assert_eq!(
        seen(EventFilter {
            orgs: org("org-shop"),
            ..all()
        })
        .await,
        [2, 3, 6]
    );
    assert_eq!(
        seen(EventFilter {
            orgs: org("other"),
            ..all()
        })
        .await,
        NONE
    );
    assert_eq!(
        seen(EventFilter {
            orgs: Some(Vec::new()),
            ..all()
        })
        .await,
        NONE
    );
    assert_eq!(
        seen(EventFilter {
            app: Some("blog".parse().unwrap()),
            ..all()
        })
        .await,
        [4]
    );
    assert_eq!(
        seen(EventFilter {
            env: Some("prod".parse().unwrap()),
            ..all()
        })
        .await,
        [2, 3, 4, 6]
    );
    assert_eq!(
        seen(EventFilter {
            process: Some("web".parse().unwrap()),
            ..all()
        })
        .await,
        [2, 3, 4]
    );
    assert_eq!(
        seen(EventFilter {
            instance: Some(InstanceId(7)),
            ..all()
        })
        .await,
        [2, 3]
    );
    assert_eq!(
        seen(EventFilter {
            node: Some(NodeId(1)),
            ..all()
        })
        .await,
        [1, 2, 3]
    );
    let kinds = vec![EventKind::InstanceReady, EventKind::NodeJoined];
    assert_eq!(seen(EventFilter { kinds, ..all() }).await, [1, 3]);
    let since = Some(Timestamp(NOW.0 + 4));
    assert_eq!(seen(EventFilter { since, ..all() }).await, [4, 6]);
    // All of it at once.
    let narrow = EventFilter {
        after: Some(1),
        orgs: org("org-shop"),
        app: Some("shop".parse().unwrap()),
        env: Some("prod".parse().unwrap()),
        instance: Some(InstanceId(7)),
        node: Some(NodeId(1)),
        kinds: vec![EventKind::InstanceReady],
        since: Some(Timestamp(NOW.0)),
        ..all()
    };
    assert_eq!(seen(narrow).await, [3]);
}

async fn the_last_number_outlives_the_server(place: Place) {
    let store = place.open().await;
    assert_eq!(store.load().await.unwrap().event_log.last(), 0);
    write_events(&store, vec![event(41, EventKind::ServerLeads, "", 0, 0)]).await;
    store.close().await;
    let store = place.open().await;
    assert_eq!(store.load().await.unwrap().event_log.last(), 41);
}

async fn a_replaced_event_is_gone_and_a_batch_of_any_size_is_written(place: Place) {
    let store = place.open().await;
    let many = (1..=5_000).map(|n| event(n, EventKind::NodeOffline, "", 0, 1));
    write_events(&store, many.collect()).await;
    let changes = Changes {
        events: vec![event(5_001, EventKind::NodeOffline, "", 0, 1)],
        replaced_events: (2..=4_999).collect::<BTreeSet<_>>(),
        ..Changes::default()
    };
    store.write(store.term, &changes).await.unwrap();
    assert_eq!(numbers(&store, all()).await, [1, 5_000, 5_001]);
}

async fn old_events_are_deleted_a_bounded_number_at_a_time(place: Place) {
    let store = place.open().await;
    write_events(
        &store,
        (1..=200)
            .map(|n| event(n, EventKind::NodeOffline, "", 0, 1))
            .collect(),
    )
    .await;
    // 150 are too many from now on, and 64 and one go with each batch.
    let late = |number| vec![event(number, EventKind::NodeOffline, "", 0, 1)];
    write_events(&store, late(MAX_EVENTS + 150)).await;
    let oldest = async || {
        numbers(
            &store,
            EventFilter {
                after: Some(0),
                limit: 1,
                ..all()
            },
        )
        .await[0]
    };
    assert_eq!(oldest().await, 66);
    write_events(&store, late(MAX_EVENTS + 151)).await;
    assert_eq!(oldest().await, 131);
    write_events(&store, late(MAX_EVENTS + 152)).await;
    assert_eq!(oldest().await, 153);
    // By their age: the newest stays.
    let mut aged = event(MAX_EVENTS + 153, EventKind::NodeOffline, "", 0, 1);
    aged.at = Timestamp(NOW.0 + MAX_EVENTS * 2 + api::event::MAX_EVENT_AGE_MS);
    write_events(&store, vec![aged]).await;
    assert_eq!(numbers(&store, all()).await, [MAX_EVENTS + 153]);
}

async fn an_event_that_cannot_be_written_leaves_nothing(place: Place) {
    let store = place.open().await;
    write_events(&store, vec![event(1, EventKind::ServerLeads, "", 0, 0)]).await;
    let mut changes = Changes {
        events: vec![
            event(2, EventKind::ServerLeads, "", 0, 0),
            // A number that is taken.
            event(1, EventKind::ServerLeads, "", 0, 0),
        ],
        ..Changes::default()
    };
    changes.counters.membership = 99;
    store.write(store.term, &changes).await.unwrap_err();
    assert_eq!(numbers(&store, all()).await, [1]);
    assert_ne!(store.load().await.unwrap().last_membership, 99);
}
