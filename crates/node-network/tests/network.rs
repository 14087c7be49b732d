//! The real thing: a namespace, a link, taps, rules and packets. Each test has a network of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each file uses what it needs")]
mod support;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use model::InstanceId;
use node_network::{Network, NetworkError, NetworkSettings};
use support::{Guest, address, icmp, isolated, machine_state, settings, udp, whole_guest};
use test_namespaces::{enter, shell};

/// Moments at which the namespace's name is removed while the network is set up, which takes some 50 ms.
const ROUNDS: u32 = 30;
/// From one of these moments to the next.
const LOSS_STEP: Duration = Duration::from_millis(2);

fn host_socket() -> UdpSocket {
    let socket = UdpSocket::bind((address(0, 1), 0)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    socket
}

fn receive_text(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (
        String::from_utf8_lossy(&buffer[..length]).into_owned(),
        from,
    )
}

#[test]
fn the_machine_reaches_an_instance() {
    isolated("the_machine_reaches_an_instance", || async {
        let network = Network::ensure(&settings()).await.unwrap();
        let guest = Guest::new(&network, 7, 0xa1).await;
        network.apply_rules(&[guest.endpoint()]).await.unwrap();
        let host = host_socket();
        host.send_to(b"hello", (guest.address, 9000)).unwrap();
        let packet = guest.receive();
        assert_eq!(
            (packet.source, packet.text()),
            (address(0, 1), "hello".into())
        );
        // From another port than was asked: not an answer.
        guest.send_udp(address(0, 1), packet.source_port(), "stray");
        host.send_to(b"again", (guest.address, 4000)).unwrap();
        let packet = guest.receive();
        guest.send_udp(address(0, 1), packet.source_port(), "answer");
        assert_eq!(receive_text(&host).0, "answer");
    });
}

#[test]
fn packets_between_envs_are_dropped_and_sources_are_pinned() {
    isolated(
        "packets_between_envs_are_dropped_and_sources_are_pinned",
        || async {
            let network = Network::ensure(&settings()).await.unwrap();
            let a = Guest::new(&network, 7, 0xa1).await;
            let b = Guest::new(&network, 7, 0xa2).await;
            let c = Guest::new(&network, 8, 0xa3).await;
            let all = [a.endpoint(), b.endpoint(), c.endpoint()];
            let host = host_socket();

            // Nothing passes before the rules name the instances.
            a.send_udp(b.address, 9000, "too early");
            network.apply_rules(&all).await.unwrap();

            a.send_udp(b.address, 9000, "same env");
            assert_eq!(b.receive().text(), "same env");

            // A tap's packets are handled in order: what is dropped would have come first.
            c.send_udp(b.address, 9000, "cross env");
            c.send_udp_from(a.address, b.address, 9000, "spoofed neighbour");
            c.send_udp_from(address(0, 1), b.address, 9000, "spoofed platform");
            c.send_udp_from("fe80::99".parse().unwrap(), b.address, 9000, "link-local");
            // These two would pass if the source were not pinned: the sender is of the same env.
            a.send_udp_from(address(7, 0xa9), b.address, 9000, "spoofed sibling");
            a.send_udp_from(address(0, 1), b.address, 9000, "spoofed machine");
            c.send_icmp_from(c.address, b.address, 128);
            c.send_icmp_from(a.address, b.address, 2);
            a.send_udp(b.address, 9000, "marker");
            let packet = b.receive();
            assert_eq!((packet.source, packet.text()), (a.address, "marker".into()));

            // Packet Too Big passes where it is about a packet of a connection that exists.
            c.send_icmp_from(c.address, b.address, 2);
            let other_port = udp(a.address, b.address, 4001, 9000, "marker");
            b.send_packet(&icmp(b.address, a.address, 2, &other_port));
            let sent = udp(a.address, b.address, 4000, 9000, "marker");
            b.send_packet(&icmp(b.address, a.address, 2, &sent));
            let packet = a.receive();
            assert_eq!((packet.source, packet.icmp()), (b.address, Some(2)));
            assert_eq!(packet.body[8..], sent[..]);

            // An instance does not begin a conversation with the machine.
            let port = host.local_addr().unwrap().port();
            a.send_udp(address(0, 1), port, "unasked");
            let asked = host_socket();
            asked.send_to(b"?", (a.address, 4000)).unwrap();
            let question = a.receive();
            a.send_udp(address(0, 1), question.source_port(), "asked");
            assert_eq!(receive_text(&asked).0, "asked");
            host.set_nonblocking(true).unwrap();
            assert!(host.recv(&mut [0; 16]).is_err());

            // An instance that the rules no longer name is cut off.
            network
                .apply_rules(&[b.endpoint(), c.endpoint()])
                .await
                .unwrap();
            a.send_udp(b.address, 9000, "gone");
            // What a tap is given is routed before the call returns.
            asked.send_to(b"marker", (b.address, 9000)).unwrap();
            assert_eq!(b.receive().text(), "marker");
        },
    );
}

#[test]
fn packet_too_big_reaches_the_sender() {
    isolated("packet_too_big_reaches_the_sender", || async {
        let network = Network::ensure(&settings()).await.unwrap();
        let a = Guest::new(&network, 7, 0xa1).await;
        let b = Guest::new(&network, 7, 0xa2).await;
        network
            .apply_rules(&[a.endpoint(), b.endpoint()])
            .await
            .unwrap();
        shell("ip -n platform-test link set dev t000000a2 mtu 1280");
        a.send_udp(b.address, 9000, &"x".repeat(1330));
        let packet = a.receive();
        assert_eq!((packet.source, packet.icmp()), (address(0, 2), Some(2)));
        assert_eq!(packet.body[4..8], 1280_u32.to_be_bytes());
    });
}

#[test]
fn a_restarted_agent_disturbs_nothing_and_remove_leaves_nothing() {
    isolated(
        "a_restarted_agent_disturbs_nothing_and_remove_leaves_nothing",
        || async {
            let before = machine_state();
            let forwarding = "/proc/sys/net/ipv6/conf/all/forwarding";
            let network = Network::ensure(&settings()).await.unwrap();
            let a = Guest::new(&network, 7, 0xa1).await;
            let b = Guest::new(&network, 7, 0xa2).await;
            network
                .apply_rules(&[a.endpoint(), b.endpoint()])
                .await
                .unwrap();
            drop(network);

            let network = Network::ensure(&settings()).await.unwrap();
            a.send_udp(b.address, 9000, "still");
            assert_eq!(b.receive().text(), "still");
            let busy = network.create_tap(&a.endpoint()).await;
            assert!(
                matches!(busy, Err(NetworkError::TapBusy { .. })),
                "{busy:?}"
            );
            a.send_udp(b.address, 9000, "undisturbed");
            assert_eq!(b.receive().text(), "undisturbed");

            // A tap ends with its VMM; release makes sure, and may be called again.
            network.release(b.id).await.unwrap();
            network.release(b.id).await.unwrap();
            network.release(InstanceId(0xdead)).await.unwrap();
            let links = shell("ip -n platform-test -o link");
            assert!(
                !links.contains("t000000a2") && links.contains("t000000a1"),
                "{links}"
            );
            assert_eq!(std::fs::read_to_string(forwarding).unwrap().trim(), "0");

            // The VMM of `a` still holds its tap.
            Network::remove("test").await.unwrap();
            assert_eq!(machine_state(), before);
            Network::remove("test").await.unwrap();

            // A crash can leave the name without a namespace.
            std::fs::write("/run/netns/platform-test", "").unwrap();
            Network::ensure(&settings()).await.unwrap();
            Network::remove("test").await.unwrap();
            assert_eq!(machine_state(), before);
        },
    );
}

#[test]
fn case_a_lost_name_and_a_lost_link_are_mended_and_the_instances_go_on() {
    isolated(
        "case_a_lost_name_and_a_lost_link_are_mended_and_the_instances_go_on",
        || async {
            let network = Network::ensure(&settings()).await.unwrap();
            let a = Guest::new(&network, 7, 0xa1).await;
            let b = Guest::new(&network, 7, 0xa2).await;
            let endpoints = [a.endpoint(), b.endpoint()];
            network.apply_rules(&endpoints).await.unwrap();
            assert_eq!(network.mend().await.unwrap(), Vec::<String>::new());
            let lose_name = "umount /run/netns/platform-test; rm /run/netns/platform-test";
            let host = host_socket();
            let all_go_on = async |network: &Network, text: &str| {
                a.send_udp(b.address, 9000, text);
                assert_eq!(b.receive().text(), text);
                // It is the namespace of the running VMs.
                let busy = network.create_tap(&a.endpoint()).await;
                assert!(
                    matches!(busy, Err(NetworkError::TapBusy { .. })),
                    "{busy:?}"
                );
                host.send_to(text.as_bytes(), (a.address, 9001)).unwrap();
                assert_eq!(a.receive().text(), text);
            };
            all_go_on(&network, "before").await;

            shell(lose_name);
            let mended = network.mend().await.unwrap();
            assert_eq!(mended, ["the name of the namespace platform-test"]);
            all_go_on(&network, "name").await;

            shell("ip link delete plat-test");
            let mended = network.mend().await.unwrap();
            assert_eq!(mended, ["the link plat-test"]);
            all_go_on(&network, "link").await;

            shell("ip netns exec platform-test nft flush ruleset");
            // There is no uplink here; the rules are mended before that is an error.
            let egress = network.ensure_egress().await;
            assert!(matches!(egress, Err(NetworkError::NoUplink)), "{egress:?}");
            let rules = shell("ip netns exec platform-test nft list ruleset");
            assert!(rules.contains("from_env_00000007") && rules.contains("platform_counts"));
            all_go_on(&network, "rules").await;

            // Somebody made another namespace of that name.
            shell("ip netns delete platform-test; ip netns add platform-test");
            assert!(!network.mend().await.unwrap().is_empty());
            all_go_on(&network, "taken").await;

            // All is lost while no agent runs: the next one finds the namespace by the tap of a VM.
            drop(network);
            shell(lose_name);
            shell("ip link delete plat-test");
            let network = Network::ensure(&settings()).await.unwrap();
            all_go_on(&network, "adopted").await;
            network.apply_rules(&endpoints).await.unwrap();
            all_go_on(&network, "with rules").await;
            let names = shell("ip netns list");
            assert_eq!(names.lines().count(), 1, "{names}");
        },
    );
}

#[test]
fn a_name_that_is_lost_while_the_network_is_set_up_is_given_again() {
    isolated(
        "a_name_that_is_lost_while_the_network_is_set_up_is_given_again",
        || async {
            let network = Network::ensure(&settings()).await.unwrap();
            // It has a tap in the namespace, as a running VM has.
            let guest = Guest::new(&network, 7, 0xa1).await;
            for round in 0..ROUNDS {
                let lose = std::thread::spawn(move || {
                    std::thread::sleep(LOSS_STEP * round);
                    shell("umount /run/netns/platform-test; rm -f /run/netns/platform-test || :");
                });
                let network = Network::ensure(&settings()).await;
                lose.join().unwrap();
                let network = network.unwrap_or_else(|error| panic!("{round}: {error:?}"));
                network.mend().await.unwrap();
                let busy = network.create_tap(&guest.endpoint()).await;
                assert!(
                    matches!(busy, Err(NetworkError::TapBusy { .. })),
                    "round {round} left the namespace of the running VM: {busy:?}"
                );
            }
        },
    );
}

#[test]
fn two_nodes_on_one_machine_have_a_network_each() {
    isolated("two_nodes_on_one_machine_have_a_network_each", || async {
        let one = Network::ensure(&settings()).await.unwrap();
        let other = NetworkSettings {
            suffix: "other".to_owned(),
            node: model::NodeId(4),
            ..settings()
        };
        let _two = Network::ensure(&other).await.unwrap();
        let guest = Guest::new(&one, 7, 0xa1).await;
        one.apply_rules(&[guest.endpoint()]).await.unwrap();
        host_socket()
            .send_to(b"hello", (guest.address, 9000))
            .unwrap();
        assert_eq!(guest.receive().text(), "hello");
        Network::remove("other").await.unwrap();
        host_socket()
            .send_to(b"again", (guest.address, 9000))
            .unwrap();
        assert_eq!(guest.receive().text(), "again");
    });
}

#[test]
fn invalid_settings_are_refused() {
    isolated("invalid_settings_are_refused", || async {
        let ensure = async |change: fn(&mut NetworkSettings)| {
            let mut settings = settings();
            change(&mut settings);
            Network::ensure(&settings).await.unwrap_err()
        };
        let error = ensure(|s| s.suffix = "../etc".to_owned()).await;
        assert!(matches!(error, NetworkError::Suffix(_)));
        let error = ensure(|s| s.mtu = 1279).await;
        assert!(matches!(error, NetworkError::Mtu(1279)));
        let error = ensure(|s| s.cluster_prefix = Ipv6Addr::LOCALHOST).await;
        assert!(matches!(error, NetworkError::Prefix(_)));
    });
}

/// The neighbours of the namespace, permanent ones left out.
fn neighbours() -> Vec<String> {
    let all =
        shell("ip -n platform-test neigh show nud all; ip -n platform-test -6 neigh show nud all");
    let learned = all
        .lines()
        .filter(|line| !line.contains("PERMANENT") && !line.contains("NOARP"));
    learned.map(str::to_owned).collect()
}

#[test]
fn a_flood_of_neighbours_leaves_the_tables_as_they_were() {
    const FLOOD: u16 = 2_000;
    isolated(
        "a_flood_of_neighbours_leaves_the_tables_as_they_were",
        || async {
            let network = Network::ensure(&settings()).await.unwrap();
            // An address of IPv4, as `slirp4netns` gives the namespace.
            shell("ip -n platform-test addr add 192.0.0.100/25 dev lo");
            let guest = Guest::new(&network, 7, 0xa1).await;
            let other = Guest::new(&network, 7, 0xa2).await;
            network
                .apply_rules(&[guest.endpoint(), other.endpoint()])
                .await
                .unwrap();
            let gateway = "fe80::1".parse().unwrap();
            for number in 0..FLOOD {
                let [high, low] = number.to_be_bytes();
                let mac = [0x02, 0x77, 0, 0, high, low];
                let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x77, 0, 1, number);
                guest.solicit(link_local, mac, gateway);
                guest.solicit(address(7, u32::from(number) + 0x1000), mac, gateway);
                guest.arp([10, 77, high, low].into(), mac, [192, 0, 0, 100].into());
                guest.arp([192, 0, 0, low].into(), mac, [192, 0, 0, 100].into());
            }
            // A tap's packets are handled in order: the flood was handled before this arrives.
            guest.send_udp(other.address, 9000, "after the flood");
            assert_eq!(other.receive().text(), "after the flood");
            let neighbours = neighbours();
            assert!(
                neighbours.len() <= 2,
                "{} of {neighbours:?}",
                neighbours.len()
            );
        },
    );
}

#[test]
fn changes_give_the_rules_that_a_whole_load_gives() {
    isolated("changes_give_the_rules_that_a_whole_load_gives", || async {
        let network = Network::ensure(&settings()).await.unwrap();
        let endpoint = |env: u32, instance: u32| node_network::Endpoint {
            instance: InstanceId(instance),
            address: address(env, instance),
            ipv4: support::ipv4(instance),
            egress: model::instance::EgressPolicy::All,
            edge_ports: [8080, 61_001].into(),
        };
        // Chains are listed in the order in which they came.
        let rules = || -> BTreeSet<String> {
            let text = shell("ip netns exec platform-test nft -s list table inet platform");
            let body = text.trim().trim_end_matches('}').trim_end();
            body.split("\n\n").map(str::to_owned).collect()
        };
        let steps: [&[(u32, u32)]; 8] = [
            &[(7, 1)],
            &[(7, 1), (7, 2), (8, 3)],
            &[(7, 2), (8, 3)],
            // The same instance in another env, and one in the platform's network, which gets no rights.
            &[(9, 2), (0, 4)],
            &[(9, 2), (7, 5), (7, 6), (0, 4)],
            &[],
            &[],
            &[(8, 3)],
        ];
        for step in steps {
            let endpoints: Vec<_> = step.iter().map(|(e, i)| endpoint(*e, *i)).collect();
            network.apply_rules(&endpoints).await.unwrap();
            let changed = rules();
            // Another agent loads all.
            let fresh = Network::ensure(&settings()).await.unwrap();
            fresh.apply_rules(&endpoints).await.unwrap();
            assert_eq!(changed, rules(), "{step:?}");
        }
    });
}

#[test]
fn a_change_that_is_refused_loads_all_rules() {
    isolated("a_change_that_is_refused_loads_all_rules", || async {
        let network = Network::ensure(&settings()).await.unwrap();
        let a = Guest::new(&network, 7, 0xa1).await;
        let b = Guest::new(&network, 7, 0xa2).await;
        network.apply_rules(&[a.endpoint()]).await.unwrap();
        shell("ip netns exec platform-test nft delete table inet platform");
        network
            .apply_rules(&[a.endpoint(), b.endpoint()])
            .await
            .unwrap();
        a.send_udp(b.address, 9000, "again");
        assert_eq!(b.receive().text(), "again");
    });
}

#[test]
fn a_start_or_stop_does_not_reset_another_instances_limits() {
    isolated(
        "a_start_or_stop_does_not_reset_another_instances_limits",
        || async {
            let network = Network::ensure(&settings()).await.unwrap();
            let a = Guest::new(&network, 7, 0xa1).await;
            let b = Guest::new(&network, 7, 0xa2).await;
            network
                .apply_rules(&[a.endpoint(), b.endpoint()])
                .await
                .unwrap();
            a.send_udp(b.address, 9000, "counted");
            assert_eq!(b.receive().text(), "counted");
            network.apply_rules(&[b.endpoint()]).await.unwrap();
            // A restarted agent loads all rules.
            let network = Network::ensure(&settings()).await.unwrap();
            network.apply_rules(&[b.endpoint()]).await.unwrap();
            let counts =
                shell("ip netns exec platform-test nft list set inet platform_counts sent");
            assert!(counts.contains("t000000a1"), "{counts}");
        },
    );
}

/// A whole kernel as the guest, in a namespace of its own, behind a wire between two taps.
#[test]
fn connections_survive_a_replacement_of_the_rules() {
    isolated("connections_survive_a_replacement_of_the_rules", || async {
        let network = Network::ensure(&settings()).await.unwrap();
        let guest = Guest::new(&network, 7, 0xa1).await;
        let (address, guest_member) = (guest.address, guest.endpoint());
        network
            .apply_rules(std::slice::from_ref(&guest_member))
            .await
            .unwrap();
        let inside = whole_guest(guest).await;
        let (listening, listens) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            enter(&inside);
            let listener = TcpListener::bind((address, 8080)).unwrap();
            listening.send(()).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                stream.write_all(&buffer[..length]).unwrap();
            }
        });
        listens.recv().unwrap();
        let mut stream =
            TcpStream::connect_timeout(&(address, 8080).into(), Duration::from_secs(10)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut echo = |text: &[u8]| {
            stream.write_all(text).unwrap();
            let mut answer = vec![0; text.len()];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer, text);
        };
        echo(b"first");
        for _ in 0..20 {
            network
                .apply_rules(std::slice::from_ref(&guest_member))
                .await
                .unwrap();
            Network::ensure(&settings()).await.unwrap();
            echo(&[b'x'; 3000]);
        }
    });
}
