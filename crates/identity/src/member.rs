//! What a member of the cluster holds, and how its certificate names it.

use api::enrollment::Member;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use model::{PublicKey, Timestamp};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::{KeyError, generate_key, sha256};

/// Longest certificate request that is looked at, in bytes of PEM. One for P-256 has about 500.
pub const MAX_CSR_BYTES: usize = 8 * 1024;

/// The key of a node or an edge. It is made on the machine it belongs to and never leaves it.
pub struct MemberKey(KeyPair);

impl std::fmt::Debug for MemberKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemberKey(..)")
    }
}

impl MemberKey {
    /// A new key, ECDSA P-256.
    pub fn generate() -> Result<Self, KeyError> {
        generate_key("the member's key").map(Self)
    }

    /// The key as it was stored.
    pub fn load(key_pem: &str) -> Result<Self, KeyError> {
        KeyPair::from_pem(key_pem)
            .map(Self)
            .map_err(|e| KeyError::new("a member's key of the stored text", e))
    }

    /// The key, PKCS#8 PEM. Secret: write it with mode 0600.
    pub fn key_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// Its public half.
    pub fn public_key(&self) -> Result<PublicKey, KeyError> {
        PublicKey::of_der(&self.0.subject_public_key_info())
            .map_err(|e| KeyError::new("a public key", e))
    }

    /// A request to certify this key (PKCS#10, PEM). `name` is for people who read the request;
    /// the server does not look at it.
    pub fn csr_pem(&self, name: &str) -> Result<String, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params
            .serialize_request(&self.0)
            .and_then(|request| request.pem())
            .map_err(|e| KeyError::new("a certificate request", e))
    }
}

/// Why a certificate does not name a member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberCertificateError {
    /// It cannot be parsed.
    #[error("the client certificate cannot be read: {0}")]
    Malformed(String),
    /// Its subject is not one that [`crate::ClusterCa::sign_member`] writes.
    #[error("the client certificate names `{0}`, which is no member of a cluster")]
    NotAMember(String),
}

pub(crate) fn common_name(member: Member) -> String {
    match member {
        Member::Node(id) => format!("node:{id}"),
        Member::Edge(id) => format!("edge:{id}"),
    }
}

/// The subject of every server's certificate. No member's is this: the server chooses those.
pub(crate) const SERVER_SUBJECT: &str = "platform server";

/// Whether a verified client certificate is one that [`crate::ClusterCa::issue_server`] issued: another server of this cluster. The
/// chain must have been verified before.
pub fn is_server_certificate(der: &[u8]) -> bool {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(der) else {
        return false;
    };
    let mut names = certificate.subject().iter_common_name();
    let (Some(name), None) = (names.next(), names.next()) else {
        return false;
    };
    name.as_str().is_ok_and(|name| name == SERVER_SUBJECT)
}

/// What a member's certificate says. The chain must have been verified before, to the CA that signs members only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberCertificate {
    /// The key whose private half the member has: by this it is known.
    pub key: PublicKey,
    /// The member that it was issued to. After a store was restored that number may be another member's.
    pub issued_to: Member,
    /// From when it is valid.
    pub not_before: Timestamp,
    /// Until when.
    pub not_after: Timestamp,
    /// The name of the CA that signed it, in DER.
    issuer: Vec<u8>,
}

/// A member renews its certificate when this share of its life is left: one third.
const RENEWED_WITH_LEFT: u64 = 3;
/// The renewals of members that joined together are spread over this share of the life: a tenth.
const SPREAD_OVER: u64 = 10;

impl MemberCertificate {
    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// It is no member's.
    pub fn of_der(der: &[u8]) -> Result<Self, MemberCertificateError> {
        let malformed = |error: String| MemberCertificateError::Malformed(error);
        let (_, certificate) = x509_parser::parse_x509_certificate(der)
            .map_err(|error| malformed(error.to_string()))?;
        let subject = certificate.subject();
        let not_a_member = || MemberCertificateError::NotAMember(subject.to_string());
        let mut names = subject.iter_common_name();
        let (Some(name), None) = (names.next(), names.next()) else {
            return Err(not_a_member());
        };
        let name = name.as_str().map_err(|_| not_a_member())?;
        let issued_to = match name.split_once(':') {
            Some(("node", id)) => id.parse().ok().map(Member::Node),
            Some(("edge", id)) => id.parse().ok().map(Member::Edge),
            _ => None,
        };
        let key = PublicKey::of_der(certificate.public_key().raw)
            .map_err(|error| malformed(error.to_string()))?;
        let validity = certificate.validity();
        let time = |at: x509_parser::time::ASN1Time| {
            Timestamp(
                u64::try_from(at.timestamp())
                    .unwrap_or(0)
                    .saturating_mul(1000),
            )
        };
        Ok(Self {
            key,
            issued_to: issued_to.ok_or_else(not_a_member)?,
            not_before: time(validity.not_before),
            not_after: time(validity.not_after),
            issuer: certificate.issuer().as_raw().to_vec(),
        })
    }

    /// Reads the first certificate of a PEM text.
    ///
    /// # Errors
    /// It is no member's.
    pub fn of_pem(pem: &str) -> Result<Self, MemberCertificateError> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| MemberCertificateError::Malformed(error.to_string()))?;
        Self::of_der(&der)
    }

    /// Whether the first CA of these, PEM, signed it: the one that signs now. By its name.
    pub fn is_of_first(&self, ca_pem: &str) -> bool {
        let Ok(ca) = CertificateDer::from_pem_slice(ca_pem.as_bytes()) else {
            return false;
        };
        x509_parser::parse_x509_certificate(&ca)
            .is_ok_and(|(_, ca)| ca.subject().as_raw() == self.issuer)
    }

    /// Whether it is within its dates.
    pub fn is_current(&self, now: Timestamp) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// When its member renews it: at two thirds of its life or a little before, each key at another time.
    pub fn renewal_due(&self) -> Timestamp {
        let life = self.not_after.millis_since(self.not_before);
        let spread = (life / SPREAD_OVER).max(1);
        let [a, b, c, d, ..] = sha256(self.key.der());
        let early = u64::from(u32::from_be_bytes([a, b, c, d])) % spread;
        Timestamp(
            self.not_after
                .0
                .saturating_sub(life / RENEWED_WITH_LEFT + early),
        )
    }
}

/// A key for people to compare, as `ssh-keygen -l` shows one: SHA-256 in base64.
pub fn key_fingerprint(key: &PublicKey) -> String {
    format!("SHA256:{}", STANDARD_NO_PAD.encode(sha256(key.der())))
}
