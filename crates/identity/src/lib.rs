//! Keys, the cluster's CA, certificates and tokens (ADR 0004).
//!
//! - [`ClusterCa`]: the cluster's own root. It signs members' client certificates and the
//!   servers' certificates, and nothing else.
//! - [`IngressCa`]: another root, for hosts of apps that have no certificate of their own. It signs no member's and no server's certificate.
//! - [`HostCertificate`]: a certificate by which an edge shows that it serves a host.
//! - [`MemberKey`]: the key a node or edge makes for itself; only its request leaves the machine.
//! - [`WireguardKey`]: a node's overlay key.
//! - [`EnrollmentToken`], [`UserToken`]: bearer secrets; servers keep their hash only.
//! - [`SealKey`]: encrypts what the server keeps of others' secrets.
//! - [`KeyEncryptionKey`]: wraps the CA's key and the [`SealKey`], which are stored in no other way.
//! - [`pinned_root`]: how a machine that holds nothing but a token knows the right server.
//!
//! Pure: no files, no sockets, and time is an argument. The one exception is randomness, which
//! comes from the system's generator: a key that a caller could choose would not be a key.
//!
//! Deliberately absent: lists of revoked certificates. Who a member is its key says ([`MemberCertificate`]), and whether it may do anything the
//! record of that key; certificates live [`MEMBER_DAYS`]. There is one key type, ECDSA P-256, and others are refused.

mod acme;
mod ca;
mod host_certificate;
mod ingress;
mod member;
mod member_verifier;
mod pinned;
mod seal;
mod token;
mod wireguard;
mod wrap;

#[cfg(test)]
mod tests;

pub use acme::{ACME_ALPN, challenge_certificate, generate_host_key, host_request};
pub use ca::{
    CA_DAYS, CLOCK_SKEW_SECONDS, CaError, ClusterCa, MEMBER_DAYS, SERVER_DAYS, ServerCertificate,
    certificate_fingerprint, public_key_of_request,
};
pub use host_certificate::{
    HostCertificate, HostCertificateError, MAX_CERTIFICATE_KEY_BYTES, MAX_CHAIN_BYTES,
    certified_key, host_patterns,
};
pub use ingress::{INGRESS_DAYS, IngressCa};
pub use member::{
    MAX_CSR_BYTES, MemberCertificate, MemberCertificateError, MemberKey, is_server_certificate,
    key_fingerprint,
};
pub use member_verifier::{is_signed_by, member_verifier};
pub use pinned::{PinnedRoot, pinned_root};
pub use seal::{OpenError, SEAL_OVERHEAD_BYTES, SealKey};
pub use token::{ClusterPlace, EnrollmentToken, Secret, TokenError, UserToken, secret_hash};
pub use wireguard::{WireguardKey, is_wireguard_public_key};
pub use wrap::KeyEncryptionKey;

/// The system's random generator failed, or no key could be made of its bytes. The caller can only stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("could not make {what}: {cause}")]
pub struct KeyError {
    /// What was to be made.
    pub(crate) what: &'static str,
    /// What the library said.
    pub(crate) cause: String,
}

impl KeyError {
    fn new(what: &'static str, cause: impl std::fmt::Display) -> Self {
        Self {
            what,
            cause: cause.to_string(),
        }
    }
}

/// `N` bytes of the system's randomness; `what` they are for is for the error only.
pub fn random<const N: usize>(what: &'static str) -> Result<[u8; N], KeyError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|cause| KeyError::new(what, cause))?;
    Ok(bytes)
}

/// Bytes for people to compare, in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A new ECDSA P-256 key; `what` it is for is for the error only.
fn generate_key(what: &'static str) -> Result<rcgen::KeyPair, KeyError> {
    rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|cause| KeyError::new(what, cause))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    out
}
