//! Commands of users, step by step.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use api::user::RolloutPhase;
use model::instance::{InstanceState, RestartWhen, Runs};
use model::{InstanceId, Timestamp};

use super::strategy_tests::Played;
use super::{CommandRefused, KeyedCall, LOST_AFTER_MS, Planner, WantedCommand};
use crate::apply::{Command, apply};
use crate::cluster_state::{Presence, Scheduling};
use crate::fixtures::{READY, RUNNING, exit, key, lapse, manifest, name, process};
use crate::rollout::READY_DEADLINE_MS;
use crate::routes::routes;

const LIFETIME_MS: u64 = 60 * 60 * 1000;

impl Played {
    /// A user runs a command as `web`.
    fn run(&mut self) -> Result<InstanceId, CommandRefused> {
        let wanted = WantedCommand {
            env: key("shop/prod"),
            process: name("web"),
            command: vec!["migrate".to_owned()],
            attached: false,
            ends_at: Timestamp(self.now.0 + LIFETIME_MS),
            call: None,
        };
        let mut planner = Planner::new(&self.cluster);
        let (cluster, now) = (&mut self.cluster, self.now);
        let made = planner.run_command(cluster, &wanted, now, &mut || 0x77)?;
        assert!(!made.1.changes.is_empty());
        // What was decided is carried out, and the planner has nothing to add.
        let planned = super::plan(&self.cluster, self.now, &mut || 0x99);
        assert!(planned.actions.is_empty(), "{:?}", planned.actions);
        Ok(made.0)
    }

    /// Why a command is terminating; absent: it is not.
    fn end_of(&self, id: InstanceId) -> Option<String> {
        use crate::cluster_state::InstancePhase::{Gone, Terminating};
        match &self.cluster.instances.get(&id)?.phase {
            Terminating { reason, .. } | Gone { reason, .. } => Some(reason.clone()),
            _ => None,
        }
    }
}

/// An env whose `web` is rolled out.
fn rolled_out() -> Played {
    let mut played = Played::first(manifest(&[("web", process(2))]));
    played.report_all(READY);
    played.step();
    assert_eq!(played.phase(), RolloutPhase::Done);
    played
}

#[test]
fn case_a_command_has_what_its_process_type_has_and_no_rollout_route_or_count_sees_it() {
    let mut played = rolled_out();
    let before = (played.counts(), routes(&played.cluster));
    let id = played.run().unwrap();
    let spec = played.cluster.instances[&id].spec.clone();
    assert_eq!(spec.command.as_deref(), Some(&["migrate".to_owned()][..]));
    assert!(spec.ports.is_empty() && spec.healthcheck.is_none() && spec.volumes.is_empty());
    assert_eq!(spec.restart.when, RestartWhen::Never);
    assert!(spec.runs.is_command());
    played.report(id, READY, 0);
    played.after(READY_DEADLINE_MS);
    assert_eq!(
        (played.counts().0 - 1, routes(&played.cluster)),
        (before.0.0, before.1)
    );
    assert!(played.cluster.instances.contains_key(&id));
    // A rollout beside it neither waits for it nor ends it.
    played.deploy(manifest(&[("web", process(2))]));
    played.after(1000);
    assert!(played.cluster.instances.contains_key(&id));
}

#[test]
fn case_a_command_that_ended_leaves_and_is_not_made_again() {
    for code in [0, 3] {
        let mut played = rolled_out();
        let id = played.run().unwrap();
        played.report(id, RUNNING, 0);
        played.report_with(id, InstanceState::Stopped, |said| {
            said.last_exit = Some(exit(code));
        });
        let planned = super::plan(&played.cluster, played.now, &mut || 0x99);
        assert_eq!(planned.actions.len(), 1, "{:?}", planned.actions);
        for action in planned.actions {
            apply(&mut played.cluster, &action.into()).unwrap();
        }
        let reason = played.end_of(id).unwrap();
        assert_eq!(reason, "its command has ended");
        played.after(60_000);
        let commands = played.cluster.instances.values();
        assert_eq!(commands.filter(|i| i.spec.runs.is_command()).count(), 1);
    }
}

#[test]
fn case_a_command_ends_with_its_time_and_with_its_node_and_is_not_run_again() {
    let mut late = rolled_out();
    let id = late.run().unwrap();
    late.report(id, RUNNING, 0);
    late.after(LIFETIME_MS - 1);
    assert!(late.cluster.instances.contains_key(&id));
    // The planner looks at it when its time is over, although nothing changes.
    let mut planner = Planner::new(&late.cluster);
    while planner
        .plan_next(&mut late.cluster, late.now, &mut || 0x99)
        .is_some()
    {}
    assert_eq!(planner.next_due(), Some(Timestamp(late.now.0 + 1)));
    late.now.0 += 1;
    planner
        .plan_next(&mut late.cluster, late.now, &mut || 0x99)
        .unwrap();
    assert_eq!(late.end_of(id).unwrap(), "its time is over");

    let mut lost = rolled_out();
    let id = lost.run().unwrap();
    lost.report(id, RUNNING, 0);
    let node = lost.cluster.instances[&id].node;
    lapse(&mut lost.cluster, node.0, lost.now);
    lost.now.0 += LOST_AFTER_MS;
    let planned = super::plan(&lost.cluster, lost.now, &mut || 0x99);
    for action in planned.actions {
        apply(&mut lost.cluster, &action.into()).unwrap();
    }
    let reason = lost.end_of(id).unwrap();
    assert!(reason.ends_with("it is not run again"), "{reason}");
    let commands = lost.cluster.instances.values();
    assert_eq!(commands.filter(|i| i.spec.runs.is_command()).count(), 1);
}

#[test]
fn a_run_that_has_a_key_is_written_with_its_env_and_found_by_it() {
    let mut played = rolled_out();
    let call = KeyedCall {
        by: "ann".parse().unwrap(),
        key: "migrate-1".to_owned(),
        digest: "d".to_owned(),
    };
    let wanted = WantedCommand {
        env: key("shop/prod"),
        process: name("web"),
        command: vec!["true".to_owned()],
        attached: true,
        ends_at: Timestamp(u64::MAX),
        call: Some(call.clone()),
    };
    let before = played.cluster.clone();
    let mut planner = Planner::new(&played.cluster);
    let now = played.now;
    let (made, planned) = planner
        .run_command(&mut played.cluster, &wanted, now, &mut || 0x77)
        .unwrap();
    let runs = |cluster: &crate::cluster_state::ClusterState| {
        let env = cluster.envs.get(&key("shop/prod")).unwrap();
        env.runs.find(&call.by, &call.key).cloned()
    };
    let run = runs(&played.cluster).unwrap();
    assert_eq!((run.instance, run.call), (made, call.digest.clone()));
    // The store has what is decided on.
    let mut stored = before;
    planned.changes.patch(&mut stored);
    assert_eq!(runs(&stored), runs(&played.cluster));
    assert_eq!(stored.envs, played.cluster.envs);
}

#[test]
fn case_what_cannot_be_run_is_refused_with_the_reason_and_changes_nothing() {
    let mut played = rolled_out();
    let mut wanted = WantedCommand {
        env: key("shop/prod"),
        process: name("nope"),
        command: vec!["true".to_owned()],
        attached: true,
        ends_at: Timestamp(u64::MAX),
        call: None,
    };
    let before = played.cluster.clone();
    let refused = |wanted: &WantedCommand, cluster: &mut crate::cluster_state::ClusterState| {
        let mut planner = Planner::new(cluster);
        let made = planner.run_command(cluster, wanted, Timestamp(5), &mut || 0x77);
        made.unwrap_err().to_string()
    };
    let said = refused(&wanted, &mut played.cluster);
    assert!(
        said.ends_with("has no process type nope; there are: web"),
        "{said}"
    );
    wanted.process = name("web");
    wanted.env = key("shop/test");
    let said = refused(&wanted, &mut played.cluster);
    assert_eq!(said, "shop/test has no release to run a command of");
    assert_eq!(played.cluster, before);
    wanted.env = key("shop/prod");
    for node in before.nodes.keys() {
        let cordon = Command::SetScheduling {
            node: *node,
            scheduling: Scheduling::Cordoned,
        };
        apply(&mut played.cluster, &cordon).unwrap();
    }
    let said = refused(&wanted, &mut played.cluster);
    assert!(
        said.starts_with("no instance can be made for the command: "),
        "{said}"
    );
    assert!(
        !played
            .cluster
            .instances
            .values()
            .any(|i| matches!(i.spec.runs, Runs::Command { .. }))
    );
}

/// An older agent would keep the spec of a command and never start it.
#[test]
fn case_a_command_goes_to_no_node_whose_agent_cannot_read_it() {
    let mut played = rolled_out();
    let since = Timestamp(0);
    let nodes: Vec<_> = played.cluster.nodes.keys().copied().collect();
    for node in &nodes {
        let node = played.cluster.nodes.get_mut(node).unwrap();
        node.presence = Presence::Heard { since, protocol: 3 };
    }
    let refused = played.run().unwrap_err().to_string();
    let why = "its agent is too old for commands of `platform run` (protocol version 3, and 4 is needed): upgrade `platform` on it";
    assert!(refused.contains(why), "{refused}");
    // Its app's instances are what older agents can read.
    let planned = super::plan(&played.cluster, played.now, &mut || 0x99);
    assert!(planned.actions.is_empty(), "{:?}", planned.actions);
    let newer = played.cluster.nodes.get_mut(&nodes[0]).unwrap();
    newer.presence = Presence::Heard { since, protocol: 4 };
    let id = played.run().unwrap();
    assert_eq!(played.cluster.instances[&id].node, nodes[0]);
}
