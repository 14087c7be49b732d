//! A node is cut off, from everybody or from one, or by the end of its WireGuard, and comes back: nothing is lost and nothing restarts.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::machines::{Machines, run as command, wait_for};
use crate::underlay::Talk;

/// So long no answer comes: nothing passes.
const SILENCE: Duration = Duration::from_secs(2);
/// How long traffic may pause when a WireGuard process was killed. The timers of its peers would take 15 s and more.
const GOAL: Duration = Duration::from_secs(8);

pub(crate) fn run(machines: &mut Machines, talk: &Talk) {
    let before = lives(machines);
    let pings = machines.ping("prod", &talk.address);

    // From everybody, the server among them.
    Machines::cut(&talk.to, true);
    pings.wait_for_silence(SILENCE);
    wait_for("the node to be offline", || !is_online(machines, &talk.to));
    Machines::cut(&talk.to, false);
    pings.wait_for_more("answers of the node that was cut off");
    wait_for("the node to be online", || is_online(machines, &talk.to));

    // From one peer. The server hears both.
    let machine = format!("--net=/run/netns/{}", talk.to);
    let number = talk.from.trim_start_matches('n').parse::<u32>().unwrap();
    let peer = match number {
        5 => "198.18.7.15".to_owned(),
        number => format!("198.18.7.{}", 10 + number),
    };
    let drops = format!(
        "table ip cut {{ chain input {{ type filter hook input priority filter; ip saddr {peer} drop; }}; }}"
    );
    command("nsenter", &[&machine, "nft", &drops]);
    pings.wait_for_silence(SILENCE);
    assert!(is_online(machines, &talk.to) && is_online(machines, &talk.from));
    command("nsenter", &[&machine, "nft", "delete table ip cut"]);
    pings.wait_for_more("answers of the peer that was cut off");

    // By the end of its WireGuard, of whose sessions its peers know nothing.
    let control = machines.path(&format!("{}.run/overlay/overlay.wireguard", talk.to));
    let pid = command("pgrep", &["--full", control.to_str().unwrap()]);
    let killed = Instant::now();
    command("kill", &["-KILL", pid.trim()]);
    wait_for("the end of the interface to be noticed", || {
        let log = machines.log(&talk.to);
        log.contains("the interface of the overlay is gone")
    });
    pings.wait_for_more("answers by another WireGuard process");
    let paused = pings.longest_gap(killed);
    eprintln!(
        "a WireGuard process was killed: traffic paused for {} ms; goal: at most {} ms",
        paused.as_millis(),
        GOAL.as_millis()
    );
    assert!(paused < GOAL, "{paused:?}");

    // Somebody sets its link to another MTU: it is put right.
    let namespace = Machines::namespace_of(&talk.to);
    let link = |words: &[&str]| {
        let first = ["-n", &namespace, "-oneline", "link"];
        command("ip", &[&first, words].concat())
    };
    link(&["set", "overlay", "mtu", "1290"]);
    wait_for("the MTU to be put right", || {
        link(&["show", "overlay"]).contains("mtu 1420 ")
    });
    pings.wait_for_more("answers with the MTU put right");
    pings.stop();
    assert_eq!(
        lives(machines),
        before,
        "an instance was replaced or restarted"
    );
}

fn is_online(machines: &Machines, name: &str) -> bool {
    let nodes = machines.json(&["nodes"]);
    let mut nodes = nodes.as_array().unwrap().iter();
    nodes.any(|node| node["name"] == name && node["online"] == true)
}

/// Which instances there are, and how often each was started again.
fn lives(machines: &Machines) -> Vec<(Value, Value)> {
    let all = machines.json(&["ps", "--app", "hello", "--env", "prod"]);
    let all = all.as_array().unwrap().iter();
    all.map(|one| (one["id"].clone(), one["restarts"].clone()))
        .collect()
}
