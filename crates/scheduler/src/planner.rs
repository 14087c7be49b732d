//! What is to change now: instances created, terminated and deleted, and rollouts.
//!
//! [`plan`] looks at the whole cluster state and answers with the changes that can be made at once, and with a
//! [`Finding`] for everything that waits. It is called again on every report and on a timer; planning a cluster to
//! which the plan was applied changes nothing. For each process type of each env:
//!
//! - `n` instances of the wanted release are to be ready ([`rollout::wanted_counts`]).
//! - Where instances of other releases, or terminating ones, serve, at most `n + max_surge` exist at a time.
//!   Terminating instances on online nodes count, because they hold their memory. Where nothing serves, all that is
//!   missing is created at once.
//! - An old instance is terminated when `n - max_unavailable` others are ready without it; every new instance that is
//!   not ready yet counts as unavailable. Instances that cannot serve are terminated first.
//! - Of too many instances of the wanted release, those that are not ready are terminated first, then the newest.
//! - The instances of a process type that a new release dropped are terminated last, when all else is ready.
//! - A failed instance outside of a rollout is replaced [`REPLACE_AFTER_MS`] after it was created.
//!
//! Where a process type asks for volumes, its instances are numbered: each of the ordinals from 0 to `n - 1` is one
//! instance and its own volumes, which are made with the first instance of that ordinal and stay on its node. An
//! instance holds its ordinal until it is deleted, on an offline node too, so that no volume ever has two writers. So a
//! rollout stops an instance before it starts its successor, at least one at a time, and never surges; of too many,
//! the highest ordinals are terminated. Only users delete volumes.
//!
//! An env with a record that this server cannot read is frozen: nothing of it changes, and a finding says why.
//!
//! Instances on nodes that are offline are kept and do not count as ready. Deliberately absent: their eviction, with
//! a limit that keeps many lapsed nodes at once from evicting everything. It belongs where [`InstanceHealth::Unknown`]
//! is looked at. Also absent: moving instances to balance.

mod env;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
mod volumes;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use model::{EnvKey, InstanceId, ProcessName, Timestamp, VolumeId};

use crate::action::Action;
use crate::apply::{Command, apply};
use crate::cluster_state::{ClusterState, InstancePhase, Subject, VolumePhase};
use crate::ended;
use crate::placement::Placement;
use overlay::address_plan::egress_address;

#[cfg(doc)]
use crate::rollout::{self, InstanceHealth};

/// How long after it was created a failed instance is replaced, in milliseconds. The wait keeps an instance that can
/// never run from being created over and over.
pub const REPLACE_AFTER_MS: u64 = 5 * 60 * 1000;
/// Passes over one env within one plan; each sees what the one before changed.
const MAX_PASSES: u32 = 16;

/// The changes that can be made now, and what waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The changes, in order. Empty: nothing is to change.
    pub actions: Vec<Action>,
    /// What waits, and why.
    pub findings: Vec<Finding>,
}

/// Something that waits, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The env.
    pub env: EnvKey,
    /// The process type, where it is about one.
    pub process: Option<ProcessName>,
    /// For people.
    pub message: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.process {
            Some(process) => write!(f, "{} {process}: {}", self.env, self.message),
            None => write!(f, "{}: {}", self.env, self.message),
        }
    }
}

/// The changes that this cluster state needs at `now`. `draw` gives random numbers for new ids; ids in use are passed
/// over.
pub fn plan(cluster: &ClusterState, now: Timestamp, draw: &mut dyn FnMut() -> u32) -> Plan {
    let mut planner = Planner {
        given: cluster,
        working: Cow::Borrowed(cluster),
        by_env: BTreeMap::new(),
        placement: None,
        now,
        draw,
        actions: Vec::new(),
    };
    for (id, instance) in &cluster.instances {
        let env = planner.by_env.entry(instance.spec.env_key()).or_default();
        env.insert(*id);
    }
    planner.delete_gone_instances();
    planner.delete_gone_volumes();
    planner.prune_ended();
    let mut findings = Vec::new();
    for key in cluster.envs.keys() {
        for _ in 0..MAX_PASSES {
            let before = planner.actions.len();
            let found = env::pass(&mut planner, key);
            if planner.actions.len() == before {
                findings.extend(found);
                break;
            }
        }
    }
    Plan {
        actions: planner.actions,
        findings,
    }
}

/// A plan in the making.
struct Planner<'w, 'd> {
    /// The cluster state as given; its nodes do not change while planning, but for their generations.
    given: &'w ClusterState,
    /// The cluster state with the actions so far; copied only when there is one.
    working: Cow<'w, ClusterState>,
    /// The instances of each env, as in `working`.
    by_env: BTreeMap<EnvKey, BTreeSet<InstanceId>>,
    /// What is promised on the nodes, as in `working`; counted when first needed.
    placement: Option<Placement<'w>>,
    now: Timestamp,
    draw: &'d mut dyn FnMut() -> u32,
    actions: Vec<Action>,
}

impl<'w> Planner<'w, '_> {
    /// Takes an action into the plan and the working cluster state. One that does not fit is dropped: the plan holds
    /// nothing that [`apply`] refuses.
    fn take(&mut self, action: Action) {
        let command = Command::Plan(action);
        let refused = apply(self.working.to_mut(), &command).err();
        debug_assert_eq!(refused, None, "{command:?}");
        let Command::Plan(action) = command else {
            return;
        };
        if refused.is_some() {
            return;
        }
        match &action {
            Action::Create(placed) => {
                let env = placed.spec.env_key();
                self.by_env.entry(env).or_default().insert(placed.spec.id);
                if let Some(placement) = &mut self.placement {
                    placement.promise(placed.node, &placed.spec, false);
                }
            }
            Action::Delete { id, .. } => {
                let known = self.given.instances.get(id);
                if let Some(ids) = known.and_then(|i| self.by_env.get_mut(&i.spec.env_key())) {
                    ids.remove(id);
                }
                // What it held is free again.
                self.placement = None;
            }
            Action::MakeVolume(planned) => {
                if let Some(placement) = &mut self.placement {
                    placement.promise_volume(planned.node, planned.size_bytes);
                }
            }
            Action::Terminate { .. } | Action::DeleteVolume { .. } => self.placement = None,
            Action::PruneEnded { .. } | Action::SetRollout { .. } | Action::RemoveEnv { .. } => {}
        }
        self.actions.push(action);
    }

    /// What is promised on the nodes now.
    fn placement(&mut self) -> &mut Placement<'w> {
        let (given, working) = (self.given, &self.working);
        self.placement
            .get_or_insert_with(|| Placement::new(&given.nodes, working))
    }

    /// Instances that are gone: their node said so, or their node was removed.
    fn delete_gone_instances(&mut self) {
        for (id, instance) in &self.given.instances {
            let is_gone = matches!(instance.phase, InstancePhase::Gone { .. });
            if is_gone || !self.given.has_node(instance.node) {
                let (id, at) = (*id, self.now);
                self.take(Action::Delete { id, at });
            }
        }
    }

    /// The records of ended instances that are kept no longer.
    fn prune_ended(&mut self) {
        for id in ended::expired(&self.working.ended, self.now) {
            self.take(Action::PruneEnded { id });
        }
    }

    /// Deleted volumes that are gone: their node said so, or their node was removed.
    fn delete_gone_volumes(&mut self) {
        for (id, volume) in &self.given.volumes {
            let node_is_gone = !self.given.has_node(volume.node);
            if volume.phase == VolumePhase::Deleted || (volume.is_deleting() && node_is_gone) {
                self.take(Action::DeleteVolume { id: *id });
            }
        }
    }

    /// An id that no volume has.
    fn fresh_volume_id(&mut self) -> VolumeId {
        let unreadable = &self.given.unreadable;
        let taken = |id: VolumeId| {
            self.working.volumes.contains_key(&id)
                || (unreadable.iter()).any(|record| record.subject == Subject::Volume(id))
        };
        let mut id = VolumeId((self.draw)());
        while id.0 == 0 || taken(id) {
            id = VolumeId(id.0.wrapping_add(1));
        }
        id
    }

    /// An id that no instance has, nor one with the same address for egress, and that no ended instance had.
    fn fresh_id(&mut self) -> InstanceId {
        let same = |a: InstanceId, b: InstanceId| egress_address(a) == egress_address(b);
        let mut id = InstanceId((self.draw)());
        let unreadable: Vec<_> = self.given.unreadable_instances().collect();
        let taken = |id: InstanceId| {
            self.working.ended.contains_key(&id)
                || self.working.instances.keys().any(|other| same(*other, id))
                || unreadable.iter().any(|(other, _)| same(*other, id))
        };
        while id.0 == 0 || taken(id) {
            id = InstanceId(id.0.wrapping_add(1));
        }
        id
    }
}
