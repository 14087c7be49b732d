//! Streams: asked of nodes, opened by them, joined to the caller that wants them.
//!
//! ```text
//! reader: GET logs ----> request(node) --> the node's queue <--long poll-- node
//!         <-- lines --- channel <------ claim(stream) <------- POST -- node
//! ```
//!
//! The same goes for a command's streams ([`Waiting::Exec`]: the node's GET is upgraded and joined to
//! the user's connection) and with calls that have one answer ([`Waiting::Answer`]).
//!
//! Logs: one bounded channel per reader carries whole lines of all its nodes, so a slow reader slows the
//! nodes' connections down and nothing piles up here. When the reader leaves, the channel closes,
//! and with it every node's POST is answered at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::node::{LogsWanted, StreamRefused, StreamRequest, StreamWanted};
use bytes::Bytes;
use hyper::upgrade::Upgraded;
use identity::KeyError;
use model::{InstanceId, NodeId, Timestamp};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

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

/// What a stream that was asked for is joined to when its node opens it.
#[derive(Debug)]
pub(crate) enum Waiting {
    /// A reader of logs.
    Logs(Open),
    /// A user's command, or a connection of theirs.
    Exec(oneshot::Sender<Answered<Upgraded>>),
    /// A call that waits for its answer.
    Answer(oneshot::Sender<Answered<Bytes>>),
}

/// What a node opened, or why it refused.
pub(crate) type Answered<T> = Result<T, StreamRefused>;

/// One stream of logs, asked for or open. However it ends, its reader is told once, by its drop.
#[derive(Debug)]
pub(crate) struct Open {
    /// Where its lines go.
    pub(crate) lines: Lines,
    /// Cancelled when its reader has all it wanted, while the node may still have lines to come.
    pub(crate) over: CancellationToken,
    /// How far it is, for its reader.
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
    /// Why the node refused to, for people.
    pub(crate) refused: Option<String>,
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

/// A stream that somebody waits for ([`Streams::take_back_on_drop`]).
#[derive(Debug)]
pub(crate) struct TakeBack<'s> {
    streams: &'s Streams,
    node: NodeId,
    stream: &'s str,
}

impl Drop for TakeBack<'_> {
    fn drop(&mut self) {
        self.streams.give_up(self.node, self.stream);
    }
}

/// Every stream that is asked for.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    queues: Mutex<BTreeMap<NodeId, Queue>>,
    /// Those that are not open yet.
    waiting: Mutex<BTreeMap<String, (NodeId, Waiting)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Streams {
    /// Asks a node for log lines; gives the stream's id. `ended` is told when it has ended, once, if
    /// this succeeds.
    pub(crate) fn ask_for_logs(
        &self,
        node: NodeId,
        wanted: LogsWanted,
        lines: Lines,
        over: CancellationToken,
        ended: mpsc::UnboundedSender<Ended>,
    ) -> Result<String, AskError> {
        let instances = wanted.instances.iter().copied().collect();
        let open = || {
            let end = Ended {
                node,
                instances,
                last: None,
                opened: false,
                refused: None,
            };
            Waiting::Logs(Open {
                lines,
                over,
                end,
                ended,
            })
        };
        self.request(node, StreamWanted::Logs(wanted), open)
    }

    /// Asks a node to open a stream; gives its id. What is to wait for it is made only if the node
    /// is asked: a log stream that was dropped says that it ended.
    pub(crate) fn request(
        &self,
        node: NodeId,
        wanted: StreamWanted,
        waiting: impl FnOnce() -> Waiting,
    ) -> Result<String, AskError> {
        let id = u64::from_le_bytes(identity::random("a stream's id")?);
        let stream = format!("{id:016x}");
        let mut queues = lock(&self.queues);
        let queue = queues.entry(node).or_default();
        if queue.requests.len() >= MAX_WAITING_STREAMS {
            return Err(AskError::Busy(node));
        }
        lock(&self.waiting).insert(stream.clone(), (node, waiting()));
        queue.requests.push_back(StreamRequest {
            stream: stream.clone(),
            wanted,
        });
        queue.filled.notify_one();
        Ok(stream)
    }

    /// Withdraws what was asked for, if the node has not opened it by now.
    pub(crate) fn give_up(&self, node: NodeId, stream: &str) {
        if let Some(queue) = lock(&self.queues).get_mut(&node) {
            queue.requests.retain(|request| request.stream != stream);
        }
        lock(&self.waiting).remove(stream);
    }

    /// Takes a stream back when what is returned is dropped, if its node has not fetched it by then: a caller who has left
    /// wants it no longer.
    pub(crate) fn take_back_on_drop<'s>(&'s self, node: NodeId, stream: &'s str) -> TakeBack<'s> {
        TakeBack {
            streams: self,
            node,
            stream,
        }
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

    /// What waits for the stream that a node opens; absent when it was not asked of this node, or
    /// given up.
    pub(crate) fn claim(&self, node: NodeId, stream: &str) -> Option<Waiting> {
        let mut waiting = lock(&self.waiting);
        if waiting.get(stream)?.0 != node {
            return None;
        }
        let (_, mut claimed) = waiting.remove(stream)?;
        if let Waiting::Logs(open) = &mut claimed {
            open.end.opened = true;
        }
        Some(claimed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[tokio::test]
    async fn case_a_call_whose_caller_has_left_is_not_delivered() {
        let streams = Streams::default();
        let node = NodeId(1);
        let ask = |signal: &str| {
            let (sender, receiver) = oneshot::channel();
            let wanted = StreamWanted::Signal {
                instance: InstanceId(7),
                signal: signal.to_owned(),
            };
            let asked = streams.request(node, wanted, || Waiting::Answer(sender));
            (asked.unwrap(), receiver)
        };
        let (left, _) = ask("SIGKILL");
        let (stays, _receiver) = ask("SIGHUP");
        let waiting = streams.take_back_on_drop(node, &stays);
        drop(streams.take_back_on_drop(node, &left));
        let requests = streams.requests(node, Duration::ZERO).await;
        assert_eq!(requests.len(), 1);
        assert_eq!(requests[0].stream, stays);
        assert!(streams.claim(node, &left).is_none());
        // One that its node has fetched and not opened is not opened any more.
        drop(waiting);
        assert!(streams.claim(node, &stays).is_none());
    }
}
