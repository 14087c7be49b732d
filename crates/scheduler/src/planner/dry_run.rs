//! What a release would do, found out on a copy of the cluster state: the planner itself is run to rest, and every instance that it makes is
//! taken to be ready at once, and so is one that is on its way now.
//!
//! Nothing is decided here that the planner does not decide. What it cannot foresee: an app that does not start, and what others
//! change meanwhile.

// ring: it plays with what a planner holds, which has it as a part.

use std::collections::{BTreeMap, BTreeSet};

use api::node::InstanceReport;
use api::user::RolloutPhase;
use model::instance::{ExitEvent, InstanceState, Runs};
use model::{EnvKey, InstanceId, NodeId, ProcessName, Timestamp};

use super::{Finding, Planner};
use crate::action::Action;
use crate::apply::{Command, Refused, apply};
use crate::cluster_state::{ClusterState, InstancePhase, Node};
use crate::rollout::READY_DEADLINE_MS;

/// Rounds of planning and of instances that become ready: an env of a thousand instances that are replaced one by one needs two for each.
const MAX_ROUNDS: u32 = 4096;
/// Actions that are looked at.
const MAX_ACTIONS: usize = 20_000;
/// The time between two rounds beyond the longest `deploy.min_healthy`, in milliseconds.
const ROUND_MS: u64 = 1000;

/// What a release would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DryRun {
    /// The instances that are made, with their process type and node, in order.
    pub created: Vec<(InstanceId, ProcessName, NodeId)>,
    /// The instances of now that end, and why, in order.
    pub terminated: BTreeMap<InstanceId, String>,
    /// What cannot be done, and why: what the env waits for when all is done that can be.
    pub blocked: Vec<Finding>,
    /// How the rollout ends; `Rolling`: it waits for what is in `blocked`.
    pub phase: RolloutPhase,
    /// Whether it was followed to its end.
    pub is_whole: bool,
}

/// Carries commands out on a copy, and runs the planner to rest.
///
/// # Errors
/// A command does not fit the cluster state.
pub fn dry_run(
    cluster: &ClusterState,
    key: &EnvKey,
    commands: &[Command],
    now: Timestamp,
    draw: &mut dyn FnMut() -> u32,
) -> Result<DryRun, Refused> {
    let mut working = cluster.clone();
    for command in commands {
        apply(&mut working, command)?;
    }
    let mut planner = Planner::new(&working);
    planner.queue = BTreeSet::from([key.clone()]);
    let before: BTreeSet<InstanceId> = cluster.instances.of_env(key).map(|(id, _)| id).collect();
    let mut run = DryRun {
        created: Vec::new(),
        terminated: BTreeMap::new(),
        blocked: Vec::new(),
        phase: RolloutPhase::Rolling,
        is_whole: false,
    };
    let longest = longest_min_healthy(&working, key);
    let step = longest.saturating_add(ROUND_MS);
    let (mut at, mut actions) = (now, 0);
    for _ in 0..MAX_ROUNDS {
        planner.queue.insert(key.clone());
        let planned = planner
            .plan_next(&mut working, at, draw)
            .unwrap_or_default();
        actions += planned.actions.len();
        for action in &planned.actions {
            match action {
                Action::Create(placed) => {
                    let process = placed.spec.process.clone();
                    run.created.push((placed.spec.id, process, placed.node));
                }
                Action::Terminate { id, reason } if before.contains(id) => {
                    run.terminated.insert(*id, reason.clone());
                }
                _ => {}
            }
        }
        let moved = settle(&mut working, &mut planner, key, &before, at);
        if planned.actions.is_empty() && !moved {
            run.is_whole = true;
            break;
        }
        if actions > MAX_ACTIONS {
            break;
        }
        at = Timestamp(at.0.saturating_add(step));
    }
    let findings = planner.findings.get(key);
    run.blocked = findings.cloned().unwrap_or_default();
    let phase = |cluster: &ClusterState| cluster.envs.get(key).map(|env| env.rollout.phase);
    run.phase = phase(&working).unwrap_or(RolloutPhase::Rolling);
    if run.is_whole && run.phase == RolloutPhase::Rolling {
        // Does it wait, or is it given up in the end?
        planner.queue.insert(key.clone());
        let late = Timestamp(at.0.saturating_add(READY_DEADLINE_MS).saturating_add(step));
        planner.plan_next(&mut working, late, draw);
        run.phase = phase(&working).unwrap_or(run.phase);
    }
    Ok(run)
}

/// The instance starts for the first time, and nothing has gone wrong yet.
fn is_on_its_way(report: &InstanceReport) -> bool {
    let starts = match report.state {
        InstanceState::Created | InstanceState::Preparing | InstanceState::Booting => true,
        state => state.is_running() && !state.is_ready(),
    };
    let has_failed =
        report.failure.is_some() || report.last_exit.is_some() || report.liveness_failure.is_some();
    starts && report.restarts == 0 && !has_failed
}

/// New instances are ready, release commands have completed, and what was terminated on a node that is heard is gone. False: nothing changed.
fn settle(
    working: &mut ClusterState,
    planner: &mut Planner,
    key: &EnvKey,
    before: &BTreeSet<InstanceId>,
    at: Timestamp,
) -> bool {
    let mut moved = Vec::new();
    for (id, instance) in working.instances.of_env(key) {
        let heard = working
            .nodes
            .get(&instance.node)
            .is_some_and(Node::is_online);
        let is_new = match &instance.report {
            None => true,
            Some(report) => before.contains(&id) && is_on_its_way(report),
        };
        if heard && (is_new || instance.is_terminating()) {
            moved.push(id);
        }
    }
    for id in &moved {
        if let Some(instance) = working.instances.get_mut(id) {
            if let InstancePhase::Terminating { reason, .. } = &instance.phase {
                instance.phase = InstancePhase::Gone {
                    reason: reason.clone(),
                };
                continue;
            }
            let state = match instance.spec.runs {
                Runs::App => InstanceState::Running {
                    ready: true,
                    started_at: None,
                },
                Runs::ReleaseCommand | Runs::Command { .. } => InstanceState::Stopped,
            };
            let mut report = InstanceReport::new(*id, state);
            if state == InstanceState::Stopped {
                report.last_exit = Some(ExitEvent {
                    exit_code: 0,
                    signal: None,
                    oom_killed: false,
                    requested_stop: false,
                    at,
                });
            }
            instance.report = Some(report);
            instance.ready_since = Some(at);
            if instance.phase == InstancePhase::New {
                instance.phase = InstancePhase::Established;
            }
        }
        planner
            .placement
            .set_instance(*id, working.instances.get(id));
    }
    !moved.is_empty()
}

fn longest_min_healthy(cluster: &ClusterState, key: &EnvKey) -> u64 {
    let env = cluster.envs.get(key);
    let release = env.and_then(|env| env.releases.get(&env.rollout.release));
    let processes = release
        .into_iter()
        .flat_map(|r| r.manifest.processes.values());
    let longest = processes.map(|process| process.deploy.min_healthy_ms).max();
    longest.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use model::ReleaseNumber;

    use super::*;
    use crate::cluster_state::Scheduling;
    use crate::fixtures::{READY, cluster, deploy, key, manifest, name, process};
    use crate::planner::plan;

    fn draw() -> impl FnMut() -> u32 {
        let mut drawn = 0x100;
        move || {
            drawn += 0x10;
            drawn
        }
    }

    /// Two nodes on which `web` and `worker` of release 1 are rolled out; and the command that deploys release 2 with this change.
    fn rolled_out(change: impl Fn(&mut manifest::Process)) -> (ClusterState, Vec<Command>) {
        let mut cluster = cluster(2);
        let env = key("shop/prod");
        let first = manifest(&[("web", process(2)), ("worker", process(1))]);
        deploy(&mut cluster, "shop/prod", first.clone(), Timestamp(0));
        for _ in 0..4 {
            for action in plan(&cluster, Timestamp(1), &mut draw()).actions {
                apply(&mut cluster, &action.into()).unwrap();
            }
            for instance in cluster.instances.values_mut() {
                instance.report = Some(InstanceReport::new(instance.spec.id, READY));
                instance.ready_since = Some(Timestamp(1));
                instance.phase = InstancePhase::Established;
            }
        }
        assert_eq!(cluster.envs[&env].rollout.phase, RolloutPhase::Done);
        let there = &cluster.envs[&env];
        let mut release = there.releases[&ReleaseNumber(1)].clone();
        change(release.manifest.processes.get_mut(&name("web")).unwrap());
        let command = Command::AddRelease {
            env: env.clone(),
            number: ReleaseNumber(2),
            release: Box::new(release),
            rollout: crate::rollout::begin(Some(&there.rollout), ReleaseNumber(2), Timestamp(2)),
        };
        (cluster, vec![command])
    }

    #[test]
    fn what_changes_rolls_and_what_does_not_stays() {
        let (cluster, commands) = rolled_out(|web| {
            web.env.insert("COLOUR".to_owned(), "green".to_owned());
            web.deploy.min_healthy_ms = 60_000;
        });
        let env = key("shop/prod");
        let before = cluster.clone();
        let run = dry_run(&cluster, &env, &commands, Timestamp(3), &mut draw()).unwrap();
        assert_eq!(cluster, before);
        assert!(run.is_whole);
        assert_eq!((run.phase, run.blocked.len()), (RolloutPhase::Done, 0));
        let processes: Vec<_> = run
            .created
            .iter()
            .map(|(_, process, _)| process.as_str())
            .collect();
        assert_eq!(processes, ["web", "web"]);
        let ended = run
            .terminated
            .keys()
            .map(|id| cluster.instances[id].spec.process.as_str());
        assert_eq!(ended.collect::<Vec<_>>(), ["web", "web"]);

        let (cluster, commands) = rolled_out(|_| {});
        let run = dry_run(&cluster, &env, &commands, Timestamp(3), &mut draw()).unwrap();
        assert_eq!((run.created.len(), run.terminated.len()), (0, 0));
        assert_eq!(run.phase, RolloutPhase::Done);
    }

    #[test]
    fn beside_a_rollout_what_is_on_its_way_arrives_and_what_has_failed_does_not() {
        let (mut cluster, commands) = rolled_out(|web| {
            web.env.insert("COLOUR".to_owned(), "green".to_owned());
        });
        let env = key("shop/prod");
        for command in &commands {
            apply(&mut cluster, command).unwrap();
        }
        for action in plan(&cluster, Timestamp(3), &mut draw()).actions {
            apply(&mut cluster, &action.into()).unwrap();
        }
        let there = &cluster.envs[&env];
        let again = Command::AddRelease {
            env: env.clone(),
            number: ReleaseNumber(3),
            release: Box::new(there.releases[&ReleaseNumber(2)].clone()),
            rollout: crate::rollout::begin(Some(&there.rollout), ReleaseNumber(3), Timestamp(4)),
        };
        let commands = [again];
        let mut with = |state, restarts| {
            let mut made = 0;
            for instance in cluster.instances.values_mut() {
                if instance.spec.release == ReleaseNumber(2) {
                    let mut report = InstanceReport::new(instance.spec.id, state);
                    report.restarts = restarts;
                    instance.report = Some(report);
                    made += 1;
                }
            }
            assert!(made > 0);
            dry_run(&cluster, &env, &commands, Timestamp(5), &mut draw()).unwrap()
        };
        let unready = InstanceState::Running {
            ready: false,
            started_at: None,
        };
        for state in [InstanceState::Preparing, InstanceState::Booting, unready] {
            assert_eq!(with(state, 0).phase, RolloutPhase::Done, "{state:?}");
        }
        assert_ne!(with(InstanceState::Booting, 3).phase, RolloutPhase::Done);
    }

    #[test]
    fn what_cannot_be_placed_is_named_with_the_reason_of_a_deploy() {
        let (mut cluster, commands) = rolled_out(|web| web.resources.memory_bytes = 1 << 50);
        let env = key("shop/prod");
        let run = dry_run(&cluster, &env, &commands, Timestamp(3), &mut draw()).unwrap();
        assert!(run.created.is_empty() && run.is_whole, "{run:?}");
        assert_eq!(run.blocked[0].process, Some(name("web")));
        assert!(
            run.blocked[0].message.contains("memory"),
            "{:?}",
            run.blocked
        );
        assert_eq!(run.phase, RolloutPhase::Reverted);

        for node in cluster.nodes.keys().copied().collect::<Vec<_>>() {
            let cordon = Command::SetScheduling {
                node,
                scheduling: Scheduling::Cordoned,
            };
            apply(&mut cluster, &cordon).unwrap();
        }
        let run = dry_run(&cluster, &env, &commands, Timestamp(3), &mut draw()).unwrap();
        assert!(!run.blocked.is_empty());
        let absent = dry_run(&cluster, &key("shop/none"), &[], Timestamp(3), &mut draw());
        assert!(absent.unwrap().created.is_empty());
    }
}
