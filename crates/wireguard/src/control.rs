//! What an agent asks the process that is the interface ([`process_handle::control`]), and the process's end of it.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use process_handle::control::Client;
use process_handle::control::{self, MAX_CONNECTIONS, MAX_REQUEST_BYTES};
use serde::{Deserialize, Serialize};

use crate::settings::{Settings, Status};

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
    /// Say that it answers: the status has no peers. A process of before this was asked refuses, which is an answer.
    Answer,
    /// End.
    End,
}

impl control::Request for Request {
    type Status = Status;
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
            return self.request.len() <= MAX_REQUEST_BYTES;
        };
        let line: Vec<u8> = self.request.drain(..=end).collect();
        let answer = control::answer(&line, |request| {
            match request {
                Request::Set(settings) => {
                    settings.check().map_err(|error| error.to_string())?;
                    device.set(&settings);
                }
                Request::SetMtu(mtu) => device.set_mtu(mtu),
                Request::Status => {}
                Request::Answer => return Ok(Status::default()),
                Request::End => *ended = true,
            }
            Ok(device.status())
        });
        let Ok(line) = answer else {
            return false;
        };
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
