//! Machines that are network namespaces, and what the tests of interfaces have in common.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use test_namespaces::{PATIENCE, within};
use wireguard::settings::{Key, PeerSettings, Prefix, PrivateKey, Settings};

pub(crate) const PORT: u16 = 51820;
pub(crate) const MTU: u16 = 1420;

pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Peers that are nowhere, each with a /64 of its own.
pub(crate) fn many_peers(count: u16) -> impl Iterator<Item = (Key, PeerSettings)> {
    (0..count).map(|number| {
        let mut key = [7; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        let prefix = Prefix {
            address: Ipv6Addr::new(0xfd12, 0, 0, 0x1000 + number, 0, 0, 0, 0),
            bits: 64,
        };
        let settings = PeerSettings {
            endpoint: Some("10.0.0.99:51820".parse().unwrap()),
            allowed: vec![prefix],
            keepalive: None,
        };
        (Key(key), settings)
    })
}

/// Namespaces `a` and `b`, which are 10.0.0.1 and 10.0.0.2, and fd99::1 and fd99::2, to each other.
pub(crate) fn two_machines() {
    ip("netns add a");
    ip("netns add b");
    ip("link add va netns a mtu 1500 type veth peer name vb netns b");
    for (namespace, link, number) in [("a", "va", 1), ("b", "vb", 2)] {
        ip(&format!("-n {namespace} link set lo up"));
        ip(&format!("-n {namespace} link set {link} up"));
        ip(&format!(
            "-n {namespace} addr add 10.0.0.{number}/24 dev {link}"
        ));
        ip(&format!(
            "-n {namespace} addr add fd99::{number}/64 dev {link} nodad"
        ));
    }
}

pub(crate) fn key_pair(number: u8) -> (PrivateKey, Key) {
    let private = [number; 32];
    let secret = gotatun::x25519::StaticSecret::from(private);
    let public = gotatun::x25519::PublicKey::from(&secret);
    (PrivateKey(Key(private)), Key(public.to_bytes()))
}

/// The /64 of a machine within the tunnels, and its address there.
pub(crate) fn inside(number: u8) -> (Prefix, Ipv6Addr) {
    let address = |last| Ipv6Addr::new(0xfd12, 0, 0, u16::from(number), 0, 0, 0, last);
    let prefix = Prefix {
        address: address(0),
        bits: 64,
    };
    (prefix, address(1))
}

pub(crate) fn settings(number: u8, peers: &[(u8, Option<&str>)]) -> Settings {
    let peer = |(number, endpoint): &(u8, Option<&str>)| {
        let settings = PeerSettings {
            endpoint: endpoint.map(|endpoint| endpoint.parse().unwrap()),
            allowed: vec![inside(*number).0],
            keepalive: None,
        };
        (key_pair(*number).1, settings)
    };
    Settings {
        private_key: key_pair(number).0,
        inside: Prefix {
            address: "fd12::".parse().unwrap(),
            bits: 48,
        },
        peers: peers.iter().map(peer).collect(),
        seen: std::collections::BTreeMap::new(),
    }
}

pub(crate) fn give_addresses(namespace: &str, number: u8) {
    let (_, address) = inside(number);
    ip(&format!("-n {namespace} link set wg0 mtu {MTU} up"));
    ip(&format!(
        "-n {namespace} addr add {address}/48 dev wg0 nodad"
    ));
}

/// Sends so much from one machine to another over TCP, and back: what arrives is what was sent.
pub(crate) fn carries(from: &str, to: (&str, u8), bytes: usize) {
    let address = SocketAddr::from((inside(to.1).1, 7000));
    let listener = within(to.0, move || TcpListener::bind(address).unwrap());
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        stream.write_all(&received).unwrap();
    });
    let back = within(from, move || {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let sent: Vec<u8> = (0..bytes).map(|n| u8::try_from(n % 251).unwrap()).collect();
        stream.write_all(&sent).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        received == sent
    });
    echo.join().unwrap();
    assert!(back, "other bytes came back");
}
