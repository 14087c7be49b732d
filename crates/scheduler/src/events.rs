//! What people are told of each change: who, when, what.
//!
//! [`crate::leader`] asks here once per decision, with the cluster state before and after it, and writes the events with the records that
//! changed. An event is made of what differs, not of the command: a report, a plan and a user's call that do the same tell the same.
//! Heartbeats, counters and the deletion of old records are no events.
//!
//! Events hold names of secret bundles and never what is in them.

// ring: the events of each kind of subject are a part of all events, and are made alike.

use std::collections::BTreeMap;

use api::event::{Actor, Event, EventKind};
use api::user::RolloutPhase;
use model::{AppName, EnvKey, NodeId, OrgName, ProcessName, ReleaseNumber, Timestamp};

mod access;
#[cfg(any(test, feature = "fixtures"))]
pub mod check;
mod instances;
mod members;
#[cfg(test)]
mod tests;

use crate::action::Action;
use crate::apply::Command;
use crate::changes::{Changes, EnvRecord};
use crate::cluster_state::{ClusterState, ReleaseCommand, Rollout, Volume, VolumePhase};

/// Who makes a change, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Who.
    pub by: Actor,
    /// When.
    pub at: Timestamp,
}

impl Origin {
    /// The planner decides something.
    pub(crate) fn planner(at: Timestamp) -> Self {
        Self {
            by: Actor::Planner,
            at,
        }
    }

    /// The server changes something by itself.
    pub fn server(at: Timestamp) -> Self {
        Self {
            by: Actor::Server,
            at,
        }
    }

    pub(crate) fn event(&self, kind: EventKind, message: impl Into<String>) -> Event {
        Event::new(self.at, self.by.clone(), kind, message)
    }
}

/// An event of something of an env.
fn of_env(mut event: Event, cluster: &ClusterState, env: &EnvKey) -> Event {
    event.org = cluster.access.owner(&env.app).cloned();
    event.app = Some(env.app.clone());
    event.env = Some(env.env.clone());
    event
}

/// A node as people call it: `box (n3)`.
pub(crate) fn named(cluster: &ClusterState, node: NodeId) -> String {
    match cluster.nodes.get(&node) {
        Some(known) => format!("{} ({node})", known.name),
        None => node.to_string(),
    }
}

/// What commands changed.
pub(crate) fn of_commands(
    origin: &Origin,
    commands: &[Command],
    before: &ClusterState,
    after: &ClusterState,
    changes: &Changes,
) -> Vec<Event> {
    let mut events = Vec::new();
    access::record(origin, before, after, &changes.access, &mut events);
    members::record(origin, commands, before, after, changes, &mut events);
    tell_secrets(origin, before, after, changes, &mut events);
    for ((env, number), release) in &changes.releases {
        let image = (release.image.clone()).unwrap_or_else(|| release.image_ref_digest.to_string());
        let mut message = match release.rollback_to {
            Some(to) => format!("the same as {to}: image {image}"),
            None => format!("image {image}"),
        };
        let rolling = before.envs.get(env).map(|env| &env.rollout);
        let rolling = rolling.filter(|rollout| rollout.phase == RolloutPhase::Rolling);
        if let Some(superseded) = rolling {
            message += &format!("; {} was not rolled out wholly yet", superseded.release);
        }
        let event = origin.event(EventKind::ReleaseDeployed, message);
        events.push(Event {
            release: Some(*number),
            ..of_env(event, after, env)
        });
    }
    for (env, record) in &changes.envs {
        let was = before.envs.get(env);
        if let Some(was) = was {
            tell_rollout(
                origin,
                after,
                env,
                &was.rollout,
                &record.rollout,
                &mut events,
            );
        }
        tell_env(
            origin,
            after,
            env,
            was.map(EnvRecord::of).as_ref(),
            record,
            &mut events,
        );
    }
    for env in &changes.deleted_envs {
        let event = origin.event(EventKind::EnvDestroyed, env.to_string());
        events.push(of_env(event, before, env));
    }
    for (id, now) in &changes.volumes {
        let was = before.volumes.get(id);
        tell_volume(origin, after, *id, was, now.as_ref(), &mut events);
    }
    for (id, now) in &changes.instances {
        let was = before.instances.get(id);
        match (was, now) {
            (None, Some(now)) => events.push(instances::scheduled(origin, after, now)),
            (Some(was), Some(now)) => instances::record(origin, after, was, now, &mut events),
            (Some(was), None) => {
                let ended = changes.ended.get(id).and_then(Option::as_ref);
                events.push(instances::stopped(origin, after, was, ended));
            }
            (None, None) => {}
        }
    }
    events
}

/// What a plan changed. `rollout_before`: how the rollout of an env stood; it is asked before `changes` are a part of anything else.
pub(crate) fn of_plan(
    origin: &Origin,
    actions: &[Action],
    after: &ClusterState,
    changes: &Changes,
    rollout_before: impl Fn(&EnvKey) -> Option<Rollout>,
) -> Vec<Event> {
    let mut rollouts: BTreeMap<&EnvKey, Rollout> = BTreeMap::new();
    let mut events = Vec::new();
    for action in actions {
        match action {
            Action::MakeVolume(planned) => {
                let volume = Volume {
                    key: planned.key.clone(),
                    node: planned.node,
                    size_bytes: planned.size_bytes,
                    created_at: planned.created_at,
                    phase: VolumePhase::Planned,
                };
                tell_volume(origin, after, planned.id, None, Some(&volume), &mut events);
            }
            Action::DeleteVolume { id } => {
                let event = origin.event(EventKind::VolumeDeleted, "its disk is gone");
                events.push(Event {
                    volume: Some(*id),
                    ..event
                });
            }
            Action::Create(placed) => {
                let spec = &placed.spec;
                events.push(instances::placed(origin, after, spec, placed.node));
            }
            Action::Terminate { id, reason } => {
                if let Some(instance) = after.instances.get(id) {
                    events.push(instances::stopping(origin, after, instance, reason));
                }
            }
            Action::Delete { id, .. } => {
                if let Some(ended) = changes.ended.get(id).and_then(Option::as_ref) {
                    events.push(instances::gone(origin, after, *id, ended));
                }
            }
            Action::SetRollout { env, rollout } => {
                let before = rollouts.insert(env, rollout.clone());
                if let Some(before) = before.or_else(|| rollout_before(env)) {
                    tell_rollout(origin, after, env, &before, rollout, &mut events);
                }
            }
            Action::RemoveEnv { env } => {
                let event = origin.event(EventKind::EnvDestroyed, env.to_string());
                events.push(of_env(event, after, env));
            }
            Action::PruneEnded { .. } => {}
        }
    }
    events
}

/// An env that cannot be planned.
pub(crate) fn quarantined(
    at: Timestamp,
    cluster: &ClusterState,
    env: &EnvKey,
    cause: &str,
) -> Event {
    let event = Origin::server(at).event(EventKind::EnvQuarantined, cause);
    of_env(event, cluster, env)
}

/// The cluster was logged in to a registry, `as ann` or `by a token`, or out of it.
pub(crate) fn registry(origin: &Origin, registry: &str, login: Option<&str>) -> Event {
    match login {
        Some(login) => origin.event(EventKind::RegistryLoggedIn, format!("{registry} {login}")),
        None => origin.event(EventKind::RegistryLoggedOut, registry),
    }
}

/// A node reports again.
pub(crate) fn online(at: Timestamp, cluster: &ClusterState, node: NodeId) -> Event {
    let by = Actor::Node(node);
    Event {
        node: Some(node),
        ..Event::new(at, by, EventKind::NodeOnline, named(cluster, node))
    }
}

/// A server began to lead.
pub(crate) fn leads(at: Timestamp, term: model::Term) -> Event {
    Origin::server(at).event(EventKind::ServerLeads, format!("term {}", term.0))
}

fn tell_env(
    origin: &Origin,
    cluster: &ClusterState,
    env: &EnvKey,
    before: Option<&EnvRecord>,
    after: &EnvRecord,
    events: &mut Vec<Event>,
) {
    let none = BTreeMap::new();
    let scale_before: &BTreeMap<ProcessName, u32> = before.map_or(&none, |env| &env.scale);
    if after.scale != *scale_before {
        let changed = (after.scale.iter())
            .filter(|(process, count)| scale_before.get(*process) != Some(count))
            .map(|(process, count)| format!("{process}={count}"));
        let message = changed.collect::<Vec<_>>().join(" ");
        let event = origin.event(EventKind::EnvScaled, message);
        events.push(of_env(event, cluster, env));
    }
    if after.destroying && !before.is_some_and(|env| env.destroying) {
        let event = origin.event(EventKind::EnvDestroying, env.to_string());
        events.push(of_env(event, cluster, env));
    }
}

/// What moved in the rollout of a release. That another release is rolled out is told by the release.
fn tell_rollout(
    origin: &Origin,
    cluster: &ClusterState,
    env: &EnvKey,
    before: &Rollout,
    after: &Rollout,
    events: &mut Vec<Event>,
) {
    let release = after.release;
    if before.release != release {
        return;
    }
    let mut tell = |kind, process: Option<&ProcessName>, message: String| {
        let event = of_env(origin.event(kind, message), cluster, env);
        events.push(Event {
            release: Some(release),
            process: process.cloned(),
            ..event
        });
    };
    for (process, now) in &after.release_commands {
        let was = before.release_commands.get(process);
        if matches!(now, ReleaseCommand::Completed { .. }) && was != Some(now) {
            let kind = EventKind::ReleaseCommandCompleted;
            tell(
                kind,
                Some(process),
                format!("the release command of {process}"),
            );
        }
    }
    if before.phase == after.phase {
        return;
    }
    let reason = after.reason.clone();
    match after.phase {
        RolloutPhase::Done => {
            tell(
                EventKind::ReleaseRolledOut,
                None,
                "every instance is ready".to_owned(),
            );
        }
        RolloutPhase::Reverted => tell(
            EventKind::ReleaseReverted,
            None,
            format!("back to {}: {reason}", after.wanted),
        ),
        RolloutPhase::Failed => tell(EventKind::ReleaseFailed, None, reason),
        RolloutPhase::Rolling | RolloutPhase::Superseded => {}
    }
}

fn tell_volume(
    origin: &Origin,
    cluster: &ClusterState,
    id: model::VolumeId,
    before: Option<&Volume>,
    after: Option<&Volume>,
    events: &mut Vec<Event>,
) {
    let Some(volume) = after.or(before) else {
        return;
    };
    let kind = match (before.map(|v| v.phase), after.map(|v| v.phase)) {
        (None, Some(_)) => EventKind::VolumeScheduled,
        (Some(_), None) => EventKind::VolumeDeleted,
        (Some(VolumePhase::Planned), Some(VolumePhase::Made)) => EventKind::VolumeMade,
        (
            Some(VolumePhase::Planned | VolumePhase::Made),
            Some(VolumePhase::Deleting { .. } | VolumePhase::Deleted),
        ) => EventKind::VolumeDeleting,
        _ => return,
    };
    let message = format!("{} on {}", volume.key, named(cluster, volume.node));
    let event = of_env(origin.event(kind, message), cluster, &volume.key.env);
    events.push(Event {
        volume: Some(id),
        node: Some(volume.node),
        process: Some(volume.key.process.clone()),
        ..event
    });
}

fn tell_secrets(
    origin: &Origin,
    before: &ClusterState,
    after: &ClusterState,
    changes: &Changes,
    events: &mut Vec<Event>,
) {
    for (env, bundle) in &changes.deleted_secrets {
        let event = origin.event(EventKind::SecretDeleted, bundle);
        events.push(of_env(event, before, env));
    }
    for (env, bundle, version) in changes.secrets.keys() {
        let message = format!("{bundle}, version {version}");
        let event = origin.event(EventKind::SecretSet, message);
        events.push(of_env(event, after, env));
    }
}

/// The release as it is told of: `release v3`.
fn of_release(release: ReleaseNumber) -> String {
    format!("release {release}")
}

/// Whose an app is, for people.
fn whose(app: &AppName, org: &OrgName) -> String {
    format!("{app} is of org {org}")
}
