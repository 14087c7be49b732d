//! What a request costs the edge, beside Debian's haproxy, and over HTTP/2 beside Debian's nginx: the same backend, the same core, the same run. `make bench`
//! runs it; it needs haproxy, nginx and h2load (Debian's nghttp2-client), and two cores.
//!
//! TCP routes are measured beside haproxy's tcp mode, and TLS handshakes beside nginx.
//!
//! `bench` starts the proxies on core 0, one thread each, and asks them in turn from core 1, where the backend is too. A request's cost is the CPU time of
//! the proxy's process, of the kernel's statistics. Of `ROUNDS` rounds the median counts.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench tells its numbers, and fails by panicking"
)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs};

use bytes::Bytes;
use edge_proxy::EdgeOptions;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// As the `platform` binary has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 5;
const MEASURED: Duration = Duration::from_secs(3);
const CLIENTS: usize = 64;
/// Requests of h2load, its connections, and how many requests each has at once.
const HTTP2: (u32, u32, u32) = (60_000, 16, 8);
/// The most that the edge may cost, in what the other costs.
const GOALS: [(Kind, &str, f64); 8] = [
    (Kind::Kept, HAPROXY, 1.0),
    (Kind::New, HAPROXY, 1.2),
    (Kind::KeptTls, HAPROXY, 1.0),
    (Kind::Http2, NGINX, 1.0),
    (Kind::Handshake, NGINX, 0.9),
    (Kind::Tcp, HAPROXY, 1.1),
    (Kind::TcpNew, HAPROXY, 1.1),
    (Kind::TcpLarge, HAPROXY, 1.1),
];
/// Bytes of a large answer.
const LARGE: usize = 4 * 1024 * 1024;
const HAPROXY: &str = "haproxy";
const NGINX: &str = "nginx";
const HOST: &str = "bench.test";
/// Connections that are idle, from so many addresses each.
const IDLE: (usize, u8) = (1200, 8);
const IDLE_HTTP2: usize = 2000;
const IDLE_GOAL_BYTES: u64 = 12 * 1024;
const IDLE_HTTP2_GOAL_BYTES: u64 = 40 * 1024;
const RSS_GOAL_KIB: u64 = 25 * 1024;

/// As a browser writes it.
const REQUEST: &str = "GET /index.html?a=b HTTP/1.1\r\nHost: bench.test\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef\r\n";
const RESPONSE: &str = "HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Mon, 30 Nov 2026 08:00:00 GMT\r\n\
    Content-Type: text/plain\r\nContent-Length: 128\r\n\r\n";

/// Its answer is so many bytes, and nothing else.
const LARGE_REQUEST: &str = "GET /large HTTP/1.1\r\n\r\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Connections are kept.
    Kept,
    /// Each request has a connection of its own.
    New,
    /// Connections over TLS are kept.
    KeptTls,
    /// HTTP/2 over TLS, from h2load.
    Http2,
    /// Each request has a connection over TLS of its own, which resumes no session.
    Handshake,
    /// By a TCP route: connections are kept, and answers are short.
    Tcp,
    /// By a TCP route: each request has a connection of its own.
    TcpNew,
    /// By a TCP route: connections are kept, and answers are large.
    TcpLarge,
}

struct Proxy {
    name: &'static str,
    process: Child,
    address: SocketAddr,
    /// Where it speaks TLS.
    tls: SocketAddr,
    /// Where it passes on bytes; absent where that is not measured.
    tcp: Option<SocketAddr>,
}

/// The proxies' certificate, and a client that trusts it.
struct Tls {
    certificate: String,
    key: String,
    connector: TlsConnector,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What one round told.
struct Measured {
    micros_a_request: f64,
    requests_a_second: f64,
    /// Absent where h2load measured.
    p99_micros: Option<u32>,
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [role, folder, listen, tls] = &arguments[..]
        && role == "edge"
    {
        let (listen, tls) = (listen.parse().unwrap(), tls.parse().unwrap());
        return run_edge(PathBuf::from(folder), listen, tls);
    }
    pin("1", std::process::id());
    let limit = rustix::process::Resource::Nofile;
    let most = rustix::process::getrlimit(limit).maximum;
    let all = rustix::process::Rlimit {
        current: most,
        maximum: most,
    };
    rustix::process::setrlimit(limit, all).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(bench());
}

fn run_edge(data_dir: PathBuf, listen: SocketAddr, listen_tls: SocketAddr) {
    let options = EdgeOptions {
        data_dir,
        listen,
        // Nobody is there: it serves what it kept.
        server: Some("https://127.0.0.1:1".to_owned()),
        token: Some(
            identity::EnrollmentToken::generate([0; 32], None)
                .unwrap()
                .to_string(),
        ),
        name: "edge".to_owned(),
        region: "home".to_owned(),
        metrics_listen: None,
        listen_tls: Some(listen_tls),
        https_port: None,
        tcp_ports: "1-65535".parse().unwrap(),
        // A node of this machine may have the usual one.
        underlay: membership::UnderlayOptions {
            port: free_address().port(),
            advertise: None,
        },
        trusted_proxies: Vec::new(),
        access_log: None,
        error_pages: None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let shutdown = CancellationToken::new();
    runtime
        .block_on(edge_proxy::run(options, shutdown))
        .unwrap();
}

fn pin(core: &str, pid: u32) {
    let pid = pid.to_string();
    let pinned = Command::new("taskset")
        .args(["-a", "-c", "-p", core, &pid])
        .stdout(Stdio::null())
        .status();
    assert!(pinned.unwrap().success(), "taskset");
}

async fn bench() {
    let dir = tempfile::tempdir().unwrap();
    let backend = backend().await;
    let tls = tls();
    let mut proxies = [
        edge(dir.path(), backend, &tls),
        haproxy(dir.path(), backend, &tls),
        nginx(dir.path(), backend, &tls),
    ];
    for proxy in &mut proxies {
        for address in [Some(proxy.tls), proxy.tcp].into_iter().flatten() {
            while TcpStream::connect(address).await.is_err() {
                let ended = proxy.process.try_wait().unwrap();
                assert!(ended.is_none(), "{} ended: {ended:?}", proxy.name);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    let mut missed = Vec::new();
    for (kind, rival, goal) in GOALS {
        let mut rounds: [Vec<Measured>; 2] = [Vec::new(), Vec::new()];
        let both = proxies
            .iter()
            .filter(|proxy| proxy.name == "edge" || proxy.name == rival);
        let proxies: Vec<&Proxy> = both.collect();
        for _ in 0..ROUNDS {
            for (proxy, rounds) in proxies.iter().zip(&mut rounds) {
                rounds.push(measure(proxy, kind, &tls.connector).await);
            }
        }
        let medians = rounds.map(|mut rounds| {
            rounds.sort_by(|a, b| a.micros_a_request.total_cmp(&b.micros_a_request));
            rounds.swap_remove(ROUNDS / 2)
        });
        for (proxy, median) in proxies.iter().zip(&medians) {
            let p99 = median.p99_micros;
            println!(
                "{kind:?} {:8} {:6.2} us of CPU a request, {:7.0} requests/s{}",
                proxy.name,
                median.micros_a_request,
                median.requests_a_second,
                p99.map_or_else(String::new, |p99| format!(", p99 {p99} us")),
            );
        }
        let ratio = medians[0].micros_a_request / medians[1].micros_a_request;
        println!("{kind:?} edge / {rival}: {ratio:.2} (at most {goal})");
        if ratio > goal {
            missed.push(format!("{kind:?}: {ratio:.2}"));
        }
    }
    let before = rss_kib(&proxies[0]);
    let idle = idle_connections(proxies[0].address).await;
    // Until each connection has given up what it had for its request.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = rss_kib(&proxies[0]);
    let each = after.saturating_sub(before) * 1024 / idle.len() as u64;
    println!(
        "edge: {before} KiB RSS under load (at most {RSS_GOAL_KIB}), {each} bytes an idle connection of {} (at most {IDLE_GOAL_BYTES})",
        idle.len()
    );
    let before_http2 = rss_kib(&proxies[0]);
    let idle_http2 = idle_http2(&proxies[0], &tls.connector).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let grown = rss_kib(&proxies[0]).saturating_sub(before_http2);
    let each_http2 = grown * 1024 / idle_http2.len() as u64;
    println!(
        "edge: {each_http2} bytes an idle connection of HTTP/2 over TLS, of {} (at most {IDLE_HTTP2_GOAL_BYTES})",
        idle_http2.len()
    );
    if each > IDLE_GOAL_BYTES || each_http2 > IDLE_HTTP2_GOAL_BYTES || before > RSS_GOAL_KIB {
        missed.push(format!(
            "{before} KiB RSS, {each} and {each_http2} bytes an idle connection"
        ));
    }
    assert!(missed.is_empty(), "goals missed: {missed:?}");
}

fn tls() -> Tls {
    let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let mut roots = rustls::RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(certificate.as_bytes());
    roots.add(root.unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Tls {
        certificate,
        key,
        connector: TlsConnector::from(Arc::new(config)),
    }
}

fn edge(dir: &Path, backend: SocketAddr, certificate: &Tls) -> Proxy {
    let (data, address, tls) = (dir.join("edge"), free_address(), free_address());
    let tcp = free_address();
    fs::create_dir_all(data.join("certificates")).unwrap();
    let kept = serde_json::json!({
        "version": 1, "chain_pem": certificate.certificate, "key_pem": certificate.key,
    });
    let file = data.join("certificates/bench.json");
    fs::write(file, kept.to_string()).unwrap();
    let routes = format!(
        r#"{{"version": 1, "generation": 1, "routes": {{"bench.test": {{
            "env": {{"app": "bench", "env": "prod"}}, "process": "web", "settings": {{"http": "serve"}},
            "backends": [{{"instance": "00000001", "address": "{backend}"}}]}},
            "tcp:{}": {{
            "env": {{"app": "bench", "env": "prod"}}, "process": "web",
            "backends": [{{"instance": "00000001", "address": "{backend}"}}]}}}}}}"#,
        tcp.port()
    );
    fs::write(data.join("routes.json"), routes).unwrap();
    let program = env::current_exe().unwrap();
    let process = Command::new("taskset")
        .args(["-c", "0"])
        .arg(program)
        .arg("edge")
        .arg(&data)
        .args([address.to_string(), tls.to_string()])
        .spawn();
    Proxy {
        name: "edge",
        process: process.unwrap(),
        address,
        tls,
        tcp: Some(tcp),
    }
}

fn haproxy(dir: &Path, backend: SocketAddr, certificate: &Tls) -> Proxy {
    let (file, address, tls) = (dir.join("haproxy.cfg"), free_address(), free_address());
    let tcp = free_address();
    let pem = dir.join("haproxy.pem");
    let both = [certificate.certificate.as_str(), &certificate.key].concat();
    fs::write(&pem, both).unwrap();
    let pem = pem.display();
    let text = format!(
        "global\n  maxconn 4000\n  nbthread 1\n\
         defaults\n  mode http\n  option forwardfor\n  timeout connect 2s\n  timeout client 75s\n  timeout server 120s\n\
         frontend clients\n  bind {address}\n  bind {tls} ssl crt {pem} alpn http/1.1\n  use_backend apps if {{ hdr(host) bench.test }}\n\
         backend apps\n  server app {backend}\n\
         listen bytes\n  mode tcp\n  bind {tcp}\n  server app {backend}\n"
    );
    fs::write(&file, text).unwrap();
    let process = Command::new("taskset")
        .args(["-c", "0", "haproxy", "-db", "-f"])
        .arg(&file)
        .stdout(Stdio::null())
        .spawn();
    Proxy {
        name: HAPROXY,
        process: process.expect("haproxy is not installed: apt-get install haproxy"),
        address,
        tls,
        tcp: Some(tcp),
    }
}

/// With connections to the backend that are kept, and what the edge tells apps told, too.
fn nginx(dir: &Path, backend: SocketAddr, certificate: &Tls) -> Proxy {
    let (folder, address, tls) = (dir.join("nginx"), free_address(), free_address());
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("certificate.pem"), &certificate.certificate).unwrap();
    fs::write(folder.join("key.pem"), &certificate.key).unwrap();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|of| format!("  {of}_temp_path {of};\n"))
        .concat();
    let text = format!(
        "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n{temporary}  keepalive_requests 1000000;\n\
         upstream apps {{ server {backend}; keepalive 256; keepalive_requests 1000000; }}\n\
         server {{\n  listen {address};\n  listen {tls} ssl http2;\n  server_name {HOST};\n\
         ssl_certificate certificate.pem;\n  ssl_certificate_key key.pem;\n\
         location / {{\n  proxy_pass http://apps;\n  proxy_http_version 1.1;\n  proxy_set_header Connection \"\";\n\
         proxy_set_header Host $host;\n  proxy_set_header X-Forwarded-For $remote_addr;\n\
         proxy_set_header X-Forwarded-Proto $scheme;\n  proxy_set_header X-Real-IP $remote_addr;\n\
         proxy_set_header X-Request-Id $request_id;\n  }}\n  }}\n}}\n"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, text).unwrap();
    let process = Command::new("taskset")
        .args(["-c", "0", "nginx", "-p"])
        .arg(&folder)
        .arg("-c")
        .arg(&file)
        .stderr(Stdio::null())
        .spawn();
    Proxy {
        name: NGINX,
        process: process.expect("nginx is not installed: apt-get install nginx"),
        address,
        tls,
        tcp: None,
    }
}

fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// A backend that answers each request with the same bytes.
async fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = format!("{RESPONSE}{}", "x".repeat(128));
    let large: Arc<[u8]> = vec![b'x'; LARGE].into();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (answer, large) = (answer.clone(), Arc::clone(&large));
            stream.set_nodelay(true).unwrap();
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                let mut filled = 0;
                while let Ok(read @ 1..) = stream.read(&mut buffer[filled..]).await {
                    filled += read;
                    if buffer[..filled].ends_with(b"\r\n\r\n") {
                        let said = if buffer.starts_with(LARGE_REQUEST.as_bytes()) {
                            &large[..]
                        } else {
                            answer.as_bytes()
                        };
                        filled = 0;
                        if stream.write_all(said).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

/// Asks a proxy as h2load does.
async fn measure_http2(proxy: &Proxy) -> Measured {
    let (requests, connections, streams) = HTTP2;
    let before = cpu_nanos(proxy.process.id());
    let begun = Instant::now();
    let output = tokio::process::Command::new("taskset")
        .args(["-c", "1", "h2load", "-t", "1"])
        .args(["-n", &requests.to_string()])
        .args(["-c", &connections.to_string()])
        .args(["-m", &streams.to_string()])
        .arg(format!("--connect-to={}", proxy.tls))
        .args(
            REQUEST
                .split("\r\n")
                .skip(2)
                .filter(|line| !line.is_empty())
                .flat_map(|line| ["-H", line]),
        )
        .arg(format!("https://{HOST}/index.html?a=b"))
        .output()
        .await;
    let output = output.expect("h2load is not installed: apt-get install nghttp2-client");
    let took = begun.elapsed();
    let nanos = cpu_nanos(proxy.process.id()) - before;
    let text = String::from_utf8_lossy(&output.stdout);
    let all = format!("{requests} succeeded, 0 failed");
    let is_http2 = text.contains("Application protocol: h2");
    assert!(is_http2 && text.contains(&all), "{}: {text}", proxy.name);
    let requests = f64::from(requests);
    Measured {
        micros_a_request: Duration::from_nanos(nanos).as_secs_f64() * 1e6 / requests,
        requests_a_second: requests / took.as_secs_f64(),
        p99_micros: None,
    }
}

async fn measure(proxy: &Proxy, kind: Kind, connector: &TlsConnector) -> Measured {
    if kind == Kind::Http2 {
        return measure_http2(proxy).await;
    }
    let end = Instant::now() + MEASURED;
    let before = cpu_nanos(proxy.process.id());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| match kind {
            Kind::KeptTls => tokio::spawn(tls_client(proxy.tls, connector.clone(), end)),
            Kind::Handshake => tokio::spawn(handshakes(proxy.tls, connector.clone(), end)),
            Kind::Tcp | Kind::TcpNew | Kind::TcpLarge => {
                tokio::spawn(client(proxy.tcp.unwrap(), kind, end))
            }
            _ => tokio::spawn(client(proxy.address, kind, end)),
        })
        .collect();
    let mut took = Vec::new();
    for client in clients {
        took.extend(client.await.unwrap());
    }
    let nanos = cpu_nanos(proxy.process.id()) - before;
    let requests = f64::from(u32::try_from(took.len()).unwrap());
    took.sort_unstable();
    Measured {
        micros_a_request: Duration::from_nanos(nanos).as_secs_f64() * 1e6 / requests,
        requests_a_second: requests / MEASURED.as_secs_f64(),
        p99_micros: Some(took[took.len() * 99 / 100]),
    }
}

/// Asks until `end`; returns how long each answer took, in microseconds.
async fn client(address: SocketAddr, kind: Kind, end: Instant) -> Vec<u32> {
    let last = if kind == Kind::New {
        "Connection: close\r\n\r\n"
    } else {
        "\r\n"
    };
    let request = format!("{REQUEST}{last}");
    let mut took = Vec::new();
    let mut kept = None;
    while Instant::now() < end {
        let begun = Instant::now();
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => TcpStream::connect(address).await.unwrap(),
        };
        if kind == Kind::TcpLarge {
            ask_large(&mut stream).await;
        } else {
            ask(&mut stream, &request).await;
        }
        match kind {
            // The proxy closes first.
            Kind::New => assert_eq!(stream.read(&mut [0]).await.unwrap(), 0),
            Kind::TcpNew => {}
            _ => kept = Some(stream),
        }
        took.push(u32::try_from(begun.elapsed().as_micros()).unwrap());
    }
    took
}

/// [`client`] on one connection over TLS. The handshake is not measured of the client, and is a ten-thousandth of what is measured of the proxy.
async fn tls_client(address: SocketAddr, connector: TlsConnector, end: Instant) -> Vec<u32> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let host = ServerName::try_from(HOST).unwrap();
    let mut stream = connector.connect(host, stream).await.unwrap();
    let request = format!("{REQUEST}\r\n");
    let mut took = Vec::new();
    while Instant::now() < end {
        let begun = Instant::now();
        ask(&mut stream, &request).await;
        took.push(u32::try_from(begun.elapsed().as_micros()).unwrap());
    }
    took
}

/// As [`tls_client`], with a handshake for each request.
async fn handshakes(address: SocketAddr, connector: TlsConnector, end: Instant) -> Vec<u32> {
    let host = ServerName::try_from(HOST).unwrap();
    let request = format!("{REQUEST}Connection: close\r\n\r\n");
    let mut took = Vec::new();
    while Instant::now() < end {
        let begun = Instant::now();
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut stream = connector.connect(host.clone(), stream).await.unwrap();
        ask(&mut stream, &request).await;
        took.push(u32::try_from(begun.elapsed().as_micros()).unwrap());
    }
    took
}

async fn ask_large(stream: &mut TcpStream) {
    stream.write_all(LARGE_REQUEST.as_bytes()).await.unwrap();
    let mut buffer = vec![0; 256 * 1024];
    let mut left = LARGE;
    while left > 0 {
        let read = stream.read(&mut buffer).await.unwrap();
        assert!(read > 0, "the proxy closed the connection");
        left -= read;
    }
}

async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) {
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut buffer = [0; 4096];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).await.unwrap();
        assert!(read > 0, "the proxy closed the connection");
        filled += read;
        let head = buffer[..filled]
            .windows(4)
            .position(|end| end == b"\r\n\r\n");
        if head.is_some_and(|head| filled == head + 4 + 128) {
            assert!(buffer.starts_with(b"HTTP/1.1 200 "));
            return;
        }
    }
}

async fn idle_connections(address: SocketAddr) -> Vec<TcpStream> {
    let mut idle = Vec::new();
    let (each, addresses) = IDLE;
    for from in 1..=addresses {
        for _ in 0..each {
            let socket = TcpSocket::new_v4().unwrap();
            let from = IpAddr::from(Ipv4Addr::new(127, 0, 1, from));
            socket.bind(SocketAddr::new(from, 0)).unwrap();
            let mut stream = socket.connect(address).await.unwrap();
            ask(&mut stream, &format!("{REQUEST}\r\n")).await;
            idle.push(stream);
        }
    }
    idle
}

/// Connections of HTTP/2 over TLS that have had a request.
async fn idle_http2(
    proxy: &Proxy,
    connector: &TlsConnector,
) -> Vec<h2::client::SendRequest<Bytes>> {
    let mut config = rustls::ClientConfig::clone(connector.config());
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let mut idle = Vec::new();
    for at in 0..IDLE_HTTP2 {
        let socket = TcpSocket::new_v4().unwrap();
        // Others than those of HTTP/1.1: each has its share.
        let from = IpAddr::from(Ipv4Addr::new(127, 0, 2, 1 + u8::from(at % 2 == 0)));
        socket.bind(SocketAddr::new(from, 0)).unwrap();
        let stream = socket.connect(proxy.tls).await.unwrap();
        let host = ServerName::try_from(HOST).unwrap();
        let stream = connector.connect(host, stream).await.unwrap();
        let (mut requests, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::get(format!("https://{HOST}/index.html"));
        let request = request.body(()).unwrap();
        let (answer, _) = requests.send_request(request, true).unwrap();
        let mut body = answer.await.unwrap().into_body();
        while let Some(piece) = body.data().await {
            let length = piece.unwrap().len();
            body.flow_control().release_capacity(length).unwrap();
        }
        idle.push(requests);
    }
    idle
}

/// CPU time of all threads of a process.
fn cpu_nanos(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_thread = threads.map(|thread| {
        let text = fs::read_to_string(thread.unwrap().path().join("schedstat")).unwrap();
        let nanos = text.split_whitespace().next().unwrap();
        nanos.parse::<u64>().unwrap()
    });
    of_thread.sum()
}

fn rss_kib(proxy: &Proxy) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", proxy.process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse().unwrap()
}
