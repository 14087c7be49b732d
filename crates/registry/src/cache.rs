//! Blobs on disk by their digest, shared by all images of a node.
//!
//! `<dir>/blobs/sha256/<hex>` is a blob (manifest, config or layer) that had this digest when it was written:
//! it was written to `<dir>/tmp`, hashed on the way, synced, and renamed. A crash at any moment leaves no partial
//! blob under a digest. Disks rot, so each reader checks a blob again: [`BlobCache::read`] hashes manifests and
//! configs, `root-disk` hashes the layers while it unpacks them, and [`BlobCache::verify`] removes a layer that is
//! damaged, so that it is fetched again.
//!
//! The cache has no index and no record: a blob's name is its digest, and its modification time is its last use. A
//! program of any version can read the directory.
//!
//! A large blob is written to `<dir>/tmp/partial-<hex>`, which stays when its download is given up: the next one goes on
//! where it ended, after it has hashed what is there. Such a file is no blob: it counts only once its digest is right.
//! It is removed after [`PARTIAL_LIFETIME`], and whenever its owner evicts it.
//!
//! The writer of a temporary file locks it. Other temporary files without a lock are removed when the cache is opened.
//! Several processes may share a directory.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use model::Digest;
use oci::digest_of;
use sha2::{Digest as _, Sha256};

/// Read at once when a blob is hashed, in bytes.
const HASH_CHUNK_BYTES: usize = 256 << 10;

/// How long an unfinished download is kept.
pub const PARTIAL_LIFETIME: Duration = Duration::from_hours(24);
/// Of the names of unfinished downloads.
const PARTIAL_PREFIX: &str = "partial-";

/// A content-addressed store of blobs. Clones share it.
#[derive(Clone, Debug)]
pub struct BlobCache {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    blobs: PathBuf,
    temporary: PathBuf,
    /// The blobs that are being fetched; an entry lives as long as a task fetches or waits.
    in_flight: Mutex<BTreeMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

/// A blob of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedBlob {
    /// Its file.
    pub path: PathBuf,
    /// Its length, in bytes.
    pub size: u64,
}

/// A blob of the cache, with what eviction needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedBlob {
    /// Its digest, by its name; the bytes are not checked.
    pub digest: Digest,
    /// Its length, in bytes.
    pub size: u64,
    /// Time of its last lookup, or when it was written.
    pub last_used: SystemTime,
}

/// An operation of the cache failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct CacheError {
    /// The operation.
    pub operation: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The cause; a full disk is [`io::ErrorKind::StorageFull`].
    #[source]
    pub source: io::Error,
}

fn failed<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> CacheError + 'a {
    move |source| CacheError {
        operation,
        path: path.to_owned(),
        source,
    }
}

impl BlobCache {
    /// Opens the cache in `dir`, creates it if it does not exist, and removes temporary files that no process writes.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, CacheError> {
        let dir = dir.as_ref();
        let inner = Inner {
            blobs: dir.join("blobs/sha256"),
            temporary: dir.join("tmp"),
            in_flight: Mutex::default(),
        };
        for dir in [&inner.blobs, &inner.temporary] {
            fs::create_dir_all(dir).map_err(failed("create", dir))?;
        }
        for entry in fs::read_dir(&inner.temporary).map_err(failed("list", &inner.temporary))? {
            let path = entry.map_err(failed("list", &inner.temporary))?.path();
            let age = |path: &Path| path.metadata().ok()?.modified().ok()?.elapsed().ok();
            let stays = partial_digest(&path).is_some()
                && age(&path).is_none_or(|age| age < PARTIAL_LIFETIME);
            if !stays {
                remove_unlocked(&path);
            }
        }
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.inner.blobs.join(digest.hex())
    }

    /// The blob, if it is cached. It had this digest when it was written; its reader checks it again (module doc).
    pub fn lookup(&self, digest: &Digest) -> Result<Option<CachedBlob>, CacheError> {
        let path = self.path(digest);
        match fs::metadata(&path) {
            Ok(metadata) => {
                touch(&path);
                Ok(Some(CachedBlob {
                    size: metadata.len(),
                    path,
                }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("look up", &path)(error)),
        }
    }

    /// As [`BlobCache::lookup`]; a blob of another size is removed. Blocks.
    pub(crate) fn lookup_of_size(
        &self,
        digest: &Digest,
        size: u64,
    ) -> Result<Option<CachedBlob>, CacheError> {
        match self.lookup(digest)? {
            Some(found) if found.size != size => {
                tracing::warn!(%digest, "a cached blob has the wrong size; it is removed");
                self.remove_blob(digest)?;
                Ok(None)
            }
            found => Ok(found),
        }
    }

    /// The bytes of a small blob, hashed again. A blob that is damaged, or over `limit` bytes, is removed and
    /// counts as not cached.
    pub fn read_small(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, CacheError> {
        let path = self.path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", &path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(failed("read", &path))?;
        if bytes.len() as u64 <= limit && digest_of(&bytes) == *digest {
            touch(&path);
            return Ok(Some(bytes));
        }
        tracing::warn!(%digest, "a cached blob is damaged; it is removed");
        self.remove_blob(digest)?;
        Ok(None)
    }

    /// Hashes a blob of any size, and removes it if it is damaged. Returns whether the cache has the blob. Blocks
    /// while it reads the whole blob.
    pub fn verify(&self, digest: &Digest) -> Result<bool, CacheError> {
        let path = self.path(digest);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed("open", &path)(error)),
        };
        let mut hasher = Sha256::new();
        let mut chunk = vec![0; HASH_CHUNK_BYTES];
        loop {
            match file.read(&mut chunk).map_err(failed("read", &path))? {
                0 => break,
                count => hasher.update(&chunk[..count]),
            }
        }
        if Digest::from_sha256(&hasher.finalize().into()) == *digest {
            return Ok(true);
        }
        tracing::warn!(%digest, "a cached blob is damaged; it is removed");
        self.remove_blob(digest)?;
        Ok(false)
    }

    /// All blobs, in the order of digests; not checked.
    pub fn list(&self) -> Result<Vec<ListedBlob>, CacheError> {
        let dir = &self.inner.blobs;
        let mut blobs = Vec::new();
        for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
            let entry = entry.map_err(failed("list", dir))?;
            let digest = entry
                .file_name()
                .to_str()
                .map(|hex| format!("sha256:{hex}").parse());
            // A concurrent removal is no error.
            if let (Some(Ok(digest)), Ok(metadata)) = (digest, entry.metadata()) {
                blobs.push(ListedBlob {
                    digest,
                    size: metadata.len(),
                    last_used: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                });
            }
        }
        blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
        Ok(blobs)
    }

    /// The unfinished downloads that no process goes on with, in the order of digests.
    pub fn partials(&self) -> Result<Vec<ListedBlob>, CacheError> {
        let dir = &self.inner.temporary;
        let mut partials = Vec::new();
        for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
            let path = entry.map_err(failed("list", dir))?.path();
            let Some(digest) = partial_digest(&path) else {
                continue;
            };
            // A concurrent removal is no error.
            let Ok(file) = File::open(&path) else {
                continue;
            };
            if let (Ok(()), Ok(metadata)) = (file.try_lock(), file.metadata()) {
                partials.push(ListedBlob {
                    digest,
                    size: metadata.len(),
                    last_used: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                });
            }
        }
        partials.sort_by(|a, b| a.digest.cmp(&b.digest));
        Ok(partials)
    }

    /// Removes an unfinished download, unless a process goes on with it.
    pub fn remove_partial(&self, digest: &Digest) {
        remove_unlocked(&self.partial_path(digest));
    }

    fn partial_path(&self, digest: &Digest) -> PathBuf {
        let name = format!("{PARTIAL_PREFIX}{}", digest.hex());
        self.inner.temporary.join(name)
    }

    /// Removes a blob, if it is cached. A process that has it open can still read it.
    pub fn remove_blob(&self, digest: &Digest) -> Result<(), CacheError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Waits until no other task of this process fetches the blob. The caller looks it up again first.
    pub(crate) async fn claim(&self, digest: &Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut in_flight = self
                .inner
                .in_flight
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            in_flight.retain(|_, lock| lock.strong_count() > 0);
            let known = in_flight.get(digest).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::default();
                in_flight.insert(digest.clone(), Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }

    /// Begins to write a small blob; [`BlobWriter::commit`] puts it into the cache.
    fn begin(&self) -> Result<BlobWriter, CacheError> {
        let dir = &self.inner.temporary;
        let file = tempfile::Builder::new()
            .prefix("blob-")
            .tempfile_in(dir)
            .map_err(failed("create a file in", dir))?;
        file.as_file().lock().map_err(failed("lock", file.path()))?;
        let (file, path) = file.keep().map_err(|error| {
            let source = error.error;
            failed("keep", error.file.path())(source)
        })?;
        Ok(BlobWriter::new(self, file, path, false))
    }

    /// Begins to write a blob, or goes on with an unfinished download of at most `size` bytes.
    pub(crate) fn resume(&self, digest: &Digest, size: u64) -> Result<BlobWriter, CacheError> {
        let path = self.partial_path(digest);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed("open", &path))?;
        // Another process may go on with it, or have finished it since it was opened here.
        let is_ours = file.try_lock().is_ok() && is_at(&file, &path);
        if !is_ours {
            return self.begin();
        }
        let mut writer = BlobWriter::new(self, file, path, true);
        let found = writer.file.metadata().map(|metadata| metadata.len());
        writer.size = found.map_err(failed("read", &writer.path))?;
        if writer.size > size {
            writer
                .file
                .set_len(0)
                .map_err(failed("write", &writer.path))?;
            writer.size = 0;
        }
        Ok(writer)
    }

    /// Caches a small blob. The caller has checked that the bytes have this digest.
    pub(crate) async fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<(), CacheError> {
        let (cache, digest, bytes) = (self.clone(), digest.clone(), bytes.to_vec());
        blocking_work::blocking(move || {
            let mut writer = cache.begin()?;
            writer.write(&bytes)?;
            writer.commit(&digest).map(drop)
        })
        .await
    }
}

/// A blob that is being written. Dropped before [`BlobWriter::commit`], it leaves an unfinished download, if it was
/// begun as one, and else nothing.
pub(crate) struct BlobWriter {
    file: File,
    path: PathBuf,
    hasher: Sha256,
    size: u64,
    /// Whether the file stays when this is dropped.
    stays: bool,
    cache: BlobCache,
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if !self.stays || self.size == 0 {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl BlobWriter {
    fn new(cache: &BlobCache, file: File, path: PathBuf, stays: bool) -> Self {
        Self {
            file,
            path,
            hasher: Sha256::new(),
            size: 0,
            stays,
            cache: cache.clone(),
        }
    }

    /// Bytes that are there.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Hashes the bytes of an unfinished download. Blocks while it reads them; to be called before [`Self::write`].
    pub(crate) fn hash_existing(&mut self) -> Result<(), CacheError> {
        let mut chunk = vec![0; HASH_CHUNK_BYTES];
        let mut left = self.size;
        while left > 0 {
            let most = usize::try_from(left).map_or(chunk.len(), |left| left.min(chunk.len()));
            self.file
                .read_exact(&mut chunk[..most])
                .map_err(failed("read", &self.path))?;
            self.hasher.update(&chunk[..most]);
            left -= most as u64;
        }
        Ok(())
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        match self.file.write_all(bytes) {
            Ok(()) => {
                self.hasher.update(bytes);
                self.size += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                // A full disk needs the space for something else.
                if error.kind() == io::ErrorKind::StorageFull || self.cut().is_err() {
                    self.discard();
                }
                Err(failed("write", &self.path)(error))
            }
        }
    }

    /// Cuts off what a failed write left behind.
    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.size)?;
        self.file.seek(SeekFrom::Start(self.size)).map(drop)
    }

    /// Nothing of it stays when this is dropped.
    pub(crate) fn discard(&mut self) {
        self.stays = false;
    }

    /// The digest of the bytes written so far.
    pub(crate) fn digest(&self) -> Digest {
        Digest::from_sha256(&self.hasher.clone().finalize().into())
    }

    /// Makes it durable under this digest, which the caller has compared with [`BlobWriter::digest`].
    pub(crate) fn commit(mut self, digest: &Digest) -> Result<CachedBlob, CacheError> {
        let path = self.cache.path(digest);
        self.file.sync_data().map_err(failed("sync", &self.path))?;
        fs::rename(&self.path, &path).map_err(failed("rename to", &path))?;
        // There is nothing left to remove.
        self.stays = true;
        self.size = self.size.max(1);
        let size = self.file.metadata().map_err(failed("read", &path))?.len();
        let dir = &self.cache.inner.blobs;
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(failed("sync", dir))?;
        Ok(CachedBlob { path, size })
    }
}

/// The digest of an unfinished download, by its name.
fn partial_digest(path: &Path) -> Option<Digest> {
    let hex = path.file_name()?.to_str()?.strip_prefix(PARTIAL_PREFIX)?;
    format!("sha256:{hex}").parse().ok()
}

/// Whether this open file is the one at the path.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), path.metadata()) {
        (Ok(open), Ok(there)) => identity(open) == identity(there),
        _ => false,
    }
}

/// Sets the time of the last use. If that fails, the blob looks less used than it is and is evicted earlier.
fn touch(path: &Path) {
    let _ = File::options()
        .append(true)
        .open(path)
        .and_then(|file| file.set_modified(SystemTime::now()));
}

/// Removes a temporary file that no process writes. A file whose lock cannot be read is left.
fn remove_unlocked(path: &Path) {
    let Ok(file) = File::open(path) else { return };
    match file.try_lock() {
        Ok(()) => drop(fs::remove_file(path)),
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_partial_blob_is_never_visible_and_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = BlobCache::open(dir.path()).unwrap();
        fs::write(dir.path().join("tmp/blob-left-by-a-crash"), b"half").unwrap();
        let mut writer = cache.begin().unwrap();
        writer.write(b"whole").unwrap();

        // Another process opens the cache: the orphan is removed, the locked file stays.
        BlobCache::open(dir.path()).unwrap();
        let left = fs::read_dir(dir.path().join("tmp")).unwrap().count();
        assert_eq!(left, 1);

        let digest = writer.digest();
        assert_eq!(cache.lookup(&digest).unwrap(), None);
        let blob = writer.commit(&digest).unwrap();
        assert_eq!(cache.lookup(&digest).unwrap(), Some(blob.clone()));
        assert_eq!(
            cache.list().unwrap()[..],
            [ListedBlob {
                digest,
                size: 5,
                last_used: blob.path.metadata().unwrap().modified().unwrap(),
            }]
        );

        drop(cache.begin().unwrap());
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn an_unfinished_download_is_gone_on_with_by_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let cache = BlobCache::open(dir.path()).unwrap();
        let digest = digest_of(b"whole");
        let mut first = cache.resume(&digest, 5).unwrap();
        first.write(b"who").unwrap();
        // Another process finds it locked and begins by itself; nobody lists or removes it.
        let other = BlobCache::open(dir.path()).unwrap();
        assert_eq!(other.resume(&digest, 5).unwrap().size(), 0);
        assert_eq!(other.partials().unwrap(), []);
        other.remove_partial(&digest);
        drop(first);

        // It outlives the process.
        let later = BlobCache::open(dir.path()).unwrap();
        let listed = later.partials().unwrap();
        assert_eq!((listed[0].size, &listed[0].digest), (3, &digest));
        assert_eq!(later.lookup(&digest).unwrap(), None, "it is no blob");
        let mut second = later.resume(&digest, 5).unwrap();
        assert_eq!(second.size(), 3);
        second.hash_existing().unwrap();
        second.write(b"le").unwrap();
        assert_eq!(second.digest(), digest);
        assert_eq!(second.commit(&digest).unwrap().size, 5);
        assert!(later.verify(&digest).unwrap());
        assert_eq!(later.partials().unwrap(), []);

        // One that is too long, old or not wanted goes.
        let mut long = later.resume(&digest, 5).unwrap();
        long.write(b"too long").unwrap();
        drop(long);
        assert_eq!(later.resume(&digest, 5).unwrap().size(), 0);
        assert_eq!(later.partials().unwrap(), []);
        let mut old = later.resume(&digest, 5).unwrap();
        old.write(b"old").unwrap();
        let path = old.path.clone();
        drop(old);
        let before = SystemTime::now() - PARTIAL_LIFETIME;
        File::options()
            .append(true)
            .open(&path)
            .and_then(|file| file.set_modified(before))
            .unwrap();
        BlobCache::open(dir.path()).unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_damaged_blob_is_noticed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = BlobCache::open(dir.path()).unwrap();
        let digest = digest_of(b"manifest");
        cache.put(&digest, b"manifest").await.unwrap();
        assert!(cache.verify(&digest).unwrap());
        assert_eq!(cache.read_small(&digest, 8).unwrap().unwrap(), b"manifest");

        fs::write(cache.path(&digest), b"manifesT").unwrap();
        assert_eq!(cache.read_small(&digest, 8).unwrap(), None);
        assert_eq!(cache.lookup(&digest).unwrap(), None);

        cache.put(&digest, b"manifest").await.unwrap();
        fs::write(cache.path(&digest), b"manif").unwrap();
        assert!(!cache.verify(&digest).unwrap());
        assert!(!cache.verify(&digest).unwrap());
        cache.remove_blob(&digest).unwrap();
    }
}
