//! Disks by the digest of their image.
//!
//! A disk has two files: `<hex>.ext4`, and the record `<hex>.json` with its checksum and size, which is written after
//! it. Both are renamed into place when they are on stable storage; a disk without a record is not used. A disk is
//! read whole and hashed before its first use in a process, and again when its inode, size or times change; damage
//! that changes none of these is noticed by the next process.
//!
//! A record is a versioned file (`state_file`). A record of a newer version, one that is damaged, and a disk that does
//! not match its record are logged and removed, and the disk is built again: a cache is never trusted, and nothing is
//! lost with it.
//!
//! Deliberately absent: the decision which disks to remove. [`DiskCache::list`] returns sizes and last uses.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use display::chain;
use model::Digest;
use oci::LayerFile;
use serde::{Deserialize, Serialize};
use state_file::StateFormat;

use crate::build::{BuiltDisk, UNFINISHED_PREFIX, hash};
use crate::error::DiskError;
use crate::limits::Limits;

/// A disk of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedDisk {
    /// The file. It is replaced or removed, and never changed.
    pub path: PathBuf,
    /// Digest of the whole file.
    pub sha256: Digest,
    /// Size of the whole file with its holes, in bytes.
    pub size_bytes: u64,
}

/// A disk of the cache, with what eviction needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedDisk {
    /// The image's digest.
    pub digest: Digest,
    /// The file. It is not checked.
    pub path: PathBuf,
    /// Size of the whole file with its holes, in bytes.
    pub size_bytes: u64,
    /// Bytes that it takes on this host's disk.
    pub allocated_bytes: u64,
    /// Time of its last lookup, or when it was built.
    pub last_used: SystemTime,
}

/// The disks of one node.
#[derive(Debug)]
pub struct DiskCache {
    dir: PathBuf,
    limits: Limits,
    /// A lock for each disk that is being looked up, built or removed.
    locks: Mutex<BTreeMap<Digest, Arc<Mutex<()>>>>,
    /// The disks whose hash was right, and what their files looked like then.
    checked: Mutex<HashMap<Digest, (Stamp, CachedDisk)>>,
}

/// The content of `<hex>.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    sha256: Digest,
    size_bytes: u64,
}

impl StateFormat for Record {
    const VERSION: u32 = 1;
}

/// Attributes of a file that change when it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl DiskCache {
    /// Opens the cache in `dir`, creates it if it does not exist, and removes unfinished disks. One process at a time
    /// uses a directory.
    pub fn open(dir: &Path) -> Result<DiskCache, DiskError> {
        Self::open_with_limits(dir, Limits::default())
    }

    /// The same, with other limits on images.
    pub fn open_with_limits(dir: &Path, limits: Limits) -> Result<DiskCache, DiskError> {
        fs::create_dir_all(dir).map_err(|error| DiskError::io("create", dir, error))?;
        for entry in fs::read_dir(dir).map_err(|error| DiskError::io("list", dir, error))? {
            let entry = entry.map_err(|error| DiskError::io("list", dir, error))?;
            let path = entry.path();
            let unfinished = entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(UNFINISHED_PREFIX.as_bytes());
            // The process was killed before it wrote the record.
            let without_record = path
                .extension()
                .is_some_and(|extension| extension == "ext4")
                && !path.with_extension("json").exists();
            if unfinished || without_record {
                remove_file(&path)?;
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            limits,
            locks: Mutex::default(),
            checked: Mutex::default(),
        })
    }

    /// The disk of an image, its checksum checked. A damaged disk is removed and counts as absent. Waits while the
    /// same disk is being built.
    ///
    /// # Errors
    /// The host's file system fails.
    pub fn lookup(&self, digest: &Digest) -> Result<Option<CachedDisk>, DiskError> {
        let own = self.disk_lock(digest);
        let _locked = lock(&own);
        self.lookup_locked(digest)
    }

    /// The disk of an image, built if it is not cached. Of concurrent callers for the same image one builds the disk,
    /// and the others wait for it.
    ///
    /// # Errors
    /// As [`crate::build`]; the cache is then unchanged.
    pub fn build(&self, digest: &Digest, layers: &[LayerFile]) -> Result<CachedDisk, DiskError> {
        let own = self.disk_lock(digest);
        let _locked = lock(&own);
        if let Some(disk) = self.lookup_locked(digest)? {
            return Ok(disk);
        }
        let path = self.disk_path(digest);
        let built = crate::build::build(layers, &path, &self.limits)
            .and_then(|built| self.write_record(digest, built));
        let Record { sha256, size_bytes } = match built {
            Ok(record) => record,
            Err(error) => {
                // A disk without a record is not used. If it cannot be removed, the first error says more.
                let _ = fs::remove_file(&path);
                return Err(error);
            }
        };
        let disk = CachedDisk {
            path,
            sha256,
            size_bytes,
        };
        let metadata = disk
            .path
            .metadata()
            .map_err(|error| DiskError::io("look up", &disk.path, error))?;
        lock(&self.checked).insert(digest.clone(), (Stamp::of(&metadata), disk.clone()));
        Ok(disk)
    }

    /// All disks, in the order of digests; not checked.
    ///
    /// # Errors
    /// The host's file system fails.
    pub fn list(&self) -> Result<Vec<ListedDisk>, DiskError> {
        let mut disks = Vec::new();
        for entry in
            fs::read_dir(&self.dir).map_err(|error| DiskError::io("list", &self.dir, error))?
        {
            let name = entry
                .map_err(|error| DiskError::io("list", &self.dir, error))?
                .file_name();
            let digest = name
                .to_str()
                .and_then(|name| name.strip_suffix(".json"))
                .and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
            let Some(digest) = digest else {
                continue;
            };
            let path = self.disk_path(&digest);
            // A disk that is removed meanwhile is not listed.
            let record = self
                .record_path(&digest)
                .metadata()
                .and_then(|metadata| metadata.modified());
            if let (Ok(metadata), Ok(last_used)) = (path.metadata(), record) {
                disks.push(ListedDisk {
                    digest,
                    path,
                    size_bytes: metadata.len(),
                    allocated_bytes: metadata.blocks() * 512,
                    last_used,
                });
            }
        }
        disks.sort_by(|a, b| a.digest.cmp(&b.digest));
        Ok(disks)
    }

    /// Removes the disk of an image, and returns whether there was one. A process that has it open can still read it.
    ///
    /// # Errors
    /// The host's file system fails.
    pub fn remove(&self, digest: &Digest) -> Result<bool, DiskError> {
        let own = self.disk_lock(digest);
        let _locked = lock(&own);
        self.remove_locked(digest)
    }

    fn remove_locked(&self, digest: &Digest) -> Result<bool, DiskError> {
        lock(&self.checked).remove(digest);
        // The record first: without it the disk is not used, whatever stops the removal.
        let record = remove_file(&self.record_path(digest))?;
        let disk = remove_file(&self.disk_path(digest))?;
        Ok(record && disk)
    }

    fn lookup_locked(&self, digest: &Digest) -> Result<Option<CachedDisk>, DiskError> {
        let record_path = self.record_path(digest);
        let record = match fs::read(&record_path) {
            Ok(bytes) => state_file::decode::<Record>(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DiskError::io("read", &record_path, error)),
        };
        let path = self.disk_path(digest);
        let file = match File::open(&path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(DiskError::io("read", &path, error)),
        };
        let damage = match (record, file) {
            (Err(error), _) => format!("its record cannot be used: {}", chain(&error)),
            (Ok(_), None) => "the disk is missing".to_owned(),
            (Ok(record), Some(file)) => {
                let failed = |error| DiskError::io("read", &path, error);
                let stamp = Stamp::of(&file.metadata().map_err(failed)?);
                let known = lock(&self.checked).get(digest).cloned();
                let expected = BuiltDisk {
                    sha256: record.sha256,
                    size_bytes: record.size_bytes,
                };
                let right = match known {
                    Some((known, disk)) if known == stamp => disk.sha256 == expected.sha256,
                    // Of another size it need not be read.
                    _ => {
                        stamp.size == expected.size_bytes
                            && hash(&file).map_err(failed)? == expected
                    }
                };
                if right {
                    let BuiltDisk { sha256, size_bytes } = expected;
                    let disk = CachedDisk {
                        path,
                        sha256,
                        size_bytes,
                    };
                    lock(&self.checked).insert(digest.clone(), (stamp, disk.clone()));
                    // The time of the last use. If it cannot be set, the disk is evicted earlier.
                    let _ = File::options()
                        .append(true)
                        .open(&record_path)
                        .and_then(|file| file.set_modified(SystemTime::now()));
                    return Ok(Some(disk));
                }
                "the disk has other bytes than its record says".to_owned()
            }
        };
        tracing::warn!(%digest, path = %path.display(), damage, "a cached root disk cannot be used; it is removed and built again");
        self.remove_locked(digest)?;
        Ok(None)
    }

    fn write_record(&self, digest: &Digest, built: BuiltDisk) -> Result<Record, DiskError> {
        let path = self.record_path(digest);
        let record = Record {
            sha256: built.sha256,
            size_bytes: built.size_bytes,
        };
        let write = || {
            let bytes = state_file::encode(&record).map_err(io::Error::other)?;
            let mut file = tempfile::Builder::new()
                .prefix(UNFINISHED_PREFIX)
                .tempfile_in(&self.dir)?;
            file.write_all(&bytes)?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|error| DiskError::io("write", &path, error))?;
        Ok(record)
    }

    fn disk_lock(&self, digest: &Digest) -> Arc<Mutex<()>> {
        let mut locks = lock(&self.locks);
        // Locks that no thread holds or waits for are dropped.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(digest.clone()).or_default().clone()
    }

    fn disk_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}.ext4", digest.hex()))
    }

    fn record_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}.json", digest.hex()))
    }
}

/// A value is never inconsistent while it is locked, so a panic of another thread does no harm.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes a file, and returns whether it existed.
fn remove_file(path: &Path) -> Result<bool, DiskError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(DiskError::io("remove", path, error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_disk_record_of_each_version_is_read_with_and_without_added_fields() {
        state_file::fixtures::check::<Record>(&[include_str!(
            "fixtures/disk-record/version-1.json"
        )]);
    }
}
