//! A connection to the node: dialled without blocking, framed, and dialled again when it breaks.
//!
//! The end of a connection may be lost on its way: a vsock device on the host that finds the node's socket reset (the agent was
//! killed while bytes of the guest waited there) can forget to say so. Who waits for an answer says it
//! ([`Link::expect_answer`]), and a connection on which nothing comes within [`ANSWER_TIMEOUT`] is given up like a broken one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use guest_protocol::{
    CONTRACT_VERSION, Channel, Frame as _, FrameBuffer, GuestFrame, HOST_CID, HOST_PORT, Hello,
    HostFrame, Phase,
};
use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::{console, sys};

/// Bytes of the token, before they are written as hexadecimal digits.
const TOKEN_BYTES: usize = 16;

/// Shortest and longest pause before dialling again. The longest bounds how long an agent that was
/// restarted waits for its guests.
const REDIAL: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// After a connection that lived this long the next pause is the shortest again.
const GOOD_CONNECTION: Duration = Duration::from_secs(2);
/// How long an answer may take: longer than a node that is alive needs on a machine that is busy.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes taken from the socket at a time.
const READ_BYTES: usize = 16 * 1024;

/// What shows the node that a connection is init's ([`Hello::token`]). It is in init's memory only: the programs that init
/// starts do not inherit it, and nothing in the guest can read init's memory, which is in no namespace of the app.
fn token() -> &'static str {
    static TOKEN: OnceLock<String> = OnceLock::new();
    TOKEN.get_or_init(|| {
        let mut bytes = [0; TOKEN_BYTES];
        // A guest's kernel has random numbers from its start: by the processor, or by the virtio device.
        let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        match filled {
            Ok(TOKEN_BYTES) => format!("{:032x}", u128::from_be_bytes(bytes)),
            _ => {
                console::print("no random numbers: other programs of this guest may dial the node in init's place");
                String::new()
            }
        }
    })
}

/// A connection to the node, made again whenever it breaks.
pub(crate) struct Link {
    channel: Channel,
    state: State,
    pause: Duration,
    /// Why the last attempt failed, for the console.
    last_error: Option<io::Error>,
    /// The last message on the console about the node's frames: it is not repeated at each connection.
    printed: String,
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
    /// When an answer must have come, while one is expected.
    answer_due: Option<Instant>,
}

/// An event of a link.
pub(crate) enum Event {
    /// It is connected, and its hello is queued.
    Connected,
    /// A frame from the node.
    Frame(HostFrame),
    /// The node refused it.
    Refused,
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
            printed: String::new(),
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

    /// Whether this machine has no vsock device, so that waiting is of no use.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.last_error.as_ref().is_some_and(|error| {
            matches!(
                error.raw_os_error(),
                Some(libc::EAFNOSUPPORT | libc::ENODEV)
            )
        })
    }

    /// The events to wait for. `more`: there are bytes to write beside the queued frames; `listen`: read.
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

    /// When [`Self::tick`] dials.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Down { until } => Some(until),
            State::Connecting(_) => None,
            State::Up(ref connection) => connection.answer_due,
        }
    }

    /// The node owes an answer from now on, unless it owes one already: the next bytes from it, whatever they are.
    pub(crate) fn expect_answer(&mut self, now: Instant) {
        if let State::Up(connection) = &mut self.state {
            connection.answer_due.get_or_insert(now + ANSWER_TIMEOUT);
        }
    }

    /// Dials when the pause is over, and gives up a connection whose answer has not come. A dial that fails at once leaves
    /// the link down for another pause. Returns whether a connection was given up.
    pub(crate) fn tick(&mut self, now: Instant) -> bool {
        match &self.state {
            State::Down { until } if *until <= now => {
                match sys::vsock_connect(HOST_CID, HOST_PORT) {
                    Ok(fd) => self.state = State::Connecting(fd),
                    Err(error) => self.lost(Some(error), now),
                }
                false
            }
            State::Up(connection) if connection.answer_due.is_some_and(|due| due <= now) => {
                self.lost(Some(io::ErrorKind::TimedOut.into()), now);
                true
            }
            _ => false,
        }
    }

    /// Handles an event that [`Self::interest`] waited for.
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
            answer_due: None,
        });
        self.send(&GuestFrame::Hello(Hello {
            contract: CONTRACT_VERSION,
            channel: self.channel,
            phase: phase.clone(),
            token: token().to_owned(),
        }));
        events.push(Event::Connected);
        self.flush()
    }

    /// Queues a frame; it is written when the socket accepts it. Dropped when the link is not up.
    pub(crate) fn send(&mut self, frame: &GuestFrame) {
        if let State::Up(connection) = &mut self.state {
            connection.outgoing.extend_from_slice(&frame.encode());
        }
    }

    /// Writes the bytes of queued frames that the socket accepts.
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

    /// Writes bytes without queueing them, when the queue is empty; returns how many were written.
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
            Ok(length) => {
                connection.answer_due = None;
                connection.incoming.push(&bytes[..length]);
            }
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        loop {
            match connection.incoming.next() {
                Ok(Some(HostFrame::Refused { reason })) => {
                    // The next connection will be refused as well.
                    self.pause = REDIAL.1;
                    self.print_once(format!("the node refused this guest: {reason}"));
                    events.push(Event::Refused);
                    return Ok(());
                }
                Ok(Some(frame)) => events.push(Event::Frame(frame)),
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.print_once(format!(
                        "the node sent what this guest does not understand ({error}): the connection is closed"
                    ));
                    return Err(io::Error::other(error));
                }
            }
        }
    }

    /// Prints a message on the console, unless it is the last one printed.
    fn print_once(&mut self, message: String) {
        if self.printed != message {
            console::print(&message);
            self.printed = message;
        }
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
