//! What happens to the network below the overlay: one cluster, on which each scenario is a file of its own.

use std::time::Instant;

use crate::machines::{Machines, isolated, wait_for};
use crate::{damage, fetch, hub_death, lying_node, manifest, partition, roaming};

/// Two instances on different nodes that talk: one is the worker, which speaks first.
pub(crate) struct Talk {
    /// The node of the worker.
    pub(crate) from: String,
    /// The node of a web server.
    pub(crate) to: String,
    /// The address of the web server.
    pub(crate) address: String,
}

/// The node behind a NAT.
pub(crate) const BEHIND_NAT: &str = "n5";

#[test]
fn the_overlay_goes_on_whatever_happens_to_the_network_below() {
    if !isolated("underlay::the_overlay_goes_on_whatever_happens_to_the_network_below") {
        return;
    }
    let begun = Instant::now();
    let mut machines = Machines::start_with(5, Some(5));
    // Each node has one: also that behind the NAT.
    machines.deploy("prod", &manifest(5));
    machines.deploy("other", &manifest(1));
    let instances = machines.instances("prod");
    let of = |process: &'static str| instances.iter().filter(move |(is, ..)| is == process);
    let worker = &of("worker").next().unwrap().1;
    let talk_with = |is: &dyn Fn(&str) -> bool| {
        let (_, to, address) = of("web").find(|(_, node, _)| is(node)).unwrap().clone();
        let from = worker.clone();
        Talk { from, to, address }
    };
    eprintln!("a cluster of five nodes: {} s", begun.elapsed().as_secs());

    // Nobody can call who is behind a NAT: it keeps its own calls alive, and is reached by them.
    let hidden = talk_with(&|node| node == BEHIND_NAT);
    if worker == BEHIND_NAT {
        assert_eq!(hidden.from, hidden.to);
    }
    wait_for("a page of the node behind a NAT", || {
        machines
            .in_worker("prod", &fetch(&hidden.address))
            .contains("<h1>")
    });
    let member = network_member(&machines, BEHIND_NAT);
    assert_eq!(member["is_behind_nat"], true, "{member}");

    let talk = talk_with(&|node| node != worker && node != BEHIND_NAT);
    for (what, scenario) in [
        ("a partition", partition::run as fn(&mut Machines, &Talk)),
        ("damage", damage::run),
        ("roaming", roaming::run),
        ("smaller underlays", roaming::smaller_underlays),
        ("a dead hub", hub_death::run),
        // The last: a node is revoked.
        ("a lying node", lying_node::run),
    ] {
        let begun = Instant::now();
        scenario(&mut machines, &talk);
        eprintln!("{what}: {} s", begun.elapsed().as_secs());
    }
}

/// What `platform network` shows of a member.
pub(crate) fn network_member(machines: &Machines, name: &str) -> serde_json::Value {
    let status = machines.json(&["network"]);
    let members = status["members"].as_array().unwrap();
    let mut named = members.iter().filter(|member| member["name"] == name);
    named.next().unwrap().clone()
}
