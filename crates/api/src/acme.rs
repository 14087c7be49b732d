//! What users and the server say to each other about certificates by ACME (RFC 8555).

use std::collections::BTreeSet;
use std::fmt;

use model::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The directory of Let's Encrypt.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// The directory of Let's Encrypt for tries: no browser trusts its certificates, and its limits are wide.
pub const LETS_ENCRYPT_STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";
/// Orders that begin in an hour where nobody says otherwise: Let's Encrypt takes 300 in three hours of an account.
pub const ORDERS_PER_HOUR: u32 = 90;
/// Most orders that may begin in an hour.
pub const MAX_ORDERS_PER_HOUR: u32 = 10_000;
/// Most wildcards of the settings.
pub const MAX_WILDCARDS: usize = 100;
/// Most certificates by ACME that a cluster has.
pub const MAX_ACME_CERTIFICATES: usize = 10_000;
/// Most names that [`AcmeStatus`] lists.
pub const MAX_ACME_NAMES_LISTED: usize = 1_000;
/// Longest URL of a directory, mail address, id of a key and key of an external account, in bytes.
pub const MAX_ACME_TEXT_BYTES: usize = 1_024;
/// Longest PEM of a directory's CA, in bytes.
pub const MAX_ACME_CA_BYTES: usize = 64 * 1024;

/// The key of a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HostKeyType {
    /// ECDSA with P-256.
    #[default]
    EcdsaP256,
    /// ECDSA with P-384.
    EcdsaP384,
    /// RSA with 2048 bits, for clients of long ago.
    Rsa2048,
}

impl fmt::Display for HostKeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::EcdsaP256 => "ecdsa-p256",
            Self::EcdsaP384 => "ecdsa-p384",
            Self::Rsa2048 => "rsa2048",
        })
    }
}

/// How the authority is shown that a host leads here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ChallengePreference {
    /// HTTP-01, then TLS-ALPN-01, and so on in turn after each failure; of wildcards DNS-01.
    #[default]
    Auto,
    /// By a file at port 80 of edges (RFC 8555, 8.3).
    #[serde(rename = "http-01")]
    Http01,
    /// By a certificate at port 443 of edges (RFC 8737).
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
    /// By a record in the DNS, which the server's hook sets (RFC 8555, 8.4).
    #[serde(rename = "dns-01")]
    Dns01,
}

impl fmt::Display for ChallengePreference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
            Self::Dns01 => "dns-01",
        })
    }
}

/// An account that the authority knows from elsewhere (RFC 8555, 7.3.4).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExternalAccount {
    /// The id of its key.
    pub key_id: String,
    /// Its key (HMAC), base64url without padding, as authorities give it. Secret.
    pub hmac_key: String,
}

impl fmt::Debug for ExternalAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExternalAccount")
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

/// PUT [`crate::paths::ACME`]: hosts that are routed get certificates by ACME from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AcmeRequest {
    /// The URL of the authority's directory, `https`.
    pub directory: String,
    /// Whether the caller agrees to the authority's terms of service. Nothing begins without.
    pub terms_of_service_agreed: bool,
    /// A mail address at which the authority reaches an operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// For authorities that ask for it. Absent: the one that was given before for the same directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_account: Option<ExternalAccount>,
    /// Of an authority of one's own: the CA by which its directory is trusted, PEM. Names that are not public are ordered too, then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// The keys of certificates.
    #[serde(default)]
    pub key_type: HostKeyType,
    /// How it is shown that hosts lead here.
    #[serde(default)]
    pub challenge: ChallengePreference,
    /// Wildcards to order, such as `*.example.com`: hosts that fit one have none of their own. They need the server's hook for DNS-01.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub wildcards: BTreeSet<String>,
    /// How many orders begin in an hour at most. Absent: [`ORDERS_PER_HOUR`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orders_per_hour: Option<u32>,
}

/// GET [`crate::paths::ACME`]: whether certificates are ordered, and how it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AcmeStatus {
    /// What was set; absent: nothing is ordered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<AcmeSettings>,
    /// Whether the server that leads has a hook for DNS-01.
    pub has_dns_hook: bool,
    /// Why nothing is ordered at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    /// Names that are to have a certificate by ACME.
    pub wanted: u32,
    /// Of those, names that have none.
    pub missing: u32,
    /// Names with an order under way, or whose last try failed; at most [`MAX_ACME_NAMES_LISTED`].
    pub names: Vec<AcmeNameRow>,
}

/// What was set, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AcmeSettings {
    /// The URL of the authority's directory.
    pub directory: String,
    /// The account's URL; absent: it is not made yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// The mail address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// The id of the external account's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_account: Option<String>,
    /// Whether the authority is one's own, trusted by a CA that was given.
    pub is_private: bool,
    /// The keys of certificates.
    pub key_type: HostKeyType,
    /// How it is shown that hosts lead here.
    pub challenge: ChallengePreference,
    /// Wildcards that are ordered.
    pub wildcards: BTreeSet<String>,
    /// How many orders begin in an hour at most.
    pub orders_per_hour: u32,
    /// Who set it.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// A name with an order under way, or whose last try failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AcmeNameRow {
    /// The host, or the wildcard.
    pub name: String,
    /// Whether an order is under way.
    pub is_ordering: bool,
    /// Tries that failed since the last that did not.
    pub failures: u32,
    /// How the last one failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// When that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<Timestamp>,
    /// When it is tried again; absent: it is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<Timestamp>,
}

/// The query of POST [`crate::paths::ACME_RETRY`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AcmeRetryQuery {
    /// The name that is to be tried again now.
    pub name: String,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_request_shows_no_key_and_says_little_where_little_is_wanted() {
        let json = format!(r#"{{"directory":"{LETS_ENCRYPT}","terms_of_service_agreed":true}}"#);
        let mut request: AcmeRequest = serde_json::from_str(&json).unwrap();
        assert_eq!(request.key_type, HostKeyType::EcdsaP256);
        assert_eq!(request.challenge, ChallengePreference::Auto);
        request.external_account = Some(ExternalAccount {
            key_id: "kid".to_owned(),
            hmac_key: "private".to_owned(),
        });
        let shown = format!("{request:?}");
        assert!(
            shown.contains("kid") && !shown.contains("private"),
            "{shown}"
        );
    }

    #[test]
    fn words_of_settings_are_what_is_shown() {
        for kind in [
            HostKeyType::EcdsaP256,
            HostKeyType::EcdsaP384,
            HostKeyType::Rsa2048,
        ] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.to_string());
        }
        for challenge in [
            ChallengePreference::Auto,
            ChallengePreference::Http01,
            ChallengePreference::TlsAlpn01,
            ChallengePreference::Dns01,
        ] {
            assert_eq!(
                serde_json::to_value(challenge).unwrap(),
                challenge.to_string()
            );
        }
    }
}
