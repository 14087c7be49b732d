//! The one writer of the cluster state: decides in memory, commits in groups, publishes what is committed (ADR 0001).
//!
//! One task ([`crate::committing`]) holds the [`Leader`]. Requests to decide gather in a queue while a batch is written. Then the task
//! begins the next transaction, decides all that have gathered, and commits what they changed together: many callers share
//! one transaction. A caller who left before the decision wants nothing any more. An answer goes out when the batch is
//! committed and published; so what is published is committed, always.

use api::node::NodeReport;
use model::{NodeId, Timestamp};
use scheduler::apply::{Command, Refused};
use scheduler::cluster_state::ClusterState;
use scheduler::leader::Leader;
use store::StoreError;
use tokio::sync::{mpsc, oneshot};

use crate::limits::MAX_QUEUED_CHANGES;
use crate::not_committed::NotCommitted;

/// Tells the caller how its batch went.
pub(crate) type Answer = Box<dyn FnOnce(Result<(), NotCommitted>) + Send>;

/// Decides, unless the caller has left, or the store takes nothing now. The answer waits for the batch.
pub(crate) type Decide =
    Box<dyn FnOnce(Result<&mut Leader, NotCommitted>) -> Option<Answer> + Send>;

/// Where requests to decide go.
#[derive(Clone)]
pub(crate) struct Leading(mpsc::Sender<Decide>);

/// Where they come out.
pub(crate) type Requests = mpsc::Receiver<Decide>;

impl Leading {
    /// The queue of requests, at both ends.
    pub(crate) fn new() -> (Self, Requests) {
        let (sender, requests) = mpsc::channel(MAX_QUEUED_CHANGES);
        (Self(sender), requests)
    }

    /// Has the leader decide, and waits until the store has what it decided, and what that was decided on.
    pub(crate) async fn ask<T, E>(
        &self,
        decide: impl FnOnce(&mut Leader) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<NotCommitted> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let request: Decide = Box::new(move |leader| {
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

    /// Looks at the cluster state, decides, and carries the commands out, all or none.
    pub(crate) async fn change<T, E>(
        &self,
        decide: impl FnOnce(&ClusterState) -> Result<(Vec<Command>, T), E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<NotCommitted> + From<Refused> + Send + 'static,
    {
        let deciding = self.ask(|leader| {
            let (commands, result) = decide(leader.state())?;
            leader.execute(&commands)?;
            Ok::<T, E>(result)
        });
        deciding.await
    }

    /// Takes a node's report, which is also a sign that it is there.
    pub(crate) async fn report<E>(
        &self,
        node: NodeId,
        report: NodeReport,
        now: Timestamp,
    ) -> Result<(), E>
    where
        E: From<NotCommitted> + From<Refused> + Send + 'static,
    {
        let taking = self.ask(move |leader| {
            leader.set_online(node, true);
            let report = Box::new(report);
            leader.execute(&[Command::Report { node, report, now }])?;
            Ok::<(), E>(())
        });
        taking.await
    }
}
