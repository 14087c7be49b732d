//! Why an instance, a process type or a node is as it is, and what comes next: what `platform why` tells, without the events.
//!
//! All of it is read from the cluster state and from what the planner found; nothing is decided here.

use api::node::InstanceReport;
use api::user::{RolloutPhase, Scheduling};
use api::why::{MAX_WHY_INSTANCES, Why, WhyInstance, WhyNode, WhyRelease, WhySubject};
use model::instance::{InstanceState, RestartWhen, Runs};
use model::{EnvKey, InstanceId, NodeId, ProcessName, ReleaseNumber, Timestamp};

use crate::cluster_state::{
    Approval, ClusterState, EndedInstance, Instance, InstancePhase, Node, Presence,
};
use crate::events::named;
use crate::planner::{Finding, LOST_AFTER_MS, REPLACE_AFTER_MS, WAITING_LOOK_MS};
use crate::rollout::{InstanceHealth, MAX_NEW_RESTARTS, READY_DEADLINE_MS, wanted_counts};

#[cfg(test)]
mod tests;

/// A time of which only the machine that reads it knows how to show it: RFC 3339, in UTC.
type Shown<'a> = &'a dyn Fn(Timestamp) -> String;

/// The story of an instance that is there.
pub fn instance(cluster: &ClusterState, instance: &Instance, now: Timestamp, at: Shown<'_>) -> Why {
    let spec = &instance.spec;
    let key = spec.env_key();
    let mut why = Why {
        subject: subject(spec.id, &key, &spec.process),
        state: state(cluster, instance),
        reasons: Vec::new(),
        next: Vec::new(),
        release: release(cluster, &key, spec.release),
        node: Some(node_of(cluster, instance.node)),
        instances: Vec::new(),
        events: Vec::new(),
    };
    if spec.runs == Runs::ReleaseCommand {
        why.reasons
            .push(format!("it runs the release command of {}", spec.release));
    }
    match &instance.phase {
        InstancePhase::Terminating { reason, .. } => {
            why.reasons.push(format!("it is terminated: {reason}"));
            let seconds = spec.stop.timeout_ms / 1000;
            why.next.push(format!(
                "its node stops it, within {seconds} s from when it is told; then its record is kept for 7 days"
            ));
        }
        InstancePhase::Gone { reason } => {
            why.reasons.push(format!("it was terminated: {reason}"));
            why.next.push(
                "its node says that it is gone: its record of how it ended is kept for 7 days"
                    .to_owned(),
            );
        }
        InstancePhase::New | InstancePhase::Established => {
            of_node(cluster, instance, at, &mut why);
            let node = cluster.nodes.get(&instance.node);
            match &instance.report {
                _ if node.is_some_and(Node::is_online) => {
                    of_report(cluster, instance, now, at, &mut why);
                }
                Some(report) => why.reasons.push(format!("before, it was {}", report.state)),
                None => {}
            }
        }
    }
    why
}

/// What its node's state means for an instance.
fn of_node(cluster: &ClusterState, instance: &Instance, at: Shown<'_>, why: &mut Why) {
    let name = named(cluster, instance.node);
    let has_volumes = !instance.spec.volumes.is_empty();
    match cluster.nodes.get(&instance.node) {
        None => why.reasons.push(format!(
            "the record of its node {} cannot be read",
            instance.node
        )),
        Some(node) => match node.presence {
            Presence::Heard { .. } => {
                if let Scheduling::Draining { .. } = node.scheduling {
                    why.reasons
                        .push(format!("its node {name} is being drained"));
                }
                let owner = cluster.access.owner(&instance.spec.app);
                if !node.takes_apps_of(owner) {
                    why.reasons.push(format!(
                        "its node {name} runs the apps of another org only: it leaves"
                    ));
                }
            }
            Presence::NotHeardYet => {
                why.reasons.push(format!(
                    "its node {name} has not reported yet since this server leads: how it is, is not known"
                ));
            }
            Presence::Lapsed { since } => {
                why.reasons.push(format!(
                    "its node {name} is offline, known since {}: whether it runs is not known",
                    at(since)
                ));
                why.next.push(if has_volumes {
                    "it has volumes, which are on that node: it waits for the node, or for `platform nodes remove --lost`"
                        .to_owned()
                } else {
                    let lost = Timestamp(since.0.saturating_add(LOST_AFTER_MS));
                    format!(
                        "another takes its place from {} on, unless the node is back, or so many lapsed at once that nothing is replaced",
                        at(lost)
                    )
                });
            }
        },
    }
}

/// What its node last said of an instance.
fn of_report(
    cluster: &ClusterState,
    instance: &Instance,
    now: Timestamp,
    at: Shown<'_>,
    why: &mut Why,
) {
    let spec = &instance.spec;
    let env = cluster.envs.get(&spec.env_key());
    let rolling = env.is_some_and(|env| {
        env.rollout.phase == RolloutPhase::Rolling && env.rollout.release == spec.release
    });
    let Some(report) = &instance.report else {
        why.reasons.push(format!(
            "its node has not reported it since it was placed at {}",
            at(instance.created_at)
        ));
        why.next
            .push("its node fetches its image, makes its disks and boots it".to_owned());
        return;
    };
    if let Some(failure) = &report.liveness_failure {
        why.reasons.push(format!("it is not alive: {failure}"));
        why.next
            .push("the planner replaces it, one instance of its process type at a time".to_owned());
    }
    let policy = &spec.restart;
    match report.state {
        InstanceState::Running { ready: true, .. } => {
            if let Some(since) = instance.ready_since {
                why.reasons.push(format!("it is ready since {}", at(since)));
            }
        }
        InstanceState::Running { ready: false, .. } => {
            why.reasons.push(match &spec.healthcheck {
                Some(_) => format!(
                    "its app runs, and its health check does not pass: {}",
                    detail(report)
                ),
                None => format!("its app was started a moment ago: {}", detail(report)),
            });
            if let Some(check) = &spec.healthcheck {
                why.next.push(format!(
                    "it is probed every {} s, and ready after {} passes in a row",
                    check.interval_ms.div_ceil(1000),
                    check.healthy
                ));
            }
        }
        InstanceState::Created | InstanceState::Preparing | InstanceState::Booting => {
            why.reasons
                .push(format!("it is {}: {}", report.state, detail(report)));
        }
        InstanceState::Backoff => {
            why.reasons.push(format!("it ended: {}", cause(report)));
            let next = match report.detail.as_str() {
                "" => "it is started again after its backoff".to_owned(),
                detail => detail.to_owned(),
            };
            why.next.push(format!(
                "{next}; it is given up after {} restarts in a row (`restart.max_retries`)",
                policy.max_retries
            ));
        }
        InstanceState::Stopping => why
            .reasons
            .push(format!("it is stopping: {}", cause(report))),
        InstanceState::Stopped => {
            let when = match policy.when {
                RestartWhen::Always => "always",
                RestartWhen::OnFailure => "on-failure",
                RestartWhen::Never => "never",
            };
            why.reasons
                .push(format!("it ended by itself: {}", cause(report)));
            why.next.push(format!(
                "its restart policy `{when}` does not start it again"
            ));
        }
        InstanceState::Failed => {
            why.reasons
                .push(format!("its node gave it up: {}", cause(report)));
            if !rolling
                && let Some(from) = cluster.heard_from(instance.node, instance.created_at, now)
            {
                let replaced = Timestamp(from.0.saturating_add(REPLACE_AFTER_MS));
                why.next
                    .push(format!("another takes its place at {}", at(replaced)));
            }
        }
        InstanceState::Unknown => why.reasons.push(
            "its node reports a state that this server does not know: upgrade the server"
                .to_owned(),
        ),
    }
    if report.restarts > 0 {
        why.reasons.push(format!(
            "it was started again {} times, the last time because: {}",
            report.restarts,
            cause(report)
        ));
    }
    if rolling && !InstanceHealth::of(instance, true).is_healthy() {
        let process = env
            .and_then(|env| env.releases.get(&spec.release))
            .and_then(|release| release.manifest.processes.get(&spec.process));
        let deadline = process.and_then(|process| process.deploy.deadline_ms);
        let deadline = deadline.unwrap_or(READY_DEADLINE_MS) / 1000;
        why.next.push(format!(
            "its release is rolling out, and fails when it is not ready {deadline} s after its image and disks were there, or was \
             started again {MAX_NEW_RESTARTS} times"
        ));
    }
}

/// The story of an instance that is gone, by the record of how it ended.
pub fn ended(cluster: &ClusterState, id: InstanceId, ended: &EndedInstance, at: Shown<'_>) -> Why {
    let mut reasons = vec![format!("it was terminated: {}", ended.reason)];
    reasons.extend((ended.failure.as_ref()).map(|failure| format!("it failed: {failure}")));
    let exit = ended.last_exit.as_ref();
    reasons.extend(exit.map(|exit| format!("its app last ended at {}: {exit}", at(exit.at))));
    if ended.restarts > 0 {
        reasons.push(format!("it was started again {} times", ended.restarts));
    }
    Why {
        subject: subject(id, &ended.env, &ended.process),
        state: format!("gone since {}", at(ended.ended_at)),
        reasons,
        next: vec![format!(
            "`platform logs -i {id}` has its last lines, as long as {} keeps them",
            named(cluster, ended.node)
        )],
        release: release(cluster, &ended.env, ended.release),
        node: Some(node_of(cluster, ended.node)),
        instances: Vec::new(),
        events: Vec::new(),
    }
}

/// The story of a process type of an env. `None`: there is none of this name.
pub fn process(
    cluster: &ClusterState,
    findings: &[Finding],
    key: &EnvKey,
    process: &ProcessName,
    at: Shown<'_>,
) -> Option<Why> {
    let env = cluster.envs.get(key)?;
    let rollout = &env.rollout;
    let of_process = cluster.instances.of_env(key);
    let instances: Vec<_> = of_process
        .filter(|(_, instance)| instance.spec.process == *process)
        .collect();
    let wanted = wanted_counts(env, rollout.wanted).get(process).copied();
    if wanted.is_none() && instances.is_empty() {
        return None;
    }
    let wanted = wanted.unwrap_or(0);
    let is_ready = |instance: &Instance| {
        let online = cluster
            .nodes
            .get(&instance.node)
            .is_some_and(Node::is_online);
        !instance.is_terminating() && InstanceHealth::of(instance, online).is_healthy()
    };
    let ready = (instances.iter())
        .filter(|(_, instance)| is_ready(instance))
        .count();
    let mut reasons = Vec::new();
    let mut next = Vec::new();
    if env.destroying {
        reasons.push("its env is being destroyed".to_owned());
    }
    // What waits of the process type itself before what waits in the whole env.
    let of_it = findings
        .iter()
        .filter(|finding| finding.process.as_ref() == Some(process));
    let of_env = findings.iter().filter(|finding| finding.process.is_none());
    reasons.extend(of_it.chain(of_env).map(|finding| finding.message.clone()));
    if !reasons.is_empty() && !env.destroying {
        next.push(format!(
            "it is looked at again when a node or the env changes, and every {} s",
            WAITING_LOOK_MS / 1000
        ));
    }
    match rollout.phase {
        RolloutPhase::Rolling => next.push(format!(
            "{} is rolling out since {}; where it fails, the env goes {}",
            rollout.release,
            at(rollout.started_at),
            rollout.previous.map_or(
                "nowhere: there is no release before".to_owned(),
                |to| format!("back to {to}")
            )
        )),
        RolloutPhase::Reverted => reasons.push(format!(
            "{} was reverted to {}: {}",
            rollout.release, rollout.wanted, rollout.reason
        )),
        RolloutPhase::Failed => {
            reasons.push(format!("{} failed: {}", rollout.release, rollout.reason));
            next.push("nothing more is started of it until the next deploy".to_owned());
        }
        RolloutPhase::Done | RolloutPhase::Superseded => {}
    }
    let unhealthy = (instances.iter()).filter(|(_, instance)| !is_ready(instance));
    for (id, instance) in unhealthy.take(3) {
        let why = why_in_short(cluster, instance);
        reasons.push(format!(
            "instance {id} is {}{why}",
            state(cluster, instance)
        ));
    }
    Some(Why {
        subject: WhySubject::Process {
            app: key.app.clone(),
            env: key.env.clone(),
            process: process.clone(),
        },
        state: format!("{ready} of {wanted} ready"),
        reasons,
        next,
        release: release(cluster, key, rollout.release),
        node: None,
        instances: rows(cluster, instances.into_iter()),
        events: Vec::new(),
    })
}

/// The story of a node. `lapsed_together`: so many lapsed at once that nothing is replaced.
pub fn node(
    cluster: &ClusterState,
    id: NodeId,
    node: &Node,
    seen_at: Option<Timestamp>,
    at: Shown<'_>,
) -> Why {
    let mut reasons = Vec::new();
    let mut next = Vec::new();
    match node.identity.approval {
        Approval::Approved => {}
        Approval::Pending => {
            reasons.push("it waits for approval".to_owned());
            next.push(format!("`platform nodes approve {id}` lets it in"));
        }
        Approval::Revoked { at: revoked } => {
            reasons.push(format!("it was revoked at {}", at(revoked)));
            next.push(format!(
                "`platform nodes remove {id} --lost` ends its record"
            ));
        }
    }
    let last = seen_at.map_or("it has never reported".to_owned(), |seen| {
        format!("it last reported at {}", at(seen))
    });
    match node.presence {
        Presence::Heard { since, .. } => {
            reasons.push(format!("it reports, without a gap since {}", at(since)));
        }
        Presence::NotHeardYet => {
            reasons.push(format!(
                "this server has not heard it since it leads; {last}"
            ));
            next.push("it counts as offline when it does not report in time".to_owned());
        }
        Presence::Lapsed { since } => {
            reasons.push(format!("it does not report any more; {last}"));
            let lost = Timestamp(since.0.saturating_add(LOST_AFTER_MS));
            next.push(format!(
                "others take the place of its instances without volumes from {} on; those with volumes wait for it",
                at(lost)
            ));
        }
    }
    match node.scheduling {
        Scheduling::Schedulable => {}
        Scheduling::Cordoned => {
            reasons.push("it is cordoned: it takes no new instances".to_owned());
            next.push(format!(
                "`platform nodes uncordon {id}` lets it take instances again"
            ));
        }
        Scheduling::Draining { .. } => {
            reasons.push("it is drained: its instances are replaced on other nodes".to_owned());
            let left = cluster.instances.count_on_node(id);
            next.push(format!("{left} instances are left on it"));
        }
    }
    if let Some(org) = &node.org {
        reasons.push(format!("it runs the apps of org {org} only"));
    }
    if let Some(driver) = &node.driver {
        reasons.push(format!("its driver is {}: {}", driver.name, driver.reason));
    }
    if let Some(egress) = node.egress.as_ref().filter(|egress| !egress.on) {
        reasons.push(format!(
            "its instances do not reach the internet: {}",
            egress.reason
        ));
    }
    if node.claimed.is_some() {
        reasons.push(
            "it says that it has more hardware than was approved, which does not count".to_owned(),
        );
        next.push(format!("`platform nodes approve {id}` makes it count"));
    }
    if !node.unknown.is_empty() {
        let count = node.unknown.len();
        reasons.push(format!(
            "it runs {count} instances that the store does not know"
        ));
    }
    Why {
        subject: WhySubject::Node {
            id,
            name: node.name.clone(),
        },
        state: node_state(node).to_owned(),
        reasons,
        next,
        release: None,
        node: None,
        instances: rows(cluster, cluster.instances.on_node(id)),
        events: Vec::new(),
    }
}

fn subject(id: InstanceId, key: &EnvKey, process: &ProcessName) -> WhySubject {
    WhySubject::Instance {
        id,
        app: key.app.clone(),
        env: key.env.clone(),
        process: process.clone(),
    }
}

fn rows<'c>(
    cluster: &ClusterState,
    instances: impl Iterator<Item = (InstanceId, &'c Instance)>,
) -> Vec<WhyInstance> {
    let rows = instances.take(MAX_WHY_INSTANCES).map(|(id, instance)| {
        let spec = &instance.spec;
        WhyInstance {
            id,
            app: spec.app.clone(),
            env: spec.env.clone(),
            process: spec.process.clone(),
            release: spec.release,
            node: instance.node,
            state: state(cluster, instance),
            reason: why_in_short(cluster, instance)
                .trim_start_matches(": ")
                .to_owned(),
        }
    });
    rows.collect()
}

/// `: the reason`, or nothing where all is well.
fn why_in_short(cluster: &ClusterState, instance: &Instance) -> String {
    let online = cluster
        .nodes
        .get(&instance.node)
        .is_some_and(Node::is_online);
    let text = match (&instance.phase, &instance.report) {
        (InstancePhase::Terminating { reason, .. } | InstancePhase::Gone { reason }, _) => {
            reason.clone()
        }
        _ if !online => format!("{} is offline", named(cluster, instance.node)),
        (_, None) => "its node has not reported it yet".to_owned(),
        (_, Some(report)) => match &report.liveness_failure {
            Some(failure) => failure.clone(),
            None if report.state.is_ready() => return String::new(),
            None => cause(report),
        },
    };
    format!(": {text}")
}

/// How an instance is, in the words of `platform ps`.
fn state(cluster: &ClusterState, instance: &Instance) -> String {
    let online = cluster
        .nodes
        .get(&instance.node)
        .is_some_and(Node::is_online);
    match &instance.report {
        _ if instance.is_terminating() => "terminating".to_owned(),
        _ if !online => "unknown".to_owned(),
        None => "created".to_owned(),
        Some(report) if report.state.is_ready() => "healthy".to_owned(),
        Some(InstanceReport {
            state: InstanceState::Stopped,
            last_exit: Some(exit),
            ..
        }) => format!("exited ({})", exit.exit_code),
        Some(report) => report.state.to_string(),
    }
}

fn detail(report: &InstanceReport) -> &str {
    match report.detail.as_str() {
        "" => "it has not said why",
        detail => detail,
    }
}

/// Why an app ended, or does not serve.
fn cause(report: &InstanceReport) -> String {
    match (&report.failure, &report.last_exit) {
        (Some(failure), Some(exit)) if exit.oom_killed && !failure.contains("out of memory") => {
            format!("{failure}, out of memory")
        }
        (Some(failure), _) => failure.clone(),
        (None, Some(exit)) => exit.to_string(),
        (None, None) => detail(report).to_owned(),
    }
}

fn release(cluster: &ClusterState, key: &EnvKey, number: ReleaseNumber) -> Option<WhyRelease> {
    let env = cluster.envs.get(key)?;
    let release = env.releases.get(&number)?;
    let phase = if env.rollout.release == number {
        Some(env.rollout.phase)
    } else {
        env.outcomes.get(&number).copied()
    };
    Some(WhyRelease {
        number,
        by: release.by.clone(),
        at: release.created_at,
        phase,
    })
}

fn node_of(cluster: &ClusterState, id: NodeId) -> WhyNode {
    match cluster.nodes.get(&id) {
        Some(node) => WhyNode {
            id,
            name: node.name.clone(),
            state: node_state(node).to_owned(),
        },
        None => WhyNode {
            id,
            name: id.to_string(),
            state: "removed".to_owned(),
        },
    }
}

fn node_state(node: &Node) -> &'static str {
    match (node.identity.approval, node.presence, node.scheduling) {
        (Approval::Revoked { .. }, ..) => "revoked",
        (Approval::Pending, ..) => "waits for approval",
        (_, Presence::Lapsed { .. }, _) => "offline",
        (_, Presence::NotHeardYet, _) => "not heard yet",
        (_, _, Scheduling::Cordoned) => "cordoned",
        (_, _, Scheduling::Draining { .. }) => "draining",
        (_, _, Scheduling::Schedulable) => "online",
    }
}
