//! Errors, named by operation and subject.

use std::io;
use std::path::{Path, PathBuf};

use model::Digest;
use oci::Compression;

/// A disk was not built, or an operation of the cache failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// An image without layers cannot be booted.
    #[error("the image has no layers")]
    NoLayers,
    /// A layer is damaged, hostile, or over a limit.
    #[error("layer {number} ({}) cannot be used", digest.short())]
    Layer {
        /// Number of the layer; the base is 1.
        number: usize,
        /// Digest of the layer as stored.
        digest: Digest,
        /// The defect.
        #[source]
        source: Box<LayerError>,
    },
    /// The image as a whole is over one of [`crate::Limits`].
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
    /// A disk of this size cannot be formatted.
    #[error("cannot format a disk of {size_bytes} bytes: it must have {min} to {max} bytes")]
    Size {
        /// The requested size, in bytes.
        size_bytes: u64,
        /// The smallest that can be formatted, in bytes.
        min: u64,
        /// The largest that can be formatted, in bytes.
        max: u64,
    },
    /// A label that is longer than ext4 allows.
    #[error("`{label}` is too long for the label of a disk: 16 bytes at most")]
    Label {
        /// The requested label.
        label: String,
    },
    /// The host's disk, or the quota on it, is full. No partial file was left behind.
    #[error("no space left to {operation} `{}`; free some and try again", path.display())]
    NoSpace {
        /// The operation: `write`, `create`.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The host's file system failed.
    #[error("cannot {operation} `{}`", path.display())]
    Io {
        /// The operation: `write`, `create`.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl DiskError {
    /// Whether another attempt with the same image may succeed. Errors of the host's disk may pass; a refused image is
    /// refused again.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoSpace { .. } | Self::Io { .. } => true,
            Self::Layer { source, .. } => matches!(
                **source,
                // The layer may be damaged on this host's disk; it is fetched again.
                LayerError::Digest { .. } | LayerError::Read { .. }
            ),
            Self::NoLayers | Self::OverLimit(_) | Self::Size { .. } | Self::Label { .. } => false,
        }
    }

    /// The error for a failure of the host's file system.
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

/// The image is over a limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the image is over the limit `{limit}` of {allowed} {unit}")]
pub struct OverLimit {
    /// A field of [`crate::Limits`], or one of the constants beside it.
    pub limit: &'static str,
    /// The limit.
    pub allowed: u64,
    /// Its unit: `bytes`, `entries`.
    pub unit: &'static str,
}

/// A layer is refused, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The stored bytes have another digest than the manifest names.
    #[error("its bytes have the digest {actual}, and the manifest says {expected}")]
    Digest {
        /// The manifest's digest.
        expected: Digest,
        /// The digest of the bytes.
        actual: Digest,
    },
    /// The decompressed bytes have another digest than the config names.
    #[error(
        "its decompressed bytes have the digest {actual}, and the config says the diff_id is {expected}"
    )]
    DiffId {
        /// The config's diff_id.
        expected: Digest,
        /// The digest of the bytes.
        actual: Digest,
    },
    /// The bytes are not a stream of this format, or a broken one.
    #[error("cannot decompress it as {compression}")]
    Decompress {
        /// The compression by its first bytes.
        compression: Compression,
        /// The decompressor's error.
        source: io::Error,
    },
    /// The bytes are not a tar archive, or a broken one.
    #[error("the archive is broken at byte {offset}")]
    Archive {
        /// Offset in the decompressed archive, in bytes.
        offset: u64,
        /// The defect.
        source: ArchiveProblem,
    },
    /// An entry that is malformed or hostile.
    #[error("the entry `{name}` is refused")]
    Entry {
        /// The name in the archive; bytes other than printable ASCII are escaped.
        name: String,
        /// The reason.
        source: EntryProblem,
    },
    /// The image is over a limit from this layer on.
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
}

/// The defect of an archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveProblem {
    /// The archive ends inside an entry.
    #[error("it ends in the middle of an entry")]
    Truncated,
    /// The checksum of a header is wrong, or the block is not a header.
    #[error("the checksum of this header is wrong")]
    HeaderChecksum,
    /// A single block of zeros; the end of an archive has two.
    #[error("one block of zeros, where the end of an archive has two")]
    LoneZeroBlock,
    /// A number in a header is malformed, negative or too large.
    #[error("the {field} of this header is not a number in its range")]
    HeaderNumber {
        /// The field.
        field: &'static str,
    },
    /// A type of entry that does not occur in layers.
    #[error("an entry of the unknown type {}", type_flag.escape_ascii())]
    EntryType {
        /// Byte 156 of the header.
        type_flag: u8,
    },
    /// An extended header does not consist of `length key=value` records.
    #[error("the extended header is malformed: {problem}")]
    Pax {
        /// The defect.
        problem: &'static str,
    },
    /// An extended header without an entry after it, or two of a kind in a row.
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
    /// Extended header and long name give an entry two names, so that two readers see two archives.
    #[error("the extended header and the long name before an entry give it two names")]
    NamesDisagree,
    /// The map of a sparse file is malformed.
    #[error("the map of a sparse file is malformed: {problem}")]
    Sparse {
        /// The defect.
        problem: &'static str,
    },
}

/// Why an entry is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryProblem {
    /// An empty name.
    #[error("the name is empty")]
    EmptyName,
    /// A name, or the target of a hard link, that leads above the image's root.
    #[error("the path leads out of the image by `..`")]
    AboveRoot,
    /// A NUL byte in a name or target.
    #[error("the path has a NUL byte")]
    NulInPath,
    /// A component over 255 bytes, or a path over 4095.
    #[error("the path is too long")]
    PathTooLong,
    /// A path deeper than [`crate::limits::MAX_DEPTH`].
    #[error("it is too deep in the tree")]
    TooDeep,
    /// An entry that would replace `/` by something other than a directory.
    #[error("the root of the image must be a directory")]
    RootNotDirectory,
    /// A file whose name ends in a slash. Some readers make it a directory.
    #[error("a name that ends with a slash is for directories")]
    SlashAfterFile,
    /// A path through something that is neither a directory nor a symlink to one.
    #[error("the path leads through `{through}`, which is {what}")]
    NotThroughDirectory {
        /// The component.
        through: String,
        /// Its type.
        what: &'static str,
    },
    /// A path through more than 40 symlinks, Linux's limit.
    #[error("the path leads through too many symlinks")]
    SymlinkLoop,
    /// A target that is empty, over 4095 bytes, or has a NUL byte.
    #[error("the target of the symlink is empty, too long, or has a NUL byte")]
    SymlinkTarget,
    /// A hard link to nothing, to a directory, or to itself.
    #[error("the target `{target}` of the hard link is {what}")]
    HardLinkTarget {
        /// The target in the archive.
        target: String,
        /// The defect.
        what: &'static str,
    },
    /// More names than ext4 allows.
    #[error("the file would have more than 65000 names")]
    TooManyLinks,
    /// A whiteout of nothing, of `.` or `..`, or as a directory.
    #[error("the whiteout is malformed: {what}")]
    Whiteout {
        /// The defect.
        what: &'static str,
    },
    /// A mode, owner or device number out of range.
    #[error("its {field} is out of range")]
    Number {
        /// The field.
        field: &'static str,
    },
    /// More extended attributes than ext4 stores: about 4000 bytes a file.
    #[error("its extended attributes have {bytes} bytes, over the {allowed} that ext4 stores")]
    XattrsTooLarge {
        /// Their encoded size.
        bytes: usize,
        /// The space in one block.
        allowed: usize,
    },
    /// An extended attribute that the kernel refuses.
    #[error("the extended attribute `{attribute}` is malformed")]
    Xattr {
        /// Its name.
        attribute: String,
    },
}
