//! The task that holds the cluster state: decides requests, commits them in batches, publishes what is committed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use api::enrollment::Member;
use metrics::Outcome;
use scheduler::leader::{Batch, Leader};
use store::StoreError;

use crate::leader_handle::{Reply, Request, Requests};
use crate::limits::MAX_BATCH;
use crate::not_committed::NotCommitted;
use crate::state::{Published, Shared, Topic};

/// Decides and commits, until every sender of requests is gone, or the server ends, or the term does: then nothing is decided any
/// more, because the store may have what this does not know.
pub(crate) async fn run(shared: Arc<Shared>, mut leader: Leader, mut requests: Requests) {
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
        }
        if let Err(error) = commit_batch(&shared, &mut leader, &mut requests, &mut gathered).await
            && error.ends_the_term().is_some()
        {
            shared.lost.cancel();
            refuse_all(&error, requests, gathered).await;
            return;
        }
    }
}

/// Answers those who ask for a change in a term that is over.
async fn refuse_all(error: &NotCommitted, mut requests: Requests, mut gathered: Vec<Request>) {
    requests.close();
    while requests.recv_many(&mut gathered, MAX_BATCH).await > 0 {
        for decide in gathered.drain(..) {
            decide(Err(error.clone()));
        }
    }
}

/// Decides the requests that have gathered, and commits what they changed in one transaction.
async fn commit_batch(
    shared: &Shared,
    leader: &mut Leader,
    requests: &mut Requests,
    gathered: &mut Vec<Request>,
) -> Result<(), NotCommitted> {
    let started = Instant::now();
    // First the store's lock, which may take a while: the request of a caller who leaves meanwhile is not decided.
    let mut writing = match shared.store.begin_write(shared.term).await {
        Ok(writing) => writing,
        Err(error) => {
            let error = not_committed(error);
            (shared.metrics).committed(Outcome::Failure, gathered.len(), started.elapsed());
            for decide in gathered.drain(..) {
                decide(Err(error.clone()));
            }
            return Err(error);
        }
    };
    // Those that came meanwhile share its transaction.
    while gathered.len() < MAX_BATCH
        && let Ok(decide) = requests.try_recv()
    {
        gathered.push(decide);
    }
    let asked = gathered.len();
    let replies: Vec<_> = (gathered.drain(..))
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
    let committed = match written {
        Ok(()) => {
            leader.commit(&batch);
            publish(shared, batch);
            Ok(())
        }
        Err(error) => {
            leader.roll_back();
            Err(not_committed(error))
        }
    };
    let outcome = match &committed {
        Ok(()) => Outcome::Success,
        Err(_) => Outcome::Failure,
    };
    (shared.metrics).committed(outcome, asked, started.elapsed());
    for reply in replies {
        reply(committed.clone());
    }
    committed
}

fn not_committed(error: StoreError) -> NotCommitted {
    tracing::error!(error = %display::chain(&error), "the store did not take a change");
    NotCommitted::new(error)
}

/// Decides; a decision that panics changes nothing, and its caller gets no answer but an error.
fn guarded(leader: &mut Leader, decide: Request) -> Option<Reply> {
    let checkpoint = leader.checkpoint();
    let decided = catch_unwind(AssertUnwindSafe(|| decide(Ok(&mut *leader))));
    decided.unwrap_or_else(|_| {
        tracing::error!("a decision panicked; nothing of it is done");
        leader.restore(checkpoint);
        None
    })
}

/// Publishes a committed batch, and notifies the subscribers of what changed.
fn publish(shared: &Shared, batch: Batch) {
    let routes = (!batch.changes.routes.is_empty()).then_some(Topic::Routes);
    let events = (!batch.changes.events.is_empty()).then_some(Topic::Events);
    let access = (!batch.changes.access.is_empty()).then_some(Topic::Access);
    let membership = (batch.changes.counters.membership > 0).then_some(Topic::Membership);
    let (mut peers, mut directory) = {
        let before = shared.published.borrow();
        for id in batch.changes.instances.keys() {
            let before = before.cluster.instances.get(id);
            let after = batch.after.instances.get(id);
            (shared.metrics).instance_changed(before, after);
        }
        (before.peers.clone(), before.directory.clone())
    };
    let members = batch.changes.nodes.keys().map(|id| Member::Node(*id));
    let members = members.chain(batch.changes.edges.keys().map(|id| Member::Edge(*id)));
    let members: Vec<_> = members.collect();
    let faults = shared.overlay.faults();
    let everybody = batch.changes.counters.everybody > 0;
    let concerned = peers.update(&batch.after, &members, &faults, everybody);
    let nodes_of_envs = directory.update(&batch.after, &batch.touched);
    shared.published.send_replace(Arc::new(Published {
        peers,
        directory,
        cluster: batch.after,
        routes: batch.routes,
        findings: batch.findings,
        promised: batch.promised,
    }));
    let nodes = batch.changes.nodes.into_keys().map(Topic::Node);
    let envs = batch.touched.into_iter().map(Topic::Env);
    let concerned = concerned.into_iter().map(Topic::Member);
    let directories = nodes_of_envs.into_iter().map(Topic::Directory);
    shared.topics.notify(
        nodes
            .chain(envs)
            .chain(routes)
            .chain(events)
            .chain(access)
            .chain(membership)
            .chain(concerned)
            .chain(directories),
    );
}
