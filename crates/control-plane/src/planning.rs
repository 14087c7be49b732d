//! The one task that plans: it carries out what `scheduler::planner` decides until nothing is left
//! to do, and publishes the cluster state it leaves.
//!
//! It runs when woken and on a timer, and reconciles by level: a wake that was missed, or a plan
//! that failed on a full disk, costs one interval and nothing else.

use std::sync::Arc;

use api::edge::RouteTable;
use identity::KeyError;
use scheduler::action::Action;
use scheduler::apply::{Command, Refused};
use scheduler::cluster_state::ClusterState;
use scheduler::planner::{Finding, plan};
use scheduler::routes::{keep_frozen, routes};
use store::{Store, StoreError};

use crate::clock::{IdGenerator, now};
use crate::limits::{MAX_PLAN_ROUNDS, PLAN_INTERVAL};
use crate::state::{Published, Shared};

/// Why the cluster state could not be settled now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    /// The store failed.
    #[error("could not plan")]
    Store(#[from] StoreError),
    /// The plan does not fit the cluster state it was made for.
    #[error("could not plan")]
    Refused(#[from] Refused),
    /// There is no randomness.
    #[error("could not plan")]
    Key(#[from] KeyError),
}

/// Plans until the server ends.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut findings_logged = Vec::new();
    let mut unreadable_logged = Vec::new();
    let mut routes_logged = None;
    loop {
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = shared.wake.notified() => {}
            () = tokio::time::sleep(PLAN_INTERVAL) => {}
        }
        // Not interrupted in the middle by a shutdown: a round is one transaction anyway.
        match settle(&shared).await {
            Ok(()) => {
                let current = Arc::clone(&shared.published.borrow());
                if current.cluster.unreadable != unreadable_logged {
                    for record in &current.cluster.unreadable {
                        tracing::error!(%record, "a record is kept as it is, and its env is frozen");
                    }
                    unreadable_logged.clone_from(&current.cluster.unreadable);
                }
                if current.routes_unreadable != routes_logged {
                    if let Some(cause) = &current.routes_unreadable {
                        tracing::error!(cause, "edges keep the routes they have");
                    }
                    routes_logged.clone_from(&current.routes_unreadable);
                }
                if current.findings != findings_logged {
                    for finding in &current.findings {
                        tracing::debug!(env = %finding.env, "{}", finding.message);
                    }
                    findings_logged.clone_from(&current.findings);
                }
            }
            Err(error) => tracing::error!(
                error = %display::chain(&error),
                "cannot plan; trying again within {} s",
                PLAN_INTERVAL.as_secs()
            ),
        }
    }
}

/// Plans and applies until nothing is left to do, then publishes the cluster state.
pub(crate) async fn settle(shared: &Shared) -> Result<(), PlanError> {
    let mut findings = Vec::new();
    for round in 0.. {
        if round == MAX_PLAN_ROUNDS {
            tracing::warn!("the planner did not come to rest in {MAX_PLAN_ROUNDS} rounds");
            break;
        }
        let done;
        (done, findings) = one_round(shared).await?;
        if done {
            break;
        }
    }
    let cluster = shared.cluster().await?;
    let before = Arc::clone(&shared.published.borrow());
    let (routes, routes_unreadable) = route_table(&shared.store, &before.routes, &cluster).await?;
    let after = Published {
        cluster,
        routes,
        routes_unreadable,
        findings,
    };
    if *before != after {
        shared.published.send_replace(Arc::new(after));
    }
    Ok(())
}

/// The route table of this cluster state; the store is asked only when it differs from the last one. Where the store's table
/// cannot be read because it is of a newer server, this is the last one, with the cause.
pub(crate) async fn route_table(
    store: &Store,
    before: &RouteTable,
    cluster: &ClusterState,
) -> Result<(RouteTable, Option<String>), StoreError> {
    let mut routes = routes(cluster);
    keep_frozen(cluster, &before.routes, &mut routes);
    if before.generation.0 > 0 && before.routes == routes {
        return Ok((before.clone(), None));
    }
    match store.set_routes(&routes).await {
        Err(StoreError::Unreadable { cause }) => Ok((before.clone(), Some(cause))),
        written => written.map(|table| (table, None)),
    }
}

/// One plan, applied. True when there was nothing to do.
async fn one_round(shared: &Shared) -> Result<(bool, Vec<Finding>), PlanError> {
    let mut ids = IdGenerator::new()?;
    let (actions, findings) = shared
        .change(|cluster| {
            let plan = plan(cluster, now(), &mut || ids.next());
            let commands = plan.actions.iter().cloned().map(Command::Plan);
            let commands = commands.collect();
            Ok::<_, PlanError>((commands, (plan.actions, plan.findings)))
        })
        .await?;
    for action in &actions {
        log(action);
    }
    Ok((actions.is_empty(), findings))
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
