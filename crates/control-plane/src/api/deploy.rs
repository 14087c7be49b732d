//! Deploying: a manifest and an image become a release, or are refused with the cause. Until the
//! release is recorded, nothing in the cluster changes.

use std::collections::{BTreeMap, BTreeSet};

use api::user::{DeployQuery, DeployRequest, DeployResponse, NewestReleaseQuery, Role};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use manifest::{Colour, Manifest, render};
use model::image::ImageConfig;
use model::{EnvKey, ProcessName, ReleaseNumber};
use oci::{ImageError, Platform, Reference, Resolved};
use overlay::address_plan::next_network;
use registry::{Problem, RegistryError};
use scheduler::apply::Command;
use scheduler::cluster_state::{ClusterState, Env, Release};
use scheduler::keyed_runs::KeyedRuns;
use scheduler::release::{ReleaseError, keep_others, secret_versions};
use scheduler::rollout::begin;
use scheduler::routes::taken_hosts;
use scheduler::table::Table;

use super::extract::{Body, Params, is_destroyed, no_such_env, readable};
use super::repeated::Conditions;
use crate::access::{Deploying, Making, User};
use crate::clock::now;
use crate::failure::ApiFailure;
use crate::limits::RESOLVE_TIMEOUT;
use crate::state::App;

/// What diagnostics call the manifest that came with the request.
const MANIFEST_NAME: &str = "platform.toml";
/// Most warnings of a deploy.
const MAX_WARNINGS: usize = 16;
/// Most bytes of an image's path in a warning.
const MAX_PATH_BYTES: usize = 200;
/// The architecture an image is resolved for while no node has joined.
const ARCH_WITHOUT_NODES: &str = "amd64";

/// Records a release and begins its rollout.
pub(crate) async fn deploy(
    State(app): State<App>,
    Making { user, key }: Making,
    Params(DeployQuery { org, .. }): Params<DeployQuery>,
    conditions: Conditions,
    Body(request): Body<DeployRequest>,
) -> Result<(StatusCode, Json<DeployResponse>), ApiFailure> {
    let manifest = parse_manifest(&key, &request.manifest)?;
    readable(&app.cluster(), &key)?;
    let (asked, text) = (manifest.clone(), request.image.parse::<Reference>());
    let text = text.map(|reference| reference.to_string()).ok();
    let conditions = conditions.of_call("deploy", &request)?;
    let is_same = move |made: &Release| {
        made.rollback_to.is_none()
            && made.image == text
            // Of a release of some process types, the others' parts are those of before.
            && (made.manifest == asked || !made.kept.is_empty())
    };
    if let Some((number, release)) =
        conditions.made_before(&app.cluster(), &key, &user.name, &is_same)?
    {
        return Ok((StatusCode::CREATED, Json(recorded(number, release))));
    }
    conditions.check_newest(&app.cluster(), &key)?;
    // A release that would be refused anyway is refused before the registry is asked.
    check_only(&app.cluster(), &key, &manifest, &request.only)?;
    check_against(&app.cluster(), &user, &key, &manifest)?;
    app.secrets.check_fit(&key, &manifest).await?;
    let Prepared {
        release,
        warnings,
        reference,
        resolved,
    } = prepare(&app, &key, &user, &request).await?;
    let release = Release {
        idempotency_key: conditions.key.clone(),
        idempotency_call: conditions.call(),
        ..release
    };
    let only = request.only;
    let (of, by) = (key.clone(), user.clone());
    let number = app
        .change_by(&user, move |cluster| {
            if let Some((number, _)) = conditions.made_before(cluster, &of, &by.name, &is_same)? {
                return Ok((Vec::new(), number));
            }
            conditions.check_newest(cluster, &of)?;
            let claim = by.claim(cluster, &of.app, org.as_ref())?;
            let release = with_others(cluster, &of, release, &only)?;
            let secrets = check_against(cluster, &by, &of, &release.manifest)?;
            let release = Release { secrets, ..release };
            let (commands, number) = add_release(cluster, &of, release)?;
            Ok::<_, ApiFailure>((claim.into_iter().chain(commands).collect(), number))
        })
        .await?;
    tracing::info!(
        user = %user.name,
        env = %key,
        release = %number,
        image = %reference,
        digest = %resolved.ref_digest,
        "deployed"
    );
    app.wake.notify_one();
    let response = DeployResponse {
        release: number,
        image_ref_digest: resolved.ref_digest,
        resolved_image_digest: resolved.by_arch,
        pinned_tag: resolved.pinned_tag,
        warnings,
    };
    Ok((StatusCode::CREATED, Json(response)))
}

/// A release that is not recorded yet, without its secrets and what it leaves as it is.
pub(crate) struct Prepared {
    pub(crate) release: Release,
    pub(crate) warnings: Vec<String>,
    reference: Reference,
    resolved: Resolved,
}

/// Makes a release of a manifest and an image, which it resolves.
pub(crate) async fn prepare(
    app: &App,
    key: &EnvKey,
    user: &User,
    request: &DeployRequest,
) -> Result<Prepared, ApiFailure> {
    let only = &request.only;
    let manifest = parse_manifest(key, &request.manifest)?;
    readable(&app.cluster(), key)?;
    check_only(&app.cluster(), key, &manifest, only)?;
    let (reference, resolved) = resolve(app, user, &request.image).await?;
    check_runnable(&reference, &resolved, &manifest, only)?;
    let images = resolved.images.values().map(|image| &image.config);
    let warnings = unkept_volumes(&manifest, images);
    let pinned = resolved.by_arch.iter();
    let release = Release {
        manifest,
        image_ref_digest: resolved.ref_digest.clone(),
        resolved: pinned
            .map(|(arch, digest)| (arch.clone(), reference.pinned_image(digest)))
            .collect(),
        secrets: BTreeMap::new(),
        kept: BTreeMap::new(),
        created_at: now(),
        by: Some(user.name.clone()),
        image: Some(reference.to_string()),
        rollback_to: None,
        idempotency_key: None,
        idempotency_call: None,
    };
    Ok(Prepared {
        release,
        warnings,
        reference,
        resolved,
    })
}

/// The release with the process types that it leaves as they are.
pub(crate) fn with_others(
    cluster: &ClusterState,
    key: &EnvKey,
    release: Release,
    only: &BTreeSet<ProcessName>,
) -> Result<Release, ApiFailure> {
    if only.is_empty() {
        return Ok(release);
    }
    Ok(keep_others(release, &wanted(cluster, key)?, only))
}

/// Records a release as the wanted one, with the newest versions of its secret bundles, and begins
/// its rollout.
pub(crate) async fn redeploy(
    State(app): State<App>,
    Deploying { user, key }: Deploying,
    Params(_): Params<NewestReleaseQuery>,
    conditions: Conditions,
) -> Result<(StatusCode, Json<DeployResponse>), ApiFailure> {
    let conditions = conditions.of_call("redeploy", &())?;
    let is_same = |made: &Release| made.rollback_to.is_none();
    let release = wanted(&app.cluster(), &key)?;
    app.secrets.check_fit(&key, &release.manifest).await?;
    let (of, by) = (key.clone(), user.clone());
    let (number, release) = app
        .change_by(&user, move |cluster| {
            if let Some(made) = conditions.made_before(cluster, &of, &by.name, is_same)? {
                return Ok((Vec::new(), made));
            }
            conditions.check_newest(cluster, &of)?;
            let mut release = wanted(cluster, &of)?;
            release.secrets = check_against(cluster, &by, &of, &release.manifest)?;
            for kept in release.kept.values_mut() {
                kept.secrets.clone_from(&release.secrets);
            }
            release.created_at = now();
            release.by = Some(by.name);
            release.rollback_to = None;
            release.idempotency_call = conditions.call();
            release.idempotency_key = conditions.key;
            let (commands, number) = add_release(cluster, &of, release.clone())?;
            Ok::<_, ApiFailure>((commands, (number, release)))
        })
        .await?;
    tracing::info!(user = %user.name, env = %key, release = %number, "deployed again");
    app.wake.notify_one();
    Ok((StatusCode::CREATED, Json(recorded(number, release))))
}

/// The answer about a release that was made of one that was there.
pub(crate) fn recorded(number: ReleaseNumber, release: Release) -> DeployResponse {
    let by_arch = release.resolved.into_iter();
    DeployResponse {
        release: number,
        image_ref_digest: release.image_ref_digest,
        resolved_image_digest: by_arch.map(|(arch, image)| (arch, image.digest)).collect(),
        pinned_tag: None,
        warnings: Vec::new(),
    }
}

/// Whether a release can be of these process types only.
fn check_only(
    cluster: &ClusterState,
    key: &EnvKey,
    manifest: &Manifest,
    only: &BTreeSet<ProcessName>,
) -> Result<(), ApiFailure> {
    if only.is_empty() {
        return Ok(());
    }
    if let Some(name) = only
        .iter()
        .find(|name| !manifest.processes.contains_key(*name))
    {
        let names: Vec<_> = manifest.processes.keys().map(ProcessName::as_str).collect();
        return Err(ApiFailure::refused(
            "process_not_found",
            format!(
                "the manifest has no process type {name}; there are: {}",
                names.join(", ")
            ),
        ));
    }
    if cluster.envs.contains_key(key) {
        return Ok(());
    }
    Err(ApiFailure::refused(
        "env_not_found",
        format!("{key} has no release yet whose other process types could stay as they are"),
    )
    .hint("deploy it whole first, without --only"))
}

/// The release of an env whose instances are wanted.
fn wanted(cluster: &ClusterState, key: &EnvKey) -> Result<Release, ApiFailure> {
    readable(cluster, key)?;
    let env = cluster.envs.get(key);
    let env = env.ok_or_else(|| no_such_env(cluster, key))?;
    let release = env.releases.get(&env.rollout.wanted).cloned();
    release.ok_or_else(|| no_such_env(cluster, key))
}

fn parse_manifest(key: &EnvKey, text: &str) -> Result<Manifest, ApiFailure> {
    let decoded = Manifest::from_toml(MANIFEST_NAME, text).map_err(|diagnostics| {
        ApiFailure::refused(
            "manifest_invalid",
            render(text, &diagnostics, Colour::Never),
        )
        .hint("`platform validate` shows the same, with colours")
    })?;
    let manifest = decoded.manifest;
    if manifest.app != key.app {
        return Err(ApiFailure::refused(
            "app_mismatch",
            format!(
                "the manifest is of app {}, and was to be deployed as {}",
                manifest.app, key.app
            ),
        ));
    }
    Ok(manifest)
}

/// Whether the env, its secret bundles, the volumes and the hosts are fit for this release; the
/// versions of the bundles that it gets.
pub(crate) fn check_against(
    cluster: &ClusterState,
    user: &User,
    key: &EnvKey,
    manifest: &Manifest,
) -> Result<BTreeMap<String, u32>, ApiFailure> {
    if cluster.envs.get(key).is_some_and(|env| env.destroying) {
        return Err(is_destroyed(key));
    }
    let nothing = BTreeMap::new();
    let newest = cluster.secrets.get(key).unwrap_or(&nothing);
    let secrets = secret_versions(manifest, newest).map_err(|refusal| {
        let bundle = match &refusal {
            ReleaseError::NoSecretBundle { bundle, .. } => bundle.as_str(),
            ReleaseError::NoProcess { .. } | ReleaseError::NoImageFor { .. } => "BUNDLE",
        };
        ApiFailure::refused("secret_not_found", refusal.to_string()).hint(format!(
            "make it: `platform secrets set {bundle} KEY=VALUE --app {} --env {}`",
            key.app, key.env
        ))
    })?;
    scheduler::release::check_volumes(cluster, key, manifest).map_err(|refusal| {
        ApiFailure::conflict("volume_size", refusal.to_string()).hint(
            "keep the size, or delete the volume with what is in it (`platform volumes delete`); on its node a \
             volume takes only what was written to it, so a new one can be large from the start",
        )
    })?;
    let taken = taken_hosts(cluster, key, manifest);
    if taken.is_empty() {
        return Ok(secrets);
    }
    let taken: Vec<_> = taken
        .iter()
        .map(|(host, owner)| {
            if user.sees_app(&cluster.access, &owner.app) {
                format!("{host} leads to {owner}")
            } else {
                // Whose it is is nobody else's business.
                format!("{host} leads elsewhere")
            }
        })
        .collect();
    Err(ApiFailure::conflict(
        "host_taken",
        format!(
            "another env has a host of this manifest: {}",
            taken.join(", ")
        ),
    )
    .hint(
        "choose another host, or deploy the other env without it first, where it is yours (`platform destroy` takes the whole env away)",
    ))
}

pub(crate) fn add_release(
    cluster: &ClusterState,
    key: &EnvKey,
    release: Release,
) -> Result<(Vec<Command>, ReleaseNumber), ApiFailure> {
    let now = release.created_at;
    let (command, number) = if let Some(env) = cluster.envs.get(key) {
        let last = env.releases.keys().next_back().map_or(0, |last| last.0);
        let number = ReleaseNumber(last + 1);
        let command = Command::AddRelease {
            env: key.clone(),
            number,
            release: Box::new(release),
            rollout: begin(Some(&env.rollout), number, now),
        };
        (command, number)
    } else {
        let network = next_network(cluster.last_network).ok_or_else(|| {
            ApiFailure::conflict("cluster_full", "no env network is left in this cluster")
        })?;
        let number = ReleaseNumber(1);
        let env = Env {
            network,
            releases: Table::from([(number, release)]),
            rollout: begin(None, number, now),
            scale: BTreeMap::new(),
            destroying: false,
            outcomes: BTreeMap::new(),
            runs: KeyedRuns::default(),
        };
        let command = Command::CreateEnv {
            key: key.clone(),
            env: Box::new(env),
        };
        (command, number)
    };
    Ok((vec![command], number))
}

/// A warning for each directory that the image declares as a volume and no volume of the manifest is at or above.
fn unkept_volumes<'i>(
    manifest: &Manifest,
    images: impl Iterator<Item = &'i ImageConfig>,
) -> Vec<String> {
    let volumes = manifest.processes.values().flat_map(|p| &p.volumes);
    let paths: Vec<&str> = volumes.filter_map(|v| v.path.as_deref()).collect();
    let is_kept = |declared: &str| {
        paths.iter().any(|path| {
            declared
                .strip_prefix(path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    };
    let declared: BTreeSet<String> = images
        .flat_map(|image| &image.volumes)
        .map(|path| absolute(path))
        .filter(|path| path != "/" && !is_kept(path))
        .collect();
    let warnings = declared.into_iter().map(|path| {
        let path = display::one_line(&path, MAX_PATH_BYTES);
        format!(
            "the image declares VOLUME {path}, which is on the scratch disk and is lost at each start; a \
             volume with `path = \"{path}\"` keeps it"
        )
    });
    warnings.take(MAX_WARNINGS).collect()
}

/// Resolves the image once, for the architectures of the nodes there are (ADR 0002).
async fn resolve(app: &App, user: &User, image: &str) -> Result<(Reference, Resolved), ApiFailure> {
    let reference: Reference = image.parse().map_err(|e: oci::ReferenceError| {
        ApiFailure::refused("image_reference_invalid", display::chain(&e))
    })?;
    let cluster = app.cluster();
    let mut archs: BTreeSet<_> = cluster
        .nodes
        .values()
        .map(|node| node.hardware.arch.as_str())
        .collect();
    if archs.is_empty() {
        archs.insert(ARCH_WITHOUT_NODES);
    }
    let platforms: Vec<_> = archs.into_iter().map(Platform::of).collect();
    let resolving = app.registry.resolve(&reference, &platforms);
    let resolved = tokio::time::timeout(RESOLVE_TIMEOUT, resolving)
        .await
        .map_err(|_| {
            let what = reference.to_string();
            ApiFailure::registry_too_slow(reference.registry(), &what, RESOLVE_TIMEOUT)
        })?
        .map_err(|error| {
            let registry = reference.registry();
            let denied = format!(
                "`platform registries login {registry}` lets the cluster in; or deploy with \
                 --with-registry-auth"
            );
            if user.grants.cluster >= Some(Role::Admin) {
                registry_failed(&error, &denied)
            } else {
                registry_failed_of_others(&error, registry, user, &denied)
            }
        })?;
    Ok((reference, resolved))
}

/// Whether every process has something to run and a signal to stop it: a node would find that out after the image was
/// fetched and its disk was built.
fn check_runnable(
    reference: &Reference,
    resolved: &Resolved,
    manifest: &Manifest,
    only: &BTreeSet<ProcessName>,
) -> Result<(), ApiFailure> {
    for (arch, image) in &resolved.images {
        let deployed = manifest.processes.iter();
        for (name, process) in deployed.filter(|(name, _)| only.is_empty() || only.contains(*name))
        {
            let command = process.command.as_deref();
            if node_core::boot::argv(&image.config, command).is_none() {
                return Err(ApiFailure::refused(
                    "no_command",
                    format!(
                        "{reference} has neither Entrypoint nor Cmd for {arch}, and process {name} has no `command`"
                    ),
                )
                .hint(format!("name one in the manifest: `processes.{name}.command`")));
            }
            let signal = process.stop.signal.as_deref();
            let signal = signal.unwrap_or(&image.config.stop_signal);
            if !signal.is_empty() && node_core::boot::signal_name(signal).is_none() {
                return Err(ApiFailure::refused(
                    "no_such_signal",
                    format!(
                        "the StopSignal `{}` of {reference} is not a signal",
                        signal.escape_debug()
                    ),
                )
                .hint(format!(
                    "name one in the manifest: `processes.{name}.stop.signal`"
                )));
            }
        }
    }
    Ok(())
}

/// As [`registry_failed`], for who is no admin of the cluster. The server reaches what they do not, and they name the address: what it met there other than a
/// registry is told in the server's log only.
fn registry_failed_of_others(
    error: &RegistryError,
    registry: &str,
    user: &User,
    denied: &str,
) -> ApiFailure {
    let (status, code, text, hint) = match &error.problem {
        Problem::Unreachable { .. }
        | Problem::UnsafeRedirect { .. }
        | Problem::RefusedAddress { .. }
        | Problem::Refused {
            retry_after: None, ..
        } => (
            StatusCode::BAD_GATEWAY,
            "registry_unreachable",
            format!("{registry} is no registry that the server can use"),
            "check its name; the server's log has what was met there",
        ),
        // Without what it answered.
        Problem::Denied { .. } => (
            StatusCode::UNPROCESSABLE_ENTITY,
            "image_denied",
            format!(
                "cannot {} {}: {registry} denies access",
                error.operation, error.image
            ),
            denied,
        ),
        _ => return registry_failed(error, denied),
    };
    tracing::warn!(
        user = %user.name, registry, cause = display::chain(error),
        "an image of a registry could not be resolved"
    );
    ApiFailure::new(status, code, text).hint(hint)
}

/// What a registry's failure means for the caller; `denied` is what to do where it wants another login.
pub(crate) fn registry_failed(error: &RegistryError, denied: &str) -> ApiFailure {
    let (status, code) = match &error.problem {
        Problem::NotFound { .. } => (StatusCode::NOT_FOUND, "image_not_found"),
        Problem::Denied { .. } | Problem::Credentials { .. } => {
            (StatusCode::UNPROCESSABLE_ENTITY, "image_denied")
        }
        Problem::Image(ImageError::NoSuchPlatform { .. }) => {
            (StatusCode::UNPROCESSABLE_ENTITY, "image_wrong_platform")
        }
        problem if problem.retry_after().is_some() => {
            (StatusCode::SERVICE_UNAVAILABLE, "registry_busy")
        }
        problem if problem.is_transient() => (StatusCode::BAD_GATEWAY, "registry_unreachable"),
        Problem::RefusedAddress { .. } => {
            (StatusCode::UNPROCESSABLE_ENTITY, "registry_address_refused")
        }
        Problem::Refused { .. } => (StatusCode::BAD_GATEWAY, "registry_refused"),
        _ => (StatusCode::UNPROCESSABLE_ENTITY, "image_invalid"),
    };
    let mut failure = ApiFailure::new(status, code, display::chain(error));
    if let Some(wait) = error.problem.retry_after() {
        failure = failure.retry_after(wait);
    }
    match (&error.problem, error.problem.hint()) {
        (Problem::Denied { .. }, _) => failure.hint(denied),
        (_, Some(hint)) => failure.hint(hint),
        (_, None) => failure,
    }
}

/// A path of an image as it is in the guest: from the root, and without `.`, `..` and empty parts.
fn absolute(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use manifest::Manifest;
    use model::image::ImageConfig;

    use super::unkept_volumes;

    #[test]
    fn case_a_volume_of_the_image_that_no_volume_keeps_is_warned_of() {
        let image = ImageConfig {
            volumes: ["../data", "/var/lib//shop/", "/var/lib/shopping", "/", "."]
                .map(str::to_owned)
                .to_vec(),
            ..ImageConfig::default()
        };
        let warned = |paths: &[&str]| {
            let mut text = "app = 'shop'\n[processes.web]\nvolumes = [".to_owned();
            for (number, path) in paths.iter().enumerate() {
                text += &format!("{{ name = 'v{number}', size = '1GiB', path = '{path}' }},");
            }
            let decoded = Manifest::from_toml("platform.toml", &(text + "]"));
            let manifest = decoded.map(|decoded| decoded.manifest);
            let warnings = manifest.map(|manifest| unkept_volumes(&manifest, [&image].into_iter()));
            warnings.unwrap_or_default()
        };
        assert_eq!(
            warned(&[])[0],
            "the image declares VOLUME /data, which is on the scratch disk and is lost at each start; a volume with \
             `path = \"/data\"` keeps it"
        );
        assert_eq!((warned(&[]).len(), warned(&["/var/lib"]).len()), (3, 1));
        assert_eq!(warned(&["/data", "/var/lib/shop"]).len(), 1);
        assert!(warned(&["/data", "/var/lib"]).is_empty());
    }
}
