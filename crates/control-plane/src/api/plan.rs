//! What a deploy would do: as a deploy up to the point where it is recorded, and then the planner on a copy.
//!
//! The copy is the state that is published, and the planner runs apart from the leader, one at a time: a large cluster costs the caller time,
//! and nobody else.

use std::collections::{BTreeMap, BTreeSet};

use api::user::{
    DeployRequest, ManifestChange, OrgQuery, PlanResponse, PlannedPlace, PlannedProcess,
};
use axum::Json;
use axum::extract::State;
use blocking_work::blocking;
use manifest::Manifest;
use model::{EnvKey, ProcessName};
use scheduler::apply::Command;
use scheduler::cluster_state::{ClusterState, Release};
use scheduler::planner::{DryRun, dry_run};
use serde_json::Value;

use super::deploy::{Prepared, add_release, check_against, prepare, with_others};
use super::extract::{Body, Params};
use crate::access::Making;
use crate::clock::{IdGenerator, now};
use crate::failure::ApiFailure;
use crate::rows::node_name;
use crate::state::App;

/// Says what a deploy would do.
pub(crate) async fn plan(
    State(app): State<App>,
    Making { user, key }: Making,
    Params(OrgQuery { org }): Params<OrgQuery>,
    Body(request): Body<DeployRequest>,
) -> Result<Json<PlanResponse>, ApiFailure> {
    let only = request.only.clone();
    let Prepared {
        release, warnings, ..
    } = prepare(&app, &key, &user, &request).await?;
    let cluster = app.cluster();
    let claim = user.claim(&cluster, &key.app, org.as_ref())?;
    let release = with_others(&cluster, &key, release, &only)?;
    let current = (cluster.envs.get(&key)).and_then(|env| {
        env.releases
            .get(&env.rollout.wanted)
            .map(|r| (env.rollout.wanted, r))
    });
    let mut response = PlanResponse {
        current: current.map(|(number, _)| number),
        changes: false,
        image_ref_digest: Some(release.image_ref_digest.clone()),
        current_image_ref_digest: current
            .map(|(_, current)| current.image_ref_digest.clone())
            .filter(|digest| *digest != release.image_ref_digest),
        manifest: changes(
            current.map(|(_, current)| &current.manifest),
            &release.manifest,
        ),
        secrets: BTreeMap::new(),
        refused: None,
        processes: Vec::new(),
        blocked: Vec::new(),
        outcome: None,
        warnings,
    };
    let secrets = match check_against(&cluster, &user, &key, &release.manifest) {
        Ok(secrets) => match app.secrets.check_fit(&key, &release.manifest).await {
            Ok(()) => secrets,
            Err(refused) => return Ok(Json(refuse(response, refused))),
        },
        Err(refused) => return Ok(Json(refuse(response, refused))),
    };
    let release = Release { secrets, ..release };
    response.secrets = secret_changes(current.map(|(_, current)| current), &release);
    response.changes = current.is_none()
        || response.current_image_ref_digest.is_some()
        || !response.manifest.is_empty()
        || !response.secrets.is_empty();
    let commands = match add_release(&cluster, &key, release.clone()) {
        Ok((commands, _)) => claim.into_iter().chain(commands).collect::<Vec<_>>(),
        Err(refused) => return Ok(Json(refuse(response, refused))),
    };
    let _turn = app
        .plans
        .acquire()
        .await
        .map_err(|_| ApiFailure::stopping())?;
    let (state, of) = (cluster.clone(), key.clone());
    let run = blocking(move || run(&state, &of, &commands)).await?;
    response.blocked = run
        .blocked
        .iter()
        .map(|finding| match &finding.process {
            Some(process) => format!("{process}: {}", finding.message),
            None => finding.message.clone(),
        })
        .collect();
    response.outcome = run.is_whole.then_some(run.phase);
    response.processes = processes(&cluster, &key, &release, &run, &response);
    Ok(Json(response))
}

fn run(cluster: &ClusterState, key: &EnvKey, commands: &[Command]) -> Result<DryRun, ApiFailure> {
    let mut ids = IdGenerator::new()?;
    Ok(dry_run(cluster, key, commands, now(), &mut || ids.next())?)
}

fn refuse(response: PlanResponse, refused: ApiFailure) -> PlanResponse {
    PlanResponse {
        refused: Some(refused.into_error()),
        changes: true,
        ..response
    }
}

/// What is another in the canonical manifest, in the order of paths.
fn changes(before: Option<&Manifest>, after: &Manifest) -> Vec<ManifestChange> {
    let values = |manifest: &Manifest| {
        let mut values = BTreeMap::new();
        // Canonical JSON is JSON.
        let json = serde_json::from_str(&manifest::normalize(manifest)).unwrap_or_default();
        flatten(String::new(), json, &mut values);
        values
    };
    let before = before.map(values).unwrap_or_default();
    let after = values(after);
    let paths: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changed = paths
        .into_iter()
        .filter(|path| before.get(*path) != after.get(*path));
    changed
        .map(|path| ManifestChange {
            path: path.clone(),
            before: before.get(path).cloned(),
            after: after.get(path).cloned(),
        })
        .collect()
}

/// Every value that is no table, by its path. A list is one value: its items have no names.
fn flatten(path: String, value: Value, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                // A host has dots.
                let name = if name.contains('.') {
                    format!("\"{name}\"")
                } else {
                    name
                };
                let path = if path.is_empty() {
                    name
                } else {
                    format!("{path}.{name}")
                };
                flatten(path, value, into);
            }
        }
        value => {
            into.insert(path, value);
        }
    }
}

fn secret_changes(
    before: Option<&Release>,
    after: &Release,
) -> BTreeMap<String, (Option<u32>, Option<u32>)> {
    let nothing = BTreeMap::new();
    let before = before.map_or(&nothing, |release| &release.secrets);
    let bundles: BTreeSet<&String> = before.keys().chain(after.secrets.keys()).collect();
    let both = bundles.into_iter().map(|bundle| {
        let versions = (
            before.get(bundle).copied(),
            after.secrets.get(bundle).copied(),
        );
        (bundle.clone(), versions)
    });
    both.filter(|(_, (before, after))| before != after)
        .collect()
}

/// What becomes of each process type.
fn processes(
    cluster: &ClusterState,
    key: &EnvKey,
    release: &Release,
    run: &DryRun,
    response: &PlanResponse,
) -> Vec<PlannedProcess> {
    let mut all: BTreeMap<ProcessName, PlannedProcess> = BTreeMap::new();
    let of = |all: &mut BTreeMap<ProcessName, PlannedProcess>, process: &ProcessName| {
        all.entry(process.clone())
            .or_insert_with(|| PlannedProcess {
                process: process.clone(),
                stays: Vec::new(),
                ends: Vec::new(),
                places: Vec::new(),
                because: because(process, release, response),
            });
    };
    for process in release.manifest.processes.keys() {
        of(&mut all, process);
    }
    for (id, instance) in cluster.instances.of_env(key) {
        if instance.is_terminating() || !instance.spec.runs.is_app() {
            continue;
        }
        of(&mut all, &instance.spec.process);
        if let Some(planned) = all.get_mut(&instance.spec.process) {
            if run.terminated.contains_key(&id) {
                planned.ends.push(id);
            } else {
                planned.stays.push(id);
            }
        }
    }
    for (_, process, node) in &run.created {
        if let Some(planned) = all.get_mut(process) {
            planned.places.push(PlannedPlace {
                node: *node,
                node_name: node_name(cluster, *node),
            });
        }
    }
    all.into_values().collect()
}

/// What is another for a process type.
fn because(process: &ProcessName, release: &Release, response: &PlanResponse) -> Vec<String> {
    let own = format!("processes.{process}.");
    let mut because = Vec::new();
    if response.current_image_ref_digest.is_some() && !release.kept.contains_key(process) {
        because.push("image".to_owned());
    }
    let bundles = release
        .manifest
        .processes
        .get(process)
        .map(|process| &process.secrets);
    let bundles = bundles.into_iter().flatten();
    let changed = bundles.filter(|bundle| response.secrets.contains_key(*bundle));
    because.extend(changed.map(|bundle| format!("secrets.{bundle}")));
    let paths = response.manifest.iter().map(|change| &change.path);
    let concerned = paths.filter(|path| path.starts_with(&own) || path.starts_with("env."));
    because.extend(concerned.cloned());
    because
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn manifest(text: &str) -> Manifest {
        Manifest::from_toml("platform.toml", text).unwrap().manifest
    }

    #[test]
    fn changes_of_a_manifest_are_named_by_path() {
        let before = manifest(
            "app = \"shop\"\n[processes.web]\n[processes.web.scaling]\nmin = 1\n[processes.old]\n",
        );
        let after = manifest(
            "app = \"shop\"\n[env]\nA = \"1\"\n[processes.web]\n[processes.web.scaling]\nmin = 2\nmax = 2\n",
        );
        assert!(changes(Some(&before), &before).is_empty());
        let changed = changes(Some(&before), &after);
        let at = |path: &str| changed.iter().find(|change| change.path == path);
        let min = at("processes.web.scaling.min").unwrap();
        assert_eq!(
            (&min.before, &min.after),
            (&Some(1.into()), &Some(2.into()))
        );
        assert_eq!(at("env.A").unwrap().before, None);
        assert!(
            changed
                .iter()
                .any(|c| c.path.starts_with("processes.old") && c.after.is_none())
        );
        assert!(!changes(None, &after).is_empty());
    }
}
