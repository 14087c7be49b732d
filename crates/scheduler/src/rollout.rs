//! How an env gets from one release to another, and when that failed.
//!
//! ```text
//!              deploy                   all ready, none of the old left
//!   (any) ---------------> rolling ---------------------------------------> done
//!                          |     |
//!          a new instance  |     |  the same, and nothing to go back to,
//!          fails, loops or |     |  or `auto_revert = false`
//!          is late         v     v
//!                    reverted   failed
//! ```
//!
//! A release fails while it is rolling out when one of its instances
//! - is not alive, by its liveness check;
//! - is given up by its node, or ended and its policy does not start it again;
//! - was started again [`MAX_NEW_RESTARTS`] times and is not ready;
//! - was never ready, and its image and disks were there for longer than [`READY_DEADLINE_MS`] or its health check's grace
//!   and [`GRACE_MARGIN_MS`], whichever is more, or than its `deploy.deadline`;
//! - was ready, and for as long after the last new instance was created not for `deploy.min_healthy` on end;
//! - is not even prepared after [`PREPARE_DEADLINE_MS`]: a slow registry is not the fault of a release;
//!
//! or when its release command (`deploy.release_command`) did not end with exit code 0 within its deadline, or it cannot be known whether it
//! did; or when an instance could not be placed for that long. Only the time counts in which its node is heard, by the server that leads:
//! an instance on a node that is offline, or that this server has not heard yet, fails no release.
//!
//! After a failure with a release to go back to, that one is wanted again, at its full numbers.
//! Where the manifest says `auto_revert = false`, the new release does not give way: its ready
//! instances stay, the others are terminated, and the previous release fills the gaps. With no release to go back
//! to, all its instances are terminated, so that the cluster is as it was.
//!
//! The reason names the instance, what its node reported, and the last lines of its log.
//!
//! Deliberately absent: which instances are created and terminated ([`crate::planner`]).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use api::node::MAX_LOG_TAIL;
use api::user::RolloutPhase;
use manifest::Deploy;
use model::instance::{InstanceState, Runs};
use model::{ProcessName, ReleaseNumber, Timestamp};

use crate::cluster_state::{ClusterState, Env, Instance, ReleaseCommand, Rollout};

/// Restarts after which a new instance that is not ready fails its release.
pub const MAX_NEW_RESTARTS: u32 = 3;
/// How long a new instance may take until it is ready, once it is prepared, or until it is placed, in milliseconds.
pub const READY_DEADLINE_MS: u64 = 5 * 60 * 1000;
/// How much longer than the grace of its health check a new instance may take until it is ready, in milliseconds.
pub const GRACE_MARGIN_MS: u64 = 60 * 1000;
/// How long the preparation of a new instance may take, in milliseconds: its image is fetched, its disks are made.
pub const PREPARE_DEADLINE_MS: u64 = 30 * 60 * 1000;
/// Longest log line in a reason, in characters.
const MAX_REASON_LINE: usize = 300;

/// The rollout of a new release, given the one before it. A revert goes back to the release that was rolled out wholly
/// last, or that is being reverted to.
pub fn begin(before: Option<&Rollout>, release: ReleaseNumber, now: Timestamp) -> Rollout {
    let previous = before.and_then(|before| match before.phase {
        RolloutPhase::Done => Some(before.release),
        RolloutPhase::Reverted => Some(before.wanted),
        RolloutPhase::Rolling | RolloutPhase::Failed | RolloutPhase::Superseded => before.previous,
    });
    Rollout {
        release,
        wanted: release,
        phase: RolloutPhase::Rolling,
        reason: String::new(),
        previous,
        started_at: now,
        release_commands: BTreeMap::new(),
    }
}

/// The process type whose release command is to run, or runs. While there is one, the env stays at the release before.
pub fn next_release_command<'e>(env: &'e Env, rollout: &Rollout) -> Option<&'e ProcessName> {
    let release = env.releases.get(&rollout.release)?;
    let mut processes = release.manifest.processes.iter();
    let is_next = |(name, process): &(&ProcessName, &manifest::Process)| {
        let done = rollout.release_commands.get(*name);
        process.deploy.release_command.is_some()
            && !release.kept.contains_key(*name)
            && !matches!(done, Some(ReleaseCommand::Completed { .. }))
    };
    let next = processes.find(is_next).map(|(name, _)| name);
    next.filter(|_| rollout.phase == RolloutPhase::Rolling)
}

/// How an env whose release commands run stays at the release before.
pub fn stay_at(rollout: &Rollout, before: ReleaseNumber) -> Rollout {
    Rollout {
        release: before,
        wanted: before,
        phase: RolloutPhase::Done,
        reason: String::new(),
        ..rollout.clone()
    }
}

/// The rollout after its release failed in one of its processes, whose `auto_revert` decides.
pub fn after_failure(
    env: &Env,
    rollout: &Rollout,
    process: &ProcessName,
    reason: String,
) -> Rollout {
    let auto_revert = env
        .releases
        .get(&rollout.release)
        .and_then(|release| release.manifest.processes.get(process))
        .is_none_or(|process| process.deploy.auto_revert);
    match serving_before(env, rollout) {
        Some(previous) if auto_revert => Rollout {
            wanted: previous,
            phase: RolloutPhase::Reverted,
            reason,
            ..rollout.clone()
        },
        _ => Rollout {
            phase: RolloutPhase::Failed,
            reason,
            ..rollout.clone()
        },
    }
}

/// The release that a failing one gives way to, if there is one.
pub fn serving_before(env: &Env, rollout: &Rollout) -> Option<ReleaseNumber> {
    let known = |previous: &ReleaseNumber| env.releases.contains_key(previous);
    rollout.previous.filter(known)
}

/// How many instances of each process the release `number` is to have: what `scale` set, else
/// `scaling.min`, and never more than `scaling.max`. Empty for a release that is not known.
pub fn wanted_counts(env: &Env, number: ReleaseNumber) -> BTreeMap<ProcessName, u32> {
    let Some(release) = env.releases.get(&number) else {
        return BTreeMap::new();
    };
    let count = |(name, process): (&ProcessName, &manifest::Process)| {
        let scaled = env.scale.get(name).copied();
        let wanted = scaled.unwrap_or(process.scaling.min);
        (name.clone(), wanted.min(process.scaling.max))
    };
    release.manifest.processes.iter().map(count).collect()
}

/// Why a number of instances cannot be wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScaleRefused {
    /// There is no such process type.
    #[error("there is no process type {process}; there are: {known}")]
    NoProcess {
        /// As asked for.
        process: ProcessName,
        /// What there is.
        known: String,
    },
    /// More than the manifest allows.
    #[error(
        "{process} can have at most {max} instances (`scaling.max` of its manifest), not {wanted}"
    )]
    TooMany {
        /// The process type.
        process: ProcessName,
        /// As asked for.
        wanted: u32,
        /// `scaling.max`.
        max: u32,
    },
}

/// Whether these numbers of instances can be wanted of the release that is wanted now. To be asked
/// before they are recorded.
pub fn check_scale(env: &Env, wanted: &BTreeMap<ProcessName, u32>) -> Result<(), ScaleRefused> {
    let processes = env
        .releases
        .get(&env.rollout.wanted)
        .map(|release| &release.manifest.processes);
    for (name, wanted) in wanted {
        let Some(process) = processes.and_then(|processes| processes.get(name)) else {
            let known: Vec<_> = processes
                .into_iter()
                .flat_map(BTreeMap::keys)
                .map(ProcessName::as_str)
                .collect();
            return Err(ScaleRefused::NoProcess {
                process: name.clone(),
                known: known.join(", "),
            });
        };
        if *wanted > process.scaling.max {
            return Err(ScaleRefused::TooMany {
                process: name.clone(),
                wanted: *wanted,
                max: process.scaling.max,
            });
        }
    }
    Ok(())
}

/// How well an instance does its work, by its node's last report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceHealth {
    /// It is ready.
    Ready,
    /// It has no port and no health check, ended with exit code 0, and its restart policy does not start it again. As
    /// good as ready.
    Completed,
    /// It starts, or is unhealthy for a while.
    Pending,
    /// Nothing is known of it, and it may well serve: its node is offline, or reports a state that this server does not
    /// know.
    Unknown,
    /// It was started again [`MAX_NEW_RESTARTS`] times or more and is not ready.
    CrashLoop,
    /// It ended and does not start again by itself.
    Terminated,
}

impl InstanceHealth {
    /// The health of `instance`, given whether its node is online.
    pub fn of(instance: &Instance, online: bool) -> Self {
        let Some(report) = instance.report.as_ref().filter(|_| online) else {
            return if online { Self::Pending } else { Self::Unknown };
        };
        let serves = !instance.spec.ports.is_empty() || instance.spec.healthcheck.is_some();
        let clean = report.last_exit.as_ref().is_some_and(|e| e.exit_code == 0);
        match report.state {
            InstanceState::Running { ready: true, .. } => Self::Ready,
            InstanceState::Stopped if clean && !serves => Self::Completed,
            InstanceState::Stopped | InstanceState::Failed => Self::Terminated,
            InstanceState::Unknown => Self::Unknown,
            InstanceState::Created
            | InstanceState::Preparing
            | InstanceState::Booting
            | InstanceState::Running { ready: false, .. }
            | InstanceState::Stopping
            | InstanceState::Backoff => {
                if report.restarts >= MAX_NEW_RESTARTS {
                    Self::CrashLoop
                } else {
                    Self::Pending
                }
            }
        }
    }

    /// Whether it does its work: it is ready, or it ended as it was meant to.
    pub fn is_healthy(self) -> bool {
        matches!(self, Self::Ready | Self::Completed)
    }
}

/// What a rollout looks at when it evaluates one of its instances, beside the cluster state, which knows whether nodes are heard.
#[derive(Debug, Clone, Copy)]
pub struct Evaluator {
    /// When the last instance of the release was created, or the rollout began.
    pub progressed_at: Timestamp,
    /// Now.
    pub now: Timestamp,
}

impl Evaluator {
    /// Whether the instance does its work, and has for so long that it counts as rolled out: `deploy.min_healthy`.
    pub fn is_settled(
        &self,
        cluster: &ClusterState,
        instance: &Instance,
        health: InstanceHealth,
        deploy: Option<&Deploy>,
    ) -> bool {
        let least_ms = deploy.map_or(0, |deploy| deploy.min_healthy_ms);
        let since = instance.ready_since.unwrap_or(Timestamp(0));
        match health {
            InstanceHealth::Completed => true,
            InstanceHealth::Ready => {
                let ready_for = cluster.heard_for(instance.node, since, self.now);
                ready_for >= least_ms
            }
            _ => false,
        }
    }

    /// The deadline that a new instance has missed, in milliseconds, and what it has not reached; none while there is time.
    ///
    /// The node says how long the preparation took, so no clock is compared with another. What it says is believed up to
    /// [`PREPARE_DEADLINE_MS`].
    fn missed_deadline(
        &self,
        cluster: &ClusterState,
        instance: &Instance,
        deploy: Option<&Deploy>,
    ) -> Option<(String, u64)> {
        let report = instance.report.as_ref();
        let is_preparing = report.is_some_and(|report| {
            matches!(
                report.state,
                InstanceState::Created | InstanceState::Preparing
            )
        });
        let age = |at| cluster.heard_for(instance.node, at, self.now);
        if is_preparing {
            let is_late = age(instance.created_at) >= PREPARE_DEADLINE_MS;
            return is_late.then(|| ("not prepared".to_owned(), PREPARE_DEADLINE_MS));
        }
        let check = instance.spec.healthcheck.as_ref();
        let grace_ms = check.map_or(0, |check| check.grace_ms.saturating_add(GRACE_MARGIN_MS));
        let given = deploy.and_then(|deploy| deploy.deadline_ms);
        let deadline = given.unwrap_or(READY_DEADLINE_MS.max(grace_ms));
        let prepared_after = report.map_or(0, |report| report.preparing_ms);
        let since_prepared =
            age(instance.created_at).saturating_sub(prepared_after.min(PREPARE_DEADLINE_MS));
        if instance.was_ready() && instance.spec.runs.is_app() {
            // The time for which it is to be ready comes on top of the time until it is.
            let least_ms = deploy.map_or(0, |deploy| deploy.min_healthy_ms);
            let deadline = deadline.saturating_add(least_ms);
            let is_late = since_prepared.min(age(self.progressed_at)) >= deadline;
            let what = || format!("not ready for {} s on end", least_ms / 1000);
            return is_late.then(|| (what(), deadline));
        }
        let what = match instance.spec.runs {
            Runs::App => "not ready",
            Runs::ReleaseCommand | Runs::Command { .. } => "has not completed",
        };
        (since_prepared >= deadline).then(|| (what.to_owned(), deadline))
    }

    /// Why this instance of a release that is rolling out fails it, if it does. It is not settled. `node_name` is its
    /// node's, for people.
    pub fn failure(
        &self,
        cluster: &ClusterState,
        instance: &Instance,
        health: InstanceHealth,
        deploy: Option<&Deploy>,
        node_name: &str,
    ) -> Option<String> {
        let what = match health {
            InstanceHealth::Completed | InstanceHealth::Unknown => return None,
            InstanceHealth::Ready | InstanceHealth::Pending
                if (instance.report.as_ref())
                    .is_some_and(|report| report.liveness_failure.is_some()) =>
            {
                "is not alive".to_owned()
            }
            InstanceHealth::Ready | InstanceHealth::Pending => {
                let (what, deadline_ms) = self.missed_deadline(cluster, instance, deploy)?;
                let deadline = if deadline_ms % 60_000 == 0 {
                    format!("{} min", deadline_ms / 60_000)
                } else {
                    format!("{} s", deadline_ms / 1000)
                };
                let at = match &instance.report {
                    None => "waiting for the node".to_owned(),
                    Some(report) if report.detail.is_empty() => report.state.to_string(),
                    Some(report) => format!("{} ({})", report.state, report.detail),
                };
                format!("{what} after {deadline}: {at}")
            }
            InstanceHealth::CrashLoop => {
                let restarts = instance.report.as_ref().map_or(0, |r| r.restarts);
                format!("started again {restarts} times and not ready")
            }
            InstanceHealth::Terminated => match instance.report.as_ref().map(|r| r.state) {
                _ if !instance.spec.runs.is_app() => "failed".to_owned(),
                Some(InstanceState::Stopped) => {
                    "ended by itself, and its restart policy does not start it again".to_owned()
                }
                _ => "failed".to_owned(),
            },
        };
        Some(reason(instance, &what, node_name))
    }
}

/// What happened to an instance, with what its node and its log say, for people.
fn reason(instance: &Instance, what: &str, node_name: &str) -> String {
    let spec = &instance.spec;
    let (id, process, node) = (spec.id, &spec.process, instance.node);
    let of = match spec.runs {
        Runs::App => "of",
        Runs::ReleaseCommand => "with the release command of",
        Runs::Command { .. } => "with a command of",
    };
    let mut reason = format!("instance {id} {of} {process} on {node_name} ({node}) {what}");
    let Some(report) = &instance.report else {
        return reason;
    };
    // Writing to a String cannot fail.
    if let Some(failure) = report.liveness_failure.as_ref().or(report.failure.as_ref()) {
        let _ = write!(reason, ": {failure}");
    } else if let Some(exit) = &report.last_exit {
        let _ = write!(reason, ": {exit}");
    }
    if !report.log_tail.is_empty() {
        reason.push_str("\nlast log lines:");
        let skip = report.log_tail.len().saturating_sub(MAX_LOG_TAIL);
        for line in report.log_tail.iter().skip(skip) {
            let line: String = line.chars().take(MAX_REASON_LINE).collect();
            let _ = write!(reason, "\n  {line}");
        }
    }
    reason
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::fixtures::{cluster, deploy, key, manifest, name, process};

    fn rollout(release: u32, phase: RolloutPhase, wanted: u32, previous: Option<u32>) -> Rollout {
        Rollout {
            release: ReleaseNumber(release),
            wanted: ReleaseNumber(wanted),
            phase,
            reason: "said before".to_owned(),
            previous: previous.map(ReleaseNumber),
            started_at: Timestamp(1),
            release_commands: BTreeMap::new(),
        }
    }

    #[test]
    fn a_rollout_goes_back_to_the_last_whole_release() {
        let previous = |before: Option<Rollout>| {
            let begun = begin(before.as_ref(), ReleaseNumber(9), Timestamp(5));
            assert_eq!(begun.wanted, ReleaseNumber(9));
            assert_eq!(
                (begun.phase, begun.reason.as_str()),
                (RolloutPhase::Rolling, "")
            );
            assert_eq!(begun.started_at, Timestamp(5));
            begun.previous.map(|release| release.0)
        };
        assert_eq!(previous(None), None);
        let whole = rollout(8, RolloutPhase::Done, 8, Some(7));
        assert_eq!(previous(Some(whole)), Some(8));
        let under_way = rollout(8, RolloutPhase::Rolling, 8, Some(7));
        assert_eq!(previous(Some(under_way)), Some(7));
        let taken_back = rollout(8, RolloutPhase::Reverted, 7, Some(7));
        assert_eq!(previous(Some(taken_back)), Some(7));
        let first_failed = rollout(8, RolloutPhase::Failed, 8, None);
        assert_eq!(previous(Some(first_failed)), None);
    }

    #[test]
    fn case_the_deadline_of_a_rollout_starts_after_the_pull_and_follows_the_grace() {
        use crate::fixtures::{RUNNING, report, spec};
        const MIN: u64 = 60_000;
        let late = |state: Option<InstanceState>, preparing_ms, grace_ms, age_ms| {
            let mut web = process(1);
            web.healthcheck.as_mut().unwrap().grace_ms = grace_ms;
            let spec = spec(web);
            let mut instance = Instance::new(spec, model::NodeId(1), Timestamp(1000));
            instance.report = state.map(|state| api::node::InstanceReport {
                preparing_ms,
                ..report(instance.spec.id, state)
            });
            let health = InstanceHealth::of(&instance, true);
            let evaluator = Evaluator {
                progressed_at: Timestamp(1000),
                now: Timestamp(1000 + age_ms),
            };
            let deploy = process(1).deploy;
            evaluator.failure(&cluster(1), &instance, health, Some(&deploy), "n1")
        };
        let is_late = |state, preparing_ms, grace_ms, age_ms| {
            assert_eq!(late(state, preparing_ms, grace_ms, age_ms - 1), None);
            late(state, preparing_ms, grace_ms, age_ms).unwrap()
        };
        let (preparing, booting, running) = (
            Some(InstanceState::Preparing),
            Some(InstanceState::Booting),
            Some(RUNNING),
        );
        // Without a word of the node, and with a quick pull: five minutes.
        is_late(None, 0, 0, 5 * MIN);
        let text = is_late(running, 0, 5000, 5 * MIN);
        assert!(text.contains("not ready after 5 min: running"), "{text}");
        // A slow pull does not count.
        is_late(booting, 20 * MIN, 5000, 25 * MIN);
        let text = is_late(preparing, 0, 0, 30 * MIN);
        assert!(
            text.contains("not prepared after 30 min: preparing"),
            "{text}"
        );
        // A grace above the deadline extends it.
        let text = is_late(running, 0, 10 * MIN, 11 * MIN);
        assert!(text.contains("not ready after 11 min"), "{text}");
        is_late(running, 0, 4 * MIN, 5 * MIN);
        // A node that says nonsense gains no more than the longest pull.
        is_late(running, u64::MAX, u64::MAX / 2, u64::MAX / 2 + 31 * MIN);
    }

    #[test]
    fn scale_stays_within_the_manifest() {
        let mut cluster = cluster(1);
        deploy(
            &mut cluster,
            "shop/prod",
            manifest(&[("web", process(2))]),
            Timestamp(0),
        );
        let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
        let count = |env: &Env| wanted_counts(env, ReleaseNumber(1))[&name("web")];
        assert_eq!(count(env), 2);
        env.scale.insert(name("web"), 1);
        assert_eq!(count(env), 1);
        env.scale.insert(name("web"), 99);
        assert_eq!(count(env), 20);
        assert!(wanted_counts(env, ReleaseNumber(2)).is_empty());

        let refused = |process: &str, count| {
            let wanted = BTreeMap::from([(name(process), count)]);
            check_scale(env, &wanted).map_err(|refused| refused.to_string())
        };
        assert_eq!(refused("web", 20), Ok(()));
        assert_eq!(
            refused("web", 21).unwrap_err(),
            "web can have at most 20 instances (`scaling.max` of its manifest), not 21"
        );
        assert_eq!(
            refused("wbe", 1).unwrap_err(),
            "there is no process type wbe; there are: web"
        );
    }
}
