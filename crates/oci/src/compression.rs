//! How the archive of a layer is compressed.

use std::fmt;

/// How a layer is compressed. What a media type says of it is a hint; [`Compression::of_bytes`] decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Compression {
    /// A plain tar archive.
    None,
    /// RFC 1952; several members in a row are one stream.
    Gzip,
    /// RFC 8878; several frames in a row are one stream.
    Zstd,
    /// Of old images; several streams in a row are one.
    Bzip2,
    /// Of old images; several streams in a row are one.
    Xz,
}

impl Compression {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Zstd, Self::Bzip2, Self::Xz];

    /// The compression of bytes that begin so (RFC 1952, RFC 8878, the file formats of bzip2 and xz). Anything else is [`Self::None`]: whether it is a tar
    /// archive is for its reader to find out. Media types are often wrong about it, and docker and containerd look at
    /// the bytes, too; the layer's diff_id proves the result.
    pub fn of_bytes(beginning: &[u8]) -> Self {
        match beginning {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            // A frame of data, or one that is skipped and has metadata.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            // With the magic of the first block, or of the end: a file's name may begin with the first three letters.
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ => Self::None,
        }
    }
}

/// As many bytes of a layer as [`Compression::of_bytes`] looks at.
pub const COMPRESSION_MAGIC_BYTES: usize = 8;

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
        })
    }
}
