//! A node with hundreds of instances, measured: what it costs while nothing happens, and what a start costs beside them.
//! `make bench` runs it (`--ignored`); otherwise this program does nothing.
//!
//! Memory does not reach for as many microVMs, so this program stands for QEMU and for the vsock device, under their names: the
//! first answers as a monitor does and sleeps, the second is the guest's init, as far as the guest protocol shows. Server, node
//! and network are the real ones.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a measurement fails by panicking, and prints what it measured"
)]

#[allow(dead_code, reason = "each program uses what it needs")]
#[path = "cluster/harness.rs"]
mod harness;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use guest_protocol::{
    CONTRACT_VERSION, Channel, Frame as _, FrameBuffer, GuestFrame, Hello, HostFrame, Phase,
    TimeAsked,
};
use harness::Cluster;
use model::Timestamp;
use model::instance::ExitEvent;
use rustix::process::{Pid, Signal, kill_process};

const QEMU: &str = "qemu-system-x86_64";
const VSOCK_DEVICE: &str = "vhost-device-vsock";
/// Set in the run whose cluster finds this program under those names.
const INSIDE: &str = "MANY_INSIDE";
/// Instances beside which a start is measured, and beside which the node idles.
const FEW: u32 = 10;
const MANY: u32 = 200;
/// Instances started for one measurement.
const STARTED: u32 = 10;
/// How long an idle node is measured.
const IDLE: Duration = Duration::from_secs(30);
/// How often init asks for the time.
const ASK_INTERVAL: Duration = Duration::from_secs(16);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// Goals.
const IDLE_PERCENT: f64 = 2.0;
const SYNCS_PER_SECOND: f64 = 1.0;
/// A start beside many may cost this much more than one beside few: what noise there is on a busy machine.
const START_RATIO: f64 = 1.5;

const APP: &str = r#"
app = "many"
[processes.idle]
command = ["/usr/bin/hello", "worker"]
[processes.idle.resources]
cpu = 0.01
memory = "128MiB"
scratch = "16MiB"
[processes.idle.scaling]
min = 0
max = 1000
"#;

fn main() {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    match Path::new(&name).file_name().and_then(|name| name.to_str()) {
        Some(QEMU) => vmm(&arguments.collect::<Vec<_>>()),
        Some(VSOCK_DEVICE) => guest(),
        _ if !arguments.any(|argument| argument == "--ignored") => {
            println!("many: measured by `make bench` only");
        }
        _ if std::env::var_os(INSIDE).is_some() => measure(),
        _ => run_inside(),
    }
}

/// Runs this program again, with programs of QEMU's names first in its PATH.
fn run_inside() {
    let programs = tempfile::tempdir().unwrap();
    let own = std::env::current_exe().unwrap();
    for name in [QEMU, VSOCK_DEVICE] {
        std::fs::copy(&own, programs.path().join(name)).unwrap();
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let status = Command::new(own)
        .arg("--ignored")
        .env(INSIDE, "1")
        .env("PATH", format!("{}:{path}", programs.path().display()))
        .env(
            "PLATFORM_VHOST_DEVICE_VSOCK",
            programs.path().join(VSOCK_DEVICE),
        )
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

/// The agent's processor time, that of the commands that it ran included.
fn agent_cpu(cluster: &Cluster) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", cluster.pid("node"))).unwrap();
    let fields = stat
        .rsplit(") ")
        .next()
        .unwrap()
        .split(' ')
        .skip(11)
        .take(4);
    Duration::from_millis(fields.map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum())
}

/// Scales, waits until all are ready, and gives the agent's processor time and the time for one start.
fn scale(cluster: &Cluster, from: u32, to: u32) -> (Duration, Duration) {
    let (begun, before) = (Instant::now(), agent_cpu(cluster));
    cluster.ok(&["scale", &format!("idle={to}"), "--app", "many"]);
    while cluster.ready("idle").len() < to as usize {
        assert!(begun.elapsed() < PATIENCE, "{to} instances are not ready");
        std::thread::sleep(Duration::from_millis(200));
    }
    let count = to - from;
    (
        agent_cpu(cluster).saturating_sub(before) / count,
        begun.elapsed() / count,
    )
}

/// How many times the agent has the kernel sync a file.
fn syncs(cluster: &Cluster, within: Duration) -> Option<usize> {
    let output = cluster.path("strace");
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=fsync,fdatasync,syncfs,sync"])
        .args([
            "-e",
            "signal=none",
            "-p",
            &cluster.pid("node").to_string(),
            "-o",
        ])
        .arg(&output)
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    std::thread::sleep(within);
    let pid = Pid::from_raw(strace.id().cast_signed())?;
    kill_process(pid, Signal::INT).ok()?;
    strace.wait().ok()?;
    let lines = std::fs::read_to_string(output).ok()?;
    Some(lines.lines().filter(|line| line.contains("sync")).count())
}

fn measure() {
    let Some(cluster) = Cluster::start_with(&["--memory", "200GiB"]) else {
        return;
    };
    let deployed = cluster.deploy(APP, &cluster.image);
    assert_eq!(deployed.status, 0, "{}{}", deployed.stdout, deployed.stderr);
    scale(&cluster, 0, FEW);
    let (few_cpu, few_time) = scale(&cluster, FEW, FEW + STARTED);
    let (all_cpu, all_time) = scale(&cluster, FEW + STARTED, MANY - STARTED);
    let (many_cpu, many_time) = scale(&cluster, MANY - STARTED, MANY);
    // What follows the starts comes to rest: reports, the last writes.
    std::thread::sleep(Duration::from_secs(15));
    let before = agent_cpu(&cluster);
    std::thread::sleep(IDLE);
    let used = agent_cpu(&cluster).saturating_sub(before);
    let percent = used.as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    let synced = syncs(&cluster, IDLE);
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    println!("idle node with {MANY} instances: {percent:.2} % of a core  (goal {IDLE_PERCENT} %)");
    let per_second = synced.map(|count| count as f64 / IDLE.as_secs_f64());
    match per_second {
        Some(rate) => println!("  {rate:.2} syncs a second  (goal {SYNCS_PER_SECOND})"),
        None => println!("  syncs are not counted: strace is not installed"),
    }
    let ratio = ms(many_cpu) / ms(few_cpu).max(1.0);
    let missed = if ratio > START_RATIO { ", missed" } else { "" };
    println!(
        "a start beside {FEW} instances: {:.0} ms of the agent's processor, {:.0} ms; beside {}: {:.0} ms, {:.0} ms; \
         the ones between: {:.0} ms, {:.0} ms  (ratio {ratio:.2}, goal {START_RATIO}{missed})",
        ms(few_cpu),
        ms(few_time),
        MANY - STARTED,
        ms(many_cpu),
        ms(many_time),
        ms(all_cpu),
        ms(all_time),
    );
    assert!(percent <= IDLE_PERCENT, "{percent} % of a core");
    assert!(
        per_second.is_none_or(|rate| rate <= SYNCS_PER_SECOND),
        "{per_second:?} syncs a second"
    );
    assert!(
        ratio <= START_RATIO,
        "a start beside {MANY}: {ratio:.2} times"
    );
    cluster.down();
}

/// Stands for QEMU: says its version, else answers questions by its monitor until it is killed.
#[allow(unsafe_code, reason = "the monitor is inherited by number")]
fn vmm(arguments: &[String]) {
    if arguments
        .iter()
        .any(|argument| argument.trim_start_matches('-') == "version")
    {
        println!("QEMU emulator version 7.2.0 (stands for it)");
        return;
    }
    let monitor = arguments
        .iter()
        .find_map(|argument| argument.strip_prefix("socket,id=monitor,fd="))
        .and_then(|rest| rest.split(',').next()?.parse().ok())
        .unwrap();
    // SAFETY: the agent handed this listening socket over, and nothing else here uses its number.
    let listener = UnixListener::from(unsafe { OwnedFd::from_raw_fd(monitor) });
    loop {
        // A client that went away is the next one's affair.
        if let Ok((stream, _)) = listener.accept() {
            let _ = monitor_client(&stream);
        }
    }
}

fn monitor_client(mut stream: &UnixStream) -> std::io::Result<()> {
    writeln!(
        stream,
        r#"{{"QMP": {{"version": {{}}, "capabilities": []}}}}"#
    )?;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let asked: serde_json::Value = serde_json::from_str(&line?)?;
        let answer = if asked["execute"] == "query-status" {
            serde_json::json!({ "status": "running", "running": true })
        } else {
            serde_json::json!({})
        };
        // As QEMU does, with the id of the question.
        let answer = serde_json::json!({ "return": answer, "id": asked["id"] });
        writeln!(stream, "{answer}")?;
    }
    Ok(())
}

/// Stands for the vsock device and the init behind it.
fn guest() {
    let device = UnixListener::bind("device").unwrap();
    std::thread::spawn(move || {
        // QEMU's end, kept open.
        let mut kept = Vec::new();
        while let Ok((stream, _)) = device.accept() {
            kept.push(stream);
        }
    });
    let token = format!("{:032x}", std::process::id());
    let mut phase = Phase::Waiting;
    let mut log = None;
    loop {
        if let Ok(stream) = dial(&token, Channel::Control, &phase)
            && control(stream, &token, &mut phase, &mut log).is_ok()
        {
            return;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn dial(token: &str, channel: Channel, phase: &Phase) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect("guest_1024")?;
    let hello = GuestFrame::Hello(Hello {
        contract: CONTRACT_VERSION,
        channel,
        phase: phase.clone(),
        token: token.to_owned(),
    });
    stream.write_all(&hello.encode())?;
    Ok(stream)
}

/// One control connection; `Ok` when the guest powers off.
fn control(
    mut stream: UnixStream,
    token: &str,
    phase: &mut Phase,
    log: &mut Option<UnixStream>,
) -> std::io::Result<()> {
    let mut incoming = FrameBuffer::default();
    let mut number = 0;
    let mut asked = Instant::now();
    stream.set_read_timeout(Some(ASK_INTERVAL))?;
    loop {
        if number == 0 || asked.elapsed() >= ASK_INTERVAL {
            number += 1;
            asked = Instant::now();
            stream.write_all(&GuestFrame::TimeAsked(TimeAsked { number }).encode())?;
        }
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => incoming.push(&bytes[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        while let Some(frame) = incoming.next().map_err(std::io::Error::other)? {
            match frame {
                HostFrame::Boot(_) if *phase == Phase::Waiting => {
                    *phase = Phase::Running;
                    stream.write_all(&GuestFrame::Started.encode())?;
                    *log = dial(token, Channel::Log, phase).ok();
                }
                HostFrame::Stop { .. } => {
                    let end = GuestFrame::Exited(ExitEvent {
                        exit_code: 0,
                        signal: None,
                        oom_killed: false,
                        requested_stop: true,
                        at: Timestamp(0),
                    });
                    stream.write_all(&end.encode())?;
                }
                HostFrame::ExitAck => return Ok(()),
                _ => {}
            }
        }
    }
}
