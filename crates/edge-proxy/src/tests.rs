//! The edge as its clients and backends see it: real sockets on loopback, bytes as they travel.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::edge::{Backend, Route, RouteTable};
use model::instance::ProxyProtocol;
use model::{Generation, InstanceId};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::forward::Edge;
use crate::trusted::TrustedProxies;
use crate::{EdgeOptions, listener};

mod balance;
mod clients;
mod corpus;
mod handed_over;
mod http2;
mod limits;
mod messages;
mod slow;

/// Nothing here takes this long.
const SOON: Duration = Duration::from_secs(10);

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work)
        .await
        .expect("it takes too long")
}

/// An edge that routes `a.test` to these backends.
struct TestEdge {
    edge: Arc<Edge>,
    address: SocketAddr,
    shutdown: CancellationToken,
    served: JoinHandle<()>,
}

impl TestEdge {
    async fn start(backends: &[SocketAddr]) -> Self {
        Self::with_proxy_protocol(backends, None).await
    }

    async fn with_proxy_protocol(backends: &[SocketAddr], proxy: Option<ProxyProtocol>) -> Self {
        Self::of(Edge::default(), backends, proxy).await
    }

    /// One that trusts proxies of these networks.
    async fn trusting(backends: &[SocketAddr], networks: &[&str]) -> Self {
        let networks = networks.iter().map(|network| network.parse().unwrap());
        let edge = Edge {
            trusted_proxies: TrustedProxies::new(networks.collect()),
            ..Edge::default()
        };
        Self::of(edge, backends, None).await
    }

    async fn of(edge: Edge, backends: &[SocketAddr], proxy: Option<ProxyProtocol>) -> Self {
        Self::with_table(edge, table(1, backends, proxy)).await
    }

    /// One that treats what comes as the settings of its route say.
    async fn with_settings(backends: &[SocketAddr], settings: model::RouteSettings) -> Self {
        Self::with_table(Edge::default(), table_with(1, backends, settings)).await
    }

    async fn with_table(edge: Edge, table: RouteTable) -> Self {
        let edge = Arc::new(edge);
        edge.routes.take(&table);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(listener::serve(
            Arc::clone(&edge),
            listener,
            shutdown.clone(),
        ));
        Self {
            edge,
            address,
            shutdown,
            served,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes, and reads until the edge closes.
    async fn exchange(&self, request: &str) -> String {
        soon(async {
            let mut stream = self.connect().await;
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            String::from_utf8_lossy(&answer).into_owned()
        })
        .await
    }

    async fn get(&self, host: &str) -> String {
        self.exchange(&format!(
            "GET /x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        ))
        .await
    }
}

fn table_with(
    generation: u64,
    backends: &[SocketAddr],
    settings: model::RouteSettings,
) -> RouteTable {
    let mut table = table(generation, backends, None);
    for route in table.routes.values_mut() {
        route.settings = settings.clone();
    }
    table
}

fn table(generation: u64, backends: &[SocketAddr], proxy: Option<ProxyProtocol>) -> RouteTable {
    let backends = backends.iter().map(|address| Backend {
        instance: InstanceId(u32::from(address.port())),
        address: *address,
    });
    let route = Route {
        env: serde_json::from_value(serde_json::json!({ "app": "a", "env": "prod" })).unwrap(),
        process: "web".parse().unwrap(),
        proxy_protocol: proxy,
        protocol: api::edge::AppProtocol::default(),
        settings: model::RouteSettings::default(),
        backends: backends.collect(),
    };
    RouteTable {
        generation: Generation {
            counter: generation,
            ..Generation::default()
        },
        routes: BTreeMap::from([("a.test".to_owned(), route)]),
        ..RouteTable::default()
    }
}

/// A backend that treats each connection as told.
async fn backend<F, Fut>(treat: F) -> SocketAddr
where
    F: Fn(BufReader<TcpStream>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(treat(BufReader::new(stream)));
        }
    });
    address
}

/// A request's head, line by line; empty when the connection ended.
async fn head(stream: &mut BufReader<TcpStream>) -> String {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return String::new();
        }
        if line == "\r\n" {
            return head;
        }
        head.push_str(&line);
    }
}

async fn answer(stream: &mut BufReader<TcpStream>, body: &str) {
    let text = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await.unwrap();
}

/// A backend that answers every request with a text.
async fn replies_with(text: &'static str) -> SocketAddr {
    backend(move |mut stream| async move {
        while !head(&mut stream).await.is_empty() {
            answer(&mut stream, text).await;
        }
    })
    .await
}

/// An address where nobody listens.
#[allow(clippy::unused_async, reason = "as the other addresses are made")]
async fn nobody() -> SocketAddr {
    // Bound, and not listening: no other test is given the port meanwhile.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    std::mem::forget(socket);
    address
}

#[tokio::test]
async fn ready_instances_answer_in_turn() {
    let edge = TestEdge::start(&[replies_with("one").await, replies_with("two").await]).await;
    let mut seen = String::new();
    for _ in 0..4 {
        let answer = edge.get("A.test:8080").await;
        seen.push_str(answer.rsplit("\r\n").next().unwrap());
        seen.push(' ');
    }
    assert_eq!(seen, "one two one two ");
}

#[tokio::test]
async fn one_client_connection_serves_many_requests() {
    let edge = TestEdge::start(&[replies_with("one").await, replies_with("two").await]).await;
    let mut stream = BufReader::new(edge.connect().await);
    for expected in ["one", "two", "one"] {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            .await
            .unwrap();
        assert!(soon(head(&mut stream)).await.starts_with("HTTP/1.1 200 OK"));
        let mut body = [0; 3];
        soon(stream.read_exact(&mut body)).await.unwrap();
        assert_eq!(body, expected.as_bytes());
    }
}

#[tokio::test]
async fn an_idle_connection_is_used_again_and_its_end_does_no_harm() {
    let connections = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&connections);
    // Each connection answers twice, then is closed without a word, as servers do.
    let address = backend(move |mut stream| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            for _ in 0..2 {
                if head(&mut stream).await.is_empty() {
                    return;
                }
                answer(&mut stream, "ok").await;
            }
        }
    })
    .await;
    let edge = TestEdge::start(&[address]).await;
    for _ in 0..10 {
        assert!(edge.get("a.test").await.ends_with("ok"));
    }
    let connections = connections.load(Ordering::SeqCst);
    assert!(
        (5..10).contains(&connections),
        "{connections} connections for 10 requests"
    );
}

#[tokio::test]
async fn a_request_that_no_instance_can_serve_gets_an_error_status() {
    let edge = TestEdge::start(&[]).await;
    let answer = edge.get("b.test").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert!(answer.contains("no app answers for `b.test`"), "{answer}");
    let answer = edge.get("a.test").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(
        answer.contains("503: the app is not available at the moment"),
        "{answer}"
    );
    let answer = edge
        .exchange("GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let answer = edge
        .exchange("CONNECT a.test:80 HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
}

#[tokio::test]
async fn an_absolute_uri_names_the_host_and_the_backend_sees_a_path() {
    let address = backend(|mut stream| async move {
        let head = head(&mut stream).await;
        answer(&mut stream, &head).await;
    })
    .await;
    let edge = TestEdge::start(&[address]).await;
    let answer = edge
        .exchange(
            "GET http://a.test/p?q=1 HTTP/1.1\r\nHost: b.test\r\nX-Forwarded-For: 6.6.6.6\r\n\
             Connection: close\r\n\r\n",
        )
        .await;
    assert!(answer.contains("GET /p?q=1 HTTP/1.1\r\n"), "{answer}");
    assert!(answer.contains("\r\nHost: a.test\r\n"), "{answer}");
    assert!(
        answer.contains("X-Forwarded-For: 127.0.0.1\r\n"),
        "{answer}"
    );
    assert!(!answer.contains("6.6.6.6"), "{answer}");
}

#[tokio::test]
async fn an_instance_that_cannot_be_reached_is_passed_over() {
    let edge = TestEdge::start(&[nobody().await, replies_with("here").await]).await;
    for _ in 0..4 {
        assert!(edge.get("a.test").await.ends_with("here"));
    }
    // Also with a body: nothing of it was read when the connection failed.
    let answer = edge
        .exchange(
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
        )
        .await;
    assert!(answer.ends_with("here"), "{answer}");
}

/// What is logged on this thread, while the guard lives.
pub(crate) fn logged() -> (Arc<Mutex<Vec<u8>>>, tracing::subscriber::DefaultGuard) {
    #[derive(Clone)]
    struct Written(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let text = Arc::new(Mutex::new(Vec::new()));
    let written = Written(text.clone());
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || written.clone())
        .finish();
    (text, tracing::subscriber::set_default(subscriber))
}

#[tokio::test]
async fn case_the_public_learns_nothing_of_the_inside_and_the_log_has_the_cause() {
    let (log, _guard) = logged();
    let address = nobody().await;
    let cause = format!("could not connect to {address}: Connection refused");
    for (backends, status, cause) in [
        (vec![address], "502", cause.as_str()),
        (vec![], "503", "no instance is ready"),
    ] {
        let edge = TestEdge::start(&backends).await;
        let answer = edge.get("a.test").await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        let address = address.to_string();
        for inside in [address.as_str(), "a/prod", "web", "platform", "`"] {
            assert!(!answer.contains(inside), "{inside}: {answer}");
        }
        let id = answer.rsplit("Request id: ").next().unwrap().trim();
        assert_eq!(id.len(), 16, "{answer}");
        assert!(
            answer.contains(&format!("X-Request-Id: {id}\r\n")),
            "{answer}"
        );
        let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        let line = log.lines().find(|line| line.contains(id)).unwrap();
        for detail in ["WARN", "host=\"a.test\"", "a/prod", "web", cause] {
            assert!(line.contains(detail), "{detail}: {line}");
        }
    }
}

/// A backend that reads a request and the first byte of its body, then hangs up.
async fn hangs_up(requests: Arc<AtomicU32>) -> SocketAddr {
    backend(move |mut stream| {
        let requests = Arc::clone(&requests);
        async move {
            let head = head(&mut stream).await;
            if !head.is_empty() {
                requests.fetch_add(1, Ordering::SeqCst);
            }
            if head.starts_with("POST") {
                let _ = stream.read_u8().await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_request_is_sent_again_only_where_that_is_harmless() {
    let requests = Arc::new(AtomicU32::new(0));
    let backends = [
        hangs_up(Arc::clone(&requests)).await,
        replies_with("second").await,
    ];
    let edge = TestEdge::start(&backends).await;
    // Safe: another instance gets it.
    assert!(edge.get("a.test").await.ends_with("second"));
    assert_eq!(requests.swap(0, Ordering::SeqCst), 1);
    // Not safe: the first instance may have acted on it.
    edge.get("a.test").await; // The other one's turn.
    let post =
        "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
    let mut answers = [edge.exchange(post).await, edge.exchange(post).await];
    answers.sort();
    assert!(answers[0].ends_with("second"), "{}", answers[0]);
    assert!(answers[1].starts_with("HTTP/1.1 502 "), "{}", answers[1]);
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    // Echoes each piece of a chunked body as soon as it came.
    let address = backend(|mut stream| async move {
        assert!(
            head(&mut stream)
                .await
                .contains("Transfer-Encoding: chunked")
        );
        let start = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(start.as_bytes()).await.unwrap();
        let mut line = String::new();
        while stream.read_line(&mut line).await.unwrap_or(0) > 0 {
            stream.write_all(line.as_bytes()).await.unwrap();
            line.clear();
        }
    })
    .await;
    let edge = TestEdge::start(&[address]).await;
    let mut stream = BufReader::new(edge.connect().await);
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await
        .unwrap();
    assert!(soon(head(&mut stream)).await.starts_with("HTTP/1.1 200"));
    for _ in 0..3 {
        stream.write_all(b"5\r\nping\n\r\n").await.unwrap();
        let mut piece = [0; 10];
        soon(stream.read_exact(&mut piece)).await.unwrap();
        assert_eq!(&piece, b"5\r\nping\n\r\n");
    }
}

#[tokio::test]
async fn a_large_body_passes_whole() {
    const BYTES: usize = 20 << 20;
    let address = backend(|mut stream| async move {
        head(&mut stream).await;
        let mut body = vec![0; BYTES];
        stream.read_exact(&mut body).await.unwrap();
        let start = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n");
        stream.write_all(start.as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
    })
    .await;
    let edge = TestEdge::start(&[address]).await;
    let (mut read, mut write) = edge.connect().await.into_split();
    let body: Vec<u8> = (0..BYTES)
        .map(|i| ((i * 31) >> 3).to_le_bytes()[0])
        .collect();
    let sent = body.clone();
    let sending = tokio::spawn(async move {
        let start = format!(
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {BYTES}\r\nConnection: close\r\n\r\n"
        );
        write.write_all(start.as_bytes()).await.unwrap();
        write.write_all(&sent).await.unwrap();
        write
    });
    let mut answer = Vec::new();
    soon(read.read_to_end(&mut answer)).await.unwrap();
    sending.await.unwrap();
    assert!(answer.ends_with(&body));
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel() {
    let address = backend(|mut stream| async move {
        let head = head(&mut stream).await;
        assert!(head.contains("Upgrade: websocket"), "{head}");
        let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                      Upgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n";
        stream.write_all(switch.as_bytes()).await.unwrap();
        let mut byte = [0];
        while stream.read_exact(&mut byte).await.is_ok() {
            stream.write_all(&byte.map(|b| b + 1)).await.unwrap();
        }
    })
    .await;
    let edge = TestEdge::start(&[address]).await;
    let mut stream = BufReader::new(edge.connect().await);
    stream
        .write_all(
            b"GET /chat HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        )
        .await
        .unwrap();
    let head = soon(head(&mut stream)).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("Sec-WebSocket-Accept: x"), "{head}");
    for byte in [1, 5, 200] {
        stream.write_u8(byte).await.unwrap();
        assert_eq!(soon(stream.read_u8()).await.unwrap(), byte + 1);
    }
    // A tunnel that goes on does not hold a shutdown for ever.
    edge.shutdown.cancel();
    soon(edge.served).await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn proxy_protocol_opens_a_connection_that_names_the_client() {
    let address = backend(|mut stream| async move {
        let mut header = [0; 28];
        stream.read_exact(&mut header).await.unwrap();
        assert_eq!(&header[..16], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
        let port = u16::from_be_bytes([header[24], header[25]]);
        head(&mut stream).await;
        answer(&mut stream, &format!("client port {port}")).await;
        // Never used for another client.
        assert!(head(&mut stream).await.is_empty());
    })
    .await;
    let edge = TestEdge::with_proxy_protocol(&[address], Some(ProxyProtocol::V2)).await;
    for _ in 0..2 {
        let mut stream = edge.connect().await;
        let port = stream.local_addr().unwrap().port();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        soon(stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.ends_with(&format!("client port {port}")), "{answer}");
    }
}

/// A backend whose answer comes when it is told to.
async fn waits_for(go: CancellationToken) -> SocketAddr {
    backend(move |mut stream| {
        let go = go.clone();
        async move {
            head(&mut stream).await;
            let start = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegun";
            stream.write_all(start.as_bytes()).await.unwrap();
            go.cancelled().await;
            stream.write_all(b"done").await.unwrap();
        }
    })
    .await
}

/// A request whose answer has begun.
async fn begun(edge: &TestEdge) -> BufReader<TcpStream> {
    let mut stream = BufReader::new(edge.connect().await);
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    soon(head(&mut stream)).await;
    let mut body = [0; 5];
    soon(stream.read_exact(&mut body)).await.unwrap();
    stream
}

#[tokio::test]
async fn new_routes_leave_requests_in_flight_alone() {
    let go = CancellationToken::new();
    let edge = TestEdge::start(&[waits_for(go.clone()).await]).await;
    let mut in_flight = begun(&edge).await;
    let other = replies_with("other").await;
    edge.edge.routes.take(&table(2, &[other], None));
    edge.edge
        .backends
        .keep_only(|address| edge.edge.routes.leads_to(address));
    assert!(edge.get("a.test").await.ends_with("other"));
    go.cancel();
    let mut rest = String::new();
    soon(in_flight.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "done");
}

#[tokio::test]
async fn a_shutdown_lets_requests_finish_and_takes_no_new_ones() {
    let go = CancellationToken::new();
    let edge = TestEdge::start(&[waits_for(go.clone()).await]).await;
    let mut in_flight = begun(&edge).await;
    edge.shutdown.cancel();
    soon(async {
        while TcpStream::connect(edge.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    go.cancel();
    let mut rest = String::new();
    soon(in_flight.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "done");
    soon(edge.served).await.unwrap();
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let edge = TestEdge::start(&[replies_with("never").await]).await;
    let large = "x".repeat(crate::limits::MAX_HEAD_BYTES);
    let request = format!("GET / HTTP/1.1\r\nHost: a.test\r\nX: {large}\r\n\r\n");
    let answer = edge.exchange(&request).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test]
async fn an_edge_serves_from_its_saved_table_while_the_server_is_offline() {
    let dir = tempfile::tempdir().unwrap();
    let table = table(7, &[replies_with("kept").await], None);
    state_file::write(
        &dir.path().join("routes.json"),
        &crate::kept_routes::RoutesFile(table.clone()),
    )
    .unwrap();
    let listen = nobody().await;
    let shutdown = CancellationToken::new();
    let options = EdgeOptions {
        data_dir: dir.path().to_owned(),
        listen,
        listen_tls: None,
        https_port: None,
        server: Some(format!("https://{}", nobody().await)),
        // Enrolling is tried again and again, and serving goes on.
        token: Some(
            identity::EnrollmentToken::generate([0; 32], None)
                .unwrap()
                .to_string(),
        ),
        name: "edge".to_owned(),
        region: "home".to_owned(),
        metrics_listen: None,
        tcp_ports: crate::PortRanges::default(),
        // Not the usual port: a cluster of this machine may have it.
        underlay: membership::UnderlayOptions {
            port: 40_012,
            advertise: None,
        },
        trusted_proxies: Vec::new(),
        access_log: None,
        error_pages: None,
    };
    let running = tokio::spawn(crate::run(options, shutdown.clone()));
    let answer = soon(async {
        loop {
            let Ok(mut stream) = TcpStream::connect(listen).await else {
                tokio::task::yield_now().await;
                continue;
            };
            stream
                .write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
                .await
                .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            return answer;
        }
    })
    .await;
    assert!(answer.ends_with("kept"), "{answer}");
    shutdown.cancel();
    soon(running).await.unwrap().unwrap();
}

#[test]
fn routes_that_cannot_be_read_are_set_aside() {
    let edge = crate::forward::Edge::default();
    for content in [r#"{"version": 99, "tables": []}"#, "{", ""] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("routes.json");
        std::fs::write(&file, content).unwrap();
        crate::follow::take_kept(&edge, dir.path()).unwrap();
        assert!(!file.exists());
        let aside = std::fs::read_to_string(dir.path().join("routes.json.unreadable"));
        assert_eq!(aside.unwrap(), content);
    }
}

#[tokio::test]
async fn an_edge_that_can_never_join_says_what_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let options = EdgeOptions {
        data_dir: dir.path().to_owned(),
        listen: nobody().await,
        listen_tls: None,
        https_port: None,
        server: None,
        token: None,
        name: "edge".to_owned(),
        region: "home".to_owned(),
        metrics_listen: None,
        tcp_ports: crate::PortRanges::default(),
        // Not the usual port: a cluster of this machine may have it.
        underlay: membership::UnderlayOptions {
            port: 40_013,
            advertise: None,
        },
        trusted_proxies: Vec::new(),
        access_log: None,
        error_pages: None,
    };
    let error = soon(Box::pin(crate::run(options, CancellationToken::new())))
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "this edge cannot join the cluster");
    assert!(
        error
            .hint()
            .unwrap()
            .contains("platform tokens create --role edge")
    );
}
