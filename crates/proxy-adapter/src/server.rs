//! The server: listeners, connections by number, and the loop that waits for their events.

use std::io;
use std::net::SocketAddrV6;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with, getsockname};

use crate::connection::{Connection, Turn, dial, reset};
use crate::listener::Port;
use crate::refusals::{Refusal, Refusals};

/// The bounds of a process; smaller in tests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Time for the whole header, from the connection on.
    pub(crate) header: Duration,
    /// Connections at a time.
    pub(crate) connections: usize,
    /// Bytes held for ends that do not take them. From there on bytes are left with their sender.
    pub(crate) held: usize,
    /// Shortest time between two lines of the log.
    pub(crate) log_interval: Duration,
}

/// The adapter's limits in a guest.
pub(crate) const ADAPTER_LIMITS: Limits = Limits {
    header: Duration::from_secs(5),
    connections: 1024,
    held: 16 * 1024 * 1024,
    log_interval: Duration::from_secs(10),
};
/// Memory of the guest for each of the forwarder's connections: an eighth of it at most is the kernel's for their
/// sockets.
const MEMORY_PER_CONNECTION: u64 = 128 * 1024;
/// Fewest and most connections of the forwarder.
const FORWARDED: (u64, u64) = (512, 16 * 1024);

impl Limits {
    /// The forwarder's limits in a guest with this memory.
    pub(crate) fn of_forwarder(memory_bytes: u64) -> Self {
        let connections = (memory_bytes / MEMORY_PER_CONNECTION).clamp(FORWARDED.0, FORWARDED.1);
        Self {
            connections: usize::try_from(connections).unwrap_or(usize::MAX),
            held: usize::try_from(memory_bytes / 32)
                .map_or(ADAPTER_LIMITS.held, |held| held.min(ADAPTER_LIMITS.held)),
            ..ADAPTER_LIMITS
        }
    }
}

/// Descriptors beside those of connections: standard streams, listeners, epoll.
const OTHER_DESCRIPTORS: u64 = 128;
/// Open files that a process needs: two for each connection, and a few of its own.
pub const OPEN_FILES: u64 = 2 * FORWARDED.1 + OTHER_DESCRIPTORS;
/// Connections taken from a listener before others have their turn.
const ACCEPTED_AT_ONCE: usize = 64;
/// Bytes read from an end at a time: many at once cost least. As many may have to be held for the other end.
const BUFFER_BYTES: usize = 64 * 1024;
/// Events taken at a time.
const EVENTS: usize = 64;
/// Pause after the kernel could not give a connection, for lack of memory or descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the listeners, and logs refusals. Returns only when the kernel's epoll fails, with its error.
pub(crate) fn serve(
    name: &'static str,
    ports: Vec<Port>,
    limits: Limits,
    log: impl FnMut(&str),
) -> io::Error {
    match Server::new(name, ports, limits, log) {
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
    ports: Vec<Port>,
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
    fn new(
        name: &'static str,
        ports: Vec<Port>,
        limits: Limits,
        log: L,
    ) -> rustix::io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            ports,
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
            refusals: Refusals::new(name, log, limits.log_interval),
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
        for port in &self.ports {
            if wanted {
                let token = EventData::new_u64(LISTENERS);
                epoll::add(&self.epoll, port.fd(), token, EventFlags::IN)?;
            } else {
                epoll::delete(&self.epoll, port.fd())?;
            }
        }
        Ok(())
    }

    fn accept(&mut self, now: Instant) {
        for at in 0..self.ports.len() {
            for _ in 0..ACCEPTED_AT_ONCE {
                if self.connections.len() - self.free.len() >= self.limits.connections {
                    return;
                }
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                match acceptfrom_with(self.ports[at].fd(), flags) {
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
        let until = now + self.limits.header;
        let connection = match &self.ports[listener] {
            Port::Ingress(port) if !port.admits(peer) => {
                reset(&client);
                self.refusals.count(peer, Refusal::Foreign, now);
                return;
            }
            Port::Ingress(_) => Connection::ingress(client, peer, listener, until),
            Port::Forwarded { .. } => {
                let address = getsockname(&client);
                let address = address.and_then(|address| {
                    SocketAddrV6::try_from(address).map_err(|_| Errno::AFNOSUPPORT)
                });
                let port = address.map_or(0, |address| address.port());
                let Some(app) = self.dial(listener, port) else {
                    reset(&client);
                    self.refusals.count(peer, Refusal::App, now);
                    return;
                };
                Connection::forwarded(client, peer, listener, port, app)
            }
        };
        self.begin(connection, until);
    }

    /// Dials the app where it listens on this port.
    fn dial(&mut self, listener: usize, port: u16) -> Option<OwnedFd> {
        match &mut self.ports[listener] {
            Port::Forwarded {
                targets, notices, ..
            } => {
                notices.report(port);
                dial(targets.find(port)?).ok()
            }
            Port::Ingress(_) => None,
        }
    }

    /// Serves a connection. `until`: the deadline of its header, where it has one.
    fn begin(&mut self, connection: Connection, until: Instant) {
        let number = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        // A connection that cannot be watched would hang: it is closed by being dropped.
        let watched = self.watch(connection.client(), number, false)
            && connection
                .app()
                .is_none_or(|app| self.watch(app, number, true));
        if watched {
            if connection.header_until().is_some() {
                self.header_deadline.get_or_insert(until);
            }
            self.connections[number] = Some(connection);
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
                self.app_refused(number);
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

    /// The app does not listen where it was dialled. A forwarded connection is dialled once more: the app may listen
    /// elsewhere now.
    fn app_refused(&mut self, number: usize) {
        let Some(Some(connection)) = self.connections.get_mut(number) else {
            return;
        };
        let listener = connection.listener();
        if let Some(port) = connection.take_port()
            && let Some(app) = self.dial(listener, port)
            && self.watch(&app, number, true)
            && let Some(Some(connection)) = self.connections.get_mut(number)
        {
            connection.redial(app);
            return;
        }
        self.refuse(number, Refusal::App);
    }

    fn advance(&mut self, number: usize) {
        let Some(Some(connection)) = self.connections.get_mut(number) else {
            return;
        };
        let port = &self.ports[connection.listener()];
        self.held -= connection.held();
        let may_hold = self.held < self.limits.held;
        let turn = connection.advance(port, &mut self.buffer, may_hold);
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
