//! Logs: from the nodes' streams to their reader.
//!
//! The lines of the past come in the order of time, those of instances that are gone among them, each with how it ended ([`past`]). A reader who
//! follows gets those of the others as they come. What is wanted of an instance its node chooses: how much, of what time, with which text.

mod past;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::node::{LogLine, LogsWanted, MAX_STREAM_LINE_BYTES};
use api::user::{DEFAULT_TAIL, EndedRow, LogsQuery, MAX_LOG_TEXT_BYTES, Role};
use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use guest_protocol::Stream;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use model::{EnvKey, InstanceId, NodeId, ProcessName, Timestamp};
use scheduler::cluster_state::{ClusterState, EndedInstance, Presence};
use scheduler::ended::{MAX_ENDED_AGE_MS, recent};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::extract::{Params, no_such_env};
use crate::access::{User, Viewing};
use crate::clock::now;
use crate::failure::ApiFailure;
use crate::limits::{
    MAX_TAIL, STREAM_BUFFER_PIECES, STREAM_OPEN_TIMEOUT, STREAM_RESUME_PAUSE, STREAM_SIGN_OF_LIFE,
};
use crate::rows::ended_row;
use crate::slots::Slot;
use crate::state::{App, Topic};
use crate::streams::{AskError, Ended, Lines, Open};

/// The env's log lines, as they come from its nodes.
pub(crate) async fn to_user(
    State(app): State<App>,
    Viewing { user, key }: Viewing,
    Params(query): Params<LogsQuery>,
) -> Result<Response, ApiFailure> {
    check_choice(&query)?;
    let slot = (app.log_readers).take(
        &user.name,
        user.grants.cluster.is_some(),
        "too_many_readers",
        "logs are read",
    )?;
    let cluster = app.cluster();
    let ended = wanted_ended(&cluster, &key, &query);
    check(&cluster, &user, &key, &query, &ended)?;
    let shutdown = app.shutdown.clone();
    let (lines, receiver) = mpsc::channel(STREAM_BUFFER_PIECES);
    let reader = Reader::new(app, user, key, query, lines);
    tokio::spawn(reader.run(cluster, ended, slot));
    // A reader learns that there may be more, and asks the server again when it is back.
    let cut = stream::once(async move {
        shutdown
            .is_cancelled()
            .then(|| Err(std::io::Error::other("the server is stopping")))
    });
    let lines = ReceiverStream::new(receiver).map(Ok::<_, std::io::Error>);
    let body = HttpBody::from_stream(lines.chain(cut.filter_map(std::future::ready)));
    let headers = [
        (CONTENT_TYPE, "application/x-ndjson"),
        (CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, body).into_response())
}

/// Refuses a choice of lines that makes no sense.
fn check_choice(query: &LogsQuery) -> Result<(), ApiFailure> {
    if query.follow && query.until.is_some() {
        return Err(ApiFailure::bad_request(
            "`until` names an end, and `follow` goes on for ever",
        ));
    }
    if let (Some(since), Some(until)) = (query.since, query.until)
        && since >= until
    {
        return Err(ApiFailure::bad_request(
            "`until` is not after `since`: no line is between them",
        ));
    }
    let text = query.text.as_deref();
    if text.is_some_and(|text| !(1..=MAX_LOG_TEXT_BYTES).contains(&text.len())) {
        return Err(ApiFailure::bad_request(format!(
            "`text` has 1 to {MAX_LOG_TEXT_BYTES} bytes"
        )));
    }
    Ok(())
}

type Instances = BTreeMap<InstanceId, (NodeId, ProcessName)>;

/// The instances whose lines are wanted.
fn wanted(cluster: &ClusterState, key: &EnvKey, query: &LogsQuery) -> Instances {
    cluster
        .instances
        .of_env(key)
        .filter(|(id, instance)| {
            query.instance.is_none_or(|wanted| wanted == *id)
                && query.until.is_none_or(|until| instance.created_at < until)
                && query
                    .process
                    .as_ref()
                    .is_none_or(|wanted| *wanted == instance.spec.process)
        })
        .map(|(id, instance)| (id, (instance.node, instance.spec.process.clone())))
        .collect()
}

/// The ended instances whose lines are wanted, those that ended first first.
fn wanted_ended(cluster: &ClusterState, key: &EnvKey, query: &LogsQuery) -> Vec<EndedRow> {
    let process = query.process.as_ref();
    let wanted = match query.instance {
        Some(id) => {
            let ended = cluster.ended.get(&id).filter(|ended| {
                ended.env == *key && process.is_none_or(|process| *process == ended.process)
            });
            ended.map(|ended| (id, ended)).into_iter().collect()
        }
        // Who wants no line of the past is not told of it.
        None if query.tail == Some(0) => Vec::new(),
        None => {
            // Who looks for a text, or at a time that is over, means all that is kept.
            let all = query.until.is_some() || query.text.is_some();
            let since = query.since.or(all.then_some(Timestamp(0)));
            recent(cluster, key, process, since, now())
        }
    };
    wanted
        .into_iter()
        .filter(|(_, ended)| query.until.is_none_or(|until| ended.created_at < until))
        .map(|(id, ended)| ended_row(cluster, id, ended))
        .collect()
}

/// Refuses a query that names what is not there, and one to which no line can ever come.
fn check(
    cluster: &ClusterState,
    user: &User,
    key: &EnvKey,
    query: &LogsQuery,
    ended: &[EndedRow],
) -> Result<(), ApiFailure> {
    let days = MAX_ENDED_AGE_MS / (24 * 60 * 60 * 1000);
    let of_env = |row: &&EndedInstance| row.env == *key;
    let all_ended: Vec<_> = cluster.ended.values().filter(of_env).collect();
    let env = cluster.envs.get(key);
    if env.is_none() && all_ended.is_empty() {
        return Err(no_such_env(cluster, key));
    }
    if let Some(process) = &query.process {
        let releases = env.map(|env| &env.releases);
        let numbers = env.map(|env| [env.rollout.wanted, env.rollout.release]);
        let manifests = numbers.into_iter().flatten();
        let manifests = manifests.filter_map(|number| Some(&releases?.get(&number)?.manifest));
        let mut known: BTreeSet<_> = manifests
            .flat_map(|manifest| manifest.processes.keys())
            .collect();
        known.extend(all_ended.iter().map(|ended| &ended.process));
        let instances = cluster.instances.of_env(key);
        known.extend(instances.map(|(_, instance)| &instance.spec.process));
        if !known.contains(process) {
            let names: Vec<_> = known.iter().map(|name| name.as_str()).collect();
            return Err(ApiFailure::not_found(
                "process_not_found",
                format!(
                    "{key} has no process type {process}; there are: {}",
                    names.join(", ")
                ),
            ));
        }
    }
    // Before it was there nothing was logged, which is no mistake.
    let is_of_the_past = query.until.is_some() && query.instance.is_none();
    if is_of_the_past || !ended.is_empty() || !wanted(cluster, key, query).is_empty() {
        return Ok(());
    }
    if let Some(id) = query.instance {
        let elsewhere = cluster.instances.get(&id).map(|instance| {
            let spec = &instance.spec;
            (spec.env_key(), spec.process.clone())
        });
        let elsewhere = elsewhere.or_else(|| {
            let ended = cluster.ended.get(&id)?;
            Some((ended.env.clone(), ended.process.clone()))
        });
        // Another org's is as one that never was.
        let elsewhere = elsewhere.filter(|(env, _)| user.sees_app(&cluster.access, &env.app));
        let text = match elsewhere {
            Some((env, process)) => format!("instance {id} is one of {process} in {env}"),
            None => {
                format!("{key} has no instance {id}, nor one that ended within {days} days")
            }
        };
        return Err(ApiFailure::not_found("instance_not_found", text).hint(
            "`platform ps` lists those there are, `platform ps --ended` those that have ended",
        ));
    }
    if query.follow || query.tail == Some(0) {
        return Ok(());
    }
    let of_process = match &query.process {
        Some(process) => format!(" of {process}"),
        None => String::new(),
    };
    let ended_when = match query.since {
        Some(_) => "that time".to_owned(),
        None => format!("{days} days ago"),
    };
    Err(ApiFailure::not_found(
        "no_instances",
        format!("{key} has no instances{of_process}, and none has ended since {ended_when}"),
    )
    .hint("`platform ps` lists the instances"))
}

/// The reader of an env's logs, and the streams of its nodes.
struct Reader {
    app: App,
    user: User,
    key: EnvKey,
    query: LogsQuery,
    lines: Lines,
    /// What is known of each instance's lines.
    progress: BTreeMap<InstanceId, Progress>,
    /// Whether nodes were asked for the instances of the beginning.
    has_asked: bool,
    ended: mpsc::UnboundedSender<Ended>,
    endings: mpsc::UnboundedReceiver<Ended>,
    /// Ends the streams when the reader is dropped.
    over: DropGuard,
}

#[derive(Debug, Default)]
struct Progress {
    /// Whether a stream for it is open or asked for.
    streaming: bool,
    /// Whether the reader was told that its lines are missing.
    told: bool,
    /// The time of the last line that came.
    last: Option<Timestamp>,
    /// Whether it came after the reader: then all its lines are of what is followed, and none of the past.
    is_late: bool,
}

impl Reader {
    fn new(app: App, user: User, key: EnvKey, query: LogsQuery, lines: Lines) -> Self {
        let (ended, endings) = mpsc::unbounded_channel();
        Self {
            app,
            user,
            key,
            query,
            lines,
            progress: BTreeMap::new(),
            has_asked: false,
            ended,
            endings,
            over: CancellationToken::new().drop_guard(),
        }
    }

    /// Asks the nodes until every line was sent. With `follow` that is when the reader leaves or the env is
    /// gone: instances that come later are asked for, too, and streams that broke again.
    async fn run(mut self, cluster: ClusterState, ended: Vec<EndedRow>, _slot: Slot) {
        let app = App::clone(&self.app);
        let changes = app.topics.subscribe(Topic::Env(self.key.clone()));
        let changed = changes.notified();
        tokio::pin!(changed);
        let (user, of) = (self.user.clone(), self.key.app.clone());
        let lost = user.loses(&app, &of, Role::Viewer);
        tokio::pin!(lost);
        // Who follows gets the lines of those that run as they come.
        let running = if self.query.follow {
            Instances::new()
        } else {
            wanted(&cluster, &self.key, &self.query)
        };
        if !self.send_past(&cluster, running, &ended).await || !self.query.follow {
            return;
        }
        let is_over = |cluster: &ClusterState, query: &LogsQuery, key: &EnvKey| {
            let named = query.instance;
            !cluster.envs.contains_key(key)
                || named.is_some_and(|id| !cluster.instances.contains_key(&id))
        };
        if is_over(&cluster, &self.query, &self.key) {
            return;
        }
        self.ask_for_missing(&cluster).await;
        let mut resume = tokio::time::interval(STREAM_RESUME_PAUSE);
        let mut sign_of_life = tokio::time::interval(STREAM_SIGN_OF_LIFE);
        loop {
            tokio::select! {
                () = self.lines.closed() => return,
                () = &mut lost => return,
                () = app.shutdown.cancelled() => return,
                Some(end) = self.endings.recv() => self.take_note(end).await,
                _ = sign_of_life.tick() => {
                    // A full channel is a sign of life by itself.
                    let _ = self.lines.try_send(Bytes::from_static(b"\n"));
                }
                _ = resume.tick() => {
                    // What changed before this listened, too.
                    let cluster = &app.cluster();
                    self.tell_of_ended(cluster).await;
                    if is_over(cluster, &self.query, &self.key) {
                        return;
                    }
                    self.ask_for_missing(cluster).await;
                }
                () = &mut changed => {
                    // Before it looks: a change meanwhile wakes it again.
                    changed.set(changes.notified());
                    let cluster = &app.cluster();
                    self.tell_of_ended(cluster).await;
                    if is_over(cluster, &self.query, &self.key) {
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

    /// Says how those instances ended that have ended since their lines were asked for.
    async fn tell_of_ended(&mut self, cluster: &ClusterState) {
        let is_gone = |id: &InstanceId| !cluster.instances.contains_key(id);
        let gone_now: Vec<_> = self.progress.keys().copied().filter(is_gone).collect();
        for id in gone_now {
            self.progress.remove(&id);
            if let Some(ended) = cluster.ended.get(&id) {
                let row = ended_row(cluster, id, ended);
                let line = platform_line(id, &row.process, row.ended_at, gone(&row));
                // A reader that left needs to be told nothing.
                let _ = self.lines.send(line).await;
            }
        }
    }

    /// Cancelled when this reader is dropped.
    fn over(&self) -> CancellationToken {
        self.over.token().clone()
    }

    /// Lines of the past for each instance.
    fn tail(&self) -> u32 {
        self.query.tail.unwrap_or(DEFAULT_TAIL).min(MAX_TAIL)
    }

    /// What the query chooses of these instances.
    fn choice(&self, instances: impl Iterator<Item = InstanceId>) -> LogsWanted {
        let query = &self.query;
        LogsWanted {
            instances: instances.collect(),
            tail: self.tail(),
            since: query.since,
            until: query.until,
            text: query.text.clone(),
            follow: query.follow,
            previous: query.previous,
        }
    }

    /// Why a node is not asked, for people; absent: it can be.
    fn cannot_ask(&self, cluster: &ClusterState, node: NodeId) -> Option<String> {
        if !self.app.is_online(node) {
            return Some(format!("{node} is offline; its log lines are missing"));
        }
        let chooses = self.query.until.is_some() || self.query.text.is_some();
        match cluster.nodes.get(&node)?.presence {
            Presence::Heard { protocol, .. } if chooses && protocol < LINES_CHOSEN_SINCE => {
                Some(format!(
                    "{node}: its agent is too old to look for a text or an end in logs (protocol version {protocol}, and {LINES_CHOSEN_SINCE} is needed); \
                     its log lines are missing"
                ))
            }
            _ => None,
        }
    }

    /// Takes a stream back that its node does not open in time.
    fn give_up_later(&self, node: NodeId, stream: String) {
        let app = App::clone(&self.app);
        tokio::spawn(async move {
            tokio::time::sleep(STREAM_OPEN_TIMEOUT).await;
            app.streams.give_up(node, &stream);
        });
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
        let text = missing(&end);
        send_notice(&self.lines, &unheard, &text).await;
    }

    /// Asks for every wanted instance that no stream is there for.
    async fn ask_for_missing(&mut self, cluster: &ClusterState) {
        let mut by_node: BTreeMap<NodeId, BTreeMap<InstanceId, ProcessName>> = BTreeMap::new();
        for (id, (node, process)) in wanted(cluster, &self.key, &self.query) {
            let is_late = self.has_asked;
            let progress = self.progress.entry(id).or_insert_with(|| Progress {
                is_late,
                ..Progress::default()
            });
            if !progress.streaming {
                by_node.entry(node).or_default().insert(id, process);
            }
        }
        self.has_asked = true;
        for (node, instances) in by_node {
            let asked = match self.cannot_ask(cluster, node) {
                Some(why) => Err(why),
                None => self.request(node, &instances).map_err(|e| e.to_string()),
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
                send_notice(&self.lines, &unheard, &text).await;
            }
        }
    }

    /// Requests the logs of these instances from one node: from the beginning, or from where they broke off.
    fn request(
        &self,
        node: NodeId,
        instances: &BTreeMap<InstanceId, ProcessName>,
    ) -> Result<(), AskError> {
        let of_these = (self.progress.iter()).filter(|(id, _)| instances.contains_key(id));
        let resumed = (of_these.clone())
            .filter_map(|(_, progress)| progress.last)
            .min();
        let all_late = of_these.clone().all(|(_, progress)| progress.is_late);
        let wanted = LogsWanted {
            tail: if resumed.is_some() || all_late {
                MAX_TAIL
            } else {
                self.tail()
            },
            since: resumed.map_or(self.query.since, |last| Some(Timestamp(last.0 + 1))),
            previous: self.query.previous && resumed.is_none(),
            ..self.choice(instances.keys().copied())
        };
        let streams = &self.app.streams;
        let ended = self.ended.clone();
        let stream = streams.ask_for_logs(node, wanted, self.lines.clone(), self.over(), ended)?;
        self.give_up_later(node, stream);
        Ok(())
    }
}

/// The version of the protocol from which on agents look for [`LogsWanted::until`] and [`LogsWanted::text`].
const LINES_CHOSEN_SINCE: u32 = 4;

/// That a node did not open its stream, and why.
fn missing(end: &Ended) -> String {
    let node = end.node;
    match &end.refused {
        Some(reason) => format!("{node}: {reason}; its log lines are missing"),
        None => format!("{node} does not answer; its log lines are missing"),
    }
}

/// Sends the reader a line of the platform for each of these instances.
async fn send_notice(lines: &Lines, instances: &BTreeMap<InstanceId, ProcessName>, text: &str) {
    for (id, process) in instances {
        let line = platform_line(*id, process, now(), text.to_owned());
        // A reader that left needs no line.
        let _ = lines.send(line).await;
    }
}

/// A line of the platform's own in an instance's log.
fn platform_line(id: InstanceId, process: &ProcessName, at: Timestamp, text: String) -> Bytes {
    let line = LogLine {
        instance: id,
        process: process.clone(),
        at,
        stream: Stream::Platform,
        text,
        partial: false,
    };
    // Our own type with string keys: serialization cannot fail.
    let mut json = serde_json::to_vec(&line).unwrap_or_default();
    json.push(b'\n');
    json.into()
}

/// That an instance is gone, and how it ended; the first line of a failure that has several.
fn gone(row: &EndedRow) -> String {
    let how = row.how();
    let how = how.lines().next().unwrap_or_default();
    format!("gone ({} on {}): {how}", row.release, row.node_name)
}

/// Takes the lines that a node was asked for. Returns when it has sent all, or when the reader has
/// left.
pub(crate) async fn from_node(
    app: &App,
    mut open: Open,
    body: HttpBody,
) -> Result<StatusCode, ApiFailure> {
    let (lines, over) = (open.lines.clone(), open.over.clone());
    tokio::select! {
        piped = pipe(body, &mut open) => piped?,
        () = lines.closed() => {}
        () = over.cancelled() => {}
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
