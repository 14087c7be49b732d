//! The one writer of the cluster state: decides in memory, commits in groups, publishes what is committed (ADR 0001).
//!
//! A caller decides under a lock that is never held while anything waits ([`Leading::change`]), and waits until the batch
//! with its change is in the store. While one batch is written, the decisions of many callers gather in the next: they
//! share one transaction. [`run`] commits the batches, one after the other. What it publishes is committed, always.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{NodeId, Timestamp};
use scheduler::apply::{Command, Refused};
use scheduler::cluster_state::ClusterState;
use scheduler::leader::{Batch, Leader};
use scheduler::reports::{Unknown, unknown};
use scheduler::routes::RouteIndex;
use store::{Store, StoreError};
use tokio::sync::{Notify, oneshot};

use crate::limits::PLAN_INTERVAL;
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
}

type Answer = oneshot::Sender<Result<(), NotCommitted>>;

/// The leader, and who waits for its next batch.
pub(crate) struct Leading {
    core: Mutex<Core>,
    /// Wakes [`run`].
    ready: Notify,
}

struct Core {
    leader: Leader,
    waiting: Vec<Answer>,
    /// Whether a batch is being written.
    writing: bool,
}

impl Leading {
    pub(crate) fn new(cluster: ClusterState) -> Self {
        Self {
            core: Mutex::new(Core {
                leader: Leader::new(cluster),
                waiting: Vec::new(),
                writing: false,
            }),
            ready: Notify::new(),
        }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides, and waits until the store has it. When `decide` returns no command or refuses, nothing is written; its
    /// answer still waits for what it may have been decided on.
    pub(crate) async fn change<T, E: From<NotCommitted> + From<Refused>>(
        &self,
        decide: impl FnOnce(&ClusterState) -> Result<(Vec<Command>, T), E>,
    ) -> Result<T, E> {
        let (result, committed) = {
            let mut core = self.core();
            let (commands, result) = decide(core.leader.state())?;
            core.leader.execute(&commands)?;
            (result, self.when_committed(&mut core))
        };
        wait(committed).await?;
        Ok(result)
    }

    /// Takes a node's report, which is also a sign that it is there. True when it changed anything.
    pub(crate) async fn report<E: From<NotCommitted> + From<Refused>>(
        &self,
        node: NodeId,
        report: api::node::NodeReport,
        now: Timestamp,
    ) -> Result<(bool, Unknown), E> {
        let (changed, unknown, committed) = {
            let mut core = self.core();
            let unknown = unknown(core.leader.state(), node, &report);
            let came_back = core.leader.set_online(node, true);
            let report = Box::new(report);
            let command = Command::Report { node, report, now };
            let changed = core.leader.execute(&[command])?;
            // A report that says nothing new waits for nobody.
            let committed = (changed || came_back).then(|| self.when_committed(&mut core));
            (changed || came_back, unknown, committed)
        };
        if let Some(committed) = committed {
            wait(committed).await?;
        }
        Ok((changed, unknown))
    }

    /// These nodes are not heard any more.
    pub(crate) fn lapsed(&self, nodes: &[NodeId]) {
        let mut core = self.core();
        for node in nodes {
            core.leader.set_online(*node, false);
        }
        self.ready.notify_one();
    }

    /// Looks at the leader, and may have it decide; whoever does waits for [`Self::committed`].
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Leader) -> T) -> T {
        look(&mut self.core().leader)
    }

    /// Waits until all that is decided is in the store and published.
    pub(crate) async fn committed(&self) -> Result<(), NotCommitted> {
        let committed = {
            let mut core = self.core();
            self.when_committed(&mut core)
        };
        wait(committed).await
    }

    /// Answers once all that was decided so far is in the store and published.
    fn when_committed(&self, core: &mut Core) -> Option<oneshot::Receiver<Result<(), NotCommitted>>> {
        if !core.writing && !core.leader.has_news() {
            return None;
        }
        let (answer, committed) = oneshot::channel();
        core.waiting.push(answer);
        self.ready.notify_one();
        Some(committed)
    }
}

async fn wait(
    committed: impl Into<Option<oneshot::Receiver<Result<(), NotCommitted>>>>,
) -> Result<(), NotCommitted> {
    let Some(committed) = committed.into() else {
        return Ok(());
    };
    committed.await.unwrap_or_else(|_| {
        let stopping = StoreError::Closed;
        Err(NotCommitted(Arc::new(stopping)))
    })
}

/// Commits what is decided, until the server ends.
pub(crate) async fn run(shared: Arc<Shared>, mut routes: RouteIndex) {
    let mut are_routes_stored = true;
    loop {
        let stopping = shared.shutdown.is_cancelled();
        if !stopping {
            tokio::select! {
                () = shared.leading.ready.notified() => {}
                () = shared.shutdown.cancelled() => {}
                () = tokio::time::sleep(PLAN_INTERVAL), if !are_routes_stored => {}
            }
        }
        are_routes_stored = commit(&shared, &mut routes).await;
        if stopping {
            return;
        }
    }
}

/// Commits one batch and publishes what it leads to. True when the store has the routes, too.
async fn commit(shared: &Shared, routes: &mut RouteIndex) -> bool {
    let (batch, waiting) = {
        let mut core = shared.leading.core();
        core.writing = true;
        let batch = core.leader.take_batch();
        (batch, std::mem::take(&mut core.waiting))
    };
    let written = if batch.changes.is_empty() {
        Ok(())
    } else {
        shared.store.write(&batch.changes).await
    };
    let answer = match written {
        Ok(()) => Ok(()),
        Err(error) => {
            tracing::error!(error = %display::chain(&error), "the store did not take a change");
            Err(NotCommitted(Arc::new(error)))
        }
    };
    let mut later = Vec::new();
    {
        let mut core = shared.leading.core();
        match &answer {
            Ok(()) => core.leader.commit(&batch),
            Err(_) => {
                core.leader.roll_back();
                // What was decided meanwhile was decided on a state that never came to be.
                later = std::mem::take(&mut core.waiting);
            }
        }
    }
    let are_routes_stored = match &answer {
        Ok(()) => publish(shared, routes, batch).await,
        Err(_) => true,
    };
    shared.leading.core().writing = false;
    for waiting in waiting.into_iter().chain(later) {
        // Who left needs no answer.
        let _ = waiting.send(answer.clone());
    }
    are_routes_stored
}

/// Publishes a committed batch, and wakes those whom it is about. True when the store has the routes, too.
async fn publish(shared: &Shared, routes: &mut RouteIndex, batch: Batch) -> bool {
    let before = Arc::clone(&shared.published.borrow());
    for env in &batch.touched {
        routes.update(&batch.after, env);
    }
    let table = if before.routes.routes == *routes.table() && before.routes.generation.0 > 0 {
        Ok(before.routes.clone())
    } else {
        shared.store.set_routes(routes.table()).await
    };
    let (table, are_stored) = match table {
        Ok(table) => (table, true),
        Err(StoreError::Unreadable { .. }) => (before.routes.clone(), true),
        Err(error) => {
            tracing::error!(error = %display::chain(&error), "edges keep the routes they have");
            (before.routes.clone(), false)
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
    are_stored
}

/// The routes as the store has them; a table that cannot be read is kept, and edges go on with theirs.
pub(crate) async fn load_routes(store: &Store) -> Result<api::edge::RouteTable, StoreError> {
    match store.routes().await {
        Err(StoreError::Unreadable { cause }) => {
            tracing::error!(cause, "edges keep the routes they have");
            Ok(api::edge::RouteTable::default())
        }
        routes => routes,
    }
}
