//! TCP routes: ports of the edge that lead to a process, byte by byte; or to several, by the host that a client names by TLS (`by_name`).
//!
//! An edge listens at a port as long as a route has it and its operator allows it. A connection takes its route as it is accepted, and keeps its instance
//! until either ends: a route that changes touches no connection. What one end has sent in full is told to the other (half-close), so that protocols
//! which use that work. All other ends are resets to both, whoever's doing they are: nobody takes what was cut off for whole. What an end had said before it
//! went is passed on first.
//!
//! A listening socket may come from the process before this one, and be kept for the next ([`KeptPorts`]): no client is refused while an edge is started again.
//!
//! Bytes move without being looked at. Few at once go through a buffer of the stack, so an idle connection has none; many go by splice(2), which does not
//! copy them.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::iter;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use display::Repeated;
use futures_util::future::{Either, select};
use model::route_name;
use prometheus_client::metrics::counter::Counter;
use rustix::net::{Shutdown, sockopt};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use tokio::io::{AsyncRead as _, AsyncWriteExt as _, Interest, ReadBuf};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::buffer::Buffer;
use crate::forward::{Edge, Ends, Scheme};
use crate::limits::{
    ACCEPT_RETRY, CONNECT_TIMEOUT, LINGER_TIMEOUT, LISTEN_RETRY, MAX_TCP_CONNECTIONS,
};
use crate::listener::ends_of;
use crate::metrics::{EnvMetrics, Failure, Open, PortState};
use crate::port_ranges::PortRanges;
use crate::routes::HostRoute;
use crate::timer::Timer;
use crate::tls::Tls;
use crate::tunnel::{self, CopyError, TunnelEnd};
use crate::{proxy_header, socket, sticky};

mod by_name;

use by_name::Client;

/// Bytes that are read at once before splice(2) takes over.
const BUFFER: usize = 16 * 1024;
/// Bytes that one splice(2) moves at most: what a pipe holds.
const PIPE: usize = 64 * 1024;

/// Who keeps the listening sockets of TCP routes for the next process: systemd, where the edge is a unit.
pub trait KeepPorts: fmt::Debug + Send + Sync {
    /// This socket is to be kept.
    fn keep(&self, listener: &TcpListener);
    /// The one that listens here is to be kept no longer.
    fn stop_keeping(&self, address: SocketAddr);
}

/// The listening sockets of TCP routes that outlive a process.
#[derive(Debug, Default)]
pub struct KeptPorts {
    /// Those of the process before this one.
    pub listeners: Vec<TcpListener>,
    /// Who keeps this one's; nobody by default.
    pub keeper: Option<Arc<dyn KeepPorts>>,
}

impl KeptPorts {
    /// The one that listens here.
    fn take(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let listens = |listener: &TcpListener| {
            listener.local_addr().ok() == Some(address)
                && sockopt::socket_acceptconn(listener).is_ok_and(|listens| listens)
        };
        let place = self.listeners.iter().position(listens)?;
        Some(self.listeners.swap_remove(place))
    }

    /// No route has what is left.
    fn close(&mut self) {
        for listener in self.listeners.drain(..) {
            close(&listener, self.keeper.as_deref());
        }
    }
}

/// Ends the listening of a socket, in each process that has a copy of it.
fn close(listener: &TcpListener, keeper: Option<&dyn KeepPorts>) {
    if let (Some(keeper), Ok(address)) = (keeper, listener.local_addr()) {
        keeper.stop_keeping(address);
    }
    if let Err(error) = rustix::net::shutdown(listener, Shutdown::Both) {
        tracing::debug!(%error, "a socket did not listen");
    }
}

/// A socket that listens until it is dropped because its route is gone; at a shutdown it listens on, for the next process.
struct Listening {
    listener: TcpListener,
    keeper: Option<Arc<dyn KeepPorts>>,
    shutdown: CancellationToken,
}

impl Drop for Listening {
    fn drop(&mut self) {
        if !self.shutdown.is_cancelled() {
            close(&self.listener, self.keeper.as_deref());
        }
    }
}

/// A port that routes have, as long as they have it.
enum Wanted {
    /// A task listens there until this is dropped.
    Listens {
        _ends: DropGuard,
    },
    NotAllowed {
        _counted: Open,
    },
}

/// Listens at the ports of TCP routes, at this address, until `shutdown`.
pub(crate) async fn serve(
    edge: Arc<Edge>,
    tls: Option<Arc<Tls>>,
    address: IpAddr,
    allowed: PortRanges,
    mut kept: KeptPorts,
    shutdown: CancellationToken,
) {
    let mut ports = edge.routes.tcp_ports();
    let room = Arc::new(Semaphore::new(MAX_TCP_CONNECTIONS));
    let mut listening: BTreeMap<u16, Wanted> = BTreeMap::new();
    let listeners = TaskTracker::new();
    loop {
        let wanted = ports.borrow_and_update().clone();
        // Those that are dropped end.
        listening.retain(|port, _| wanted.contains(port));
        for port in wanted {
            if listening.contains_key(&port) {
                continue;
            }
            if !allowed.contains(port) {
                let counted = edge.metrics.count_port(PortState::NotAllowed);
                listening.insert(port, Wanted::NotAllowed { _counted: counted });
                tracing::warn!(
                    port,
                    %allowed,
                    hint = "`platform edge --tcp-ports` says where routes may have it listen",
                    "a TCP route has a port that this edge does not listen at"
                );
                continue;
            }
            let ends = shutdown.child_token();
            let listens = Wanted::Listens {
                _ends: ends.clone().drop_guard(),
            };
            listening.insert(port, listens);
            let room = Arc::clone(&room);
            let address = SocketAddr::new(address, port);
            let served = Port {
                edge: Arc::clone(&edge),
                tls: tls.clone(),
                address,
                name: route_name::of_tcp(port),
            };
            let known = kept.take(address);
            let (keeper, shutdown) = (kept.keeper.clone(), shutdown.clone());
            listeners.spawn(async move {
                let serving = async {
                    let is_known = known.is_some();
                    let listener = match known {
                        Some(known) => known,
                        None => bind(&served.edge, address).await,
                    };
                    if let Some(keeper) = keeper.as_ref().filter(|_| !is_known) {
                        keeper.keep(&listener);
                    }
                    let listening = Listening {
                        listener,
                        keeper,
                        shutdown,
                    };
                    listen(served, room, &listening.listener).await;
                };
                ends.run_until_cancelled(serving).await;
                tracing::info!(port, "listens at the port of a TCP route no more");
            });
        }
        // Of the routes on disk all are known.
        kept.close();
        tokio::select! {
            changed = ports.changed() => if changed.is_err() { break },
            () = shutdown.cancelled() => break,
        }
    }
    shutdown.cancelled().await;
    listeners.close();
    listeners.wait().await;
}

/// Listens at a port as soon as it is free.
async fn bind(edge: &Edge, address: SocketAddr) -> TcpListener {
    let mut refused = Repeated::default();
    let mut taken = None;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => {
                taken.get_or_insert_with(|| edge.metrics.count_port(PortState::Taken));
                if refused.is_due(Instant::now(), &error.to_string()) {
                    tracing::warn!(%address, %error, "cannot listen at the port of a TCP route; trying again");
                }
                sleep(LISTEN_RETRY).await;
            }
        }
    }
}

/// A port at which the edge listens.
struct Port {
    edge: Arc<Edge>,
    /// What makes handshakes; absent where the edge has no certificates.
    tls: Option<Arc<Tls>>,
    address: SocketAddr,
    /// The name of the route for whoever connects.
    name: String,
}

/// Accepts clients of one port, for ever.
async fn listen(port: Port, room: Arc<Semaphore>, listener: &TcpListener) {
    let mut refused = Repeated::default();
    let port = Arc::new(port);
    let (edge, address) = (&port.edge, port.address);
    let _listening = edge.metrics.count_port(PortState::Listening);
    tracing::info!(%address, "listens at the port of a TCP route");
    socket::prepare_listener(listener);
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((client, from)) => {
                let served = Arc::clone(&port);
                edge.tunnels.spawn(async move {
                    let _open = served.edge.metrics.count_tunnel();
                    let end = served.edge.end_tunnels.clone();
                    end.run_until_cancelled(serve_client(&served, client, from))
                        .await;
                    drop(place);
                });
            }
            Err(error) => {
                if refused.is_due(Instant::now(), &error.to_string()) {
                    tracing::warn!(%address, %error, "cannot accept a connection");
                }
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Serves one client to the end.
async fn serve_client(port: &Port, mut client: TcpStream, from: SocketAddr) {
    let edge = &port.edge;
    let is_trusted = edge.trusted_proxies.contains(from.ip());
    let share = edge.shares.take(from.ip()).filter(|_| !is_trusted);
    if share.is_none() && !is_trusted {
        tracing::warn!(client = %from, port = port.address.port(), "the client has as many connections as it may have");
        socket::reset_at_close(&client, true);
        return;
    }
    let Some(ends) = ends_of(edge, &mut client, from, Scheme::Http).await else {
        socket::reset_at_close(&client, true);
        return;
    };
    // A port that a route has for whoever connects is for nobody else: while a release changes that, it is as it was.
    let Some(to) = edge.routes.find(&port.name) else {
        // Apart, so that a connection without TLS has no memory for it.
        Box::pin(serve_by_name(port, client, &ends, from)).await;
        return;
    };
    let Ok(_in_flight) = to.admit(|| from.ip()) else {
        let (process, env) = (&to.route.process, &to.route.env);
        tracing::warn!(client = %from, %env, %process, "the port has as many connections as it may have");
        socket::reset_at_close(&client, true);
        return;
    };
    pass_on(&to, Client::Plain(client, Vec::new()), &ends).await;
}

/// A client of a port whose routes are told apart by the host that it names.
async fn serve_by_name(port: &Port, client: TcpStream, ends: &Ends, from: SocketAddr) {
    match by_name::lead(port, client, from).await {
        Ok(led) => {
            pass_on(&led.to, led.client, ends).await;
            drop(led.in_flight);
        }
        Err(error) => {
            let port = port.address.port();
            let error = display::chain(&error);
            tracing::info!(client = %from, port, error, "a client of a port of TCP routes is led nowhere");
        }
    }
}

/// A client, and the instance that it is led to once there is one. Where they have not both ended when this is dropped, they are reset.
struct Both {
    client: Client,
    backend: Option<TcpStream>,
    have_ended: bool,
}

impl Drop for Both {
    fn drop(&mut self) {
        if !self.have_ended {
            for stream in iter::once(self.client.socket()).chain(&self.backend) {
                socket::reset_at_close(stream, true);
            }
        }
    }
}

/// Passes on all that a client and an instance say.
async fn pass_on(to: &HostRoute, client: Client, ends: &Ends) {
    let mut both = Both {
        client,
        backend: None,
        have_ended: false,
    };
    let (process, env) = (&to.route.process, &to.route.env);
    let from = ends.client;
    let mut lease = None;
    let wanted = to.route.settings.sticky;
    let wanted = wanted.then(|| sticky::by_client(to, from.ip()));
    let mut attempts = to.attempts(wanted.flatten());
    while let Ok(tried) = attempts.next().await {
        let address = tried.upstream().address;
        match connect(address).await {
            Ok(stream) => {
                tried.upstream().accepted();
                both.backend = Some(stream);
                lease = Some(tried);
                break;
            }
            Err(error) => {
                tried.upstream().refused();
                to.counted.failed(Failure::Connect);
                tracing::info!(%address, %error, %env, %process, "an instance takes no connection");
            }
        }
    }
    let (Some(lease), Some(backend)) = (lease, &mut both.backend) else {
        tracing::warn!(client = %from, %env, %process, "no instance takes the connection of a client");
        return;
    };
    let client = &mut both.client;
    let passed = async {
        if to.route.proxy_protocol.is_some() {
            let header = proxy_header::encode(ends.client, ends.edge, client.tls());
            backend.write_all(&header).await?;
        }
        match client {
            Client::Plain(client, seen) => {
                let seen = std::mem::take(seen);
                to.counted.received.inc_by(seen.len() as u64);
                backend.write_all(&seen).await?;
                drop(seen);
                copy_both(client, backend, &to.counted).await
            }
            Client::Tls(client, _) => Box::pin(copy_in_tls(client, backend, &to.counted)).await,
        }
    };
    match passed.await {
        Ok(()) => both.have_ended = true,
        Err(error) => {
            let address = lease.upstream().address;
            tracing::debug!(client = %from, %address, %error, "a connection of a TCP route broke");
        }
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let stream = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    socket::prepare(&stream);
    Ok(stream)
}

/// Passes on both ways, until both ends have ended.
async fn copy_both(
    client: &mut TcpStream,
    backend: &mut TcpStream,
    counted: &EnvMetrics,
) -> io::Result<()> {
    let is_broken = AtomicBool::new(false);
    let (of_client, to_client) = client.split();
    let (of_backend, to_backend) = backend.split();
    let up = pin!(copy(of_client, to_backend, &counted.received, &is_broken));
    let down = pin!(copy(of_backend, to_client, &counted.sent, &is_broken));
    let (ended, other) = match select(up, down).await {
        Either::Left((ended, down)) => (ended, down),
        Either::Right((ended, up)) => (ended, up),
    };
    match ended {
        Ok(()) => Ok(other.await?),
        Err(CopyError::From(error)) => Err(error),
        // What who takes no more had said.
        Err(CopyError::To(error)) => {
            is_broken.store(true, Ordering::Relaxed);
            let _ = Box::pin(timeout(LINGER_TIMEOUT, other)).await;
            Err(error)
        }
    }
}

/// The same of what is in a client's TLS.
async fn copy_in_tls(
    client: &mut TlsStream<TcpStream>,
    backend: &mut TcpStream,
    counted: &EnvMetrics,
) -> io::Result<()> {
    let (mut of_client, mut of_backend) = (Buffer::default(), Buffer::default());
    let mut timer = Timer::stopped();
    let carried = tunnel::carry(
        (client, &mut of_client),
        (backend, &mut of_backend),
        false,
        None,
        &mut timer,
        |up, down| {
            counted.received.inc_by(up.read as u64);
            counted.sent.inc_by(down.read as u64);
        },
    );
    carried.await.map_err(|ended| match ended {
        TunnelEnd::Broken(error) => error,
        TunnelEnd::Idle | TunnelEnd::CutOff => io::ErrorKind::TimedOut.into(),
    })
}

/// Passes on all that one end sends, then, unless the other direction broke, that it sends no more.
async fn copy(
    mut from: ReadHalf<'_>,
    to: WriteHalf<'_>,
    counted: &Counter,
    is_broken: &AtomicBool,
) -> Result<(), CopyError> {
    loop {
        let (length, mut rest) = poll_fn(|context| poll_buffer(context, &mut from, &to)).await?;
        if length == 0 {
            break;
        }
        counted.inc_by(length as u64);
        while !rest.is_empty() {
            to.writable().await.map_err(CopyError::To)?;
            match to.try_write(&rest) {
                Ok(written) => drop(rest.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(CopyError::To(error)),
            }
        }
        if length == BUFFER {
            pass_pipe(from.as_ref(), to.as_ref(), counted).await?;
        }
    }
    if is_broken.load(Ordering::Relaxed) {
        return Ok(());
    }
    match rustix::net::shutdown(to.as_ref(), Shutdown::Write) {
        // It has gone already.
        Err(rustix::io::Errno::NOTCONN) | Ok(()) => Ok(()),
        Err(error) => Err(CopyError::To(error.into())),
    }
}

/// Reads once, and writes what is taken at once: how much was read, and what of it is to be written still.
///
/// It is `poll_read`, not `try_read`: that one takes a read which fills less than the buffer for the last, and need not ask once more.
fn poll_buffer(
    context: &mut Context<'_>,
    from: &mut ReadHalf<'_>,
    to: &WriteHalf<'_>,
) -> Poll<Result<(usize, Vec<u8>), CopyError>> {
    let mut space = [MaybeUninit::uninit(); BUFFER];
    let mut buffer = ReadBuf::uninit(&mut space);
    ready!(Pin::new(from).poll_read(context, &mut buffer)).map_err(CopyError::From)?;
    let mut rest = buffer.filled();
    let length = rest.len();
    while !rest.is_empty() {
        match to.try_write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Poll::Ready(Err(CopyError::To(error))),
        }
    }
    Poll::Ready(Ok((length, rest.to_vec())))
}

/// Passes on as long as much comes at once. Where there is no pipe to be had, it passes on nothing.
async fn pass_pipe(from: &TcpStream, to: &TcpStream, counted: &Counter) -> Result<(), CopyError> {
    let Ok((source, sink)) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK) else {
        return Ok(());
    };
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    loop {
        let fill = || Ok(splice(from, None, &sink, None, PIPE, flags)?);
        let length = from.async_io(Interest::READABLE, fill).await;
        let length = length.map_err(CopyError::From)?;
        counted.inc_by(length as u64);
        let mut left = length;
        while left > 0 {
            let empty = || Ok(splice(&source, None, to, None, left, flags)?);
            let emptied = to.async_io(Interest::WRITABLE, empty).await;
            left -= emptied.map_err(CopyError::To)?;
        }
        if length < BUFFER {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests;
