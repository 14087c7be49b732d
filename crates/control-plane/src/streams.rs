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
use contract::{InstanceId, NodeId};
use identity::KeyError;
use tokio::sync::{Notify, mpsc};

use crate::limits::{MAX_WAITING_STREAMS, STREAM_OPEN_TIMEOUT};

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

/// A stream that was asked for and not opened yet.
#[derive(Debug)]
struct Waiting {
    node: NodeId,
    stream: Open,
}

/// A stream that a node has opened.
#[derive(Debug)]
pub(crate) struct Open {
    /// Where its lines go.
    pub(crate) lines: Lines,
    /// The instances whose lines may be in it.
    pub(crate) instances: BTreeSet<InstanceId>,
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
    waiting: Mutex<BTreeMap<String, Waiting>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Streams {
    /// Asks a node to open a stream; gives its id.
    pub(crate) fn ask(
        &self,
        node: NodeId,
        wanted: LogsWanted,
        lines: Lines,
    ) -> Result<String, AskError> {
        let id = u64::from_le_bytes(identity::random("a stream's id")?);
        let stream = format!("{id:016x}");
        let instances = wanted.instances.iter().copied().collect();
        let mut queues = lock(&self.queues);
        let queue = queues.entry(node).or_default();
        if queue.requests.len() >= MAX_WAITING_STREAMS {
            return Err(AskError::Busy(node));
        }
        let waiting = Waiting {
            node,
            stream: Open { lines, instances },
        };
        lock(&self.waiting).insert(stream.clone(), waiting);
        queue.requests.push_back(StreamRequest {
            stream: stream.clone(),
            wanted,
        });
        queue.filled.notify_one();
        Ok(stream)
    }

    /// Takes back what was asked for, if the node has not opened it within
    /// [`STREAM_OPEN_TIMEOUT`]. True when it had not.
    pub(crate) async fn give_up(&self, node: NodeId, stream: &str) -> bool {
        tokio::time::sleep(STREAM_OPEN_TIMEOUT).await;
        if let Some(queue) = lock(&self.queues).get_mut(&node) {
            queue.requests.retain(|request| request.stream != stream);
        }
        lock(&self.waiting).remove(stream).is_some()
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
        if waiting.get(stream)?.node != node {
            return None;
        }
        waiting.remove(stream).map(|waiting| waiting.stream)
    }
}
