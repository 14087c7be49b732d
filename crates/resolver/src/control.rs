//! How an agent talks to the process: one line of JSON a request, one line an answer, over a Unix socket that only root may open.

// ring: what is served says how it is in the words of the control, which asks it.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::sync::{Notify, Semaphore};

use crate::names::Update;
use crate::serve::Server;

/// Longest request, in bytes: some 50,000 instances.
const MAX_REQUEST_BYTES: u64 = 16 << 20;
/// Connections at a time.
const MAX_CONNECTIONS: usize = 8;
/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after an error that would come again at once.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// What is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Follow these changes.
    Update(Box<Update>),
    /// Say how it is.
    Status,
    /// End.
    End,
}

/// The version of the process's program. An agent replaces a process of another one: nothing is lost by it but questions of a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version(String);

impl Default for Version {
    fn default() -> Self {
        Self(format!("{} {PROTOCOL}", env!("CARGO_PKG_VERSION")))
    }
}

/// Which network namespace: the device and inode of its file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceId(u64, u64);

impl NamespaceId {
    /// The one that this file stands for. Blocks.
    ///
    /// # Errors
    /// There is no such file.
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self(metadata.dev(), metadata.ino()))
    }
}

/// Raised with every change of what the process does or is told.
const PROTOCOL: u32 = 1;

/// How the process is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Of its program.
    pub version: Version,
    /// Where it answers.
    pub namespace: NamespaceId,
    /// Whether it was told everything since it began; until then it answers nothing.
    pub is_told: bool,
    /// Instances that have names.
    pub instances: usize,
    /// Instances that may ask.
    pub clients: usize,
    /// Questions that it answered itself, since it began.
    pub answered: u64,
    /// Questions that it sent on.
    pub forwarded: u64,
    /// Questions that no name server of the machine answered, or that were too many at a time.
    pub failed: u64,
}

/// What is answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// How it is, after what was asked.
    Status(Box<Status>),
    /// Why it was not done.
    Refused(String),
}

/// Does what agents ask, until one says to end.
pub(crate) async fn serve(server: Rc<Server>, listener: UnixListener) {
    let (places, ended) = (
        std::sync::Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        Rc::new(Notify::new()),
    );
    let accepting = async {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (server, ended) = (server.clone(), ended.clone());
                    tokio::task::spawn_local(async move {
                        let _place = place;
                        let _ = connection(&server, stream, &ended).await;
                    });
                }
                Err(_) => tokio::time::sleep(ERROR_PAUSE).await,
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = ended.notified() => {}
    }
}

async fn connection(
    server: &Server,
    mut stream: tokio::net::UnixStream,
    ended: &Notify,
) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut read = tokio::io::BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let length = (&mut read)
            .take(MAX_REQUEST_BYTES)
            .read_until(b'\n', &mut line)
            .await?;
        if length == 0 || line.last() != Some(&b'\n') {
            return Ok(());
        }
        let mut ends = false;
        let answer = match serde_json::from_slice(&line) {
            Ok(Request::Update(update)) => {
                server.apply(*update);
                Answer::Status(Box::new(server.status()))
            }
            Ok(Request::Status) => Answer::Status(Box::new(server.status())),
            Ok(Request::End) => {
                ends = true;
                Answer::Status(Box::new(server.status()))
            }
            Err(error) => Answer::Refused(format!("this is no request: {error}")),
        };
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        let written = write.write_all(&line).await;
        if ends {
            ended.notify_one();
        }
        written?;
    }
}

/// Why the process did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It is not there.
    #[error("the process of the resolver does not answer")]
    Io(#[from] io::Error),
    /// It speaks another language.
    #[error("the process of the resolver answers with something else")]
    Format(#[from] serde_json::Error),
    /// It says why.
    #[error("the resolver was not told of names: {0}")]
    Refused(String),
}

/// An agent's end.
#[derive(Debug)]
pub struct Client(BufReader<UnixStream>);

impl Client {
    /// Connects to the process at this path. Blocks.
    ///
    /// # Errors
    /// It is not there.
    pub fn connect(path: &Path) -> Result<Self, ControlError> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Asks, and waits for the answer. Blocks.
    ///
    /// # Errors
    /// It is not there any more, or refuses.
    pub fn ask(&mut self, request: &Request) -> Result<Status, ControlError> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.0.get_mut().write_all(&line)?;
        let mut answer = String::new();
        self.0.read_line(&mut answer)?;
        if answer.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        match serde_json::from_str(&answer)? {
            Answer::Status(status) => Ok(*status),
            Answer::Refused(why) => Err(ControlError::Refused(why)),
        }
    }
}
