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

    /// The node reported just now.
    pub(crate) fn reported(&self, node: NodeId) {
        self.lock().reported(node, self.began.elapsed());
        self.seen().insert(node, now());
    }

    /// When the node last reported in this term.
    pub(crate) fn seen_at(&self, node: NodeId) -> Option<Timestamp> {
        self.seen().get(&node).copied()
    }

    /// The nodes that have not reported lately, each once until it reports again.
    pub(crate) fn lapsed(&self) -> Vec<NodeId> {
        self.lock().lapsed(self.began.elapsed())
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
