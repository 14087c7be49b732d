//! Whether what TCP sends in the tunnel arrives as it was sent: segment by segment, and many at once, which the kernel cuts and joins.
//!
//! Nodes answer at port 7 of their probe address, where what comes is sent back (RFC 862), as long as a run goes on. The rules let members in there, and
//! nobody else.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use api::member::Segments;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::source::Source;

/// The port of RFC 862.
const PORT: u16 = node_network::ECHO_PORT;
/// Connections that are answered at a time; others are closed.
const MAX_CONNECTIONS: usize = 32;
/// Most bytes that one connection is sent back.
const MAX_ECHOED: u64 = 1 << 20;
/// How long a connection may take, and a try.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before the other end is tried again: it begins a moment later.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// What is sent segment by segment: how often, and how many bytes, which fit into one of the smallest MTU.
const SINGLE: (usize, usize) = (8, 1000);
/// What is sent at once, in bytes.
const LARGE: usize = 256 << 10;
/// Open connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Answers at a node's probe address, until dropped.
pub(super) async fn serve(source: Source) -> io::Result<()> {
    let listener = listener(&source).await?;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        connections.spawn(async move {
            let (mut from, mut to) = stream.into_split();
            let echoing = async {
                let mut bounded = (&mut from).take(MAX_ECHOED);
                tokio::io::copy(&mut bounded, &mut to).await
            };
            // Whoever asked finds out.
            let _ = timeout(CONNECTION_TIMEOUT, echoing).await;
            drop(place);
        });
    }
}

/// Sends to a node's probe address and compares what comes back. Absent: nobody answered there until then.
pub(super) async fn ask(source: &Source, peer: Ipv6Addr, until: Instant) -> Option<Segments> {
    let mut single = connect(source, peer, until).await?;
    let is_single = matches!(
        timeout(CONNECTION_TIMEOUT, singly(&mut single)).await,
        Ok(Ok(true))
    );
    drop(single);
    let large = connect(source, peer, until).await?;
    let is_large = matches!(
        timeout(CONNECTION_TIMEOUT, at_once(large)).await,
        Ok(Ok(true))
    );
    Some(Segments {
        single: is_single,
        large: is_large,
    })
}

/// Each segment waits for the one before to come back.
async fn singly(stream: &mut TcpStream) -> io::Result<bool> {
    stream.set_nodelay(true)?;
    let (times, size) = SINGLE;
    for round in 0..times {
        let sent = contents(size, round);
        stream.write_all(&sent).await?;
        let mut received = vec![0; size];
        stream.read_exact(&mut received).await?;
        if received != sent {
            return Ok(false);
        }
    }
    Ok(true)
}

/// All is written at once, and read meanwhile.
async fn at_once(stream: TcpStream) -> io::Result<bool> {
    let (from, mut to) = stream.into_split();
    let sent = contents(LARGE, 0);
    // One that sends back more is not read on.
    let mut from = from.take(LARGE as u64 + 1);
    let mut received = Vec::new();
    let writing = async {
        to.write_all(&sent).await?;
        to.shutdown().await
    };
    let (written, read) = tokio::join!(writing, from.read_to_end(&mut received));
    written?;
    read?;
    Ok(received == sent)
}

fn contents(size: usize, round: usize) -> Vec<u8> {
    let byte = |at: usize| {
        let [.., second, first] = (at + round).to_be_bytes();
        first ^ second.rotate_left(3)
    };
    (0..size).map(byte).collect()
}

async fn connect(source: &Source, peer: Ipv6Addr, until: Instant) -> Option<TcpStream> {
    let to = SocketAddr::V6(SocketAddrV6::new(peer, PORT, 0, 0));
    while Instant::now() < until {
        let fd = source.tcp(0).await.ok()?;
        let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(fd));
        let wait = CONNECTION_TIMEOUT.min(until.saturating_duration_since(Instant::now()));
        if let Ok(Ok(stream)) = timeout(wait, socket.connect(to)).await {
            return Some(stream);
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    None
}

async fn listener(source: &Source) -> io::Result<TcpListener> {
    let fd = source.tcp(PORT).await?;
    rustix::net::listen(&fd, BACKLOG)?;
    TcpListener::from_std(std::net::TcpListener::from(fd))
}
