//! The one writer of the cluster state, on a real store that refuses.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;
use std::time::Duration;

use api::user::{RolloutPhase, ScaleRequest};
use model::{EnvKey, Generation, ReleaseNumber};
use sqlx::{Connection as _, SqliteConnection};
use support::registry::Registry;
use support::*;

/// Another program at the server's database.
async fn database(folder: &Path) -> SqliteConnection {
    let url = format!("sqlite:{}", folder.join("platform.db").display());
    SqliteConnection::connect(&url).await.unwrap()
}

async fn execute(db: &mut SqliteConnection, sql: &'static str) {
    sqlx::query(sql).execute(db).await.unwrap();
}

async fn phase(server: &Server, key: &EnvKey) -> (RolloutPhase, String) {
    let first = Some(ReleaseNumber(1));
    let status = server.user.rollout(key, first, None, Duration::ZERO).await;
    let status = status.unwrap();
    (status.phase, status.reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_env_whose_plan_the_store_refuses_blocks_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let _node = ObedientNode::start(&server).await;
    let mut db = database(folder.path()).await;
    execute(
        &mut db,
        "CREATE TRIGGER refuse BEFORE INSERT ON instances WHEN NEW.app = 'bad' \
         BEGIN SELECT RAISE(ABORT, 'not this one'); END",
    )
    .await;
    let digest = registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello@{digest}", registry.host);
    let (bad, good) = (env_key("bad", "prod"), env_key("good", "prod"));
    server.deploy(&bad, &manifest("bad"), &image).await;
    server.deploy(&good, &manifest("good"), &image).await;
    eventually("the other env is rolled out", async || {
        (phase(&server, &good).await.0 == RolloutPhase::Done).then_some(())
    })
    .await;
    let reason = eventually("the refused env says why", async || {
        let (phase, reason) = phase(&server, &bad).await;
        assert_eq!(phase, RolloutPhase::Rolling);
        reason.contains("cannot be planned").then_some(reason)
    })
    .await;
    assert!(reason.contains("not this one"), "{reason}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_the_store_refuses_never_was() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let _node = ObedientNode::start(&server).await;
    let digest = registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello@{digest}", registry.host);
    let key = env_key("hello", "prod");
    server.deploy(&key, &manifest("hello"), &image).await;
    eventually("it is rolled out", async || {
        (phase(&server, &key).await.0 == RolloutPhase::Done).then_some(())
    })
    .await;
    let mut db = database(folder.path()).await;
    execute(
        &mut db,
        "CREATE TRIGGER refuse BEFORE UPDATE ON envs BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
    )
    .await;
    let scale = |count| ScaleRequest {
        processes: [("web".parse().unwrap(), count)].into(),
    };
    let wanted = async || {
        let rows = server.user.envs().await.unwrap();
        rows[0].processes[&"web".parse().unwrap()].0
    };
    let refused = server.user.scale(&key, &scale(3)).await.unwrap_err();
    assert_eq!(refused.code(), Some("server_failed"));
    assert!(
        refused.to_string().contains("the disk is full"),
        "{refused}"
    );
    assert_eq!(wanted().await, 2);
    // Its nodes are there, whatever the store takes.
    let nodes = server.user.nodes().await.unwrap();
    assert!(nodes[0].online);
    execute(&mut db, "DROP TRIGGER refuse").await;
    server.user.scale(&key, &scale(3)).await.unwrap();
    assert_eq!(wanted().await, 3);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_says_nothing_new_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (_, node) = server.join_node().await;
    let nothing = report(
        Generation {
            counter: 1,
            ..Generation::default()
        },
        Vec::new(),
    );
    node.client.report_all(&nothing).await.unwrap();
    let mut db = database(folder.path()).await;
    // Another number once another connection has committed.
    let mut version = async || {
        let version = sqlx::query_scalar::<_, i64>("PRAGMA data_version");
        version.fetch_one(&mut db).await.unwrap()
    };
    let before = version().await;
    for _ in 0..50 {
        node.client.report_all(&nothing).await.unwrap();
    }
    assert_eq!(version().await, before);
    let mut other = nothing.clone();
    other.driver.reason = "another".to_owned();
    node.client.report_all(&other).await.unwrap();
    assert_ne!(version().await, before);
    server.stop().await;
}
