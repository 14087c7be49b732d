//! Writing ext4, as Linux 6.1 mounts it and `e2fsck -fn` finds nothing to say about (kernel documentation,
//! filesystems/ext4).
//!
//! The disk in order: the superblock, room for the group descriptors, then blocks as they are appended
//! (content of files, then directories and what inodes have no room for), then all bitmaps and all inode
//! tables. Data is never moved and written once. Checksums (`metadata_csum`) are on.
//!
//! Deliberately absent: a journal. A root disk is never written; a scratch disk dies with its instance. A
//! volume would want one: until then it is to be checked (`e2fsck`) after its guest was killed. Absent,
//! too: backups of the superblock, resizing, 64-bit block numbers (disks end at 4 TiB).

mod bytes;
mod checksum;
mod directory;
mod dirhash;
mod empty;
mod extents;
mod groups;
mod image;
mod inode;
mod superblock;
mod writer;
pub(crate) mod xattr;

pub use empty::format_empty;
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
