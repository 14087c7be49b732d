//! What every TCP connection of the edge has set, and how it is closed.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

use crate::limits::{BACKLOG, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES};

/// No delay for small writes, and keep-alive so that a peer that vanished is noticed. What a listening socket has, those have that it accepts (tcp(7)).
pub(crate) fn prepare(socket: impl AsFd) {
    let socket = socket.as_fd();
    let set = || -> rustix::io::Result<()> {
        sockopt::set_tcp_nodelay(socket, true)?;
        sockopt::set_socket_keepalive(socket, true)?;
        sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)
    };
    if let Err(error) = set() {
        // The peer may be gone already; the first read will say so.
        tracing::debug!(%error, "a socket's options could not be set");
    }
}

/// What every listening socket of the edge has set, whoever made it, and through it the connections that it accepts.
pub(crate) fn prepare_listener(listener: impl AsFd) {
    let socket = listener.as_fd();
    prepare(socket);
    // Again, for its backlog.
    if let Err(error) = rustix::net::listen(socket, BACKLOG) {
        tracing::debug!(%error, "a socket's backlog could not be set");
    }
}

/// Whether the connection is closed by a reset: then its other end learns that it was cut off. What the kernel has not sent yet goes. By default the end of
/// what was sent is told, as when it is whole.
pub(crate) fn reset_at_close(stream: &TcpStream, resets: bool) {
    let linger = resets.then_some(Duration::ZERO);
    if let Err(error) = sockopt::set_socket_linger(stream, linger) {
        tracing::debug!(%error, "a socket's options could not be set");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::time::Duration;

    use rustix::net::sockopt;

    use super::{KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES, prepare_listener};

    #[test]
    fn an_accepted_connection_has_what_its_listening_socket_has() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        prepare_listener(&listener);
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(sockopt::tcp_nodelay(&accepted).unwrap());
        assert!(sockopt::socket_keepalive(&accepted).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&accepted), Ok(KEEPALIVE_IDLE));
        assert_eq!(sockopt::tcp_keepintvl(&accepted), Ok(KEEPALIVE_INTERVAL));
        assert_eq!(sockopt::tcp_keepcnt(&accepted), Ok(KEEPALIVE_PROBES));
    }
    #[test]
    fn a_listening_socket_that_had_a_short_backlog_has_a_long_one() {
        // It has 128 of the standard library.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        prepare_listener(&listener);
        let address = listener.local_addr().unwrap();
        let connect = |_| TcpStream::connect_timeout(&address, Duration::from_millis(500));
        // The kernel forgets whoever finds no room.
        let waiting: Result<Vec<_>, _> = (0..300).map(connect).collect();
        assert_eq!(waiting.unwrap().len(), 300);
    }
}
