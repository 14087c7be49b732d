//! The instances of a cluster, and the volumes, found by what they belong to.
//!
//! Both are tables with indexes. An index follows each record that is added or removed, so no question about one env,
//! node or volume costs what the whole cluster costs.

use std::net::Ipv4Addr;
use std::ops::{Bound, Deref};
use std::sync::Arc;

use api::node::InstanceReport;
use immutable_chunkmap::set::Set;
use model::instance::InstanceSpec;
use model::{AppName, EnvKey, InstanceId, NodeId, ProcessName, Timestamp, VolumeId};
use overlay::address_plan::egress_address;

use crate::table::{Entries, Table};

/// One instance: what was decided, and what its node says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Everything its node needs. Shared: it never changes.
    pub spec: Arc<InstanceSpec>,
    /// Where it runs.
    pub node: NodeId,
    /// When it was planned.
    pub created_at: Timestamp,
    /// How far its life is, as decided here.
    pub phase: InstancePhase,
    /// What its node last said; absent until it said anything, or when it no longer lists it.
    pub report: Option<InstanceReport>,
    /// Since when this server has known that it is ready, in the same run of its app. Absent for one that was ready when this server
    /// began to lead, and for one that is not ready. Not stored.
    pub ready_since: Option<Timestamp>,
}

impl Instance {
    /// A new instance; its node has said nothing of it yet.
    pub fn new(spec: impl Into<Arc<InstanceSpec>>, node: NodeId, created_at: Timestamp) -> Self {
        Self {
            spec: spec.into(),
            node,
            created_at,
            phase: InstancePhase::New,
            report: None,
            ready_since: None,
        }
    }

    /// Whether it is wanted no longer; its node may still run it.
    pub fn is_terminating(&self) -> bool {
        match self.phase {
            InstancePhase::New | InstancePhase::Established => false,
            InstancePhase::Terminating { .. } | InstancePhase::Gone { .. } => true,
        }
    }

    /// Whether it was ready at any time. One that never was is still a candidate that may never come up.
    pub fn was_ready(&self) -> bool {
        match self.phase {
            InstancePhase::New | InstancePhase::Gone { .. } => false,
            InstancePhase::Established => true,
            InstancePhase::Terminating { was_ready, .. } => was_ready,
        }
    }
}

/// How far the life of an instance is. The diagram is in [`crate::cluster_state`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstancePhase {
    /// Wanted, and never ready so far.
    New,
    /// Wanted, and ready at some time.
    Established,
    /// Wanted no longer; its node is told to stop it.
    Terminating {
        /// Whether it was ready at any time.
        was_ready: bool,
        /// Why, for people.
        reason: String,
    },
    /// Its node has said that it is gone; the planner deletes it next.
    Gone {
        /// Why it was terminated, for people.
        reason: String,
    },
}

/// What a volume belongs to: a later instance with the same key gets the same volume.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VolumeKey {
    /// The env. A later env of the same name finds the volume, too.
    pub env: EnvKey,
    /// The process type.
    pub process: ProcessName,
    /// Its name in the manifest.
    pub name: String,
    /// Which of the process type's instances it belongs to, from 0.
    pub ordinal: u32,
}

impl std::fmt::Display for VolumeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            env,
            process,
            name,
            ordinal,
        } = self;
        write!(f, "{name} {ordinal} of {env} {process}")
    }
}

/// One volume: a disk on one node, which only a user deletes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// What it belongs to.
    pub key: VolumeKey,
    /// The node its disk is on, for good.
    pub node: NodeId,
    /// Its size in bytes, for good.
    pub size_bytes: u64,
    /// When it was planned.
    pub created_at: Timestamp,
    /// How far its life is.
    pub phase: VolumePhase,
}

impl Volume {
    /// Whether its node has said that the disk is there.
    pub fn is_made(&self) -> bool {
        match self.phase {
            VolumePhase::Planned | VolumePhase::Deleted => false,
            VolumePhase::Made => true,
            VolumePhase::Deleting { made } => made,
        }
    }

    /// Whether a user has deleted it.
    pub fn is_deleting(&self) -> bool {
        match self.phase {
            VolumePhase::Planned | VolumePhase::Made => false,
            VolumePhase::Deleting { .. } | VolumePhase::Deleted => true,
        }
    }
}

/// How far the life of a volume is. The diagram is in [`crate::cluster_state`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumePhase {
    /// Its disk is made with its first instance.
    Planned,
    /// Its node has said that the disk is there.
    Made,
    /// A user deleted it; its node is told to remove the disk.
    Deleting {
        /// Whether the node has said that the disk was there.
        made: bool,
    },
    /// Its node has said that the disk is gone; the planner deletes the record next.
    Deleted,
}

type Ids<T> = Set<T, 32>;

/// Every instance that is not deleted. Read as a [`Table`]; the indexes are kept by [`insert`](Self::insert) and
/// [`remove`](Self::remove).
#[derive(Debug, Clone, Default)]
pub struct Instances {
    all: Table<InstanceId, Instance>,
    of_env: Table<EnvKey, Ids<InstanceId>>,
    on_node: Table<NodeId, Ids<InstanceId>>,
    with_volume: Table<VolumeId, Ids<InstanceId>>,
    egress: Ids<Ipv4Addr>,
}

impl Instances {
    /// Adds an instance, or replaces the one with this id.
    pub fn insert(&mut self, id: InstanceId, instance: impl Into<Arc<Instance>>) {
        if self.all.contains_key(&id) {
            self.remove(&id);
        }
        let instance = instance.into();
        put(&mut self.of_env, instance.spec.env_key(), id);
        put(&mut self.on_node, instance.node, id);
        for volume in &instance.spec.volumes {
            put(&mut self.with_volume, volume.id, id);
        }
        self.egress.insert_cow(egress_address(id));
        self.all.insert(id, instance);
    }

    /// Removes an instance.
    pub fn remove(&mut self, id: &InstanceId) -> Option<Arc<Instance>> {
        let instance = self.all.remove(id)?;
        take(&mut self.of_env, &instance.spec.env_key(), *id);
        take(&mut self.on_node, &instance.node, *id);
        for volume in &instance.spec.volumes {
            take(&mut self.with_volume, &volume.id, *id);
        }
        self.egress.remove_cow(&egress_address(*id));
        Some(instance)
    }

    /// Removes every instance.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The instance of this id, to be changed in its phase or its report: its env, node and volumes never change.
    pub fn get_mut(&mut self, id: &InstanceId) -> Option<&mut Instance> {
        self.all.get_mut(id)
    }

    /// Changes the instance of this id as with [`get_mut`](Self::get_mut), and gives it as it is from then on.
    pub fn change(
        &mut self,
        id: &InstanceId,
        change: impl FnOnce(&mut Instance),
    ) -> Option<Arc<Instance>> {
        self.all.change(id, change)
    }

    /// Every instance, to be changed as with [`get_mut`](Self::get_mut).
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Instance> {
        self.all.values_mut()
    }

    /// The instances of an env, by id.
    pub fn of_env(&self, env: &EnvKey) -> impl Iterator<Item = (InstanceId, &Instance)> {
        self.found(self.of_env.get(env))
    }

    /// The envs that have instances, from this key on.
    pub fn envs_from(&self, first: Bound<EnvKey>) -> impl Iterator<Item = &EnvKey> {
        let envs = self.of_env.range((first, Bound::Unbounded));
        envs.map(|(env, _)| env)
    }

    /// The instances on a node, by id.
    pub fn on_node(&self, node: NodeId) -> impl Iterator<Item = (InstanceId, &Instance)> {
        self.found(self.on_node.get(&node))
    }

    /// How many instances are on a node.
    pub fn count_on_node(&self, node: NodeId) -> usize {
        self.on_node.get(&node).map_or(0, Ids::len)
    }

    /// The instance that has this volume, a terminating one too: until its node has said that it is gone, it may write.
    pub fn user_of(&self, volume: VolumeId) -> Option<&Instance> {
        let mut users = self.found(self.with_volume.get(&volume));
        users.next().map(|(_, instance)| instance)
    }

    /// Whether an instance has the same address for egress as this id would have.
    pub fn has_egress_address_of(&self, id: InstanceId) -> bool {
        self.egress.contains(&egress_address(id))
    }

    fn found<'i>(
        &'i self,
        ids: Option<&'i Ids<InstanceId>>,
    ) -> impl Iterator<Item = (InstanceId, &'i Instance)> {
        let ids = ids.into_iter().flatten();
        ids.filter_map(|id| Some((*id, self.all.get(id)?)))
    }
}

impl Deref for Instances {
    type Target = Table<InstanceId, Instance>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl PartialEq for Instances {
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all
    }
}

impl Eq for Instances {}

impl<'i> IntoIterator for &'i Instances {
    type Item = (&'i InstanceId, &'i Instance);
    type IntoIter = Entries<'i, InstanceId, Instance>;

    fn into_iter(self) -> Self::IntoIter {
        self.all.iter()
    }
}

impl FromIterator<(InstanceId, Instance)> for Instances {
    fn from_iter<I: IntoIterator<Item = (InstanceId, Instance)>>(instances: I) -> Self {
        let mut all = Self::default();
        for (id, instance) in instances {
            all.insert(id, instance);
        }
        all
    }
}

/// Every volume; they outlive instances, releases and envs. Read as a [`Table`]; the indexes are kept by
/// [`insert`](Self::insert) and [`remove`](Self::remove).
#[derive(Debug, Clone, Default)]
pub struct Volumes {
    all: Table<VolumeId, Volume>,
    by_key: Table<VolumeKey, VolumeId>,
    of_env: Table<EnvKey, Ids<VolumeId>>,
    on_node: Table<NodeId, Ids<VolumeId>>,
}

impl Volumes {
    /// Adds a volume, or replaces the one with this id.
    pub fn insert(&mut self, id: VolumeId, volume: Volume) {
        self.remove(&id);
        self.by_key.insert(volume.key.clone(), id);
        put(&mut self.of_env, volume.key.env.clone(), id);
        put(&mut self.on_node, volume.node, id);
        self.all.insert(id, volume);
    }

    /// Removes a volume.
    pub fn remove(&mut self, id: &VolumeId) -> Option<Arc<Volume>> {
        let volume = self.all.remove(id)?;
        if self.by_key.get(&volume.key) == Some(id) {
            self.by_key.remove(&volume.key);
        }
        take(&mut self.of_env, &volume.key.env, *id);
        take(&mut self.on_node, &volume.node, *id);
        Some(volume)
    }

    /// The volume of this id, to be changed in its phase: what it belongs to and its node never change.
    pub fn get_mut(&mut self, id: &VolumeId) -> Option<&mut Volume> {
        self.all.get_mut(id)
    }

    /// Every volume, to be changed as with [`get_mut`](Self::get_mut).
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Volume> {
        self.all.values_mut()
    }

    /// The volume with this key.
    pub fn id_of(&self, key: &VolumeKey) -> Option<VolumeId> {
        self.by_key.get(key).copied()
    }

    /// The volumes of an env, by id.
    pub fn of_env(&self, env: &EnvKey) -> impl Iterator<Item = (VolumeId, &Volume)> {
        self.found(self.of_env.get(env))
    }

    /// The envs that have volumes, from this key on.
    pub fn envs_from(&self, first: Bound<EnvKey>) -> impl Iterator<Item = &EnvKey> {
        let envs = self.of_env.range((first, Bound::Unbounded));
        envs.map(|(env, _)| env)
    }

    /// The volumes of an app.
    pub fn of_app<'v>(&'v self, app: &'v AppName) -> impl Iterator<Item = (VolumeId, &'v Volume)> {
        let envs = self.of_env.range(EnvKey::before_all_of(app)..);
        let of_app = envs.take_while(move |(env, _)| env.app == *app);
        of_app.flat_map(|(_, ids)| self.found(Some(ids)))
    }

    /// The volumes on a node, by id.
    pub fn on_node(&self, node: NodeId) -> impl Iterator<Item = (VolumeId, &Volume)> {
        self.found(self.on_node.get(&node))
    }

    fn found<'v>(
        &'v self,
        ids: Option<&'v Ids<VolumeId>>,
    ) -> impl Iterator<Item = (VolumeId, &'v Volume)> {
        let ids = ids.into_iter().flatten();
        ids.filter_map(|id| Some((*id, self.all.get(id)?)))
    }
}

impl Deref for Volumes {
    type Target = Table<VolumeId, Volume>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl PartialEq for Volumes {
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all
    }
}

impl Eq for Volumes {}

impl<'i> IntoIterator for &'i Volumes {
    type Item = (&'i VolumeId, &'i Volume);
    type IntoIter = Entries<'i, VolumeId, Volume>;

    fn into_iter(self) -> Self::IntoIter {
        self.all.iter()
    }
}

impl FromIterator<(VolumeId, Volume)> for Volumes {
    fn from_iter<I: IntoIterator<Item = (VolumeId, Volume)>>(volumes: I) -> Self {
        let mut all = Self::default();
        for (id, volume) in volumes {
            all.insert(id, volume);
        }
        all
    }
}

fn put<K: Ord + Clone, T: Ord + Clone>(index: &mut Table<K, Ids<T>>, key: K, id: T) {
    if let Some(ids) = index.get_mut(&key) {
        ids.insert_cow(id);
    } else {
        let mut ids = Ids::new();
        ids.insert_cow(id);
        index.insert(key, ids);
    }
}

fn take<K: Ord + Clone, T: Ord + Clone>(index: &mut Table<K, Ids<T>>, key: &K, id: T) {
    let Some(ids) = index.get_mut(key) else {
        return;
    };
    ids.remove_cow(&id);
    if ids.len() == 0 {
        index.remove(key);
    }
}
