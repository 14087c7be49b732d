//! A user's connection to a port of an instance: the node dials it, and joins it to the user's stream.
//!
//! The node dials the instance's address, as its probes do: so half-closed connections, resets and backpressure are TCP's own,
//! and an app on IPv6 or `0.0.0.0` is reached as its neighbours reach it. Where nothing listens there, the node dials again from a
//! reserved port (below 1024), and the guest's kernel hands that connection to what listens on loopback
//! (`guest_init::bpf`): so a debugger or a database that is private to its instance is reached as well, as `kubectl
//! port-forward` reaches it, and by no one else: guests cannot send from their node's address, and on the node only root can
//! from a reserved port.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use api::forward::{ForwardFailure, ForwardFailureKind, ForwardFrame};
use api_client::{ApiClient, ClientError, carry};
use model::InstanceId;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::directory::{Directory, Guest};

/// How long the instance may take to accept a connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Reserved ports that connections are made from: the upper half, of which fewer have an owner.
const FIRST_RESERVED: u16 = 512;
/// See [`FIRST_RESERVED`].
const RESERVED_PORTS: u16 = 512;
/// Reserved ports that are tried for one connection: one may be in use towards the same port of the instance.
const RESERVED_TRIES: u16 = 16;

/// Serves one connection to its end.
pub(crate) async fn serve(
    client: &ApiClient,
    stream: &str,
    (instance, port): (InstanceId, u16),
    directory: &Directory,
) -> Result<(), ClientError> {
    let mut user = client.open_forward(stream).await?;
    let opened = match directory.guest(instance) {
        Ok(Guest { calls, address }) => {
            let running = calls.running();
            // Whoever holds the calls keeps the watch from closing.
            drop(calls);
            dial(address, port, instance)
                .await
                .map(|connection| (connection, running))
        }
        Err(reason) => Err(ForwardFailure::new(
            ForwardFailureKind::InstanceGone,
            reason,
        )),
    };
    let (connection, running) = match opened {
        Ok(opened) => opened,
        Err(failure) => {
            if user
                .writer
                .send(&ForwardFrame::Failed(failure))
                .await
                .is_ok()
            {
                user.hang_up().await;
            }
            return Ok(());
        }
    };
    if user.writer.send(&ForwardFrame::Opened).await.is_err() {
        return Ok(());
    }
    if let Err(failure) = carry(connection, user, ended(instance, running), || ()).await {
        tracing::debug!(%instance, port, %failure, "a forwarded connection broke");
    }
    Ok(())
}

/// Waits for the end of the instance's app: its VM takes no more part in a connection, which nobody would end.
async fn ended(instance: InstanceId, mut running: watch::Receiver<bool>) -> ForwardFailure {
    // A watch that is closed says the same.
    let _ = running.wait_for(|running| *running).await;
    let _ = running.wait_for(|running| !running).await;
    ForwardFailure::new(
        ForwardFailureKind::InstanceGone,
        format!("instance {instance} has ended"),
    )
}

async fn dial(
    address: Ipv6Addr,
    port: u16,
    instance: InstanceId,
) -> Result<TcpStream, ForwardFailure> {
    let to = SocketAddr::from((address, port));
    let failed = |kind, reason: String| {
        Err(ForwardFailure::new(
            kind,
            format!("port {port} of instance {instance}: {reason}"),
        ))
    };
    let dialling = async {
        match TcpStream::connect(to).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                from_reserved_port(to).await.unwrap_or(Err(error))
            }
            other => other,
        }
    };
    match timeout(DIAL_TIMEOUT, dialling).await {
        Ok(Ok(connection)) => {
            // Bytes are passed on as they come.
            let _ = connection.set_nodelay(true);
            Ok(connection)
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => failed(
            ForwardFailureKind::PortClosed,
            "nothing listens there".to_owned(),
        ),
        Ok(Err(error)) => failed(ForwardFailureKind::NoAnswer, error.to_string()),
        Err(_) => {
            let within = DIAL_TIMEOUT.as_secs();
            failed(
                ForwardFailureKind::NoAnswer,
                format!("no answer within {within} s"),
            )
        }
    }
}

/// Connects from a reserved port. Absent: there is none to be had.
async fn from_reserved_port(to: SocketAddr) -> Option<io::Result<TcpStream>> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in 0..RESERVED_TRIES {
        let port = FIRST_RESERVED + NEXT.fetch_add(1, Ordering::Relaxed) % RESERVED_PORTS;
        let socket = TcpSocket::new_v6().ok()?;
        // Connections to other instances may be from the same port.
        socket.set_reuseaddr(true).ok()?;
        match socket.bind((Ipv6Addr::UNSPECIFIED, port).into()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => continue,
            Err(_) => return None,
        }
        match socket.connect(to).await {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
                ) => {}
            other => return Some(other),
        }
    }
    None
}
