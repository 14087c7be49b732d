//! Each test runs again inside a network and mount namespace of its own, so that the machine is
//! never touched; instances are tap descriptors that the test itself reads and writes.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::Ipv6Addr;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::{Duration, Instant};

use contract::{InstanceId, NodeId};
use node_network::{Network, NetworkSettings, Tap};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const INSIDE: &str = "NODE_NETWORK_TEST_INSIDE";
/// The one switch that leaves privileged tests out, on a machine where they cannot run.
const SKIP: &str = "PLATFORM_SKIP_PRIVILEGED_TESTS";
/// Bytes of the virtio-net header before each frame.
const HEADER: usize = 10;
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) const PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 0, 0, 0, 0, 0);

/// Runs `body` in a fresh world; `name` is the test's own.
pub(crate) fn isolated<F: Future<Output = ()>>(name: &str, body: impl FnOnce() -> F) {
    if std::env::var_os(SKIP).is_some() {
        eprintln!("SKIPPED: {SKIP} is set");
        return;
    }
    assert!(
        rustix::process::geteuid().is_root(),
        "this test needs root; {SKIP}=1 leaves it out"
    );
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(body());
        return;
    }
    // /run too, for the names of namespaces.
    let output = Command::new("unshare")
        .args([
            "--net",
            "--mount",
            "--propagation",
            "private",
            "--",
            "sh",
            "-ec",
        ])
        .arg("mount -t tmpfs tmpfs /run; ip link set lo up; exec \"$@\"")
        .arg("sh")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
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

pub(crate) fn shell(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
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
        let Tap { fd, mac, name } = network.create_tap(InstanceId(id), address).await.unwrap();
        assert_eq!(name, format!("t{id:08x}"));
        Self {
            id: InstanceId(id),
            address,
            tap: fd.into(),
            mac,
        }
    }

    pub(crate) fn member(&self) -> (InstanceId, Ipv6Addr) {
        (self.id, self.address)
    }

    /// Sends a UDP packet with this source address.
    pub(crate) fn send_udp_from(&self, source: Ipv6Addr, to: Ipv6Addr, port: u16, text: &str) {
        let length = u16::try_from(8 + text.len()).unwrap();
        let mut body = Vec::new();
        body.extend_from_slice(&4000_u16.to_be_bytes());
        body.extend_from_slice(&port.to_be_bytes());
        body.extend_from_slice(&length.to_be_bytes());
        body.extend_from_slice(&[0, 0]);
        body.extend_from_slice(text.as_bytes());
        self.send(source, to, 17, body, 6);
    }

    pub(crate) fn send_udp(&self, to: Ipv6Addr, port: u16, text: &str) {
        self.send_udp_from(self.address, to, port, text);
    }

    /// Sends an ICMPv6 message of this type, with something of a packet in it.
    pub(crate) fn send_icmp_from(&self, source: Ipv6Addr, to: Ipv6Addr, kind: u8) {
        let mut body = vec![kind, 0, 0, 0, 0, 0, 0x05, 0];
        body.extend_from_slice(&[0; 48]);
        self.send(source, to, 58, body, 2);
    }

    /// Fills in the checksum at `checksum` and sends.
    fn send(
        &self,
        source: Ipv6Addr,
        to: Ipv6Addr,
        protocol: u8,
        mut body: Vec<u8>,
        checksum: usize,
    ) {
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

        let mut frame = vec![0; HEADER];
        let mut gateway = self.mac;
        gateway[1] = 2;
        frame.extend_from_slice(&gateway);
        frame.extend_from_slice(&self.mac);
        frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
        frame.extend_from_slice(&[protocol, 64]);
        frame.extend_from_slice(&source.octets());
        frame.extend_from_slice(&to.octets());
        frame.extend_from_slice(&body);
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
                17 => true,
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
