//! One connection through the adapter: the client's end, the app's end, and what is between them.

use std::net::Ipv6Addr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{
    set_socket_keepalive, set_socket_linger, set_tcp_keepidle, set_tcp_nodelay, socket_error,
};
use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, connect, shutdown, socket_with,
};

use super::Listener;
use super::header::{self, Invalid, MAX_HEADER_BYTES};

/// How often one end is read before other connections have their turn.
const READS_AT_ONCE: u32 = 16;
/// How long an edge may be silent before it is asked whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Why a connection was closed by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is no edge's.
    Foreign,
    /// Its header was not there in time.
    Late,
    /// It ended within its header.
    Cut,
    /// Its header is not one.
    Header(Invalid),
    /// The app does not take connections.
    App,
}

impl Refusal {
    /// For people.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Foreign => "only edges may connect to this port",
            Self::Late => "its PROXY header did not come in time",
            Self::Cut => "it ended within its PROXY header",
            Self::Header(invalid) => invalid.text(),
            Self::App => "the app does not listen on its port",
        }
    }
}

/// What is next for a connection.
pub(super) enum Turn {
    /// Nothing until there is news of an end.
    Waits,
    /// More of the same, when others had their turn.
    GoesOn,
    /// The app's end is to be watched.
    Dials,
    /// Both ends said all.
    Over,
    /// It is to be closed.
    Refused(Refusal),
}

enum Stage {
    /// The header is being read, into `up`.
    Header { until: Instant },
    /// The app was dialled.
    Dialled,
    /// Both ends are there.
    Joined,
}

pub(super) struct Connection {
    client: OwnedFd,
    app: Option<OwnedFd>,
    stage: Stage,
    peer: Ipv6Addr,
    listener: usize,
    /// From client to app.
    up: Flow,
    /// From app to client.
    down: Flow,
    /// It is among those that go on when others had their turn.
    pub(super) queued: bool,
}

impl Connection {
    pub(super) fn new(client: OwnedFd, peer: Ipv6Addr, listener: usize, until: Instant) -> Self {
        // It works without them.
        let _ = set_tcp_nodelay(&client, true);
        let _ = set_socket_keepalive(&client, true);
        let _ = set_tcp_keepidle(&client, KEEPALIVE);
        Self {
            client,
            app: None,
            stage: Stage::Header { until },
            peer,
            listener,
            up: Flow::default(),
            down: Flow::default(),
            queued: false,
        }
    }

    pub(super) fn client(&self) -> &OwnedFd {
        &self.client
    }

    pub(super) fn app(&self) -> Option<&OwnedFd> {
        self.app.as_ref()
    }

    pub(super) fn peer(&self) -> Ipv6Addr {
        self.peer
    }

    pub(super) fn listener(&self) -> usize {
        self.listener
    }

    /// Until when the header must be there; absent when it is.
    pub(super) fn header_until(&self) -> Option<Instant> {
        match self.stage {
            Stage::Header { until } => Some(until),
            _ => None,
        }
    }

    /// There was news of the app's end: if it was dialled, the dialling is over. False: in vain.
    pub(super) fn app_answered(&mut self) -> bool {
        if let (Stage::Dialled, Some(app)) = (&self.stage, &self.app) {
            if !matches!(socket_error(app), Ok(Ok(()))) {
                return false;
            }
            self.stage = Stage::Joined;
        }
        true
    }

    /// Bytes that are held for an end that does not take them.
    pub(super) fn held(&self) -> usize {
        self.up.bytes.len() + self.down.bytes.len()
    }

    /// Both ends hear of an end that is none: what was sent to them and not read is lost.
    pub(super) fn break_off(&self) {
        reset(&self.client);
        if let Some(app) = &self.app {
            reset(app);
        }
    }

    /// Moves what can be moved.
    pub(super) fn advance(&mut self, listener: &Listener, buffer: &mut [u8]) -> Turn {
        match (&self.stage, &self.app) {
            (Stage::Header { .. }, _) => self.read_header(listener, buffer),
            (Stage::Joined, Some(app)) => {
                // What the app said last is on its way before its end is noticed.
                let down = self.down.carry(app, &self.client, buffer);
                let up = self.up.carry(&self.client, app, buffer);
                match (down, up) {
                    (Ok(Carried::All), Ok(Carried::All)) => Turn::Over,
                    (Ok(Carried::More), Ok(_)) | (Ok(_), Ok(Carried::More)) => Turn::GoesOn,
                    (Ok(_), Ok(_)) => Turn::Waits,
                    _ => {
                        self.break_off();
                        Turn::Over
                    }
                }
            }
            _ => Turn::Waits,
        }
    }

    fn read_header(&mut self, listener: &Listener, buffer: &mut [u8]) -> Turn {
        let bytes = &mut self.up.bytes;
        let length = loop {
            // The parser asks for no more than fits.
            let room = MAX_HEADER_BYTES.saturating_sub(bytes.len());
            match rustix::io::read(&self.client, &mut buffer[..room]) {
                // Somebody looked whether we are here.
                Ok(0) if bytes.is_empty() => return Turn::Over,
                Ok(0) => return Turn::Refused(Refusal::Cut),
                Ok(length) => bytes.extend_from_slice(&buffer[..length]),
                Err(Errno::AGAIN) => return Turn::Waits,
                Err(Errno::INTR) => continue,
                Err(_) => return Turn::Over,
            }
            match header::parse(bytes) {
                Ok(Some(length)) => break length,
                Ok(None) => {}
                Err(invalid) => return Turn::Refused(Refusal::Header(invalid)),
            }
        };
        if listener.strip {
            self.up.sent = length;
        }
        match dial(listener) {
            Ok(app) => {
                self.app = Some(app);
                self.stage = Stage::Dialled;
                Turn::Dials
            }
            Err(_) => Turn::Refused(Refusal::App),
        }
    }
}

/// Begins to connect to the app.
fn dial(listener: &Listener) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let app = socket_with(AddressFamily::INET6, SocketType::STREAM, flags, None)?;
    let _ = set_tcp_nodelay(&app, true);
    match connect(&app, &listener.app) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(app),
        Err(error) => Err(error),
    }
}

/// Makes the close of a socket a reset.
pub(super) fn reset(fd: &OwnedFd) {
    let _ = set_socket_linger(fd, Some(Duration::ZERO));
}

/// One direction.
#[derive(Default)]
struct Flow {
    /// Bytes that were read; those from `sent` on are to be written.
    bytes: Vec<u8>,
    sent: usize,
    /// The end that is read from said all.
    ended: bool,
    /// So the other was told.
    told: bool,
}

/// How far a direction is.
enum Carried {
    /// As far as the ends let it.
    Some,
    /// It could go on.
    More,
    /// To its end.
    All,
}

impl Flow {
    /// Moves bytes, and the end after them.
    fn carry(&mut self, from: &OwnedFd, to: &OwnedFd, buffer: &mut [u8]) -> Result<Carried, Errno> {
        if self.told {
            return Ok(Carried::All);
        }
        for _ in 0..READS_AT_ONCE {
            while self.sent < self.bytes.len() {
                match write(to, &self.bytes[self.sent..])? {
                    0 => return Ok(Carried::Some),
                    length => self.sent += length,
                }
            }
            // Most connections hold nothing most of the time.
            self.bytes = Vec::new();
            self.sent = 0;
            if self.ended {
                shutdown(to, Shutdown::Write)?;
                self.told = true;
                return Ok(Carried::All);
            }
            match rustix::io::read(from, &mut *buffer) {
                Ok(0) => self.ended = true,
                Ok(length) => {
                    let written = write(to, &buffer[..length])?;
                    self.bytes.extend_from_slice(&buffer[written..length]);
                }
                Err(Errno::AGAIN) => return Ok(Carried::Some),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Carried::More)
    }
}

/// Writes what the end takes now.
fn write(to: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    loop {
        match rustix::io::write(to.as_fd(), bytes) {
            Err(Errno::AGAIN) => return Ok(0),
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}
