//! The task that holds the cluster state: decides what has gathered, commits it, publishes what is committed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use api::edge::RouteTable;
use scheduler::leader::{Batch, Leader};
use scheduler::routes::RouteIndex;
use store::{Store, StoreError};

use crate::leading::{Answer, Decide, Requests};
use crate::limits::{MAX_BATCH, PLAN_INTERVAL};
use crate::not_committed::NotCommitted;
use crate::state::{Published, Shared, Topic};

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
    NotCommitted::new(error)
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
