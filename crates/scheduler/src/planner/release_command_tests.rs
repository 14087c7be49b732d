//! Release commands, step by step.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use api::user::RolloutPhase;
use manifest::Process;
use model::instance::{InstanceState, RestartWhen, Runs};
use model::{InstanceId, ReleaseNumber};

use super::strategy_tests::Played;
use crate::apply::{Command, apply};
use crate::cluster_state::{Instance, Scheduling};
use crate::fixtures::{READY, RUNNING, exit, key, lapse, manifest, process, worker};
use crate::rollout::READY_DEADLINE_MS;
use crate::routes::routes;

fn migrates(web: &mut Process) {
    web.deploy.release_command = Some(vec!["migrate".to_owned()]);
}

impl Played {
    fn commands(&self) -> Vec<&Instance> {
        let all = self.cluster.instances.values();
        all.filter(|instance| instance.spec.runs == Runs::ReleaseCommand)
            .collect()
    }

    /// The one instance with a release command.
    fn command(&self) -> InstanceId {
        let commands = self.commands();
        assert_eq!(commands.len(), 1, "{:?}", self.reason());
        commands[0].spec.id
    }

    /// The command ends.
    fn end(&mut self, id: InstanceId, code: u8) {
        self.report_with(id, InstanceState::Stopped, |said| {
            said.last_exit = Some(exit(code));
            said.log_tail = vec!["relation users exists".to_owned()];
        });
        self.step();
    }
}

#[test]
fn case_a_release_command_runs_once_and_alone_before_anything_is_rolled_out() {
    let mut rollout = Played::of(migrates);
    let id = rollout.command();
    assert_eq!(rollout.counts(), (2, 1));
    let spec = &rollout.cluster.instances[&id].spec;
    assert_eq!(spec.command.as_deref(), Some(&["migrate".to_owned()][..]));
    assert_eq!(spec.variables["COLOUR"], "green");
    assert!(spec.ports.is_empty() && spec.healthcheck.is_none() && spec.volumes.is_empty());
    assert_eq!(spec.restart.when, RestartWhen::Never);
    // It runs for as long as its deadline allows; that it is there is not that it is ready.
    rollout.report(id, READY, 0);
    rollout.after(READY_DEADLINE_MS - 1000);
    assert_eq!(rollout.counts(), (2, 1));
    let waits = super::plan(&rollout.cluster, rollout.now, &mut || 7).findings;
    assert!(
        waits[0].message.starts_with(&format!(
            "the release command runs in instance {id} on node-"
        )),
        "{waits:?}"
    );
    // Only the release that is there is routed to.
    let table = routes(&rollout.cluster);
    let backends = table.values().flat_map(|route| &route.backends);
    assert!(
        backends.clone().count() == 2 && backends.clone().all(|backend| backend.instance != id)
    );
    rollout.end(id, 0);
    assert_eq!(rollout.commands().len(), 0);
    assert_eq!(rollout.counts(), (2, 1));
    while rollout.phase() == RolloutPhase::Rolling {
        rollout.report_all(READY);
        rollout.step();
    }
    assert_eq!(
        (rollout.phase(), rollout.counts()),
        (RolloutPhase::Done, (0, 2))
    );
    // A drain, a scale and a failed instance run no command again.
    for node in rollout.cluster.nodes.values_mut().take(1) {
        node.scheduling = Scheduling::Draining {
            with_volumes: false,
        };
    }
    rollout.step();
    assert_eq!(rollout.commands().len(), 0);
}

#[test]
fn case_a_release_whose_command_fails_is_not_rolled_out() {
    let mut rollout = Played::of(migrates);
    let id = rollout.command();
    rollout.report(id, RUNNING, 0);
    rollout.end(id, 3);
    assert_eq!(
        (rollout.phase(), rollout.counts()),
        (RolloutPhase::Reverted, (2, 0))
    );
    let reason = rollout.reason();
    assert!(
        reason.contains(&format!(
            "instance {id} with the release command of web on node-"
        )) && reason.contains("failed: exit code 3")
            && reason.contains("relation users exists"),
        "{reason}"
    );
    rollout.after(3_600_000);
    assert_eq!(rollout.counts(), (2, 0));
}

#[test]
fn case_a_release_command_has_a_deadline() {
    let mut rollout = Played::of(|web| {
        migrates(web);
        web.deploy.deadline_ms = Some(90_000);
    });
    let id = rollout.command();
    rollout.report(id, RUNNING, 0);
    rollout.after(89_999);
    assert_eq!(rollout.phase(), RolloutPhase::Rolling);
    rollout.after(1);
    assert_eq!(
        (rollout.phase(), rollout.counts()),
        (RolloutPhase::Reverted, (2, 0))
    );
    assert!(
        rollout.reason().contains("has not completed after 90 s"),
        "{}",
        rollout.reason()
    );
}

#[test]
fn case_a_release_command_is_not_run_again_when_its_node_is_lost_or_removed() {
    for remove in [false, true] {
        let mut rollout = Played::of(migrates);
        let id = rollout.command();
        let node = rollout.cluster.instances[&id].node;
        rollout.report(id, RUNNING, 0);
        lapse(&mut rollout.cluster, node.0, rollout.now);
        rollout.after(59_999);
        assert_eq!(rollout.phase(), RolloutPhase::Rolling);
        if remove {
            let now = rollout.now;
            apply(
                &mut rollout.cluster,
                &Command::RemoveNode {
                    node,
                    lost: true,
                    now,
                },
            )
            .unwrap();
        }
        rollout.after(1);
        assert_eq!(rollout.phase(), RolloutPhase::Reverted);
        assert!(
            rollout.reason().ends_with("it is not run again"),
            "{}",
            rollout.reason()
        );
    }
}

#[test]
fn case_a_second_deploy_waits_until_the_command_of_the_first_is_gone() {
    let mut rollout = Played::of(migrates);
    let first = rollout.command();
    rollout.report(first, RUNNING, 0);
    let mut web = process(2);
    migrates(&mut web);
    rollout.deploy(manifest(&[("web", web)]));
    let planned = super::plan(&rollout.cluster, rollout.now, &mut || 99);
    let waits: Vec<_> = planned.findings.iter().map(ToString::to_string).collect();
    assert!(
        waits[0].contains(&format!(
            "the release command waits until instance {first} with that of v2 is gone"
        )),
        "{waits:?}"
    );
    // Terminated and gone: that of the third release runs.
    rollout.step();
    let second = rollout.command();
    assert_ne!(first, second);
    assert_eq!(
        rollout.cluster.instances[&second].spec.release,
        ReleaseNumber(3)
    );
}

#[test]
fn case_a_command_that_may_still_run_on_a_node_that_is_not_heard_keeps_that_of_the_next_release_waiting()
 {
    let mut rollout = Played::of(migrates);
    let first = rollout.command();
    let node = rollout.cluster.instances[&first].node;
    rollout.report(first, RUNNING, 0);
    lapse(&mut rollout.cluster, node.0, rollout.now);
    let mut web = process(2);
    migrates(&mut web);
    rollout.deploy(manifest(&[("web", web)]));
    // The node takes nothing away, however long it is not heard.
    for minutes in [0, 2, 3] {
        rollout.now.0 += minutes * 60_000;
        let planned = super::plan(&rollout.cluster, rollout.now, &mut || 99);
        for action in planned.actions {
            apply(&mut rollout.cluster, &action.into()).unwrap();
        }
        assert_eq!(rollout.command(), first);
        let waits: Vec<_> = planned.findings.iter().map(ToString::to_string).collect();
        assert!(
            waits[0].contains("is offline, and it may still run there"),
            "{waits:?}"
        );
    }
    let now = rollout.now;
    let lost = Command::RemoveNode {
        node,
        lost: true,
        now,
    };
    apply(&mut rollout.cluster, &lost).unwrap();
    rollout.step();
    assert_ne!(rollout.command(), first);
}

#[test]
fn case_a_first_release_whose_command_fails_leaves_nothing() {
    let mut web = process(2);
    migrates(&mut web);
    let mut rollout = Played::first(manifest(&[("web", web), ("worker", worker(1))]));
    let id = rollout.command();
    assert_eq!(rollout.cluster.instances.len(), 1);
    rollout.end(id, 1);
    assert_eq!(rollout.phase(), RolloutPhase::Failed);
    assert_eq!(rollout.cluster.instances.len(), 0);
}

#[test]
fn case_what_a_release_does_not_touch_stays_while_its_command_runs() {
    let mut web = process(2);
    let before = manifest(&[("web", web.clone()), ("worker", worker(2))]);
    let mut rollout = Played::first(before);
    rollout.report_all(READY);
    rollout.step();
    assert_eq!(rollout.phase(), RolloutPhase::Done);
    let there: Vec<_> = rollout.cluster.instances.keys().copied().collect();
    migrates(&mut web);
    rollout.deploy(manifest(&[("web", web), ("worker", worker(2))]));
    rollout.step();
    let id = rollout.command();
    assert!(
        there
            .iter()
            .all(|id| !rollout.cluster.instances[id].is_terminating())
    );
    // An instance that is missing meanwhile is made of the release that is there.
    rollout.cluster.instances.remove(&there[0]);
    rollout.step();
    let env = &rollout.cluster.envs[&key("shop/prod")];
    assert_eq!(env.rollout.phase, RolloutPhase::Rolling);
    assert_eq!(rollout.counts(), (4, 1));
    rollout.end(id, 0);
    assert_eq!(rollout.commands().len(), 0);
}

#[test]
fn case_what_is_half_way_between_two_releases_stays_while_the_command_of_a_third_runs() {
    // Release 2 is rolling out, and has one more process type.
    let mut rollout = Played::first(manifest(&[("web", process(2))]));
    rollout.report_all(READY);
    rollout.step();
    let mut web = process(2);
    web.env.insert("COLOUR".to_owned(), "green".to_owned());
    rollout.deploy(manifest(&[("web", web), ("worker", worker(2))]));
    rollout.step();
    rollout.report_all(READY);
    let there: Vec<_> = rollout.cluster.instances.keys().copied().collect();
    assert_eq!(rollout.counts(), (2, 3));
    let mut web = process(2);
    migrates(&mut web);
    rollout.deploy(manifest(&[("web", web), ("worker", worker(1))]));
    rollout.step();
    let id = rollout.command();
    assert!((there.iter()).all(|id| !rollout.cluster.instances[id].is_terminating()));
    rollout.end(id, 0);
    while rollout.phase() == RolloutPhase::Rolling {
        rollout.report_all(READY);
        rollout.step();
    }
    assert_eq!(
        (rollout.phase(), rollout.counts()),
        (RolloutPhase::Done, (0, 0))
    );
}
