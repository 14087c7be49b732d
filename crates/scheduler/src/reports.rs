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
use std::sync::Arc;

use api::node::{InstanceReport, MAX_REPORTED_INSTANCES, NodeReport, ReportDelta};
use model::instance::InstanceState;
use model::{EnvNetwork, Generation, InstanceId, NodeId, Timestamp, VolumeId};

use crate::changes::Changes;
use crate::cluster_state::{
    ClusterState, Instance, InstancePhase, Node, Subject, UnknownInstance, VolumePhase,
};

/// Highest counter of a desired state that a node may say it has applied: far more than any server gives, and few enough that
/// every store takes the next ones. A node that says more is not believed, and its instances are not gone by what it says.
pub const MAX_REPORTED_GENERATION: u64 = 1 << 53;

/// How far above ours the highest env network that a node reports may be: far more than any cluster gives out between a backup and its loss, and
/// few of those there are. A node that says more is not believed: it would leave no network to give.
pub const MAX_NETWORKS_AHEAD: u32 = 1 << 24;

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
    node.set_hardware(&report.hardware);
    node.driver = Some(report.driver.clone());
    node.egress.clone_from(&report.egress);
    node.unknown = BTreeMap::new();
    for said in &report.instances {
        note_unknown(cluster, id, &mut node, before, said);
    }
    let node = with_stops_counted(before, node);
    set_node(cluster, id, node, Some(observed), now, &mut changes);
    let reported: BTreeMap<InstanceId, &InstanceReport> =
        (report.instances.iter()).map(|r| (r.id, r)).collect();
    let on_node = cluster.instances.on_node(id).map(|(id, _)| id);
    let said: Vec<_> = on_node.map(|id| (id, reported.get(&id).copied())).collect();
    set_instances(cluster, &said, is_current, now, &mut changes);
    set_networks(cluster, report.highest_network, &mut changes);
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
        node.set_hardware(hardware);
    }
    if delta.driver.is_some() {
        node.driver.clone_from(&delta.driver);
    }
    if delta.egress.is_some() {
        node.egress.clone_from(&delta.egress);
    }
    for gone in &delta.gone_instances {
        node.unknown.remove(gone);
    }
    for said in &delta.instances {
        node.unknown.remove(&said.id);
        note_unknown(cluster, id, &mut node, before, said);
    }
    let node = with_stops_counted(before, node);
    let moved = delta.generation.map(|_| observed);
    set_node(cluster, id, node, moved, now, &mut changes);
    if let Some(highest) = delta.highest_network {
        set_networks(cluster, highest, &mut changes);
    }
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

/// A node has instances of an env network that this store knows of no env to have: it was restored from before that env was made. The network
/// is not given to another.
fn set_networks(cluster: &mut ClusterState, highest: EnvNetwork, changes: &mut Changes) {
    let ahead = highest.0.saturating_sub(cluster.last_network.0);
    if (1..=MAX_NETWORKS_AHEAD).contains(&ahead) {
        cluster.last_network = highest;
        changes.counters.network = highest;
    }
}

/// Counts an instance among those that the node runs and the cluster state does not know, where it is one. Whether it is to stop was said `before`.
fn note_unknown(
    cluster: &ClusterState,
    id: NodeId,
    node: &mut Node,
    before: &Node,
    said: &InstanceReport,
) {
    let is_full = node.unknown.len() >= MAX_REPORTED_INSTANCES;
    // What a node that is revoked runs, it can be told to stop no longer.
    if is_full || !node.is_approved() || !is_unknown_instance(cluster, id, said) {
        return;
    }
    let before = before.unknown.get(&said.id);
    let unknown = UnknownInstance {
        holds: said.holds.or(before.and_then(|before| before.holds)),
        stop: before.is_some_and(|before| before.stop),
    };
    node.unknown.insert(said.id, unknown);
}

/// A stop that the node need not be told any more makes another desired state.
fn with_stops_counted(before: &Node, mut node: Node) -> Node {
    let mut stops = before.unknown.iter().filter(|(_, unknown)| unknown.stop);
    if stops.any(|(id, _)| !node.unknown.contains_key(id)) {
        node.generation = node.generation.saturating_add(1);
    }
    node
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
    let node = Arc::new(node);
    cluster.nodes.insert(id, Arc::clone(&node));
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
        let instance = cluster.instances.change(id, |instance| {
            (instance.phase, instance.report) = (phase, report);
            instance.ready_since = ready_since;
        });
        changes.instances.insert(*id, instance);
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
mod tests;
