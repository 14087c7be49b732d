//! Envs, instances and nodes, as users see and change them.

use std::sync::Arc;

use api::user::{EndedRow, EnvRow, InstanceRow, NodeRow, RolloutStatus, ScaleRequest};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use model::{AppName, EnvKey, EnvName, InstanceId, ReleaseNumber};
use scheduler::apply::Command;
use scheduler::cluster_state::{ClusterState, Instance};
use scheduler::rollout::check_scale;
use scheduler::table::Table;
use serde::Deserialize;

use super::extract::{Body, InEnv, Params, granted, is_destroyed, no_such_env, readable};
use crate::callers::User;
use crate::failure::ApiFailure;
use crate::rows;
use crate::state::{App, Topic};

/// Every node.
pub(crate) async fn nodes(
    State(app): State<App>,
    _user: User,
) -> Result<Json<Vec<NodeRow>>, ApiFailure> {
    let published = Arc::clone(&app.published.borrow());
    let mut rows = rows::node_rows(&published.cluster, &published.promised);
    for row in &mut rows {
        row.seen_at = row.seen_at.max(app.presence.seen_at(row.id));
        row.exceeded = app.reporting.exceeded(row.id);
        row.warnings = app.reporting.warnings(row.id);
    }
    Ok(Json(rows))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Filter {
    app: Option<AppName>,
    env: Option<EnvName>,
}

impl Filter {
    pub(crate) fn keeps(&self, key: &EnvKey) -> bool {
        self.app.as_ref().is_none_or(|app| *app == key.app)
            && self.env.as_ref().is_none_or(|env| *env == key.env)
    }

    /// The instances that it keeps. Those of one env cost no more than they are.
    pub(crate) fn instances<'c>(
        &self,
        cluster: &'c ClusterState,
    ) -> Vec<(InstanceId, &'c Instance)> {
        if let (Some(app), Some(env)) = (self.app.clone(), self.env.clone()) {
            let key = EnvKey { app, env };
            return cluster.instances.of_env(&key).collect();
        }
        let all = cluster
            .instances
            .iter()
            .map(|(id, instance)| (*id, instance));
        all.filter(|(_, instance)| self.keeps(&instance.spec.env_key()))
            .collect()
    }
}

/// Every instance, or those of an app or an env.
pub(crate) async fn instances(
    State(app): State<App>,
    _user: User,
    Params(filter): Params<Filter>,
) -> Result<Json<Vec<InstanceRow>>, ApiFailure> {
    let cluster = app.cluster();
    let kept = filter.instances(&cluster).into_iter();
    Ok(Json(rows::instance_rows(&cluster, kept)))
}

/// Every ended instance whose record is kept, or those of an app or an env.
pub(crate) async fn ended_instances(
    State(app): State<App>,
    _user: User,
    Params(filter): Params<Filter>,
) -> Result<Json<Vec<EndedRow>>, ApiFailure> {
    let cluster = app.cluster();
    Ok(Json(rows::ended_rows(&cluster, |key| filter.keeps(key))))
}

/// Every env, those being destroyed too, and those that cannot be read.
pub(crate) async fn envs(
    State(app): State<App>,
    _user: User,
) -> Result<Json<Vec<EnvRow>>, ApiFailure> {
    let published = Arc::clone(&app.published.borrow());
    Ok(Json(rows::env_rows(&published)))
}

/// Sets how many instances are wanted.
pub(crate) async fn scale(
    State(app): State<App>,
    user: User,
    InEnv(key): InEnv,
    Body(request): Body<ScaleRequest>,
) -> Result<Json<EnvRow>, ApiFailure> {
    let (of, processes) = (key.clone(), request.processes.clone());
    let row = app
        .change(move |cluster| {
            readable(cluster, &of)?;
            let env = cluster.envs.get(&of);
            let mut env = env.ok_or_else(|| no_such_env(cluster, &of))?.clone();
            if env.destroying {
                return Err(is_destroyed(&of));
            }
            check_scale(&env, &processes)
                .map_err(|refusal| ApiFailure::refused("scale_refused", refusal.to_string()))?;
            env.scale.extend(processes.clone());
            let command = Command::SetScale {
                env: of.clone(),
                scale: processes.clone(),
            };
            // What waits for it is not known before it is planned.
            let row = rows::env_row(cluster, &Table::new(), &of, &env);
            Ok((vec![command], row))
        })
        .await?;
    tracing::info!(user = %user.name, env = %key, processes = ?request.processes, "scaled");
    app.wake.notify_one();
    Ok(Json(row))
}

/// Begins to destroy an env. Asked again meanwhile, it says the same.
pub(crate) async fn destroy(
    State(app): State<App>,
    user: User,
    InEnv(key): InEnv,
) -> Result<StatusCode, ApiFailure> {
    let of = key.clone();
    app.change(move |cluster| {
        let env = cluster.envs.get(&of);
        let env = env.ok_or_else(|| no_such_env(cluster, &of))?;
        let command = (!env.destroying).then(|| Command::DestroyEnv { env: of.clone() });
        Ok::<_, ApiFailure>((command.into_iter().collect(), ()))
    })
    .await?;
    tracing::info!(user = %user.name, env = %key, "destroying");
    app.wake.notify_one();
    Ok(StatusCode::ACCEPTED)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RolloutPoll {
    release: Option<u32>,
    after: Option<u64>,
    #[serde(default)]
    wait_ms: u64,
}

/// How a rollout goes, once it is otherwise than the caller knows.
pub(crate) async fn rollout(
    State(app): State<App>,
    _user: User,
    InEnv(key): InEnv,
    Params(poll): Params<RolloutPoll>,
) -> Result<Json<RolloutStatus>, ApiFailure> {
    let release = poll.release.map(ReleaseNumber);
    let now = status(&app, &key, release)?;
    if poll.after != Some(now.revision) || poll.wait_ms == 0 {
        return Ok(Json(now));
    }
    let topic = Topic::Env(key.clone());
    let changed = app
        .wait_for(topic, granted(poll.wait_ms), |published| {
            let cluster = &published.cluster;
            match rows::rollout_status(cluster, &published.findings, &key, release) {
                Some(status) => (status.revision != now.revision).then_some(Some(status)),
                None => Some(None),
            }
        })
        .await?;
    match changed {
        Some(Some(status)) => Ok(Json(status)),
        // Gone meanwhile.
        Some(None) => Ok(Json(status(&app, &key, release)?)),
        None => Ok(Json(now)),
    }
}

fn status(
    app: &App,
    key: &EnvKey,
    release: Option<ReleaseNumber>,
) -> Result<RolloutStatus, ApiFailure> {
    let published = Arc::clone(&app.published.borrow());
    let cluster = &published.cluster;
    rows::rollout_status(cluster, &published.findings, key, release).ok_or_else(|| {
        match (cluster.envs.contains_key(key), release) {
            // Which releases there are is not known.
            (true, Some(_)) if readable(cluster, key).is_err() => no_such_env(cluster, key),
            (true, Some(release)) => ApiFailure::not_found(
                "release_not_found",
                format!("{key} has no release {release}"),
            ),
            _ => no_such_env(cluster, key),
        }
    })
}
