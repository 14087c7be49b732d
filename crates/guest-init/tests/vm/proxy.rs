//! The PROXY adapter in a guest, reached through a tap by an edge and by a neighbour. Needs root.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv6Addr, Shutdown, SocketAddrV6, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use guest_protocol::{ExecRequest, HostFrame, ProxyPort, Stream};
use model::instance::ProxyProtocol;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

use crate::machine::{Guest, Plan, Tools, config};

pub(crate) const GUEST: &str = "fd12:3456:789a:3:0:7:0:15";
/// In the platform's network, on another node.
pub(crate) const EDGE: &str = "fd12:3456:789a:4::1";
/// In the guest's env.
pub(crate) const NEIGHBOUR: &str = "fd12:3456:789a:3:0:7:0:16";
pub(crate) const TAP: &str = "tap0";
const PATIENCE: Duration = Duration::from_secs(60);
/// A PROXY v2 header: TCP over IPv4, from 192.0.2.7:4711 to 192.0.2.1:80.
pub(crate) const HEADER: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc0\x00\x02\x01\x12\x67\x00\x50";

/// Runs a test again in a network of its own, with a tap and the addresses of an edge and a
/// neighbour. True: this is that run.
pub(crate) fn has_a_network(test: &str) -> bool {
    const INSIDE: &str = "GUEST_INIT_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let network = format!(
        "ip link set lo up
         ip tuntap add dev {TAP} mode tap
         ip link set {TAP} mtu 1420 addrgenmode none up
         ip -6 addr add fe80::2/64 dev {TAP} nodad
         ip -6 addr add {EDGE}/128 dev lo nodad
         ip -6 addr add {NEIGHBOUR}/128 dev lo nodad
         ip -6 route add {GUEST}/128 dev {TAP}
         exec \"$@\""
    );
    let status = Command::new("unshare")
        .args(["--net", "--", "sh", "-ec", &network, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--include-ignored", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed in its network, see above");
    false
}

pub(crate) fn port(ingress: u16, port: u16, mode: ProxyProtocol) -> ProxyPort {
    ProxyPort {
        ingress,
        port,
        mode,
        peers: "fd12:3456:789a::".parse().unwrap(),
        peers_mask: "ffff:ffff:ffff:0:ffff:ffff::".parse().unwrap(),
    }
}

/// A connection from one address to a port of the guest.
pub(crate) fn dial(from: &str, port: u16) -> io::Result<TcpStream> {
    let address = |text: &str, port| {
        let address: Ipv6Addr = text.parse().unwrap();
        SocketAddrV6::new(address, port, 0, 0)
    };
    let socket = socket_with(
        AddressFamily::INET6,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    bind(&socket, &address(from, 0))?;
    connect(&socket, &address(GUEST, port))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends bytes, shuts down, and returns all that comes back.
pub(crate) fn exchange(from: &str, port: u16, words: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = dial(from, port)?;
    stream.write_all(words)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// As [`exchange`], once the app listens.
pub(crate) fn exchange_when_ready(from: &str, port: u16, words: &[u8]) -> Vec<u8> {
    let until = Instant::now() + PATIENCE;
    loop {
        match exchange(from, port, words) {
            Ok(answer) if !answer.is_empty() => return answer,
            tried => assert!(Instant::now() < until, "{from} to {port}: {tried:?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether the connection was closed without an answer.
fn is_refused(answer: io::Result<Vec<u8>>) -> bool {
    match answer {
        Ok(answer) => answer.is_empty(),
        Err(error) => matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::NotConnected
        ),
    }
}

pub(crate) fn platform_line(guest: &Guest, part: &str) {
    guest.wait(part, |seen| {
        let lines = seen.lines(Stream::Platform);
        lines.iter().any(|line| line.contains(part)).then_some(())
    });
}

#[test]
fn only_edges_reach_an_app_through_the_adapter() {
    let Some(tools) = Tools::find() else { return };
    let test = "proxy::only_edges_reach_an_app_through_the_adapter";
    if !has_a_network(test) {
        return;
    }
    // The adapter listens before the app runs. Root in the app's namespace sees nothing of it; what rights it has is
    // tested in `confinement.rs`.
    let script = r#"
        echo listening=$(grep -c ':EE49 .* 0A ' /proc/net/tcp6)
        echo seen=$(cat /proc/[0-9]*/comm | grep -c platform-proxy)
        nc -ll -p 8080 -e cat &
        nc -ll -p 9090 -e cat &
        echo ready
        wait
    "#;
    let mut config = config(script);
    config.network.address = GUEST.parse().unwrap();
    config.proxy = vec![
        port(61001, 8080, ProxyProtocol::Strip),
        port(61002, 9090, ProxyProtocol::V2),
    ];
    let mut guest = Plan {
        tap: Some(TAP),
        ..Plan::new(&tools, config)
    }
    .boot();
    guest.wait_line("ready");
    let begun = Instant::now();
    let mut late = dial(EDGE, 61001).unwrap();
    late.write_all(&HEADER[..27]).unwrap();

    let lines = guest.seen().lines(Stream::Stdout);
    let all = lines.join("\n");
    for line in ["listening=1", "seen=0"] {
        assert!(lines.iter().any(|known| known == line), "{line}\n{all}");
    }

    // An edge, by the ingress port; the app's own ports are plain for everyone.
    let with_header = [HEADER, b"hello"].concat();
    assert_eq!(exchange_when_ready(EDGE, 61001, &with_header), b"hello");
    assert_eq!(exchange_when_ready(EDGE, 61002, &with_header), with_header);
    assert_eq!(exchange(NEIGHBOUR, 8080, b"plain").unwrap(), b"plain");
    // A neighbour, and an edge that sends no PROXY v2 header.
    assert!(is_refused(exchange(NEIGHBOUR, 61001, &with_header)));
    assert!(is_refused(exchange(EDGE, 61001, b"GET / HTTP/1.1\r\n\r\n")));
    assert!(is_refused(exchange(
        EDGE,
        61001,
        b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 80\r\n"
    )));

    // A connection with a part of its header is closed after five seconds.
    match late.read(&mut [0]) {
        Ok(0) => {}
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        read => panic!("{read:?}"),
    }
    let waited = begun.elapsed();
    assert!(waited > Duration::from_millis(4500), "{waited:?}");
    platform_line(&guest, " 1 not from edges");

    // The app outlives the adapter: another adapter serves the connections that wait meanwhile.
    for round in 1..=2 {
        let kill = "echo 1 > /sys/fs/cgroup/proxy/cgroup.kill";
        guest.send(&HostFrame::Exec(ExecRequest {
            session: round,
            argv: ["sh", "-c", kill].map(str::to_owned).to_vec(),
            terminal: None,
            terminal_type: None,
            main: false,
        }));
        guest.wait("the kill", |seen| seen.exec.get(&round)?.exit.clone());
        guest.wait("the line", |seen| {
            let lines = seen.lines(Stream::Platform);
            let restarts = lines
                .iter()
                .filter(|line| line.contains("it is started again"));
            (restarts.count() == round as usize).then_some(())
        });
        assert_eq!(exchange(EDGE, 61001, &with_header).unwrap(), b"hello");
    }

    guest.send(&HostFrame::Stop { timeout_ms: 1 });
    let event = guest.finish();
    assert!(event.requested_stop && !event.oom_killed, "{event:?}");
}

#[test]
fn an_adapter_that_cannot_listen_fails_the_boot() {
    let Some(tools) = Tools::find() else { return };
    let mut config = config("true");
    config.proxy = vec![port(61001, 8080, ProxyProtocol::Strip); 2];
    let guest = Plan::new(&tools, config).boot();
    let failure = guest.wait("the failure", |seen| seen.failures.first().cloned());
    assert_eq!(failure.step, "start the PROXY adapter");
    assert_eq!(
        failure.reason,
        "listen on [fd00:1::15]:61001: Address already in use (os error 98)"
    );
}
