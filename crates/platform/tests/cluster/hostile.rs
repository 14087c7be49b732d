//! A hostile tenant on the node of a good one, root in its guest. Its attacks cost the good tenant nothing, the
//! agent no memory, and the machine no disk; a user sees no terminal escape of it.
//!
//! Bounds that are asserted: the agent's resident memory never grows by more than 1 % of the machine's
//! memory, nor by more than [`AGENT_GROWTH_BYTES`]; a flooded serial console takes it a fifth of a core
//! at most; every request to the good app is answered by 200, and it is not restarted; each connection
//! that violates the protocol is counted in the instance's log; log and console files keep their bounds.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::harness::{Cluster, HOST, Running, get, manifest, vmm, vmm_of, wait_for};

const HOSTILE: &str = include_str!("../../../../examples/hostile/platform.toml");

const MIB: u64 = 1 << 20;
/// Most growth of the agent's resident memory, in bytes.
const AGENT_GROWTH_BYTES: u64 = 16 * MIB;
/// Most resident memory of one instance's vsock device, in bytes.
const VSOCK_DEVICE_BYTES: u64 = 64 * MIB;
/// Most bytes on disk of an instance's log and console: two files of 8 MiB, two of 80 KiB.
const LOG_BYTES: u64 = 17 * MIB;
const CONSOLE_BYTES: u64 = 2 * 80 * 1024 + 8 * 1024;
/// What the instance's log says at least of the 130 violations of the attacks `frames` and `hellos`, of which a few may not
/// arrive: it names each power of two.
const PROTOCOL_VIOLATIONS: u64 = 64;

/// A line `name: 123 kB` of a process's status, in bytes.
fn status(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    kilobytes(&status, name)
}

fn kilobytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.unwrap().trim_start_matches(':').trim();
    number.trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Processor time of a process.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit(") ").next().unwrap().split(' ');
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .map(|f| f.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 10)
}

/// Bytes that a folder takes on its disk.
fn disk_bytes(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else {
        // It may be gone already: guests end meanwhile.
        return std::fs::symlink_metadata(path).map_or(0, |m| m.blocks() * 512);
    };
    entries
        .flatten()
        .map(|entry| disk_bytes(&entry.path()))
        .sum()
}

/// The vsock device of an instance: it runs in the instance's own folder.
fn vsock_device(cluster: &Cluster, id: &str) -> u32 {
    let dir = cluster.path("run").join(id).join("vsock");
    let here =
        |pid: &u32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir);
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(here).unwrap()
}

/// Requests the good app's page without a pause until it is stopped; counts the answers.
pub(crate) struct Neighbour {
    stop: Arc<AtomicBool>,
    /// Absent once it was waited for.
    asking: Option<std::thread::JoinHandle<(u32, Duration)>>,
}

impl Neighbour {
    pub(crate) fn start(edge: SocketAddr) -> Self {
        Self::asking(edge, "/")
    }

    /// Requests this path of it.
    pub(crate) fn asking(edge: SocketAddr, path: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let asking = std::thread::spawn(move || {
            let (mut count, mut slowest) = (0, Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let (status, body) = get(edge, HOST, path);
                assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
                count += 1;
                slowest = slowest.max(begun.elapsed());
            }
            (count, slowest)
        });
        Self {
            stop,
            asking: Some(asking),
        }
    }

    pub(crate) fn stop(mut self) -> (u32, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        self.asking.take().unwrap().join().unwrap()
    }
}

impl Drop for Neighbour {
    /// A test that fails ends its requests before its cluster, so that these do not fail too.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(asking) = self.asking.take() {
            let _ = asking.join();
        }
    }
}

/// The agent's resource use over the attacks.
struct Agent {
    pid: u32,
    before: u64,
    machine: u64,
}

impl Agent {
    fn of(cluster: &Cluster) -> Self {
        let pid = cluster.pid("node");
        let machine = std::fs::read_to_string("/proc/meminfo").unwrap();
        Self {
            pid,
            before: status(pid, "VmRSS"),
            machine: kilobytes(&machine, "MemTotal"),
        }
    }

    /// Runs something, and asserts its cost to the agent.
    fn during<T>(&self, what: &str, act: impl FnOnce() -> T) -> T {
        // The peak begins anew.
        std::fs::write(format!("/proc/{}/clear_refs", self.pid), "5").unwrap();
        let (begun, cpu_before) = (Instant::now(), cpu(self.pid));
        let done = act();
        let (took, used) = (begun.elapsed(), cpu(self.pid).saturating_sub(cpu_before));
        let peak = status(self.pid, "VmHWM");
        let grown = peak.saturating_sub(self.before);
        eprintln!(
            "{what}: {:.1} s; agent: {} KiB before all, peak {} KiB, now {} KiB, processor {:.2} s",
            took.as_secs_f64(),
            self.before / 1024,
            peak / 1024,
            status(self.pid, "VmRSS") / 1024,
            used.as_secs_f64(),
        );
        assert!(grown <= AGENT_GROWTH_BYTES, "{what}: {grown} bytes");
        assert!(grown <= self.machine / 100, "{what}: {grown} bytes");
        done
    }
}

struct Attacker<'a> {
    cluster: &'a Cluster,
    agent: Agent,
    id: String,
}

impl Attacker<'_> {
    fn command<'s>(&'s self, words: &[&'s str]) -> Vec<&'s str> {
        [&["exec", &self.id, "--", "/hostile"], words].concat()
    }

    /// Runs an attack to its end; gives its output.
    fn attack(&self, words: &[&str]) -> String {
        let what = words.join(" ");
        // The attack before may have broken the guest's own connection to the node: it dials again.
        wait_for("the guest to listen", || {
            let rows = self.cluster.json(&["top", "--app", "hostile"]);
            rows[0]["stats"].is_object()
        });
        let said = self
            .agent
            .during(&what, || self.cluster.cli(&self.command(words)));
        eprintln!("{what}: {}{}", said.stdout, said.stderr);
        assert_eq!(said.status, 0, "{}", said.stderr);
        said.stdout
    }

    fn row(&self) -> serde_json::Value {
        let rows = self.cluster.instances();
        let row = rows.iter().find(|row| row["id"] == self.id.as_str());
        row.unwrap().clone()
    }

    /// Its log as JSON, one object a line.
    fn log(&self, more: &[&str]) -> Vec<serde_json::Value> {
        let logs = ["logs", "--app", "hostile", "--format", "json"];
        let text = self.cluster.ok(&[&logs, more].concat());
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn files_are_bounded(&self) {
        let log = disk_bytes(
            &self
                .cluster
                .path("node/instances")
                .join(&self.id)
                .join("log"),
        );
        assert!(log <= LOG_BYTES, "{log} bytes of log");
        let console: u64 = ["console.log", "console.log.1"]
            .iter()
            .map(|file| disk_bytes(&self.cluster.path("run").join(&self.id).join(file)))
            .sum();
        assert!(console <= CONSOLE_BYTES, "{console} bytes of console");
        eprintln!("its log takes {log} bytes, its console {console}");
    }
}

/// The text without colours. Any other control sequence fails the test.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_control() && c != '\n' && c != '\t') {
        plain.push_str(&rest[..at]);
        let sequence = rest[at..].strip_prefix("\x1b[").and_then(|parameters| {
            let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';')?;
            parameters[end..].strip_prefix('m')
        });
        rest = sequence.unwrap_or_else(|| panic!("a terminal obeys: {:?}", &rest[at..]));
    }
    plain + rest
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// A client that follows the log and never reads.
fn stuck_reader(cluster: &Cluster) -> Running {
    cluster.start_cli(&["logs", "--app", "hostile", "-f"], Stdio::piped())
}

#[test]
fn a_hostile_tenant_costs_only_itself() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let image = cluster.push("hostile");
    let deployed = cluster.deploy(&manifest(&[]), &cluster.image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    let good: Vec<_> = cluster.ready("web");
    let good_vmms: Vec<_> = good.iter().map(|id| vmm(id)).collect();
    let began = now_ms();
    let deployed = cluster.deploy(HOSTILE, &image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    cluster.wait_until_served();
    let neighbour = Neighbour::start(cluster.edge());
    let attacker = Attacker {
        cluster: &cluster,
        agent: Agent::of(&cluster),
        id: cluster.ready("attacker").remove(0),
    };
    let disk_before = disk_bytes(&cluster.path("node")) + disk_bytes(&cluster.path("run"));

    // What is no frame: each connection is closed, counted, and said in the instance's log.
    let said = attacker.attack(&["frames"]);
    assert!(
        said.starts_with("40 of 40 connections were closed"),
        "{said}"
    );
    let noted = |log: &[serde_json::Value]| {
        let lines = log.iter().map(|line| line["text"].as_str().unwrap());
        let counts = lines.filter_map(|line| line.strip_prefix("closed ")?.split(' ').next());
        counts.map(|count| count.parse::<u64>().unwrap()).max()
    };
    assert_eq!(noted(&attacker.log(&[])), Some(32), "said at 1, 2, 4 .. 32");

    // Hellos in the place of init, as root of the guest: the boot config with its secrets is sent to none of them.
    let said = attacker.attack(&["hellos"]);
    assert_eq!(
        said.trim(),
        "90 of 90 hellos in init's place were refused; they got the boot config 0 times"
    );
    assert!(noted(&attacker.log(&[])) >= Some(PROTOCOL_VIOLATIONS));

    attacker.attack(&["connections", "10000"]);
    let device = vsock_device(&cluster, &attacker.id);
    let device_peak = status(device, "VmHWM");
    eprintln!("the vsock device's peak: {} KiB", device_peak / 1024);
    assert!(device_peak <= VSOCK_DEVICE_BYTES, "{device_peak} bytes");

    // Lines as fast as they are taken, by the app's output, and forged ones by a log channel of its own, while
    // somebody follows and does not read.
    let stuck = stuck_reader(&cluster);
    attacker.attack(&["lines", "100"]);
    let said = attacker.attack(&["records", "50"]);
    assert!(said.starts_with("0 acknowledgements"), "{said}");
    attacker.files_are_bounded();
    drop(stuck);
    // Times are of this boot, and on a terminal each line has its own prefix.
    let lines = attacker.log(&["--tail", "2000"]);
    let at = |line: &serde_json::Value| line["at"].as_u64().unwrap();
    let (first, last) = (lines.iter().map(at).min(), lines.iter().map(at).max());
    assert!(
        first >= Some(began) && last <= Some(now_ms()),
        "{first:?} {last:?}"
    );
    assert!(
        lines
            .iter()
            .any(|line| line["text"].as_str().unwrap().contains("owned"))
    );
    let logs = ["logs", "--app", "hostile", "--tail", "2000"];
    let shown = cluster.cli_on_a_terminal(&logs).stdout;
    let its_own = format!(" attacker {} ", attacker.id);
    for line in plain(&shown).lines() {
        // After the time.
        assert_eq!(line.find(&its_own), Some(24), "a forged line: {line}");
    }

    let (begun, before) = (Instant::now(), cpu(attacker.agent.pid));
    attacker.attack(&["console", "2"]);
    let (took, used) = (
        begun.elapsed(),
        cpu(attacker.agent.pid).saturating_sub(before),
    );
    assert!(used <= took / 5, "the agent ran {used:?} of {took:?}");
    attacker.files_are_bounded();

    // Two exits, and a boot failure, in init's place while the app runs: they end nothing.
    for what in ["ends", "failure"] {
        let said = attacker.attack(&[what]);
        assert_eq!(said.trim(), "20 of 20 ends in init's place were refused");
    }
    assert_eq!(attacker.row()["report"]["restarts"], 0);
    for listing in [&["ps"][..], &["top"], &logs] {
        let shown = cluster.cli_on_a_terminal(listing);
        assert!(!plain(&shown.stdout).is_empty(), "{}", shown.stderr);
    }

    // It is stopped like any instance, while it sends hellos without a pause.
    let mut busy = cluster.start_cli(&attacker.command(&["redial", "100"]), Stdio::piped());
    let mut said = String::new();
    let mut says = BufReader::new(busy.0.stdout.take().unwrap());
    says.read_line(&mut said).unwrap();
    assert_eq!(said, "dialling\n");
    let begun = Instant::now();
    cluster.ok(&["destroy", "--app", "hostile", "--yes"]);
    wait_for("its VMM to be gone", || vmm_of(&attacker.id).is_none());
    eprintln!("stopped within {:.1} s", begun.elapsed().as_secs_f64());
    busy.0.wait().unwrap();

    // An app that fails, and logs control sequences before.
    let exits = HOSTILE.replace("[\"wait\"]", "[\"die\"]").replace(
        "{ policy = \"always\", max_retries = 10 }",
        "{ policy = \"never\" }",
    );
    let file = cluster.path("exits.toml");
    std::fs::write(&file, exits).unwrap();
    let deploy = ["deploy", file.to_str().unwrap(), "--image", &image];
    let refused = cluster.cli_on_a_terminal(&deploy);
    let said = refused.stdout + &refused.stderr;
    assert_eq!(refused.status, 1, "{said}");
    assert!(
        said.contains("exit code 3") && said.contains("owned"),
        "{said}"
    );
    plain(&said);

    let disk = disk_bytes(&cluster.path("node")) + disk_bytes(&cluster.path("run"));
    eprintln!("disk of the node: {disk_before} bytes before, {disk} after");
    // The logs of the two instances that ended are kept, each within its own bound.
    assert!(
        disk <= disk_before + 2 * LOG_BYTES + 8 * MIB,
        "{disk} bytes of disk"
    );
    let (answers, slowest) = neighbour.stop();
    eprintln!(
        "{answers} requests to the neighbour, each answered by 200, the slowest in {slowest:?}"
    );
    assert_eq!(cluster.ready("web"), good);
    let vmms: Vec<_> = good.iter().map(|id| vmm(id)).collect();
    assert_eq!(vmms, good_vmms);
    for row in cluster.instances() {
        assert_eq!(row["report"]["restarts"], 0, "{row}");
    }
    cluster.down();
}
