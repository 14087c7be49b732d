//! Commands that users run in instances of their own (`platform run`).

use api::user::{DEFAULT_COMMAND_LIFETIME_MS, MAX_COMMAND_LIFETIME_MS, RunRequest, RunResponse};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use model::{EnvKey, InstanceId, ProcessName, Timestamp};
use scheduler::action::Action;
use scheduler::apply::Command;
use scheduler::cluster_state::ClusterState;
use scheduler::events::Origin;
use scheduler::planner::{CommandRefused, KeyedCall, WantedCommand};

use super::calls::{checked, node_of};
use super::extract::{Body, Path, no_such_env, readable};
use super::repeated::{Conditions, key_reused};
use crate::access::{Anyone, Deploying};
use crate::clock::{IdGenerator, now};
use crate::failure::ApiFailure;
use crate::rows::node_name;
use crate::state::App;

/// The process type where none is named.
const DEFAULT_PROCESS: &str = "web";

/// Makes the instance of a command.
pub(crate) async fn run(
    State(app): State<App>,
    Deploying { user, key }: Deploying,
    conditions: Conditions,
    Body(request): Body<RunRequest>,
) -> Result<(StatusCode, Json<RunResponse>), ApiFailure> {
    let conditions = conditions.of_call("run", &request)?;
    let call = conditions.call().zip(conditions.key);
    let call = call.map(|(digest, key)| KeyedCall {
        by: user.name.clone(),
        key,
        digest,
    });
    let command = checked(request.command)?;
    let lifetime_ms = request.lifetime_ms.unwrap_or(DEFAULT_COMMAND_LIFETIME_MS);
    if !(1..=MAX_COMMAND_LIFETIME_MS).contains(&lifetime_ms) {
        return Err(ApiFailure::bad_request(format!(
            "`lifetime_ms` is from 1 to {MAX_COMMAND_LIFETIME_MS}: a week"
        )));
    }
    let program = command[0].clone();
    let mut ids = IdGenerator::new()?;
    let at = now();
    let ends_at = Timestamp(at.0.saturating_add(lifetime_ms));
    let of = key.clone();
    let origin = Origin {
        by: (&user).into(),
        at,
    };
    let answer = app
        .decide(move |leader| {
            if let Some(call) = &call
                && let Some(run) = made_before(leader.state(), &of, call)?
            {
                return Ok(run);
            }
            let process = process(leader.state(), &of, request.process)?;
            let wanted = WantedCommand {
                env: of,
                process: process.clone(),
                command,
                attached: request.attached,
                ends_at,
                call,
            };
            let instance = leader
                .run_command(&origin, &wanted, &mut || ids.next())
                .map_err(refused)?;
            let cluster = leader.state();
            let made = cluster.instances.get(&instance);
            let made =
                made.ok_or_else(|| ApiFailure::internal(&CommandRefused::Blocked(String::new())))?;
            Ok::<_, ApiFailure>(RunResponse {
                instance,
                release: made.spec.release,
                process,
                node: made.node,
                node_name: node_name(cluster, made.node),
                ends_at,
            })
        })
        .await?;
    tracing::info!(
        user = %user.name, env = %key, instance = %answer.instance, program,
        "a command is run in an instance of its own"
    );
    app.wake.notify_one();
    Ok((StatusCode::CREATED, Json(answer)))
}

/// The run that the same call has made before.
fn made_before(
    cluster: &ClusterState,
    env: &EnvKey,
    call: &KeyedCall,
) -> Result<Option<RunResponse>, ApiFailure> {
    let runs = cluster.envs.get(env).map(|env| &env.runs);
    let Some(run) = runs.and_then(|runs| runs.find(&call.by, &call.key)) else {
        return Ok(None);
    };
    if run.call != call.digest {
        return Err(key_reused(&format!("instance {} of {env}", run.instance)));
    }
    Ok(Some(RunResponse {
        instance: run.instance,
        release: run.release,
        process: run.process.clone(),
        node: run.node,
        node_name: node_name(cluster, run.node),
        ends_at: run.ends_at,
    }))
}

/// Ends a command.
pub(crate) async fn end(
    State(app): State<App>,
    Anyone(user): Anyone,
    Path(instance): Path<InstanceId>,
) -> Result<StatusCode, ApiFailure> {
    node_of(&app, &user, instance)?;
    let by = user.name.clone();
    app.change_by(&user, move |cluster| {
        let found = cluster.instances.get(&instance);
        let commands = match found {
            Some(found) if !found.spec.runs.is_command() => {
                return Err(ApiFailure::conflict(
                    "not_a_command",
                    format!("instance {instance} is the app's: it was not made by `platform run`"),
                )
                .hint("`platform scale` sets how many instances of the app there are"));
            }
            Some(found) if !found.is_terminating() => vec![Command::Plan(Action::Terminate {
                id: instance,
                reason: format!("{by} ended it"),
            })],
            _ => Vec::new(),
        };
        Ok((commands, ()))
    })
    .await?;
    tracing::info!(user = %user.name, %instance, "a command is ended");
    app.wake.notify_one();
    Ok(StatusCode::NO_CONTENT)
}

/// The process type of a command: as named, else `web`, else the only one.
fn process(
    cluster: &ClusterState,
    key: &EnvKey,
    named: Option<ProcessName>,
) -> Result<ProcessName, ApiFailure> {
    readable(cluster, key)?;
    let env = cluster
        .envs
        .get(key)
        .ok_or_else(|| no_such_env(cluster, key))?;
    if let Some(named) = named {
        return Ok(named);
    }
    let release = env.releases.get(&env.rollout.wanted);
    let processes = release.map(|release| &release.manifest.processes);
    let names: Vec<&ProcessName> = processes.into_iter().flat_map(|all| all.keys()).collect();
    let web = names.iter().find(|name| name.as_str() == DEFAULT_PROCESS);
    match (web, names.as_slice()) {
        (Some(name), _) => Ok((*name).clone()),
        (None, [only]) => Ok((*only).clone()),
        (None, several) => {
            let several: Vec<_> = several.iter().map(|name| name.as_str()).collect();
            Err(ApiFailure::refused(
                "process_needed",
                format!("{key} has several process types, and none of them is {DEFAULT_PROCESS}"),
            )
            .hint(format!(
                "name the one whose image, variables and secrets the command is to have: {}",
                several.join(", ")
            )))
        }
    }
}

fn refused(refused: CommandRefused) -> ApiFailure {
    let text = refused.to_string();
    match refused {
        CommandRefused::NoRelease(_) => {
            ApiFailure::not_found("release_not_found", text).hint("`platform deploy` makes one")
        }
        CommandRefused::NoProcess { .. } => ApiFailure::refused("process_not_found", text),
        CommandRefused::TooMany(_) => {
            ApiFailure::new(StatusCode::TOO_MANY_REQUESTS, "too_many_commands", text)
                .hint("`platform ps` shows them; they leave when they have ended")
        }
        CommandRefused::Frozen { .. } => ApiFailure::conflict("env_frozen", text),
        CommandRefused::Blocked(_) => ApiFailure::conflict("not_placed", text)
            .hint("`platform nodes` shows what the nodes have left"),
    }
}
