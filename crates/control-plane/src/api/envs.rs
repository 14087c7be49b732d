//! Envs, as users change them and watch their rollouts.

use std::sync::Arc;

use api::user::{EnvRow, Role, RolloutQuery, RolloutStatus, ScaleRequest};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use model::{EnvKey, ReleaseNumber};
use scheduler::apply::Command;
use scheduler::rollout::check_scale;
use scheduler::table::Table;

use super::extract::{Body, Params, granted, is_destroyed, no_such_env, readable};
use crate::access::{Administering, Deploying, Viewing};
use crate::failure::ApiFailure;
use crate::rows;
use crate::state::{App, Topic};

/// Sets how many instances are wanted.
pub(crate) async fn scale(
    State(app): State<App>,
    Deploying { user, key }: Deploying,
    Body(request): Body<ScaleRequest>,
) -> Result<Json<EnvRow>, ApiFailure> {
    let (of, processes) = (key.clone(), request.processes.clone());
    let row = app
        .change_by(&user, move |cluster| {
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
    Administering { user, key }: Administering,
) -> Result<StatusCode, ApiFailure> {
    let of = key.clone();
    app.change_by(&user, move |cluster| {
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

/// How a rollout goes, once it is otherwise than the caller knows.
pub(crate) async fn rollout(
    State(app): State<App>,
    Viewing { user, key }: Viewing,
    Params(poll): Params<RolloutQuery>,
) -> Result<Json<RolloutStatus>, ApiFailure> {
    let release = poll.release.map(ReleaseNumber);
    let now = status(&app, &key, release)?;
    let wait_ms = poll.wait_ms.unwrap_or_default();
    if poll.after != Some(now.revision) || wait_ms == 0 {
        return Ok(Json(now));
    }
    let topic = Topic::Env(key.clone());
    let changed = app
        .wait_for(topic, granted(wait_ms), |published| {
            let cluster = &published.cluster;
            match rows::rollout_status(cluster, &published.findings, &key, release) {
                Some(status) => (status.revision != now.revision).then_some(Some(status)),
                None => Some(None),
            }
        })
        .await?;
    let absent = || no_such_env(&app.cluster(), &key);
    let access = &app.cluster().access;
    user.again(&app)?
        .check_app(access, &key.app, Role::Viewer, absent)?;
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
