//! Which node takes an instance.
//!
//! A node can take it when it is online, the release has an image for its architecture, and what everything placed on
//! it is promised plus what this instance needs fits ([`Resources`]):
//! - memory, a hard cap, and with it the memory of what runs the instance (`api::enrollment::InstanceOverhead`);
//! - disk: scratch disk, new volumes, logs. A disk is sparse and may grow to its size, so sizes are promised and not
//!   what is written so far. A volume holds its size until it is deleted, also while no instance has it. A node that
//!   does not report its disk is not limited by it.
//!
//! A terminating instance holds what it has until it is gone. A node with an instance whose record cannot be read takes
//! none: how much that holds is not known.
//!
//! Among the nodes that can, the one with the fewest instances of the same process of the same env is chosen, so that
//! the loss of one machine costs as few as possible; then the one with the least CPU asked for, then the least memory,
//! then the least disk, each as a share of its hardware; then the lowest id.
//!
//! An instance that has volumes already goes to their node and to no other: a volume never moves.
//!
//! Deliberately absent: moving placed instances.

use std::collections::BTreeMap;

use api::enrollment::{Hardware, InstanceOverhead};
use model::instance::InstanceSpec;
use model::{EnvKey, NodeId, ProcessName};

use crate::cluster_state::{ClusterState, Node, VolumePhase};

/// What an instance needs of a node, what is promised there, or what the node has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    /// CPU, in thousandths of a core: a request, not a bound.
    pub cpu_millis: u64,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Disk, in bytes.
    pub disk_bytes: u64,
}

impl Resources {
    /// What a placed instance holds by its spec: its scratch disk, and not its volumes, which hold their own.
    fn of_instance(spec: &InstanceSpec) -> Self {
        Self {
            cpu_millis: u64::from(spec.cpu_millis),
            memory_bytes: spec.memory_bytes,
            disk_bytes: spec.scratch_bytes,
        }
    }

    /// What instances may have of a machine.
    fn of_hardware(hardware: &Hardware) -> Self {
        Self {
            cpu_millis: u64::from(hardware.cpus) * 1000,
            memory_bytes: hardware.memory_bytes,
            disk_bytes: hardware
                .disk
                .map_or(u64::MAX, |disk| disk.instances_bytes()),
        }
    }

    /// With what an instance costs beside its spec.
    fn with(self, overhead: InstanceOverhead) -> Self {
        Self {
            cpu_millis: self.cpu_millis,
            memory_bytes: self.memory_bytes.saturating_add(overhead.memory_bytes),
            disk_bytes: self.disk_bytes.saturating_add(overhead.disk_bytes),
        }
    }

    fn add(&mut self, other: Self) {
        self.cpu_millis = self.cpu_millis.saturating_add(other.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_add(other.memory_bytes);
        self.disk_bytes = self.disk_bytes.saturating_add(other.disk_bytes);
    }
}

/// The instance that is to be placed.
#[derive(Debug, Clone, Copy)]
pub struct Demand<'a> {
    /// The env.
    pub env: &'a EnvKey,
    /// The process type.
    pub process: &'a ProcessName,
    /// What it needs, wherever it goes: its scratch disk and the volumes that are still to be made.
    pub needs: Resources,
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
    /// How much memory and disk is free is not known.
    #[error("{0} of its instances have records that this server cannot read; upgrade the server")]
    Unreadable(u32),
    /// Not enough memory is free.
    #[error("{short} MiB of memory are needed{}", of_its_vmm(*overhead_mib))]
    Memory {
        /// What is short.
        short: Shortage,
        /// How much of what is needed is for the VMM, in MiB.
        overhead_mib: u64,
    },
    /// Not enough disk is free.
    #[error("{0} MiB of disk are needed for scratch disk, new volumes and logs")]
    Disk(Shortage),
}

/// More of something is needed than a node has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortage {
    /// Not promised to any instance, in MiB.
    pub free_mib: u64,
    /// What instances may use, in MiB.
    pub total_mib: u64,
    /// What the instance needs, in MiB.
    pub wanted_mib: u64,
}

impl Shortage {
    /// The shortage, if there is one; all in bytes.
    fn of(wanted: u64, promised: u64, total: u64) -> Option<Self> {
        const MIB: u64 = 1 << 20;
        let free = total.saturating_sub(promised);
        (wanted > free).then(|| Self {
            free_mib: free / MIB,
            total_mib: total / MIB,
            wanted_mib: wanted.div_ceil(MIB),
        })
    }
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            free_mib,
            total_mib,
            wanted_mib,
        } = self;
        write!(
            f,
            "{free_mib} of its {total_mib} MiB are free, {wanted_mib}"
        )
    }
}

fn of_its_vmm(overhead_mib: u64) -> String {
    match overhead_mib {
        0 => String::new(),
        mib => format!(", {mib} of them for its VMM"),
    }
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
            IneligibleReason::Architecture { .. }
            | IneligibleReason::Memory { .. }
            | IneligibleReason::Disk(_) => true,
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
    resources: Resources,
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
        for volume in cluster.volumes.values() {
            if volume.phase != VolumePhase::Deleted {
                placement.promise_volume(volume.node, volume.size_bytes);
            }
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
        let overhead = self.overhead(node);
        let promised = self.promised.entry(node).or_default();
        let held = Resources::of_instance(spec).with(overhead);
        promised.resources.add(held);
        if !terminating {
            let key = (spec.env_key(), spec.process.clone());
            *promised.staying.entry(key).or_default() += 1;
        }
    }

    /// Counts a volume as placed, in use or not.
    pub fn promise_volume(&mut self, node: NodeId, size_bytes: u64) {
        let resources = &mut self.promised.entry(node).or_default().resources;
        resources.disk_bytes = resources.disk_bytes.saturating_add(size_bytes);
    }

    /// What is promised on a node.
    pub fn promised(&self, node: NodeId) -> Resources {
        let promised = self.promised.get(&node);
        promised.map_or_else(Resources::default, |promised| promised.resources)
    }

    /// What an instance costs a node beside its spec.
    fn overhead(&self, node: NodeId) -> InstanceOverhead {
        let node = self.nodes.get(&node);
        node.map_or_else(InstanceOverhead::default, |node| {
            node.hardware.instance_overhead()
        })
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
            let (has, held) = (Resources::of_hardware(&node.hardware), promised.resources);
            let rank = (
                promised.staying.get(&key).copied().unwrap_or(0),
                permille(held.cpu_millis, has.cpu_millis),
                permille(held.memory_bytes, has.memory_bytes),
                permille(held.disk_bytes, has.disk_bytes),
                *id,
            );
            if best.is_none_or(|known| rank < known) {
                best = Some(rank);
            }
        }
        let pinned = demand
            .pinned
            .map(|(node, volume)| (node, volume.to_owned()));
        best.map(|(_, _, _, _, id)| id)
            .ok_or(PlacementError { reasons, pinned })
    }
}

fn reason(node: &Node, promised: &Promised, demand: &Demand<'_>) -> Option<IneligibleReason> {
    const MIB: u64 = 1 << 20;
    let hardware = &node.hardware;
    if !node.online {
        return Some(IneligibleReason::Offline);
    }
    if !demand.archs.contains(&hardware.arch.as_str()) {
        return Some(IneligibleReason::Architecture {
            arch: hardware.arch.clone(),
            has: demand.archs.join(", "),
        });
    }
    if promised.unreadable > 0 {
        return Some(IneligibleReason::Unreadable(promised.unreadable));
    }
    let overhead = hardware.instance_overhead();
    let (has, held) = (Resources::of_hardware(hardware), promised.resources);
    let needs = demand.needs.with(overhead);
    let memory = Shortage::of(needs.memory_bytes, held.memory_bytes, has.memory_bytes);
    let disk = Shortage::of(needs.disk_bytes, held.disk_bytes, has.disk_bytes);
    let memory = memory.map(|short| IneligibleReason::Memory {
        short,
        overhead_mib: overhead.memory_bytes.div_ceil(MIB),
    });
    memory.or_else(|| disk.map(IneligibleReason::Disk))
}

fn permille(part: u64, whole: u64) -> u128 {
    u128::from(part) * 1000 / u128::from(whole.max(1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::cluster_state::{Volume, VolumeKey};
    use crate::fixtures::{InstanceFixture, MIB, cluster, deploy, key, manifest, name, process};
    use api::enrollment::NodeDisk;
    use expect_test::{Expect, expect};
    use model::{Timestamp, VolumeId};

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
            needs: Resources {
                cpu_millis: 100,
                memory_bytes: memory_mib * MIB,
                disk_bytes: 64 * MIB,
            },
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
                r#"no node can take it: node-1 (n1): 3840 of its 4096 MiB are free, 3841 MiB of memory are needed; node-2 (n2): 3840 of its 4096 MiB are free, 3841 MiB of memory are needed; node-3 (n3): 3840 of its 4096 MiB are free, 3841 MiB of memory are needed"#
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
                r#"no node can take it: node-1 (n1): it is offline; node-2 (n2): it is arm64, the image is for amd64; node-3 (n3): 4096 of its 4096 MiB are free, 5000 MiB of memory are needed"#
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
                "the node of its volume data cannot take it: node-2 (n2): 3584 of its 4096 MiB are free, 4000 MiB of memory are needed"
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

    /// A node of 4 GiB of memory, with as many MiB of disk for instances.
    fn with_disk(cluster: &mut ClusterState, node: u16, disk_mib: u64) {
        let hardware = &mut cluster.nodes.get_mut(&NodeId(node)).unwrap().hardware;
        hardware.disk = Some(NodeDisk {
            total_bytes: (disk_mib + 60) * MIB,
            reserved_bytes: 10 * MIB,
            images_bytes: 20 * MIB,
            others_bytes: 30 * MIB,
        });
    }

    #[test]
    fn case_disk_is_promised_like_memory() {
        // Each instance of the fixture has 64 MiB of scratch disk, and so has the one that is placed.
        let mut cluster = with(&[("other", 1), ("other", 1)]);
        with_disk(&mut cluster, 1, 3 * 64 - 1);
        with_disk(&mut cluster, 2, 63);
        with_disk(&mut cluster, 3, 64);
        check(&cluster, 256, expect!["n3"]);
        with_disk(&mut cluster, 3, 0);
        check(
            &cluster,
            256,
            expect![[
                r#"no node can take it: node-1 (n1): 63 of its 191 MiB are free, 64 MiB of disk are needed for scratch disk, new volumes and logs; node-2 (n2): 63 of its 63 MiB are free, 64 MiB of disk are needed for scratch disk, new volumes and logs; node-3 (n3): 0 of its 0 MiB are free, 64 MiB of disk are needed for scratch disk, new volumes and logs"#
            ]],
        );
        // A terminating instance holds its disk, too.
        for instance in cluster.instances.values_mut() {
            instance.terminate();
        }
        with_disk(&mut cluster, 1, 3 * 64);
        check(&cluster, 256, expect!["n1"]);
        with_disk(&mut cluster, 1, 3 * 64 - 1);
        let placement = Placement::new(&cluster.nodes, &cluster);
        assert_eq!(placement.promised(NodeId(1)).disk_bytes, 2 * 64 * MIB);
        let needs = Resources {
            disk_bytes: 64 * MIB,
            ..Resources::default()
        };
        let (env, process) = (key("shop/prod"), name("web"));
        let refused = placement.choose(&Demand {
            env: &env,
            process: &process,
            needs,
            archs: &["amd64"],
            pinned: None,
        });
        assert!(refused.unwrap_err().is_the_fault_of_the_release());
    }

    #[test]
    fn case_a_volume_holds_its_disk_until_it_is_deleted() {
        let mut cluster = with(&[]);
        for node in 1..=3 {
            with_disk(&mut cluster, node, 100);
        }
        let volume = |node, phase| Volume {
            key: VolumeKey {
                env: key("shop/prod"),
                process: name("web"),
                name: "data".to_owned(),
                ordinal: 0,
            },
            node: NodeId(node),
            size_bytes: 37 * MIB,
            created_at: Timestamp(0),
            phase,
        };
        let phases = [
            VolumePhase::Made,
            VolumePhase::Deleting { made: true },
            VolumePhase::Deleted,
        ];
        for (number, phase) in (1..).zip(phases) {
            let volumes = &mut cluster.volumes;
            volumes.insert(VolumeId(u32::from(number)), volume(number, phase));
        }
        check(&cluster, 256, expect!["n3"]);
        cluster
            .volumes
            .insert(VolumeId(4), volume(3, VolumePhase::Planned));
        check(
            &cluster,
            256,
            expect![[
                r#"no node can take it: node-1 (n1): 63 of its 100 MiB are free, 64 MiB of disk are needed for scratch disk, new volumes and logs; node-2 (n2): 63 of its 100 MiB are free, 64 MiB of disk are needed for scratch disk, new volumes and logs; node-3 (n3): 63 of its 100 MiB are free, 64 MiB of disk are needed for scratch disk, new volumes and logs"#
            ]],
        );
    }

    #[test]
    fn case_an_instance_costs_a_node_what_its_driver_needs_beside_the_guest() {
        let mut cluster = with(&[("other", 1)]);
        cluster.nodes.retain(|id, _| *id == NodeId(1));
        let node = |cluster: &mut ClusterState, overhead| {
            let hardware = &mut cluster.nodes.get_mut(&NodeId(1)).unwrap().hardware;
            hardware.memory_bytes = 1024 * MIB;
            hardware.overhead = overhead;
        };
        let overhead = InstanceOverhead {
            memory_bytes: 90 * MIB,
            disk_bytes: 0,
        };
        node(&mut cluster, Some(overhead));
        check(&cluster, 1024 - 256 - 2 * 90, expect!["n1"]);
        check(
            &cluster,
            1024 - 256 - 2 * 90 + 1,
            expect![
                "no node can take it: node-1 (n1): 678 of its 1024 MiB are free, 679 MiB of memory are needed, 90 of them for its VMM"
            ],
        );
        // An agent of the version before does not say what it costs.
        node(&mut cluster, None);
        check(&cluster, 1024 - 256 - 2 * 128, expect!["n1"]);
        check(
            &cluster,
            1024 - 256 - 2 * 128 + 1,
            expect![
                "no node can take it: node-1 (n1): 640 of its 1024 MiB are free, 641 MiB of memory are needed, 128 of them for its VMM"
            ],
        );
    }
}
