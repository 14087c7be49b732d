//! What must hold at every step of a run, and at rest.

use std::collections::{BTreeMap, BTreeSet};

use api::user::RolloutPhase;
use manifest::Strategy;
use model::{EnvKey, InstanceId, NodeId, ProcessName, Timestamp};
use scheduler::action::{Action, PlacedInstance};
use scheduler::cluster_state::{
    ClusterState, Instance, Node, Presence, ReleaseCommand, Rollout, Scheduling, VolumePhase,
};
use scheduler::placement::CPU_OVERCOMMIT;
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
    online
        && instance.spec.runs.is_app()
        && !instance.is_terminating()
        && report.is_some_and(|report| report.state.is_ready())
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
fn ready_minimums(cluster: &ClusterState) -> Minimums {
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
            // An instance that is drained goes by what its own release allows.
            let of_own = cluster.instances.values().filter(|instance| {
                instance.spec.env_key() == *key
                    && instance.spec.process == name
                    && is_drained(cluster, instance.node)
            });
            let of_own = of_own.filter_map(|instance| {
                let release = env.releases.get(&instance.spec.release)?;
                let process = release.manifest.processes.get(&name)?;
                Some(process.deploy.max_unavailable)
            });
            let of_own = of_own.max().unwrap_or_default();
            let unavailable = if at_once || drained {
                count
            } else {
                let most = process.deploy.max_unavailable.max(of_own);
                most.max(stops_first)
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

/// Whether a user empties the node.
fn is_drained(cluster: &ClusterState, node: NodeId) -> bool {
    let node = cluster.nodes.get(&node);
    node.is_some_and(|node| matches!(node.scheduling, Scheduling::Draining { .. }))
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
pub(crate) fn check_plan(
    simulator: &Simulator,
    given: &ClusterState,
    actions: &[Action],
    cluster: &ClusterState,
    now: Timestamp,
) {
    let minimums = &ready_minimums(given);
    for action in actions {
        match action {
            Action::Create(placed) => {
                check_caps(simulator, placed.node, cluster);
                check_need(simulator, placed, cluster, now);
            }
            Action::SetRollout { env, rollout } => {
                let before = given.envs.get(env).map(|env| env.rollout.phase);
                if before != Some(rollout.phase) {
                    check_failure(simulator, rollout, given);
                    check_done(simulator, env, rollout, cluster, now);
                }
            }
            _ => {}
        }
    }
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
        if !cluster.has_node(instance.node) {
            let (id, node) = (instance.spec.id, instance.node);
            simulator.violate(format!("instance {id} is on {node}, which is no member"));
        }
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
    check_revoked(simulator, cluster);
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

/// Checks that a node that was revoked has nothing. That it is nobody's peer [`crate::overlay`] checks.
fn check_revoked(simulator: &Simulator, cluster: &ClusterState) {
    let revoked = cluster.nodes.iter().filter(|(_, node)| !node.is_approved());
    for (id, _) in revoked {
        let instances = cluster.instances.count_on_node(*id);
        if instances > 0 {
            simulator.violate(format!("{id} was revoked and has {instances} instances"));
        }
    }
}

/// Checks that what is promised on a node fits: memory, CPU up to the overcommit, disk.
fn check_caps(simulator: &Simulator, id: NodeId, cluster: &ClusterState) {
    let Some(node) = cluster.nodes.get(&id) else {
        return;
    };
    if !node.is_online() || node.scheduling != Scheduling::Schedulable {
        simulator.violate(format!(
            "an instance is placed on {id}, which takes none: {:?}, {:?}",
            node.presence, node.scheduling
        ));
    }
    let hardware = &node.hardware;
    let overhead = hardware.instance_overhead();
    let (mut memory, mut cpu_millis, mut disk) = (0, 0, 0);
    for instance in cluster.instances.values().filter(|i| i.node == id) {
        memory += instance.spec.memory_bytes + overhead.memory_bytes;
        cpu_millis += u64::from(instance.spec.cpu_millis);
        disk += instance.spec.scratch_bytes + overhead.disk_bytes;
    }
    let volumes = cluster.volumes.values().filter(|v| v.node == id);
    let holding = volumes.filter(|volume| volume.phase != VolumePhase::Deleted);
    disk += holding.map(|volume| volume.size_bytes).sum::<u64>();
    let cpu_most = u64::from(hardware.cpus) * 1000 * CPU_OVERCOMMIT;
    let disk_most = hardware
        .disk
        .map_or(u64::MAX, |disk| disk.instances_bytes());
    for (what, promised, most) in [
        ("bytes of memory", memory, hardware.memory_bytes),
        ("thousandths of a core", cpu_millis, cpu_most),
        ("bytes of disk", disk, disk_most),
    ] {
        if promised > most {
            simulator.violate(format!(
                "{promised} {what} are promised on {id}, which has {most}"
            ));
        }
    }
}

/// How long a node is not heard before others take the place of its instances, in milliseconds.
const GRACE_MS: u64 = 60_000;

/// Whether more nodes are lapsed than a third, those not counted that had their grace before the next one lapsed, while there were fewer.
fn is_mass_loss(cluster: &ClusterState) -> bool {
    let most = (cluster.nodes.len() / 3).max(1);
    let lapsed = cluster
        .nodes
        .values()
        .filter_map(|node| match node.presence {
            Presence::Lapsed { since } => Some(since),
            Presence::Heard { .. } | Presence::NotHeardYet => None,
        });
    let mut lapsed: Vec<Timestamp> = lapsed.collect();
    lapsed.sort_unstable();
    let mut given_up = 0;
    for (at, since) in lapsed.iter().enumerate() {
        while at - given_up <= most
            && given_up < at
            && since.millis_since(lapsed[given_up]) >= GRACE_MS
        {
            given_up += 1;
        }
    }
    lapsed.len() - given_up > most
}

/// Checks that an instance is made only for one that is missing: those of a node count that is not heard yet, that lapsed a moment ago, or
/// that lapsed with many others.
fn check_need(
    simulator: &Simulator,
    placed: &PlacedInstance,
    cluster: &ClusterState,
    now: Timestamp,
) {
    let (key, process) = (placed.spec.env_key(), &placed.spec.process);
    let Some(env) = cluster.envs.get(&key) else {
        return;
    };
    if placed.spec.release != env.rollout.wanted || !placed.spec.runs.is_app() {
        return;
    }
    let release = env.releases.get(&env.rollout.release);
    let rolling = release.filter(|_| env.rollout.phase == RolloutPhase::Rolling);
    let processes = rolling.map(|release| &release.manifest.processes);
    for (name, process) in processes.into_iter().flatten() {
        let has_command = process.deploy.release_command.is_some();
        let command = env.rollout.release_commands.get(name);
        if has_command && !matches!(command, Some(ReleaseCommand::Completed { .. })) {
            simulator.violate(format!(
                "{} of {} is made before the release command of {name} has completed",
                placed.spec.id, placed.spec.release
            ));
        }
    }
    let mass_loss = is_mass_loss(cluster);
    let holds = |instance: &Instance| {
        let Some(node) = cluster.nodes.get(&instance.node) else {
            return false;
        };
        let is_lost = match node.presence {
            Presence::Lapsed { since } => {
                instance.spec.volumes.is_empty()
                    && !mass_loss
                    && now.millis_since(since) >= GRACE_MS
            }
            Presence::Heard { .. } | Presence::NotHeardYet => false,
        };
        !instance.is_terminating()
            && instance.spec.env_key() == key
            && instance.spec.process == *process
            && instance.spec.release == env.rollout.wanted
            && instance.spec.runs.is_app()
            && !is_drained(cluster, instance.node)
            && !is_lost
    };
    let held = cluster.instances.values().filter(|i| holds(i)).count();
    let counts = wanted_counts(env, env.rollout.wanted);
    let wanted = counts.get(process).copied().unwrap_or_default();
    if held > wanted as usize {
        simulator.violate(format!(
            "{held} instances of {key} {process} are there, {wanted} are wanted: {} was made for one that is not lost",
            placed.spec.id
        ));
    }
}

/// Checks that no release is given up because of an instance whose node is not heard.
fn check_failure(simulator: &Simulator, rollout: &Rollout, given: &ClusterState) {
    if !matches!(rollout.phase, RolloutPhase::Failed | RolloutPhase::Reverted) {
        return;
    }
    let mut words = rollout.reason.split_whitespace();
    let id = match (words.next(), words.next()) {
        (Some("instance"), Some(id)) => id.parse::<InstanceId>().ok(),
        _ => None,
    };
    let instance = id.and_then(|id| given.instances.get(&id));
    let node = instance.and_then(|instance| given.nodes.get(&instance.node));
    if node.is_some_and(|node| !node.is_online()) {
        simulator.violate(format!(
            "{} is given up because of a node that is not heard: {}",
            rollout.release, rollout.reason
        ));
    }
}

/// Checks that a release that is rolled out was ready for long enough on end, while its nodes were heard.
fn check_done(
    simulator: &Simulator,
    key: &EnvKey,
    rollout: &Rollout,
    cluster: &ClusterState,
    now: Timestamp,
) {
    let release = cluster.envs.get(key);
    let release = release.and_then(|env| env.releases.get(&rollout.release));
    let Some(release) = release.filter(|_| rollout.phase == RolloutPhase::Done) else {
        return;
    };
    for instance in cluster.instances.values() {
        let spec = &instance.spec;
        let process = release.manifest.processes.get(&spec.process);
        let node = cluster.nodes.get(&instance.node);
        let (Some(process), Some(node)) = (process, node) else {
            continue;
        };
        let is_ready = is_ready(cluster, instance);
        if spec.env_key() != *key || spec.release != rollout.release || !is_ready {
            continue;
        }
        let Presence::Heard { since, .. } = node.presence else {
            continue;
        };
        let ready = instance.ready_since.filter(|at| *at <= now);
        let since = ready.map_or(since, |at| at.max(since));
        let (ready_for, least) = (now.millis_since(since), process.deploy.min_healthy_ms);
        if ready_for < least {
            simulator.violate(format!(
                "{} counts as rolled out, and {} is ready for {ready_for} ms, {least} ms are the minimum",
                rollout.release, spec.id
            ));
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
