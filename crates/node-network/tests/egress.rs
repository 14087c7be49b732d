//! Egress by the real `slirp4netns`: a machine with a default route, an external network behind it, and instances
//! with whole kernels, each in a network namespace that the test made. Nothing leaves the machine that runs the test.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each file uses what it needs")]
mod support;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use guest_protocol::RESOLVER;
use model::instance::EgressPolicy;
use node_network::{Network, NetworkError};
use overlay::private_networks::PrivateNetworks;
use support::{Guest, ipv4, isolated, machine_state, settings, whole_guest};
use test_namespaces::{enter, shell};

const PATIENCE: Duration = Duration::from_secs(10);
const OWN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const FARTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// The machine's default route, and the external network behind it.
fn make_external_network() {
    shell(
        "ip netns add external
         ip link add wan type veth peer name inner netns external
         ip addr add 203.0.113.2/24 dev wan; ip link set dev wan up
         ip -n external link set dev lo up
         ip -n external addr add 203.0.113.1/24 dev inner; ip -n external link set dev inner up
         ip -n external addr add 198.51.100.1/32 dev lo; ip -n external addr add 198.51.100.2/32 dev lo
         ip route add default via 203.0.113.1
         : >/run/resolv.conf; mount --bind /run/resolv.conf /etc/resolv.conf",
    );
    name_server(Some(NEIGHBOUR));
}

/// Names the machine's resolver.
fn name_server(address: Option<Ipv4Addr>) {
    let line = address.map_or_else(String::new, |address| format!("nameserver {address}\n"));
    std::fs::write("/etc/resolv.conf", line).unwrap();
}

/// Runs `work` on a thread in a namespace; empty: the machine's.
fn inside<T: Send + 'static>(namespace: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = namespace.to_owned();
    let thread = std::thread::spawn(move || {
        if !namespace.is_empty() {
            enter(&namespace);
        }
        work()
    });
    thread.join().unwrap()
}

/// Listens; sends each client its own address as seen here, then echoes.
fn serve(namespace: &str, address: Ipv4Addr, port: u16) {
    let listener = inside(namespace, move || {
        TcpListener::bind((address, port)).unwrap()
    });
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let peer = stream.peer_addr().unwrap().ip();
                let _ = writeln!(stream, "{peer}");
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                }
            });
        }
    });
}

/// A UDP socket.
fn udp(namespace: &str, address: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = inside(namespace, move || UdpSocket::bind((address, port)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn receive(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (
        String::from_utf8_lossy(&buffer[..length]).into_owned(),
        from,
    )
}

/// Answers each question with itself and `<address>`, as a resolver would.
fn answer_names(namespace: &str, address: Ipv4Addr) {
    let socket = udp(namespace, address, 53);
    socket.set_read_timeout(None).unwrap();
    std::thread::spawn(move || {
        loop {
            let (question, from) = receive(&socket);
            let answer = format!("{question} asked of {address}");
            socket.send_to(answer.as_bytes(), from).unwrap();
        }
    });
    serve(namespace, address, 53);
}

fn connect(namespace: &str, address: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
    let stream = inside(namespace, move || {
        TcpStream::connect_timeout(&(address, port).into(), PATIENCE)
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Connects, and gives this client's address as the server sees it.
fn seen_as(namespace: &str, address: Ipv4Addr, port: u16) -> Result<String, ErrorKind> {
    let mut stream = connect(namespace, address, port).map_err(|error| error.kind())?;
    let mut text = Vec::new();
    while text.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).map_err(|error| error.kind())?;
        text.push(byte[0]);
    }
    Ok(String::from_utf8(text).unwrap().trim().to_owned())
}

/// Asks the resolver that guests are given, over UDP.
fn ask(namespace: &str) -> std::io::Result<String> {
    let socket = udp(namespace, Ipv4Addr::UNSPECIFIED, 0);
    socket.connect((RESOLVER, 53))?;
    socket.send(b"shop.example.com")?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// The `slirp4netns` processes of this test.
fn egress_processes() -> Vec<PathBuf> {
    let namespace = std::fs::read_link("/proc/self/ns/net").unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        if line.starts_with(b"slirp4netns\0")
            && std::fs::read_link(path.join("ns/net")).ok().as_ref() == Some(&namespace)
        {
            found.push(path);
        }
    }
    found
}

const HOSTS_UNREACHABLE: Result<String, ErrorKind> = Err(ErrorKind::HostUnreachable);

#[test]
fn egress_uses_the_machines_address_and_reaches_nothing_of_the_machine() {
    isolated(
        "egress_uses_the_machines_address_and_reaches_nothing_of_the_machine",
        || async {
            make_external_network();
            serve("external", FAR, 8080);
            serve("external", NEIGHBOUR, 5432);
            answer_names("external", NEIGHBOUR);
            serve("", OWN, 22);
            serve("", OWN, 80);
            serve("", Ipv4Addr::LOCALHOST, 22);
            let network = Network::ensure(&settings()).await.unwrap();
            let one = Guest::new(&network, 7, 0xa1).await;
            let two = Guest::new(&network, 7, 0xa2).await;
            let (endpoint, other) = (one.endpoint(), two.endpoint());
            network.apply_rules(&[endpoint, other]).await.unwrap();
            let guest = whole_guest(one).await;
            network.ensure_egress().await.unwrap();

            let own = Ok(OWN.to_string());
            assert_eq!(seen_as(&guest, FAR, 8080), own);
            // A network of the machine's own is where people have their databases.
            assert_eq!(seen_as(&guest, NEIGHBOUR, 5432), own);
            // An app may call its own public URL.
            assert_eq!(seen_as(&guest, OWN, 80), own);
            assert_eq!(
                seen_as(&guest, FAR, 81),
                Err(ErrorKind::ConnectionRefused),
                "a refusal arrives"
            );
            assert_eq!(
                ask(&guest).unwrap(),
                "shop.example.com asked of 203.0.113.1"
            );
            assert_eq!(
                seen_as(&guest, RESOLVER, 53),
                own,
                "large answers are asked for over TCP"
            );

            for (address, port, what) in [
                (OWN, 22, "the machine"),
                (Ipv4Addr::new(203, 0, 113, 255), 22, "all of its network"),
                (
                    Ipv4Addr::new(192, 0, 0, 2),
                    22,
                    "the machine's loopback, behind the gateway",
                ),
                (Ipv4Addr::new(192, 0, 0, 100), 22, "our own end"),
                (RESOLVER, 22, "the resolver, for what is no question"),
                (Ipv4Addr::new(169, 254, 169, 254), 80, "metadata"),
                (Ipv4Addr::new(168, 63, 129, 16), 80, "metadata"),
                (Ipv4Addr::new(100, 100, 100, 200), 80, "metadata"),
                (Ipv4Addr::new(240, 0, 0, 1), 80, "reserved"),
                (ipv4(0xa2), 80, "another instance"),
            ] {
                let refused = match address.octets()[3] {
                    // Linux itself does not connect to a broadcast address.
                    255 => seen_as(&guest, address, port).map_err(|_| ErrorKind::HostUnreachable),
                    _ => seen_as(&guest, address, port),
                };
                assert_eq!(refused, HOSTS_UNREACHABLE, "{what}");
            }

            // An address that the machine gets later.
            shell("ip addr add 10.5.5.5/32 dev lo");
            serve("", Ipv4Addr::new(10, 5, 5, 5), 22);
            network.ensure_egress().await.unwrap();
            assert_eq!(
                seen_as(&guest, Ipv4Addr::new(10, 5, 5, 5), 22),
                HOSTS_UNREACHABLE
            );
            // One that it no longer has is somebody else's.
            shell("ip addr del 10.5.5.5/32 dev lo; ip -n external addr add 10.5.5.5/32 dev lo");
            serve("external", Ipv4Addr::new(10, 5, 5, 5), 23);
            network.ensure_egress().await.unwrap();
            assert_eq!(seen_as(&guest, Ipv4Addr::new(10, 5, 5, 5), 23), own);

            Network::remove("test").await.unwrap();
        },
    );
}

#[test]
fn a_large_upload_through_egress_arrives_whole() {
    const BYTES: usize = 64 << 20;
    isolated("a_large_upload_through_egress_arrives_whole", || async {
        make_external_network();
        let listener = inside("external", || TcpListener::bind((FAR, 8080)).unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let taken = std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
            writeln!(stream, "{taken}").unwrap();
        });
        let network = Network::ensure(&settings()).await.unwrap();
        let one = Guest::new(&network, 7, 0xa1).await;
        network.apply_rules(&[one.endpoint()]).await.unwrap();
        let guest = whole_guest(one).await;
        network.ensure_egress().await.unwrap();
        let mut stream = connect(&guest, FAR, 8080).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&vec![7; BYTES]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut taken = String::new();
        stream.read_to_string(&mut taken).unwrap();
        assert_eq!(taken, format!("{BYTES}\n"));
        Network::remove("test").await.unwrap();
    });
}

#[test]
fn egress_lets_no_connection_in_and_pins_sources() {
    isolated("egress_lets_no_connection_in_and_pins_sources", || async {
        make_external_network();
        let network = Network::ensure(&settings()).await.unwrap();
        let one = Guest::new(&network, 7, 0xa1).await;
        let two = Guest::new(&network, 7, 0xa2).await;
        network
            .apply_rules(&[one.endpoint(), two.endpoint()])
            .await
            .unwrap();
        let guest = whole_guest(one).await;
        network.ensure_egress().await.unwrap();

        let (far, farther) = (udp("external", FAR, 9), udp("external", FARTHER, 9));
        // A low port inside is none on the machine.
        let socket = udp(&guest, Ipv4Addr::UNSPECIFIED, 500);
        socket.send_to(b"question", (FAR, 9)).unwrap();
        let (text, from) = receive(&far);
        assert_eq!(text, "question");
        assert_eq!(from.ip(), OWN);
        assert!((32768..=60999).contains(&from.port()), "{from}");
        // The same port of the machine, so in the order that they were sent in.
        farther.send_to(b"unasked", from).unwrap();
        far.send_to(b"answer", from).unwrap();
        assert_eq!(receive(&socket).0, "answer");

        // A packet that passed would arrive before the marker.
        let machine = udp("", Ipv4Addr::LOCALHOST, 9);
        two.send_ipv4((ipv4(0xa1), 4000), (FAR, 9), "of another");
        two.send_ipv4((Ipv4Addr::new(10, 0, 0, 1), 4000), (FAR, 9), "of nobody");
        two.send_ipv4((OWN, 4000), (FAR, 9), "of the machine");
        two.send_ipv4((ipv4(0xa2), 4000), (Ipv4Addr::LOCALHOST, 9), "to loopback");
        two.send_ipv4((ipv4(0xa2), 4000), (FAR, 9), "marker");
        assert_eq!(receive(&far).0, "marker");
        machine.set_nonblocking(true).unwrap();
        assert!(machine.recv(&mut [0; 16]).is_err());
        Network::remove("test").await.unwrap();
    });
}

#[test]
fn egress_outlives_the_agent_is_restarted_and_leaves_nothing_behind() {
    isolated(
        "egress_outlives_the_agent_is_restarted_and_leaves_nothing_behind",
        || async {
            make_external_network();
            serve("external", FAR, 8080);
            let network = Network::ensure(&settings()).await.unwrap();
            let one = Guest::new(&network, 7, 0xa1).await;
            let endpoint = one.endpoint();
            network
                .apply_rules(std::slice::from_ref(&endpoint))
                .await
                .unwrap();
            let guest = whole_guest(one).await;
            let before = machine_state();
            network.ensure_egress().await.unwrap();
            let first = egress_processes();
            assert_eq!(first.len(), 1);
            // Nothing of the agent's environment is in it, a token for one.
            let environ = std::fs::read(first[0].join("environ")).unwrap();
            let environ = String::from_utf8_lossy(&environ);
            assert!(
                environ.contains("PATH=") && !environ.contains("CARGO"),
                "{environ:?}"
            );
            let mut stream = connect(&guest, FAR, 8080).unwrap();
            stream.read_exact(&mut [0; 12]).unwrap();
            let mut echo = |text: &[u8]| {
                stream.write_all(text)?;
                stream.read_exact(&mut vec![0; text.len()])
            };
            echo(b"first").unwrap();

            // The next agent finds it.
            drop(network);
            let network = Network::ensure(&settings()).await.unwrap();
            network
                .apply_rules(std::slice::from_ref(&endpoint))
                .await
                .unwrap();
            let egress = network.ensure_egress().await.unwrap();
            assert_eq!(egress_processes(), first);
            echo(b"second").unwrap();

            // It is killed: another is started, and connections by the first are reset.
            let pid = first[0].file_name().unwrap().to_str().unwrap();
            shell(&format!("kill -9 {pid}"));
            tokio::time::timeout(PATIENCE, egress.ended())
                .await
                .unwrap();
            network.ensure_egress().await.unwrap();
            let second = egress_processes();
            assert!(second.len() == 1 && second != first);
            let ended = echo(b"third").and_then(|()| echo(b"fourth")).unwrap_err();
            assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
            assert_eq!(seen_as(&guest, FAR, 8080), Ok(OWN.to_string()));

            // It is stopped: it would answer nobody, and never end.
            let pid = second[0].file_name().unwrap().to_str().unwrap();
            shell(&format!("kill -STOP {pid}"));
            let stopped = || {
                let status = std::fs::read_to_string(second[0].join("status")).unwrap();
                status.contains("(stopped)")
            };
            while !stopped() {
                tokio::task::yield_now().await;
            }
            network.ensure_egress().await.unwrap();
            let third = egress_processes();
            assert!(third.len() == 1 && third != second);
            assert_eq!(seen_as(&guest, FAR, 8080), Ok(OWN.to_string()));

            // Its link is taken away.
            shell("ip -n platform-test link delete dev uplink");
            network.ensure_egress().await.unwrap();
            assert!(egress_processes().len() == 1 && egress_processes() != third);
            assert_eq!(seen_as(&guest, FAR, 8080), Ok(OWN.to_string()));

            // A machine without a default route: instances are refused at once, and a route may come later.
            shell("ip route del default; ip -n platform-test link delete dev uplink");
            let none = network.ensure_egress().await.unwrap_err();
            assert!(matches!(none, NetworkError::NoUplink), "{none}");
            assert_eq!(egress_processes(), Vec::<PathBuf>::new());
            assert_eq!(seen_as(&guest, FAR, 8080), HOSTS_UNREACHABLE);
            let asked = ask(&guest).unwrap_err();
            assert_eq!(asked.kind(), ErrorKind::HostUnreachable);
            shell("ip route add default via 203.0.113.1");
            network.ensure_egress().await.unwrap();
            assert_eq!(seen_as(&guest, FAR, 8080), Ok(OWN.to_string()));

            Network::remove("test").await.unwrap();
            assert_eq!(egress_processes(), Vec::<PathBuf>::new());
            assert!(!machine_state().contains("platform-test"));
            assert!(before.contains("platform-test"));
        },
    );
}

#[test]
fn egress_of_an_agent_that_named_the_uplink_world_is_replaced() {
    isolated(
        "egress_of_an_agent_that_named_the_uplink_world_is_replaced",
        || async {
            make_external_network();
            serve("external", FAR, 8080);
            let network = Network::ensure(&settings()).await.unwrap();
            let one = Guest::new(&network, 7, 0xa1).await;
            network.apply_rules(&[one.endpoint()]).await.unwrap();
            let guest = whole_guest(one).await;
            // As that agent started it.
            shell(
                "setsid unshare --mount --propagation slave -- slirp4netns --configure --mtu=1420 \
                   --cidr=192.0.0.0/25 --enable-sandbox --enable-seccomp --disable-host-loopback \
                   --netns-type=path /run/netns/platform-test world </dev/null >/dev/null 2>&1 &",
            );
            let give_up = Instant::now() + PATIENCE;
            let links = || shell("ip -n platform-test -o link");
            while !links().contains("world") {
                assert!(Instant::now() < give_up, "{}", links());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let old = egress_processes();
            assert_eq!(old.len(), 1);
            network.ensure_egress().await.unwrap();
            let new = egress_processes();
            assert!(new.len() == 1 && new != old, "{old:?} {new:?}");
            assert!(!links().contains("world"), "{}", links());
            assert_eq!(seen_as(&guest, FAR, 8080), Ok(OWN.to_string()));

            // One that nobody replaced is ended with its network.
            shell(
                "setsid unshare --mount --propagation slave -- slirp4netns --configure \
                   --cidr=192.0.0.0/25 --netns-type=path /run/netns/platform-test world \
                   </dev/null >/dev/null 2>&1 &",
            );
            while egress_processes().len() < 2 {
                assert!(Instant::now() < give_up, "the old one does not start");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Network::remove("test").await.unwrap();
            assert_eq!(egress_processes(), Vec::<PathBuf>::new());
        },
    );
}

#[test]
fn names_are_resolved_by_the_machines_resolver_wherever_it_is() {
    isolated(
        "names_are_resolved_by_the_machines_resolver_wherever_it_is",
        || async {
            let loopback = Ipv4Addr::new(127, 0, 0, 53);
            make_external_network();
            answer_names("", loopback);
            answer_names("", OWN);
            answer_names("external", NEIGHBOUR);
            answer_names("external", FAR);
            let network = Network::ensure(&settings()).await.unwrap();
            let one = Guest::new(&network, 7, 0xa1).await;
            network.apply_rules(&[one.endpoint()]).await.unwrap();
            let guest = whole_guest(one).await;
            network.ensure_egress().await.unwrap();
            let first = egress_processes();
            for server in [FAR, OWN, NEIGHBOUR, loopback] {
                name_server(Some(server));
                // It looks at the file when it has changed, once a second at most.
                let give_up = Instant::now() + PATIENCE;
                let wanted = format!("shop.example.com asked of {server}");
                while ask(&guest).unwrap() != wanted {
                    assert!(Instant::now() < give_up, "{server} is not asked");
                    // Each question counts for a while, and they are bounded.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                network.ensure_egress().await.unwrap();
                let seen = if server.is_loopback() {
                    Ipv4Addr::LOCALHOST
                } else {
                    OWN
                };
                assert_eq!(seen_as(&guest, RESOLVER, 53), Ok(seen.to_string()));
            }
            assert_eq!(egress_processes(), first, "its connections live on");

            name_server(None);
            network.ensure_egress().await.unwrap();
            assert_eq!(ask(&guest).unwrap_err().kind(), ErrorKind::HostUnreachable);
            Network::remove("test").await.unwrap();
        },
    );
}

#[test]
fn a_machine_without_slirp4netns_says_what_to_install() {
    isolated(
        "a_machine_without_slirp4netns_says_what_to_install",
        || async {
            make_external_network();
            let network = Network::ensure(&settings()).await.unwrap();
            // A layer over it in which the program is not.
            shell(
                "mkdir -p /run/none; mknod /run/none/slirp4netns c 0 0
                 mount -t overlay overlay -o lowerdir=/run/none:/usr/bin /usr/bin",
            );
            let error = network.ensure_egress().await.unwrap_err().to_string();
            assert!(
                error.contains("hint: apt-get install slirp4netns"),
                "{error}"
            );
            assert_eq!(egress_processes(), Vec::<PathBuf>::new());
            shell("umount --lazy /usr/bin");
            network.ensure_egress().await.unwrap();
            Network::remove("test").await.unwrap();
        },
    );
}

#[test]
fn the_udp_exchanges_of_one_instance_are_bounded() {
    isolated("the_udp_exchanges_of_one_instance_are_bounded", || async {
        // At once, and in the seconds that this may take.
        const LIMIT: std::ops::RangeInclusive<usize> = 150..=400;
        make_external_network();
        let network = Network::ensure(&settings()).await.unwrap();
        let one = Guest::new(&network, 7, 0xa1).await;
        let two = Guest::new(&network, 7, 0xa2).await;
        let endpoints = [one.endpoint(), two.endpoint()];
        network.apply_rules(&endpoints).await.unwrap();
        network.ensure_egress().await.unwrap();
        let far = udp("external", FAR, 9);
        let begun = || {
            let count = "/proc/sys/net/netfilter/nf_conntrack_count";
            inside("platform-test", move || {
                std::fs::read_to_string(count)
                    .unwrap()
                    .trim()
                    .parse::<usize>()
                    .unwrap()
            })
        };
        for port in 10_000..13_000 {
            one.send_ipv4((ipv4(0xa1), port), (FAR, 9), "flood");
        }
        let held = begun();
        assert!(LIMIT.contains(&held), "{held}");
        // Replaced rules do not forget what was counted.
        network.apply_rules(&endpoints).await.unwrap();
        for port in 20_000..23_000 {
            one.send_ipv4((ipv4(0xa1), port), (FAR, 9), "flood");
        }
        let held = begun();
        assert!(LIMIT.contains(&held), "{held}");
        // Another instance is not held up. Where the flood left no room, a packet may be lost.
        far.set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let give_up = Instant::now() + PATIENCE;
        let mut buffer = [0; 16];
        loop {
            assert!(
                Instant::now() < give_up,
                "nothing of the other instance arrived"
            );
            match far.recv(&mut buffer) {
                Ok(length) if buffer.starts_with(b"marker") && length == 6 => break,
                Ok(_) => {}
                Err(_) => two.send_ipv4((ipv4(0xa2), 4000), (FAR, 9), "marker"),
            }
        }
        Network::remove("test").await.unwrap();
    });
}

#[test]
fn the_egress_connections_of_one_instance_are_bounded() {
    isolated(
        "the_egress_connections_of_one_instance_are_bounded",
        || async {
            const LIMIT: usize = 512;
            make_external_network();
            serve("external", FAR, 8080);
            let network = Network::ensure(&settings()).await.unwrap();
            let one = Guest::new(&network, 7, 0xa1).await;
            network.apply_rules(&[one.endpoint()]).await.unwrap();
            let guest = whole_guest(one).await;
            network.ensure_egress().await.unwrap();
            let (held, refused): (Vec<_>, Vec<_>) = (0..LIMIT + 20)
                .map(|_| connect(&guest, FAR, 8080))
                .partition(Result::is_ok);
            assert_eq!(held.len(), LIMIT);
            for error in refused.into_iter().filter_map(Result::err) {
                assert_eq!(error.kind(), ErrorKind::HostUnreachable);
            }
            // A connection that ended does not count.
            drop(held);
            let give_up = Instant::now() + PATIENCE;
            while let Err(error) = connect(&guest, FAR, 8080) {
                assert!(Instant::now() < give_up, "{error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Network::remove("test").await.unwrap();
        },
    );
}

const DATABASE: Ipv4Addr = Ipv4Addr::new(10, 5, 5, 5);
const MEASURED: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

#[test]
fn an_instance_reaches_what_its_egress_policy_names() {
    isolated(
        "an_instance_reaches_what_its_egress_policy_names",
        || async {
            make_external_network();
            shell(
                "ip -n external addr add 10.5.5.5/32 dev lo; ip -n external addr add 198.18.0.1/32 dev lo",
            );
            for address in [FAR, DATABASE, MEASURED] {
                serve("external", address, 8080);
            }
            serve("", OWN, 80);
            answer_names("external", NEIGHBOUR);
            let network = Network::ensure(&settings()).await.unwrap();
            let one = Guest::new(&network, 7, 0xa1).await;
            let mut endpoint = one.endpoint();
            network
                .apply_rules(std::slice::from_ref(&endpoint))
                .await
                .unwrap();
            let guest = whole_guest(one).await;
            network.ensure_egress().await.unwrap();
            let reaches = |address, port| match seen_as(&guest, address, port) {
                Ok(_) => true,
                Err(ErrorKind::HostUnreachable) => false,
                Err(other) => panic!("{other}"),
            };
            // The policy of a running instance may change: what is established goes on.
            let mut open = connect(&guest, FAR, 8080).unwrap();
            for (egress, [far, private, own]) in [
                (EgressPolicy::All, [true, true, true]),
                (EgressPolicy::Internet, [true, false, true]),
                (EgressPolicy::None, [false, false, false]),
                (EgressPolicy::All, [true, true, true]),
            ] {
                endpoint.egress = egress;
                network
                    .apply_rules(std::slice::from_ref(&endpoint))
                    .await
                    .unwrap();
                assert_eq!(reaches(FAR, 8080), far, "{egress:?}");
                assert_eq!(reaches(DATABASE, 8080), private, "{egress:?}");
                assert_eq!(reaches(MEASURED, 8080), private, "{egress:?}");
                assert_eq!(reaches(OWN, 80), own, "{egress:?}");
                // Names are asked for whatever the policy.
                assert!(ask(&guest).unwrap().starts_with("shop.example.com"));
                open.write_all(b"x").unwrap();
            }
            // The node's setting: which private networks `all` means.
            let some = |networks: &str| networks.parse::<PrivateNetworks>().unwrap();
            let networks = some("10.5.0.0/16");
            network.set_private_networks(&networks).await.unwrap();
            assert!(reaches(FAR, 8080) && reaches(DATABASE, 8080) && !reaches(MEASURED, 8080));
            network.set_private_networks(&some("none")).await.unwrap();
            assert!(reaches(FAR, 8080) && !reaches(DATABASE, 8080) && !reaches(MEASURED, 8080));
            // It stays when the machine's addresses change.
            shell("ip addr add 203.0.113.77/24 dev wan");
            network.ensure_egress().await.unwrap();
            assert!(!reaches(DATABASE, 8080));
            // An agent that starts goes by it from its first rules on.
            let restarted = Network::ensure(&settings()).await.unwrap();
            restarted.set_private_networks(&networks).await.unwrap();
            restarted
                .apply_rules(std::slice::from_ref(&endpoint))
                .await
                .unwrap();
            assert!(reaches(DATABASE, 8080) && !reaches(MEASURED, 8080));
            // The control plane is reached by nobody, wherever it is; other ports of its machine are.
            let server = |port| [SocketAddrV4::new(DATABASE, port)].into();
            restarted.set_servers(&server(8080)).await.unwrap();
            assert!(!reaches(DATABASE, 8080) && reaches(FAR, 8080));
            restarted.ensure_egress().await.unwrap();
            assert!(!reaches(DATABASE, 8080));
            // By what the servers say themselves, too.
            restarted.set_servers(&server(7400)).await.unwrap();
            assert!(reaches(DATABASE, 8080));
            let told = [SocketAddr::from((DATABASE, 8080))].into();
            restarted.set_told_servers(&told).await.unwrap();
            assert!(!reaches(DATABASE, 8080) && reaches(FAR, 8080));
            restarted.ensure_egress().await.unwrap();
            assert!(!reaches(DATABASE, 8080));
            restarted.set_told_servers(&[].into()).await.unwrap();
            assert!(reaches(DATABASE, 8080));
            Network::remove("test").await.unwrap();
        },
    );
}
