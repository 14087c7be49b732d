//! Writes ext4 that Linux 6.1 mounts and `e2fsck -fn` accepts (kernel documentation, filesystems/ext4).
//!
//! A disk begins with the superblock and space for the group descriptors. Then come the blocks in the order in
//! which they are appended (content of files, then directories and overflow of inodes), then all bitmaps and inode
//! tables. Data is written once and never moved. Checksums (`metadata_csum`) are on.
//!
//! Volumes have a journal. A root disk, which is never written, and a scratch disk, which is deleted with its
//! instance, have none.
//!
//! Deliberately absent: backups of the superblock, resizing (which needs these backups), and 64-bit block numbers
//! (a disk has at most 4 TiB).

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
mod layout;
mod superblock;
mod writer;
pub(crate) mod xattr;

pub use empty::{format_empty, format_volume};
pub(crate) use image::{DATA_START, MAX_DISK_BLOCKS, finish};
pub(crate) use layout::BLOCK;
pub(crate) use superblock::Identity;
pub(crate) use writer::{BlockWriter, Content};
