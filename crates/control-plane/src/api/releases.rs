//! The releases of an env, and the way back to one of them.

use api::user::{
    DeployResponse, NewestReleaseQuery, ReleaseDetails, ReleaseRow, RollbackRequest, RolloutPhase,
};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use model::{EnvKey, ReleaseNumber};
use scheduler::cluster_state::{ClusterState, Env, Release};
use serde::Deserialize;

use super::deploy::{add_release, check_against, recorded};
use super::extract::{Body, Params, Path, no_such_env, readable};
use super::repeated::Conditions;
use crate::access::{Deploying, Viewing};
use crate::clock::now;
use crate::failure::ApiFailure;
use crate::state::App;

/// The releases of an env that are kept, the newest first.
pub(crate) async fn list(
    State(app): State<App>,
    Viewing { key, .. }: Viewing,
) -> Result<Json<Vec<ReleaseRow>>, ApiFailure> {
    let cluster = app.cluster();
    let env = env(&cluster, &key)?;
    let rows = env.releases.iter().rev();
    Ok(Json(
        rows.map(|(number, release)| row(env, *number, release))
            .collect(),
    ))
}

/// A release of an env, as the path names it.
#[derive(Debug, Deserialize)]
pub(crate) struct OfEnv {
    release: ReleaseNumber,
}

/// A release with its manifest, for who may deploy: it has the values of variables.
pub(crate) async fn show(
    State(app): State<App>,
    Deploying { key, .. }: Deploying,
    Path(OfEnv { release: number }): Path<OfEnv>,
) -> Result<Json<ReleaseDetails>, ApiFailure> {
    let cluster = app.cluster();
    let (number, release) = target(&cluster, &key, Some(number))?;
    let manifest = serde_json::from_str(&manifest::normalize(&release.manifest));
    Ok(Json(ReleaseDetails {
        release: row(env(&cluster, &key)?, number, &release),
        // It was written as JSON.
        manifest: manifest.unwrap_or_default(),
    }))
}

fn row(env: &Env, number: ReleaseNumber, release: &Release) -> ReleaseRow {
    ReleaseRow {
        number,
        created_at: release.created_at,
        by: release.by.clone(),
        image: release.image.clone(),
        image_ref_digest: release.image_ref_digest.clone(),
        secrets: release.secrets.clone(),
        rollback_to: release.rollback_to,
        phase: phase(env, number),
        serving: env.rollout.wanted == number && env.rollout.phase != RolloutPhase::Failed,
        reason: (env.rollout.release == number)
            .then(|| env.rollout.reason.clone())
            .filter(|reason| !reason.is_empty()),
    }
}

fn env<'c>(cluster: &'c ClusterState, key: &EnvKey) -> Result<&'c Env, ApiFailure> {
    readable(cluster, key)?;
    cluster
        .envs
        .get(key)
        .ok_or_else(|| no_such_env(cluster, key))
}

/// How far the rollout of a release is, or how it ended; absent where a server of before saw that.
fn phase(env: &Env, number: ReleaseNumber) -> Option<RolloutPhase> {
    if env.rollout.release == number {
        return Some(env.rollout.phase);
    }
    env.outcomes.get(&number).copied()
}

/// Makes a release that is the same as an older one: its image, its manifest and the versions of its secrets; and begins its rollout.
pub(crate) async fn rollback(
    State(app): State<App>,
    Deploying { user, key }: Deploying,
    Params(_): Params<NewestReleaseQuery>,
    conditions: Conditions,
    Body(RollbackRequest { release: to }): Body<RollbackRequest>,
) -> Result<(StatusCode, Json<DeployResponse>), ApiFailure> {
    let conditions = conditions.of_call("rollback", &RollbackRequest { release: to })?;
    let is_same = |made: &Release| made.rollback_to.is_some();
    if let Some((number, release)) =
        conditions.made_before(&app.cluster(), &key, &user.name, is_same)?
    {
        return Ok((StatusCode::CREATED, Json(recorded(number, release))));
    }
    conditions.check_newest(&app.cluster(), &key)?;
    let (to, release) = target(&app.cluster(), &key, to)?;
    check_secrets(&app, &key, to, &release).await?;
    let (of, by) = (key.clone(), user.clone());
    let (number, release) = app
        .change_by(&user, move |cluster| {
            if let Some(made) = conditions.made_before(cluster, &of, &by.name, is_same)? {
                return Ok((Vec::new(), made));
            }
            conditions.check_newest(cluster, &of)?;
            let (_, release) = target(cluster, &of, Some(to))?;
            // Its versions of secrets stay its own.
            check_against(cluster, &by, &of, &release.manifest)?;
            let release = Release {
                created_at: now(),
                by: Some(by.name),
                rollback_to: Some(release.rollback_to.unwrap_or(to)),
                idempotency_call: conditions.call(),
                idempotency_key: conditions.key,
                ..release
            };
            let (commands, number) = add_release(cluster, &of, release.clone())?;
            Ok::<_, ApiFailure>((commands, (number, release)))
        })
        .await?;
    tracing::info!(%user, env = %key, release = %number, %to, "rolled back");
    app.wake.notify_one();
    Ok((StatusCode::CREATED, Json(recorded(number, release))))
}

/// The release that is gone back to.
fn target(
    cluster: &ClusterState,
    key: &EnvKey,
    to: Option<ReleaseNumber>,
) -> Result<(ReleaseNumber, Release), ApiFailure> {
    let env = env(cluster, key)?;
    let hint = format!(
        "`platform releases --app {} --env {}` lists those that are kept",
        key.app, key.env
    );
    let wanted = env.rollout.wanted;
    let Some(to) = to.or_else(|| env.before(wanted)) else {
        return Err(ApiFailure::conflict(
            "nothing_to_go_back_to",
            format!("{key} has no release before {wanted} that was rolled out wholly"),
        )
        .hint(hint));
    };
    match env.releases.get(&to) {
        Some(release) => Ok((to, release.clone())),
        None => Err(ApiFailure::not_found(
            "release_not_found",
            format!("{key} has no release {to}"),
        )
        .hint(hint)),
    }
}

/// The versions of secrets that the release has are there still.
async fn check_secrets(
    app: &App,
    key: &EnvKey,
    number: ReleaseNumber,
    release: &Release,
) -> Result<(), ApiFailure> {
    let kept = release.kept.values().flat_map(|kept| &kept.secrets);
    let versions = release.secrets.iter().chain(kept);
    for (bundle, version) in versions {
        if app
            .store
            .secret_bundle(key, bundle, *version)
            .await?
            .is_none()
        {
            return Err(ApiFailure::conflict(
                "secret_not_found",
                format!("release {number} has version {version} of the secret bundle {bundle}, which was deleted"),
            )
            .hint("deploy its manifest again: a release gets the newest versions"));
        }
    }
    Ok(())
}
