//! Which nodes reported lately, by a monotonic clock. It is kept in memory only.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::{NodeId, Timestamp};
use scheduler::heartbeats::Heartbeats;

use crate::clock::now;

/// When each node last reported.
#[derive(Debug)]
pub(crate) struct Presence {
    began: Instant,
    heartbeats: Mutex<Heartbeats>,
    /// By the wall clock, for people.
    seen: Mutex<BTreeMap<NodeId, Timestamp>>,
}

impl Presence {
    /// A server that begins to lead now, with these nodes in its store.
    pub(crate) fn starting(nodes: impl Iterator<Item = NodeId>) -> Self {
        Self {
            began: Instant::now(),
            heartbeats: Mutex::new(Heartbeats::starting(nodes, Duration::ZERO)),
            seen: Mutex::default(),
        }
    }

    /// The node enrolled just now.
    pub(crate) fn expect(&self, node: NodeId) {
        self.lock().expect(node, self.began.elapsed());
    }

    /// The node reported just now, and is asked to do so that often.
    pub(crate) fn reported(&self, node: NodeId, heartbeat_interval: Duration) {
        let at = self.began.elapsed();
        self.lock().reported(node, heartbeat_interval, at);
        self.seen().insert(node, now());
    }

    /// When the node last reported in this term.
    pub(crate) fn seen_at(&self, node: NodeId) -> Option<Timestamp> {
        self.seen().get(&node).copied()
    }

    /// Whether the node has reported lately, or has time to.
    pub(crate) fn is_heard(&self, node: NodeId) -> bool {
        self.lock().is_heard(node, self.began.elapsed())
    }

    /// How many nodes have reported lately, or have time to.
    pub(crate) fn online(&self) -> usize {
        self.lock().online()
    }

    /// The nodes that have not reported lately, until it is known that they lapsed.
    pub(crate) fn overdue(&self) -> Vec<NodeId> {
        self.lock().overdue(self.began.elapsed())
    }

    /// It is known, and published, that the node lapsed.
    pub(crate) fn lapse(&self, node: NodeId) {
        self.lock().lapse(node, self.began.elapsed());
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<NodeId, Timestamp>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Heartbeats> {
        self.heartbeats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
