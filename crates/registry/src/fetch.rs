//! From a digest to an image in the cache.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blocking_work::blocking;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use model::Digest;
use oci::{
    Config, Descriptor, ImageDescription, ImageError, ImageManifest, LayerFile, LocalImage,
    read_config,
};

use crate::cache::{BlobCache, CacheError, CachedBlob};
use crate::documents::Documents;
use crate::download::{self, Observer};
use crate::error::Problem;
use crate::http::Repository;
use crate::progress::{OnEvent, Tally};
use crate::transport::Transport;

/// Fetches an image from a registry.
pub(crate) async fn image(
    transport: &Arc<Transport>,
    repository: &Repository,
    digest: &Digest,
    cache: &BlobCache,
    on_event: &OnEvent<'_>,
) -> Result<LocalImage, Problem> {
    let documents = Documents {
        transport,
        repository,
        on_event,
    };
    let manifest = manifest(&documents, digest, cache).await?;
    let config = config(&documents, &manifest, cache).await?;
    let blobs = layers(&documents, &manifest, cache).await?;
    let ImageDescription { config, layers, .. } = ImageDescription::new(digest, &manifest, config);
    let layers = layers.into_iter().map(|layer| {
        let path = blobs[&layer.digest].path.clone();
        LayerFile::new(layer, path, 0)
    });
    Ok(LocalImage {
        digest: digest.clone(),
        config,
        layers: layers.collect(),
    })
}

/// The manifest, from the cache or else from the registry. Only a valid manifest of an image is cached.
async fn manifest(
    documents: &Documents<'_>,
    digest: &Digest,
    cache: &BlobCache,
) -> Result<ImageManifest, Problem> {
    let _claim = cache.claim(digest).await;
    let read = |bytes: &[u8], content_type: Option<&str>| {
        let document = documents.read(bytes, digest, content_type)?;
        Ok::<_, Problem>(document.image(digest)?)
    };
    let limit = documents.transport.limits().image.manifest_bytes;
    if let Some(bytes) = cached(cache, digest, limit).await? {
        return read(&bytes, None);
    }
    let raw = documents
        .raw_document(digest.as_str(), Some(digest), None)
        .await?;
    let manifest = read(&raw.bytes, raw.content_type.as_deref())?;
    cache.put(digest, &raw.bytes).await?;
    Ok(manifest)
}

/// A small blob of the cache, checked.
async fn cached(
    cache: &BlobCache,
    digest: &Digest,
    limit: u64,
) -> Result<Option<Vec<u8>>, CacheError> {
    let (cache, digest) = (cache.clone(), digest.clone());
    blocking(move || cache.read_small(&digest, limit)).await
}

/// The config, from the cache or else from the registry. Only a valid config of this image is cached.
async fn config(
    documents: &Documents<'_>,
    manifest: &ImageManifest,
    cache: &BlobCache,
) -> Result<Config, Problem> {
    let digest = &manifest.config.digest;
    let limit = documents.transport.limits().image.config_bytes;
    let _claim = cache.claim(digest).await;
    if let Some(bytes) = cached(cache, digest, limit).await? {
        return Ok(read_config(&bytes, manifest.layers.len())?);
    }
    let bytes = documents.config_bytes(&manifest.config).await?;
    let config = read_config(&bytes, manifest.layers.len())?;
    cache.put(digest, &bytes).await?;
    Ok(config)
}

/// The layers, several at a time.
async fn layers(
    documents: &Documents<'_>,
    manifest: &ImageManifest,
    cache: &BlobCache,
) -> Result<BTreeMap<Digest, CachedBlob>, Problem> {
    let wanted = distinct_layers(manifest)?;
    let tally = Tally::new(&wanted, documents.on_event);
    // Boxed one by one: the compiler does not prove that a stream of closures is `Send`, and callers spawn this.
    let mut downloads: Vec<BoxFuture<'_, _>> = Vec::new();
    for blob in wanted {
        downloads.push(layer(documents, blob, cache, &tally).boxed());
    }
    let parallel = documents.transport.limits().parallel_layers.max(1);
    stream::iter(downloads)
        .buffer_unordered(parallel)
        .try_collect()
        .await
}

/// Each layer's blob once, in the order of digests.
fn distinct_layers(manifest: &ImageManifest) -> Result<Vec<&Descriptor>, Problem> {
    let mut wanted: BTreeMap<&Digest, &Descriptor> = BTreeMap::new();
    for (layer, _) in &manifest.layers {
        let first = *wanted.entry(&layer.digest).or_insert(layer);
        if first.size != layer.size {
            return Err(ImageError::Malformed {
                document: "manifest",
                reason: format!("it gives {} two sizes", layer.digest),
            }
            .into());
        }
    }
    Ok(wanted.into_values().collect())
}

async fn layer(
    documents: &Documents<'_>,
    layer: &Descriptor,
    cache: &BlobCache,
    tally: &Tally<'_>,
) -> Result<(Digest, CachedBlob), Problem> {
    let counted = AtomicU64::new(0);
    // A download that starts again counts only the bytes beyond its first start.
    let on_bytes = move |done: u64| {
        let before = counted.fetch_max(done, Ordering::Relaxed);
        tally.add(done.saturating_sub(before));
    };
    let Documents {
        transport,
        repository,
        on_event,
    } = documents;
    let observer = Observer {
        on_bytes: &on_bytes,
        on_event: *on_event,
    };
    let blob = download::blob(transport, repository, layer, cache, &observer).await?;
    tally.layer_done();
    Ok((layer.digest.clone(), blob))
}
