//! Certificates of the ingress CA, asked for when a client comes for a host that has no other.
//!
//! The key is made here and stays here; the server signs for hosts that are routed. One is asked for at a time, and a client waits for it in its
//! handshake. From two thirds of its life on the next one is asked for, and clients have this one meanwhile.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use api::edge::{EdgeCertificate, HostCertificateRequest};
use api_client::{ApiClient, ClientError};
use blocking_work::blocking;
use identity::{HostCertificateError, KeyError, MemberKey};

use crate::certificates::{Certificates, Usable, now};
use crate::forward::Edge;
use crate::kept_certificates::{CertificateFiles, Kind};
use crate::limits::{HOST_CERTIFICATE_PAUSE, HOST_CERTIFICATE_TIMEOUT, MAX_REFUSED_HOSTS};

/// Why a host has no certificate.
#[derive(Debug, thiserror::Error)]
enum NotIssued {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Call(#[from] ClientError),
    #[error("the server did not sign it within {} s", HOST_CERTIFICATE_TIMEOUT.as_secs())]
    TimedOut,
    #[error("the server signed one that cannot be used")]
    Unusable(#[from] HostCertificateError),
    #[error("the server signed one for other hosts: {0}")]
    OtherHosts(String),
}

/// When the server is asked again.
#[derive(Debug, Default)]
struct Pauses {
    /// For any host: it cannot be reached.
    all: Option<Instant>,
    /// For hosts that it refused.
    hosts: BTreeMap<String, Instant>,
}

/// What asks for certificates of hosts.
pub(crate) struct HostCertificates {
    edge: Arc<Edge>,
    certificates: Arc<Certificates>,
    files: CertificateFiles,
    /// Known once the edge is a member.
    client: OnceLock<ApiClient>,
    /// Held by who asks.
    asking: tokio::sync::Mutex<()>,
    pauses: Mutex<Pauses>,
}

impl fmt::Debug for HostCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostCertificates(..)")
    }
}

impl HostCertificates {
    pub(crate) fn new(
        edge: Arc<Edge>,
        certificates: Arc<Certificates>,
        files: CertificateFiles,
    ) -> Self {
        Self {
            edge,
            certificates,
            files,
            client: OnceLock::new(),
            asking: tokio::sync::Mutex::default(),
            pauses: Mutex::default(),
        }
    }

    /// The edge is a member, and asks by this client.
    pub(crate) fn ask_by(&self, client: ApiClient) {
        // One that is there already is of the same membership.
        let _ = self.client.set(client);
    }

    /// Whether there is a certificate for this host (lowercase), asked for where it is routed and has none.
    pub(crate) async fn ensure(self: &Arc<Self>, host: &str) -> bool {
        if self.certificates.kept_for(host).is_some() {
            return true;
        }
        if !self.edge.routes.serves(host) {
            return false;
        }
        match self.certificates.issued_for(host) {
            Some(known) if now() < known.says.renewal_due() => {}
            Some(known) if now() < known.says.not_after => {
                if !self.is_paused(host) {
                    let (this, host) = (Arc::clone(self), host.to_owned());
                    tokio::spawn(async move { this.ask(&host).await });
                }
            }
            _ => self.ask(host).await,
        }
        self.certificates.issued_for(host).is_some()
    }

    /// Asks for a certificate, where nobody did so meanwhile.
    async fn ask(&self, host: &str) {
        let _asking = self.asking.lock().await;
        let known = self.certificates.issued_for(host);
        let is_fresh = known.is_some_and(|known| now() < known.says.renewal_due());
        if is_fresh || self.is_paused(host) {
            return;
        }
        let Some(client) = self.client.get() else {
            return;
        };
        match self.issue(client, host).await {
            Ok((pem, usable)) => {
                self.certificates.set_issued(host, usable);
                tracing::info!(host, "has a certificate of the ingress CA");
                let (files, change) = (self.files.clone(), (host.to_owned(), Some(pem)));
                let kept = blocking(move || files.keep(Kind::Issued, [change])).await;
                if let Err(error) = kept {
                    tracing::error!(host, error = %display::chain(&error), "a host's certificate could not be kept on disk; that is tried again");
                }
            }
            Err(error) => {
                let cause = display::chain(&error);
                tracing::warn!(host, cause, "has no certificate of the ingress CA");
                self.pause(host, &error);
            }
        }
    }

    async fn issue(
        &self,
        client: &ApiClient,
        host: &str,
    ) -> Result<(EdgeCertificate, Usable), NotIssued> {
        let key = MemberKey::generate()?;
        let request = HostCertificateRequest {
            host: host.to_owned(),
            csr_pem: key.csr_pem(host)?,
        };
        let signed = client.host_certificate(&request);
        let signed = tokio::time::timeout(HOST_CERTIFICATE_TIMEOUT, signed)
            .await
            .map_err(|_| NotIssued::TimedOut)??;
        let pem = EdgeCertificate {
            chain_pem: signed.chain_pem,
            key_pem: key.key_pem(),
        };
        let usable = Usable::of(&pem)?;
        if usable.says.hosts != [host] {
            return Err(NotIssued::OtherHosts(usable.says.hosts.join(", ")));
        }
        Ok((pem, usable))
    }

    fn is_paused(&self, host: &str) -> bool {
        let pauses = self.pauses();
        let now = Instant::now();
        let ends = [pauses.all.as_ref(), pauses.hosts.get(host)];
        ends.into_iter().flatten().any(|end| *end > now)
    }

    /// The server is left alone for a moment: about this host where it refused that, else about all.
    fn pause(&self, host: &str, error: &NotIssued) {
        let end = Instant::now() + HOST_CERTIFICATE_PAUSE;
        let mut pauses = self.pauses();
        let is_away = match error {
            NotIssued::Call(error) => error.is_transient(),
            NotIssued::TimedOut | NotIssued::Key(_) => true,
            NotIssued::Unusable(_) | NotIssued::OtherHosts(_) => false,
        };
        if is_away {
            pauses.all = Some(end);
            return;
        }
        if pauses.hosts.len() >= MAX_REFUSED_HOSTS {
            pauses.hosts.clear();
        }
        pauses.hosts.insert(host.to_owned(), end);
    }

    fn pauses(&self) -> MutexGuard<'_, Pauses> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
