//! Scratch disks and volumes as files, on the threads for blocking work.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use model::instance::AttachedVolume;
use model::{InstanceId, VolumeId};

use crate::host::{Disks, HostError, HostResult};
use crate::volumes::{VolumeError, Volumes};
use blocking_work::blocking;
use display::chain;

const SCRATCH: &str = "scratch.ext4";

/// Disks in the node's data folder.
#[derive(Debug)]
pub(crate) struct HostDisks {
    instances_dir: PathBuf,
    volumes: Volumes,
    /// Work on disks is done one piece at a time: a piece whose caller gave up ends before the next.
    turn: Arc<Mutex<()>>,
}

impl HostDisks {
    pub(crate) fn new(instances_dir: PathBuf, volumes: Volumes) -> Self {
        Self {
            instances_dir,
            volumes,
            turn: Arc::default(),
        }
    }

    fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> HostResult<T> + Send + 'static,
    ) -> BoxFuture<'static, HostResult<T>> {
        let turn = self.turn.clone();
        blocking(move || {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            work()
        })
        .boxed()
    }

    fn scratch(&self, id: InstanceId) -> PathBuf {
        self.instances_dir.join(id.to_string()).join(SCRATCH)
    }
}

impl Disks for HostDisks {
    fn make_scratch(&self, id: InstanceId, size_bytes: u64) -> BoxFuture<'_, HostResult<PathBuf>> {
        let path = self.scratch(id);
        self.in_turn(move || {
            let made = remove_if_there(&path).map_err(|error| error.to_string());
            let made = made.and_then(|()| {
                root_disk::format_empty(&path, size_bytes, "scratch").map_err(|error| chain(&error))
            });
            made.map_err(|cause| {
                HostError::transient(format!(
                    "cannot make the scratch disk {}: {cause}",
                    path.display()
                ))
            })?;
            Ok(path)
        })
    }

    fn remove_scratch(&self, id: InstanceId) -> BoxFuture<'_, HostResult<()>> {
        let path = self.scratch(id);
        self.in_turn(move || {
            remove_if_there(&path).map_err(|error| {
                HostError::transient(format!("cannot remove {}: {error}", path.display()))
            })
        })
    }

    fn prepare_volume(&self, volume: AttachedVolume) -> BoxFuture<'_, HostResult<PathBuf>> {
        let volumes = self.volumes.clone();
        self.in_turn(move || volumes.prepare(&volume).map_err(host_error))
    }

    fn list_volumes(&self) -> BoxFuture<'_, HostResult<Vec<VolumeId>>> {
        let volumes = self.volumes.clone();
        blocking(move || volumes.list().map_err(host_error)).boxed()
    }

    fn remove_volume(&self, id: VolumeId) -> BoxFuture<'_, HostResult<()>> {
        let volumes = self.volumes.clone();
        self.in_turn(move || volumes.remove(id).map_err(host_error))
    }
}

fn host_error(error: VolumeError) -> HostError {
    HostError {
        transient: error.is_transient(),
        reason: chain(&error),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
