//! What a layer is given as.

use std::fmt;
use std::path::PathBuf;

use model::Digest;

/// One layer of an image, as it lies on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The file.
    pub path: PathBuf,
    /// Of the file, by the image's manifest. Checked while it is read.
    pub digest: Digest,
    /// Of the tar archive in it, by the image's config. Checked while it is read.
    pub diff_id: Digest,
    /// How the archive is compressed, by the manifest's media type.
    pub compression: Compression,
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Compression {
    /// A tar archive as it is.
    None,
    /// RFC 1952; several members in a row are one stream.
    Gzip,
    /// RFC 8878; several frames in a row are one stream.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "plain tar",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}
