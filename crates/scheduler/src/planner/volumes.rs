//! Volumes: which ordinals are free, where their disks are, and which are to be made.

use std::collections::BTreeMap;

use model::instance::AttachedVolume;
use model::{InstanceId, NodeId};

use super::Pass;
use super::task::{Blocked, KnownVolumes, Task};
use crate::action::{Action, PlannedVolume};
use crate::cluster_state::VolumeKey;

impl Task<'_> {
    /// Whether its instances are numbered, because they have volumes.
    pub(super) fn is_numbered(&self) -> bool {
        let process = self.release.manifest.processes.get(self.process);
        process.is_some_and(|process| !process.volumes.is_empty())
    }

    /// The instances that have the volumes of an ordinal, terminating ones too.
    pub(super) fn holders(&self, planner: &Pass<'_, '_>) -> BTreeMap<u32, InstanceId> {
        let instances = planner.working.instances.of_env(self.key);
        let mine = instances.filter(|(_, instance)| instance.spec.process == *self.process);
        let mut holders = BTreeMap::new();
        for (id, instance) in mine {
            if let Some(ordinal) = instance.spec.ordinal() {
                holders.entry(ordinal).or_insert(id);
            }
        }
        holders
    }

    /// No instance can be created before a terminating one is gone: says which.
    pub(super) fn wait_for_a_holder(
        &self,
        planner: &Pass<'_, '_>,
        holders: &BTreeMap<u32, InstanceId>,
    ) -> Result<(), Blocked> {
        let wanted = |ordinal: u32| (ordinal as usize) < self.wanted;
        let holders = holders.iter().filter(|(ordinal, _)| wanted(**ordinal));
        let mut terminating = holders.filter_map(|(ordinal, id)| {
            let holder = planner.working.instances.get(id)?;
            let volume = holder.spec.volumes.first()?;
            holder.is_terminating().then(|| Blocked::CountedAs {
                volume: format!("{} {ordinal}", volume.name),
                instance: *id,
                why: if planner.has_lapsed(holder.node) {
                    "its node is offline, and it may still write"
                } else {
                    "it is stopping"
                },
            })
        });
        terminating.next().map_or(Ok(()), Err)
    }

    /// The volumes of each ordinal, by name; those of one ordinal are all on one node.
    pub(super) fn volumes_by_ordinal(&self, planner: &Pass<'_, '_>) -> BTreeMap<u32, KnownVolumes> {
        let of_env = planner.working.volumes.of_env(self.key);
        let mine = of_env.filter(|(_, volume)| volume.key.process == *self.process);
        let mut volumes: BTreeMap<u32, KnownVolumes> = BTreeMap::new();
        for (id, volume) in mine {
            let of_ordinal = volumes.entry(volume.key.ordinal).or_default();
            of_ordinal.insert(volume.key.name.clone(), (id, volume.clone()));
        }
        volumes
    }

    /// The volumes of an instance on `node`: the known ones, of whatever size, and new ones.
    pub(super) fn attach_volumes(
        &self,
        planner: &mut Pass<'_, '_>,
        ordinal: u32,
        node: NodeId,
        known: &KnownVolumes,
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
