//! The planner on cluster states made by hand.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use api::node::InstanceReport;
use api::user::RolloutPhase;
use expect_test::{Expect, expect};
use model::instance::InstanceState;
use model::{InstanceId, NodeId, ReleaseNumber, Timestamp, VolumeId};

use super::{Action, plan};
use crate::apply::{Command, apply};
use crate::cluster_state::{
    ClusterState, CountedAs, InstancePhase, Presence, Subject, UnreadableRecord, VolumePhase,
};
use crate::fixtures::{
    InstanceFixture, MIB, attach, cluster, database, deploy, exit, key, lapse, manifest, name,
    node, process, release, report, worker,
};
use crate::release::{is_as_in, keep_others};
use crate::rollout;

pub(super) const NOW: Timestamp = Timestamp(10_000_000);

fn gone() -> InstancePhase {
    InstancePhase::Gone {
        reason: "a test".to_owned(),
    }
}

pub(super) fn check(cluster: &ClusterState, expected: Expect) {
    check_at(cluster, NOW, expected);
}

pub(super) fn check_at(cluster: &ClusterState, now: Timestamp, expected: Expect) {
    let mut draws = 0x10;
    let planned = plan(cluster, now, &mut || {
        draws += 1;
        draws
    });
    let mut text = String::new();
    for action in &planned.actions {
        text += &match action {
            Action::MakeVolume(planned) => {
                let (id, key, node) = (planned.id, &planned.key, planned.node);
                format!("make volume {id}, {key}, on {node}\n")
            }
            Action::DeleteVolume { id } => format!("delete volume {id}\n"),
            Action::Create(placed) => {
                let spec = &placed.spec;
                let (id, process, release) = (spec.id, &spec.process, spec.release);
                let volumes = spec.volumes.iter().map(|v| format!(", volume {}", v.id));
                format!(
                    "create {id} {process} {release} on {}, {}{}\n",
                    placed.node,
                    spec.address,
                    volumes.collect::<String>()
                )
            }
            Action::Terminate { id, reason } => format!("terminate {id}: {reason}\n"),
            Action::Delete { id, .. } => format!("delete {id}\n"),
            Action::PruneEnded { id } => format!("prune {id}\n"),
            Action::SetRollout { env, rollout } => {
                let (phase, wanted) = (rollout.phase, rollout.wanted);
                format!(
                    "rollout of {env}: {phase:?}, wants {wanted}: {}\n",
                    rollout.reason
                )
            }
            Action::RemoveEnv { env } => format!("remove {env}\n"),
        };
    }
    for finding in &planned.findings {
        text += &format!("- {finding}\n");
    }
    expected.assert_eq(&text);
}

/// `shop/prod` v1 with two web and one worker, all ready, on two nodes.
pub(super) fn serving() -> ClusterState {
    let mut cluster = cluster(2);
    let both = [("web", process(2)), ("worker", worker(1))];
    deploy(&mut cluster, "shop/prod", manifest(&both), Timestamp(0));
    for (id, process, node) in [(1, "web", 1), (2, "web", 2), (3, "worker", 1)] {
        put(&mut cluster, id, process, 1, node).make_ready();
    }
    let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
    env.rollout.phase = RolloutPhase::Done;
    cluster
}

pub(super) fn put<'w>(
    cluster: &'w mut ClusterState,
    id: u32,
    process: &'static str,
    release: u32,
    node: u16,
) -> &'w mut crate::cluster_state::Instance {
    let env = "shop/prod";
    InstanceFixture {
        id,
        env,
        process,
        release,
        node,
    }
    .into_cluster(cluster)
}

fn redeploy(cluster: &mut ClusterState) {
    let both = [("web", process(2)), ("worker", worker(1))];
    deploy(cluster, "shop/prod", manifest(&both), NOW);
}

#[test]
fn a_first_deploy_creates_and_spreads_all_instances_at_once() {
    let mut cluster = cluster(2);
    let both = [("web", process(3)), ("worker", worker(1))];
    deploy(&mut cluster, "shop/prod", manifest(&both), NOW);
    check(
        &cluster,
        expect![[r#"
            create 00000011 web v1 on n1, fd00:1111:2222:1:0:1:0:11
            create 00000012 web v1 on n2, fd00:1111:2222:2:0:1:0:12
            create 00000013 web v1 on n1, fd00:1111:2222:1:0:1:0:13
            create 00000014 worker v1 on n1, fd00:1111:2222:1:0:1:0:14
            - shop/prod web: instance 00000011 of v1 on node-1: waiting for the node
            - shop/prod web: instance 00000012 of v1 on node-2: waiting for the node
            - shop/prod web: instance 00000013 of v1 on node-1: waiting for the node
            - shop/prod worker: instance 00000014 of v1 on node-1: waiting for the node
        "#]],
    );
}

/// `serving` with a release that changes the web processes only.
fn only_web_changes() -> ClusterState {
    let mut cluster = serving();
    let mut web = process(2);
    web.env.insert("COLOUR".to_owned(), "green".to_owned());
    let both = manifest(&[("web", web), ("worker", worker(1))]);
    let env = cluster.envs.get(&key("shop/prod")).unwrap();
    let before = env.releases.get(&ReleaseNumber(1)).unwrap().clone();
    let mut release = release(both);
    release.manifest.env = before.manifest.env;
    let command = Command::AddRelease {
        env: key("shop/prod"),
        number: ReleaseNumber(2),
        release: Box::new(release),
        rollout: rollout::begin(Some(&env.rollout), ReleaseNumber(2), NOW),
    };
    apply(&mut cluster, &command).unwrap();
    cluster
}

#[test]
fn case_a_process_that_a_release_does_not_change_is_not_touched() {
    let mut cluster = only_web_changes();
    check(
        &cluster,
        expect![[r#"
            create 00000011 web v2 on n1, fd00:1111:2222:1:0:1:0:11
            - shop/prod web: instance 00000011 of v2 on node-1: waiting for the node
        "#]],
    );
    // The worker fails meanwhile: that is not the release's fault, and it is done without it.
    let worker = cluster.instances.get_mut(&InstanceId(3)).unwrap();
    worker.report = Some(report(InstanceId(3), InstanceState::Failed));
    for id in [1, 2] {
        cluster.instances.remove(&InstanceId(id));
    }
    for (id, node) in [(4, 1), (5, 2)] {
        put(&mut cluster, id, "web", 2, node).make_ready();
    }
    check(
        &cluster,
        expect![[r#"
            rollout of shop/prod: Done, wants v2: 
            terminate 00000003: it failed; another is made
            create 00000011 worker v2 on n1, fd00:1111:2222:1:0:1:0:11
            - shop/prod worker: instance 00000011 of v2 on node-1: waiting for the node
        "#]],
    );
}

#[test]
fn case_a_release_that_fails_reverts_what_it_changed_and_nothing_else() {
    let mut cluster = only_web_changes();
    put(&mut cluster, 4, "web", 2, 1).report = Some(report(InstanceId(4), InstanceState::Failed));
    let mut draws = 0x10;
    let planned = plan(&cluster, NOW, &mut || {
        draws += 1;
        draws
    });
    let terminated = planned.actions.iter().filter_map(|action| match action {
        Action::Terminate { id, .. } => Some(id.0),
        _ => None,
    });
    assert_eq!(terminated.collect::<Vec<_>>(), [4]);
    let created = planned.actions.iter();
    assert!(
        !created
            .clone()
            .any(|action| matches!(action, Action::Create(_)))
    );
}

#[test]
fn case_a_deploy_of_one_process_keeps_the_others_down_to_their_image() {
    let mut cluster = serving();
    let env = cluster.envs.get(&key("shop/prod")).unwrap();
    let before = env.releases.get(&ReleaseNumber(1)).unwrap().clone();
    // Another image and other variables for all, of which only the web processes get any.
    let mut new = release(manifest(&[("web", process(2)), ("worker", worker(3))]));
    new.manifest
        .env
        .insert("COLOUR".to_owned(), "green".to_owned());
    for image in new.resolved.values_mut() {
        image.repository = "another".to_owned();
    }
    let kept = keep_others(new, &before, &[name("web")].into());
    let command = Command::AddRelease {
        env: key("shop/prod"),
        number: ReleaseNumber(2),
        release: Box::new(kept.clone()),
        rollout: rollout::begin(Some(&env.rollout), ReleaseNumber(2), NOW),
    };
    apply(&mut cluster, &command).unwrap();
    check(
        &cluster,
        expect![[r#"
            create 00000011 web v2 on n1, fd00:1111:2222:1:0:1:0:11
            - shop/prod web: instance 00000011 of v2 on node-1: waiting for the node
        "#]],
    );
    // A worker that is made now is as the one that is there.
    let worker = cluster.instances[&InstanceId(3)].spec.clone();
    assert!(is_as_in(&worker, ReleaseNumber(2), &kept, "amd64"));
    let web = cluster.instances[&InstanceId(1)].spec.clone();
    assert!(!is_as_in(&web, ReleaseNumber(2), &kept, "amd64"));
    // The next one keeps what this one kept.
    let again = keep_others(before.clone(), &kept, &[name("web")].into());
    assert!(is_as_in(&worker, ReleaseNumber(3), &again, "amd64"));
}

#[test]
fn releases_are_kept_by_a_rule() {
    let mut cluster = serving();
    for _ in 0..60 {
        redeploy(&mut cluster);
    }
    let env = cluster.envs.get(&key("shop/prod")).unwrap();
    let numbers: Vec<_> = env.releases.keys().map(|number| number.0).collect();
    // The last 50, and the one that the instances are of and a revert goes back to.
    let expected: Vec<_> = [1].into_iter().chain(12..=61).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn a_serving_env_needs_no_change() {
    check(&serving(), expect![""]);
}

#[test]
fn a_new_release_begins_with_its_surge() {
    let mut cluster = serving();
    redeploy(&mut cluster);
    check(
        &cluster,
        expect![[r#"
            create 00000011 web v2 on n1, fd00:1111:2222:1:0:1:0:11
            create 00000012 worker v2 on n2, fd00:1111:2222:2:0:1:0:12
            - shop/prod web: instance 00000011 of v2 on node-1: waiting for the node
            - shop/prod worker: instance 00000012 of v2 on node-2: waiting for the node
        "#]],
    );
}

#[test]
fn a_ready_instance_replaces_an_old_one_and_the_next_waits_for_its_end() {
    let mut cluster = serving();
    redeploy(&mut cluster);
    put(&mut cluster, 5, "web", 2, 1).make_ready();
    put(&mut cluster, 6, "worker", 2, 1).make_ready();
    check(
        &cluster,
        expect![[r#"
        terminate 00000002: v2 replaces it
        terminate 00000003: v2 replaces it
    "#]],
    );
    cluster
        .instances
        .get_mut(&InstanceId(2))
        .unwrap()
        .terminate();
    cluster
        .instances
        .get_mut(&InstanceId(3))
        .unwrap()
        .terminate();
    check(&cluster, expect![""]);
    cluster.instances.get_mut(&InstanceId(2)).unwrap().phase = gone();
    check(
        &cluster,
        expect![[r#"
        delete 00000002
        create 00000011 web v2 on n2, fd00:1111:2222:2:0:1:0:11
        - shop/prod web: instance 00000011 of v2 on node-2: waiting for the node
    "#]],
    );
}

#[test]
fn a_failed_instance_reverts_its_release_and_its_log_is_quoted() {
    let mut cluster = serving();
    redeploy(&mut cluster);
    let failed = put(&mut cluster, 5, "web", 2, 1);
    failed.report = Some(InstanceReport {
        failure: Some("given up after 3 restarts in a row: the app ended: exit code 3".to_owned()),
        last_exit: Some(exit(3)),
        restarts: 3,
        log_tail: vec![
            "reading /etc/shop.toml".to_owned(),
            "no such file".to_owned(),
        ],
        ..report(InstanceId(5), InstanceState::Failed)
    });
    check(
        &cluster,
        expect![[r#"
        rollout of shop/prod: Reverted, wants v1: instance 00000005 of web on node-1 (n1) failed: given up after 3 restarts in a row: the app ended: exit code 3
        last log lines:
          reading /etc/shop.toml
          no such file
        terminate 00000005: never served, and v1 is wanted
    "#]],
    );
}

#[test]
fn three_restarts_fail_a_release() {
    let mut cluster = cluster(1);
    deploy(
        &mut cluster,
        "shop/prod",
        manifest(&[("web", process(1))]),
        NOW,
    );
    let looping = |restarts| {
        Some(InstanceReport {
            restarts,
            last_exit: Some(exit(1)),
            ..report(InstanceId(1), InstanceState::Backoff)
        })
    };
    put(&mut cluster, 1, "web", 1, 1).report = looping(2);
    cluster
        .instances
        .get_mut(&InstanceId(1))
        .unwrap()
        .created_at = NOW;
    check(
        &cluster,
        expect![[r#"
        - shop/prod web: instance 00000001 of v1 on node-1: backoff
    "#]],
    );
    cluster.instances.get_mut(&InstanceId(1)).unwrap().report = looping(3);
    check(
        &cluster,
        expect![[r#"
        rollout of shop/prod: Failed, wants v1: instance 00000001 of web on node-1 (n1) started again 3 times and not ready: exit code 1
        terminate 00000001: v1 failed, and there is no release to go back to
    "#]],
    );
}

#[test]
fn a_release_that_fits_on_no_node_is_reported_and_fails_in_the_end() {
    let mut cluster = serving();
    cluster.nodes = [node(1, 512), node(2, 256)].into();
    cluster.nodes.get_mut(&NodeId(2)).unwrap().hardware.arch = "arm64".to_owned();
    redeploy(&mut cluster);
    check(
        &cluster,
        expect![[r#"
        rollout of shop/prod: Rolling, wants v2: web: no node can take it: node-1 (n1): 0 of its 512 MiB are free, 256 MiB of memory are needed; node-2 (n2): it is arm64, the image is for amd64; worker: no node can take it: node-1 (n1): 0 of its 512 MiB are free, 256 MiB of memory are needed; node-2 (n2): it is arm64, the image is for amd64
        - shop/prod web: no node can take it: node-1 (n1): 0 of its 512 MiB are free, 256 MiB of memory are needed; node-2 (n2): it is arm64, the image is for amd64
        - shop/prod worker: no node can take it: node-1 (n1): 0 of its 512 MiB are free, 256 MiB of memory are needed; node-2 (n2): it is arm64, the image is for amd64
    "#]],
    );
    let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
    env.rollout.started_at = Timestamp(0);
    check(
        &cluster,
        expect![[r#"
        rollout of shop/prod: Reverted, wants v1: there is no instance of web: no node can take it: node-1 (n1): 0 of its 512 MiB are free, 256 MiB of memory are needed; node-2 (n2): it is arm64, the image is for amd64
    "#]],
    );
}

#[test]
fn scaling_down_terminates_the_unready_then_the_newest() {
    let mut cluster = serving();
    let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
    env.scale.insert(name("web"), 1);
    check(
        &cluster,
        expect![[r#"
        terminate 00000002: more than the 1 wanted
    "#]],
    );
    cluster
        .instances
        .get_mut(&InstanceId(2))
        .unwrap()
        .created_at = Timestamp(0);
    cluster
        .instances
        .get_mut(&InstanceId(1))
        .unwrap()
        .created_at = Timestamp(1);
    check(
        &cluster,
        expect![[r#"
        terminate 00000001: more than the 1 wanted
    "#]],
    );
    cluster.instances.get_mut(&InstanceId(2)).unwrap().report = None;
    check(
        &cluster,
        expect![[r#"
        terminate 00000002: more than the 1 wanted
    "#]],
    );
}

#[test]
fn a_failed_instance_is_replaced_after_a_while() {
    let mut cluster = serving();
    let failed = cluster.instances.get_mut(&InstanceId(2)).unwrap();
    failed.report = Some(InstanceReport {
        failure: Some("given up after 4 boots".to_owned()),
        ..report(InstanceId(2), InstanceState::Failed)
    });
    failed.created_at = NOW;
    check(
        &cluster,
        expect![[r#"
        - shop/prod web: instance 00000002 of v1 on node-2: failed: given up after 4 boots; replaced 5 min after it was made
    "#]],
    );
    cluster
        .instances
        .get_mut(&InstanceId(2))
        .unwrap()
        .created_at = Timestamp(0);
    check(
        &cluster,
        expect![[r#"
        terminate 00000002: it failed; another is made
        create 00000011 web v1 on n2, fd00:1111:2222:2:0:1:0:11
        - shop/prod web: instance 00000011 of v1 on node-2: waiting for the node
    "#]],
    );
}

#[test]
fn an_env_is_removed_with_its_last_instance() {
    let mut cluster = serving();
    cluster.envs.get_mut(&key("shop/prod")).unwrap().destroying = true;
    lapse(&mut cluster, 2, NOW);
    check(
        &cluster,
        expect![[r#"
        terminate 00000001: its env is destroyed
        terminate 00000002: its env is destroyed
        terminate 00000003: its env is destroyed
        - shop/prod web: instance 00000001 on node-1 is not gone yet: stopping
        - shop/prod web: instance 00000002 on node-2 is not gone yet: its node is offline
        - shop/prod worker: instance 00000003 on node-1 is not gone yet: stopping
    "#]],
    );
    for instance in cluster.instances.values_mut() {
        instance.phase = gone();
    }
    check(
        &cluster,
        expect![[r#"
        delete 00000001
        delete 00000002
        delete 00000003
        remove shop/prod
    "#]],
    );
}

#[test]
fn a_server_without_reports_changes_nothing() {
    for phase in [RolloutPhase::Rolling, RolloutPhase::Done] {
        let mut cluster = serving();
        cluster
            .envs
            .get_mut(&key("shop/prod"))
            .unwrap()
            .rollout
            .phase = phase;
        for node in cluster.nodes.values_mut() {
            node.presence = Presence::NotHeardYet;
        }
        let planned = plan(&cluster, NOW, &mut || 9);
        assert_eq!(planned.actions, [], "{phase:?}");
    }
}

#[test]
fn the_instances_of_a_removed_node_are_deleted_and_replaced() {
    let mut cluster = serving();
    cluster.nodes.remove(&NodeId(2));
    check(
        &cluster,
        expect![[r#"
        delete 00000002
        create 00000011 web v1 on n1, fd00:1111:2222:1:0:1:0:11
        - shop/prod web: instance 00000011 of v1 on node-1: waiting for the node
    "#]],
    );
}

#[test]
fn a_completed_worker_counts_as_ready() {
    let mut cluster = serving();
    let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
    env.rollout.phase = RolloutPhase::Rolling;
    let done = cluster.instances.get_mut(&InstanceId(3)).unwrap();
    done.report = Some(InstanceReport {
        last_exit: Some(exit(0)),
        ..report(InstanceId(3), InstanceState::Stopped)
    });
    check(
        &cluster,
        expect![[r#"
        rollout of shop/prod: Done, wants v1: 
    "#]],
    );
    let done = cluster.instances.get_mut(&InstanceId(3)).unwrap();
    done.report.as_mut().unwrap().last_exit = Some(exit(1));
    check(
        &cluster,
        expect![[r#"
        rollout of shop/prod: Failed, wants v1: instance 00000003 of worker on node-1 (n1) ended by itself, and its restart policy does not start it again: exit code 1
        terminate 00000001: v1 failed, and there is no release to go back to
        terminate 00000002: v1 failed, and there is no release to go back to
        terminate 00000003: v1 failed, and there is no release to go back to
    "#]],
    );
}

#[test]
fn a_missing_secret_bundle_fails_the_release() {
    let mut cluster = serving();
    let mut web = process(2);
    web.secrets = vec!["database".to_owned()];
    deploy(&mut cluster, "shop/prod", manifest(&[("web", web)]), NOW);
    check(
        &cluster,
        expect![[r#"
        rollout of shop/prod: Reverted, wants v1: there is no instance of web: process web wants the secret bundle `database`, and its env has no bundle of that name
    "#]],
    );
}

/// `shop/prod` v1 with two databases, ready, on two nodes.
fn databases() -> ClusterState {
    let mut cluster = cluster(2);
    let both = manifest(&[("web", database(2))]);
    deploy(&mut cluster, "shop/prod", both, Timestamp(0));
    for (id, node) in [(1, 1), (2, 2)] {
        put(&mut cluster, id, "web", 1, node).make_ready();
        attach(&mut cluster, id, id - 1);
    }
    let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
    env.rollout.phase = RolloutPhase::Done;
    cluster
}

#[test]
fn volumes_are_made_with_their_first_instance() {
    let mut cluster = cluster(2);
    let both = manifest(&[("web", database(2))]);
    deploy(&mut cluster, "shop/prod", both, NOW);
    check(
        &cluster,
        expect![[r#"
            make volume 00000011, data 0 of shop/prod web, on n1
            create 00000012 web v1 on n1, fd00:1111:2222:1:0:1:0:12, volume 00000011
            make volume 00000013, data 1 of shop/prod web, on n2
            create 00000013 web v1 on n2, fd00:1111:2222:2:0:1:0:13, volume 00000013
            - shop/prod web: instance 00000012 of v1 on node-1: waiting for the node
            - shop/prod web: instance 00000013 of v1 on node-2: waiting for the node
        "#]],
    );
    check(&databases(), expect![[""]]);
}

#[test]
fn an_instance_with_a_volume_stops_before_its_successor_starts() {
    let mut cluster = databases();
    let mut two = database(2);
    two.volumes.push(model::instance::Volume {
        path: None,
        owner: None,
        name: "logs".to_owned(),
        size_bytes: MIB,
    });
    deploy(&mut cluster, "shop/prod", manifest(&[("web", two)]), NOW);
    check(
        &cluster,
        expect![[r#"
        terminate 00000002: v2 replaces it
    "#]],
    );
    cluster
        .instances
        .get_mut(&InstanceId(2))
        .unwrap()
        .terminate();
    check(&cluster, expect![[""]]);
    cluster.instances.get_mut(&InstanceId(2)).unwrap().phase = gone();
    check(
        &cluster,
        expect![[r#"
        delete 00000002
        make volume 00000011, logs 1 of shop/prod web, on n2
        create 00000012 web v2 on n2, fd00:1111:2222:2:0:1:0:12, volume 000000d1, volume 00000011
        - shop/prod web: instance 00000012 of v2 on node-2: waiting for the node
    "#]],
    );
}

#[test]
fn a_volume_on_an_offline_node_keeps_its_ordinal_waiting() {
    let mut cluster = databases();
    lapse(&mut cluster, 2, NOW);
    cluster
        .instances
        .get_mut(&InstanceId(2))
        .unwrap()
        .terminate();
    check(
        &cluster,
        expect![[r#"
        - shop/prod web: volume data 1 is held by instance 00000002 until that is gone: its node is offline, and it may still write
    "#]],
    );
    cluster.instances.remove(&InstanceId(2));
    check(
        &cluster,
        expect![[r#"
        - shop/prod web: the node of its volume data cannot take it: node-2 (n2): it is offline
    "#]],
    );
}

#[test]
fn the_highest_ordinals_are_terminated_and_get_their_volumes_back() {
    let mut cluster = databases();
    // The older one: age does not matter here.
    cluster
        .instances
        .get_mut(&InstanceId(1))
        .unwrap()
        .created_at = Timestamp(1);
    let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
    env.scale.insert(name("web"), 1);
    check(
        &cluster,
        expect![[r#"
        terminate 00000002: more than the 1 wanted
    "#]],
    );
    cluster.instances.remove(&InstanceId(2));
    let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
    env.scale.insert(name("web"), 2);
    check(
        &cluster,
        expect![[r#"
        create 00000011 web v1 on n2, fd00:1111:2222:2:0:1:0:11, volume 000000d1
        - shop/prod web: instance 00000011 of v1 on node-2: waiting for the node
    "#]],
    );
    cluster.volumes.get_mut(&VolumeId(0xd1)).unwrap().phase = VolumePhase::Deleting { made: true };
    check(
        &cluster,
        expect![[r#"
        - shop/prod web: volume data 1 of shop/prod web is being deleted
    "#]],
    );
    let volume = cluster.volumes.get_mut(&VolumeId(0xd1)).unwrap();
    volume.phase = VolumePhase::Deleted;
    check(
        &cluster,
        expect![[r#"
        delete volume 000000d1
        make volume 00000011, data 1 of shop/prod web, on n2
        create 00000012 web v1 on n2, fd00:1111:2222:2:0:1:0:12, volume 00000011
        - shop/prod web: instance 00000012 of v1 on node-2: waiting for the node
    "#]],
    );
}

#[test]
fn an_env_with_an_unreadable_record_is_frozen() {
    let mut cluster = serving();
    redeploy(&mut cluster);
    let other = manifest(&[("web", process(1))]);
    deploy(&mut cluster, "shop/other", other, NOW);
    cluster.instances.remove(&InstanceId(1));
    cluster.unreadable = vec![UnreadableRecord {
        subject: Subject::Instance(InstanceId(1)),
        env: Some(key("shop/prod")),
        node: Some(NodeId(1)),
        holds: Some(CountedAs::of_instance(None, None, None)),
        cause: "it has version 9".to_owned(),
    }];
    // Nothing is created for `shop/prod`; its node takes others.
    check(
        &cluster,
        expect![[r#"
        create 00000011 web v1 on n1, fd00:1111:2222:1:0:2:0:11
        - shop/other web: instance 00000011 of v1 on node-1: waiting for the node
        - shop/prod: nothing of it is changed: the record of instance 00000001 cannot be read: it has version 9
    "#]],
    );
    // Its id is taken.
    let planned = plan(&cluster, NOW, &mut || 1);
    let Action::Create(placed) = &planned.actions[0] else {
        panic!("{planned:?}");
    };
    assert_eq!(placed.spec.id, InstanceId(4));
    // Its node is not told to stop it.
    let desired = crate::desired::desired_state(&cluster, NodeId(1)).unwrap();
    assert_eq!(desired.stop, []);
}

#[test]
fn the_instances_of_a_node_with_an_unreadable_record_stay() {
    let mut cluster = serving();
    cluster.nodes.remove(&NodeId(2));
    cluster.unreadable = vec![UnreadableRecord {
        subject: Subject::Node(NodeId(2)),
        env: None,
        node: Some(NodeId(2)),
        holds: None,
        cause: "a test".to_owned(),
    }];
    check(
        &cluster,
        expect![[r#"
            - shop/prod web: instance 00000002 of v1 on a node whose record cannot be read: nothing is known of its node; it is kept
        "#]],
    );
}

#[test]
fn the_ids_of_instances_that_are_created_together_follow_each_other() {
    let mut cluster = cluster(2);
    let web = manifest(&[("web", process(3))]);
    deploy(&mut cluster, "shop/prod", web, Timestamp(0));
    // An id that is taken is passed over.
    put(&mut cluster, 0x41, "web", 1, 1).make_ready();
    let mut draws = 0;
    let planned = plan(&cluster, NOW, &mut || {
        draws += 1;
        0x40 * draws
    });
    let created = planned.actions.iter().filter_map(|action| match action {
        Action::Create(placed) => Some(placed.spec.id.0),
        _ => None,
    });
    assert_eq!(created.collect::<Vec<_>>(), [0x40, 0x42]);
    assert_eq!(draws, 1);
}
