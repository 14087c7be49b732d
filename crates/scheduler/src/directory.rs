//! The directories of nodes: to each the instances of the envs that it runs instances of, and nothing of others (ADR 0004).
//!
//! An instance is in it from when it is placed until it is gone, so that its packets are let in; names lead to it while it is ready, does not
//! terminate, and its node is heard. Where no ready instance of a process type is on a node that is heard, those that were last ready are
//! named instead, as edges have it ([`crate::routes`]).
//!
//! Nothing of it is stored: it follows from the cluster state. What changes keeps the number of the change, so that a node is told what is above
//! what it has, and only the nodes concerned are woken.

use std::collections::{BTreeMap, BTreeSet};

use api::node::{DirectoryChanges, DirectoryEntry, EnvDirectory};
use model::{EnvKey, EnvNetwork, InstanceId, NodeId, ProcessName};
use overlay::address_plan::env_network;

use crate::cluster_state::{ClusterState, Instance, InstancePhase, Node, Subject};
use crate::routes::blue_green;
use crate::table::Table;

/// How many instances that are gone are remembered of an env, and how many envs that it left of a node. Beyond, everything of it is told once.
const MAX_GONE: usize = 1024;

/// The directories of all nodes. A copy costs nothing.
#[derive(Debug, Clone, Default)]
pub struct DirectoryIndex {
    /// The newest change.
    counter: u64,
    envs: Table<EnvKey, EnvEntries>,
    nodes: Table<NodeId, NodeEnvs>,
}

/// What is known of one env.
#[derive(Debug, Clone)]
struct EnvEntries {
    network: EnvNetwork,
    /// Each instance with when it last changed.
    entries: Table<InstanceId, (DirectoryEntry, u64)>,
    /// The instances that are gone, and since when.
    gone: BTreeMap<InstanceId, u64>,
    /// Those that were gone before this are forgotten.
    gone_begin: u64,
    also_on: BTreeSet<NodeId>,
    /// When anything of it last changed.
    changed: u64,
    /// The nodes that run instances of it.
    nodes: BTreeSet<NodeId>,
}

/// The envs of one node.
#[derive(Debug, Clone, Default)]
struct NodeEnvs {
    /// Each env that it runs instances of, and since when.
    envs: BTreeMap<EnvKey, u64>,
    /// The envs that it left, and when.
    left: BTreeMap<EnvNetwork, u64>,
    /// Those that it left before this are forgotten.
    left_begin: u64,
}

impl DirectoryIndex {
    /// The newest change.
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// Brings the directory to what changed of these envs. Gives the nodes that are concerned.
    pub fn update<'e>(
        &mut self,
        cluster: &ClusterState,
        envs: impl IntoIterator<Item = &'e EnvKey>,
    ) -> BTreeSet<NodeId> {
        let next = self.counter + 1;
        let mut concerned = BTreeSet::new();
        for key in envs {
            self.update_env(cluster, key, next, &mut concerned);
        }
        if !concerned.is_empty() {
            self.counter = next;
        }
        concerned
    }

    fn update_env(
        &mut self,
        cluster: &ClusterState,
        key: &EnvKey,
        next: u64,
        concerned: &mut BTreeSet<NodeId>,
    ) {
        let before = self.envs.get_shared(key);
        let mut now = entries(cluster, key);
        let mut also_on = BTreeSet::new();
        for record in &cluster.unreadable {
            let Subject::Instance(id) = record.subject else {
                continue;
            };
            if record.env.as_ref() != Some(key) {
                continue;
            }
            also_on.extend(record.node);
            // What was known of it counts: it is not gone.
            let known = before.as_ref().and_then(|before| before.entries.get(&id));
            if let Some((entry, _)) = known {
                now.entry(id).or_insert_with(|| entry.clone());
            }
        }
        let mut nodes = also_on.clone();
        nodes.extend(placed_on(cluster, key));
        let env = cluster.envs.get(key).map(|env| env.network);
        let of_address = now.values().next().map(|entry| env_network(entry.address));
        let known = before.as_ref().map(|before| before.network);
        let Some(network) = env.or(of_address).or(known) else {
            return;
        };
        let mut after = before.as_deref().cloned().unwrap_or_else(|| EnvEntries {
            network,
            entries: Table::new(),
            gone: BTreeMap::new(),
            gone_begin: next,
            also_on: BTreeSet::new(),
            changed: next,
            nodes: BTreeSet::new(),
        });
        if after.network != network {
            // Another env of the same name, after the first was destroyed.
            for node in std::mem::take(&mut after.nodes) {
                self.leave(node, key, after.network, next);
                concerned.insert(node);
            }
            after = EnvEntries {
                network,
                entries: Table::new(),
                gone: BTreeMap::new(),
                gone_begin: next,
                also_on: BTreeSet::new(),
                changed: next,
                nodes: BTreeSet::new(),
            };
        }
        let mut is_changed = after.also_on != also_on;
        after.also_on = also_on;
        let gone: Vec<_> = (after.entries.keys())
            .filter(|id| !now.contains_key(*id))
            .copied()
            .collect();
        for id in gone {
            after.entries.remove(&id);
            after.gone.insert(id, next);
            is_changed = true;
        }
        for (id, entry) in now {
            if after.entries.get(&id).map(|(known, _)| known) != Some(&entry) {
                after.gone.remove(&id);
                after.entries.insert(id, (entry, next));
                is_changed = true;
            }
        }
        if after.gone.len() > MAX_GONE {
            after.gone.clear();
            after.gone_begin = next;
        }
        for node in after.nodes.difference(&nodes) {
            self.leave(*node, key, network, next);
            concerned.insert(*node);
        }
        for node in nodes.difference(&after.nodes) {
            self.enter(*node, key, network, next);
            concerned.insert(*node);
        }
        if is_changed {
            after.changed = next;
            concerned.extend(nodes.iter().copied());
        }
        after.nodes = nodes;
        if after.nodes.is_empty() {
            self.envs.remove(key);
        } else {
            self.envs.insert(key.clone(), after);
        }
    }

    fn enter(&mut self, node: NodeId, key: &EnvKey, network: EnvNetwork, next: u64) {
        if !self.nodes.contains_key(&node) {
            self.nodes.insert(node, NodeEnvs::default());
        }
        if let Some(known) = self.nodes.get_mut(&node) {
            known.envs.insert(key.clone(), next);
            known.left.remove(&network);
        }
    }

    fn leave(&mut self, node: NodeId, key: &EnvKey, network: EnvNetwork, next: u64) {
        let Some(known) = self.nodes.get_mut(&node) else {
            return;
        };
        known.envs.remove(key);
        known.left.insert(network, next);
        if known.left.len() > MAX_GONE {
            known.left.clear();
            known.left_begin = next;
        }
    }

    /// Whether anything changed for this node after `seen`.
    pub fn has_news(&self, node: NodeId, seen: u64) -> bool {
        let Some(known) = self.nodes.get(&node) else {
            return false;
        };
        let left = known.left.values().any(|at| *at > seen);
        let forgotten = known.left_begin > seen;
        let changed = known.envs.iter().any(|(key, since)| {
            let env = self.envs.get(key);
            *since > seen || env.is_some_and(|env| env.changed > seen)
        });
        left || forgotten || changed
    }

    /// What a node is told that has applied the changes up to `seen`, where those are of this session; `None`: it has nothing of it. Which
    /// cluster, incarnation, term and session it is of is the caller's.
    pub fn changes(&self, node: NodeId, seen: Option<u64>) -> DirectoryChanges {
        let empty = NodeEnvs::default();
        let known = self.nodes.get(&node).unwrap_or(&empty);
        let since = seen.filter(|seen| *seen <= self.counter && *seen >= known.left_begin);
        let mut changes = DirectoryChanges {
            counter: self.counter,
            since,
            ..DirectoryChanges::default()
        };
        for (key, entered) in &known.envs {
            let Some(env) = self.envs.get(key) else {
                continue;
            };
            let since = since.filter(|since| *since >= *entered && *since >= env.gone_begin);
            if since.is_some_and(|since| env.changed <= since) {
                continue;
            }
            let news = env.entries.iter();
            let news = news.filter(|(_, (_, at))| since.is_none_or(|since| *at > since));
            let gone = env.gone.iter();
            let gone = gone.filter(|(_, at)| since.is_some_and(|since| **at > since));
            let told = EnvDirectory {
                app: key.app.clone(),
                env: key.env.clone(),
                whole: since.is_none(),
                instances: news.map(|(id, (entry, _))| (*id, entry.clone())).collect(),
                removed: gone.map(|(id, _)| *id).collect(),
                also_on: env.also_on.clone(),
            };
            changes.envs.insert(env.network, told);
        }
        if let Some(since) = since {
            let left = known.left.iter().filter(|(_, at)| **at > since);
            changes.removed = left.map(|(network, _)| *network).collect();
        }
        changes
    }
}

/// The nodes with an instance of this env that is not gone.
fn placed_on<'c>(cluster: &'c ClusterState, key: &'c EnvKey) -> impl Iterator<Item = NodeId> + 'c {
    let instances = cluster.instances.of_env(key);
    instances
        .filter(|(_, instance)| is_there(instance))
        .map(|(_, instance)| instance.node)
}

fn is_there(instance: &Instance) -> bool {
    !matches!(instance.phase, InstancePhase::Gone { .. })
}

/// The instances of an env that are not gone, and which of them names lead to.
fn entries(cluster: &ClusterState, key: &EnvKey) -> BTreeMap<InstanceId, DirectoryEntry> {
    let there: Vec<_> = cluster
        .instances
        .of_env(key)
        .map(|(_, instance)| instance)
        .filter(|instance| is_there(instance))
        .collect();
    let serving: Vec<_> = there
        .iter()
        .copied()
        .filter(|instance| crate::routes::serves(instance))
        .collect();
    let env = cluster.envs.get(key);
    let held_back = env.map_or_else(BTreeSet::new, |env| blue_green(cluster, env, &serving));
    let is_held_back = |instance: &Instance| {
        env.is_some_and(|env| instance.spec.release == env.rollout.release)
            && held_back.contains(&instance.spec.process)
    };
    let is_heard = |instance: &Instance| {
        (cluster.nodes.get(&instance.node)).is_some_and(|node: &Node| !node.has_lapsed())
    };
    let mut ready: BTreeMap<&ProcessName, (BTreeSet<InstanceId>, BTreeSet<InstanceId>)> =
        BTreeMap::new();
    for instance in serving {
        if is_held_back(instance) {
            continue;
        }
        let (heard, last_known) = ready.entry(&instance.spec.process).or_default();
        let of = if is_heard(instance) {
            heard
        } else {
            last_known
        };
        of.insert(instance.spec.id);
    }
    let is_ready = |instance: &Instance| {
        ready
            .get(&instance.spec.process)
            .is_some_and(|(heard, last_known)| {
                let named = if heard.is_empty() { last_known } else { heard };
                named.contains(&instance.spec.id)
            })
    };
    let entries = there.iter().map(|instance| {
        let entry = DirectoryEntry {
            process: instance.spec.process.clone(),
            address: instance.spec.address,
            ready: is_ready(instance),
            ports: instance.spec.ports.clone(),
        };
        (instance.spec.id, entry)
    });
    entries.collect()
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
