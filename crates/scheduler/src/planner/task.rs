//! One process type of one env: which of its instances are terminated and created now.

// ring: a task changes what the pass holds that made it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use api::user::RolloutPhase;
use manifest::Strategy;
use model::instance::Runs;
use model::{EnvKey, InstanceId, ProcessName, VolumeId};
use overlay::address_plan::instance_address;

use super::Pass;
use super::view::{Goal, InstanceView, deploy_of, liveness_failure, terminate};
use crate::action::{Action, PlacedInstance};
use crate::cluster_state::{Env, Release, Rollout, Volume, VolumeKey};
use crate::node_protocol::NeededProtocol;
use crate::placement::{Demand, PlacementError, Resources, Unplaced};
use crate::release::{Identity, ReleaseError, instance_spec};
use crate::rollout::READY_DEADLINE_MS;

/// The volumes of one ordinal that there are, by name.
pub(super) type KnownVolumes = BTreeMap<String, (VolumeId, Volume)>;

/// Why a wanted instance cannot be created now.
#[derive(Debug, thiserror::Error)]
pub(super) enum Blocked {
    #[error(transparent)]
    PlacementError(#[from] PlacementError),
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// Each of its volumes has another instance until that is gone.
    #[error("volume {volume} is held by instance {instance} until that is gone: {why}")]
    CountedAs {
        volume: String,
        instance: InstanceId,
        why: &'static str,
    },
    /// A volume that it would get is being deleted.
    #[error("volume {0} is being deleted")]
    Deleting(VolumeKey),
}

/// One process type of one env, and its goal.
pub(super) struct Task<'a> {
    pub(super) key: &'a EnvKey,
    pub(super) env: &'a Env,
    pub(super) release: &'a Release,
    pub(super) rollout: &'a Rollout,
    pub(super) goal: Goal,
    pub(super) process: &'a ProcessName,
    pub(super) wanted: usize,
}

impl Task<'_> {
    /// Terminates and creates the instances that can be now.
    pub(super) fn advance(
        &self,
        planner: &mut Pass<'_, '_>,
        views: &[&InstanceView],
    ) -> Result<(), Blocked> {
        let rolling = self.rollout.phase == RolloutPhase::Rolling;
        let (mut mine, mut old, mut going) = (Vec::new(), Vec::new(), Vec::new());
        let mut lost = Vec::new();
        for view in views.iter().copied() {
            if view.terminating {
                going.push(view);
            } else if view.lost && self.goal.keeps(view) {
                lost.push(view);
            } else if view.evicted && (view.ordinal.is_some() || view.is_expendable()) {
                // One with volumes cannot be replaced before it is gone, nor elsewhere.
                let reason = planner.evicted_because(view);
                terminate(planner, view, reason);
                going.push(view);
            } else if view.evicted {
                old.push(view);
            } else if self.goal.keeps(view) {
                if !rolling && planner.is_due_for_replacement(view) {
                    terminate(planner, view, "it failed; another is made".to_owned());
                    going.push(view);
                } else {
                    mine.push(view);
                }
            } else if view.is_expendable() {
                let reason = format!("never served, and {} is wanted", self.goal.make);
                terminate(planner, view, reason);
                going.push(view);
            } else {
                old.push(view);
            }
        }
        // The last of this order stay; an instance with an ordinal past the last wanted one is terminated in any case.
        mine.sort_by_key(|view| (Reverse(view.ordinal), view.termination_order()));
        let past_the_last =
            |view: &&InstanceView| view.ordinal.is_some_and(|n| n as usize >= self.wanted);
        let past = mine.iter().take_while(|view| past_the_last(view)).count();
        let too_many = past.max(mine.len().saturating_sub(self.wanted));
        for view in mine.drain(..too_many) {
            terminate(
                planner,
                view,
                format!("more than the {} wanted", self.wanted),
            );
            going.push(view);
        }
        if !rolling {
            self.replace_a_dead_one(planner, &mut mine, &mut going);
        }
        // Others have taken their place: when their node is heard again, it stops them.
        if mine.len() >= self.wanted && mine.iter().all(|view| view.settled) {
            for view in lost {
                let node = planner.node_name(view.node);
                let reason = format!("others took its place: {node} is not heard any more");
                terminate(planner, view, reason);
            }
        }
        self.scale_down_old(planner, &mine, &mut old, &mut going);
        self.make_missing(planner, &mine, &old, &going)
    }

    /// Terminates one instance whose liveness check fails: one at a time, and only while no other of its process type starts or stops. What
    /// makes all of them fail would end all of them at once.
    fn replace_a_dead_one<'s>(
        &self,
        planner: &mut Pass<'_, '_>,
        mine: &mut Vec<&'s InstanceView>,
        going: &mut Vec<&'s InstanceView>,
    ) {
        let is_quiet = mine.len() >= self.wanted
            && mine.iter().all(|view| view.settled || view.dead)
            && going.iter().all(|view| view.lapsed);
        let oldest = mine.iter().enumerate().filter(|(_, view)| view.dead);
        let oldest = oldest.min_by_key(|(_, view)| (view.created_at, view.id));
        if let Some((at, view)) = oldest.filter(|_| is_quiet) {
            let instance = planner.working.instances.get(&view.id);
            let why = instance.and_then(liveness_failure).unwrap_or_default();
            let reason = format!("{why}; another is made");
            terminate(planner, view, reason);
            going.push(mine.remove(at));
        }
    }

    /// Terminates old instances, as far as enough are ready without them.
    fn scale_down_old<'s>(
        &self,
        planner: &mut Pass<'_, '_>,
        mine: &[&'s InstanceView],
        old: &mut Vec<&'s InstanceView>,
        going: &mut Vec<&'s InstanceView>,
    ) {
        if self.leaves_the_old(mine) {
            return;
        }
        let least = self.wanted.saturating_sub(self.max_unavailable());
        let healthy_of = |views: &[&InstanceView]| views.iter().filter(|s| s.settled).count();
        let new_healthy = healthy_of(mine);
        let mut may_go =
            (mine.len() + old.len()).saturating_sub(least + (mine.len() - new_healthy));
        let mut healthy_may_go = (new_healthy + healthy_of(old)).saturating_sub(least);
        old.sort_by_key(|view| view.termination_order());
        old.retain(|view| {
            let is_healthy = view.settled;
            if may_go == 0 || (is_healthy && healthy_may_go == 0) {
                return true;
            }
            may_go -= 1;
            healthy_may_go -= usize::from(is_healthy);
            let reason = if view.evicted {
                planner.evicted_because(view)
            } else {
                format!("{} replaces it", self.goal.make)
            };
            terminate(planner, view, reason);
            going.push(view);
            false
        });
    }

    /// Creates missing instances, as far as the surge allows and nodes have room.
    fn make_missing(
        &self,
        planner: &mut Pass<'_, '_>,
        mine: &[&InstanceView],
        old: &[&InstanceView],
        going: &[&InstanceView],
    ) -> Result<(), Blocked> {
        let mut missing = self.wanted.saturating_sub(mine.len());
        if self.strategy() == Strategy::Canary && !old.is_empty() && self.leaves_the_old(mine) {
            missing = missing.min(1_usize.saturating_sub(mine.len()));
        }
        // An offline node may never say that an instance is gone: the others do not wait for it.
        let going = || going.iter().filter(|view| !view.lapsed);
        let others_serve = !old.is_empty() || going().any(|view| view.was_ready);
        // These make their new instances beside whatever there is.
        let is_beside = match self.strategy() {
            Strategy::Canary => self.leaves_the_old(mine),
            Strategy::BlueGreen => true,
            Strategy::Rolling | Strategy::Immediate => false,
        };
        let may_come = if others_serve && !is_beside {
            let exist = mine.len() + old.len() + going().count();
            (self.wanted + self.max_surge()).saturating_sub(exist)
        } else {
            missing
        };
        let missing = missing.min(may_come);
        if !self.is_numbered() {
            return (0..missing).try_for_each(|_| self.make_one(planner, (Runs::App, None), None));
        }
        // An instance on an offline node holds its ordinal too.
        let holders = self.holders(planner);
        let mut volumes = self.volumes_by_ordinal(planner);
        let ordinals = (0..).take(self.wanted);
        let mut free = ordinals.filter(|ordinal| !holders.contains_key(ordinal));
        for _ in 0..missing {
            let Some(ordinal) = free.next() else {
                return self.wait_for_a_holder(planner, &holders);
            };
            let known = volumes.remove(&ordinal).unwrap_or_default();
            self.make_one(planner, (Runs::App, None), Some((ordinal, known)))?;
        }
        Ok(())
    }

    /// Creates one instance, on a node that has room for it: that of the volumes which its ordinal has. `command` is that of a user.
    pub(super) fn make_one(
        &self,
        planner: &mut Pass<'_, '_>,
        (runs, command): (Runs, Option<&[String]>),
        numbered: Option<(u32, KnownVolumes)>,
    ) -> Result<(), Blocked> {
        let (ordinal, known) = numbered.unzip();
        let known = known.unwrap_or_default();
        let images = self.release.images_of(self.process);
        let archs: Vec<&str> = images.keys().map(String::as_str).collect();
        let Some(process) = self.release.manifest.processes.get(self.process) else {
            return Ok(());
        };
        if let Some((_, volume)) = known.values().find(|(_, volume)| volume.is_deleting()) {
            return Err(Blocked::Deleting(volume.key.clone()));
        }
        let first = known.iter().next();
        let pinned = first.map(|(name, (_, volume))| (volume.node, name.as_str()));
        // Volumes that there are hold their disk already.
        let volumes = process.volumes.iter();
        let new_volumes =
            volumes.filter(|volume| runs.is_app() && !known.contains_key(&volume.name));
        let needs = Resources {
            cpu_millis: u64::from(process.resources.cpu_millis),
            memory_bytes: process.resources.memory_bytes,
            disk_bytes: new_volumes.fold(process.resources.scratch_bytes, |bytes, volume| {
                bytes.saturating_add(volume.size_bytes)
            }),
        };
        let owner = planner.working.access.owner(&self.key.app).cloned();
        let demand = Demand {
            env: self.key,
            process: self.process,
            org: owner.as_ref(),
            needs,
            archs: &archs,
            region: process.region.as_deref(),
            labels: &process.labels,
            protocol: NeededProtocol::of(process.egress, runs),
            pinned,
        };
        let node = planner.placement.choose(&demand).inspect_err(|_| {
            planner.unplaced.push(Unplaced::of(&demand));
        })?;
        let volumes = ordinal.map_or_else(Vec::new, |ordinal| {
            self.attach_volumes(planner, ordinal, node, &known)
        });
        let id = planner.fresh_id();
        let prefix = planner.working.settings.prefix;
        let arch = planner.working.nodes.get(&node);
        let arch = arch.map_or("", |node| node.hardware.arch.as_str());
        let who = Identity {
            id,
            env: self.key,
            process: self.process,
            release: self.goal.make,
            runs,
            command,
            address: instance_address(prefix, node, self.env.network, id),
            arch,
            volumes: &volumes,
        };
        let spec = Arc::new(instance_spec(&who, self.release)?);
        let created_at = planner.now;
        planner.take(Action::Create(Box::new(PlacedInstance {
            spec,
            node,
            created_at,
        })));
        Ok(())
    }

    /// Whether a rollout that cannot make an instance has waited long enough.
    pub(super) fn is_too_late(&self, blocked: &Blocked, planner: &Pass<'_, '_>) -> bool {
        match blocked {
            // Only another release helps.
            Blocked::Release(_) => true,
            // A volume comes free when its node says so: not the fault of the release.
            Blocked::CountedAs { .. } | Blocked::Deleting(_) => false,
            Blocked::PlacementError(error) if !error.is_the_fault_of_the_release() => false,
            Blocked::PlacementError(_) => {
                let deploy = deploy_of(self.env, self.goal.make, self.process);
                let given = deploy.and_then(|deploy| deploy.deadline_ms);
                let progressed_at = planner.progressed_at(self.key, self.rollout);
                planner.working.led_for(progressed_at, planner.now)
                    >= given.unwrap_or(READY_DEADLINE_MS)
            }
        }
    }

    /// How instances replace others: outside of a rollout some at a time.
    fn strategy(&self) -> Strategy {
        let process = self.release.manifest.processes.get(self.process);
        match (self.rollout.phase, process) {
            (RolloutPhase::Rolling, Some(process)) => process.deploy.strategy,
            _ => Strategy::Rolling,
        }
    }

    /// Whether no old instance is terminated yet.
    fn leaves_the_old(&self, mine: &[&InstanceView]) -> bool {
        let mut settled = mine.iter().map(|view| view.settled);
        match self.strategy() {
            Strategy::Rolling | Strategy::Immediate => false,
            Strategy::Canary => self.wanted > 0 && !settled.any(|settled| settled),
            Strategy::BlueGreen => mine.len() < self.wanted || !settled.all(|settled| settled),
        }
    }

    /// An instance with volumes stops before its successor starts: at least one is then unavailable.
    fn max_unavailable(&self) -> usize {
        if self.strategy() == Strategy::Immediate {
            return self.wanted;
        }
        let process = self.release.manifest.processes.get(self.process);
        let unavailable = process.map_or(0, |p| p.deploy.max_unavailable as usize);
        unavailable.max(usize::from(self.is_numbered()))
    }

    /// With neither surge nor unavailability no rollout could proceed: a surge of one is then allowed.
    fn max_surge(&self) -> usize {
        if self.is_numbered() {
            return 0;
        }
        match self.strategy() {
            Strategy::Rolling | Strategy::Canary => {}
            Strategy::Immediate | Strategy::BlueGreen => return self.wanted,
        }
        let process = self.release.manifest.processes.get(self.process);
        let surge = process.map_or(0, |p| p.deploy.max_surge as usize);
        surge.max(usize::from(self.max_unavailable() == 0))
    }
}
