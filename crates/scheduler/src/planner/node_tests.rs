//! Nodes that are not heard, are lost, or are drained.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use api::protocol::PROTOCOL_VERSION;
use api::user::RolloutPhase;
use expect_test::expect;
use model::instance::EgressPolicy;
use model::{InstanceId, NodeId, ReleaseNumber, Timestamp};

use super::tests::{NOW, check, check_at, put, serving};
use super::{LOST_AFTER_MS, plan};
use crate::action::Action;
use crate::apply::{Command, Refused, apply};
use crate::cluster_state::{ClusterState, Presence, Scheduling};
use crate::fixtures::{
    MIB, RUNNING, attach, cluster, database, deploy, key, lapse, manifest, name, node, process,
    report,
};
use crate::leader::Leader;
use crate::routes::RouteIndex;

fn schedule(cluster: &mut ClusterState, node: u16, scheduling: Scheduling) {
    cluster.nodes.get_mut(&NodeId(node)).unwrap().scheduling = scheduling;
}

const DRAINING: Scheduling = Scheduling::Draining {
    with_volumes: false,
};

/// One database on node 1, ready.
fn database_on_node_1() -> ClusterState {
    let mut cluster = cluster(3);
    let process = manifest(&[("web", database(1))]);
    deploy(&mut cluster, "shop/prod", process, Timestamp(0));
    put(&mut cluster, 1, "web", 1, 1).make_ready();
    attach(&mut cluster, 1, 0);
    let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
    env.rollout.phase = RolloutPhase::Done;
    cluster
}

/// The agent of a node was put back to an older version, or is not upgraded yet.
#[test]
fn instances_leave_a_node_whose_agent_is_too_old_for_them_once_another_is_ready() {
    let mut cluster = serving();
    let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
    let mut release = env.releases[&ReleaseNumber(1)].clone();
    let web = release.manifest.processes.get_mut(&name("web")).unwrap();
    web.egress = EgressPolicy::None;
    env.releases.insert(ReleaseNumber(1), release);
    for id in [1, 2] {
        let instance = cluster.instances.get_mut(&InstanceId(id)).unwrap();
        std::sync::Arc::make_mut(&mut instance.spec).egress = EgressPolicy::None;
    }
    check(&cluster, expect![[""]]);
    let set = |cluster: &mut ClusterState, node, protocol| {
        let since = Timestamp(0);
        let presence = Presence::Heard { since, protocol };
        cluster.nodes.get_mut(&NodeId(node)).unwrap().presence = presence;
    };
    set(&mut cluster, 2, 3);
    check(
        &cluster,
        expect![[r#"
        create 00000011 web v1 on n1, fd00:1111:2222:1:0:1:0:11
        - shop/prod web: instance 00000011 of v1 on node-1: waiting for the node
    "#]],
    );
    // Nobody else does it: it is kept, and the reason is named.
    set(&mut cluster, 1, 3);
    check(
        &cluster,
        expect![[r#"
        - shop/prod web: no node can take it: node-1 (n1): its agent is too old for egress = "none" (protocol version 3, and 4 is needed): upgrade `platform` on it; node-2 (n2): its agent is too old for egress = "none" (protocol version 3, and 4 is needed): upgrade `platform` on it
    "#]],
    );
}

#[test]
fn case_others_take_the_place_of_what_a_lost_node_had_and_it_stops_it_when_it_is_back() {
    let mut cluster = serving();
    let since = Timestamp(NOW.0 - LOST_AFTER_MS + 1);
    lapse(&mut cluster, 2, since);
    check(
        &cluster,
        expect![[r#"
        - shop/prod web: instance 00000002 of v1 on node-2: its node is offline; others take its place 60 s after that was seen
    "#]],
    );
    let later = Timestamp(NOW.0 + 1);
    check_at(
        &cluster,
        later,
        expect![[r#"
        create 00000011 web v1 on n1, fd00:1111:2222:1:0:1:0:11
        - shop/prod web: instance 00000002 of v1 on node-2: its node is offline; others take its place
        - shop/prod web: instance 00000011 of v1 on node-1: waiting for the node
    "#]],
    );
    // Back before the other is ready: it has gone on serving, and the other one is too many.
    put(&mut cluster, 0x11, "web", 1, 1).created_at = later;
    let mut back = cluster.clone();
    back.nodes.get_mut(&NodeId(2)).unwrap().presence = Presence::Heard {
        since: later,
        protocol: PROTOCOL_VERSION,
    };
    check_at(
        &back,
        later,
        expect![[r#"
        terminate 00000011: more than the 2 wanted
    "#]],
    );
    // The other is ready: what the lost node has is to stop, once the node hears of it.
    cluster
        .instances
        .get_mut(&model::InstanceId(0x11))
        .unwrap()
        .make_ready();
    check_at(
        &cluster,
        later,
        expect![[r#"
        terminate 00000002: others took its place: node-2 is not heard any more
    "#]],
    );
}

#[test]
fn case_many_nodes_that_lapse_at_once_lose_nothing() {
    let mut cluster = serving();
    for number in 3..=6 {
        let (id, node) = node(number, 4096);
        cluster.nodes.insert(id, node);
    }
    lapse(&mut cluster, 1, Timestamp(0));
    lapse(&mut cluster, 2, Timestamp(0));
    // A third of the nodes may be lost.
    let planned = plan(&cluster, NOW, &mut || 9);
    assert_eq!(planned.actions.len(), 3, "{planned:?}");
    lapse(&mut cluster, 6, Timestamp(0));
    check(
        &cluster,
        expect![[r#"
        - shop/prod web: instance 00000001 of v1 on node-1: its node is offline; it is kept, because 3 of 6 nodes are offline: so many do not break at once, more likely the server cannot be reached
        - shop/prod web: instance 00000002 of v1 on node-2: its node is offline; it is kept, because 3 of 6 nodes are offline: so many do not break at once, more likely the server cannot be reached
        - shop/prod worker: instance 00000003 of v1 on node-1: its node is offline; it is kept, because 3 of 6 nodes are offline: so many do not break at once, more likely the server cannot be reached
    "#]],
    );
}

#[test]
fn case_nodes_that_break_one_after_the_other_are_each_given_up() {
    let mut cluster = serving();
    for number in 3..=4 {
        let (id, node) = node(number, 4096);
        cluster.nodes.insert(id, node);
    }
    let replaced = |cluster: &ClusterState, now| {
        let planned = plan(cluster, now, &mut || 9);
        let mut actions = planned.actions.iter();
        actions.any(|action| matches!(action, Action::Create(_)))
    };
    // Two of four, but the first had its grace before the second lapsed.
    lapse(&mut cluster, 4, Timestamp(0));
    lapse(&mut cluster, 1, Timestamp(LOST_AFTER_MS));
    assert!(!replaced(&cluster, Timestamp(2 * LOST_AFTER_MS - 1)));
    assert!(replaced(&cluster, Timestamp(2 * LOST_AFTER_MS)));
    // Before the first was given up: they are too many at once.
    lapse(&mut cluster, 1, Timestamp(LOST_AFTER_MS - 1));
    assert!(!replaced(&cluster, Timestamp(100 * LOST_AFTER_MS)));
}

#[test]
fn case_an_instance_with_volumes_waits_for_its_node_or_for_a_user_who_gives_it_up() {
    let mut cluster = database_on_node_1();
    lapse(&mut cluster, 1, Timestamp(0));
    check(
        &cluster,
        expect![[r#"
        - shop/prod web: instance 00000001 of v1 on node-1: its node is offline; it is kept, because its volumes are there (`platform nodes remove --lost` gives them up)
    "#]],
    );
    let remove = |lost| Command::RemoveNode {
        node: NodeId(1),
        lost,
        now: NOW,
    };
    let refused = apply(&mut cluster.clone(), &remove(false));
    let not_empty = Refused::NodeNotEmpty {
        node: NodeId(1),
        instances: 1,
        volumes: 1,
    };
    assert_eq!(refused, Err(not_empty));
    let mut online = database_on_node_1();
    let refused = apply(&mut online, &remove(true));
    assert_eq!(refused, Err(Refused::NodeNotLost(NodeId(1))));

    let mut patched = cluster.clone();
    let changes = apply(&mut cluster, &remove(true)).unwrap();
    changes.patch(&mut patched);
    // When a number became free is not stored.
    patched.freed = cluster.freed.clone();
    assert_eq!(patched, cluster);
    assert!(cluster.volumes.is_empty() && cluster.ended.len() == 1);
    check(
        &cluster,
        expect![[r#"
        make volume 00000011, data 0 of shop/prod web, on n2
        create 00000012 web v1 on n2, fd00:1111:2222:2:0:1:0:12, volume 00000011
        - shop/prod web: instance 00000012 of v1 on node-2: waiting for the node
    "#]],
    );
}

#[test]
fn case_a_server_that_has_heard_no_node_yet_changes_nothing() {
    let says_what_waits = |action: &Action| matches!(action, Action::SetRollout { rollout, .. } if rollout.phase == RolloutPhase::Rolling);
    // A rollout was under way for ten minutes while the server was off.
    for phase in [RolloutPhase::Rolling, RolloutPhase::Done] {
        let mut cluster = serving();
        let more = manifest(&[("web", process(4))]);
        deploy(&mut cluster, "shop/prod", more, Timestamp(0));
        let made = put(&mut cluster, 9, "web", 2, 1);
        made.report = Some(report(made.spec.id, RUNNING));
        let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
        env.rollout.phase = phase;
        cluster.clear_presence();
        cluster.counting_since = NOW;
        for minutes in [0, 10, 60] {
            let now = Timestamp(NOW.0 + minutes * 60_000);
            let planned = plan(&cluster, now, &mut || 9);
            assert!(
                planned.actions.iter().all(says_what_waits),
                "{phase:?} after {minutes} min: {planned:?}"
            );
        }
        // One node is heard: what the other has is still not known, and the deadline of the instance begins.
        let heard = cluster.nodes.get_mut(&NodeId(1)).unwrap();
        heard.presence = Presence::Heard {
            since: NOW,
            protocol: PROTOCOL_VERSION,
        };
        let planned = plan(&cluster, Timestamp(NOW.0 + 60_000), &mut || 9);
        let ends = |action: &Action| {
            matches!(action, Action::SetRollout { .. }) && !says_what_waits(action)
        };
        assert!(!planned.actions.iter().any(ends), "{planned:?}");
    }
}

#[test]
fn case_a_drain_replaces_instances_as_a_rollout_does() {
    let mut cluster = serving();
    let (id, third) = node(3, 4096);
    cluster.nodes.insert(id, third);
    schedule(&mut cluster, 1, DRAINING);
    // One more of each is made; the old go when that is ready.
    check(
        &cluster,
        expect![[r#"
        create 00000011 web v1 on n3, fd00:1111:2222:3:0:1:0:11
        create 00000012 worker v1 on n2, fd00:1111:2222:2:0:1:0:12
        - shop/prod web: instance 00000011 of v1 on node-3: waiting for the node
        - shop/prod worker: instance 00000012 of v1 on node-2: waiting for the node
    "#]],
    );
    put(&mut cluster, 0x11, "web", 1, 3).make_ready();
    put(&mut cluster, 0x12, "worker", 1, 2);
    check(
        &cluster,
        expect![[r#"
        terminate 00000001: node-1 is being drained
        - shop/prod worker: instance 00000012 of v1 on node-2: waiting for the node
    "#]],
    );
}

#[test]
fn case_a_drain_that_finds_no_room_waits_and_fails_no_release() {
    let mut cluster = serving();
    let small = cluster.nodes.get_mut(&NodeId(2)).unwrap();
    small.hardware.memory_bytes = 300 * MIB;
    let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
    env.rollout.phase = RolloutPhase::Rolling;
    schedule(&mut cluster, 1, DRAINING);
    let later = Timestamp(NOW.0 + 60 * 60_000);
    let planned = plan(&cluster, later, &mut || 9);
    let text = format!("{:?}", planned.actions);
    assert!(
        !text.contains("Terminate") && !text.contains("Reverted"),
        "{text}"
    );
    let waits: Vec<_> = planned.findings.iter().map(ToString::to_string).collect();
    assert!(
        waits
            .iter()
            .any(|w| w.contains("node-1 (n1): it is being drained")),
        "{waits:?}"
    );
}

#[test]
fn case_instances_with_volumes_are_drained_only_where_the_user_says_so() {
    let mut cluster = database_on_node_1();
    schedule(&mut cluster, 1, DRAINING);
    check(&cluster, expect![[""]]);
    schedule(&mut cluster, 1, Scheduling::Draining { with_volumes: true });
    check(
        &cluster,
        expect![[r#"
            terminate 00000001: node-1 is being drained
        "#]],
    );
    cluster.instances.remove(&model::InstanceId(1));
    check(
        &cluster,
        expect![[r#"
        - shop/prod web: the node of its volume data cannot take it: node-1 (n1): it is being drained
    "#]],
    );
    schedule(&mut cluster, 1, Scheduling::Schedulable);
    let planned = plan(&cluster, NOW, &mut || 9);
    assert_eq!(planned.actions.len(), 1, "{planned:?}");
}

#[test]
fn a_cordoned_node_keeps_what_it_has_and_gets_nothing_more() {
    let mut cluster = serving();
    schedule(&mut cluster, 1, Scheduling::Cordoned);
    let env = cluster.envs.get_mut(&key("shop/prod")).unwrap();
    env.scale.insert(crate::fixtures::name("web"), 4);
    check(
        &cluster,
        expect![[r#"
        create 00000011 web v1 on n2, fd00:1111:2222:2:0:1:0:11
        create 00000012 web v1 on n2, fd00:1111:2222:2:0:1:0:12
        - shop/prod web: instance 00000011 of v1 on node-2: waiting for the node
        - shop/prod web: instance 00000012 of v1 on node-2: waiting for the node
    "#]],
    );
}

#[test]
fn case_an_instance_whose_volume_goes_with_a_removed_node_is_made_elsewhere_at_once() {
    let mut cluster = database_on_node_1();
    // Its node has only the volume any more.
    cluster.instances.clear();
    lapse(&mut cluster, 1, NOW);
    let mut leader = Leader::new(cluster, RouteIndex::default());
    let mut draw = || 7;
    let mut made = |leader: &mut Leader| {
        let mut actions = Vec::new();
        while let Some(planned) = leader.plan_next(NOW, &mut draw) {
            actions.extend(planned);
        }
        let creates = actions.iter();
        creates
            .filter(|action| matches!(action, Action::Create(_)))
            .count()
    };
    assert_eq!(made(&mut leader), 0);
    let removed = Command::RemoveNode {
        node: NodeId(1),
        lost: true,
        now: NOW,
    };
    leader
        .execute(&crate::fixtures::origin(), &[removed])
        .unwrap();
    assert_eq!(made(&mut leader), 1);
}
