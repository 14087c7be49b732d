//! Which node takes an instance.
//!
//! A node can take it when it is heard, is neither cordoned nor drained, the release has an image for its architecture, and what
//! everything placed on it is promised plus what this instance needs fits ([`Resources`]):
//! - memory, a hard cap, and with it the memory of what runs the instance (`api::enrollment::InstanceOverhead`);
//! - disk: scratch disk, new volumes, logs. A disk is sparse and may grow to its size, so sizes are promised and not
//!   what is written so far. A volume holds its size until it is deleted, also while no instance has it. A node that
//!   does not report its disk is not limited by it.
//!
//! - CPU requests, up to [`CPU_OVERCOMMIT`] times the node's processors: a request is a weight and no cap, and most apps idle.
//!
//! A process type may ask for the nodes of one region.
//!
//! A terminating instance holds what it has until it is gone. A node with an instance whose record cannot be read takes
//! none: how much that holds is not known.
//!
//! Among the nodes that can, one that has no instance of the same process of the same env is chosen, in the region that has the
//! fewest of them; where all have some, the one with the fewest. So
//! the loss of one machine or region costs as few as possible. Then the one with the least CPU asked for, then the least memory,
//! then the least disk, each as a share of its hardware; then the lowest id.
//!
//! An instance that has volumes already goes to their node and to no other: a volume never moves.
//!
//! Deliberately absent: moving placed instances.

mod reasons;

use std::collections::{BTreeMap, BTreeSet};

use api::enrollment::{Hardware, InstanceOverhead};
use model::instance::InstanceSpec;
use model::{EnvKey, InstanceId, NodeId, ProcessName, VolumeId};

pub use reasons::{Cpu, EXAMPLES, Ineligible, IneligibleReason, PlacementError, Shortage};

use crate::cluster_state::{
    ClusterState, Instance, Node, Presence, Scheduling, Volume, VolumePhase,
};

/// How many times the processors of a node instances may ask for in all.
pub const CPU_OVERCOMMIT: u64 = 8;

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
    /// The region that it is to be in; absent: any.
    pub region: Option<&'a str>,
    /// The node that its volumes are on, and the name of one of them.
    pub pinned: Option<(NodeId, &'a str)>,
}

/// So many nodes lapsed that nothing is replaced ([`Placement::too_many_lapsed`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MassLoss {
    /// Nodes that are not heard any more.
    pub lapsed: usize,
    /// All nodes.
    pub nodes: usize,
}

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
    region: String,
    hardware: Hardware,
    presence: Presence,
    scheduling: Scheduling,
}

impl Offer {
    /// Why the node takes nothing, whatever it is.
    fn refusal(&self) -> Option<IneligibleReason> {
        match (self.presence, self.scheduling) {
            (Presence::NotHeardYet, _) => Some(IneligibleReason::NotHeardYet),
            (Presence::Lapsed { .. }, _) => Some(IneligibleReason::Offline),
            (Presence::Heard { .. }, Scheduling::Cordoned) => Some(IneligibleReason::Cordoned),
            (Presence::Heard { .. }, Scheduling::Draining { .. }) => {
                Some(IneligibleReason::Draining)
            }
            (Presence::Heard { .. }, Scheduling::Schedulable) => None,
        }
    }
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
    /// The nodes that take instances, by region, the least loaded first.
    by_load: BTreeMap<String, BTreeSet<Load>>,
    /// How many nodes are not heard any more.
    lapsed: usize,
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
            by_load: BTreeMap::new(),
            lapsed: 0,
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
            region: node.region.clone(),
            hardware: node.hardware.clone(),
            presence: node.presence,
            scheduling: node.scheduling,
        });
        if self.offers.get(&id) == after.as_ref() {
            return false;
        }
        let lapsed = |offer: Option<&Offer>| {
            let lapsed = offer.map(|offer| matches!(offer.presence, Presence::Lapsed { .. }));
            usize::from(lapsed.unwrap_or_default())
        };
        self.lapsed += lapsed(after.as_ref());
        self.lapsed -= lapsed(self.offers.get(&id));
        self.reordered(id, |placement| match after {
            Some(offer) => drop(placement.offers.insert(id, offer)),
            None => drop(placement.offers.remove(&id)),
        });
        true
    }

    /// The mass-loss brake. So many lapsed nodes at once are no machines that broke, but something between them and this server: nothing
    /// is replaced until fewer are. One node, or up to a third of all, may be lost without it.
    pub fn too_many_lapsed(&self) -> Option<MassLoss> {
        let nodes = self.offers.len();
        (self.lapsed > (nodes / 3).max(1)).then_some(MassLoss {
            lapsed: self.lapsed,
            nodes,
        })
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
        let region_of = |placement: &Self| {
            let offer = placement.offers.get(&id);
            offer.map_or_else(String::new, |offer| offer.region.clone())
        };
        if let Some(load) = self.load(id) {
            let region = region_of(self);
            if let Some(nodes) = self.by_load.get_mut(&region) {
                nodes.remove(&load);
                if nodes.is_empty() {
                    self.by_load.remove(&region);
                }
            }
        }
        change(self);
        if let Some(load) = self.load(id) {
            let region = region_of(self);
            self.by_load.entry(region).or_default().insert(load);
        }
    }

    /// The load of a node that takes instances.
    fn load(&self, id: NodeId) -> Option<Load> {
        let offer = self.offers.get(&id)?;
        if offer.refusal().is_some() {
            return None;
        }
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
            let mut error = PlacementError::new(Some((node, volume.to_owned())));
            let Some(offer) = self.offers.get(&node) else {
                return Err(error);
            };
            return match self.reason(node, offer, demand) {
                None => Ok(node),
                Some(reason) => {
                    error.add(node, &offer.name, reason);
                    Err(error)
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
        // A node without an instance of this process type, the least loaded one of the region with the fewest; else the one with
        // the fewest.
        let mut in_region: BTreeMap<&str, u32> = BTreeMap::new();
        for (id, count) in hosting {
            if let Some(offer) = self.offers.get(id) {
                *in_region.entry(&offer.region).or_default() += count;
            }
        }
        let asked = |region: &&String| demand.region.is_none_or(|asked| asked == region.as_str());
        let mut regions: Vec<_> = (self.by_load.keys().filter(asked))
            .map(|region| (in_region.get(region.as_str()).copied().unwrap_or(0), region))
            .collect();
        regions.sort_unstable();
        for (_, region) in regions {
            let fresh = self.by_load.get(region).into_iter().flatten();
            let mut fresh = fresh.map(|(.., id)| *id);
            if let Some(id) = fresh.find(|id| !hosting.contains_key(id) && fits(*id)) {
                return Ok(id);
            }
        }
        let ranked = hosting
            .iter()
            .filter(|(id, _)| fits(**id))
            .filter_map(|(id, count)| Some((*count, self.load(*id)?)));
        if let Some((_, (.., id))) = ranked.min() {
            return Ok(id);
        }
        let mut error = PlacementError::new(None);
        for (id, offer) in &self.offers {
            if let Some(reason) = self.reason(*id, offer, demand) {
                error.add(*id, &offer.name, reason);
            }
        }
        Err(error)
    }

    /// Why a node cannot take an instance.
    fn reason(&self, id: NodeId, offer: &Offer, demand: &Demand<'_>) -> Option<IneligibleReason> {
        const MIB: u64 = 1 << 20;
        let hardware = &offer.hardware;
        if let Some(refusal) = offer.refusal() {
            return Some(refusal);
        }
        if !demand.archs.contains(&hardware.arch.as_str()) {
            return Some(IneligibleReason::Architecture {
                arch: hardware.arch.clone(),
                has: demand.archs.join(", "),
            });
        }
        if let Some(wanted) = demand.region.filter(|wanted| *wanted != offer.region) {
            return Some(IneligibleReason::Region {
                is: offer.region.clone(),
                wanted: wanted.to_owned(),
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
        let most = has.cpu_millis.saturating_mul(CPU_OVERCOMMIT);
        let cpu = held.cpu_millis.saturating_add(needs.cpu_millis) > most;
        let cpu = cpu.then_some(IneligibleReason::Cpu {
            promised: Cpu {
                millis: held.cpu_millis,
            },
            most: Cpu { millis: most },
            wanted: Cpu {
                millis: needs.cpu_millis,
            },
        });
        memory.or_else(|| disk.map(IneligibleReason::Disk)).or(cpu)
    }
}

fn permille(part: u64, whole: u64) -> u128 {
    u128::from(part) * 1000 / u128::from(whole.max(1))
}

#[cfg(test)]
mod tests;
