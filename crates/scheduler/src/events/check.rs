//! What has to hold of the events of every batch, for tests and the simulation.

use std::collections::BTreeMap;

use api::event::{Event, EventKind};
use model::InstanceId;

use crate::changes::Changes;
use crate::cluster_state::ClusterState;

/// Whether what a batch changed and what it tells fit. `before`: the cluster state that the store has before the batch.
///
/// - Numbers grow, and are larger than those of all events before.
/// - An instance that is new was scheduled once, and one that is gone stopped once.
/// - A release, a volume, a node and a secret bundle that came, went or changed is told of.
/// - An instance that became ready, or is not any more, is told of.
///
/// # Errors
/// What does not fit.
pub fn check(before: &ClusterState, changes: &Changes) -> Result<(), String> {
    let events = &changes.events;
    let mut last = before.event_log.last();
    for event in events {
        if event.number <= last {
            return Err(format!("event {} comes after {last}", event.number));
        }
        last = event.number;
    }
    if let Some(number) = changes
        .replaced_events
        .iter()
        .find(|number| **number > before.event_log.last())
    {
        return Err(format!("event {number} is replaced, and was never there"));
    }
    check_instances(before, changes)?;
    let told = |what: String, is_told: &dyn Fn(&Event) -> bool| {
        let any = events.iter().any(is_told);
        any.then_some(())
            .ok_or_else(|| format!("nothing tells that {what}"))
    };
    for (env, number) in changes.releases.keys() {
        told(format!("{number} of {env} was deployed"), &|event| {
            event.kind == EventKind::ReleaseDeployed && event.release == Some(*number)
        })?;
    }
    for (id, volume) in &changes.volumes {
        let was = before.volumes.get(id).map(|volume| volume.phase);
        // One that is made anew in a batch and goes on in it is told of, too.
        if was != volume.as_ref().map(|volume| volume.phase) {
            let is_more = !matches!(
                (was, volume.as_ref().map(|v| v.phase)),
                (Some(was), Some(now)) if is_same_to_people(was, now)
            );
            if is_more {
                told(format!("volume {id} is otherwise"), &|event| {
                    event.volume == Some(*id)
                })?;
            }
        }
    }
    for (env, bundle, _) in changes.secrets.keys() {
        told(format!("bundle {bundle} of {env} is set"), &|event| {
            event.kind == EventKind::SecretSet && event.message.starts_with(bundle.as_str())
        })?;
    }
    for (id, node) in &changes.nodes {
        let was = before.nodes.get(id);
        let same = match (was, node) {
            (Some(was), Some(now)) => {
                (was.scheduling, &was.labels, was.identity.approval)
                    == (now.scheduling, &now.labels, now.identity.approval)
            }
            (None, None) => true,
            _ => false,
        };
        if !same {
            told(format!("node {id} is otherwise"), &|event| {
                event.node == Some(*id) && event.kind.as_str().starts_with("node-")
            })?;
        }
    }
    for (env, record) in &changes.envs {
        let Some(was) = before.envs.get(env) else {
            continue;
        };
        let ended = was.rollout.release == record.rollout.release
            && was.rollout.phase != record.rollout.phase;
        for (is_so, kinds) in [
            (ended, "release-"),
            (was.destroying != record.destroying, "env-destroying"),
            (was.scale != record.scale, "env-scaled"),
        ] {
            if is_so {
                told(format!("{env} is otherwise ({kinds})"), &|event| {
                    event.app.as_ref() == Some(&env.app)
                        && event.env.as_ref() == Some(&env.env)
                        && event.kind.as_str().starts_with(kinds)
                })?;
            }
        }
    }
    Ok(())
}

fn is_same_to_people(
    was: crate::cluster_state::VolumePhase,
    now: crate::cluster_state::VolumePhase,
) -> bool {
    use crate::cluster_state::VolumePhase::{Deleted, Deleting};
    matches!(was, Deleting { .. } | Deleted) && matches!(now, Deleting { .. } | Deleted)
}

fn check_instances(before: &ClusterState, changes: &Changes) -> Result<(), String> {
    let mut scheduled: BTreeMap<InstanceId, u32> = BTreeMap::new();
    let mut stopped: BTreeMap<InstanceId, u32> = BTreeMap::new();
    for event in &changes.events {
        let counts = match event.kind {
            EventKind::InstanceScheduled => &mut scheduled,
            EventKind::InstanceStopped => &mut stopped,
            _ => continue,
        };
        let id = event.instance.ok_or("an event of an instance names none")?;
        *counts.entry(id).or_default() += 1;
    }
    for (id, instance) in &changes.instances {
        let was = before.instances.get(id);
        let expected = (u32::from(was.is_none()), u32::from(instance.is_none()));
        let told = (
            scheduled.remove(id).unwrap_or_default(),
            stopped.remove(id).unwrap_or_default(),
        );
        if told != expected {
            return Err(format!(
                "instance {id} was scheduled and stopped {expected:?} times, and {told:?} are told"
            ));
        }
        let (Some(was), Some(now)) = (was, instance) else {
            continue;
        };
        let is_ready = |report: Option<&api::node::InstanceReport>| {
            report.is_some_and(|report| report.state.is_ready())
        };
        let became = is_ready(now.report.as_ref()) && !is_ready(was.report.as_ref());
        let is_told = |kind| {
            let mut events = changes.events.iter();
            events.any(|event| event.instance == Some(*id) && event.kind == kind)
        };
        if became && !is_told(EventKind::InstanceReady) {
            return Err(format!("instance {id} became ready, and nothing tells so"));
        }
        if now.is_terminating() && !was.is_terminating() && !is_told(EventKind::InstanceStopping) {
            return Err(format!("instance {id} terminates, and nothing tells so"));
        }
    }
    match scheduled.keys().chain(stopped.keys()).next() {
        Some(id) => Err(format!(
            "an event tells of instance {id}, of which nothing changed"
        )),
        None => Ok(()),
    }
}
