//! The two operations: resolve a reference, fetch an image.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use contract::Digest;
use contract::image::ImageConfig;
use contract::instance::PinnedImage;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::cache::{BlobCache, digest_of};
use crate::credentials::Credentials;
use crate::document::{
    Compression, Config, DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Document, ImageManifest,
    IndexEntry, OCI_INDEX, OCI_MANIFEST, read_config, read_document,
};
use crate::download;
use crate::error::{Platforms, Problem, RegistryError};
use crate::limits::{Limits, MAX_UNLABELLED_ENTRIES, PROGRESS_STEP_BYTES};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::transport::{Place, Transport};

/// How to speak to registries.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// Registries (`host` or `host:port`, as in references) that are spoken to by plain HTTP. Loopback ones
    /// always are.
    pub insecure: BTreeSet<String>,
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
/// diff_id again while reading (`root-disk`).
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
        let transport = Transport::new(options.insecure, options.credentials, options.limits)
            .map_err(SetupError)?;
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
        self.try_resolve(reference, platforms)
            .await
            .map_err(|problem| RegistryError {
                operation: "resolve",
                image: reference.to_string(),
                problem,
            })
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
        self.try_fetch(image, cache, progress)
            .await
            .map_err(|problem| RegistryError {
                operation: "fetch",
                image: image.to_string(),
                problem,
            })
    }

    async fn try_resolve(
        &self,
        reference: &Reference,
        platforms: &[Platform],
    ) -> Result<Resolved, Problem> {
        let place = place(reference.registry(), reference.repository());
        let name = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.to_owned(),
            (None, None) => "latest".to_owned(),
        };
        let (document, ref_digest) = self
            .document(&place, &name, reference.digest(), None)
            .await?;
        let pinned_tag = match reference.digest() {
            Some(_) => None,
            None => reference.tag().map(str::to_owned),
        };
        let mut resolved = Resolved {
            ref_digest: ref_digest.clone(),
            pinned_tag,
            by_arch: BTreeMap::new(),
            is_index: false,
            images: BTreeMap::new(),
            offered: Vec::new(),
        };
        match document {
            Document::Image(manifest) => {
                let config = self.config(&place, &manifest, None).await?;
                let own = platform_of(&config);
                check_os(&config)?;
                resolved.offered.push((own.clone(), ref_digest.clone()));
                let description = describe(&ref_digest, &manifest, config);
                let own = [own];
                let wanted = if platforms.is_empty() {
                    &own
                } else {
                    platforms
                };
                for wanted in wanted {
                    if wanted
                        .rank(&own[0].architecture, own[0].variant.as_deref())
                        .is_some()
                    {
                        resolved.by_arch.insert(wanted.key(), ref_digest.clone());
                        resolved.images.insert(wanted.key(), description.clone());
                    }
                }
            }
            Document::Index(entries) => {
                resolved.is_index = true;
                self.resolve_index(&place, &entries, platforms, &mut resolved)
                    .await?;
            }
        }
        if resolved.by_arch.is_empty() {
            let offered = resolved.offered.into_iter().map(|(platform, _)| platform);
            let offered = offered
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>();
            return Err(Problem::NoSuchPlatform {
                wanted: Platforms(platforms.to_vec()),
                offered: match offered.is_empty() {
                    true => "no Linux image".to_owned(),
                    false => Platforms(offered).to_string(),
                },
            });
        }
        Ok(resolved)
    }

    /// Chooses from an index, and looks at what was chosen.
    async fn resolve_index(
        &self,
        place: &Place,
        entries: &[IndexEntry],
        platforms: &[Platform],
        resolved: &mut Resolved,
    ) -> Result<(), Problem> {
        let mut labelled: Vec<(Platform, &IndexEntry)> = entries
            .iter()
            .filter_map(|entry| Some((entry.platform.as_ref()?.linux()?, entry)))
            .collect();
        let mut known = BTreeMap::new();
        if labelled.is_empty() {
            // Some tools do not say what an image is for: its config does.
            let unlabelled = entries.iter().filter(|entry| entry.platform.is_none());
            for entry in unlabelled.take(MAX_UNLABELLED_ENTRIES) {
                let digest = &entry.descriptor.digest;
                match self.description(place, entry).await {
                    Ok(description) => {
                        labelled.push((platform_of_description(&description), entry));
                        known.insert(digest.clone(), description);
                    }
                    Err(Problem::NotAnImage { digest, kind }) => {
                        tracing::debug!(%digest, kind, "an entry of the index is skipped");
                    }
                    Err(problem) => return Err(problem),
                }
            }
        }
        resolved.offered = labelled
            .iter()
            .map(|(platform, entry)| (platform.clone(), entry.descriptor.digest.clone()))
            .collect();
        let offered: Vec<Platform> = labelled
            .iter()
            .map(|(platform, _)| platform.clone())
            .collect();
        let wanted = if platforms.is_empty() {
            &offered
        } else {
            platforms
        };
        for wanted in wanted {
            // The first of the best, so that the order of the index decides between equals.
            let mut best: Option<(u32, &IndexEntry)> = None;
            for (platform, entry) in &labelled {
                let rank = wanted.rank(&platform.architecture, platform.variant.as_deref());
                if let Some(rank) = rank
                    && best.is_none_or(|(best, _)| rank > best)
                {
                    best = Some((rank, entry));
                }
            }
            let Some((_, entry)) = best else { continue };
            let digest = &entry.descriptor.digest;
            if !known.contains_key(digest) {
                let description = self.description(place, entry).await?;
                known.insert(digest.clone(), description);
            }
            resolved.by_arch.insert(wanted.key(), digest.clone());
            resolved.images.insert(wanted.key(), known[digest].clone());
        }
        Ok(())
    }

    /// The image behind an entry of an index.
    async fn description(
        &self,
        place: &Place,
        entry: &IndexEntry,
    ) -> Result<ImageDescription, Problem> {
        let digest = &entry.descriptor.digest;
        let nested = || Problem::NestedIndex {
            digest: digest.clone(),
        };
        if entry.is_index {
            return Err(nested());
        }
        let size = Some(entry.descriptor.size);
        let (document, _) = self
            .document(place, digest.as_str(), Some(digest), size)
            .await?;
        let Document::Image(manifest) = document else {
            return Err(nested());
        };
        let config = self.config(place, &manifest, None).await?;
        check_os(&config)?;
        Ok(describe(digest, &manifest, config))
    }

    /// A manifest or index by tag or digest, checked against the digest and size where they are known.
    async fn document(
        &self,
        place: &Place,
        name: &str,
        digest: Option<&Digest>,
        size: Option<u64>,
    ) -> Result<(Document, Digest), Problem> {
        let (bytes, content_type, actual) = self.document_bytes(place, name, digest, size).await?;
        let limits = &self.transport.limits;
        let document = read_document(
            &bytes,
            &actual,
            &place.registry,
            content_type.as_deref(),
            limits,
        )?;
        Ok((document, actual))
    }

    async fn document_bytes(
        &self,
        place: &Place,
        name: &str,
        digest: Option<&Digest>,
        size: Option<u64>,
    ) -> Result<(Vec<u8>, Option<String>, Digest), Problem> {
        let accept = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST].join(", ");
        let path = format!("manifests/{name}");
        let limit = self.transport.limits.manifest_bytes;
        let answer = self
            .transport
            .document(place, &path, &accept, "the manifest", limit)
            .await?;
        let actual = digest_of(&answer.bytes);
        let host = &place.registry;
        let stated = answer.digest.and_then(|text| text.parse().ok());
        if let Some(wanted) = digest.or(stated.as_ref())
            && *wanted != actual
        {
            return Err(Problem::WrongDigest {
                host: host.clone(),
                digest: wanted.clone(),
                actual,
            });
        }
        let length = answer.bytes.len() as u64;
        if let Some(expected) = size.filter(|size| *size != length) {
            return Err(Problem::WrongSize {
                host: host.clone(),
                digest: actual,
                expected,
                actual: length,
            });
        }
        // A registry that names no type at all is judged by the document alone.
        Ok((answer.bytes, answer.content_type, actual))
    }

    /// The config of an image, through the cache where there is one.
    async fn config(
        &self,
        place: &Place,
        manifest: &ImageManifest,
        cache: Option<&BlobCache>,
    ) -> Result<Config, Problem> {
        let wanted = &manifest.config;
        let limit = self.transport.limits.config_bytes;
        let cached = match cache {
            Some(cache) => cache.read(&wanted.digest, limit)?,
            None => None,
        };
        let bytes = match cached {
            Some(bytes) => bytes,
            None => {
                let path = format!("blobs/{}", wanted.digest);
                let answer = self
                    .transport
                    .document(place, &path, "*/*", "the image config", limit)
                    .await?;
                check_blob(&place.registry, wanted, &answer.bytes)?;
                if let Some(cache) = cache {
                    cache.put(&wanted.digest, &answer.bytes).await?;
                }
                answer.bytes
            }
        };
        read_config(&bytes, manifest.layers.len())
    }

    async fn try_fetch(
        &self,
        image: &PinnedImage,
        cache: &BlobCache,
        progress: &(dyn Fn(FetchProgress) + Send + Sync),
    ) -> Result<FetchedImage, Problem> {
        let place = place(&image.registry, &image.repository);
        let limits = &self.transport.limits;
        let manifest = {
            let _claim = cache.claim(&image.digest).await;
            let cached = cache.read(&image.digest, limits.manifest_bytes)?;
            let (bytes, content_type, fresh) = match cached {
                Some(bytes) => (bytes, None, false),
                None => {
                    let (name, digest) = (image.digest.as_str(), Some(&image.digest));
                    let (bytes, kind, _) = self.document_bytes(&place, name, digest, None).await?;
                    (bytes, kind, true)
                }
            };
            let kind = content_type.as_deref();
            let document = read_document(&bytes, &image.digest, &place.registry, kind, limits)?;
            if fresh {
                cache.put(&image.digest, &bytes).await?;
            }
            document
        };
        let Document::Image(manifest) = manifest else {
            return Err(Problem::NestedIndex {
                digest: image.digest.clone(),
            });
        };
        let config = self.config(&place, &manifest, Some(cache)).await?;
        check_os(&config)?;
        let layers = self
            .layers(&place, &manifest, &config, cache, progress)
            .await?;
        Ok(FetchedImage {
            digest: image.digest.clone(),
            config: config.image,
            layers,
        })
    }

    /// The layers, several at a time, each blob once.
    async fn layers(
        &self,
        place: &Place,
        manifest: &ImageManifest,
        config: &Config,
        cache: &BlobCache,
        progress: &(dyn Fn(FetchProgress) + Send + Sync),
    ) -> Result<Vec<LayerBlob>, Problem> {
        let mut wanted: BTreeMap<&Digest, &Descriptor> = BTreeMap::new();
        for (layer, _) in &manifest.layers {
            let first = *wanted.entry(&layer.digest).or_insert(layer);
            if first.size != layer.size {
                return Err(Problem::Malformed {
                    document: "manifest",
                    reason: format!("it gives {} two sizes", layer.digest),
                });
            }
        }
        let tally = Tally {
            done_bytes: AtomicU64::new(0),
            told_bytes: AtomicU64::new(0),
            done_blobs: AtomicU64::new(0),
            total_bytes: wanted.values().map(|layer| layer.size).sum(),
            total_blobs: wanted.len(),
            progress,
        };
        tally.tell();
        let fetches = wanted.into_values().map(|layer| {
            let tally = &tally;
            async move {
                let counted = AtomicU64::new(0);
                let on_bytes = move |there: u64| {
                    let before = counted.fetch_max(there, Ordering::Relaxed);
                    tally.add(there.saturating_sub(before));
                };
                let blob = download::blob(&self.transport, place, layer, cache, &on_bytes).await?;
                tally.done_blobs.fetch_add(1, Ordering::Relaxed);
                tally.tell();
                Ok::<_, Problem>((layer.digest.clone(), blob))
            }
        });
        let parallel = self.transport.limits.parallel_layers.max(1);
        let blobs: BTreeMap<_, _> = stream::iter(fetches)
            .buffer_unordered(parallel)
            .try_collect()
            .await?;
        let layers = manifest.layers.iter().zip(&config.diff_ids);
        Ok(layers
            .map(|((layer, compression), diff_id)| LayerBlob {
                path: blobs[&layer.digest].path.clone(),
                digest: layer.digest.clone(),
                diff_id: diff_id.clone(),
                compression: *compression,
                size: layer.size,
            })
            .collect())
    }
}

/// Adds up the progress of downloads that run at the same time.
struct Tally<'a> {
    done_bytes: AtomicU64,
    told_bytes: AtomicU64,
    done_blobs: AtomicU64,
    total_bytes: u64,
    total_blobs: usize,
    progress: &'a (dyn Fn(FetchProgress) + Send + Sync),
}

impl Tally<'_> {
    fn add(&self, bytes: u64) {
        let done = self.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let told = self.told_bytes.load(Ordering::Relaxed);
        if done.saturating_sub(told) >= PROGRESS_STEP_BYTES {
            self.told_bytes.store(done, Ordering::Relaxed);
            self.tell();
        }
    }

    fn tell(&self) {
        (self.progress)(FetchProgress {
            done_bytes: self.done_bytes.load(Ordering::Relaxed),
            total_bytes: self.total_bytes,
            done_layers: usize::try_from(self.done_blobs.load(Ordering::Relaxed)).unwrap_or(0),
            total_layers: self.total_blobs,
        });
    }
}

fn place(registry: &str, repository: &str) -> Place {
    Place {
        registry: registry.to_owned(),
        repository: repository.to_owned(),
    }
}

fn check_blob(host: &str, wanted: &Descriptor, bytes: &[u8]) -> Result<(), Problem> {
    let length = bytes.len() as u64;
    if length != wanted.size {
        return Err(Problem::WrongSize {
            host: host.to_owned(),
            digest: wanted.digest.clone(),
            expected: wanted.size,
            actual: length,
        });
    }
    let actual = digest_of(bytes);
    if actual != wanted.digest {
        return Err(Problem::WrongDigest {
            host: host.to_owned(),
            digest: wanted.digest.clone(),
            actual,
        });
    }
    Ok(())
}

fn check_os(config: &Config) -> Result<(), Problem> {
    if config.image.os == "linux" {
        return Ok(());
    }
    Err(Problem::Malformed {
        document: "image config",
        reason: format!(
            "it is for `{}`; only Linux images run here",
            config.image.os
        ),
    })
}

fn platform_of(config: &Config) -> Platform {
    Platform {
        architecture: config.image.architecture.clone(),
        variant: config.variant.clone(),
    }
}

fn platform_of_description(description: &ImageDescription) -> Platform {
    Platform {
        architecture: description.config.architecture.clone(),
        variant: description.variant.clone(),
    }
}

fn describe(digest: &Digest, manifest: &ImageManifest, config: Config) -> ImageDescription {
    let layers = manifest.layers.iter().zip(config.diff_ids);
    ImageDescription {
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
