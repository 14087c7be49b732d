//! A server's TLS: its certificate, whom it trusts, and what it connects to other servers with. All of it is made anew when the cluster has another CA, or
//! when half the life of the certificate is over, while connections go on.

// ring: the dispatch holds the TLS of its listener, and other certificates are other connections of the dispatch to other servers.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use identity::ServerCertificate;
use model::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{RootCertStore, ServerConfig};
use store::Store;
use tokio::sync::{Notify, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::authority::Authority;
use crate::clock::now;
use crate::connection::ALPN;
use crate::dispatch::Servers;
use crate::keys;
use crate::limits::CA_LOOK_INTERVAL;
use crate::options::ServerError;

/// What a server's TLS is made of at a time.
pub(crate) struct Tls {
    pub(crate) acceptor: TlsAcceptor,
    /// The CAs that are trusted.
    pub(crate) roots: RootCertStore,
    /// What connects to the server that leads.
    pub(crate) servers: Servers,
    /// When another certificate is due.
    renewed_at: Timestamp,
}

/// Where a server is reached, for its certificate.
pub(crate) struct ReachedBy {
    pub(crate) names: Vec<String>,
    pub(crate) ips: Vec<IpAddr>,
}

impl Tls {
    pub(crate) fn new(authority: &Authority, reached_by: &ReachedBy) -> Result<Self, ServerError> {
        let now = now();
        let ReachedBy { names, ips } = reached_by;
        let chain = authority.chain_pem();
        let certificate = authority.current.issue_server(names, ips, &chain, now)?;
        let half = identity::SERVER_DAYS * 24 * 3600 * 1000 / 2;
        Ok(Self {
            acceptor: acceptor(authority, &certificate)?,
            roots: authority.roots()?,
            servers: Servers::new(authority, &certificate)?,
            renewed_at: Timestamp(now.0 + half),
        })
    }
}

/// TLS with this certificate. Clients may show a certificate of a member: of which CA, and whether it is within its dates, is looked at
/// afterwards.
fn acceptor(authority: &Authority, issued: &ServerCertificate) -> Result<TlsAcceptor, ServerError> {
    fn failed(error: impl std::fmt::Display) -> ServerError {
        ServerError::Tls(error.to_string())
    }
    let chain = CertificateDer::pem_slice_iter(issued.cert_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).map_err(failed)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = identity::member_verifier(authority.roots()?)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(failed)?;
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What looks whether the CAs are others than they were.
pub(crate) struct Watcher {
    pub(crate) store: Store,
    pub(crate) data_dir: PathBuf,
    pub(crate) reached_by: ReachedBy,
    pub(crate) authority: watch::Sender<Arc<Authority>>,
    pub(crate) tls: watch::Sender<Arc<Tls>>,
    /// Notified when this server has changed them.
    pub(crate) changed: Arc<Notify>,
}

impl Watcher {
    /// Until the server ends.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => {}
                () = tokio::time::sleep(CA_LOOK_INTERVAL) => {}
            }
            if let Err(error) = self.look().await {
                let error = display::chain(&error);
                tracing::warn!(error, "cannot look whether the cluster has another CA");
            }
        }
    }

    async fn look(&self) -> Result<(), ServerError> {
        let known = Arc::clone(&self.authority.borrow());
        let stored = keys::stored_authority(&self.store, &self.data_dir, &known).await?;
        let is_due = now() >= self.tls.borrow().renewed_at;
        if stored.is_none() && !is_due {
            return Ok(());
        }
        let is_other = stored.is_some();
        let authority = stored.map_or(known, Arc::new);
        let tls = Tls::new(&authority, &self.reached_by)?;
        self.tls.send_replace(Arc::new(tls));
        self.authority.send_replace(authority);
        if is_other {
            tracing::info!("the cluster has another CA; this server has a certificate of it");
        }
        Ok(())
    }
}
