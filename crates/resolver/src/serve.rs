//! The process at work: one thread, one list of names, questions over UDP and TCP.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

use crate::answer::{Decision, Transport, decide, failure};
use crate::control::{NamespaceId, Status, Version};
use crate::names::{Names, Update};
use crate::upstream::{self, Health};

/// Questions that wait for the machine's name servers, of all instances.
const MAX_FORWARDED: u32 = 1024;
/// The same, of one instance.
const MAX_FORWARDED_OF_ONE: u32 = 128;
/// Connections of all instances.
const MAX_CONNECTIONS: u32 = 512;
/// Connections of one instance.
const MAX_CONNECTIONS_OF_ONE: u32 = 16;
/// A connection that asked nothing for so long is closed (RFC 7766, 6.2.3).
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Questions that are answered before others than this socket have their turn.
const QUESTIONS_IN_TURN: usize = 64;
/// Longest question that is read over UDP, in bytes.
const MAX_QUESTION_BYTES: usize = 4096;
/// Pause after an error that would come again at once.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// What all tasks of the process share.
#[derive(Debug)]
pub(crate) struct Server {
    names: RefCell<Names>,
    health: Health,
    namespace: NamespaceId,
    begun: Instant,
    /// Whether it was told of names since it began. Until then it does not answer: who asks asks again.
    is_told: Cell<bool>,
    turn: Cell<usize>,
    answered: Cell<u64>,
    forwarded: Cell<u64>,
    failed: Cell<u64>,
    forwarding: Shares,
    connections: Shares,
}

/// How much of something there is, and how much of it each instance has.
#[derive(Debug)]
struct Shares {
    all: u32,
    of_one: u32,
    taken: RefCell<BTreeMap<Ipv4Addr, u32>>,
    sum: Cell<u32>,
}

/// A share, until it is dropped.
struct Share<'a>(&'a Shares, Ipv4Addr);

impl Shares {
    fn new(all: u32, of_one: u32) -> Self {
        Self {
            all,
            of_one,
            taken: RefCell::default(),
            sum: Cell::new(0),
        }
    }

    fn take(&self, who: Ipv4Addr) -> Option<Share<'_>> {
        let mut taken = self.taken.borrow_mut();
        let has = taken.get(&who).copied().unwrap_or(0);
        if self.sum.get() >= self.all || has >= self.of_one {
            return None;
        }
        taken.insert(who, has + 1);
        self.sum.set(self.sum.get() + 1);
        Some(Share(self, who))
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut taken = self.0.taken.borrow_mut();
        self.0.sum.set(self.0.sum.get().saturating_sub(1));
        match taken.get_mut(&self.1) {
            Some(has) if *has > 1 => *has -= 1,
            _ => drop(taken.remove(&self.1)),
        }
    }
}

impl Server {
    pub(crate) fn new(namespace: NamespaceId) -> Rc<Self> {
        Rc::new(Self {
            names: RefCell::default(),
            health: Health::default(),
            namespace,
            begun: Instant::now(),
            is_told: Cell::new(false),
            turn: Cell::new(0),
            answered: Cell::new(0),
            forwarded: Cell::new(0),
            failed: Cell::new(0),
            forwarding: Shares::new(MAX_FORWARDED, MAX_FORWARDED_OF_ONE),
            connections: Shares::new(MAX_CONNECTIONS, MAX_CONNECTIONS_OF_ONE),
        })
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Follows what changed.
    pub(crate) fn apply(&self, update: Update) {
        self.is_told.set(self.is_told.get() || update.whole);
        self.names.borrow_mut().apply(update, self.now_ms());
    }

    /// How it is.
    pub(crate) fn status(&self) -> Status {
        let (instances, clients) = self.names.borrow().counts();
        Status {
            version: Version::default(),
            namespace: self.namespace,
            is_told: self.is_told.get(),
            instances,
            clients,
            answered: self.answered.get(),
            forwarded: self.forwarded.get(),
            failed: self.failed.get(),
        }
    }

    fn decide(&self, from: Ipv4Addr, transport: Transport, question: &[u8]) -> Decision {
        if !self.is_told.get() {
            return Decision::Drop;
        }
        self.turn.set(self.turn.get().wrapping_add(1));
        let turn = self.turn.get();
        decide(
            &self.names.borrow(),
            from,
            transport,
            question,
            turn,
            self.now_ms(),
        )
    }

    fn count(counter: &Cell<u64>) {
        counter.set(counter.get() + 1);
    }

    /// The answer of the machine's name servers, or that there is none.
    async fn forward(
        &self,
        from: Ipv4Addr,
        transport: Transport,
        question: &[u8],
    ) -> Option<Vec<u8>> {
        let fails = || {
            Self::count(&self.failed);
            failure(question)
        };
        let Some(_share) = self.forwarding.take(from) else {
            return fails();
        };
        Self::count(&self.forwarded);
        let servers = self.names.borrow().servers().to_vec();
        let number = random();
        match upstream::ask(&servers, &self.health, transport, question, number).await {
            Some(answer) => Some(answer),
            None => fails(),
        }
    }

    /// Answers over UDP, for ever.
    pub(crate) async fn serve_udp(self: Rc<Self>, socket: Rc<UdpSocket>) {
        let mut buffer = vec![0; MAX_QUESTION_BYTES];
        loop {
            if socket.readable().await.is_err() {
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
            for _ in 0..QUESTIONS_IN_TURN {
                let (length, from) = match socket.try_recv_from(&mut buffer) {
                    Ok(received) => received,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // Of an answer before, whose receiver is gone.
                    Err(_) => continue,
                };
                let IpAddr::V4(address) = from.ip() else {
                    continue;
                };
                let question = &buffer[..length];
                match self.decide(address, Transport::Udp, question) {
                    Decision::Answer(answer) => {
                        Self::count(&self.answered);
                        // Where there is no room for an answer it is lost as any packet: it is asked again.
                        let _ = socket.try_send_to(&answer, from);
                    }
                    Decision::Forward => {
                        let (server, socket) = (self.clone(), socket.clone());
                        let question = question.to_vec();
                        tokio::task::spawn_local(async move {
                            if let Some(answer) =
                                server.forward(address, Transport::Udp, &question).await
                            {
                                let _ = socket.try_send_to(&answer, from);
                            }
                        });
                    }
                    Decision::Drop => {}
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Answers over TCP, for ever.
    pub(crate) async fn serve_tcp(self: Rc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    let server = self.clone();
                    tokio::task::spawn_local(async move {
                        let _ = server.connection(stream, from).await;
                    });
                }
                Err(_) => tokio::time::sleep(ERROR_PAUSE).await,
            }
        }
    }

    async fn connection(&self, mut stream: TcpStream, from: SocketAddr) -> io::Result<()> {
        let IpAddr::V4(address) = from.ip() else {
            return Ok(());
        };
        let Some(_share) = self.connections.take(address) else {
            return Ok(());
        };
        loop {
            let Ok(length) = timeout(IDLE_TIMEOUT, stream.read_u16()).await else {
                return Ok(());
            };
            let mut question = vec![0; usize::from(length?)];
            let Ok(read) = timeout(IDLE_TIMEOUT, stream.read_exact(&mut question)).await else {
                return Ok(());
            };
            read?;
            let answer = match self.decide(address, Transport::Tcp, &question) {
                Decision::Answer(answer) => {
                    Self::count(&self.answered);
                    Some(answer)
                }
                Decision::Forward => self.forward(address, Transport::Tcp, &question).await,
                Decision::Drop => None,
            };
            let Some(answer) = answer else {
                return Ok(());
            };
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            let message = [&length.to_be_bytes()[..], &answer].concat();
            let Ok(written) = timeout(IDLE_TIMEOUT, stream.write_all(&message)).await else {
                return Ok(());
            };
            written?;
        }
    }
}

fn random() -> u16 {
    let mut bytes = [0; 2];
    // The kernel's source has begun long ago; without it, the port alone is random.
    let _ = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::NONBLOCK);
    u16::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn one_instance_takes_its_share_and_leaves_the_rest() {
        let shares = Shares::new(3, 2);
        let [a, b] = [1, 2].map(|last| Ipv4Addr::new(100, 64, 0, last));
        let first = shares.take(a);
        let second = shares.take(a);
        assert!(first.is_some() && second.is_some());
        assert!(shares.take(a).is_none(), "more than its share");
        let other = shares.take(b).unwrap();
        assert!(shares.take(b).is_none(), "more than there is");
        drop(first);
        assert!(shares.take(b).is_some());
        drop((second, other));
        assert!(shares.taken.borrow().is_empty());
        assert_eq!(shares.sum.get(), 0);
    }
}
