//! A hub fails under traffic: what went by it goes by another.

use std::time::{Duration, Instant};

use crate::machines::{Machines, wait_for};
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
