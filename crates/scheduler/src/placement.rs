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

use std::collections::{BTreeMap, BTreeSet};

use api::enrollment::{Hardware, InstanceOverhead};
use model::instance::InstanceSpec;
use model::{EnvKey, InstanceId, NodeId, ProcessName, VolumeId};

use crate::cluster_state::{ClusterState, Instance, Node, Volume, VolumePhase};

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

    /// With what so many instances cost beside their specs.
    fn with(self, overhead: InstanceOverhead, instances: u64) -> Self {
        let memory = overhead.memory_bytes.saturating_mul(instances);
        let disk = overhead.disk_bytes.saturating_mul(instances);
        Self {
            cpu_millis: self.cpu_millis,
            memory_bytes: self.memory_bytes.saturating_add(memory),
            disk_bytes: self.disk_bytes.saturating_add(disk),
        }
    }

    fn subtract(&mut self, other: Self) {
        self.cpu_millis = self.cpu_millis.saturating_sub(other.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_sub(other.memory_bytes);
        self.disk_bytes = self.disk_bytes.saturating_sub(other.disk_bytes);
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Promised {
    /// By the specs of instances and the sizes of volumes.
    resources: Resources,
    /// The instances, each of which costs the node's overhead beside.
    instances: u64,
    /// Instances whose records cannot be read.
    unreadable: u32,
}

/// What one instance holds on its node, until it is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Allocation {
    node: NodeId,
    /// Its env and process type.
    of: (EnvKey, ProcessName),
    resources: Resources,
    /// One that is terminating holds its share, and is not spread from.
    staying: bool,
}

/// What placement asks of a node beside what is promised there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Offer {
    name: String,
    hardware: Hardware,
    online: bool,
}

/// How loaded a node is: the order in which nodes are asked.
type Load = (u128, u128, u128, NodeId);

/// What is promised on every node, kept up to date with the cluster state. A question costs as many nodes as have to be
/// asked until one fits, not as many as there are.
#[derive(Debug, Clone)]
pub struct Placement {
    allocations: BTreeMap<InstanceId, Allocation>,
    volumes: BTreeMap<VolumeId, (NodeId, u64)>,
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
            allocations: BTreeMap::new(),
            volumes: BTreeMap::new(),
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
        for (id, volume) in &cluster.volumes {
            placement.set_volume(*id, Some(volume));
        }
        for (id, node) in &cluster.nodes {
            placement.set_node(*id, Some(node));
        }
        placement
    }

    /// Takes notice of an instance as it is now; `None` when it is deleted. The env of the one whose share became free.
    pub fn set_instance(&mut self, id: InstanceId, instance: Option<&Instance>) -> Option<EnvKey> {
        let after = instance.map(|instance| Allocation {
            node: instance.node,
            of: (instance.spec.env_key(), instance.spec.process.clone()),
            resources: Resources::of_instance(&instance.spec),
            staying: !instance.is_terminating(),
        });
        if self.allocations.get(&id) == after.as_ref() {
            return None;
        }
        let before = match &after {
            Some(held) => self.allocations.insert(id, held.clone()),
            None => self.allocations.remove(&id),
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

    /// Takes notice of a volume as it is now; `None` when it is deleted. It holds its disk until its node has said that the
    /// disk is gone, in use or not. True when its disk became free.
    pub fn set_volume(&mut self, id: VolumeId, volume: Option<&Volume>) -> bool {
        let holds = volume.filter(|volume| volume.phase != VolumePhase::Deleted);
        let after = holds.map(|volume| (volume.node, volume.size_bytes));
        if self.volumes.get(&id) == after.as_ref() {
            return false;
        }
        let before = match after {
            Some(held) => self.volumes.insert(id, held),
            None => self.volumes.remove(&id),
        };
        for (held, add) in [(before, false), (after, true)] {
            if let Some((node, disk_bytes)) = held {
                let resources = Resources {
                    disk_bytes,
                    ..Resources::default()
                };
                self.promise(node, resources, 0, add);
            }
        }
        after.is_none()
    }

    /// What is promised on a node.
    pub fn promised(&self, node: NodeId) -> Resources {
        let promised = self.promised.get(&node).copied().unwrap_or_default();
        let offer = self.offers.get(&node);
        let overhead = offer.map_or_else(InstanceOverhead::default, |offer| {
            offer.hardware.instance_overhead()
        });
        promised.resources.with(overhead, promised.instances)
    }

    /// Takes notice of a node as it is now; `None` when it was removed. True when it is another than before to whoever
    /// places instances.
    pub fn set_node(&mut self, id: NodeId, node: Option<&Node>) -> bool {
        let after = node.map(|node| Offer {
            name: node.name.clone(),
            hardware: node.hardware.clone(),
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
    fn count(&mut self, held: &Allocation, add: bool) {
        self.promise(held.node, held.resources, 1, add);
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

    /// Adds to what is promised on a node, or takes it away.
    fn promise(&mut self, node: NodeId, resources: Resources, instances: u64, add: bool) {
        self.reordered(node, |placement| {
            let promised = placement.promised.entry(node).or_default();
            if add {
                promised.resources.add(resources);
                promised.instances += instances;
            } else {
                promised.resources.subtract(resources);
                promised.instances = promised.instances.saturating_sub(instances);
            }
            if *promised == Promised::default() {
                placement.promised.remove(&node);
            }
        });
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
        let (has, held) = (Resources::of_hardware(&offer.hardware), self.promised(id));
        Some((
            permille(held.cpu_millis, has.cpu_millis),
            permille(held.memory_bytes, has.memory_bytes),
            permille(held.disk_bytes, has.disk_bytes),
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
        let fresh = self.by_load.iter().map(|(.., id)| *id);
        let mut fresh = fresh.filter(|id| !hosting.contains_key(id));
        if let Some(id) = fresh.find(|id| fits(*id)) {
            return Ok(id);
        }
        let ranked = hosting
            .iter()
            .filter(|(id, _)| fits(**id))
            .filter_map(|(id, count)| Some((*count, self.load(*id)?)));
        if let Some((_, (.., id))) = ranked.min() {
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
        let hardware = &offer.hardware;
        if !offer.online {
            return Some(IneligibleReason::Offline);
        }
        if !demand.archs.contains(&hardware.arch.as_str()) {
            return Some(IneligibleReason::Architecture {
                arch: hardware.arch.clone(),
                has: demand.archs.join(", "),
            });
        }
        let unreadable = self.promised.get(&id).map_or(0, |p| p.unreadable);
        if unreadable > 0 {
            return Some(IneligibleReason::Unreadable(unreadable));
        }
        let overhead = hardware.instance_overhead();
        let (has, held) = (Resources::of_hardware(hardware), self.promised(id));
        let needs = demand.needs.with(overhead, 1);
        let memory = Shortage::of(needs.memory_bytes, held.memory_bytes, has.memory_bytes);
        let disk = Shortage::of(needs.disk_bytes, held.disk_bytes, has.disk_bytes);
        let memory = memory.map(|short| IneligibleReason::Memory {
            short,
            overhead_mib: overhead.memory_bytes.div_ceil(MIB),
        });
        memory.or_else(|| disk.map(IneligibleReason::Disk))
    }
}

fn permille(part: u64, whole: u64) -> u128 {
    u128::from(part) * 1000 / u128::from(whole.max(1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::cluster_state::VolumeKey;
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
        let chosen = Placement::new(cluster).choose(&Demand {
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
        let placement = Placement::new(&cluster);
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
        cluster.nodes.remove(&NodeId(2));
        cluster.nodes.remove(&NodeId(3));
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
