//! How an agent talks to the process that is the interface: one line of JSON a request, one line an answer, over a Unix socket.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::settings::{Settings, Status};

/// Longest request, in bytes: a hub of thousands of members.
const MAX_REQUEST: usize = 16 << 20;
/// Connections at a time.
const MAX_CONNECTIONS: usize = 8;
/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Follow these settings.
    Set(Box<Settings>),
    /// Packets within the tunnels are up to so many bytes.
    SetMtu(u16),
    /// Say how it is.
    Status,
    /// End.
    End,
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

/// What does what is asked.
pub(crate) trait Interface {
    /// Follows settings that were checked.
    fn set(&mut self, settings: &Settings);
    /// Follows another MTU, in bytes.
    fn set_mtu(&mut self, mtu: u16);
    /// How it is.
    fn status(&self) -> Status;
}

/// The end of the process of the interface.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    listener: UnixListener,
    connections: Vec<Connection>,
    ended: bool,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    request: Vec<u8>,
}

impl Control {
    /// Listens at this path.
    ///
    /// # Errors
    /// The path is taken, or its folder is not there.
    pub fn listen(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            connections: Vec::new(),
            ended: false,
        })
    }

    /// Whether the process is to end.
    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }

    /// What is to be waited for.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let connections = self
            .connections
            .iter()
            .map(|connection| connection.stream.as_fd());
        std::iter::once(self.listener.as_fd()).chain(connections)
    }

    /// Does what is asked by now. It waits for nobody.
    pub(crate) fn answer(&mut self, device: &mut impl Interface) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() < MAX_CONNECTIONS && stream.set_nonblocking(true).is_ok() {
                let request = Vec::new();
                self.connections.push(Connection { stream, request });
            }
        }
        let ended = &mut self.ended;
        self.connections
            .retain_mut(|connection| connection.answer(device, ended));
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Nobody answers there any more.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Connection {
    /// Reads what is there, and answers where that is a whole request. Whether the connection stays.
    fn answer(&mut self, device: &mut impl Interface, ended: &mut bool) -> bool {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(read) => self.request.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        let Some(end) = self.request.iter().position(|byte| *byte == b'\n') else {
            return self.request.len() <= MAX_REQUEST;
        };
        let line: Vec<u8> = self.request.drain(..=end).collect();
        let answer = match serde_json::from_slice(&line) {
            Ok(Request::Set(settings)) => match settings.check() {
                Ok(()) => {
                    device.set(&settings);
                    Answer::Status(Box::new(device.status()))
                }
                Err(contradiction) => Answer::Refused(contradiction.to_string()),
            },
            Ok(Request::SetMtu(mtu)) => {
                device.set_mtu(mtu);
                Answer::Status(Box::new(device.status()))
            }
            Ok(Request::Status) => Answer::Status(Box::new(device.status())),
            Ok(Request::End) => {
                *ended = true;
                Answer::Status(Box::new(device.status()))
            }
            Err(error) => Answer::Refused(format!("this is no request: {error}")),
        };
        let Ok(mut line) = serde_json::to_vec(&answer) else {
            return false;
        };
        line.push(b'\n');
        // An agent that does not read is not waited for long: packets wait meanwhile.
        let written = (self.stream.set_nonblocking(false))
            .and_then(|()| {
                self.stream
                    .set_write_timeout(Some(Duration::from_millis(100)))
            })
            .and_then(|()| self.stream.write_all(&line))
            .and_then(|()| self.stream.set_nonblocking(true));
        written.is_ok()
    }
}

/// Why an interface did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It is not there.
    #[error("the process of the WireGuard interface does not answer")]
    Io(#[from] io::Error),
    /// It speaks another language.
    #[error("the process of the WireGuard interface answers with something else")]
    Format(#[from] serde_json::Error),
    /// It says why.
    #[error("the WireGuard interface was not set: {0}")]
    Refused(String),
}

/// An agent's end.
#[derive(Debug)]
pub struct Client(BufReader<UnixStream>);

impl Client {
    /// Connects to the process at this path.
    ///
    /// # Errors
    /// It is not there.
    pub fn connect(path: &Path) -> Result<Self, ControlError> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Asks, and waits for the answer.
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
