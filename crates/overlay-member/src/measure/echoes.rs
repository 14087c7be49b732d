//! Echoes of any size in the tunnel, that are never cut on the way, and what came of each (RFC 4443).

use std::collections::HashMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{Ipv6PathMtuDiscovery, set_ipv6_mtu_discover};
use tokio::time::{Instant, MissedTickBehavior, timeout_at};

use crate::source::Source;

/// Types of ICMPv6.
const PACKET_TOO_BIG: u8 = 2;
const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;
/// Header of IPv6, and of an echo, in bytes.
const IPV6_HEADER: usize = 40;
const ECHO_HEADER: usize = 8;
/// Longest message that is received, in bytes.
const MESSAGE_BYTES: usize = 9216;
/// Pause between two packets: what a member sends for a run is bounded by it.
const PACE: Duration = Duration::from_millis(2);
/// How long the last one of a round is waited for where nothing is known of the way.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_millis(1000);

/// One packet of a round.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    /// Who is asked.
    pub(super) to: Ipv6Addr,
    /// The whole packet in bytes, headers included.
    pub(super) size: usize,
}

/// What came of one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The echo came back, as it was sent, after so long.
    Answered(Duration),
    /// Some router said that it is too large.
    TooBig,
    /// Nothing came in time.
    Lost,
}

/// A socket that asks for echoes from one address.
#[derive(Debug)]
pub(super) struct Echoer {
    socket: tokio::net::UdpSocket,
    identifier: [u8; 2],
    next: u16,
}

impl Echoer {
    /// Sends from there. Needs CAP_NET_RAW.
    pub(super) async fn open(source: &Source) -> io::Result<Self> {
        // Nothing is cut, whatever the kernel has heard of the way: that is what is measured.
        let whole =
            |socket: &OwnedFd| Ok(set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::PROBE)?);
        let socket = source.icmp(whole).await?;
        let mut identifier = [0; 2];
        rustix::rand::getrandom(&mut identifier[..], rustix::rand::GetRandomFlags::empty())?;
        Ok(Self {
            socket: tokio::net::UdpSocket::from_std(socket)?,
            identifier,
            next: 0,
        })
    }

    /// Sends these at [`PACE`], and gives what came of each, in their order. It ends when all are answered, or `patience` after the last one; `until` at the
    /// latest, and then gives only what came of those that had their time.
    pub(super) async fn round(
        &mut self,
        asks: &[Ask],
        patience: Duration,
        until: Instant,
    ) -> Vec<Outcome> {
        let mut outcomes = vec![Outcome::Lost; asks.len()];
        // By their sequence number: at most as many as there are numbers.
        let mut waiting: HashMap<u16, (usize, Instant)> = HashMap::new();
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked = 0;
        let mut give_up = until;
        loop {
            if asked < asks.len() {
                tokio::select! {
                    _ = pace.tick() => {
                        let sequence = self.next;
                        self.next = self.next.wrapping_add(1);
                        waiting.insert(sequence, (asked, Instant::now()));
                        self.send(asks[asked], sequence);
                        asked += 1;
                        if asked == asks.len() {
                            give_up = until.min(Instant::now() + patience);
                        }
                    }
                    message = self.receive() => self.take(&message, asks, &mut waiting, &mut outcomes),
                    () = tokio::time::sleep_until(until) => return settled(outcomes, asked, &waiting, patience),
                }
            } else if waiting.is_empty() {
                return outcomes;
            } else {
                match timeout_at(give_up, self.receive()).await {
                    Ok(message) => self.take(&message, asks, &mut waiting, &mut outcomes),
                    Err(_) => return settled(outcomes, asked, &waiting, patience),
                }
            }
        }
    }

    fn send(&self, ask: Ask, sequence: u16) {
        let length = ask.size.saturating_sub(IPV6_HEADER).max(ECHO_HEADER);
        let mut message = vec![0; length];
        message[0] = ECHO_REQUEST;
        // The kernel fills in the checksum (RFC 3542, 3.1).
        message[4..6].copy_from_slice(&self.identifier);
        message[6..8].copy_from_slice(&sequence.to_be_bytes());
        fill(&mut message[ECHO_HEADER..], sequence);
        let to = SocketAddr::V6(SocketAddrV6::new(ask.to, 0, 0, 0));
        // One that cannot be sent is one that is not answered.
        let _ = self.socket.try_send_to(&message, to);
    }

    /// The next message. Cancel-safe.
    async fn receive(&self) -> (Ipv6Addr, Vec<u8>) {
        let mut message = vec![0; MESSAGE_BYTES];
        loop {
            match self.socket.recv_from(&mut message).await {
                Ok((length, SocketAddr::V6(from))) => {
                    message.truncate(length);
                    return (*from.ip(), message);
                }
                Ok(_) => {}
                // What became of an earlier one, which is told by a message too.
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    fn take(
        &self,
        (from, message): &(Ipv6Addr, Vec<u8>),
        asks: &[Ask],
        waiting: &mut HashMap<u16, (usize, Instant)>,
        outcomes: &mut [Outcome],
    ) {
        let Some((echo, is_answer)) = echo_of(message) else {
            return;
        };
        if echo[4..6] != self.identifier {
            return;
        }
        let sequence = u16::from_be_bytes([echo[6], echo[7]]);
        let Some((index, sent_at)) = waiting.get(&sequence).copied() else {
            return;
        };
        let ask = asks[index];
        if is_answer {
            let mut wanted = vec![0; ask.size.saturating_sub(IPV6_HEADER + ECHO_HEADER)];
            fill(&mut wanted, sequence);
            if *from != ask.to || echo[ECHO_HEADER..] != wanted[..] {
                return;
            }
            outcomes[index] = Outcome::Answered(sent_at.elapsed());
        } else {
            outcomes[index] = Outcome::TooBig;
        }
        waiting.remove(&sequence);
    }
}

/// The outcomes up to the first packet that was not sent, or was sent so late that its answer may still be on its way.
fn settled(
    mut outcomes: Vec<Outcome>,
    asked: usize,
    waiting: &HashMap<u16, (usize, Instant)>,
    patience: Duration,
) -> Vec<Outcome> {
    let open = waiting
        .values()
        .filter(|(_, sent)| sent.elapsed() < patience);
    let first = open.map(|(index, _)| *index).min();
    outcomes.truncate(first.unwrap_or(asked));
    outcomes
}

/// The echo that a message is, or is about, and whether it is its answer.
fn echo_of(message: &[u8]) -> Option<(&[u8], bool)> {
    match *message.first()? {
        ECHO_REPLY if message.len() >= ECHO_HEADER => Some((message, true)),
        PACKET_TOO_BIG => {
            let about = message.get(ECHO_HEADER..)?;
            let echo = about.get(IPV6_HEADER..)?;
            let is_echo = about[6] == 58 && echo.len() >= ECHO_HEADER && echo[0] == ECHO_REQUEST;
            is_echo.then_some((echo, false))
        }
        _ => None,
    }
}

/// Contents that differ from one packet to the next, so that one that was mangled is none.
fn fill(contents: &mut [u8], sequence: u16) {
    let [high, low] = sequence.to_be_bytes();
    for (at, byte) in contents.iter_mut().enumerate() {
        let [.., position] = at.to_be_bytes();
        *byte = position ^ low ^ high.rotate_left(3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_and_packet_too_big_are_of_the_echo_that_they_are_about() {
        let mut echo = vec![ECHO_REQUEST, 0, 0, 0, 7, 7, 1, 2, 9];
        let mut about = vec![0; IPV6_HEADER];
        about[6] = 58;
        about.extend_from_slice(&echo);
        let mut too_big = vec![PACKET_TOO_BIG, 0, 0, 0, 0, 0, 5, 0];
        too_big.extend_from_slice(&about);
        assert_eq!(echo_of(&too_big), Some((&echo[..], false)));
        // About something else, and cut short.
        too_big[ECHO_HEADER + 6] = 17;
        assert_eq!(echo_of(&too_big), None);
        assert_eq!(echo_of(&too_big[..20]), None);
        echo[0] = ECHO_REPLY;
        assert_eq!(echo_of(&echo), Some((&echo[..], true)));
        assert_eq!(echo_of(&[]), None);
    }
}
