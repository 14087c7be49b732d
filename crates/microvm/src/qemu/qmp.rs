//! QEMU's monitor (QMP): one connection for the life of a VM's watcher, because QEMU serves one client at a time.
//!
//! The other end is not trusted: whoever broke out of a guest could answer here. So a line is bounded, and nothing is
//! waited for without a limit (the caller's).

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::monitor::{Answer, DiskFault, Event, Monitor};
use crate::{StatusError, VmStatus, run_dir};

/// Longest line, in bytes.
const MAX_LINE_BYTES: usize = 64 * 1024;
/// Questions that are sent before the first of them was answered: more are not sent to a QEMU that is stopped.
const MAX_UNANSWERED: u64 = 3;
/// Most events that are kept until somebody asks for them.
const MAX_EVENTS: usize = 256;
/// Name of the block node of a disk, before its number: see `command_line`.
const DISK_NODE: &str = "limited";
/// What strerror(3) says of ENOSPC; QEMU is started without a locale.
const NO_SPACE: &str = "No space left on device";

/// The monitor of a QEMU.
pub(crate) struct Qmp {
    run_dir: PathBuf,
    connection: Option<Connection>,
    events: VecDeque<Event>,
}

struct Connection {
    stream: UnixStream,
    /// What was read and is no whole line yet.
    begun: Vec<u8>,
    /// Questions so far; each has its number as its id.
    asked: u64,
    answered: u64,
}

impl Qmp {
    pub(crate) fn new(run_dir: &Path) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            connection: None,
            events: VecDeque::new(),
        }
    }

    async fn query_status(&mut self) -> Result<VmStatus, StatusError> {
        let answer = self.exchange().await;
        if answer.is_err() {
            self.connection = None;
        }
        answer
    }

    async fn exchange(&mut self) -> Result<VmStatus, StatusError> {
        let path = run_dir::qmp_socket(&self.run_dir);
        let wrong = |source| StatusError::Connection {
            path: path.clone(),
            source,
        };
        if self.connection.is_none() {
            self.connection = Some(Connection::open(&self.run_dir).await.map_err(wrong)?);
        }
        let Some(connection) = &mut self.connection else {
            return Err(StatusError::Answer("no connection".to_owned()));
        };
        if connection.asked - connection.answered < MAX_UNANSWERED {
            connection.asked += 1;
            let question = json!({ "execute": "query-status", "id": connection.asked });
            connection.send(&question).await.map_err(wrong)?;
        }
        loop {
            let line = connection.line().await.map_err(wrong)?;
            match understand(&line)? {
                Message::Event(event) => keep(&mut self.events, event),
                Message::Answer { id, answer } if id > 0 => {
                    connection.answered = id;
                    if id == connection.asked {
                        return answer;
                    }
                }
                Message::Answer { .. } | Message::Other => {}
            }
        }
    }

    async fn next_event(&mut self) -> Event {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            let Some(connection) = &mut self.connection else {
                // The next question connects.
                return std::future::pending().await;
            };
            match connection.line().await {
                Ok(line) => match understand(&line) {
                    Ok(Message::Event(event)) => keep(&mut self.events, event),
                    Ok(Message::Answer { id, .. }) => connection.answered = id,
                    Ok(Message::Other) => {}
                    Err(_) => self.connection = None,
                },
                Err(_) => self.connection = None,
            }
        }
    }
}

impl Monitor for Qmp {
    fn status(&mut self) -> Answer<'_, Result<VmStatus, StatusError>> {
        Box::pin(self.query_status())
    }

    fn event(&mut self) -> Answer<'_, Event> {
        Box::pin(self.next_event())
    }
}

fn keep(events: &mut VecDeque<Event>, event: Event) {
    if events.len() < MAX_EVENTS {
        events.push_back(event);
    }
}

impl Connection {
    /// Connects, and says what QEMU wants to hear first. Its greeting and its answer are passed over.
    async fn open(run_dir: &Path) -> io::Result<Self> {
        let mut connection = Self {
            stream: run_dir::connect(run_dir, "qmp.sock").await?,
            begun: Vec::new(),
            asked: 0,
            answered: 0,
        };
        let first = json!({ "execute": "qmp_capabilities", "id": 0 });
        connection.send(&first).await?;
        Ok(connection)
    }

    async fn send(&mut self, message: &Value) -> io::Result<()> {
        self.stream
            .write_all(format!("{message}\n").as_bytes())
            .await
    }

    /// The next line. Cancel-safe.
    async fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
                let rest = self.begun.split_off(end + 1);
                return Ok(std::mem::replace(&mut self.begun, rest));
            }
            if self.begun.len() > MAX_LINE_BYTES {
                return Err(io::Error::other("more than a line has"));
            }
            if self.stream.read_buf(&mut self.begun).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// A line of QEMU's, understood.
#[derive(Debug)]
enum Message {
    Event(Event),
    Answer {
        id: u64,
        answer: Result<VmStatus, StatusError>,
    },
    /// The greeting, or an event that matters to nobody.
    Other,
}

fn understand(line: &[u8]) -> Result<Message, StatusError> {
    let odd = |what: String| StatusError::Answer(what);
    let value: Value = serde_json::from_slice(line).map_err(|error| odd(error.to_string()))?;
    let data = &value["data"];
    let text = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
    Ok(match value["event"].as_str() {
        Some("STOP" | "RESUME") => Message::Event(Event::Changed),
        Some("BLOCK_IO_ERROR") => {
            let reason = display::one_line(&text("reason"), 200);
            let number = data["node-name"].as_str();
            let number = number.and_then(|name| name.strip_prefix(DISK_NODE)?.parse().ok());
            Message::Event(Event::DiskFault(DiskFault {
                disk: number,
                operation: text("operation"),
                // `nospace` is only said of a disk that pauses its guest.
                no_space: reason == NO_SPACE || data["nospace"] == true,
                reason,
            }))
        }
        Some(_) => Message::Other,
        None => {
            let Some(id) = value["id"].as_u64() else {
                return Ok(Message::Other);
            };
            let answer = match value["return"]["status"].as_str() {
                Some("running") => Ok(VmStatus::Running),
                Some(other) => Ok(VmStatus::Stopped(display::one_line(other, 200))),
                None => Err(odd(display::one_line(&value.to_string(), 200))),
            };
            Message::Answer { id, answer }
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::Duration;

    use tokio::io::{AsyncBufReadExt as _, BufReader};
    use tokio::net::UnixListener;

    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

    /// A line of QEMU 7.2 whose disk is full.
    const FULL: &str = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "BLOCK_IO_ERROR", "data": {"device": "", "node-name": "limited1", "reason": "No space left on device", "operation": "write", "action": "report"}}"#;

    #[tokio::test]
    async fn case_a_stopped_qemu_is_asked_a_few_times_only_and_answers_once_it_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("qmp.sock")).unwrap();
        let mut qmp = Qmp::new(dir.path());
        for _ in 0..2 * MAX_UNANSWERED {
            let asked = tokio::time::timeout(Duration::from_millis(20), qmp.status()).await;
            assert!(asked.is_err(), "{asked:?}");
        }
        // It goes on: it reads what was asked, and its event comes between.
        let (stream, _) = listener.accept().await.unwrap();
        let (reader, mut writer) = stream.into_split();
        let qemu = async {
            let mut lines = BufReader::new(reader).lines();
            writer
                .write_all(format!("{GREETING}\n").as_bytes())
                .await
                .unwrap();
            let mut read = 0;
            while read < MAX_UNANSWERED + 1 {
                let line = lines.next_line().await.unwrap().unwrap();
                let id = serde_json::from_str::<Value>(&line).unwrap()["id"].clone();
                let status = json!({ "return": { "status": "running" }, "id": id });
                writer
                    .write_all(format!("{FULL}\n{status}\n").as_bytes())
                    .await
                    .unwrap();
                read += 1;
            }
            (lines, writer)
        };
        let (answer, (mut lines, _writer)) = tokio::join!(qmp.status(), qemu);
        assert_eq!(answer.unwrap(), VmStatus::Running);
        let more = tokio::time::timeout(Duration::from_millis(20), lines.next_line()).await;
        assert!(
            more.is_err(),
            "asked more often than it was to be: {more:?}"
        );
        let fault = Event::DiskFault(DiskFault {
            disk: Some(1),
            operation: "write".to_owned(),
            no_space: true,
            reason: "No space left on device".to_owned(),
        });
        assert_eq!(qmp.event().await, fault);
    }

    #[tokio::test]
    async fn an_endless_line_ends_the_connection() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("qmp.sock")).unwrap();
        let mut qmp = Qmp::new(dir.path());
        let flood = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
        };
        let (answer, ()) = tokio::join!(qmp.status(), flood);
        assert!(
            matches!(answer, Err(StatusError::Connection { .. })),
            "{answer:?}"
        );
        assert!(qmp.connection.is_none());
    }
}
