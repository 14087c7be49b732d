//! Bounds on what an image may be.

/// Bounds on an image's documents and layers. [`ImageLimits::default`] is what the platform uses.
#[derive(Debug, Clone)]
pub struct ImageLimits {
    /// Largest manifest or index, in bytes. 4 MiB is what the distribution spec asks registries to
    /// accept.
    pub manifest_bytes: u64,
    /// Largest image config, in bytes.
    pub config_bytes: u64,
    /// Most layers of an image; the default is [`MAX_LAYERS`].
    pub layers: usize,
    /// Largest layer as stored, that is compressed, in bytes.
    pub layer_bytes: u64,
    /// Largest sum of an image's layers as stored, in bytes.
    pub image_bytes: u64,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            config_bytes: 4 << 20,
            layers: MAX_LAYERS,
            layer_bytes: 32 << 30,
            image_bytes: 64 << 30,
        }
    }
}

/// Most layers of an image, everywhere on its way: an image with more is refused when it is deployed.
pub const MAX_LAYERS: usize = 512;
/// Most entries of an index.
pub const MAX_INDEX_ENTRIES: usize = 1024;
/// Entries without a platform whose image is read, where no entry of an index has one.
pub const MAX_UNLABELLED_ENTRIES: usize = 8;
/// Levels of indexes within the index that a reference names. Deeper ones are refused.
pub const MAX_NESTED_LEVELS: usize = 2;
/// Indexes within an index that are read, of all levels together.
pub const MAX_NESTED_INDEXES: usize = 16;
/// Longest excerpt of a document in an error, in bytes.
pub(crate) const MAX_EXCERPT_BYTES: usize = 200;
