//! The task that plans: it carries out what `scheduler::planner` decides, until no env is queued.
//!
//! It runs when woken and on a timer. The planner's queue holds the envs that changed or are due; each is planned for itself.
//! Plans of several envs share a batch. When the store refuses a batch because of a record, the envs are planned again with
//! a batch for each, and the one whose batch is refused is not planned for a while ([`QUARANTINE_MS`]), so that it blocks no other.
//! The same happens to an env that makes the planner panic. When the store takes nothing at all (a full disk), the planner
//! waits for its next tick.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use identity::KeyError;
use model::Timestamp;
use scheduler::action::Action;
use scheduler::apply::Command;
use scheduler::events::Origin;
use scheduler::leader::Leader;

use crate::clock::{IdGenerator, follow_the_wall_clock, now};
use crate::limits::{PLAN_BATCH, PLAN_INTERVAL, QUARANTINE_MS};
use crate::metrics::ServerMetrics;
use crate::not_committed::NotCommitted;
use crate::state::Shared;

/// Why the cluster state could not be settled now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    /// The store failed.
    #[error("could not plan")]
    NotCommitted(#[from] NotCommitted),
    /// There is no randomness.
    #[error("could not plan")]
    Key(#[from] KeyError),
}

/// Plans until the server ends.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut unreadable_logged = Vec::new();
    let mut timer = tokio::time::interval(PLAN_INTERVAL);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = shared.wake.notified() => {}
            _ = timer.tick() => {
                if let Err(error) = tick(&shared, follow_the_wall_clock()).await {
                    tracing::debug!(error = %display::chain(&error), "the planner's tick failed");
                }
            }
        }
        if let Err(error) = plan_all(&shared).await {
            tracing::error!(
                error = %display::chain(&error),
                "cannot plan; trying again within {} s",
                PLAN_INTERVAL.as_secs()
            );
        }
        let current = Arc::clone(&shared.published.borrow());
        let (nodes, online) = (current.cluster.nodes.len(), shared.presence.online());
        shared.metrics.set_nodes(nodes, online);
        (shared.metrics).set_unreadable(current.cluster.unreadable.len());
        if current.cluster.unreadable != unreadable_logged {
            for record in &current.cluster.unreadable {
                tracing::error!(%record, "a record is kept as it is, and its env is frozen");
            }
            unreadable_logged.clone_from(&current.cluster.unreadable);
        }
    }
}

/// What time brings: nodes whose reports are overdue, and records whose time is over. A node is overdue until that is published,
/// however often the store refuses: else it would pass for online as long as it is away.
async fn tick(shared: &Shared, set: Option<Timestamp>) -> Result<(), PlanError> {
    let presence = Arc::clone(&shared.presence);
    let reply = shared.leader.submit(move |leader| {
        if let Some(now) = set {
            tracing::warn!("the machine's clock was set: deadlines begin anew");
            leader.clock_was_set(now);
        }
        let overdue = presence.overdue();
        for node in &overdue {
            leader.set_heard(*node, None, now());
        }
        Ok::<_, PlanError>(overdue)
    });
    let lapsed = reply.await?;
    for node in &lapsed {
        shared.presence.lapse(*node);
    }
    // By itself: a store that takes no writes keeps nobody from knowing who lapsed.
    let lapsed = lapsed.into_iter();
    let lapsed: Vec<_> = lapsed
        .map(|node| (node, shared.presence.seen_at(node)))
        .collect();
    let reply = shared.leader.submit(move |leader| {
        let origin = Origin::server(now());
        for (node, at) in lapsed {
            // One that this server has never heard was last heard by another.
            let known = leader.state().nodes.get(&node);
            let Some(at) = at.or_else(|| known?.seen_at) else {
                continue;
            };
            // A sign of life is never written, so the last one is when there are no more.
            if let Err(error) = leader.execute(&origin, &[Command::SetSeen { node, at }]) {
                tracing::debug!(%node, %error, "when the node was last heard is not kept");
            }
        }
        leader.prune(now());
        Ok::<_, PlanError>(())
    });
    reply.await
}

/// Plans until nothing is left to do, and all of it is in the store and published.
pub(crate) async fn plan_all(shared: &Shared) -> Result<(), PlanError> {
    let mut batch_size = PLAN_BATCH;
    loop {
        let metrics = Arc::clone(&shared.metrics);
        let planning = move |leader: &mut Leader| plan(leader, batch_size, &metrics);
        let planned = shared.leader.submit(planning);
        match planned.await {
            Ok(None) => return Ok(()),
            Ok(Some(actions)) => {
                for action in &actions {
                    shared.metrics.acted(action);
                    log(action);
                }
            }
            Err(PlanError::NotCommitted(error)) if error.is_about_a_record() => {
                // One env of the batch caused it. Alone in its batch, it is quarantined.
                if batch_size > 1 {
                    batch_size = 1;
                } else {
                    let cause = display::chain(&error);
                    let reply = shared.leader.submit(move |leader| {
                        quarantine_current(leader, cause);
                        Ok::<_, PlanError>(())
                    });
                    reply.await?;
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Quarantines the env that was planned last.
fn quarantine_current(leader: &mut Leader, cause: String) {
    if let Some(env) = leader.planner().current().cloned() {
        tracing::error!(%env, cause, "an env cannot be planned, and is quarantined");
        let now = now();
        let until = Timestamp(now.0.saturating_add(QUARANTINE_MS));
        leader.quarantine(env, cause, now, until);
    }
}

/// Plans up to `batch_size` envs, and returns the actions. `None`: no env is queued.
fn plan(
    leader: &mut Leader,
    batch_size: u32,
    metrics: &ServerMetrics,
) -> Result<Option<Vec<Action>>, PlanError> {
    let (started, mut envs) = (Instant::now(), 0);
    let mut ids = IdGenerator::new()?;
    let mut actions = Vec::new();
    for looked in 0..batch_size {
        envs = u64::from(looked);
        let planning = || leader.plan_next(now(), &mut || ids.next());
        match catch_unwind(AssertUnwindSafe(planning)) {
            Ok(Some(planned)) => actions.extend(planned),
            Ok(None) if looked == 0 => return Ok(None),
            Ok(None) => break,
            Err(panic) => {
                let cause = cause_of(panic.as_ref());
                leader.abandon_plan();
                quarantine_current(leader, cause);
            }
        }
    }
    metrics.planned(envs, started.elapsed());
    Ok(Some(actions))
}

fn cause_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("the planner failed: {}", text.unwrap_or("it panicked"))
}

fn log(action: &Action) {
    match action {
        Action::MakeVolume(planned) => {
            tracing::info!(volume = %planned.id, of = %planned.key, node = %planned.node, "placed a volume");
        }
        Action::DeleteVolume { id } => tracing::info!(volume = %id, "a deleted volume is gone"),
        Action::Create(placed) => tracing::info!(
            instance = %placed.spec.id,
            app = %placed.spec.app,
            env = %placed.spec.env,
            process = %placed.spec.process,
            release = %placed.spec.release,
            node = %placed.node,
            "placed an instance"
        ),
        Action::Terminate { id, reason } => {
            tracing::info!(instance = %id, %reason, "terminating an instance");
        }
        Action::Delete { id, .. } => tracing::info!(instance = %id, "an instance is gone"),
        Action::PruneEnded { id } => {
            tracing::debug!(instance = %id, "the record of an ended instance is kept no longer");
        }
        Action::SetRollout { env, rollout } => tracing::info!(
            %env,
            release = %rollout.release,
            phase = ?rollout.phase,
            reason = %rollout.reason,
            "a rollout moved on"
        ),
        Action::RemoveEnv { env } => tracing::info!(%env, "an env is gone"),
    }
}
