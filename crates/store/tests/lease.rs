//! Several servers on one PostgreSQL: the lease, and that nothing is written in a term that is over.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use model::{Incarnation, InstanceId, NodeId, Term};
use scheduler::apply::{Command, apply};
use scheduler::changes::Changes;
use scheduler::cluster_state::Subject;
use sqlx::{Connection as _, PgConnection};
use store::{Holder, Store, StoreError};
use support::*;

fn holder(id: &str) -> Holder {
    Holder {
        id: id.to_owned(),
        address: format!("https://{id}.example.com:7443"),
    }
}

const LONG: Duration = Duration::from_secs(600);

async fn change(store: &Store, command: Command) -> Changes {
    let mut cluster = store.load().await.unwrap();
    apply(&mut cluster, &command).unwrap()
}

#[tokio::test]
async fn nothing_is_written_in_a_term_that_is_over() {
    let place = Place::postgres().await;
    let old = place.open().await;
    let before = old.load().await.unwrap();
    let changes = change(&old, created("shop", 1)).await;
    let new = place.open().await;
    assert!(new.term > old.term);
    let (lease, by) = new.lease().await.unwrap();
    assert_eq!((lease.term, by.id.as_str()), (new.term, "a test"));

    let refused = old.write(old.term, &changes).await.unwrap_err();
    assert!(matches!(refused, StoreError::LeaseLost { .. }), "{refused}");
    assert!(refused.ends_the_term());
    let login = api::user::RegistryRow {
        registry: "127.0.0.1:5000".to_owned(),
        user: None,
        by: "admin".to_owned(),
        at: NOW,
    };
    let refused = old.set_registry_login(old.term, &login, b"sealed").await;
    assert!(matches!(refused, Err(StoreError::LeaseLost { .. })));
    let refused = old.remove_registry_login(old.term, &login.registry).await;
    assert!(matches!(refused, Err(StoreError::LeaseLost { .. })));
    assert!(!old.renew_lease(old.term, LONG).await.unwrap());
    assert!(!old.release_lease(old.term).await.unwrap());
    assert_eq!(new.load().await.unwrap(), before);

    new.write(new.term, &changes).await.unwrap();
    assert_eq!(old.load().await.unwrap().envs.len(), 1);
    // A lease that was given up is free at once, and its term takes no more.
    assert!(new.release_lease(new.term).await.unwrap());
    let refused = new.write(new.term, &changes).await;
    assert!(matches!(refused, Err(StoreError::LeaseLost { .. })));
    assert!(new.lease().await.unwrap().0.expires_in_ms <= 0);
    assert!(!new.renew_lease(new.term, LONG).await.unwrap());
}

#[tokio::test]
async fn nothing_is_written_after_the_lease_has_expired_until_it_is_renewed() {
    let place = Place::postgres().await;
    let store = place.open().await;
    let changes = change(&store, created("shop", 1)).await;
    assert!(store.renew_lease(store.term, Duration::ZERO).await.unwrap());
    let refused = store.write(store.term, &changes).await;
    assert!(matches!(refused, Err(StoreError::LeaseLost { .. })));
    assert!(store.renew_lease(store.term, LONG).await.unwrap());
    store.write(store.term, &changes).await.unwrap();
}

#[tokio::test]
async fn of_many_servers_that_take_a_free_lease_one_gets_it() {
    let place = Place::postgres().await;
    let store = place.open().await;
    let (seen, _) = store.lease().await.unwrap();
    let mut servers = tokio::task::JoinSet::new();
    for number in 0..8 {
        let url = place.url();
        servers.spawn(async move {
            let store = Store::open(&url).await.unwrap();
            let me = holder(&format!("server-{number}"));
            let taken = store.acquire_lease(seen, &me, LONG).await.unwrap();
            store.close().await;
            (me, taken)
        });
    }
    let ended = servers.join_all().await;
    let mut taken = ended.iter().filter(|(_, term)| term.is_some());
    let (winner, term) = taken.next().unwrap();
    assert_eq!(taken.count(), 0);
    assert_eq!(*term, Some(Term(seen.term.0 + 1)));
    assert_eq!(store.lease().await.unwrap().1, *winner);
}

/// Waits until a session of this database waits for a lock.
async fn somebody_waits_for_a_lock(url: &str) {
    let mut db = PgConnection::connect(url).await.unwrap();
    loop {
        let waits: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        .fetch_one(&mut db)
        .await
        .unwrap();
        if waits > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn who_takes_the_lease_waits_for_the_transaction_of_the_leader_before() {
    let place = Place::postgres().await;
    let old = place.open().await;
    let changes = change(&old, created("shop", 1)).await;
    let mut writing = old.begin_write(old.term).await.unwrap();
    writing.write(&changes).await.unwrap();
    // A renewal does not wait for it.
    assert!(old.renew_lease(old.term, LONG).await.unwrap());

    let url = place.url();
    let taking = tokio::spawn(async move {
        let new = Store::open(&url).await.unwrap();
        let term = lead(&new).await;
        (new.load().await.unwrap().envs.len(), term)
    });
    somebody_waits_for_a_lock(&place.url()).await;
    assert!(!taking.is_finished());
    writing.commit().await.unwrap();
    // It has what the leader before had acknowledged.
    let (envs, term) = taking.await.unwrap();
    assert_eq!((envs, term), (1, Term(old.term.0 + 1)));
}

#[tokio::test]
async fn a_leader_that_stops_in_a_transaction_does_not_keep_the_lease_and_writes_nothing() {
    let place = Place::postgres().await;
    let old = place.open().await;
    let changes = change(&old, created("shop", 1)).await;
    let mut writing = old.begin_write(old.term).await.unwrap();
    writing.write(&changes).await.unwrap();
    // It is stopped here: nothing more comes on its connection.
    let new = Store::open(&place.url()).await.unwrap();
    let (seen, _) = new.lease().await.unwrap();
    let term = loop {
        match new.acquire_lease(seen, &holder("new"), LONG).await {
            Ok(term) => break term,
            // The wait for the lock was too long: tried again.
            Err(StoreError::Query { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    };
    assert!(term.is_some());
    let woken = writing.commit().await.unwrap_err();
    assert!(matches!(woken, StoreError::Unconfirmed { .. }), "{woken}");
    assert!(new.load().await.unwrap().envs.is_empty());
    let refused = old.write(old.term, &changes).await;
    assert!(matches!(refused, Err(StoreError::LeaseLost { .. })));
}

#[tokio::test]
async fn a_database_that_cannot_be_used_is_named_with_what_to_do() {
    let url = postgres::database().await;
    let of = |database: &str| url.replace("/test_", &format!("/{database}_"));
    let error = Store::open(&of("missing")).await.unwrap_err();
    assert!(error.to_string().contains("database missing_"), "{error}");
    assert!(error.hint().unwrap().contains("createdb"), "{error}");

    postgres::execute(&url, "CREATE ROLE locked LOGIN PASSWORD 'right'").await;
    let wrong = url.replace("user=platform", "user=locked&password=wrong");
    let error = Store::open(&wrong).await.unwrap_err();
    assert!(error.hint().unwrap().contains("PGPASSWORD"), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("wrong"));
    // The right password, and no right to make tables.
    let right = url.replace("user=platform", "user=locked&password=right");
    let error = Store::open(&right).await.unwrap_err();
    assert!(matches!(error, StoreError::Migrate { .. }), "{error}");

    let nowhere = "postgres:///x?host=/nonexistent&user=platform";
    let error = Store::open(nowhere).await.unwrap_err();
    assert!(
        error.hint().unwrap().contains("does the database run"),
        "{error}"
    );
    let error = Store::open("postgres://u:secret@host:port/x")
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::PostgresUrl { .. }), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");

    Store::open(&url).await.unwrap().close().await;
    postgres::execute(
        &url,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (999, 'from the future', true, '\\x00', 0)",
    )
    .await;
    let error = Store::open(&url).await.unwrap_err();
    assert!(error.to_string().contains("has schema 999"), "{error}");
    // Nor is it copied by a program that does not know it.
    let refused = Store::backup(&url, &std::env::temp_dir().join("never.db")).await;
    assert!(matches!(refused, Err(StoreError::OtherSchema { .. })));
    assert!(matches!(Store::lock(&url).await, Err(StoreError::NotAFile)));
}

#[tokio::test]
async fn several_servers_may_create_the_schema_and_the_cluster_at_once() {
    let url = postgres::database().await;
    let mut servers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let url = url.clone();
        servers.spawn(async move {
            let store = Store::open(&url).await.unwrap();
            let mut other = settings();
            other.id = format!("{:p}", &raw const other);
            let record = store::ClusterRecord {
                settings: other,
                ca_cert_pem: "certificate".to_owned(),
                ca_before_pem: String::new(),
                ca_cross_pem: String::new(),
                keys: store::StoredKeys::Wrapped {
                    ca_key: Vec::new(),
                    seal_key: Vec::new(),
                },
            };
            let made = store.create_cluster(&record, Incarnation(1), NOW).await;
            made.unwrap();
            store.cluster().await.unwrap().unwrap().settings.id
        });
    }
    let mut ids = servers.join_all().await;
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
}

#[tokio::test]
async fn a_table_that_another_session_locks_is_named_and_written_once_it_lets_go() {
    let place = Place::postgres().await;
    let store = place.open().await;
    let changes = change(&store, created("shop", 1)).await;
    let mut other = PgConnection::connect(&place.url()).await.unwrap();
    for sql in ["BEGIN", "LOCK TABLE envs IN ACCESS EXCLUSIVE MODE"] {
        sqlx::query(sql).execute(&mut other).await.unwrap();
    }
    let refused = store.write(store.term, &changes).await.unwrap_err();
    assert!(
        refused.hint().is_some_and(|hint| hint.contains("pg_locks")),
        "{refused:?}"
    );
    assert!(!refused.ends_the_term() && !refused.is_about_a_record());
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    store.write(store.term, &changes).await.unwrap();
}

#[tokio::test]
async fn texts_of_others_with_a_nul_character_are_stored_without_it() {
    let place = Place::postgres().await;
    let store = place.open().await;
    let node = add_node(&store, "box").await;
    let id = InstanceId(7);
    let commands = vec![created("shop", 1), placed("shop", 1, id, node)];
    write(&store, commands).await;
    let terminate = Command::Plan(scheduler::action::Action::Terminate {
        id,
        reason: "it said \0".to_owned(),
    });
    let changes = change(&store, terminate).await;
    store.write(store.term, &changes).await.unwrap();
    let cluster = store.load().await.unwrap();
    let phase = format!("{:?}", cluster.instances[&id].phase);
    assert!(phase.contains("it said \u{fffd}"), "{phase}");
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_kept_and_named_and_one_that_breaks_a_constraint_is_about_itself()
 {
    let place = Place::postgres().await;
    let store = place.open().await;
    let node = add_node(&store, "box").await;
    write(
        &store,
        vec![created("shop", 1), placed("shop", 1, InstanceId(7), node)],
    )
    .await;
    postgres::execute(&place.url(), "UPDATE instances SET json_version = 99").await;
    let cluster = store.load().await.unwrap();
    let unreadable = cluster.unreadable.iter().map(|record| &record.subject);
    let expected = Subject::Instance(InstanceId(7));
    assert_eq!(unreadable.collect::<Vec<_>>(), [&expected]);

    let changes = change(&store, created("other", 2)).await;
    let mut changes = changes;
    let placed = placed("other", 2, InstanceId(8), NodeId(99));
    let Command::Plan(scheduler::action::Action::Create(placed)) = placed else {
        panic!("an instance is created");
    };
    let instance = scheduler::cluster_state::Instance::new(placed.spec, NodeId(99), NOW);
    changes
        .instances
        .insert(InstanceId(8), Some(instance.into()));
    let refused = store.write(store.term, &changes).await.unwrap_err();
    assert!(refused.is_about_a_record(), "{refused:?}");
    assert!(!refused.ends_the_term());
    assert_eq!(store.load().await.unwrap(), cluster);
}

#[tokio::test]
async fn a_server_of_an_older_version_follows_and_never_leads() {
    let place = Place::postgres().await;
    let old = place.open().await;
    let changes = change(&old, created("shop", 1)).await;
    let mut db = PgConnection::connect(&place.url()).await.unwrap();
    // As a server of a version before this one left it: without the last migration.
    for sql in [
        "ALTER TABLE envs DROP COLUMN runs_json",
        "DELETE FROM _sqlx_migrations WHERE version = (SELECT MAX(version) FROM _sqlx_migrations)",
    ] {
        sqlx::query(sql).execute(&mut db).await.unwrap();
    }
    let _new = Store::open(&place.url()).await.unwrap();
    let refused = old.write(old.term, &changes).await;
    assert!(
        matches!(refused, Err(StoreError::LeaseLost { .. })),
        "{refused:?}"
    );

    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'of a newer server', true, '', 0)",
    )
    .execute(&mut db)
    .await
    .unwrap();
    let (seen, _) = old.lease().await.unwrap();
    let refused = old
        .acquire_lease(seen, &holder("old"), LONG)
        .await
        .unwrap_err();
    assert!(
        matches!(refused, StoreError::NewerSchema { found: 9999, .. }),
        "{refused}"
    );
    // Not the whole of it: when it expires is told by the clock of the database, which goes on.
    let (kept, _) = old.lease().await.unwrap();
    assert_eq!((kept.term, kept.renewals), (seen.term, seen.renewals));
}

#[tokio::test]
async fn a_write_that_waits_too_long_for_a_lock_costs_no_term_where_the_lease_is_renewed_meanwhile()
{
    // Shorter than a write waits for a lock.
    const SHORT: Duration = Duration::from_secs(3);
    let place = Place::postgres().await;
    let store = place.open().await;
    let changes = change(&store, created("shop", 1)).await;
    let mut other = PgConnection::connect(&place.url()).await.unwrap();
    for sql in ["BEGIN", "LOCK TABLE envs IN ACCESS EXCLUSIVE MODE"] {
        sqlx::query(sql).execute(&mut other).await.unwrap();
    }
    assert!(store.renew_lease(store.term, SHORT).await.unwrap());
    let mut renewals = 0;
    let refused = {
        let mut writing = std::pin::pin!(store.write(store.term, &changes));
        loop {
            tokio::select! {
                ended = &mut writing => break ended.unwrap_err(),
                () = tokio::time::sleep(SHORT / 6) => {
                    // It waits for no lock of the transaction that waits.
                    let renewed = tokio::time::timeout(SHORT / 2, store.renew_lease(store.term, SHORT));
                    assert!(renewed.await.unwrap().unwrap());
                    renewals += 1;
                }
            }
        }
    };
    assert!(
        refused.hint().is_some_and(|hint| hint.contains("pg_locks")),
        "{refused:?}"
    );
    assert!(!refused.ends_the_term());
    assert!(renewals > 6, "{renewals}: the lease would not have expired");
    let (lease, _) = store.lease().await.unwrap();
    assert_eq!(lease.term, store.term);
    assert!(lease.expires_in_ms > 0, "{lease:?}");
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    store.write(store.term, &changes).await.unwrap();
}
