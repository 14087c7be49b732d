//! Sealing: what the server keeps of others' secrets (registry logins, secret bundles) lies on its disk only
//! encrypted, under a key that lies in another file. A copy of the store alone opens nothing.
//!
//! An envelope is
//!
//! ```text
//! 1 byte   version, 1
//! 8 bytes  id of the key: so that "another key" is told apart from "damaged"
//! 24 bytes nonce, random
//! ..       XChaCha20-Poly1305 of the secret, with its tag of 16 bytes
//! ```
//!
//! The context says what is sealed and for whom (`registry login ghcr.io`); it is authenticated and not
//! stored, so an envelope that is moved to another row does not open there.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};

use crate::sha256;
use crate::{KeyError, random};

const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 8;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
const HEADER_BYTES: usize = 1 + KEY_ID_BYTES + NONCE_BYTES;
/// The overhead of an envelope, in bytes.
pub const SEAL_OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;

/// The key that seals: 256 random bits. Its `Debug` shows none of them.
#[derive(Clone)]
pub struct SealKey([u8; 32]);

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(..)")
    }
}

/// Why an envelope does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It is of a later version, or no envelope at all.
    #[error("it is not a sealed secret of this version")]
    NotSealed,
    /// Another key sealed it.
    #[error("it was sealed with another key")]
    OtherKey,
    /// It was changed, or belongs to another context.
    #[error("it was changed since it was sealed, or belongs elsewhere")]
    Damaged,
}

impl SealKey {
    /// A new key.
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self(random("the key that seals secrets")?))
    }

    /// The key as it was stored.
    pub fn load(text: &str) -> Result<Self, KeyError> {
        let what = "the key that seals secrets, of the stored text";
        let bytes = STANDARD
            .decode(text.trim())
            .map_err(|e| KeyError::new(what, e))?;
        let bytes = bytes
            .try_into()
            .map_err(|_| KeyError::new(what, "it has not 32 bytes"))?;
        Ok(Self(bytes))
    }

    /// The key in base64. Secret: write it with mode 0600.
    pub fn text(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// Seals a secret for one context.
    pub fn seal(&self, plaintext: &[u8], context: &str) -> Result<Vec<u8>, KeyError> {
        // 192 random bits: no two are equal, whoever seals.
        let nonce: [u8; NONCE_BYTES] = random("a nonce")?;
        let payload = Payload {
            msg: plaintext,
            aad: context.as_bytes(),
        };
        let sealed = self
            .cipher()
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|e| KeyError::new("a sealed secret", e))?;
        let mut envelope = Vec::with_capacity(HEADER_BYTES + sealed.len());
        envelope.push(VERSION);
        envelope.extend(self.id());
        envelope.extend(nonce);
        envelope.extend(sealed);
        Ok(envelope)
    }

    /// What was sealed by this key for this context.
    pub fn open(&self, envelope: &[u8], context: &str) -> Result<Vec<u8>, OpenError> {
        let (version, rest) = envelope.split_first().ok_or(OpenError::NotSealed)?;
        if *version != VERSION || envelope.len() < SEAL_OVERHEAD_BYTES {
            return Err(OpenError::NotSealed);
        }
        let (key_id, rest) = rest.split_at(KEY_ID_BYTES);
        if *key_id != self.id() {
            return Err(OpenError::OtherKey);
        }
        let (nonce, sealed) = rest
            .split_first_chunk::<NONCE_BYTES>()
            .ok_or(OpenError::NotSealed)?;
        let payload = Payload {
            msg: sealed,
            aad: context.as_bytes(),
        };
        self.cipher()
            .decrypt(&XNonce::from(*nonce), payload)
            .map_err(|_| OpenError::Damaged)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&self.0.into())
    }

    fn id(&self) -> [u8; KEY_ID_BYTES] {
        let mut named = b"platform seal key id\0".to_vec();
        named.extend(self.0);
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(&sha256(&named)[..KEY_ID_BYTES]);
        id
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn opens_for_its_key_and_context_only() {
        let key = SealKey::generate().unwrap();
        let sealed = key.seal(b"hunter2", "registry login a").unwrap();
        assert_eq!(sealed.len(), 7 + SEAL_OVERHEAD_BYTES);
        let again = SealKey::load(&key.text()).unwrap();
        assert_eq!(again.open(&sealed, "registry login a").unwrap(), b"hunter2");
        assert_eq!(
            key.open(&sealed, "registry login b"),
            Err(OpenError::Damaged)
        );
        let other = SealKey::generate().unwrap();
        assert_eq!(
            other.open(&sealed, "registry login a"),
            Err(OpenError::OtherKey)
        );
        assert_ne!(sealed, key.seal(b"hunter2", "registry login a").unwrap());
        assert!(!format!("{key:?}").contains(&key.text()));
    }

    #[test]
    fn no_changed_or_cut_envelope_opens() {
        let key = SealKey::generate().unwrap();
        let sealed = key.seal(b"", "context").unwrap();
        assert_eq!(key.open(&sealed, "context").unwrap(), b"");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.open(&changed, "context").is_err(), "byte {at}");
            assert!(key.open(&sealed[..at], "context").is_err(), "{at} bytes");
        }
        for wrong in ["", "AAAA", "not base64"] {
            assert!(SealKey::load(wrong).is_err());
        }
    }
}
