//! Calls on running instances: a command, a signal, stats. The server only finds the instance's node, asks it, and
//! joins the stream that the node opens to the user's.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::time::Duration;

use api::enrollment::Member;
use api::exec::EXEC_PROTOCOL;
use api::forward::FORWARD_PROTOCOL;
use api::node::{
    ExecWanted, InstanceStats, RefusalKind, SignalAnswer, StreamRefused, StreamWanted,
};
use api::user::{
    AttachQuery, ExecQuery, MAX_EXEC_COMMAND_BYTES, Role, SignalRequest, StatsQuery, StatsRow,
    is_terminal_type,
};
use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::{FromRequestParts, State};
use axum::response::Response;
use futures_util::future::join_all;
use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use model::{InstanceId, NodeId};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncWriteExt as _, copy, split};
use tokio::sync::oneshot;

use super::extract::{Body, Params, Path};
use super::lists::instances_of;
use crate::access::{Anyone, User};
use crate::failure::ApiFailure;
use crate::limits::{
    CALL_TIMEOUT, EXEC_HANG_UP_TIMEOUT, EXEC_NODE_CHECK, NODE_BUSY_RETRY, STREAM_OPEN_TIMEOUT,
};
use crate::rows::node_name;
use crate::slots::Slot;
use crate::state::App;
use crate::streams::{Answered, AskError, Waiting};

/// What a connection may be upgraded to.
const PROTOCOLS: [&str; 2] = [EXEC_PROTOCOL, FORWARD_PROTOCOL];

/// A request to go on with one of [`PROTOCOLS`] instead of HTTP.
pub(crate) struct Upgrade {
    pub(crate) connection: OnUpgrade,
    pub(crate) protocol: &'static str,
}

impl Upgrade {
    /// The connection, if this is the protocol that was asked for.
    pub(crate) fn to(self, protocol: &'static str) -> Result<OnUpgrade, ApiFailure> {
        if self.protocol == protocol {
            Ok(self.connection)
        } else {
            Err(upgrade_required(protocol))
        }
    }
}

fn upgrade_required(protocol: &str) -> ApiFailure {
    ApiFailure::new(
        StatusCode::UPGRADE_REQUIRED,
        "upgrade_required",
        format!("this path needs `Connection: upgrade` and `Upgrade: {protocol}`"),
    )
}

impl FromRequestParts<App> for Upgrade {
    type Rejection = ApiFailure;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiFailure> {
        let wanted = parts.headers.get(UPGRADE).map(HeaderValue::as_bytes);
        let known = PROTOCOLS
            .into_iter()
            .find(|known| wanted == Some(known.as_bytes()));
        match (parts.extensions.remove::<OnUpgrade>(), known) {
            (Some(connection), Some(protocol)) => Ok(Self {
                connection,
                protocol,
            }),
            _ => Err(upgrade_required(&PROTOCOLS.join("` or `Upgrade: "))),
        }
    }
}

/// 101: frames of the protocol from here on.
pub(crate) fn switching(protocol: &'static str) -> Response {
    let mut response = Response::new(HttpBody::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(protocol));
    response
}

/// Runs a command beside the app of an instance.
pub(crate) async fn exec(
    State(app): State<App>,
    Anyone(user): Anyone,
    Path(instance): Path<InstanceId>,
    Params(query): Params<ExecQuery>,
    upgrade: Upgrade,
) -> Result<Response, ApiFailure> {
    if let Some(text) = &query.terminal_type
        && !is_terminal_type(text)
    {
        return Err(ApiFailure::bad_request(
            "`terminal_type` is no type of a terminal, as TERM has it",
        ));
    }
    let wanted = ExecWanted {
        instance,
        terminal: query.rows.zip(query.columns),
        terminal_type: query.terminal_type,
        command: checked(query.command)?,
    };
    let node = node_of(&app, &user, instance)?;
    tracing::info!(user = %user.name, %instance, program = wanted.command[0], "a command is run");
    begin_exec(app, user, node, wanted, upgrade).await
}

/// Runs the command that an instance was made for, with the user at its streams.
pub(crate) async fn attach(
    State(app): State<App>,
    Anyone(user): Anyone,
    Path(instance): Path<InstanceId>,
    Params(query): Params<AttachQuery>,
    upgrade: Upgrade,
) -> Result<Response, ApiFailure> {
    if let Some(text) = &query.terminal_type
        && !is_terminal_type(text)
    {
        return Err(ApiFailure::bad_request(
            "`terminal_type` is no type of a terminal, as TERM has it",
        ));
    }
    let node = node_of(&app, &user, instance)?;
    let runs = app.cluster().instances.get(&instance).map(|i| i.spec.runs);
    if !runs.is_some_and(|runs| runs.is_attached()) {
        return Err(ApiFailure::conflict(
            "nothing_to_attach_to",
            format!("instance {instance} was not made for a command whose user is at its streams"),
        )
        .hint("`platform exec` runs a command beside the app of an instance"));
    }
    let wanted = ExecWanted {
        instance,
        terminal: query.rows.zip(query.columns),
        terminal_type: query.terminal_type,
        command: Vec::new(),
    };
    begin_exec(app, user, node, wanted, upgrade).await
}

async fn begin_exec(
    app: App,
    user: User,
    node: NodeId,
    wanted: ExecWanted,
    upgrade: Upgrade,
) -> Result<Response, ApiFailure> {
    let connection = upgrade.to(EXEC_PROTOCOL)?;
    let slot = (app.execs).take(
        &user.name,
        user.grants.cluster.is_some(),
        "too_many_commands",
        "commands are run beside apps",
    )?;
    let instance = wanted.instance;
    let ask = StreamWanted::Exec(wanted);
    let opened = open(&app, node, ask, STREAM_OPEN_TIMEOUT, Waiting::Exec).await?;
    let lost = lost(app.clone(), user, instance);
    tokio::spawn(join(app, node, connection, opened, (slot, lost)));
    Ok(switching(EXEC_PROTOCOL))
}

/// Opens one TCP connection to a port of an instance, whose node dials it.
pub(crate) async fn forward(
    State(app): State<App>,
    Anyone(user): Anyone,
    Path((instance, port)): Path<(InstanceId, NonZeroU16)>,
    upgrade: Upgrade,
) -> Result<Response, ApiFailure> {
    let port = port.get();
    let connection = upgrade.to(FORWARD_PROTOCOL)?;
    let slot = (app.forwards).take(
        &user.name,
        user.grants.cluster.is_some(),
        "too_many_connections",
        "connections are forwarded",
    )?;
    let node = node_of(&app, &user, instance)?;
    tracing::info!(user = %user.name, %instance, port, "a connection is forwarded");
    let ask = StreamWanted::Forward { instance, port };
    let opened = open(&app, node, ask, STREAM_OPEN_TIMEOUT, Waiting::Exec).await?;
    let lost = lost(app.clone(), user, instance);
    tokio::spawn(join(app, node, connection, opened, (slot, lost)));
    Ok(switching(FORWARD_PROTOCOL))
}

pub(crate) fn checked(command: Vec<String>) -> Result<Vec<String>, ApiFailure> {
    let bytes: usize = command.iter().map(|word| word.len() + 1).sum();
    if command.first().is_none_or(String::is_empty) {
        return Err(ApiFailure::bad_request("there is no command to run"));
    }
    if bytes > MAX_EXEC_COMMAND_BYTES || command.iter().any(|word| word.contains('\0')) {
        return Err(ApiFailure::bad_request(format!(
            "a command has at most {MAX_EXEC_COMMAND_BYTES} bytes, and none of them is 0"
        )));
    }
    Ok(command)
}

/// Waits until a user may not reach into an instance any more.
async fn lost(app: App, user: User, instance: InstanceId) {
    let of = app
        .cluster()
        .instances
        .get(&instance)
        .map(|found| found.spec.app.clone());
    match of {
        Some(of) => user.loses(&app, &of, Role::Deployer).await,
        // It is gone, and so is the stream.
        None => std::future::pending().await,
    }
}

/// Joins the user's connection to the node's until one of them ends it.
async fn join(
    app: App,
    node: NodeId,
    user: OnUpgrade,
    from_node: Upgraded,
    (_slot, lost): (Slot, impl Future<Output = ()> + Send),
) {
    let Ok(user) = user.await else {
        return; // Gone already; the node ends the command.
    };
    let tie = app.members.tie(Member::Node(node));
    let (mut user_says, mut user_hears) = split(TokioIo::new(user));
    let (mut node_says, mut node_hears) = split(TokioIo::new(from_node));
    tokio::select! {
        _ = copy(&mut node_says, &mut user_hears) => {
            // All was said. Bytes of the user that nobody read would make the kernel reset the
            // connection, and what was said last would be lost.
            let hang_up = async {
                user_hears.shutdown().await?;
                copy(&mut user_says, &mut tokio::io::sink()).await
            };
            let _ = tokio::time::timeout(EXEC_HANG_UP_TIMEOUT, hang_up).await;
        }
        // The user has left: so does the node, and it ends the command.
        _ = copy(&mut user_says, &mut node_hears) => {}
        () = went_offline(&app, node) => {}
        () = tie.cancelled() => {}
        () = lost => {}
        () = app.shutdown.cancelled() => {}
    }
}

/// Waits until a node is gone without having closed its connections.
async fn went_offline(app: &App, node: NodeId) {
    let mut missed = 0;
    while missed < 2 {
        tokio::time::sleep(EXEC_NODE_CHECK).await;
        missed = if app.is_online(node) { 0 } else { missed + 1 };
    }
}

/// Sends a signal to the app of an instance.
pub(crate) async fn signal(
    State(app): State<App>,
    Anyone(user): Anyone,
    Path(instance): Path<InstanceId>,
    Body(SignalRequest { signal }): Body<SignalRequest>,
) -> Result<StatusCode, ApiFailure> {
    let signal = node_core::boot::signal_name(&signal).ok_or_else(|| {
        ApiFailure::refused("not_a_signal", format!("`{signal}` is not a signal"))
            .hint("name one as in SIGHUP, HUP, 1 or SIGRTMIN+3")
    })?;
    let node = node_of(&app, &user, instance)?;
    tracing::info!(user = %user.name, %instance, signal, "a signal is sent");
    let wanted = StreamWanted::Signal { instance, signal };
    let answer: SignalAnswer = call(&app, node, wanted).await?;
    match answer.refused {
        None => Ok(StatusCode::NO_CONTENT),
        Some(reason) => Err(ApiFailure::conflict("signal_refused", reason)),
    }
}

/// The stats of every instance, or of those of an app or an env.
pub(crate) async fn stats(
    State(app): State<App>,
    Anyone(user): Anyone,
    Params(query): Params<StatsQuery>,
) -> Result<Json<Vec<StatsRow>>, ApiFailure> {
    let cluster = app.cluster();
    let instances = instances_of(&query, &cluster, &user).into_iter();
    let mut rows: BTreeMap<InstanceId, StatsRow> = instances
        .map(|(_, instance)| {
            let row = StatsRow {
                id: instance.spec.id,
                env: instance.spec.env_key(),
                process: instance.spec.process.clone(),
                node: instance.node,
                node_name: node_name(&cluster, instance.node),
                stats: None,
                reason: None,
            };
            (row.id, row)
        })
        .collect();
    let mut by_node: BTreeMap<NodeId, Vec<InstanceId>> = BTreeMap::new();
    for row in rows.values() {
        by_node.entry(row.node).or_default().push(row.id);
    }
    let calls = by_node.into_iter().map(|(node, instances)| {
        let app = &app;
        async move {
            let wanted = StreamWanted::Stats {
                instances: instances.clone(),
            };
            let answer: Result<Vec<InstanceStats>, _> = call(app, node, wanted).await;
            (instances, answer.map_err(ApiFailure::message))
        }
    });
    for (instances, answer) in join_all(calls).await {
        match answer {
            // A node speaks for the instances it was asked for, and no others.
            Ok(answers) => {
                for answer in answers
                    .into_iter()
                    .filter(|a| instances.contains(&a.instance))
                {
                    if let Some(row) = rows.get_mut(&answer.instance) {
                        row.stats = answer.stats;
                        row.reason = answer.reason;
                    }
                }
            }
            Err(reason) => {
                for id in instances {
                    if let Some(row) = rows.get_mut(&id) {
                        row.reason = Some(reason.clone());
                    }
                }
            }
        }
    }
    Ok(Json(rows.into_values().collect()))
}

/// The node of an instance in which the user may run things.
pub(crate) fn node_of(app: &App, user: &User, instance: InstanceId) -> Result<NodeId, ApiFailure> {
    let absent = || {
        ApiFailure::not_found(
            "instance_not_found",
            format!("there is no instance {instance}"),
        )
        .hint("`platform ps --all` lists those there are")
    };
    let cluster = app.cluster();
    let found = cluster.instances.get(&instance).ok_or_else(absent)?;
    user.check_app(&cluster.access, &found.spec.app, Role::Deployer, absent)?;
    Ok(found.node)
}

/// Asks a node something that has one answer.
async fn call<T: DeserializeOwned>(
    app: &App,
    node: NodeId,
    wanted: StreamWanted,
) -> Result<T, ApiFailure> {
    let answer = open(app, node, wanted, CALL_TIMEOUT, Waiting::Answer).await?;
    serde_json::from_slice(&answer).map_err(|error| {
        ApiFailure::new(
            StatusCode::BAD_GATEWAY,
            "node_answer_invalid",
            format!("the answer of {node} cannot be understood: {error}"),
        )
        .hint("are the node and the server of the same version?")
    })
}

/// Asks a node to open a stream, and waits until it has.
async fn open<T>(
    app: &App,
    node: NodeId,
    wanted: StreamWanted,
    within: Duration,
    waiting: impl FnOnce(oneshot::Sender<Answered<T>>) -> Waiting,
) -> Result<T, ApiFailure> {
    let unavailable = |code: &str, text: String| {
        ApiFailure::new(StatusCode::SERVICE_UNAVAILABLE, code, text)
            .hint("`platform nodes` shows which nodes report")
    };
    if !app.is_online(node) {
        return Err(unavailable("node_offline", format!("{node} is offline")));
    }
    let (sender, receiver) = oneshot::channel();
    let stream = app
        .streams
        .request(node, wanted, || waiting(sender))
        .map_err(|error| match error {
            AskError::Busy(_) => node_busy(error.to_string()),
            AskError::Key(error) => error.into(),
        })?;
    // This future is dropped when the caller leaves (Ctrl-C): then the node is not to do it later.
    let _waiting = app.streams.take_back_on_drop(node, &stream);
    let opened = tokio::select! {
        opened = tokio::time::timeout(within, receiver) => opened,
        () = app.shutdown.cancelled() => return Err(ApiFailure::stopping()),
    };
    match opened {
        Ok(Ok(Ok(opened))) => return Ok(opened),
        Ok(Ok(Err(refused))) => return Err(refused_by(node, &refused)),
        Ok(Err(_)) | Err(_) => {}
    }
    let text = format!("{node} did not answer within {} s", within.as_secs());
    Err(unavailable("node_silent", text))
}

/// 503: the node has as much of this kind to do as it takes at a time, and has less when some of it has ended.
fn node_busy(text: String) -> ApiFailure {
    ApiFailure::new(StatusCode::SERVICE_UNAVAILABLE, "node_busy", text)
        .retry_after(NODE_BUSY_RETRY)
        .hint("end some, or try again later")
}

/// 503 or 501, as the node says.
fn refused_by(node: NodeId, StreamRefused { reason, kind }: &StreamRefused) -> ApiFailure {
    let text = format!("{node} refused: {reason}");
    match kind {
        RefusalKind::Busy => node_busy(text),
        RefusalKind::Unsupported => {
            ApiFailure::new(StatusCode::NOT_IMPLEMENTED, "node_unsupported", text)
                .hint("upgrade `platform` on the node")
        }
    }
}
