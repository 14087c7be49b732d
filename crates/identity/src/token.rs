//! Bearer secrets: one-time enrollment tokens and users' tokens.
//!
//! A secret is 256 random bits, so one round of SHA-256 is enough to store it by: there is nothing
//! to guess. Servers look a token up by its hash and keep nothing else of it.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::ca::sha256;
use crate::{KeyError, random};

const SECRET_BYTES: usize = 32;
const ENROLLMENT_PREFIX: &str = "pt1_";
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
    #[error("this is not a whole {what}: it was cut or mistyped; copy it again")]
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

/// A one-time enrollment token (ADR 0004), shown as `pt1_<base64url>`. It carries the fingerprint
/// of the cluster's CA, so whoever holds it also knows the right server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrollmentToken {
    /// SHA-256 of the CA's certificate in DER.
    pub ca_fingerprint: [u8; 32],
    /// What the server knows it by.
    pub secret: Secret,
}

impl EnrollmentToken {
    /// A new token for the cluster whose CA has this fingerprint.
    pub fn generate(ca_fingerprint: [u8; 32]) -> Result<Self, KeyError> {
        Ok(Self {
            ca_fingerprint,
            secret: Secret(random("an enrollment token")?),
        })
    }

    /// What the server stores of it.
    pub fn secret_hash(&self) -> [u8; 32] {
        secret_hash(&self.secret.text())
    }
}

impl fmt::Display for EnrollmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; 32 + SECRET_BYTES];
        bytes[..32].copy_from_slice(&self.ca_fingerprint);
        bytes[32..].copy_from_slice(&self.secret.0);
        write!(f, "{ENROLLMENT_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for EnrollmentToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let what = "an enrollment token";
        let bytes: [u8; 32 + SECRET_BYTES] = decode(text, ENROLLMENT_PREFIX, what)?;
        let mut ca_fingerprint = [0; 32];
        ca_fingerprint.copy_from_slice(&bytes[..32]);
        let mut secret = [0; SECRET_BYTES];
        secret.copy_from_slice(&bytes[32..]);
        Ok(Self {
            ca_fingerprint,
            secret: Secret(secret),
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
