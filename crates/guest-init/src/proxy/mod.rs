//! The PROXY adapter: reads the PROXY v2 header with which an edge begins each connection, and joins
//! it to the app's own port (ADR 0001, ADR 0003). `strip` hands on what follows the header, `v2` the
//! header too, as it came.
//!
//! It is this program again, in a process of its own that [`crate::adapter`] starts: another user, no
//! rights, no environment, no config but its arguments, and no file but its listeners.
//!
//! One thread, edge-triggered: [`Server`] owns the connections and hears of events, a
//! [`Connection`] moves what can be moved and says what is next. Everything is bounded: connections
//! (others wait in the kernel's queue), the header's size and time, what is held of each direction,
//! what is moved before others have their turn, and the lines that are said.
//!
//! Absent on purpose: a limit on idle time (tunnels may be silent; a dead edge is found by
//! keep-alive), and any use of the addresses in the header.

mod connection;
mod header;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};

use connection::{Connection, Refusal, Turn, reset};
use header::MAX_HEADER_BYTES;

/// What an adapter bounds. Named here, and smaller in tests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Time for the whole header, from the connection on.
    pub(crate) header: Duration,
    /// Connections at a time.
    pub(crate) connections: usize,
    /// Shortest time between two lines.
    pub(crate) say: Duration,
}

/// The limits in a guest.
pub(crate) const LIMITS: Limits = Limits {
    header: Duration::from_secs(5),
    connections: 1024,
    say: Duration::from_secs(10),
};
/// Descriptors beside those of connections: standard streams, listeners, epoll.
const OTHER_DESCRIPTORS: u64 = 128;
/// Descriptors that an adapter needs: two a connection.
pub(crate) const OPEN_FILES: u64 = 2 * LIMITS.connections as u64 + OTHER_DESCRIPTORS;
/// Connections taken from a listener before others have their turn.
const ACCEPTED_AT_ONCE: usize = 64;
/// What is taken from an end at a time, in bytes: many at once cost least. As much may have to be held
/// for the other end.
const BUFFER_BYTES: usize = 64 * 1024;
/// As much is taken while connections hold [`MANY_HELD_BYTES`], so that all of them together
/// hold at most 8 MiB more.
const SMALL_BUFFER_BYTES: usize = MAX_HEADER_BYTES;
/// Bytes held for ends that do not take them, from which on little is taken at a time.
const MANY_HELD_BYTES: usize = 16 * 1024 * 1024;
/// Events taken at a time.
const EVENTS: usize = 64;
/// Pause after the kernel could not give a connection: of memory or descriptors there are too few.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A port.
pub(crate) struct Listener {
    /// Listening, non-blocking.
    pub(crate) fd: OwnedFd,
    /// The app's end.
    pub(crate) app: SocketAddrV6,
    /// Whether the header is left out.
    pub(crate) strip: bool,
    /// Who may connect: who has these bits ...
    pub(crate) peers: Ipv6Addr,
    /// ... where these are set.
    pub(crate) peers_mask: Ipv6Addr,
}

impl Listener {
    fn admits(&self, peer: Ipv6Addr) -> bool {
        peer.to_bits() & self.peers_mask.to_bits() == self.peers.to_bits()
    }
}

/// Serves the listeners. `say` gets a line now and then.
///
/// # Errors
/// The kernel gives no epoll, or takes it away: there is nothing left to wait with.
pub(crate) fn serve(listeners: Vec<Listener>, limits: Limits, say: impl FnMut(&str)) -> io::Error {
    match Server::new(listeners, limits, say) {
        Ok(mut server) => loop {
            if let Err(error) = server.turn() {
                return error.into();
            }
        },
        Err(error) => error.into(),
    }
}

struct Server<S> {
    epoll: OwnedFd,
    listeners: Vec<Listener>,
    limits: Limits,
    /// By their number; a number is used again.
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// When to look for headers that are late: not after any of them is.
    look_at: Option<Instant>,
    /// Connections that had their turn and can go on; each once.
    again: Vec<usize>,
    /// Whether the listeners are listened to.
    accepting: bool,
    accept_at: Option<Instant>,
    events: Vec<Event>,
    buffer: Box<[u8]>,
    /// Bytes that all connections hold.
    held: usize,
    refused: Refused<S>,
}

/// The token of a listener; those of connections are `2 * number + side`, side 1 being the app's.
const LISTENERS: u64 = u64::MAX;

impl<S: FnMut(&str)> Server<S> {
    fn new(listeners: Vec<Listener>, limits: Limits, say: S) -> rustix::io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            listeners,
            limits,
            connections: Vec::new(),
            free: Vec::new(),
            look_at: None,
            again: Vec::new(),
            accepting: false,
            accept_at: None,
            events: Vec::with_capacity(EVENTS),
            buffer: vec![0; BUFFER_BYTES].into(),
            held: 0,
            refused: Refused {
                say,
                every: limits.say,
                counts: [0; 3],
                last: None,
                next_line: None,
            },
        })
    }

    /// Waits for events and handles them.
    fn turn(&mut self) -> rustix::io::Result<()> {
        let now = Instant::now();
        self.expire(now);
        self.refused.tick(now);
        self.listen_if_room(now)?;
        let timeout = if self.again.is_empty() {
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
        for number in std::mem::take(&mut self.again) {
            if let Some(connection) = &mut self.connections[number] {
                connection.queued = false;
            }
            self.advance(number);
        }
        let mut knocked = false;
        for at in 0..self.events.len() {
            let Event { flags, data, .. } = self.events[at];
            let token = data.u64();
            if token == LISTENERS {
                knocked = true;
            } else {
                let number = usize::try_from(token >> 1).unwrap_or(usize::MAX);
                self.heard(number, token & 1 == 1, flags);
            }
        }
        // Last: until here a number means the connection that the events are about.
        if knocked {
            self.accept(Instant::now());
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        let deadlines = [self.look_at, self.refused.deadline(), self.accept_at];
        deadlines.into_iter().flatten().min()
    }

    /// Listens while another connection may be had, and not otherwise: the rest waits in the
    /// kernel's queue.
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
                    // It was given up while it waited.
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
        // One that is gone already has no address.
        let Some(peer) = peer.map(|peer| *peer.ip()) else {
            return;
        };
        if !self.listeners[listener].admits(peer) {
            reset(&client);
            self.refused.count(peer, Refusal::Foreign, now);
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
            self.look_at.get_or_insert(until);
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

    /// Something happened at one end of a connection.
    fn heard(&mut self, number: usize, app: bool, flags: EventFlags) {
        let Some(Some(connection)) = self.connections.get_mut(number) else {
            return;
        };
        if app {
            if !connection.app_answered() {
                self.refuse(number, Refusal::App);
                return;
            }
        } else if flags.contains(EventFlags::ERR) {
            // Nobody is left to hear what is on its way, and the app is to know.
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
                    self.again.push(number);
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
            self.refused
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

    /// Closes those that did not say their header in time.
    fn expire(&mut self, now: Instant) {
        if self.look_at.is_none_or(|at| at > now) {
            return;
        }
        self.look_at = None;
        for number in 0..self.connections.len() {
            let connection = self.connections[number].as_ref();
            match connection.and_then(Connection::header_until) {
                Some(until) if until <= now => self.refuse(number, Refusal::Late),
                Some(until) => {
                    let first = self.look_at.map_or(until, |at| at.min(until));
                    self.look_at = Some(first);
                }
                None => {}
            }
        }
    }
}

/// Counts what was refused, and says it: at once, and then not before some time.
struct Refused<S> {
    say: S,
    every: Duration,
    /// Since the last line: of others than edges, without a header, without an app.
    counts: [u32; 3],
    last: Option<(Ipv6Addr, Refusal)>,
    next_line: Option<Instant>,
}

impl<S: FnMut(&str)> Refused<S> {
    fn count(&mut self, peer: Ipv6Addr, refusal: Refusal, now: Instant) {
        let count = match refusal {
            Refusal::Foreign => &mut self.counts[0],
            Refusal::Late | Refusal::Cut | Refusal::Header(_) => &mut self.counts[1],
            Refusal::App => &mut self.counts[2],
        };
        *count = count.saturating_add(1);
        self.last = Some((peer, refusal));
        self.tick(now);
    }

    fn tick(&mut self, now: Instant) {
        self.next_line = self.next_line.filter(|at| *at > now);
        if self.next_line.is_some() {
            return;
        }
        if let Some((peer, refusal)) = self.last.take() {
            let [others, headers, apps] = std::mem::take(&mut self.counts);
            (self.say)(&format!(
                "PROXY adapter: refused connections: {others} of others than edges, {headers} without a \
                 header, {apps} without an app; the last, from {peer}: {}",
                refusal.text()
            ));
            self.next_line = Some(now + self.every);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.next_line.filter(|_| self.last.is_some())
    }
}
