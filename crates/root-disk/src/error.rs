//! What can go wrong, told by operation and subject.

use std::io;
use std::path::{Path, PathBuf};

use model::Digest;
use oci::Compression;

/// Why a disk was not made, or a cache not read.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// An image with nothing in it cannot be booted.
    #[error("the image has no layers")]
    NoLayers,
    /// A layer is damaged, hostile, or over a limit.
    #[error("layer {number} ({}) cannot be used", digest.short())]
    Layer {
        /// Counted from 1, the base.
        number: usize,
        /// Of the layer as it is stored.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: Box<LayerError>,
    },
    /// The image as a whole is over one of [`crate::Limits`].
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
    /// A disk of this size cannot be formatted.
    #[error("cannot format a disk of {size_bytes} bytes: it must have {min} to {max} bytes")]
    Size {
        /// As it was asked for.
        size_bytes: u64,
        /// The smallest that can be formatted, in bytes.
        min: u64,
        /// The largest that can be formatted, in bytes.
        max: u64,
    },
    /// A label that ext4 has no room for.
    #[error("`{label}` is too long for the label of a disk: 16 bytes at most")]
    Label {
        /// As it was asked for.
        label: String,
    },
    /// The host's disk, or the quota on it, is full. Nothing partial was left behind.
    #[error("no space left to {operation} `{}`; free some and try again", path.display())]
    NoSpace {
        /// What was tried: `write`, `create`.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// As the kernel said it.
        source: io::Error,
    },
    /// The host's file system refused.
    #[error("cannot {operation} `{}`", path.display())]
    Io {
        /// What was tried: `write`, `create`.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of the cache's own is not what the cache writes.
    #[error("`{}` is damaged", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl DiskError {
    /// Whether trying again may help, without anyone changing the image: the host's disk may get
    /// room and its errors may pass; a bad image stays bad.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoSpace { .. } | Self::Io { .. } | Self::Damaged { .. } => true,
            Self::Layer { source, .. } => matches!(
                **source,
                // What lies on this host may have rotted; it is fetched again.
                LayerError::Digest { .. } | LayerError::Read { .. }
            ),
            Self::NoLayers | Self::OverLimit(_) | Self::Size { .. } | Self::Label { .. } => false,
        }
    }

    /// An error of the host's file system, sorted.
    pub(crate) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace {
                operation,
                path,
                source,
            },
            _ => Self::Io {
                operation,
                path,
                source,
            },
        }
    }
}

/// A limit that an image does not keep.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the image is over the limit `{limit}` of {allowed} {unit}")]
pub struct OverLimit {
    /// A field of [`crate::Limits`], or one of the constants beside it.
    pub limit: &'static str,
    /// As many are allowed.
    pub allowed: u64,
    /// Of what: `bytes`, `entries`.
    pub unit: &'static str,
}

/// What is wrong with a layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The stored bytes are others than the manifest names.
    #[error("its content is {actual}, and the manifest says {expected}")]
    Digest {
        /// By the manifest.
        expected: Digest,
        /// By its bytes.
        actual: Digest,
    },
    /// The bytes, decompressed, are others than the config names.
    #[error("decompressed it is {actual}, and the config says the diff_id is {expected}")]
    DiffId {
        /// By the config.
        expected: Digest,
        /// By its bytes.
        actual: Digest,
    },
    /// It is no such stream, or a broken one.
    #[error("cannot decompress it as {compression}")]
    Decompress {
        /// By the manifest's media type.
        compression: Compression,
        /// What the decompressor says.
        source: io::Error,
    },
    /// It is no tar archive, or a broken one.
    #[error("the archive is broken at byte {offset}")]
    Archive {
        /// Where in the decompressed archive.
        offset: u64,
        /// How.
        source: ArchiveProblem,
    },
    /// An entry that no honest image has.
    #[error("the entry `{name}` is refused")]
    Entry {
        /// As the archive has it; bytes that are no printable ASCII are escaped.
        name: String,
        /// Why.
        source: EntryProblem,
    },
    /// The limit is reached in this layer.
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
}

/// How an archive is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveProblem {
    /// The end came within an entry.
    #[error("it ends in the middle of an entry")]
    Truncated,
    /// A header's checksum is wrong; or this is no header.
    #[error("the checksum of this header is wrong")]
    HeaderChecksum,
    /// One zero block, and then something else than the second.
    #[error("a block of zeros that is not the end")]
    LoneZeroBlock,
    /// A number in a header is none, is negative or does not fit.
    #[error("the {field} of this header is not a number in its range")]
    HeaderNumber {
        /// Which.
        field: &'static str,
    },
    /// A type of entry that containers do not have.
    #[error("an entry of the unknown type {}", type_flag.escape_ascii())]
    EntryType {
        /// The header's byte 156.
        type_flag: u8,
    },
    /// An extended header is not made of `length key=value` records.
    #[error("the extended header is malformed: {problem}")]
    Pax {
        /// What is wrong.
        problem: &'static str,
    },
    /// An extended header that no entry follows, or a second one.
    #[error("an extended header is followed by another one, or by nothing")]
    StackedHeaders,
    /// Header and extended header name different sizes, so that two readers see two archives.
    #[error("the header says {header} bytes and the extended header says {pax}")]
    SizesDisagree {
        /// In the header.
        header: u64,
        /// In the extended header.
        pax: u64,
    },
    /// Content where the type has none.
    #[error("an entry that is not a file has {size} bytes of content")]
    UnexpectedContent {
        /// In bytes.
        size: u64,
    },
    /// The map of a sparse file is malformed.
    #[error("the map of a sparse file is malformed: {problem}")]
    Sparse {
        /// What is wrong.
        problem: &'static str,
    },
}

/// Why an entry is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryProblem {
    /// No name at all.
    #[error("the name is empty")]
    EmptyName,
    /// A name from `/` on.
    #[error("the name is absolute")]
    AbsoluteName,
    /// A `..` in a name, or in the target of a hard link.
    #[error("the path has a `..`")]
    ParentInPath,
    /// A NUL byte in a name or target.
    #[error("the path has a NUL byte")]
    NulInPath,
    /// A component over 255 bytes, or a path over 4095.
    #[error("the path is too long")]
    PathTooLong,
    /// Deeper than [`crate::limits::MAX_DEPTH`].
    #[error("it is too deep in the tree")]
    TooDeep,
    /// `/` must stay a directory.
    #[error("the root of the image must be a directory")]
    RootNotDirectory,
    /// A file whose name ends in a slash: some readers make it a directory.
    #[error("a name that ends with a slash is for directories")]
    SlashAfterFile,
    /// The path leads through something that is no directory and no symlink to one.
    #[error("the path leads through `{through}`, which is {what}")]
    NotThroughDirectory {
        /// The component.
        through: String,
        /// What it is instead.
        what: &'static str,
    },
    /// A symlink in the path leads up, out of the image.
    #[error("the path leads through the symlink `{through}` out of the image")]
    LeavesImage {
        /// The component.
        through: String,
    },
    /// As Linux does: 40 symlinks in a path, and no more.
    #[error("the path leads through too many symlinks")]
    SymlinkLoop,
    /// Empty, over 4095 bytes, or with a NUL byte.
    #[error("the target of the symlink is empty, too long, or has a NUL byte")]
    SymlinkTarget,
    /// A hard link to nothing, to a directory, through a symlink, or to itself.
    #[error("the target `{target}` of the hard link is {what}")]
    HardLinkTarget {
        /// As the archive has it.
        target: String,
        /// What it is.
        what: &'static str,
    },
    /// More names than ext4 can count.
    #[error("the file would have more than 65000 names")]
    TooManyLinks,
    /// A whiteout of nothing, of `.` or `..`, of a whiteout, with content, of another type, or as a directory.
    #[error("the whiteout is malformed: {what}")]
    Whiteout {
        /// What it is.
        what: &'static str,
    },
    /// Mode, owner or device out of range.
    #[error("its {field} is out of range")]
    Number {
        /// Which.
        field: &'static str,
    },
    /// More than ext4 has room for: about 4000 bytes a file.
    #[error(
        "its extended attributes have {bytes} bytes, over the {allowed} that ext4 has room for"
    )]
    XattrsTooLarge {
        /// As encoded.
        bytes: usize,
        /// In one block.
        allowed: usize,
    },
    /// An attribute that the kernel would refuse.
    #[error("the extended attribute `{attribute}` is malformed")]
    Xattr {
        /// Its name.
        attribute: String,
    },
}
