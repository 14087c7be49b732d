//! What must hold at every step of a run, and at rest.

use std::collections::{BTreeMap, BTreeSet};

use api::user::RolloutPhase;
use manifest::Strategy;
use model::{EnvKey, InstanceId, NodeId, ProcessName};
use scheduler::cluster_state::{ClusterState, Instance, Node, Scheduling};
use scheduler::rollout::wanted_counts;
use scheduler::routes::routes;

use crate::machine::Machine;
use crate::simulator::Simulator;

/// The least number of ready instances that a plan may leave, by env and process type.
pub(crate) type Minimums = BTreeMap<(EnvKey, ProcessName), Minimum>;

/// What a process type must keep.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Minimum {
    /// By its count and what may be unavailable.
    wanted: u32,
    /// What there is.
    there: u32,
}

fn is_ready(cluster: &ClusterState, instance: &Instance) -> bool {
    let online = cluster
        .nodes
        .get(&instance.node)
        .is_some_and(Node::is_online);
    let report = instance.report.as_ref();
    online && !instance.is_terminating() && report.is_some_and(|report| report.state.is_ready())
}

/// How many instances of a process type are ready, as the server knows it.
pub(crate) fn ready(cluster: &ClusterState, env: &EnvKey, process: &ProcessName) -> u32 {
    ready_where(cluster, env, process, |_| true)
}

fn ready_where(
    cluster: &ClusterState,
    env: &EnvKey,
    process: &ProcessName,
    counts: impl Fn(&Instance) -> bool,
) -> u32 {
    let mine = cluster.instances.values().filter(|instance| {
        instance.spec.env_key() == *env
            && instance.spec.process == *process
            && is_ready(cluster, instance)
            && counts(instance)
    });
    mine.count() as u32
}

/// What the next plan must leave: the minimum of each process type, or what there is of it.
pub(crate) fn ready_minimums(cluster: &ClusterState) -> Minimums {
    let mut minimums = Minimums::new();
    for (key, env) in &cluster.envs {
        let failed = env.rollout.phase == RolloutPhase::Failed && env.rollout.previous.is_none();
        if env.destroying || failed {
            continue;
        }
        let wanted = env.rollout.wanted;
        let Some(release) = env.releases.get(&wanted) else {
            continue;
        };
        for (name, count) in wanted_counts(env, wanted) {
            let Some(process) = release.manifest.processes.get(&name) else {
                continue;
            };
            let stops_first =
                u32::from(!process.volumes.is_empty() || has_volumes(cluster, key, &name));
            let is_rolling = env.rollout.phase == RolloutPhase::Rolling;
            let at_once = is_rolling && process.deploy.strategy == Strategy::Immediate;
            let drained = stops_first > 0 && drains_volumes(cluster);
            let unavailable = if at_once || drained {
                count
            } else {
                process.deploy.max_unavailable.max(stops_first)
            };
            let wanted = count.saturating_sub(unavailable);
            // Where there are volumes the highest ordinals go when there are too many, ready or not.
            let there = ready_where(cluster, key, &name, |instance| {
                instance
                    .spec
                    .ordinal()
                    .is_none_or(|ordinal| ordinal < count)
            });
            minimums.insert((key.clone(), name), Minimum { wanted, there });
        }
    }
    minimums
}

/// Whether a user stops instances with volumes.
fn drains_volumes(cluster: &ClusterState) -> bool {
    let mut nodes = cluster.nodes.values();
    nodes.any(|node| node.scheduling == Scheduling::Draining { with_volumes: true })
}

fn has_volumes(cluster: &ClusterState, env: &EnvKey, process: &ProcessName) -> bool {
    let mut instances = cluster.instances.values();
    instances.any(|instance| {
        instance.spec.env_key() == *env
            && instance.spec.process == *process
            && !instance.spec.volumes.is_empty()
    })
}

/// Checks a cluster state to which a plan was applied.
pub(crate) fn check_plan(simulator: &Simulator, minimums: &Minimums, cluster: &ClusterState) {
    // A plan that reverts a rollout wants other counts afterwards.
    let after = ready_minimums(cluster);
    for ((env, process), minimum) in minimums {
        let name = (env.clone(), process.clone());
        let Some(Minimum { wanted, .. }) = after.get(&name) else {
            continue;
        };
        let minimum = &minimum.wanted.min(*wanted).min(minimum.there);
        let left = ready(cluster, env, process);
        if left < *minimum {
            simulator.violate(format!(
                "a plan leaves {left} ready instances of {env} {process}, {minimum} are the minimum"
            ));
        }
    }
    let mut addresses = BTreeSet::new();
    let mut volumes = BTreeSet::new();
    for instance in cluster.instances.values() {
        if !addresses.insert(instance.spec.address) {
            simulator.violate(format!("address {} is used twice", instance.spec.address));
        }
        for volume in &instance.spec.volumes {
            if !volumes.insert(volume.id) {
                simulator.violate(format!("volume {} has two instances", volume.id));
            }
            let home = cluster.volumes.get(&volume.id).map(|volume| volume.node);
            if home != Some(instance.node) {
                simulator.violate(format!("volume {} is not where its instance is", volume.id));
            }
        }
    }
    for route in routes(cluster).values() {
        for backend in &route.backends {
            let instance = cluster.instances.get(&backend.instance);
            let serves = instance.is_some_and(|i| {
                !i.is_terminating()
                    && i.report
                        .as_ref()
                        .is_some_and(|report| report.state.is_ready())
            });
            if !serves {
                simulator.violate(format!(
                    "a route leads to {}, which is not ready",
                    backend.instance
                ));
            }
        }
    }
}

/// What is out of order on a machine at rest; `cluster` is the server's view.
pub(crate) fn leftovers(machine: &Machine, cluster: &ClusterState) -> Option<String> {
    let node = machine.node;
    let placed = cluster.instances.values().filter(|i| i.node == node);
    let wanted: BTreeSet<InstanceId> = placed.map(|instance| instance.spec.id).collect();
    let volumes = |only_made: bool| -> BTreeSet<_> {
        let mine = cluster
            .volumes
            .iter()
            .filter(|(_, volume)| volume.node == node);
        mine.filter(|(_, volume)| volume.is_made() || !only_made)
            .map(|(id, _)| *id)
            .collect()
    };
    let (known, made) = (volumes(false), volumes(true));
    let state = machine.lock();
    let records: BTreeSet<InstanceId> = state
        .files
        .keys()
        .filter_map(|path| path.parent()?.file_name()?.to_str()?.parse().ok())
        .collect();
    let running: BTreeSet<_> = state
        .vms
        .iter()
        .filter(|(_, vm)| vm.runs())
        .map(|(id, _)| *id)
        .collect();
    let checks = [
        ("running VMs", running),
        ("VM records", state.vms.keys().copied().collect()),
        ("taps", state.taps.clone()),
        (
            "members of the network",
            state.admitted.keys().copied().collect(),
        ),
        ("scratch disks", state.scratch.clone()),
        ("records", records),
        ("logs", state.logs.keys().copied().collect()),
    ];
    for (what, there) in checks {
        if there != wanted {
            return Some(format!(
                "{node} has the {what} {there:?}, its instances are {wanted:?}"
            ));
        }
    }
    let there = &state.volumes;
    if !there.is_subset(&known) || !there.is_superset(&made) {
        return Some(format!(
            "{node} has the volumes {there:?}, the server knows {known:?}"
        ));
    }
    None
}

/// Whether every instance of the cluster is ready and stays.
pub(crate) fn all_ready(cluster: &ClusterState) -> bool {
    let mut instances = cluster.instances.values();
    instances.all(|instance| is_ready(cluster, instance))
}

/// Nodes that run VMs of a process type.
pub(crate) fn vms_of(simulator: &Simulator, cluster: &ClusterState, process: &ProcessName) -> u32 {
    let running: BTreeMap<InstanceId, NodeId> = simulator.running();
    let mine = running.keys().filter(|id| {
        let instance = cluster.instances.get(id);
        instance.is_some_and(|instance| instance.spec.process == *process)
    });
    mine.count() as u32
}
