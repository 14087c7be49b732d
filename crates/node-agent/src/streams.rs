//! Streams that the control plane asks for (logs, commands, calls of instances): the node dials, since
//! nodes only dial out.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use api::node::{InstanceStats, RefusalKind, SignalAnswer, StreamRefused};
use api::node::{LogLine, LogsWanted, StreamRequest, StreamWanted};
use api_client::{ApiClient, ClientError};
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{Stream, StreamExt as _, stream};
use guest_protocol::{LogRecord, Stream as OutputStream};
use model::{InstanceId, ProcessName, Timestamp};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::backlog::Follower;
use crate::directory::{Directory, Entry};
use crate::ended_logs::EndedLogs;
use crate::exec;
use crate::forward;
use crate::lane::Lane;
use crate::line_filter::{LineFilter, begins_boot};
use crate::logs::{InstanceLog, Past};

/// How long one poll for stream requests waits.
const POLL_WAIT: Duration = Duration::from_secs(25);
/// Pause after a failed poll.
const POLL_PAUSE: Duration = Duration::from_secs(1);
/// Readers of logs at a time. Each holds the connection by which its lines go.
const MAX_LOG_STREAMS: usize = 128;
/// Commands at a time.
const MAX_EXEC_STREAMS: usize = 128;
/// Forwarded connections at a time.
const MAX_FORWARD_STREAMS: usize = 256;
/// Calls with one answer (stats, signals) at a time.
const MAX_CALLS: usize = 32;
/// Refusals on their way at a time; a request beyond them is not answered.
const MAX_REFUSALS: usize = 64;
/// Logs of the past that are read at a time: each may be megabytes of records in memory.
const PAST_READS_AT_A_TIME: usize = 4;
/// Lines of the past that one stream sends at most, for each instance.
const MAX_TAIL_LINES: usize = 10_000;

/// What streams read: the instances of this node, and the logs of those that are gone.
#[derive(Debug, Clone)]
pub(crate) struct StreamLogs {
    pub(crate) directory: Directory,
    pub(crate) ended: EndedLogs,
    /// In which the past is read.
    reads: Lane,
}

impl StreamLogs {
    pub(crate) fn new(directory: Directory, ended: EndedLogs) -> Self {
        Self {
            directory,
            ended,
            reads: Lane::new(PAST_READS_AT_A_TIME),
        }
    }
}

/// How many streams of each kind may be open: readers of logs, who stay, take no place of a command or a call.
#[derive(Debug)]
struct Places {
    logs: Arc<Semaphore>,
    execs: Arc<Semaphore>,
    forwards: Arc<Semaphore>,
    calls: Arc<Semaphore>,
}

impl Places {
    fn new() -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self {
            logs: places(MAX_LOG_STREAMS),
            execs: places(MAX_EXEC_STREAMS),
            forwards: places(MAX_FORWARD_STREAMS),
            calls: places(MAX_CALLS),
        }
    }

    /// A place for a stream.
    ///
    /// # Errors
    /// There is none left at this moment.
    fn take(&self, wanted: &StreamWanted) -> Result<OwnedSemaphorePermit, StreamRefused> {
        let (places, count, what) = match wanted {
            StreamWanted::Logs(_) => (&self.logs, MAX_LOG_STREAMS, "readers of logs"),
            StreamWanted::Exec(_) => (&self.execs, MAX_EXEC_STREAMS, "commands"),
            StreamWanted::Forward { .. } => {
                (&self.forwards, MAX_FORWARD_STREAMS, "forwarded connections")
            }
            StreamWanted::Stats { .. }
            | StreamWanted::Signal { .. }
            | StreamWanted::Unsupported { .. } => (&self.calls, MAX_CALLS, "calls"),
        };
        let place = Arc::clone(places).try_acquire_owned();
        place.map_err(|_| StreamRefused {
            reason: format!("this node has {count} {what} at this moment, and takes no more"),
            kind: RefusalKind::Busy,
        })
    }
}

/// Asks for stream requests and serves them, until dropped.
pub(crate) async fn serve(client: ApiClient, logs: StreamLogs) {
    let mut open = JoinSet::new();
    let places = Places::new();
    let refusals = Arc::new(Semaphore::new(MAX_REFUSALS));
    loop {
        while open.try_join_next().is_some() {}
        let requests = match client.streams(POLL_WAIT).await {
            Ok(requests) => requests,
            Err(error) => {
                tracing::debug!(%error, "cannot ask for streams to open");
                tokio::time::sleep(POLL_PAUSE).await;
                continue;
            }
        };
        for request in requests {
            let (client, logs) = (client.clone(), logs.clone());
            match places.take(&request.wanted) {
                Ok(place) => open.spawn(async move {
                    let _place = place;
                    if let Err(error) = serve_one(&client, &logs, request).await {
                        tracing::debug!(%error, "a stream ended early");
                    }
                }),
                Err(refused) => {
                    let Ok(place) = Arc::clone(&refusals).try_acquire_owned() else {
                        continue;
                    };
                    open.spawn(async move {
                        let _place = place;
                        if let Err(error) = client.refuse_stream(&request.stream, &refused).await {
                            tracing::debug!(%error, "a refusal did not arrive");
                        }
                    })
                }
            };
        }
    }
}

async fn serve_one(
    client: &ApiClient,
    logs: &StreamLogs,
    StreamRequest { stream, wanted }: StreamRequest,
) -> Result<(), ClientError> {
    let directory = &logs.directory;
    match wanted {
        StreamWanted::Logs(wanted) => {
            let lines = lines(logs, &wanted).await;
            let body = lines.map(|line| Ok::<_, Infallible>(to_json(&line)));
            client.open_stream(&stream, body).await
        }
        StreamWanted::Exec(wanted) => exec::serve(client, &stream, wanted, directory).await,
        StreamWanted::Forward { instance, port } => {
            forward::serve(client, &stream, (instance, port), directory).await
        }
        StreamWanted::Unsupported { what } => {
            let reason = format!("this node does not know what to send for `{what}`");
            tracing::warn!(
                reason,
                "refused a stream; the server is newer than this node"
            );
            let kind = RefusalKind::Unsupported;
            client
                .refuse_stream(&stream, &StreamRefused { reason, kind })
                .await
        }
        StreamWanted::Stats { instances } => {
            let asked = instances.into_iter().map(|id| stats(directory, id));
            let answers: Vec<InstanceStats> = join_all(asked).await;
            client.answer_stream(&stream, &answers).await
        }
        StreamWanted::Signal { instance, signal } => {
            let refused = match directory.calls(instance) {
                Ok(calls) => calls
                    .signal(signal)
                    .await
                    .map_err(|error| format!("instance {instance}: {error}"))
                    .err(),
                Err(reason) => Some(reason),
            };
            client
                .answer_stream(&stream, &SignalAnswer { refused })
                .await
        }
    }
}

async fn stats(directory: &Directory, instance: InstanceId) -> InstanceStats {
    let stats = match directory.calls(instance) {
        Ok(calls) => calls.stats().await.map_err(|error| error.to_string()),
        Err(reason) => Err(reason),
    };
    let (stats, reason) = match stats {
        Ok(stats) => (Some(stats), None),
        Err(reason) => (None, Some(reason)),
    };
    InstanceStats {
        instance,
        stats,
        reason,
    }
}

fn to_json(line: &LogLine) -> Bytes {
    // Our own type with string keys: serialization cannot fail.
    let mut json = serde_json::to_vec(line).unwrap_or_default();
    json.push(b'\n');
    json.into()
}

/// The wanted lines: the past of all instances in the order of time, then, when followed, what comes.
async fn lines(
    logs: &StreamLogs,
    wanted: &LogsWanted,
) -> impl Stream<Item = LogLine> + Send + use<> {
    let tail = (wanted.tail as usize).min(MAX_TAIL_LINES);
    let mut past = Vec::new();
    let mut coming = stream::SelectAll::new();
    for &id in &wanted.instances {
        let asked = Past {
            lines: tail,
            since: wanted.since,
            until: wanted.until,
            text: wanted.text.as_deref().map(Arc::from),
            previous: wanted.previous,
        };
        let Some(Entry { process, log, .. }) = logs.directory.get(id) else {
            let ended = logs.ended.clone();
            match logs.reads.run(move || ended.read(id, &asked)).await {
                Ok(Some((process, records))) => past.extend(
                    records
                        .into_iter()
                        .map(|record| (id, process.clone(), record)),
                ),
                Ok(None) => {}
                Err(error) => {
                    let cause = display::chain(&error);
                    tracing::warn!(cause, instance = %id, "cannot read the log of an ended instance");
                }
            }
            continue;
        };
        let follow = wanted.follow;
        // blocks: the lane runs it on a thread for that
        let read = logs.reads.run(move || read(&log, &asked, follow)).await;
        let (records, live) = match read {
            Ok(both) => both,
            Err(error) => {
                tracing::warn!(%error, instance = %id, "cannot read an instance's log");
                continue;
            }
        };
        past.extend(
            records
                .into_iter()
                .map(|record| (id, process.clone(), record)),
        );
        if let Some((filter, follower)) = live {
            coming.push(live_lines(id, process, filter, follower).boxed());
        }
    }
    past.sort_by_key(|(_, _, record)| record.at_nanos);
    // Made into lines one at a time: those take more memory than what a guest wrote.
    let past = past.into_iter();
    let mut texts = Texts::default();
    let past =
        past.flat_map(move |(id, process, record)| log_lines(id, &process, &record, &mut texts));
    stream::iter(past).chain(coming)
}

/// Records of the past, and where the log is followed, what comes and which of it is wanted.
type Read = (Vec<LogRecord>, Option<(LineFilter, Follower)>);

/// What is wanted of a log. Blocks.
fn read(log: &InstanceLog, wanted: &Past, follow: bool) -> std::io::Result<Read> {
    if !follow {
        return Ok((log.past(wanted)?, None));
    }
    let (records, filter, follower) = log.follow(wanted)?;
    Ok((records, Some((filter, follower))))
}

/// What comes of an instance from now on.
fn live_lines(
    id: InstanceId,
    process: ProcessName,
    filter: LineFilter,
    follower: Follower,
) -> impl Stream<Item = LogLine> + Send {
    let state = (follower, filter, process, Texts::default());
    let live = stream::unfold(state, move |state| async move {
        let (mut follower, mut filter, process, mut texts) = state;
        let lines: Vec<_> = match follower.next().await {
            Ok(record) => {
                let records = filter.push(LogRecord::clone(&record)).into_iter();
                let lines = records.flat_map(|record| log_lines(id, &process, &record, &mut texts));
                lines.collect()
            }
            Err(count) => vec![lost_line(id, &process, count, "this reader was too slow")],
        };
        Some((stream::iter(lines), (follower, filter, process, texts)))
    });
    live.flatten()
}

/// A record as lines: itself, and before it what was lost, if anything.
fn log_lines(
    id: InstanceId,
    process: &ProcessName,
    record: &LogRecord,
    texts: &mut Texts,
) -> Vec<LogLine> {
    let mut lines = Vec::new();
    if record.dropped > 0 {
        let mut lost = lost_line(id, process, record.dropped.into(), "the node was too slow");
        lost.at = Timestamp(record.at_nanos / 1_000_000);
        lines.push(lost);
    }
    lines.push(LogLine {
        instance: id,
        process: process.clone(),
        at: Timestamp(record.at_nanos / 1_000_000),
        stream: record.stream,
        text: texts.text(id, record),
        partial: record.partial && !begins_boot(record),
    });
    lines
}

/// Records as text. A guest cuts long lines anywhere, so the beginning of a character at the end of a piece waits for
/// the next piece.
#[derive(Debug, Default)]
struct Texts {
    /// By instance, and whether it is standard error.
    begun: BTreeMap<(InstanceId, bool), Vec<u8>>,
}

impl Texts {
    fn text(&mut self, id: InstanceId, record: &LogRecord) -> String {
        if record.stream == OutputStream::Platform {
            return String::from_utf8_lossy(&record.line).into_owned();
        }
        let key = (id, record.stream == OutputStream::Stderr);
        let begun = self.begun.remove(&key);
        let bytes = match begun {
            Some(begun) => Cow::Owned([&begun[..], &record.line].concat()),
            None => Cow::Borrowed(&record.line[..]),
        };
        let cut = if record.partial {
            begun_character(&bytes)
        } else {
            0
        };
        let (whole, rest) = bytes.split_at(bytes.len() - cut);
        if cut > 0 {
            self.begun.insert(key, rest.to_vec());
        }
        String::from_utf8_lossy(whole).into_owned()
    }
}

/// How many bytes at the end begin a character of UTF-8 that goes on.
fn begun_character(bytes: &[u8]) -> usize {
    for (back, byte) in bytes.iter().rev().take(3).enumerate() {
        let there = back + 1;
        let needed = match byte {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if needed > there { there } else { 0 };
    }
    0
}

fn lost_line(id: InstanceId, process: &ProcessName, count: u64, why: &str) -> LogLine {
    LogLine {
        instance: id,
        process: process.clone(),
        at: Timestamp(0),
        stream: OutputStream::Platform,
        text: format!("{count} line(s) were dropped: {why}"),
        partial: false,
    }
}

#[cfg(test)]
mod server_tests;
#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const LATE: Timestamp = Timestamp(1_000_000);

    fn record(seq: u64, text: &str, dropped: u32) -> LogRecord {
        LogRecord {
            seq,
            at_nanos: seq * 1_000_000,
            stream: OutputStream::Stdout,
            partial: false,
            dropped,
            line: text.as_bytes().to_vec(),
        }
    }

    #[test]
    fn a_character_that_was_cut_between_two_pieces_is_whole() {
        let line = "x".to_owned() + &"日本é🦀".repeat(3);
        for at in 0..=line.len() {
            let mut texts = Texts::default();
            let (head, tail) = line.as_bytes().split_at(at);
            let piece = |bytes: &[u8], partial| LogRecord {
                partial,
                line: bytes.to_vec(),
                ..record(1, "", 0)
            };
            let mut text = texts.text(InstanceId(1), &piece(head, true));
            text += &texts.text(InstanceId(1), &piece(tail, false));
            assert_eq!(text, line, "cut at {at}");
        }
        let mut texts = Texts::default();
        let wrong = LogRecord {
            line: b"\xff\xe6".to_vec(),
            ..record(1, "", 0)
        };
        assert_eq!(texts.text(InstanceId(1), &wrong), "\u{fffd}\u{fffd}");
    }

    #[tokio::test]
    async fn a_text_and_a_time_choose_lines_of_the_past_and_of_what_comes() {
        let dir = tempfile::tempdir().unwrap();
        let logs = StreamLogs::new(Directory::default(), EndedLogs::in_data_dir(dir.path()));
        let log = Arc::new(InstanceLog::open(&dir.path().join("1")).unwrap());
        logs.directory
            .add(InstanceId(1), "web".parse().unwrap(), log.clone());
        let piece = |seq, text| LogRecord {
            partial: true,
            ..record(seq, text, 0)
        };
        let before = vec![
            record(1, "GET /a", 0),
            record(2, "POST /b", 2),
            record(3, "GET /c", 0),
            record(4, "POST /d", 0),
            piece(5, "GE"),
        ];
        log.append(LATE, before).unwrap();
        let wanted = LogsWanted {
            instances: vec![InstanceId(1)],
            tail: 10,
            since: Some(Timestamp(2)),
            until: Some(Timestamp(4)),
            text: None,
            follow: false,
            previous: false,
        };
        let lost = "2 line(s) were dropped: the node was too slow";
        let texts: Vec<_> = lines(&logs, &wanted)
            .await
            .map(|line| line.text)
            .collect()
            .await;
        assert_eq!(texts, [lost, "POST /b", "GET /c"]);

        // A line that is begun in the past and ends later is found.
        let follows = LogsWanted {
            since: None,
            until: None,
            text: Some("GET".to_owned()),
            follow: true,
            ..wanted
        };
        let mut stream = Box::pin(lines(&logs, &follows).await);
        let after = vec![
            record(6, "T /e", 0),
            record(7, "POST /f", 0),
            record(8, "GET /g", 0),
        ];
        log.append(LATE, after).unwrap();
        let mut texts = Vec::new();
        while texts.len() < 5 {
            texts.push(stream.next().await.unwrap().text);
        }
        assert_eq!(texts, ["GET /a", lost, "GET /c", "GE", "T /e"]);
        assert_eq!(stream.next().await.unwrap().text, "GET /g");
    }

    #[tokio::test]
    async fn the_past_of_two_instances_is_in_order_and_followed_by_what_comes() {
        let dir = tempfile::tempdir().unwrap();
        let logs = StreamLogs::new(Directory::default(), EndedLogs::in_data_dir(dir.path()));
        let mut both = Vec::new();
        for id in [1, 2] {
            let log = Arc::new(InstanceLog::open(&dir.path().join(id.to_string())).unwrap());
            log.begin_boot(Timestamp(0), "start 1").unwrap();
            logs.directory
                .add(InstanceId(id), "web".parse().unwrap(), log.clone());
            both.push(log);
        }
        both[0]
            .append(LATE, vec![record(1, "a", 0), record(4, "d", 0)])
            .unwrap();
        both[1]
            .append(LATE, vec![record(2, "b", 0), record(3, "c", 5)])
            .unwrap();
        let wanted = LogsWanted {
            instances: vec![InstanceId(1), InstanceId(2), InstanceId(9)],
            tail: 10,
            since: None,
            until: None,
            text: None,
            follow: true,
            previous: false,
        };
        let mut stream = Box::pin(lines(&logs, &wanted).await);
        both[1].append(LATE, vec![record(4, "e", 0)]).unwrap();
        let mut texts = Vec::new();
        while texts.len() < 8 {
            texts.push(stream.next().await.unwrap().text);
        }
        let lost = "5 line(s) were dropped: the node was too slow";
        assert_eq!(texts, ["start 1", "start 1", "a", "b", lost, "c", "d", "e"]);

        let ends = LogsWanted {
            follow: false,
            tail: 1,
            ..wanted
        };
        let texts: Vec<_> = lines(&logs, &ends)
            .await
            .map(|line| line.text)
            .collect()
            .await;
        assert_eq!(texts, ["d", "e"]);
    }
}
