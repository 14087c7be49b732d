//! Bounds on an image. An image over one of them is refused with an [`OverLimit`] that names it.

use crate::error::OverLimit;

/// Deepest directory, in components from the root.
pub const MAX_DEPTH: u32 = 2048;
/// Longest path of an entry and target of a symlink, in bytes; Linux's `PATH_MAX` less its NUL.
pub const MAX_PATH_BYTES: usize = 4095;
/// Longest component of a path, in bytes; Linux's `NAME_MAX`.
pub const MAX_NAME_BYTES: usize = 255;
/// Most symlinks on one path; Linux's `MAXSYMLINKS`.
pub const MAX_SYMLINKS: u32 = 40;
/// Most components of the targets of these symlinks together.
pub const MAX_SYMLINK_STEPS: u32 = 4096;
/// Most names (hard links) of one file in ext4.
pub const MAX_LINKS: u32 = 65_000;
/// Largest extended header (PAX) or long name of one entry, in bytes.
pub const MAX_PAX_BYTES: u64 = 1024 * 1024;
/// Most pieces of one sparse file.
pub const MAX_SPARSE_PIECES: usize = 256 * 1024;
/// Largest window of a zstd frame, as a power of two, in bytes: 128 MiB.
pub const ZSTD_WINDOW_LOG: u32 = 27;
/// Most memory that an xz stream may ask for, in KiB: a dictionary of 128 MiB (`xz -9` has one of 64 MiB) and what the decoder needs beside it.
pub const XZ_MEMORY_KIB: u32 = 129 * 1024;

/// Bounds on one image. The defaults are far above the needs of real images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most layers; the default is [`oci::MAX_LAYERS`], so that an image that was deployed is not refused here.
    pub layers: u64,
    /// Most entries of all layers together, replaced and removed ones included.
    pub entries: u64,
    /// Most decompressed bytes of all layers, and most bytes of all files with the holes of sparse files; each alone.
    /// It bounds the time that a decompression bomb takes.
    pub expanded_bytes: u64,
    /// Largest finished disk, in bytes. Blocks of zeros count, although they take no space on the host.
    pub disk_bytes: u64,
    /// Most memory for the tree, in bytes: names, attributes, targets, block lists. A process may have up to
    /// twice as much resident while the tree grows. The rest of the pipeline needs a constant
    /// 24 MiB, and the window of zstd or xz of up to 128 MiB.
    pub tree_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layers: oci::MAX_LAYERS as u64,
            entries: 2 * 1024 * 1024,
            expanded_bytes: 64 * GIB,
            disk_bytes: 64 * GIB,
            tree_bytes: GIB / 2,
        }
    }
}

const GIB: u64 = 1024 * 1024 * 1024;

/// `value <= allowed`, or an error that names the limit.
pub(crate) fn within(
    value: u64,
    allowed: u64,
    limit: &'static str,
    unit: &'static str,
) -> Result<(), OverLimit> {
    if value <= allowed {
        Ok(())
    } else {
        Err(OverLimit {
            limit,
            allowed,
            unit,
        })
    }
}
