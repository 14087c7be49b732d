//! Which nodes reported lately, by a monotonic clock.
//!
//! It is kept in memory only. A server that has just started knows nothing of the time before, and
//! takes every node for online until it could have reported: a restart of the server does not mean that every node is
//! lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use model::NodeId;

use crate::limits::ONLINE_WITHIN;

/// When each node last reported.
#[derive(Debug)]
pub(crate) struct Presence(Mutex<Heard>);

#[derive(Debug, Default)]
struct Heard {
    at: BTreeMap<NodeId, Instant>,
    /// The same, the one that was not heard for longest first.
    order: BTreeSet<(Instant, NodeId)>,
}

impl Presence {
    /// A server that starts now, with these nodes in its store.
    pub(crate) fn starting(nodes: impl Iterator<Item = NodeId>, now: Instant) -> Self {
        let presence = Self(Mutex::default());
        for node in nodes {
            presence.mark(node, now);
        }
        presence
    }

    /// The node reported just now.
    pub(crate) fn mark(&self, node: NodeId, now: Instant) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = heard.at.insert(node, now) {
            heard.order.remove(&(before, node));
        }
        heard.order.insert((now, node));
    }

    /// The nodes that have not reported lately, each once until it reports again.
    pub(crate) fn lapsed(&self, now: Instant) -> Vec<NodeId> {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lapsed = Vec::new();
        while let Some((at, node)) = heard.order.first().copied()
            && now.duration_since(at) >= ONLINE_WITHIN
        {
            heard.order.pop_first();
            heard.at.remove(&node);
            lapsed.push(node);
        }
        lapsed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_node_lapses_once_when_it_does_not_report_for_a_while() {
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let presence = Presence::starting([NodeId(1), NodeId(2)].into_iter(), start);
        assert_eq!(presence.lapsed(later(9)), []);
        presence.mark(NodeId(2), later(5));
        assert_eq!(presence.lapsed(later(10)), [NodeId(1)]);
        assert_eq!(presence.lapsed(later(11)), []);
        presence.mark(NodeId(1), later(12));
        assert_eq!(presence.lapsed(later(15)), [NodeId(2)]);
        assert_eq!(presence.lapsed(later(22)), [NodeId(1)]);
    }
}
