//! From a pinned image to a root disk on this node and the image's config, once for all instances.
//!
//! The image's name and config are kept beside the disk, so an image that was prepared once starts again
//! without its registry. Layers stay, too, for the images that share them and for a disk that rots; layers and
//! disks together stay within a budget ([`cache`]). Where the host's disk is full, everything that nobody needs
//! goes, and the preparation is tried once more.

mod cache;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use metrics::Outcome;
use model::Digest;
use model::image::ImageConfig;
use model::instance::PinnedImage;
use oci::LocalImage;
use registry::{
    BlobCache, FetchEvent, FetchProgress, LoginState, Problem, Registry, RegistryError,
};
use root_disk::{CachedDisk, DiskCache, DiskError};
use serde::{Deserialize, Serialize};
use state_file::{StateFileError, StateFormat};
use tokio::sync::{Mutex as AsyncMutex, watch};

use self::cache::{Begun, Needs, Preparation};
use display::chain;

use crate::host::{PreparedImage, Progress};
use crate::lane::Lane;
use crate::metrics::NodeMetrics;
use blocking_work::blocking;

/// Root disks that are built at a time; each has a processor for itself while it is.
const BUILDS_AT_A_TIME: usize = 16;

/// The images of this node and their root disks.
#[derive(Debug)]
pub(crate) struct ImageCache {
    registry: Registry,
    blobs: BlobCache,
    disks: Arc<DiskCache>,
    records: PathBuf,
    /// What the layers and the disks may take together, in bytes.
    budget_bytes: u64,
    /// One image is prepared by one task at a time; the others wait for it.
    preparing: Mutex<BTreeMap<Digest, Arc<AsyncMutex<()>>>>,
    /// When each preparation that is under way began. Layers that were used since then are not evicted.
    begun: Arc<Mutex<Begun>>,
    /// One eviction at a time. No preparation waits for it, and it waits for none: a registry may take hours.
    removing: AsyncMutex<()>,
    /// The image whose disk is being removed.
    evicting: watch::Sender<Option<Digest>>,
    /// Root disks are built in a lane of their own.
    builds: Lane,
    needs: Arc<Mutex<Needs>>,
    metrics: NodeMetrics,
}

/// What is kept of an image beside its disk (`fixtures/image-record`).
#[derive(Debug, Clone, Serialize, Deserialize)]
struct ImageRecord {
    image: PinnedImage,
    config: ImageConfig,
}

impl StateFormat for ImageRecord {
    const VERSION: u32 = 1;
}

/// Why an image cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    /// It names the image.
    #[error(transparent)]
    Fetch(Box<RegistryError>),
    #[error("cannot build the root disk of {image}")]
    Disk {
        image: PinnedImage,
        #[source]
        source: Box<DiskError>,
    },
    #[error("cannot keep the record of {image}")]
    Record {
        image: PinnedImage,
        #[source]
        source: StateFileError,
    },
}

impl PrepareError {
    /// Whether trying again may help: the registry may come back, the disk may get room.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Fetch(source) => source.problem.is_transient(),
            Self::Disk { source, .. } => source.is_transient(),
            Self::Record { .. } => true,
        }
    }

    /// What the user may do about it, where that is known.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Fetch(source) => match &source.problem {
                Problem::Denied { host, login, .. } => Some(match login {
                    LoginState::Unknown => {
                        format!("`platform registries login {host}` lets the cluster in")
                    }
                    LoginState::Expired => {
                        format!("log in again: `platform registries login {host}`")
                    }
                }),
                problem => problem.hint(),
            },
            Self::Disk { .. } | Self::Record { .. } => None,
        }
    }

    /// Whether it failed because the host's disk is full.
    fn is_storage_full(&self) -> bool {
        match self {
            Self::Fetch(source) => source.problem.is_storage_full(),
            Self::Disk { source, .. } => matches!(**source, DiskError::NoSpace { .. }),
            Self::Record { source, .. } => source.is_storage_full(),
        }
    }
}

impl ImageCache {
    /// Keeps images in `dir`, and removes layers and disks that nobody needs where they take more than
    /// `budget_bytes`.
    ///
    /// # Errors
    /// The folders cannot be made.
    pub(crate) fn open(
        dir: &Path,
        registry: Registry,
        budget_bytes: u64,
        metrics: NodeMetrics,
    ) -> io::Result<Self> {
        let records = dir.join("images");
        std::fs::create_dir_all(&records)?;
        Ok(Self {
            registry,
            blobs: BlobCache::open(dir.join("blobs")).map_err(io::Error::other)?,
            disks: Arc::new(DiskCache::open(&dir.join("disks")).map_err(io::Error::other)?),
            records,
            budget_bytes,
            preparing: Mutex::default(),
            begun: Arc::default(),
            removing: AsyncMutex::default(),
            evicting: watch::Sender::new(None),
            builds: Lane::new(BUILDS_AT_A_TIME),
            needs: Arc::default(),
            metrics,
        })
    }

    /// Finds or makes the root disk; `progress` hears what is being done, for people.
    ///
    /// # Errors
    /// The image cannot be fetched or turned into a disk. Nothing half-made stays behind.
    pub(crate) async fn prepare(
        &self,
        image: &PinnedImage,
        progress: &Progress,
    ) -> Result<PreparedImage, PrepareError> {
        let gate = {
            let mut preparing = self
                .preparing
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            // Gates nobody waits at are of no more use.
            preparing.retain(|_, gate| Arc::strong_count(gate) > 1);
            preparing.entry(image.digest.clone()).or_default().clone()
        };
        if gate.try_lock().is_err() {
            progress("waiting for another instance that prepares the same image".to_owned());
        }
        let _turn = gate.lock().await;
        let prepared = match self.prepare_alone(image, progress).await {
            Err(error) if error.is_storage_full() => {
                progress("the disk is full: removing images that nobody needs".to_owned());
                tracing::warn!(%image, "the disk is full; removing every image that nobody needs");
                self.remove_over(0).await;
                self.prepare_alone(image, progress).await
            }
            prepared => prepared,
        };
        self.look_again().await;
        prepared
    }

    async fn prepare_alone(
        &self,
        image: &PinnedImage,
        progress: &Progress,
    ) -> Result<PreparedImage, PrepareError> {
        let _begun = Preparation::begin(&self.begun);
        let mut evicting = self.evicting.subscribe();
        // The sender is in `self`, so the wait ends.
        let _ = evicting
            .wait_for(|evicted| evicted.as_ref() != Some(&image.digest))
            .await;
        if let Some(prepared) = self.lookup(image).await? {
            return Ok(prepared);
        }
        let mut fetched = self.fetch(image, progress).await?;
        progress("building the root disk".to_owned());
        let built = match self.build(image, &fetched).await {
            // A layer was checked when it arrived, and may have rotted since: fetched anew, once.
            Err(_) if self.drop_rotted(&fetched).await => {
                fetched = self.fetch(image, progress).await?;
                self.build(image, &fetched).await
            }
            built => built,
        };
        let disk = built.map_err(|source| PrepareError::Disk {
            image: image.clone(),
            source: Box::new(source),
        })?;
        self.keep_record(image, &fetched.config).await?;
        Ok(PreparedImage {
            disk: disk.path,
            config: fetched.config,
        })
    }

    async fn fetch(
        &self,
        image: &PinnedImage,
        progress: &Progress,
    ) -> Result<LocalImage, PrepareError> {
        let (started, arrived) = (Instant::now(), AtomicU64::new(0));
        let say = |event: FetchEvent| {
            if let FetchEvent::Progress(fetched) = &event {
                arrived.fetch_max(fetched.done_bytes, Ordering::Relaxed);
            }
            progress(describe(&event));
        };
        let fetched = self.registry.fetch_image(image, &self.blobs, &say).await;
        let arrived = arrived.load(Ordering::Relaxed);
        let outcome = Outcome::from(&fetched);
        self.metrics.pulled(outcome, started.elapsed(), arrived);
        fetched.map_err(|source| PrepareError::Fetch(Box::new(source)))
    }

    async fn build(
        &self,
        image: &PinnedImage,
        fetched: &LocalImage,
    ) -> Result<CachedDisk, DiskError> {
        let layers = fetched.layers.clone();
        let disks = self.disks.clone();
        let digest = image.digest.clone();
        self.builds.run(move || disks.build(&digest, &layers)).await
    }

    /// Removes layers that are not what they were when they arrived. True: there was one.
    async fn drop_rotted(&self, fetched: &LocalImage) -> bool {
        let blobs = self.blobs.clone();
        let layers: Vec<_> = fetched
            .layers
            .iter()
            .map(|blob| blob.digest.clone())
            .collect();
        // What cannot be read will fail again where it is needed, with its reason.
        blocking(move || {
            layers
                .iter()
                .filter(|layer| !blobs.verify(layer).unwrap_or(true))
                .count()
                > 0
        })
        .await
    }

    async fn lookup(&self, image: &PinnedImage) -> Result<Option<PreparedImage>, PrepareError> {
        let (records, disks) = (self.records.clone(), self.disks.clone());
        let digest = image.digest.clone();
        let found = blocking(move || {
            let Some(record) = read_record(&records, &digest) else {
                return Ok(None);
            };
            Ok(disks.lookup(&digest)?.map(|disk| PreparedImage {
                disk: disk.path,
                config: record.config,
            }))
        });
        found.await.map_err(|source| PrepareError::Disk {
            image: image.clone(),
            source: Box::new(source),
        })
    }

    async fn keep_record(
        &self,
        image: &PinnedImage,
        config: &ImageConfig,
    ) -> Result<(), PrepareError> {
        let record = ImageRecord {
            image: image.clone(),
            config: config.clone(),
        };
        let path = record_path(&self.records, &image.digest);
        let kept = blocking(move || state_file::write(&path, &record)).await;
        kept.map_err(|source| PrepareError::Record {
            image: image.clone(),
            source,
        })
    }
}

/// The record beside a disk. A cache is not kept for a newer agent: where its record cannot be read, the disk is built again
/// and the record with it.
fn read_record(records: &Path, digest: &Digest) -> Option<ImageRecord> {
    state_file::read(&record_path(records, digest)).unwrap_or_else(|error| {
        tracing::warn!(%digest, error = chain(&error), "the image is prepared again");
        None
    })
}

fn record_path(records: &Path, digest: &Digest) -> PathBuf {
    records.join(format!("{}.json", digest.hex()))
}

/// `fetched 2 of 5 layers, 12 of 40 MB`, or what is waited for.
fn describe(event: &FetchEvent) -> String {
    let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
    match event {
        FetchEvent::Progress(FetchProgress {
            done_bytes,
            total_bytes,
            done_layers,
            total_layers,
        }) => format!(
            "fetched {done_layers} of {total_layers} layers, {} of {} MB",
            megabytes(*done_bytes),
            megabytes(*total_bytes)
        ),
        FetchEvent::Waiting { reason, pause } => {
            let seconds = pause.as_secs_f64().ceil();
            format!("{reason}; asking again in {seconds} s")
        }
    }
}
