//! Images in local files (ADR 0002): OCI image layouts, and the archives of `docker save`. They serve `platform image`,
//! which needs no registry and no cluster.
//!
//! [`resolve`] describes an image without its layers. [`open`] also locates the layers, as byte ranges of the files
//! ([`oci::LayerFile`]): nothing is copied, so this crate needs no blob cache, and that stays `registry`'s. `root-disk`
//! checks the bytes of a layer while it reads them.
//!
//! The files are not trusted: every document is checked against its digest and size, and bounded
//! ([`oci::ImageLimits`]). Names in an archive are looked up in a table and never become paths.
//!
//! All functions block while they read.

mod archive;
mod error;
mod file;
mod layout;
mod name;
mod open;

pub use error::{SourceError, SourceProblem};
pub use name::{ImageSource, ImageSourceError};
pub use open::{OpenedImage, open, resolve};
