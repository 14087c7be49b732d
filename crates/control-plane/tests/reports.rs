//! Reports of nodes, as the server takes them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use api::node::{AgentSession, ReportAnswer, ReportDelta};
use api::user::NodeRow;
use model::{Generation, InstanceId, NodeId, VolumeId};
use support::{ReportsAll as _, Server, eventually, report, running};

async fn row(server: &Server, node: NodeId) -> NodeRow {
    let rows = server.user.nodes().await.unwrap();
    rows.into_iter().find(|row| row.id == node).unwrap()
}

fn numbered(session: u64, sequence: u64) -> ReportDelta {
    ReportDelta {
        session: AgentSession(session),
        sequence,
        ..ReportDelta::default()
    }
}

fn has(session: u64, sequence: u64) -> ReportAnswer {
    ReportAnswer {
        session: AgentSession(session),
        sequence,
        whole: false,
        heartbeat_interval_ms: Some(3_000),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_takes_the_next_difference_and_asks_for_all_where_it_lacks_one() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (id, node) = server.join_node().await;
    let all = report(Generation::default(), Vec::new());
    // First contact.
    let answer = node.client.report(&numbered(7, 1)).await.unwrap();
    assert!(answer.whole);
    let whole = ReportDelta::whole(AgentSession(7), 2, all.clone());
    assert_eq!(node.client.report(&whole).await.unwrap(), has(7, 2));
    assert!(row(&server, id).await.online);
    let mut next = numbered(7, 3);
    let mut driver = all.driver.clone();
    driver.reason = "another".to_owned();
    next.driver = Some(driver);
    assert_eq!(node.client.report(&next).await.unwrap(), has(7, 3));
    let reason = async || row(&server, id).await.driver.unwrap().reason;
    assert_eq!(reason().await, "another");
    // The whole one again, late: it changes nothing.
    assert_eq!(node.client.report(&whole).await.unwrap(), has(7, 3));
    assert_eq!(reason().await, "another");
    // The server starts again and knows nothing of reports.
    let url = server.ready.url.clone();
    server.stop().await;
    let server = eventually("it starts on the same port", async || {
        Server::try_start_at(folder.path(), &url).await
    })
    .await;
    assert!(node.client.report(&numbered(7, 4)).await.unwrap().whole);
    assert_eq!(row(&server, id).await.driver.unwrap().reason, "another");
    let whole = ReportDelta::whole(AgentSession(7), 5, all);
    assert_eq!(node.client.report(&whole).await.unwrap(), has(7, 5));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_of_life_is_seen_and_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (id, node) = server.join_node().await;
    let all = report(Generation::default(), Vec::new());
    let whole = ReportDelta::whole(AgentSession(1), 1, all);
    node.client.report(&whole).await.unwrap();
    let first = row(&server, id).await.seen_at.unwrap();
    let path = folder.path().join("platform.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut db = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let mut version = async || {
        let version = sqlx::query_scalar::<_, i64>("PRAGMA data_version");
        version.fetch_one(&mut db).await.unwrap()
    };
    let before = version().await;
    for sequence in 2..200 {
        node.client.report(&numbered(1, sequence)).await.unwrap();
    }
    assert_eq!(version().await, before);
    eventually("it was seen later", async || {
        let seen = row(&server, id).await.seen_at.unwrap();
        (seen > first).then_some(())
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_a_node_that_says_too_much_is_named_and_hurts_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (liar, lying) = server.join_node().await;
    let (other, honest) = server.join_node().await;
    let mut said = report(
        Generation {
            counter: u64::MAX - 1,
            ..Generation::default()
        },
        (0..6000).map(|id| running(InstanceId(id))).collect(),
    );
    said.instances[0].detail = "x".repeat(1 << 20);
    said.hardware.memory_bytes = u64::MAX;
    said.hardware.cpus = u32::MAX;
    said.driver.reason = "y".repeat(1 << 20);
    said.volumes = (0..100_000).map(VolumeId).collect();
    let before = row(&server, liar).await.hardware;
    // It floods, too.
    let flood = tokio::spawn(async move {
        loop {
            said.driver.name = if said.driver.name == "a" { "b" } else { "a" }.to_owned();
            lying.client.report_all(&said).await.unwrap();
        }
    });
    let named = eventually("the node is named", async || {
        let exceeded = row(&server, liar).await.exceeded;
        (!exceeded.is_empty()).then_some(exceeded)
    })
    .await;
    for field in [
        "hardware.memory_bytes",
        "hardware.cpus",
        "driver.reason",
        "instances are 6000",
        "volumes are 100000",
    ] {
        assert!(
            named.iter().any(|e| e.contains(field)),
            "{field}: {named:?}"
        );
    }
    let lies = row(&server, liar).await;
    assert_eq!(lies.hardware, before, "it is not believed");
    assert!(lies.driver.unwrap().reason.len() < 4096);
    for _ in 0..20 {
        let all = report(Generation::default(), Vec::new());
        let answered = tokio::time::timeout(Duration::from_secs(5), honest.client.report_all(&all));
        answered.await.unwrap().unwrap();
    }
    let honest = row(&server, other).await;
    assert!(honest.online && honest.exceeded.is_empty());
    flood.abort();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_a_start_with_an_impossible_number_is_refused_and_named_and_keeps_no_later_one_out() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (id, node) = server.join_node().await;
    let all = report(Generation::default(), Vec::new());
    let last = ReportDelta::whole(AgentSession(u64::MAX), u64::MAX, all.clone());
    let refused = node.client.report(&last).await.unwrap_err();
    assert!(refused.to_string().contains("session"), "{refused}");
    let named = row(&server, id).await.exceeded;
    assert!(
        named[0].contains("session 18446744073709551615"),
        "{named:?}"
    );
    // A start of today, at its last report.
    let whole = ReportDelta::whole(AgentSession(1_800_000_000_000), u64::MAX, all.clone());
    node.client.report(&whole).await.unwrap();
    assert!(row(&server, id).await.exceeded.is_empty());
    let next = ReportDelta::whole(AgentSession(1_800_000_000_001), 1, all);
    let answer = node.client.report(&next).await.unwrap();
    assert_eq!(answer, has(1_800_000_000_001, 1));
    server.stop().await;
}

/// An agent that goes on: told of a later start, it takes a number after that.
async fn report_as(session: &mut u64, node: &support::Joined) {
    let whole = ReportDelta::whole(
        AgentSession(*session),
        1,
        report(Generation::default(), Vec::new()),
    );
    let answer = node.client.report(&whole).await.unwrap();
    if answer.session.0 > *session {
        *session = answer.session.0 + 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn case_two_machines_with_one_data_folder_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (copied, node) = server.join_node().await;
    let (other, honest) = server.join_node().await;
    let (mut one, mut two) = (10, 20);
    for _ in 0..2 {
        // As often as an agent that crashes again and again.
        report_as(&mut one, &node).await;
        one += 1;
    }
    assert_eq!(row(&server, copied).await.warnings, [""; 0]);
    let named = eventually("the two are named", async || {
        report_as(&mut one, &node).await;
        report_as(&mut two, &node).await;
        honest
            .client
            .report_all(&report(Generation::default(), Vec::new()))
            .await
            .unwrap();
        row(&server, copied).await.warnings.pop()
    });
    let named = named.await;
    assert!(
        named.contains("two agents report as this node, from 127.0.0.1"),
        "{named}"
    );
    assert!(named.contains("node join --again"), "{named}");
    assert_eq!(row(&server, other).await.warnings, [""; 0]);
    server.stop().await;
}
