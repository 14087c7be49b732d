//! Logs: from the nodes' streams to their reader.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::node::{LogLine, LogsWanted, MAX_STREAM_LINE_BYTES};
use api::user::{DEFAULT_TAIL, LogsQuery};
use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use guest_protocol::Stream;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use model::{EnvKey, InstanceId, NodeId, ProcessName, Timestamp};
use scheduler::cluster_state::ClusterState;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::extract::{InEnv, Params, no_such_env};
use crate::callers::User;
use crate::clock::now;
use crate::failure::ApiFailure;
use crate::limits::{
    MAX_LOG_READERS, MAX_TAIL, STREAM_BUFFER_PIECES, STREAM_OPEN_TIMEOUT, STREAM_RESUME_PAUSE,
    STREAM_SIGN_OF_LIFE,
};
use crate::rows::key_of;
use crate::state::App;
use crate::streams::{AskError, Ended, Lines, Open};

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
    let cluster = app.cluster().await?;
    if !cluster.envs.contains_key(&key) {
        return Err(no_such_env(&key));
    }
    if let Some(id) = query.instance
        && wanted(&cluster, &key, &query).is_empty()
    {
        return Err(ApiFailure::not_found(
            "instance_not_found",
            format!("{key} has no instance {id}"),
        )
        .hint("`platform ps` lists those there are"));
    }
    let (lines, receiver) = mpsc::channel(STREAM_BUFFER_PIECES);
    let reader = Reader::new(app, key, query, lines);
    tokio::spawn(reader.run(cluster, slot));
    let body = HttpBody::from_stream(ReceiverStream::new(receiver).map(Ok::<_, std::io::Error>));
    let headers = [
        (CONTENT_TYPE, "application/x-ndjson"),
        (CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, body).into_response())
}

type Instances = BTreeMap<InstanceId, (NodeId, ProcessName)>;

/// The instances whose lines are wanted.
fn wanted(cluster: &ClusterState, key: &EnvKey, query: &LogsQuery) -> Instances {
    cluster
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

/// The reader of an env's logs, and the streams of its nodes.
struct Reader {
    app: App,
    key: EnvKey,
    query: LogsQuery,
    lines: Lines,
    /// What is known of each instance's lines.
    progress: BTreeMap<InstanceId, Progress>,
    ended: mpsc::UnboundedSender<Ended>,
    endings: mpsc::UnboundedReceiver<Ended>,
}

#[derive(Debug, Default)]
struct Progress {
    /// Whether a stream for it is open or asked for.
    streaming: bool,
    /// Whether the reader was told that its lines are missing.
    told: bool,
    /// The time of the last line that came.
    last: Option<Timestamp>,
}

impl Reader {
    fn new(app: App, key: EnvKey, query: LogsQuery, lines: Lines) -> Self {
        let (ended, endings) = mpsc::unbounded_channel();
        Self {
            app,
            key,
            query,
            lines,
            progress: BTreeMap::new(),
            ended,
            endings,
        }
    }

    /// Asks the nodes until every line was sent. With `follow` that is when the reader leaves or the env is
    /// gone: instances that come later are asked for, too, and streams that broke again.
    async fn run(mut self, cluster: ClusterState, _slot: OwnedSemaphorePermit) {
        let app = App::clone(&self.app);
        let mut published = app.published.subscribe();
        self.ask_for_missing(&cluster).await;
        let mut resume = tokio::time::interval(STREAM_RESUME_PAUSE);
        let mut sign_of_life = tokio::time::interval(STREAM_SIGN_OF_LIFE);
        while self.query.follow || self.progress.values().any(|p| p.streaming) {
            tokio::select! {
                () = self.lines.closed() => return,
                () = app.shutdown.cancelled() => return,
                Some(end) = self.endings.recv() => self.take_note(end).await,
                _ = sign_of_life.tick(), if self.query.follow => {
                    // A full channel is a sign of life by itself.
                    let _ = self.lines.try_send(Bytes::from_static(b"\n"));
                }
                _ = resume.tick(), if self.query.follow => {
                    let current = Arc::clone(&published.borrow_and_update());
                    self.ask_for_missing(&current.cluster).await;
                }
                Ok(()) = published.changed(), if self.query.follow => {
                    let current = Arc::clone(&published.borrow_and_update());
                    let cluster = &current.cluster;
                    if !cluster.envs.contains_key(&self.key) {
                        return;
                    }
                    // Those that are new; what broke waits for its pause.
                    let known = |id: &InstanceId| self.progress.contains_key(id);
                    if wanted(cluster, &self.key, &self.query).keys().any(|id| !known(id)) {
                        self.ask_for_missing(cluster).await;
                    }
                }
            }
        }
    }

    async fn take_note(&mut self, end: Ended) {
        let mut unheard = BTreeMap::new();
        let cluster = Arc::clone(&self.app.published.borrow());
        for id in &end.instances {
            let progress = self.progress.entry(*id).or_default();
            progress.streaming = false;
            progress.last = end.last.or(progress.last);
            let told = std::mem::replace(&mut progress.told, !end.opened);
            if !end.opened
                && !told
                && let Some(instance) = cluster.cluster.instances.get(id)
            {
                unheard.insert(*id, instance.spec.process.clone());
            }
        }
        let text = format!("{} does not answer; its log lines are missing", end.node);
        tell(&self.lines, &unheard, &text).await;
    }

    /// Asks for every wanted instance that no stream is there for.
    async fn ask_for_missing(&mut self, cluster: &ClusterState) {
        let mut by_node: BTreeMap<NodeId, BTreeMap<InstanceId, ProcessName>> = BTreeMap::new();
        for (id, (node, process)) in wanted(cluster, &self.key, &self.query) {
            if !self.progress.entry(id).or_default().streaming {
                by_node.entry(node).or_default().insert(id, process);
            }
        }
        let online = self.app.online();
        for (node, instances) in by_node {
            let asked = if online.contains(&node) {
                self.ask(node, &instances).map_err(|e| e.to_string())
            } else {
                Err(format!("{node} is offline; its log lines are missing"))
            };
            let mut unheard = instances;
            for (id, progress) in &mut self.progress {
                if unheard.contains_key(id) {
                    progress.streaming = asked.is_ok();
                    if asked.is_err() && std::mem::replace(&mut progress.told, true) {
                        unheard.remove(id);
                    }
                }
            }
            if let Err(text) = asked {
                tell(&self.lines, &unheard, &text).await;
            }
        }
    }

    /// Asks one node for these instances: from the beginning, or from where they broke off.
    fn ask(
        &self,
        node: NodeId,
        instances: &BTreeMap<InstanceId, ProcessName>,
    ) -> Result<(), AskError> {
        let lasts = self
            .progress
            .iter()
            .filter(|(id, _)| instances.contains_key(id));
        let resumed = lasts.filter_map(|(_, progress)| progress.last).min();
        let wanted = LogsWanted {
            instances: instances.keys().copied().collect(),
            tail: match resumed {
                Some(_) => MAX_TAIL,
                None => self.query.tail.unwrap_or(DEFAULT_TAIL).min(MAX_TAIL),
            },
            since: resumed.map_or(self.query.since, |last| Some(Timestamp(last.0 + 1))),
            follow: self.query.follow,
            previous: self.query.previous && resumed.is_none(),
        };
        let streams = &self.app.streams;
        let stream = streams.ask_for_logs(node, wanted, self.lines.clone(), self.ended.clone())?;
        let app = App::clone(&self.app);
        tokio::spawn(async move {
            tokio::time::sleep(STREAM_OPEN_TIMEOUT).await;
            app.streams.give_up(node, &stream);
        });
        Ok(())
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

/// Takes the lines that a node was asked for. Returns when it has sent all, or when the reader has
/// left.
pub(crate) async fn from_node(
    app: &App,
    mut open: Open,
    body: HttpBody,
) -> Result<StatusCode, ApiFailure> {
    let lines = open.lines.clone();
    tokio::select! {
        piped = pipe(body, &mut open) => piped?,
        () = lines.closed() => {}
        () = app.shutdown.cancelled() => {}
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Hands on whole lines, as many at a time as there are.
async fn pipe(body: HttpBody, open: &mut Open) -> Result<(), ApiFailure> {
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
        let last = check_lines(&whole, &open.end.instances)?;
        open.end.last = last.max(open.end.last);
        if open.lines.send(whole).await.is_err() {
            break; // The reader has left.
        }
    }
    Ok(())
}

/// A node says only what it was asked for: lines of other instances could be of another env.
/// Gives the time of the latest line.
fn check_lines(
    lines: &[u8],
    instances: &BTreeSet<InstanceId>,
) -> Result<Option<Timestamp>, ApiFailure> {
    let mut latest = None;
    for line in lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let line: LogLine = serde_json::from_slice(line)
            .map_err(|e| ApiFailure::bad_request(format!("not a log line: {e}")))?;
        if !instances.contains(&line.instance) {
            return Err(ApiFailure::bad_request(format!(
                "a line of instance {}, which was not asked for",
                line.instance
            )));
        }
        latest = latest.max(Some(line.at));
    }
    Ok(latest)
}
