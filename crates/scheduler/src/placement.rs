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

use std::collections::BTreeMap;

use model::instance::InstanceSpec;
use model::{EnvKey, NodeId, ProcessName};

use crate::cluster_state::{ClusterState, Node};

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
#[derive(Debug, Clone, Default)]
struct Promised {
    cpu_millis: u64,
    memory_bytes: u64,
    /// Instances whose records cannot be read.
    unreadable: u32,
    staying: BTreeMap<(EnvKey, ProcessName), u32>,
}

/// What is promised on every node; kept up to date as instances are placed.
#[derive(Debug, Clone)]
pub struct Placement<'w> {
    nodes: &'w BTreeMap<NodeId, Node>,
    promised: BTreeMap<NodeId, Promised>,
}

impl<'w> Placement<'w> {
    /// What the instances of `cluster` are promised on these nodes.
    pub fn new(nodes: &'w BTreeMap<NodeId, Node>, cluster: &ClusterState) -> Self {
        let mut placement = Self {
            nodes,
            promised: BTreeMap::new(),
        };
        for instance in cluster.instances.values() {
            placement.promise(instance.node, &instance.spec, instance.is_terminating());
        }
        for (_, node) in cluster.unreadable_instances() {
            if let Some(node) = node {
                placement.promised.entry(node).or_default().unreadable += 1;
            }
        }
        placement
    }

    /// Counts an instance as placed; one that is terminating holds its share, and is not spread from.
    pub fn promise(&mut self, node: NodeId, spec: &InstanceSpec, terminating: bool) {
        let promised = self.promised.entry(node).or_default();
        promised.cpu_millis += u64::from(spec.cpu_millis);
        promised.memory_bytes = promised.memory_bytes.saturating_add(spec.memory_bytes);
        if !terminating {
            let key = (spec.env_key(), spec.process.clone());
            *promised.staying.entry(key).or_default() += 1;
        }
    }

    /// The best node for one more instance, or why there is none.
    pub fn choose(&self, demand: &Demand<'_>) -> Result<NodeId, PlacementError> {
        let mut reasons = BTreeMap::new();
        let mut best = None;
        let nothing = Promised::default();
        let asked = |id: &NodeId| demand.pinned.is_none_or(|(node, _)| node == *id);
        for (id, node) in self.nodes.iter().filter(|(id, _)| asked(id)) {
            let promised = self.promised.get(id).unwrap_or(&nothing);
            if let Some(reason) = reason(node, promised, demand) {
                reasons.insert(*id, (node.name.clone(), reason));
                continue;
            }
            let key = (demand.env.clone(), demand.process.clone());
            let rank = (
                promised.staying.get(&key).copied().unwrap_or(0),
                permille(promised.cpu_millis, u64::from(node.hardware.cpus) * 1000),
                permille(promised.memory_bytes, node.hardware.memory_bytes),
                *id,
            );
            if best.is_none_or(|known| rank < known) {
                best = Some(rank);
            }
        }
        let pinned = demand
            .pinned
            .map(|(node, volume)| (node, volume.to_owned()));
        best.map(|(_, _, _, id)| id)
            .ok_or(PlacementError { reasons, pinned })
    }
}

fn reason(node: &Node, promised: &Promised, demand: &Demand<'_>) -> Option<IneligibleReason> {
    const MIB: u64 = 1 << 20;
    let hardware = &node.hardware;
    let free = hardware.memory_bytes.saturating_sub(promised.memory_bytes);
    if !node.online {
        Some(IneligibleReason::Offline)
    } else if !demand.archs.contains(&hardware.arch.as_str()) {
        Some(IneligibleReason::Architecture {
            arch: hardware.arch.clone(),
            has: demand.archs.join(", "),
        })
    } else if promised.unreadable > 0 {
        Some(IneligibleReason::Unreadable(promised.unreadable))
    } else if demand.memory_bytes > free {
        Some(IneligibleReason::Memory {
            free_mib: free / MIB,
            total_mib: hardware.memory_bytes / MIB,
            wanted_mib: demand.memory_bytes.div_ceil(MIB),
        })
    } else {
        None
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
        let chosen = Placement::new(&cluster.nodes, cluster).choose(&Demand {
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
