//! OCI layers to a reproducible read-only ext4 image, and the cache of them (ADR 0002).
//!
//! [`build`] reads each layer once, from the base up. One thread reads and decompresses, one hashes the
//! decompressed bytes, one merges, one writes:
//!
//! ```text
//! layer file -> digest -> decompress -+-> diff_id
//!                                     +-> tar entries -> merge -> blocks -> disk
//! ```
//!
//! The content of a file is written to the disk at once and never moved (`ext4`). Names, owners, times
//! and the places of contents stay in memory as a tree (`tree`), in which `merge` applies the layers as the image
//! spec says. The directories, the inodes and the superblock are written last. An image never becomes a
//! file, a path or an owner on the host: there is no mount and no unpacked tree, so a hostile image can reach
//! nothing. `tar` refuses archives that two programs could read in two ways.
//!
//! Equal layers give equal bytes on every node at any time: the order comes from names and layers, the UUID and
//! the seed of the directories' hashes come from the layers' digests, and no clock is read.
//!
//! Memory is bounded by [`Limits::tree_bytes`] and the constants in [`limits`]; time by
//! [`Limits::expanded_bytes`] and [`Limits::entries`]; the host's disk by [`Limits::disk_bytes`].
//!
//! Deliberately absent: fetching, and the choice of the disks to evict (the callers do both); changing an existing
//! disk; other file systems; dm-verity.

mod build;
mod cache;
mod error;
mod ext4;
pub mod limits;
mod merge;
mod path;
mod resolve;
mod stream;
mod tar;
mod tree;

pub use build::{BuiltDisk, build};
pub use cache::{CachedDisk, DiskCache, ListedDisk};
pub use error::{ArchiveProblem, DiskError, EntryProblem, LayerError, OverLimit};
pub use ext4::{format_empty, format_volume};
pub use limits::Limits;
