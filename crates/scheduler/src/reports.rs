//! What a node's report means for the cluster state.
//!
//! The node owns the truth of its instances; the cluster state holds its last word about each. A terminating
//! instance is forgotten only when its node says that it is gone, and only a report that has taken
//! up the node's current generation counts: that generation carries every stop, so what such a
//! report lists as stopped, or does not list, was stopped and will not start again.
//!
//! ```text
//! Terminate -> generation 7 carries the stop -> report{generation 6, running}   not yet
//!                                           report{generation 7, stopping}  not yet
//!                                           report{generation 7, stopped}   acknowledged: delete
//!                                           report{generation 7, absent}    acknowledged: delete
//! ```
//!
//! A volume that is being deleted is forgotten by the same rule, once its disk is no longer listed.
//!
//! A report of a generation larger than ours means that this store was restored from an older
//! backup. The generation then jumps past it, so that the node takes our state up again, and
//! nothing is acknowledged until it did. Whether the node is online is not decided here: that
//! needs a clock.

use api::node::NodeReport;
use model::instance::InstanceState;
use model::{Generation, InstanceId, NodeId, VolumeId};

use crate::cluster_state::{ClusterState, Instance, Volume};

/// What a report changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Instances whose record changed: to be stored.
    pub changed: Vec<InstanceId>,
    /// Volumes whose record changed: to be stored.
    pub changed_volumes: Vec<VolumeId>,
    /// Instances that the node runs and the cluster state does not know there. They are left running.
    pub unknown: Vec<InstanceId>,
    /// Volumes whose disks the node has and the cluster state does not know there. They are kept.
    pub unknown_volumes: Vec<VolumeId>,
    /// The node's new generation, where its report was ahead of us: to be stored.
    pub raised_to: Option<Generation>,
}

/// Takes one node's report into the cluster state. Nothing happens for a node that the cluster state lacks.
pub fn record(cluster: &mut ClusterState, node: NodeId, report: &NodeReport) -> Recorded {
    let mut recorded = Recorded::default();
    let Some(known) = cluster.nodes.get_mut(&node) else {
        return recorded;
    };
    if report.generation > known.generation {
        known.generation = Generation(report.generation.0.saturating_add(1));
        recorded.raised_to = Some(known.generation);
    }
    let generation = known.generation;
    for (id, instance) in &mut cluster.instances {
        if instance.node == node && apply_report(instance, generation, report) {
            recorded.changed.push(*id);
        }
    }
    for (id, volume) in &mut cluster.volumes {
        if volume.node == node && apply_volume_report(*id, volume, generation, report) {
            recorded.changed_volumes.push(*id);
        }
    }
    recorded.unknown = report
        .instances
        .iter()
        .map(|reported| reported.id)
        .filter(|id| cluster.instances.get(id).is_none_or(|i| i.node != node))
        .collect();
    let is_unknown = |id: &&VolumeId| cluster.volumes.get(*id).is_none_or(|v| v.node != node);
    recorded.unknown_volumes = report.volumes.iter().filter(is_unknown).copied().collect();
    recorded
}

/// Takes what a report of its node says into one instance; true when that changed anything.
/// `generation` is the node's current one, as the control plane last counted it.
pub fn apply_report(instance: &mut Instance, generation: Generation, report: &NodeReport) -> bool {
    let reported = report
        .instances
        .iter()
        .find(|reported| reported.id == instance.spec.id);
    let ready = reported.is_some_and(|r| r.ready && r.state == InstanceState::Running);
    let gone =
        reported.is_none_or(|r| matches!(r.state, InstanceState::Stopped | InstanceState::Failed));
    let acknowledged = instance.terminating && report.generation == generation && gone;

    let mut changed = false;
    if instance.report.as_ref() != reported {
        instance.report = reported.cloned();
        changed = true;
    }
    if ready && !instance.was_ready {
        instance.was_ready = true;
        changed = true;
    }
    if acknowledged && !instance.stop_acknowledged {
        instance.stop_acknowledged = true;
        changed = true;
    }
    changed
}

/// Takes what a report of its node says into one volume; true when that changed anything.
pub fn apply_volume_report(
    id: VolumeId,
    volume: &mut Volume,
    generation: Generation,
    report: &NodeReport,
) -> bool {
    let there = report.volumes.contains(&id);
    let acknowledged = volume.deleting && report.generation == generation && !there;
    let changed = (there && !volume.made) || (acknowledged && !volume.deletion_acknowledged);
    volume.made |= there;
    volume.deletion_acknowledged |= acknowledged;
    changed
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::fixtures::{InstanceFixture, attach, cluster, deploy, manifest, process, report};
    use api::node::{DriverChoice, InstanceReport};
    use model::Timestamp;

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
        cluster.nodes.get_mut(&NodeId(1)).unwrap().generation = Generation(7);
        cluster
    }

    fn says(generation: u64, instances: &[(u32, InstanceState)]) -> NodeReport {
        let said = |(id, state): &(u32, InstanceState)| InstanceReport {
            ready: *state == InstanceState::Running,
            ..report(InstanceId(*id), *state)
        };
        NodeReport {
            generation: Generation(generation),
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

    #[test]
    fn what_a_node_says_is_kept_and_said_once() {
        let mut cluster = two();
        let said = says(
            7,
            &[(1, InstanceState::Running), (9, InstanceState::Running)],
        );
        let recorded = record(&mut cluster, NodeId(1), &said);
        assert_eq!(recorded.changed, [InstanceId(1)]);
        assert_eq!(recorded.unknown, [InstanceId(9)]);
        assert!(cluster.instances[&InstanceId(1)].was_ready);
        assert_eq!(record(&mut cluster, NodeId(1), &said).changed, []);
        // It was there and no longer is: nothing is known of it.
        let recorded = record(&mut cluster, NodeId(1), &says(7, &[]));
        assert_eq!(recorded.changed, [InstanceId(1)]);
        assert_eq!(cluster.instances[&InstanceId(1)].report, None);
        assert!(cluster.instances[&InstanceId(1)].was_ready);
        // Another node's word does not count.
        let said = says(0, &[(1, InstanceState::Running)]);
        let recorded = record(&mut cluster, NodeId(2), &said);
        assert_eq!(
            (recorded.changed, recorded.unknown),
            (vec![], vec![InstanceId(1)])
        );
        assert_eq!(record(&mut cluster, NodeId(3), &said), Recorded::default());
    }

    #[test]
    fn a_stop_is_acknowledged_by_who_has_heard_of_it() {
        let acknowledged = |said: &NodeReport| {
            let mut cluster = two();
            cluster
                .instances
                .get_mut(&InstanceId(1))
                .unwrap()
                .terminating = true;
            record(&mut cluster, NodeId(1), said);
            assert!(!cluster.instances[&InstanceId(2)].stop_acknowledged);
            cluster.instances[&InstanceId(1)].stop_acknowledged
        };
        assert!(!acknowledged(&says(6, &[(1, InstanceState::Stopped)])));
        assert!(!acknowledged(&says(6, &[])));
        assert!(!acknowledged(&says(7, &[(1, InstanceState::Stopping)])));
        assert!(acknowledged(&says(7, &[(1, InstanceState::Stopped)])));
        assert!(acknowledged(&says(7, &[(1, InstanceState::Failed)])));
        assert!(acknowledged(&says(7, &[])));
    }

    #[test]
    fn a_node_ahead_of_the_store_acknowledges_nothing() {
        let mut cluster = two();
        cluster
            .instances
            .get_mut(&InstanceId(1))
            .unwrap()
            .terminating = true;
        let recorded = record(&mut cluster, NodeId(1), &says(30, &[]));
        assert_eq!(recorded.raised_to, Some(Generation(31)));
        assert!(!cluster.instances[&InstanceId(1)].stop_acknowledged);
        let recorded = record(&mut cluster, NodeId(1), &says(31, &[]));
        assert_eq!(recorded.raised_to, None);
        assert!(cluster.instances[&InstanceId(1)].stop_acknowledged);
    }

    #[test]
    fn a_volume_is_gone_when_the_node_that_knows_says_so() {
        let mut cluster = two();
        attach(&mut cluster, 1, 0);
        let id = VolumeId(0xd0);
        cluster.volumes.get_mut(&id).unwrap().made = false;
        let mut said = says(7, &[]);
        said.volumes = vec![id];
        let changed = |cluster: &mut ClusterState, said: &NodeReport| {
            record(cluster, NodeId(1), said).changed_volumes
        };
        assert_eq!(changed(&mut cluster, &said), [id]);
        assert!(cluster.volumes[&id].made);
        let ghost = VolumeId(0x9057);
        said.volumes.push(ghost);
        assert_eq!(
            record(&mut cluster, NodeId(1), &said).unknown_volumes,
            [ghost]
        );
        assert_eq!(changed(&mut cluster, &said), []);

        let volume = cluster.volumes.get_mut(&id).unwrap();
        volume.deleting = true;
        cluster.nodes.get_mut(&NodeId(1)).unwrap().generation = Generation(8);
        // A node that has not heard of it may still make the disk.
        said.volumes.clear();
        assert_eq!(changed(&mut cluster, &said), []);
        said.generation = Generation(8);
        assert_eq!(changed(&mut cluster, &said), [id]);
        assert!(cluster.volumes[&id].deletion_acknowledged);
    }
}
