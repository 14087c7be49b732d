//! What every TCP connection of the edge has set.

use rustix::net::sockopt;
use tokio::net::TcpStream;

use crate::limits::{KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES};

/// No delay for small writes, and keep-alive so that a peer that vanished is noticed.
pub(crate) fn prepare(stream: &TcpStream) {
    let set = || -> rustix::io::Result<()> {
        sockopt::set_tcp_nodelay(stream, true)?;
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)
    };
    if let Err(error) = set() {
        // The peer may be gone already; the first read will say so.
        tracing::debug!(%error, "a socket's options could not be set");
    }
}
