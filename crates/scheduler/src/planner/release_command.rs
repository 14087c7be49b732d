//! The release commands of a release: each runs once, in an instance of its own, one after the other, before anything is rolled out.

// ring: it creates and terminates what the pass holds, and a pass asks it first.

use api::user::RolloutPhase;
use model::EnvKey;
use model::instance::Runs;

use super::task::Task;
use super::view::{Goal, InstanceView, deploy_of, terminate};
use super::{Finding, Pass};
use crate::cluster_state::{Env, ReleaseCommand, Rollout};
use crate::rollout::{self, Evaluator, InstanceHealth};

/// How far the release commands of an env are.
pub(super) enum Progress {
    /// There is none to wait for: the env is rolled out.
    NothingToDo,
    /// The rollout is to be this one: a command was started, has completed or failed.
    Next(Rollout),
    /// One runs or cannot start yet, and what is the matter.
    Waits(Vec<Finding>),
}

/// Starts the next release command, or evaluates the one that runs. `commands` are the instances of all of them that are there, of older
/// releases too.
pub(super) fn advance(
    planner: &mut Pass<'_, '_>,
    env: &Env,
    (key, rollout): (&EnvKey, &Rollout),
    commands: &[&InstanceView],
    evaluator: Evaluator,
) -> Progress {
    let next = rollout::next_release_command(env, rollout);
    let runs_now =
        |view: &InstanceView| next == Some(&view.process) && view.made_by == rollout.release;
    for view in commands.iter().filter(|view| !view.terminating) {
        let reason = match rollout.release_commands.get(&view.process) {
            _ if runs_now(view) => continue,
            Some(ReleaseCommand::Completed { .. }) if view.made_by == rollout.release => {
                "its release command has completed".to_owned()
            }
            _ if view.made_by == rollout.release && rollout.phase != RolloutPhase::Rolling => {
                format!("{} failed", view.made_by)
            }
            _ => format!("{} takes the place of {}", rollout.release, view.made_by),
        };
        terminate(planner, view, reason);
    }
    let Some(process) = next else {
        return Progress::NothingToDo;
    };
    let waits = |message: String| {
        Progress::Waits(vec![Finding {
            env: key.clone(),
            process: Some(process.clone()),
            message,
        }])
    };
    let fails =
        |reason: String| Progress::Next(rollout::after_failure(env, rollout, process, reason));
    let with = |command: ReleaseCommand| {
        let mut rollout = rollout.clone();
        rollout.release_commands.insert(process.clone(), command);
        Progress::Next(rollout)
    };
    let running = commands
        .iter()
        .find(|view| runs_now(view) && !view.terminating);
    let Some(view) = running else {
        if rollout.release_commands.contains_key(process) {
            return fails(format!(
                "the instance with the release command of {process} is gone, and whether the command completed is not known: it is \
                 not run again"
            ));
        }
        // Of two migrations at once neither knows what the other does. On a node that is not heard one may still run.
        if let Some(other) = commands.first() {
            let mut message = format!(
                "the release command waits until instance {} with that of {} is gone",
                other.id, other.made_by
            );
            if other.lapsed {
                let node = planner.node_name(other.node);
                message.push_str(&format!(
                    ": {node} is offline, and it may still run there; `platform nodes remove --lost` says that it does not"
                ));
            }
            return waits(message);
        }
        let Some(release) = env.releases.get(&rollout.release) else {
            return Progress::NothingToDo;
        };
        let task = Task {
            key,
            env,
            release,
            rollout,
            goal: Goal {
                make: rollout.release,
                halted: None,
            },
            process,
            wanted: 1,
        };
        return match task.make_one(planner, (Runs::ReleaseCommand, None), None) {
            Ok(()) => with(ReleaseCommand::Started),
            Err(why) if task.is_too_late(&why, planner) => fails(format!(
                "the release command of {process} cannot run: {why}"
            )),
            Err(why) => waits(format!("the release command cannot run yet: {why}")),
        };
    };
    if view.health == InstanceHealth::Completed {
        return with(ReleaseCommand::Completed { at: planner.now });
    }
    let node = planner.node_name(view.node);
    if view.lost {
        return fails(format!(
            "{node} with the release command of {process} is offline, and whether the command completed is not known: it is not \
             run again"
        ));
    }
    let instance = planner.working.instances.get(&view.id);
    let deploy = deploy_of(env, rollout.release, process);
    let failure = instance.and_then(|instance| {
        evaluator.failure(planner.working, instance, view.health, deploy, node)
    });
    if let Some(reason) = failure {
        return fails(reason);
    }
    waits(format!(
        "the release command runs in instance {} on {node}: {}",
        view.id,
        match view.health {
            InstanceHealth::Unknown => planner.unknown_because(view.id).into(),
            _ => planner.last_report(view.id, rollout.phase),
        }
    ))
}
