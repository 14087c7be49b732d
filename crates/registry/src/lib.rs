//! The client of OCI registries: resolve a reference to digests, fetch an image with every byte checked (ADR 0002).
//!
//! [`Registry::resolve`] turns a reference, perhaps with a tag, into digests, once, at deploy.
//! [`Registry::fetch_image`] later fetches one image by digest into the [`BlobCache`] of a node: its manifest, its
//! config, and its layers, several at a time. The layers stay compressed; `root-disk` unpacks them. The values and
//! the choice of an image for a platform are `oci`'s; images in local files are `image-source`'s.
//!
//! A registry is not trusted. Only bytes with the requested digest and size are used; every body is read up to a
//! limit ([`Limits`]); plain HTTP is spoken to loopback and to listed hosts only, also after a redirect; the number of
//! attempts is limited.
//!
//! Mirrors are asked first for manifests and blobs by digest ([`RegistryOptions::mirrors`]). The caller provides
//! the credentials ([`Credentials`]).
//!
//! Why not the `oci-client` crate: 0.18 reads manifests, configs and token answers of any size into memory
//! before it checks anything, does not resume a blob after it was cut off, and does not stop at the second 401. A
//! caller cannot prevent that from outside. A node needs three kinds of GET request, so they are written here, over
//! `reqwest`.
//!
//! Deliberately absent: pushing, listing tags, image signatures, and HTTPS with a private CA other than through
//! the system's trust store.

mod addresses;
mod cache;
mod challenge;
mod client;
mod credentials;
mod documents;
mod download;
mod error;
mod fetch;
mod http;
mod limits;
mod options;
mod progress;
mod resolve;
mod token;
mod transport;

pub use addresses::Addresses;
pub use cache::{BlobCache, CacheError, CachedBlob, ListedBlob, PARTIAL_LIFETIME};
pub use client::{Registry, SetupError};
pub use credentials::{Credential, CredentialSource, Credentials, CredentialsError, DockerConfig};
pub use error::{LoginState, Problem, RegistryError};
pub use limits::{Limits, LongerWait};
pub use options::RegistryOptions;
pub use progress::{FetchEvent, FetchProgress};
