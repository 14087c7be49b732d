//! The redirect to HTTPS and HSTS as clients see them: real sockets on loopback, plain and TLS.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::edge::{Backend, Route, RouteTable};
use model::{Generation, Hsts, InstanceId, PlainHttp, RouteSettings, Term};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::certificates::tests::{certificate, table};
use crate::forward::Edge;
use crate::https_policy::Https;
use crate::listener;
use crate::tls::{self, Tls};
use crate::trusted::TrustedProxies;

/// Nothing here takes this long.
const SOON: Duration = Duration::from_secs(10);

/// An edge with both ports, whose app answers with a header of its own.
struct TestEdge {
    plain: SocketAddr,
    https: SocketAddr,
    /// What signed the certificate of `own.test`: itself.
    ca_pem: String,
    edge: Arc<Edge>,
    shutdown: CancellationToken,
    _folder: tempfile::TempDir,
}

impl TestEdge {
    /// `own.test` has a certificate that an operator added, and `ca.test` has none.
    async fn start(settings: RouteSettings, trusts_loopback: bool) -> Self {
        let networks = trusts_loopback.then(|| "127.0.0.1".parse().unwrap());
        let edge = Arc::new(Edge {
            trusted_proxies: TrustedProxies::new(networks.into_iter().collect()),
            ..Edge::default()
        });
        edge.routes.take(&routes(app().await, settings));
        let folder = tempfile::tempdir().unwrap();
        let tls = Arc::new(Tls::open(Arc::clone(&edge), folder.path()).await.unwrap());
        let own = certificate(&["own.test"], 30);
        let none = (Generation::default(), Term(0));
        tls.certificates
            .take(table(1, None, &[("own", &own)], &[]), none)
            .unwrap();
        let (plain, secure) = (listen().await, listen().await);
        let addresses = (plain.local_addr().unwrap(), secure.local_addr().unwrap());
        edge.https
            .set(Https {
                certificates: Arc::clone(&tls.certificates),
                port: addresses.1.port(),
                public_port: None,
            })
            .unwrap();
        let shutdown = CancellationToken::new();
        tokio::spawn(listener::serve(Arc::clone(&edge), plain, shutdown.clone()));
        tokio::spawn(tls::serve(tls, secure, shutdown.clone()));
        Self {
            plain: addresses.0,
            https: addresses.1,
            ca_pem: own.chain_pem,
            edge,
            shutdown,
            _folder: folder,
        }
    }

    /// The answer to a request in plain HTTP, whole.
    async fn plain(&self, request: &str) -> String {
        let stream = TcpStream::connect(self.plain).await.unwrap();
        exchange(stream, request).await
    }

    /// The answer to a request to `own.test` over TLS.
    async fn over_tls(&self, request: &str) -> String {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject as _;
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.https).await.unwrap();
        let name = ServerName::try_from("own.test").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream);
        exchange(stream.await.unwrap(), request).await
    }
}

impl Drop for TestEdge {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    let exchanged = async {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    };
    tokio::time::timeout(SOON, exchanged).await.unwrap()
}

fn routes(backend: SocketAddr, settings: RouteSettings) -> RouteTable {
    let route = Route {
        env: serde_json::from_value(serde_json::json!({ "app": "a", "env": "prod" })).unwrap(),
        process: "web".parse().unwrap(),
        proxy_protocol: None,
        protocol: api::edge::AppProtocol::default(),
        settings,
        backends: vec![Backend {
            instance: InstanceId(1),
            address: backend,
        }],
    };
    RouteTable {
        generation: Generation {
            counter: 1,
            ..Generation::default()
        },
        routes: BTreeMap::from(
            ["own.test", "ca.test"].map(|host| (host.to_owned(), route.clone())),
        ),
        ..RouteTable::default()
    }
}

/// An app that says of HSTS what it likes.
async fn app() -> SocketAddr {
    let listener = listen().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                let answer = b"HTTP/1.1 200 OK\r\nStrict-Transport-Security: max-age=1\r\nContent-Length: 3\r\n\r\napp";
                stream.write_all(answer).await
            });
        }
    });
    address
}

fn request(method: &str, host: &str, more: &str) -> String {
    format!("{method} /a?b=c HTTP/1.1\r\nHost: {host}:8080\r\nConnection: close\r\n{more}\r\n")
}

fn header<'a>(answer: &'a str, name: &str) -> Vec<&'a str> {
    let head = answer.split("\r\n\r\n").next().unwrap();
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields
        .filter(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
        .collect()
}

#[tokio::test]
async fn plain_http_is_redirected_where_an_operators_certificate_is_there() {
    let edge = TestEdge::start(RouteSettings::default(), false).await;
    let port = edge.https.port();
    let url = format!("https://own.test:{port}/a?b=c");
    for (method, more, status) in [
        ("GET", "", "301 Moved Permanently"),
        ("HEAD", "", "301 Moved Permanently"),
        ("POST", "Content-Length: 0\r\n", "308 Permanent Redirect"),
        ("DELETE", "", "308 Permanent Redirect"),
    ] {
        let answer = edge.plain(&request(method, "own.test", more)).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}\r\n")),
            "{answer}"
        );
        assert_eq!(header(&answer, "location"), [url.as_str()]);
        assert_eq!(header(&answer, "cache-control"), ["no-store"]);
        assert_eq!(
            header(&answer, "strict-transport-security"),
            Vec::<&str>::new()
        );
    }
    // A body that nobody reads harms nothing.
    let body = format!(
        "{}{}",
        request("POST", "own.test", "Content-Length: 5\r\n"),
        "12345"
    );
    assert!(edge.plain(&body).await.starts_with("HTTP/1.1 308 "));
    // By the ingress CA alone, the app answers; what it says of HSTS passes.
    let answer = edge.plain(&request("GET", "ca.test", "")).await;
    assert!(answer.ends_with("\r\n\r\napp"), "{answer}");
    assert_eq!(header(&answer, "strict-transport-security"), ["max-age=1"]);
    // And who comes by HTTPS gets the app.
    let answer = edge.over_tls(&request("GET", "own.test", "")).await;
    assert!(answer.ends_with("\r\n\r\napp"), "{answer}");
    assert_eq!(header(&answer, "strict-transport-security"), ["max-age=1"]);
    // Nobody is believed who says that he came by HTTPS.
    let answer = edge
        .plain(&request("GET", "own.test", "X-Forwarded-Proto: https\r\n"))
        .await;
    assert!(answer.starts_with("HTTP/1.1 301 "), "{answer}");
}

#[tokio::test]
async fn a_route_says_that_plain_http_is_served_or_always_redirected() {
    let serve = RouteSettings {
        http: Some(PlainHttp::Serve),
        ..RouteSettings::default()
    };
    let edge = TestEdge::start(serve, false).await;
    let answer = edge.plain(&request("GET", "own.test", "")).await;
    assert!(answer.ends_with("\r\n\r\napp"), "{answer}");
    let redirect = RouteSettings {
        http: Some(PlainHttp::Redirect),
        ..RouteSettings::default()
    };
    let edge = TestEdge::start(redirect, false).await;
    let answer = edge.plain(&request("GET", "ca.test", "")).await;
    let url = format!("https://ca.test:{}/a?b=c", edge.https.port());
    assert_eq!(header(&answer, "location"), [url.as_str()]);
}

#[tokio::test]
async fn a_trusted_proxy_says_how_the_client_came() {
    let hsts = RouteSettings {
        hsts: Some(Hsts {
            max_age_seconds: 600,
            include_subdomains: false,
            preload: false,
        }),
        ..RouteSettings::default()
    };
    let edge = TestEdge::start(hsts, true).await;
    let came = |proto: &str| {
        request(
            "GET",
            "own.test",
            &format!("X-Forwarded-Proto: {proto}\r\n"),
        )
    };
    let answer = edge.plain(&came("https")).await;
    assert!(answer.ends_with("\r\n\r\napp"), "{answer}");
    assert_eq!(
        header(&answer, "strict-transport-security"),
        ["max-age=600"]
    );
    let answer = edge.plain(&came("http")).await;
    assert_eq!(header(&answer, "location"), ["https://own.test/a?b=c"]);
}

#[tokio::test]
async fn hsts_of_the_route_is_sent_over_https_only_and_in_place_of_the_apps() {
    let settings = RouteSettings {
        http: Some(PlainHttp::Serve),
        hsts: Some(Hsts {
            max_age_seconds: 31_536_000,
            include_subdomains: true,
            preload: true,
        }),
        ..RouteSettings::default()
    };
    let edge = TestEdge::start(settings, false).await;
    let answer = edge.over_tls(&request("GET", "own.test", "")).await;
    let expected = ["max-age=31536000; includeSubDomains; preload"];
    assert_eq!(header(&answer, "strict-transport-security"), expected);
    let answer = edge.plain(&request("GET", "own.test", "")).await;
    assert_eq!(header(&answer, "strict-transport-security"), ["max-age=1"]);
    // The edge's own answers for the host have it, too; what is for no host has none.
    let mut away = edge.edge.routes.whole();
    away.generation.counter += 1;
    for route in away.routes.values_mut() {
        route.backends.clear();
    }
    assert!(edge.edge.routes.take(&away));
    let answer = edge.over_tls(&request("GET", "own.test", "")).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(header(&answer, "strict-transport-security"), expected);
    let answer = edge.plain(&request("GET", "own.test", "")).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let none: [&str; 0] = [];
    assert_eq!(header(&answer, "strict-transport-security"), none);
    let answer = edge.over_tls(&request("GET", "nobody.test", "")).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert_eq!(header(&answer, "strict-transport-security"), none);
}

#[tokio::test]
async fn a_challenge_of_acme_is_answered_before_any_route_and_redirect_and_only_where_its_token_is_known()
 {
    let redirect = RouteSettings {
        http: Some(PlainHttp::Redirect),
        ..RouteSettings::default()
    };
    let edge = TestEdge::start(redirect, false).await;
    let path = "/.well-known/acme-challenge/token-1";
    let ask = |method: &str, host: &str| {
        format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    };
    let answer = edge.plain(&ask("GET", "own.test")).await;
    assert!(answer.starts_with("HTTP/1.1 301 "), "{answer}");
    edge.edge.challenges.take(crate::challenges::tests::table());
    for host in ["own.test", "a.test", "nobody.test"] {
        let answer = edge.plain(&ask("GET", host)).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\ntoken-1.thumbprint"), "{answer}");
    }
    let answer = edge.plain(&ask("HEAD", "own.test")).await;
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    assert_eq!(header(&answer, "content-length"), ["18"]);
    // An authority that was led to HTTPS on its way.
    let answer = edge.over_tls(&ask("GET", "own.test")).await;
    assert!(answer.ends_with("\r\n\r\ntoken-1.thumbprint"), "{answer}");
    for request in [
        ask("POST", "own.test"),
        ask("GET", "own.test").replace("token-1", "token-2"),
    ] {
        let answer = edge.plain(&request).await;
        assert!(answer.starts_with("HTTP/1.1 30"), "{answer}");
    }
}
