//! Disks by the digest of their image.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use contract::Digest;

use crate::{DiskError, Layer};

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
    /// The file.
    pub path: PathBuf,
    /// Of the whole file, holes included.
    pub size_bytes: u64,
    /// What it takes on this host, in bytes.
    pub allocated_bytes: u64,
    /// When it was last looked up or built.
    pub last_used: SystemTime,
}

/// The cache.
#[derive(Debug)]
pub struct DiskCache {
    dir: PathBuf,
}

impl DiskCache {
    /// Keeps disks in `dir`, which is made where it is not there.
    pub fn open(dir: &Path) -> Result<DiskCache, DiskError> {
        std::fs::create_dir_all(dir).map_err(|error| DiskError::io("create", dir, error))?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// The disk of an image, checked.
    pub fn lookup(&self, digest: &Digest) -> Result<Option<CachedDisk>, DiskError> {
        let _ = digest;
        Ok(None)
    }

    /// Builds it.
    pub fn build(&self, digest: &Digest, layers: &[Layer]) -> Result<CachedDisk, DiskError> {
        let path = self.dir.join(format!("{}.ext4", digest.hex()));
        let built = crate::build(layers, &path, &crate::Limits::default())?;
        Ok(CachedDisk {
            path,
            sha256: built.sha256,
            size_bytes: built.size_bytes,
        })
    }

    /// Everything in the cache.
    pub fn list(&self) -> Result<Vec<ListedDisk>, DiskError> {
        Ok(Vec::new())
    }

    /// Removes the disk of an image.
    pub fn remove(&self, digest: &Digest) -> Result<bool, DiskError> {
        let _ = digest;
        Ok(false)
    }
}
