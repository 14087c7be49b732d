//! The one writer of the cluster state: decides in memory, commits in groups, publishes what is committed (ADR 0001).
//!
//! One task ([`crate::commit_loop`]) holds the [`Leader`]; callers reach it by a [`LeaderHandle`]. Their requests gather in a queue while
//! a batch is written. Then the task begins the next transaction, decides all the requests that have gathered, and commits what they
//! changed together: many callers share one transaction. The request of a caller who has left is not decided. A reply goes out when
//! the batch is committed and published, so everything that is published is committed.

use api::event::Actor;
use model::{NodeId, Timestamp};
use scheduler::apply::{Command, Refused};
use scheduler::cluster_state::ClusterState;
use scheduler::events::Origin;
use scheduler::leader::Leader;
use store::StoreError;
use tokio::sync::{mpsc, oneshot};

use crate::clock;
use crate::limits::MAX_QUEUED_CHANGES;
use crate::not_committed::NotCommitted;

/// Tells the caller whether its batch was committed.
pub(crate) type Reply = Box<dyn FnOnce(Result<(), NotCommitted>) + Send>;

/// Decides one request, unless its caller has left or the store takes nothing now. The reply waits for the batch.
pub(crate) type Request =
    Box<dyn FnOnce(Result<&mut Leader, NotCommitted>) -> Option<Reply> + Send>;

/// Submits requests to the leader.
#[derive(Clone)]
pub(crate) struct LeaderHandle(mpsc::Sender<Request>);

/// The requests, as the leader receives them.
pub(crate) type Requests = mpsc::Receiver<Request>;

impl LeaderHandle {
    /// The queue of requests, at both ends.
    pub(crate) fn new() -> (Self, Requests) {
        let (sender, requests) = mpsc::channel(MAX_QUEUED_CHANGES);
        (Self(sender), requests)
    }

    /// Has the leader decide, and waits until the store has what it decided and everything decided before.
    pub(crate) async fn submit<T, E>(
        &self,
        decide: impl FnOnce(&mut Leader) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<NotCommitted> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let request: Request = Box::new(move |leader| {
            if answer.is_closed() {
                return None;
            }
            match leader.map_err(E::from).and_then(decide) {
                Ok(result) => Some(Box::new(move |committed| {
                    // Who left needs no answer.
                    let _ = answer.send(committed.map(|()| result).map_err(E::from));
                })),
                Err(refused) => {
                    let _ = answer.send(Err(refused));
                    None
                }
            }
        });
        let stopping = || E::from(NotCommitted::new(StoreError::Closed));
        self.0.send(request).await.map_err(|_| stopping())?;
        answered.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Looks at the cluster state, decides, and carries the commands out, all or none. `by`: whose change it is.
    pub(crate) async fn change<T, E>(
        &self,
        by: Actor,
        decide: impl FnOnce(&ClusterState) -> Result<(Vec<Command>, T), E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<NotCommitted> + From<Refused> + Send + 'static,
    {
        let reply = self.submit(move |leader| {
            let (commands, result) = decide(leader.state())?;
            let origin = Origin {
                by,
                at: clock::now(),
            };
            leader.execute(&origin, &commands)?;
            Ok::<T, E>(result)
        });
        reply.await
    }

    /// A node reported, by this version of the protocol. `command`: what, where that is anything. `is_heard`: whether it counts as heard when the leader gets to it; a
    /// report that has waited long is no sign of life.
    pub(crate) async fn report<E>(
        &self,
        (node, protocol): (NodeId, u32),
        command: Option<Command>,
        is_heard: impl FnOnce() -> bool + Send + 'static,
        now: Timestamp,
    ) -> Result<(), E>
    where
        E: From<NotCommitted> + From<Refused> + Send + 'static,
    {
        let reply = self.submit(move |leader| {
            if is_heard() {
                leader.set_heard(node, Some(protocol), now);
            }
            let origin = Origin {
                by: Actor::Node(node),
                at: now,
            };
            leader.execute(&origin, command.as_slice())?;
            Ok::<(), E>(())
        });
        reply.await
    }
}
