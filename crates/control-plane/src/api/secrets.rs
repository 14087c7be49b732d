//! Secret bundles: users set, list and delete them; nodes get the bundles that their instances boot with.

use std::collections::BTreeMap;

use api::user::{OrgQuery, RolloutPhase, SecretRow, SetSecretsRequest};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use model::instance::SecretBundle;
use model::{BundleName, EnvKey, InstanceId};
use scheduler::apply::Command;
use scheduler::changes::SealedVersion;
use scheduler::cluster_state::ClusterState;
use serde::Deserialize;

use super::extract::{Body, Params, Path, is_destroyed};
use crate::access::{Deploying, Making, Viewing};
use crate::callers::NodeCaller;
use crate::clock::now;
use crate::failure::ApiFailure;
use crate::limits::MAX_SECRET_ATTEMPTS;
use crate::state::App;

/// A bundle of an env, as the path names it.
#[derive(Debug, Deserialize)]
pub(crate) struct InBundle {
    bundle: BundleName,
}

/// The bundles of an env.
pub(crate) async fn list(
    State(app): State<App>,
    Viewing { key, .. }: Viewing,
) -> Result<Json<Vec<SecretRow>>, ApiFailure> {
    let live = live_versions(&app.cluster(), &key);
    let bundles = app.secrets.newest(&key, None).await?;
    let rows = bundles.into_iter().map(|(name, bundle)| SecretRow {
        live: live.get(&name).copied(),
        name,
        version: bundle.version,
        files: bundle.files.into_keys().collect(),
        created_at: bundle.created_at,
    });
    Ok(Json(rows.collect()))
}

/// Makes a new version of a bundle. What runs keeps the version of its release.
pub(crate) async fn set(
    State(app): State<App>,
    Making { user, key }: Making,
    Path(InBundle { bundle }): Path<InBundle>,
    Params(OrgQuery { org }): Params<OrgQuery>,
    Body(request): Body<SetSecretsRequest>,
) -> Result<Json<SecretRow>, ApiFailure> {
    let name = bundle.to_string();
    let mut version = None;
    // Whoever sets the same bundle at the same time comes before or after, and neither is lost.
    for _ in 0..MAX_SECRET_ATTEMPTS {
        // Before what it is made from is read: who sets it meanwhile makes the number another.
        let next = app.cluster().next_secret_version(&key, &name);
        let next = next.ok_or_else(|| {
            ApiFailure::conflict(
                "secret_versions_used_up",
                format!("the secret bundle {name} of {key} has no number left for a version"),
            )
            .hint("make a bundle of another name")
        })?;
        let sealed = app.secrets.next(&key, &name, next, &request).await?;
        let (env, bundle) = (key.clone(), name.clone());
        let (by, org) = (user.clone(), org.clone());
        let setting = app.change_by(&user, move |cluster| {
            let claim = by.claim(cluster, &env.app, org.as_ref())?;
            if cluster.envs.get(&env).is_some_and(|env| env.destroying) {
                return Err(is_destroyed(&env));
            }
            if cluster.next_secret_version(&env, &bundle) != Some(next) {
                return Ok((Vec::new(), None));
            }
            let command = Command::AddSecretVersion {
                env,
                bundle,
                version: next,
                content: SealedVersion {
                    sealed,
                    created_at: now(),
                },
            };
            Ok((claim.into_iter().chain([command]).collect(), Some(next)))
        });
        version = setting.await?;
        if version.is_some() {
            break;
        }
    }
    let version = version.ok_or_else(|| {
        ApiFailure::conflict(
            "secret_busy",
            format!("the secret bundle {name} of {key} is being set by others all the time"),
        )
        .hint("try again")
    })?;
    tracing::info!(user = %user.name, env = %key, bundle = %name, version, "set secrets");
    app.wake.notify_one();
    let mut bundles = app.secrets.newest(&key, Some(&name)).await?;
    let bundle = bundles
        .remove(&name)
        .ok_or_else(|| no_such_bundle(&key, &name))?;
    Ok(Json(SecretRow {
        live: live_versions(&app.cluster(), &key).get(&name).copied(),
        name,
        version: bundle.version,
        files: bundle.files.into_keys().collect(),
        created_at: bundle.created_at,
    }))
}

/// Deletes a bundle that no release needs which runs or may be gone back to.
pub(crate) async fn delete(
    State(app): State<App>,
    Deploying { user, key }: Deploying,
    Path(InBundle { bundle }): Path<InBundle>,
) -> Result<StatusCode, ApiFailure> {
    let name = bundle.to_string();
    let (env, bundle) = (key.clone(), name.clone());
    app.change_by(&user, move |cluster| {
        let versions = cluster.secrets.get(&env);
        if !versions.is_some_and(|versions| versions.contains_key(&bundle)) {
            return Err(no_such_bundle(&env, &bundle));
        }
        if let Some(release) = needed_by(cluster, &env, &bundle) {
            return Err(ApiFailure::conflict(
                "secret_in_use",
                format!("the secret bundle {bundle} of {env} is needed by {release}"),
            )
            .hint("deploy a manifest without it first"));
        }
        Ok((vec![Command::DeleteSecrets { env, bundle }], ()))
    })
    .await?;
    tracing::info!(user = %user.name, env = %key, bundle = %name, "deleted secrets");
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
pub(crate) struct OfInstance {
    instance: InstanceId,
}

/// What an instance boots with, for the node it is placed on and for no other.
pub(crate) async fn for_node(
    State(app): State<App>,
    NodeCaller { node, .. }: NodeCaller,
    Params(of): Params<OfInstance>,
) -> Result<Json<Vec<SecretBundle>>, ApiFailure> {
    let cluster = app.cluster();
    let instance = cluster.instances.get(&of.instance);
    let Some(instance) = instance.filter(|instance| instance.node == node) else {
        return Err(ApiFailure::not_found(
            "instance_not_found",
            format!("{node} has no instance {}", of.instance),
        ));
    };
    let spec = &instance.spec;
    let bundles = app
        .secrets
        .of_instance(&spec.env_key(), &spec.secrets)
        .await?;
    Ok(Json(bundles))
}

/// The versions that the wanted release has.
fn live_versions(cluster: &ClusterState, key: &EnvKey) -> BTreeMap<String, u32> {
    let env = cluster.envs.get(key);
    let release = env.and_then(|env| env.releases.get(&env.rollout.wanted));
    release
        .map(|release| release.secrets.clone())
        .unwrap_or_default()
}

/// A release that runs or may be gone back to, and has the bundle.
fn needed_by(cluster: &ClusterState, key: &EnvKey, name: &str) -> Option<model::ReleaseNumber> {
    let env = cluster.envs.get(key)?;
    let rollout = &env.rollout;
    // A release that is done and gone needs its secrets no more.
    let is_done = rollout.phase == RolloutPhase::Done;
    let mut in_use: Vec<_> = [
        Some(rollout.wanted),
        Some(rollout.release),
        rollout.previous.filter(|_| !is_done),
    ]
    .into_iter()
    .flatten()
    .collect();
    let instances = cluster.instances.of_env(key);
    in_use.extend(instances.map(|(_, instance)| instance.spec.release));
    in_use.into_iter().find(|number| {
        let release = env.releases.get(number);
        release.is_some_and(|release| {
            let mut processes = release.manifest.processes.keys();
            processes.any(|process| release.secrets_of(process).contains_key(name))
        })
    })
}

fn no_such_bundle(key: &EnvKey, name: &str) -> ApiFailure {
    ApiFailure::not_found(
        "secret_not_found",
        format!("{key} has no secret bundle {name}"),
    )
    .hint("`platform secrets list` shows those there are")
}
