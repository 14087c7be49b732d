//! TLS to clients: TLS 1.2 and 1.3, the certificate by the host that the client names (SNI, RFC 6066), HTTP/2 or HTTP/1.1 by ALPN.
//!
//! ```text
//!   ClientHello --> its host --> a certificate of that, else of its wildcard, else of the ingress CA, asked for now --> handshake --> HTTP
//!                            \-> none: the alert unrecognized_name
//!               \-> `acme-tls/1` by ALPN: the answer to a challenge that is asked for (RFC 8737), and the end
//! ```
//!
//! A handshake takes its certificate once: another table touches no connection that is open. A client that names no host gets no certificate.
//!
//! Deliberately absent: OCSP stapling, because authorities give it up for short lives (CA/Browser Forum, ballot SC-063), and early data (0-RTT), which can be
//! replayed.

use std::fmt;
use std::future::{Future as _, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use ::metrics::{ByOutcome, Outcome};
use blocking_work::blocking;
use identity::ACME_ALPN;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use state_file::StateFileError;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};
use tokio_util::sync::CancellationToken;

use crate::buffer::Buffer;
use crate::certificates::{Certificates, Usable};
use crate::connection::Taken;
use crate::forward::{Edge, Scheme};
use crate::host_certificates::HostCertificates;
use crate::http2;
use crate::kept_certificates::{CertificateFiles, Kind};
use crate::limits::{
    ACCEPT_RETRY, DRAIN_TIMEOUT, HANDSHAKE_TIMEOUT, MAX_CLIENT_CONNECTIONS, MAX_HANDSHAKES,
};
use crate::listener::{ends_of, serve_client};
use crate::socket;
use crate::tickets::Tickets;

/// What is offered by ALPN, the best first.
const ALPN: [&[u8]; 2] = [http2::ALPN, b"http/1.1"];
/// The alert `unrecognized_name`, fatal, in a record of its own (RFC 8446, 6 and 5.1).
pub(crate) const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// TLS cannot be set up: the library refuses its own defaults.
#[derive(Debug, thiserror::Error)]
#[error("could not set up TLS")]
pub struct TlsError(#[from] rustls::Error);

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("the client names no host")]
    NoHost,
    #[error("there is no certificate for {0}")]
    NoCertificate(String),
    #[error("no authority of ACME was asked to look at {0}")]
    NoChallenge(String),
    #[error(transparent)]
    Setup(#[from] TlsError),
    #[error("it was not done within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    TimedOut,
    #[error(transparent)]
    Broken(#[from] io::Error),
}

/// All that connections over TLS share.
pub(crate) struct Tls {
    pub(crate) edge: Arc<Edge>,
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) tickets: Arc<Tickets>,
    pub(crate) hosts: Arc<HostCertificates>,
    pub(crate) files: CertificateFiles,
    config: Arc<ServerConfig>,
    pub(crate) turns: Semaphore,
    handshakes: Family<ByOutcome, Counter>,
    count: Gauge,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(..)")
    }
}

/// Chooses the certificate by the host that a client names.
#[derive(Debug)]
struct ByHost {
    edge: Arc<Edge>,
    certificates: Arc<Certificates>,
}

impl ResolvesServerCert for ByHost {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let host = hello.server_name()?.to_ascii_lowercase();
        if let Some(kept) = self.certificates.kept_for(&host) {
            return Some(kept);
        }
        let issued = self.certificates.issued_for(&host)?;
        self.edge.routes.serves(&host).then_some(issued.key)
    }
}

impl Tls {
    /// With the certificates that were kept on disk.
    pub(crate) async fn open(edge: Arc<Edge>, data_dir: &Path) -> Result<Self, OpenError> {
        let files = CertificateFiles::new(data_dir);
        let certificates = Arc::new(Certificates::default());
        blocking({
            let (files, certificates) = (files.clone(), Arc::clone(&certificates));
            move || begin_with_kept(&files, &certificates)
        })
        .await?;
        let tickets = Arc::new(Tickets::default());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(ByHost {
                edge: Arc::clone(&edge),
                certificates: Arc::clone(&certificates),
            }));
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Arc::clone(&tickets) as _;
        let hosts =
            HostCertificates::new(Arc::clone(&edge), Arc::clone(&certificates), files.clone());
        let tls = Self {
            edge,
            certificates,
            tickets,
            hosts: Arc::new(hosts),
            files,
            config: Arc::new(config),
            turns: Semaphore::new(MAX_HANDSHAKES),
            handshakes: Family::default(),
            count: Gauge::default(),
        };
        tls.count_certificates();
        Ok(tls)
    }

    /// Tells by this registry what it counts.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let edge = ::metrics::of_role(registry, "edge");
        for outcome in [Outcome::Success, Outcome::Failure] {
            let counter = self.handshakes.get_or_create(&ByOutcome { outcome });
            counter.inc_by(0);
        }
        let text = "TLS handshakes that ended";
        edge.register("tls_handshakes", text, self.handshakes.clone());
        let text = "Certificates of hosts that are in use, those of the ingress CA too";
        edge.register("certificates", text, self.count.clone());
    }

    /// The certificates are others than before.
    pub(crate) fn count_certificates(&self) {
        let count = i64::try_from(self.certificates.len());
        self.count.set(count.unwrap_or(i64::MAX));
    }

    /// A client's handshake, within its time. `None`: it was all that the client wanted, an authority of ACME.
    async fn handshake(
        &self,
        stream: TcpStream,
    ) -> Result<Option<Box<TlsStream<TcpStream>>>, HandshakeError> {
        let handshake = async {
            let mut start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
            let turn = self.turns.acquire().await;
            let named = start
                .client_hello()
                .server_name()
                .map(str::to_ascii_lowercase);
            let is_challenge = asks_by_acme(&start.client_hello());
            let challenged = (named.as_deref().filter(|_| is_challenge))
                .and_then(|host| self.edge.challenges.certificate(host));
            if let Some(key) = challenged {
                let mut stream = start.into_stream(challenge_config(key)?).await?;
                tracing::info!(
                    host = named,
                    "an authority of ACME asked whether the host leads here"
                );
                stream.shutdown().await?;
                return Ok(None);
            }
            let refused = match named {
                None => Some(HandshakeError::NoHost),
                Some(host) if is_challenge => Some(HandshakeError::NoChallenge(host)),
                Some(host) if self.hosts.ensure(&host).await => None,
                Some(host) => Some(HandshakeError::NoCertificate(host)),
            };
            if let Some(refused) = refused {
                start.io.write_all(&UNRECOGNIZED_NAME).await?;
                start.io.shutdown().await?;
                return Err(refused);
            }
            let stream = in_turn(start, Arc::clone(&self.config), turn).await?;
            Ok(Some(Box::new(stream)))
        };
        let ended = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
        ended.unwrap_or(Err(HandshakeError::TimedOut))
    }

    /// The handshake of a client of a TCP route whose ClientHello came, and names this host. What is offered by ALPN, the route says.
    pub(crate) async fn terminate(
        &self,
        mut start: StartHandshake<TcpStream>,
        host: &str,
        alpn: &[String],
    ) -> Result<TlsStream<TcpStream>, HandshakeError> {
        let handshake = async {
            let turn = self.turns.acquire().await;
            if !self.hosts.ensure(host).await {
                start.io.write_all(&UNRECOGNIZED_NAME).await?;
                start.io.shutdown().await?;
                return Err(HandshakeError::NoCertificate(host.to_owned()));
            }
            let mut config = ServerConfig::clone(&self.config);
            config.alpn_protocols = alpn.iter().map(|name| name.clone().into_bytes()).collect();
            Ok(in_turn(start, Arc::new(config), turn).await?)
        };
        let ended = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
        let ended = ended.unwrap_or(Err(HandshakeError::TimedOut));
        self.count_handshake(ended.is_ok());
        ended
    }

    fn count_handshake(&self, has_succeeded: bool) {
        let outcome = if has_succeeded {
            Outcome::Success
        } else {
            Outcome::Failure
        };
        self.handshakes.get_or_create(&ByOutcome { outcome }).inc();
    }

    async fn serve_one(
        &self,
        mut stream: TcpStream,
        client: SocketAddr,
        shutdown: CancellationToken,
    ) {
        let Some(ends) = ends_of(&self.edge, &mut stream, client, Scheme::Https).await else {
            return;
        };
        // A handshake costs more than what a client without a share is told.
        let Some(taken) = Taken::of(&self.edge, ends.client.ip()) else {
            tracing::debug!(%client, "a client has as many connections as it may have; this one has no handshake");
            return;
        };
        // Each of these apart, so that a connection has memory for what it does, and none for what it did or does not do.
        let handshake = Box::pin(self.handshake(stream)).await;
        self.count_handshake(handshake.is_ok());
        match handshake {
            Ok(None) => {}
            Ok(Some(stream)) if stream.get_ref().1.alpn_protocol() == Some(http2::ALPN) => {
                let edge = Arc::clone(&self.edge);
                let serving = http2::serve(edge, stream, Buffer::default(), ends, taken, shutdown);
                Box::pin(serving).await;
            }
            Ok(Some(stream)) => {
                let edge = Arc::clone(&self.edge);
                Box::pin(serve_client(edge, stream, ends, taken, shutdown)).await;
            }
            Err(error) => tracing::debug!(%client, %error, "a TLS handshake came to nothing"),
        }
    }
}

/// The rest of a handshake. What costs is done when the server has answered: who then waits for its client holds up no other.
async fn in_turn<T>(
    start: StartHandshake<TcpStream>,
    config: Arc<ServerConfig>,
    turn: T,
) -> io::Result<TlsStream<TcpStream>> {
    let mut rest = start.into_stream(config);
    let begun = poll_fn(|context| Poll::Ready(Pin::new(&mut rest).poll(context))).await;
    drop(turn);
    match begun {
        Poll::Ready(done) => done,
        Poll::Pending => rest.await,
    }
}

/// Whether a client is an authority of ACME: it offers that protocol and no other (RFC 8737, 3).
fn asks_by_acme(hello: &ClientHello<'_>) -> bool {
    let offered = hello.alpn();
    offered.is_some_and(|offered| offered.eq([ACME_ALPN]))
}

/// What answers a challenge: one certificate, and nothing after the handshake.
fn challenge_config(key: Arc<CertifiedKey>) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![ACME_ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Why TLS cannot begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Files(#[from] StateFileError),
}

/// Uses what is on disk. What cannot be used is removed there: it comes again from the server. Blocks.
fn begin_with_kept(
    files: &CertificateFiles,
    certificates: &Certificates,
) -> Result<(), StateFileError> {
    for kind in [Kind::Kept, Kind::Issued] {
        for (name, pem) in files.read_all(kind)? {
            match Usable::of(&pem) {
                Ok(usable) if kind == Kind::Kept => certificates.begin_with(&name, usable),
                Ok(usable) => certificates.set_issued(&name, usable),
                Err(error) => {
                    tracing::warn!(name, %error, "cannot use a certificate on disk; it is removed");
                    files.remove(kind, &name)?;
                }
            }
        }
    }
    Ok(())
}

/// Serves until `shutdown`, then until the requests in flight are done, within bounds.
pub(crate) async fn serve(tls: Arc<Tls>, listener: TcpListener, shutdown: CancellationToken) {
    socket::prepare_listener(&listener);
    let connections = tls.edge.tls_connections.clone();
    let room = Arc::new(Semaphore::new(MAX_CLIENT_CONNECTIONS));
    let cut_off = CancellationToken::new();
    loop {
        let next = async {
            let place = Arc::clone(&room).acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            next = next => next,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let tls = Arc::clone(&tls);
        let (shutdown, cut_off) = (shutdown.clone(), cut_off.clone());
        connections.spawn(async move {
            let _open = tls.edge.metrics.count_connection();
            tokio::select! {
                () = tls.serve_one(stream, client, shutdown) => {}
                () = cut_off.cancelled() => {}
            }
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    tokio::select! {
        () = connections.wait() => {}
        () = tls.edge.hurries() => {}
    }
    if tokio::time::timeout(DRAIN_TIMEOUT, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = connections.len(),
            "requests over TLS that did not finish within {} s are cut off",
            DRAIN_TIMEOUT.as_secs()
        );
    }
    cut_off.cancel();
    connections.wait().await;
}
