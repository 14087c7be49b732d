//! The cluster's own certificate authority.

use std::net::IpAddr;
use std::time::Duration;

use api::enrollment::Member;
use model::{PublicKey, Timestamp};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::member::{MAX_CSR_BYTES, SERVER_SUBJECT, common_name};
use crate::{KeyError, generate_key, random, sha256};

/// Life of the CA, in days.
pub const CA_DAYS: u64 = 3650;
/// Life of a member's client certificate, in days. It renews itself at two thirds ([`crate::MemberCertificate::renewal_due`]).
pub const MEMBER_DAYS: u64 = 7;
/// Life of a server's certificate, in days; each start of a server issues a new one, and a server that runs long issues one at half of it.
pub const SERVER_DAYS: u64 = 825;

/// How far the clocks of two machines may be apart, in seconds: certificates are valid from this
/// long before they were signed.
pub const CLOCK_SKEW_SECONDS: u64 = 3600;

const DAY_SECONDS: u64 = 24 * 3600;
const SERIAL_BYTES: usize = 16;
/// What is between a cluster's name and the number of a CA that took another's place.
const SUCCESSOR: &str = " CA ";

/// Why the CA could not be made or read, or would not sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// No key could be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A certificate could not be put together.
    #[error("could not sign the certificate of {subject}")]
    Sign {
        /// Whose certificate.
        subject: String,
        /// What the library said.
        #[source]
        source: rcgen::Error,
    },
    /// The stored CA cannot be read.
    #[error("could not read the cluster's CA: {0}")]
    Load(String),
    /// The request is no valid request, or is not signed by its own key.
    #[error("the certificate request is refused: {0}")]
    Request(String),
}

/// A server's certificate with its key.
#[derive(Clone)]
pub struct ServerCertificate {
    /// The certificate and, after it, the CA's, PEM: what a server sends to its callers.
    pub cert_pem: String,
    /// The key, PKCS#8 PEM. Secret.
    pub key_pem: String,
}

impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerCertificate")
            .field("cert_pem", &self.cert_pem)
            .finish_non_exhaustive()
    }
}

/// The cluster's own root: what every member and every user of the cluster trusts, and all they
/// trust.
pub struct ClusterCa {
    certificate_pem: String,
    certificate_der: CertificateDer<'static>,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterCa")
            .field("certificate_pem", &self.certificate_pem)
            .finish_non_exhaustive()
    }
}

impl ClusterCa {
    /// A new CA for the cluster with this random id, valid from `now` for [`CA_DAYS`].
    pub fn generate(cluster_id: &str, now: Timestamp) -> Result<Self, CaError> {
        let subject = format!("platform cluster {cluster_id}");
        let key = generate_key("the CA's key")?;
        let certificate = ca_params(&subject, now)?
            .self_signed(&key)
            .map_err(|source| CaError::Sign { subject, source })?;
        Self::load(&certificate.pem(), &key.serialize_pem())
    }

    /// A new CA that takes the place of this one, and its certificate by this one, PEM: whoever trusts this one follows that. Valid from `now`.
    pub fn successor(&self, now: Timestamp) -> Result<(Self, String), CaError> {
        let number = crate::hex(&random::<4>("a CA's number")?);
        let (_, parsed) = x509_parser::parse_x509_certificate(&self.certificate_der)
            .map_err(|e| CaError::Load(format!("its certificate: {e}")))?;
        let mut names = parsed.subject().iter_common_name();
        let name = names.next().and_then(|name| name.as_str().ok());
        let name = name.unwrap_or("platform cluster");
        // Another name than this one's: a certificate says by the name which of both signed it.
        let name = name.split(SUCCESSOR).next().unwrap_or(name);
        let subject = format!("{name}{SUCCESSOR}{number}");
        let key = generate_key("the CA's key")?;
        let signed = |source| CaError::Sign {
            subject: subject.clone(),
            source,
        };
        let mut params = ca_params(&subject, now)?;
        let certificate = params.self_signed(&key).map_err(signed)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let cross = params.signed_by(&key, &self.issuer).map_err(signed)?;
        let successor = Self::load(&certificate.pem(), &key.serialize_pem())?;
        Ok((successor, cross.pem()))
    }

    /// The CA as it was stored.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, CaError> {
        let key = KeyPair::from_pem(key_pem).map_err(|e| CaError::Load(format!("its key: {e}")))?;
        let certificate_der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|e| CaError::Load(format!("its certificate: {e}")))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate_der)
            .map_err(|e| CaError::Load(format!("its certificate: {e}")))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(CaError::Load(
                "the key does not belong to the certificate".to_owned(),
            ));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate_der, key)
            .map_err(|e| CaError::Load(format!("its certificate: {e}")))?;
        Ok(Self {
            certificate_pem: certificate_pem.to_owned(),
            certificate_der,
            key_pem: key_pem.to_owned(),
            issuer,
        })
    }

    /// The CA's certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The CA's key, PKCS#8 PEM. Secret.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// SHA-256 of the CA's certificate in DER: what an enrollment token pins.
    pub fn fingerprint(&self) -> [u8; 32] {
        sha256(&self.certificate_der)
    }

    /// Signs the certificate by which `member` is known from now on, for [`MEMBER_DAYS`].
    ///
    /// Of the request only the public key is taken, after its signature was checked: who the
    /// caller is, the server decides.
    pub fn sign_member(
        &self,
        csr_pem: &str,
        member: Member,
        now: Timestamp,
    ) -> Result<String, CaError> {
        let key = requested_key(csr_pem)?;
        let subject = common_name(member);
        let mut params = params(&subject, MEMBER_DAYS, now)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Ok(self.sign(subject, &params, &key)?.pem())
    }

    /// Issues the certificate of a server that is reached by these names and addresses, with a
    /// new key, for [`SERVER_DAYS`]. `chain_pem`: what is sent to callers after it, the CA's certificate among it.
    pub fn issue_server(
        &self,
        names: &[String],
        ips: &[IpAddr],
        chain_pem: &str,
        now: Timestamp,
    ) -> Result<ServerCertificate, CaError> {
        let subject = SERVER_SUBJECT.to_owned();
        let key = generate_key("the server's key")?;
        let mut params = params(&subject, SERVER_DAYS, now)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // It is a client too: of the server that leads, to which it forwards its callers.
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        for name in names {
            let name = name.as_str().try_into().map_err(|source| CaError::Sign {
                subject: format!("the server name `{name}`"),
                source,
            })?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params
            .subject_alt_names
            .extend(ips.iter().copied().map(SanType::IpAddress));
        let certificate = self.sign(subject, &params, &key)?;
        Ok(ServerCertificate {
            cert_pem: format!("{}{chain_pem}", certificate.pem()),
            key_pem: key.serialize_pem(),
        })
    }

    fn sign(
        &self,
        subject: String,
        params: &CertificateParams,
        key: &impl rcgen::PublicKeyData,
    ) -> Result<Certificate, CaError> {
        params
            .signed_by(key, &self.issuer)
            .map_err(|source| CaError::Sign { subject, source })
    }
}

/// The public key that [`ClusterCa::sign_member`] would certify by this request, whose signature is checked: to be asked before a one-time
/// token is spent on it.
pub fn public_key_of_request(csr_pem: &str) -> Result<PublicKey, CaError> {
    let key = requested_key(csr_pem)?;
    public_key(&key)
}

fn public_key(key: &impl rcgen::PublicKeyData) -> Result<PublicKey, CaError> {
    PublicKey::of_der(&key.subject_public_key_info())
        .map_err(|error| CaError::Request(error.to_string()))
}

/// The public key of a request, after its signature was checked.
pub(crate) fn requested_key(csr_pem: &str) -> Result<rcgen::PublicKey, CaError> {
    if csr_pem.len() > MAX_CSR_BYTES {
        return Err(CaError::Request(format!(
            "it is {} bytes, more than {MAX_CSR_BYTES}",
            csr_pem.len()
        )));
    }
    let request = CertificateSigningRequestParams::from_pem(csr_pem)
        .map_err(|e| CaError::Request(e.to_string()))?;
    if *request.public_key.algorithm() != PKCS_ECDSA_P256_SHA256 {
        return Err(CaError::Request("its key is not ECDSA P-256".to_owned()));
    }
    Ok(request.public_key)
}

/// SHA-256 of the DER of the first certificate in `pem`; what [`ClusterCa::fingerprint`] is for
/// whoever has only the certificate.
pub fn certificate_fingerprint(pem: &str) -> Result<[u8; 32], CaError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map(|der| sha256(&der))
        .map_err(|e| CaError::Load(format!("its certificate: {e}")))
}

pub(crate) fn ca_params(common_name: &str, now: Timestamp) -> Result<CertificateParams, CaError> {
    let mut params = params(common_name, CA_DAYS, now)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

pub(crate) fn params(
    common_name: &str,
    days: u64,
    now: Timestamp,
) -> Result<CertificateParams, CaError> {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now_seconds = now.0 / 1000;
    let mut params = CertificateParams::default();
    params.not_before = epoch + Duration::from_secs(now_seconds.saturating_sub(CLOCK_SKEW_SECONDS));
    params.not_after = epoch + Duration::from_secs(now_seconds + days * DAY_SECONDS);
    let mut serial = random::<SERIAL_BYTES>("a serial number")?;
    serial[0] &= 0x7f; // A serial number is positive (RFC 5280, 4.1.2.2).
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}
