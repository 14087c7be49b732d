//! The interface: one thread between a TUN device and a UDP socket.
//!
//! ```text
//!   TUN -- one packet of many segments --> cut --> seal --> one buffer --> one send        (Device::send_packets)
//!   TUN <-- joined packets <-- open in place <-- joined datagrams <-- one receive of many   (Device::receive)
//! ```
//!
//! What cannot be sent or read is dropped and counted, as a network would; nothing of one peer ends or delays another.

use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use gotatun::noise::TunnResult;
use gotatun::packet::{Packet, WgKind};
use gotatun::tun::MtuWatcher;
use quinn_udp::{BATCH_SIZE, RecvMeta};
use tun_rs::{DeviceBuilder, GROTable, SyncDevice, VIRTIO_NET_HDR_LEN};

use crate::control::{Control, Interface};
use crate::cut::{FromTun, MAX_BYTES};
use crate::peers::{PeerId, Peers};
use crate::run::{Run, Socket, plain};
use crate::settings::{Dropped, Offloads, Settings, Status};
use crate::waiting::{Source, Waiting};

/// How often the timers of the protocol are looked at.
const TICK: Duration = Duration::from_millis(250);
/// Handshakes that a process begins by itself at each look: about 20 ms of work.
const GREETED_AT_ONCE: usize = 128;
/// Packets that are given to the TUN device at once.
const MAX_JOINED: usize = 64;
/// Reads from one side before the other is looked at again.
const READS_IN_A_ROW: usize = 8;
/// Messages are filled up to a multiple of this (WireGuard, 5.4.6).
const PADDING: usize = 16;
const IPV6_HEADER: usize = 40;
/// What cannot be done where an interface cannot be waited for.
const WAIT: &str = "wait for packets";

/// How an interface is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// The name of the TUN device, which is made in the network namespace of the thread.
    pub name: String,
    /// The largest packet within the tunnels, in bytes. The device itself is set to it by whoever gives it its addresses.
    pub mtu: u16,
    /// Whether the kernel cuts and joins packets of the TUN device, and datagrams of the socket. Where it cannot, it is done without.
    pub offload: bool,
}

/// Why there is no interface.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct DeviceError {
    what: String,
    source: io::Error,
}

impl DeviceError {
    /// Whether somebody else has the port, or the name.
    pub(crate) fn is_in_use(&self) -> bool {
        self.source.kind() == io::ErrorKind::AddrInUse
    }
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> DeviceError {
    let what = what.into();
    |source| DeviceError { what, source }
}

/// The socket of an interface. It is made before the TUN device, because it may be in another network namespace.
#[derive(Debug)]
pub struct Underlay(Socket);

impl Underlay {
    /// A socket at this port, in the network namespace of the thread.
    ///
    /// # Errors
    /// The port is taken, as a rule.
    pub fn bind(port: u16) -> Result<Self, DeviceError> {
        let socket = Socket::bind(port).map_err(failed(format!("listen at UDP port {port}")))?;
        Ok(Self(socket))
    }
}

/// The interface.
pub struct Device {
    tun: SyncDevice,
    socket: Socket,
    mtu: MtuWatcher,
    max_packet: usize,
    offload: bool,
    /// Absent until an agent has said what it is.
    peers: Option<Peers>,
    run: Run,
    join: Join,
    dropped: Dropped,
    waiting: Waiting,
}

/// Packets that wait to be given to the TUN device.
struct Join {
    packets: Vec<Vec<u8>>,
    used: usize,
    table: GROTable,
}

impl Device {
    /// Makes the TUN device, in the network namespace of the thread.
    ///
    /// # Errors
    /// It cannot be made: there is no `/dev/net/tun`, or the name is taken.
    pub fn new(underlay: Underlay, options: &Options) -> Result<Self, DeviceError> {
        let build = |offload| {
            let device = DeviceBuilder::new().name(options.name.clone());
            device.offload(offload).build_sync()
        };
        let made = if options.offload {
            build(true).map(|tun| (tun, true)).or_else(|error| {
                tracing::warn!(%error, "the TUN device neither cuts nor joins packets");
                build(false).map(|tun| (tun, false))
            })
        } else {
            build(false).map(|tun| (tun, false))
        };
        let mut underlay = underlay;
        if !options.offload {
            underlay.0.without_offload();
        }
        let (tun, offload) =
            made.map_err(failed(format!("make the TUN device {}", options.name)))?;
        tun.set_nonblocking(true)
            .map_err(failed("use the TUN device without waiting"))?;
        let waiting = Waiting::new(TICK).and_then(|waiting| {
            waiting.add(&tun, Source::Tun)?;
            waiting.add(&underlay.0.udp, Source::Socket)?;
            Ok(waiting)
        });
        Ok(Self {
            tun,
            socket: underlay.0,
            mtu: MtuWatcher::new(options.mtu),
            max_packet: usize::from(options.mtu),
            offload,
            peers: None,
            run: Run::default(),
            join: Join {
                packets: Vec::new(),
                used: 0,
                table: GROTable::default(),
            },
            dropped: Dropped::default(),
            waiting: waiting.map_err(failed(WAIT))?,
        })
    }

    /// Carries packets, and does what is asked over `control`, until that says to end.
    ///
    /// # Errors
    /// The TUN device or the socket is gone.
    pub fn serve(mut self, mut control: Control) -> Result<(), DeviceError> {
        let mut tun = FromTun::new();
        let mut udp = FromSocket::new();
        let (mut tun_pace, mut udp_pace) = (Pace::default(), Pace::default());
        let added = self.waiting.add(&control, Source::Control);
        added.map_err(failed(WAIT))?;
        while !control.is_ended() {
            let ready = self.waiting.wait().map_err(failed(WAIT))?;
            if ready.clock {
                self.tick();
            }
            if ready.control {
                control.answer(&mut self);
            }
            if ready.tun {
                self.send_packets(&mut tun, &mut tun_pace)?;
            } else {
                tun_pace.is_busy = false;
            }
            if ready.socket {
                self.receive(&mut udp, &mut udp_pace)?;
            } else {
                udp_pace.is_busy = false;
            }
        }
        Ok(())
    }

    /// What is due by the clock: handshakes again, keepalives, sessions that end.
    fn tick(&mut self) {
        self.socket.tick(Instant::now());
        let Some(peers) = &mut self.peers else { return };
        peers.reap_ended_sessions();
        for id in peers.with_tunnel() {
            let Some(peer) = peers.get_mut(id) else {
                continue;
            };
            let Some(to) = peer.endpoint else { continue };
            if let Ok(Some(message)) = peer.tunnel.update_timers() {
                peers.sending(id, &message);
                let message = Packet::from(message);
                self.dropped.not_sent += self.run.push(&mut self.socket, to, &message);
            }
        }
        self.dropped.not_sent += self.run.send(&mut self.socket);
        self.greet();
    }

    /// Begins handshakes with peers that may have sessions with a process that was here before.
    fn greet(&mut self) {
        let Some(peers) = &mut self.peers else { return };
        for (to, message) in peers.greet(GREETED_AT_ONCE) {
            let message = Packet::from(message);
            self.dropped.not_sent += self.run.push(&mut self.socket, to, &message);
        }
        self.dropped.not_sent += self.run.send(&mut self.socket);
    }

    /// Takes what waits in the TUN device, and sends it.
    fn send_packets(&mut self, from: &mut FromTun, pace: &mut Pace) -> Result<(), DeviceError> {
        let (reads, _) = pace.take();
        for left in (0..reads).rev() {
            match from.read(&self.tun, self.offload) {
                Ok(()) => {
                    self.send_read(from);
                    pace.is_busy = left == 0;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_gone(&error) => {
                    return Err(failed("read from the TUN device")(error));
                }
                Err(_) => self.dropped.invalid += 1,
            }
        }
        self.dropped.not_sent += self.run.send(&mut self.socket);
        Ok(())
    }

    fn send_read(&mut self, from: &mut FromTun) {
        loop {
            let mut given = false;
            match from.packets() {
                Ok(packets) => {
                    for packet in packets {
                        given = true;
                        self.send_packet(packet);
                    }
                }
                // A packet that cannot be cut is dropped.
                Err(_) => self.dropped.invalid += 1,
            }
            if !given {
                return;
            }
        }
    }

    fn send_packet(&mut self, packet: &[u8]) {
        let to = destination(packet);
        let peers = self.peers.as_mut();
        let Some((peers, id)) = peers.zip(to).and_then(|(peers, to)| {
            let id = peers.to(to)?;
            Some((peers, id))
        }) else {
            self.dropped.no_route += 1;
            return;
        };
        let Some(peer) = peers.get_mut(id) else {
            return;
        };
        let Some(endpoint) = peer.endpoint else {
            self.dropped.no_route += 1;
            return;
        };
        let padded = packet.len().next_multiple_of(PADDING).min(self.max_packet);
        let mut bytes = BytesMut::with_capacity(padded.max(packet.len()));
        bytes.extend_from_slice(packet);
        bytes.resize(padded.max(packet.len()), 0);
        let message = (peer.tunnel).handle_outgoing_packet(Packet::from_bytes(bytes), None);
        // A peer that was not there yet when it was greeted may be by now: the packet does not wait for the timer.
        let message = match message {
            None if std::mem::take(&mut peer.greeted) => {
                let again = peer.tunnel.format_handshake_initiation(true);
                again.map(WgKind::from)
            }
            message => message,
        };
        if let Some(message) = message {
            peers.sending(id, &message);
            let message = Packet::from(message);
            self.dropped.not_sent += self.run.push(&mut self.socket, endpoint, &message);
        }
    }

    /// Takes what waits in the socket.
    fn receive(&mut self, from: &mut FromSocket, pace: &mut Pace) -> Result<(), DeviceError> {
        let (reads, at_once) = pace.take();
        for left in (0..reads).rev() {
            let received = from.read(&self.socket, at_once);
            let received = match received {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_gone(&error) => {
                    return Err(failed("read from the UDP socket")(error));
                }
                // An ICMP error of what was sent before.
                Err(_) => continue,
            };
            for (buffer, meta) in from.buffers.iter().zip(&from.metas).take(received) {
                let whole = &buffer[..meta.len];
                for datagram in whole.chunks(meta.stride.max(1)) {
                    self.open(datagram, plain(meta.addr));
                }
                self.give();
            }
            if received < at_once {
                break;
            }
            pace.is_busy = left == 0;
        }
        self.dropped.not_sent += self.run.send(&mut self.socket);
        Ok(())
    }

    /// Opens a datagram: a packet for the TUN device, or a message of the protocol.
    fn open(&mut self, datagram: &[u8], from: SocketAddr) {
        let Some(peers) = &mut self.peers else { return };
        let packet = Packet::copy_from(datagram);
        let message = match peers.limiter.verify_packet(from, packet) {
            Ok(message) => message,
            Err(TunnResult::WriteToNetwork(cookie)) => {
                let cookie = Packet::from(cookie);
                self.dropped.not_sent += self.run.push(&mut self.socket, from, &cookie);
                return;
            }
            Err(_) => {
                self.dropped.invalid += 1;
                return;
            }
        };
        let Some(id) = peers.sender(&message) else {
            self.dropped.invalid += 1;
            return;
        };
        let Some(peer) = peers.get_mut(id) else {
            return;
        };
        let result = peer.tunnel.handle_incoming_packet(message);
        if !matches!(result, TunnResult::Err(_)) {
            // It is the peer's own: that is where it is now.
            peer.endpoint = Some(from);
        }
        match result {
            TunnResult::Done => {}
            TunnResult::Err(_) => self.dropped.invalid += 1,
            TunnResult::WriteToNetwork(message) => self.send_with_queued(id, message, from),
            TunnResult::WriteToTunnel(packet) => {
                // The first packet of a session says to whoever answered its handshake that there is one: what has waited for it goes now.
                let queued: Vec<_> = peer.tunnel.get_queued_packets(&mut self.mtu).collect();
                for message in queued {
                    peers.sending(id, &message);
                    let message = Packet::from(message);
                    self.dropped.not_sent += self.run.push(&mut self.socket, from, &message);
                }
                self.take_packet(id, &packet);
            }
        }
    }

    /// Sends an answer of the protocol, and what has waited for a session.
    fn send_with_queued(&mut self, id: PeerId, message: WgKind, to: SocketAddr) {
        let Some(peers) = &mut self.peers else { return };
        peers.sending(id, &message);
        let Some(peer) = peers.get_mut(id) else {
            return;
        };
        let queued = peer.tunnel.get_queued_packets(&mut self.mtu);
        let messages: Vec<WgKind> = std::iter::once(message).chain(queued).collect();
        for message in messages {
            peers.sending(id, &message);
            let message = Packet::from(message);
            self.dropped.not_sent += self.run.push(&mut self.socket, to, &message);
        }
    }

    /// A packet came out of a tunnel: it is for the TUN device, if it may come from that peer.
    fn take_packet(&mut self, id: PeerId, packet: &[u8]) {
        // A keepalive.
        if packet.is_empty() {
            return;
        }
        let Some((source, len)) = source(packet) else {
            self.dropped.invalid += 1;
            return;
        };
        if self.peers.as_ref().and_then(|peers| peers.to(source)) != Some(id) {
            self.dropped.wrong_source += 1;
            return;
        }
        let join = &mut self.join;
        if join.used == join.packets.len() {
            join.packets
                .push(Vec::with_capacity(MAX_BYTES + 2 * VIRTIO_NET_HDR_LEN));
        }
        let buffer = &mut join.packets[join.used];
        buffer.clear();
        buffer.resize(VIRTIO_NET_HDR_LEN, 0);
        buffer.extend_from_slice(&packet[..len]);
        join.used += 1;
        if join.used == MAX_JOINED {
            self.give();
        }
    }

    /// Gives the TUN device what waits for it.
    fn give(&mut self) {
        let join = &mut self.join;
        let packets = &mut join.packets[..std::mem::take(&mut join.used)];
        let given = match packets {
            [] => return,
            // There is nothing to join it with: its header says so, which is all zeros.
            [one] => {
                let from = if self.offload { 0 } else { VIRTIO_NET_HDR_LEN };
                self.tun.send(&one[from..])
            }
            many => (self.tun).send_multiple(&mut join.table, many, VIRTIO_NET_HDR_LEN),
        };
        count(&mut self.dropped.not_sent, given.map(|_| ()));
    }
}

impl Interface for Device {
    /// Follows settings. Sessions of peers that stay go on.
    fn set(&mut self, settings: &Settings) {
        match &mut self.peers {
            Some(peers) if peers.is_of(settings) => peers.set(settings),
            // With another key: to its peers it is another one, with which they have no sessions.
            Some(peers) => *peers = Peers::new(settings),
            None => {
                self.peers = Some(Peers::of_new_process(settings));
                self.greet();
            }
        }
    }

    fn set_mtu(&mut self, mtu: u16) {
        self.mtu = MtuWatcher::new(mtu);
        self.max_packet = usize::from(mtu);
    }

    fn status(&self) -> Status {
        Status {
            port: self.socket.port,
            peers: self.peers.as_ref().map(Peers::status).unwrap_or_default(),
            dropped: self.dropped,
            offloads: Offloads {
                tun: self.offload,
                sent_at_once: self.socket.most,
            },
        }
    }
}

/// How much is read from one side at a look. One that had a single packet at the last look is read once: to be told that there is no other one costs as
/// much as a packet, and whoever waits for an answer has sent one.
#[derive(Debug, Default)]
struct Pace {
    /// Whether there was more at the last look than was read.
    is_busy: bool,
}

impl Pace {
    /// How often it is read now, and how many datagrams are read each time.
    fn take(&mut self) -> (usize, usize) {
        if std::mem::take(&mut self.is_busy) {
            (READS_IN_A_ROW, BATCH_SIZE)
        } else {
            (1, 1)
        }
    }
}

/// What is read from the socket.
struct FromSocket {
    buffers: Vec<Vec<u8>>,
    metas: [RecvMeta; BATCH_SIZE],
}

impl FromSocket {
    fn new() -> Self {
        Self {
            buffers: vec![vec![0; MAX_BYTES]; BATCH_SIZE],
            metas: [RecvMeta::default(); BATCH_SIZE],
        }
    }

    /// Reads up to so many at once, and gives how many there were.
    fn read(&mut self, socket: &Socket, at_once: usize) -> io::Result<usize> {
        if at_once == 1 {
            let mut one = [IoSliceMut::new(&mut self.buffers[0])];
            return socket.recv(&mut one, &mut self.metas);
        }
        let buffers = self.buffers.iter_mut().take(at_once);
        let mut buffers: Vec<_> = buffers.map(|buffer| IoSliceMut::new(buffer)).collect();
        socket.recv(&mut buffers, &mut self.metas)
    }
}

/// Counts what the kernel did not take.
fn count(not_sent: &mut u64, result: io::Result<()>) {
    *not_sent += u64::from(result.is_err());
}

/// Whether nothing will ever be read again.
fn is_gone(error: &io::Error) -> bool {
    const EBADF: i32 = 9;
    const EBADFD: i32 = 77;
    matches!(error.raw_os_error(), Some(EBADF | EBADFD))
}

/// Where an IPv6 packet goes.
fn destination(packet: &[u8]) -> Option<Ipv6Addr> {
    address_at(packet, 24)
}

/// Where an IPv6 packet comes from, and its length without what it was filled up with.
fn source(packet: &[u8]) -> Option<(Ipv6Addr, usize)> {
    let source = address_at(packet, 8)?;
    let len = IPV6_HEADER + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    (len <= packet.len()).then_some((source, len))
}

fn address_at(packet: &[u8], at: usize) -> Option<Ipv6Addr> {
    if packet.len() < IPV6_HEADER || packet[0] >> 4 != 6 {
        return None;
    }
    let bytes: [u8; 16] = packet[at..at + 16].try_into().ok()?;
    Some(Ipv6Addr::from(bytes))
}
