//! How a machine that holds nothing but an enrollment token knows the right server.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};

use crate::sha256;

/// A verifier for enrollment only: it accepts a chain whose root, sent by the server, has the
/// fingerprint that the token carries. All else is checked as ever: the chain's signatures, its
/// dates, and that the certificate is for the name that was dialled.
pub fn pinned_root(ca_fingerprint: [u8; 32]) -> Arc<PinnedRoot> {
    Arc::new(PinnedRoot {
        ca_fingerprint,
        provider: rustls::crypto::aws_lc_rs::default_provider(),
    })
}

/// See [`pinned_root`].
#[derive(Debug)]
pub struct PinnedRoot {
    ca_fingerprint: [u8; 32],
    provider: CryptoProvider,
}

/// The server belongs to another cluster than the token, or is not the platform's at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server is not of the cluster that this token is for: its CA has another fingerprint")]
struct OtherCluster;

impl ServerCertVerifier for PinnedRoot {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = intermediates
            .iter()
            .find(|certificate| sha256(certificate) == self.ca_fingerprint)
            .ok_or_else(|| {
                Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(
                    OtherCluster,
                ))))
            })?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        verify_server_name(&certificate, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
