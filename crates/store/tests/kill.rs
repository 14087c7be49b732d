//! What was acknowledged survives `kill -9`: a child writes in a loop and says so after each
//! write; it is killed in the middle, again and again on the same store.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use model::{InstanceId, NodeId};
use support::*;

/// Tells the child where the store is.
const FOLDER: &str = "PLATFORM_TEST_STORE_FOLDER";
/// Times the child is killed.
const KILLS: u32 = 6;
/// Writes that a child acknowledges before it is killed, and a few more by chance.
const WRITES: u32 = 15;

fn app(number: u32) -> String {
    format!("app-{number}")
}

/// Not a test: the child. It does nothing when run among the tests.
#[tokio::test]
async fn child_that_writes() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let store = open(Path::new(&folder)).await;
    let first = store.load().await.unwrap().last_network.0 + 1;
    let mut out = std::io::stdout();
    for number in first.. {
        let instance = placed(&app(number), number, InstanceId(number), NodeId(1));
        write(&store, vec![created(&app(number), number), instance]).await;
        writeln!(out, "acknowledged {number}").unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn acknowledged_writes_survive_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = open(folder.path()).await;
        add_node(&store, "box").await;
        store.close().await;
    });

    let mut acknowledged = 0;
    for _ in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_writes", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let enough = acknowledged + WRITES;
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
            let store = open(folder.path()).await;
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
            acknowledged = written;
            store.close().await;
        });
    }
    assert!(acknowledged >= KILLS * WRITES);
}
