//! Commands, signals and stats: from a user, through the server, to a node, and back.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use api::exec::UserFrame;
use api::forward::ForwardFrame;
use api::node::{ExecWanted, InstanceStats, SignalAnswer};
use api::node::{RefusalKind, StreamRefused, StreamRequest, StreamWanted};
use api::user::{ExecQuery, ScaleRequest, SetSecretsRequest, SignalRequest};
use api_client::ApiClient;
use guest_protocol::{GuestFrame, GuestStats, Stream};
use model::instance::ExitEvent;
use model::{Generation, InstanceId, Timestamp};
use sqlx::{Connection as _, SqliteConnection};
use support::registry::Registry;
use support::*;

/// A server, and a node with two instances that run.
async fn running_env(folder: &std::path::Path) -> (Server, Registry, Joined, Vec<InstanceId>) {
    let (server, registry) = (Server::start(folder).await, Registry::start().await);
    let (_, node) = server.join_node().await;
    let nothing = report(
        Generation {
            counter: 1,
            ..Generation::default()
        },
        Vec::new(),
    );
    node.client.report_all(&nothing).await.unwrap();
    let digest = registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello@{digest}", registry.host);
    server
        .deploy(&env_key("hello", "prod"), &manifest("hello"), &image)
        .await;
    let desired = eventually("two instances", async || {
        let newer = node
            .client
            .desired(Generation::default(), PATIENCE)
            .await
            .unwrap();
        newer.filter(|desired| desired.instances.len() == 2)
    })
    .await;
    let ids: Vec<_> = desired.instances.iter().map(|spec| spec.id).collect();
    let all = ids.iter().map(|id| running(*id)).collect();
    node.client
        .report_all(&report(desired.generation, all))
        .await
        .unwrap();
    (server, registry, node, ids)
}

async fn asked(node: &ApiClient) -> StreamRequest {
    let mut requests = node.streams(PATIENCE).await.unwrap();
    assert_eq!(requests.len(), 1);
    requests.remove(0)
}

fn shell() -> ExecQuery {
    ExecQuery {
        command: ["sh", "-c", "cat; exit 7"].map(str::to_owned).to_vec(),
        rows: Some(24),
        columns: Some(80),
        terminal_type: Some("screen-256color".to_owned()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_talks_both_ways_and_its_end_arrives() {
    let folder = tempfile::tempdir().unwrap();
    let (server, _registry, node, ids) = running_env(folder.path()).await;
    let query = shell();
    let (mut user, mut at_node) = tokio::join!(
        async { server.user.exec(ids[0], &query).await.unwrap() },
        async {
            let StreamRequest { stream, wanted } = asked(&node.client).await;
            let expected = ExecWanted {
                instance: ids[0],
                command: shell().command,
                terminal: Some((24, 80)),
                terminal_type: Some("screen-256color".to_owned()),
            };
            assert_eq!(wanted, StreamWanted::Exec(expected));
            node.client.open_exec(&stream).await.unwrap()
        }
    );
    // Much at once, so that nothing on the way can hold it all.
    let big = vec![b'x'; 200_000];
    let input = UserFrame::input(big.clone());
    let (sent, received) = tokio::join!(user.writer.send(&input), at_node.reader.next());
    sent.unwrap();
    assert_eq!(received.unwrap(), Some(input));
    user.writer.send(&UserFrame::resize(30, 100)).await.unwrap();
    let resize = at_node.reader.next().await.unwrap();
    assert_eq!(resize, Some(UserFrame::resize(30, 100)));

    let output = GuestFrame::ExecOutput {
        stream: Stream::Stdout,
        bytes: big,
    };
    let (sent, received) = tokio::join!(at_node.writer.send(&output), user.reader.next());
    sent.unwrap();
    assert_eq!(received.unwrap(), Some(output));
    // The user goes on typing past the end: it arrives all the same.
    user.writer
        .send(&UserFrame::input(b"late".to_vec()))
        .await
        .unwrap();
    let end = GuestFrame::ExecExited(ExitEvent {
        exit_code: 7,
        signal: None,
        oom_killed: false,
        requested_stop: false,
        at: Timestamp(1),
    });
    at_node.writer.send(&end).await.unwrap();
    let hanging_up = tokio::spawn(at_node.hang_up());
    assert_eq!(user.reader.next().await.unwrap(), Some(end));
    assert_eq!(user.reader.next().await.unwrap(), None);
    drop(user);
    hanging_up.await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_stream_ends_when_either_end_closes_it() {
    let folder = tempfile::tempdir().unwrap();
    let (server, _registry, node, ids) = running_env(folder.path()).await;
    let query = shell();
    let open = async || {
        tokio::join!(
            async { server.user.exec(ids[0], &query).await.unwrap() },
            async {
                let request = asked(&node.client).await;
                node.client.open_exec(&request.stream).await.unwrap()
            }
        )
    };
    let (user, mut at_node) = open().await;
    drop(user);
    let received = tokio::time::timeout(PATIENCE, at_node.reader.next()).await;
    assert!(matches!(received.unwrap(), Ok(None) | Err(_)));
    // An agent that is killed.
    let (mut user, at_node) = open().await;
    drop(at_node);
    let received = tokio::time::timeout(PATIENCE, user.reader.next()).await;
    assert_eq!(received.unwrap().unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_cannot_run_is_refused_with_the_cause() {
    let folder = tempfile::tempdir().unwrap();
    let (server, _registry, node, ids) = running_env(folder.path()).await;
    let code = async |id, query: &ExecQuery| {
        let refused = server.user.exec(id, query).await.unwrap_err();
        refused.code().map(str::to_owned).unwrap()
    };
    assert_eq!(code(InstanceId(1), &shell()).await, "instance_not_found");
    let mut nothing = shell();
    nothing.command.clear();
    assert_eq!(code(ids[0], &nothing).await, "bad_request");
    let mut long = shell();
    long.command.push("x".repeat(20_000));
    assert_eq!(code(ids[0], &long).await, "bad_request");
    let mut strange = shell();
    strange.terminal_type = Some("a b".to_owned());
    assert_eq!(code(ids[0], &strange).await, "bad_request");
    // A node's certificate runs nothing, and a stream that was not asked for is not opened.
    let refused = node.client.exec(ids[0], &shell()).await.unwrap_err();
    assert_eq!(refused.code(), Some("forbidden"));
    let refused = node.client.open_exec("0123456789abcdef").await.unwrap_err();
    assert_eq!(refused.code(), Some("stream_not_found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_and_stats_are_asked_of_the_node() {
    let folder = tempfile::tempdir().unwrap();
    let (server, _registry, node, ids) = running_env(folder.path()).await;
    let send = async |signal: &str, refused: Option<&str>| {
        let request = SignalRequest {
            signal: signal.to_owned(),
        };
        let answer = SignalAnswer {
            refused: refused.map(str::to_owned),
        };
        let (sent, ()) = tokio::join!(server.user.signal(ids[1], &request), async {
            let StreamRequest { stream, wanted } = asked(&node.client).await;
            let expected = StreamWanted::Signal {
                instance: ids[1],
                signal: "SIGHUP".to_owned(),
            };
            assert_eq!(wanted, expected, "by its one name");
            node.client.answer_stream(&stream, &answer).await.unwrap();
        });
        sent.map_err(|error| error.to_string())
    };
    assert_eq!(send("hup", None).await, Ok(()));
    let refused = send("1", Some("it does not run")).await;
    assert_eq!(refused, Err("it does not run".to_owned()));
    let nonsense = SignalRequest {
        signal: "SIGNOPE".to_owned(),
    };
    let refused = server.user.signal(ids[1], &nonsense).await.unwrap_err();
    assert_eq!(refused.code(), Some("not_a_signal"));

    // A node that is older than the server does not know every call.
    let request = SignalRequest {
        signal: "HUP".to_owned(),
    };
    let (sent, ()) = tokio::join!(server.user.signal(ids[1], &request), async {
        let StreamRequest { stream, .. } = asked(&node.client).await;
        let reason = "this node does not know signals".to_owned();
        let kind = RefusalKind::Unsupported;
        let refused = StreamRefused { reason, kind };
        node.client.refuse_stream(&stream, &refused).await.unwrap();
    });
    let refused = sent.unwrap_err();
    assert_eq!(refused.code(), Some("node_unsupported"));
    assert!(refused.to_string().contains("does not know signals"));

    // One that has no room has some later.
    let (sent, ()) = tokio::join!(server.user.signal(ids[1], &request), async {
        let StreamRequest { stream, .. } = asked(&node.client).await;
        let reason = "this node has 32 calls at this moment, and takes no more".to_owned();
        let kind = RefusalKind::Busy;
        let refused = StreamRefused { reason, kind };
        node.client.refuse_stream(&stream, &refused).await.unwrap();
    });
    let refused = sent.unwrap_err();
    assert_eq!(refused.code(), Some("node_busy"));
    assert_eq!(refused.retry_after(), Some(Duration::from_secs(5)));
    assert!(refused.to_string().contains("takes no more"));

    let (rows, ()) = tokio::join!(server.user.stats(None, None), async {
        let StreamRequest { stream, wanted } = asked(&node.client).await;
        let StreamWanted::Stats { instances } = wanted else {
            panic!("{wanted:?}");
        };
        assert_eq!(instances.len(), 2);
        let stats = |instance, memory_bytes| InstanceStats {
            instance,
            stats: Some(GuestStats {
                memory_bytes,
                ..GuestStats::default()
            }),
            reason: None,
        };
        let silent = InstanceStats {
            instance: ids[1],
            stats: None,
            reason: Some("silent".to_owned()),
        };
        // And one that it was not asked about.
        let answer = [stats(ids[0], 5), silent, stats(InstanceId(1), 6)];
        node.client.answer_stream(&stream, &answer).await.unwrap();
    });
    let rows = rows.unwrap();
    assert_eq!(rows.len(), 2);
    let of = |id| rows.iter().find(|row| row.id == id).unwrap();
    assert_eq!(of(ids[0]).stats.as_ref().unwrap().memory_bytes, 5);
    assert_eq!(of(ids[1]).reason.as_deref(), Some("silent"));
}

#[tokio::test(flavor = "multi_thread")]
async fn case_a_change_that_was_taken_back_while_it_waited_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let (server, _registry, _node, _) = running_env(folder.path()).await;
    let key = env_key("hello", "prod");
    let scale = |count| ScaleRequest {
        processes: [("web".parse().unwrap(), count)].into(),
    };
    // A backup holds the database: changes wait.
    let url = format!("sqlite:{}", folder.path().join("platform.db").display());
    let mut backup = SqliteConnection::connect(&url).await.unwrap();
    let begun = sqlx::query("BEGIN IMMEDIATE").execute(&mut backup).await;
    begun.unwrap();
    let four = scale(4);
    let scaling = server.user.scale(&key, &four);
    let taken_back = tokio::time::timeout(std::time::Duration::from_secs(1), scaling).await;
    assert!(taken_back.is_err(), "nothing waited");
    sqlx::query("ROLLBACK").execute(&mut backup).await.unwrap();
    backup.close().await.unwrap();
    // What comes now is made after everything that came before.
    let secrets = SetSecretsRequest {
        set: [("KEY".to_owned(), b"value".to_vec())].into(),
        unset: Vec::new(),
    };
    let set = server.user.set_secrets(&key, "later", &secrets);
    set.await.unwrap();
    let rows = server.user.envs().await.unwrap();
    assert_eq!(rows[0].processes[&"web".parse().unwrap()].0, 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_forwarded_to_the_node_of_the_instance_and_refusals_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (server, _registry, node, ids) = running_env(folder.path()).await;
    let (mut user, mut at_node) = tokio::join!(
        async { server.user.forward(ids[0], 5432).await.unwrap() },
        async {
            let StreamRequest { stream, wanted } = asked(&node.client).await;
            let expected = StreamWanted::Forward {
                instance: ids[0],
                port: 5432,
            };
            assert_eq!(wanted, expected);
            node.client.open_forward(&stream).await.unwrap()
        }
    );
    let frames = [
        ForwardFrame::Opened,
        ForwardFrame::Data(vec![b'x'; 200_000]),
        ForwardFrame::End,
    ];
    for frame in frames {
        let (sent, received) = tokio::join!(at_node.writer.send(&frame), user.reader.next());
        sent.unwrap();
        assert_eq!(received.unwrap(), Some(frame));
    }
    // The other direction goes on.
    let late = ForwardFrame::Data(b"late".to_vec());
    user.writer.send(&late).await.unwrap();
    assert_eq!(at_node.reader.next().await.unwrap(), Some(late));
    drop(user);
    let received = tokio::time::timeout(PATIENCE, at_node.reader.next()).await;
    assert!(matches!(received.unwrap(), Ok(None) | Err(_)));

    let code = async |id, port| {
        let refused = server.user.forward(id, port).await.unwrap_err();
        refused.code().map(str::to_owned).unwrap()
    };
    assert_eq!(code(InstanceId(1), 80).await, "instance_not_found");
    assert_eq!(code(ids[0], 0).await, "bad_request");
    let refused = node.client.forward(ids[0], 80).await.unwrap_err();
    assert_eq!(refused.code(), Some("forbidden"));
    server.stop().await;
}
