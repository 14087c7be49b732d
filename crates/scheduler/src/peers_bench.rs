//! Measurements of what members are told, for `make bench`.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "a measurement prints what it takes"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::enrollment::Member;
use model::NodeId;
use overlay::topology::{HubFaults, Mode};

use super::PeerIndex;
use crate::fixtures::cluster;

/// The least of several runs: another program on the machine makes one slow, not all.
fn least(mut run: impl FnMut()) -> Duration {
    let times = (0..5).map(|_| {
        let began = Instant::now();
        run();
        began.elapsed()
    });
    times.min().unwrap()
}

#[test]
#[ignore = "a measurement: make bench"]
fn topology_of_a_thousand_members() {
    let mut cluster = cluster(1000);
    for (number, node) in cluster.nodes.values_mut().enumerate() {
        node.region = format!("r{}", number % 5);
    }
    for (name, mode) in [("hubs", Mode::Hubs { local_mesh: 0 }), ("mesh", Mode::Mesh)] {
        cluster.settings.mode = mode;
        let index = PeerIndex::new(&cluster);
        let whole = least(|| drop(PeerIndex::new(&cluster)));
        // One leaves and comes back: a topology for each, and the members whose peers differ.
        let member = Member::Node(NodeId(500));
        let moved = least(|| {
            let (mut index, mut without) = (index.clone(), cluster.clone());
            without.nodes.remove(&NodeId(500));
            let told = index.update(&without, &[member], &Arc::default(), false);
            assert!(!told.is_empty());
        });
        // A hub is dead.
        let hub = Arc::new(HubFaults {
            dead: [NodeId(1)].into(),
            ..HubFaults::default()
        });
        let dead = least(|| drop(index.clone().update(&cluster, &[], &hub, false)));
        println!(
            "overlay of 1,000 members, {name}: computed in {whole:.1?}, one leaves {moved:.1?}, a hub is dead {dead:.1?}"
        );
        if mode != Mode::Mesh {
            for taken in [whole, moved, dead] {
                assert!(taken < Duration::from_millis(50), "{taken:?}");
            }
        }
    }
}
