//! What is to change now: instances created, terminated and deleted, and rollouts.
//!
//! A [`Planner`] keeps what costs too much to work out for each change: which envs are to be looked at, and what is
//! promised on each node. It is told each change ([`Planner::observe`]), which puts the envs concerned into its queue;
//! [`Planner::plan_next`] takes one of them, makes the changes that can be made at once, and keeps a [`Finding`] for
//! everything that waits. An env that waits for time to pass is looked at again when that is due. [`plan`] plans a whole
//! cluster state; planning one to which the plan was applied changes nothing. For each process type of each env:
//!
//! - `n` instances of the wanted release are to be ready ([`rollout::wanted_counts`]).
//! - Where instances of other releases, or terminating ones, serve, at most `n + max_surge` exist at a time.
//!   Terminating instances count, because they hold their memory, but for those on offline nodes. Where nothing serves, all that is
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
//! Instances on nodes that are not heard are kept and do not count as ready. [`LOST_AFTER_MS`] after a node lapsed, others take
//! the place of those that have no volumes; once these are ready, the node is told to stop what it has of them. Where many nodes lapse at
//! once nothing is replaced ([`Placement::too_many_lapsed`]). A server that has just begun to lead knows of no node whether it is there:
//! until a node is heard, or had the time to be, nothing is changed because of it ([`crate::cluster_state::Presence`]).
//!
//! The instances of a node that is drained are replaced as those of an old release are: within `max_surge` and `max_unavailable`. Those
//! with volumes stay, unless the user says that they are to be terminated too.
//!
//! A release with release commands (`deploy.release_command`) is rolled out when each has run, once and to its end, in an instance of its own;
//! until then the env stays at the release before; where that was not rolled out wholly, nothing of it is changed.
//!
//! A command of a user (`platform run`) has an instance of its own, which is placed as all others when it is asked for
//! ([`Planner::run_command`]) and never made again. It is terminated when it has ended, whatever came of it; no rollout and no route counts it.
//!
//! Deliberately absent: moving instances to balance.

#[cfg(test)]
mod bench;
mod command;
#[cfg(test)]
mod command_tests;
mod dry_run;
mod env;
#[cfg(test)]
mod node_tests;
#[cfg(test)]
mod org_tests;
#[cfg(test)]
mod properties;
mod release_command;
#[cfg(test)]
mod release_command_tests;
#[cfg(test)]
mod strategy_tests;
mod task;
#[cfg(test)]
mod tests;
mod view;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};

use api::user::RolloutPhase;
use model::instance::{InstanceState, Runs};
use model::{EnvKey, InstanceId, NodeId, ProcessName, Timestamp, VolumeId};

use crate::action::Action;
use crate::apply::{Command, apply};
use crate::changes::Changes;
use crate::cluster_state::{
    ClusterState, Instance, InstancePhase, Presence, Subject, Volume, VolumePhase,
};
use crate::ended;
pub use crate::placement::LOST_AFTER_MS;
use crate::placement::{Placement, PromisedIndex, Unplaced};
use crate::table::Table;
pub use command::{CommandRefused, KeyedCall, MAX_COMMANDS_OF_ENV, WantedCommand};
pub use dry_run::{DryRun, dry_run};
use overlay::address_plan::egress_address;

#[cfg(doc)]
use crate::rollout::{self, InstanceHealth};

/// How long after it was created a failed instance is replaced, in milliseconds. The wait keeps an instance that can
/// never run from being created over and over.
pub const REPLACE_AFTER_MS: u64 = 5 * 60 * 1000;
/// Passes over one env within one plan; each sees what the one before changed.
const MAX_PASSES: u32 = 16;
/// An env that rolls out is looked at this often, in milliseconds: its deadlines are no changes of the cluster state.
pub const ROLLING_LOOK_MS: u64 = 2_000;
/// An env in which something waits is looked at this often, in milliseconds.
pub const WAITING_LOOK_MS: u64 = 30_000;

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
    let mut working = cluster.clone();
    let mut planner = Planner::new(&working);
    let mut actions: Vec<_> = planner.prune(&mut working, now).actions;
    while let Some(planned) = planner.plan_next(&mut working, now, draw) {
        actions.extend(planned.actions);
    }
    let findings = planner.findings.values().flatten().cloned().collect();
    Plan { actions, findings }
}

/// What was decided of one env, and carried out on the cluster state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Planned {
    /// The env; absent for what is of no env.
    pub env: Option<EnvKey>,
    /// Whether other things wait than before.
    pub is_news: bool,
    /// The actions, in order.
    pub actions: Vec<Action>,
    /// What they changed: what the store writes.
    pub changes: Changes,
}

/// Which envs are to be looked at, what is promised on the nodes, and what waits.
#[derive(Debug, Clone)]
pub struct Planner {
    /// The envs that are to be looked at now.
    queue: BTreeSet<EnvKey>,
    /// When an env is to be looked at although nothing changes, the next first.
    due: BTreeSet<(Timestamp, EnvKey)>,
    /// The same, by env.
    due_of: BTreeMap<EnvKey, Timestamp>,
    /// What waits in each env, and why. Envs in which nothing waits are absent.
    findings: Table<EnvKey, Vec<Finding>>,
    /// The instances that found no node, by env.
    unplaced: BTreeMap<EnvKey, Vec<Unplaced>>,
    /// The envs that cannot be planned, until when they are not planned, and why.
    quarantined: BTreeMap<EnvKey, (Timestamp, String)>,
    /// The env that is being planned, or was last.
    current: Option<EnvKey>,
    /// What is promised on the nodes.
    placement: Placement,
}

impl Planner {
    /// A planner that has looked at nothing of this cluster state: everything is queued.
    pub fn new(cluster: &ClusterState) -> Self {
        let mut queue: BTreeSet<EnvKey> = cluster.envs.keys().cloned().collect();
        queue.extend(cluster.instances.values().map(|i| i.spec.env_key()));
        queue.extend(cluster.volumes.values().map(|v| v.key.env.clone()));
        Self {
            queue,
            due: BTreeSet::new(),
            due_of: BTreeMap::new(),
            findings: Table::new(),
            unplaced: BTreeMap::new(),
            quarantined: BTreeMap::new(),
            current: None,
            placement: Placement::new(cluster),
        }
    }

    /// Queues everything, as after [`Self::new`]; quarantines stay.
    pub fn start_over(&mut self, cluster: &ClusterState) {
        let fresh = Self::new(cluster);
        let quarantined = std::mem::take(&mut self.quarantined);
        *self = Self {
            current: self.current.take(),
            ..fresh
        };
        for (env, (until, cause)) in quarantined {
            self.quarantine(env, cause, until);
        }
    }

    /// Does not plan an env until `until`, because it cannot be planned. The cause is its finding meanwhile.
    pub fn quarantine(&mut self, env: EnvKey, cause: String, until: Timestamp) {
        let finding = Finding {
            env: env.clone(),
            process: None,
            message: format!("it cannot be planned, and is left as it is for now: {cause}"),
        };
        self.findings.insert(env.clone(), vec![finding]);
        self.quarantined.insert(env.clone(), (until, cause));
        self.queue.remove(&env);
        self.look_again(&env, until);
    }

    /// What is promised on the nodes.
    pub fn promised(&self) -> &PromisedIndex {
        self.placement.promised_index()
    }

    /// The env that is being planned, or was last: who is to blame where planning panics.
    pub fn current(&self) -> Option<&EnvKey> {
        self.current.as_ref()
    }

    /// Takes notice of what changed in the cluster state, and queues the envs concerned. `cluster` is the state after.
    pub fn observe(&mut self, cluster: &ClusterState, changes: &Changes) {
        for (id, instance) in &changes.instances {
            if let Some(instance) = instance {
                self.queue.insert(instance.spec.env_key());
            }
            let before = self.placement.env_of(*id).cloned();
            if let Some(node) = self.placement.set_instance(*id, cluster.instances.get(id)) {
                self.queue.extend(before);
                self.queue_unplaced(node);
            }
        }
        for id in changes.nodes.keys() {
            self.observe_node(cluster, *id);
        }
        self.queue.extend(changes.envs.keys().cloned());
        self.queue.extend(changes.deleted_envs.iter().cloned());
        // Nodes of one org take the apps of their owner only.
        for app in changes.access.apps.keys() {
            let from = EnvKey::before_all_of(app);
            let envs = cluster.envs.range(from..).map(|(key, _)| key);
            self.queue
                .extend(envs.take_while(|key| key.app == *app).cloned());
        }
        let volumes = changes.volumes.values().flatten();
        self.queue.extend(volumes.map(|v| v.key.env.clone()));
        for id in changes.volumes.keys() {
            if let Some(node) = self.placement.set_volume(*id, cluster.volumes.get(id)) {
                self.queue_unplaced(node);
            }
        }
        self.queue
            .extend(changes.deleted_secrets.iter().map(|(env, _)| env.clone()));
    }

    /// Whether so many nodes lapsed that nothing is replaced.
    pub(crate) fn is_braked(&self) -> bool {
        self.placement.too_many_lapsed().is_some()
    }

    /// The nodes that lapsed and were not given up before.
    pub(crate) fn lapsed_together(&self) -> &[NodeId] {
        self.placement.lapsed_together()
    }

    /// Takes notice of a node that changed in what decides over placement, or that came or went.
    pub fn observe_node(&mut self, cluster: &ClusterState, id: NodeId) {
        let braked = self.is_braked();
        if self.placement.set_node(id, cluster.nodes.get(&id)) {
            let here = cluster.instances.on_node(id);
            self.queue.extend(here.map(|(_, i)| i.spec.env_key()));
            let volumes = cluster.volumes.on_node(id);
            self.queue.extend(volumes.map(|(_, v)| v.key.env.clone()));
            self.queue_unplaced(id);
        }
        if braked != self.is_braked() {
            self.queue.extend(self.findings.keys().cloned());
        }
    }

    /// Something became free on a node, or the node is another than before: what found no node and may go there is looked at, and
    /// what only may go there, because its volumes are there: with the node they may be gone.
    fn queue_unplaced(&mut self, node: NodeId) {
        let placement = &self.placement;
        let may_go = |one: &Unplaced| one.is_pinned_to(node) || placement.may_take(node, one);
        let fit = |unplaced: &Vec<Unplaced>| unplaced.iter().any(may_go);
        let envs = self.unplaced.iter().filter(|(_, unplaced)| fit(unplaced));
        self.queue.extend(envs.map(|(env, _)| env.clone()));
    }

    /// What waits, by env.
    pub fn findings(&self) -> &Table<EnvKey, Vec<Finding>> {
        &self.findings
    }

    /// When an env is to be looked at next although nothing changes.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Whether [`Self::plan_next`] has something to look at.
    pub fn is_at_rest(&self, now: Timestamp) -> bool {
        self.queue.is_empty() && self.next_due().is_none_or(|at| at > now)
    }

    /// Takes the next env of the queue, or one that is due, decides, and carries out on `cluster` what it decided. `None`:
    /// nothing is to be looked at. An action that `apply` refuses is left out.
    pub fn plan_next(
        &mut self,
        cluster: &mut ClusterState,
        now: Timestamp,
        draw: &mut dyn FnMut() -> u32,
    ) -> Option<Planned> {
        if self.queue.is_empty() {
            while let Some((at, key)) = self.due.first().cloned()
                && at <= now
            {
                self.unschedule(&key);
                self.queue.insert(key);
            }
        }
        let key = loop {
            let key = self.queue.pop_first()?;
            match self.quarantined.get(&key) {
                Some((until, _)) if *until > now => {}
                _ => break key,
            }
        };
        self.quarantined.remove(&key);
        self.unschedule(&key);
        self.current = Some(key.clone());
        let mut pass = Pass {
            working: cluster,
            placement: &mut self.placement,
            now,
            draw,
            last_id: None,
            planned: Planned::default(),
            unplaced: Vec::new(),
            freed: BTreeSet::new(),
        };
        pass.delete_gone(&key);
        let mut findings = Vec::new();
        for _ in 0..MAX_PASSES {
            let before = pass.planned.actions.len();
            pass.unplaced.clear();
            findings = env::pass(&mut pass, &key);
            if pass.planned.actions.len() == before {
                break;
            }
        }
        let (mut planned, unplaced, freed) = (pass.planned, pass.unplaced, pass.freed);
        if unplaced.is_empty() {
            self.unplaced.remove(&key);
        } else {
            self.unplaced.insert(key.clone(), unplaced);
        }
        let rolling = (cluster.envs.get(&key))
            .is_some_and(|env| env.rollout.phase == RolloutPhase::Rolling && !env.destroying);
        let look = if rolling {
            Some(ROLLING_LOOK_MS)
        } else if findings.is_empty() {
            None
        } else {
            Some(WAITING_LOOK_MS)
        };
        let look = look.map(|after| Timestamp(now.0.saturating_add(after)));
        let due = look.into_iter().chain(next_deadline(cluster, &key, now));
        if let Some(at) = due.min() {
            self.look_again(&key, at);
        }
        for node in freed {
            self.queue_unplaced(node);
        }
        let nothing = Vec::new();
        planned.is_news = self.findings.get(&key).unwrap_or(&nothing) != &findings;
        planned.env = Some(key.clone());
        if findings.is_empty() {
            self.findings.remove(&key);
        } else if planned.is_news {
            self.findings.insert(key, findings);
        }
        Some(planned)
    }

    /// Deletes the records of ended instances that are kept no longer.
    pub fn prune(&mut self, cluster: &mut ClusterState, now: Timestamp) -> Planned {
        let mut pass = Pass {
            working: cluster,
            placement: &mut self.placement,
            now,
            draw: &mut || 0,
            last_id: None,
            planned: Planned::default(),
            unplaced: Vec::new(),
            freed: BTreeSet::new(),
        };
        for id in ended::expired(&pass.working.ended, now) {
            pass.take(Action::PruneEnded { id });
        }
        pass.planned
    }

    fn look_again(&mut self, key: &EnvKey, at: Timestamp) {
        self.unschedule(key);
        self.due.insert((at, key.clone()));
        self.due_of.insert(key.clone(), at);
    }

    fn unschedule(&mut self, key: &EnvKey) {
        if let Some(at) = self.due_of.remove(key) {
            self.due.remove(&(at, key.clone()));
        }
    }
}

/// When time alone makes something of an env's instances to be done, the next of it.
fn next_deadline(cluster: &ClusterState, key: &EnvKey, now: Timestamp) -> Option<Timestamp> {
    let instances = cluster.instances.of_env(key).map(|(_, instance)| instance);
    let staying = instances.filter(|instance| !instance.is_terminating());
    let at = staying.flat_map(|instance| {
        let replaced_at = replaced_at(cluster, instance, now).into_iter();
        let ends_at = match instance.spec.runs {
            Runs::Command { ends_at, .. } => Some(ends_at),
            Runs::App | Runs::ReleaseCommand => None,
        };
        (replaced_at.chain(lost_at(cluster, instance))).chain(ends_at)
    });
    at.filter(|at| *at > now).min()
}

/// When an instance has failed for long enough to be replaced.
fn replaced_at(cluster: &ClusterState, instance: &Instance, now: Timestamp) -> Option<Timestamp> {
    let report = instance.report.as_ref()?;
    if report.state != InstanceState::Failed {
        return None;
    }
    let from = cluster.heard_from(instance.node, instance.created_at, now)?;
    Some(Timestamp(from.0.saturating_add(REPLACE_AFTER_MS)))
}

/// When others take the place of an instance, because its node lapsed. Never for one with volumes.
fn lost_at(cluster: &ClusterState, instance: &Instance) -> Option<Timestamp> {
    if !instance.spec.volumes.is_empty() {
        return None;
    }
    match cluster.nodes.get(&instance.node)?.presence {
        Presence::Lapsed { since } => Some(Timestamp(since.0.saturating_add(LOST_AFTER_MS))),
        Presence::Heard { .. } | Presence::NotHeardYet => None,
    }
}

/// One env, looked at once.
struct Pass<'w, 'd> {
    /// The cluster state with the actions so far. Planning changes nodes in their generations only. No copy of the state is held
    /// meanwhile: what a copy shares is copied when it changes.
    working: &'w mut ClusterState,
    /// What is promised on the nodes, as in `working`.
    placement: &'w mut Placement,
    now: Timestamp,
    draw: &'d mut dyn FnMut() -> u32,
    /// The instance that was created last.
    last_id: Option<InstanceId>,
    planned: Planned,
    /// The instances that found no node, in this look at the env.
    unplaced: Vec<Unplaced>,
    /// The nodes on which something became free.
    freed: BTreeSet<NodeId>,
}

impl Pass<'_, '_> {
    /// Carries an action out. One that does not fit is dropped: the plan holds nothing that [`apply`] refuses.
    fn take(&mut self, action: Action) {
        let command = Command::Plan(action);
        let changes = match apply(self.working, &command) {
            Ok(changes) => changes,
            Err(refused) => {
                debug_assert!(false, "{refused}: {command:?}");
                return;
            }
        };
        for id in changes.instances.keys() {
            let instance = self.working.instances.get(id);
            self.freed
                .extend(self.placement.set_instance(*id, instance));
        }
        for id in changes.volumes.keys() {
            let volume = self.working.volumes.get(id);
            self.freed.extend(self.placement.set_volume(*id, volume));
        }
        self.planned.changes.then(changes);
        if let Command::Plan(action) = command {
            self.planned.actions.push(action);
        }
    }

    /// Instances and volumes of the env that are gone: their node said so, or their node was removed.
    fn delete_gone(&mut self, key: &EnvKey) {
        let cluster = &*self.working;
        let is_gone = |instance: &Instance| {
            matches!(instance.phase, InstancePhase::Gone { .. }) || !cluster.has_node(instance.node)
        };
        let instances = cluster.instances.of_env(key);
        let instances: Vec<_> = (instances.filter(|(_, instance)| is_gone(instance)))
            .map(|(id, _)| id)
            .collect();
        let is_gone = |volume: &Volume| {
            volume.phase == VolumePhase::Deleted
                || (volume.is_deleting() && !cluster.has_node(volume.node))
        };
        let volumes = cluster.volumes.of_env(key);
        let volumes: Vec<_> = (volumes.filter(|(_, volume)| is_gone(volume)))
            .map(|(id, _)| id)
            .collect();
        let at = self.now;
        for id in instances {
            self.take(Action::Delete { id, at });
        }
        for id in volumes {
            self.take(Action::DeleteVolume { id });
        }
    }

    /// An id that no volume has.
    fn fresh_volume_id(&mut self) -> VolumeId {
        let unreadable = &self.working.unreadable;
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

    /// An id that no instance has, nor one with the same address for egress, and that no ended instance had. The first of a plan is
    /// drawn; the others follow it, so that instances which are created together lie together in every map that is ordered by id.
    fn fresh_id(&mut self) -> InstanceId {
        let same = |a: InstanceId, b: InstanceId| egress_address(a) == egress_address(b);
        let mut id = match self.last_id {
            Some(last) => InstanceId(last.0.wrapping_add(1)),
            None => InstanceId((self.draw)()),
        };
        let taken = |id: InstanceId| {
            self.working.ended.contains_key(&id)
                || self.working.instances.has_egress_address_of(id)
                || (self.working.unreadable_instances()).any(|(other, _)| same(other, id))
        };
        while id.0 == 0 || taken(id) {
            id = InstanceId(id.0.wrapping_add(1));
        }
        self.last_id = Some(id);
        id
    }
}
