//! Wrapping: the keys of the cluster (the CA's, and the one that seals secrets) are stored only under a key-encryption key
//! (NIST SP 800-57, 5.1.1), which is never in the store.
//!
//! Today the key-encryption key is a [`SealKey`] in a file of its own. A key management service takes its place behind
//! [`KeyEncryptionKey`]: it wraps and unwraps, and its key never leaves it.

use std::fmt;

use crate::{KeyError, OpenError, SealKey};

/// Whoever wraps and unwraps the keys of the cluster. Both may block.
pub trait KeyEncryptionKey: fmt::Debug + Send + Sync {
    /// Wraps a key. The context says which one it is (`the CA's key of cluster c1`), and is needed to unwrap it.
    ///
    /// # Errors
    /// No randomness, or the service does not answer.
    fn wrap(&self, key: &[u8], context: &str) -> Result<Vec<u8>, KeyError>;

    /// The key that was wrapped with this context.
    ///
    /// # Errors
    /// Another key wrapped it, or it was changed.
    fn unwrap(&self, wrapped: &[u8], context: &str) -> Result<Vec<u8>, OpenError>;
}

impl KeyEncryptionKey for SealKey {
    fn wrap(&self, key: &[u8], context: &str) -> Result<Vec<u8>, KeyError> {
        self.seal(key, context)
    }

    fn unwrap(&self, wrapped: &[u8], context: &str) -> Result<Vec<u8>, OpenError> {
        self.open(wrapped, context)
    }
}
