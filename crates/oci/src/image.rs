//! An image as a value: its config and layers, without and with the layers' bytes.

use std::path::PathBuf;

use model::Digest;
use model::image::ImageConfig;

use crate::compression::Compression;
use crate::config::Config;
use crate::document::ImageManifest;

/// An image without its layers' bytes.
#[derive(Debug, Clone)]
pub struct ImageDescription {
    /// Digest of its manifest.
    pub digest: Digest,
    /// The part of its config that the platform honours.
    pub config: ImageConfig,
    /// The architecture's variant, where the config names one.
    pub variant: Option<String>,
    /// Its layers, the base first; at least one.
    pub layers: Vec<LayerDescription>,
    /// Sum of its layers as stored, in bytes.
    pub size_bytes: u64,
}

impl ImageDescription {
    /// The image of a manifest with this digest, and its config.
    pub fn new(digest: &Digest, manifest: &ImageManifest, config: Config) -> Self {
        let layers = manifest.layers.iter().zip(config.diff_ids);
        Self {
            digest: digest.clone(),
            config: config.image,
            variant: config.variant,
            size_bytes: manifest.layers.iter().map(|(layer, _)| layer.size).sum(),
            layers: layers
                .map(|((layer, compression), diff_id)| LayerDescription {
                    digest: layer.digest.clone(),
                    size: layer.size,
                    compression: *compression,
                    diff_id,
                })
                .collect(),
        }
    }
}

/// A layer, as manifest and config describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDescription {
    /// Digest of the layer as stored.
    pub digest: Digest,
    /// Length as stored, in bytes.
    pub size: u64,
    /// How it is compressed.
    pub compression: Compression,
    /// Digest of the uncompressed tar archive.
    pub diff_id: Digest,
}

/// An image whose layers are in files of this machine.
#[derive(Debug, Clone)]
pub struct LocalImage {
    /// Digest of its manifest.
    pub digest: Digest,
    /// The part of its config that the platform honours.
    pub config: ImageConfig,
    /// Its layers, the base first; at least one.
    pub layers: Vec<LayerFile>,
}

/// A layer as a byte range of a file. Disks rot, so the reader of the range (`root-disk`) checks `digest` and `diff_id`
/// while it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerFile {
    /// The file.
    pub path: PathBuf,
    /// Where the layer begins in the file, in bytes. 0 where the file is the layer.
    pub offset: u64,
    /// Length as stored, in bytes.
    pub size: u64,
    /// Digest of the layer as stored.
    pub digest: Digest,
    /// Digest of the uncompressed tar archive.
    pub diff_id: Digest,
    /// How it is compressed.
    pub compression: Compression,
}

impl LayerFile {
    /// This layer, in a file from `offset` on.
    pub fn new(layer: LayerDescription, path: PathBuf, offset: u64) -> Self {
        Self {
            path,
            offset,
            size: layer.size,
            digest: layer.digest,
            diff_id: layer.diff_id,
            compression: layer.compression,
        }
    }
}
