//! Volumes of this node: a sparse raw disk each, made once, and who has it.
//!
//! A disk is formatted under another name and gets its own when it is complete and synced, so that a
//! file `<volume>.ext4` is always a whole file system. It goes when a user deletes the volume, and for
//! nothing else. What guests write is never mounted or read here: the kernel that mounts it next, a
//! guest's, mends it from its journal (ADR 0003).
//!
//! The planner gives a volume to one instance at a time; here it is held to that once more, over
//! restarts of the agent, too: an instance has its volumes from its record on until nothing of its VM
//! is left.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use model::instance::AttachedVolume;
use model::{InstanceId, VolumeId};
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
    /// Another instance of this node has it.
    #[error("volume {name} ({id}) still belongs to instance {holder}")]
    Taken {
        /// The volume's name.
        name: String,
        /// The volume.
        id: VolumeId,
        /// Who has it.
        holder: InstanceId,
    },
}

impl VolumeError {
    /// Whether time alone may mend it.
    pub(crate) fn is_transient(&self) -> bool {
        !matches!(self, Self::Lost { .. })
    }
}

/// The volumes of this node.
#[derive(Debug)]
pub(crate) struct Volumes {
    dir: PathBuf,
    holders: Mutex<BTreeMap<VolumeId, InstanceId>>,
}

impl Volumes {
    /// The volumes in a node's data folder.
    pub(crate) fn open(data_dir: &Path) -> io::Result<Self> {
        let dir = data_dir.join("volumes");
        std::fs::create_dir_all(&dir)?;
        Ok(Self {
            dir,
            holders: Mutex::default(),
        })
    }

    fn path(&self, id: VolumeId) -> PathBuf {
        self.dir.join(format!("{id}.ext4"))
    }

    /// Every volume whose disk is here.
    pub(crate) fn list(&self) -> Vec<VolumeId> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!(%error, dir = %self.dir.display(), "cannot list the volumes");
                return Vec::new();
            }
        };
        let mut ids: Vec<VolumeId> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                name.to_str()?.strip_suffix(".ext4")?.parse().ok()
            })
            .collect();
        ids.sort_unstable();
        ids
    }

    /// Sees to it that the disk is there: makes it, unless it was there before. Blocks for
    /// milliseconds.
    pub(crate) fn prepare(&self, volume: &AttachedVolume) -> Result<(), VolumeError> {
        let (id, name) = (volume.id, &volume.name);
        let path = self.path(id);
        let io = |path: &Path, source| VolumeError::Io {
            path: path.to_owned(),
            source,
        };
        if path.try_exists().map_err(|error| io(&path, error))? {
            return Ok(());
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
        synced.map_err(|error| io(&self.dir, error))
    }

    /// Gives an instance its volumes, all or none: their disks, in its order. Asking again is fine.
    pub(crate) fn take(
        &self,
        instance: InstanceId,
        volumes: &[AttachedVolume],
    ) -> Result<Vec<PathBuf>, VolumeError> {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        for volume in volumes {
            let holder = holders.get(&volume.id).copied();
            if let Some(holder) = holder.filter(|holder| *holder != instance) {
                return Err(VolumeError::Taken {
                    name: volume.name.clone(),
                    id: volume.id,
                    holder,
                });
            }
        }
        holders.extend(volumes.iter().map(|volume| (volume.id, instance)));
        Ok(volumes.iter().map(|v| self.path(v.id)).collect())
    }

    /// Takes everything back that an instance has: nothing of its VM is left.
    pub(crate) fn release(&self, instance: InstanceId) {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        holders.retain(|_, holder| *holder != instance);
    }

    /// Removes the disk of a volume that was deleted, for good.
    pub(crate) fn remove(&self, id: VolumeId) -> io::Result<()> {
        let holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(holder) = holders.get(&id) {
            return Err(io::Error::other(format!("instance {holder} has it")));
        }
        std::fs::remove_file(self.path(id))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn volume(made: bool) -> AttachedVolume {
        AttachedVolume {
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
        assert_eq!(volumes.list(), []);
        volumes.prepare(&volume(false)).unwrap();
        let path = dir.path().join("volumes/0000da7a.ext4");
        std::fs::write(&path, b"what a guest wrote").unwrap();
        volumes.prepare(&volume(false)).unwrap();
        volumes.prepare(&volume(true)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"what a guest wrote");
        assert_eq!(volumes.list(), [VolumeId(0xda7a)]);
        volumes.remove(VolumeId(0xda7a)).unwrap();
        assert_eq!(volumes.list(), []);
        let lost = volumes.prepare(&volume(true)).unwrap_err();
        assert!(!lost.is_transient());
        assert!(
            lost.to_string()
                .contains("platform volumes delete 0000da7a")
        );
        assert_eq!(volumes.list(), []);
    }

    #[test]
    fn one_instance_at_a_time_has_a_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(dir.path()).unwrap();
        let (one, two) = (InstanceId(1), InstanceId(2));
        volumes.prepare(&volume(false)).unwrap();
        let disks = volumes.take(one, &[volume(false)]).unwrap();
        assert_eq!(disks, [dir.path().join("volumes/0000da7a.ext4")]);
        volumes.take(one, &[volume(true)]).unwrap();
        let taken = volumes.take(two, &[volume(true)]).unwrap_err();
        assert!(taken.is_transient() && taken.to_string().ends_with("instance 00000001"));
        assert!(volumes.remove(VolumeId(0xda7a)).is_err());
        volumes.release(two);
        volumes.take(two, &[volume(true)]).unwrap_err();
        volumes.release(one);
        volumes.take(two, &[volume(true)]).unwrap();
    }
}
