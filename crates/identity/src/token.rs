//! Bearer secrets: one-time enrollment tokens and users' tokens.
//!
//! A secret is 256 random bits, so one round of SHA-256 is enough to store it by: there is nothing
//! to guess. Servers look a token up by its hash and keep nothing else of it.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::sha256;
use crate::{KeyError, random};

const SECRET_BYTES: usize = 32;
/// Of a token that carries the server's URL.
const ENROLLMENT_PREFIX: &str = "pt2_";
/// Of a token of a server of before, which does not.
const FIRST_ENROLLMENT_PREFIX: &str = "pt1_";
/// Longest URL in a token, in bytes.
const MAX_URL_BYTES: usize = 1024;
const USER_PREFIX: &str = "pu1_";
/// Of a token that says where the cluster is.
const PLACED_USER_PREFIX: &str = "pu2_";

/// Why a text is not a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It begins otherwise. The text itself is not repeated: it may be another secret.
    #[error("this is not {what}: it must begin with `{prefix}`")]
    Prefix {
        /// Which token was expected.
        what: &'static str,
        /// How it begins.
        prefix: &'static str,
    },
    /// It begins well, and then was cut or mistyped.
    #[error("this is {what} that was cut or mistyped; copy it again")]
    Malformed {
        /// Which token was expected.
        what: &'static str,
    },
}

/// 256 random bits. Its `Debug` shows none of them.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; SECRET_BYTES]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// The secret as it goes into [`api::enrollment::EnrollRequest::token`]: base64url.
    pub fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }
}

/// What a server stores of the secret text that a caller sends: SHA-256 of the text.
pub fn secret_hash(secret_text: &str) -> [u8; 32] {
    sha256(secret_text.as_bytes())
}

/// A one-time enrollment token (ADR 0004), shown as `pt2_<base64url>`. It carries the fingerprint of the cluster's CA and the server's URL, so
/// whoever holds it finds the right server and knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrollmentToken {
    /// SHA-256 of the CA's certificate in DER.
    pub ca_fingerprint: [u8; 32],
    /// What the server knows it by.
    pub secret: Secret,
    /// The server's URL, or those of several with commas between. Absent from a token of a server of before.
    pub server: Option<String>,
}

impl EnrollmentToken {
    /// A new token for the cluster whose CA has this fingerprint, and whose server is at this URL.
    pub fn generate(ca_fingerprint: [u8; 32], server: Option<String>) -> Result<Self, KeyError> {
        Ok(Self {
            ca_fingerprint,
            secret: Secret(random("an enrollment token")?),
            server: server.filter(|url| !url.is_empty() && url.len() <= MAX_URL_BYTES),
        })
    }

    /// What the server stores of it.
    pub fn secret_hash(&self) -> [u8; 32] {
        secret_hash(&self.secret.text())
    }
}

impl fmt::Display for EnrollmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = with_place(&self.ca_fingerprint, &self.secret, self.server.as_deref());
        let prefix = match &self.server {
            None => FIRST_ENROLLMENT_PREFIX,
            Some(_) => ENROLLMENT_PREFIX,
        };
        write!(f, "{prefix}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for EnrollmentToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let what = "an enrollment token";
        let text = text.trim();
        let (encoded, has_url) = match text.strip_prefix(FIRST_ENROLLMENT_PREFIX) {
            Some(encoded) => (encoded, false),
            None => {
                let prefix = ENROLLMENT_PREFIX;
                let encoded = text.strip_prefix(prefix);
                (encoded.ok_or(TokenError::Prefix { what, prefix })?, true)
            }
        };
        let (ca_fingerprint, secret, server) = placed(encoded, what, has_url)?;
        Ok(Self {
            ca_fingerprint,
            secret,
            server,
        })
    }
}

/// A user's bearer token, shown as `pu1_<base64url>`; with where the cluster is, as [`UserToken::at`] makes it, as `pu2_<base64url>`. Both let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserToken {
    secret: Secret,
    /// Where the cluster is, and by what it is known.
    pub cluster: Option<ClusterPlace>,
}

/// Where a cluster is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterPlace {
    /// SHA-256 of the CA's certificate in DER.
    pub ca_fingerprint: [u8; 32],
    /// The server's URL, or those of several with commas between.
    pub server: String,
}

impl UserToken {
    /// A new token.
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self {
            secret: Secret(random("a user's token")?),
            cluster: None,
        })
    }

    /// The token with where the cluster is: whoever holds it finds the right server, and knows it.
    #[must_use]
    pub fn at(self, ca_fingerprint: [u8; 32], server: String) -> Self {
        let is_url = !server.is_empty() && server.len() <= MAX_URL_BYTES;
        let cluster = is_url.then_some(ClusterPlace {
            ca_fingerprint,
            server,
        });
        Self { cluster, ..self }
    }

    /// The token without that.
    #[must_use]
    pub fn bare(&self) -> Self {
        Self {
            secret: self.secret.clone(),
            cluster: None,
        }
    }

    /// What the server stores of it.
    pub fn secret_hash(&self) -> [u8; 32] {
        secret_hash(&self.secret.text())
    }
}

impl fmt::Display for UserToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(cluster) = &self.cluster else {
            return write!(f, "{USER_PREFIX}{}", self.secret.text());
        };
        let bytes = with_place(&cluster.ca_fingerprint, &self.secret, Some(&cluster.server));
        write!(f, "{PLACED_USER_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for UserToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let what = "a user's token";
        let Some(encoded) = text.trim().strip_prefix(PLACED_USER_PREFIX) else {
            if !text.trim().starts_with(USER_PREFIX) {
                // As all are that are made today.
                return Err(TokenError::Prefix {
                    what,
                    prefix: PLACED_USER_PREFIX,
                });
            }
            return Ok(Self {
                secret: Secret(decode(text, USER_PREFIX, what)?),
                cluster: None,
            });
        };
        let (ca_fingerprint, secret, server) = placed(encoded, what, true)?;
        let server = server.ok_or(TokenError::Malformed { what })?;
        Ok(Self {
            secret,
            cluster: Some(ClusterPlace {
                ca_fingerprint,
                server,
            }),
        })
    }
}

fn with_place(ca_fingerprint: &[u8; 32], secret: &Secret, server: Option<&str>) -> Vec<u8> {
    let mut bytes = ca_fingerprint.to_vec();
    bytes.extend_from_slice(&secret.0);
    bytes.extend_from_slice(server.unwrap_or_default().as_bytes());
    bytes
}

/// What [`with_place`] wrote.
fn placed(
    encoded: &str,
    what: &'static str,
    has_url: bool,
) -> Result<([u8; 32], Secret, Option<String>), TokenError> {
    let malformed = || TokenError::Malformed { what };
    let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| malformed())?;
    let (ca_fingerprint, rest) = bytes.split_first_chunk::<32>().ok_or_else(malformed)?;
    let (secret, url) = rest
        .split_first_chunk::<SECRET_BYTES>()
        .ok_or_else(malformed)?;
    if has_url == url.is_empty() || url.len() > MAX_URL_BYTES {
        return Err(malformed());
    }
    let url = String::from_utf8(url.to_vec()).map_err(|_| malformed())?;
    if url.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err(malformed());
    }
    Ok((*ca_fingerprint, Secret(*secret), has_url.then_some(url)))
}

fn decode<const N: usize>(
    text: &str,
    prefix: &'static str,
    what: &'static str,
) -> Result<[u8; N], TokenError> {
    let text = text
        .trim()
        .strip_prefix(prefix)
        .ok_or(TokenError::Prefix { what, prefix })?;
    URL_SAFE_NO_PAD
        .decode(text)
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(TokenError::Malformed { what })
}
