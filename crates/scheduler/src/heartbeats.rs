//! When nodes were last heard, and which of them are not any more.
//!
//! Times are since any fixed moment, by a clock that cannot jump. A server that begins to lead has heard nobody: each node has
//! [`FIRST_HEARD_WITHIN`] to report before it lapses, then [`heard_within`] from report to report.
//!
//! How often a node reports where nothing changes depends on how many there are ([`heartbeat_interval`]), as in Nomad
//! (`max_heartbeats_per_second`): signs of life cost a server the same however many nodes it has. The answer to a report names the interval, and
//! the node has that much time and more from this report on. So a change of the interval makes no node lapse.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::NodeId;

/// A node reports this often where nothing changes, in a cluster of up to 3,000 nodes.
pub const LEAST_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(3);
/// And this often at least, in one of any size: the loss of a node is to be noticed.
pub const MOST_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// Signs of life that a server takes in a second, as long as [`MOST_HEARTBEAT_INTERVAL`] allows it.
const HEARTBEATS_PER_SECOND: usize = 1_000;
/// How long a node may take until it first reports, after a server began to lead or the node enrolled: it waits up to half of
/// that between two attempts to reach a server.
pub const FIRST_HEARD_WITHIN: Duration = Duration::from_secs(60);

/// How often each of so many nodes is to report where nothing changes.
pub fn heartbeat_interval(nodes: usize) -> Duration {
    let millis = nodes.saturating_mul(1_000) / HEARTBEATS_PER_SECOND;
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
        .clamp(LEAST_HEARTBEAT_INTERVAL, MOST_HEARTBEAT_INTERVAL)
}

/// How long a node is heard after a report whose answer asked it to report that often: three reports may be lost, or late. 10 s in
/// a cluster of up to 3,000 nodes.
pub fn heard_within(heartbeat_interval: Duration) -> Duration {
    heartbeat_interval * 10 / 3
}

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

    /// The node reported just now, and is asked to do so that often.
    pub fn reported(&mut self, node: NodeId, heartbeat_interval: Duration, now: Duration) {
        self.set(node, now.saturating_add(heard_within(heartbeat_interval)));
    }

    /// Whether the node has reported, or has time to.
    pub fn is_heard(&self, node: NodeId, now: Duration) -> bool {
        self.lapses_at.get(&node).is_some_and(|at| *at > now)
    }

    /// How many nodes have reported, or have time to; those that are overdue until it is known that they lapsed are among them.
    pub fn online(&self) -> usize {
        self.lapses_at.len()
    }

    /// The nodes whose reports are overdue, until it is known that they lapsed ([`Self::lapse`]).
    pub fn overdue(&self, now: Duration) -> Vec<NodeId> {
        let due = self.order.iter().take_while(|(at, _)| *at <= now);
        due.map(|(_, node)| *node).collect()
    }

    /// It is known now that the node lapsed; nothing, where it has reported meanwhile.
    pub fn lapse(&mut self, node: NodeId, now: Duration) {
        if let Some(at) = self.lapses_at.get(&node).copied()
            && at <= now
        {
            self.lapses_at.remove(&node);
            self.order.remove(&(at, node));
        }
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

    /// What lapsed, when everybody takes notice at once.
    fn lapsed(heartbeats: &mut Heartbeats, now: Duration) -> Vec<NodeId> {
        let overdue = heartbeats.overdue(now);
        for node in &overdue {
            heartbeats.lapse(*node, now);
        }
        overdue
    }

    #[test]
    fn a_node_lapses_once_until_it_is_heard_again() {
        let s = Duration::from_secs;
        let (one, two) = (NodeId(1), NodeId(2));
        let mut heartbeats = Heartbeats::starting([one, two].into_iter(), s(0));
        // A server that begins to lead gives all the time to turn up.
        heartbeats.reported(two, s(3), s(2));
        assert_eq!(lapsed(&mut heartbeats, s(11)), []);
        assert_eq!(lapsed(&mut heartbeats, s(12)), [two]);
        assert_eq!(lapsed(&mut heartbeats, s(59)), []);
        assert_eq!(lapsed(&mut heartbeats, s(60)), [one]);
        assert_eq!(lapsed(&mut heartbeats, s(600)), []);
        heartbeats.reported(one, s(3), s(601));
        heartbeats.reported(one, s(3), s(605));
        assert!(heartbeats.is_heard(one, s(614)) && !heartbeats.is_heard(two, s(614)));
        assert_eq!(heartbeats.online(), 1);
        assert_eq!(lapsed(&mut heartbeats, s(614)), []);
        assert!(!heartbeats.is_heard(one, s(615)));
        assert_eq!(lapsed(&mut heartbeats, s(615)), [one]);
    }

    #[test]
    fn a_node_is_overdue_until_that_is_known() {
        let s = Duration::from_secs;
        let mut heartbeats = Heartbeats::default();
        heartbeats.reported(NodeId(1), s(3), s(0));
        for now in 10..13 {
            assert_eq!(heartbeats.overdue(s(now)), [NodeId(1)]);
        }
        // It reported before that was known.
        heartbeats.reported(NodeId(1), s(3), s(13));
        heartbeats.lapse(NodeId(1), s(13));
        assert_eq!(heartbeats.overdue(s(23)), [NodeId(1)]);
        heartbeats.lapse(NodeId(1), s(23));
        assert_eq!(heartbeats.overdue(s(33)), []);
    }

    #[test]
    fn many_nodes_report_less_often_and_have_the_time_for_it() {
        let s = Duration::from_secs;
        for (nodes, interval, heard) in [
            (0, 3_000, 10_000),
            (3_000, 3_000, 10_000),
            (5_000, 5_000, 16_666),
            (10_000, 10_000, 33_333),
            (usize::MAX, 10_000, 33_333),
        ] {
            let asked = heartbeat_interval(nodes);
            assert_eq!(asked.as_millis(), interval, "{nodes}");
            assert_eq!(heard_within(asked).as_millis(), heard, "{nodes}");
        }
        // A node that was asked to take its time has it, also when nodes leave meanwhile.
        let mut heartbeats = Heartbeats::default();
        heartbeats.reported(NodeId(1), s(10), s(0));
        assert!(heartbeats.is_heard(NodeId(1), s(33)));
        heartbeats.reported(NodeId(1), s(3), s(33));
        assert_eq!(heartbeats.overdue(s(43)), [NodeId(1)]);
    }
}
