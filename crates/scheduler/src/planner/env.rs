//! One pass over one env: the changes that can be made at once.

// ring: a pass over one env reads and changes what the planner holds, and the planner makes one pass after the other.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use api::user::RolloutPhase;
use model::instance::InstanceState;
use model::{EnvKey, InstanceId, NodeId, ProcessName, ReleaseNumber, Timestamp};

use super::{Finding, Pass, REPLACE_AFTER_MS};
use crate::action::{Action, PlacedInstance};
use crate::cluster_state::{Env, Release, Rollout, VolumeKey};
use crate::placement::{Demand, PlacementError, Resources};
use crate::release::{Identity, ReleaseError, instance_spec, is_as_in};
use crate::rollout::{self, InstanceHealth, READY_DEADLINE_MS};
use overlay::address_plan::instance_address;

/// One instance, as far as a decision needs it.
#[derive(Debug, Clone)]
struct InstanceView {
    id: InstanceId,
    node: NodeId,
    process: ProcessName,
    /// The release that it is of: the one that made it, or the wanted one where that would make it the same.
    release: ReleaseNumber,
    /// The release that made it.
    made_by: ReleaseNumber,
    /// Which of its process type's volumes it holds.
    ordinal: Option<u32>,
    health: InstanceHealth,
    online: bool,
    terminating: bool,
    was_ready: bool,
    created_at: Timestamp,
}

impl InstanceView {
    /// Whether an instance of another release can be terminated at once: it serves nobody and never did.
    fn is_expendable(&self) -> bool {
        match self.health {
            InstanceHealth::Terminated => true,
            InstanceHealth::Pending | InstanceHealth::CrashLoop => !self.was_ready,
            InstanceHealth::Ready | InstanceHealth::Completed | InstanceHealth::Unknown => false,
        }
    }

    /// The order in which too many are terminated: not ready before ready, then the newest.
    fn termination_order(&self) -> (u8, Reverse<Timestamp>, Reverse<InstanceId>) {
        let rank = match self.health {
            InstanceHealth::Terminated => 0,
            InstanceHealth::CrashLoop => 1,
            InstanceHealth::Pending => 2,
            InstanceHealth::Unknown => 3,
            InstanceHealth::Completed | InstanceHealth::Ready => 4,
        };
        (rank, Reverse(self.created_at), Reverse(self.id))
    }
}

/// What the instances of an env are to be.
#[derive(Debug, Clone, Copy)]
struct Goal {
    /// The release that new instances are of.
    make: ReleaseNumber,
    /// A failed release whose ready instances stay nevertheless (`auto_revert = false`).
    halted: Option<ReleaseNumber>,
}

impl Goal {
    fn keeps(self, view: &InstanceView) -> bool {
        view.release == self.make
            || (self.halted == Some(view.release)
                && (view.health.is_healthy() || view.health == InstanceHealth::Unknown))
    }
}

/// Makes the changes that can be made at once; returns the findings.
pub(super) fn pass(planner: &mut Pass<'_, '_>, key: &EnvKey) -> Vec<Finding> {
    let given = planner.given.clone();
    let (Some(env), Some(working)) = (given.envs.get(key), planner.working.envs.get(key)) else {
        return Vec::new();
    };
    // Planning changes nothing else of an env.
    let rollout = working.rollout.clone();
    let views = views(planner, key, env, &rollout);
    if let Some(record) = given.frozen_by(key) {
        return vec![Finding {
            env: key.clone(),
            process: None,
            message: format!("nothing of it is changed: {record}"),
        }];
    }
    if env.destroying {
        return destroy(planner, key, &views);
    }
    let mut findings = unhealthy(planner, key, &views, rollout.phase);

    if rollout.phase == RolloutPhase::Rolling
        && let Some(next) = evaluate(planner, env, &rollout, &views)
    {
        set_rollout(planner, key, next);
        return findings;
    }
    let goal = match (rollout.phase, rollout::serving_before(env, &rollout)) {
        (RolloutPhase::Failed, None) => {
            for view in views.iter().filter(|view| !view.terminating) {
                let reason = format!(
                    "{} failed, and there is no release to go back to",
                    rollout.release
                );
                terminate(planner, view, reason);
            }
            return findings;
        }
        (RolloutPhase::Failed, Some(previous)) => Goal {
            make: previous,
            halted: Some(rollout.release),
        },
        _ => Goal {
            make: rollout.wanted,
            halted: None,
        },
    };
    let Some(release) = env.releases.get(&goal.make) else {
        findings.push(Finding {
            env: key.clone(),
            process: None,
            message: format!("release {} is not known: nothing is changed", goal.make),
        });
        return findings;
    };

    let counts = rollout::wanted_counts(env, goal.make);
    let mut blocked = Vec::new();
    for (process, wanted) in &counts {
        let task = Task {
            key,
            env,
            release,
            rollout: &rollout,
            goal,
            process,
            wanted: *wanted as usize,
        };
        let mine: Vec<&InstanceView> = views.iter().filter(|s| s.process == *process).collect();
        if let Err(why) = task.advance(planner, &mine) {
            let message = why.to_string();
            if rollout.phase == RolloutPhase::Rolling && task.is_too_late(&why, planner) {
                let reason = format!("there is no instance of {process}: {message}");
                let next = rollout::after_failure(env, &rollout, process, reason);
                set_rollout(planner, key, next);
                return findings;
            }
            blocked.push(Finding {
                env: key.clone(),
                process: Some(process.clone()),
                message,
            });
        }
    }
    drop_processes(planner, &counts, goal, &rollout, &views);

    if rollout.phase == RolloutPhase::Rolling {
        let waits = blocked.iter().map(|f| match &f.process {
            Some(process) => format!("{process}: {}", f.message),
            None => f.message.clone(),
        });
        let reason = waits.collect::<Vec<_>>().join("; ");
        if reason != rollout.reason {
            set_rollout(planner, key, Rollout { reason, ..rollout });
        }
    }
    findings.append(&mut blocked);
    findings
}

fn views(planner: &Pass<'_, '_>, key: &EnvKey, env: &Env, rollout: &Rollout) -> Vec<InstanceView> {
    // What is wanted comes first: after a revert the release before, after a failure without one too.
    let before = match rollout.phase {
        RolloutPhase::Failed => rollout::serving_before(env, rollout),
        _ => None,
    };
    let wanted = [before, Some(rollout.wanted), Some(rollout.release)];
    let wanted = wanted.into_iter().flatten();
    let wanted = wanted.filter_map(|number| Some((number, env.releases.get(&number)?)));
    let wanted: Vec<_> = wanted.collect();
    let instances = planner.working.instances.of_env(key);
    instances
        .map(|(_, instance)| {
            let online = planner.is_online(instance.node);
            let spec = &instance.spec;
            let arch = planner.arch_of(instance.node);
            let same = wanted
                .iter()
                .find(|(number, release)| is_as_in(spec, *number, release, &arch));
            InstanceView {
                id: instance.spec.id,
                node: instance.node,
                process: instance.spec.process.clone(),
                release: same.map_or(spec.release, |(number, _)| *number),
                made_by: spec.release,
                ordinal: instance.spec.ordinal(),
                health: InstanceHealth::of(instance, online),
                online,
                terminating: instance.is_terminating(),
                was_ready: instance.was_ready(),
                created_at: instance.created_at,
            }
        })
        .collect()
}

fn terminate(planner: &mut Pass<'_, '_>, view: &InstanceView, reason: String) {
    planner.take(Action::Terminate {
        id: view.id,
        reason,
    });
}

fn set_rollout(planner: &mut Pass<'_, '_>, key: &EnvKey, rollout: Rollout) {
    planner.take(Action::SetRollout {
        env: key.clone(),
        rollout,
    });
}

/// All instances are terminated; the env is removed when the last is gone.
fn destroy(planner: &mut Pass<'_, '_>, key: &EnvKey, views: &[InstanceView]) -> Vec<Finding> {
    if views.is_empty() {
        planner.take(Action::RemoveEnv { env: key.clone() });
        return Vec::new();
    }
    for view in views.iter().filter(|view| !view.terminating) {
        terminate(planner, view, "its env is destroyed".to_owned());
    }
    let waits = views.iter().map(|view| {
        let node = planner.node_name(view.node);
        let why = if view.online {
            "stopping"
        } else {
            "its node is offline"
        };
        Finding {
            env: key.clone(),
            process: Some(view.process.clone()),
            message: format!("instance {} on {node} is not gone yet: {why}", view.id),
        }
    });
    waits.collect()
}

/// The findings about instances that are wanted and do not do their work.
fn unhealthy(
    planner: &Pass<'_, '_>,
    key: &EnvKey,
    views: &[InstanceView],
    phase: RolloutPhase,
) -> Vec<Finding> {
    let staying = views.iter().filter(|view| !view.terminating);
    let said = staying.filter_map(|view| {
        let what = match view.health {
            InstanceHealth::Unknown => planner.unknown_because(view.id),
            InstanceHealth::Terminated | InstanceHealth::CrashLoop | InstanceHealth::Pending => {
                planner.last_report(view.id, phase)
            }
            InstanceHealth::Ready | InstanceHealth::Completed => return None,
        };
        let node = planner.node_name(view.node);
        Some(Finding {
            env: key.clone(),
            process: Some(view.process.clone()),
            message: format!("instance {} of {} on {node}: {what}", view.id, view.made_by),
        })
    });
    said.collect()
}

/// The next state of a rollout that has failed or is done.
fn evaluate(
    planner: &Pass<'_, '_>,
    env: &Env,
    rollout: &Rollout,
    views: &[InstanceView],
) -> Option<Rollout> {
    let is_new = |view: &&InstanceView| view.release == rollout.release && !view.terminating;
    // What the release has not touched does not fail it.
    let touched = views
        .iter()
        .filter(|view| is_new(view) && view.made_by == rollout.release);
    for view in touched {
        let instance = planner.working.instances.get(&view.id)?;
        let node = planner.node_name(view.node);
        if let Some(reason) = rollout::failure(instance, view.health, node, planner.now) {
            return Some(rollout::after_failure(env, rollout, &view.process, reason));
        }
    }
    // A terminating instance on an offline node may take long to go: the rollout does not wait for it.
    let old_left = views
        .iter()
        .any(|view| view.release != rollout.release && (!view.terminating || view.online));
    let counts = rollout::wanted_counts(env, rollout.release);
    let all_healthy = counts.iter().all(|(process, wanted)| {
        let mine = views
            .iter()
            .filter(is_new)
            .filter(|s| s.process == *process);
        let (all, healthy) = mine.fold((0, 0), |(all, healthy), view| {
            let is_untouched = view.made_by != rollout.release;
            let counts = view.health.is_healthy() || is_untouched;
            (all + 1, healthy + u32::from(counts))
        });
        all == *wanted && healthy == *wanted
    });
    (!old_left && all_healthy && env.releases.contains_key(&rollout.release)).then(|| Rollout {
        phase: RolloutPhase::Done,
        reason: String::new(),
        ..rollout.clone()
    })
}

/// Terminates the instances of process types that the wanted release does not have: when all else is healthy, so that a
/// revert finds them; those of a release that failed at once.
fn drop_processes(
    planner: &mut Pass<'_, '_>,
    counts: &BTreeMap<ProcessName, u32>,
    goal: Goal,
    rollout: &Rollout,
    views: &[InstanceView],
) {
    let settled = counts.iter().all(|(process, wanted)| {
        let healthy = views
            .iter()
            .filter(|s| !s.terminating && s.process == *process && s.release == goal.make)
            .filter(|s| s.health.is_healthy());
        healthy.count() >= *wanted as usize
    });
    let dropped = |view: &&InstanceView| !view.terminating && !counts.contains_key(&view.process);
    for view in views.iter().filter(dropped) {
        let failed = rollout.phase != RolloutPhase::Rolling && view.release == rollout.release;
        if settled || failed {
            let reason = format!("release {} has no process {}", goal.make, view.process);
            terminate(planner, view, reason);
        }
    }
}

/// Why a wanted instance cannot be created now.
#[derive(Debug, thiserror::Error)]
pub(super) enum Blocked {
    #[error(transparent)]
    PlacementError(#[from] PlacementError),
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// Each of its volumes has another instance until that is gone.
    #[error("volume {volume} is held by instance {instance} until that is gone: {why}")]
    Held {
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
    env: &'a Env,
    pub(super) release: &'a Release,
    rollout: &'a Rollout,
    goal: Goal,
    pub(super) process: &'a ProcessName,
    pub(super) wanted: usize,
}

impl Task<'_> {
    /// Terminates and creates the instances that can be now.
    fn advance(&self, planner: &mut Pass<'_, '_>, views: &[&InstanceView]) -> Result<(), Blocked> {
        let rolling = self.rollout.phase == RolloutPhase::Rolling;
        let (mut mine, mut old, mut going) = (Vec::new(), Vec::new(), Vec::new());
        for view in views.iter().copied() {
            if view.terminating {
                going.push(view);
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
        self.scale_down_old(planner, &mine, &mut old, &mut going);
        self.make_missing(planner, &mine, &old, &going)
    }

    /// Terminates old instances, as far as enough are ready without them.
    fn scale_down_old<'s>(
        &self,
        planner: &mut Pass<'_, '_>,
        mine: &[&'s InstanceView],
        old: &mut Vec<&'s InstanceView>,
        going: &mut Vec<&'s InstanceView>,
    ) {
        let least = self.wanted.saturating_sub(self.max_unavailable());
        let healthy_of =
            |views: &[&InstanceView]| views.iter().filter(|s| s.health.is_healthy()).count();
        let new_healthy = healthy_of(mine);
        let mut may_go =
            (mine.len() + old.len()).saturating_sub(least + (mine.len() - new_healthy));
        let mut healthy_may_go = (new_healthy + healthy_of(old)).saturating_sub(least);
        old.sort_by_key(|view| view.termination_order());
        old.retain(|view| {
            let is_healthy = view.health.is_healthy();
            if may_go == 0 || (is_healthy && healthy_may_go == 0) {
                return true;
            }
            may_go -= 1;
            healthy_may_go -= usize::from(is_healthy);
            terminate(planner, view, format!("{} replaces it", self.goal.make));
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
        let missing = self.wanted.saturating_sub(mine.len());
        // An offline node may never say that an instance is gone: the others do not wait for it.
        let going = || going.iter().filter(|view| view.online);
        let others_serve = !old.is_empty() || going().any(|view| view.was_ready);
        let may_come = if others_serve {
            let exist = mine.len() + old.len() + going().count();
            (self.wanted + self.max_surge()).saturating_sub(exist)
        } else {
            missing
        };
        let mut ordinals = (0..).take(self.wanted);
        for _ in 0..missing.min(may_come) {
            if !self.is_numbered() {
                self.make_one(planner, None)?;
                continue;
            }
            // An instance on an offline node holds its ordinal too.
            let free = ordinals.find(|ordinal| self.holder_of(planner, *ordinal).is_none());
            match free {
                Some(ordinal) => self.make_one(planner, Some(ordinal))?,
                None => return self.wait_for_a_holder(planner),
            }
        }
        Ok(())
    }

    fn make_one(&self, planner: &mut Pass<'_, '_>, ordinal: Option<u32>) -> Result<(), Blocked> {
        let images = self.release.images_of(self.process);
        let archs: Vec<&str> = images.keys().map(String::as_str).collect();
        let Some(process) = self.release.manifest.processes.get(self.process) else {
            return Ok(());
        };
        let known = ordinal.map_or_else(BTreeMap::new, |n| self.volumes_of(planner, n));
        if let Some((_, volume)) = known.values().find(|(_, volume)| volume.is_deleting()) {
            return Err(Blocked::Deleting(volume.key.clone()));
        }
        let first = known.iter().next();
        let pinned = first.map(|(name, (_, volume))| (volume.node, name.as_str()));
        // Volumes that there are hold their disk already.
        let volumes = process.volumes.iter();
        let new_volumes = volumes.filter(|volume| !known.contains_key(&volume.name));
        let needs = Resources {
            cpu_millis: u64::from(process.resources.cpu_millis),
            memory_bytes: process.resources.memory_bytes,
            disk_bytes: new_volumes.fold(process.resources.scratch_bytes, |bytes, volume| {
                bytes.saturating_add(volume.size_bytes)
            }),
        };
        let node = planner.placement.choose(&Demand {
            env: self.key,
            process: self.process,
            needs,
            archs: &archs,
            pinned,
        })?;
        let arch = planner.arch_of(node);
        let volumes = ordinal.map_or_else(Vec::new, |ordinal| {
            self.attach_volumes(planner, ordinal, node, &known)
        });
        let id = planner.fresh_id();
        let prefix = planner.given.settings.prefix;
        let who = Identity {
            id,
            env: self.key,
            process: self.process,
            release: self.goal.make,
            address: instance_address(prefix, node, self.env.network, id),
            arch: &arch,
            volumes: &volumes,
        };
        let spec = instance_spec(&who, self.release)?;
        let created_at = planner.now;
        planner.take(Action::Create(Box::new(PlacedInstance {
            spec,
            node,
            created_at,
        })));
        Ok(())
    }

    /// Whether a rollout that cannot make an instance has waited long enough.
    fn is_too_late(&self, blocked: &Blocked, planner: &Pass<'_, '_>) -> bool {
        match blocked {
            // Only another release helps.
            Blocked::Release(_) => true,
            // A volume comes free when its node says so: not the fault of the release.
            Blocked::Held { .. } | Blocked::Deleting(_) => false,
            Blocked::PlacementError(error) if !error.is_the_fault_of_the_release() => false,
            Blocked::PlacementError(_) => {
                let since = planner
                    .newest_of(self.key, self.rollout.release)
                    .map_or(self.rollout.started_at, |made| {
                        made.max(self.rollout.started_at)
                    });
                planner.now.millis_since(since) >= READY_DEADLINE_MS
            }
        }
    }

    /// An instance with volumes stops before its successor starts: at least one is then unavailable.
    fn max_unavailable(&self) -> usize {
        let process = self.release.manifest.processes.get(self.process);
        let unavailable = process.map_or(0, |p| p.deploy.max_unavailable as usize);
        unavailable.max(usize::from(self.is_numbered()))
    }

    /// With neither surge nor unavailability no rollout could proceed: a surge of one is then allowed.
    fn max_surge(&self) -> usize {
        if self.is_numbered() {
            return 0;
        }
        let process = self.release.manifest.processes.get(self.process);
        let surge = process.map_or(0, |p| p.deploy.max_surge as usize);
        surge.max(usize::from(self.max_unavailable() == 0))
    }
}

impl Pass<'_, '_> {
    pub(super) fn is_online(&self, node: NodeId) -> bool {
        self.given.nodes.get(&node).is_some_and(|node| node.online)
    }

    fn node_name(&self, node: NodeId) -> &str {
        match self.given.nodes.get(&node) {
            Some(node) => &node.name,
            None if self.given.has_node(node) => "a node whose record cannot be read",
            None => "a node that was removed",
        }
    }

    fn arch_of(&self, node: NodeId) -> String {
        let node = self.given.nodes.get(&node);
        node.map_or(String::new(), |node| node.hardware.arch.clone())
    }

    /// When the last instance of a release was created: as long as some are created, the rollout proceeds.
    fn newest_of(&self, key: &EnvKey, release: ReleaseNumber) -> Option<Timestamp> {
        let instances = self.working.instances.of_env(key);
        let mine = instances.filter(|(_, instance)| instance.spec.release == release);
        mine.map(|(_, instance)| instance.created_at).max()
    }

    /// Whether this instance failed and was created long enough ago.
    fn is_due_for_replacement(&self, view: &InstanceView) -> bool {
        let report = self.working.instances.get(&view.id);
        let state = report.and_then(|i| i.report.as_ref()).map(|r| r.state);
        view.health == InstanceHealth::Terminated
            && state == Some(InstanceState::Failed)
            && self.now.millis_since(view.created_at) >= REPLACE_AFTER_MS
    }

    /// Why nothing is known of an instance, for people.
    fn unknown_because(&self, id: InstanceId) -> String {
        let instance = self.working.instances.get(&id);
        let report = instance.and_then(|instance| instance.report.as_ref());
        match report.filter(|report| report.state == InstanceState::Unknown) {
            Some(_) => "its node is newer than this server and reports a state that the server does not know; it is \
                        kept"
                .to_owned(),
            None => "its node is offline; it is kept".to_owned(),
        }
    }

    /// The last report of an instance, for people.
    fn last_report(&self, id: InstanceId, phase: RolloutPhase) -> String {
        let instance = self.working.instances.get(&id);
        let Some(report) = instance.and_then(|i| i.report.as_ref()) else {
            return "waiting for the node".to_owned();
        };
        let mut text = report.state.to_string();
        if !report.detail.is_empty() {
            text = format!("{text}, {}", report.detail);
        }
        if let Some(failure) = &report.failure {
            text = format!("{text}: {failure}");
        }
        if report.state == InstanceState::Failed && phase != RolloutPhase::Rolling {
            let minutes = REPLACE_AFTER_MS / 60_000;
            text = format!("{text}; replaced {minutes} min after it was made");
        }
        text
    }
}
