//! How much an image may ask of the host. Reaching one is an [`OverLimit`] that names it.

use crate::error::OverLimit;

/// Deepest directory, in components from the root.
pub const MAX_DEPTH: u32 = 2048;
/// Longest path of an entry and target of a symlink, in bytes; Linux's `PATH_MAX` less its NUL.
pub const MAX_PATH_BYTES: usize = 4095;
/// Longest component of a path, in bytes; Linux's `NAME_MAX`.
pub const MAX_NAME_BYTES: usize = 255;
/// Symlinks that one path may lead through; Linux's `MAXSYMLINKS`.
pub const MAX_SYMLINKS: u32 = 40;
/// Components of the targets of these symlinks, together.
pub const MAX_SYMLINK_STEPS: u32 = 4096;
/// Names of one file, by ext4.
pub const MAX_LINKS: u32 = 65_000;
/// Largest extended header (PAX) or long name of one entry, in bytes.
pub const MAX_PAX_BYTES: u64 = 1024 * 1024;
/// Pieces of one sparse file.
pub const MAX_SPARSE_PIECES: usize = 256 * 1024;
/// A zstd frame may ask for a window of two to the power of this, in bytes: 128 MiB.
pub const ZSTD_WINDOW_LOG: u32 = 27;

/// What one image may ask for. The defaults are far above what real images have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Layers of the image.
    pub layers: u64,
    /// Entries of all layers together, what is replaced and removed included.
    pub entries: u64,
    /// Bytes of all layers, decompressed; and bytes of all files, with the holes of sparse files:
    /// each may reach this. It bounds the time that a bomb takes.
    pub expanded_bytes: u64,
    /// Bytes of the finished disk; blocks of zeros take no room on the host but count here only
    /// as far as they are part of the disk.
    pub disk_bytes: u64,
    /// Bytes of memory for the tree: names, attributes, targets, block lists. A process may have up to
    /// twice as much resident while the tree grows. What the pipeline needs besides is constant: about
    /// 24 MiB, and a zstd window of up to 128 MiB.
    pub tree_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layers: 256,
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
