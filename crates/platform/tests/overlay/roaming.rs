//! A machine's address changes, and its network's MTU: what goes on over the overlay goes on.

use std::process::Stdio;
use std::time::Instant;

use crate::machines::{Machines, run as command, wait_for};
use crate::underlay::{Talk, network_member};

pub(crate) fn run(machines: &mut Machines, talk: &Talk) {
    let number = 10 + talk.to.trim_start_matches('n').parse::<u32>().unwrap();
    let (old, new) = (
        format!("198.18.7.{number}/24"),
        format!("198.18.7.{}/24", number + 50),
    );
    let pings = machines.ping("prod", &talk.address);
    // A connection that is asked on after the move.
    let address = &talk.address;
    let script =
        format!("(sleep 15; printf 'GET / HTTP/1.0\\r\\n\\r\\n') | nc -w 60 {address} 8080");
    let connection = machines
        .exec("prod", "worker", &script)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let moved = Instant::now();
    // With its first address the others of that network would go as well.
    command("ip", &["-n", &talk.to, "addr", "del", &old, "dev", "eth0"]);
    command("ip", &["-n", &talk.to, "addr", "add", &new, "dev", "eth0"]);
    wait_for("the other endpoint", || {
        let endpoint = network_member(machines, &talk.to)["endpoint"].to_string();
        endpoint.contains(new.trim_end_matches("/24"))
    });
    pings.wait_for_more("answers from the other address");
    eprintln!(
        "a machine moved: traffic to it paused for {} ms",
        pings.longest_gap(moved).as_millis()
    );
    pings.stop();
    let answered = String::from_utf8(connection.wait_with_output().unwrap().stdout).unwrap();
    assert!(
        answered.contains("<h1>"),
        "the connection was lost: {answered}"
    );
}

/// The network of two becomes smaller than the overlay needs: that is shown with what to do, and what goes by it still arrives.
pub(crate) fn smaller_underlays(machines: &mut Machines, talk: &Talk) {
    for (mtu, advice) in [(1460, "--mtu 1380"), (1280, "--mtu 1280"), (1500, "")] {
        let text = mtu.to_string();
        // A network has one MTU for all that are on it: a link takes nothing larger than its own.
        for node in [&talk.from, &talk.to] {
            command("ip", &["-n", node, "link", "set", "eth0", "mtu", &text]);
        }
        wait_for("what to do about the MTU", || {
            let warnings = machines.json(&["network"])["warnings"].clone();
            let said = warnings.as_array().unwrap().iter().any(|warning| {
                let hint = warning["hint"].as_str().unwrap_or_default();
                hint.contains("--mtu")
            });
            match advice {
                "" => !said,
                advice => warnings.to_string().contains(advice),
            }
        });
        // As large as the overlay lets through.
        let said = machines.in_worker("prod", &format!("ping -c 3 -W 5 -s 1372 {}", talk.address));
        assert!(said.contains(" 0% packet loss"), "MTU {mtu}: {said}");
    }
}
