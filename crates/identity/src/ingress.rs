//! The CA of the hosts that have no certificate of their own.
//!
//! People put its certificate into their browsers, so it is another than the cluster's CA: no member and no server is known by it.

use model::Timestamp;
use rcgen::{ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::ca::{CaError, ca_params, params, requested_key};
use crate::generate_key;
use crate::host_certificate::is_host_pattern;

/// Life of a host's certificate that the ingress CA signed, in days. An edge asks for the next one at two thirds.
pub const INGRESS_DAYS: u64 = 7;

/// The root of the hosts that have no certificate of their own.
pub struct IngressCa {
    certificate_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for IngressCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IngressCa")
            .field("certificate_pem", &self.certificate_pem)
            .finish_non_exhaustive()
    }
}

impl IngressCa {
    /// A new one for the cluster with this id, valid from `now` for [`crate::CA_DAYS`].
    ///
    /// # Errors
    /// No randomness.
    pub fn generate(cluster_id: &str, now: Timestamp) -> Result<Self, CaError> {
        let subject = format!("platform ingress {cluster_id}");
        let key = generate_key("the ingress CA's key")?;
        let mut params = ca_params(&subject, now)?;
        // A browser that trusts it believes it of servers, and of nothing else.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params
            .self_signed(&key)
            .map_err(|source| CaError::Sign { subject, source })?;
        Self::load(&certificate.pem(), &key.serialize_pem())
    }

    /// The CA as it was stored.
    ///
    /// # Errors
    /// It is no certificate with its key.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, CaError> {
        let failed = |what: &str, error: String| CaError::Load(format!("{what}: {error}"));
        let key = KeyPair::from_pem(key_pem)
            .map_err(|e| failed("the ingress CA's key", e.to_string()))?;
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|e| failed("the ingress CA's certificate", e.to_string()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der)
            .map_err(|e| failed("the ingress CA's certificate", e.to_string()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(CaError::Load(
                "the key does not belong to the ingress CA's certificate".to_owned(),
            ));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key)
            .map_err(|e| failed("the ingress CA's certificate", e.to_string()))?;
        Ok(Self {
            certificate_pem: certificate_pem.to_owned(),
            key_pem: key_pem.to_owned(),
            issuer,
        })
    }

    /// Its certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its key, PKCS#8 PEM. Secret.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Signs a certificate for one host, for [`INGRESS_DAYS`]. Of the request only the public key is taken, after its signature was checked:
    /// which host it is for, the server decides.
    ///
    /// # Errors
    /// The request, or the host, is none.
    pub fn sign_host(&self, csr_pem: &str, host: &str, now: Timestamp) -> Result<String, CaError> {
        if !is_host_pattern(host) || host.starts_with('*') {
            return Err(CaError::Request(format!("`{host}` is no host")));
        }
        let key = requested_key(csr_pem)?;
        let sign = |source| CaError::Sign {
            subject: format!("the host `{host}`"),
            source,
        };
        // A common name has at most 64 characters (RFC 5280, appendix A.1), and a host may have more: it is in the alternative names.
        let mut params = params("platform host", INGRESS_DAYS, now)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![SanType::DnsName(host.try_into().map_err(sign)?)];
        let certificate = params.signed_by(&key, &self.issuer).map_err(sign)?;
        Ok(certificate.pem())
    }
}
