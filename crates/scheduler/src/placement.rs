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
//! A process type may ask for the nodes of one region, and for labels that a node must have. What an older agent would ignore goes to no node that has
//! one ([`crate::node_protocol`]).
//!
//! A terminating instance holds what it has until it is gone. An instance or a volume whose record cannot be read holds what can
//! still be read of the record, and a fixed amount where that is nothing (`cluster_state::CountedAs`): it costs its node no more than that.
//!
//! Among the nodes that can, one that has no instance of the same process of the same env is chosen, in the region that has the
//! fewest of them; where all have some, the one with the fewest. So
//! the loss of one machine or region costs as few as possible. Then nodes are filled one after the other, so that large instances
//! find room and machines can be given back: the one that has the least memory free, then the lowest id. A node whose
//! processors are all asked for comes after those that have some left.
//!
//! An instance that has volumes already goes to their node and to no other: a volume never moves.
//!
//! Deliberately absent: moving placed instances.

mod classes;
mod demand;
mod reasons;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use api::enrollment::{Hardware, InstanceOverhead};
use model::{EnvKey, InstanceId, NodeId, ProcessName, Timestamp, VolumeId};

use classes::{Class, FreeMemory, NodeClass, first_of};
pub(crate) use demand::Unplaced;
pub use demand::{CPU_OVERCOMMIT, Demand, Resources};
pub use reasons::{Cpu, EXAMPLES, Ineligible, IneligibleReason, PlacementError, Shortage};

use crate::cluster_state::{
    ClusterState, Instance, Node, Presence, Scheduling, Volume, VolumePhase,
};
use crate::table::Table;

/// How long a node is not heard before it is given up, and others take the place of its instances, in milliseconds.
pub const LOST_AFTER_MS: u64 = 60_000;

/// So many nodes lapsed at once that nothing is replaced ([`Placement::too_many_lapsed`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MassLoss {
    /// Nodes that are not heard any more, and were not given up before.
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
}

impl Promised {
    /// All of it, where each instance costs this much beside its spec.
    fn with(self, overhead: InstanceOverhead) -> Resources {
        self.resources.with(overhead, self.instances)
    }
}

/// What is promised on every node. A copy costs nothing.
#[derive(Debug, Clone, Default)]
pub struct PromisedIndex(Table<NodeId, Promised>);

impl PromisedIndex {
    /// What is promised on a node where each instance costs this much beside its spec.
    pub fn on(&self, node: NodeId, overhead: InstanceOverhead) -> Resources {
        self.of(node).with(overhead)
    }

    fn of(&self, node: NodeId) -> Promised {
        self.0.get(&node).copied().unwrap_or_default()
    }

    fn change(&mut self, node: NodeId, change: impl FnOnce(&mut Promised)) {
        let nothing = Promised::default();
        if let Some(promised) = self.0.get_mut(&node) {
            change(promised);
            if *promised == nothing {
                self.0.remove(&node);
            }
            return;
        }
        let mut promised = nothing;
        change(&mut promised);
        if promised != nothing {
            self.0.insert(node, promised);
        }
    }
}

/// What one instance holds on its node, until it is deleted.
#[derive(Debug, Clone)]
struct Allocation {
    node: NodeId,
    /// Its env and process type, shared with `Placement::spread`.
    of: Arc<(EnvKey, ProcessName)>,
    /// The region of its node, where that was known when it was placed.
    region: Option<Arc<str>>,
    resources: Resources,
    /// One that is terminating holds its share, and is not spread from.
    staying: bool,
}

impl Allocation {
    /// Whether both hold the same.
    fn is_as(&self, other: &Self) -> bool {
        (self.node, &self.of, self.resources, self.staying)
            == (other.node, &other.of, other.resources, other.staying)
    }
}

/// What placement asks of a node beside what is promised there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Offer {
    name: String,
    /// The place of its class in `Placement::classes`.
    class: usize,
    hardware: Hardware,
    /// Its region, shared by what is placed on it.
    region: Arc<str>,
    presence: Presence,
    scheduling: Scheduling,
    /// What it runs that the cluster state does not know.
    unknown: (Resources, u64),
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

/// What is promised to the instances that a node runs and the cluster state does not know, and how many they are.
fn unknown_of(node: &Node) -> (Resources, u64) {
    let mut all = Resources::default();
    for unknown in node.unknown.values() {
        all.add(Resources::of_held(unknown.counted()));
    }
    (all, node.unknown.len() as u64)
}

/// Where the instances of a process type stay.
#[derive(Debug, Clone, Default)]
struct Spread {
    nodes: BTreeMap<NodeId, u32>,
    regions: BTreeMap<Arc<str>, u32>,
}

/// What is promised on every node, kept up to date with the cluster state. A question costs as many nodes as have to be
/// asked until one fits, not as many as there are.
#[derive(Debug, Clone)]
pub struct Placement {
    allocations: BTreeMap<InstanceId, Allocation>,
    volumes: BTreeMap<VolumeId, (NodeId, u64)>,
    offers: BTreeMap<NodeId, Offer>,
    promised: PromisedIndex,
    /// The classes of nodes that there are, and the place of each in `classes`.
    class_index: BTreeMap<NodeClass, usize>,
    classes: Vec<Class>,
    /// The places in `classes` of those that no node is of.
    free_places: Vec<usize>,
    /// The nodes that are not heard any more, by when they lapsed.
    lapsed: BTreeSet<(Timestamp, NodeId)>,
    /// Those of them that were not given up before the last one lapsed.
    lapsed_together: Vec<NodeId>,
    /// Where the instances of each process type stay.
    spread: BTreeMap<Arc<(EnvKey, ProcessName)>, Spread>,
}

impl Placement {
    /// What is promised on the nodes of this cluster.
    pub fn new(cluster: &ClusterState) -> Self {
        let mut placement = Self {
            allocations: BTreeMap::new(),
            volumes: BTreeMap::new(),
            offers: BTreeMap::new(),
            promised: PromisedIndex::default(),
            class_index: BTreeMap::new(),
            classes: Vec::new(),
            free_places: Vec::new(),
            lapsed: BTreeSet::new(),
            lapsed_together: Vec::new(),
            spread: BTreeMap::new(),
        };
        for record in &cluster.unreadable {
            if let (Some(node), Some(held)) = (record.node, record.holds) {
                let resources = Resources::of_held(held);
                placement.promise(node, resources, u64::from(held.is_instance), true);
            }
        }
        for (id, node) in &cluster.nodes {
            placement.set_node(*id, Some(node));
        }
        for (id, instance) in &cluster.instances {
            placement.set_instance(*id, Some(instance));
        }
        for (id, volume) in &cluster.volumes {
            placement.set_volume(*id, Some(volume));
        }
        placement
    }

    /// Takes notice of an instance as it is now; `None` when it is deleted. The node on which its share became free.
    pub fn set_instance(&mut self, id: InstanceId, instance: Option<&Instance>) -> Option<NodeId> {
        let region = |node: NodeId| Some(Arc::clone(&self.offers.get(&node)?.region));
        let after = instance.map(|instance| Allocation {
            node: instance.node,
            region: region(instance.node),
            of: self.process_type(instance),
            resources: Resources::of_instance(&instance.spec),
            staying: !instance.is_terminating(),
        });
        let before = self.allocations.get(&id);
        if before
            .zip(after.as_ref())
            .is_some_and(|(before, after)| before.is_as(after))
            || before.is_none() && after.is_none()
        {
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
            None => before.map(|held| held.node),
            Some(_) => None,
        }
    }

    /// Takes notice of a volume as it is now; `None` when it is deleted. It holds its disk until its node has said that the
    /// disk is gone, in use or not. The node on which its disk became free.
    pub fn set_volume(&mut self, id: VolumeId, volume: Option<&Volume>) -> Option<NodeId> {
        let holds = volume.filter(|volume| volume.phase != VolumePhase::Deleted);
        let after = holds.map(|volume| (volume.node, volume.size_bytes));
        if self.volumes.get(&id) == after.as_ref() {
            return None;
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
        before.filter(|_| after.is_none()).map(|(node, _)| node)
    }

    /// Whether a node can take an instance that found none before.
    pub(crate) fn may_take(&self, node: NodeId, unplaced: &Unplaced) -> bool {
        let archs: Vec<&str> = unplaced.archs.iter().map(String::as_str).collect();
        let pinned = unplaced.pinned.as_ref();
        let demand = Demand {
            env: &unplaced.env,
            process: &unplaced.process,
            org: unplaced.org.as_ref(),
            needs: unplaced.needs,
            archs: &archs,
            region: unplaced.region.as_deref(),
            labels: &unplaced.labels,
            protocol: unplaced.protocol,
            pinned: pinned.map(|(node, name)| (*node, name.as_str())),
        };
        pinned.is_none_or(|(pinned, _)| *pinned == node) && self.fits(node, &demand)
    }

    /// The env of an instance that holds something.
    pub(crate) fn env_of(&self, id: InstanceId) -> Option<&EnvKey> {
        self.allocations.get(&id).map(|held| &held.of.as_ref().0)
    }

    /// What is promised on a node.
    pub fn promised(&self, node: NodeId) -> Resources {
        let offer = self.offers.get(&node);
        let overhead = offer.map_or_else(InstanceOverhead::default, |offer| {
            offer.hardware.instance_overhead()
        });
        self.promised.on(node, overhead)
    }

    /// What is promised on every node. A copy costs nothing.
    pub fn promised_index(&self) -> &PromisedIndex {
        &self.promised
    }

    /// Takes notice of a node as it is now; `None` when it was removed. True when it is another than before to whoever
    /// places instances.
    pub fn set_node(&mut self, id: NodeId, node: Option<&Node>) -> bool {
        // One that waits for approval, or was revoked, is none to whoever places instances.
        let node = node.filter(|node| node.is_approved());
        let after = node.map(|node| Offer {
            name: node.name.clone(),
            class: self.class_of(node),
            hardware: node.hardware.clone(),
            region: Arc::from(node.region.as_str()),
            presence: node.presence,
            scheduling: node.scheduling,
            unknown: unknown_of(node),
        });
        if self.offers.get(&id) == after.as_ref() {
            return false;
        }
        let lapsed = |offer: Option<&Offer>| match offer?.presence {
            Presence::Lapsed { since } => Some((since, id)),
            Presence::Heard { .. } | Presence::NotHeardYet => None,
        };
        let (lapsed_before, lapsed_after) = (lapsed(self.offers.get(&id)), lapsed(after.as_ref()));
        let unknown = |offer: Option<&Offer>| offer.map_or_else(Default::default, |o| o.unknown);
        let (unknown_before, unknown_after) =
            (unknown(self.offers.get(&id)), unknown(after.as_ref()));
        if unknown_before != unknown_after {
            self.promise(id, unknown_before.0, unknown_before.1, false);
            self.promise(id, unknown_after.0, unknown_after.1, true);
        }
        let class_before = self.offers.get(&id).map(|offer| offer.class);
        let class_after = after.as_ref().map(|offer| offer.class);
        self.reordered(id, |placement| match after {
            Some(offer) => drop(placement.offers.insert(id, offer)),
            None => drop(placement.offers.remove(&id)),
        });
        if class_before != class_after {
            if let Some(class) = class_after {
                self.classes[class].members += 1;
            }
            if let Some(class) = class_before {
                self.leave_class(class);
            }
        }
        if let Some(before) = lapsed_before {
            self.lapsed.remove(&before);
        }
        self.lapsed.extend(lapsed_after);
        self.lapsed_together = self.find_lapsed_together();
        true
    }

    /// Nodes that lapsed one after the other are given up one after the other: each that has had its grace before the next one lapsed counts no
    /// more. Those that are too many at once wait, and all of them count.
    fn find_lapsed_together(&self) -> Vec<NodeId> {
        let most = self.most_lapsed();
        let mut together: VecDeque<(Timestamp, NodeId)> = VecDeque::new();
        for (since, id) in &self.lapsed {
            let had_grace =
                |first: &(Timestamp, NodeId)| since.millis_since(first.0) >= LOST_AFTER_MS;
            while together.len() <= most && together.front().is_some_and(had_grace) {
                together.pop_front();
            }
            together.push_back((*since, *id));
        }
        together.into_iter().map(|(_, id)| id).collect()
    }

    fn most_lapsed(&self) -> usize {
        (self.offers.len() / 3).max(1)
    }

    /// The nodes that are not heard any more and were not given up before the last one lapsed.
    pub(crate) fn lapsed_together(&self) -> &[NodeId] {
        &self.lapsed_together
    }

    /// The mass-loss brake. So many lapsed nodes at once are no machines that broke, but something between them and this server: nothing
    /// is replaced until fewer are. One node, or up to a third of all, may be lost without it.
    pub fn too_many_lapsed(&self) -> Option<MassLoss> {
        let lapsed = self.lapsed_together.len();
        (lapsed > self.most_lapsed()).then_some(MassLoss {
            lapsed,
            nodes: self.offers.len(),
        })
    }

    /// The env and process type of an instance, shared with the others of the process type.
    fn process_type(&self, instance: &Instance) -> Arc<(EnvKey, ProcessName)> {
        let of = (instance.spec.env_key(), instance.spec.process.clone());
        let known = self.spread.get_key_value(&of);
        known.map_or_else(|| Arc::new(of), |(known, _)| Arc::clone(known))
    }

    /// Adds what an instance holds to what is promised on its node, or takes it away.
    fn count(&mut self, held: &Allocation, add: bool) {
        self.promise(held.node, held.resources, 1, add);
        if !held.staying {
            return;
        }
        let spread = self.spread.entry(Arc::clone(&held.of)).or_default();
        add_to(&mut spread.nodes, held.node, add);
        if let Some(region) = &held.region {
            add_to(&mut spread.regions, Arc::clone(region), add);
        }
        if spread.nodes.is_empty() {
            self.spread.remove(&held.of);
        }
    }

    /// The place of a node's class in `classes`.
    fn class_of(&mut self, node: &Node) -> usize {
        let of_nodes = NodeClass::of(node);
        if let Some(class) = self.class_index.get(&of_nodes) {
            return *class;
        }
        let class = Class::new(of_nodes.clone());
        let place = match self.free_places.pop() {
            Some(place) => {
                self.classes[place] = class;
                place
            }
            None => {
                self.classes.push(class);
                self.classes.len() - 1
            }
        };
        self.class_index.insert(of_nodes, place);
        place
    }

    /// A class that no node is of any more gives its place to the next new one.
    fn leave_class(&mut self, place: usize) {
        let class = &mut self.classes[place];
        class.members -= 1;
        if class.members == 0 {
            self.class_index.remove(&class.of_nodes);
            self.free_places.push(place);
        }
    }

    /// Adds to what is promised on a node, or takes it away.
    fn promise(&mut self, node: NodeId, resources: Resources, instances: u64, add: bool) {
        self.reordered(node, |placement| {
            placement.promised.change(node, |promised| {
                if add {
                    promised.resources.add(resources);
                    promised.instances += instances;
                } else {
                    promised.resources.subtract(resources);
                    promised.instances = promised.instances.saturating_sub(instances);
                }
            });
        });
    }

    /// Changes what is known of a node, and its place in the order in which nodes are asked.
    fn reordered(&mut self, id: NodeId, change: impl FnOnce(&mut Self)) {
        if let Some((class, idle, free)) = self.order(id) {
            self.classes[class].nodes(idle).remove(&free);
        }
        change(self);
        if let Some((class, idle, free)) = self.order(id) {
            self.classes[class].nodes(idle).insert(free);
        }
    }

    /// The class of a node that takes instances, whether it has a processor left, and its place.
    fn order(&self, id: NodeId) -> Option<(usize, bool, FreeMemory)> {
        let offer = self.offers.get(&id)?;
        if offer.refusal().is_some() {
            return None;
        }
        let has = Resources::of_hardware(&offer.hardware);
        let held = (self.promised).on(id, offer.hardware.instance_overhead());
        let memory = has.memory_bytes.saturating_sub(held.memory_bytes);
        let idle = held.cpu_millis < has.cpu_millis;
        Some((offer.class, idle, (memory, id)))
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
        let nowhere = Spread::default();
        let of = (demand.env.clone(), demand.process.clone());
        let hosting = self.spread.get(&of).unwrap_or(&nowhere);
        // What costs least is asked first.
        let fresh = |id: NodeId| !hosting.nodes.contains_key(&id);
        // A node without an instance of this process type, in the region with the fewest; else the one with the fewest.
        let mut classes: Vec<_> = (self.classes.iter())
            .filter(|class| class.of_nodes.refusal(demand).is_none())
            .map(|class| {
                let region = class.of_nodes.region.as_str();
                let count = hosting.regions.get(region).copied().unwrap_or(0);
                ((count, region), class)
            })
            .collect();
        classes.sort_by_key(|(region, _)| *region);
        for classes in classes.chunk_by(|(one, _), (other, _)| one == other) {
            let first = |nodes: fn(&Class) -> &BTreeSet<FreeMemory>,
                         fits: &dyn Fn(NodeId) -> bool| {
                let classes = classes.iter();
                let first = classes.filter_map(|(_, class)| first_of(nodes(class), demand, fits));
                first.min().map(|(_, id)| id)
            };
            let takes = |id: NodeId| fresh(id) && self.fits(id, demand);
            let chosen = first(|class| &class.idle, &|id| {
                fresh(id) && self.leaves_processors(id, demand) && self.fits(id, demand)
            });
            let chosen = chosen.or_else(|| first(|class| &class.idle, &takes));
            let chosen = chosen.or_else(|| first(|class| &class.overcommitted, &takes));
            if let Some(id) = chosen {
                return Ok(id);
            }
        }
        let ranked = (hosting.nodes.iter())
            .filter(|(id, _)| self.fits(**id, demand))
            .map(|(id, count)| {
                let overcommits = !self.leaves_processors(*id, demand);
                (
                    *count,
                    overcommits,
                    self.order(*id).map(|(.., free)| free),
                    *id,
                )
            });
        if let Some((.., id)) = ranked.min() {
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

    fn fits(&self, id: NodeId, demand: &Demand<'_>) -> bool {
        let offer = self.offers.get(&id);
        offer.is_some_and(|offer| self.reason(id, offer, demand).is_none())
    }

    /// Whether an instance asks for no more than what is left of a node's processors.
    fn leaves_processors(&self, id: NodeId, demand: &Demand<'_>) -> bool {
        let offer = self.offers.get(&id);
        let has = offer.map_or(0, |offer| {
            Resources::of_hardware(&offer.hardware).cpu_millis
        });
        let held = self.promised.of(id).resources.cpu_millis;
        held.saturating_add(demand.needs.cpu_millis) <= has
    }

    /// Why a node cannot take an instance.
    fn reason(&self, id: NodeId, offer: &Offer, demand: &Demand<'_>) -> Option<IneligibleReason> {
        const MIB: u64 = 1 << 20;
        let hardware = &offer.hardware;
        if let Some(refusal) = offer.refusal() {
            return Some(refusal);
        }
        if let Some(refusal) = self.classes[offer.class].of_nodes.refusal(demand) {
            return Some(refusal);
        }
        if let (Some(needed), Presence::Heard { protocol, .. }) = (demand.protocol, offer.presence)
            && !needed.is_met_by(protocol)
        {
            return Some(IneligibleReason::Protocol { protocol, needed });
        }
        let overhead = hardware.instance_overhead();
        let (has, held) = (
            Resources::of_hardware(hardware),
            self.promised.on(id, overhead),
        );
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

/// Counts one more, or one less.
fn add_to<K: Ord + Clone>(counts: &mut BTreeMap<K, u32>, key: K, add: bool) {
    let count = counts.entry(key.clone()).or_default();
    *count = if add {
        *count + 1
    } else {
        count.saturating_sub(1)
    };
    if *count == 0 {
        counts.remove(&key);
    }
}

#[cfg(test)]
mod tests;
