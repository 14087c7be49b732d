//! Each test runs again inside a network and mount namespace of its own, so that the machine is
//! never touched; instances are tap descriptors that the test itself reads and writes.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::instance::EgressPolicy;
use model::{InstanceId, NodeId};
use node_network::{Endpoint, Network, NetworkSettings, Tap};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use test_namespaces::shell;

/// Bytes of the virtio-net header before each frame.
const HEADER: usize = 10;
/// Where edges reach the instances of tests.
pub(crate) const EDGE_PORTS: [u16; 2] = [8080, 61_001];
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) const PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 0, 0, 0, 0, 0);

/// Runs `body` on a machine of its own, of namespaces; `name` is the test's.
pub(crate) fn isolated<F: Future<Output = ()>>(name: &str, body: impl FnOnce() -> F) {
    if test_namespaces::isolated(name) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(body());
    }
}

pub(crate) fn settings() -> NetworkSettings {
    NetworkSettings {
        suffix: "test".to_owned(),
        cluster_prefix: PREFIX,
        node: NodeId(3),
        mtu: 1420,
    }
}

/// The address of an instance of env network `env` on node 3.
pub(crate) fn address(env: u32, instance: u32) -> Ipv6Addr {
    let node = u128::from(3_u16) << 64;
    Ipv6Addr::from_bits(PREFIX.to_bits() | node | (u128::from(env) << 32) | u128::from(instance))
}

/// The address for egress of an instance.
pub(crate) fn ipv4(instance: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x6440_0000 | instance)
}

/// All links, routes, namespaces and rules of the machine.
pub(crate) fn machine_state() -> String {
    shell(
        "ip -o link; ip -4 route show table all; ip -6 route show table all; ip netns; nft list ruleset; ls /run/netns || :",
    )
}

/// A whole kernel as the guest, in a namespace of its own, behind a wire between two taps. Gives the
/// namespace's name.
pub(crate) async fn whole_guest(guest: Guest) -> String {
    let suffix = format!("g{}", guest.id.0);
    let namespace = format!("platform-{suffix}");
    let elsewhere = NetworkSettings {
        suffix,
        node: NodeId(9),
        ..settings()
    };
    let other = Network::ensure(&elsewhere).await.unwrap();
    let nic = Guest::new(&other, 7, guest.id.0 + 0x10).await;
    let Endpoint {
        instance,
        address,
        ipv4,
        ..
    } = guest.endpoint();
    let tap = format!("t{}", nic.id);
    shell(&format!("ip netns exec {namespace} nft flush ruleset"));
    for line in [
        format!(
            "link set dev {tap} address 02:01:{:02x}:{:02x}:{:02x}:{:02x}",
            instance.0 >> 24,
            instance.0 >> 16 & 0xff,
            instance.0 >> 8 & 0xff,
            instance.0 & 0xff
        ),
        format!("addr del fe80::1/64 dev {tap}"),
        format!(
            "addr add fe80::1:ff:fe00:{:x}/64 dev {tap} nodad",
            instance.0
        ),
        format!("addr add {address}/128 dev {tap} nodad"),
        format!("route add default via fe80::1 dev {tap}"),
        format!("addr add {ipv4}/32 dev {tap}"),
        format!("-4 route add default via inet6 fe80::1 dev {tap}"),
    ] {
        shell(&format!("ip -n {namespace} {line}"));
    }
    let (guest, nic) = (Arc::new(guest), Arc::new(nic));
    for (from, to) in [(Arc::clone(&guest), Arc::clone(&nic)), (nic, guest)] {
        std::thread::spawn(move || {
            let mut frame = vec![0; 65_536];
            while let Ok(length) = from.tap().read(&mut frame) {
                let _ = to.tap().write(&frame[..length]);
            }
        });
    }
    namespace
}

/// A UDP packet.
pub(crate) fn udp(
    source: Ipv6Addr,
    to: Ipv6Addr,
    from_port: u16,
    port: u16,
    text: &str,
) -> Vec<u8> {
    let length = u16::try_from(8 + text.len()).unwrap();
    let mut body = Vec::new();
    for field in [from_port, port, length, 0] {
        body.extend_from_slice(&field.to_be_bytes());
    }
    body.extend_from_slice(text.as_bytes());
    packet(source, to, 17, body, 6)
}

/// The first packet of a TCP connection, with a segment size.
pub(crate) fn syn(source: Ipv6Addr, to: Ipv6Addr, port: u16, segment: u16) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&4000_u16.to_be_bytes());
    body.extend_from_slice(&port.to_be_bytes());
    body.extend_from_slice(&[
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
        6 << 4,
        2,
        0xff,
        0xff,
        0,
        0,
        0,
        0,
        2,
        4,
    ]);
    body.extend_from_slice(&segment.to_be_bytes());
    packet(source, to, 6, body, 16)
}

/// An ICMPv6 message about a packet, or an echo.
pub(crate) fn icmp(source: Ipv6Addr, to: Ipv6Addr, kind: u8, about: &[u8]) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0, 0, 0, 0x05, 0];
    body.extend_from_slice(&about[..about.len().min(1000)]);
    packet(source, to, 58, body, 2)
}

/// A packet, with its checksum at `checksum` of the body.
pub(crate) fn packet(
    source: Ipv6Addr,
    to: Ipv6Addr,
    protocol: u8,
    mut body: Vec<u8>,
    checksum: usize,
) -> Vec<u8> {
    let mut sum: u32 = u32::from(protocol) + u32::try_from(body.len()).unwrap();
    for part in [&source.octets()[..], &to.octets()[..], &body[..]] {
        for pair in part.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([pair[0], low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let value = !u16::try_from(sum).unwrap();
    body[checksum..checksum + 2].copy_from_slice(&value.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
    // Neighbour discovery must not have been routed.
    let is_discovery = protocol == 58 && body[0] >= 133;
    packet.extend_from_slice(&[protocol, if is_discovery { 255 } else { 64 }]);
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&to.octets());
    packet.extend_from_slice(&body);
    packet
}

/// An instance whose kernel is the test.
pub(crate) struct Guest {
    pub(crate) id: InstanceId,
    pub(crate) address: Ipv6Addr,
    tap: File,
    mac: [u8; 6],
}

/// A packet as it arrived at a guest.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) source: Ipv6Addr,
    /// 17 is UDP, 58 is ICMPv6.
    pub(crate) protocol: u8,
    /// From the protocol's header on.
    pub(crate) body: Vec<u8>,
}

impl Packet {
    /// Type of an ICMPv6 message.
    pub(crate) fn icmp(&self) -> Option<u8> {
        (self.protocol == 58).then(|| self.body[0])
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body[8..]).into_owned()
    }

    pub(crate) fn source_port(&self) -> u16 {
        u16::from_be_bytes([self.body[0], self.body[1]])
    }
}

impl Guest {
    pub(crate) async fn new(network: &Network, env: u32, id: u32) -> Self {
        let address = address(env, id);
        let endpoint = Endpoint {
            instance: InstanceId(id),
            address,
            ipv4: ipv4(id),
            egress: EgressPolicy::All,
            edge_ports: EDGE_PORTS.into(),
        };
        let Tap { fd, mac, name } = network.create_tap(&endpoint).await.unwrap();
        assert_eq!(name, format!("t{id:08x}"));
        Self {
            id: InstanceId(id),
            address,
            tap: fd.into(),
            mac,
        }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint {
            instance: self.id,
            address: self.address,
            ipv4: ipv4(self.id.0),
            egress: EgressPolicy::All,
            edge_ports: EDGE_PORTS.into(),
        }
    }

    /// Sends a UDP packet with this source address.
    pub(crate) fn send_udp_from(&self, source: Ipv6Addr, to: Ipv6Addr, port: u16, text: &str) {
        self.send_packet(&udp(source, to, 4000, port, text));
    }

    pub(crate) fn send_udp(&self, to: Ipv6Addr, port: u16, text: &str) {
        self.send_udp_from(self.address, to, port, text);
    }

    /// Sends an ICMPv6 message of this type, with something of a packet in it.
    pub(crate) fn send_icmp_from(&self, source: Ipv6Addr, to: Ipv6Addr, kind: u8) {
        self.send_packet(&icmp(source, to, kind, &[0; 48]));
    }

    /// Sends a packet as it is.
    pub(crate) fn send_packet(&self, packet: &[u8]) {
        let mut frame = self.frame([0x86, 0xdd]);
        frame.extend_from_slice(packet);
        (&self.tap).write_all(&frame).unwrap();
    }

    /// Asks who has an address, as some neighbour. Hop limit and frame are those of neighbour discovery (RFC 4861, 4.3).
    pub(crate) fn solicit(&self, source: Ipv6Addr, mac: [u8; 6], target: Ipv6Addr) {
        let mut body = vec![135, 0, 0, 0, 0, 0, 0, 0];
        body.extend_from_slice(&target.octets());
        body.extend_from_slice(&[1, 1]);
        body.extend_from_slice(&mac);
        self.send_packet(&packet(source, target, 58, body, 2));
    }

    /// Asks by ARP who has an address, as some neighbour (RFC 826).
    pub(crate) fn arp(&self, source: Ipv4Addr, mac: [u8; 6], target: Ipv4Addr) {
        let mut frame = self.frame([0x08, 0x06]);
        frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend_from_slice(&mac);
        frame.extend_from_slice(&source.octets());
        frame.extend_from_slice(&[0; 6]);
        frame.extend_from_slice(&target.octets());
        (&self.tap).write_all(&frame).unwrap();
    }

    /// The header of a frame to the node.
    fn frame(&self, kind: [u8; 2]) -> Vec<u8> {
        let mut frame = vec![0; HEADER];
        let mut gateway = self.mac;
        gateway[1] = 2;
        frame.extend_from_slice(&gateway);
        frame.extend_from_slice(&self.mac);
        frame.extend_from_slice(&kind);
        frame
    }

    /// Sends a UDP packet over IPv4, without its own checksum.
    pub(crate) fn send_ipv4(&self, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), text: &str) {
        let length = u16::try_from(8 + text.len()).unwrap();
        let mut head = vec![0x45, 0];
        head.extend_from_slice(&(20 + length).to_be_bytes());
        head.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
        head.extend_from_slice(&from.0.octets());
        head.extend_from_slice(&to.0.octets());
        let sum: u32 = head
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        head[10..12].copy_from_slice(&(!sum).to_be_bytes());
        let mut frame = self.frame([0x08, 0x00]);
        frame.extend_from_slice(&head);
        for field in [from.1, to.1, length, 0] {
            frame.extend_from_slice(&field.to_be_bytes());
        }
        frame.extend_from_slice(text.as_bytes());
        (&self.tap).write_all(&frame).unwrap();
    }

    /// The next UDP packet or ICMPv6 error or echo; discovery and the like are passed over.
    pub(crate) fn receive(&self) -> Packet {
        let give_up = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < give_up, "nothing arrived at {}", self.id);
            let mut fds = [PollFd::from_borrowed_fd(self.tap.as_fd(), PollFlags::IN)];
            let second = Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            if poll(&mut fds, Some(&second)).unwrap() == 0 {
                continue;
            }
            let mut frame = vec![0; 2048];
            let length = (&self.tap).read(&mut frame).unwrap();
            let packet = &frame[HEADER + 14..length];
            let octets = |at: usize| -> [u8; 16] { packet[at..at + 16].try_into().unwrap() };
            let wanted = match packet[6] {
                6 | 17 => true,
                58 => packet[40] < 130,
                _ => false,
            };
            if wanted {
                assert_eq!(Ipv6Addr::from(octets(24)), self.address);
                return Packet {
                    source: Ipv6Addr::from(octets(8)),
                    protocol: packet[6],
                    body: packet[40..].to_vec(),
                };
            }
        }
    }

    pub(crate) fn tap(&self) -> &File {
        &self.tap
    }
}
