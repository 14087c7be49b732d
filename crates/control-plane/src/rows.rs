//! The cluster state as rows for users.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use api::enrollment::Hardware;
use api::user::{
    EndedRow, EnvRow, InstanceRow, NodeRow, PromisedRow, RolloutPhase, RolloutStatus, Scheduling,
    UnreadableRow, VolumeRow,
};
use identity::key_fingerprint;
use model::{EnvKey, InstanceId, NodeId, ProcessName, ReleaseNumber, Timestamp, VolumeId};
use overlay::address_plan::node_prefix;
use scheduler::cluster_state::{
    ClusterState, EndedInstance, Env, Instance, MemberIdentity, Node, Presence, Volume,
};
use scheduler::placement::PromisedIndex;
use scheduler::planner::Finding;
use scheduler::release::may_stay;
use scheduler::rollout::{InstanceHealth, serving_before, wanted_counts};
use scheduler::table::Table;

use crate::state::Published;

/// A revision must survive readers that hold numbers as floats: 53 bits.
const REVISION_MASK: u64 = (1 << 53) - 1;

pub(crate) fn key_of(instance: &Instance) -> EnvKey {
    EnvKey {
        app: instance.spec.app.clone(),
        env: instance.spec.env.clone(),
    }
}

pub(crate) fn instance_row(
    cluster: &ClusterState,
    id: InstanceId,
    instance: &Instance,
) -> InstanceRow {
    InstanceRow {
        id,
        env: key_of(instance),
        process: instance.spec.process.clone(),
        release: instance.spec.release,
        runs: instance.spec.runs,
        node: instance.node,
        node_name: node_name(cluster, instance.node),
        address: instance.spec.address,
        terminating: instance.is_terminating(),
        node_offline: has_lapsed(cluster, instance.node),
        created_at: instance.created_at,
        report: instance.report.clone(),
    }
}

/// Rows of these instances, by env, process type, release and age.
pub(crate) fn instance_rows<'c>(
    cluster: &'c ClusterState,
    instances: impl Iterator<Item = (InstanceId, &'c Instance)>,
) -> Vec<InstanceRow> {
    let mut rows: Vec<_> = instances
        .map(|(id, instance)| instance_row(cluster, id, instance))
        .collect();
    rows.sort_by(|a, b| {
        (&a.env, &a.process, a.release, a.created_at, a.id).cmp(&(
            &b.env,
            &b.process,
            b.release,
            b.created_at,
            b.id,
        ))
    });
    rows
}

pub(crate) fn ended_row(cluster: &ClusterState, id: InstanceId, ended: &EndedInstance) -> EndedRow {
    EndedRow {
        id,
        env: ended.env.clone(),
        process: ended.process.clone(),
        release: ended.release,
        node: ended.node,
        node_name: node_name(cluster, ended.node),
        created_at: ended.created_at,
        ended_at: ended.ended_at,
        reason: ended.reason.clone(),
        restarts: ended.restarts,
        last_exit: ended.last_exit.clone(),
        failure: ended.failure.clone(),
    }
}

pub(crate) fn volume_row(cluster: &ClusterState, id: VolumeId, volume: &Volume) -> VolumeRow {
    let user = cluster.instances.user_of(id);
    VolumeRow {
        id,
        env: volume.key.env.clone(),
        process: volume.key.process.clone(),
        name: volume.key.name.clone(),
        ordinal: volume.key.ordinal,
        size_bytes: volume.size_bytes,
        node: volume.node,
        node_name: node_name(cluster, volume.node),
        instance: user.map(|instance| instance.spec.id),
        made: volume.is_made(),
        deleting: volume.is_deleting(),
        created_at: volume.created_at,
    }
}

pub(crate) fn node_name(cluster: &ClusterState, id: NodeId) -> String {
    let node = cluster.nodes.get(&id);
    node.map_or_else(|| id.to_string(), |node| node.name.clone())
}

fn has_lapsed(cluster: &ClusterState, node: NodeId) -> bool {
    cluster.nodes.get(&node).is_none_or(Node::has_lapsed)
}

/// A node, which may be one that cannot be read.
pub(crate) fn node_row(cluster: &ClusterState, promised: &PromisedIndex, id: NodeId) -> NodeRow {
    let unreadable = unreadable_node(id);
    let node = cluster.nodes.get(&id).unwrap_or(&unreadable);
    let instances = cluster.instances.count_on_node(id);
    let promised = promised.on(id, node.hardware.instance_overhead());
    NodeRow {
        id,
        name: node.name.clone(),
        region: node.region.clone(),
        hardware: node.hardware.clone(),
        driver: node.driver.clone(),
        egress: node.egress.clone(),
        seen_at: node.seen_at,
        online: node.is_online(),
        not_heard_yet: !node.is_online() && !node.has_lapsed(),
        scheduling: node.scheduling,
        labels: node.labels.clone(),
        org: node.org.clone(),
        instances: u32::try_from(instances).unwrap_or(u32::MAX),
        promised: Some(PromisedRow {
            cpu_millis: promised.cpu_millis,
            memory_bytes: promised.memory_bytes,
            disk_bytes: promised.disk_bytes,
        }),
        prefix: node_prefix(cluster.settings.prefix, id),
        exceeded: Vec::new(),
        warnings: Vec::new(),
        unknown_instances: node.unknown.keys().copied().collect(),
        approval: node.identity.approval,
        key: node.identity.key.as_ref().map(key_fingerprint),
        claimed: node.claimed.clone(),
        unreadable_records: unreadable_rows(cluster, id),
        unreadable: (cluster.unreadable_node(id)).map(ToString::to_string),
    }
}

/// What a row says of a node of which only the number is known.
fn unreadable_node(id: NodeId) -> Node {
    Node {
        name: id.to_string(),
        region: String::new(),
        hardware: Hardware::default(),
        wireguard_key: None,
        underlay: None,
        driver: None,
        egress: None,
        seen_at: None,
        enrolled_at: Timestamp(0),
        presence: Presence::NotHeardYet,
        scheduling: Scheduling::Cordoned,
        labels: BTreeMap::new(),
        org: None,
        generation: 0,
        approved: Hardware::default(),
        unknown: BTreeMap::new(),
        claimed: None,
        identity: MemberIdentity::default(),
    }
}

fn unreadable_rows(cluster: &ClusterState, node: NodeId) -> Vec<UnreadableRow> {
    let here = (cluster.unreadable.iter()).filter(|record| record.node == Some(node));
    let rows = here.filter_map(|record| {
        let held = record.holds?;
        Some(UnreadableRow {
            record: record.to_string(),
            promised: PromisedRow {
                cpu_millis: held.cpu_millis,
                memory_bytes: held.memory_bytes,
                disk_bytes: held.disk_bytes,
            },
            assumed: held.is_assumed,
        })
    });
    rows.collect()
}

/// An env, which may be one that cannot be read.
pub(crate) fn env_row_of(published: &Published, key: &EnvKey) -> EnvRow {
    let cluster = &published.cluster;
    match cluster.envs.get(key) {
        Some(env) => env_row(cluster, &published.findings, key, env),
        None => EnvRow {
            env: key.clone(),
            release: ReleaseNumber(0),
            serving: None,
            phase: RolloutPhase::Failed,
            processes: BTreeMap::new(),
            hosts: published.routes.hosts_of(key).cloned().collect(),
            waits: Vec::new(),
            unreadable: frozen_by(cluster, key),
        },
    }
}

fn frozen_by(cluster: &ClusterState, key: &EnvKey) -> Option<String> {
    cluster.frozen_by(key).map(ToString::to_string)
}

pub(crate) fn env_row(
    cluster: &ClusterState,
    findings: &Table<EnvKey, Vec<Finding>>,
    key: &EnvKey,
    env: &Env,
) -> EnvRow {
    let wanted = if env.destroying {
        BTreeMap::new()
    } else {
        wanted_counts(env, env.rollout.wanted)
    };
    let mut processes: BTreeMap<ProcessName, (u32, u32)> = wanted
        .into_iter()
        .map(|(process, wanted)| (process, (wanted, 0)))
        .collect();
    for (_, instance) in cluster.instances.of_env(key) {
        // A server that has just begun to lead has heard nobody: what it last heard counts.
        let online = !has_lapsed(cluster, instance.node);
        let is_healthy = InstanceHealth::of(instance, online).is_healthy();
        let serves = !instance.is_terminating() && is_healthy && instance.spec.runs.is_app();
        if serves {
            let entry = processes.entry(instance.spec.process.clone());
            entry.or_insert((0, 0)).1 += 1;
        }
    }
    let hosts = env
        .releases
        .get(&env.rollout.wanted)
        .map(|release| release.manifest.routes.keys().cloned().collect())
        .unwrap_or_default();
    EnvRow {
        env: key.clone(),
        release: env.rollout.release,
        serving: match env.rollout.phase {
            RolloutPhase::Failed => serving_before(env, &env.rollout),
            _ => Some(env.rollout.wanted),
        },
        phase: env.rollout.phase,
        processes,
        hosts,
        waits: (findings.get(key).into_iter().flatten())
            .map(|finding| match &finding.process {
                Some(process) => format!("{process}: {}", finding.message),
                None => finding.message.clone(),
            })
            .collect(),
        unreadable: frozen_by(cluster, key),
    }
}

/// How the rollout of `release` goes; absent when the env has no such release.
pub(crate) fn rollout_status(
    cluster: &ClusterState,
    findings: &Table<EnvKey, Vec<Finding>>,
    key: &EnvKey,
    release: Option<ReleaseNumber>,
) -> Option<RolloutStatus> {
    let env = cluster.envs.get(key)?;
    let rollout = &env.rollout;
    let release = release.unwrap_or(rollout.release);
    if !env.releases.contains_key(&release) {
        return None;
    }
    let (phase, reason) = if release < rollout.release {
        let by = format!("release {} took over", rollout.release);
        (RolloutPhase::Superseded, by)
    } else if env.destroying {
        (
            RolloutPhase::Superseded,
            "the env is being destroyed".to_owned(),
        )
    } else if rollout.reason.is_empty() && rollout.phase == RolloutPhase::Rolling {
        (rollout.phase, waiting_reason(findings, key))
    } else {
        (rollout.phase, rollout.reason.clone())
    };
    let mut status = RolloutStatus {
        revision: 0,
        release,
        phase,
        reason,
        previous: rollout.previous,
        instances: instance_rows(
            cluster,
            // Those that the release left as they were are its own, too.
            (cluster.instances.of_env(key)).filter(|(_, instance)| {
                let node = cluster.nodes.get(&instance.node);
                let made = env.releases.get(&release);
                made.is_some_and(|made| may_stay(env, instance, node, release, made))
            }),
        ),
    };
    status.revision = revision(&status);
    Some(status)
}

/// What the planner says of an env that waits.
fn waiting_reason(findings: &Table<EnvKey, Vec<Finding>>, key: &EnvKey) -> String {
    let of_env = findings.get(key).into_iter().flatten();
    let of_env: Vec<_> = of_env.map(|finding| finding.message.as_str()).collect();
    of_env.join("; ")
}

/// A number that is another one when anything of the status is.
fn revision(status: &RolloutStatus) -> u64 {
    let mut hasher = DefaultHasher::new();
    // Our own types with string keys: serialization cannot fail.
    serde_json::to_vec(status)
        .unwrap_or_default()
        .hash(&mut hasher);
    hasher.finish() & REVISION_MASK
}
