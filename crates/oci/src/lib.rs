//! OCI images as values (ADR 0002): references, platforms, manifests, indexes and configs, and the choice of an
//! image for a platform. Pure: no I/O, no async.
//!
//! Bytes come from `registry` (over HTTP) or `image-source` (from local files). Both check them with [`verify`], read
//! them with [`read_document`] and [`read_config`], and let a [`Resolution`] decide which images of an index
//! are read. The result is a [`Resolved`] image without layers, or a [`LocalImage`] whose layers are byte ranges of
//! files ([`LayerFile`]), which `root-disk` merges.
//!
//! Both callers are untrusted sources: every document is bounded ([`ImageLimits`]), and what is refused is refused
//! with an [`ImageError`].
//!
//! Deliberately absent: building and signing images, and artifacts that are not container images.

mod compression;
mod config;
mod digest;
mod document;
mod error;
mod image;
mod limits;
mod platform;
mod reference;
mod resolution;

pub use compression::{COMPRESSION_MAGIC_BYTES, Compression};
pub use config::{Config, read_config};
pub use digest::{digest_of, verify};
pub use document::{
    DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Document, EntryPlatform, ImageManifest, IndexEntry,
    OCI_INDEX, OCI_MANIFEST, read_document,
};
pub use error::{ImageError, Platforms};
pub use image::{ImageDescription, LayerDescription, LayerFile, LocalImage};
pub use limits::{
    ImageLimits, MAX_INDEX_ENTRIES, MAX_LAYERS, MAX_NESTED_INDEXES, MAX_NESTED_LEVELS,
    MAX_UNLABELLED_ENTRIES,
};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError, is_loopback, parse_registry};
pub use resolution::{Resolution, Resolved};
