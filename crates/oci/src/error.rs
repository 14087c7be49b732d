//! Why an image is refused.

use std::fmt;

use display::one_line;
use model::Digest;

use crate::limits::{MAX_EXCERPT_BYTES, MAX_NESTED_LEVELS};
use crate::platform::Platform;

/// An image, or a document of it, is refused. The same bytes are refused again at the next attempt.
///
/// `origin` is the source of the bytes: a registry (host and port) or a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The bytes have another digest than their descriptor names.
    #[error(
        "{origin} served other bytes than {}: they have the digest {}",
        short(digest),
        short(actual)
    )]
    WrongDigest {
        /// The source of the bytes.
        origin: String,
        /// The expected digest.
        digest: Digest,
        /// The digest of the bytes.
        actual: Digest,
    },
    /// There are more or fewer bytes than the descriptor says.
    #[error(
        "{origin} served {actual} bytes as {}, which has {expected} bytes",
        short(digest)
    )]
    WrongSize {
        /// The source of the bytes.
        origin: String,
        /// The expected digest.
        digest: Digest,
        /// Size by the descriptor, in bytes.
        expected: u64,
        /// Size of the bytes, as far as they were read.
        actual: u64,
    },
    /// The image is over one of [`crate::ImageLimits`] or the constants beside it.
    #[error("{what} is over the limit: {actual}, at most {limit} {unit}")]
    OverLimit {
        /// The document or layer that is too large.
        what: String,
        /// Its size, as far as it is known.
        actual: u64,
        /// The limit.
        limit: u64,
        /// Unit of both.
        unit: &'static str,
    },
    /// A document does not have the format of its type.
    #[error("the {document} is malformed: {reason}")]
    Malformed {
        /// The kind of document.
        document: &'static str,
        /// The defect.
        reason: String,
    },
    /// The content type of an answer is no manifest's, or contradicts the document.
    #[error("{origin} answers with content type `{content_type}`: {reason}")]
    WrongContentType {
        /// The source of the document.
        origin: String,
        /// As received.
        content_type: String,
        /// Why it is refused.
        reason: String,
    },
    /// A manifest of something else than a container image: an attestation, a chart, a signature.
    #[error("{} is not a container image but `{kind}`", short(digest))]
    NotAnImage {
        /// The manifest.
        digest: Digest,
        /// Its artifact type, or its config's media type.
        kind: String,
    },
    /// An index where only the manifest of one image will do.
    #[error("{} is an index where an image manifest is needed", short(digest))]
    NotAManifest {
        /// The index.
        digest: Digest,
    },
    /// Indexes within indexes within indexes.
    #[error(
        "{} is an index within indexes, deeper than the {MAX_NESTED_LEVELS} levels that are followed",
        short(digest)
    )]
    NestedTooDeep {
        /// The innermost index.
        digest: Digest,
    },
    /// There is no image for any of these platforms.
    #[error("the image is not made for {wanted}; it has: {offered}")]
    NoSuchPlatform {
        /// The platforms that were asked for.
        wanted: Platforms,
        /// The platforms of the image.
        offered: String,
    },
    /// A layer of a type that `root-disk` cannot unpack, such as an encrypted one.
    #[error("layer {digest} has the unknown type `{media_type}`")]
    UnknownLayer {
        /// The layer.
        digest: Digest,
        /// Its type.
        media_type: String,
    },
}

impl ImageError {
    /// [`ImageError::Malformed`], with a reason that may quote the document.
    pub fn malformed(document: &'static str, reason: &str) -> Self {
        Self::Malformed {
            document,
            reason: excerpt(reason),
        }
    }

    /// What the user may do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoSuchPlatform { .. } => Some(
                "build the image for the nodes' architecture, or add nodes of the image's architecture",
            ),
            Self::WrongDigest { .. } | Self::WrongSize { .. } => Some(
                "the image was damaged where it is stored or on its way here; nothing of it was kept",
            ),
            _ => None,
        }
    }
}

/// A digest within a message: what failed names the image with all its digits.
fn short(digest: &Digest) -> String {
    format!("sha256:{}…", digest.short())
}

/// An excerpt of an untrusted text, for a terminal.
pub(crate) fn excerpt(text: &str) -> String {
    one_line(text, MAX_EXCERPT_BYTES)
}

/// Several platforms, to be printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platforms(pub Vec<Platform>);

impl fmt::Display for Platforms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, platform) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{platform}")?;
        }
        Ok(())
    }
}
