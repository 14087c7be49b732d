//! Which images stay on this node: the pins, and the eviction of the rest over the budget.
//!
//! `node_core::cache` decides; an image is pinned while an instance of this node uses it ([`ImageUse`]), and while the
//! control plane names it among the last releases.

// ring: `ImageCache` is one type in two files: here is its cleaning, and its preparing cleans when the disk is full.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::node::{CachedImage, MAX_REPORTED_IMAGES};
use model::instance::PinnedImage;
use model::{Digest, Timestamp};
use node_core::cache::{CacheEntry, evict};

use super::{ImageCache, read_record, record_path};
use blocking_work::blocking;
use display::chain;

/// Who needs which disk, and which there are.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// Instances by the image they have.
    instances: BTreeMap<Digest, u32>,
    /// Images of the last releases.
    last_releases: BTreeSet<Digest>,
    /// The disks, as they were last looked at.
    disks: Vec<Seen>,
}

/// A disk of the cache.
#[derive(Debug, Clone)]
struct Seen {
    image: PinnedImage,
    size_bytes: u64,
    last_used: Timestamp,
}

impl Needs {
    fn need(&self, digest: &Digest) -> bool {
        self.instances.contains_key(digest) || self.last_releases.contains(digest)
    }
}

/// An instance has an image: its disk stays until this is dropped.
#[derive(Debug)]
pub(crate) struct ImageUse {
    digest: Digest,
    needs: Arc<Mutex<Needs>>,
}

impl Drop for ImageUse {
    fn drop(&mut self) {
        let mut needs = lock(&self.needs);
        if let Some(instances) = needs.instances.get_mut(&self.digest) {
            *instances -= 1;
            if *instances == 0 {
                needs.instances.remove(&self.digest);
            }
        }
    }
}

/// A file's time may be this much before the clock's of the moment at which it was set.
const FILE_TIME_SLACK: Duration = Duration::from_secs(1);

/// When the preparations that are under way began, by ticket.
#[derive(Debug, Default)]
pub(super) struct Begun {
    next: u64,
    since: BTreeMap<u64, SystemTime>,
}

impl Begun {
    /// Since when layers may belong to a preparation that is under way. One that is evicted all the same, because the
    /// clock was set meanwhile, is fetched again: its disk cannot be built.
    fn oldest(&self) -> Option<SystemTime> {
        self.since.values().min().copied()
    }
}

/// An image is being prepared, until this is dropped.
pub(super) struct Preparation {
    ticket: u64,
    begun: Arc<Mutex<Begun>>,
}

impl Preparation {
    pub(super) fn begin(begun: &Arc<Mutex<Begun>>) -> Self {
        let mut known = lock(begun);
        let ticket = known.next;
        known.next += 1;
        known
            .since
            .insert(ticket, SystemTime::now() - FILE_TIME_SLACK);
        drop(known);
        Self {
            ticket,
            begun: begun.clone(),
        }
    }
}

impl Drop for Preparation {
    fn drop(&mut self) {
        lock(&self.begun).since.remove(&self.ticket);
    }
}

/// A disk, a layer, or what there is of a layer whose download was given up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Disk(Digest),
    Blob(Digest),
    Partial(Digest),
}

impl ImageCache {
    /// Says that an instance has an image, from before it is prepared until the instance is reaped.
    pub(crate) fn used_by_instance(&self, digest: &Digest) -> ImageUse {
        *lock(&self.needs)
            .instances
            .entry(digest.clone())
            .or_default() += 1;
        ImageUse {
            digest: digest.clone(),
            needs: self.needs.clone(),
        }
    }

    /// Replaces the set of images that are pinned although no instance uses them: those of the last releases.
    pub(crate) fn set_pinned(&self, last_releases: impl IntoIterator<Item = Digest>) {
        lock(&self.needs).last_releases = last_releases.into_iter().collect();
    }

    /// The disks there are, for the control plane: those last used first.
    pub(crate) fn listed(&self) -> Vec<CachedImage> {
        let needs = lock(&self.needs);
        let disks = needs.disks.iter().take(MAX_REPORTED_IMAGES);
        disks
            .map(|seen| CachedImage {
                image: seen.image.clone(),
                size_bytes: seen.size_bytes,
                last_used: seen.last_used,
                instances: needs
                    .instances
                    .get(&seen.image.digest)
                    .copied()
                    .unwrap_or(0),
                pinned: needs.last_releases.contains(&seen.image.digest),
            })
            .collect()
    }

    /// Brings the cache within its budget.
    pub(crate) async fn tidy(&self) {
        self.remove_over(self.budget_bytes).await;
    }

    /// Removes what nobody needs, the longest unused first, until `budget_bytes` are enough. What cannot be
    /// removed is logged and stays.
    pub(crate) async fn remove_over(&self, budget_bytes: u64) {
        let _alone = self.removing.lock().await;
        let (begun, evicting) = (self.begun.clone(), self.evicting.clone());
        let (blobs, disks, needs) = (self.blobs.clone(), self.disks.clone(), self.needs.clone());
        let records = self.records.clone();
        let removed = blocking(move || {
            let since = lock(&begun).oldest();
            let is_pinned = |digest: &Digest| lock(&needs).need(digest);
            let entries = entries(&blobs, &disks, is_pinned, since)?;
            let mut freed = 0;
            for item in evict(&entries, budget_bytes) {
                match &item {
                    Item::Blob(digest) => blobs.remove_blob(digest).map_err(|e| chain(&e))?,
                    Item::Partial(digest) => blobs.remove_partial(digest),
                    Item::Disk(digest) => {
                        // Looked at again: an instance may have begun meanwhile. One that begins from now on waits
                        // for the end of this one removal before it looks for the disk.
                        {
                            let needs = lock(&needs);
                            if needs.need(digest) {
                                continue;
                            }
                            evicting.send_replace(Some(digest.clone()));
                        }
                        let removed = disks.remove(digest);
                        evicting.send_replace(None);
                        removed.map_err(|e| chain(&e))?;
                        // Without its disk it says nothing.
                        let _ = std::fs::remove_file(record_path(&records, digest));
                    }
                }
                let entry = entries.iter().find(|entry| entry.key == item);
                freed += entry.map_or(0, |entry| entry.bytes);
            }
            let rest = entries.iter().map(|entry| entry.bytes).sum::<u64>() - freed;
            Ok::<_, String>((freed, rest))
        })
        .await;
        match removed {
            Ok((0, _)) => {}
            Ok((freed, rest)) => {
                tracing::info!(
                    freed_bytes = freed,
                    rest_bytes = rest,
                    "removed unused images"
                );
                self.look_again().await;
            }
            Err(cause) => tracing::warn!(cause, "cannot remove unused images"),
        }
    }

    /// Looks which disks there are.
    pub(crate) async fn look_again(&self) {
        let (disks, records) = (self.disks.clone(), self.records.clone());
        let listed = blocking(move || {
            let mut seen = Vec::new();
            for disk in disks.list()? {
                seen.extend(read_record(&records, &disk.digest).map(|record| Seen {
                    image: record.image,
                    size_bytes: disk.allocated_bytes,
                    last_used: Timestamp(millis(disk.last_used)),
                }));
            }
            Ok::<_, root_disk::DiskError>(seen)
        });
        let mut seen = match listed.await {
            Ok(seen) => seen,
            Err(error) => {
                tracing::warn!(cause = chain(&error), "cannot list the disks");
                return;
            }
        };
        seen.sort_by(|a, b| (b.last_used, &a.image).cmp(&(a.last_used, &b.image)));
        lock(&self.needs).disks = seen;
    }
}

/// Every layer and disk, and what there is of layers. Blocks.
fn entries(
    blobs: &registry::BlobCache,
    disks: &root_disk::DiskCache,
    is_pinned: impl Fn(&Digest) -> bool,
    used_since: Option<SystemTime>,
) -> Result<Vec<CacheEntry<Item>>, String> {
    let disks = disks.list().map_err(|e| chain(&e))?.into_iter();
    let disks = disks.map(|disk| CacheEntry {
        bytes: disk.allocated_bytes,
        last_used: millis(disk.last_used),
        pinned: is_pinned(&disk.digest),
        key: Item::Disk(disk.digest),
    });
    let unfinished = blobs.partials().map_err(|e| chain(&e))?;
    let blobs = blobs.list().map_err(|e| chain(&e))?.into_iter();
    let blobs = blobs.map(|blob| CacheEntry {
        bytes: blob.size,
        last_used: millis(blob.last_used),
        pinned: used_since.is_some_and(|since| blob.last_used >= since),
        key: Item::Blob(blob.digest),
    });
    let partials = unfinished.into_iter().map(|partial| CacheEntry {
        bytes: partial.size,
        last_used: millis(partial.last_used),
        pinned: false,
        key: Item::Partial(partial.digest),
    });
    Ok(disks.chain(blobs).chain(partials).collect())
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
