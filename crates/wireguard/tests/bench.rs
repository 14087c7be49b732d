//! The data path beside wireguard-go's, in the same run (`make bench`): a pair of network namespaces, one core for both ends.
//!
//! `WIREGUARD_GO_CURRENT` names a wireguard-go that is newer than Debian 12's (that of sid's package runs on Debian 12: `dpkg -x`), `BORINGTUN` a `boringtun-cli`
//! (`cargo install boringtun-cli`); without one its row is missing. On a machine that does other things, run it with `nice -n -18`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "what is measured is printed")]

#[allow(dead_code, reason = "each file uses what it needs")]
mod support;

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{
    PORT, carries, give_addresses, inside, key_pair, many_peers, settings, two_machines,
};
use test_namespaces::{PATIENCE, eventually, isolated, shell, within};
use wireguard::control::{Client, Request};
use wireguard::settings::{Key, PeerSettings, Settings};

/// What is measured: the program of this crate, or what WIREGUARD_PROGRAM names (`platform`, which has more in it).
fn program() -> String {
    let own = env!("CARGO_BIN_EXE_wireguard-interface");
    std::env::var("WIREGUARD_PROGRAM").unwrap_or_else(|_| own.to_owned())
}

/// Rounds of a question and its answer.
const ROUNDS: usize = 20_000;
/// How long segments are sent, in seconds.
const SECONDS: u32 = 8;

/// Interfaces at `a` and `b` that are processes.
struct Pair {
    children: Vec<Child>,
}

impl Pair {
    fn ours(offload: bool) -> Self {
        let start = |machine: &str, number, peer: (u8, Option<&str>)| {
            let control = format!("/run/{machine}.sock");
            let mut command = Command::new("ip");
            command.args(["netns", "exec", machine]);
            command.args([&program(), "wireguard"]);
            command.args(["--name", "wg0", "--port", "51820", "--mtu", "1420"]);
            command.args(["--control", &control]);
            if !offload {
                command.arg("--no-offload");
            }
            let child = command.stdout(Stdio::null()).spawn().unwrap();
            set(machine, &settings(number, &[peer]));
            give_addresses(machine, number);
            child
        };
        let children = vec![
            start("a", 1, (2, Some("10.0.0.2:51820"))),
            start("b", 2, (1, Some("10.0.0.1:51820"))),
        ];
        Self { children }
    }

    /// Processes of another program that takes the options of wireguard-go and is told its settings by `wg`.
    fn by_wg(program: &str) -> Self {
        let start = |machine: &str, number: u8, peer: u8| {
            // Each has a folder of control sockets of its own: both have the name wg0.
            let inside_of =
                "mkdir -p /run/wireguard; mount -t tmpfs tmpfs /run/wireguard; exec \"$0\" -f wg0";
            let child = Command::new("ip")
                .args(["netns", "exec", machine, "unshare", "--mount"])
                .args(["sh", "-c", inside_of, program])
                .env("WG_PROCESS_FOREGROUND", "1")
                .env("WG_SUDO", "true")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::fs::write("/run/key", key_pair(number).0.0.to_string()).unwrap();
            let line = format!(
                "nsenter --target {} --mount --net wg set wg0 private-key /run/key listen-port {PORT} peer {} allowed-ips {}/64 endpoint 10.0.0.{peer}:{PORT}",
                child.id(),
                key_pair(peer).1,
                inside(peer).0.address
            );
            eventually("its interface is set", || {
                let set = Command::new("sh")
                    .args(["-c", &line])
                    .stderr(Stdio::null())
                    .status();
                set.unwrap().success().then_some(())
            });
            give_addresses(machine, number);
            child
        };
        Self {
            children: vec![start("a", 1, 2), start("b", 2, 1)],
        }
    }

    /// Processor time of both so far.
    fn cpu(&self) -> Duration {
        let of = |child: &Child| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
            let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
            let ticks: u64 =
                fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
            Duration::from_millis(ticks * 10)
        };
        self.children.iter().map(of).sum()
    }

    /// The most memory that one of them had, in MiB.
    fn memory(&self) -> f64 {
        let of = |child: &Child| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
            let line = status
                .lines()
                .find(|line| line.starts_with("VmHWM"))
                .unwrap();
            line.split_ascii_whitespace()
                .nth(1)
                .unwrap()
                .parse::<f64>()
                .unwrap()
                / 1024.0
        };
        self.children.iter().map(of).fold(0.0, f64::max)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for machine in ["a", "b"] {
            eventually("the device is gone", || {
                (!shell(&format!("ip -n {machine} -o link")).contains("wg0")).then_some(())
            });
            let _ = std::fs::remove_file(format!("/run/{machine}.sock"));
        }
    }
}

fn set(machine: &str, settings: &Settings) {
    let request = Request::Set(Box::new(settings.clone()));
    let path = PathBuf::from(format!("/run/{machine}.sock"));
    eventually("the interface answers", || {
        Client::connect(&path).ok()?.ask(&request).ok()
    });
}

/// Throughput of TCP from `a` to `b`, in Gbit/s.
fn throughput() -> f64 {
    let mut server = Command::new("ip")
        .args(["netns", "exec", "b", "iperf3", "-s", "-1"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("iperf3 listens", || {
        let listening = shell("ip netns exec b ss -Htln 'sport = :5201'");
        (!listening.is_empty()).then_some(())
    });
    let rate = sent_to_iperf3(SECONDS);
    // One that was asked for nothing waits for ever.
    let _ = server.kill();
    server.wait().unwrap();
    rate.unwrap_or_else(|why| panic!("nothing is measured: {why}"))
}

/// What iperf3 in `b` receives from `a`, in Gbit/s.
fn sent_to_iperf3(seconds: u32) -> Result<f64, String> {
    // A connection that stalls is a failure, and is named.
    let limit = (seconds + 30).to_string();
    let output = Command::new("timeout")
        .args([&limit, "ip", "netns", "exec", "a", "iperf3", "-J"])
        .args(["-c", &inside(2).1.to_string(), "-t", &seconds.to_string()])
        .output()
        .unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("iperf3 does not end in {limit} s: {}", output.status))?;
    // With -J it ends with success even where there is no server (3.12).
    if let Some(error) = answer["error"].as_str() {
        return Err(error.to_owned());
    }
    let rate = answer["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(rate.ok_or("iperf3 does not say what was received")? / 1e9)
}

/// The median of how long a question takes to its answer, in microseconds.
fn round_trip() -> f64 {
    let address = SocketAddr::from((inside(2).1, 7));
    let echo = within("b", move || UdpSocket::bind(address).unwrap());
    let asking = within("a", move || {
        let socket = UdpSocket::bind("[::]:0").unwrap();
        socket.connect(address).unwrap();
        socket
    });
    asking.set_read_timeout(Some(PATIENCE)).unwrap();
    let answering = std::thread::spawn(move || {
        let mut buffer = [0; 64];
        for _ in 0..ROUNDS {
            let (length, from) = echo.recv_from(&mut buffer).unwrap();
            echo.send_to(&buffer[..length], from).unwrap();
        }
    });
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            asking.send(b"?").unwrap();
            asking.recv(&mut [0; 64]).unwrap();
            begun.elapsed()
        })
        .collect();
    answering.join().unwrap();
    times.sort_unstable();
    times[ROUNDS / 2].as_secs_f64() * 1e6
}

/// Everything that is started from here is on one core.
fn stay_on_one_core() {
    shell(&format!("taskset -pc 0 {} >/dev/null", std::process::id()));
    for thread in std::fs::read_dir("/proc/self/task").unwrap() {
        let thread = thread.unwrap().file_name().into_string().unwrap();
        shell(&format!("taskset -pc 0 {thread} >/dev/null"));
    }
}

#[test]
#[ignore = "a measurement: make bench"]
fn nothing_is_measured_where_nobody_listens() {
    if !isolated("nothing_is_measured_where_nobody_listens") {
        return;
    }
    two_machines();
    let pair = Pair::ours(true);
    carries("a", ("b", 2), 1000);
    let why = sent_to_iperf3(1).unwrap_err();
    assert!(why.contains("Connection refused"), "{why}");
    drop(pair);
}

#[test]
#[ignore = "a measurement: make bench"]
fn the_data_path_beside_wireguard_go() {
    if !isolated("the_data_path_beside_wireguard_go") {
        return;
    }
    two_machines();
    stay_on_one_core();
    println!("interface                 Gbit/s  CPU s/Gbit  round trip us  MiB");
    let current = std::env::var("WIREGUARD_GO_CURRENT").ok();
    let boringtun = std::env::var("BORINGTUN").ok();
    let kinds: [(&str, &dyn Fn() -> Option<Pair>); 5] = [
        ("ours", &|| Some(Pair::ours(true))),
        ("ours, no offloads", &|| Some(Pair::ours(false))),
        ("wireguard-go of Debian", &|| {
            Some(Pair::by_wg("wireguard-go"))
        }),
        ("wireguard-go, current", &|| {
            current.as_deref().map(Pair::by_wg)
        }),
        ("boringtun", &|| boringtun.as_deref().map(Pair::by_wg)),
    ];
    for (name, start) in kinds {
        let Some(pair) = start() else { continue };
        carries("a", ("b", 2), 1 << 20);
        let round_trip = round_trip();
        let before = pair.cpu();
        let rate = throughput();
        let each = pair.cpu().saturating_sub(before).as_secs_f64() / (rate * f64::from(SECONDS));
        let memory = pair.memory();
        println!("{name:<24}  {rate:6.2}  {each:10.3}  {round_trip:13.0}  {memory:5.1}");
    }
}

#[test]
#[ignore = "a measurement: make bench"]
fn round_trips_by_turns_with_boringtun() {
    const TURNS: usize = 7;
    if !isolated("round_trips_by_turns_with_boringtun") {
        return;
    }
    let Ok(boringtun) = std::env::var("BORINGTUN") else {
        println!("round trips by turns: BORINGTUN names no program");
        return;
    };
    two_machines();
    stay_on_one_core();
    // By turns: other work of the machine then slows both.
    let measured = |pair: Pair| {
        carries("a", ("b", 2), 1000);
        let took = round_trip();
        drop(pair);
        took
    };
    let (mut ours, mut theirs): (Vec<f64>, Vec<f64>) = (0..TURNS)
        .map(|_| {
            (
                measured(Pair::ours(true)),
                measured(Pair::by_wg(&boringtun)),
            )
        })
        .unzip();
    let turns = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs);
    let mut ratios: Vec<f64> = turns.collect();
    for times in [&mut ours, &mut theirs, &mut ratios] {
        times.sort_unstable_by(f64::total_cmp);
    }
    let middle = TURNS / 2;
    println!(
        "round trips by turns: ours {:.1} us (least {:.1}), boringtun {:.1} us (least {:.1}), ratio {:.2} (of the least {:.2})",
        ours[middle],
        ours[0],
        theirs[middle],
        theirs[0],
        ratios[middle],
        ours[0] / theirs[0]
    );
    assert!(ratios[middle] <= 1.1, "{ratios:?}");
}

#[test]
#[ignore = "a measurement: make bench"]
fn changes_of_the_membership_on_real_peers() {
    const PEERS: u8 = 50;
    const CHANGES: u32 = 200;
    if !isolated("changes_of_the_membership_on_real_peers") {
        return;
    }
    // A bridge with 51 machines on it.
    shell("ip netns add sw; ip -n sw link add name br0 type bridge; ip -n sw link set br0 up");
    let mut children = Vec::new();
    let own = |number: u8, extra: &[(Key, PeerSettings)]| {
        let endpoints: Vec<_> = (1..=PEERS + 1)
            .filter(|other| *other != number)
            .map(|other| (other, format!("10.0.0.{other}:51820")))
            .collect();
        let peers: Vec<_> = endpoints
            .iter()
            .map(|(n, e)| (*n, Some(e.as_str())))
            .collect();
        let mut settings = settings(number, &peers);
        settings.peers.extend(extra.iter().cloned());
        settings
    };
    for number in 1..=PEERS + 1 {
        let machine = format!("m{number}");
        // All machines here share one kernel's table of neighbours, which has 1,024 places: those that are set by hand take none.
        let others = (1..=PEERS + 1).filter(|other| *other != number);
        let neighbours = others.map(|other| {
            format!(
                "neigh add 10.0.0.{other} lladdr 02:00:00:00:00:{other:02x} nud permanent dev eth0"
            )
        });
        let neighbours = neighbours.collect::<Vec<_>>().join("\\n");
        shell(&format!(
            "ip netns add {machine}
             ip link add eth0 address 02:00:00:00:00:{number:02x} netns {machine} type veth peer name p{number} netns sw
             ip -n sw link set p{number} master br0 up; ip -n {machine} link set eth0 up
             ip -n {machine} addr add 10.0.0.{number}/24 dev eth0; ip -n {machine} link set lo up
             printf '{neighbours}\\n' | ip -n {machine} -batch -"
        ));
        let child = Command::new("ip")
            .args(["netns", "exec", &machine, &program(), "wireguard"])
            .args(["--name", "wg0", "--port", "51820", "--mtu", "1420"])
            .args(["--control", &format!("/run/{machine}.sock")])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        children.push(child);
        set(&machine, &own(number, &[]));
        give_addresses(&machine, number);
    }
    for number in 2..=PEERS + 1 {
        carries("m1", (&format!("m{number}"), number), 1000);
    }
    // A member joins, the next time it leaves: all 51 are told.
    let joined: Vec<_> = many_peers(1).collect();
    let mut times: Vec<Duration> = (0..CHANGES)
        .map(|round| {
            let extra = if round % 2 == 0 { &joined[..] } else { &[] };
            let begun = Instant::now();
            for number in 1..=PEERS + 1 {
                set(&format!("m{number}"), &own(number, extra));
            }
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    let at =
        |share: u32| times[usize::try_from(CHANGES * share / 100).unwrap()].as_secs_f64() * 1e3;
    println!(
        "a change of the membership on 51 members, 50 peers each: {:.1} ms p50, {:.1} ms p99",
        at(50),
        at(99)
    );
    assert!(at(99) < 1000.0);
    // 1,000 peers, and a connection that goes on meanwhile.
    let thousand: Vec<_> = many_peers(1000).collect();
    let begun = Instant::now();
    set("m1", &own(1, &thousand));
    let took = begun.elapsed();
    carries("m1", ("m2", 2), 1 << 20);
    let status = std::fs::read_to_string(format!("/proc/{}/status", children[0].id())).unwrap();
    let memory = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    println!(
        "1,000 peers more: {:.1} ms, {memory}",
        took.as_secs_f64() * 1e3
    );
    for mut child in children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
