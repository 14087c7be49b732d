//! Asking the machine's name servers.
//!
//! A question goes on as it came, but for its number, from a port of its own: who does not see it cannot answer it (RFC 5452). The first server is asked
//! first; one that does not answer, or fails, is passed over for a while. An answer to an earlier attempt counts as long as any is waited for.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures_util::future::select_all;
use rustix::net::RecvFlags;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};

use crate::answer::{Transport, question_end};

/// How long an answer is waited for until the next attempt. Together the attempts take less than the 5 s that C libraries wait.
const ATTEMPT: Duration = Duration::from_millis(1200);
/// Attempts over UDP, and each server's place in line comes again.
const ATTEMPTS: usize = 4;
/// Longest wait for an answer over TCP.
const TCP_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a server that failed is asked after the others.
const PASSED_OVER: Duration = Duration::from_secs(30);
/// Most servers that are asked (resolv.conf(5) has 3).
pub(crate) const MAX_SERVERS: usize = 8;
/// Length of a message's header, in bytes.
const HEADER_BYTES: usize = 12;

/// When each server last failed.
#[derive(Debug, Default)]
pub(crate) struct Health(RefCell<BTreeMap<SocketAddr, Instant>>);

impl Health {
    /// The servers, those that failed lately last.
    fn in_order(&self, servers: &[SocketAddr]) -> Vec<SocketAddr> {
        let failed = self.0.borrow();
        let now = Instant::now();
        let has_failed = |server: &SocketAddr| {
            (failed.get(server)).is_some_and(|at| now.duration_since(*at) < PASSED_OVER)
        };
        let mut servers = servers.to_vec();
        servers.truncate(MAX_SERVERS);
        servers.sort_by_key(has_failed);
        servers
    }

    fn failed(&self, server: SocketAddr) {
        let mut failed = self.0.borrow_mut();
        // Servers that were replaced are forgotten.
        if failed.len() > 4 * MAX_SERVERS {
            failed.clear();
        }
        failed.insert(server, Instant::now());
    }

    fn answered(&self, server: SocketAddr) {
        self.0.borrow_mut().remove(&server);
    }
}

/// The answer of one of these servers to this question, with the question's number. Absent: none answered. `number`: random.
pub(crate) async fn ask(
    servers: &[SocketAddr],
    health: &Health,
    transport: Transport,
    question: &[u8],
    number: u16,
) -> Option<Vec<u8>> {
    let mut sent = question.to_vec();
    sent.get_mut(..2)?.copy_from_slice(&number.to_be_bytes());
    let servers = health.in_order(servers);
    let mut answer = match transport {
        Transport::Udp => over_udp(&servers, health, &sent).await,
        Transport::Tcp => over_tcp(&servers, health, &sent).await,
    }?;
    answer[..2].copy_from_slice(&question[..2]);
    Some(answer)
}

async fn over_udp(servers: &[SocketAddr], health: &Health, question: &[u8]) -> Option<Vec<u8>> {
    let mut sockets: BTreeMap<SocketAddr, UdpSocket> = BTreeMap::new();
    let longest = payload(question);
    let mut failure = None;
    for attempt in 0..ATTEMPTS {
        let Some(server) = servers.get(attempt % servers.len().max(1)).copied() else {
            break;
        };
        if failure.is_some() && attempt >= servers.len() {
            break;
        }
        if let Entry::Vacant(place) = sockets.entry(server) {
            match connect(server).await {
                Ok(socket) => {
                    place.insert(socket);
                }
                Err(_) => {
                    health.failed(server);
                    continue;
                }
            }
        }
        if sockets[&server].send(question).await.is_err() {
            // What the last packet met, or this one.
            health.failed(server);
            sockets.remove(&server);
            continue;
        }
        let until = Instant::now() + ATTEMPT;
        loop {
            match timeout_at(until, receive(&sockets, longest)).await {
                Err(_) => {
                    health.failed(server);
                    break;
                }
                Ok((from, Err(_))) => {
                    health.failed(from);
                    sockets.remove(&from);
                    // It is not there: on to the next at once.
                    if from == server || sockets.is_empty() {
                        break;
                    }
                }
                Ok((from, Ok(answer))) if is_answer(question, &answer) => {
                    if !is_failure(&answer) {
                        health.answered(from);
                        return Some(answer);
                    }
                    // Another server may know better; and where none does, this is the answer.
                    failure = Some(answer);
                    if from == server {
                        break;
                    }
                }
                // Of somebody else, or late to another question.
                Ok(_) => {}
            }
        }
    }
    failure
}

async fn connect(server: SocketAddr) -> io::Result<UdpSocket> {
    let any = match server.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    Ok(socket)
}

/// The next datagram at any of the sockets, of at most so many bytes, or what became of one that was sent.
async fn receive(
    sockets: &BTreeMap<SocketAddr, UdpSocket>,
    longest: usize,
) -> (SocketAddr, io::Result<Vec<u8>>) {
    let each = sockets.iter().map(|(server, socket)| {
        Box::pin(async move {
            loop {
                // An error alone makes no socket readable, to tokio: it is asked for.
                let ready = match socket.ready(Interest::READABLE | Interest::ERROR).await {
                    Ok(ready) => ready,
                    Err(error) => return (*server, Err(error)),
                };
                // `try_io` knows one interest at a time.
                let interest = if ready.is_error() {
                    Interest::ERROR
                } else {
                    Interest::READABLE
                };
                let mut buffer = vec![0; longest];
                let received = socket.try_io(interest, || {
                    Ok(rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT)?.0)
                });
                match received {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    received => {
                        return (
                            *server,
                            received.map(|length| {
                                buffer.truncate(length);
                                buffer
                            }),
                        );
                    }
                }
            }
        })
    });
    select_all(each).await.0
}

async fn over_tcp(servers: &[SocketAddr], health: &Health, question: &[u8]) -> Option<Vec<u8>> {
    let until = Instant::now() + TCP_TIMEOUT;
    let mut failure = None;
    for (at, server) in servers.iter().enumerate() {
        // What is left is divided among those that are left.
        let left = until.saturating_duration_since(Instant::now());
        let part = left / u32::try_from(servers.len() - at).unwrap_or(1);
        match timeout_at(Instant::now() + part, exchange(*server, question)).await {
            Ok(Ok(answer)) if is_answer(question, &answer) => {
                if !is_failure(&answer) {
                    health.answered(*server);
                    return Some(answer);
                }
                failure = Some(answer);
            }
            _ => health.failed(*server),
        }
    }
    failure
}

async fn exchange(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes(), question].concat())
        .await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// Whether this is an answer to the question: of the same number, to the same name.
fn is_answer(question: &[u8], answer: &[u8]) -> bool {
    let Some(end) = question_end(question) else {
        return false;
    };
    answer.len() >= end
        && answer[..2] == question[..2]
        && answer[2] & 0x80 != 0
        && answer[HEADER_BYTES..end].eq_ignore_ascii_case(&question[HEADER_BYTES..end])
}

/// Whether a server says that it failed, or does not answer such questions.
fn is_failure(answer: &[u8]) -> bool {
    matches!(answer[3] & 0xf, 2 | 4 | 5)
}

/// The longest answer over UDP that who asks takes, in bytes.
fn payload(question: &[u8]) -> usize {
    let edns = hickory_proto::op::Message::from_vec(question)
        .ok()
        .and_then(|asked| asked.edns);
    edns.map_or(512, |edns| usize::from(edns.max_payload()).clamp(512, 4096))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn only_the_answer_to_the_question_is_one() {
        let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www\x02eu\0\0\x01\0\x01";
        let mut answer = question.to_vec();
        assert!(!is_answer(question, &answer), "a question");
        answer[2] |= 0x80;
        assert!(is_answer(question, &answer));
        answer.extend_from_slice(b"records");
        assert!(is_answer(question, &answer));
        for wrong in [0, 1, 14, 20, 22, 23] {
            let mut other = answer.clone();
            other[wrong] ^= 0x11;
            assert!(!is_answer(question, &other), "byte {wrong}");
        }
        for length in 0..question.len() {
            assert!(!is_answer(question, &answer[..length]), "{length} bytes");
            assert!(!is_answer(&question[..length], &answer), "{length} bytes");
        }
        // A name that never ends.
        let endless = [&question[..12], &[63; 300]].concat();
        assert_eq!(question_end(&endless), None);
        assert_eq!(
            question_end(b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\xc0\x0c\0\x01\0\x01"),
            None
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_failed_is_asked_last_for_a_while() {
        let [one, two]: [SocketAddr; 2] =
            ["192.0.2.1:53", "192.0.2.2:53"].map(|text| text.parse().unwrap());
        let health = Health::default();
        assert_eq!(health.in_order(&[one, two]), [one, two]);
        health.failed(one);
        assert_eq!(health.in_order(&[one, two]), [two, one]);
        tokio::time::advance(PASSED_OVER).await;
        assert_eq!(health.in_order(&[one, two]), [one, two]);
        health.failed(one);
        health.answered(one);
        assert_eq!(health.in_order(&[one, two]), [one, two]);
    }
}
