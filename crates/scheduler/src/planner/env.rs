//! One pass over one env: the changes that can be made at once.

// ring: a pass over one env reads and changes what the planner holds, and the planner makes one pass after the other.

use std::collections::BTreeMap;

use api::user::RolloutPhase;
use model::instance::Runs;
use model::{EnvKey, ProcessName};

use super::command;
use super::release_command::{self, Progress};
use super::task::Task;
use super::view::{Goal, InstanceView, deploy_of, terminate, views};
use super::{Finding, Pass};
use crate::action::Action;
use crate::cluster_state::{Env, Rollout};
use crate::rollout::{self, Evaluator, InstanceHealth};

/// Makes the changes that can be made at once; returns the findings.
pub(super) fn pass(planner: &mut Pass<'_, '_>, key: &EnvKey) -> Vec<Finding> {
    let Some(env) = planner.working.envs.get_shared(key) else {
        return Vec::new();
    };
    let env = env.as_ref();
    let rollout = env.rollout.clone();
    let evaluator = Evaluator {
        progressed_at: planner.progressed_at(key, &rollout),
        now: planner.now,
    };
    let all = views(planner, key, env, &rollout, evaluator);
    if let Some(record) = planner.working.frozen_by(key) {
        return vec![Finding {
            env: key.clone(),
            process: None,
            message: format!("nothing of it is changed: {record}"),
        }];
    }
    if env.destroying {
        return destroy(planner, key, &all);
    }
    command::end(planner, &all);
    let is_release_command = |view: &&InstanceView| view.runs == Runs::ReleaseCommand;
    let commands: Vec<_> = all.iter().filter(is_release_command).collect();
    let progress = release_command::advance(planner, env, (key, &rollout), &commands, evaluator);
    let (rollout, all, mut findings) = match progress {
        Progress::NothingToDo => (rollout, all, Vec::new()),
        Progress::Next(next) => {
            set_rollout(planner, key, next);
            return Vec::new();
        }
        Progress::Waits(waits) => match rollout::serving_before(env, &rollout) {
            Some(before) => {
                let rollout = rollout::stay_at(&rollout, before);
                let all = views(planner, key, env, &rollout, evaluator);
                (rollout, all, waits)
            }
            None => return waits,
        },
    };
    let views: Vec<_> = all.into_iter().filter(|view| view.runs.is_app()).collect();
    // A release took over from one that was rolling out: what is half-way stays so until the commands have completed.
    let is_half_way = |view: &InstanceView| !view.terminating && view.release != rollout.release;
    if !findings.is_empty() && views.iter().any(is_half_way) {
        return findings;
    }
    findings.append(&mut unhealthy(planner, key, &views, rollout.phase));

    if rollout.phase == RolloutPhase::Rolling
        && let Some(next) = evaluate(planner, env, &rollout, &views, evaluator)
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
            // An instance that is only to move to another node is there still.
            let there = mine
                .iter()
                .filter(|s| !s.terminating && s.release == goal.make && !s.lost);
            let is_missing = there.count() < *wanted as usize;
            if rollout.phase == RolloutPhase::Rolling
                && is_missing
                && task.is_too_late(&why, planner)
            {
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

/// Sets how far the rollout of an env is.
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
        let why = if view.lapsed {
            "its node is offline"
        } else {
            "stopping"
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
            InstanceHealth::Ready if !view.dead && !view.settled => {
                "ready; it counts when it was so for `deploy.min_healthy` on end".into()
            }
            _ if view.dead => format!(
                "{}; it is replaced, one of its process type at a time",
                planner.last_report(view.id, phase)
            )
            .into(),
            InstanceHealth::Unknown => planner.unknown_because(view.id).into(),
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
    evaluator: Evaluator,
) -> Option<Rollout> {
    let is_new =
        |view: &&InstanceView| view.release == rollout.release && !view.terminating && !view.lost;
    // What the release has not touched does not fail it.
    let touched = views
        .iter()
        .filter(|view| is_new(view) && !view.untouched && !view.settled);
    for view in touched {
        let instance = planner.working.instances.get(&view.id)?;
        let node = planner.node_name(view.node);
        let deploy = deploy_of(env, rollout.release, &view.process);
        if let Some(reason) =
            evaluator.failure(planner.working, instance, view.health, deploy, node)
        {
            return Some(rollout::after_failure(env, rollout, &view.process, reason));
        }
    }
    // A terminating instance on an offline node may take long to go: the rollout does not wait for it.
    let old_left = views
        .iter()
        .any(|view| view.release != rollout.release && (!view.terminating || !view.lapsed));
    let counts = rollout::wanted_counts(env, rollout.release);
    let all_healthy = counts.iter().all(|(process, wanted)| {
        let mine = views
            .iter()
            .filter(is_new)
            .filter(|s| s.process == *process);
        let (all, healthy) = mine.fold((0, 0), |(all, healthy), view| {
            let counts = view.settled || view.untouched;
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
            .filter(|s| s.settled);
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
