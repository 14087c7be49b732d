//! What agents do with an interface: make it, find it again, set it, lose it, remove it. The process is the real one.
//!
//! Each test runs again in a network and mount namespace of its own, so that the machine is never touched.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each file uses what it needs")]
mod support;

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::{carries, inside, key_pair, settings, two_machines};
use test_namespaces::{agent, eventually, isolated, shell, spawn_within, within};
use wireguard::interface::{Interface, InterfaceOptions, Kind};
use wireguard::settings::Settings;

const PORT: u16 = 51820;

fn options(machine: &str, namespace: Option<&str>) -> InterfaceOptions {
    InterfaceOptions {
        name: "wg0".to_owned(),
        namespace: namespace.map(|name| PathBuf::from("/run/netns").join(name)),
        port: PORT,
        mtu: 1420,
        program: env!("CARGO_BIN_EXE_wireguard-interface").into(),
        run_dir: PathBuf::from("/run").join(machine),
        force_userspace: true,
    }
}

fn ensure(machine: &str, options: &InterfaceOptions, settings: &Settings) -> Kind {
    agent(machine, || async {
        let interface = Interface::ensure(options).await.unwrap();
        interface.set(settings).await.unwrap();
        interface.kind()
    })
}

/// The pid of the process whose link is there.
fn pid(run_dir: &Path) -> u32 {
    let control = run_dir.join("wg0.wireguard");
    let pids = shell(
        "for p in /proc/[0-9]*; do printf '%s ' \"$p\"; tr '\\0' ' ' <$p/cmdline; echo; done",
    );
    let found: Vec<u32> = pids
        .lines()
        .filter(|line| {
            line.contains("wireguard --name") && line.contains(control.to_str().unwrap())
        })
        .filter_map(|line| line.split(['/', ' ']).nth(2)?.parse().ok())
        .collect();
    assert_eq!(found.len(), 1, "{pids}");
    found[0]
}

/// A machine `a` whose link is in a namespace `inner`, and a machine `b` whose link is in its own.
fn two_interfaces() -> [InterfaceOptions; 2] {
    two_machines();
    shell("ip netns add inner");
    let all = [options("a", Some("inner")), options("b", None)];
    for (options, machine, number, peer) in [
        (&all[0], "a", 1, (2, Some("10.0.0.2:51820"))),
        (&all[1], "b", 2, (1, None)),
    ] {
        let kind = ensure(machine, options, &settings(number, &[peer]));
        assert_eq!(kind, Kind::Userspace);
    }
    support::give_addresses("inner", 1);
    support::give_addresses("b", 2);
    all
}

#[test]
fn a_link_in_another_namespace_carries_connections_and_outlives_its_agent() {
    if !isolated("a_link_in_another_namespace_carries_connections_and_outlives_its_agent") {
        return;
    }
    let [a, b] = two_interfaces();
    carries("inner", ("b", 2), 8 << 20);
    carries("b", ("inner", 1), 1 << 20);
    let process = pid(&a.run_dir);
    // Another agent goes on with it, and sets what differs: the session goes on.
    let (before, after) = agent("a", || async {
        let interface = Interface::ensure(&a).await.unwrap();
        let before = interface.status().await.unwrap();
        let peers = [(2, Some("10.0.0.2:51820")), (3, Some("10.0.0.3:51820"))];
        interface.set(&settings(1, &peers)).await.unwrap();
        (before, interface.status().await.unwrap())
    });
    assert_eq!(pid(&a.run_dir), process);
    let to_b = key_pair(2).1;
    assert!(before.peers[&to_b].handshake_age_ms.is_some());
    assert!(after.peers[&to_b].handshake_age_ms >= before.peers[&to_b].handshake_age_ms);
    assert_eq!(
        (before.peers.len(), after.peers.len(), after.port),
        (1, 2, PORT)
    );
    carries("inner", ("b", 2), 1000);
    // Nothing is left of it afterwards.
    for (machine, options) in [("a", &a), ("b", &b)] {
        agent(machine, || async {
            Interface::remove(options).await.unwrap();
            Interface::remove(options).await.unwrap();
        });
    }
    assert!(!shell("ip -n inner -o link; ip -n b -o link").contains("wg0"));
    assert_eq!(
        shell("ls /run/a /run/b"),
        "/run/a:\nwg0.lock\n\n/run/b:\nwg0.lock\n"
    );
    eventually("the process ended", || {
        (!Path::new(&format!("/proc/{process}")).exists()).then_some(())
    });
}

#[test]
fn the_process_has_no_rights_left() {
    if !isolated("the_process_has_no_rights_left") {
        return;
    }
    let [a, _b] = two_interfaces();
    let pid = pid(&a.run_dir);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = |name: &str| -> Vec<String> {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_ascii_whitespace()
            .skip(1)
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(value("Uid:"), ["65534"; 4]);
    assert_eq!(value("Gid:"), ["65534"; 4]);
    assert!(value("Groups:").is_empty());
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(value(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(value("NoNewPrivs:"), ["1"]);
    assert_eq!(value("Seccomp:"), ["2"]);
    assert_eq!(value("Threads:"), ["1"]);
    // It leads a session of its own, so no terminal ends it.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap();
    assert_eq!(session, pid.to_string());
    // Its memory has keys: it is root's to read, and so is its control socket to use.
    let environment = std::fs::metadata(format!("/proc/{pid}/environ")).unwrap();
    assert_eq!(environment.uid(), 0);
    let control = std::fs::metadata(a.run_dir.join("wg0.wireguard")).unwrap();
    assert_eq!((control.uid(), control.mode() & 0o777), (0, 0o600));
    let folder = std::fs::metadata(&a.run_dir).unwrap();
    assert_eq!(folder.mode() & 0o777, 0o700);
}

#[test]
fn a_process_that_waits_for_its_port_ends_with_its_agent() {
    if !isolated("a_process_that_waits_for_its_port_ends_with_its_agent") {
        return;
    }
    shell("ip link set lo up");
    let taken = std::net::UdpSocket::bind(("::", PORT)).unwrap();
    let line = format!(
        "{} wireguard --name wg0 --port {PORT} --mtu 1420 --control /run/wg0.wireguard & echo $!; wait",
        env!("CARGO_BIN_EXE_wireguard-interface")
    );
    let mut agent = std::process::Command::new("sh")
        .args(["-c", &line])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut pid = String::new();
    // It stays open: a process whose agent does not read ends when it says that it is up.
    let mut output = std::io::BufReader::new(agent.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut pid).unwrap();
    let stat = format!("/proc/{}/stat", pid.trim());
    // It sleeps between two looks at the port, in a session of its own.
    let waits = || {
        let stat = std::fs::read_to_string(&stat).unwrap();
        let fields: Vec<_> = stat.split_ascii_whitespace().collect();
        (fields[2] == "S" && fields[5] == pid.trim()).then_some(())
    };
    eventually("the process to wait for its port", waits);
    agent.kill().unwrap();
    agent.wait().unwrap();
    // It would come up now.
    drop(taken);
    eventually("the process to end", || {
        let stat = std::fs::read_to_string(&stat);
        stat.map_or(true, |stat| stat.contains(") Z "))
            .then_some(())
    });
    drop(output);
}

#[test]
fn an_interface_that_is_lost_is_noticed_and_made_again() {
    if !isolated("an_interface_that_is_lost_is_noticed_and_made_again") {
        return;
    }
    let [a, _b] = two_interfaces();
    let own = settings(1, &[(2, Some("10.0.0.2:51820"))]);
    let again = || {
        ensure("a", &a, &own);
        support::give_addresses("inner", 1);
        carries("inner", ("b", 2), 1000);
    };
    let first = pid(&a.run_dir);
    // Whoever waits for its end is told of each way to lose it.
    for lose in [
        format!("kill -9 {first}"),
        format!("kill -STOP {first}"),
        "ip -n inner link delete dev wg0".to_owned(),
    ] {
        let lose = lose.replace(&first.to_string(), &pid(&a.run_dir).to_string());
        agent("a", || async {
            let interface = Interface::ensure(&a).await.unwrap();
            let (ended, ()) = tokio::join!(
                tokio::time::timeout(Duration::from_secs(60), interface.ended()),
                async { drop(shell(&lose)) }
            );
            ended.unwrap();
            assert!(interface.status().await.is_err());
        });
        again();
    }
    // One that runs and answers nobody, for whom another listens here.
    agent("a", || async {
        let interface = Interface::ensure(&a).await.unwrap();
        let control = a.run_dir.join("wg0.wireguard");
        std::fs::rename(&control, a.run_dir.join("elsewhere")).unwrap();
        let _mute = std::os::unix::net::UnixListener::bind(&control).unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(60), interface.ended());
        ended.await.unwrap();
    });
    again();
    // One that was stopped, one whose socket was removed, and one of another port are replaced.
    for harm in [
        format!("kill -STOP {}", pid(&a.run_dir)),
        format!("rm {}", a.run_dir.join("wg0.wireguard").display()),
    ] {
        let before = pid(&a.run_dir);
        shell(&harm);
        again();
        eventually("the old process ended", || {
            (!Path::new(&format!("/proc/{before}/exe")).exists()).then_some(())
        });
        assert_ne!(pid(&a.run_dir), before);
    }
    let other = InterfaceOptions {
        port: PORT + 1,
        ..a.clone()
    };
    ensure("a", &other, &own);
    support::give_addresses("inner", 1);
    carries("inner", ("b", 2), 1000);
    let seen = agent("b", || async {
        let interface = Interface::ensure(&options("b", None)).await.unwrap();
        interface.status().await.unwrap().peers[&key_pair(1).1].endpoint
    });
    assert_eq!(seen, Some("10.0.0.1:51821".parse().unwrap()));
}

#[test]
fn a_process_that_takes_the_place_of_another_is_reached_at_once() {
    if !isolated("a_process_that_takes_the_place_of_another_is_reached_at_once") {
        return;
    }
    let [a, _b] = two_interfaces();
    carries("inner", ("b", 2), 1000);
    let at = "10.0.0.2:51820";
    let recorded = settings(1, &[(2, Some(at))]);
    // Nobody knows where this one is but the process that was there before.
    let mut roamed = settings(1, &[(2, None)]);
    roamed.seen = BTreeMap::from([(key_pair(2).1, at.parse().unwrap())]);
    for own in [recorded, roamed] {
        shell(&format!("kill -9 {}", pid(&a.run_dir)));
        // Its peer has a session with the process that was killed, and sends by it.
        let is_done = Arc::new(AtomicBool::new(false));
        let done = is_done.clone();
        let sending = spawn_within("b", move || {
            let socket = UdpSocket::bind((inside(2).1, 0)).unwrap();
            while !done.load(Ordering::Relaxed) {
                socket.send_to(b"x", (inside(1).1, 9)).unwrap();
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        ensure("a", &a, &own);
        support::give_addresses("inner", 1);
        // Well before its own timers say that nothing was answered, after 15 s.
        let receiver = within("inner", || UdpSocket::bind((inside(1).1, 9)).unwrap());
        receiver
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let mut buffer = [0; 16];
        let received = receiver.recv(&mut buffer);
        is_done.store(true, Ordering::Relaxed);
        sending.join().unwrap();
        assert_eq!(received.map_err(|error| error.to_string()), Ok(1));
    }
    // A change does not move it back.
    let seen = agent("a", || async {
        let interface = Interface::ensure(&a).await.unwrap();
        let changed = settings(1, &[(2, None), (3, None)]);
        interface.set(&changed).await.unwrap().peers[&key_pair(2).1].endpoint
    });
    assert_eq!(seen, at.parse().ok());
}

#[test]
fn the_mtu_changes_while_connections_go_on() {
    if !isolated("the_mtu_changes_while_connections_go_on") {
        return;
    }
    let [a, b] = two_interfaces();
    carries("inner", ("b", 2), 1000);
    let process = pid(&a.run_dir);
    // The last one is larger than the link between the machines: what is sent is cut.
    for mtu in [1280, 1420, 1500] {
        for (machine, options) in [("a", &a), ("b", &b)] {
            let options = InterfaceOptions {
                mtu,
                ..options.clone()
            };
            agent(machine, || async {
                Interface::ensure(&options).await.unwrap()
            });
        }
        let link = shell("ip -n inner -o link show dev wg0");
        assert!(link.contains(&format!("mtu {mtu} ")), "{link}");
        carries("inner", ("b", 2), 4 << 20);
    }
    // Somebody else sets it otherwise: that is seen, and put right.
    let largest = InterfaceOptions {
        mtu: 1500,
        ..a.clone()
    };
    for (harm, is_right) in [("mtu 1290", false), ("down", false), ("mtu 1500 up", true)] {
        let is_set = agent("a", || async {
            let interface = Interface::ensure(&largest).await.unwrap();
            assert!(interface.is_set(1500).await);
            shell(&format!("ip -n inner link set dev wg0 {harm}"));
            interface.is_set(1500).await
        });
        assert_eq!(is_set, is_right, "{harm}");
    }
    assert_eq!(pid(&a.run_dir), process);
}

#[test]
fn agents_at_once_make_one_interface() {
    if !isolated("agents_at_once_make_one_interface") {
        return;
    }
    two_machines();
    shell("ip netns add inner");
    let a = options("a", Some("inner"));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| agent("a", || async { Interface::ensure(&a).await.unwrap() }));
        }
    });
    pid(&a.run_dir);
    // A second one at the same port of the machine is refused, and says why.
    let other = InterfaceOptions {
        name: "wg1".to_owned(),
        ..a.clone()
    };
    let refused = agent("a", || async {
        Interface::ensure(&other).await.unwrap_err()
    });
    let text = refused.to_string();
    assert!(
        text.contains("UDP port 51820 of the WireGuard interface wg1 is taken by `"),
        "{text}"
    );
    assert!(text.contains("--overlay-port"), "{text}");
}

#[test]
fn impossible_options_and_settings_are_refused() {
    if !isolated("impossible_options_and_settings_are_refused") {
        return;
    }
    let [a, _b] = two_interfaces();
    let refused = |change: &dyn Fn(&mut InterfaceOptions)| {
        let mut options = a.clone();
        change(&mut options);
        agent("a", || async {
            Interface::ensure(&options).await.unwrap_err().to_string()
        })
    };
    assert!(refused(&|o| o.name = "wg/0".to_owned()).contains("letters, digits and hyphens"));
    assert!(refused(&|o| o.name = "a-name-of-16-byt".to_owned()).contains("1 to 15"));
    assert!(refused(&|o| o.mtu = 1279).contains("1280"));
    assert!(refused(&|o| o.port = 0).contains("65535"));
    let missing = refused(&|o| {
        o.namespace = Some("/run/netns/nowhere".into());
        o.name = "wg7".to_owned();
        o.port = PORT + 7;
    });
    assert!(
        missing.contains("cannot enter the network namespace of the link: No such file"),
        "{missing}"
    );
    let missing = refused(&|o| {
        o.program = "/run/no-such-program".into();
        o.name = "wg7".to_owned();
        o.port = PORT + 7;
    });
    assert!(missing.contains("/run/no-such-program"), "{missing}");
    let inside_of_itself = format!("[{}]:51820", inside(2).1);
    let error = agent("a", || async {
        let interface = Interface::ensure(&a).await.unwrap();
        let wrong = settings(1, &[(2, Some(&inside_of_itself))]);
        interface.set(&wrong).await.unwrap_err().to_string()
    });
    assert!(error.contains("inside of the tunnels"), "{error}");
}

#[test]
fn thousand_peers_are_configured_and_one_that_stays_loses_nothing() {
    if !isolated("thousand_peers_are_configured_and_one_that_stays_loses_nothing") {
        return;
    }
    let [a, _b] = two_interfaces();
    carries("inner", ("b", 2), 1000);
    let mut own = settings(1, &[(2, Some("10.0.0.2:51820"))]);
    own.peers.extend(support::many_peers(1000));
    let status = agent("a", || async {
        let interface = Interface::ensure(&a).await.unwrap();
        interface.set(&own).await.unwrap()
    });
    assert_eq!(status.peers.len(), 1001);
    carries("inner", ("b", 2), 8 << 20);
    let to_b = key_pair(2).1;
    let status = agent("a", || async {
        let interface = Interface::ensure(&a).await.unwrap();
        interface.status().await.unwrap()
    });
    // A process that is told of them begins nothing with them.
    let spoken = status.peers.iter().filter(|(_, peer)| peer.sent > 0);
    assert_eq!(spoken.map(|(key, _)| *key).collect::<Vec<_>>(), [to_b]);
    let few: BTreeMap<_, _> = own.peers.into_iter().take(500).collect();
    own.peers = few;
    own.peers
        .extend(settings(1, &[(2, Some("10.0.0.2:51820"))]).peers);
    let status = agent("a", || async {
        let interface = Interface::ensure(&a).await.unwrap();
        interface.set(&own).await.unwrap()
    });
    assert!(status.peers[&to_b].received > 8 << 20);
    carries("inner", ("b", 2), 1000);
}

#[test]
fn the_kernel_carries_packets_where_it_has_wireguard() {
    if !isolated("the_kernel_carries_packets_where_it_has_wireguard") {
        return;
    }
    let has_it = std::process::Command::new("ip")
        .args(["link", "add", "probe", "type", "wireguard"])
        .output()
        .unwrap();
    if !has_it.status.success() {
        eprintln!(
            "SKIPPED: this kernel has no WireGuard: {}",
            String::from_utf8_lossy(&has_it.stderr).trim()
        );
        return;
    }
    shell("ip link delete dev probe");
    two_machines();
    shell("ip netns add inner");
    // A mixed pair: the kernel here, a process there.
    let mut a = options("a", Some("inner"));
    a.force_userspace = false;
    let b = options("b", None);
    let own = settings(1, &[(2, Some("10.0.0.2:51820"))]);
    assert_eq!(ensure("a", &a, &own), Kind::Kernel);
    assert_eq!(ensure("b", &b, &settings(2, &[(1, None)])), Kind::Userspace);
    support::give_addresses("inner", 1);
    support::give_addresses("b", 2);
    carries("inner", ("b", 2), 8 << 20);
    carries("b", ("inner", 1), 8 << 20);
    let to_b = key_pair(2).1;
    // Another agent finds it; the session of a peer that stays goes on through a thousand others.
    let mut many = own.clone();
    many.peers.extend(support::many_peers(1000));
    let (before, with_many, after) = agent("a", || async {
        let interface = Interface::ensure(&a).await.unwrap();
        let before = interface.status().await.unwrap();
        let with_many = interface.set(&many).await.unwrap();
        (before, with_many, interface.set(&own).await.unwrap())
    });
    assert_eq!(
        (before.port, with_many.peers.len(), after.peers.len()),
        (PORT, 1001, 1)
    );
    assert!(after.peers[&to_b].handshake_age_ms >= before.peers[&to_b].handshake_age_ms);
    assert!(after.peers[&to_b].received >= 8 << 20);
    carries("inner", ("b", 2), 1000);
    // One that moved is not set back by the same settings.
    shell("ip -n b addr del 10.0.0.2/24 dev vb; ip -n b addr add 10.0.0.7/24 dev vb");
    carries("b", ("inner", 1), 1000);
    let moved = Some("10.0.0.7:51820".parse().unwrap());
    let seen = agent("a", || async {
        let interface = Interface::ensure(&a).await.unwrap();
        let seen = |status: wireguard::settings::Status| status.peers[&to_b].endpoint;
        let first = seen(interface.set(&own).await.unwrap());
        (first, seen(interface.set(&own).await.unwrap()))
    });
    assert_eq!(seen, (moved, moved));
    // Its loss is noticed, and a process takes over where that is wished.
    agent("a", || async {
        let interface = Interface::ensure(&a).await.unwrap();
        let (ended, ()) = tokio::join!(
            tokio::time::timeout(Duration::from_secs(20), interface.ended()),
            async { drop(shell("ip -n inner link delete dev wg0")) }
        );
        ended.unwrap();
        Interface::ensure(&a).await.unwrap();
    });
    a.force_userspace = true;
    assert_eq!(ensure("a", &a, &own), Kind::Userspace);
    agent("a", || async { Interface::remove(&a).await.unwrap() });
    assert!(!shell("ip -n inner -o link").contains("wg0"));
}
