//! TCP routes: ports of the edge that lead to a process, byte by byte.
//!
//! An edge listens at a port as long as a route has it and its operator allows it. A connection takes its route as it is accepted, and keeps its instance
//! until either ends: a route that changes touches no connection. What one end has sent in full is told to the other (half-close), so that protocols
//! which use that work.
//!
//! Bytes move without being looked at. Few at once go through a buffer of the stack, so an idle connection has none; many go by splice(2), which does not
//! copy them.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use display::Repeated;
use model::route_name;
use prometheus_client::metrics::counter::Counter;
use rustix::net::Shutdown;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::forward::{Edge, Scheme};
use crate::limits::{
    ACCEPT_RETRY, CONNECT_TIMEOUT, LISTEN_RETRY, MAX_ATTEMPTS, MAX_TCP_CONNECTIONS,
};
use crate::listener::ends_of;
use crate::metrics::Failure;
use crate::port_ranges::PortRanges;
use crate::{proxy_header, socket};

/// Bytes that are read at once before splice(2) takes over.
const BUFFER: usize = 16 * 1024;
/// Bytes that one splice(2) moves at most: what a pipe holds.
const PIPE: usize = 64 * 1024;

/// Listens at the ports of TCP routes, at this address, until `shutdown`.
pub(crate) async fn serve(
    edge: Arc<Edge>,
    address: IpAddr,
    allowed: PortRanges,
    shutdown: CancellationToken,
) {
    let mut ports = edge.routes.tcp_ports();
    let room = Arc::new(Semaphore::new(MAX_TCP_CONNECTIONS));
    let mut listening: BTreeMap<u16, CancellationToken> = BTreeMap::new();
    let listeners = TaskTracker::new();
    loop {
        let wanted = ports.borrow_and_update().clone();
        listening.retain(|port, ends| {
            let is_wanted = wanted.contains(port);
            if !is_wanted {
                ends.cancel();
            }
            is_wanted
        });
        for port in wanted {
            if listening.contains_key(&port) {
                continue;
            }
            let ends = shutdown.child_token();
            listening.insert(port, ends.clone());
            if !allowed.contains(port) {
                tracing::warn!(
                    port,
                    %allowed,
                    hint = "`platform edge --tcp-ports` says where routes may have it listen",
                    "a TCP route has a port that this edge does not listen at"
                );
                continue;
            }
            let (edge, room) = (Arc::clone(&edge), Arc::clone(&room));
            listeners.spawn(async move {
                let serving = listen(edge, SocketAddr::new(address, port), room);
                ends.run_until_cancelled(serving).await;
                tracing::info!(port, "listens at the port of a TCP route no more");
            });
        }
        tokio::select! {
            changed = ports.changed() => if changed.is_err() { break },
            () = shutdown.cancelled() => break,
        }
    }
    shutdown.cancelled().await;
    listeners.close();
    listeners.wait().await;
}

/// Accepts clients of one port, for ever.
async fn listen(edge: Arc<Edge>, address: SocketAddr, room: Arc<Semaphore>) {
    let mut refused = Repeated::default();
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                if refused.is_due(Instant::now(), &error.to_string()) {
                    tracing::warn!(%address, %error, "cannot listen at the port of a TCP route; trying again");
                }
                sleep(LISTEN_RETRY).await;
            }
        }
    };
    tracing::info!(%address, "listens at the port of a TCP route");
    let name = route_name::of_tcp(address.port());
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((client, from)) => {
                let (served, name) = (Arc::clone(&edge), name.clone());
                edge.tunnels.spawn(async move {
                    let _open = served.metrics.count_tunnel();
                    let end = served.end_tunnels.clone();
                    end.run_until_cancelled(pass_on(&served, &name, client, from))
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
async fn pass_on(edge: &Edge, name: &str, mut client: TcpStream, from: SocketAddr) {
    socket::prepare(&client);
    let Some(to) = edge.routes.find(name) else {
        return; // It is gone.
    };
    let (process, env) = (&to.route.process, &to.route.env);
    let is_trusted = edge.trusted_proxies.contains(from.ip());
    let share = edge.shares.take(from.ip()).filter(|_| !is_trusted);
    let in_flight = to.begin();
    if (share.is_none() && !is_trusted) || in_flight.is_none() {
        tracing::warn!(client = %from, %env, %process, "the client, or the port, has as many connections as it may have");
        return;
    }
    let Some(ends) = ends_of(edge, &mut client, from, Scheme::Http).await else {
        return;
    };
    let mut backend = None;
    for address in to.in_turn().take(MAX_ATTEMPTS) {
        match connect(address).await {
            Ok(stream) => {
                backend = Some((address, stream));
                break;
            }
            Err(error) => {
                to.counted.failed(Failure::Connect);
                tracing::info!(%address, %error, %env, %process, "an instance takes no connection");
            }
        }
    }
    let Some((address, mut backend)) = backend else {
        tracing::warn!(client = %from, %env, %process, "no instance takes the connection of a client");
        return;
    };
    let passed = async {
        if to.route.proxy_protocol.is_some() {
            let header = proxy_header::encode(ends.client, ends.edge);
            backend.write_all(&header).await?;
        }
        let (client, backend) = (&client, &backend);
        tokio::try_join!(
            copy(client, backend, &to.counted.received),
            copy(backend, client, &to.counted.sent)
        )
    };
    if let Err(error) = passed.await {
        tracing::debug!(client = %from, %address, %error, "a connection of a TCP route broke");
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let stream = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    socket::prepare(&stream);
    Ok(stream)
}

/// Passes on all that `from` sends, then that it sends no more.
async fn copy(from: &TcpStream, to: &TcpStream, counted: &Counter) -> io::Result<()> {
    loop {
        from.readable().await?;
        let (length, mut rest) = match pass_buffer(from, to) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            passed => passed?,
        };
        if length == 0 {
            break;
        }
        counted.inc_by(length as u64);
        while !rest.is_empty() {
            to.writable().await?;
            match to.try_write(&rest) {
                Ok(written) => drop(rest.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        if length == BUFFER {
            pass_pipe(from, to, counted).await?;
        }
    }
    match rustix::net::shutdown(to, Shutdown::Write) {
        // It has gone already.
        Err(rustix::io::Errno::NOTCONN) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Reads once, and writes what is taken at once: how much was read, and what of it is to be written still.
fn pass_buffer(from: &TcpStream, to: &TcpStream) -> io::Result<(usize, Vec<u8>)> {
    let mut buffer = [0; BUFFER];
    let length = from.try_read(&mut buffer)?;
    let mut rest = &buffer[..length];
    while !rest.is_empty() {
        match to.try_write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok((length, rest.to_vec()))
}

/// Passes on as long as much comes at once. Where there is no pipe to be had, it passes on nothing.
async fn pass_pipe(from: &TcpStream, to: &TcpStream, counted: &Counter) -> io::Result<()> {
    let Ok((source, sink)) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK) else {
        return Ok(());
    };
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    loop {
        let fill = || Ok(splice(from, None, &sink, None, PIPE, flags)?);
        let length = from.async_io(Interest::READABLE, fill).await?;
        counted.inc_by(length as u64);
        let mut left = length;
        while left > 0 {
            let empty = || Ok(splice(&source, None, to, None, left, flags)?);
            left -= to.async_io(Interest::WRITABLE, empty).await?;
        }
        if length < BUFFER {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests;
