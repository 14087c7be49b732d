//! What one pass over an env sees of its instances and their nodes.

// ring: it reads what a pass holds, and the planner makes the passes.

use std::borrow::Cow;
use std::cmp::Reverse;

use api::user::RolloutPhase;
use manifest::Deploy;
use model::instance::{InstanceSpec, InstanceState, RestartWhen, Runs};
use model::{EnvKey, InstanceId, NodeId, ProcessName, ReleaseNumber, Timestamp};

use super::{LOST_AFTER_MS, Pass, REPLACE_AFTER_MS, lost_at};
use crate::action::Action;
use crate::cluster_state::{Env, Instance, Node, Presence, ReleaseCommand, Rollout, Scheduling};
use crate::node_protocol::NeededProtocol;
use crate::placement::MassLoss;
use crate::release::may_stay;
use crate::rollout::{self, Evaluator, InstanceHealth};

/// One instance, as far as a decision needs it.
#[derive(Debug, Clone)]
pub(super) struct InstanceView {
    pub(super) id: InstanceId,
    pub(super) node: NodeId,
    pub(super) process: ProcessName,
    /// The release that it is of: the one that made it, or the wanted one where that would make it the same.
    pub(super) release: ReleaseNumber,
    /// The release that made it.
    pub(super) made_by: ReleaseNumber,
    /// Whether the release that rolls out leaves it as the last one that was rolled out wholly had it. What was never rolled out wholly
    /// is watched again, although the next release has the same.
    pub(super) untouched: bool,
    /// What of its process type it runs.
    pub(super) runs: Runs,
    /// Which of its process type's volumes it holds.
    pub(super) ordinal: Option<u32>,
    pub(super) health: InstanceHealth,
    /// Whether it counts as one that does its work: of a release that rolls out, only one that has for a while.
    pub(super) settled: bool,
    /// Whether its node is not heard any more.
    pub(super) lapsed: bool,
    /// Whether its node is given up, so that others take its place.
    pub(super) lost: bool,
    /// Whether it is to be replaced on another node, because its own is drained, or has an agent that is too old for it.
    pub(super) evicted: bool,
    /// Whether its liveness check fails, so that it is to be replaced.
    pub(super) dead: bool,
    pub(super) terminating: bool,
    pub(super) was_ready: bool,
    pub(super) created_at: Timestamp,
}

impl InstanceView {
    /// Whether an instance of another release can be terminated at once: it serves nobody and never did.
    pub(super) fn is_expendable(&self) -> bool {
        match self.health {
            InstanceHealth::Terminated => true,
            InstanceHealth::Pending | InstanceHealth::CrashLoop => !self.was_ready,
            InstanceHealth::Ready | InstanceHealth::Completed | InstanceHealth::Unknown => false,
        }
    }

    /// The order in which too many are terminated: not ready before ready, then the newest.
    pub(super) fn termination_order(&self) -> (u8, Reverse<Timestamp>, Reverse<InstanceId>) {
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
pub(super) struct Goal {
    /// The release that new instances are of.
    pub(super) make: ReleaseNumber,
    /// A failed release whose ready instances stay nevertheless (`auto_revert = false`).
    pub(super) halted: Option<ReleaseNumber>,
}

impl Goal {
    pub(super) fn keeps(self, view: &InstanceView) -> bool {
        view.release == self.make
            || (self.halted == Some(view.release)
                && (view.health.is_healthy() || view.health == InstanceHealth::Unknown))
    }
}

/// The instances of an env, as they are now.
pub(super) fn views(
    planner: &Pass<'_, '_>,
    key: &EnvKey,
    env: &Env,
    rollout: &Rollout,
    evaluator: Evaluator,
) -> Vec<InstanceView> {
    // What is wanted comes first: after a revert the release before, after a failure without one too.
    let before = rollout::serving_before(env, rollout);
    let halted_for = before.filter(|_| rollout.phase == RolloutPhase::Failed);
    let before = before.and_then(|number| Some((number, env.releases.get(&number)?)));
    let wanted = [halted_for, Some(rollout.wanted), Some(rollout.release)];
    let wanted = wanted.into_iter().flatten();
    let wanted = wanted.filter_map(|number| Some((number, env.releases.get(&number)?)));
    let wanted: Vec<_> = wanted.collect();
    let owner = planner.working.access.owner(&key.app);
    let instances = planner.working.instances.of_env(key);
    instances
        .map(|(_, instance)| {
            let node = planner.working.nodes.get(&instance.node);
            let online = node.is_some_and(Node::is_online);
            let spec = &instance.spec;
            let health = InstanceHealth::of(instance, online);
            let deploy = deploy_of(env, spec.release, &spec.process);
            let dead = online && liveness_failure(instance).is_some();
            let mut wanted = wanted.iter();
            let same =
                wanted.find(|(number, release)| may_stay(env, instance, node, *number, release));
            let release = same.map_or(spec.release, |(number, _)| *number);
            let untouched = spec.release != rollout.release
                && before.is_some_and(|(number, release)| {
                    may_stay(env, instance, node, number, release)
                });
            let is_watched =
                rollout.phase == RolloutPhase::Rolling && release == rollout.release && !untouched;
            InstanceView {
                id: instance.spec.id,
                node: instance.node,
                process: instance.spec.process.clone(),
                release,
                made_by: spec.release,
                untouched,
                runs: spec.runs,
                ordinal: instance.spec.ordinal(),
                health,
                settled: match is_watched {
                    _ if dead => false,
                    true => evaluator.is_settled(planner.working, instance, health, deploy),
                    false => health.is_healthy(),
                },
                dead,
                lapsed: node.is_some_and(Node::has_lapsed),
                lost: planner.is_lost(instance),
                evicted: match node.map(|node| node.scheduling) {
                    Some(Scheduling::Draining { with_volumes: true }) => true,
                    Some(Scheduling::Draining { .. }) => spec.volumes.is_empty(),
                    Some(Scheduling::Schedulable | Scheduling::Cordoned) => {
                        let is_anothers = node.is_some_and(|node| !node.takes_apps_of(owner));
                        spec.volumes.is_empty()
                            && (is_anothers || too_old_for(node, spec).is_some())
                    }
                    None => false,
                },
                terminating: instance.is_terminating(),
                was_ready: instance.was_ready(),
                created_at: instance.created_at,
            }
        })
        .collect()
}

/// What an instance needs that the agent of its node, which is heard, does not do.
fn too_old_for(node: Option<&Node>, spec: &InstanceSpec) -> Option<NeededProtocol> {
    let Presence::Heard { protocol, .. } = node?.presence else {
        return None;
    };
    NeededProtocol::of_spec(spec).filter(|needed| !needed.is_met_by(protocol))
}

/// Why an instance is dead although its app runs. One that is never to be started again is not replaced.
pub(super) fn liveness_failure(instance: &Instance) -> Option<&str> {
    if instance.spec.restart.when == RestartWhen::Never {
        return None;
    }
    instance.report.as_ref()?.liveness_failure.as_deref()
}

/// How a release replaces the instances of a process type.
pub(super) fn deploy_of<'e>(
    env: &'e Env,
    release: ReleaseNumber,
    process: &ProcessName,
) -> Option<&'e Deploy> {
    let release = env.releases.get(&release)?;
    let process = release.manifest.processes.get(process)?;
    Some(&process.deploy)
}

pub(super) fn terminate(planner: &mut Pass<'_, '_>, view: &InstanceView, reason: String) {
    planner.take(Action::Terminate {
        id: view.id,
        reason,
    });
}

impl Pass<'_, '_> {
    pub(super) fn has_lapsed(&self, node: NodeId) -> bool {
        self.working.nodes.get(&node).is_some_and(Node::has_lapsed)
    }

    /// Whether others take the place of an instance, because its node is given up. One with volumes waits for its node: no other
    /// has what is in them.
    pub(super) fn is_lost(&self, instance: &Instance) -> bool {
        lost_at(self.working, instance).is_some_and(|at| at <= self.now)
            && self.placement.too_many_lapsed().is_none()
    }

    pub(super) fn evicted_because(&self, view: &InstanceView) -> String {
        let (node, name) = (
            self.working.nodes.get(&view.node),
            self.node_name(view.node),
        );
        let instance = self.working.instances.get(&view.id);
        let is_drained =
            node.is_some_and(|node| matches!(node.scheduling, Scheduling::Draining { .. }));
        let owner = instance.and_then(|i| self.working.access.owner(&i.spec.app));
        if !is_drained && node.is_some_and(|node| !node.takes_apps_of(owner)) {
            return format!("{name} runs the apps of another org only");
        }
        match instance.and_then(|instance| too_old_for(node, &instance.spec)) {
            Some(needed) if !is_drained => {
                format!("the agent of {name} is too old for {}", needed.what)
            }
            _ => format!("{name} is being drained"),
        }
    }

    pub(super) fn node_name(&self, node: NodeId) -> &str {
        match self.working.nodes.get(&node) {
            Some(node) => &node.name,
            None if self.working.has_node(node) => "a node whose record cannot be read",
            None => "a node that was removed",
        }
    }

    /// When the last instance of a release that rolls out was created, or its rollout began: as long as some are created, it proceeds.
    pub(super) fn progressed_at(&self, key: &EnvKey, rollout: &Rollout) -> Timestamp {
        let instances = self.working.instances.of_env(key);
        let mine = instances.filter(|(_, instance)| {
            instance.spec.release == rollout.release && !instance.spec.runs.is_command()
        });
        let created = mine.map(|(_, instance)| instance.created_at);
        let completed = rollout
            .release_commands
            .values()
            .filter_map(|command| match command {
                ReleaseCommand::Started => None,
                ReleaseCommand::Completed { at } => Some(*at),
            });
        // What was created in the future was created before the clock was set back.
        let progress = created
            .chain(completed)
            .chain([rollout.started_at])
            .filter(|at| *at <= self.now);
        progress.max().unwrap_or(self.now)
    }

    /// Whether this instance failed and was created long enough ago.
    pub(super) fn is_due_for_replacement(&self, view: &InstanceView) -> bool {
        let report = self.working.instances.get(&view.id);
        let state = report.and_then(|i| i.report.as_ref()).map(|r| r.state);
        view.health == InstanceHealth::Terminated
            && state == Some(InstanceState::Failed)
            && self.working.heard_for(view.node, view.created_at, self.now) >= REPLACE_AFTER_MS
    }

    /// Why nothing is known of an instance, for people.
    pub(super) fn unknown_because(&self, id: InstanceId) -> String {
        let instance = self.working.instances.get(&id);
        let report = instance.and_then(|instance| instance.report.as_ref());
        match report.filter(|report| report.state == InstanceState::Unknown) {
            Some(_) => "its node is newer than this server and reports a state that the server does not know; it is \
                        kept"
                .to_owned(),
            None => self.away_because(instance),
        }
    }

    /// What becomes of an instance whose node is not heard, for people.
    pub(super) fn away_because(&self, instance: Option<&Instance>) -> String {
        let node = instance.and_then(|instance| self.working.nodes.get(&instance.node));
        match node.map(|node| node.presence) {
            None => return "nothing is known of its node; it is kept".to_owned(),
            Some(Presence::Lapsed { .. }) => {}
            Some(Presence::NotHeardYet | Presence::Heard { .. }) => {
                return "its node has not reported yet since the server started; it is kept"
                    .to_owned();
            }
        }
        if instance.is_some_and(|instance| !instance.spec.volumes.is_empty()) {
            return "its node is offline; it is kept, because its volumes are there (`platform nodes remove --lost` gives \
                    them up)"
                .to_owned();
        }
        if let Some(MassLoss { lapsed, nodes }) = self.placement.too_many_lapsed() {
            return format!(
                "its node is offline; it is kept, because {lapsed} of {nodes} nodes are offline: so many do not break at \
                 once, more likely the server cannot be reached"
            );
        }
        if instance.is_some_and(|instance| self.is_lost(instance)) {
            return "its node is offline; others take its place".to_owned();
        }
        let after = LOST_AFTER_MS / 1000;
        format!("its node is offline; others take its place {after} s after that was seen")
    }

    /// The last report of an instance, for people.
    pub(super) fn last_report(&self, id: InstanceId, phase: RolloutPhase) -> Cow<'static, str> {
        let instance = self.working.instances.get(&id);
        let Some(report) = instance.and_then(|i| i.report.as_ref()) else {
            return Cow::Borrowed("waiting for the node");
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
        Cow::Owned(text)
    }
}
