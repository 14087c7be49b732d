//! What can go wrong between us and a registry.

use std::fmt;
use std::io;
use std::path::PathBuf;

use model::Digest;

use crate::cache::CacheError;
use crate::credentials::CredentialsError;
use crate::platform::Platform;

/// An operation on an image failed. The text names the operation and the image; the
/// [`Problem`] is the source.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {image}")]
pub struct RegistryError {
    /// What was tried: `resolve`, `fetch`, `log in to`.
    pub operation: &'static str,
    /// The image, as the user or the planner named it; or the registry.
    pub image: String,
    /// What was wrong.
    #[source]
    pub problem: Problem,
}

/// What was wrong. Everything but [`Problem::is_transient`] is the same at the next try.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// No answer: refused, unreachable, stalled, cut off, or not TLS.
    #[error("{host} does not answer ({attempts} attempts)")]
    Unreachable {
        /// Host and port.
        host: String,
        /// How often it was tried.
        attempts: u32,
        /// The last cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The registry says it has no such thing. Some registries say so where access is denied.
    #[error("{host} has no {what}")]
    NotFound {
        /// Host and port.
        host: String,
        /// Repository with tag or digest.
        what: String,
    },
    /// The registry wants (other) credentials.
    #[error("{host} denies access: {reason}")]
    Denied {
        /// Host and port.
        host: String,
        /// In the registry's words, or ours.
        reason: String,
    },
    /// The credentials could not be read.
    #[error("no credentials for {host}")]
    Credentials {
        /// Host and port.
        host: String,
        /// Why.
        #[source]
        source: CredentialsError,
    },
    /// Another refusal, after all attempts where it looked transient.
    #[error("{host} answers {status}: {reason}")]
    Refused {
        /// Host and port.
        host: String,
        /// HTTP status.
        status: u16,
        /// The beginning of its answer.
        reason: String,
    },
    /// A redirect, or a token service, that leads from HTTPS to HTTP or goes round in circles.
    #[error("{host} sends us to {target}: {reason}")]
    UnsafeRedirect {
        /// Host and port.
        host: String,
        /// Where to.
        target: String,
        /// Why not.
        reason: &'static str,
    },
    /// The bytes are not those that were asked for.
    #[error("{host} lies about {digest}: its bytes have the digest {actual}")]
    WrongDigest {
        /// Host and port, or a path.
        host: String,
        /// The digest asked for.
        digest: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// More or fewer bytes than the descriptor says.
    #[error("{host} lies about {digest}: {expected} bytes expected, got {actual}")]
    WrongSize {
        /// Host and port, or a path.
        host: String,
        /// The digest asked for.
        digest: Digest,
        /// By the descriptor.
        expected: u64,
        /// What came, as far as it was read.
        actual: u64,
    },
    /// A named limit was passed.
    #[error("{what} is over the limit: {actual}, at most {limit} {unit}")]
    OverLimit {
        /// What is too large.
        what: String,
        /// How large, as far as known.
        actual: u64,
        /// The limit.
        limit: u64,
        /// Unit of both.
        unit: &'static str,
    },
    /// A manifest, index or config that is not what its type says.
    #[error("the {document} is malformed: {reason}")]
    Malformed {
        /// Which document.
        document: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The answer's content type is not one of a manifest, or not what its document says.
    #[error("{host} answers with content type `{content_type}`: {reason}")]
    WrongContentType {
        /// Host and port.
        host: String,
        /// As received.
        content_type: String,
        /// Why it is refused.
        reason: String,
    },
    /// Not a container image: an attestation, a chart, a signature.
    #[error("{digest} is not a container image but `{kind}`")]
    NotAnImage {
        /// The manifest.
        digest: Digest,
        /// Its artifact type, or its config's media type.
        kind: String,
    },
    /// An index within an index is refused: it makes "which image" ambiguous.
    #[error("{digest} is an index where an image manifest is needed; nested indexes are refused")]
    NestedIndex {
        /// The inner one.
        digest: Digest,
    },
    /// The index, or the image, has nothing for these platforms.
    #[error("the image is not made for {wanted}; it has: {offered}")]
    NoSuchPlatform {
        /// What was asked for.
        wanted: Platforms,
        /// What there is.
        offered: String,
    },
    /// A layer that lies elsewhere by licence ("foreign", "nondistributable").
    #[error("layer {digest} is a foreign layer (`{media_type}`), which is not fetched")]
    ForeignLayer {
        /// The layer.
        digest: Digest,
        /// Its type.
        media_type: String,
    },
    /// A layer of a type that we cannot unpack (an encrypted one, say).
    #[error("layer {digest} has the unknown type `{media_type}`")]
    UnknownLayer {
        /// The layer.
        digest: Digest,
        /// Its type.
        media_type: String,
    },
    /// A file of an OCI layout or a docker archive cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The blob cache cannot keep it.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl Problem {
    /// Whether the same operation may succeed later with nothing changed by people: the registry was
    /// away or too busy, or the disk was full.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Cache(_) => true,
            Self::Credentials { source, .. } => matches!(source, CredentialsError::Source(_)),
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }

    /// Whether this host's disk is full.
    pub fn is_storage_full(&self) -> bool {
        matches!(self, Self::Cache(error) if error.source.kind() == io::ErrorKind::StorageFull)
    }

    /// What the user may do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unreachable { host, source, .. } => {
                let speaks = |of: &str| {
                    let mut causes = display::causes(source.as_ref());
                    causes.any(|cause| format!("{cause} {cause:?}").contains(of))
                };
                if speaks("InvalidContentType") || speaks("corrupt message") {
                    format!("if {host} speaks plain HTTP, list it as an insecure registry")
                } else {
                    format!("is the registry running, and can this machine reach {host}?")
                }
            }
            Self::NotFound { .. } => {
                "check the name, the tag or digest, and that it was pushed; some registries answer \
                 so when credentials are missing"
                    .to_owned()
            }
            Self::Denied { host, .. } => format!("log in first: docker login {host}"),
            Self::NoSuchPlatform { .. } => {
                "build the image for the nodes' architecture, or add nodes of the image's"
                    .to_owned()
            }
            Self::ForeignLayer { .. } => {
                "build the image on a base without foreign layers".to_owned()
            }
            Self::UnsafeRedirect { .. } => {
                "list the host as an insecure registry if that is meant".to_owned()
            }
            Self::WrongDigest { .. } | Self::WrongSize { .. } => {
                "the registry or something before it is broken; nothing of it was kept".to_owned()
            }
            _ => return None,
        })
    }
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
