//! Scratch disks and volumes as files, on the threads for blocking work.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use model::instance::AttachedVolume;
use model::{InstanceId, VolumeId};

use crate::host::{DiskUse, Disks, HostError, HostResult};
use crate::lane::Lane;
use crate::node_disk::DiskMeter;
use crate::volumes::{VolumeError, Volumes};
use blocking_work::blocking;
use display::chain;

const SCRATCH: &str = "scratch.ext4";

/// Disks that are made or removed at a time. To remove a large one takes a file system seconds, and the disks of other
/// instances do not wait for it.
const DISKS_AT_A_TIME: usize = 32;

/// A disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum DiskKey {
    Scratch(InstanceId),
    Volume(VolumeId),
}

type Turn = Arc<tokio::sync::Mutex<()>>;

/// Disks in the node's data folder.
#[derive(Debug)]
pub(crate) struct HostDisks {
    instances_dir: PathBuf,
    volumes: Volumes,
    meter: DiskMeter,
    lane: Lane,
    /// Work on one disk is done one piece at a time: a piece whose caller gave up ends before the next.
    turns: Mutex<BTreeMap<DiskKey, Turn>>,
}

impl HostDisks {
    pub(crate) fn new(instances_dir: PathBuf, volumes: Volumes, meter: DiskMeter) -> Self {
        Self {
            instances_dir,
            volumes,
            meter,
            lane: Lane::new(DISKS_AT_A_TIME),
            turns: Mutex::default(),
        }
    }

    fn in_turn<T: Send + 'static>(
        &self,
        disk: DiskKey,
        work: impl FnOnce() -> HostResult<T> + Send + 'static,
    ) -> BoxFuture<'static, HostResult<T>> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody waits for are of no more use.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(disk).or_default().clone()
        };
        let lane = self.lane.clone();
        async move {
            let turn = turn.lock_owned().await;
            lane.run(move || {
                let _turn = turn;
                work()
            })
            .await
        }
        .boxed()
    }

    fn scratch(&self, id: InstanceId) -> PathBuf {
        self.instances_dir.join(id.to_string()).join(SCRATCH)
    }
}

impl Disks for HostDisks {
    fn make_scratch(&self, id: InstanceId, size_bytes: u64) -> BoxFuture<'_, HostResult<PathBuf>> {
        let path = self.scratch(id);
        self.in_turn(DiskKey::Scratch(id), move || {
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
        self.in_turn(DiskKey::Scratch(id), move || {
            remove_if_there(&path).map_err(|error| {
                HostError::transient(format!("cannot remove {}: {error}", path.display()))
            })
        })
    }

    fn prepare_volume(&self, volume: AttachedVolume) -> BoxFuture<'_, HostResult<PathBuf>> {
        let volumes = self.volumes.clone();
        self.in_turn(DiskKey::Volume(volume.id), move || {
            volumes.prepare(&volume).map_err(host_error)
        })
    }

    fn list_volumes(&self) -> BoxFuture<'_, HostResult<Vec<VolumeId>>> {
        let volumes = self.volumes.clone();
        blocking(move || volumes.list().map_err(host_error)).boxed()
    }

    fn remove_volume(&self, id: VolumeId) -> BoxFuture<'_, HostResult<()>> {
        let volumes = self.volumes.clone();
        self.in_turn(DiskKey::Volume(id), move || {
            volumes.remove(id).map_err(host_error)
        })
    }

    fn measure(&self) -> BoxFuture<'_, HostResult<DiskUse>> {
        let meter = self.meter.clone();
        blocking(move || {
            meter.measure().map_err(|error| {
                HostError::transient(format!("cannot measure the node's disk: {error}"))
            })
        })
        .boxed()
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// A large disk takes a file system seconds to remove; here it takes until it is told.
    #[tokio::test]
    async fn case_a_disk_that_is_slow_to_remove_holds_up_no_other() {
        const PATIENCE: Duration = Duration::from_secs(10);
        let dir = tempfile::tempdir().unwrap();
        let instances = dir.path().join("instances");
        for id in ["00000001", "00000002"] {
            std::fs::create_dir_all(instances.join(id)).unwrap();
        }
        let volumes = Volumes::open(dir.path()).unwrap();
        let meter = DiskMeter::new(dir.path(), None).unwrap();
        let disks = Arc::new(HostDisks::new(instances, volumes, meter));
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (begin, begun) = tokio::sync::oneshot::channel();
        let slow = disks.in_turn(DiskKey::Scratch(InstanceId(1)), move || {
            begin.send(()).unwrap();
            released.recv().unwrap();
            Ok(())
        });
        let slow = tokio::spawn(slow);
        begun.await.unwrap();
        let other = timeout(PATIENCE, disks.make_scratch(InstanceId(2), 16 << 20)).await;
        other
            .expect("it waits for another instance's disk")
            .unwrap();
        // The same disk waits: its file is not made while it is removed.
        let same = disks.make_scratch(InstanceId(1), 16 << 20);
        let mut same = std::pin::pin!(same);
        let early = timeout(Duration::from_millis(50), &mut same).await;
        assert!(early.is_err());
        release.send(()).unwrap();
        slow.await.unwrap().unwrap();
        timeout(PATIENCE, same).await.unwrap().unwrap();
    }
}
