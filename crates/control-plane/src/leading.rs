//! The one writer of the cluster state: decides in memory, commits in groups, publishes what is committed (ADR 0001).
//!
//! One task ([`run`]) holds the [`Leader`]. Requests to decide gather in a queue while a batch is written. Then the task
//! begins the next transaction, decides all that have gathered, and commits what they changed together: many callers share
//! one transaction. A caller who left before the decision wants nothing any more. An answer goes out when the batch is
//! committed and published; so what is published is committed, always.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use api::edge::RouteTable;
use api::node::NodeReport;
use model::{NodeId, Timestamp};
use scheduler::apply::{Command, Refused};
use scheduler::cluster_state::ClusterState;
use scheduler::leader::{Batch, Leader};
use scheduler::routes::RouteIndex;
use store::{Store, StoreError};
use tokio::sync::{mpsc, oneshot};

use crate::limits::{MAX_BATCH, MAX_QUEUED_CHANGES, PLAN_INTERVAL};
use crate::state::{Published, Shared, Topic};

/// The store did not take a change. Nothing of it has happened.
#[derive(Debug, Clone, thiserror::Error)]
#[error("could not write the change")]
pub(crate) struct NotCommitted(#[source] Arc<StoreError>);

impl NotCommitted {
    /// Whether the store refused what was written, and would take other changes: the cause is a record, not a full disk
    /// or a broken connection.
    pub(crate) fn is_about_a_record(&self) -> bool {
        self.0.is_about_a_record()
    }

    /// Whether nothing is written any more, because the server ends.
    pub(crate) fn is_stopping(&self) -> bool {
        matches!(*self.0, StoreError::Closed)
    }
}

/// Tells the caller how its batch went.
type Answer = Box<dyn FnOnce(Result<(), NotCommitted>) + Send>;

/// Decides, unless the caller has left, or the store takes nothing now. The answer waits for the batch.
type Decide = Box<dyn FnOnce(Result<&mut Leader, NotCommitted>) -> Option<Answer> + Send>;

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
        let stopping = || E::from(NotCommitted(Arc::new(StoreError::Closed)));
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

/// Decides and commits, until every sender of requests is gone or the server ends.
pub(crate) async fn run(
    shared: Arc<Shared>,
    mut leader: Leader,
    mut requests: Requests,
    mut routes: RouteIndex,
) {
    let mut unreadable_logged = None;
    let mut are_routes_stored = true;
    let mut gathered = Vec::new();
    loop {
        tokio::select! {
            biased;
            received = requests.recv_many(&mut gathered, MAX_BATCH) => {
                if received == 0 {
                    return;
                }
            }
            () = shared.shutdown.cancelled(), if !requests.is_closed() => {
                // Those that are queued are served still.
                requests.close();
                continue;
            }
            () = tokio::time::sleep(PLAN_INTERVAL), if !are_routes_stored => {}
        }
        let routes = serve(&shared, &mut leader, &mut routes, &mut gathered).await;
        are_routes_stored = !matches!(routes, Routes::NotStored);
        let unreadable = match routes {
            Routes::Unreadable(cause) => Some(cause),
            Routes::Stored | Routes::NotStored => None,
        };
        if unreadable != unreadable_logged {
            if let Some(cause) = &unreadable {
                tracing::error!(cause, "edges keep the routes they have");
            }
            unreadable_logged = unreadable;
        }
    }
}

/// What became of the route table.
enum Routes {
    /// The store has it.
    Stored,
    /// The store does not take it now.
    NotStored,
    /// The store has one of a newer server, which is kept.
    Unreadable(String),
}

/// Decides what has gathered and commits it.
async fn serve(
    shared: &Shared,
    leader: &mut Leader,
    routes: &mut RouteIndex,
    gathered: &mut Vec<Decide>,
) -> Routes {
    // First the store's lock, which may have to be waited for: what a caller wants who leaves meanwhile is not decided.
    let mut writing = match shared.store.begin_write().await {
        Ok(writing) => writing,
        Err(error) => {
            let error = not_committed(error);
            for decide in gathered.drain(..) {
                decide(Err(error.clone()));
            }
            return Routes::Stored;
        }
    };
    let answers: Vec<_> = (gathered.drain(..))
        .filter_map(|decide| guarded(leader, decide))
        .collect();
    let batch = leader.take_batch();
    let written = if batch.changes.is_empty() {
        writing.roll_back().await
    } else {
        match writing.write(&batch.changes).await {
            Ok(()) => writing.commit().await,
            Err(error) => Err(error),
        }
    };
    let (committed, routes) = match written {
        Ok(()) => {
            leader.commit(&batch);
            (Ok(()), publish(shared, routes, batch).await)
        }
        Err(error) => {
            leader.roll_back();
            (Err(not_committed(error)), Routes::Stored)
        }
    };
    for answer in answers {
        answer(committed.clone());
    }
    routes
}

fn not_committed(error: StoreError) -> NotCommitted {
    tracing::error!(error = %display::chain(&error), "the store did not take a change");
    NotCommitted(Arc::new(error))
}

/// Decides; a decision that panics changes nothing, and its caller gets no answer but an error.
fn guarded(leader: &mut Leader, decide: Decide) -> Option<Answer> {
    let checkpoint = leader.checkpoint();
    let decided = catch_unwind(AssertUnwindSafe(|| decide(Ok(&mut *leader))));
    decided.unwrap_or_else(|_| {
        tracing::error!("a decision panicked; nothing of it is done");
        leader.restore(checkpoint);
        None
    })
}

/// Publishes a committed batch, and wakes those whom it is about.
async fn publish(shared: &Shared, routes: &mut RouteIndex, batch: Batch) -> Routes {
    let before = Arc::clone(&shared.published.borrow());
    for env in &batch.touched {
        routes.update(&batch.after, env);
    }
    let table = if before.routes.routes == *routes.table() && before.routes.generation.0 > 0 {
        Ok(before.routes.clone())
    } else {
        shared.store.set_routes(routes.table()).await
    };
    let (table, stored) = match table {
        Ok(table) => (table, Routes::Stored),
        Err(StoreError::Unreadable { cause }) => (before.routes.clone(), Routes::Unreadable(cause)),
        Err(error) => {
            tracing::error!(error = %display::chain(&error), "edges keep the routes they have");
            (before.routes.clone(), Routes::NotStored)
        }
    };
    let are_new = table.generation != before.routes.generation;
    shared.published.send_replace(Arc::new(Published {
        cluster: batch.after,
        routes: table,
        findings: batch.findings,
    }));
    let nodes = batch.changes.nodes.into_keys().map(Topic::Node);
    let envs = batch.touched.into_iter().map(Topic::Env);
    let routes = are_new.then_some(Topic::Routes);
    shared.topics.wake(nodes.chain(envs).chain(routes));
    stored
}

/// The routes as the store has them; none where it has a table that cannot be read, which is kept.
pub(crate) async fn load_routes(store: &Store) -> Result<RouteTable, StoreError> {
    match store.routes().await {
        Err(StoreError::Unreadable { .. }) => Ok(RouteTable::default()),
        routes => routes,
    }
}
