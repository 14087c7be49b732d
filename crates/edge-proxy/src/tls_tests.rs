//! The edge as clients over TLS see it: real sockets on loopback, a real TLS client.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::edge::{
    Backend, EdgeCertificate, HostCertificateRequest, HostCertificateResponse, Route, RouteTable,
    TicketKeys,
};
use identity::{IngressCa, MemberKey, SealKey};
use model::{Generation, InstanceId, Term};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, ClientConfig, HandshakeKind, ProtocolVersion, RootCertStore};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::certificates::tests::table;
use crate::certificates::{Usable, now};
use crate::forward::Edge;
use crate::kept_certificates::{CertificateFiles, Kind};
use crate::limits::HANDSHAKE_TIMEOUT;
use crate::listener;
use crate::tls::{self, Tls};

/// Nothing here takes this long.
const SOON: Duration = Duration::from_secs(10);
const NO_ROUTES: (Generation, Term) = (
    Generation {
        incarnation: model::Incarnation(0),
        counter: 0,
    },
    Term(0),
);

/// An authority, and a client that trusts it.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { pem, issuer }
    }

    fn certificate(&self, names: &[&str]) -> EdgeCertificate {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).unwrap();
        EdgeCertificate {
            chain_pem: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key_pem: key.serialize_pem(),
        }
    }
}

/// A client of HTTP/1.1 that trusts this CA and speaks these versions of TLS.
fn client_of(ca_pem: &str, versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// An edge that leads `a.test` to a backend which answers with the request's head.
struct TestEdge {
    tls: Arc<Tls>,
    address: SocketAddr,
    folder: tempfile::TempDir,
    shutdown: CancellationToken,
    served: JoinHandle<()>,
    late: Arc<Late>,
}

/// A request of `/late` to the backend.
#[derive(Debug, Default)]
struct Late {
    /// The backend has it.
    asked: Notify,
    /// The backend is to answer it.
    answer: Notify,
}

impl TestEdge {
    async fn start() -> Self {
        Self::on(tempfile::tempdir().unwrap()).await
    }

    async fn on(folder: tempfile::TempDir) -> Self {
        let edge = Arc::new(Edge::default());
        let late = Arc::new(Late::default());
        edge.routes.take(&routes(echo(Arc::clone(&late)).await));
        let tls = Arc::new(Tls::open(edge, folder.path()).await.unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(tls::serve(Arc::clone(&tls), listener, shutdown.clone()));
        Self {
            tls,
            address,
            folder,
            shutdown,
            served,
            late,
        }
    }

    fn take(&self, counter: u64, certificates: &[(&str, &EdgeCertificate)], removed: &[&str]) {
        let since = (counter > 1).then(|| counter - 1);
        let table = table(counter, since, certificates, removed);
        self.tls.certificates.take(table, NO_ROUTES).unwrap();
    }

    async fn connect(
        &self,
        config: &Arc<ClientConfig>,
        host: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let connecting = TlsConnector::from(Arc::clone(config))
            .connect(ServerName::try_from(host.to_owned()).unwrap(), stream);
        tokio::time::timeout(SOON, connecting).await.unwrap()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(SOON, self.served)
            .await
            .unwrap()
            .unwrap();
    }
}

fn routes(backend: SocketAddr) -> RouteTable {
    let route = Route {
        env: serde_json::from_value(serde_json::json!({ "app": "a", "env": "prod" })).unwrap(),
        process: "web".parse().unwrap(),
        proxy_protocol: None,
        protocol: api::edge::AppProtocol::default(),
        settings: model::RouteSettings::default(),
        backends: vec![Backend {
            instance: InstanceId(1),
            address: backend,
        }],
    };
    let hosts = ["a.test", "b.a.test"].map(|host| (host.to_owned(), route.clone()));
    RouteTable {
        generation: Generation {
            counter: 1,
            ..Generation::default()
        },
        routes: BTreeMap::from(hosts),
        ..RouteTable::default()
    }
}

/// A backend that answers each request with its head.
async fn echo(late: Arc<Late>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let late = Arc::clone(&late);
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut head = String::new();
                while stream.read_line(&mut head).await.unwrap_or(0) > 0 {
                    if !head.ends_with("\r\n\r\n") {
                        continue;
                    }
                    if head.starts_with("GET /late ") {
                        late.asked.notify_one();
                        late.answer.notified().await;
                    }
                    let length = head.len();
                    let answer =
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{head}");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    head.clear();
                }
            });
        }
    });
    address
}

/// One request on a connection that stays open; its answer, with what was sent as its body.
async fn get(stream: &mut TlsStream<TcpStream>, host: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let reading = async {
        // The body is a head, so the answer ends with the second empty line.
        while answer.windows(4).filter(|four| four == b"\r\n\r\n").count() < 2 {
            let mut byte = [0; 1];
            if stream.read(&mut byte).await.unwrap() == 0 {
                break;
            }
            answer.push(byte[0]);
        }
    };
    tokio::time::timeout(SOON, reading).await.unwrap();
    String::from_utf8(answer).unwrap()
}

fn leaf(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    let chain = stream.get_ref().1.peer_certificates().unwrap();
    chain[0].clone().into_owned()
}

fn leaf_of(pem: &EdgeCertificate) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.chain_pem.as_bytes()).unwrap()
}

#[tokio::test]
async fn both_versions_of_tls_lead_to_the_app_which_learns_that_it_was_https() {
    let (edge, authority) = (TestEdge::start().await, Authority::new());
    let (exact, wild) = (
        authority.certificate(&["a.test"]),
        authority.certificate(&["*.a.test"]),
    );
    edge.take(1, &[("exact", &exact), ("wild", &wild)], &[]);
    for (version, of) in [
        (ProtocolVersion::TLSv1_2, &rustls::version::TLS12),
        (ProtocolVersion::TLSv1_3, &rustls::version::TLS13),
    ] {
        let config = Arc::new(client_of(&authority.pem, &[of]));
        for (host, certificate) in [("a.test", &exact), ("b.a.test", &wild)] {
            let mut stream = edge.connect(&config, host).await.unwrap();
            let session = stream.get_ref().1;
            assert_eq!(session.protocol_version(), Some(version));
            assert_eq!(session.alpn_protocol(), Some(&b"http/1.1"[..]));
            assert_eq!(leaf(&stream), leaf_of(certificate));
            let answer = get(&mut stream, host).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.contains("X-Forwarded-Proto: https\r\n"), "{answer}");
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn http_2_is_chosen_where_the_client_offers_it() {
    let (edge, authority) = (TestEdge::start().await, Authority::new());
    edge.take(1, &[("a", &authority.certificate(&["a.test"]))], &[]);
    let mut config = client_of(&authority.pem, rustls::ALL_VERSIONS);
    // Its order is not the edge's.
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
    let stream = edge.connect(&Arc::new(config), "a.test").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    for path in ["/one", "/two"] {
        let request = http::Request::get(format!("https://a.test{path}"));
        let mut requests = requests.clone().ready().await.unwrap();
        let (response, _) = requests
            .send_request(request.body(()).unwrap(), true)
            .unwrap();
        let mut body = response.await.unwrap().into_body();
        let mut answer = Vec::new();
        while let Some(data) = body.data().await {
            answer.extend_from_slice(&data.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(
            answer.starts_with(&format!("GET {path} HTTP/1.1\r\n")),
            "{answer}"
        );
        assert!(answer.contains("X-Forwarded-Proto: https\r\n"), "{answer}");
    }
    // A request that is under way is answered before the edge ends.
    let late = http::Request::get("https://a.test/late").body(()).unwrap();
    let mut requests = requests.ready().await.unwrap();
    let (response, _) = requests.send_request(late, true).unwrap();
    edge.late.asked.notified().await;
    edge.shutdown.cancel();
    edge.late.answer.notify_one();
    let response = tokio::time::timeout(SOON, response).await.unwrap();
    assert_eq!(response.unwrap().status(), 200);
    edge.stop().await;
    tokio::time::timeout(SOON, connection)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

/// What is spoken is what was agreed on.
#[tokio::test]
async fn the_preface_of_http_2_without_its_alpn_is_no_http_2() {
    let (edge, authority) = (TestEdge::start().await, Authority::new());
    edge.take(1, &[("a", &authority.certificate(&["a.test"]))], &[]);
    let config = Arc::new(client_of(&authority.pem, rustls::ALL_VERSIONS));
    let mut stream = edge.connect(&config, "a.test").await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    stream.write_all(preface).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(SOON, read).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 505 "), "{answer:?}");
    edge.stop().await;
}

#[tokio::test]
async fn a_host_without_a_certificate_and_a_client_without_a_host_get_an_alert() {
    let (edge, authority) = (TestEdge::start().await, Authority::new());
    edge.take(1, &[("a", &authority.certificate(&["a.test"]))], &[]);
    let config = Arc::new(client_of(&authority.pem, rustls::ALL_VERSIONS));
    // One that nobody routes, one that is routed and that no server signs for, and an address, which is named to nobody.
    for host in ["c.test", "b.a.test", "127.0.0.1"] {
        let error = edge.connect(&config, host).await.unwrap_err();
        let error = error.get_ref().unwrap().downcast_ref::<rustls::Error>();
        let alert = rustls::Error::AlertReceived(AlertDescription::UnrecognisedName);
        assert_eq!(error, Some(&alert), "{host}");
    }
    // Plain HTTP to this port ends it, too.
    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(SOON, read).await.unwrap();
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    edge.stop().await;
}

#[tokio::test]
async fn another_certificate_is_taken_without_a_dropped_connection() {
    let (edge, authority) = (TestEdge::start().await, Authority::new());
    let (first, second) = (
        authority.certificate(&["a.test"]),
        authority.certificate(&["a.test"]),
    );
    edge.take(1, &[("a", &first)], &[]);
    let config = Arc::new(client_of(&authority.pem, rustls::ALL_VERSIONS));
    let mut before = edge.connect(&config, "a.test").await.unwrap();
    assert_eq!(leaf(&before), leaf_of(&first));
    assert!(get(&mut before, "a.test").await.contains("200 OK"));
    edge.take(2, &[("a", &second)], &[]);
    assert!(get(&mut before, "a.test").await.contains("200 OK"));
    let after = edge.connect(&config, "a.test").await.unwrap();
    assert_eq!(leaf(&after), leaf_of(&second));
    edge.take(3, &[], &["a"]);
    assert!(get(&mut before, "a.test").await.contains("200 OK"));
    assert!(edge.connect(&config, "a.test").await.is_err());
    edge.stop().await;
}

#[tokio::test]
async fn a_session_is_resumed_at_another_edge_also_after_the_keys_were_rotated() {
    let (one, other, authority) = (
        TestEdge::start().await,
        TestEdge::start().await,
        Authority::new(),
    );
    let certificate = authority.certificate(&["a.test"]);
    let key = || SealKey::generate().unwrap().text();
    let (first, second, third) = (key(), key(), key());
    for edge in [&one, &other] {
        edge.take(1, &[("a", &certificate)], &[]);
    }
    let set = |edge: &TestEdge, current: &String, previous: Option<&String>| {
        let keys = TicketKeys {
            current: current.clone(),
            previous: previous.cloned(),
        };
        edge.tls.tickets.set(&keys).unwrap();
    };
    let kind = |stream: &TlsStream<TcpStream>| stream.get_ref().1.handshake_kind().unwrap();
    for of in [&rustls::version::TLS12, &rustls::version::TLS13] {
        set(&one, &first, None);
        set(&other, &first, None);
        let config = Arc::new(client_of(&authority.pem, &[of]));
        let mut stream = one.connect(&config, "a.test").await.unwrap();
        assert_eq!(kind(&stream), HandshakeKind::Full);
        get(&mut stream, "a.test").await;
        let mut stream = other.connect(&config, "a.test").await.unwrap();
        assert_eq!(kind(&stream), HandshakeKind::Resumed, "{of:?}");
        get(&mut stream, "a.test").await;
        set(&other, &second, Some(&first));
        let mut stream = other.connect(&config, "a.test").await.unwrap();
        assert_eq!(kind(&stream), HandshakeKind::Resumed, "{of:?}");
        get(&mut stream, "a.test").await;
        // A client that was away for two rotations begins anew.
        set(&other, &third, None);
        let stream = other.connect(&config, "a.test").await.unwrap();
        assert_eq!(kind(&stream), HandshakeKind::Full, "{of:?}");
    }
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_host_without_one_has_a_certificate_of_the_ingress_ca_after_a_restart_too() {
    let edge = TestEdge::start().await;
    let ca = IngressCa::generate("c1", now()).unwrap();
    let issued = |host: &str| {
        let key = MemberKey::generate().unwrap();
        let leaf = ca
            .sign_host(&key.csr_pem(host).unwrap(), host, now())
            .unwrap();
        EdgeCertificate {
            chain_pem: format!("{leaf}{}", ca.certificate_pem()),
            key_pem: key.key_pem(),
        }
    };
    let files = CertificateFiles::new(edge.folder.path());
    for host in ["a.test", "gone.test"] {
        let pem = issued(host);
        files.write(Kind::Issued, host, &pem).unwrap();
        edge.tls
            .certificates
            .set_issued(host, Usable::of(&pem).unwrap());
    }
    let config = Arc::new(client_of(ca.certificate_pem(), rustls::ALL_VERSIONS));
    let mut stream = edge.connect(&config, "a.test").await.unwrap();
    assert!(get(&mut stream, "a.test").await.contains("200 OK"));
    // What is routed no longer is not served by it.
    assert!(edge.connect(&config, "gone.test").await.is_err());
    // One that a user added is used in its place.
    let authority = Authority::new();
    edge.take(1, &[("a", &authority.certificate(&["a.test"]))], &[]);
    let other = Arc::new(client_of(&authority.pem, rustls::ALL_VERSIONS));
    edge.connect(&other, "a.test").await.unwrap();
    edge.shutdown.cancel();
    let edge = TestEdge::on(edge.folder).await;
    edge.connect(&config, "a.test").await.unwrap();
    edge.stop().await;
}

/// Signs what edges ask for by this CA, over HTTPS, as the server does; what asks it.
async fn signer(ca: Arc<IngressCa>) -> api_client::ApiClient {
    let authority = Authority::new();
    let own = authority.certificate(&["localhost"]);
    let chain = leaf_of(&own);
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, ca) = (acceptor.clone(), Arc::clone(&ca));
            tokio::spawn(async move {
                let mut stream = BufReader::new(acceptor.accept(stream).await.unwrap());
                let (mut line, mut length) = (String::new(), 0);
                while stream.read_line(&mut line).await.unwrap() > 2 {
                    if let Some(said) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = said.trim().parse().unwrap();
                    }
                    line.clear();
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).await.unwrap();
                let asked: HostCertificateRequest = serde_json::from_slice(&body).unwrap();
                let leaf = ca.sign_host(&asked.csr_pem, &asked.host, now()).unwrap();
                let chain_pem = format!("{leaf}{}", ca.certificate_pem());
                let said = serde_json::to_string(&HostCertificateResponse { chain_pem }).unwrap();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    said.len()
                );
                stream.write_all((head + &said).as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            });
        }
    });
    let config = api_client::ClientConfig {
        server: format!("https://localhost:{port}"),
        token: "a-token".to_owned(),
        ca_pem: authority.pem,
    };
    api_client::ApiClient::user(&config).unwrap()
}

#[tokio::test]
async fn a_certificate_of_the_ingress_ca_is_renewed_in_time_and_clients_have_the_one_before_meanwhile()
 {
    const DAY_MS: u64 = 24 * 3_600_000;
    let edge = TestEdge::start().await;
    let ca = Arc::new(IngressCa::generate("c1", model::Timestamp(now().0 - 30 * DAY_MS)).unwrap());
    // Signed so many days ago, for seven.
    let of_age = |host: &str, days: u64| {
        let key = MemberKey::generate().unwrap();
        let then = model::Timestamp(now().0 - days * DAY_MS);
        let leaf = ca.sign_host(&key.csr_pem(host).unwrap(), host, then);
        let pem = EdgeCertificate {
            chain_pem: format!("{}{}", leaf.unwrap(), ca.certificate_pem()),
            key_pem: key.key_pem(),
        };
        let usable = Usable::of(&pem).unwrap();
        edge.tls.certificates.set_issued(host, usable);
        leaf_of(&pem)
    };
    let config = Arc::new(client_of(ca.certificate_pem(), rustls::ALL_VERSIONS));
    let (due, ended) = (of_age("a.test", 5), of_age("b.a.test", 8));
    // Nobody signs: what has not ended goes on.
    let stream = edge.connect(&config, "a.test").await.unwrap();
    assert_eq!(leaf(&stream), due);
    assert!(edge.connect(&config, "b.a.test").await.is_err());
    edge.tls.hosts.ask_by(signer(Arc::clone(&ca)).await);
    // One that has ended is replaced within the handshake.
    let stream = edge.connect(&config, "b.a.test").await.unwrap();
    assert_ne!(leaf(&stream), ended);
    // One that is due: its clients do not wait, and later ones have the next one.
    let renewed = async {
        loop {
            let stream = edge.connect(&config, "a.test").await.unwrap();
            if leaf(&stream) != due {
                return leaf(&stream);
            }
        }
    };
    let renewed = tokio::time::timeout(SOON, renewed).await.unwrap();
    let says = edge.tls.certificates.issued_for("a.test").unwrap().says;
    assert!(says.not_after.0 > now().0 + 6 * DAY_MS);
    // It is not asked for again, and is there after a restart.
    let stream = edge.connect(&config, "a.test").await.unwrap();
    assert_eq!(leaf(&stream), renewed);
    let files = CertificateFiles::new(edge.folder.path());
    let kept = async {
        while files.read_all(Kind::Issued).unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, kept).await.unwrap();
    edge.shutdown.cancel();
    let edge = TestEdge::on(edge.folder).await;
    let stream = edge.connect(&config, "a.test").await.unwrap();
    assert_eq!(leaf(&stream), renewed);
    edge.stop().await;
}

#[tokio::test]
async fn a_client_that_has_its_share_gets_no_handshake() {
    let edge = TestEdge::start().await;
    let shares = &edge.tls.edge.shares;
    let own = "127.0.0.1".parse().unwrap();
    let taken: Vec<_> = std::iter::from_fn(|| shares.take(own)).collect();
    assert_eq!(taken.len(), crate::limits::MAX_CONNECTIONS_PER_CLIENT);
    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    let mut came = Vec::new();
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut came))
        .await
        .unwrap();
    assert!(came.is_empty());
    drop(taken);
    assert!(shares.take(own).is_some());
}

#[tokio::test]
async fn a_request_in_flight_ends_before_the_edge_does() {
    let (edge, authority) = (TestEdge::start().await, Authority::new());
    edge.take(1, &[("a", &authority.certificate(&["a.test"]))], &[]);
    let config = Arc::new(client_of(&authority.pem, rustls::ALL_VERSIONS));
    let mut stream = edge.connect(&config, "a.test").await.unwrap();
    stream
        .write_all(b"GET /late HTTP/1.1\r\nHost: a.test\r\n\r\n")
        .await
        .unwrap();
    tokio::time::timeout(SOON, edge.late.asked.notified())
        .await
        .unwrap();
    edge.shutdown.cancel();
    edge.late.answer.notify_one();
    let mut answer = String::new();
    let reading = stream.read_to_string(&mut answer);
    tokio::time::timeout(SOON, reading).await.unwrap().unwrap();
    assert!(answer.contains("GET /late "), "{answer}");
    edge.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_end_its_handshake_is_cut_off() {
    let (edge, authority) = (TestEdge::start().await, Authority::new());
    edge.take(1, &[("a", &authority.certificate(&["a.test"]))], &[]);
    for begin in [&b""[..], &[22, 3, 1, 2, 0, 1, 0]] {
        let began = tokio::time::Instant::now();
        let mut stream = TcpStream::connect(edge.address).await.unwrap();
        stream.write_all(begin).await.unwrap();
        let mut rest = Vec::new();
        let cut = tokio::time::timeout(3 * HANDSHAKE_TIMEOUT, stream.read_to_end(&mut rest));
        cut.await.unwrap().unwrap();
        assert!(began.elapsed() >= HANDSHAKE_TIMEOUT);
    }
    edge.stop().await;
}

/// Who waits for the end of its handshake, and never sends it, is in nobody's way.
#[tokio::test]
async fn handshakes_that_do_not_end_take_no_turn_of_others() {
    let (edge, authority) = (TestEdge::start().await, Authority::new());
    edge.take(1, &[("a", &authority.certificate(&["a.test"]))], &[]);
    let config = Arc::new(client_of(&authority.pem, rustls::ALL_VERSIONS));
    let mut halfway = Vec::new();
    for _ in 0..20 {
        let name = ServerName::try_from("a.test").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::clone(&config), name).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        let mut stream = TcpStream::connect(edge.address).await.unwrap();
        stream.write_all(&hello).await.unwrap();
        let mut head = [0; 5];
        let answer = tokio::time::timeout(SOON, stream.read_exact(&mut head));
        answer.await.unwrap().unwrap();
        halfway.push(stream);
    }
    let turns = async {
        while edge.tls.turns.available_permits() < crate::limits::MAX_HANDSHAKES {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, turns).await.unwrap();
    edge.connect(&config, "a.test").await.unwrap();
    drop(halfway);
    edge.stop().await;
}

/// An authority of ACME trusts nobody: it looks at the certificate.
#[derive(Debug)]
struct LooksAtAny;

impl rustls::client::danger::ServerCertVerifier for LooksAtAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[tokio::test]
async fn an_authority_of_acme_sees_the_certificate_of_its_challenge_and_nothing_more() {
    let (edge, authority) = (TestEdge::start().await, Authority::new());
    edge.tls
        .edge
        .challenges
        .take(crate::challenges::tests::table());
    let asking = |alpn: &[&[u8]]| {
        let mut config = client_of(&authority.pem, rustls::DEFAULT_VERSIONS);
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(LooksAtAny));
        config.alpn_protocols = alpn.iter().map(|one| one.to_vec()).collect();
        Arc::new(config)
    };
    let acme = asking(&[b"acme-tls/1"]);
    let mut stream = edge.connect(&acme, "b.test").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"acme-tls/1"[..]));
    let certificate = edge.tls.edge.challenges.certificate("b.test").unwrap();
    assert_eq!(leaf(&stream), certificate.cert[0]);
    // It is the end.
    let mut rest = Vec::new();
    let read = tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await;
    assert_eq!(read.unwrap().unwrap(), 0);
    // A host of which nothing is asked, also one that has a certificate.
    let own = authority.certificate(&["a.test"]);
    edge.take(1, &[("own", &own)], &[]);
    assert!(edge.connect(&acme, "a.test").await.is_err());
    // Who offers more than that is no authority.
    let both = asking(&[b"acme-tls/1", b"http/1.1"]);
    let stream = edge.connect(&both, "a.test").await.unwrap();
    assert_eq!(leaf(&stream), leaf_of(&own));
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    edge.stop().await;
}

/// A tunnel over TLS is one of those that the plain listener ends.
#[tokio::test]
async fn connections_over_tls_have_their_time_when_another_process_has_the_clients() {
    let (edge, authority) = (TestEdge::start().await, Authority::new());
    let certificate = authority.certificate(&["a.test"]);
    edge.take(1, &[("a", &certificate)], &[]);
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let shared = Arc::clone(&edge.tls.edge);
    let plain = tokio::spawn(listener::serve(
        Arc::clone(&shared),
        plain,
        edge.shutdown.clone(),
    ));
    let config = Arc::new(client_of(&authority.pem, &[&rustls::version::TLS13]));
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut stream = edge.connect(&config, "a.test").await.unwrap();
        let answer = get(&mut stream, "a.test").await;
        assert!(!answer.contains("Connection: close\r\n"), "{answer}");
        kept.push(stream);
    }

    shared.handed_over.set(CancellationToken::new()).unwrap();
    edge.shutdown.cancel();
    while let Some(mut stream) = kept.pop() {
        let answer = get(&mut stream, "a.test").await;
        assert!(answer.contains("Connection: close\r\n"), "{answer}");
        // The plain listener has none, and waits for the other one.
        assert!(kept.is_empty() || !plain.is_finished());
        assert!(kept.is_empty() || !shared.end_tunnels.is_cancelled());
    }
    tokio::time::timeout(SOON, plain).await.unwrap().unwrap();
    edge.stop().await;
}
