//! What an instance asks for.

use std::collections::BTreeMap;

use api::enrollment::{Hardware, InstanceOverhead};
use model::instance::InstanceSpec;
use model::{EnvKey, NodeId, OrgName, ProcessName};

use crate::cluster_state::CountedAs;
use crate::node_protocol::NeededProtocol;

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
    pub(super) fn of_instance(spec: &InstanceSpec) -> Self {
        Self {
            cpu_millis: u64::from(spec.cpu_millis),
            memory_bytes: spec.memory_bytes,
            disk_bytes: spec.scratch_bytes,
        }
    }

    /// What is counted for an unreadable record.
    pub(super) fn of_held(held: CountedAs) -> Self {
        Self {
            cpu_millis: held.cpu_millis,
            memory_bytes: held.memory_bytes,
            disk_bytes: held.disk_bytes,
        }
    }

    /// What instances may have of a machine.
    pub(super) fn of_hardware(hardware: &Hardware) -> Self {
        Self {
            cpu_millis: u64::from(hardware.cpus) * 1000,
            memory_bytes: hardware.memory_bytes,
            disk_bytes: hardware
                .disk
                .map_or(u64::MAX, |disk| disk.instances_bytes()),
        }
    }

    /// With what so many instances cost beside their specs.
    pub(super) fn with(self, overhead: InstanceOverhead, instances: u64) -> Self {
        let memory = overhead.memory_bytes.saturating_mul(instances);
        let disk = overhead.disk_bytes.saturating_mul(instances);
        Self {
            cpu_millis: self.cpu_millis,
            memory_bytes: self.memory_bytes.saturating_add(memory),
            disk_bytes: self.disk_bytes.saturating_add(disk),
        }
    }

    pub(super) fn subtract(&mut self, other: Self) {
        self.cpu_millis = self.cpu_millis.saturating_sub(other.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_sub(other.memory_bytes);
        self.disk_bytes = self.disk_bytes.saturating_sub(other.disk_bytes);
    }

    pub(super) fn add(&mut self, other: Self) {
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
    /// The org that owns the app; absent: nobody does.
    pub org: Option<&'a OrgName>,
    /// What it needs, wherever it goes: its scratch disk and the volumes that are still to be made.
    pub needs: Resources,
    /// The architectures that the release has an image for.
    pub archs: &'a [&'a str],
    /// The region that it is to be in; absent: any.
    pub region: Option<&'a str>,
    /// The labels that its node must have.
    pub labels: &'a BTreeMap<String, String>,
    /// What its node's agent must be able to do; absent: what all are.
    pub protocol: Option<NeededProtocol>,
    /// The node that its volumes are on, and the name of one of them.
    pub pinned: Option<(NodeId, &'a str)>,
}

/// An instance that found no node, kept so that it is asked for again when one may take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unplaced {
    pub(super) env: EnvKey,
    pub(super) process: ProcessName,
    pub(super) org: Option<OrgName>,
    pub(super) needs: Resources,
    pub(super) archs: Vec<String>,
    pub(super) region: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) protocol: Option<NeededProtocol>,
    pub(super) pinned: Option<(NodeId, String)>,
}

impl Unplaced {
    /// Whether its volumes are on this node, so that it goes nowhere else.
    pub(crate) fn is_pinned_to(&self, node: NodeId) -> bool {
        self.pinned
            .as_ref()
            .is_some_and(|(pinned, _)| *pinned == node)
    }

    pub(crate) fn of(demand: &Demand<'_>) -> Self {
        Self {
            env: demand.env.clone(),
            process: demand.process.clone(),
            org: demand.org.cloned(),
            needs: demand.needs,
            archs: demand.archs.iter().map(|arch| (*arch).to_owned()).collect(),
            region: demand.region.map(str::to_owned),
            labels: demand.labels.clone(),
            protocol: demand.protocol,
            pinned: demand.pinned.map(|(node, name)| (node, name.to_owned())),
        }
    }
}
