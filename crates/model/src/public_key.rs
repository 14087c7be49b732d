//! The public key by which a member of the cluster is known (ADR 0004).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest public key, in bytes. One for ECDSA P-256 has 91.
pub const MAX_PUBLIC_KEY_BYTES: usize = 512;

/// A public key as X.509 has it: a `SubjectPublicKeyInfo` in DER (RFC 5280, 4.1). Shown in hexadecimal. Equal keys have equal bytes.
///
/// Nothing here looks into it: who makes one of a certificate or a request has parsed that.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(Arc<[u8]>);

/// A text or bytes are no public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a public key is 1 to {MAX_PUBLIC_KEY_BYTES} bytes, in hexadecimal")]
pub struct NotAPublicKey;

impl PublicKey {
    /// The key of these bytes.
    ///
    /// # Errors
    /// There are none, or more than [`MAX_PUBLIC_KEY_BYTES`].
    pub fn of_der(bytes: &[u8]) -> Result<Self, NotAPublicKey> {
        if (1..=MAX_PUBLIC_KEY_BYTES).contains(&bytes.len()) {
            Ok(Self(bytes.into()))
        } else {
            Err(NotAPublicKey)
        }
    }

    /// Its bytes.
    pub fn der(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = NotAPublicKey;

    fn from_str(text: &str) -> Result<Self, NotAPublicKey> {
        if !text.len().is_multiple_of(2) || text.len() > 2 * MAX_PUBLIC_KEY_BYTES {
            return Err(NotAPublicKey);
        }
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(NotAPublicKey),
        };
        let pairs = text.as_bytes().chunks_exact(2);
        let bytes = pairs.map(|pair| Ok(digit(pair[0])? << 4 | digit(pair[1])?));
        Self::of_der(&bytes.collect::<Result<Vec<_>, _>>()?)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = NotAPublicKey;

    fn try_from(text: String) -> Result<Self, NotAPublicKey> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_key_is_read_as_it_is_shown() {
        let key = PublicKey::of_der(&[0, 0x9f, 0xff]);
        assert_eq!(
            key.as_ref().map(ToString::to_string).as_deref(),
            Ok("009fff")
        );
        assert_eq!("009fff".parse(), key);
        for wrong in [
            "",
            "0",
            "0g",
            "00F0",
            "é0",
            &"00".repeat(MAX_PUBLIC_KEY_BYTES + 1),
        ] {
            assert_eq!(wrong.parse::<PublicKey>(), Err(NotAPublicKey), "{wrong}");
        }
    }
}
