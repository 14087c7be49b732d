//! Volumes: which ordinals are free, where their disks are, and which are to be made.

use std::collections::BTreeMap;

use model::instance::AttachedVolume;
use model::{InstanceId, NodeId, VolumeId};

use super::Pass;
use super::task::{Blocked, Task};
use crate::action::{Action, PlannedVolume};
use crate::cluster_state::{Instance, Volume, VolumeKey};

impl Task<'_> {
    /// Whether its instances are numbered, because they have volumes.
    pub(super) fn is_numbered(&self) -> bool {
        let process = self.release.manifest.processes.get(self.process);
        process.is_some_and(|process| !process.volumes.is_empty())
    }

    /// The instance that has the volumes of this ordinal, a terminating one too.
    pub(super) fn holder_of(&self, planner: &Pass<'_, '_>, ordinal: u32) -> Option<InstanceId> {
        let mut instances = planner.working.instances.of_env(self.key);
        let holds = |(_, instance): &(InstanceId, &Instance)| {
            instance.spec.process == *self.process && instance.spec.ordinal() == Some(ordinal)
        };
        instances.find(holds).map(|(id, _)| id)
    }

    /// No instance can be created before a terminating one is gone: says which.
    pub(super) fn wait_for_a_holder(&self, planner: &Pass<'_, '_>) -> Result<(), Blocked> {
        let terminating = (0..).take(self.wanted).find_map(|ordinal| {
            let id = self.holder_of(planner, ordinal)?;
            let holder = planner.working.instances.get(&id)?;
            let volume = holder.spec.volumes.first()?;
            holder.is_terminating().then(|| Blocked::Held {
                volume: format!("{} {ordinal}", volume.name),
                instance: id,
                why: if planner.has_lapsed(holder.node) {
                    "its node is offline, and it may still write"
                } else {
                    "it is stopping"
                },
            })
        });
        terminating.map_or(Ok(()), Err)
    }

    /// The volumes of one ordinal, by name; they are all on one node.
    pub(super) fn volumes_of(
        &self,
        planner: &Pass<'_, '_>,
        ordinal: u32,
    ) -> BTreeMap<String, (VolumeId, Volume)> {
        let of_env = planner.working.volumes.of_env(self.key);
        let mine = of_env.filter(|(_, volume)| {
            volume.key.ordinal == ordinal && volume.key.process == *self.process
        });
        mine.map(|(id, volume)| (volume.key.name.clone(), (id, volume.clone())))
            .collect()
    }

    /// The volumes of an instance on `node`: the known ones, of whatever size, and new ones.
    pub(super) fn attach_volumes(
        &self,
        planner: &mut Pass<'_, '_>,
        ordinal: u32,
        node: NodeId,
        known: &BTreeMap<String, (VolumeId, Volume)>,
    ) -> Vec<AttachedVolume> {
        let process = self.release.manifest.processes.get(self.process);
        let mut attached = Vec::new();
        for wanted in process.map_or(&[][..], |process| &process.volumes) {
            let (id, size_bytes, made) = if let Some((id, volume)) = known.get(&wanted.name) {
                (*id, volume.size_bytes, volume.is_made())
            } else {
                let id = planner.fresh_volume_id();
                let size_bytes = wanted.size_bytes;
                planner.take(Action::MakeVolume(Box::new(PlannedVolume {
                    id,
                    key: VolumeKey {
                        env: self.key.clone(),
                        process: self.process.clone(),
                        name: wanted.name.clone(),
                        ordinal,
                    },
                    node,
                    size_bytes,
                    created_at: planner.now,
                })));
                (id, size_bytes, false)
            };
            attached.push(AttachedVolume {
                id,
                name: wanted.name.clone(),
                ordinal,
                size_bytes,
                path: wanted.path.clone(),
                owner: wanted.owner.clone(),
                made,
            });
        }
        attached
    }
}
