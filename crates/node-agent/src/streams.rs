//! Streams that the control plane asks for (logs, commands, calls of instances): the node dials, since
//! nodes only dial out.

use std::convert::Infallible;
use std::time::Duration;

use api::node::{InstanceStats, SignalAnswer, StreamRefused};
use api::node::{LogLine, LogsWanted, StreamRequest, StreamWanted};
use api_client::{ApiClient, ClientError};
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{Stream, StreamExt as _, stream};
use guest_protocol::LogRecord;
use model::{InstanceId, ProcessName, Timestamp};
use tokio::task::JoinSet;

use crate::blocking::blocking;
use crate::directory::{Directory, Entry};
use crate::ended_logs::EndedLogs;
use crate::exec;
use crate::logs::{Past, begins_boot};

/// How long one poll for stream requests waits.
const POLL_WAIT: Duration = Duration::from_secs(25);
/// Pause after a failed poll.
const POLL_PAUSE: Duration = Duration::from_secs(1);
/// Streams open at a time; further ones wait to be asked for again.
const MAX_STREAMS: usize = 64;
/// Lines of the past that one stream sends at most, for each instance.
const MAX_TAIL_LINES: usize = 10_000;

/// What streams read: the instances of this node, and the logs of those that are gone.
#[derive(Debug, Clone)]
pub(crate) struct StreamLogs {
    pub(crate) directory: Directory,
    pub(crate) ended: EndedLogs,
}

/// Asks for stream requests and serves them, until dropped.
pub(crate) async fn serve(client: ApiClient, logs: StreamLogs) {
    let mut open = JoinSet::new();
    loop {
        while open.try_join_next().is_some() {}
        if open.len() >= MAX_STREAMS {
            open.join_next().await;
            continue;
        }
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
            open.spawn(async move {
                if let Err(error) = serve_one(&client, &logs, request).await {
                    tracing::debug!(%error, "a stream ended early");
                }
            });
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
        StreamWanted::Unsupported { what } => {
            let reason = format!("this node does not know what to send for `{what}`");
            tracing::warn!(
                reason,
                "refused a stream; the server is newer than this node"
            );
            client
                .refuse_stream(&stream, &StreamRefused { reason })
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
            previous: wanted.previous,
        };
        let Some(Entry { process, log, .. }) = logs.directory.get(id) else {
            let ended = logs.ended.clone();
            match blocking(move || ended.read(id, asked)).await {
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
        let followed = blocking(move || log.follow(asked)).await;
        let (records, follower) = match followed {
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
        if wanted.follow {
            let state = (follower, process);
            let live = stream::unfold(state, move |(mut follower, process)| async move {
                let lines = match follower.next().await {
                    Ok(record) => log_lines(id, &process, &record),
                    Err(count) => vec![lost_line(id, &process, count, "this reader was too slow")],
                };
                Some((stream::iter(lines), (follower, process)))
            });
            coming.push(live.flatten().boxed());
        }
    }
    past.sort_by_key(|(_, _, record)| record.at_nanos);
    // Made into lines one at a time: those take more memory than what a guest wrote.
    let past = past.into_iter();
    let past = past.flat_map(|(id, process, record)| log_lines(id, &process, &record));
    stream::iter(past).chain(coming)
}

/// A record as lines: itself, and before it what was lost, if anything.
fn log_lines(id: InstanceId, process: &ProcessName, record: &LogRecord) -> Vec<LogLine> {
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
        text: String::from_utf8_lossy(&record.line).into_owned(),
        partial: record.partial && !begins_boot(record),
    });
    lines
}

fn lost_line(id: InstanceId, process: &ProcessName, count: u64, why: &str) -> LogLine {
    LogLine {
        instance: id,
        process: process.clone(),
        at: Timestamp(0),
        stream: guest_protocol::Stream::Platform,
        text: format!("{count} line(s) were dropped: {why}"),
        partial: false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::sync::Arc;

    use guest_protocol::Stream as OutputStream;

    use super::*;
    use crate::logs::InstanceLog;

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

    #[tokio::test]
    async fn the_past_of_two_instances_is_in_order_and_followed_by_what_comes() {
        let dir = tempfile::tempdir().unwrap();
        let logs = StreamLogs {
            directory: Directory::default(),
            ended: EndedLogs::in_data_dir(dir.path()),
        };
        let mut both = Vec::new();
        for id in [1, 2] {
            let log = Arc::new(InstanceLog::open(&dir.path().join(id.to_string())).unwrap());
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
            follow: true,
            previous: false,
        };
        let mut stream = Box::pin(lines(&logs, &wanted).await);
        both[1].append(LATE, vec![record(4, "e", 0)]).unwrap();
        let mut texts = Vec::new();
        while texts.len() < 6 {
            texts.push(stream.next().await.unwrap().text);
        }
        let lost = "5 line(s) were dropped: the node was too slow";
        assert_eq!(texts, ["a", "b", lost, "c", "d", "e"]);

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
