//! One connection through a proxy: the client's end, the app's end, and the bytes between them.

use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{
    set_socket_keepalive, set_socket_linger, set_tcp_keepidle, set_tcp_nodelay, socket_error,
};
use rustix::net::{
    AddressFamily, RecvFlags, Shutdown, SocketFlags, SocketType, connect, recv, shutdown,
    socket_with,
};

use crate::header::{self, MAX_HEADER_BYTES};
use crate::listener::{Listener, Port};
use crate::refusals::Refusal;

/// Reads from one end before other connections have their turn.
const READS_AT_ONCE: u32 = 16;
/// Silence after which the kernel probes whether the client is alive.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// What a connection needs next.
pub(crate) enum Turn {
    /// An event at one of its ends.
    Waits,
    /// Another turn, after the other connections had theirs.
    GoesOn,
    /// Events of the app's end: the connection to it was begun.
    Dials,
    /// To be closed: both ends sent their last byte.
    Over,
    /// To be closed for this reason.
    Refused(Refusal),
}

enum Stage {
    /// The header is being read, into `up`.
    Header { until: Instant },
    /// The connection to the app was begun.
    Dialled,
    /// Both ends are connected.
    Joined,
}

pub(crate) struct Connection {
    client: OwnedFd,
    app: Option<OwnedFd>,
    stage: Stage,
    peer: Ipv6Addr,
    listener: usize,
    /// From client to app.
    up: Flow,
    /// From app to client.
    down: Flow,
    /// Of a forwarded connection that was not dialled again: the port.
    forwarded: Option<u16>,
    /// Whether it waits for another turn.
    pub(crate) queued: bool,
}

impl Connection {
    /// A connection that begins with a header.
    pub(crate) fn ingress(
        client: OwnedFd,
        peer: Ipv6Addr,
        listener: usize,
        until: Instant,
    ) -> Self {
        Self::new(client, peer, listener, Stage::Header { until })
    }

    /// A connection to this port whose other end is being dialled.
    pub(crate) fn forwarded(
        client: OwnedFd,
        peer: Ipv6Addr,
        listener: usize,
        port: u16,
        app: OwnedFd,
    ) -> Self {
        Self {
            app: Some(app),
            forwarded: Some(port),
            ..Self::new(client, peer, listener, Stage::Dialled)
        }
    }

    fn new(client: OwnedFd, peer: Ipv6Addr, listener: usize, stage: Stage) -> Self {
        // The connection works without these options.
        let _ = set_tcp_nodelay(&client, true);
        let _ = set_socket_keepalive(&client, true);
        let _ = set_tcp_keepidle(&client, KEEPALIVE);
        Self {
            client,
            app: None,
            stage,
            peer,
            listener,
            up: Flow::default(),
            down: Flow::default(),
            forwarded: None,
            queued: false,
        }
    }

    pub(crate) fn client(&self) -> &OwnedFd {
        &self.client
    }

    pub(crate) fn app(&self) -> Option<&OwnedFd> {
        self.app.as_ref()
    }

    pub(crate) fn peer(&self) -> Ipv6Addr {
        self.peer
    }

    pub(crate) fn listener(&self) -> usize {
        self.listener
    }

    /// Deadline of the header; absent once the header is complete.
    pub(crate) fn header_until(&self) -> Option<Instant> {
        match self.stage {
            Stage::Header { until } => Some(until),
            _ => None,
        }
    }

    /// Handles an event of the app's end, which ends the connecting to it. False: the app refused.
    pub(crate) fn app_answered(&mut self) -> bool {
        if let (Stage::Dialled, Some(app)) = (&self.stage, &self.app) {
            if !matches!(socket_error(app), Ok(Ok(()))) {
                return false;
            }
            self.stage = Stage::Joined;
        }
        true
    }

    /// The port to dial again, once, after the app's end refused.
    pub(crate) fn take_port(&mut self) -> Option<u16> {
        self.forwarded.take()
    }

    /// Replaces the app's end by another that is being dialled.
    pub(crate) fn redial(&mut self, app: OwnedFd) {
        self.app = Some(app);
        self.stage = Stage::Dialled;
    }

    /// Bytes held for an end that does not take them.
    pub(crate) fn held(&self) -> usize {
        self.up.bytes.len() + self.down.bytes.len()
    }

    /// Makes the close of both ends a reset: bytes that were sent to them and not read are lost.
    pub(crate) fn break_off(&self) {
        reset(&self.client);
        if let Some(app) = &self.app {
            reset(app);
        }
    }

    /// Moves the bytes that can be moved. `may_hold`: whether bytes may be taken from an end that the other end does
    /// not take.
    pub(crate) fn advance(&mut self, port: &Port, buffer: &mut [u8], may_hold: bool) -> Turn {
        match (&self.stage, &self.app) {
            (Stage::Header { .. }, _) => match port {
                Port::Ingress(listener) => self.read_header(listener, buffer),
                Port::Forwarded { .. } => Turn::Over,
            },
            (Stage::Joined, Some(app)) => {
                // The app's last bytes are carried before its end is noticed.
                let down = self.down.carry(app, &self.client, buffer, may_hold);
                let up = self.up.carry(&self.client, app, buffer, may_hold);
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
            // The parser wants no more than fits.
            let room = MAX_HEADER_BYTES.saturating_sub(bytes.len());
            match rustix::io::read(&self.client, &mut buffer[..room]) {
                // A peer that connects and leaves, to see whether the port is open.
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
        match dial(listener.app.into()) {
            Ok(app) => {
                self.app = Some(app);
                self.stage = Stage::Dialled;
                Turn::Dials
            }
            Err(_) => Turn::Refused(Refusal::App),
        }
    }
}

/// Begins the connection to the app.
pub(crate) fn dial(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let app = socket_with(family, SocketType::STREAM, flags, None)?;
    let _ = set_tcp_nodelay(&app, true);
    match connect(&app, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(app),
        Err(error) => Err(error),
    }
}

/// Makes the close of a socket a reset.
pub(crate) fn reset(fd: &OwnedFd) {
    let _ = set_socket_linger(fd, Some(Duration::ZERO));
}

/// One direction.
#[derive(Default)]
struct Flow {
    /// Bytes that were read; those from `sent` on wait to be written.
    bytes: Vec<u8>,
    sent: usize,
    /// The source ended.
    ended: bool,
    /// The destination was shut down for writing.
    shut_down: bool,
}

/// How far a direction was carried.
enum Carried {
    /// As far as the ends allow now.
    Some,
    /// As far as one turn allows.
    More,
    /// To its end.
    All,
}

impl Flow {
    /// Moves bytes, and the end after them.
    fn carry(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        buffer: &mut [u8],
        may_hold: bool,
    ) -> Result<Carried, Errno> {
        if self.shut_down {
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
                self.shut_down = true;
                return Ok(Carried::All);
            }
            let flags = if may_hold {
                RecvFlags::empty()
            } else {
                RecvFlags::PEEK
            };
            match recv(from, &mut *buffer, flags).map(|(_, length)| length) {
                Ok(0) => self.ended = true,
                Ok(length) if !may_hold => {
                    let written = write(to, &buffer[..length])?;
                    if written == 0 {
                        return Ok(Carried::Some);
                    }
                    // These bytes are there: they were read already.
                    recv(from, &mut buffer[..written], RecvFlags::empty())?;
                }
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

/// Writes the bytes that the end takes now, and returns their number.
fn write(to: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    loop {
        match rustix::io::write(to.as_fd(), bytes) {
            Err(Errno::AGAIN) => return Ok(0),
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}
