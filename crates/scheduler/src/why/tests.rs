#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use expect_test::{Expect, expect};

use super::*;
use crate::cluster_state::Rollout;
use crate::fixtures::{
    InstanceFixture, READY, RUNNING, attach, cluster, deploy, exit, key, lapse, manifest, name,
    process, report,
};
use crate::planner::plan;

const NOW: Timestamp = Timestamp(1_000_000);

fn at(time: Timestamp) -> String {
    format!("T{}", time.0 / 1000)
}

fn show(why: &Why) -> String {
    let mut text = format!("{}\n", why.state);
    for reason in &why.reasons {
        text += &format!("because {reason}\n");
    }
    for next in &why.next {
        text += &format!("next {next}\n");
    }
    for one in &why.instances {
        text += &format!("has {} {} {}\n", one.id, one.state, one.reason);
    }
    if let Some(release) = &why.release {
        text += &format!("release {} {:?}\n", release.number, release.phase);
    }
    text
}

/// An instance of `web` of release 1, in this state, told of.
fn check_told(change: impl FnOnce(&mut ClusterState, &mut Instance), expected: &Expect) {
    let mut cluster = cluster(2);
    let release = manifest(&[("web", process(1))]);
    deploy(&mut cluster, "shop/prod", release, Timestamp(0));
    InstanceFixture {
        id: 7,
        env: "shop/prod",
        process: "web",
        release: 1,
        node: 1,
    }
    .into_cluster(&mut cluster);
    let mut instance = cluster.instances.get(&InstanceId(7)).unwrap().clone();
    change(&mut cluster, &mut instance);
    expected.assert_eq(&show(&super::instance(&cluster, &instance, NOW, &at)));
}

#[test]
fn an_instance_tells_what_its_node_says_of_it() {
    check_told(
        |_, instance| instance.report = None,
        &expect![[r#"
        created
        because its node has not reported it since it was placed at T0
        next its node fetches its image, makes its disks and boots it
        release v1 Some(Rolling)
    "#]],
    );
    check_told(
        |_, instance| {
            instance.report = Some(InstanceReport {
                detail: "fetching 3 of 5 layers".to_owned(),
                ..report(InstanceId(7), InstanceState::Preparing)
            });
        },
        &expect![[r#"
            preparing
            because it is preparing: fetching 3 of 5 layers
            next its release is rolling out, and fails when it is not ready 300 s after its image and disks were there, or was started again 3 times
            release v1 Some(Rolling)
        "#]],
    );
    check_told(
        |_, instance| {
            instance.report = Some(report(InstanceId(7), READY));
            instance.ready_since = Some(Timestamp(5000));
        },
        &expect![[r#"
            healthy
            because it is ready since T5
            release v1 Some(Rolling)
        "#]],
    );
    check_told(
        |_, instance| {
            instance.report = Some(InstanceReport {
                detail: "not ready: the health check failed 1 times in a row (of 3): status 500"
                    .to_owned(),
                ..report(InstanceId(7), RUNNING)
            });
        },
        &expect![[r#"
            running
            because its app runs, and its health check does not pass: not ready: the health check failed 1 times in a row (of 3): status 500
            next it is probed every 1 s, and ready after 2 passes in a row
            next its release is rolling out, and fails when it is not ready 300 s after its image and disks were there, or was started again 3 times
            release v1 Some(Rolling)
        "#]],
    );
    check_told(
        |_, instance| {
            let mut oom = exit(137);
            oom.oom_killed = true;
            instance.report = Some(InstanceReport {
                restarts: 4,
                last_exit: Some(oom),
                failure: Some("the app ended: killed by signal 9 (exit code 137)".to_owned()),
                detail: "next start in 4 s".to_owned(),
                ..report(InstanceId(7), InstanceState::Backoff)
            });
        },
        &expect![[r#"
            backoff
            because it ended: the app ended: killed by signal 9 (exit code 137), out of memory
            because it was started again 4 times, the last time because: the app ended: killed by signal 9 (exit code 137), out of memory
            next next start in 4 s; it is given up after 10 restarts in a row (`restart.max_retries`)
            next its release is rolling out, and fails when it is not ready 300 s after its image and disks were there, or was started again 3 times
            release v1 Some(Rolling)
        "#]],
    );
    check_told(
        |cluster, instance| {
            cluster
                .envs
                .get_mut(&key("shop/prod"))
                .unwrap()
                .rollout
                .phase = RolloutPhase::Done;
            instance.report = Some(InstanceReport {
                failure: Some("given up after 10 restarts in a row".to_owned()),
                ..report(InstanceId(7), InstanceState::Failed)
            });
        },
        &expect![[r#"
            failed
            because its node gave it up: given up after 10 restarts in a row
            next another takes its place at T300
            release v1 Some(Done)
        "#]],
    );
    check_told(
        |_, instance| {
            instance.report = Some(InstanceReport {
                liveness_failure: Some(
                    "the liveness check failed 3 times in a row: no answer".to_owned(),
                ),
                ..report(InstanceId(7), READY)
            });
        },
        &expect![[r#"
            healthy
            because it is not alive: the liveness check failed 3 times in a row: no answer
            next the planner replaces it, one instance of its process type at a time
            release v1 Some(Rolling)
        "#]],
    );
    check_told(
        |_, instance| {
            instance.phase = InstancePhase::Terminating {
                was_ready: true,
                reason: "replaced by v2".to_owned(),
            };
        },
        &expect![[r#"
            terminating
            because it is terminated: replaced by v2
            next its node stops it, within 10 s from when it is told; then its record is kept for 7 days
            release v1 Some(Rolling)
        "#]],
    );
}

#[test]
fn an_instance_on_a_node_that_lapsed_tells_when_another_takes_its_place() {
    check_told(
        |cluster, instance| {
            instance.report = Some(report(InstanceId(7), READY));
            lapse(cluster, 1, Timestamp(900_000));
        },
        &expect![[r#"
            unknown
            because its node node-1 (n1) is offline, known since T900: whether it runs is not known
            because before, it was running
            next another takes its place from T960 on, unless the node is back, or so many lapsed at once that nothing is replaced
            release v1 Some(Rolling)
        "#]],
    );
    check_told(
        |cluster, instance| {
            attach(cluster, 7, 0);
            *instance = cluster.instances.get(&InstanceId(7)).unwrap().clone();
            lapse(cluster, 1, Timestamp(900_000));
        },
        &expect![[r#"
            unknown
            because its node node-1 (n1) is offline, known since T900: whether it runs is not known
            next it has volumes, which are on that node: it waits for the node, or for `platform nodes remove --lost`
            release v1 Some(Rolling)
        "#]],
    );
}

#[test]
fn a_process_that_finds_no_node_tells_why_each_kind_of_node_takes_none() {
    let mut cluster = cluster(2);
    let mut large = process(1);
    large.resources.memory_bytes = 100 << 30;
    large.region = Some("moon".to_owned());
    let release = manifest(&[("web", large)]);
    deploy(&mut cluster, "shop/prod", release, Timestamp(0));
    cluster.nodes.get_mut(&NodeId(2)).unwrap().scheduling = Scheduling::Cordoned;
    let findings = plan(&cluster, Timestamp(1), &mut || 1).findings;
    let env = key("shop/prod");
    let why = super::process(&cluster, &findings, &env, &name("web"), &at).unwrap();
    expect![[r#"
        0 of 1 ready
        because no node can take it: node-2 (n2): it is cordoned; node-1 (n1): it is in the region local, not in moon
        next it is looked at again when a node or the env changes, and every 30 s
        next v1 is rolling out since T0; where it fails, the env goes nowhere: there is no release before
        release v1 Some(Rolling)
    "#]].assert_eq(&show(&why));
    assert_eq!(
        super::process(&cluster, &findings, &env, &name("wbe"), &at),
        None
    );
    assert_eq!(
        super::process(&cluster, &findings, &key("shop/test"), &name("web"), &at),
        None
    );
}

#[test]
fn a_process_of_a_reverted_release_tells_why() {
    let mut cluster = cluster(1);
    for _ in 0..2 {
        let release = manifest(&[("web", process(1))]);
        deploy(&mut cluster, "shop/prod", release, Timestamp(0));
    }
    let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
    env.rollout = Rollout {
        wanted: ReleaseNumber(1),
        phase: RolloutPhase::Reverted,
        reason: "instance 00000007 failed".to_owned(),
        ..env.rollout.clone()
    };
    let why = super::process(&cluster, &[], &key("shop/prod"), &name("web"), &at).unwrap();
    expect![[r#"
        0 of 1 ready
        because v2 was reverted to v1: instance 00000007 failed
        release v2 Some(Reverted)
    "#]]
    .assert_eq(&show(&why));
}

#[test]
fn what_is_gone_and_nodes_are_told_of() {
    let mut cluster = cluster(2);
    let gone = EndedInstance {
        env: key("shop/prod"),
        process: name("web"),
        release: ReleaseNumber(1),
        node: NodeId(9),
        created_at: Timestamp(0),
        ended_at: Timestamp(700_000),
        reason: "the liveness check failed 3 times in a row: no answer; another is made".to_owned(),
        restarts: 2,
        last_exit: Some(exit(3)),
        failure: None,
    };
    let why = ended(&cluster, InstanceId(7), &gone, &at);
    expect![[r#"
        gone since T700
        because it was terminated: the liveness check failed 3 times in a row: no answer; another is made
        because its app last ended at T0: exit code 3
        because it was started again 2 times
        next `platform logs -i 00000007` has its last lines, as long as n9 keeps them
    "#]].assert_eq(&show(&why));
    lapse(&mut cluster, 1, Timestamp(900_000));
    let one = cluster.nodes.get_mut(&NodeId(1)).unwrap();
    one.scheduling = Scheduling::Draining {
        with_volumes: false,
    };
    let one = one.clone();
    let why = node(&cluster, NodeId(1), &one, Some(Timestamp(890_000)), &at);
    expect![[r#"
        offline
        because it does not report any more; it last reported at T890
        because it is drained: its instances are replaced on other nodes
        next others take the place of its instances without volumes from T960 on; those with volumes wait for it
        next 0 instances are left on it
    "#]].assert_eq(&show(&why));
}
