//! Events of instances.

use api::event::{Event, EventKind};
use api::node::InstanceReport;
use model::instance::{InstanceSpec, InstanceState, Runs};
use model::{InstanceId, NodeId};

use super::{Origin, named, of_env, of_release};
use crate::cluster_state::{ClusterState, EndedInstance, Instance, InstancePhase};

fn of(event: Event, cluster: &ClusterState, spec: &InstanceSpec, node: NodeId) -> Event {
    Event {
        process: Some(spec.process.clone()),
        release: Some(spec.release),
        instance: Some(spec.id),
        node: Some(node),
        ..of_env(event, cluster, &spec.env_key())
    }
}

/// A new instance was placed.
pub(super) fn placed(
    origin: &Origin,
    cluster: &ClusterState,
    spec: &InstanceSpec,
    node: NodeId,
) -> Event {
    let what = match spec.runs {
        Runs::App => of_release(spec.release),
        Runs::ReleaseCommand => format!("the release command of {}", of_release(spec.release)),
        Runs::Command { .. } => format!("a user's command with {}", of_release(spec.release)),
    };
    let message = format!("{what} on {}", named(cluster, node));
    let event = origin.event(EventKind::InstanceScheduled, message);
    of(event, cluster, spec, node)
}

pub(super) fn scheduled(origin: &Origin, cluster: &ClusterState, instance: &Instance) -> Event {
    placed(origin, cluster, &instance.spec, instance.node)
}

/// An instance is wanted no longer.
pub(super) fn stopping(
    origin: &Origin,
    cluster: &ClusterState,
    instance: &Instance,
    reason: &str,
) -> Event {
    let event = origin.event(EventKind::InstanceStopping, reason);
    of(event, cluster, &instance.spec, instance.node)
}

/// The record of an instance is deleted.
pub(super) fn stopped(
    origin: &Origin,
    cluster: &ClusterState,
    instance: &Instance,
    ended: Option<&EndedInstance>,
) -> Event {
    match ended {
        Some(ended) => gone(origin, cluster, instance.spec.id, ended),
        None => {
            let event = origin.event(EventKind::InstanceStopped, "it is gone");
            of(event, cluster, &instance.spec, instance.node)
        }
    }
}

/// An instance is gone, and this is the record of it.
pub(super) fn gone(
    origin: &Origin,
    cluster: &ClusterState,
    id: InstanceId,
    ended: &EndedInstance,
) -> Event {
    let how = (ended.failure.clone())
        .or_else(|| ended.last_exit.as_ref().map(ToString::to_string))
        .filter(|how| !ended.reason.contains(how.as_str()));
    let message = match how {
        Some(how) => format!("{}; {how}", ended.reason),
        None => ended.reason.clone(),
    };
    let event = origin.event(EventKind::InstanceStopped, message);
    Event {
        process: Some(ended.process.clone()),
        release: Some(ended.release),
        instance: Some(id),
        node: Some(ended.node),
        ..of_env(event, cluster, &ended.env)
    }
}

/// What is otherwise with an instance than before.
pub(super) fn record(
    origin: &Origin,
    cluster: &ClusterState,
    before: &Instance,
    after: &Instance,
    events: &mut Vec<Event>,
) {
    let mut push = |kind, message: String| {
        let event = origin.event(kind, message);
        events.push(of(event, cluster, &after.spec, after.node));
    };
    if let Some(report) = &after.report {
        tell_report(before, after, report, &mut push);
    }
    if let InstancePhase::Terminating { reason, .. } | InstancePhase::Gone { reason } = &after.phase
        && !before.is_terminating()
    {
        push(EventKind::InstanceStopping, reason.clone());
    }
}

fn tell_report(
    before: &Instance,
    after: &Instance,
    report: &InstanceReport,
    push: &mut impl FnMut(EventKind, String),
) {
    let known = before.report.as_ref();
    let was = known.map(|known| known.state);
    let now = report.state;
    let restarts = known.map_or(0, |known| known.restarts);
    let is_restarted = report.restarts > restarts;
    if is_restarted {
        push(EventKind::InstanceRestarted, cause(report, known));
    }
    let is_same_run = !is_restarted
        && was.is_some_and(|was| was.is_running() && was.started_at() == now.started_at());
    if now.is_running() && !is_same_run {
        push(EventKind::InstanceStarted, of_release(after.spec.release));
    }
    let was_ready = is_same_run && was.is_some_and(InstanceState::is_ready);
    if now.is_ready() && !was_ready {
        push(EventKind::InstanceReady, String::new());
    }
    if was_ready && now.is_running() && !now.is_ready() {
        push(EventKind::InstanceUnready, cause(report, None));
    }
    let was_dead = known.is_some_and(|known| known.liveness_failure.is_some());
    if let Some(failure) = report.liveness_failure.as_ref().filter(|_| !was_dead) {
        push(EventKind::InstanceUnhealthy, failure.clone());
    }
    if now == InstanceState::Failed && was != Some(InstanceState::Failed) {
        push(EventKind::InstanceFailed, cause(report, known));
    }
    let ended_by_itself = now == InstanceState::Stopped && !before.is_terminating();
    if ended_by_itself && was != Some(InstanceState::Stopped) {
        let message = match &report.last_exit {
            Some(exit) => format!("it is not started again: {exit}"),
            None => format!("it is not started again: {}", cause(report, known)),
        };
        push(EventKind::InstanceExited, message);
    }
}

/// Why an app ended, or does not serve.
fn cause(report: &InstanceReport, before: Option<&InstanceReport>) -> String {
    let failure = (report.failure.as_ref()).or_else(|| before?.failure.as_ref());
    let oom = report.last_exit.as_ref().filter(|exit| exit.oom_killed);
    match (failure, oom, &report.last_exit) {
        (Some(failure), Some(_), _) if !failure.contains("out of memory") => {
            format!("{failure}, out of memory")
        }
        (Some(failure), ..) => failure.clone(),
        (None, _, Some(exit)) => exit.to_string(),
        (None, _, None) => report.detail.clone(),
    }
}
