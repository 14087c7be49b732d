//! A node that lies: packets from another env's or another node's addresses reach nobody. Then a stranger with the config of a node that was revoked.

use std::fs;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use wireguard::control::{Client, Request};

use crate::machines::{Machines, run as command, wait_for};
use crate::underlay::{BEHIND_NAT, Talk};

/// So long nobody answers: nobody will.
const SILENCE: Duration = Duration::from_secs(3);

/// Whether pings from a namespace with this source are answered.
fn is_answered(namespace: &str, source: &str, to: &str) -> bool {
    let mut ping = Machines::on(namespace, "busybox");
    ping.args(["ping", "-6", "-c", "2", "-W", "1", "-I", source, to]);
    let output = ping.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(text.starts_with("PING"), "busybox ping: {text}{errors}");
    text.contains("bytes from")
}

/// The packets of one source that a node's namespace sees: those that arrive, and those that its rules let pass.
struct Seen(String);

impl Seen {
    fn new(node: &str, source: &str) -> Self {
        let seen = Self(format!("--net=/run/netns/{}", Machines::namespace_of(node)));
        seen.nft("add table inet seen");
        for (counter, hook, priority) in [
            ("arrived", "prerouting", -400),
            ("passed", "postrouting", 400),
        ] {
            seen.nft(&format!(
                "add counter inet seen {counter}; add chain inet seen {hook} {{ type filter hook {hook} priority {priority}; }}; \
                 add rule inet seen {hook} ip6 saddr {source} counter name {counter}"
            ));
        }
        seen
    }

    fn nft(&self, script: &str) -> String {
        command("nsenter", &[&self.0, "nft", script])
    }

    fn count(&self, counter: &str) -> u64 {
        let text = self.nft(&format!("list counter inet seen {counter}"));
        let mut words = text
            .split_whitespace()
            .skip_while(|word| *word != "packets");
        words.nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.nft("delete table inet seen");
        }
    }
}

/// The address of an instance that does not exist: of the node of one address, in the env of another.
fn forged(node_of: &str, env_of: &str) -> String {
    let [node, env] = [node_of, env_of].map(|text| text.parse::<Ipv6Addr>().unwrap().segments());
    let [a, b, c, number, ..] = node;
    let [.., high, low, _, _] = env;
    Ipv6Addr::from([a, b, c, number, high, low, 0xffff, 0xfffe]).to_string()
}

/// The address that members probe each other at.
fn probe_address(address: &str, node: &str) -> String {
    let [a, b, c, ..] = address.parse::<Ipv6Addr>().unwrap().segments();
    let number = node.trim_start_matches('n').parse().unwrap();
    Ipv6Addr::from([a, b, c, number, 0, 0, 0, 2]).to_string()
}

pub(crate) fn run(machines: &mut Machines, _: &Talk) {
    let (prod, others) = (machines.instances("prod"), machines.instances("other"));
    // The liar runs nothing of the other env, so it has no business with its addresses.
    let runs_other = |node: &str| others.iter().any(|(_, of, _)| of == node);
    let is_liar = |node: &str| node != BEHIND_NAT && !runs_other(node);
    let mut webs = prod.iter().filter(|(process, ..)| process == "web");
    let (_, liar, own) = webs.find(|(_, node, _)| is_liar(node)).unwrap();
    let other_end = |(_, node, _): &&(String, String, String)| node != liar && node != BEHIND_NAT;
    let (_, victim, target) = prod.iter().find(other_end).unwrap();
    let (_, other_victim, other_target) = others.iter().find(other_end).unwrap();
    forges(liar, own, (victim, target), (other_victim, other_target));
    is_revoked(machines, liar, target);
}

/// What `liar`, which has the address `own`, reaches at a target of its env and at one of another.
fn forges(liar: &str, own: &str, target: (&str, &str), other_target: (&str, &str)) {
    let namespace = Machines::namespace_of(liar);
    let of_own_env = forged(own, own);
    let of_other_env = forged(own, other_target.1);
    let of_other_node = forged(target.1, own);
    for source in [&of_own_env, &of_other_env, &of_other_node] {
        let address = format!("{source}/128");
        let add = [
            "-n", &namespace, "addr", "add", &address, "dev", "lo", "nodad",
        ];
        command("ip", &add);
    }
    // So that nothing below is silent for another reason.
    let seen = Seen::new(target.0, &of_own_env);
    wait_for("an answer to a source of its own env", || {
        is_answered(&namespace, &of_own_env, target.1)
    });
    assert!(seen.count("passed") > 0);
    drop(seen);
    for (source, (node, address)) in [
        (&of_other_env, other_target),
        (&of_own_env, other_target),
        (&of_other_env, target),
    ] {
        let seen = Seen::new(node, source);
        wait_for("packets of a forged source", || {
            assert!(
                !is_answered(&namespace, source, address),
                "{source} reaches {address}"
            );
            seen.count("arrived") > 0
        });
        assert_eq!(seen.count("passed"), 0, "{source} reaches {address}");
    }
    // WireGuard drops what is of another node, before any rule.
    let seen = Seen::new(target.0, &of_other_node);
    assert!(!is_answered(&namespace, &of_other_node, target.1));
    assert_eq!(seen.count("arrived"), 0);
}

/// The node is revoked while a machine that the server does not know has its config, and its place in the overlay.
fn is_revoked(machines: &mut Machines, node: &str, target: &str) {
    machines.kill(node);
    crate::reboot(machines, node);
    Machines::make_machine("stranger", 60);
    // It hears nothing of the server, and goes on with what it has.
    command(
        "ip",
        &["-n", "stranger", "route", "add", "blackhole", "198.18.7.1"],
    );
    fs::create_dir(machines.path("stranger")).unwrap();
    for file in fs::read_dir(machines.path(node)).unwrap() {
        let file = file.unwrap();
        // What the node was to run is not copied: it matters to nobody here.
        if file.file_type().unwrap().is_file() && file.file_name() != "desired.json" {
            fs::copy(
                file.path(),
                machines.path("stranger").join(file.file_name()),
            )
            .unwrap();
        }
    }
    let control = machines.path("stranger.run/overlay/overlay.wireguard");
    machines.start_again("node", "stranger");
    wait_for("the namespace of the stranger", || {
        let links = command("ip", &["-n", "stranger", "-brief", "link"]);
        links.contains("plat-") && control.exists()
    });
    let namespace = Machines::namespace_of("stranger");
    let own = probe_address(target, node);
    let nodes: Vec<String> = (1..=5).map(|number| format!("n{number}")).collect();
    // The one behind a NAT would have to call it.
    let is_called = |other: &&String| *other != node && *other != BEHIND_NAT;
    let others: Vec<&String> = nodes.iter().filter(is_called).collect();
    let answers = |other: &str| is_answered(&namespace, &own, &probe_address(target, other));
    // It is taken for the node: who has its key is it. That is why it is revoked.
    for other in &others {
        wait_for("an answer to the stranger", || answers(other));
    }
    machines.ok(&["nodes", "revoke", node, "--no-wait"]);
    for other in &others {
        wait_for("no answer to the stranger", || !answers(other));
    }
    // With a process that begins anew, no peer even shakes hands.
    let status = || Client::connect(&control).and_then(|mut client| client.ask(&Request::Status));
    let pid = command("pgrep", &["--full", control.to_str().unwrap()]);
    command("kill", &["-9", pid.trim()]);
    wait_for("another process of the stranger's interface", || {
        let is_new = |pids: String| pids.split_whitespace().all(|other| other != pid.trim());
        status().is_ok_and(|status| status.peers.len() >= others.len())
            && is_new(command("pgrep", &["--full", control.to_str().unwrap()]))
    });
    let begun = Instant::now();
    while begun.elapsed() < SILENCE {
        for other in &others {
            assert!(!answers(other), "{other} answers one that is revoked");
        }
    }
    let peers = status().unwrap().peers;
    let asked = peers.values().filter(|peer| peer.sent > 0).count();
    assert!(asked >= others.len(), "{peers:?}");
    for (key, peer) in peers {
        assert_eq!((peer.received, peer.handshake_age_ms), (0, None), "{key}");
    }
    machines.kill("stranger");
}
