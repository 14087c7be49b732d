//! Nodes that are alike, and which of them is asked first.

use std::collections::{BTreeMap, BTreeSet};

use model::{LabelKey, LabelValue, NodeId, OrgName};

use super::demand::Demand;
use super::reasons::IneligibleReason;
use crate::cluster_state::Node;

/// So many nodes are passed over, from the fullest on, before the emptiest are asked: most of a large process type's nodes have one of its
/// instances already.
const MAX_PASSED_OVER: usize = 64;

/// What decides over every node that has it in the same way, whatever is promised there: it is asked once for all of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeClass {
    pub(super) region: String,
    arch: String,
    labels: BTreeMap<LabelKey, LabelValue>,
    org: Option<OrgName>,
}

impl NodeClass {
    pub(super) fn of(node: &Node) -> Self {
        Self {
            region: node.region.clone(),
            arch: node.hardware.arch.clone(),
            labels: node.labels.clone(),
            org: node.org.clone(),
        }
    }

    fn label(&self, key: &str) -> Option<&LabelValue> {
        let mut labels = self.labels.iter();
        labels
            .find(|(has, _)| has.as_str() == key)
            .map(|(_, value)| value)
    }

    /// Why no node of the class takes the instance.
    pub(super) fn refusal(&self, demand: &Demand<'_>) -> Option<IneligibleReason> {
        if self.org.is_some() && self.org.as_ref() != demand.org {
            return Some(IneligibleReason::Org);
        }
        if !demand.archs.contains(&self.arch.as_str()) {
            return Some(IneligibleReason::Architecture {
                arch: self.arch.clone(),
                has: demand.archs.join(", "),
            });
        }
        if let Some(wanted) = demand.region.filter(|wanted| *wanted != self.region) {
            return Some(IneligibleReason::Region {
                is: self.region.clone(),
                wanted: wanted.to_owned(),
            });
        }
        let has = |key: &str, value: &str| self.label(key).is_some_and(|has| has.as_str() == value);
        let mut lacking = (demand.labels.iter()).filter(|(key, value)| !has(key, value));
        let (key, value) = lacking.next()?;
        Some(IneligibleReason::Label {
            wanted: format!("{key}={value}"),
            has: self.label(key).map(ToString::to_string),
        })
    }
}

/// The memory that a node has free, in bytes: the order in which nodes are asked.
pub(super) type FreeMemory = (u64, NodeId);

/// The nodes of a class that take instances, the fullest first.
#[derive(Debug, Clone)]
pub(super) struct Class {
    pub(super) of_nodes: NodeClass,
    /// How many nodes are of it, those too that take nothing.
    pub(super) members: usize,
    /// Those that have a processor, or a part of one, that nobody asked for.
    pub(super) idle: BTreeSet<FreeMemory>,
    /// The others.
    pub(super) overcommitted: BTreeSet<FreeMemory>,
}

impl Class {
    pub(super) fn new(of_nodes: NodeClass) -> Self {
        Self {
            of_nodes,
            members: 0,
            idle: BTreeSet::new(),
            overcommitted: BTreeSet::new(),
        }
    }

    /// The nodes that have a processor left, or those that do not.
    pub(super) fn nodes(&mut self, idle: bool) -> &mut BTreeSet<FreeMemory> {
        if idle {
            &mut self.idle
        } else {
            &mut self.overcommitted
        }
    }
}

/// The fullest of these nodes that fits. Where many are passed over, the emptiest that fits.
pub(super) fn first_of(
    nodes: &BTreeSet<FreeMemory>,
    demand: &Demand<'_>,
    fits: &dyn Fn(NodeId) -> bool,
) -> Option<FreeMemory> {
    let least = (demand.needs.memory_bytes, NodeId(0));
    let mut nodes = nodes.range(least..).copied();
    let near = (nodes.by_ref().take(MAX_PASSED_OVER)).find(|(_, id)| fits(*id));
    // Those that were passed over are not asked again.
    near.or_else(|| nodes.rev().find(|(_, id)| fits(*id)))
}
