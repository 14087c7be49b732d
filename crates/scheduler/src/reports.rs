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

use api::node::{InstanceReport, NodeReport};
use model::instance::InstanceState;
use model::{Generation, Incarnation, InstanceId, NodeId, Timestamp, VolumeId};

use crate::changes::Changes;
use crate::cluster_state::{ClusterState, Instance, InstancePhase, Node, Subject, VolumePhase};

/// How old [`Node::seen_at`] may be before a report that says nothing new changes it, in milliseconds: such a report
/// costs no write.
pub const SEEN_GRANULARITY_MS: u64 = 60_000;

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

/// What the node of this report has and the cluster state does not know there.
pub fn unknown(cluster: &ClusterState, node: NodeId, report: &NodeReport) -> Unknown {
    let unreadable =
        |subject: Subject| (cluster.unreadable.iter()).any(|record| record.subject == subject);
    let is_unknown_instance = |id: &InstanceId| {
        cluster.instances.get(id).is_none_or(|i| i.node != node)
            && !unreadable(Subject::Instance(*id))
    };
    let is_unknown_volume = |id: &VolumeId| {
        cluster.volumes.get(id).is_none_or(|v| v.node != node) && !unreadable(Subject::Volume(*id))
    };
    let running = report
        .instances
        .iter()
        .filter(|reported| !has_stopped(reported.state));
    let instances = running.map(|reported| reported.id);
    let volumes = report.volumes.iter().copied();
    Unknown {
        instances: instances.filter(is_unknown_instance).collect(),
        volumes: volumes.filter(is_unknown_volume).collect(),
    }
}

/// Whether a report changes anything of the cluster state.
pub fn is_news(cluster: &ClusterState, node: NodeId, report: &NodeReport, now: Timestamp) -> bool {
    let mut after = cluster.clone();
    !apply_report(&mut after, node, report, now).is_empty()
}

/// Takes a node's report into the cluster state. Nothing changes for a node that the cluster state lacks.
pub(crate) fn apply_report(
    cluster: &mut ClusterState,
    id: NodeId,
    report: &NodeReport,
    now: Timestamp,
) -> Changes {
    let mut changes = Changes::default();
    let Some(before) = cluster.nodes.get(&id) else {
        return changes;
    };
    let incarnation = cluster.incarnation;
    let observed = report.generation.within(incarnation);
    let node = node_after_report(before, report, observed, incarnation, now);
    let is_current = observed.incarnation == incarnation && observed.counter == node.generation;
    let damaged = Subject::Node(id);
    let is_damaged = (cluster.unreadable.iter()).any(|record| record.subject == damaged);
    if node != *before || is_damaged {
        cluster
            .unreadable
            .retain(|record| record.subject != damaged);
        cluster.nodes.insert(id, node.clone());
        changes.nodes.insert(id, Some(node));
    }
    let reported: BTreeMap<InstanceId, &InstanceReport> =
        (report.instances.iter()).map(|r| (r.id, r)).collect();
    let on_node = cluster.instances.on_node(id);
    let news: Vec<_> = on_node
        .filter_map(|(id, instance)| {
            let after = after_report(instance, is_current, reported.get(&id).copied());
            Some((id, after?))
        })
        .collect();
    for (id, (phase, said)) in news {
        if let Some(instance) = cluster.instances.get_mut(&id) {
            instance.ready_since = ready_since(instance, said.as_ref(), now);
            (instance.phase, instance.report) = (phase, said);
            changes.instances.insert(id, Some(instance.clone()));
        }
    }
    let disks: BTreeSet<VolumeId> = report.volumes.iter().copied().collect();
    let on_node = cluster.volumes.on_node(id);
    let news: Vec<_> = on_node
        .filter_map(|(id, volume)| {
            let after = volume_after_report(volume.phase, disks.contains(&id), is_current);
            (after != volume.phase).then_some((id, after))
        })
        .collect();
    for (id, phase) in news {
        if let Some(volume) = cluster.volumes.get_mut(&id) {
            volume.phase = phase;
            changes.volumes.insert(id, Some(volume.clone()));
        }
    }
    changes
}

/// `observed`: the generation that the node has applied.
fn node_after_report(
    before: &Node,
    report: &NodeReport,
    observed: Generation,
    incarnation: Incarnation,
    now: Timestamp,
) -> Node {
    let mut node = before.clone();
    node.hardware.clone_from(&report.hardware);
    node.driver = Some(report.driver.clone());
    node.egress.clone_from(&report.egress);
    let is_ahead = observed.incarnation == incarnation && observed.counter > node.generation;
    if is_ahead && observed.counter <= MAX_REPORTED_GENERATION {
        node.generation = observed.counter.saturating_add(1);
    }
    let is_old = |at: Timestamp| now.0.abs_diff(at.0) >= SEEN_GRANULARITY_MS;
    if node != *before || node.seen_at.is_none_or(is_old) {
        node.seen_at = Some(now);
    }
    node
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
    use api::node::DriverChoice;

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
    fn a_report_that_says_nothing_new_is_written_once_a_minute() {
        let mut cluster = two();
        let at = |cluster: &mut ClusterState, now| {
            let command = Command::Report {
                node: NodeId(1),
                report: Box::new(node_report(7, &[])),
                now: Timestamp(now),
            };
            apply(cluster, &command).unwrap();
            cluster.nodes[&NodeId(1)].seen_at.unwrap().0
        };
        assert_eq!(at(&mut cluster, 5), 5);
        assert_eq!(at(&mut cluster, 4 + SEEN_GRANULARITY_MS), 5);
        assert_eq!(
            at(&mut cluster, 5 + SEEN_GRANULARITY_MS),
            5 + SEEN_GRANULARITY_MS
        );
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
