//! Log streams: asked of nodes, opened by them, piped to the one who reads.
//!
//! ```text
//! reader: GET logs ----> ask(node) --> the node's queue <--long poll-- node
//!         <-- lines --- channel <------ claim(stream) <------- POST -- node
//! ```
//!
//! One bounded channel per reader carries whole lines of all its nodes, so a slow reader slows the
//! nodes' connections down and nothing piles up here. When the reader leaves, the channel closes,
//! and with it every node's POST is answered at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use contract::api::{LogsWanted, StreamRequest};
use contract::{InstanceId, NodeId, Timestamp};
use identity::KeyError;
use tokio::sync::{Notify, mpsc};

use crate::limits::MAX_WAITING_STREAMS;

/// Whole lines on their way to a reader.
pub(crate) type Lines = mpsc::Sender<Bytes>;

/// Why a node was not asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// It has not opened those asked for before.
    #[error("{0} has {MAX_WAITING_STREAMS} streams to open already")]
    Busy(NodeId),
    /// There is no randomness for its id.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// One stream, asked for or open. However it ends, its reader is told once, by its drop.
#[derive(Debug)]
pub(crate) struct Open {
    /// Where its lines go.
    pub(crate) lines: Lines,
    /// How far it is, for whoever asked.
    pub(crate) end: Ended,
    /// Who asked. The queue is bounded by the streams that were asked for: each sends once.
    ended: mpsc::UnboundedSender<Ended>,
}

/// How a stream ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    /// The node it was asked of.
    pub(crate) node: NodeId,
    /// The instances whose lines were wanted.
    pub(crate) instances: BTreeSet<InstanceId>,
    /// The time of the last line that came.
    pub(crate) last: Option<Timestamp>,
    /// Whether the node opened it at all.
    pub(crate) opened: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        // A reader that left needs to be told nothing.
        let _ = self.ended.send(self.end.clone());
    }
}

#[derive(Debug, Default)]
struct Queue {
    requests: VecDeque<StreamRequest>,
    filled: Arc<Notify>,
}

/// Every stream that is asked for.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    queues: Mutex<BTreeMap<NodeId, Queue>>,
    /// Those that are not open yet.
    waiting: Mutex<BTreeMap<String, Open>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Streams {
    /// Asks a node to open a stream; gives its id. `ended` is told when it has ended, once, if this
    /// succeeds.
    pub(crate) fn ask(
        &self,
        node: NodeId,
        wanted: LogsWanted,
        lines: Lines,
        ended: mpsc::UnboundedSender<Ended>,
    ) -> Result<String, AskError> {
        let id = u64::from_le_bytes(identity::random("a stream's id")?);
        let stream = format!("{id:016x}");
        let mut queues = lock(&self.queues);
        let queue = queues.entry(node).or_default();
        if queue.requests.len() >= MAX_WAITING_STREAMS {
            return Err(AskError::Busy(node));
        }
        let open = Open {
            lines,
            end: Ended {
                node,
                instances: wanted.instances.iter().copied().collect(),
                last: None,
                opened: false,
            },
            ended,
        };
        lock(&self.waiting).insert(stream.clone(), open);
        queue.requests.push_back(StreamRequest {
            stream: stream.clone(),
            wanted,
        });
        queue.filled.notify_one();
        Ok(stream)
    }

    /// Takes back what was asked for, if the node has not opened it by now.
    pub(crate) fn give_up(&self, node: NodeId, stream: &str) {
        if let Some(queue) = lock(&self.queues).get_mut(&node) {
            queue.requests.retain(|request| request.stream != stream);
        }
        lock(&self.waiting).remove(stream);
    }

    /// What a node is to open; empty when nothing was asked for within `wait`.
    pub(crate) async fn requests(&self, node: NodeId, wait: Duration) -> Vec<StreamRequest> {
        let waiting = async {
            loop {
                let filled = {
                    let mut queues = lock(&self.queues);
                    let queue = queues.entry(node).or_default();
                    if !queue.requests.is_empty() {
                        return queue.requests.drain(..).collect();
                    }
                    Arc::clone(&queue.filled)
                };
                filled.notified().await;
            }
        };
        tokio::time::timeout(wait, waiting)
            .await
            .unwrap_or_default()
    }

    /// The stream that a node opens; absent when it was not asked of this node, or given up.
    pub(crate) fn claim(&self, node: NodeId, stream: &str) -> Option<Open> {
        let mut waiting = lock(&self.waiting);
        if waiting.get(stream)?.end.node != node {
            return None;
        }
        let mut open = waiting.remove(stream)?;
        open.end.opened = true;
        Some(open)
    }
}
