//! The access log: a line of JSON for each request, written by a thread of its own. Where that cannot keep up, lines are left out and counted: no
//! request waits for a disk.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::limits::MAX_ACCESS_LOG_LINES;

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// To standard output.
    Stdout,
    /// Behind what is in this file.
    File(PathBuf),
}

/// The begin of it; lines go there.
#[derive(Debug)]
pub(crate) struct AccessLog {
    lines: SyncSender<Vec<u8>>,
    left_out: AtomicU64,
}

/// What a line says.
#[derive(Debug, Serialize)]
pub(crate) struct Entry<'a> {
    /// When the request's head was there, RFC 3339.
    pub(crate) time: String,
    pub(crate) request_id: &'a str,
    pub(crate) client: &'a str,
    pub(crate) scheme: &'a str,
    pub(crate) method: &'a str,
    pub(crate) host: &'a str,
    /// Without the query, which may have secrets.
    pub(crate) path: &'a str,
    /// 499: the client was gone before there was an answer.
    pub(crate) status: u16,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    /// From the head of the request to the last byte of its answer.
    pub(crate) seconds: f64,
    /// From when an instance had the head of the request to the head of its answer; absent where none gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) app_seconds: Option<f64>,
    /// The instance that answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backend: Option<String>,
    /// Why the answer is not whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

impl AccessLog {
    /// Opens it. Blocks.
    pub(crate) fn open(target: &AccessLogTarget) -> io::Result<Self> {
        let out: Box<dyn Write + Send> = match target {
            AccessLogTarget::Stdout => Box::new(io::stdout()),
            AccessLogTarget::File(path) => {
                Box::new(File::options().create(true).append(true).open(path)?)
            }
        };
        let (lines, written) = sync_channel(MAX_ACCESS_LOG_LINES);
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_all(&written, BufWriter::new(out)))?;
        Ok(Self {
            lines,
            left_out: AtomicU64::new(0),
        })
    }

    pub(crate) fn write(&self, entry: &Entry<'_>) {
        let Ok(mut line) = serde_json::to_vec(entry) else {
            return;
        };
        line.push(b'\n');
        if self.lines.try_send(line).is_err() {
            let left_out = self.left_out.fetch_add(1, Ordering::Relaxed) + 1;
            if left_out.is_power_of_two() {
                tracing::warn!(
                    left_out,
                    "the access log cannot keep up: lines are left out"
                );
            }
        }
    }
}

fn write_all(lines: &Receiver<Vec<u8>>, mut out: impl Write) {
    let mut failed = false;
    while let Ok(mut line) = lines.recv() {
        let written = loop {
            let written = out.write_all(&line);
            match lines.try_recv() {
                Ok(next) if written.is_ok() => line = next,
                Ok(_) | Err(TryRecvError::Empty | TryRecvError::Disconnected) => {
                    break written.and_then(|()| out.flush());
                }
            }
        };
        match written {
            Err(error) if !failed => {
                tracing::error!(%error, "the access log cannot be written");
                failed = true;
            }
            Err(_) => {}
            Ok(()) => failed = false,
        }
    }
}

/// The time so long ago, RFC 3339, to the millisecond.
pub(crate) fn before(ago: Duration) -> String {
    let now = SystemTime::now().checked_sub(ago).unwrap_or(UNIX_EPOCH);
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = i64::try_from(since.as_millis()).unwrap_or_default();
    let time = jiff::Timestamp::from_millisecond(millis).unwrap_or_default();
    format!("{time:.3}")
}
