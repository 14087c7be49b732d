//! The disks of this node's volumes: a sparse raw file each, made once.
//!
//! A disk is formatted under another name and gets its own when it is complete and synced, so that a
//! file `<volume>.ext4` is always a whole file system. It goes when a user deletes the volume, and for
//! nothing else. What guests write is never mounted or read here: the kernel that mounts it next, a
//! guest's, mends it from its journal (ADR 0003).
//!
//! Deliberately absent: which instance has a volume ([`crate::holders`]).

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use model::VolumeId;
use model::instance::AttachedVolume;
use root_disk::DiskError;

/// Why a volume cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// Its disk was there, and is not there now.
    #[error(
        "the disk of volume {name} is gone: {}; put it back, or give up what was in it with \
         `platform volumes delete {id}`",
        path.display()
    )]
    Lost {
        /// The volume's name.
        name: String,
        /// The volume.
        id: VolumeId,
        /// Where it was.
        path: PathBuf,
    },
    /// It cannot be made.
    #[error("cannot make the disk of volume {name}")]
    Format {
        /// The volume's name.
        name: String,
        /// Why.
        source: DiskError,
    },
    /// The folder of the volumes cannot be used.
    #[error("cannot use {}", path.display())]
    Io {
        /// What was used.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl VolumeError {
    /// Whether time alone may mend it.
    pub(crate) fn is_transient(&self) -> bool {
        !matches!(self, Self::Lost { .. })
    }
}

/// The volumes of this node.
#[derive(Debug, Clone)]
pub(crate) struct Volumes {
    dir: PathBuf,
}

impl Volumes {
    /// The volumes in a node's data folder.
    pub(crate) fn open(data_dir: &Path) -> io::Result<Self> {
        let dir = data_dir.join("volumes");
        std::fs::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    fn path(&self, id: VolumeId) -> PathBuf {
        self.dir.join(format!("{id}.ext4"))
    }

    /// Every volume whose disk is here, sorted. Blocks.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(crate) fn list(&self) -> Result<Vec<VolumeId>, VolumeError> {
        let failed = |source| VolumeError::Io {
            path: self.dir.clone(),
            source,
        };
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".ext4"));
            ids.extend(id.and_then(|id| id.parse::<VolumeId>().ok()));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// The disk of a volume, made unless it was made before. Blocks for milliseconds.
    ///
    /// # Errors
    /// The disk was made before and is gone, or cannot be made.
    pub(crate) fn prepare(&self, volume: &AttachedVolume) -> Result<PathBuf, VolumeError> {
        let (id, name) = (volume.id, &volume.name);
        let path = self.path(id);
        let io = |path: &Path, source| VolumeError::Io {
            path: path.to_owned(),
            source,
        };
        if path.try_exists().map_err(|error| io(&path, error))? {
            return Ok(path);
        }
        if volume.made {
            let name = name.clone();
            return Err(VolumeError::Lost { name, id, path });
        }
        let making = self.dir.join(format!("{id}.making"));
        // A label has 16 bytes; the name is for whoever looks at the disk by hand.
        let label = name.get(..16).unwrap_or(name);
        root_disk::format_volume(&making, volume.size_bytes, label, id.0).map_err(|source| {
            let name = name.clone();
            VolumeError::Format { name, source }
        })?;
        std::fs::rename(&making, &path).map_err(|error| io(&path, error))?;
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|error| io(&self.dir, error))?;
        Ok(path)
    }

    /// Removes the disk of a volume that was deleted, for good. Blocks.
    ///
    /// # Errors
    /// The file system refused.
    pub(crate) fn remove(&self, id: VolumeId) -> Result<(), VolumeError> {
        let path = self.path(id);
        std::fs::remove_file(&path).map_err(|source| VolumeError::Io { path, source })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn volume(made: bool) -> AttachedVolume {
        AttachedVolume {
            path: None,
            owner: None,
            id: VolumeId(0xda7a),
            name: "a-name-of-more-than-sixteen-bytes".to_owned(),
            ordinal: 0,
            size_bytes: 16 << 20,
            made,
        }
    }

    #[test]
    fn a_disk_is_made_once_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(dir.path()).unwrap();
        assert_eq!(volumes.list().unwrap(), []);
        volumes.prepare(&volume(false)).unwrap();
        let path = dir.path().join("volumes/0000da7a.ext4");
        std::fs::write(&path, b"what a guest wrote").unwrap();
        volumes.prepare(&volume(false)).unwrap();
        volumes.prepare(&volume(true)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"what a guest wrote");
        assert_eq!(volumes.list().unwrap(), [VolumeId(0xda7a)]);
        volumes.remove(VolumeId(0xda7a)).unwrap();
        assert_eq!(volumes.list().unwrap(), []);
        let lost = volumes.prepare(&volume(true)).unwrap_err();
        assert!(!lost.is_transient());
        assert!(
            lost.to_string()
                .contains("platform volumes delete 0000da7a")
        );
        assert_eq!(volumes.list().unwrap(), []);
    }
}
