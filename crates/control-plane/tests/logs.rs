//! Log lines from nodes to a user, and the end of both.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::convert::Infallible;
use std::time::Duration;

use api::node::{LogLine, LogsWanted, StreamRequest, StreamWanted};
use api::user::LogsQuery;
use api_client::{ApiClient, LogStream};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use guest_protocol::Stream;
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
        .report(&report(Generation(1), Vec::new()))
        .await
        .unwrap();
    let key = env_key("hello", "prod");
    let digest = registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello@{digest}", registry.host);
    server.deploy(&key, &manifest("hello"), &image).await;
    let desired = eventually("two instances", async || {
        let newer = node
            .client
            .desired(Generation(0), Duration::ZERO)
            .await
            .unwrap();
        newer.filter(|desired| desired.instances.len() == 2)
    })
    .await;
    let ids: Vec<_> = desired.instances.iter().map(|spec| spec.id).collect();
    let running = ids.iter().map(|id| running(*id)).collect();
    node.client
        .report(&report(desired.generation, running))
        .await
        .unwrap();
    (key, node, ids)
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
