//! The adapter between real sockets on the loopback; the test is the client and the app.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use proxy_header::{ParseConfig, ProxiedAddress, ProxyHeader};
use rustix::net::sockopt::set_socket_linger;

use crate::listener::{Listener, Notices, Port};
use crate::server::{ADAPTER_LIMITS, Limits, serve};
use crate::targets::Targets;

/// Longest that anything awaited may take.
const PATIENCE: Duration = Duration::from_secs(60);
const ALL_BITS: Ipv6Addr = Ipv6Addr::from_bits(u128::MAX);

struct Adapter {
    ingress: SocketAddr,
    app: TcpListener,
    lines: mpsc::Receiver<String>,
}

impl Adapter {
    fn start(strip: bool) -> Self {
        Self::with(strip, Ipv6Addr::LOCALHOST, ADAPTER_LIMITS)
    }

    fn with(strip: bool, peers: Ipv6Addr, limits: Limits) -> Self {
        let here = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 0, 0, 0);
        let (listener, app) = (
            TcpListener::bind(here).unwrap(),
            TcpListener::bind(here).unwrap(),
        );
        listener.set_nonblocking(true).unwrap();
        let ingress = listener.local_addr().unwrap();
        let SocketAddr::V6(app_address) = app.local_addr().unwrap() else {
            panic!("it is IPv6");
        };
        let listener = Listener {
            fd: listener.into(),
            app: app_address,
            strip,
            peers,
            peers_mask: ALL_BITS,
        };
        let (line, lines) = mpsc::channel();
        // The thread ends with the test's process.
        std::thread::spawn(move || {
            let error = serve(
                "PROXY adapter",
                vec![Port::Ingress(listener)],
                limits,
                |text| {
                    let _ = line.send(text.to_owned());
                },
            );
            panic!("{error}");
        });
        Self {
            ingress,
            app,
            lines,
        }
    }

    fn client(&self) -> TcpStream {
        patient(TcpStream::connect(self.ingress).unwrap())
    }

    /// The next connection that the app gets.
    fn accept(&self) -> TcpStream {
        self.app.set_nonblocking(false).unwrap();
        patient(self.app.accept().unwrap().0)
    }

    /// A client whose header was accepted, and the app's end.
    fn join(&self) -> (TcpStream, TcpStream) {
        let mut client = self.client();
        client.write_all(&header()).unwrap();
        (client, self.accept())
    }

    fn app_has_nothing(&self) {
        self.app.set_nonblocking(true).unwrap();
        let error = self.app.accept().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap()
    }
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn header() -> Vec<u8> {
    let address = |text: &str| text.parse().unwrap();
    let client = ProxiedAddress::stream(address("192.0.2.7:4711"), address("192.0.2.1:80"));
    let mut bytes = Vec::new();
    ProxyHeader::with_address(client)
        .encode_v2(&mut bytes)
        .unwrap();
    bytes
}

fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Waits until the other end closed without having sent anything.
fn closed(mut client: TcpStream) {
    match client.read(&mut [0; 8]) {
        Ok(0) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        other => panic!("it is open: {other:?}"),
    }
}

#[test]
fn strip_forwards_the_bytes_after_the_header() {
    let adapter = Adapter::start(true);
    let mut client = adapter.client();
    client
        .write_all(&[&header()[..], b"a question"].concat())
        .unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut app = adapter.accept();
    assert_eq!(read_all(&mut app), b"a question");
    app.write_all(b"an answer").unwrap();
    drop(app);
    assert_eq!(read_all(&mut client), b"an answer");
}

#[test]
fn v2_forwards_the_header_unchanged() {
    let adapter = Adapter::start(false);
    let mut sent = header();
    // An unknown field is kept.
    sent[15] += 5;
    sent.extend([0xe0, 0, 2, 1, 2]);
    let mut client = adapter.client();
    client.write_all(&[&sent[..], b"hello"].concat()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut app = adapter.accept();
    let received = read_all(&mut app);
    let (seen, length) = ProxyHeader::parse(&received, ParseConfig::default()).unwrap();
    let seen = seen.proxied_address().unwrap();
    assert_eq!(seen.source, "192.0.2.7:4711".parse().unwrap());
    assert_eq!(received[..length], sent);
    assert_eq!(&received[length..], b"hello");
}

#[test]
fn local_and_unspecified_connections_reach_the_app() {
    let adapter = Adapter::start(true);
    for (command, block) in [
        (0x20, &b""[..]),
        (0x21, b""),
        (0x20, b"any"),
        (0x21, b"any"),
    ] {
        let mut bytes = header()[..12].to_vec();
        bytes.extend([command, 0, 0, u8::try_from(block.len()).unwrap()]);
        let mut client = adapter.client();
        client
            .write_all(&[&bytes[..], block, b"x"].concat())
            .unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&mut adapter.accept()), b"x");
    }
}

#[test]
fn a_header_that_arrives_byte_by_byte_is_accepted() {
    let adapter = Adapter::start(true);
    let mut client = adapter.client();
    client.set_nodelay(true).unwrap();
    for byte in [&header()[..], b"slow"].concat() {
        client.write_all(&[byte]).unwrap();
    }
    let mut app = adapter.accept();
    let mut bytes = [0; 4];
    app.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"slow");
}

#[test]
fn an_end_that_shuts_down_first_still_receives() {
    let adapter = Adapter::start(true);
    let (mut client, mut app) = adapter.join();
    client.write_all(b"to app").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut app), b"to app");
    app.write_all(b"late answer").unwrap();
    app.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut client), b"late answer");

    let (mut client, mut app) = adapter.join();
    app.write_all(b"greeting").unwrap();
    app.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut client), b"greeting");
    client.write_all(b"late question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut app), b"late question");
}

#[test]
fn a_mebibyte_arrives_each_way_at_once() {
    for limits in with_and_without_room() {
        let adapter = Adapter::with(true, Ipv6Addr::LOCALHOST, limits);
        a_mebibyte_each_way(&adapter.join());
    }
}

fn a_mebibyte_each_way((client, app): &(TcpStream, TcpStream)) {
    let data = |seed: u32| -> Vec<u8> {
        (0..1 << 20_u32)
            .map(|at: u32| (at.wrapping_mul(seed) >> 7) as u8)
            .collect()
    };
    std::thread::scope(|scope| {
        for (own, other, end) in [(3, 5, client), (5, 3, app)] {
            scope.spawn(move || {
                let mut end = end;
                end.write_all(&data(own)).unwrap();
                end.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                let (mut received, mut end) = (Vec::new(), end);
                end.read_to_end(&mut received).unwrap();
                assert!(received == data(other));
            });
        }
    });
}

/// Limits with which the adapter holds bytes for an end, and with which it leaves them with their sender.
fn with_and_without_room() -> [Limits; 2] {
    [ADAPTER_LIMITS.held, 0].map(|held| Limits {
        held,
        ..ADAPTER_LIMITS
    })
}

#[test]
fn an_end_that_does_not_read_blocks_its_own_connection_only() {
    for limits in with_and_without_room() {
        a_blocked_end(&Adapter::with(true, Ipv6Addr::LOCALHOST, limits));
    }
}

fn a_blocked_end(adapter: &Adapter) {
    let (mut client, mut app) = adapter.join();
    client.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let error = loop {
        match client.write(&[7; 64 * 1024]) {
            Ok(length) => sent += length,
            // More room may come while the kernel moves what is on its way.
            Err(error) => break error,
        }
        assert!(sent < 1 << 30, "nothing bounds what is held");
    };
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    let (mut other, mut other_app) = adapter.join();
    other.write_all(b"ping").unwrap();
    let mut bytes = [0; 4];
    other_app.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ping");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut app).len(), sent);
}

#[test]
fn silent_connections_do_not_block_others() {
    let adapter = Adapter::start(true);
    let silent: Vec<_> = (0..100).map(|_| adapter.client()).collect();
    let joined: Vec<_> = (0..200_u32)
        .map(|number| {
            let (mut client, app) = adapter.join();
            client.write_all(&number.to_be_bytes()).unwrap();
            (number, client, app)
        })
        .collect();
    for (number, mut client, mut app) in joined.into_iter().rev() {
        let mut bytes = [0; 4];
        app.read_exact(&mut bytes).unwrap();
        assert_eq!(u32::from_be_bytes(bytes), number);
        app.write_all(&bytes).unwrap();
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(u32::from_be_bytes(bytes), number);
    }
    drop(silent);
}

#[test]
fn a_reset_at_one_end_resets_the_other() {
    let adapter = Adapter::start(true);
    for app_breaks in [false, true] {
        let (client, app) = adapter.join();
        let (resets, mut receives) = if app_breaks {
            (app, client)
        } else {
            (client, app)
        };
        set_socket_linger(&resets, Some(Duration::ZERO)).unwrap();
        drop(resets);
        let error = receives.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn a_connection_without_a_valid_header_reaches_no_app() {
    let limits = Limits {
        log_interval: Duration::ZERO,
        ..ADAPTER_LIMITS
    };
    let adapter = Adapter::with(true, Ipv6Addr::LOCALHOST, limits);
    let changed = |at: usize, byte: u8| {
        let mut bytes = header();
        bytes[at] = byte;
        bytes
    };
    for (bytes, why) in [
        (
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            "did not begin with a PROXY v2",
        ),
        (
            b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 80\r\n".to_vec(),
            "version 1",
        ),
        (changed(11, b'\r'), "did not begin with a PROXY v2"),
        (changed(12, 0x31), "unknown version"),
        (changed(12, 0x22), "unknown command"),
        (changed(13, 0x41), "unknown address family"),
        (changed(14, 0x10), "too long"),
        (changed(15, 11), "too short"),
        (changed(15, 14), "do not fit"),
    ] {
        let mut client = adapter.client();
        // Two more bytes, which the header with the longer length needs.
        client.write_all(&[&bytes[..], b"??"].concat()).unwrap();
        closed(client);
        let line = adapter.line();
        assert!(line.contains(why) && line.contains("from ::1"), "{line}");
    }
    let mut client = adapter.client();
    client.write_all(&header()[..20]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    closed(client);
    assert!(adapter.line().contains("ended within"));
    adapter.app_has_nothing();
}

#[test]
fn a_peer_that_is_not_an_edge_is_refused_at_once() {
    let adapter = Adapter::with(true, "fd00::1".parse().unwrap(), ADAPTER_LIMITS);
    closed(adapter.client());
    assert_eq!(
        adapter.line(),
        "PROXY adapter: refused connections: 1 not from edges, 0 without a valid header, 0 while the app \
         did not listen; the last, from ::1: only edges may connect to this port"
    );
    adapter.app_has_nothing();
}

#[test]
fn a_late_header_is_refused() {
    let limits = Limits {
        header: Duration::from_millis(20),
        ..ADAPTER_LIMITS
    };
    let adapter = Adapter::with(true, Ipv6Addr::LOCALHOST, limits);
    let mut client = adapter.client();
    client.write_all(&header()[..27]).unwrap();
    closed(client);
    assert!(adapter.line().contains("did not come in time"));
    adapter.app_has_nothing();
    // A connection with a complete header has no deadline.
    let (mut client, mut app) = adapter.join();
    let late = adapter.client();
    closed(late);
    client.write_all(b"!").unwrap();
    app.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_client_of_an_app_that_does_not_listen_is_refused_with_the_reason() {
    let Adapter {
        ingress,
        app,
        lines,
    } = Adapter::start(true);
    drop(app);
    let mut client = patient(TcpStream::connect(ingress).unwrap());
    client.write_all(&header()).unwrap();
    closed(client);
    let line = lines.recv_timeout(PATIENCE).unwrap();
    assert!(line.contains("the app does not listen"), "{line}");
}

#[test]
fn a_connection_above_the_limit_waits_until_another_ends() {
    let limits = Limits {
        connections: 2,
        ..ADAPTER_LIMITS
    };
    let adapter = Adapter::with(true, Ipv6Addr::LOCALHOST, limits);
    let (first, second) = (adapter.join(), adapter.join());
    let mut third = adapter.client();
    third.write_all(&[&header()[..], b"3"].concat()).unwrap();
    adapter.app_has_nothing();
    drop(first);
    let mut bytes = [0];
    adapter.accept().read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"3");
    drop(second);
}

#[test]
fn refusals_are_counted_and_logged_at_intervals() {
    let limits = Limits {
        log_interval: Duration::from_millis(200),
        ..ADAPTER_LIMITS
    };
    let adapter = Adapter::with(true, "fd00::1".parse().unwrap(), limits);
    for _ in 0..50 {
        closed(adapter.client());
    }
    let mut refused = 0;
    let mut lines = 0;
    while refused < 50 {
        let line = adapter.line();
        let (_, rest) = line.split_once("connections: ").unwrap();
        refused += rest.split(' ').next().unwrap().parse::<u32>().unwrap();
        lines += 1;
    }
    assert_eq!(refused, 50);
    assert!(lines < 50, "{lines} lines");
}

/// The forwarder, listening on loopback of IPv6 where nothing steers connections to it; the test is the client, and
/// the app on the same port elsewhere.
struct Forwarded {
    address: SocketAddr,
    ports: std::fs::File,
    lines: mpsc::Receiver<String>,
}

impl Forwarded {
    fn start(connections: usize) -> Self {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let tables = ["/proc/net/tcp", "/proc/net/tcp6"]
            .map(|path| std::fs::File::open(path).unwrap().into());
        let (ports, notices) = rustix::pipe::pipe().unwrap();
        let listener = listener.into();
        let port = Port::Forwarded {
            targets: Targets::new(tables.into(), &listener),
            fd: listener,
            notices: Notices::new(notices),
        };
        let limits = Limits {
            connections,
            ..Limits::of_forwarder(256 << 20)
        };
        let (line, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let error = serve("forwarder", vec![port], limits, |text| {
                let _ = line.send(text.to_owned());
            });
            panic!("{error}");
        });
        Self {
            address,
            ports: ports.into(),
            lines,
        }
    }

    fn app(&self, host: &str) -> TcpListener {
        TcpListener::bind(SocketAddr::new(host.parse().unwrap(), self.address.port())).unwrap()
    }

    fn client(&self) -> TcpStream {
        patient(TcpStream::connect(self.address).unwrap())
    }
}

#[test]
fn a_forwarded_connection_reaches_the_app_wherever_it_listens_now() {
    let mut forwarded = Forwarded::start(64);
    for host in ["127.0.0.1", "0.0.0.0", "127.0.0.9"] {
        let app = forwarded.app(host);
        for _ in 0..2 {
            let client = forwarded.client();
            let (app, peer) = app.accept().unwrap();
            assert_eq!(peer.ip(), Ipv4Addr::LOCALHOST);
            a_mebibyte_each_way(&(client, patient(app)));
        }
        drop(app);
        // As a connection to a port that nobody listens on.
        closed(forwarded.client());
    }
    // Each port is reported once.
    let mut port = [0; 2];
    forwarded.ports.read_exact(&mut port).unwrap();
    assert_eq!(u16::from_ne_bytes(port), forwarded.address.port());
    rustix::io::ioctl_fionbio(&forwarded.ports, true).unwrap();
    let error = forwarded.ports.read(&mut port).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    let line = forwarded.lines.recv_timeout(PATIENCE).unwrap();
    assert!(
        line.starts_with(
            "forwarder: refused connections: 0 not from edges, 0 without a valid header, 1 while"
        ),
        "{line}"
    );
}

#[test]
fn the_forwarders_bounds_follow_from_the_guests_memory() {
    let of = |mebibytes: u64| Limits::of_forwarder(mebibytes << 20);
    let connections = [32, 128, 256, 1024, 65536].map(|mebibytes| of(mebibytes).connections);
    assert_eq!(connections, [512, 1024, 2048, 8192, 16384]);
    assert_eq!((of(128).held, of(4096).held), (4 << 20, 16 << 20));
}

#[test]
fn a_forwarded_connection_above_the_limit_waits_until_another_ends() {
    let forwarded = Forwarded::start(1);
    let app = forwarded.app("127.0.0.1");
    let (first, mut second) = (forwarded.client(), forwarded.client());
    let (accepted, _) = app.accept().unwrap();
    second.write_all(b"ping").unwrap();
    app.set_nonblocking(true).unwrap();
    assert_eq!(app.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    app.set_nonblocking(false).unwrap();
    drop((first, accepted));
    let (mut accepted, _) = app.accept().unwrap();
    let mut bytes = [0; 4];
    accepted.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ping");
}
