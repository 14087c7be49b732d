//! What an agent asks the process that is the interface ([`process_handle::control`]), and the process's end of it.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use process_handle::control::Client;
use process_handle::control::{self, MAX_CONNECTIONS, MAX_REQUEST_BYTES};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
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
    /// The listener and the connections (epoll(7)). One that is closed is in it no more.
    asked: OwnedFd,
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
        let asked = epoll::create(CreateFlags::CLOEXEC)?;
        wait_for(&asked, &listener)?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            connections: Vec::new(),
            asked,
            ended: false,
        })
    }

    /// Whether the process is to end.
    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Does what is asked by now, and waits for nobody. It costs system calls, so it is called where somebody asks: this is readable then.
    pub(crate) fn answer(&mut self, device: &mut impl Interface) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() < MAX_CONNECTIONS
                && stream.set_nonblocking(true).is_ok()
                && wait_for(&self.asked, &stream).is_ok()
            {
                let request = Vec::new();
                self.connections.push(Connection { stream, request });
            }
        }
        let ended = &mut self.ended;
        self.connections
            .retain_mut(|connection| connection.answer(device, ended));
    }
}

/// Readable while somebody asks.
impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.asked.as_fd()
    }
}

fn wait_for(epoll: &OwnedFd, fd: impl AsFd) -> io::Result<()> {
    // Whoever it is: all are looked at.
    let nobody = EventData::new_u64(0);
    Ok(epoll::add(epoll, fd, nobody, EventFlags::IN)?)
}

impl Drop for Control {
    fn drop(&mut self) {
        // Nobody answers there any more.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Connection {
    /// Reads what is there, and answers what of that is a whole request. Whether the connection stays.
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
        while let Some(end) = self.request.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.request.drain(..=end).collect();
            if self.obey(&line, device, ended).is_err() {
                return false;
            }
        }
        self.request.len() <= MAX_REQUEST_BYTES
    }

    /// Does what one line asks, and answers.
    fn obey(
        &mut self,
        line: &[u8],
        device: &mut impl Interface,
        ended: &mut bool,
    ) -> io::Result<()> {
        let answer = control::answer(line, |request| {
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
        })?;
        // An agent that does not read is not waited for long: packets wait meanwhile.
        self.stream.set_nonblocking(false)?;
        self.stream
            .set_write_timeout(Some(Duration::from_millis(100)))?;
        self.stream.write_all(&answer)?;
        self.stream.set_nonblocking(true)
    }
}
