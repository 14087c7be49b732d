//! What a report of a node does to the cluster state.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::apply::{Command, Refused, apply};
use crate::cluster_state::{CountedAs, UnreadableRecord};
use crate::desired::desired;
use crate::fixtures::{InstanceFixture, READY, attach, cluster, deploy, manifest, process, report};
use crate::placement::Placement;
use crate::report_receiver::ReportReceiver;
use api::node::{AgentSession, DriverChoice, InstanceHolds};
use model::Incarnation;

fn unknown(cluster: &ClusterState, node: NodeId, report: &NodeReport) -> Unknown {
    let mut receiver = ReportReceiver::default();
    let whole = ReportDelta::whole(AgentSession(1), 1, report.clone());
    receiver.received(cluster, node, &whole, Vec::new());
    let mut cluster = cluster.clone();
    apply_to(&mut cluster, node, report);
    receiver.unknown(&cluster, node)
}

fn is_gone(cluster: &ClusterState, id: u32) -> bool {
    matches!(phase(cluster, id), InstancePhase::Gone { .. })
}

fn two() -> ClusterState {
    let mut cluster = cluster(2);
    deploy(
        &mut cluster,
        "shop/prod",
        manifest(&[("web", process(2))]),
        Timestamp(0),
    );
    for id in [1, 2] {
        let (env, process, release, node) = ("shop/prod", "web", 1, 1);
        InstanceFixture {
            id,
            env,
            process,
            release,
            node,
        }
        .into_cluster(&mut cluster);
    }
    cluster.nodes.get_mut(&NodeId(1)).unwrap().generation = 7;
    cluster
}

fn node_report(generation: u64, instances: &[(u32, InstanceState)]) -> NodeReport {
    let said = |(id, state): &(u32, InstanceState)| report(InstanceId(*id), *state);
    NodeReport {
        generation: Generation {
            incarnation: Incarnation(1),
            counter: generation,
        },
        egress: None,
        driver: DriverChoice {
            name: "qemu-tcg".to_owned(),
            reason: "no KVM".to_owned(),
        },
        hardware: api::enrollment::Hardware::default(),
        instances: instances.iter().map(said).collect(),
        volumes: Vec::new(),
        highest_network: model::EnvNetwork::default(),
        images: Vec::new(),
    }
}

fn apply_to(cluster: &mut ClusterState, node: NodeId, report: &NodeReport) -> Changes {
    let command = Command::Report {
        node,
        report: Box::new(report.clone()),
        now: Timestamp(1),
    };
    apply(cluster, &command).unwrap()
}

fn phase(cluster: &ClusterState, id: u32) -> &InstancePhase {
    &cluster.instances[&InstanceId(id)].phase
}

#[test]
fn a_report_changes_only_the_records_it_says_something_new_of() {
    let mut cluster = two();
    let said = node_report(7, &[(1, READY), (9, READY)]);
    let changes = apply_to(&mut cluster, NodeId(1), &said);
    let changed: Vec<_> = changes.instances.keys().copied().collect();
    assert_eq!(changed, [InstanceId(1)]);
    let strangers = unknown(&cluster, NodeId(1), &said);
    assert_eq!(strangers.instances, [InstanceId(9)]);
    assert_eq!(*phase(&cluster, 1), InstancePhase::Established);
    assert!(apply_to(&mut cluster, NodeId(1), &said).is_empty());
    // The node lists it no longer: nothing is known of it.
    let changes = apply_to(&mut cluster, NodeId(1), &node_report(7, &[]));
    assert_eq!(changes.instances.len(), 1);
    assert_eq!(cluster.instances[&InstanceId(1)].report, None);
    assert_eq!(*phase(&cluster, 1), InstancePhase::Established);
    // Another node's report does not count.
    let said = node_report(0, &[(1, READY)]);
    assert!(
        apply_to(&mut cluster, NodeId(2), &said)
            .instances
            .is_empty()
    );
    assert_eq!(
        unknown(&cluster, NodeId(2), &said).instances,
        [InstanceId(1)]
    );
    let from_a_stranger = Command::Report {
        node: NodeId(3),
        report: Box::new(said),
        now: Timestamp(1),
    };
    let refused = apply(&mut cluster, &from_a_stranger);
    assert_eq!(refused, Err(Refused::NoNode(NodeId(3))));
}

#[test]
fn a_report_that_says_nothing_new_is_never_written() {
    let mut cluster = two();
    let at = |cluster: &mut ClusterState, now| {
        let command = Command::Report {
            node: NodeId(1),
            report: Box::new(node_report(7, &[])),
            now: Timestamp(now),
        };
        apply(cluster, &command).unwrap().is_empty()
    };
    assert!(!at(&mut cluster, 5));
    assert!(at(&mut cluster, 5 + 24 * 3_600_000));
    assert_eq!(cluster.nodes[&NodeId(1)].seen_at, Some(Timestamp(5)));
}

fn changes(generation: Option<u64>, instances: &[(u32, InstanceState)]) -> ReportDelta {
    let said = |(id, state): &(u32, InstanceState)| report(InstanceId(*id), *state);
    ReportDelta {
        generation: generation.map(|counter| Generation {
            incarnation: Incarnation(1),
            counter,
        }),
        instances: instances.iter().map(said).collect(),
        ..ReportDelta::default()
    }
}

fn apply_delta(
    cluster: &mut ClusterState,
    observed: u64,
    delta: &ReportDelta,
    volumes: &[VolumeId],
) -> Changes {
    let incarnation = cluster.incarnation;
    let command = Command::ReportChanges {
        node: NodeId(1),
        changes: Box::new(delta.clone()),
        observed: Generation {
            incarnation,
            counter: observed,
        },
        volumes: delta.generation.map(|_| volumes.iter().copied().collect()),
        now: Timestamp(2),
    };
    apply(cluster, &command).unwrap()
}

#[test]
fn what_changed_on_a_node_is_applied_and_nothing_else_is_looked_at() {
    let mut cluster = two();
    apply_to(
        &mut cluster,
        NodeId(1),
        &node_report(7, &[(1, READY), (2, READY)]),
    );
    let changed = apply_delta(
        &mut cluster,
        7,
        &changes(None, &[(2, InstanceState::Backoff)]),
        &[],
    );
    let of = |changes: &Changes| changes.instances.keys().copied().collect::<Vec<_>>();
    assert_eq!(of(&changed), [InstanceId(2)]);
    assert!(changed.nodes.is_empty(), "nothing of the node changed");
    assert!(cluster.instances[&InstanceId(1)].report.is_some());
    // What is named as gone is listed no longer.
    let gone = ReportDelta {
        gone_instances: vec![InstanceId(2), InstanceId(9)],
        ..ReportDelta::default()
    };
    assert_eq!(
        of(&apply_delta(&mut cluster, 7, &gone, &[])),
        [InstanceId(2)]
    );
    assert_eq!(cluster.instances[&InstanceId(2)].report, None);
    // The instance of another node is not this one's.
    cluster.instances.remove(&InstanceId(1));
    InstanceFixture {
        id: 1,
        env: "shop/prod",
        process: "web",
        release: 1,
        node: 2,
    }
    .into_cluster(&mut cluster);
    let said = changes(None, &[(1, READY)]);
    let changed = apply_delta(&mut cluster, 7, &said, &[]);
    assert!(changed.instances.is_empty());
    assert!(
        cluster.nodes[&NodeId(1)]
            .unknown
            .contains_key(&InstanceId(1))
    );
}

#[test]
fn an_instance_is_gone_by_a_difference_of_the_current_generation() {
    let mut cluster = two();
    apply_to(&mut cluster, NodeId(1), &node_report(7, &[(1, READY)]));
    for id in [1, 2] {
        let instance = cluster.instances.get_mut(&InstanceId(id)).unwrap();
        instance.terminate();
    }
    cluster.nodes.get_mut(&NodeId(1)).unwrap().generation = 8;
    // It stopped before the node heard of the stop: it may start again.
    let stopped = changes(None, &[(1, InstanceState::Stopped)]);
    apply_delta(&mut cluster, 7, &stopped, &[]);
    assert!(!is_gone(&cluster, 1) && !is_gone(&cluster, 2));
    apply_delta(&mut cluster, 7, &changes(None, &[(1, READY)]), &[]);
    // The node has applied the stop: what it never had is gone, and what it has is not.
    apply_delta(&mut cluster, 8, &changes(Some(8), &[]), &[]);
    assert!(!is_gone(&cluster, 1) && is_gone(&cluster, 2));
    apply_delta(&mut cluster, 8, &stopped, &[]);
    assert!(is_gone(&cluster, 1));
}

#[test]
fn a_deleted_volume_is_gone_by_a_difference_once_its_disk_is() {
    let mut cluster = two();
    attach(&mut cluster, 1, 0);
    cluster.instances.remove(&InstanceId(1));
    let id = VolumeId(0xd0);
    apply(&mut cluster, &Command::DeleteVolume { id }).unwrap();
    let generation = cluster.nodes[&NodeId(1)].generation;
    let is_deleted = |cluster: &ClusterState| cluster.volumes[&id].phase == VolumePhase::Deleted;
    let moved = changes(Some(generation), &[]);
    apply_delta(&mut cluster, generation, &moved, &[id]);
    assert!(!is_deleted(&cluster), "its disk is there");
    let mut never_there = cluster.clone();
    apply_delta(&mut never_there, generation, &moved, &[]);
    assert!(is_deleted(&never_there));
    let gone = ReportDelta {
        gone_volumes: vec![id],
        ..ReportDelta::default()
    };
    apply_delta(&mut cluster, generation, &gone, &[]);
    assert!(is_deleted(&cluster));
}

#[test]
fn an_instance_is_gone_when_a_report_of_the_current_generation_says_so() {
    let gone = |said: &NodeReport| {
        let mut cluster = two();
        cluster
            .instances
            .get_mut(&InstanceId(1))
            .unwrap()
            .terminate();
        apply_to(&mut cluster, NodeId(1), said);
        assert!(!is_gone(&cluster, 2));
        is_gone(&cluster, 1)
    };
    assert!(!gone(&node_report(6, &[(1, InstanceState::Stopped)])));
    assert!(!gone(&node_report(6, &[])));
    assert!(!gone(&node_report(7, &[(1, InstanceState::Stopping)])));
    assert!(gone(&node_report(7, &[(1, InstanceState::Stopped)])));
    assert!(gone(&node_report(7, &[(1, InstanceState::Failed)])));
    assert!(gone(&node_report(7, &[])));
}

#[test]
fn a_terminating_instance_may_still_become_ready() {
    let mut cluster = two();
    cluster
        .instances
        .get_mut(&InstanceId(1))
        .unwrap()
        .terminate();
    assert!(!cluster.instances[&InstanceId(1)].was_ready());
    let said = node_report(6, &[(1, READY)]);
    apply_to(&mut cluster, NodeId(1), &said);
    let instance = &cluster.instances[&InstanceId(1)];
    assert!(instance.is_terminating() && instance.was_ready());
}

#[test]
fn nothing_is_gone_by_a_report_of_a_node_that_is_ahead_of_the_store() {
    let mut cluster = two();
    cluster
        .instances
        .get_mut(&InstanceId(1))
        .unwrap()
        .terminate();
    apply_to(&mut cluster, NodeId(1), &node_report(30, &[]));
    assert_eq!(cluster.nodes[&NodeId(1)].generation, 31);
    assert!(!is_gone(&cluster, 1));
    apply_to(&mut cluster, NodeId(1), &node_report(31, &[]));
    assert_eq!(cluster.nodes[&NodeId(1)].generation, 31);
    assert!(is_gone(&cluster, 1));
}

#[test]
fn a_generation_that_no_server_gave_is_not_believed() {
    for generation in [MAX_REPORTED_GENERATION + 1, u64::MAX / 2, u64::MAX] {
        let mut cluster = two();
        apply_to(&mut cluster, NodeId(1), &node_report(generation, &[]));
        assert_eq!(cluster.nodes[&NodeId(1)].generation, 7);
    }
}

#[test]
fn a_volume_is_deleted_when_a_report_of_the_current_generation_lacks_its_disk() {
    let mut cluster = two();
    attach(&mut cluster, 1, 0);
    cluster.instances.remove(&InstanceId(1));
    let id = VolumeId(0xd0);
    cluster.volumes.get_mut(&id).unwrap().phase = VolumePhase::Planned;
    let mut said = node_report(7, &[]);
    said.volumes = vec![id];
    let after = |cluster: &mut ClusterState, said: &NodeReport| {
        let changes = apply_to(cluster, NodeId(1), said);
        let changed = changes.volumes.get(&id);
        changed.map(|volume| volume.as_ref().unwrap().phase)
    };
    assert_eq!(after(&mut cluster, &said), Some(VolumePhase::Made));
    let ghost = VolumeId(0x9057);
    said.volumes.push(ghost);
    assert_eq!(unknown(&cluster, NodeId(1), &said).volumes, [ghost]);
    assert_eq!(after(&mut cluster, &said), None);

    apply(&mut cluster, &Command::DeleteVolume { id }).unwrap();
    assert_eq!(
        cluster.volumes[&id].phase,
        VolumePhase::Deleting { made: true }
    );
    // A node that has not heard of it may still make the disk.
    said.volumes.clear();
    assert_eq!(after(&mut cluster, &said), None);
    said.generation.counter = 8;
    assert_eq!(after(&mut cluster, &said), Some(VolumePhase::Deleted));
}

#[test]
fn an_instance_with_an_unreadable_record_is_not_unknown() {
    let mut cluster = two();
    cluster.instances.remove(&InstanceId(1));
    let said = node_report(7, &[(1, READY)]);
    assert_eq!(
        unknown(&cluster, NodeId(1), &said).instances,
        [InstanceId(1)]
    );
    // One that the platform itself has ended: its node reaps it next.
    let stopped = node_report(7, &[(1, InstanceState::Stopped)]);
    assert_eq!(unknown(&cluster, NodeId(1), &stopped), Unknown::default());
    cluster.unreadable = vec![UnreadableRecord {
        subject: Subject::Instance(InstanceId(1)),
        env: None,
        node: Some(NodeId(1)),
        holds: None,
        cause: "a test".to_owned(),
    }];
    assert_eq!(unknown(&cluster, NodeId(1), &said), Unknown::default());
}

/// As after a restore: what runs is promised, whoever knows it, and ends when a user says so.
#[test]
fn what_a_restored_store_does_not_know_is_promised_left_running_and_stopped_when_a_user_says_so() {
    let mut cluster = two();
    let node = NodeId(1);
    let promised = |cluster: &ClusterState| Placement::new(cluster).promised(node);
    let before = promised(&cluster);
    let mut said = node_report(7, &[(1, READY), (2, READY), (8, READY), (9, READY)]);
    said.instances[2].holds = Some(InstanceHolds {
        cpu_millis: 500,
        memory_bytes: 3 << 30,
        disk_bytes: 5 << 30,
    });
    apply_to(&mut cluster, node, &said);
    let after = promised(&cluster);
    // 9 is of an agent that does not say.
    assert_eq!(
        (
            after.cpu_millis - before.cpu_millis,
            after.memory_bytes - before.memory_bytes,
            after.disk_bytes - before.disk_bytes
        ),
        (
            500 + CountedAs::ASSUMED_CPU_MILLIS,
            (3 << 30) + CountedAs::ASSUMED_MEMORY_BYTES,
            (5 << 30) + CountedAs::ASSUMED_DISK_BYTES
        )
    );
    // A placement that follows the changes counts the same.
    let mut followed = Placement::new(&two());
    followed.set_node(node, cluster.nodes.get(&node));
    assert_eq!(followed.promised(node), after);
    assert!(desired(&cluster, node).1.is_empty());
    // It says nothing new.
    assert!(apply_to(&mut cluster, node, &said).is_empty());

    let stop = Command::StopUnknown {
        node,
        instances: BTreeSet::from([InstanceId(8), InstanceId(1), InstanceId(77)]),
    };
    apply(&mut cluster, &stop).unwrap();
    assert_eq!(cluster.nodes[&node].generation, 8);
    assert_eq!(desired(&cluster, node).1, [InstanceId(8)]);
    apply(&mut cluster, &stop).unwrap();
    assert_eq!(cluster.nodes[&node].generation, 8);
    // While it stops it is told so, and counts. A node that is told to stop it does not say any more what it holds.
    said.instances[2].holds = None;
    said.instances[2].state = InstanceState::Stopping;
    said.generation.counter = 8;
    apply_to(&mut cluster, node, &said);
    assert_eq!(desired(&cluster, node).1, [InstanceId(8)]);
    assert_eq!(promised(&cluster), after);
    // Gone, by a difference.
    let gone = ReportDelta {
        gone_instances: vec![InstanceId(8)],
        ..ReportDelta::default()
    };
    let command = Command::ReportChanges {
        node,
        changes: Box::new(gone),
        observed: said.generation,
        volumes: None,
        now: Timestamp(2),
    };
    apply(&mut cluster, &command).unwrap();
    assert!(desired(&cluster, node).1.is_empty());
    assert_eq!(cluster.nodes[&node].generation, 9);
    assert_eq!(
        cluster.nodes[&node].unknown.keys().collect::<Vec<_>>(),
        [&InstanceId(9)]
    );
    // And all of it, by a whole report.
    apply_to(
        &mut cluster,
        node,
        &node_report(9, &[(1, READY), (2, READY)]),
    );
    assert_eq!(promised(&cluster), before);
}
