//! Logs: from the nodes' streams to the user who reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use bytes::{Bytes, BytesMut};
use cluster::world::World;
use contract::api::{DEFAULT_TAIL, LogLine, LogsQuery, LogsWanted, MAX_STREAM_LINE_BYTES};
use contract::guest::Stream;
use contract::{EnvKey, InstanceId, NodeId, ProcessName};
use futures_util::StreamExt as _;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::{InEnv, Params, no_such_env};
use crate::callers::{NodeCaller, User};
use crate::clock::now;
use crate::failure::ApiFailure;
use crate::limits::{MAX_LOG_READERS, MAX_TAIL, STREAM_BUFFER_PIECES, STREAM_SIGN_OF_LIFE};
use crate::rows::key_of;
use crate::state::App;
use crate::streams::{Lines, Open};

/// The env's log lines, as they come from its nodes.
pub(crate) async fn to_user(
    State(app): State<App>,
    _user: User,
    InEnv(key): InEnv,
    Params(query): Params<LogsQuery>,
) -> Result<Response, ApiFailure> {
    let slot = Arc::clone(&app.log_readers)
        .try_acquire_owned()
        .map_err(|_| {
            ApiFailure::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_readers",
                format!("{MAX_LOG_READERS} users read logs already"),
            )
        })?;
    let world = app.snapshot().await?.world;
    if !world.envs.contains_key(&key) {
        return Err(no_such_env(&key));
    }
    let first = wanted(&world, &key, &query);
    if first.is_empty()
        && let Some(id) = query.instance
    {
        return Err(ApiFailure::not_found(
            "instance_not_found",
            format!("{key} has no instance {id}"),
        )
        .hint("`platform ps` lists those there are"));
    }
    let (lines, receiver) = mpsc::channel(STREAM_BUFFER_PIECES);
    tokio::spawn(drive(app, key, query, first, lines, slot));
    let body = HttpBody::from_stream(ReceiverStream::new(receiver).map(Ok::<_, std::io::Error>));
    let headers = [
        (CONTENT_TYPE, "application/x-ndjson"),
        (CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, body).into_response())
}

type Instances = BTreeMap<InstanceId, (NodeId, ProcessName)>;

/// The instances whose lines are wanted.
fn wanted(world: &World, key: &EnvKey, query: &LogsQuery) -> Instances {
    world
        .instances
        .iter()
        .filter(|(id, instance)| {
            key_of(instance) == *key
                && query.instance.is_none_or(|wanted| wanted == **id)
                && query
                    .process
                    .as_ref()
                    .is_none_or(|wanted| *wanted == instance.spec.process)
        })
        .map(|(id, instance)| (*id, (instance.node, instance.spec.process.clone())))
        .collect()
}

/// Asks the nodes for what one reader wants. With `follow` it goes on until the reader leaves, and
/// asks for instances that come later, too.
async fn drive(
    app: App,
    key: EnvKey,
    query: LogsQuery,
    first: Instances,
    lines: Lines,
    _slot: OwnedSemaphorePermit,
) {
    let mut asked: BTreeSet<InstanceId> = first.keys().copied().collect();
    ask(&app, &query, first, &lines).await;
    if !query.follow {
        return; // The streams hold the channel open for as long as they send.
    }
    let mut published = app.published.subscribe();
    loop {
        tokio::select! {
            () = lines.closed() => return,
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(STREAM_SIGN_OF_LIFE) => {
                // A full channel is a sign of life by itself.
                let _ = lines.try_send(Bytes::from_static(b"\n"));
            }
            changed = published.changed() => {
                if changed.is_err() {
                    return;
                }
                let current = Arc::clone(&published.borrow_and_update());
                let world = &current.snapshot.world;
                if !world.envs.contains_key(&key) {
                    return;
                }
                let mut new = wanted(world, &key, &query);
                new.retain(|id, _| asked.insert(*id));
                ask(&app, &query, new, &lines).await;
            }
        }
    }
}

/// Asks each node for its instances. Where a node does not answer, the reader is told.
async fn ask(app: &App, query: &LogsQuery, instances: Instances, lines: &Lines) {
    let mut by_node: BTreeMap<NodeId, BTreeMap<InstanceId, ProcessName>> = BTreeMap::new();
    for (id, (node, process)) in instances {
        by_node.entry(node).or_default().insert(id, process);
    }
    let online = app.online();
    for (node, instances) in by_node {
        if !online.contains(&node) {
            tell(
                lines,
                &instances,
                &format!("{node} is offline; its log lines are missing"),
            )
            .await;
            continue;
        }
        let wanted = LogsWanted {
            instances: instances.keys().copied().collect(),
            tail: query.tail.unwrap_or(DEFAULT_TAIL).min(MAX_TAIL),
            since: query.since,
            follow: query.follow,
        };
        match app.streams.ask(node, wanted, lines.clone()) {
            Ok(stream) => {
                let (app, lines) = (App::clone(app), lines.downgrade());
                tokio::spawn(async move {
                    if app.streams.give_up(node, &stream).await
                        && let Some(lines) = lines.upgrade()
                    {
                        let text = format!("{node} does not answer; its log lines are missing");
                        tell(&lines, &instances, &text).await;
                    }
                });
            }
            Err(error) => tell(lines, &instances, &error.to_string()).await,
        }
    }
}

/// Says something to the reader, in the name of the platform, for each of these instances.
async fn tell(lines: &Lines, instances: &BTreeMap<InstanceId, ProcessName>, text: &str) {
    for (id, process) in instances {
        let line = LogLine {
            instance: *id,
            process: process.clone(),
            at: now(),
            stream: Stream::Platform,
            text: text.to_owned(),
            partial: false,
        };
        // Our own type with string keys: serialization cannot fail.
        let mut json = serde_json::to_vec(&line).unwrap_or_default();
        json.push(b'\n');
        // A reader that left needs to be told nothing.
        let _ = lines.send(json.into()).await;
    }
}

/// A node sends the lines it was asked for. The answer comes when it has sent all, or when the
/// reader has left.
pub(crate) async fn from_node(
    State(app): State<App>,
    NodeCaller(node): NodeCaller,
    Path(stream): Path<String>,
    body: HttpBody,
) -> Result<StatusCode, ApiFailure> {
    let Some(open) = app.streams.claim(node, &stream) else {
        return Err(ApiFailure::not_found(
            "stream_not_found",
            format!("stream {stream} was not asked of {node}, or its reader has left"),
        ));
    };
    tokio::select! {
        piped = pipe(body, &open) => piped?,
        () = open.lines.closed() => {}
        () = app.shutdown.cancelled() => {}
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Hands on whole lines, as many at a time as there are.
async fn pipe(body: HttpBody, open: &Open) -> Result<(), ApiFailure> {
    let mut pieces = body.into_data_stream();
    let mut buffer = BytesMut::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|e| ApiFailure::bad_request(format!("the stream broke: {e}")))?;
        buffer.extend_from_slice(&piece);
        let Some(end) = buffer.iter().rposition(|b| *b == b'\n') else {
            if buffer.len() > MAX_STREAM_LINE_BYTES {
                return Err(ApiFailure::bad_request(format!(
                    "a line is over {MAX_STREAM_LINE_BYTES} bytes"
                )));
            }
            continue;
        };
        let whole = buffer.split_to(end + 1).freeze();
        check_lines(&whole, &open.instances)?;
        if open.lines.send(whole).await.is_err() {
            break; // The reader has left.
        }
    }
    Ok(())
}

/// A node says only what it was asked for: lines of other instances could be of another env.
fn check_lines(lines: &[u8], instances: &BTreeSet<InstanceId>) -> Result<(), ApiFailure> {
    for line in lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let line: LogLine = serde_json::from_slice(line)
            .map_err(|e| ApiFailure::bad_request(format!("not a log line: {e}")))?;
        if !instances.contains(&line.instance) {
            return Err(ApiFailure::bad_request(format!(
                "a line of instance {}, which was not asked for",
                line.instance
            )));
        }
    }
    Ok(())
}
