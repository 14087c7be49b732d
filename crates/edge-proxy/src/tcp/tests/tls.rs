//! Routes by the host that a client names by TLS, with clients and apps of rustls.

use ::proxy_header::{ParseConfig, ProxyHeader};
use api::edge::EdgeCertificate;
use model::instance::ProxyProtocol;
use model::{RouteSettings, TlsMode};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, ProtocolVersion, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::certificates::tests::{NO_ROUTES, certificate, table as certificates};

/// Routes by port and host. A host of `""`: for whoever connects.
pub(super) fn by_name(
    counter: u64,
    routes: &[(u16, &str, RouteSettings, SocketAddr)],
) -> RouteTable {
    let mut by_name = table(counter, &[]);
    for (port, host, settings, backend) in routes {
        let plain = table(counter, &[(*port, &[*backend])]);
        let (_, mut route) = plain.routes.into_iter().next().unwrap();
        route.settings = settings.clone();
        let name = match *host {
            "" => route_name::of_tcp(*port),
            host => route_name::of_tls(host, *port),
        };
        by_name.routes.insert(name, route);
    }
    by_name
}

pub(super) fn mode(tls: TlsMode) -> RouteSettings {
    RouteSettings {
        tls: Some(tls),
        ..RouteSettings::default()
    }
}

pub(super) fn terminate(alpn: &[&str]) -> RouteSettings {
    RouteSettings {
        alpn: alpn.iter().map(|name| (*name).to_owned()).collect(),
        ..mode(TlsMode::Terminate)
    }
}

/// An edge that has these certificates.
pub(super) struct WithTls {
    pub(super) running: Running,
    _folder: tempfile::TempDir,
}

impl WithTls {
    pub(super) async fn start(kept: &[(&str, &EdgeCertificate)], routes: &RouteTable) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let edge = Arc::new(Edge::default());
        let tls = Tls::open(Arc::clone(&edge), folder.path()).await.unwrap();
        let kept = certificates(1, None, kept, &[]);
        tls.certificates.take(kept, NO_ROUTES).unwrap();
        let tls = Some(Arc::new(tls));
        let kept = KeptPorts::default();
        Self {
            running: Running::of(edge, tls, "1-65535", kept, routes),
            _folder: folder,
        }
    }

    fn unrecognized(&self) -> u64 {
        self.running.edge.metrics.unrecognized_names.get()
    }
}

/// A client that trusts these certificates alone, and offers this by ALPN.
pub(super) fn client(
    trusted: &[&EdgeCertificate],
    alpn: &[&str],
    version: ProtocolVersion,
) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for pem in trusted {
        let der = CertificateDer::from_pem_slice(pem.chain_pem.as_bytes());
        roots.add(der.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let version = match version {
        ProtocolVersion::TLSv1_2 => &rustls::version::TLS12,
        _ => &rustls::version::TLS13,
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config).into()
}

pub(super) async fn handshake(
    with: &TlsConnector,
    port: u16,
    host: &str,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = connection(port).await;
    soon(with.connect(ServerName::try_from(host.to_owned()).unwrap(), stream)).await
}

/// All that comes back of what is sent, the client's half being closed; bounded, and with its end told.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, said: &[u8]) -> Vec<u8> {
    let (mut from, mut to) = tokio::io::split(stream);
    let sending = async {
        to.write_all(said).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut answer = Vec::new();
    let ((), read) = soon(async { tokio::join!(sending, from.read_to_end(&mut answer)) }).await;
    read.unwrap();
    answer
}

/// An app that has a certificate of its own: it sends back what comes in its TLS, then this number.
async fn tls_echo(pem: &EdgeCertificate, number: u8) -> SocketAddr {
    let chain = CertificateDer::from_pem_slice(pem.chain_pem.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(pem.key_pem.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not trust it goes.
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut said = Vec::new();
            stream.read_to_end(&mut said).await.unwrap();
            said.push(number);
            stream.write_all(&said).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    address
}

/// More than buffers and pipes hold.
fn much() -> Vec<u8> {
    let bytes = (0..1_000_001_u32).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]);
    bytes.collect()
}

#[tokio::test]
async fn hosts_of_one_port_lead_to_their_apps_through_the_edges_tls_or_their_own() {
    let (ends_here, own) = (
        certificate(&["db.example.com"], 30),
        certificate(&["own.example.com"], 30),
    );
    let (plain, with_tls) = (echo(7).await, tls_echo(&own, 9).await);
    let port = free_port().await;
    let routes = [
        (port, "db.example.com", terminate(&["postgresql"]), plain),
        (
            port,
            "own.example.com",
            mode(TlsMode::Passthrough),
            with_tls,
        ),
    ];
    let edge = WithTls::start(&[("db", &ends_here)], &by_name(1, &routes)).await;
    for version in [ProtocolVersion::TLSv1_2, ProtocolVersion::TLSv1_3] {
        // It trusts the certificate of the edge alone, else of the app alone: each end is where it is to be.
        let to_edge = client(&[&ends_here], &["other", "postgresql"], version);
        let mut stream = handshake(&to_edge, port, "db.example.com").await.unwrap();
        let session = stream.get_ref().1;
        assert_eq!(session.alpn_protocol(), Some(&b"postgresql"[..]));
        assert_eq!(session.protocol_version(), Some(version));
        let mut expected = much();
        expected.push(7);
        assert!(exchange(&mut stream, &much()).await == expected);
        let to_app = client(&[&own], &[], version);
        let mut stream = handshake(&to_app, port, "own.example.com").await.unwrap();
        *expected.last_mut().unwrap() = 9;
        assert!(exchange(&mut stream, &much()).await == expected);
        assert!(handshake(&to_edge, port, "own.example.com").await.is_err());
    }
    assert_eq!(edge.unrecognized(), 0);
    edge.running.stop().await;
}

#[tokio::test]
async fn who_names_no_host_of_the_port_gets_the_alert_and_is_counted() {
    let kept = certificate(&["db.example.com", "other.example.com"], 30);
    let (to, port, other) = (echo(7).await, free_port().await, free_port().await);
    let routes = [
        (port, "db.example.com", terminate(&[]), to),
        (other, "other.example.com", terminate(&[]), to),
    ];
    let edge = WithTls::start(&[("db", &kept)], &by_name(1, &routes)).await;
    let trusting = client(&[&kept], &[], ProtocolVersion::TLSv1_3);
    // A host of another port, one of nowhere, and none: an address is no name.
    for (counted, host) in (1..).zip(["other.example.com", "db.example", "127.0.0.1"]) {
        let refused = handshake(&trusting, port, host).await.unwrap_err();
        let told = refused.into_inner().unwrap();
        assert_eq!(
            told.downcast_ref::<rustls::Error>(),
            Some(&rustls::Error::AlertReceived(
                AlertDescription::UnrecognisedName
            )),
            "{host}"
        );
        assert_eq!(edge.unrecognized(), counted);
    }
    // What is no TLS is told so, too; what is never whole is cut off.
    for said in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00",
    ] {
        let mut stream = connection(port).await;
        stream.write_all(said).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut came = Vec::new();
        let _ = soon(stream.read_to_end(&mut came)).await;
        assert!(came.is_empty() || came[0] == 21, "{came:?}");
    }
    // A message that grows without end.
    let mut stream = connection(port).await;
    let mut endless = vec![0x16, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff];
    endless.resize(5 + 0x4000, 0);
    let more = [&[0x16, 3, 1, 0x40, 0][..], &[0; 0x4000]].concat();
    soon(async {
        while stream.write_all(&endless).await.is_ok() {
            endless.clone_from(&more);
        }
    })
    .await;
    let mut fine = handshake(&trusting, port, "db.example.com").await.unwrap();
    assert_eq!(exchange(&mut fine, b"x").await, b"x\x07");
    edge.running.stop().await;
}

#[tokio::test]
async fn an_app_hears_by_the_proxy_protocol_what_tls_ended_at_the_edge() {
    let kept = certificate(&["db.example.com"], 30);
    let (to, port) = (echo(7).await, free_port().await);
    let mut routes = by_name(1, &[(port, "db.example.com", terminate(&["h2"]), to)]);
    for route in routes.routes.values_mut() {
        route.proxy_protocol = Some(ProxyProtocol::V2);
    }
    let edge = WithTls::start(&[("db", &kept)], &routes).await;
    let trusting = client(&[&kept], &["h2"], ProtocolVersion::TLSv1_3);
    let mut stream = handshake(&trusting, port, "db.example.com").await.unwrap();
    let from = stream.get_ref().0.local_addr().unwrap();
    let came = exchange(&mut stream, b"hello").await;
    let config = ParseConfig {
        include_tlvs: true,
        ..ParseConfig::default()
    };
    let (header, length) = ProxyHeader::parse(&came, config).unwrap();
    assert_eq!(&came[length..], b"hello\x07");
    assert_eq!(header.proxied_address().unwrap().source, from);
    assert_eq!(header.authority(), Some("db.example.com"));
    assert_eq!(header.alpn(), Some(&b"h2"[..]));
    let ssl = header.ssl().unwrap();
    assert!(ssl.client_ssl());
    assert_eq!(ssl.version(), Some("TLSv1.3"));
    edge.running.stop().await;
}

#[tokio::test]
async fn a_first_message_in_pieces_is_passed_on_whole() {
    let own = certificate(&["own.example.com"], 30);
    let (app, port) = (tls_echo(&own, 9).await, free_port().await);
    let routes = [(port, "own.example.com", mode(TlsMode::Passthrough), app)];
    // Without a port for HTTPS.
    let running = Running::with("1-65535", KeptPorts::default(), &by_name(1, &routes));
    let trusting = client(&[&own], &[], ProtocolVersion::TLSv1_3);
    // A client whose bytes pass one by one.
    let (near, mut far) = tokio::io::duplex(1);
    let mut to_edge = connection(port).await;
    let passing =
        tokio::spawn(async move { tokio::io::copy_bidirectional(&mut far, &mut to_edge).await });
    let name = ServerName::try_from("own.example.com").unwrap();
    let mut stream = soon(trusting.connect(name, near)).await.unwrap();
    assert_eq!(exchange(&mut stream, b"hello").await, b"hello\x09");
    drop(stream);
    let _ = soon(passing).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn a_port_goes_with_its_last_host_and_whoever_connects_has_it_alone() {
    let kept = certificate(&["a.example.com", "b.example.com"], 30);
    let (to, other, port) = (echo(7).await, echo(8).await, free_port().await);
    let of = |host| (port, host, terminate(&[]), to);
    let both = by_name(1, &[of("a.example.com"), of("b.example.com")]);
    let edge = WithTls::start(&[("both", &kept)], &both).await;
    let take = |table: &RouteTable| assert!(edge.running.edge.routes.take(table));
    let trusting = client(&[&kept], &[], ProtocolVersion::TLSv1_3);
    let mut before = handshake(&trusting, port, "b.example.com").await.unwrap();
    take(&by_name(2, &[of("a.example.com")]));
    let mut still = handshake(&trusting, port, "a.example.com").await.unwrap();
    assert_eq!(exchange(&mut still, b"x").await, b"x\x07");
    assert!(handshake(&trusting, port, "b.example.com").await.is_err());
    // Its own connection goes on.
    assert_eq!(exchange(&mut before, b"y").await, b"y\x07");
    // A release that changes what the port is: as long as the old one has instances, it is as it was.
    let plain = (port, "", RouteSettings::default(), other);
    take(&by_name(3, &[of("a.example.com"), plain.clone()]));
    assert_eq!(answer(connection(port).await, b"z").await, b"z\x08");
    take(&by_name(4, &[of("a.example.com")]));
    let mut again = handshake(&trusting, port, "a.example.com").await.unwrap();
    assert_eq!(exchange(&mut again, b"x").await, b"x\x07");
    take(&by_name(5, &[]));
    soon(async {
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .is_ok()
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    edge.running.stop().await;
}

#[tokio::test]
async fn an_edge_without_certificates_and_one_that_does_not_know_the_mode_refuse() {
    let (to, port) = (echo(7).await, free_port().await);
    let routes = [
        (port, "db.example.com", terminate(&[]), to),
        (port, "newer.example.com", mode(TlsMode::Unknown), to),
    ];
    let running = Running::with("1-65535", KeptPorts::default(), &by_name(1, &routes));
    let kept = certificate(&["db.example.com"], 30);
    let trusting = client(&[&kept], &[], ProtocolVersion::TLSv1_3);
    for host in ["db.example.com", "newer.example.com"] {
        assert!(handshake(&trusting, port, host).await.is_err(), "{host}");
    }
    assert_eq!(running.edge.metrics.unrecognized_names.get(), 0);
    running.stop().await;
}
