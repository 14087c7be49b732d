//! What a node's report means for the cluster state.
//!
//! The node owns the truth of its instances; the cluster state holds the node's last report of each. A terminating
//! instance is gone only when its node says so, and only a report of the node's current generation counts: that
//! generation carries every stop, so an instance that such a report lists as stopped, or does not list, was stopped and
//! will not start again.
//!
//! ```text
//! Terminate -> generation 7 carries the stop -> report{generation 6, running}   not yet
//!                                              report{generation 7, stopping}  not yet
//!                                              report{generation 7, stopped}   gone: delete
//!                                              report{generation 7, absent}    gone: delete
//! ```
//!
//! A volume that is being deleted is gone by the same rule, once its disk is no longer listed.
//!
//! A report of another incarnation says which instances there are, and nothing is gone by it: the store was restored, and the
//! node has not applied its state yet. A report of a larger counter than ours in our own incarnation means that the store went
//! back without being restored (a copy of its file was put back by hand). The counter then jumps past it, so that the node
//! applies our state again. Whether the node is online is not decided here: that needs a clock that cannot jump.

use std::collections::{BTreeMap, BTreeSet};

use api::node::{InstanceReport, NodeReport, ReportDelta};
use model::instance::InstanceState;
use model::{Generation, InstanceId, NodeId, Timestamp, VolumeId};

use crate::changes::Changes;
use crate::cluster_state::{ClusterState, Instance, InstancePhase, Node, Subject, VolumePhase};

/// Highest counter of a desired state that a node may say it has applied: far more than any server gives, and few enough that
/// every store takes the next ones. A node that says more is not believed, and its instances are not gone by what it says.
pub const MAX_REPORTED_GENERATION: u64 = 1 << 53;

/// What a node has and the cluster state does not know there: the store was restored from an older backup. An instance
/// that has stopped is none of it: the cluster state has deleted it, and its node reaps it next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unknown {
    /// Instances that the node runs. They are left running.
    pub instances: Vec<InstanceId>,
    /// Volumes whose disks the node has. They are kept.
    pub volumes: Vec<VolumeId>,
}

/// Whether a node runs an instance that the cluster state does not know there.
pub(crate) fn is_unknown_instance(
    cluster: &ClusterState,
    node: NodeId,
    said: &InstanceReport,
) -> bool {
    let is_known = (cluster.instances.get(&said.id)).is_some_and(|known| known.node == node);
    !is_known && !has_stopped(said.state) && !is_unreadable(cluster, Subject::Instance(said.id))
}

/// Whether the cluster state does not know this volume on this node.
pub(crate) fn is_unknown_volume(cluster: &ClusterState, node: NodeId, id: VolumeId) -> bool {
    let is_known = (cluster.volumes.get(&id)).is_some_and(|volume| volume.node == node);
    !is_known && !is_unreadable(cluster, Subject::Volume(id))
}

fn is_unreadable(cluster: &ClusterState, subject: Subject) -> bool {
    (cluster.unreadable.iter()).any(|record| record.subject == subject)
}

/// Takes all that a node reports into the cluster state. Nothing changes for a node that the cluster state lacks.
pub(crate) fn apply_report(
    cluster: &mut ClusterState,
    id: NodeId,
    report: &NodeReport,
    now: Timestamp,
) -> Changes {
    let mut changes = Changes::default();
    let observed = report.generation.within(cluster.incarnation);
    let Some(before) = cluster.nodes.get(&id) else {
        return changes;
    };
    let is_current = is_current(cluster, before, observed);
    let mut node = before.clone();
    node.hardware.clone_from(&report.hardware);
    node.driver = Some(report.driver.clone());
    node.egress.clone_from(&report.egress);
    set_node(cluster, id, node, Some(observed), now, &mut changes);
    let reported: BTreeMap<InstanceId, &InstanceReport> =
        (report.instances.iter()).map(|r| (r.id, r)).collect();
    let on_node = cluster.instances.on_node(id).map(|(id, _)| id);
    let said: Vec<_> = on_node.map(|id| (id, reported.get(&id).copied())).collect();
    set_instances(cluster, &said, is_current, now, &mut changes);
    let disks: BTreeSet<VolumeId> = report.volumes.iter().copied().collect();
    let on_node = cluster.volumes.on_node(id);
    let said: Vec<_> = on_node.map(|(id, _)| (id, disks.contains(&id))).collect();
    set_volumes(cluster, &said, is_current, &mut changes);
    changes
}

/// Takes what changed on a node into the cluster state, which has all that it reported before. It costs what changed: only when the node
/// has applied another desired state is everything looked at that terminates there.
///
/// `observed`: the generation that it has applied. `volumes`: every volume that it has, where that generation is another than before.
pub(crate) fn apply_changes(
    cluster: &mut ClusterState,
    id: NodeId,
    delta: &ReportDelta,
    observed: Generation,
    volumes: Option<&BTreeSet<VolumeId>>,
    now: Timestamp,
) -> Changes {
    let mut changes = Changes::default();
    let observed = observed.within(cluster.incarnation);
    let Some(before) = cluster.nodes.get(&id) else {
        return changes;
    };
    let is_current = is_current(cluster, before, observed);
    let mut node = before.clone();
    if let Some(hardware) = &delta.hardware {
        node.hardware.clone_from(hardware);
    }
    if delta.driver.is_some() {
        node.driver.clone_from(&delta.driver);
    }
    if delta.egress.is_some() {
        node.egress.clone_from(&delta.egress);
    }
    let moved = delta.generation.map(|_| observed);
    set_node(cluster, id, node, moved, now, &mut changes);
    let is_here = |instance: &InstanceId| {
        let known = cluster.instances.get(instance);
        known.is_some_and(|known| known.node == id)
    };
    let mut said: BTreeMap<InstanceId, Option<&InstanceReport>> = BTreeMap::new();
    said.extend(delta.gone_instances.iter().map(|id| (*id, None)));
    said.extend(delta.instances.iter().map(|said| (said.id, Some(said))));
    said.retain(|instance, _| is_here(instance));
    let said: Vec<_> = said.into_iter().collect();
    set_instances(cluster, &said, is_current, now, &mut changes);
    let there = delta.volumes.iter().map(|id| (*id, true));
    let gone = delta.gone_volumes.iter().map(|id| (*id, false));
    let is_here = |(volume, _): &(VolumeId, bool)| {
        let known = cluster.volumes.get(volume);
        known.is_some_and(|known| known.node == id)
    };
    let mut said: BTreeMap<VolumeId, bool> = there.chain(gone).filter(is_here).collect();
    if is_current && let Some(volumes) = volumes {
        // What the node was told to end, and does not have: it was never there, or was reported gone before.
        let terminating: Vec<_> = (cluster.instances.on_node(id))
            .filter(|(_, instance)| instance.is_terminating())
            .map(|(id, instance)| (id, instance.report.clone()))
            .collect();
        let terminating: Vec<_> = (terminating.iter())
            .map(|(id, report)| (*id, report.as_ref()))
            .collect();
        set_instances(cluster, &terminating, true, now, &mut changes);
        let deleting = cluster.volumes.on_node(id);
        let deleting = deleting.filter(|(_, volume)| volume.is_deleting());
        let deleting = deleting.map(|(id, _)| (id, volumes.contains(&id)));
        said.extend(deleting.collect::<Vec<_>>());
    }
    let said: Vec<_> = said.into_iter().collect();
    set_volumes(cluster, &said, is_current, &mut changes);
    changes
}

/// Whether the node has applied its current desired state.
fn is_current(cluster: &ClusterState, node: &Node, observed: Generation) -> bool {
    observed.incarnation == cluster.incarnation && observed.counter == node.generation
}

/// Makes a node's record `node`, which the node says. `observed`: the generation that it has applied, where it says so.
fn set_node(
    cluster: &mut ClusterState,
    id: NodeId,
    mut node: Node,
    observed: Option<Generation>,
    now: Timestamp,
    changes: &mut Changes,
) {
    if let Some(observed) = observed {
        let is_ahead = observed.incarnation == cluster.incarnation
            && observed.counter > node.generation
            && observed.counter <= MAX_REPORTED_GENERATION;
        if is_ahead {
            node.generation = observed.counter.saturating_add(1);
        }
    }
    let damaged = Subject::Node(id);
    let is_damaged = is_unreadable(cluster, damaged.clone());
    let before = cluster.nodes.get(&id);
    // When a node that says nothing new was last heard is written when it lapses.
    if before == Some(&node) && !is_damaged && node.seen_at.is_some() {
        return;
    }
    node.seen_at = Some(now);
    if is_damaged {
        cluster
            .unreadable
            .retain(|record| record.subject != damaged);
    }
    cluster.nodes.insert(id, node.clone());
    changes.nodes.insert(id, Some(node));
}

/// What is reported of instances of a node; `None`: it lists them no longer.
fn set_instances(
    cluster: &mut ClusterState,
    said: &[(InstanceId, Option<&InstanceReport>)],
    is_current: bool,
    now: Timestamp,
    changes: &mut Changes,
) {
    for (id, said) in said {
        let Some(instance) = cluster.instances.get(id) else {
            continue;
        };
        let Some((phase, report)) = after_report(instance, is_current, *said) else {
            continue;
        };
        let ready_since = ready_since(instance, report.as_ref(), now);
        if let Some(instance) = cluster.instances.get_mut(id) {
            (instance.phase, instance.report) = (phase, report);
            instance.ready_since = ready_since;
            changes.instances.insert(*id, Some(instance.clone()));
        }
    }
}

/// Whether the disks of volumes of a node are there.
fn set_volumes(
    cluster: &mut ClusterState,
    said: &[(VolumeId, bool)],
    is_current: bool,
    changes: &mut Changes,
) {
    for (id, there) in said {
        let Some(volume) = cluster.volumes.get(id) else {
            continue;
        };
        let phase = volume_after_report(volume.phase, *there, is_current);
        if phase != volume.phase
            && let Some(volume) = cluster.volumes.get_mut(id)
        {
            volume.phase = phase;
            changes.volumes.insert(*id, Some(volume.clone()));
        }
    }
}

/// The instance's phase and report after its node's `report`, which says `reported` of it; `None` where nothing is new.
/// `is_current`: the report is of the node's current generation.
fn after_report(
    instance: &Instance,
    is_current: bool,
    reported: Option<&InstanceReport>,
) -> Option<(InstancePhase, Option<InstanceReport>)> {
    let ready = reported.is_some_and(|r| r.state.is_ready());
    let gone = reported.is_none_or(|r| has_stopped(r.state));
    let next = match &instance.phase {
        InstancePhase::New if ready => Some(InstancePhase::Established),
        InstancePhase::Terminating { reason, .. } if gone && is_current => {
            Some(InstancePhase::Gone {
                reason: reason.clone(),
            })
        }
        InstancePhase::Terminating {
            was_ready: false,
            reason,
        } if ready => Some(InstancePhase::Terminating {
            was_ready: true,
            reason: reason.clone(),
        }),
        InstancePhase::New
        | InstancePhase::Established
        | InstancePhase::Terminating { .. }
        | InstancePhase::Gone { .. } => None,
    };
    if next.is_none() && instance.report.as_ref() == reported {
        return None;
    }
    let phase = next.unwrap_or_else(|| instance.phase.clone());
    Some((phase, reported.cloned()))
}

/// Since when the instance is ready on end, after its node's report of it. An app that was started anew begins anew.
fn ready_since(
    before: &Instance,
    said: Option<&InstanceReport>,
    now: Timestamp,
) -> Option<Timestamp> {
    let said = said.filter(|said| said.state.is_ready())?;
    let is_same_run = |known: &&InstanceReport| {
        known.state.is_ready()
            && known.restarts == said.restarts
            && known.state.started_at() == said.state.started_at()
    };
    match before.report.as_ref().filter(is_same_run) {
        Some(_) => before.ready_since,
        None => Some(now),
    }
}

/// Whether nothing of the instance runs and it does not start again by itself.
fn has_stopped(state: InstanceState) -> bool {
    matches!(state, InstanceState::Stopped | InstanceState::Failed)
}

/// The phase of a volume after a report of its node. `there`: the report lists its disk. `is_current`: the node has
/// applied its current desired state.
fn volume_after_report(phase: VolumePhase, there: bool, is_current: bool) -> VolumePhase {
    match phase {
        VolumePhase::Planned if there => VolumePhase::Made,
        VolumePhase::Deleting { made: false } if there => VolumePhase::Deleting { made: true },
        VolumePhase::Deleting { .. } if !there && is_current => VolumePhase::Deleted,
        same @ (VolumePhase::Planned
        | VolumePhase::Made
        | VolumePhase::Deleting { .. }
        | VolumePhase::Deleted) => same,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::apply::{Command, Refused, apply};
    use crate::cluster_state::UnreadableRecord;
    use crate::fixtures::{
        InstanceFixture, READY, attach, cluster, deploy, manifest, process, report,
    };
    use crate::report_receiver::ReportReceiver;
    use api::node::DriverChoice;
    use model::Incarnation;

    fn unknown(cluster: &ClusterState, node: NodeId, report: &NodeReport) -> Unknown {
        let mut receiver = ReportReceiver::default();
        let whole = receiver.uncounted(report.clone());
        receiver.received(cluster, node, &whole, Vec::new());
        receiver.unknown(cluster, node)
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
        assert!(apply_delta(&mut cluster, 7, &said, &[]).is_empty());
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
        let is_deleted =
            |cluster: &ClusterState| cluster.volumes[&id].phase == VolumePhase::Deleted;
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
            cause: "a test".to_owned(),
        }];
        assert_eq!(unknown(&cluster, NodeId(1), &said), Unknown::default());
    }
}
