//! The CAs of the cluster: the one that signs, and those before it (ADR 0004).
//!
//! ```text
//!             begin                              finish
//!   A signs ---------> B signs, A is trusted too -------> B signs
//! ```
//!
//! A server shows its certificate, signed by the CA that signs, with that CA's own certificate by the one before: whoever knows only that follows the
//! chain. So nothing is down in between, and a member that was away for the whole of it comes back, learns of the new CA, and renews its
//! certificate. Its old one need not be of a CA that is known: who it is its key says.

use std::sync::Arc;

use identity::ClusterCa;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::options::ServerError;

/// The CAs of the cluster, as the store has them.
#[derive(Debug, Clone)]
pub(crate) struct Authority {
    /// It signs.
    pub(crate) current: Arc<ClusterCa>,
    /// Those that signed before and are trusted still, PEM: the newest first.
    pub(crate) before_pem: String,
    /// The certificates of CAs by the ones before them, PEM: the newest first.
    pub(crate) cross_pem: String,
}

impl Authority {
    /// A cluster's first CA.
    pub(crate) fn first(current: ClusterCa) -> Self {
        Self {
            current: Arc::new(current),
            before_pem: String::new(),
            cross_pem: String::new(),
        }
    }

    /// What members and users trust, PEM: the one that signs first.
    pub(crate) fn trusted_pem(&self) -> String {
        format!("{}{}", self.current.certificate_pem(), self.before_pem)
    }

    /// What a server shows after its own certificate, PEM.
    pub(crate) fn chain_pem(&self) -> String {
        let trusted = self.trusted_pem();
        format!("{}{trusted}", self.cross_pem)
    }

    /// The CAs that are trusted, to check certificates by.
    pub(crate) fn roots(&self) -> Result<RootCertStore, ServerError> {
        fn failed(error: impl std::fmt::Display) -> ServerError {
            ServerError::Tls(error.to_string())
        }
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.trusted_pem().as_bytes()) {
            roots.add(certificate.map_err(failed)?).map_err(failed)?;
        }
        Ok(roots)
    }

    /// Whether it is another one than before, to those that trust or show it.
    pub(crate) fn differs(&self, other: &Self) -> bool {
        self.chain_pem() != other.chain_pem()
    }
}
