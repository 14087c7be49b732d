//! OCI registries: resolve a reference to digests per architecture, and fetch an image with every
//! byte checked (ADR 0002).
//!
//! The way through: [`Registry::resolve`] turns what the user wrote (a [`Reference`], perhaps with a
//! tag) into digests, once, at deploy. [`Registry::fetch_image`] later fetches one image by digest into
//! the [`BlobCache`] of a node: the manifest, its config, and the layers, several at a time. The
//! layers stay compressed; `root-disk` unpacks them. [`Source`] reads images from files too, for
//! `platform image disk`.
//!
//! A registry is not trusted. Nothing is taken from it but bytes that have the digest and the size
//! that were asked for; every body is read up to a limit ([`Limits`]); redirects never lead from
//! HTTPS to HTTP; HTTP is spoken to loopback and to listed hosts only; every retry is counted.
//!
//! Why not the `oci-client` crate: 0.18 reads manifests, configs and token answers of any size into memory
//! before it checks anything, does not resume a blob after it was cut off, and cannot be told to
//! stop at the second 401. These are inside its requests, where no fence of ours can stand. What a
//! node needs is three kinds of GET request, so it is written here, over `reqwest`.
//!
//! Mirrors are asked first for whatever is known by its digest ([`RegistryOptions::mirrors`]). Credentials come
//! from the caller ([`Credentials`]).
//!
//! Deliberately absent: pushing, listing tags, image signatures, and HTTPS with a private CA other than through
//! the system's trust store.

mod archive;
mod auth;
mod cache;
mod credentials;
mod document;
mod download;
mod error;
mod fetch;
mod image;
mod limits;
mod origin;
mod platform;
mod reference;
mod resolve;
mod source;
mod token;
mod transport;

pub use cache::{BlobCache, CacheError, CachedBlob, ListedBlob};
pub use credentials::{Credential, CredentialSource, Credentials, CredentialsError, DockerConfig};
pub use document::Compression;
pub use error::{Platforms, Problem, RegistryError};
pub use image::{
    FetchProgress, FetchedImage, ImageDescription, LayerBlob, LayerDescription, Registry,
    RegistryOptions, Resolved, SetupError,
};
pub use limits::Limits;
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError, parse_registry};
pub use source::{Source, SourceError, SourceImage};
