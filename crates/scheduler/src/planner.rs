//! What is to change now: instances that come, leave and are forgotten, and rollouts.
//!
//! [`plan`] looks at the whole cluster state and answers with the changes that can be made at once, and
//! with what waits and why. It is called again on every report and on a timer; planning a cluster
//! to which the plan was applied changes nothing. For each process type of each env:
//!
//! - `n` instances of the wanted release are to be ready ([`rollout::wanted_counts`]).
//! - Where instances of other releases, or ones on their way out, serve, at most `n + max_surge`
//!   exist at a time, those on their way out on online nodes counted, because they hold their
//!   memory. Where nothing serves, all that is missing is made at once.
//! - An old instance leaves when `n - max_unavailable` others are ready without it, and every new
//!   one that is not ready yet counts as one that may be missing. What cannot serve leaves first.
//! - Of too many of the wanted release, those that are not ready leave first, then the newest.
//! - The instances of a process type that a new release dropped leave last, when all else is ready.
//! - A failed instance outside of a rollout is replaced [`REPLACE_AFTER_MS`] after it was made.
//!
//! Where a process type asks for volumes, its instances are numbered: each of the ordinals from 0 to
//! `n - 1` is one instance and its own volumes, which are made with the first instance of that
//! ordinal and stay on its node. An ordinal is held by its instance until that is forgotten, on an
//! offline node, too, so that no volume ever has two writers. So a rollout stops an instance first
//! and starts its successor then, at least one at a time, and never surges; of too many, the highest
//! ordinals leave. Volumes are deleted by users only.
//!
//! Instances on nodes that are offline are kept and do not count as ready. Deliberately absent for
//! now: their eviction, with the brake that keeps a mass of lapsed leases from evicting masses.
//! Its place is where [`InstanceHealth::Unknown`] is looked at. Also absent: moving instances to balance.

mod env;
#[cfg(test)]
mod tests;
mod volumes;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use model::instance::InstanceSpec;
use model::{EnvKey, Generation, InstanceId, NodeId, ProcessName, Timestamp, VolumeId};

use crate::cluster_state::{ClusterState, Instance, Rollout, Volume, VolumeKey};
use crate::placement::Placement;
use overlay::address_plan::egress_address;

#[cfg(doc)]
use crate::rollout::{self, InstanceHealth};

/// How long after it was made a failed instance is replaced, in milliseconds. The wait keeps what
/// can never run from being made over and over.
pub const REPLACE_AFTER_MS: u64 = 5 * 60 * 1000;
/// Passes over one env within one plan; each sees what the one before changed.
const MAX_PASSES: u32 = 16;

/// What is to change, and what waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The changes, in order. Empty: nothing is to change.
    pub actions: Vec<Action>,
    /// What waits, and why.
    pub findings: Vec<Finding>,
}

/// One change. Everything in it is chosen; whoever carries it out only obeys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A new volume; the instance that needs it comes next.
    MakeVolume(Box<PlannedVolume>),
    /// A volume that was deleted is gone; nothing more is kept of it.
    DeleteVolume {
        /// The volume.
        id: VolumeId,
    },
    /// A new instance.
    Create(Box<PlacedInstance>),
    /// An instance begins to leave.
    Terminate {
        /// The instance.
        id: InstanceId,
        /// Why, for people.
        reason: String,
    },
    /// An instance is gone; nothing more is kept of it.
    Delete {
        /// The instance.
        id: InstanceId,
    },
    /// A rollout's new state.
    SetRollout {
        /// The env.
        env: EnvKey,
        /// Its rollout from now on.
        rollout: Rollout,
    },
    /// A destroyed env of which nothing is left.
    RemoveEnv {
        /// The env.
        env: EnvKey,
    },
}

/// A new instance and its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedInstance {
    /// Everything its node needs.
    pub spec: InstanceSpec,
    /// Where it runs.
    pub node: NodeId,
    /// When it was planned.
    pub created_at: Timestamp,
}

/// A new volume and its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedVolume {
    /// The volume.
    pub id: VolumeId,
    /// What it belongs to.
    pub key: VolumeKey,
    /// Where its disk will be, for good.
    pub node: NodeId,
    /// Its size, in bytes.
    pub size_bytes: u64,
    /// When it was planned.
    pub created_at: Timestamp,
}

/// What waits, and why.
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

/// What is to change in this cluster state at `now`. `draw` gives random numbers for new ids; ids in use
/// are passed over.
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
    planner.forget_gone();
    planner.forget_volumes();
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

/// Carries one action out on the cluster state; the store does the same on its tables. The generation of
/// the node concerned grows with each Create, Terminate, Delete and DeleteVolume.
pub fn apply(cluster: &mut ClusterState, action: &Action) {
    let touched = match action {
        Action::MakeVolume(planned) => {
            let PlannedVolume {
                id,
                key,
                node,
                size_bytes,
                created_at,
            } = planned.as_ref().clone();
            let volume = Volume {
                key,
                node,
                size_bytes,
                created_at,
                made: false,
                deleting: false,
                deletion_acknowledged: false,
            };
            cluster.volumes.insert(id, volume);
            None
        }
        Action::DeleteVolume { id } => cluster.volumes.remove(id).map(|volume| volume.node),
        Action::Create(placed) => {
            let instance = Instance {
                spec: placed.spec.clone(),
                node: placed.node,
                terminating: false,
                created_at: placed.created_at,
                report: None,
                was_ready: false,
                stop_acknowledged: false,
            };
            cluster.instances.insert(placed.spec.id, instance);
            Some(placed.node)
        }
        Action::Terminate { id, reason: _ } => cluster.instances.get_mut(id).map(|instance| {
            instance.terminating = true;
            instance.node
        }),
        Action::Delete { id } => cluster.instances.remove(id).map(|instance| instance.node),
        Action::SetRollout { env, rollout } => {
            if let Some(env) = cluster.envs.get_mut(env) {
                env.rollout = rollout.clone();
            }
            None
        }
        Action::RemoveEnv { env } => {
            cluster.envs.remove(env);
            None
        }
    };
    if let Some(node) = touched.and_then(|id| cluster.nodes.get_mut(&id)) {
        node.generation = Generation(node.generation.0.saturating_add(1));
    }
}

/// A plan in the making.
struct Planner<'w, 'd> {
    /// The cluster state as given; its nodes do not change while planning.
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
    /// Takes an action into the plan and the working cluster state.
    fn take(&mut self, action: Action) {
        match &action {
            Action::Create(placed) => {
                let env = placed.spec.env_key();
                self.by_env.entry(env).or_default().insert(placed.spec.id);
                if let Some(placement) = &mut self.placement {
                    placement.promise(placed.node, &placed.spec, false);
                }
            }
            Action::Delete { id } => {
                let known = self.working.instances.get(id);
                if let Some(ids) = known.and_then(|i| self.by_env.get_mut(&i.spec.env_key())) {
                    ids.remove(id);
                }
                // What it held is free again.
                self.placement = None;
            }
            Action::Terminate { .. } => self.placement = None,
            Action::MakeVolume(_)
            | Action::DeleteVolume { .. }
            | Action::SetRollout { .. }
            | Action::RemoveEnv { .. } => {}
        }
        apply(self.working.to_mut(), &action);
        self.actions.push(action);
    }

    /// What is promised on the nodes now.
    fn placement(&mut self) -> &mut Placement<'w> {
        let (given, working) = (self.given, &self.working);
        self.placement
            .get_or_insert_with(|| Placement::new(&given.nodes, working.instances.values()))
    }

    /// Instances that are gone: their node said so, or their node was removed.
    fn forget_gone(&mut self) {
        for (id, instance) in &self.given.instances {
            let acknowledged = instance.terminating && instance.stop_acknowledged;
            if acknowledged || !self.given.nodes.contains_key(&instance.node) {
                self.take(Action::Delete { id: *id });
            }
        }
    }

    /// Deleted volumes that are gone: their node said so, or their node was removed.
    fn forget_volumes(&mut self) {
        for (id, volume) in &self.given.volumes {
            let node_is_gone = !self.given.nodes.contains_key(&volume.node);
            if volume.deleting && (volume.deletion_acknowledged || node_is_gone) {
                self.take(Action::DeleteVolume { id: *id });
            }
        }
    }

    /// An id that no volume has.
    fn fresh_volume_id(&mut self) -> VolumeId {
        let mut id = VolumeId((self.draw)());
        while id.0 == 0 || self.working.volumes.contains_key(&id) {
            id = VolumeId(id.0.wrapping_add(1));
        }
        id
    }

    /// An id that no instance has, nor one with the same address for egress.
    fn fresh_id(&mut self) -> InstanceId {
        let same = |a: InstanceId, b: InstanceId| egress_address(a) == egress_address(b);
        let mut id = InstanceId((self.draw)());
        while id.0 == 0 || self.working.instances.keys().any(|other| same(*other, id)) {
            id = InstanceId(id.0.wrapping_add(1));
        }
        id
    }
}
