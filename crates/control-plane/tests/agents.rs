//! Thousands of agents on one server, measured. `make bench` runs it (`--ignored`); otherwise this program does nothing.
//!
//! The server is a process of its own, so that what it costs is told from what the agents cost. The agents are real in all that the
//! server sees: a connection with a certificate of its own each, long polls, reports as deltas. They run nothing.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a measurement fails by panicking, and prints what it measured"
)]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::enrollment::{EnrollRole, Hardware};
use api::node::{AgentSession, DesiredState, NodeReport};
use api::user::{CreateTokenRequest, RolloutPhase, ScaleRequest};
use api_client::{ApiClient, ClientConfig};
use futures_util::stream::{self, StreamExt as _};
use model::Generation;
use model::instance::InstanceSpec;
use node_core::report_sender::ReportSender;
use reqwest::header::LINK;
use sqlx::{Connection as _, SqliteConnection};
use support::registry::Registry;
use support::*;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// As in the `platform` binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const AGENTS: usize = 5_000;
const IDLE: Duration = Duration::from_secs(30);
/// Changes whose way is measured.
const CHANGES: u32 = 200;
/// Apps that are scaled at once, and by how many instances each.
const APPS: u32 = 200;
const MORE: u32 = 50;
const WRITERS: usize = 64;
const WRITING: Duration = Duration::from_secs(10);
/// The folder of the server, in the process that is it.
const FOLDER: &str = "AGENTS_FOLDER";
/// Kernel clock ticks a second, which `/proc` counts in (`sysconf(_SC_CLK_TCK)` on Linux).
const TICKS: f64 = 100.0;

/// The server of the measurement, in a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: make bench"]
async fn server_process() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let folder = Path::new(&folder);
    let server = Server::start(folder).await;
    let said = serde_json::json!({
        "url": server.ready.url, "config": server.ready.client_config,
    });
    std::fs::write(folder.join("said.new"), said.to_string()).unwrap();
    std::fs::rename(folder.join("said.new"), folder.join("said")).unwrap();
    std::future::pending::<()>().await;
}

struct Process {
    child: Child,
    url: String,
    config: ClientConfig,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    async fn start(folder: &Path, sync: Duration) -> Self {
        let child = with_slow_syncs("server_process", folder, sync)
            .spawn()
            .unwrap();
        let said = eventually("the server is ready", async || {
            let text = std::fs::read(folder.join("said")).ok()?;
            serde_json::from_slice::<serde_json::Value>(&text).ok()
        })
        .await;
        Self {
            child,
            url: said["url"].as_str().unwrap().to_owned(),
            config: ClientConfig::load(Path::new(said["config"].as_str().unwrap())).unwrap(),
        }
    }

    fn user(&self) -> ApiClient {
        ApiClient::user(&self.config).unwrap()
    }

    /// CPU so far, in seconds.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let fields: Vec<&str> = fields.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        ticks as f64 / TICKS
    }

    /// Memory, in MiB.
    fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        kib.parse::<f64>().unwrap() / 1024.0
    }

    /// Written to disk so far, in KiB.
    fn written(&self) -> f64 {
        let io = std::fs::read_to_string(format!("/proc/{}/io", self.child.id())).unwrap();
        let line = io.lines().find(|line| line.starts_with("write_bytes:"));
        let bytes = line.unwrap().split_whitespace().nth(1).unwrap();
        bytes.parse::<f64>().unwrap() / 1024.0
    }
}

/// When the last change of each app was asked for, and how long each new instance took to its agent.
#[derive(Default)]
struct Ways {
    asked: Mutex<BTreeMap<String, Instant>>,
    took: Mutex<Vec<Duration>>,
    arrived: AtomicU64,
    /// Reports that were answered.
    beats: AtomicU64,
    /// The first [`WRITERS`] agents report without a pause.
    hurry: watch::Sender<bool>,
    /// The agents do not ask for their desired state now; they are heard all the same.
    paused: watch::Sender<bool>,
}

/// One agent: its client and what it last got.
struct Agent {
    client: ApiClient,
    desired: Option<DesiredState>,
    sender: ReportSender,
    hardware: Hardware,
}

impl Agent {
    fn generation(&self) -> Generation {
        self.desired
            .as_ref()
            .map_or_else(Generation::default, |desired| desired.generation)
    }

    fn instances(&self) -> impl Iterator<Item = &InstanceSpec> {
        self.desired.iter().flat_map(|desired| &desired.instances)
    }

    async fn report(&mut self, ways: &Ways) {
        let instances = self.instances().map(|i| running(i.id)).collect();
        let now = NodeReport {
            hardware: self.hardware.clone(),
            ..report(self.generation(), instances)
        };
        let delta = self.sender.next(&now);
        if let Ok(answer) = self.client.report(&delta).await {
            let _ = self.sender.answered(answer);
            ways.beats.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn run(mut self, number: usize, ways: Arc<Ways>, stop: CancellationToken) {
        // Heartbeats of many agents are spread over the interval.
        let spread = self
            .sender
            .heartbeat_interval()
            .mul_f64(number as f64 / AGENTS as f64);
        let mut next = tokio::time::Instant::now() + spread;
        let client = self.client.clone();
        let paused = ways.paused.subscribe();
        let mut hurry = ways.hurry.subscribe();
        loop {
            let after = self.generation();
            let poll = async {
                let (mut begin, mut end) = (paused.clone(), paused.clone());
                // The sender outlives the agents.
                let _ = begin.wait_for(|paused| !paused).await;
                tokio::select! {
                    newer = client.desired(after, Duration::from_secs(50)) => newer,
                    _ = end.wait_for(|paused| *paused) => Ok(None),
                }
            };
            tokio::pin!(poll);
            let newer = loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    newer = &mut poll => break newer,
                    () = tokio::time::sleep_until(next) => {
                        self.report(&ways).await;
                        next += self.sender.heartbeat_interval();
                    }
                    () = hurried(&mut hurry), if number < WRITERS => self.report(&ways).await,
                }
            };
            match newer {
                Ok(Some(newer)) => {
                    let known: std::collections::BTreeSet<_> =
                        self.instances().map(|i| i.id).collect();
                    for instance in newer.instances.iter().filter(|i| !known.contains(&i.id)) {
                        let asked = ways.asked.lock().unwrap();
                        if let Some(asked) = asked.get(instance.app.as_str()) {
                            ways.took.lock().unwrap().push(asked.elapsed());
                        }
                        ways.arrived.fetch_add(1, Ordering::Relaxed);
                    }
                    self.desired = Some(newer);
                    self.report(&ways).await;
                }
                Ok(None) => {}
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }
}

/// Returns at once while there is a hurry.
async fn hurried(hurry: &mut watch::Receiver<bool>) {
    // The sender outlives the agents.
    let _ = hurry.wait_for(|hurry| *hurry).await;
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

/// Lets this process, and the server that it starts, have as many files open as the machine allows.
fn raise_open_files() {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let most: usize = line
        .unwrap()
        .split_whitespace()
        .nth(4)
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        most > 2 * AGENTS,
        "the limit of open files is {most}: `ulimit -Hn`"
    );
    let raised = Command::new("prlimit")
        .arg(format!("--nofile={most}:{most}"))
        .args(["--pid", &std::process::id().to_string()])
        .status();
    assert!(raised.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: make bench"]
async fn thousands_of_agents() {
    raise_open_files();
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(folder.path(), Duration::ZERO).await;
    let registry = Registry::start().await;
    let digest = registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello@{digest}", registry.host);

    let ways = Arc::new(Ways::default());
    let stop = CancellationToken::new();
    let tasks = tokio_util::task::TaskTracker::new();
    let started = Instant::now();
    let user = server.user();
    // Each begins as soon as it has joined: all are behind one address, which may have so many strangers at a time.
    let joining = stream::iter(0..AGENTS).map(|number| {
        let (user, url, tasks) = (&user, &server.url, &tasks);
        let (ways, stop) = (Arc::clone(&ways), stop.clone());
        async move {
            let joined = join(url, user, EnrollRole::Node).await;
            let agent = Agent {
                client: joined.client.clone(),
                desired: None,
                sender: ReportSender::new(AgentSession(1)),
                hardware: hardware(),
            };
            tasks.spawn(agent.run(number, ways, stop));
        }
    });
    joining.buffer_unordered(8).collect::<Vec<()>>().await;
    println!(
        "{AGENTS} agents joined in {:.1?}, server CPU {:.1} s",
        started.elapsed(),
        server.cpu()
    );
    tasks.close();
    eventually("all agents are heard", async || {
        let rows = user.nodes().await.unwrap();
        rows.iter().all(|row| row.online).then_some(())
    })
    .await;

    let (cpu, written) = (server.cpu(), server.written());
    tokio::time::sleep(IDLE).await;
    println!(
        "idle with {AGENTS} agents: {:.3} of a core, {:.0} MiB, {:.1} KiB/s written",
        (server.cpu() - cpu) / IDLE.as_secs_f64(),
        server.memory(),
        (server.written() - written) / IDLE.as_secs_f64(),
    );

    let apps: Vec<String> = (0..APPS).map(|n| format!("app{n}")).collect();
    for app in &apps {
        let text = manifest(app).replace("min = 2\nmax = 4", "min = 1\nmax = 1000");
        let request = api::user::DeployRequest {
            only: std::collections::BTreeSet::new(),
            manifest: text,
            image: image.clone(),
        };
        user.deploy(&env_key(app, "prod"), &request).await.unwrap();
    }
    let scale = async |app: &str, count: u32| {
        ways.asked
            .lock()
            .unwrap()
            .insert(app.to_owned(), Instant::now());
        let processes = BTreeMap::from([("web".parse().unwrap(), count)]);
        user.scale(&env_key(app, "prod"), &ScaleRequest { processes })
            .await
            .unwrap();
    };
    let arrived = |count: u64| eventually_arrived(&ways, count);
    arrived(u64::from(APPS)).await;
    ways.took.lock().unwrap().clear();
    for change in 0..CHANGES {
        let app = &apps[(change % APPS) as usize];
        scale(app, 2 + change / APPS).await;
        arrived(u64::from(APPS + change + 1)).await;
    }
    let mut took = std::mem::take(&mut *ways.took.lock().unwrap());
    took.sort_unstable();
    println!(
        "a change reaches its node: p50 {:.1?}, p99 {:.1?}",
        percentile(&took, 50),
        percentile(&took, 99)
    );

    // First what the server does alone: decide, write, publish. Then the way to the nodes, whose agents are on this machine, too.
    let before = ways.arrived.load(Ordering::Relaxed);
    ways.paused.send_replace(true);
    let count = 1 + CHANGES / APPS + MORE;
    let (started, cpu) = (Instant::now(), server.cpu());
    // All users are behind one address, which may have so many strangers at a time.
    let scaling = stream::iter(apps.iter().map(|app| scale(app, count)));
    scaling.buffer_unordered(32).collect::<Vec<()>>().await;
    eventually("the instances are placed", async || {
        let nodes = user.nodes().await.unwrap();
        let placed: u32 = nodes.iter().map(|row| row.instances).sum();
        (placed == APPS * count).then_some(())
    })
    .await;
    let (durable, placing) = (started.elapsed().as_secs_f64(), server.cpu() - cpu);
    ways.paused.send_replace(false);
    arrived(before + u64::from(APPS * MORE)).await;
    println!(
        "{} instances placed and durable in {durable:.2} s: {:.0} a second, server CPU {placing:.2} s; at their nodes after {:.2} s, {:.0} MiB",
        APPS * MORE,
        f64::from(APPS * MORE) / durable,
        started.elapsed().as_secs_f64(),
        server.memory()
    );

    eventually("everything is rolled out", async || {
        let envs = user.envs().await.unwrap();
        let mut envs = envs.iter();
        (envs.all(|env| env.phase == RolloutPhase::Done && env.waits.is_empty())).then_some(())
    })
    .await;
    heartbeats(&server, &ways).await;
    stop.cancel();
    tasks.wait().await;
}

async fn eventually_arrived(ways: &Ways, count: u64) {
    eventually("the instances are at their nodes", async || {
        (ways.arrived.load(Ordering::Relaxed) >= count).then_some(())
    })
    .await;
}

/// What a heartbeat costs the server: some agents send them one after the other, all others as always.
async fn heartbeats(server: &Process, ways: &Ways) {
    ways.hurry.send_replace(true);
    let (cpu, written) = (server.cpu(), server.written());
    let before = ways.beats.load(Ordering::Relaxed);
    tokio::time::sleep(WRITING).await;
    let (cpu, written) = (server.cpu() - cpu, server.written() - written);
    let beats = (ways.beats.load(Ordering::Relaxed) - before) as f64;
    ways.hurry.send_replace(false);
    println!(
        "heartbeats: {:.0} a second, {:.0} a second of one core, {:.1} KiB/s written",
        beats / WRITING.as_secs_f64(),
        beats / cpu,
        written / WRITING.as_secs_f64()
    );
}

/// A sync of a disk that keeps its word: about what an SSD without a battery behind its cache takes.
const SYNC: Duration = Duration::from_millis(1);

/// A library that has syncs take longer, compiled into `folder`. Tracing the server instead would slow down all that it does.
fn slow_syncs(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slow_sync.c");
    let library = folder.join("slow_sync.so");
    let compiled = Command::new("cc")
        .args(["-O2", "-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status();
    assert!(compiled.unwrap().success(), "cc");
    library
}

/// A test of this program in a process of its own, whose disk takes so long for each sync beside what the real one takes.
fn with_slow_syncs(test: &str, folder: &Path, sync: Duration) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    if !sync.is_zero() {
        command.env("LD_PRELOAD", slow_syncs(folder));
        command.env("SYNC_MICROS", sync.as_micros().to_string());
    }
    command.args(["--ignored", "--exact", test]);
    command.env(FOLDER, folder).stdout(Stdio::null());
    command
}

/// One plain SQLite client, in a process of its own: it says how many writes it made in a second.
#[tokio::test]
#[ignore = "a measurement: make bench"]
async fn plain_client_process() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let folder = Path::new(&folder);
    let url = format!("sqlite:{}?mode=rwc", folder.join("plain.db").display());
    let mut db = SqliteConnection::connect(&url).await.unwrap();
    for sql in [
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "CREATE TABLE nodes (id INTEGER PRIMARY KEY, scheduling TEXT NOT NULL)",
    ] {
        sqlx::query(sql).execute(&mut db).await.unwrap();
    }
    let (started, mut plain) = (Instant::now(), 0_i64);
    while started.elapsed() < WRITING {
        // Another value each time: SQLite writes, and syncs, nothing where a row stays as it is.
        sqlx::query("INSERT INTO nodes (id, scheduling) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET scheduling = excluded.scheduling")
            .bind(plain % 64)
            .bind(format!("cordoned {plain}"))
            .execute(&mut db)
            .await
            .unwrap();
        plain += 1;
    }
    let plain = plain as f64 / started.elapsed().as_secs_f64();
    std::fs::write(folder.join("plain"), plain.to_string()).unwrap();
}

/// Acknowledged durable writes of many clients of a server, and of one plain SQLite client, each alone on the machine.
async fn durable_writes(sync: Duration) {
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(folder.path(), sync).await;
    let user = server.user();
    let done = Arc::new(AtomicBool::new(false));
    let writes = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    let started = Instant::now();
    for _ in 0..WRITERS {
        let user = user.clone();
        let (done, writes) = (Arc::clone(&done), Arc::clone(&writes));
        tasks.spawn(async move {
            let request = CreateTokenRequest::new(EnrollRole::Node, 86_400);
            while !done.load(Ordering::Relaxed) {
                user.create_token(&request).await.unwrap();
                writes.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    tokio::time::sleep(WRITING).await;
    let ours = writes.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64();
    done.store(true, Ordering::Relaxed);
    while tasks.join_next().await.is_some() {}
    drop(server);

    let mut plain = with_slow_syncs("plain_client_process", folder.path(), sync);
    let ended = plain.status().unwrap();
    assert!(ended.success(), "{ended}");
    let plain = std::fs::read_to_string(folder.path().join("plain")).unwrap();
    let plain: f64 = plain.parse().unwrap();
    println!(
        "acknowledged durable writes of {WRITERS} clients, where a sync takes {sync:?} more: {ours:.0} a second; one SQLite client with synchronous=FULL: {plain:.0}; {:.1} times",
        ours / plain,
    );
}

/// The server's writes against those of a plain client, on this machine's disk and on one whose syncs cost what they do on most.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: make bench"]
async fn writes_against_a_plain_client() {
    durable_writes(Duration::ZERO).await;
    durable_writes(SYNC).await;
}

/// Instances that are listed, of so many apps, on so many nodes.
const LISTED: u32 = 100_000;
const LISTED_APPS: u32 = 200;
const LISTED_NODES: usize = 50;
/// Longest wait until they are placed.
const PLACING: Duration = Duration::from_secs(600);

/// `ps` of very many instances: page by page, and what is filtered of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: make bench"]
async fn lists_by_page() {
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(folder.path(), Duration::ZERO).await;
    let registry = Registry::start().await;
    let digest = registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello@{digest}", registry.host);
    let user = server.user();
    let (ways, stop) = (Arc::new(Ways::default()), CancellationToken::new());
    let tasks = tokio_util::task::TaskTracker::new();
    let hardware = Hardware {
        cpus: 256,
        memory_bytes: 1 << 40,
        ..hardware()
    };
    for number in 0..LISTED_NODES {
        let joined = join_with(&server.url, &user, EnrollRole::Node, hardware.clone()).await;
        let agent = Agent {
            client: joined.client.clone(),
            desired: None,
            sender: ReportSender::new(AgentSession(1)),
            hardware: hardware.clone(),
        };
        tasks.spawn(agent.run(
            number * AGENTS / LISTED_NODES,
            Arc::clone(&ways),
            stop.clone(),
        ));
    }
    tasks.close();
    eventually("all nodes are heard", async || {
        let rows = user.nodes().await.unwrap();
        rows.iter().all(|row| row.online).then_some(())
    })
    .await;
    let small = "min = 1\nmax = 1000\n[processes.web.resources]\ncpu = 0.01\nmemory = \"96MiB\"";
    let started = Instant::now();
    for app in 0..LISTED_APPS {
        let app = format!("app{app:03}");
        let request = api::user::DeployRequest {
            only: std::collections::BTreeSet::new(),
            manifest: manifest(&app).replace("min = 2\nmax = 4", small),
            image: image.clone(),
        };
        let key = env_key(&app, "prod");
        user.deploy(&key, &request).await.unwrap();
        let processes = BTreeMap::from([("web".parse().unwrap(), LISTED / LISTED_APPS)]);
        user.scale(&key, &ScaleRequest { processes }).await.unwrap();
    }
    while u64::from(LISTED) > ways.arrived.load(Ordering::Relaxed) {
        assert!(started.elapsed() < PLACING, "{:?} are placed", ways.arrived);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!(
        "{LISTED} instances placed and at their nodes in {:.1} s, server {:.0} MiB",
        started.elapsed().as_secs_f64(),
        server.memory()
    );
    stop.cancel();
    tasks.wait().await;

    for limit in [100, 1_000, 10_000] {
        list(&server, &format!("limit={limit}"), LISTED).await;
    }
    list(&server, "app=app100", LISTED / LISTED_APPS).await;
    list(&server, "process=none", 0).await;
    println!("after the lists: server {:.0} MiB", server.memory());
}

/// Reads a whole list of instances page by page, which has so many rows.
async fn list(server: &Process, query: &str, rows: u32) {
    let http = plain(&server.config.ca_pem, None);
    let (started, cpu) = (Instant::now(), server.cpu());
    let (mut took, mut found, mut bytes) = (Vec::new(), 0, 0);
    let mut next = Some(format!("/v1/instances?{query}"));
    while let Some(path) = next {
        let at = Instant::now();
        let request = http.get(format!("{}{path}", server.url));
        let response = request.bearer_auth(&server.config.token).send().await;
        let response = response.unwrap().error_for_status().unwrap();
        next = response.headers().get(LINK).map(|link| {
            let (target, _) = link.to_str().unwrap().split_once('>').unwrap();
            target.trim_start_matches('<').to_owned()
        });
        let body = response.bytes().await.unwrap();
        took.push(at.elapsed());
        bytes += body.len();
        // Not a part of what is measured: rows are counted, not read.
        let page: Vec<serde::de::IgnoredAny> = serde_json::from_slice(&body).unwrap();
        found += page.len();
    }
    assert_eq!(found, rows as usize, "{query}");
    let (pages, all) = (took.len(), started.elapsed());
    took.sort_unstable();
    println!(
        "{query}: {found} rows in {pages} pages, {:.1} MiB, in {:.2} s: a page p50 {:.1?}, p99 {:.1?}; server CPU {:.2} s",
        bytes as f64 / f64::from(1 << 20),
        all.as_secs_f64(),
        percentile(&took, 50),
        percentile(&took, 99),
        server.cpu() - cpu,
    );
}
