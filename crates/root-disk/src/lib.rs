//! OCI layers to a reproducible read-only ext4 image, and the cache of them (ADR 0002).

mod build;
mod cache;
mod error;
mod ext4;
mod layer;
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
pub use ext4::format_empty;
pub use layer::{Compression, Layer};
pub use limits::Limits;
