//! Disks by the digest of their image.
//!
//! Two files a disk: `<hex>.ext4`, and `<hex>.json` with its checksum and size, written after it. Both
//! appear by rename when they are on stable storage; a disk without the other file is none. A disk is read
//! whole and hashed before its first use in a process, and again when its inode, size or times change; rot
//! that changes none of these is noticed by the next process.
//!
//! Deliberately absent: the decision what to remove. [`DiskCache::list`] tells sizes and last uses.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use model::Digest;
use serde::{Deserialize, Serialize};

use crate::build::{BuiltDisk, UNFINISHED_PREFIX, hash};
use crate::{DiskError, Layer, Limits};

/// A disk of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedDisk {
    /// The file; never changed, only replaced or removed.
    pub path: PathBuf,
    /// Of the whole file.
    pub sha256: Digest,
    /// Of the whole file, holes included.
    pub size_bytes: u64,
}

/// A disk of the cache, for those who decide what goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedDisk {
    /// The image's digest.
    pub digest: Digest,
    /// The file. It was not checked.
    pub path: PathBuf,
    /// Of the whole file, holes included.
    pub size_bytes: u64,
    /// What it takes on this host, in bytes.
    pub allocated_bytes: u64,
    /// When it was last looked up or built.
    pub last_used: SystemTime,
}

/// The disks of one node.
#[derive(Debug)]
pub struct DiskCache {
    dir: PathBuf,
    limits: Limits,
    /// Who works on a disk holds its gate; others that want the same one wait.
    gates: Mutex<BTreeMap<Digest, Arc<Mutex<()>>>>,
    /// The disks that were hashed and right, as they were then.
    checked: Mutex<HashMap<Digest, (Stamp, CachedDisk)>>,
}

/// What `<hex>.json` says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    sha256: Digest,
    size_bytes: u64,
}

/// What changes when somebody writes to a file.
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
    /// Keeps disks in `dir`, which is made where it is not there, and removes what was left unfinished. One
    /// process at a time uses a directory.
    pub fn open(dir: &Path) -> Result<DiskCache, DiskError> {
        Self::open_with_limits(dir, Limits::default())
    }

    /// The same, for images within other limits.
    pub fn open_with_limits(dir: &Path, limits: Limits) -> Result<DiskCache, DiskError> {
        fs::create_dir_all(dir).map_err(|error| DiskError::io("create", dir, error))?;
        for entry in fs::read_dir(dir).map_err(|error| DiskError::io("list", dir, error))? {
            let entry = entry.map_err(|error| DiskError::io("list", dir, error))?;
            let path = entry.path();
            let unfinished = entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(UNFINISHED_PREFIX.as_bytes());
            // A disk whose process was killed before it wrote the record.
            let lone = path
                .extension()
                .is_some_and(|extension| extension == "ext4")
                && !path.with_extension("json").exists();
            if unfinished || lone {
                remove_file(&path)?;
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            limits,
            gates: Mutex::default(),
            checked: Mutex::default(),
        })
    }

    /// The disk of an image, its checksum checked; none where there is none, or it was damaged: then it is
    /// removed, too. Waits while the same one is being built.
    ///
    /// # Errors
    /// The host's file system.
    pub fn lookup(&self, digest: &Digest) -> Result<Option<CachedDisk>, DiskError> {
        let gate = self.gate(digest);
        let _turn = lock(&gate);
        self.lookup_alone(digest)
    }

    /// The disk of an image, built if it is not there. Of several callers for the same image one builds, the
    /// others wait and get the same.
    ///
    /// # Errors
    /// As [`crate::build`]; the cache is then as it was.
    pub fn build(&self, digest: &Digest, layers: &[Layer]) -> Result<CachedDisk, DiskError> {
        let gate = self.gate(digest);
        let _turn = lock(&gate);
        if let Some(disk) = self.lookup_alone(digest)? {
            return Ok(disk);
        }
        let path = self.disk_path(digest);
        let built = crate::build(layers, &path, &self.limits)
            .and_then(|built| self.write_record(digest, built));
        let Record { sha256, size_bytes } = match built {
            Ok(record) => record,
            Err(error) => {
                // Without its record it is no disk of the cache. The error tells more than another one.
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

    /// All disks, by digest; not checked.
    ///
    /// # Errors
    /// The host's file system.
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
            // One that vanishes meanwhile is not listed.
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

    /// Removes the disk of an image; false where there is none. Who has it open keeps what he has.
    ///
    /// # Errors
    /// The host's file system.
    pub fn remove(&self, digest: &Digest) -> Result<bool, DiskError> {
        let gate = self.gate(digest);
        let _turn = lock(&gate);
        self.remove_alone(digest)
    }

    fn remove_alone(&self, digest: &Digest) -> Result<bool, DiskError> {
        lock(&self.checked).remove(digest);
        // The record first: a disk without it is none, so nobody sees half of the removal.
        let record = remove_file(&self.record_path(digest))?;
        let disk = remove_file(&self.disk_path(digest))?;
        Ok(record && disk)
    }

    fn lookup_alone(&self, digest: &Digest) -> Result<Option<CachedDisk>, DiskError> {
        let record_path = self.record_path(digest);
        let record = match fs::read(&record_path) {
            Ok(text) => serde_json::from_slice::<Record>(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DiskError::io("read", &record_path, error)),
        };
        let path = self.disk_path(digest);
        let file = match File::open(&path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(DiskError::io("read", &path, error)),
        };
        if let (Ok(record), Some(file)) = (record, file) {
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
                _ => stamp.size == expected.size_bytes && hash(&file).map_err(failed)? == expected,
            };
            if right {
                let BuiltDisk { sha256, size_bytes } = expected;
                let disk = CachedDisk {
                    path,
                    sha256,
                    size_bytes,
                };
                lock(&self.checked).insert(digest.clone(), (stamp, disk.clone()));
                // For who decides what goes. If it cannot be noted, the disk seems unused.
                let _ = File::options()
                    .append(true)
                    .open(&record_path)
                    .and_then(|file| file.set_modified(SystemTime::now()));
                return Ok(Some(disk));
            }
        }
        tracing::warn!(%digest, path = %path.display(), "a cached root disk is damaged; it is removed");
        self.remove_alone(digest)?;
        Ok(None)
    }

    fn write_record(&self, digest: &Digest, built: BuiltDisk) -> Result<Record, DiskError> {
        let path = self.record_path(digest);
        let record = Record {
            sha256: built.sha256,
            size_bytes: built.size_bytes,
        };
        let text = serde_json::to_vec_pretty(&record).map_err(|source| DiskError::Damaged {
            path: path.clone(),
            source,
        })?;
        let write = || {
            let mut file = tempfile::Builder::new()
                .prefix(UNFINISHED_PREFIX)
                .tempfile_in(&self.dir)?;
            file.write_all(&text)?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|error| DiskError::io("write", &path, error))?;
        Ok(record)
    }

    fn gate(&self, digest: &Digest) -> Arc<Mutex<()>> {
        let mut gates = lock(&self.gates);
        // Gates nobody waits at are of no more use.
        gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        gates.entry(digest.clone()).or_default().clone()
    }

    fn disk_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}.ext4", digest.hex()))
    }

    fn record_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}.json", digest.hex()))
    }
}

/// What a panic left is still whole: nothing here is half changed while it is held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether it was there.
fn remove_file(path: &Path) -> Result<bool, DiskError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(DiskError::io("remove", path, error)),
    }
}
