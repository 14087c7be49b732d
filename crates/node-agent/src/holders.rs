//! Which instance of this node has which volume.
//!
//! The planner gives a volume to one instance at a time. The node enforces that once more, over
//! restarts of the agent, too: an instance has its volumes from its record on until nothing of its VM
//! is left.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use model::instance::AttachedVolume;
use model::{InstanceId, VolumeId};

/// Another instance of this node has a volume.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("volume {name} ({id}) still belongs to instance {holder}")]
pub(crate) struct VolumeHeld {
    name: String,
    id: VolumeId,
    holder: InstanceId,
}

/// The holders of this node's volumes.
#[derive(Debug, Default)]
pub(crate) struct VolumeHolders(Mutex<BTreeMap<VolumeId, InstanceId>>);

impl VolumeHolders {
    /// Gives an instance its volumes, all or none. An instance may acquire again what it has.
    pub(crate) fn acquire(
        &self,
        instance: InstanceId,
        volumes: &[AttachedVolume],
    ) -> Result<(), VolumeHeld> {
        let mut holders = self.lock();
        for volume in volumes {
            let holder = holders.get(&volume.id).copied();
            if let Some(holder) = holder.filter(|holder| *holder != instance) {
                return Err(VolumeHeld {
                    name: volume.name.clone(),
                    id: volume.id,
                    holder,
                });
            }
        }
        holders.extend(volumes.iter().map(|volume| (volume.id, instance)));
        Ok(())
    }

    /// Gives an instance those of these volumes that no other instance has.
    pub(crate) fn acquire_free(&self, instance: InstanceId, volumes: &[VolumeId]) {
        let mut holders = self.lock();
        for id in volumes {
            holders.entry(*id).or_insert(instance);
        }
    }

    /// Releases the volumes of an instance whose VM is gone.
    pub(crate) fn release(&self, instance: InstanceId) {
        self.lock().retain(|_, holder| *holder != instance);
    }

    /// The instance that has a volume.
    pub(crate) fn holder(&self, id: VolumeId) -> Option<InstanceId> {
        self.lock().get(&id).copied()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VolumeId, InstanceId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn volume(id: u32) -> AttachedVolume {
        AttachedVolume {
            path: None,
            owner: None,
            id: VolumeId(id),
            name: "data".to_owned(),
            ordinal: 0,
            size_bytes: 1,
            made: false,
        }
    }

    #[test]
    fn a_volume_has_one_holder_at_a_time() {
        let holders = VolumeHolders::default();
        let (one, two) = (InstanceId(1), InstanceId(2));
        holders.acquire(one, &[volume(7)]).unwrap();
        holders.acquire(one, &[volume(7)]).unwrap();
        let held = holders.acquire(two, &[volume(8), volume(7)]).unwrap_err();
        assert!(held.to_string().ends_with("instance 00000001"), "{held}");
        assert_eq!(holders.holder(VolumeId(8)), None, "all or none");
        holders.acquire_free(two, &[VolumeId(7), VolumeId(8)]);
        assert_eq!(holders.holder(VolumeId(7)), Some(one));
        assert_eq!(holders.holder(VolumeId(8)), Some(two));
        holders.release(two);
        holders.acquire(two, &[volume(7)]).unwrap_err();
        holders.release(one);
        holders.acquire(two, &[volume(7)]).unwrap();
    }
}
