//! Why nodes cannot take an instance.

use std::collections::BTreeMap;

use model::NodeId;

use super::demand::CPU_OVERCOMMIT;
use crate::node_protocol::NeededProtocol;

/// Why one node cannot take an instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IneligibleReason {
    /// It does not report any more.
    #[error("it is offline")]
    Offline,
    /// It has not reported since this server began to lead.
    #[error("it has not reported yet since the server started")]
    NotHeardYet,
    /// A user cordoned it.
    #[error("it is cordoned")]
    Cordoned,
    /// A user drains it.
    #[error("it is being drained")]
    Draining,
    /// It runs the apps of one org only, and the app is another's. Which one is told to nobody who cannot see nodes.
    #[error("it runs the apps of another org only")]
    Org,
    /// The image has nothing for it.
    #[error("it is {arch}, the image is for {has}")]
    Architecture {
        /// The node's.
        arch: String,
        /// The image's.
        has: String,
    },
    /// It is in another region.
    #[error("it is in the region {is}, not in {wanted}")]
    Region {
        /// The node's.
        is: String,
        /// The process type's.
        wanted: String,
    },
    /// It lacks a label.
    #[error("it does not have the label {wanted}{}", other_value(has.as_deref()))]
    Label {
        /// The process type's, `key=value`.
        wanted: String,
        /// The value that the node has for the key.
        has: Option<String>,
    },
    /// Its agent is of a version that would ignore something of the instance.
    #[error(
        "its agent is too old for {} (protocol version {protocol}, and {} is needed): upgrade `platform` on it",
        needed.what, needed.version
    )]
    Protocol {
        /// The node's.
        protocol: u32,
        /// What the instance needs.
        needed: NeededProtocol,
    },
    /// Instances ask for as much CPU as it gives.
    #[error(
        "{promised} of {most} CPU are asked for already ({CPU_OVERCOMMIT} times its processors), {wanted} more are needed"
    )]
    Cpu {
        /// What its instances ask for.
        promised: Cpu,
        /// What they may ask for.
        most: Cpu,
        /// What this one asks for.
        wanted: Cpu,
    },
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

impl IneligibleReason {
    /// What nodes that cannot take an instance for this reason have in common. The order is the one in which they are shown.
    fn kind(&self) -> &'static str {
        match self {
            Self::Memory { .. } => "are short of memory",
            Self::Disk(_) => "are short of disk",
            Self::Cpu { .. } => "are short of CPU",
            Self::Org => "run the apps of another org only",
            Self::Region { .. } => "are in another region",
            Self::Label { .. } => "do not have the labels",
            Self::Architecture { .. } => "have another architecture",
            Self::Protocol { .. } => "have an agent that is too old",
            Self::Draining => "are being drained",
            Self::Cordoned => "are cordoned",
            Self::NotHeardYet => "have not reported yet since the server started",
            Self::Offline => "are offline",
        }
    }
}

/// A number of processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    /// In thousandths.
    pub millis: u64,
}

impl std::fmt::Display for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whole, part) = (self.millis / 1000, self.millis % 1000);
        match part {
            0 => write!(f, "{whole}"),
            part => write!(f, "{whole}.{}", format!("{part:03}").trim_end_matches('0')),
        }
    }
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
    pub(super) fn of(wanted: u64, promised: u64, total: u64) -> Option<Self> {
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

fn other_value(has: Option<&str>) -> String {
    has.map_or_else(String::new, |has| format!(", but {has} for it"))
}

fn of_its_vmm(overhead_mib: u64) -> String {
    match overhead_mib {
        0 => String::new(),
        mib => format!(", {mib} of them for its VMM"),
    }
}

/// Nodes of one kind of reason that are shown each for itself; the others are counted.
pub const EXAMPLES: usize = 3;

/// The nodes that cannot take an instance for one kind of reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ineligible {
    /// How many there are.
    pub count: usize,
    /// The first [`EXAMPLES`] of them: id, name, and why.
    pub examples: Vec<(NodeId, String, IneligibleReason)>,
}

/// No node can take an instance, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementError {
    /// The nodes that were asked, by what they have in common.
    pub reasons: BTreeMap<&'static str, Ineligible>,
    /// The only node that was asked, because one of its volumes, with this name, is there.
    pub pinned: Option<(NodeId, String)>,
}

impl PlacementError {
    pub(super) fn new(pinned: Option<(NodeId, String)>) -> Self {
        Self {
            reasons: BTreeMap::new(),
            pinned,
        }
    }

    pub(super) fn add(&mut self, node: NodeId, name: &str, reason: IneligibleReason) {
        let alike = self.reasons.entry(reason.kind()).or_default();
        alike.count += 1;
        if alike.examples.len() < EXAMPLES {
            alike.examples.push((node, name.to_owned(), reason));
        }
    }

    /// Whether some node cannot take the instance because of what the release asks for, and none may still turn up that can.
    pub fn is_the_fault_of_the_release(&self) -> bool {
        let examples = || self.reasons.values().flat_map(|alike| &alike.examples);
        let mut reasons = examples().map(|(_, _, reason)| reason);
        let is_early = examples().any(|(_, _, reason)| *reason == IneligibleReason::NotHeardYet);
        let asks_too_much = reasons.any(|reason| match reason {
            IneligibleReason::Offline
            | IneligibleReason::NotHeardYet
            | IneligibleReason::Cordoned
            | IneligibleReason::Draining
            | IneligibleReason::Org
            | IneligibleReason::Protocol { .. } => false,
            IneligibleReason::Architecture { .. }
            | IneligibleReason::Region { .. }
            | IneligibleReason::Label { .. }
            | IneligibleReason::Cpu { .. }
            | IneligibleReason::Memory { .. }
            | IneligibleReason::Disk(_) => true,
        });
        asks_too_much && !is_early
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
                return f.write_str("there is no node yet; add one with `platform node join`");
            }
            None => f.write_str("no node can take it")?,
        }
        let mut mark = ':';
        for (kind, alike) in &self.reasons {
            for (id, name, reason) in &alike.examples {
                write!(f, "{mark} {name} ({id}): {reason}")?;
                mark = ';';
            }
            let others = alike.count.saturating_sub(alike.examples.len());
            if others > 0 {
                write!(f, "{mark} {others} more {kind}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for PlacementError {}
