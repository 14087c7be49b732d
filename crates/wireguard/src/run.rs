//! Datagrams of one size for one destination, that are sent by one call.

use std::io;
use std::net::SocketAddr;

use quinn_udp::{Transmit, UdpSocketState};

/// The kernel sends no more than that at once, headers not counted.
const MAX_RUN_BYTES: usize = 65_000;

/// What waits to be sent.
#[derive(Debug, Default)]
pub(crate) struct Run {
    to: Option<SocketAddr>,
    bytes: Vec<u8>,
    /// The size of each datagram; the last one may be smaller, and ends the run.
    size: usize,
    count: usize,
}

impl Run {
    /// Whether a datagram of this length can be one more of the run.
    fn takes(&self, to: SocketAddr, len: usize, most: usize) -> bool {
        self.to == Some(to)
            && len <= self.size
            // None of them was smaller than the others so far.
            && self.bytes.len() == self.size * self.count
            && self.count < most
            && self.bytes.len() + len <= MAX_RUN_BYTES
    }

    /// Adds a datagram, after what was there is sent where it does not fit.
    ///
    /// # Errors
    /// What was there was not sent. The datagram waits all the same.
    pub(crate) fn push(
        &mut self,
        socket: &Socket,
        to: SocketAddr,
        datagram: &[u8],
    ) -> io::Result<()> {
        let sent = if self.takes(to, datagram.len(), socket.state.max_gso_segments()) {
            Ok(())
        } else {
            self.send(socket)
        };
        if self.count == 0 {
            self.to = Some(to);
            self.size = datagram.len();
        }
        self.bytes.extend_from_slice(datagram);
        self.count += 1;
        sent
    }

    /// Sends what is there.
    ///
    /// # Errors
    /// The kernel did not take it. It is dropped then, as a network would.
    pub(crate) fn send(&mut self, socket: &Socket) -> io::Result<()> {
        let Some(to) = self.to.take() else {
            return Ok(());
        };
        let transmit = Transmit {
            destination: socket.reaching(to),
            ecn: None,
            contents: &self.bytes,
            segment_size: (self.count > 1).then_some(self.size),
            src_ip: None,
        };
        let sent = (socket.state).try_send((&socket.udp).into(), &transmit);
        self.bytes.clear();
        self.count = 0;
        sent
    }
}

/// The UDP socket.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) udp: std::net::UdpSocket,
    pub(crate) state: UdpSocketState,
    /// It is of IPv6, and reaches IPv4 by mapped addresses.
    dual: bool,
}

impl Socket {
    /// A socket at this port, 0 for any, of both families where the machine has both.
    pub(crate) fn bind(port: u16) -> io::Result<Self> {
        let any = std::net::Ipv6Addr::UNSPECIFIED;
        let (udp, dual) = match std::net::UdpSocket::bind((any, port)) {
            Ok(udp) => (udp, true),
            // A machine without IPv6.
            Err(_) => {
                let any = std::net::Ipv4Addr::UNSPECIFIED;
                (std::net::UdpSocket::bind((any, port))?, false)
            }
        };
        let state = UdpSocketState::new((&udp).into())?;
        // Bursts wait in the socket while the thread is at other work. The kernel gives less where `net.core.rmem_max` is less.
        for set in [
            UdpSocketState::set_recv_buffer_size,
            UdpSocketState::set_send_buffer_size,
        ] {
            let _ = set(&state, (&udp).into(), 4 << 20);
        }
        Ok(Self { udp, state, dual })
    }

    /// An address in the family of the socket.
    fn reaching(&self, to: SocketAddr) -> SocketAddr {
        match to {
            SocketAddr::V4(v4) if self.dual => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
            _ => to,
        }
    }
}

/// An address as people write it: IPv4 is not mapped.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    (address.ip().to_canonical(), address.port()).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::Duration;

    use super::*;

    #[test]
    fn datagrams_arrive_as_they_were_whatever_runs_they_make() {
        let socket = Socket::bind(0).unwrap();
        let (one, other) = (
            std::net::UdpSocket::bind("127.0.0.1:0").unwrap(),
            std::net::UdpSocket::bind("[::1]:0").unwrap(),
        );
        let mut run = Run::default();
        let mut expected = [Vec::new(), Vec::new()];
        // Runs of one size, one that ends them, one that is longer, one to somebody else.
        for (number, len) in [1400, 1400, 1400, 300, 1400, 40, 40, 41, 1400]
            .into_iter()
            .enumerate()
        {
            for (to, sent) in [&one, &other]
                .into_iter()
                .zip(&mut expected)
                .take(1 + number % 2)
            {
                let datagram = vec![u8::try_from(number).unwrap(); len];
                run.push(&socket, to.local_addr().unwrap(), &datagram)
                    .unwrap();
                sent.push(datagram);
            }
        }
        run.send(&socket).unwrap();
        for (to, sent) in [one, other].iter().zip(expected) {
            to.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            for datagram in sent {
                let mut buffer = [0; 2000];
                let len = to.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..len], datagram);
            }
        }
    }
}
