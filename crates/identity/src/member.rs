//! What a member of the cluster holds, and how its certificate names it.

use api::enrollment::Member;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

use crate::{KeyError, generate_key};

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

/// Who a verified client certificate belongs to. The chain must have been verified before, to the
/// CA that signs members only.
pub fn member_of_certificate(der: &[u8]) -> Result<Member, MemberCertificateError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der)
        .map_err(|e| MemberCertificateError::Malformed(e.to_string()))?;
    let subject = certificate.subject();
    let not_a_member = || MemberCertificateError::NotAMember(subject.to_string());
    let mut names = subject.iter_common_name();
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(not_a_member());
    };
    let name = name.as_str().map_err(|_| not_a_member())?;
    let member = match name.split_once(':') {
        Some(("node", id)) => id.parse().ok().map(Member::Node),
        Some(("edge", id)) => id.parse().ok().map(Member::Edge),
        _ => None,
    };
    member.ok_or_else(not_a_member)
}
