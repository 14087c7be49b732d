//! A node's overlay key: X25519, as WireGuard wants it.

use aws_lc_rs::agreement::{PrivateKey, X25519};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::{KeyError, random};

/// A WireGuard key pair, both halves in base64 as `wg` writes them.
#[derive(Clone, PartialEq, Eq)]
pub struct WireguardKey {
    private: String,
    public: String,
}

impl std::fmt::Debug for WireguardKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WireguardKey")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

impl WireguardKey {
    /// A new key pair.
    pub fn generate() -> Result<Self, KeyError> {
        let mut bytes = random::<32>("a WireGuard key")?;
        // Clamped as `wg genkey` does (RFC 7748, 5).
        bytes[0] &= 0b1111_1000;
        bytes[31] = (bytes[31] & 0b0111_1111) | 0b0100_0000;
        Self::of_bytes(&bytes)
    }

    /// The pair of a stored private key.
    pub fn load(private_base64: &str) -> Result<Self, KeyError> {
        let bytes = STANDARD
            .decode(private_base64.trim())
            .map_err(|e| KeyError::new("a WireGuard key of the stored text", e))?;
        Self::of_bytes(&bytes)
    }

    fn of_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let failed = |e| KeyError::new("a WireGuard key", e);
        let public = PrivateKey::from_private_key(&X25519, bytes)
            .map_err(|e| KeyError::new("a WireGuard key", e))?
            .compute_public_key()
            .map_err(failed)?;
        Ok(Self {
            private: STANDARD.encode(bytes),
            public: STANDARD.encode(public.as_ref()),
        })
    }

    /// The private key. Secret: write it with mode 0600.
    pub fn private_base64(&self) -> &str {
        &self.private
    }

    /// The public key.
    pub fn public_base64(&self) -> &str {
        &self.public
    }
}

/// Whether a text is a WireGuard public key: 32 bytes in base64.
pub fn is_wireguard_public_key(base64: &str) -> bool {
    STANDARD.decode(base64).is_ok_and(|bytes| bytes.len() == 32)
}
