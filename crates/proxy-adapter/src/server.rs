//! The server: listeners, connections by number, and the loop that waits for their events.

use std::io;
use std::net::SocketAddrV6;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};

use crate::connection::{Connection, Turn, reset};
use crate::header::MAX_HEADER_BYTES;
use crate::listener::Listener;
use crate::refusals::{Refusal, Refusals};

/// The bounds of an adapter; smaller in tests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Time for the whole header, from the connection on.
    pub(crate) header: Duration,
    /// Connections at a time.
    pub(crate) connections: usize,
    /// Shortest time between two lines of the log.
    pub(crate) log_interval: Duration,
}

/// The limits in a guest.
pub(crate) const LIMITS: Limits = Limits {
    header: Duration::from_secs(5),
    connections: 1024,
    log_interval: Duration::from_secs(10),
};
/// Descriptors beside those of connections: standard streams, listeners, epoll.
const OTHER_DESCRIPTORS: u64 = 128;
/// Open files that an adapter needs: two for each connection, and a few of its own.
pub const OPEN_FILES: u64 = 2 * LIMITS.connections as u64 + OTHER_DESCRIPTORS;
/// Connections taken from a listener before others have their turn.
const ACCEPTED_AT_ONCE: usize = 64;
/// Bytes read from an end at a time: many at once cost least. As many may have to be held for the other end.
const BUFFER_BYTES: usize = 64 * 1024;
/// Bytes read at a time while connections hold [`MANY_HELD_BYTES`], so that all of them together
/// hold at most 8 MiB more.
const SMALL_BUFFER_BYTES: usize = MAX_HEADER_BYTES;
/// Bytes held for ends that do not take them, from which on reads are small.
const MANY_HELD_BYTES: usize = 16 * 1024 * 1024;
/// Events taken at a time.
const EVENTS: usize = 64;
/// Pause after the kernel could not give a connection, for lack of memory or descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the listeners, and logs refusals. Returns only when the kernel's epoll fails, with its error.
pub(crate) fn serve(listeners: Vec<Listener>, limits: Limits, log: impl FnMut(&str)) -> io::Error {
    match Server::new(listeners, limits, log) {
        Ok(mut server) => loop {
            if let Err(error) = server.turn() {
                return error.into();
            }
        },
        Err(error) => error.into(),
    }
}

struct Server<L> {
    epoll: OwnedFd,
    listeners: Vec<Listener>,
    limits: Limits,
    /// By number; numbers are reused.
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// When to look for late headers: not later than the first header's deadline.
    header_deadline: Option<Instant>,
    /// Connections that had their turn and can go on; each once.
    runnable: Vec<usize>,
    /// Whether epoll watches the listeners.
    accepting: bool,
    /// When to accept again after the kernel could not give a connection.
    accept_at: Option<Instant>,
    events: Vec<Event>,
    buffer: Box<[u8]>,
    /// Bytes that all connections hold.
    held: usize,
    refusals: Refusals<L>,
}

/// The token of a listener; those of connections are `2 * number + side`, side 1 being the app's.
const LISTENERS: u64 = u64::MAX;

impl<L: FnMut(&str)> Server<L> {
    fn new(listeners: Vec<Listener>, limits: Limits, log: L) -> rustix::io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            listeners,
            limits,
            connections: Vec::new(),
            free: Vec::new(),
            header_deadline: None,
            runnable: Vec::new(),
            accepting: false,
            accept_at: None,
            events: Vec::with_capacity(EVENTS),
            buffer: vec![0; BUFFER_BYTES].into(),
            held: 0,
            refusals: Refusals::new(log, limits.log_interval),
        })
    }

    /// Waits for events and handles them.
    fn turn(&mut self) -> rustix::io::Result<()> {
        let now = Instant::now();
        self.expire(now);
        self.refusals.tick(now);
        self.listen_if_room(now)?;
        let timeout = if self.runnable.is_empty() {
            self.deadline().map(|at| at.saturating_duration_since(now))
        } else {
            Some(Duration::ZERO)
        };
        let timeout = timeout.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        self.events.clear();
        let room = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, room, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        for number in std::mem::take(&mut self.runnable) {
            if let Some(connection) = &mut self.connections[number] {
                connection.queued = false;
            }
            self.advance(number);
        }
        let mut pending = false;
        for at in 0..self.events.len() {
            let Event { flags, data, .. } = self.events[at];
            let token = data.u64();
            if token == LISTENERS {
                pending = true;
            } else {
                let number = usize::try_from(token >> 1).unwrap_or(usize::MAX);
                self.on_event(number, token & 1 == 1, flags);
            }
        }
        // Last, because a new connection may reuse a number that the other events are about.
        if pending {
            self.accept(Instant::now());
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        let deadlines = [
            self.header_deadline,
            self.refusals.deadline(),
            self.accept_at,
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Watches the listeners while there is room for another connection; the rest waits in the kernel's
    /// queue.
    fn listen_if_room(&mut self, now: Instant) -> rustix::io::Result<()> {
        self.accept_at = self.accept_at.filter(|at| *at > now);
        let open = self.connections.len() - self.free.len();
        let wanted = open < self.limits.connections && self.accept_at.is_none();
        if wanted == self.accepting {
            return Ok(());
        }
        self.accepting = wanted;
        for listener in &self.listeners {
            if wanted {
                let token = EventData::new_u64(LISTENERS);
                epoll::add(&self.epoll, &listener.fd, token, EventFlags::IN)?;
            } else {
                epoll::delete(&self.epoll, &listener.fd)?;
            }
        }
        Ok(())
    }

    fn accept(&mut self, now: Instant) {
        for at in 0..self.listeners.len() {
            for _ in 0..ACCEPTED_AT_ONCE {
                if self.connections.len() - self.free.len() >= self.limits.connections {
                    return;
                }
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                match acceptfrom_with(&self.listeners[at].fd, flags) {
                    Ok((client, peer)) => {
                        let peer = peer.and_then(|peer| SocketAddrV6::try_from(peer).ok());
                        self.accepted(at, client, peer, now);
                    }
                    Err(Errno::AGAIN) => break,
                    // The peer gave it up while it waited.
                    Err(Errno::CONNABORTED | Errno::INTR | Errno::PERM) => {}
                    Err(_) => {
                        self.accept_at = Some(now + ACCEPT_PAUSE);
                        return;
                    }
                }
            }
        }
    }

    fn accepted(
        &mut self,
        listener: usize,
        client: OwnedFd,
        peer: Option<SocketAddrV6>,
        now: Instant,
    ) {
        // A connection that is already gone has no address.
        let Some(peer) = peer.map(|peer| *peer.ip()) else {
            return;
        };
        if !self.listeners[listener].admits(peer) {
            reset(&client);
            self.refusals.count(peer, Refusal::Foreign, now);
            return;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        let until = now + self.limits.header;
        let connection = Connection::new(client, peer, listener, until);
        // A connection that cannot be watched would hang: it is closed by being dropped.
        if self.watch(connection.client(), number, false) {
            self.connections[number] = Some(connection);
            self.header_deadline.get_or_insert(until);
            self.advance(number);
        } else {
            self.free.push(number);
        }
    }

    fn watch(&self, fd: &OwnedFd, number: usize, app: bool) -> bool {
        let token = EventData::new_u64(number as u64 * 2 + u64::from(app));
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, fd, token, flags).is_ok()
    }

    /// Handles an event at one end of a connection.
    fn on_event(&mut self, number: usize, app: bool, flags: EventFlags) {
        let Some(Some(connection)) = self.connections.get_mut(number) else {
            return;
        };
        if app {
            if !connection.app_answered() {
                self.refuse(number, Refusal::App);
                return;
            }
        } else if flags.contains(EventFlags::ERR) {
            // The client is gone: what is on its way is lost, and the app gets a reset.
            connection.break_off();
            self.close(number);
            return;
        }
        self.advance(number);
    }

    fn advance(&mut self, number: usize) {
        let Some(Some(connection)) = self.connections.get_mut(number) else {
            return;
        };
        let listener = &self.listeners[connection.listener()];
        let size = if self.held < MANY_HELD_BYTES {
            BUFFER_BYTES
        } else {
            SMALL_BUFFER_BYTES
        };
        self.held -= connection.held();
        let turn = connection.advance(listener, &mut self.buffer[..size]);
        self.held += connection.held();
        match turn {
            Turn::Waits => {}
            Turn::GoesOn => {
                if !connection.queued {
                    connection.queued = true;
                    self.runnable.push(number);
                }
            }
            Turn::Dials => {
                let watched = self.connections[number]
                    .as_ref()
                    .and_then(Connection::app)
                    .is_some_and(|app| self.watch(app, number, true));
                if !watched {
                    self.refuse(number, Refusal::App);
                }
            }
            Turn::Over => self.close(number),
            Turn::Refused(refusal) => self.refuse(number, refusal),
        }
    }

    fn refuse(&mut self, number: usize, refusal: Refusal) {
        if let Some(Some(connection)) = self.connections.get(number) {
            connection.break_off();
            self.refusals
                .count(connection.peer(), refusal, Instant::now());
        }
        self.close(number);
    }

    fn close(&mut self, number: usize) {
        if let Some(connection) = self.connections[number].take() {
            self.held -= connection.held();
            self.free.push(number);
        }
    }

    /// Refuses connections whose header did not come in time.
    fn expire(&mut self, now: Instant) {
        if self.header_deadline.is_none_or(|at| at > now) {
            return;
        }
        self.header_deadline = None;
        for number in 0..self.connections.len() {
            let connection = self.connections[number].as_ref();
            match connection.and_then(Connection::header_until) {
                Some(until) if until <= now => self.refuse(number, Refusal::Late),
                Some(until) => {
                    let first = self.header_deadline.map_or(until, |at| at.min(until));
                    self.header_deadline = Some(first);
                }
                None => {}
            }
        }
    }
}
