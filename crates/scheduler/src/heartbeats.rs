//! When nodes were last heard, and which of them are not any more.
//!
//! Times are since any fixed moment, by a clock that cannot jump. A server that begins to lead has heard nobody: each node has
//! [`FIRST_HEARD_WITHIN`] to report before it lapses, then [`HEARD_WITHIN`] from report to report.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::NodeId;

/// A node is heard for this long after each report.
pub const HEARD_WITHIN: Duration = Duration::from_secs(10);
/// How long a node may take until it first reports, after a server began to lead or the node enrolled: it waits up to half of
/// that between two attempts to reach a server.
pub const FIRST_HEARD_WITHIN: Duration = Duration::from_secs(60);

/// When each node lapses.
#[derive(Debug, Clone, Default)]
pub struct Heartbeats {
    lapses_at: BTreeMap<NodeId, Duration>,
    /// The same, the next first.
    order: BTreeSet<(Duration, NodeId)>,
}

impl Heartbeats {
    /// A server that begins to lead now, with these nodes.
    pub fn starting(nodes: impl Iterator<Item = NodeId>, now: Duration) -> Self {
        let mut heartbeats = Self::default();
        for node in nodes {
            heartbeats.expect(node, now);
        }
        heartbeats
    }

    /// A node enrolled, and is to report for the first time.
    pub fn expect(&mut self, node: NodeId, now: Duration) {
        self.set(node, now.saturating_add(FIRST_HEARD_WITHIN));
    }

    /// The node reported just now.
    pub fn reported(&mut self, node: NodeId, now: Duration) {
        self.set(node, now.saturating_add(HEARD_WITHIN));
    }

    /// The nodes that lapsed, each once until it reports again.
    pub fn lapsed(&mut self, now: Duration) -> Vec<NodeId> {
        let mut lapsed = Vec::new();
        while let Some((at, node)) = self.order.first().copied()
            && at <= now
        {
            self.order.pop_first();
            self.lapses_at.remove(&node);
            lapsed.push(node);
        }
        lapsed
    }

    fn set(&mut self, node: NodeId, at: Duration) {
        if let Some(before) = self.lapses_at.insert(node, at) {
            self.order.remove(&(before, node));
        }
        self.order.insert((at, node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_lapses_once_until_it_is_heard_again() {
        let s = Duration::from_secs;
        let (one, two) = (NodeId(1), NodeId(2));
        let mut heartbeats = Heartbeats::starting([one, two].into_iter(), s(0));
        // A server that begins to lead gives all the time to turn up.
        heartbeats.reported(two, s(2));
        assert_eq!(heartbeats.lapsed(s(11)), []);
        assert_eq!(heartbeats.lapsed(s(12)), [two]);
        assert_eq!(heartbeats.lapsed(s(59)), []);
        assert_eq!(heartbeats.lapsed(s(60)), [one]);
        assert_eq!(heartbeats.lapsed(s(600)), []);
        heartbeats.reported(one, s(601));
        heartbeats.reported(one, s(605));
        assert_eq!(heartbeats.lapsed(s(614)), []);
        assert_eq!(heartbeats.lapsed(s(615)), [one]);
    }
}
