//! From a digest to an image in the cache.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use model::Digest;

use crate::cache::{BlobCache, CachedBlob};
use crate::document::{Config, Descriptor, Document, ImageManifest, read_config, read_document};
use crate::download;
use crate::error::Problem;
use crate::image::{FetchProgress, FetchedImage, LayerBlob};
use crate::limits::{Limits, PROGRESS_STEP_BYTES};
use crate::origin::{Origin, layout_blob};
use crate::resolve::{self, check_os};
use crate::transport::{Place, Transport};

/// Told how far a fetch is, from any thread.
pub(crate) type OnProgress<'a> = dyn Fn(FetchProgress) + Send + Sync + 'a;

/// Fetches an image from a registry.
pub(crate) async fn from_registry(
    transport: &Arc<Transport>,
    place: Place,
    digest: &Digest,
    cache: &BlobCache,
    progress: &OnProgress<'_>,
) -> Result<FetchedImage, Problem> {
    let origin = Origin::Registry(transport, place.clone());
    let manifest = cached_manifest(&origin, digest, cache).await?;
    let config = cached_config(&origin, &manifest, cache).await?;
    check_os(&config)?;
    let blobs = download_layers(transport, &place, &manifest, cache, progress).await?;
    Ok(assemble(digest, &manifest, config, &blobs))
}

/// "Fetches" an image from a layout: its layers stay where they are.
pub(crate) async fn from_layout(
    dir: &Path,
    limits: &Limits,
    digest: &Digest,
    progress: &OnProgress<'_>,
) -> Result<FetchedImage, Problem> {
    let origin = Origin::Layout(dir, limits);
    let (document, _) = origin.document(digest.as_str(), Some(digest), None).await?;
    let manifest = only_image(document, digest)?;
    let config = resolve::config(&origin, &manifest).await?;
    check_os(&config)?;
    let wanted = distinct_layers(&manifest)?;
    let tally = Tally::new(&wanted, progress);
    let mut blobs = BTreeMap::new();
    for layer in wanted {
        blobs.insert(layer.digest.clone(), layout_blob(dir, layer)?);
        tally.add(layer.size);
        tally.blob_done();
    }
    Ok(assemble(digest, &manifest, config, &blobs))
}

fn only_image(document: Document, digest: &Digest) -> Result<ImageManifest, Problem> {
    match document {
        Document::Image(manifest) => Ok(manifest),
        Document::Index(_) => Err(Problem::NestedIndex {
            digest: digest.clone(),
        }),
    }
}

/// The manifest, from the cache or else from its origin; it is kept only if it can be read.
async fn cached_manifest(
    origin: &Origin<'_>,
    digest: &Digest,
    cache: &BlobCache,
) -> Result<ImageManifest, Problem> {
    let _claim = cache.claim(digest).await;
    let limits = origin.limits();
    let read = |bytes: &[u8], content_type: Option<&str>| {
        let document = read_document(bytes, digest, &origin.name(), content_type, limits)?;
        only_image(document, digest)
    };
    if let Some(bytes) = cache.read(digest, limits.manifest_bytes)? {
        return read(&bytes, None);
    }
    let raw = origin
        .raw_document(digest.as_str(), Some(digest), None)
        .await?;
    let manifest = read(&raw.bytes, raw.content_type.as_deref())?;
    cache.put(digest, &raw.bytes).await?;
    Ok(manifest)
}

async fn cached_config(
    origin: &Origin<'_>,
    manifest: &ImageManifest,
    cache: &BlobCache,
) -> Result<Config, Problem> {
    let wanted = &manifest.config;
    let limit = origin.limits().config_bytes;
    let _claim = cache.claim(&wanted.digest).await;
    if let Some(bytes) = cache.read(&wanted.digest, limit)? {
        return read_config(&bytes, manifest.layers.len());
    }
    let bytes = origin.small_blob(wanted, limit, "the image config").await?;
    let config = read_config(&bytes, manifest.layers.len())?;
    cache.put(&wanted.digest, &bytes).await?;
    Ok(config)
}

/// Each layer's blob once, in the order of digests.
fn distinct_layers(manifest: &ImageManifest) -> Result<Vec<&Descriptor>, Problem> {
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
    Ok(wanted.into_values().collect())
}

/// The layers, several at a time.
async fn download_layers(
    transport: &Arc<Transport>,
    place: &Place,
    manifest: &ImageManifest,
    cache: &BlobCache,
    progress: &OnProgress<'_>,
) -> Result<BTreeMap<Digest, CachedBlob>, Problem> {
    let wanted = distinct_layers(manifest)?;
    let tally = Tally::new(&wanted, progress);
    // Boxed one by one: of a stream of closures the compiler does not see that it is `Send` when a caller
    // spawns this.
    let mut downloads: Vec<BoxFuture<'_, _>> = Vec::new();
    for layer in wanted {
        downloads.push(download_layer(transport, place, layer, cache, &tally).boxed());
    }
    let parallel = transport.limits.parallel_layers.max(1);
    stream::iter(downloads)
        .buffer_unordered(parallel)
        .try_collect()
        .await
}

async fn download_layer(
    transport: &Arc<Transport>,
    place: &Place,
    layer: &Descriptor,
    cache: &BlobCache,
    tally: &Tally<'_>,
) -> Result<(Digest, CachedBlob), Problem> {
    let counted = AtomicU64::new(0);
    // A download that begins anew counts only what it had not reached before.
    let on_bytes = move |there: u64| {
        let before = counted.fetch_max(there, Ordering::Relaxed);
        tally.add(there.saturating_sub(before));
    };
    let blob = download::blob(transport, place, layer, cache, &on_bytes).await?;
    tally.blob_done();
    Ok((layer.digest.clone(), blob))
}

fn assemble(
    digest: &Digest,
    manifest: &ImageManifest,
    config: Config,
    blobs: &BTreeMap<Digest, CachedBlob>,
) -> FetchedImage {
    let layers = manifest.layers.iter().zip(config.diff_ids);
    FetchedImage {
        digest: digest.clone(),
        config: config.image,
        layers: layers
            .map(|((layer, compression), diff_id)| LayerBlob {
                path: blobs[&layer.digest].path.clone(),
                digest: layer.digest.clone(),
                diff_id,
                compression: *compression,
                size: layer.size,
            })
            .collect(),
    }
}

/// Adds up the progress of downloads that run at the same time.
pub(crate) struct Tally<'a> {
    done_bytes: AtomicU64,
    told_bytes: AtomicU64,
    done_layers: AtomicU64,
    total_bytes: u64,
    total_layers: usize,
    progress: &'a OnProgress<'a>,
}

impl<'a> Tally<'a> {
    fn new(layers: &[&Descriptor], progress: &'a OnProgress<'a>) -> Self {
        let tally = Self {
            done_bytes: AtomicU64::new(0),
            told_bytes: AtomicU64::new(0),
            done_layers: AtomicU64::new(0),
            total_bytes: layers.iter().map(|layer| layer.size).sum(),
            total_layers: layers.len(),
            progress,
        };
        tally.tell();
        tally
    }

    fn add(&self, bytes: u64) {
        let done = self.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let told = self.told_bytes.load(Ordering::Relaxed);
        if done.saturating_sub(told) >= PROGRESS_STEP_BYTES {
            self.told_bytes.store(done, Ordering::Relaxed);
            self.tell();
        }
    }

    fn blob_done(&self) {
        self.done_layers.fetch_add(1, Ordering::Relaxed);
        self.tell();
    }

    fn tell(&self) {
        (self.progress)(FetchProgress {
            done_bytes: self.done_bytes.load(Ordering::Relaxed),
            total_bytes: self.total_bytes,
            done_layers: usize::try_from(self.done_layers.load(Ordering::Relaxed)).unwrap_or(0),
            total_layers: self.total_layers,
        });
    }
}
