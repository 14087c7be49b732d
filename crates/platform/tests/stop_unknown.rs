//! `platform nodes stop-unknown`, by the command line: what a node runs and the store does not know ends when a user says so.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use api::enrollment::{EnrollRole, Hardware};
use api::node::{AgentSession, DriverChoice, InstanceReport, NodeReport, ReportDelta};
use api_client::ApiClient;
use membership::{Applicant, Membership, UnderlayOptions};
use model::instance::InstanceState;
use model::{EnvNetwork, Generation, InstanceId, Timestamp};

/// Longest wait for a condition.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A server in a folder, ended with this.
struct Server {
    dir: tempfile::TempDir,
    running: Option<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(running) = &mut self.running {
            let _ = running.kill();
            let _ = running.wait();
        }
    }
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let mut server = Self {
            dir: tempfile::tempdir().unwrap(),
            running: None,
        };
        let data_dir = server.dir.path().to_str().unwrap().to_owned();
        let words = ["server", "--listen", &address, "--data-dir", &data_dir];
        let mut command = server.command(&words);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        server.running = Some(command.spawn().unwrap());
        let end = Instant::now() + PATIENCE;
        while server.run(&["nodes"]).0 != 0 {
            assert!(Instant::now() < end, "the server does not answer");
            std::thread::sleep(POLL_INTERVAL);
        }
        server
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_platform"));
        command
            .args(words)
            .env("PLATFORM_CONFIG", self.dir.path().join("client.json"))
            .stdin(Stdio::null());
        command
    }

    /// Exit status, standard output, standard error.
    fn run(&self, words: &[&str]) -> (i32, String, String) {
        let Output {
            status,
            stdout,
            stderr,
        } = self.command(words).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status.code().unwrap(), text(stdout), text(stderr))
    }

    /// A machine joins as a node.
    async fn join_node(&self, data_dir: &Path) -> ApiClient {
        let (_, token, _) = self.run(&["tokens", "create", "--role", "node"]);
        let applicant = Applicant {
            role: EnrollRole::Node,
            server: None,
            token: Some(token.trim().to_owned()),
            name: "web-1".to_owned(),
            region: "local".to_owned(),
            hardware: hardware(),
            // A node of this machine may have the default port.
            underlay: UnderlayOptions {
                port: free_udp_port(),
                ..UnderlayOptions::default()
            },
        };
        let joined = Membership::load_or_join(data_dir, &applicant).await;
        joined.unwrap().client().unwrap()
    }
}

fn free_udp_port() -> u16 {
    let free = UdpSocket::bind("[::]:0").unwrap();
    free.local_addr().unwrap().port()
}

fn hardware() -> Hardware {
    Hardware {
        arch: "amd64".to_owned(),
        cpus: 2,
        memory_bytes: 4 << 30,
        ..Hardware::default()
    }
}

/// All that a node has: these instances, which run.
fn whole(sequence: u64, generation: Generation, instances: &[InstanceId]) -> ReportDelta {
    let running = |id: &InstanceId| {
        let state = InstanceState::Running {
            ready: true,
            started_at: Some(Timestamp(1)),
        };
        InstanceReport::new(*id, state)
    };
    let report = NodeReport {
        generation,
        driver: DriverChoice {
            name: "qemu-tcg".to_owned(),
            reason: "a test".to_owned(),
        },
        egress: None,
        hardware: hardware(),
        instances: instances.iter().map(running).collect(),
        volumes: Vec::new(),
        highest_network: EnvNetwork::default(),
        images: Vec::new(),
    };
    ReportDelta::whole(AgentSession(1), sequence, report)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_does_not_know_is_listed_and_stops_when_a_user_says_yes() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let node = server.join_node(folder.path()).await;
    let (kept, stopped) = (InstanceId(0xa), InstanceId(0xb));
    let said = whole(1, Generation::default(), &[kept, stopped]);
    node.report(&said).await.unwrap();
    let (_, listed, _) = server.run(&["nodes"]);
    assert!(listed.contains("0000000a 0000000b"), "{listed}");

    // Nobody is asked where there is no terminal, and nothing is done.
    let (status, _, stderr) = server.run(&["nodes", "stop-unknown", "web-1"]);
    assert_eq!(status, 1, "{stderr}");
    assert!(stderr.contains("--yes"), "{stderr}");
    let words = ["nodes", "stop-unknown", "web-1", "--yes", "0000000c"];
    let (status, _, stderr) = server.run(&words);
    assert_eq!(status, 1, "{stderr}");
    assert!(stderr.contains("has not reported 0000000c"), "{stderr}");
    let wait = Duration::from_millis(100);
    let state = node.desired(Generation::default(), wait).await.unwrap();
    assert!(state.is_none_or(|state| state.stop.is_empty()));

    // One of them: the command waits until the node has it no longer.
    let words = ["nodes", "stop-unknown", "n1", "0000000b", "--yes"];
    let mut command = server.command(&words);
    let mut command = command.stderr(Stdio::piped()).spawn().unwrap();
    let end = Instant::now() + PATIENCE;
    let mut has = Generation::default();
    let state = loop {
        assert!(Instant::now() < end, "the node is told to stop nothing");
        let newer = node.desired(has, Duration::from_secs(1)).await.unwrap();
        match newer {
            Some(state) if !state.stop.is_empty() => break state,
            Some(state) => has = state.generation,
            None => {}
        }
    };
    assert_eq!(state.stop, [stopped]);
    assert!(command.try_wait().unwrap().is_none(), "it waits");
    node.report(&whole(2, state.generation, &[kept]))
        .await
        .unwrap();
    let output = tokio::task::spawn_blocking(|| command.wait_with_output());
    let output = output.await.unwrap().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(
        stderr.contains("1 instances are gone from web-1 (n1)"),
        "{stderr}"
    );

    // All that are left, without waiting; then there are none.
    let words = ["nodes", "stop-unknown", "web-1", "--yes", "--no-wait"];
    let (status, _, stderr) = server.run(&words);
    assert_eq!(status, 0, "{stderr}");
    assert!(stderr.contains("is told to stop 1 instances"), "{stderr}");
    node.report(&whole(3, state.generation, &[])).await.unwrap();
    let (status, _, stderr) = server.run(&["nodes", "stop-unknown", "web-1"]);
    assert_eq!(status, 0, "{stderr}");
    assert!(
        stderr.contains("runs nothing that the store does not know"),
        "{stderr}"
    );
}
