//! The one task that plans: it carries out what `scheduler::planner` decides until nothing is left to do.
//!
//! It runs when woken and on a timer. The planner's queue holds the envs that changed or are due; each is planned for itself.
//! Plans of several envs share a batch. When the store refuses a batch because of a record, the envs are planned again with
//! a batch for each, and the one that is refused alone is left alone for a while ([`QUARANTINE_MS`]): it blocks nobody. The
//! same happens to an env that makes the planner panic. When the store takes nothing at all (a full disk), the planner
//! rests until its next turn.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use identity::KeyError;
use model::{NodeId, Timestamp};
use scheduler::action::Action;
use scheduler::leader::Leader;

use crate::clock::{IdGenerator, now};
use crate::limits::{PLAN_BATCH, PLAN_INTERVAL, QUARANTINE_MS};
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
    let mut turn = tokio::time::interval(PLAN_INTERVAL);
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = shared.wake.notified() => {}
            _ = turn.tick() => {
                let lapsed = shared.presence.lapsed(Instant::now());
                if let Err(error) = take_turn(&shared, lapsed).await {
                    tracing::debug!(error = %display::chain(&error), "the planner's turn was not taken");
                }
            }
        }
        if let Err(error) = settle(&shared).await {
            tracing::error!(
                error = %display::chain(&error),
                "cannot plan; trying again within {} s",
                PLAN_INTERVAL.as_secs()
            );
        }
        let current = Arc::clone(&shared.published.borrow());
        if current.cluster.unreadable != unreadable_logged {
            for record in &current.cluster.unreadable {
                tracing::error!(%record, "a record is kept as it is, and its env is frozen");
            }
            unreadable_logged.clone_from(&current.cluster.unreadable);
        }
    }
}

/// What is due with the time: nodes that are not heard any more, and records that are kept no longer.
async fn take_turn(shared: &Shared, lapsed: Vec<NodeId>) -> Result<(), PlanError> {
    let turn = shared.leading.ask(move |leader| {
        for node in lapsed {
            leader.set_online(node, false);
        }
        leader.prune(now());
        Ok::<_, PlanError>(())
    });
    turn.await
}

/// Plans until nothing is left to do, and all of it is in the store and published.
pub(crate) async fn settle(shared: &Shared) -> Result<(), PlanError> {
    let mut most = PLAN_BATCH;
    loop {
        match shared.leading.ask(move |leader| plan(leader, most)).await {
            Ok(None) => return Ok(()),
            Ok(Some(actions)) => actions.iter().for_each(log),
            Err(PlanError::NotCommitted(error)) if error.is_about_a_record() => {
                // One of these envs is to blame, or the one that was planned alone.
                if most > 1 {
                    most = 1;
                } else {
                    blame(shared, display::chain(&error)).await?;
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Leaves the env alone that was planned last.
async fn blame(shared: &Shared, cause: String) -> Result<(), PlanError> {
    let blaming = shared.leading.ask(|leader| {
        if let Some(env) = leader.planner().current().cloned() {
            tracing::error!(%env, cause, "an env cannot be planned, and is left alone for a while");
            leader.quarantine(env, cause, later());
        }
        Ok::<_, PlanError>(())
    });
    blaming.await
}

/// Plans at most so many envs; what was decided. `None`: nothing is left to be looked at.
fn plan(leader: &mut Leader, most: u32) -> Result<Option<Vec<Action>>, PlanError> {
    let mut ids = IdGenerator::new()?;
    let mut actions = Vec::new();
    for looked in 0..most {
        let checkpoint = leader.checkpoint();
        let planning = || leader.plan_next(now(), &mut || ids.next());
        match catch_unwind(AssertUnwindSafe(planning)) {
            Ok(Some(planned)) => actions.extend(planned.actions),
            Ok(None) if looked == 0 => return Ok(None),
            Ok(None) => break,
            Err(panic) => {
                let cause = cause_of(panic.as_ref());
                leader.restore(checkpoint);
                if let Some(env) = leader.planner().current().cloned() {
                    tracing::error!(%env, cause, "an env cannot be planned, and is left alone for a while");
                    leader.quarantine(env, cause, later());
                }
            }
        }
    }
    Ok(Some(actions))
}

fn later() -> Timestamp {
    Timestamp(now().0.saturating_add(QUARANTINE_MS))
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
