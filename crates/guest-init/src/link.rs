//! One connection to the node: dialled without blocking, framed, and dialled again when it breaks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use guest_protocol::{
    CONTRACT_VERSION, Channel, Frame as _, FrameBuffer, GuestFrame, HOST_CID, HOST_PORT, Hello,
    HostFrame, Phase,
};
use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::sys;

/// Shortest and longest pause before dialling again. The longest is how late an agent that was
/// restarted hears of its guests.
const REDIAL: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// A connection that lived this long was a good one: the next pause is the shortest again.
const GOOD_CONNECTION: Duration = Duration::from_secs(2);
/// Bytes taken from the socket at a time.
const READ_BYTES: usize = 16 * 1024;

/// A connection to the node, present or to come.
pub(crate) struct Link {
    channel: Channel,
    state: State,
    pause: Duration,
    /// Why the last attempt failed, for the console.
    last_error: Option<io::Error>,
    /// The node refused this contract, which the console was told.
    refused: bool,
}

enum State {
    Down { until: Instant },
    Connecting(OwnedFd),
    Up(Connection),
}

struct Connection {
    fd: OwnedFd,
    incoming: FrameBuffer,
    outgoing: Vec<u8>,
    since: Instant,
}

/// What happened on a link.
pub(crate) enum Event {
    /// It is connected; hello was said.
    Connected,
    /// The node says this.
    Frame(HostFrame),
    /// It broke, or could not be made.
    Lost,
}

impl Link {
    /// A link that is dialled at the first [`Self::tick`].
    pub(crate) fn new(channel: Channel, now: Instant) -> Self {
        Self {
            channel,
            state: State::Down { until: now },
            pause: REDIAL.0,
            last_error: None,
            refused: false,
        }
    }

    /// Whether frames can be sent.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// Bytes of frames that wait to be written.
    pub(crate) fn outgoing_bytes(&self) -> usize {
        match &self.state {
            State::Up(connection) => connection.outgoing.len(),
            _ => 0,
        }
    }

    /// Why the last attempt failed.
    pub(crate) fn last_error(&self) -> Option<&io::Error> {
        self.last_error.as_ref()
    }

    /// True when this machine has no way to a host at all, so that waiting is of no use.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.last_error.as_ref().is_some_and(|error| {
            matches!(
                error.raw_os_error(),
                Some(libc::EAFNOSUPPORT | libc::ENODEV)
            )
        })
    }

    /// What to wait for. `more` says that there is something to write beside the frames; `listen`
    /// whether to read.
    pub(crate) fn interest(&self, more: bool, listen: bool) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.state {
            State::Down { .. } => None,
            State::Connecting(fd) => Some((fd.as_fd(), PollFlags::OUT)),
            State::Up(connection) => {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::IN, listen);
                flags.set(PollFlags::OUT, more || !connection.outgoing.is_empty());
                Some((connection.fd.as_fd(), flags))
            }
        }
    }

    /// When [`Self::tick`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Down { until } => Some(until),
            _ => None,
        }
    }

    /// Dials when it is time to. A failure to begin leaves the link down until the next time.
    pub(crate) fn tick(&mut self, now: Instant) {
        if let State::Down { until } = self.state
            && until <= now
        {
            match sys::vsock_connect(HOST_CID, HOST_PORT) {
                Ok(fd) => self.state = State::Connecting(fd),
                Err(error) => self.lost(Some(error), now),
            }
        }
    }

    /// Handles what [`Self::interest`] waited for.
    pub(crate) fn ready(&mut self, phase: &Phase, now: Instant) -> Vec<Event> {
        let mut events = Vec::new();
        let result = match std::mem::replace(&mut self.state, State::Down { until: now }) {
            State::Down { until } => {
                self.state = State::Down { until };
                Ok(())
            }
            State::Connecting(fd) => self.connected(fd, phase, now, &mut events),
            State::Up(connection) => {
                self.state = State::Up(connection);
                self.flush().and_then(|()| self.receive(&mut events))
            }
        };
        if let Err(error) = result {
            self.lost(Some(error), now);
            events.push(Event::Lost);
        }
        events
    }

    fn connected(
        &mut self,
        fd: OwnedFd,
        phase: &Phase,
        now: Instant,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        rustix::net::sockopt::socket_error(&fd)??;
        self.last_error = None;
        self.state = State::Up(Connection {
            fd,
            incoming: FrameBuffer::default(),
            outgoing: Vec::new(),
            since: now,
        });
        self.send(&GuestFrame::Hello(Hello {
            contract: CONTRACT_VERSION,
            channel: self.channel,
            phase: phase.clone(),
        }));
        events.push(Event::Connected);
        self.flush()
    }

    /// Queues a frame; it is written when the socket takes it. Lost when the link is not up.
    pub(crate) fn send(&mut self, frame: &GuestFrame) {
        if let State::Up(connection) = &mut self.state {
            connection.outgoing.extend_from_slice(&frame.encode());
        }
    }

    /// Writes what it can of the queued frames.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let State::Up(connection) = &mut self.state else {
            return Ok(());
        };
        while !connection.outgoing.is_empty() {
            match rustix::io::write(&connection.fd, &connection.outgoing) {
                Ok(bytes) => drop(connection.outgoing.drain(..bytes)),
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Writes bytes past the queue, when the queue is empty; returns how many were taken.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let State::Up(connection) = &mut self.state else {
            return Ok(0);
        };
        if !connection.outgoing.is_empty() {
            return Ok(0);
        }
        match rustix::io::write(&connection.fd, bytes) {
            Ok(bytes) => Ok(bytes),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    fn receive(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        let State::Up(connection) = &mut self.state else {
            return Ok(());
        };
        let mut bytes = [0; READ_BYTES];
        match rustix::io::read(&connection.fd, &mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => connection.incoming.push(&bytes[..length]),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        while let Some(frame) = connection.incoming.next().map_err(io::Error::other)? {
            if let HostFrame::Refused { reason } = &frame {
                // It will not change its mind soon, and the console is to hear of it once.
                self.pause = REDIAL.1;
                if !self.refused {
                    crate::console(&format!("refused by the node: {reason}"));
                }
                self.refused = true;
            }
            events.push(Event::Frame(frame));
        }
        Ok(())
    }

    /// Gives the connection up; it is dialled again after a pause that grows.
    pub(crate) fn lost(&mut self, error: Option<io::Error>, now: Instant) {
        if let State::Up(connection) = &self.state
            && now.duration_since(connection.since) >= GOOD_CONNECTION
        {
            self.pause = REDIAL.0;
        }
        self.last_error = error;
        self.state = State::Down {
            until: now + self.pause,
        };
        self.pause = (self.pause * 2).min(REDIAL.1);
    }
}
