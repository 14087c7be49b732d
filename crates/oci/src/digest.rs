//! Bytes against the digest and the size that their descriptor names.

use model::Digest;
use sha2::{Digest as _, Sha256};

use crate::error::ImageError;

/// The SHA-256 digest of these bytes.
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

/// The digest of bytes that `origin` gave, if they have the expected digest and size. `None` accepts any. `origin` is
/// the name of the source in errors: a host or a path.
///
/// # Errors
/// [`ImageError::WrongSize`] or [`ImageError::WrongDigest`].
pub fn verify(
    origin: &str,
    bytes: &[u8],
    expected: Option<&Digest>,
    size: Option<u64>,
) -> Result<Digest, ImageError> {
    let actual = digest_of(bytes);
    let length = bytes.len() as u64;
    if let Some(size) = size.filter(|size| *size != length) {
        return Err(ImageError::WrongSize {
            origin: origin.to_owned(),
            digest: expected.cloned().unwrap_or(actual),
            expected: size,
            actual: length,
        });
    }
    match expected {
        Some(expected) if *expected != actual => Err(ImageError::WrongDigest {
            origin: origin.to_owned(),
            digest: expected.clone(),
            actual,
        }),
        _ => Ok(actual),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn verify_accepts_only_the_expected_digest_and_size() {
        let digest = digest_of(b"bytes");
        assert_eq!(verify("host", b"bytes", None, None).unwrap(), digest);
        assert_eq!(
            verify("host", b"bytes", Some(&digest), Some(5)).unwrap(),
            digest
        );
        let refused = |bytes: &[u8], size| verify("host", bytes, Some(&digest), size).unwrap_err();
        assert!(matches!(
            refused(b"bytez", Some(5)),
            ImageError::WrongDigest { .. }
        ));
        assert!(matches!(
            refused(b"bytes", Some(4)),
            ImageError::WrongSize {
                expected: 4,
                actual: 5,
                ..
            }
        ));
    }
}
