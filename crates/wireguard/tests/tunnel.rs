//! Interfaces in network namespaces, on a link between them, that carry real connections: to each other, and to wireguard-go of Debian.
//!
//! Each test runs again in a network and mount namespace of its own, so that the machine is never touched.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use wireguard::control::{Client, Control, Request};
use wireguard::device::{Device, Options, Underlay};
use wireguard::interface::MAX_MTU;
use wireguard::settings::{Settings, Status};

#[allow(dead_code, reason = "each file uses what it needs")]
mod support;

use support::{MTU, PORT, carries, give_addresses, inside, ip, key_pair, settings, two_machines};
use test_namespaces::{PATIENCE, eventually, isolated, spawn_within, within};

/// An interface in a namespace.
struct Interface {
    control: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Interface {
    fn start(namespace: &str, number: u8, settings: Settings, offload: bool) -> Self {
        let control = PathBuf::from(format!("/run/{namespace}.sock"));
        let path = control.clone();
        let thread = spawn_within(namespace, move || {
            let options = Options {
                name: "wg0".to_owned(),
                mtu: MTU,
                offload,
            };
            let device = Device::new(Underlay::bind(PORT).unwrap(), &options).unwrap();
            device.serve(Control::listen(&path).unwrap()).unwrap();
        });
        let interface = Self {
            control,
            thread: Some(thread),
        };
        eventually("the interface answers", || {
            Client::connect(&interface.control)
                .ok()?
                .ask(&Request::Status)
                .ok()
        });
        let status = interface.set(settings);
        assert_eq!(status.offloads.tun, offload);
        give_addresses(namespace, number);
        interface
    }

    fn set(&self, settings: Settings) -> Status {
        self.ask(&Request::Set(Box::new(settings)))
    }

    fn status(&self) -> Status {
        self.ask(&Request::Status)
    }

    fn ask(&self, request: &Request) -> Status {
        Client::connect(&self.control)
            .unwrap()
            .ask(request)
            .unwrap()
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        if let Ok(mut client) = Client::connect(&self.control) {
            let _ = client.ask(&Request::End);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn two_interfaces_carry_connections_with_and_without_offloads() {
    if !isolated("two_interfaces_carry_connections_with_and_without_offloads") {
        return;
    }
    two_machines();
    for (offload_a, offload_b) in [(true, true), (true, false), (false, true), (false, false)] {
        let a = Interface::start(
            "a",
            1,
            settings(1, &[(2, Some("10.0.0.2:51820"))]),
            offload_a,
        );
        // Where `a` is, is seen when it sends.
        let b = Interface::start("b", 2, settings(2, &[(1, None)]), offload_b);
        carries("a", ("b", 2), 8 << 20);
        carries("b", ("a", 1), 1 << 20);
        let seen = b.status().peers[&key_pair(1).1].endpoint;
        assert_eq!(seen, Some("10.0.0.1:51820".parse().unwrap()));
        assert_eq!(a.status().dropped.wrong_source, 0);
        // The switch is of the socket too.
        assert_eq!(a.status().offloads.sent_at_once > 1, offload_a);
        assert_eq!(b.status().offloads.sent_at_once > 1, offload_b);
    }
}

#[test]
fn connections_of_small_segments_are_carried() {
    if !isolated("connections_of_small_segments_are_carried") {
        return;
    }
    two_machines();
    let a = Interface::start("a", 1, settings(1, &[(2, Some("10.0.0.2:51820"))]), true);
    let _b = Interface::start("b", 2, settings(2, &[(1, None)]), true);
    carries("a", ("b", 2), 1000);
    // One packet of the TUN device is up to 700 of those.
    for largest in [300, 130] {
        ip(&format!(
            "-n b route replace {}/64 dev wg0 advmss {largest}",
            inside(1).0.address
        ));
        carries("a", ("b", 2), 8 << 20);
    }
    assert_eq!(a.status().dropped.invalid, 0);
}

#[test]
fn packets_may_become_larger_while_it_runs() {
    if !isolated("packets_may_become_larger_while_it_runs") {
        return;
    }
    two_machines();
    for (offload, mtu) in [(true, 8920), (false, MAX_MTU)] {
        let a = Interface::start("a", 1, settings(1, &[(2, Some("10.0.0.2:51820"))]), offload);
        let b = Interface::start("b", 2, settings(2, &[(1, None)]), offload);
        carries("a", ("b", 2), 1000);
        for (machine, interface) in [("a", &a), ("b", &b)] {
            ip(&format!("-n {machine} link set v{machine} mtu 9100"));
            ip(&format!("-n {machine} link set wg0 mtu {mtu}"));
            interface.ask(&Request::SetMtu(mtu));
        }
        carries("a", ("b", 2), 8 << 20);
        carries("b", ("a", 1), 8 << 20);
        assert_eq!(a.status().dropped.invalid, 0);
    }
}

#[test]
fn wireguard_go_understands_and_is_understood() {
    if !isolated("wireguard_go_understands_and_is_understood") {
        return;
    }
    two_machines();
    let go = WireguardGo::start("b", 2, 1);
    for endpoint in ["10.0.0.2:51820", "[fd99::2]:51820"] {
        let a = Interface::start("a", 1, settings(1, &[(2, Some(endpoint))]), true);
        carries("a", ("b", 2), 8 << 20);
        carries("b", ("a", 1), 8 << 20);
        let peer = &a.status().peers[&key_pair(2).1];
        assert!(
            peer.handshake_age_ms.is_some() && peer.received > 8 << 20,
            "{peer:?}"
        );
    }
    drop(go);
}

/// Debian's wireguard-go.
struct WireguardGo(Child);

impl WireguardGo {
    fn start(namespace: &str, number: u8, peer: u8) -> Self {
        let child = Command::new("ip")
            .args(["netns", "exec", namespace, "wireguard-go", "-f", "wg0"])
            .env("WG_PROCESS_FOREGROUND", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let go = Self(child);
        std::fs::write("/run/key", key_pair(number).0.0.to_string()).unwrap();
        eventually("wireguard-go is set", || {
            let set = Command::new("ip")
                .args([
                    "netns",
                    "exec",
                    namespace,
                    "wg",
                    "set",
                    "wg0",
                    "private-key",
                    "/run/key",
                ])
                .args([
                    "listen-port",
                    &PORT.to_string(),
                    "peer",
                    &key_pair(peer).1.to_string(),
                ])
                .args(["allowed-ips", &format!("{}/64", inside(peer).0.address)])
                .stderr(Stdio::null())
                .status();
            set.unwrap().success().then_some(())
        });
        give_addresses(namespace, number);
        go
    }
}

impl Drop for WireguardGo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_peer_sends_only_from_what_goes_to_it() {
    if !isolated("a_peer_sends_only_from_what_goes_to_it") {
        return;
    }
    two_machines();
    // The address that is forged is a third peer's.
    let peers = [(2, Some("10.0.0.2:51820")), (3, None)];
    let a = Interface::start("a", 1, settings(1, &peers), true);
    let _b = Interface::start("b", 2, settings(2, &[(1, Some("10.0.0.1:51820"))]), true);
    let receiver = within("a", || UdpSocket::bind((inside(1).1, 9)).unwrap());
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    // Another machine's address, which `b` gives itself.
    ip(&format!("-n b addr add {}/128 dev wg0 nodad", inside(3).1));
    let send = |from: u8, what: &'static [u8]| {
        within("b", move || {
            let socket = UdpSocket::bind((inside(from).1, 0)).unwrap();
            socket.send_to(what, (inside(1).1, 9)).unwrap();
        });
    };
    send(3, b"forged");
    eventually("the forged packet is dropped", || {
        (a.status().dropped.wrong_source == 1).then_some(())
    });
    send(2, b"own");
    let mut buffer = [0; 100];
    let (len, from) = receiver.recv_from(&mut buffer).unwrap();
    assert_eq!(
        (&buffer[..len], from.ip()),
        (&b"own"[..], inside(2).1.into())
    );
}

#[test]
fn settings_are_followed_without_a_break_for_peers_that_stay() {
    if !isolated("settings_are_followed_without_a_break_for_peers_that_stay") {
        return;
    }
    two_machines();
    let a = Interface::start("a", 1, settings(1, &[(2, Some("10.0.0.2:51820"))]), true);
    let b = Interface::start("b", 2, settings(2, &[(1, None)]), true);
    carries("a", ("b", 2), 1000);
    let to_b = key_pair(2).1;
    let before = a.status().peers[&to_b].clone();
    // A connection that is open while peers come and go.
    let address = SocketAddr::from((inside(2).1, 7001));
    let listener = within("b", move || TcpListener::bind(address).unwrap());
    let mut stream = within("a", move || TcpStream::connect(address).unwrap());
    let (mut other, _) = listener.accept().unwrap();
    for peers in 3..103 {
        let mut more = vec![(2, Some("10.0.0.2:51820"))];
        more.extend((3..=peers).map(|number| (number, Some("10.0.0.3:51820"))));
        a.set(settings(1, &more));
        stream.write_all(b"x").unwrap();
        let mut one = [0];
        other.read_exact(&mut one).unwrap();
    }
    let after = a.status();
    assert_eq!(after.peers.len(), 101);
    let after = &after.peers[&to_b];
    assert!(
        after.handshake_age_ms >= before.handshake_age_ms,
        "a new handshake was needed"
    );
    assert!(after.sent > before.sent);
    // A peer that is recorded no more gets nothing and is not listened to.
    a.set(settings(1, &[]));
    let dropped = a.status().dropped;
    let silent = within("b", || {
        let socket = UdpSocket::bind((inside(2).1, 0)).unwrap();
        socket.send_to(b"x", (inside(1).1, 9))
    });
    silent.unwrap();
    eventually("what it sends is dropped", || {
        (a.status().dropped.invalid > dropped.invalid).then_some(())
    });
    drop(b);
}

#[test]
fn a_peer_is_followed_to_where_it_sends_from() {
    if !isolated("a_peer_is_followed_to_where_it_sends_from") {
        return;
    }
    two_machines();
    let a = Interface::start("a", 1, settings(1, &[(2, Some("10.0.0.2:51820"))]), true);
    let b = Interface::start("b", 2, settings(2, &[(1, Some("10.0.0.1:51820"))]), true);
    carries("b", ("a", 1), 1000);
    ip("-n b addr del 10.0.0.2/24 dev vb");
    ip("-n b addr add 10.0.0.7/24 dev vb");
    carries("b", ("a", 1), 1000);
    let seen = |a: &Interface| a.status().peers[&key_pair(2).1].endpoint;
    eventually("it is seen at its new address", || {
        (seen(&a) == Some("10.0.0.7:51820".parse().unwrap())).then_some(())
    });
    // The same settings again do not move it back; another address in them does.
    a.set(settings(1, &[(2, Some("10.0.0.2:51820"))]));
    assert_eq!(seen(&a), Some("10.0.0.7:51820".parse().unwrap()));
    a.set(settings(1, &[(2, Some("10.0.0.8:51820"))]));
    assert_eq!(seen(&a), Some("10.0.0.8:51820".parse().unwrap()));
    drop(b);
}

#[test]
fn nonsense_is_refused_and_hurts_nobody() {
    if !isolated("nonsense_is_refused_and_hurts_nobody") {
        return;
    }
    two_machines();
    let a = Interface::start("a", 1, settings(1, &[(2, Some("10.0.0.2:51820"))]), true);
    let b = Interface::start("b", 2, settings(2, &[(1, None)]), true);
    let mut contradictory = settings(1, &[(2, Some("[fd12::2]:51820"))]);
    let refused = |settings: &Settings| {
        let request = Request::Set(Box::new(settings.clone()));
        let answer = Client::connect(&a.control).unwrap().ask(&request);
        answer.unwrap_err().to_string()
    };
    assert!(refused(&contradictory).contains("inside of the tunnels"));
    contradictory = settings(1, &[(2, None), (3, None)]);
    for peer in contradictory.peers.values_mut() {
        peer.allowed = vec![inside(2).0];
    }
    assert!(refused(&contradictory).contains("it may go to one peer"));
    // Datagrams of any kind and length, among them those that begin as messages do.
    within("b", || {
        let socket = UdpSocket::bind("10.0.0.2:0").unwrap();
        for kind in 0..=5_u8 {
            for len in [0, 1, 4, 31, 32, 92, 148, 1400] {
                let mut datagram = vec![0_u8; len];
                if let Some(first) = datagram.first_mut() {
                    *first = kind;
                }
                socket.send_to(&datagram, "10.0.0.1:51820").unwrap();
            }
        }
    });
    carries("a", ("b", 2), 1000);
    drop(b);
}

#[test]
fn what_waited_for_a_session_is_sent_as_soon_as_the_other_side_has_made_one() {
    if !isolated("what_waited_for_a_session_is_sent_as_soon_as_the_other_side_has_made_one") {
        return;
    }
    two_machines();
    let _a = Interface::start("a", 1, settings(1, &[(2, Some("10.0.0.2:51820"))]), true);
    let to_b = SocketAddr::from((inside(2).1, 9));
    // Nobody is there yet: the packet waits, and its handshake is lost.
    within("a", move || {
        let socket = UdpSocket::bind("[::]:0").unwrap();
        socket.send_to(b"waited", to_b).unwrap();
    });
    // One that was told of its peers before begins nothing with others by itself.
    let b = Interface::start("b", 2, settings(2, &[]), true);
    b.set(settings(2, &[(1, Some("10.0.0.1:51820"))]));
    let to_a = SocketAddr::from((inside(1).1, 9));
    within("b", move || {
        let socket = UdpSocket::bind("[::]:9").unwrap();
        socket.send_to(b"hello", to_a).unwrap();
        // Well before `a` tries its own handshake again, 5 s after the first.
        let soon = std::time::Duration::from_secs(2);
        socket.set_read_timeout(Some(soon)).unwrap();
        let mut buffer = [0; 16];
        let len = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"waited");
    });
}

#[test]
fn a_greeting_that_nobody_heard_delays_nothing() {
    if !isolated("a_greeting_that_nobody_heard_delays_nothing") {
        return;
    }
    two_machines();
    let a = Interface::start("a", 1, settings(1, &[(2, Some("10.0.0.2:51820"))]), true);
    assert!(a.status().peers[&key_pair(2).1].sent > 0);
    // It comes later, and cannot begin by itself.
    let _b = Interface::start("b", 2, settings(2, &[(1, None)]), true);
    let receiver = within("b", || UdpSocket::bind((inside(2).1, 9)).unwrap());
    let to_b = SocketAddr::from((inside(2).1, 9));
    within("a", move || {
        let socket = UdpSocket::bind("[::]:0").unwrap();
        socket.send_to(b"now", to_b).unwrap();
    });
    // Well before the handshake is tried again, 5 s after the first.
    let soon = std::time::Duration::from_secs(2);
    receiver.set_read_timeout(Some(soon)).unwrap();
    let mut buffer = [0; 16];
    let len = receiver.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"now");
}
