//! Which node takes an instance.
//!
//! A node can take it when it is online, the release has an image for its architecture, and the memory of everything
//! placed on it plus this instance's fits: memory is a hard cap, and a terminating instance holds its memory until it
//! is gone. A node with an instance whose record cannot be read takes none: how much memory that holds is not known.
//! Among the nodes that can, the one with the fewest instances of the same process of the same env is chosen, so that
//! the loss of one machine costs as few as possible; then the one with the least CPU asked for, then the least memory,
//! each as a share of its hardware; then the lowest id.
//!
//! An instance that has volumes already goes to their node and to no other: a volume never moves.
//!
//! Deliberately absent: moving placed instances.

use std::collections::{BTreeMap, BTreeSet};

use model::{EnvKey, InstanceId, NodeId, ProcessName};

use crate::cluster_state::{ClusterState, Instance, Node};

/// The instance that is to be placed.
#[derive(Debug, Clone, Copy)]
pub struct Demand<'a> {
    /// The env.
    pub env: &'a EnvKey,
    /// The process type.
    pub process: &'a ProcessName,
    /// CPU request, in thousandths of a core.
    pub cpu_millis: u32,
    /// Memory, a hard cap, in bytes.
    pub memory_bytes: u64,
    /// The architectures that the release has an image for.
    pub archs: &'a [&'a str],
    /// The node that its volumes are on, and the name of one of them.
    pub pinned: Option<(NodeId, &'a str)>,
}

/// Why one node cannot take an instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IneligibleReason {
    /// It has not reported lately.
    #[error("it is offline")]
    Offline,
    /// The image has nothing for it.
    #[error("it is {arch}, the image is for {has}")]
    Architecture {
        /// The node's.
        arch: String,
        /// The image's.
        has: String,
    },
    /// How much memory is free is not known.
    #[error("{0} of its instances have records that this server cannot read; upgrade the server")]
    Unreadable(u32),
    /// Not enough memory is free.
    #[error("{free_mib} of its {total_mib} MiB are free, {wanted_mib} MiB are needed")]
    Memory {
        /// Not promised to any instance, in MiB.
        free_mib: u64,
        /// What instances may use, in MiB.
        total_mib: u64,
        /// What the instance needs, in MiB.
        wanted_mib: u64,
    },
}

/// No node can take an instance, and why, node by node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementError {
    /// Name of every node that was asked, and why it cannot.
    pub reasons: BTreeMap<NodeId, (String, IneligibleReason)>,
    /// The only node that was asked, because one of its volumes, with this name, is there.
    pub pinned: Option<(NodeId, String)>,
}

impl PlacementError {
    /// Whether some node cannot take the instance because of what the release asks for.
    pub fn is_the_fault_of_the_release(&self) -> bool {
        self.reasons.values().any(|(_, reason)| match reason {
            IneligibleReason::Offline | IneligibleReason::Unreadable(_) => false,
            IneligibleReason::Architecture { .. } | IneligibleReason::Memory { .. } => true,
        })
    }
}

impl std::fmt::Display for PlacementError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.pinned {
            Some((node, volume)) if self.reasons.is_empty() => {
                return write!(
                    f,
                    "its volume {volume} is on {node}, which was removed; `platform volumes delete` \
                     gives up what is in it"
                );
            }
            Some((_, volume)) => write!(f, "the node of its volume {volume} cannot take it")?,
            None if self.reasons.is_empty() => {
                return f
                    .write_str("there is no node yet; add one with `platform node --token ..`");
            }
            None => f.write_str("no node can take it")?,
        }
        for (index, (id, (name, reason))) in self.reasons.iter().enumerate() {
            let mark = if index == 0 { ':' } else { ';' };
            write!(f, "{mark} {name} ({id}): {reason}")?;
        }
        Ok(())
    }
}

impl std::error::Error for PlacementError {}

/// What is promised on one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Promised {
    cpu_millis: u64,
    memory_bytes: u64,
    /// Instances whose records cannot be read.
    unreadable: u32,
}

/// What one instance holds on its node, until it is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    node: NodeId,
    /// Its env and process type.
    of: (EnvKey, ProcessName),
    cpu_millis: u32,
    memory_bytes: u64,
    /// One that is terminating holds its share, and is not spread from.
    staying: bool,
}

/// What placement asks of a node beside what is promised there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Offer {
    name: String,
    arch: String,
    cpus: u32,
    memory_bytes: u64,
    online: bool,
}

/// How loaded a node is: the order in which nodes are asked.
type Load = (u128, u128, NodeId);

/// What is promised on every node, kept up to date with the cluster state. A question costs as many nodes as have to be
/// asked until one fits, not as many as there are.
#[derive(Debug, Clone)]
pub struct Placement {
    held: BTreeMap<InstanceId, Held>,
    offers: BTreeMap<NodeId, Offer>,
    promised: BTreeMap<NodeId, Promised>,
    /// The nodes that are online, the least loaded first.
    by_load: BTreeSet<Load>,
    /// How many instances of each process type stay on each node.
    spread: BTreeMap<(EnvKey, ProcessName), BTreeMap<NodeId, u32>>,
}

impl Placement {
    /// What is promised on the nodes of this cluster.
    pub fn new(cluster: &ClusterState) -> Self {
        let mut placement = Self {
            held: BTreeMap::new(),
            offers: BTreeMap::new(),
            promised: BTreeMap::new(),
            by_load: BTreeSet::new(),
            spread: BTreeMap::new(),
        };
        for (_, node) in cluster.unreadable_instances() {
            if let Some(node) = node {
                placement.promised.entry(node).or_default().unreadable += 1;
            }
        }
        for (id, instance) in &cluster.instances {
            placement.set_instance(*id, Some(instance));
        }
        for (id, node) in &cluster.nodes {
            placement.set_node(*id, Some(node));
        }
        placement
    }

    /// Takes notice of an instance as it is now; `None` when it is deleted. The env of the one whose share became free.
    pub fn set_instance(&mut self, id: InstanceId, instance: Option<&Instance>) -> Option<EnvKey> {
        let after = instance.map(|instance| Held {
            node: instance.node,
            of: (instance.spec.env_key(), instance.spec.process.clone()),
            cpu_millis: instance.spec.cpu_millis,
            memory_bytes: instance.spec.memory_bytes,
            staying: !instance.is_terminating(),
        });
        if self.held.get(&id) == after.as_ref() {
            return None;
        }
        let before = match &after {
            Some(held) => self.held.insert(id, held.clone()),
            None => self.held.remove(&id),
        };
        if let Some(held) = &before {
            self.count(held, false);
        }
        if let Some(held) = &after {
            self.count(held, true);
        }
        match after {
            None => before.map(|held| held.of.0),
            Some(_) => None,
        }
    }

    /// Takes notice of a node as it is now; `None` when it was removed. True when it is another than before to whoever
    /// places instances.
    pub fn set_node(&mut self, id: NodeId, node: Option<&Node>) -> bool {
        let after = node.map(|node| Offer {
            name: node.name.clone(),
            arch: node.hardware.arch.clone(),
            cpus: node.hardware.cpus,
            memory_bytes: node.hardware.memory_bytes,
            online: node.online,
        });
        if self.offers.get(&id) == after.as_ref() {
            return false;
        }
        self.reordered(id, |placement| match after {
            Some(offer) => drop(placement.offers.insert(id, offer)),
            None => drop(placement.offers.remove(&id)),
        });
        true
    }

    /// Adds what an instance holds to what is promised on its node, or takes it away.
    fn count(&mut self, held: &Held, add: bool) {
        let (cpu, memory) = (u64::from(held.cpu_millis), held.memory_bytes);
        self.reordered(held.node, |placement| {
            let promised = placement.promised.entry(held.node).or_default();
            if add {
                promised.cpu_millis += cpu;
                promised.memory_bytes = promised.memory_bytes.saturating_add(memory);
            } else {
                promised.cpu_millis = promised.cpu_millis.saturating_sub(cpu);
                promised.memory_bytes = promised.memory_bytes.saturating_sub(memory);
            }
            if *promised == Promised::default() {
                placement.promised.remove(&held.node);
            }
        });
        if !held.staying {
            return;
        }
        let nodes = self.spread.entry(held.of.clone()).or_default();
        let count = nodes.entry(held.node).or_default();
        *count = if add {
            *count + 1
        } else {
            count.saturating_sub(1)
        };
        if *count == 0 {
            nodes.remove(&held.node);
        }
        if nodes.is_empty() {
            self.spread.remove(&held.of);
        }
    }

    /// Changes what is known of a node, and its place in the order of load.
    fn reordered(&mut self, id: NodeId, change: impl FnOnce(&mut Self)) {
        if let Some(load) = self.load(id) {
            self.by_load.remove(&load);
        }
        change(self);
        if let Some(load) = self.load(id) {
            self.by_load.insert(load);
        }
    }

    /// The load of a node that is online.
    fn load(&self, id: NodeId) -> Option<Load> {
        let offer = self.offers.get(&id).filter(|offer| offer.online)?;
        let (cpu, memory) = self
            .promised
            .get(&id)
            .map_or((0, 0), |p| (p.cpu_millis, p.memory_bytes));
        Some((
            permille(cpu, u64::from(offer.cpus) * 1000),
            permille(memory, offer.memory_bytes),
            id,
        ))
    }

    /// The best node for one more instance, or why there is none.
    pub fn choose(&self, demand: &Demand<'_>) -> Result<NodeId, PlacementError> {
        if let Some((node, volume)) = demand.pinned {
            let pinned = Some((node, volume.to_owned()));
            let Some(offer) = self.offers.get(&node) else {
                let reasons = BTreeMap::new();
                return Err(PlacementError { reasons, pinned });
            };
            return match self.reason(node, offer, demand) {
                None => Ok(node),
                Some(reason) => {
                    let reasons = BTreeMap::from([(node, (offer.name.clone(), reason))]);
                    Err(PlacementError { reasons, pinned })
                }
            };
        }
        let none = BTreeMap::new();
        let of = (demand.env.clone(), demand.process.clone());
        let hosting = self.spread.get(&of).unwrap_or(&none);
        let fits = |id: NodeId| {
            let offer = self.offers.get(&id);
            offer.is_some_and(|offer| self.reason(id, offer, demand).is_none())
        };
        // A node without an instance of this process type, the least loaded one; else the one with the fewest.
        let fresh = self.by_load.iter().map(|(_, _, id)| *id);
        let mut fresh = fresh.filter(|id| !hosting.contains_key(id));
        if let Some(id) = fresh.find(|id| fits(*id)) {
            return Ok(id);
        }
        let ranked = hosting
            .iter()
            .filter(|(id, _)| fits(**id))
            .filter_map(|(id, count)| Some((*count, self.load(*id)?)));
        if let Some((_, (_, _, id))) = ranked.min() {
            return Ok(id);
        }
        let reasons = self.offers.iter().filter_map(|(id, offer)| {
            let reason = self.reason(*id, offer, demand)?;
            Some((*id, (offer.name.clone(), reason)))
        });
        Err(PlacementError {
            reasons: reasons.collect(),
            pinned: None,
        })
    }

    /// Why a node cannot take an instance.
    fn reason(&self, id: NodeId, offer: &Offer, demand: &Demand<'_>) -> Option<IneligibleReason> {
        const MIB: u64 = 1 << 20;
        let nothing = Promised::default();
        let promised = self.promised.get(&id).unwrap_or(&nothing);
        let free = offer.memory_bytes.saturating_sub(promised.memory_bytes);
        if !offer.online {
            Some(IneligibleReason::Offline)
        } else if !demand.archs.contains(&offer.arch.as_str()) {
            Some(IneligibleReason::Architecture {
                arch: offer.arch.clone(),
                has: demand.archs.join(", "),
            })
        } else if promised.unreadable > 0 {
            Some(IneligibleReason::Unreadable(promised.unreadable))
        } else if demand.memory_bytes > free {
            Some(IneligibleReason::Memory {
                free_mib: free / MIB,
                total_mib: offer.memory_bytes / MIB,
                wanted_mib: demand.memory_bytes.div_ceil(MIB),
            })
        } else {
            None
        }
    }
}

fn permille(part: u64, whole: u64) -> u128 {
    u128::from(part) * 1000 / u128::from(whole.max(1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::fixtures::{InstanceFixture, MIB, cluster, deploy, key, manifest, name, process};
    use expect_test::{Expect, expect};
    use model::Timestamp;

    fn check(cluster: &ClusterState, memory_mib: u64, expected: Expect) {
        check_pinned(cluster, memory_mib, None, expected);
    }

    fn check_pinned(
        cluster: &ClusterState,
        memory_mib: u64,
        pinned: Option<(NodeId, &str)>,
        expected: Expect,
    ) {
        let chosen = Placement::new(cluster).choose(&Demand {
            env: &key("shop/prod"),
            process: &name("web"),
            cpu_millis: 100,
            memory_bytes: memory_mib * MIB,
            archs: &["amd64"],
            pinned,
        });
        expected.assert_eq(&chosen.map_or_else(|why| why.to_string(), |node| node.to_string()));
    }

    fn with(instances: &[(&'static str, u16)]) -> ClusterState {
        let mut cluster = cluster(3);
        let both = [("web", process(1)), ("other", process(1))];
        deploy(&mut cluster, "shop/prod", manifest(&both), Timestamp(0));
        for (id, (process, node)) in (1..).zip(instances) {
            let (process, node) = (*process, *node);
            let env = "shop/prod";
            InstanceFixture {
                id,
                env,
                process,
                release: 1,
                node,
            }
            .into_cluster(&mut cluster);
        }
        cluster
    }

    #[test]
    fn the_lowest_id_wins_a_tie() {
        check(&with(&[]), 256, expect!["n1"]);
    }

    #[test]
    fn the_same_process_is_spread_before_load_counts() {
        check(
            &with(&[("other", 2), ("other", 2), ("web", 1), ("web", 3)]),
            256,
            expect!["n2"],
        );
        check(&with(&[("other", 1), ("other", 2)]), 256, expect!["n3"]);
    }

    #[test]
    fn a_terminating_instance_holds_its_memory_and_is_not_spread_from() {
        let mut cluster = with(&[("web", 1), ("web", 2), ("web", 3)]);
        for instance in cluster.instances.values_mut() {
            if instance.node == NodeId(3) {
                instance.terminate();
            }
        }
        check(&cluster, 256, expect!["n3"]);
        check(
            &cluster,
            3841,
            expect![[
                r#"no node can take it: node-1 (n1): 3840 of its 4096 MiB are free, 3841 MiB are needed; node-2 (n2): 3840 of its 4096 MiB are free, 3841 MiB are needed; node-3 (n3): 3840 of its 4096 MiB are free, 3841 MiB are needed"#
            ]],
        );
    }

    #[test]
    fn a_placement_error_names_the_reason_of_every_node() {
        let mut cluster = with(&[]);
        cluster.nodes.get_mut(&NodeId(1)).unwrap().online = false;
        cluster.nodes.get_mut(&NodeId(2)).unwrap().hardware.arch = "arm64".to_owned();
        check(
            &cluster,
            5000,
            expect![[
                r#"no node can take it: node-1 (n1): it is offline; node-2 (n2): it is arm64, the image is for amd64; node-3 (n3): 4096 of its 4096 MiB are free, 5000 MiB are needed"#
            ]],
        );
        cluster.nodes.clear();
        check(
            &cluster,
            1,
            expect!["there is no node yet; add one with `platform node --token ..`"],
        );
    }

    #[test]
    fn an_instance_with_volumes_is_placed_on_their_node_or_nowhere() {
        let mut cluster = with(&[("web", 2), ("web", 2)]);
        let data = |number| Some((NodeId(number), "data"));
        check_pinned(&cluster, 256, data(2), expect!["n2"]);
        check_pinned(
            &cluster,
            4000,
            data(2),
            expect![
                "the node of its volume data cannot take it: node-2 (n2): 3584 of its 4096 MiB are free, 4000 MiB are needed"
            ],
        );
        cluster.nodes.remove(&NodeId(2));
        check_pinned(
            &cluster,
            256,
            data(2),
            expect![
                "its volume data is on n2, which was removed; `platform volumes delete` gives up what is in it"
            ],
        );
    }
}
