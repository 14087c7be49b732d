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
pub(crate) struct Presence(Mutex<BTreeMap<NodeId, Instant>>);

impl Presence {
    /// A server that starts now, with these nodes in its store.
    pub(crate) fn starting(nodes: impl Iterator<Item = NodeId>, now: Instant) -> Self {
        Self(Mutex::new(nodes.map(|node| (node, now)).collect()))
    }

    /// The node reported just now. True when it was not online before.
    pub(crate) fn mark(&self, node: NodeId, now: Instant) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.insert(node, now);
        before.is_none_or(|before| now.duration_since(before) >= ONLINE_WITHIN)
    }

    /// The nodes that reported lately.
    pub(crate) fn online(&self, now: Instant) -> BTreeSet<NodeId> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter()
            .filter(|(_, at)| now.duration_since(**at) < ONLINE_WITHIN)
            .map(|(node, _)| *node)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_node_is_online_for_a_while_after_each_report() {
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let presence = Presence::starting([NodeId(1)].into_iter(), start);
        assert_eq!(presence.online(later(9)), BTreeSet::from([NodeId(1)]));
        assert_eq!(presence.online(later(10)), BTreeSet::new());
        assert!(presence.mark(NodeId(2), later(10)), "it was never seen");
        assert!(!presence.mark(NodeId(2), later(15)), "it was online still");
        assert!(presence.mark(NodeId(1), later(15)), "it is back");
        assert_eq!(
            presence.online(later(16)),
            BTreeSet::from([NodeId(1), NodeId(2)])
        );
    }
}
