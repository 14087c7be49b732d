//! What an agent asks the process ([`process_handle::control`]), and the process's end of it.

// ring: what is served says how it is in the words of the control, which asks it.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use process_handle::control::{self, MAX_CONNECTIONS, MAX_REQUEST_BYTES};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::sync::{Notify, Semaphore};

use crate::names::Update;
use crate::serve::Server;

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

impl control::Request for Request {
    type Status = Status;
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
            .take(MAX_REQUEST_BYTES as u64)
            .read_until(b'\n', &mut line)
            .await?;
        if length == 0 || line.last() != Some(&b'\n') {
            return Ok(());
        }
        let mut ends = false;
        let line = control::answer(&line, |request| {
            match request {
                Request::Update(update) => server.apply(*update),
                Request::Status => {}
                Request::End => ends = true,
            }
            Ok(server.status())
        })?;
        let written = write.write_all(&line).await;
        if ends {
            ended.notify_one();
        }
        written?;
    }
}
