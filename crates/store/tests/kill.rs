//! What was acknowledged survives `kill -9`: a child writes in a loop and says so after each write; it is killed in the middle,
//! again and again on the same store. On PostgreSQL the next child takes the lease from the one that was killed.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it saw"
)]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use model::{InstanceId, NodeId};
use scheduler::apply::apply;
use scheduler::changes::Changes;
use support::*;

/// Tells the child where the store is.
const STORE: &str = "PLATFORM_TEST_STORE";
/// Times the child is killed in a test run.
const KILLS: u32 = 12;
/// And in a measurement (ADR 0001), on so many stores: one that grows for long takes long to be looked at.
const MANY_KILLS: u32 = 2_000;
const MANY_STORES: u32 = 20;
/// Writes that a child acknowledges before it is killed, at most, and a few more by chance.
const WRITES: u32 = 15;

fn app(number: u32) -> String {
    format!("app-{number}")
}

/// Not a test: the child. It does nothing when run among the tests.
#[tokio::test]
async fn child_that_writes() {
    let Ok(url) = std::env::var(STORE) else {
        return;
    };
    let store = open_at(&url).await;
    let mut cluster = store.load().await.unwrap();
    let first = cluster.last_network.0 + 1;
    let mut out = std::io::stdout();
    for number in first.. {
        let instance = placed(&app(number), number, InstanceId(number), NodeId(1));
        let mut changes = Changes::default();
        for command in [created(&app(number), number), instance] {
            changes.then(apply(&mut cluster, &command).unwrap());
        }
        store.write(store.term, &changes).await.unwrap();
        writeln!(out, "acknowledged {number}").unwrap();
        out.flush().unwrap();
    }
}

fn acknowledged_writes_survive(place: &Place, runtime: &tokio::runtime::Runtime, kills: u32) {
    let url = place.url();
    runtime.block_on(async {
        let store = place.open().await;
        add_node(&store, "box").await;
        store.close().await;
    });

    let (mut acknowledged, mut checked) = (0, 0);
    for kill in 1..=kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_writes", "--nocapture"])
            .env(STORE, &url)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let enough = acknowledged + 1 + kill % WRITES;
        let mut killed = false;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let Some(number) = line.split("acknowledged ").nth(1) else {
                continue;
            };
            acknowledged = number.parse().unwrap();
            if acknowledged >= enough && !killed {
                child.kill().unwrap(); // SIGKILL
                killed = true;
            }
        }
        child.wait().unwrap();
        assert!(killed, "the child ended by itself");

        runtime.block_on(async {
            // Whoever opens it leads: a transaction that the database has still is over then.
            let store = place.open().await;
            let cluster = store.load().await.unwrap();
            let written = cluster.last_network.0;
            // One more may have been committed and not said.
            assert!(
                (acknowledged..=acknowledged + 1).contains(&written),
                "{acknowledged} acknowledged, {written} there"
            );
            assert_eq!(cluster.envs.len(), written as usize);
            assert_eq!(cluster.instances.len(), written as usize);
            assert_eq!(cluster.nodes[&NodeId(1)].generation, u64::from(written) + 1);
            assert!(cluster.envs.values().all(|env| env.releases.len() == 1));
            checked += written - acknowledged;
            acknowledged = written;
            store.close().await;
        });
    }
    println!(
        "{}: {kills} kills, {acknowledged} writes are there, {checked} of them committed and not acknowledged",
        url.split(':').next().unwrap_or_default()
    );
    assert!(acknowledged >= kills);
}

#[test]
fn acknowledged_writes_survive_a_kill_on_sqlite() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    acknowledged_writes_survive(&Place::sqlite(), &runtime, KILLS);
}

#[test]
fn acknowledged_writes_survive_a_kill_on_postgres() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let place = runtime.block_on(Place::postgres());
    acknowledged_writes_survive(&place, &runtime, KILLS);
}

#[test]
#[ignore = "a measurement, and minutes: make bench"]
fn acknowledged_writes_survive_many_kills_on_both_stores() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for _ in 0..MANY_STORES {
        for place in [Place::sqlite(), runtime.block_on(Place::postgres())] {
            acknowledged_writes_survive(&place, &runtime, MANY_KILLS / MANY_STORES);
        }
    }
}
