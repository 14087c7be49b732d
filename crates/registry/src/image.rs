//! The two operations: resolve a reference, fetch an image.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use model::Digest;
use model::image::ImageConfig;
use model::instance::PinnedImage;

use crate::cache::BlobCache;
use crate::credentials::{Credential, Credentials};
use crate::document::Compression;
use crate::error::{Problem, RegistryError};
use crate::limits::Limits;
use crate::origin::Origin;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::source::{Source, SourceImage};
use crate::transport::{Place, Transport};
use crate::{fetch, resolve, source};

/// How to speak to registries.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// Registries (`host` or `host:port`, as in references) that are spoken to by plain HTTP. Loopback ones
    /// always are.
    pub insecure: BTreeSet<String>,
    /// Mirrors by the registry they stand in for (`docker.io`), in the order they are asked. They are asked for
    /// what is known by its digest, never for what a tag means; where none has it, the registry itself is.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// What to show to those that ask.
    pub credentials: Credentials,
    /// Bounds.
    pub limits: Limits,
}

/// A client for any number of registries. Clones share its connections and tokens.
#[derive(Clone)]
pub struct Registry {
    transport: Arc<Transport>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

/// What a reference stands for, at this moment.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The digest of what the reference names, an image or an index
    /// (`release.image_ref_digest`).
    pub ref_digest: Digest,
    /// The tag that was resolved, if one was; nothing runs by it.
    pub pinned_tag: Option<String>,
    /// The image manifest to run, by [`Platform::key`] of those platforms that were asked for and
    /// are there; never empty (`release.resolved_image_digest`).
    pub by_arch: BTreeMap<String, Digest>,
    /// Whether the reference names an index.
    pub is_index: bool,
    /// Each image of `by_arch`, described.
    pub images: BTreeMap<String, ImageDescription>,
    /// Every Linux image that is there, in the index's order.
    pub offered: Vec<(Platform, Digest)>,
}

/// An image without its layers' bytes.
#[derive(Debug, Clone)]
pub struct ImageDescription {
    /// Its manifest's digest.
    pub digest: Digest,
    /// What of its config we honour.
    pub config: ImageConfig,
    /// The architecture's variant, where the config names one.
    pub variant: Option<String>,
    /// Its layers, lowest first; at least one.
    pub layers: Vec<LayerDescription>,
    /// Sum of its layers as stored in the registry, in bytes.
    pub size_bytes: u64,
}

/// A layer, as manifest and config describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDescription {
    /// Digest of the blob.
    pub digest: Digest,
    /// Length of the blob, in bytes.
    pub size: u64,
    /// How the blob is compressed.
    pub compression: Compression,
    /// Digest of the tar inside; `root-disk` checks it.
    pub diff_id: Digest,
}

/// How far a fetch is. `total_bytes` counts each blob once, also where layers share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchProgress {
    /// Bytes of layers that are there.
    pub done_bytes: u64,
    /// Bytes of all layers.
    pub total_bytes: u64,
    /// Layers that are wholly there, checked.
    pub done_layers: usize,
    /// All layers.
    pub total_layers: usize,
}

/// An image that is in the blob cache.
#[derive(Debug, Clone)]
pub struct FetchedImage {
    /// Its manifest's digest.
    pub digest: Digest,
    /// What of its config we honour.
    pub config: ImageConfig,
    /// Its layers, lowest first; at least one.
    pub layers: Vec<LayerBlob>,
}

/// A layer on disk. Its bytes had the digest when they came; whoever unpacks it checks digest and
/// `diff_id` again while reading (`root-disk`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerBlob {
    /// The blob's file.
    pub path: PathBuf,
    /// Digest of the blob.
    pub digest: Digest,
    /// Digest of the tar inside.
    pub diff_id: Digest,
    /// How the blob is compressed.
    pub compression: Compression,
    /// Length of the blob, in bytes.
    pub size: u64,
}

/// A registry client could not be made: TLS or its trust store do not work here.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the registry client")]
pub struct SetupError(#[source] reqwest::Error);

impl Registry {
    /// A client; nothing is connected to yet.
    pub fn new(options: RegistryOptions) -> Result<Self, SetupError> {
        let transport = Transport::new(options).map_err(SetupError)?;
        Ok(Self {
            transport: Arc::new(transport),
        })
    }

    /// Finds out what a reference stands for: its digest, and the image for each of `platforms`. With no
    /// platforms, all that are there. The images' manifests and configs are fetched and checked, so what
    /// cannot run is refused here and not on a node. It is an error if none of the platforms is
    /// there; that some are not is for the caller to judge.
    pub async fn resolve(
        &self,
        reference: &Reference,
        platforms: &[Platform],
    ) -> Result<Resolved, RegistryError> {
        let place = place(reference.registry(), reference.repository());
        let origin = Origin::Registry(&self.transport, place);
        resolve::resolve(&origin, reference.tag(), reference.digest(), platforms)
            .await
            .map_err(failed("resolve", reference))
    }

    /// Fetches an image into the cache; what is there already is not fetched again, and if all of it is there
    /// the registry is not asked. `progress` is called about once per MiB from any thread.
    ///
    /// Every blob had the right digest and size when it was put into the cache. A cached layer is judged
    /// by its size only: its bytes are checked by whoever unpacks it.
    pub async fn fetch_image(
        &self,
        image: &PinnedImage,
        cache: &BlobCache,
        progress: &(dyn Fn(FetchProgress) + Send + Sync),
    ) -> Result<FetchedImage, RegistryError> {
        let place = place(&image.registry, &image.repository);
        fetch::from_registry(&self.transport, place, &image.digest, cache, progress)
            .await
            .map_err(failed("fetch", image))
    }

    /// Asks a registry whether it takes this credential, as `docker login` does. A registry that lets everyone in
    /// takes any.
    pub async fn log_in(
        &self,
        registry: &str,
        credential: &Credential,
    ) -> Result<(), RegistryError> {
        let attempts = self.transport.limits.attempts;
        self.transport
            .retry(registry, attempts, || {
                self.transport.log_in(registry, credential)
            })
            .await
            .map_err(failed("log in to", &registry))
    }

    /// Forgets what worked at a registry: its credential was changed or taken back.
    pub fn forget_login(&self, registry: &str) {
        self.transport.forget(registry);
    }

    /// Like [`Registry::resolve`], for images in files too.
    pub async fn resolve_source(
        &self,
        source: &Source,
        platforms: &[Platform],
    ) -> Result<Resolved, RegistryError> {
        match source {
            Source::Registry(reference) => self.resolve(reference, platforms).await,
            files => source::resolve(files, platforms, &self.transport.limits)
                .await
                .map_err(failed("resolve", files)),
        }
    }

    /// Resolves a source for one platform and fetches the image. The layers of an OCI layout stay where they
    /// are; those of a docker archive are put into the cache.
    pub async fn fetch_source(
        &self,
        source: &Source,
        platform: &Platform,
        cache: &BlobCache,
        progress: &(dyn Fn(FetchProgress) + Send + Sync),
    ) -> Result<SourceImage, RegistryError> {
        match source {
            Source::Registry(reference) => {
                let platforms = std::slice::from_ref(platform);
                let resolved = self.resolve(reference, platforms).await?;
                let image = reference.pinned_image(&resolved.by_arch[&platform.key()]);
                Ok(SourceImage {
                    ref_digest: resolved.ref_digest,
                    pinned_tag: resolved.pinned_tag,
                    image: self.fetch_image(&image, cache, progress).await?,
                })
            }
            files => source::fetch(files, platform, cache, &self.transport.limits, progress)
                .await
                .map_err(failed("fetch", files)),
        }
    }
}

fn failed(
    operation: &'static str,
    image: &impl fmt::Display,
) -> impl FnOnce(Problem) -> RegistryError {
    let image = image.to_string();
    move |problem| RegistryError {
        operation,
        image,
        problem,
    }
}

/// `registry` and `repository` of a reference.
fn place(registry: &str, repository: &str) -> Place {
    Place {
        registry: registry.to_owned(),
        repository: repository.to_owned(),
    }
}
