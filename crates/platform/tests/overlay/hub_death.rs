//! A hub fails under traffic: what went by it goes by another.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::machines::{Machines, run as command, wait_for};
use crate::underlay::{Talk, network_member};

/// How long traffic over a hub that failed may pause (issue 14, ADR 0004).
const GOAL: Duration = Duration::from_secs(10);

pub(crate) fn run(machines: &mut Machines, talk: &Talk) {
    // Those that talk are no hubs, so that a hub relays.
    for node in [&talk.from, &talk.to] {
        machines.ok(&["nodes", "label", node, "hub=never"]);
    }
    machines.ok(&["network", "set", "--mode", "hubs"]);
    let home = |machines: &Machines| {
        let member = network_member(machines, &talk.from);
        member["home"].as_str().map(str::to_owned)
    };
    wait_for("a home", || home(machines).is_some());
    let hub = home(machines).unwrap();
    assert!(hub != talk.from && hub != talk.to, "{hub} relays");
    // Whoever is to notice that it fails has heard of it.
    let answers = |machines: &Machines| {
        let member = network_member(machines, &talk.from);
        let links = member["links"].as_object().unwrap().clone();
        let up = links.values().filter(|link| link["answers"] == true);
        up.count() == 2
    };
    wait_for("answers of both hubs", || answers(machines));
    is_cut_off(machines, talk, &hub);
    wait_for("answers of both hubs again", || answers(machines));
    let hub = home(machines).unwrap();
    let pings = machines.ping("prod", &talk.address);
    let failed = Instant::now();
    Machines::cut(&hub, true);
    wait_for("another home", || {
        home(machines).is_some_and(|other| other != hub)
    });
    pings.wait_for_more("answers by another hub");
    let paused = pings.longest_gap(failed);
    eprintln!(
        "a hub failed: traffic over it paused for {} ms; goal: at most {} ms",
        paused.as_millis(),
        GOAL.as_millis()
    );
    assert!(paused < GOAL, "{paused:?}");
    assert!(
        paused > Duration::from_millis(500),
        "it did not go by that hub"
    );

    // It is back, and a mesh again: nothing of it is lost on the way.
    let back = Instant::now();
    Machines::cut(&hub, false);
    machines.ok(&["network", "set", "--mode", "mesh"]);
    wait_for("the mesh", || home(machines).is_none());
    pings.wait_for_more("answers in the mesh");
    let paused = pings.longest_gap(back);
    assert!(paused < Duration::from_secs(2), "{paused:?}");
    pings.stop();
}

/// The node of the worker alone does not reach its home: it goes by another hub, and nobody else moves.
fn is_cut_off(machines: &Machines, talk: &Talk, hub: &str) {
    let homes = || -> Vec<(String, Value)> {
        let status = machines.json(&["network"]);
        let members = status["members"].as_array().unwrap().iter();
        let named = members.map(|one| {
            (
                one["name"].as_str().unwrap().to_owned(),
                one["home"].clone(),
            )
        });
        named.collect()
    };
    let before = homes();
    let number = 10 + hub.trim_start_matches('n').parse::<u32>().unwrap();
    let address = format!("198.18.7.{number}");
    let machine = format!("--net=/run/netns/{}", talk.from);
    let nft = |script: &str| command("nsenter", &[&machine, "nft", script]);
    let pings = machines.ping("prod", &talk.address);
    let cut_off = Instant::now();
    nft(&format!(
        "table ip cut {{ chain in {{ type filter hook input priority filter; ip saddr {address} drop; }};
         chain out {{ type filter hook output priority filter; ip daddr {address} drop; }}; }}"
    ));
    wait_for("another home of the one that is cut off", || {
        let home = network_member(machines, &talk.from)["home"].clone();
        home.as_str().is_some_and(|other| other != hub)
    });
    pings.wait_for_more("answers by the other hub");
    let paused = pings.longest_gap(cut_off);
    eprintln!(
        "a member did not reach its hub: its traffic paused for {} ms; goal: at most {} ms",
        paused.as_millis(),
        GOAL.as_millis()
    );
    assert!(paused < GOAL, "{paused:?}");
    assert!(
        paused > Duration::from_millis(500),
        "it did not go by that hub"
    );
    for ((name, before), (_, after)) in before.iter().zip(homes()) {
        assert!(
            name == &talk.from || *before == after,
            "{name}: {before}, {after}"
        );
    }
    // The path is mended: nothing moves at once, and nothing is lost.
    nft("delete table ip cut");
    pings.wait_for_more("answers after the path was mended");
    pings.stop();
}
