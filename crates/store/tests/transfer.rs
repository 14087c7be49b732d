//! A backup of either store is taken back by either.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use api::event::{Actor, Event, EventKind};
use api::node::InstanceReport;
use model::instance::InstanceState;
use model::{Generation, Incarnation, InstanceId};
use scheduler::apply::Command;
use scheduler::changes::{Changes, SealedVersion};
use store::{EventFilter, Store, StoreError};
use support::*;

/// A store with something in every table, and more of something than is copied at a time.
async fn filled(place: &Place) -> LedStore {
    let store = place.open().await;
    let node = add_node(&store, "one").await;
    add_member(&store, [9; 32], api::enrollment::EnrollRole::Edge, "door").await;
    let mut commands: Vec<_> = (1..=2_100)
        .map(|n| created(&format!("app{n}"), n))
        .collect();
    let id = InstanceId(0xaffe);
    commands.push(placed("app1", 1, id, node));
    commands.push(Command::AddSecretVersion {
        env: env_key("app1"),
        bundle: "database".to_owned(),
        version: 1,
        content: SealedVersion {
            sealed: vec![0, 1, 255],
            created_at: NOW,
        },
    });
    write(&store, commands).await;
    let mut said = InstanceReport::new(id, InstanceState::Failed);
    said.failure = Some("a test".to_owned());
    let said = report(Generation::default(), vec![said]);
    assert!(reported(&store, node, &said, NOW).await.unwrap());
    let events = (1..=2_100).map(|number| Event {
        number,
        node: Some(node),
        ..Event::new(NOW, Actor::Planner, EventKind::NodeOnline, "a test")
    });
    let changes = Changes {
        events: events.collect(),
        ..Changes::default()
    };
    store.write(store.term, &changes).await.unwrap();
    store
}

/// What is in the store, without what is another after a restore.
async fn contents(store: &Store) -> (String, String) {
    let mut cluster = store.load().await.unwrap();
    cluster.incarnation = Incarnation(1);
    let routes = store.routes().await.unwrap();
    let logins = store.registry_logins().await.unwrap().len();
    let filter = EventFilter {
        limit: 10_000,
        ..EventFilter::default()
    };
    let events = store.events(&filter).await.unwrap();
    assert_eq!(events.len(), 2_100);
    (
        format!("{cluster:#?}"),
        format!("{:#?} {logins} {events:?}", routes.whole(Incarnation(1))),
    )
}

async fn a_backup_is_of_one_moment_and_either_store_takes_it_back(place: Place) {
    let folder = tempfile::tempdir().unwrap();
    let store = filled(&place).await;
    let before = contents(&store).await;
    let file = folder.path().join("backup.db");
    // While a server has the store.
    Store::backup(&place.url(), &file).await.unwrap();
    let names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["backup.db"], "nothing beside it is left");
    // It is not written over.
    let again = Store::backup(&place.url(), &file).await;
    assert!(matches!(again, Err(StoreError::Copy { .. })), "{again:?}");
    let backup = Store::open(&format!("sqlite:{}", file.display()))
        .await
        .unwrap();
    assert_eq!(contents(&backup).await, before);

    // Back into an empty database, and into one that has another cluster.
    for other in [false, true] {
        let target = Place::postgres().await;
        if other {
            let other = target.open().await;
            // Its server ends.
            assert!(other.release_lease(other.term).await.unwrap());
            other.close().await;
        }
        let url = target.url();
        let replaced = backup.restore_into_postgres(&url, folder.path());
        let replaced = replaced.await.unwrap();
        assert_eq!(replaced.is_some(), other);
        let restored = Store::open(&url).await.unwrap();
        assert_eq!(contents(&restored).await, before);
        // The lease is free, and no term comes again.
        let (lease, _) = restored.lease().await.unwrap();
        assert!(lease.expires_in_ms <= 0);
        restored.close().await;
    }
    backup.close().await;
    store.close().await;
}

on_both_stores!(a_backup_is_of_one_moment_and_either_store_takes_it_back);

#[tokio::test]
async fn nothing_is_restored_under_a_server_that_leads() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::postgres().await;
    let store = filled(&place).await;
    let file = folder.path().join("backup.db");
    Store::backup(&place.url(), &file).await.unwrap();
    let backup = Store::open(&format!("sqlite:{}", file.display()))
        .await
        .unwrap();
    let refused = backup
        .restore_into_postgres(&place.url(), folder.path())
        .await;
    assert!(
        matches!(refused, Err(StoreError::InUse { .. })),
        "{refused:?}"
    );
    assert_eq!(contents(&store).await, contents(&backup).await);
}
