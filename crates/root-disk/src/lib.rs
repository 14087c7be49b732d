//! OCI layers to a reproducible read-only ext4 image, and the cache of them (ADR 0002).
//!
//! [`build`] reads each layer once, from the base up. One thread reads and decompresses, one hashes what
//! comes out, one merges, one writes:
//!
//! ```text
//! layer file -> digest -> decompress -+-> diff_id
//!                                     +-> tar entries -> merge -> blocks -> disk
//! ```
//!
//! The content of a file goes straight to the disk, where it is never moved (`ext4`); names, owners, times
//! and where the content is stay in memory as a tree (`tree`), in which `merge` does what the image spec says
//! of layers. At the end come the directories, the inodes and the superblock. Nothing of an image is ever a
//! file, a path or an owner on the host: there is no mount and no unpacked tree, so a hostile one has nothing
//! to reach for. `tar` refuses archives that two programs could read in two ways.
//!
//! Equal layers give equal bytes on every node and day: all order comes from names and layers, the UUID and
//! the seed of the directories' hashes come from the layers' digests, and there is no clock.
//!
//! Memory is bounded by [`Limits::tree_bytes`] and the constants in [`limits`]; time by
//! [`Limits::expanded_bytes`] and [`Limits::entries`]; the host's disk by [`Limits::disk_bytes`].
//!
//! Deliberately absent: fetching, and the decision which disks stay (the callers'); writing to a disk that
//! exists; other file systems; dm-verity.

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
