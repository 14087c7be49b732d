//! Why an image in local files cannot be used.

use std::io;
use std::path::PathBuf;

use oci::ImageError;

/// An operation on an image in local files failed. Its text names both; [`SourceProblem`] is the cause.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {image}")]
pub struct SourceError {
    /// The operation: `resolve`, `open`.
    pub operation: &'static str,
    /// The image, as the user named it.
    pub image: String,
    /// The cause.
    #[source]
    pub problem: SourceProblem,
}

/// The cause of a [`SourceError`].
#[derive(Debug, thiserror::Error)]
pub enum SourceProblem {
    /// The files have no image of this name.
    #[error("{} has no {what}", path.display())]
    NotFound {
        /// The layout's directory, or the archive.
        path: PathBuf,
        /// The name, or `image` where none was given.
        what: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The image is refused: its bytes, or what they say.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl SourceProblem {
    /// What the user may do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Image(error) => error.hint(),
            _ => None,
        }
    }
}
