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
        let mut bytes = self.ca_fingerprint.to_vec();
        bytes.extend_from_slice(&self.secret.0);
        let prefix = match &self.server {
            None => FIRST_ENROLLMENT_PREFIX,
            Some(url) => {
                bytes.extend_from_slice(url.as_bytes());
                ENROLLMENT_PREFIX
            }
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
        Ok(Self {
            ca_fingerprint: *ca_fingerprint,
            secret: Secret(*secret),
            server: has_url.then_some(url),
        })
    }
}

/// A user's bearer token, shown as `pu1_<base64url>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserToken {
    secret: Secret,
}

impl UserToken {
    /// A new token.
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self {
            secret: Secret(random("a user's token")?),
        })
    }

    /// What the server stores of it.
    pub fn secret_hash(&self) -> [u8; 32] {
        secret_hash(&self.secret.text())
    }
}

impl fmt::Display for UserToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{USER_PREFIX}{}", self.secret.text())
    }
}

impl FromStr for UserToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        Ok(Self {
            secret: Secret(decode(text, USER_PREFIX, "a user's token")?),
        })
    }
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
