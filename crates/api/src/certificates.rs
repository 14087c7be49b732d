//! What users and the server say to each other about the certificates of hosts.

use std::fmt;

use model::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most certificates of operators that a cluster keeps.
pub const MAX_CERTIFICATES: usize = 1_000;
/// Longest name of a certificate, in bytes: that of the longest host.
pub const MAX_CERTIFICATE_NAME_BYTES: usize = 253;
/// Time before its end from which on a certificate is warned of, in milliseconds: 14 days.
pub const EXPIRES_SOON_MS: u64 = 14 * 24 * 60 * 60 * 1000;

/// Whether a certificate may have this name: of letters `a` to `z`, digits, `.`, `-` and `_`, with `*` where the name is that of a wildcard. It is the
/// name of a file on edges, so it does not begin with a dot.
pub fn is_certificate_name(name: &str) -> bool {
    let rest = name.strip_prefix('*').unwrap_or(name);
    let is_good =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    (1..=MAX_CERTIFICATE_NAME_BYTES).contains(&name.len())
        && !name.starts_with('.')
        && !rest.is_empty()
        && rest.bytes().all(is_good)
}

/// POST [`crate::paths::CERTIFICATES`]. One of the same name is replaced.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AddCertificateRequest {
    /// Its name ([`is_certificate_name`]). Absent: the first host that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The certificate and, after it, those of its issuers, PEM. The hosts are the DNS names of the first.
    pub chain_pem: String,
    /// The private key, PEM, without a passphrase. Secret.
    pub key_pem: String,
}

impl fmt::Debug for AddCertificateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddCertificateRequest")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// From where a certificate is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum CertificateSource {
    /// A user added it.
    Operator,
    /// The server ordered it ([`crate::acme`]).
    Acme,
}

impl fmt::Display for CertificateSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Operator => "operator",
            Self::Acme => "acme",
        })
    }
}

/// A certificate that the cluster keeps, without its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateRow {
    /// Its name.
    pub name: String,
    /// The hosts that it is for.
    pub hosts: Vec<String>,
    /// Who issued it, for people.
    pub issuer: String,
    /// Until when it is valid.
    pub not_after: Timestamp,
    /// Whether it ends within [`EXPIRES_SOON_MS`], or has ended; by ACME, whether less than a sixth of its life is left.
    pub expires_soon: bool,
    /// From where it is.
    pub source: CertificateSource,
    /// The name of the user who added it; by ACME `acme`.
    pub by: String,
    /// When it was added.
    pub added_at: Timestamp,
    /// Why edges do not have it. Absent: they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// The query of DELETE [`crate::paths::CERTIFICATES`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateQuery {
    /// Its name.
    pub name: String,
}

/// GET [`crate::paths::INGRESS_CA`]: the CA of the hosts that have no certificate of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IngressCaRow {
    /// Its certificate, PEM.
    pub ca_pem: String,
    /// SHA-256 of the certificate (DER), hexadecimal.
    pub fingerprint: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_certificates_are_names_of_files() {
        for name in ["a.example.com", "*.example.com", "shop-2026_x", "x"] {
            assert!(is_certificate_name(name), "{name}");
        }
        let long = "a".repeat(MAX_CERTIFICATE_NAME_BYTES + 1);
        for name in [
            "", ".", "..", ".x", "a/b", "../x", "A", "a b", "a*", "*", "ä", &long,
        ] {
            assert!(!is_certificate_name(name), "{name}");
        }
    }

    #[test]
    fn a_request_shows_no_key() {
        let request = AddCertificateRequest {
            name: None,
            chain_pem: "chain".to_owned(),
            key_pem: "private".to_owned(),
        };
        assert!(!format!("{request:?}").contains("private"));
    }
}
