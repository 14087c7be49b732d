//! Log lines from nodes to a user, and the end of both.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::convert::Infallible;
use std::time::Duration;

use api::node::{
    AgentSession, InstanceReport, LogLine, LogsWanted, ReportDelta, StreamRequest, StreamWanted,
};
use api::paths;
use api::protocol::{OLDEST_PROTOCOL_VERSION, PROTOCOL_HEADER};
use api::user::{LogsQuery, MAX_LOG_TEXT_BYTES, ScaleRequest};
use api_client::{ApiClient, LogStream};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use guest_protocol::Stream;
use model::instance::{ExitEvent, InstanceState};
use model::{EnvKey, Generation, InstanceId, Timestamp};
use support::registry::Registry;
use support::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

fn line(instance: InstanceId, text: &str) -> Bytes {
    let line = LogLine {
        instance,
        process: "web".parse().unwrap(),
        at: Timestamp(1),
        stream: Stream::Stdout,
        text: text.to_owned(),
        partial: false,
    };
    let mut json = serde_json::to_vec(&line).unwrap();
    json.push(b'\n');
    json.into()
}

async fn next(lines: &mut LogStream) -> Option<String> {
    let next = tokio::time::timeout(PATIENCE, lines.next()).await.unwrap();
    next.map(|line| line.unwrap().text)
}

/// The one stream of logs that the node is asked for.
async fn asked(node: &ApiClient) -> (String, LogsWanted) {
    let mut requests = node.streams(PATIENCE).await.unwrap();
    assert_eq!(requests.len(), 1);
    let StreamRequest { stream, wanted } = requests.remove(0);
    match wanted {
        StreamWanted::Logs(wanted) => (stream, wanted),
        other => panic!("not logs: {other:?}"),
    }
}

/// An env with two instances on one node, which says that they run.
async fn two_instances(server: &Server, registry: &Registry) -> (EnvKey, Joined, Vec<InstanceId>) {
    let (_, node) = server.join_node().await;
    node.client
        .report_all(&report(
            Generation {
                counter: 1,
                ..Generation::default()
            },
            Vec::new(),
        ))
        .await
        .unwrap();
    let key = env_key("hello", "prod");
    let digest = registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello@{digest}", registry.host);
    server.deploy(&key, &manifest("hello"), &image).await;
    let desired = eventually("two instances", async || {
        let newer = node
            .client
            .desired(Generation::default(), Duration::ZERO)
            .await
            .unwrap();
        newer.filter(|desired| desired.instances.len() == 2)
    })
    .await;
    let ids: Vec<_> = desired.instances.iter().map(|spec| spec.id).collect();
    let running = ids.iter().map(|id| running(*id)).collect();
    node.client
        .report_all(&report(desired.generation, running))
        .await
        .unwrap();
    (key, node, ids)
}

/// `-n 0` leaves out the past: all that an instance says which comes later is news.
#[tokio::test(flavor = "multi_thread")]
async fn who_follows_without_the_past_gets_the_first_lines_of_what_comes_later() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (key, node, ids) = two_instances(&server, &registry).await;
    let query = LogsQuery {
        follow: true,
        tail: Some(0),
        ..LogsQuery::default()
    };
    let reader = server.user.logs(&key, &query).await.unwrap();
    let (stream, wanted) = asked(&node.client).await;
    assert_eq!((wanted.instances.len(), wanted.tail), (2, 0));
    let client = node.client.clone();
    let sending = tokio::spawn(async move {
        let silent = futures_util::stream::pending::<Result<Bytes, Infallible>>();
        client.open_stream(&stream, silent).await
    });
    let web = "web".parse().unwrap();
    let scale = ScaleRequest {
        processes: [(web, 3)].into(),
    };
    server.user.scale(&key, &scale).await.unwrap();
    let (_, wanted) = asked(&node.client).await;
    assert_eq!(wanted.instances.len(), 1);
    assert!(!ids.contains(&wanted.instances[0]));
    assert_eq!((wanted.tail, wanted.since), (10_000, None));
    drop(reader);
    sending.abort();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_come_through_and_the_reader_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (key, node, ids) = two_instances(&server, &registry).await;

    let query = LogsQuery {
        follow: true,
        tail: Some(5),
        ..LogsQuery::default()
    };
    let mut reader = server.user.logs(&key, &query).await.unwrap();
    let (stream, wanted) = asked(&node.client).await;
    let mut instances = wanted.instances.clone();
    instances.sort();
    let mut all = ids.clone();
    all.sort();
    assert_eq!(instances, all);
    assert!(wanted.follow && wanted.tail == 5);

    let (sender, body) = mpsc::channel::<Result<Bytes, Infallible>>(4);
    let sending = {
        let client = node.client.clone();
        let body = ReceiverStream::new(body);
        tokio::spawn(async move { client.open_stream(&stream, body).await })
    };
    // A line may come in any pieces.
    let whole = line(ids[0], "one");
    sender.send(Ok(whole.slice(..10))).await.unwrap();
    sender.send(Ok(whole.slice(10..))).await.unwrap();
    assert_eq!(next(&mut reader).await.as_deref(), Some("one"));
    sender.send(Ok(line(ids[1], "two"))).await.unwrap();
    assert_eq!(next(&mut reader).await.as_deref(), Some("two"));

    // The node's agent is killed and comes back: the reader goes on where it was.
    sending.abort();
    drop(sender);
    let (stream, wanted) = asked(&node.client).await;
    assert_eq!(wanted.since, Some(Timestamp(2)), "after the last line");
    let (sender, body) = mpsc::channel::<Result<Bytes, Infallible>>(4);
    let sending = {
        let client = node.client.clone();
        let body = ReceiverStream::new(body);
        tokio::spawn(async move { client.open_stream(&stream, body).await })
    };
    sender.send(Ok(line(ids[1], "three"))).await.unwrap();
    assert_eq!(next(&mut reader).await.as_deref(), Some("three"));

    drop(reader);
    tokio::time::timeout(PATIENCE, sending)
        .await
        .expect("the node was not told that the reader left")
        .unwrap()
        .unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_follow_it_ends_when_the_nodes_have_said_all() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (key, node, ids) = two_instances(&server, &registry).await;
    let query = LogsQuery {
        instance: Some(ids[1]),
        ..LogsQuery::default()
    };
    let mut reader = server.user.logs(&key, &query).await.unwrap();
    let (stream, wanted) = asked(&node.client).await;
    assert_eq!(wanted.instances, [ids[1]]);
    let body = stream::iter([Ok::<_, Infallible>(line(ids[1], "all"))]);
    node.client.open_stream(&stream, body).await.unwrap();
    assert_eq!(next(&mut reader).await.as_deref(), Some("all"));
    assert_eq!(next(&mut reader).await, None);

    // A stream is opened once, by the node it was asked of.
    let again = stream::iter([Ok::<_, Infallible>(line(ids[1], "more"))]);
    let refused = node.client.open_stream(&stream, again).await;
    assert_eq!(refused.unwrap_err().code(), Some("stream_not_found"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_cannot_speak_for_instances_it_was_not_asked_about() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (key, node, ids) = two_instances(&server, &registry).await;
    let (_, other) = server.join_node().await;
    let query = LogsQuery {
        instance: Some(ids[0]),
        ..LogsQuery::default()
    };
    let mut reader = server.user.logs(&key, &query).await.unwrap();
    let (stream, _) = asked(&node.client).await;
    let steal = stream::iter([Ok::<_, Infallible>(line(ids[0], "stolen"))]);
    let refused = other.client.open_stream(&stream, steal).await;
    assert_eq!(refused.unwrap_err().code(), Some("stream_not_found"));

    let lie = stream::iter([Ok::<_, Infallible>(line(ids[1], "of another"))]);
    let refused = node.client.open_stream(&stream, lie).await;
    assert_eq!(refused.unwrap_err().code(), Some("bad_request"));
    assert_eq!(next(&mut reader).await, None);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reader_is_told_of_a_node_that_does_not_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (key, _node, _) = two_instances(&server, &registry).await;
    let mut reader = server.user.logs(&key, &LogsQuery::default()).await.unwrap();
    for _ in 0..2 {
        let text = next(&mut reader).await.unwrap();
        assert!(text.contains("its log lines are missing"), "{text}");
    }
    assert_eq!(next(&mut reader).await, None);
    server.stop().await;
}

/// Ends the instance of this env that is to stop, as its node does; gives its id.
async fn end_one(server: &Server, node: &Joined) -> InstanceId {
    let desired = eventually("a stop", async || {
        let state = node.client.desired(Generation::default(), Duration::ZERO);
        state
            .await
            .unwrap()
            .filter(|desired| desired.stop.len() == 1)
    })
    .await;
    let gone = desired.stop[0];
    let stopped = InstanceReport {
        state: InstanceState::Stopped,
        last_exit: Some(ExitEvent {
            exit_code: 7,
            signal: None,
            oom_killed: false,
            requested_stop: true,
            at: Timestamp(2),
        }),
        ..running(gone)
    };
    let rest = desired.instances.iter().map(|spec| running(spec.id));
    let reports = rest.chain([stopped]).collect();
    let said = report(desired.generation, reports);
    node.client.report_all(&said).await.unwrap();
    eventually("the record of the ended instance", async || {
        let ended = server.user.ended_instances().await.unwrap();
        ended.iter().any(|row| row.id == gone).then_some(())
    })
    .await;
    gone
}

/// What the node is asked for next; it sends this line.
async fn sends(node: &ApiClient, instance: InstanceId, text: &str) -> LogsWanted {
    let (stream, wanted) = asked(node).await;
    let body = stream::iter([Ok::<_, Infallible>(line(instance, text))]);
    node.open_stream(&stream, body).await.unwrap();
    wanted
}

#[tokio::test(flavor = "multi_thread")]
async fn case_the_log_of_an_ended_instance_can_be_read_and_says_how_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (key, node, ids) = two_instances(&server, &registry).await;
    let scale = |count| ScaleRequest {
        processes: [("web".parse().unwrap(), count)].into(),
    };
    server.user.scale(&key, &scale(1)).await.unwrap();
    let gone = end_one(&server, &node).await;
    let stays = ids.into_iter().find(|id| *id != gone).unwrap();
    let how = "gone (v1 on box): exit code 7; more than the 1 wanted";

    // By its id.
    let query = LogsQuery {
        instance: Some(gone),
        follow: true,
        ..LogsQuery::default()
    };
    let mut reader = server.user.logs(&key, &query).await.unwrap();
    let wanted = sends(&node.client, gone, "why").await;
    assert_eq!((wanted.instances, wanted.follow), (vec![gone], false));
    assert_eq!(next(&mut reader).await.as_deref(), Some("why"));
    assert_eq!(next(&mut reader).await.as_deref(), Some(how));
    assert_eq!(next(&mut reader).await, None, "nothing more can come");

    // With the others of its process type, in the order of time.
    let mut reader = server.user.logs(&key, &LogsQuery::default()).await.unwrap();
    let (stream, mut wanted) = asked(&node.client).await;
    let mut both = [gone, stays];
    both.sort();
    wanted.instances.sort();
    assert_eq!(wanted.instances, both);
    let lines = [line(gone, "why"), line(stays, "here")];
    let body = stream::iter(lines.map(Ok::<_, Infallible>));
    node.client.open_stream(&stream, body).await.unwrap();
    for text in ["why", "here", how] {
        assert_eq!(next(&mut reader).await.as_deref(), Some(text));
    }
    assert_eq!(next(&mut reader).await, None);

    // A reader who follows an instance is told when it ends.
    let query = LogsQuery {
        instance: Some(stays),
        follow: true,
        ..LogsQuery::default()
    };
    let mut reader = server.user.logs(&key, &query).await.unwrap();
    let (stream, _) = asked(&node.client).await;
    let (sender, body) = mpsc::channel::<Result<Bytes, Infallible>>(4);
    let sending = {
        let client = node.client.clone();
        let body = ReceiverStream::new(body);
        tokio::spawn(async move { client.open_stream(&stream, body).await })
    };
    sender.send(Ok(line(stays, "last"))).await.unwrap();
    assert_eq!(next(&mut reader).await.as_deref(), Some("last"));
    server.user.destroy(&key).await.unwrap();
    assert_eq!(end_one(&server, &node).await, stays);
    let how = "gone (v1 on box): exit code 7; its env is destroyed";
    assert_eq!(next(&mut reader).await.as_deref(), Some(how));
    assert_eq!(next(&mut reader).await, None);
    drop(sender);
    sending.await.unwrap().unwrap();

    // Its env is gone by now; a node that keeps no lines of it any more costs the reader nothing.
    eventually("the env to be gone", async || {
        server.user.envs().await.unwrap().is_empty().then_some(())
    })
    .await;
    let query = LogsQuery {
        instance: Some(stays),
        ..LogsQuery::default()
    };
    let mut reader = server.user.logs(&key, &query).await.unwrap();
    let (stream, _) = asked(&node.client).await;
    let nothing = stream::empty::<Result<Bytes, Infallible>>();
    node.client.open_stream(&stream, nothing).await.unwrap();
    assert_eq!(next(&mut reader).await.as_deref(), Some(how));
    let text = next(&mut reader).await.unwrap();
    assert_eq!(text, "n1 keeps no lines of it any more");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_a_reader_of_logs_is_told_what_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (key, _node, ids) = two_instances(&server, &registry).await;
    let refused = async |key: &EnvKey, query: LogsQuery| {
        let error = server.user.logs(key, &query).await.unwrap_err();
        (error.code().unwrap().to_owned(), error.to_string())
    };
    let of_process = |name: &str| LogsQuery {
        process: Some(name.parse().unwrap()),
        ..LogsQuery::default()
    };
    let (code, text) = refused(&key, of_process("typo")).await;
    assert_eq!(code, "process_not_found");
    assert_eq!(text, "hello/prod has no process type typo; there are: web");

    let other = env_key("other", "prod");
    let manifest = manifest("other");
    let digest = registry.push("other", "amd64", "one").await;
    let image = format!("{}/other@{digest}", registry.host);
    server.deploy(&other, &manifest, &image).await;
    let of_instance = |id| LogsQuery {
        instance: Some(id),
        ..LogsQuery::default()
    };
    let (code, text) = refused(&other, of_instance(ids[0])).await;
    assert_eq!(code, "instance_not_found");
    assert_eq!(
        text,
        format!("instance {} is one of web in hello/prod", ids[0])
    );
    let (code, text) = refused(&key, of_instance(InstanceId(1))).await;
    assert_eq!(code, "instance_not_found");
    let expected = "hello/prod has no instance 00000001, nor one that ended within 7 days";
    assert_eq!(text, expected);
    let (code, _) = refused(&env_key("nope", "prod"), LogsQuery::default()).await;
    assert_eq!(code, "env_not_found");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_a_reader_who_follows_learns_that_there_may_be_more_when_the_server_stops() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (key, _node, _) = two_instances(&server, &registry).await;
    let query = LogsQuery {
        follow: true,
        tail: Some(0),
        ..LogsQuery::default()
    };
    let mut reader = server.user.logs(&key, &query).await.unwrap();
    server.stop().await;
    let error = loop {
        let next = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap();
        if let Err(error) = next.expect("it is not the end") {
            break error;
        }
    };
    assert!(error.is_transient(), "{error}");
    let text = error.to_string();
    assert!(!text.contains("close_notify"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_reader_chooses_the_node_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (key, node, ids) = two_instances(&server, &registry).await;
    let query = LogsQuery {
        since: Some(Timestamp(1)),
        until: Some(Timestamp(u64::MAX)),
        text: Some("GET /".to_owned()),
        ..LogsQuery::default()
    };
    let mut reader = server.user.logs(&key, &query).await.unwrap();
    let wanted = sends(&node.client, ids[0], "GET /a").await;
    assert_eq!((wanted.since, wanted.until), (query.since, query.until));
    assert_eq!(wanted.text, query.text);
    assert_eq!(next(&mut reader).await.as_deref(), Some("GET /a"));
    assert_eq!(next(&mut reader).await, None);

    // Before there was any instance.
    let early = LogsQuery {
        until: Some(Timestamp(1)),
        ..LogsQuery::default()
    };
    let mut nothing = server.user.logs(&key, &early).await.unwrap();
    assert_eq!(next(&mut nothing).await, None);
    let endless = LogsQuery {
        follow: true,
        ..query.clone()
    };
    let empty = LogsQuery {
        text: Some(String::new()),
        ..query.clone()
    };
    let long = LogsQuery {
        text: Some("x".repeat(MAX_LOG_TEXT_BYTES + 1)),
        ..query.clone()
    };
    let backwards = LogsQuery {
        since: Some(Timestamp(2)),
        until: Some(Timestamp(1)),
        ..query.clone()
    };
    for wrong in [endless, empty, long, backwards] {
        let error = server.user.logs(&key, &wrong).await.unwrap_err();
        assert_eq!(error.code(), Some("bad_request"), "{wrong:?}");
    }

    // An agent of before would send lines that nobody asked for: it is not asked.
    let whole = ReportDelta::whole(
        AgentSession(99),
        1,
        report(
            Generation::default(),
            ids.iter().map(|id| running(*id)).collect(),
        ),
    );
    let response = plain(&server.config.ca_pem, Some(&node))
        .post(format!("{}{}", server.ready.url, paths::NODE_REPORT))
        .header(PROTOCOL_HEADER, OLDEST_PROTOCOL_VERSION)
        .json(&whole)
        .send()
        .await
        .unwrap();
    assert!(response.status().is_success(), "{response:?}");
    let mut reader = server.user.logs(&key, &query).await.unwrap();
    for _ in &ids {
        let text = next(&mut reader).await.unwrap();
        assert!(text.contains("n1: its agent is too old"), "{text}");
    }
    assert_eq!(next(&mut reader).await, None);
    server.stop().await;
}
