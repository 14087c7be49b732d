//! Several servers on one store: who leads, and what a leader of before can still do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use model::{NodeId, Timestamp};
use scheduler::apply::Command;
use scheduler::cluster_state::{ClusterState, Scheduling};
use scheduler::fixtures::cluster;
use tokio::time::sleep;

use crate::computer::Cut;
use crate::scenario::in_simulated_time;
use crate::server::Server;
use crate::servers::Servers;
use crate::simulator::Simulator;
use crate::term::{CallFailure, LedTerm};

async fn three_servers() -> Servers {
    let servers = Servers::start(&Simulator::new(7), cluster(1), 3);
    one_leads(&servers, false).await;
    servers
}

async fn one_leads(servers: &Servers, was_set_back: bool) {
    servers.elects_one(was_set_back).await;
    assert_eq!(servers.simulator.violation(), None);
}

fn leader(servers: &Servers) -> (Server, Arc<LedTerm>) {
    let leading = servers.leading();
    assert_eq!(leading.len(), 1);
    let server = servers.all[leading[0]].clone();
    let led = server.led().unwrap();
    (server, led)
}

fn cordon(_: &ClusterState, _: Timestamp) -> Vec<Command> {
    vec![Command::SetScheduling {
        node: NodeId(1),
        scheduling: Scheduling::Cordoned,
    }]
}

fn is_cordoned(servers: &Servers) -> bool {
    let scheduling = |cluster: &ClusterState| cluster.nodes[&NodeId(1)].scheduling;
    servers.store.with(scheduling) == Scheduling::Cordoned
}

#[test]
fn case_a_leader_that_was_stopped_past_its_lease_wakes_and_changes_nothing() {
    for clock_stands in [false, true] {
        in_simulated_time(async {
            let servers = three_servers().await;
            let (server, led) = leader(&servers);
            server.computer.stop(clock_stands);
            sleep(Duration::from_secs(10)).await;
            let (other, later) = leader(&servers);
            assert!(other.computer.index != server.computer.index && later.term > led.term);

            // It does not know yet that it leads no longer.
            server.computer.resume();
            let refused = led.change(cordon).await;
            assert!(
                matches!(refused, Err(CallFailure::NoLeader(_))),
                "{refused:?}"
            );
            sleep(Duration::from_secs(20)).await;
            assert!(!is_cordoned(&servers));
            assert_eq!(leader(&servers).1.term, later.term);
            assert_eq!(servers.simulator.violation(), None);
        });
    }
}

#[test]
fn case_a_leader_that_is_cut_off_from_its_store_gives_way() {
    for cut in Cut::ALL {
        in_simulated_time(async {
            let servers = three_servers().await;
            let (server, led) = leader(&servers);
            server.computer.cut_from_store(cut);
            // Where only answers are lost, the database has its renewals, until it steps down.
            sleep(Duration::from_secs(20)).await;
            let (other, later) = leader(&servers);
            assert!(other.computer.index != server.computer.index && later.term > led.term);
            let refused = led.change(cordon).await;
            assert!(
                matches!(refused, Err(CallFailure::NoLeader(_))),
                "{refused:?}"
            );
            server.computer.heal();
            sleep(Duration::from_secs(20)).await;
            assert!(!is_cordoned(&servers));
            assert_eq!(leader(&servers).1.term, later.term);
            assert_eq!(servers.simulator.violation(), None);
        });
    }
}

#[test]
fn case_what_was_acknowledged_is_there_after_each_end_of_a_leader() {
    in_simulated_time(async {
        let servers = three_servers().await;
        for round in 0..20 {
            let scheduling = [Scheduling::Cordoned, Scheduling::Schedulable][round % 2];
            let set = move |_: &ClusterState, _| {
                vec![Command::SetScheduling {
                    node: NodeId(1),
                    scheduling,
                }]
            };
            assert!(servers.change(set).await);
            let (server, _) = leader(&servers);
            server.crash();
            one_leads(&servers, false).await;
            assert_eq!(is_cordoned(&servers), round % 2 == 0);
            assert_eq!(
                servers.with(|cluster| cluster.nodes[&NodeId(1)].scheduling),
                scheduling
            );
            server.start();
        }
    });
}

#[test]
fn case_a_database_whose_clock_is_set_has_one_leader_soon() {
    const HOUR_MS: i64 = 60 * 60 * 1000;
    for by in [HOUR_MS, -HOUR_MS] {
        for ends in [false, true] {
            in_simulated_time(async {
                let servers = three_servers().await;
                let (server, _) = leader(&servers);
                servers.store.step_clock(by);
                if ends {
                    server.crash();
                }
                sleep(Duration::from_secs(2)).await;
                one_leads(&servers, by < 0).await;
                assert!(servers.change(cordon).await);
                assert!(is_cordoned(&servers));
                sleep(Duration::from_secs(30)).await;
                one_leads(&servers, false).await;
            });
        }
    }
}
