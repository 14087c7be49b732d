//! The cluster state as rows for users.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use api::enrollment::Hardware;
use api::user::{
    EndedRow, EnvRow, InstanceRow, NodeRow, PromisedRow, RolloutPhase, RolloutStatus, Scheduling,
    UnreadableRow, VolumeRow,
};
use identity::key_fingerprint;
use model::{EnvKey, InstanceId, NodeId, ProcessName, ReleaseNumber, Timestamp};
use overlay::address_plan::node_prefix;
use scheduler::cluster_state::{
    ClusterState, EndedInstance, Env, Instance, MemberIdentity, Node, Presence, Subject,
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

/// The ended instances of the envs that `keep` keeps, by env, process type and when they ended.
pub(crate) fn ended_rows(cluster: &ClusterState, keep: impl Fn(&EnvKey) -> bool) -> Vec<EndedRow> {
    let kept = cluster.ended.iter().filter(|(_, ended)| keep(&ended.env));
    let mut rows: Vec<_> = kept
        .map(|(id, ended)| ended_row(cluster, *id, ended))
        .collect();
    rows.sort_by(|a, b| {
        (&a.env, &a.process, a.ended_at, a.id).cmp(&(&b.env, &b.process, b.ended_at, b.id))
    });
    rows
}

/// The volumes that `keep` keeps, by what they belong to.
pub(crate) fn volume_rows(
    cluster: &ClusterState,
    keep: impl Fn(&EnvKey) -> bool,
) -> Vec<VolumeRow> {
    let kept = cluster.volumes.iter().filter(|(_, v)| keep(&v.key.env));
    let mut rows: Vec<_> = kept
        .map(|(id, volume)| VolumeRow {
            id: *id,
            env: volume.key.env.clone(),
            process: volume.key.process.clone(),
            name: volume.key.name.clone(),
            ordinal: volume.key.ordinal,
            size_bytes: volume.size_bytes,
            node: volume.node,
            node_name: node_name(cluster, volume.node),
            instance: cluster
                .instances
                .user_of(*id)
                .map(|instance| instance.spec.id),
            made: volume.is_made(),
            deleting: volume.is_deleting(),
            created_at: volume.created_at,
        })
        .collect();
    rows.sort_by(|a, b| {
        (&a.env, &a.process, a.ordinal, &a.name).cmp(&(&b.env, &b.process, b.ordinal, &b.name))
    });
    rows
}

pub(crate) fn node_name(cluster: &ClusterState, id: NodeId) -> String {
    let node = cluster.nodes.get(&id);
    node.map_or_else(|| id.to_string(), |node| node.name.clone())
}

fn has_lapsed(cluster: &ClusterState, node: NodeId) -> bool {
    cluster.nodes.get(&node).is_none_or(Node::has_lapsed)
}

/// Every node, those that cannot be read too.
pub(crate) fn node_rows(cluster: &ClusterState, promised: &PromisedIndex) -> Vec<NodeRow> {
    let unreadable = cluster.unreadable.iter();
    let unreadable = unreadable.filter_map(|record| match record.subject {
        Subject::Node(id) if !cluster.nodes.contains_key(&id) => Some((id, unreadable_node(id))),
        _ => None,
    });
    let unreadable: Vec<_> = unreadable.collect();
    let mut nodes: Vec<(NodeId, &Node)> = cluster.nodes.iter().map(|(id, n)| (*id, n)).collect();
    nodes.extend(unreadable.iter().map(|(id, node)| (*id, node)));
    nodes.sort_by_key(|(id, _)| *id);
    nodes
        .iter()
        .map(|(id, node)| {
            let instances = cluster.instances.count_on_node(*id);
            let promised = promised.on(*id, node.hardware.instance_overhead());
            NodeRow {
                id: *id,
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
                instances: u32::try_from(instances).unwrap_or(u32::MAX),
                promised: Some(PromisedRow {
                    cpu_millis: promised.cpu_millis,
                    memory_bytes: promised.memory_bytes,
                    disk_bytes: promised.disk_bytes,
                }),
                prefix: node_prefix(cluster.settings.prefix, *id),
                exceeded: Vec::new(),
                warnings: Vec::new(),
                unknown_instances: node.unknown.keys().copied().collect(),
                approval: node.identity.approval,
                key: node.identity.key.as_ref().map(key_fingerprint),
                claimed: node.claimed.clone(),
                unreadable_records: unreadable_rows(cluster, *id),
                unreadable: (cluster.unreadable_node(*id)).map(ToString::to_string),
            }
        })
        .collect()
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

/// Every env, those being destroyed too, and those that cannot be read.
pub(crate) fn env_rows(published: &Published) -> Vec<EnvRow> {
    let (cluster, findings) = (&published.cluster, &published.findings);
    let rows = cluster.envs.iter();
    let mut rows: Vec<_> = rows
        .map(|(key, env)| env_row(cluster, findings, key, env))
        .collect();
    let unreadable = (cluster.unreadable.iter()).filter_map(|record| record.env.as_ref());
    let unreadable: BTreeSet<_> = unreadable
        .filter(|key| !cluster.envs.contains_key(key))
        .collect();
    rows.extend(unreadable.into_iter().map(|key| EnvRow {
        env: key.clone(),
        release: ReleaseNumber(0),
        serving: None,
        phase: RolloutPhase::Failed,
        processes: BTreeMap::new(),
        hosts: published.routes.hosts_of(key).cloned().collect(),
        waits: Vec::new(),
        unreadable: frozen_by(cluster, key),
    }));
    rows.sort_by(|a, b| a.env.cmp(&b.env));
    rows
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
