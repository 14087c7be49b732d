//! Datagrams of one size for one destination, that are sent by one call.

use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};

/// A destination to which a run could not be sent gets single datagrams for so long: its path takes only smaller ones, or its link cuts none.
const SINGLE_FOR: Duration = Duration::from_secs(600);
/// Destinations of which that is kept.
const MAX_SINGLE: usize = 4096;

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

    /// Adds a datagram, after what was there is sent where it does not fit. Gives how many datagrams were not sent; this one waits all the same.
    pub(crate) fn push(&mut self, socket: &mut Socket, to: SocketAddr, datagram: &[u8]) -> u64 {
        let not_sent = if self.takes(to, datagram.len(), socket.longest_run(to)) {
            0
        } else {
            self.send(socket)
        };
        if self.count == 0 {
            self.to = Some(to);
            self.size = datagram.len();
        }
        self.bytes.extend_from_slice(datagram);
        self.count += 1;
        not_sent
    }

    /// Sends what is there. Gives how many datagrams the kernel did not take: they are dropped, as a network would.
    pub(crate) fn send(&mut self, socket: &mut Socket) -> u64 {
        let Some(to) = self.to.take() else {
            return 0;
        };
        let not_sent = socket.send(to, &self.bytes, self.size, self.count);
        self.bytes.clear();
        self.count = 0;
        not_sent
    }
}

/// The UDP socket.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) udp: std::net::UdpSocket,
    state: UdpSocketState,
    /// The port at which it listens.
    pub(crate) port: u16,
    /// It is of IPv6, and reaches IPv4 by mapped addresses.
    dual: bool,
    /// How many datagrams the kernel takes at once.
    pub(crate) most: usize,
    /// Destinations to which no runs are sent, and until when.
    single: HashMap<SocketAddr, Instant>,
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
        // Datagrams that are larger than a link are cut, here or on the way, as the kernel's WireGuard has it: a path of another MTU than
        // anybody knew is slow then, and not dead.
        for (level, option, value) in [
            (
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                libc::IP_PMTUDISC_DONT,
            ),
            (
                libc::IPPROTO_IPV6,
                libc::IPV6_MTU_DISCOVER,
                libc::IPV6_PMTUDISC_DONT,
            ),
            (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0),
            // Of no use here, and each packet pays for it: when, where and with what marks it came.
            (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 0),
            (libc::IPPROTO_IP, libc::IP_PKTINFO, 0),
            (libc::IPPROTO_IP, libc::IP_RECVTOS, 0),
            (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 0),
            (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 0),
        ] {
            // A socket of one family does not have the options of the other.
            let _ = set_option(&udp, level, option, value);
        }
        // Bursts wait in the socket while the thread is at other work. The kernel gives less where `net.core.rmem_max` is less.
        for set in [
            UdpSocketState::set_recv_buffer_size,
            UdpSocketState::set_send_buffer_size,
        ] {
            let _ = set(&state, (&udp).into(), 4 << 20);
        }
        let port = udp.local_addr()?.port();
        Ok(Self {
            udp,
            most: state.max_gso_segments(),
            single: HashMap::new(),
            state,
            port,
            dual,
        })
    }

    /// Sends and receives each datagram alone.
    pub(crate) fn without_offload(&mut self) {
        self.most = 1;
        // A kernel without it refuses, and joins nothing.
        let _ = set_option(&self.udp, libc::SOL_UDP, libc::UDP_GRO, 0);
    }

    /// Reads what waits, up to a datagram a buffer, or those of one sender that the kernel joined. Gives how many buffers were filled.
    pub(crate) fn recv(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> io::Result<usize> {
        self.state.recv((&self.udp).into(), buffers, metas)
    }

    /// How many datagrams are sent to a destination at once at most.
    fn longest_run(&self, to: SocketAddr) -> usize {
        if !self.single.is_empty() && self.single.contains_key(&to) {
            1
        } else {
            self.most
        }
    }

    /// Sends datagrams of one size, the last one maybe smaller. A run that is refused for being one is sent one by one: some links cut none, and what is larger
    /// than its link is only cut alone.
    fn send(&mut self, to: SocketAddr, bytes: &[u8], size: usize, count: usize) -> u64 {
        if count > 1 {
            match self.try_send(to, bytes, Some(size)) {
                Ok(()) => return 0,
                Err(error) if is_of_the_run(&error) => self.send_singly_from_now(to),
                // Each of them would be refused as well: there is no way there, or no room, for now.
                Err(_) => return count as u64,
            }
        }
        let each = bytes.chunks(size.max(1));
        each.map(|datagram| u64::from(self.try_send(to, datagram, None).is_err()))
            .sum()
    }

    fn try_send(&self, to: SocketAddr, contents: &[u8], size: Option<usize>) -> io::Result<()> {
        if size.is_none() {
            // Without control messages, which the kernel would have to read.
            return loop {
                match self.udp.send_to(contents, self.reaching(to)) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    sent => break sent.map(|_| ()),
                }
            };
        }
        let transmit = Transmit {
            destination: self.reaching(to),
            ecn: None,
            contents,
            segment_size: size,
            src_ip: None,
        };
        self.state.try_send((&self.udp).into(), &transmit)
    }

    fn send_singly_from_now(&mut self, to: SocketAddr) {
        let now = Instant::now();
        if self.single.len() >= MAX_SINGLE {
            self.single.clear();
        }
        self.single.insert(to, now + SINGLE_FOR);
        tracing::info!(%to, "datagrams are sent there one by one: the kernel refused many at once");
    }

    /// Runs are tried again to destinations whose time has come.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.single.retain(|_, until| *until > now);
    }

    /// An address in the family of the socket.
    fn reaching(&self, to: SocketAddr) -> SocketAddr {
        match to {
            SocketAddr::V4(v4) if self.dual => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
            _ => to,
        }
    }
}

/// Whether a run is refused because it is one: its link computes no checksums (udp(7)), or takes only what is smaller.
fn is_of_the_run(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP)
    )
}

#[allow(unsafe_code, reason = "these options have no safe wrapper")]
fn set_option(
    socket: &std::net::UdpSocket,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the socket is open, and the option is an int that outlives the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            len,
        )
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
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
        let mut socket = Socket::bind(0).unwrap();
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
                let to = to.local_addr().unwrap();
                assert_eq!(run.push(&mut socket, to, &datagram), 0);
                sent.push(datagram);
            }
        }
        assert_eq!(run.send(&mut socket), 0);
        for (to, sent) in [one, other].iter().zip(expected) {
            to.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            for datagram in sent {
                let mut buffer = [0; 2000];
                let len = to.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..len], datagram);
            }
        }
    }

    #[test]
    fn a_destination_that_is_refused_for_a_while_gets_runs_again() {
        let mut socket = Socket::bind(0).unwrap();
        let mut run = Run::default();
        // The kernel refuses it, as it does while a link is down: nothing that smaller runs would mend.
        let to = "255.255.255.255:9".parse().unwrap();
        for _ in 0..3 {
            run.push(&mut socket, to, &[0; 1000]);
        }
        assert_eq!(run.send(&mut socket), 3);
        assert_eq!(socket.longest_run(to), socket.most);
    }
}
