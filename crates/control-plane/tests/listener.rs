//! The listener under strangers, and the connections of members.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use api_client::ApiClient;
use model::Generation;
use support::{PATIENCE, ReportsAll as _, Server, eventually, report};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

/// A connection from `127.0.1.HOST`.
async fn stranger(host: u8, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(SocketAddr::from(([127, 0, 1, host], 0)))
        .unwrap();
    socket.connect(to).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn case_thousands_of_idle_strangers_lock_out_neither_nodes_nor_users() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (id, node) = server.join_node().await;
    let address = server.ready.address;
    let mut idle = Vec::new();
    for n in 0..4096_u32 {
        let mut stream = stranger((n % 40) as u8 + 1, address).await;
        if n % 2 == 0 {
            // Half of a greeting of TLS.
            let _ = stream.write_all(&[0x16, 3, 1, 2]).await;
        }
        idle.push(stream);
        if n % 512 == 511 {
            let all = report(Generation::default(), Vec::new());
            let answered = timeout(PATIENCE, node.client.report_all(&all)).await;
            answered.unwrap().unwrap();
            // A new connection each: a user at the command line, and a machine that joins.
            let user = ApiClient::user(&server.config).unwrap();
            timeout(PATIENCE, user.nodes()).await.unwrap().unwrap();
        }
    }
    let (second, joined) = timeout(PATIENCE, server.join_node()).await.unwrap();
    assert_ne!(second, id);
    let all = report(Generation::default(), Vec::new());
    joined.client.report_all(&all).await.unwrap();
    // Those of before were closed, and one from where nobody waits has its time.
    let mut byte = [0];
    let first = timeout(PATIENCE, idle[0].read(&mut byte)).await.unwrap();
    assert!(!matches!(first, Ok(1..)));
    let mut newcomer = stranger(50, address).await;
    let waits = timeout(Duration::from_millis(200), newcomer.read(&mut byte)).await;
    assert!(waits.is_err(), "{waits:?}");
    server.stop().await;
}

#[tokio::test]
async fn case_one_address_has_more_members_than_strangers() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let mut members = Vec::new();
    // More than an address may have strangers; each keeps its connection.
    for _ in 0..80 {
        let (_, node) = timeout(PATIENCE, server.join_node()).await.unwrap();
        let all = report(Generation::default(), Vec::new());
        node.client.report_all(&all).await.unwrap();
        members.push(node);
    }
    for node in &members {
        let all = report(Generation::default(), Vec::new());
        node.client.report_all(&all).await.unwrap();
    }
    server.stop().await;
}

#[tokio::test]
async fn strangers_that_were_closed_for_others_are_counted_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _guard) = support::Log::start();
    let server = Server::start(folder.path()).await;
    let address = server.ready.address;
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(stranger(1, address).await);
    }
    let mut closed = 0;
    for stream in &mut idle[..100] {
        let mut byte = [0];
        closed += usize::from(timeout(PATIENCE, stream.read(&mut byte)).await.is_ok());
    }
    assert_eq!(closed, 100);
    server.stop().await;
    let lines = log.lines("connections were turned away");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("strangers=136"), "{lines:?}");
}

/// Between a client and a server: counts connections, and can fall silent.
struct Middle {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    silent: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Middle {
    async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::<AtomicUsize>::default();
        let silent = Arc::<AtomicBool>::default();
        let (counted, falls_silent) = (Arc::clone(&connections), Arc::clone(&silent));
        let task = tokio::spawn(async move {
            loop {
                let (mut from, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                let silent = Arc::clone(&falls_silent);
                tokio::spawn(async move {
                    let mut to = TcpStream::connect(to).await.unwrap();
                    let falls_silent = async {
                        while !silent.load(Ordering::SeqCst) {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    };
                    tokio::select! {
                        _ = copy_bidirectional(&mut from, &mut to) => return,
                        () = falls_silent => {}
                    }
                    // As a machine that was cut off: nothing comes, and nothing ends.
                    std::future::pending::<()>().await;
                });
            }
        });
        Self {
            address,
            connections,
            silent,
            task,
        }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_carries_a_members_polls_and_reports() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (_, joined) = server.join_node().await;
    let middle = Middle::start(server.ready.address).await;
    let client = ApiClient::member(
        &format!("https://{}", middle.address),
        &joined.response.ca_pem,
        &joined.response.certificate_pem,
        &joined.key_pem,
    )
    .unwrap();
    let all = report(Generation::default(), Vec::new());
    client.report_all(&all).await.unwrap();
    let desired = client
        .desired(Generation::default(), PATIENCE)
        .await
        .unwrap();
    let after = desired.map_or(Generation::default(), |desired| desired.generation);
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..30 {
        let (client, all) = (client.clone(), all.clone());
        calls.spawn(async move {
            let wait = Duration::from_secs(2);
            match n % 3 {
                0 => drop(client.desired(after, wait).await.unwrap()),
                1 => drop(client.streams(wait).await.unwrap()),
                _ => drop(client.report_all(&all).await.unwrap()),
            }
        });
    }
    calls.join_all().await;
    assert_eq!(middle.connections(), 1);
    middle.task.abort();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_falls_silent_is_left_for_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (_, joined) = server.join_node().await;
    let first = Middle::start(server.ready.address).await;
    let second = Middle::start(server.ready.address).await;
    let client = ApiClient::member(
        &format!("https://{},https://{}", first.address, second.address),
        &joined.response.ca_pem,
        &joined.response.certificate_pem,
        &joined.key_pem,
    )
    .unwrap();
    let all = report(Generation::default(), Vec::new());
    client.report_all(&all).await.unwrap();
    assert_eq!((first.connections(), second.connections()), (1, 0));
    first.silent.store(true, Ordering::SeqCst);
    let began = Instant::now();
    // A long poll that would wait for much longer.
    let failed = client.streams(Duration::from_secs(25)).await;
    assert!(failed.is_err());
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    client.report_all(&all).await.unwrap();
    assert_eq!(second.connections(), 1);
    for middle in [first, second] {
        middle.task.abort();
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_whose_connection_is_turned_away_asks_again() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = server.config.clone();
    config.server = format!("https://{}", front.local_addr().unwrap());
    let behind = server.ready.address;
    let turned_away = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&turned_away);
    let serving = tokio::spawn(async move {
        loop {
            let (mut from, _) = front.accept().await.unwrap();
            if count.fetch_add(1, Ordering::Relaxed) < 2 {
                continue;
            }
            let mut to = TcpStream::connect(behind).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut from, &mut to).await });
        }
    });
    let user = ApiClient::user(&config).unwrap();
    assert!(user.nodes().await.unwrap().is_empty());
    assert_eq!(turned_away.load(Ordering::Relaxed), 3);
    serving.abort();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_connections_that_a_user_left_idle_keep_no_other_with_the_token_out() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    // More than one user may have.
    let mut idle = Vec::new();
    for n in 0..600 {
        let user = ApiClient::user(&server.config).unwrap();
        // The others have to be idle for a second before one of them gives way.
        eventually(&format!("an answer on connection {n}"), async || {
            user.nodes().await.ok()
        })
        .await;
        idle.push(user);
    }
    // Each of them asks again, on a connection that is there or on another.
    for user in idle.iter().take(100) {
        let nodes = eventually("an answer", async || user.nodes().await.ok()).await;
        assert!(nodes.is_empty());
    }
    server.stop().await;
}
