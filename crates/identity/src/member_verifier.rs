//! How a server takes its members' certificates: whoever proves to have the key of the one that it shows.
//!
//! A member that was away for a month, or whose server was, comes with a certificate that has expired; after a server's clock was wrong for a day, with
//! one that is not valid yet; after a store was restored from before its CA was replaced, with one of a CA that nobody knows. Who it is its key
//! says, and whether it may do anything the record of that key. So neither dates nor signatures end a connection here. Whoever serves it looks at
//! [`is_signed_by`] and [`crate::MemberCertificate::is_current`], and lets a certificate that is not good renew and do nothing else.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};

use crate::CaError;

/// A verifier of clients' certificates, which need not show one: they prove to have its key. Which CAs there are is a hint to them.
///
/// # Errors
/// There is no CA.
pub fn member_verifier(roots: RootCertStore) -> Result<Arc<dyn ClientCertVerifier>, CaError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .map_err(|error| CaError::Load(error.to_string()))?;
    Ok(Arc::new(WhoeverHasItsKey(verifier)))
}

/// Whether one of these CAs signed a client certificate (or one that they signed did), whatever its dates.
pub fn is_signed_by(roots: &RootCertStore, certificate: &CertificateDer<'_>) -> bool {
    let Ok((from, _)) = dates(certificate) else {
        return false;
    };
    let at = UnixTime::since_unix_epoch(Duration::from_secs(from));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = Arc::new(roots.clone());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
    verifier.is_ok_and(|verifier| verifier.verify_client_cert(certificate, &[], at).is_ok())
}

#[derive(Debug)]
struct WhoeverHasItsKey(Arc<dyn ClientCertVerifier>);

/// The dates of a certificate, in seconds since 1970.
fn dates(certificate: &CertificateDer<'_>) -> Result<(u64, u64), Error> {
    let malformed = Error::InvalidCertificate(CertificateError::BadEncoding);
    let parsed = x509_parser::parse_x509_certificate(certificate);
    let (_, parsed) = parsed.map_err(|_| malformed.clone())?;
    let validity = parsed.validity();
    let seconds = |at: x509_parser::time::ASN1Time| u64::try_from(at.timestamp());
    match (seconds(validity.not_before), seconds(validity.not_after)) {
        (Ok(from), Ok(until)) if from <= until => Ok((from, until)),
        _ => Err(malformed),
    }
}

impl ClientCertVerifier for WhoeverHasItsKey {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // One that cannot be read is refused.
        dates(end_entity)?;
        let _ = (intermediates, now);
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
