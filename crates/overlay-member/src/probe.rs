//! Echoes in the tunnel: whether a member answers at its probe address (RFC 4443, 4).

use std::fs::File;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::source::Source;

/// Types of ICMPv6.
const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;
/// Longest message that is received, in bytes; ours are shorter.
const MESSAGE_BYTES: usize = 1500;

/// Asks for echoes from one address.
#[derive(Debug)]
pub struct Prober {
    socket: tokio::net::UdpSocket,
    identifier: [u8; 2],
    sequence: AtomicU16,
}

impl Prober {
    /// Sends from there. Needs CAP_NET_RAW.
    ///
    /// # Errors
    /// There is no such namespace, link or address, or no right to such a socket.
    pub async fn open(source: &Source) -> io::Result<Self> {
        let socket = source.icmp(|_| Ok(())).await?;
        let mut identifier = [0; 2];
        rustix::rand::getrandom(&mut identifier[..], rustix::rand::GetRandomFlags::empty())?;
        Ok(Self {
            socket: tokio::net::UdpSocket::from_std(socket)?,
            identifier,
            sequence: AtomicU16::new(0),
        })
    }

    /// Asks a member. Where the packet cannot be sent now, there is no answer.
    pub fn send(&self, to: Ipv6Addr) {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let identifier = self.identifier;
        // The kernel fills in the checksum (RFC 3542, 3.1).
        let message = [
            ECHO_REQUEST,
            0,
            0,
            0,
            identifier[0],
            identifier[1],
            sequence[0],
            sequence[1],
        ];
        let to = SocketAddr::V6(SocketAddrV6::new(to, 0, 0, 0));
        let _ = self.socket.try_send_to(&message, to);
    }

    /// Who answered next. Cancel-safe.
    pub async fn answer(&self) -> Ipv6Addr {
        let mut message = [0; MESSAGE_BYTES];
        loop {
            match self.socket.recv_from(&mut message).await {
                Ok((length, SocketAddr::V6(from)))
                    if length >= 8
                        && message[0] == ECHO_REPLY
                        && message[4..6] == self.identifier =>
                {
                    return *from.ip();
                }
                Ok(_) => {}
                // What became of an earlier one: the next may do better.
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }
}

/// Does something in a network namespace, on a thread that ends with it.
pub(crate) async fn within<T: Send + 'static>(
    namespace: PathBuf,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (answer, answered) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("probe".to_owned())
        .spawn(move || {
            let done = File::open(namespace).and_then(|namespace| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                work()
            });
            // Whoever asked may be gone.
            let _ = answer.send(done);
        })?;
    answered
        .await
        .unwrap_or_else(|_| Err(io::Error::other("the thread ended early")))
}
