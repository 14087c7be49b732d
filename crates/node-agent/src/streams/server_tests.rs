//! Streams through a real server: readers of logs who stay take no place of a command or a call.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::time::Duration;

use api::enrollment::{EnrollRole, Hardware};
use api::forward::{ForwardFailure, ForwardFailureKind, ForwardFrame};
use api::node::{AgentSession, DriverChoice, InstanceReport, NodeReport, ReportDelta};
use api::user::{CreateTokenRequest, DeployRequest, ExecQuery, LogsQuery};
use api_client::{ApiClient, ClientConfig, carry};
use control_plane::ServerOptions;
use membership::{Applicant, Membership, UnderlayOptions};
use model::instance::InstanceState;
use model::{EnvKey, EnvNetwork, Generation};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::directory::Guest;
use crate::guest_calls::GuestCalls;
use crate::images::tests::Served;
use crate::logs::InstanceLog;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);
/// Followers of one instance: as many as one user may be.
const FOLLOWERS: usize = 32;
const MANIFEST: &str = "app = \"hello\"\n[processes.web]\n[processes.web.scaling]\nmin = 1\n";

/// A node's client, the user's, and an instance of the node, reported as running.
async fn cluster(
    dir: &std::path::Path,
    shutdown: CancellationToken,
) -> (ApiClient, ApiClient, EnvKey, InstanceId) {
    let (ready, answers) = oneshot::channel();
    let options = ServerOptions {
        listen: "127.0.0.1:0".parse().unwrap(),
        store: None,
        data_dir: dir.join("server"),
        names: Vec::new(),
        advertise: None,
        insecure_registries: BTreeSet::new(),
        registry_mirrors: BTreeMap::new(),
        metrics_listen: None,
        acme_dns_hook: None,
        ready: Some(ready),
    };
    tokio::spawn(control_plane::run(options, shutdown));
    let ready = answers.await.unwrap();
    let user = ApiClient::user(&ClientConfig::load(&ready.client_config).unwrap()).unwrap();
    let request = CreateTokenRequest::new(EnrollRole::Node, 60);
    let hardware = Hardware {
        arch: "amd64".to_owned(),
        cpus: 1,
        memory_bytes: 4 << 30,
        ..Hardware::default()
    };
    let applicant = Applicant {
        role: EnrollRole::Node,
        server: Some(ready.url),
        token: Some(user.create_token(&request).await.unwrap().token),
        name: "node-1".to_owned(),
        region: "local".to_owned(),
        hardware: hardware.clone(),
        // Not the usual port: a cluster of this machine may have it.
        underlay: UnderlayOptions {
            port: 40_006,
            advertise: None,
        },
    };
    let joined = Membership::load_or_join(&dir.join("node"), &applicant).await;
    let node = joined.unwrap().client().unwrap();
    let report = |sequence, generation, instances| {
        let report = NodeReport {
            generation,
            driver: DriverChoice {
                name: "test".to_owned(),
                reason: "a test".to_owned(),
            },
            egress: None,
            hardware: hardware.clone(),
            instances,
            volumes: Vec::new(),
            highest_network: EnvNetwork::default(),
            images: Vec::new(),
        };
        ReportDelta::whole(AgentSession(1), sequence, report)
    };
    node.report(&report(1, Generation::default(), Vec::new()))
        .await
        .unwrap();
    let key = EnvKey {
        app: "hello".parse().unwrap(),
        env: "prod".parse().unwrap(),
    };
    let served = Served::start(1, 1000);
    let request = DeployRequest {
        only: std::collections::BTreeSet::new(),
        manifest: MANIFEST.to_owned(),
        image: served.images[0].to_string(),
    };
    user.deploy(&key, &request).await.unwrap();
    let mut after = Generation::default();
    let desired = loop {
        let newer = timeout(PATIENCE, node.desired(after, PATIENCE)).await;
        let desired = newer.unwrap().unwrap().unwrap();
        after = desired.generation;
        if !desired.instances.is_empty() {
            break desired;
        }
    };
    let id = desired.instances[0].id;
    let state = InstanceState::Running {
        ready: true,
        started_at: None,
    };
    let running = InstanceReport::new(id, state);
    node.report(&report(2, after, vec![running.clone()]))
        .await
        .unwrap();
    // The node goes on to say that it is there.
    let client = node.clone();
    let last = report(3, after, vec![running]);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let _ = client.report(&last).await;
        }
    });
    (node, user, key, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn case_followers_of_logs_hold_up_no_command_and_no_call() {
    let dir = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let (node, user, key, id) = cluster(dir.path(), shutdown.clone()).await;
    let logs = StreamLogs::new(Directory::default(), EndedLogs::in_data_dir(dir.path()));
    let log = Arc::new(InstanceLog::open(&dir.path().join("log")).unwrap());
    logs.directory.add(id, "web".parse().unwrap(), log.clone());
    log.note(Timestamp(1), "first").unwrap();
    let _streams = AbortOnDropHandle::new(tokio::spawn(serve(node, logs)));

    let query = LogsQuery {
        follow: true,
        tail: Some(1),
        ..LogsQuery::default()
    };
    let mut readers = Vec::new();
    for _ in 0..FOLLOWERS {
        let mut reader = user.logs(&key, &query).await.unwrap();
        let first = timeout(PATIENCE, reader.next()).await.unwrap();
        assert_eq!(first.unwrap().unwrap().text, "first");
        readers.push(reader);
    }

    // The guest is not there, and the node says so: it was asked, and it answered.
    let rows = timeout(PATIENCE, user.stats(Some(&key.app), Some(&key.env)))
        .await
        .unwrap()
        .unwrap();
    let reason = rows[0].reason.clone().unwrap_or_default();
    assert!(
        reason.contains("does not run at the moment"),
        "top: {reason}"
    );
    let query = ExecQuery {
        command: vec!["true".to_owned()],
        rows: None,
        columns: None,
        terminal_type: None,
    };
    let opened = timeout(PATIENCE, user.exec(id, &query)).await.unwrap();
    assert!(opened.is_ok(), "exec: {:?}", opened.err());

    // And they all hear what comes.
    log.note(Timestamp(2), "second").unwrap();
    for reader in &mut readers {
        let second = timeout(PATIENCE, reader.next()).await.unwrap();
        assert_eq!(second.unwrap().unwrap().text, "second");
    }
    shutdown.cancel();
}

#[test]
fn a_kind_of_stream_has_places_of_its_own_and_names_its_bound() {
    let places = Places::new();
    let logs = StreamWanted::Logs(LogsWanted {
        instances: Vec::new(),
        tail: 0,
        since: None,
        until: None,
        text: None,
        follow: true,
        previous: false,
    });
    let held: Vec<_> = (0..MAX_LOG_STREAMS)
        .map(|_| places.take(&logs).unwrap())
        .collect();
    let refused = places.take(&logs).unwrap_err();
    assert_eq!(
        refused.reason,
        "this node has 128 readers of logs at this moment, and takes no more"
    );
    assert_eq!(refused.kind, RefusalKind::Busy, "it takes one later");
    let stats = StreamWanted::Stats {
        instances: Vec::new(),
    };
    drop(places.take(&stats).unwrap());
    drop(held);
    drop(places.take(&logs).unwrap());
}

/// Connections at a time.
const CONNECTIONS: usize = 50;

/// A TCP server that answers with what it got, backwards, once its client has ended its direction: half-closed.
async fn backwards() -> u16 {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                connection.read_to_end(&mut bytes).await.unwrap();
                if bytes == b"reset" {
                    connection.set_zero_linger().unwrap();
                    return;
                }
                bytes.reverse();
                connection.write_all(&bytes).await.unwrap();
            });
        }
    });
    port
}

/// A connection that leads to the port, as `platform forward` has it.
async fn forwarded(
    user: &ApiClient,
    id: InstanceId,
    port: u16,
) -> Result<tokio::net::TcpStream, ForwardFailure> {
    let listener = tokio::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let dialled = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
    let (accepted, dialled) = tokio::join!(listener.accept(), dialled);
    let mut stream = user.forward(id, port).await.unwrap();
    match timeout(PATIENCE, stream.reader.next())
        .await
        .unwrap()
        .unwrap()
    {
        Some(ForwardFrame::Opened) => {}
        Some(ForwardFrame::Failed(failure)) => return Err(failure),
        other => panic!("{other:?}"),
    }
    tokio::spawn(carry(
        accepted.unwrap().0,
        stream,
        std::future::pending(),
        || (),
    ));
    Ok(dialled.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_connections_are_forwarded_at_once_and_each_direction_ends_by_itself() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let dir = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let (node, user, _, id) = cluster(dir.path(), shutdown.clone()).await;
    let logs = StreamLogs::new(Directory::default(), EndedLogs::in_data_dir(dir.path()));
    let log = Arc::new(InstanceLog::open(&dir.path().join("log")).unwrap());
    logs.directory.add(id, "web".parse().unwrap(), log);
    let directory = logs.directory.clone();
    let _streams = AbortOnDropHandle::new(tokio::spawn(serve(node, logs)));
    let port = backwards().await;

    // It has no VM.
    let refused = forwarded(&user, id, port).await.unwrap_err();
    assert_eq!(refused.kind, ForwardFailureKind::InstanceGone);
    assert!(refused.reason.contains("does not run at the moment"));

    let (calls, _queue) = GuestCalls::new(0);
    calls.set_running(true);
    let guest = Guest {
        calls: calls.clone(),
        address: Ipv6Addr::LOCALHOST,
    };
    directory.set_guest(id, Some(guest));
    // More than all buffers on the way hold.
    let big: Vec<u8> = (0..4_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut open = JoinSet::new();
    for number in 0..CONNECTIONS {
        let (user, mut bytes) = (user.clone(), big.clone());
        bytes.truncate(if number == 0 {
            big.len()
        } else {
            10_000 + number
        });
        open.spawn(async move {
            let mut connection = forwarded(&user, id, port).await.unwrap();
            let (mut receives, mut sends) = connection.split();
            let send = async {
                sends.write_all(&bytes).await.unwrap();
                sends.shutdown().await.unwrap();
            };
            let mut answer = Vec::new();
            let receive = receives.read_to_end(&mut answer);
            let ((), received) = tokio::join!(send, receive);
            received.unwrap();
            answer.reverse();
            assert!(answer == bytes, "connection {number}");
        });
    }
    while let Some(ended) = timeout(PATIENCE, open.join_next()).await.unwrap() {
        ended.unwrap();
    }

    // A reset is a reset, not an end.
    let mut connection = forwarded(&user, id, port).await.unwrap();
    connection.write_all(b"reset").await.unwrap();
    connection.shutdown().await.unwrap();
    let error = connection.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    // A port that is closed is named.
    let unused = tokio::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let closed = unused.local_addr().unwrap().port();
    drop(unused);
    let refused = forwarded(&user, id, closed).await.unwrap_err();
    assert_eq!(refused.kind, ForwardFailureKind::PortClosed);
    assert!(
        refused
            .reason
            .contains(&format!("port {closed} of instance {id}")),
        "{refused}"
    );

    // The app ends: nobody in the VM would end the connection.
    let mut connection = forwarded(&user, id, port).await.unwrap();
    calls.set_running(false);
    let error = timeout(PATIENCE, connection.read_to_end(&mut Vec::new()))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    shutdown.cancel();
}
