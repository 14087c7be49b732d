//! What other members of the overlay may send to a node, packet by packet: the test is the WireGuard link, a TUN device that it reads and writes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each file uses what it needs")]
mod support;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use model::{EnvNetwork, NodeId};
use node_network::{EdgeLink, Network, OVERLAY_LINK, OverlayAccess};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use support::{
    EDGE_PORTS, Guest, PREFIX, address, icmp, isolated, machine_state, packet, settings, syn, udp,
};
use test_namespaces::{enter, shell};

const PATIENCE: Duration = Duration::from_secs(10);
const NO_ROUTE: u8 = 1;
const TOO_BIG: u8 = 2;
const ECHO: u8 = 128;
const ECHO_REPLY: u8 = 129;

/// The address of an instance, or of a member itself in env network 0, of any node.
fn elsewhere(node: u16, env: u32, instance: u32) -> Ipv6Addr {
    let node = u128::from(node) << 64;
    Ipv6Addr::from_bits(PREFIX.to_bits() | node | (u128::from(env) << 32) | u128::from(instance))
}

fn access(neighbours: &[(u16, u32)], edges: &[u16], is_hub: bool) -> OverlayAccess {
    OverlayAccess {
        neighbours: (neighbours.iter())
            .map(|(node, env)| (NodeId(*node), EnvNetwork(*env)))
            .collect(),
        edges: edges.iter().map(|edge| NodeId(*edge)).collect(),
        is_hub,
    }
}

/// The link to the other members.
struct Wire(File);

impl Wire {
    /// Makes the link in a namespace.
    fn new(namespace: Option<&str>, name: &'static str) -> Self {
        let namespace = namespace.map(str::to_owned);
        let make = move || {
            if let Some(namespace) = namespace {
                enter(&namespace);
            }
            shell(&format!("ip tuntap add dev {name} mode tun"));
            tun(name)
        };
        Self(std::thread::spawn(make).join().unwrap())
    }

    fn send(&self, packet: &[u8]) {
        (&self.0).write_all(packet).unwrap();
    }

    /// The next packet from this address.
    fn receive(&self, from: Ipv6Addr) -> Vec<u8> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < give_up, "nothing of {from} came out");
            let mut fds = [PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN)];
            let second = Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            if poll(&mut fds, Some(&second)).unwrap() == 0 {
                continue;
            }
            let mut packet = vec![0; 2048];
            let length = (&self.0).read(&mut packet).unwrap();
            packet.truncate(length);
            if length >= 40 && packet[8..24] == from.octets() {
                return packet;
            }
        }
    }
}

#[allow(unsafe_code, reason = "TUNSETIFF has no safe wrapper")]
fn tun(name: &str) -> File {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    // struct ifreq: a name of 16 bytes, then the flags.
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI).unwrap();
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    // SAFETY: the file is open, and the request is as large as struct ifreq and outlives the call.
    let set = unsafe { libc::ioctl(fd, libc::TUNSETIFF as _, request.as_mut_ptr()) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    file
}

/// A node with a link to other members, and an instance of env 7 on it.
async fn node() -> (Network, Wire, Guest) {
    let network = Network::ensure(&settings()).await.unwrap();
    let wire = Wire::new(Some("platform-test"), OVERLAY_LINK);
    network.attach_overlay().await.unwrap();
    let guest = Guest::new(&network, 7, 0xa1).await;
    (network, wire, guest)
}

#[test]
fn an_instance_is_reached_from_those_nodes_that_have_its_env() {
    isolated(
        "an_instance_is_reached_from_those_nodes_that_have_its_env",
        || async {
            let (network, wire, guest) = node().await;
            let other_env = Guest::new(&network, 8, 0xa2).await;
            let all = [guest.endpoint(), other_env.endpoint()];
            network.apply_rules(&all).await.unwrap();
            let to = guest.address;
            // Nobody passes before anybody is named.
            wire.send(&udp(elsewhere(4, 7, 0xb1), to, 4000, 9000, "too early"));
            network
                .apply_overlay(&access(&[(4, 7), (5, 8)], &[], false))
                .await
                .unwrap();
            let sibling = elsewhere(4, 7, 0xb1);
            // What is dropped would come before the marker: the link's packets are handled in order.
            for (from, to, text) in [
                (
                    elsewhere(5, 7, 0xb1),
                    to,
                    "a node without instances of the env",
                ),
                (
                    elsewhere(4, 8, 0xb1),
                    to,
                    "another env of a node that has ours",
                ),
                (
                    elsewhere(5, 8, 0xb1),
                    to,
                    "an env that is here, to another env",
                ),
                (elsewhere(3, 7, 0xa9), to, "this node's own prefix"),
                (guest.address, to, "the instance itself"),
                (elsewhere(4, 0, 1), to, "another node itself"),
                (
                    elsewhere(4, 0, 9),
                    to,
                    "an instance in the platform's network",
                ),
                ("fd99::1".parse().unwrap(), to, "another cluster"),
                ("fe80::1".parse().unwrap(), to, "link-local"),
                ("::1".parse().unwrap(), to, "loopback"),
                (sibling, address(0, 1), "the node itself"),
                (sibling, address(0, 2), "the node's namespace"),
            ] {
                for port in [9000, 53, 61_001] {
                    wire.send(&udp(from, to, 4000, port, text));
                }
            }
            // Ingress ports are for edges.
            wire.send(&udp(sibling, to, 4000, 61_001, "an ingress port"));
            wire.send(&udp(sibling, to, 4000, 9000, "marker"));
            let packet = guest.receive();
            assert_eq!((packet.source, packet.text()), (sibling, "marker".into()));
            // And back, as an answer and by itself.
            guest.send_udp_from(to, sibling, 4000, "answer");
            let packet = wire.receive(to);
            assert!(packet.ends_with(b"answer"));
            guest.send_udp(elsewhere(4, 8, 0xb1), 9000, "another env");
            guest.send_udp(elsewhere(4, 0, 1), 53, "another node");
            guest.send_udp(address(7, 0xee), 9000, "an instance that is not here");
            assert_eq!(guest.receive().icmp(), Some(NO_ROUTE));
            guest.send_udp(elsewhere(6, 7, 0xb1), 9000, "begun here");
            assert!(wire.receive(to).ends_with(b"begun here"));
            // The last node is gone: nothing of it passes, not on a connection that exists either.
            network
                .apply_overlay(&access(&[(5, 7)], &[], false))
                .await
                .unwrap();
            wire.send(&udp(sibling, to, 4000, 9000, "gone"));
            wire.send(&udp(elsewhere(5, 7, 0xb2), to, 4000, 9000, "marker"));
            assert_eq!(guest.receive().text(), "marker");
        },
    );
}

#[test]
fn edges_reach_the_ports_that_are_theirs_and_nothing_else() {
    isolated(
        "edges_reach_the_ports_that_are_theirs_and_nothing_else",
        || async {
            let (network, wire, guest) = node().await;
            network
                .apply_overlay(&access(&[(4, 7)], &[100], false))
                .await
                .unwrap();
            network.apply_rules(&[guest.endpoint()]).await.unwrap();
            let (edge, to) = (elsewhere(100, 0, 1), guest.address);
            let host = UdpSocket::bind((address(0, 1), 9000)).unwrap();
            wire.send(&udp(edge, address(0, 1), 4000, 9000, "the node itself"));
            wire.send(&udp(elsewhere(101, 0, 1), to, 4000, 9000, "no edge"));
            wire.send(&udp(
                elsewhere(100, 0, 3),
                to,
                4000,
                9000,
                "another address of the edge",
            ));
            // Ports that are not for edges, other protocols, fragments of them.
            for port in [22, 9000, 61_002, 65_535] {
                wire.send(&syn(edge, to, port, 1360));
            }
            wire.send(&udp(edge, to, 4000, 8080, "no TCP"));
            wire.send(&icmp(edge, to, ECHO, b"an echo"));
            wire.send(&packet(edge, to, 44, vec![6, 0, 0, 0, 0, 0, 0, 1], 2));
            for port in EDGE_PORTS {
                wire.send(&syn(edge, to, port, 1360));
                let packet = guest.receive();
                assert_eq!(
                    (packet.source, &packet.body[2..4]),
                    (edge, &port.to_be_bytes()[..])
                );
            }
            // An instance begins nothing with an edge, and answers it.
            guest.send_udp(edge, 22, "unasked");
            let mut answer = syn(to, edge, 4000, 1360)[40..].to_vec();
            answer[..2].copy_from_slice(&8080_u16.to_be_bytes());
            // SYN and ACK, of the number after that of the SYN.
            (answer[11], answer[13]) = (2, 0x12);
            answer[16..18].fill(0);
            guest.send_packet(&packet(to, edge, 6, answer, 16));
            assert_eq!(wire.receive(to)[40..42], 8080_u16.to_be_bytes());
            host.set_nonblocking(true).unwrap();
            assert!(host.recv(&mut [0; 16]).is_err());
            // A neighbour of the same env on this node does not reach ingress ports either.
            let sibling = Guest::new(&network, 7, 0xa2).await;
            network
                .apply_rules(&[guest.endpoint(), sibling.endpoint()])
                .await
                .unwrap();
            sibling.send_udp(to, 61_001, "an ingress port");
            sibling.send_udp(to, 9000, "marker");
            assert_eq!(guest.receive().text(), "marker");
        },
    );
}

#[test]
fn members_answer_echoes_of_members() {
    isolated("members_answer_echoes_of_members", || async {
        let (network, wire, guest) = node().await;
        network
            .apply_overlay(&access(&[(4, 7)], &[], false))
            .await
            .unwrap();
        network.apply_rules(&[guest.endpoint()]).await.unwrap();
        for (from, to) in [(1, 1), (2, 2), (1, 2), (2, 1)] {
            wire.send(&icmp(elsewhere(4, 0, from), address(0, to), ECHO, b"probe"));
            let answer = wire.receive(address(0, to));
            assert_eq!((answer[6], answer[40]), (58, ECHO_REPLY));
        }
        // Nobody else's: instances, and what claims to be here.
        wire.send(&icmp(
            elsewhere(4, 7, 0xb1),
            address(0, 2),
            ECHO,
            b"an instance",
        ));
        wire.send(&icmp(address(0, 1), address(0, 2), ECHO, b"ourselves"));
        wire.send(&icmp(elsewhere(4, 0, 2), address(0, 2), ECHO, b"marker"));
        assert!(wire.receive(address(0, 2)).ends_with(b"marker"));
    });
}

#[test]
fn a_hub_relays_and_others_do_not() {
    isolated("a_hub_relays_and_others_do_not", || async {
        let (network, wire, guest) = node().await;
        network
            .apply_overlay(&access(&[(4, 7)], &[], false))
            .await
            .unwrap();
        network.apply_rules(&[guest.endpoint()]).await.unwrap();
        let (from, to) = (elsewhere(4, 9, 0xb1), elsewhere(5, 9, 0xb2));
        wire.send(&udp(from, to, 4000, 9000, "no hub"));
        network
            .apply_overlay(&access(&[(4, 7)], &[], true))
            .await
            .unwrap();
        // It relays what it has no part in, of any env, and invents nothing of its own.
        wire.send(&udp(elsewhere(3, 9, 1), to, 4000, 9000, "as the hub"));
        wire.send(&udp(
            "fd99::1".parse().unwrap(),
            to,
            4000,
            9000,
            "another cluster",
        ));
        wire.send(&udp(
            from,
            "fd99::1".parse().unwrap(),
            4000,
            9000,
            "to another cluster",
        ));
        wire.send(&udp(from, to, 4000, 61_001, "relayed"));
        let relayed = wire.receive(from);
        assert!(relayed.ends_with(b"relayed"), "{relayed:?}");
        // One hop less, and no entry of a connection.
        assert_eq!(relayed[7], 63);
        let known = std::thread::spawn(|| {
            enter("platform-test");
            std::fs::read_to_string("/proc/net/nf_conntrack").unwrap_or_default()
        });
        assert!(!known.join().unwrap().contains("dport=61001"));
        // What is for instances here is compared as before.
        wire.send(&udp(from, guest.address, 4000, 9000, "another env"));
        wire.send(&udp(
            elsewhere(4, 7, 1),
            guest.address,
            4000,
            9000,
            "marker",
        ));
        assert_eq!(guest.receive().text(), "marker");
        network
            .apply_overlay(&access(&[(4, 7)], &[], false))
            .await
            .unwrap();
        wire.send(&udp(from, to, 4000, 9000, "a hub no more"));
        guest.send_udp(elsewhere(4, 7, 1), 9000, "marker");
        assert!(wire.receive(guest.address).ends_with(b"marker"));
    });
}

#[test]
fn errors_pass_the_overlay_for_connections_that_exist() {
    isolated(
        "errors_pass_the_overlay_for_connections_that_exist",
        || async {
            let (network, wire, guest) = node().await;
            network
                .apply_overlay(&access(&[(4, 7)], &[100], false))
                .await
                .unwrap();
            network.apply_rules(&[guest.endpoint()]).await.unwrap();
            let (from, to) = (guest.address, elsewhere(4, 7, 0xb1));
            guest.send_udp(to, 9000, "sent");
            let sent = wire.receive(from);
            let other = udp(from, to, 4001, 9000, "never sent");
            // The other node's namespace, a hub's, and the instance itself make them.
            for source in [elsewhere(4, 0, 2), elsewhere(9, 0, 2), to] {
                wire.send(&icmp(source, from, TOO_BIG, &other));
                wire.send(&icmp(source, from, TOO_BIG, &sent));
                let packet = guest.receive();
                assert_eq!((packet.source, packet.icmp()), (source, Some(TOO_BIG)));
                assert_eq!(packet.body[8..], sent[..]);
            }
            // A stranger's env says nothing about it.
            wire.send(&icmp(elsewhere(5, 8, 1), from, TOO_BIG, &sent));
            wire.send(&udp(to, from, 4000, 9000, "marker"));
            assert_eq!(guest.receive().text(), "marker");
        },
    );
}

#[test]
fn the_mtu_changes_under_way_and_too_large_packets_are_answered() {
    isolated(
        "the_mtu_changes_under_way_and_too_large_packets_are_answered",
        || async {
            let (network, wire, guest) = node().await;
            network
                .apply_overlay(&access(&[(4, 7)], &[], false))
                .await
                .unwrap();
            network.apply_rules(&[guest.endpoint()]).await.unwrap();
            let to = elsewhere(4, 7, 0xb1);
            let large = "x".repeat(1372);
            guest.send_udp(to, 9000, &large);
            assert_eq!(wire.receive(guest.address).len(), 1420);
            assert!(network.set_mtu(1279).await.is_err());
            network.set_mtu(1300).await.unwrap();
            guest.send_udp(to, 9000, &large);
            let packet = guest.receive();
            assert_eq!(
                (packet.source, packet.icmp()),
                (address(0, 2), Some(TOO_BIG))
            );
            assert_eq!(packet.body[4..8], 1300_u32.to_be_bytes());
            // Segments are clamped both ways: 1300 less the headers of IPv6 and TCP.
            let segment = |packet: &[u8]| u16::from_be_bytes([packet[22], packet[23]]);
            guest.send_packet(&syn(guest.address, to, 8080, 1360));
            assert_eq!(segment(&wire.receive(guest.address)[40..]), 1240);
            wire.send(&syn(to, guest.address, 8080, 1360));
            assert_eq!(segment(&guest.receive().body), 1240);
            // A smaller one stays.
            wire.send(&syn(to, guest.address, 8081, 1000));
            assert_eq!(segment(&guest.receive().body), 1000);
            let mtus = || shell("ip -n platform-test -o link; ip -o link show dev plat-test");
            let links = mtus();
            assert_eq!(links.matches("mtu 1300").count(), 4, "{links}");
            // A tap that is made afterwards has it too, and it goes back up.
            let second = Guest::new(&network, 7, 0xa2).await;
            let links = mtus();
            assert_eq!(links.matches("mtu 1300").count(), 5, "{links}");
            network.set_mtu(1420).await.unwrap();
            let links = mtus();
            assert_eq!(links.matches("mtu 1420").count(), 5, "{links}");
            drop(second);
        },
    );
}

#[test]
fn a_restarted_agent_drops_nothing_of_the_overlay() {
    isolated("a_restarted_agent_drops_nothing_of_the_overlay", || async {
        let (network, wire, guest) = node().await;
        let (from, to) = (elsewhere(4, 7, 0xb1), guest.address);
        let access = access(&[(4, 7)], &[], false);
        network.apply_overlay(&access).await.unwrap();
        network.apply_rules(&[guest.endpoint()]).await.unwrap();
        let passes = |text: &str| {
            wire.send(&udp(from, to, 4000, 9000, text));
            assert_eq!(guest.receive().text(), text);
        };
        passes("before");
        drop(network);
        let network = Network::ensure(&settings()).await.unwrap();
        passes("the network is there");
        network.attach_overlay().await.unwrap();
        passes("the link is attached");
        network.apply_overlay(&access).await.unwrap();
        passes("who may send is known");
        network.apply_rules(&[guest.endpoint()]).await.unwrap();
        passes("all rules were loaded");
        // Somebody removes the rules: they come back with all that they had.
        shell("ip netns exec platform-test nft delete table inet platform");
        let _ = network.ensure_egress().await;
        wire.send(&udp(elsewhere(5, 7, 1), to, 4000, 9000, "a stranger"));
        passes("the rules were mended");
        // And the route, which its owner looks at.
        for harm in [
            format!("-6 route del {PREFIX}/48 dev {OVERLAY_LINK}"),
            format!("link set {OVERLAY_LINK} down"),
        ] {
            assert!(network.is_attached().await, "before {harm}");
            shell(&format!("ip -n platform-test {harm}"));
            assert!(!network.is_attached().await, "{harm}");
            network.attach_overlay().await.unwrap();
            assert!(network.is_attached().await, "{harm}");
        }
        passes("the route was mended");
    });
}

#[test]
fn the_machine_of_an_edge_gets_answers_and_nothing_else() {
    isolated(
        "the_machine_of_an_edge_gets_answers_and_nothing_else",
        || async {
            let before = machine_state();
            let wire = Wire::new(None, "plat-edge");
            let mut link = EdgeLink {
                link: "plat-edge".to_owned(),
                cluster_prefix: PREFIX,
                edge: NodeId(100),
                mtu: 1420,
            };
            // As `wireguard::interface` leaves it, and as a service that may not change the machine's settings.
            shell("ip link set dev plat-edge up");
            shell("mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys");
            link.ensure().await.unwrap();
            shell("umount /proc/sys");
            let addresses = shell("ip -6 -o addr show dev plat-edge");
            assert_eq!(addresses.lines().count(), 2, "{addresses}");
            let own = elsewhere(100, 0, 1);
            let node = elsewhere(4, 0, 1);
            let service = UdpSocket::bind("[::]:9000").unwrap();
            service.set_nonblocking(true).unwrap();
            let listener = std::net::TcpListener::bind("[::]:9000").unwrap();
            listener.set_nonblocking(true).unwrap();
            wire.send(&udp(
                elsewhere(4, 7, 1),
                own,
                4000,
                9000,
                "a service of the machine",
            ));
            wire.send(&syn(elsewhere(4, 7, 1), own, 9000, 1360));
            // Both addresses answer probes.
            for number in [1, 2] {
                wire.send(&icmp(node, elsewhere(100, 0, number), ECHO, b"probe"));
                assert_eq!(wire.receive(elsewhere(100, 0, number))[40], ECHO_REPLY);
            }
            assert!(service.recv(&mut [0; 16]).is_err());
            assert!(listener.accept().is_err());
            // It connects from its own address, and is answered.
            let target = elsewhere(4, 7, 1);
            let connecting = std::thread::spawn(move || {
                std::net::TcpStream::connect_timeout(&(target, 8080).into(), PATIENCE)
            });
            let asked = wire.receive(own);
            assert_eq!((asked[6], asked[40 + 13]), (6, 2));
            wire.send(&reset_of(&asked));
            let refused = connecting.join().unwrap().unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
            link.mtu = 1300;
            link.ensure().await.unwrap();
            assert!(shell("ip -o link show dev plat-edge").contains("mtu 1300"));
            // What somebody removes is noticed, and given again.
            for harm in [
                format!("ip -6 route del {PREFIX}/48 dev plat-edge"),
                format!("ip addr del {own}/128 dev plat-edge"),
                "ip link set plat-edge down; ip link set plat-edge up".to_owned(),
            ] {
                assert!(link.is_attached().await, "before {harm}");
                shell(&harm);
                assert!(!link.is_attached().await, "{harm}");
                link.ensure().await.unwrap();
                assert!(link.is_attached().await, "{harm}");
            }
            drop((wire, service, listener));
            shell("ip link delete dev plat-edge");
            EdgeLink::remove("plat-edge").await.unwrap();
            EdgeLink::remove("plat-edge").await.unwrap();
            assert_eq!(machine_state(), before);
        },
    );
}

#[test]
fn edges_of_one_machine_leave_each_other_their_routes() {
    isolated(
        "edges_of_one_machine_leave_each_other_their_routes",
        || async {
            let names = ["plat-edge1", "plat-edge2"];
            let [one, _two] = names.map(|name| Wire::new(None, name));
            for _ in 0..2 {
                for (name, number) in names.into_iter().zip([100, 101]) {
                    let link = EdgeLink {
                        link: name.to_owned(),
                        cluster_prefix: PREFIX,
                        edge: NodeId(number),
                        mtu: 1420,
                    };
                    link.ensure().await.unwrap();
                }
            }
            let routes = || shell(&format!("ip -6 route show {PREFIX}/48"));
            assert_eq!(routes().lines().count(), 2, "{}", routes());
            // One goes down, and the other leads to the cluster.
            drop(one);
            shell("ip link delete dev plat-edge1");
            let left = shell(&format!("ip -6 route get {}", elsewhere(4, 7, 1)));
            assert!(left.contains("dev plat-edge2"), "{left}");
            shell("ip link delete dev plat-edge2");
        },
    );
}

#[test]
fn an_edge_reaches_a_node_of_its_machine_without_a_tunnel() {
    isolated(
        "an_edge_reaches_a_node_of_its_machine_without_a_tunnel",
        || async {
            let (network, wire, guest) = node().await;
            let tunnel = Wire::new(None, "plat-edge");
            let link = EdgeLink {
                link: "plat-edge".to_owned(),
                cluster_prefix: PREFIX,
                edge: NodeId(100),
                mtu: 1420,
            };
            link.ensure().await.unwrap();
            network
                .apply_overlay(&access(&[(4, 7)], &[100], false))
                .await
                .unwrap();
            network.apply_rules(&[guest.endpoint()]).await.unwrap();
            // As the edge's proxy does: no address of its own is named.
            let proxy = UdpSocket::bind("[::]:0").unwrap();
            proxy.set_read_timeout(Some(PATIENCE)).unwrap();
            proxy.send_to(b"here", (guest.address, 61_001)).unwrap();
            let packet = guest.receive();
            assert_eq!(
                (packet.source, packet.text()),
                (address(0, 1), "here".into())
            );
            let answer = udp(
                guest.address,
                packet.source,
                61_001,
                packet.source_port(),
                "yes",
            );
            guest.send_packet(&answer);
            let mut buffer = [0; 10];
            let (length, _) = proxy.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"yes");
            // Another machine's goes by the edge's tunnel, from its own address.
            proxy
                .send_to(b"there", (elsewhere(4, 7, 1), 61_001))
                .unwrap();
            assert!(tunnel.receive(elsewhere(100, 0, 1)).ends_with(b"there"));
            drop((wire, tunnel));
            Network::remove("test").await.unwrap();
            EdgeLink::remove("plat-edge").await.unwrap();
        },
    );
}

/// What a host answers where nobody listens (RFC 9293, 3.10.7.1).
fn reset_of(packet: &[u8]) -> Vec<u8> {
    let tcp = &packet[40..];
    let octets = |at: usize| -> [u8; 16] { packet[at..at + 16].try_into().unwrap() };
    let sequence = u32::from_be_bytes(tcp[4..8].try_into().unwrap()) + 1;
    let mut body = [&tcp[2..4], &tcp[..2], &[0; 4], &sequence.to_be_bytes()].concat();
    body.extend_from_slice(&[5 << 4, 0x14, 0, 0, 0, 0, 0, 0]);
    support::packet(octets(24).into(), octets(8).into(), 6, body, 16)
}

#[test]
fn the_resolver_is_reached_at_its_port_and_nothing_else_of_the_namespace() {
    isolated(
        "the_resolver_is_reached_at_its_port_and_nothing_else_of_the_namespace",
        || async {
            let (network, _wire, guest) = node().await;
            network.attach_resolver().await.unwrap();
            network.attach_resolver().await.unwrap();
            network.apply_rules(&[guest.endpoint()]).await.unwrap();
            let own = support::ipv4(0xa1);
            let resolver = guest_protocol::RESOLVER;
            let sockets = std::thread::spawn(move || {
                enter("platform-test");
                [53, 54].map(|port| UdpSocket::bind((resolver, port)).unwrap())
            });
            let [names, other] = sockets.join().unwrap();
            guest.send_ipv4((own, 4000), (resolver, 54), "another port");
            guest.send_ipv4(
                (support::ipv4(0xa2), 4000),
                (resolver, 53),
                "another instance",
            );
            guest.send_ipv4((own, 4000), (resolver, 53), "a question");
            names.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut buffer = [0; 100];
            let (length, from) = names.recv_from(&mut buffer).unwrap();
            assert_eq!(
                (&buffer[..length], from),
                (&b"a question"[..], (own, 4000).into())
            );
            other.set_nonblocking(true).unwrap();
            assert!(other.recv(&mut buffer).is_err());
        },
    );
}

#[test]
fn what_members_measure_with_passes_and_nothing_else_of_it() {
    isolated(
        "what_members_measure_with_passes_and_nothing_else_of_it",
        || async {
            let (network, wire, guest) = node().await;
            network.apply_rules(&[guest.endpoint()]).await.unwrap();
            network
                .apply_overlay(&access(&[(4, 7)], &[6], false))
                .await
                .unwrap();
            let (own, narrow) = (address(0, 2), address(0, 3));
            let echo = |from, to, payload| {
                let mut body = vec![ECHO, 0, 0, 0, 0, 7, 0, 1];
                body.resize(payload, 0);
                packet(from, to, 58, body, 2)
            };
            // Too large for the link behind the address: the kernel says so, of nodes and of edges alike.
            for member in [4, 6] {
                wire.send(&echo(elsewhere(member, 0, 2), narrow, 1248));
                let answer = wire.receive(own);
                assert_eq!((answer[6], answer[40]), (58, TOO_BIG));
                assert_eq!(answer[44..48], 1280_u32.to_be_bytes());
                assert_eq!(answer[24..40], elsewhere(member, 0, 2).octets());
            }
            let asker = elsewhere(4, 0, 2);
            // Small ones lead nowhere; instances elsewhere are no members; of TCP one port of one address is open.
            let is_next = |name: &str| {
                wire.send(&echo(asker, own, 64));
                let answer = wire.receive(own);
                assert_eq!((answer[6], answer[40]), (58, ECHO_REPLY), "{name}");
            };
            wire.send(&echo(asker, narrow, 1240));
            is_next("what fits is not answered");
            wire.send(&echo(elsewhere(4, 7, 0xb1), narrow, 1248));
            wire.send(&echo(elsewhere(4, 0, 9), narrow, 1248));
            is_next("who is no member gets no answer");
            for (from, to, port) in [
                (elsewhere(4, 7, 0xb1), own, 7),
                (elsewhere(4, 0, 9), own, 7),
                (elsewhere(4, 0, 1), own, 7),
                (asker, own, 22),
                (asker, address(0, 1), 7),
                (asker, narrow, 7),
            ] {
                wire.send(&syn(from, to, port, 1360));
            }
            is_next("nothing else of TCP is answered");
            // Nobody listens just now: it is refused, and not dropped.
            for member in [4, 6] {
                wire.send(&syn(elsewhere(member, 0, 2), own, 7, 1360));
                let answer = wire.receive(own);
                assert_eq!(answer[6], 6);
                assert!(answer[53] & 4 != 0, "no reset: {answer:02x?}");
            }
            // An instance of this node reaches neither.
            guest.send_packet(&syn(guest.address, own, 7, 1360));
            guest.send_packet(&udp(guest.address, guest.address, 4000, 9000, "marker"));
            assert_eq!(guest.receive().text(), "marker");
        },
    );
}
