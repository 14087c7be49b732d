//! Writing ext4, as Linux 6.1 mounts it and `e2fsck -fn` finds nothing to say about (kernel documentation,
//! filesystems/ext4).
//!
//! The disk in order: the superblock, room for the group descriptors, then blocks as they are appended
//! (content of files, then directories and what inodes have no room for), then all bitmaps and all inode
//! tables. Data is never moved and written once. Checksums (`metadata_csum`) are on.
//!
//! Volumes have a journal; a root disk, which is never written, and a scratch disk, which dies with its
//! instance, have none.
//!
//! Deliberately absent: backups of the superblock, resizing (Linux does not resize what has no such backups),
//! 64-bit block numbers (disks end at 4 TiB).

mod bytes;
mod checksum;
mod directory;
mod dirhash;
mod empty;
mod extents;
mod groups;
mod image;
mod inode;
mod journal;
mod superblock;
mod writer;
pub(crate) mod xattr;

pub use empty::{format_empty, format_volume};
pub(crate) use image::{DATA_START, MAX_DISK_BLOCKS, finish};
pub(crate) use superblock::Identity;
pub(crate) use writer::{BlockWriter, Content};

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;
/// Blocks of a group: as many as one block has bits.
const BLOCKS_PER_GROUP: u32 = BLOCK as u32 * 8;
/// The root directory's number.
const ROOT_INODE: u32 = 2;
/// The first that is not reserved.
const FIRST_INODE: u32 = 11;
