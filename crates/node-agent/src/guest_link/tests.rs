//! The line to one guest, with this test as the guest: well-behaved, then hostile.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use guest_protocol::{
    CONTRACT_VERSION, Frame as _, FrameBuffer, GuestNetwork, LogRecord, OLDEST_SERVED_VERSION,
    Stream,
};
use model::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use crate::adapters::{FileLog, UnixGuestListener};
use crate::logs::InstanceLog;

use super::*;

struct Guest {
    stream: UnixStream,
    buffer: FrameBuffer,
}

impl Guest {
    async fn dial(socket: &Path, channel: Channel, phase: Phase) -> Self {
        Self::dial_with(socket, CONTRACT_VERSION, channel, phase).await
    }

    async fn dial_with(socket: &Path, contract: u32, channel: Channel, phase: Phase) -> Self {
        Self::dial_as("", socket, contract, channel, phase).await
    }

    async fn dial_as(
        token: &str,
        socket: &Path,
        contract: u32,
        channel: Channel,
        phase: Phase,
    ) -> Self {
        let stream = UnixStream::connect(socket).await.unwrap();
        let mut guest = Self {
            stream,
            buffer: FrameBuffer::default(),
        };
        guest
            .send(&GuestFrame::Hello(Hello {
                contract,
                channel,
                phase,
                token: token.to_owned(),
            }))
            .await;
        guest
    }

    async fn send(&mut self, frame: &GuestFrame) {
        self.stream.write_all(&frame.encode()).await.unwrap();
    }

    /// The next frame but for the MTU, which each new connection is told; none when the host closed the connection.
    async fn receive(&mut self) -> Option<HostFrame> {
        loop {
            match self.receive_any().await {
                Some(HostFrame::Mtu(_)) => {}
                other => return other,
            }
        }
    }

    async fn receive_any(&mut self) -> Option<HostFrame> {
        loop {
            if let Some(frame) = self.buffer.next().unwrap() {
                return Some(frame);
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.buffer.push(&chunk[..count]),
            }
        }
    }
}

fn config() -> BootConfig {
    BootConfig {
        hostname: "web-00000001".to_owned(),
        argv: vec!["/bin/true".to_owned()],
        environment: vec![],
        working_dir: "/".to_owned(),
        user: "0".to_owned(),
        stop_signal: "SIGTERM".to_owned(),
        init: model::instance::Init::Platform,
        network: GuestNetwork {
            address: "fd00::1".parse().unwrap(),
            ipv4: "100.64.0.1".parse().unwrap(),
            gateway: guest_protocol::GATEWAY,
            mtu: 1420,
            resolvers: vec![],
            search: Vec::new(),
        },
        root_device: "/dev/vda".to_owned(),
        scratch_device: "/dev/vdb".to_owned(),
        volumes: vec![],
        image_volumes: vec![],
        proxy: vec![],
        ports: Vec::new(),
        attached: false,
        secret_modes: std::collections::BTreeMap::new(),
        secrets: vec![],
    }
}

fn exit(code: u8) -> ExitEvent {
    ExitEvent {
        exit_code: code,
        signal: None,
        oom_killed: false,
        requested_stop: false,
        at: Timestamp(0),
    }
}

/// A link of a guest whose init has no token, as those of before.
fn link(dir: &Path) -> (GuestLink, std::path::PathBuf) {
    link_of(dir, Some(String::new()), Clock::start())
}

fn link_of(dir: &Path, token: Option<String>, clock: Clock) -> (GuestLink, std::path::PathBuf) {
    let (_, mtu) = watch::channel(1420);
    link_with_mtu(dir, token, clock, mtu)
}

fn link_with_mtu(
    dir: &Path,
    token: Option<String>,
    clock: Clock,
    mtu: watch::Receiver<u32>,
) -> (GuestLink, std::path::PathBuf) {
    let log = Arc::new(InstanceLog::open(&dir.join("log")).unwrap());
    let socket = dir.join("guest.sock");
    (
        GuestLink::serve(
            Box::new(UnixGuestListener(UnixListener::bind(&socket).unwrap())),
            Arc::new(FileLog(log)),
            clock,
            token,
            mtu,
        ),
        socket,
    )
}

#[tokio::test]
async fn a_guest_is_told_its_config_its_stop_and_its_acknowledged_end() {
    let dir = tempfile::tempdir().unwrap();
    let (mut link, socket) = link(dir.path());
    let mut guest = Guest::dial(&socket, Channel::Control, Phase::Waiting).await;
    assert_eq!(link.next().await, Some(GuestEvent::Hello(Phase::Waiting)));
    link.boot(config());
    assert_eq!(
        guest.receive().await,
        Some(HostFrame::Boot(Box::new(config())))
    );
    guest.send(&GuestFrame::Started).await;
    assert_eq!(link.next().await, Some(GuestEvent::Started));
    link.stop(500);
    let stop = HostFrame::Stop { timeout_ms: 500 };
    assert_eq!(guest.receive().await, Some(stop.clone()));

    // A new connection hears again what still holds; the old one is closed.
    let mut again = Guest::dial(&socket, Channel::Control, Phase::Running).await;
    assert_eq!(again.receive().await, Some(stop));
    assert_eq!(guest.receive().await, None);
    assert_eq!(link.next().await, Some(GuestEvent::Hello(Phase::Running)));
    again.send(&GuestFrame::Exited(exit(3))).await;
    assert_eq!(link.next().await, Some(GuestEvent::Exited(exit(3))));
    link.acknowledge_end();
    assert_eq!(again.receive().await, Some(HostFrame::ExitAck));
}

#[tokio::test]
async fn log_records_are_acknowledged_once_written() {
    let dir = tempfile::tempdir().unwrap();
    let (link, socket) = link(dir.path());
    let mut guest = Guest::dial(&socket, Channel::Log, Phase::Running).await;
    for seq in 1..=3 {
        guest
            .send(&GuestFrame::Log(LogRecord {
                seq,
                at_nanos: 0,
                stream: Stream::Stderr,
                partial: false,
                dropped: 0,
                line: format!("line {seq}").into_bytes(),
            }))
            .await;
    }
    loop {
        let Some(HostFrame::LogAck { seq }) = guest.receive().await else {
            panic!("no ack")
        };
        if seq == 3 {
            break;
        }
    }
    let log = InstanceLog::open(&dir.path().join("log")).unwrap();
    assert_eq!(log.log_tail(9), ["line 1", "line 2", "line 3"]);
    assert_eq!(link.protocol_violations(), 0);
}

#[tokio::test]
async fn a_guest_that_violates_the_protocol_loses_the_connection_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (mut link, socket) = link(dir.path());
    for bytes in [
        &[0, 0, 0, 0, 1][..],
        &[255; 8],
        &[2, 0, 0, 0, 1, b'{'],
        &[1, 0, 0, 0, 99],
    ] {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
    }
    let _guest = Guest::dial(&socket, Channel::Control, Phase::Waiting).await;
    assert_eq!(link.next().await, Some(GuestEvent::Hello(Phase::Waiting)));
    assert!(
        link.protocol_violations() >= 4,
        "{}",
        link.protocol_violations()
    );
}

#[tokio::test]
async fn a_guest_of_an_unserved_version_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (mut link, socket) = link(dir.path());
    for contract in [0, OLDEST_SERVED_VERSION - 1, CONTRACT_VERSION + 1] {
        let mut guest = Guest::dial_with(&socket, contract, Channel::Control, Phase::Waiting).await;
        let reason = refusal(contract);
        assert_eq!(guest.receive().await, Some(HostFrame::Refused { reason }));
        assert_eq!(guest.receive().await, None);
        assert_eq!(link.next().await, Some(GuestEvent::Refused { contract }));
    }
    violations(&link, 3).await;
}

#[tokio::test]
async fn a_running_guest_of_the_previous_version_is_served_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (mut link, socket) = link(dir.path());
    let dial = |channel, phase| Guest::dial_with(&socket, OLDEST_SERVED_VERSION, channel, phase);
    let mut control = dial(Channel::Control, Phase::Running).await;
    assert_eq!(link.next().await, Some(GuestEvent::Hello(Phase::Running)));
    let mut log = dial(Channel::Log, Phase::Running).await;
    log.send(&GuestFrame::Log(LogRecord {
        seq: 1,
        at_nanos: 0,
        stream: Stream::Stdout,
        partial: false,
        dropped: 0,
        line: b"still here".to_vec(),
    }))
    .await;
    assert_eq!(log.receive().await, Some(HostFrame::LogAck { seq: 1 }));
    link.stop(500);
    assert_eq!(
        control.receive().await,
        Some(HostFrame::Stop { timeout_ms: 500 })
    );
    control.send(&GuestFrame::Exited(exit(0))).await;
    assert_eq!(link.next().await, Some(GuestEvent::Exited(exit(0))));
    link.acknowledge_end();
    assert_eq!(control.receive().await, Some(HostFrame::ExitAck));
    assert_eq!(link.protocol_violations(), 0);
}

#[tokio::test]
async fn a_claimed_identity_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let (mut link, socket) = link(dir.path());
    let body = format!(
        r#"{{"contract":{CONTRACT_VERSION},"channel":"control","phase":"running","instance":"00000002"}}"#
    );
    let length = u32::try_from(body.len() + 1).unwrap();
    let bytes = [&length.to_le_bytes()[..], &[1], body.as_bytes()].concat();
    let mut stream = UnixStream::connect(&socket).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    // It is the guest of the socket that it dialled.
    assert_eq!(link.next().await, Some(GuestEvent::Hello(Phase::Running)));
    assert_eq!(link.protocol_violations(), 0);
}

/// A guest whose app runs, and what its node may call.
async fn running_guest(dir: &Path) -> (GuestLink, Guest, std::path::PathBuf) {
    let (mut link, socket) = link(dir);
    let guest = Guest::dial(&socket, Channel::Control, Phase::Running).await;
    assert_eq!(link.next().await, Some(GuestEvent::Hello(Phase::Running)));
    (link, guest, socket)
}

/// Waits until so many connections were closed for what came on them.
async fn violations(link: &GuestLink, count: u64) {
    let waiting = async {
        while link.protocol_violations() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = timeout(Duration::from_secs(20), waiting).await;
    assert!(waited.is_ok(), "{} of {count}", link.protocol_violations());
    assert_eq!(link.protocol_violations(), count);
}

/// Hears of a command, dials for it, says these frames, and gives what the node says after.
async fn run_command(guest: &mut Guest, socket: &Path, frames: &[GuestFrame]) -> Option<HostFrame> {
    let Some(HostFrame::Exec(request)) = guest.receive().await else {
        panic!("no command");
    };
    let channel = Channel::Exec {
        session: request.session,
    };
    let mut command = Guest::dial(socket, channel, Phase::Running).await;
    for frame in frames {
        command.send(frame).await;
    }
    command.receive().await
}

#[tokio::test]
async fn a_command_has_its_own_channel_and_stats_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let (mut link, mut guest, socket) = running_guest(dir.path()).await;
    let calls = link.calls().clone();
    let argv = vec!["sh".to_owned()];
    let terminal = crate::guest_calls::Terminal {
        size: (24, 80),
        kind: Some("screen".to_owned()),
    };
    let (session, input) = tokio::join!(
        async {
            let mut session = calls.exec(argv.clone(), Some(terminal)).await.unwrap();
            let frame = HostFrame::ExecInput {
                bytes: b"ls\n".to_vec(),
            };
            session.channel.frames.write(&frame).await.unwrap();
            session
        },
        run_command(&mut guest, &socket, &[])
    );
    assert!(matches!(input, Some(HostFrame::ExecInput { bytes }) if bytes == b"ls\n"));
    drop(session);

    let (stats, ()) = tokio::join!(calls.stats(), async {
        assert_eq!(guest.receive().await, Some(HostFrame::Stats));
        let stats = guest_protocol::GuestStats {
            processes: 3,
            ..Default::default()
        };
        guest.send(&GuestFrame::Stats(stats)).await;
    });
    assert_eq!(stats.unwrap().processes, 3);
    // The ports that are shown are bounded.
    let ports: Vec<u16> = (1..=100).collect();
    let forwarded = guest_protocol::Forwarded { ports };
    guest.send(&GuestFrame::Forwarded(forwarded)).await;
    let ports = (1..=64).collect();
    assert_eq!(link.next().await, Some(GuestEvent::Forwarded(ports)));
    assert_eq!(link.protocol_violations(), 0);
}

#[tokio::test]
async fn a_health_checks_command_succeeds_by_its_exit_code_and_reports_its_last_line() {
    let dir = tempfile::tempdir().unwrap();
    let (link, mut guest, socket) = running_guest(dir.path()).await;
    let mut end = async |code, words: &str| {
        let output = GuestFrame::ExecOutput {
            stream: Stream::Stderr,
            bytes: words.as_bytes().to_vec(),
        };
        let frames = [output, GuestFrame::ExecExited(exit(code))];
        let argv = vec!["check".to_owned()];
        let (outcome, end_of_input) = tokio::join!(
            link.calls().probe(argv),
            run_command(&mut guest, &socket, &frames)
        );
        assert!(matches!(end_of_input, Some(HostFrame::ExecInput { bytes }) if bytes.is_empty()));
        outcome
    };
    assert_eq!(end(0, "fine\n").await, Ok(()));
    let failed = end(3, "first\nno \u{1b}[2J queue\n\n").await.unwrap_err();
    assert_eq!(failed, "`check`: exit code 3: no  [2J queue");
}

#[tokio::test]
async fn commands_are_bounded_and_need_a_running_app() {
    let dir = tempfile::tempdir().unwrap();
    let (mut link, mut guest, socket) = running_guest(dir.path()).await;
    let calls = link.calls().clone();
    let argv = || vec!["sleep".to_owned()];
    let mut sessions = Vec::new();
    let mut channels = Vec::new();
    for _ in 0..crate::guest_calls::MAX_USER_SESSIONS {
        let (session, channel) = tokio::join!(calls.exec(argv(), None), async {
            let Some(HostFrame::Exec(request)) = guest.receive().await else {
                panic!("no command");
            };
            let channel = Channel::Exec {
                session: request.session,
            };
            Guest::dial(&socket, channel, Phase::Running).await
        });
        sessions.push(session.unwrap());
        channels.push(channel);
    }
    let refused = calls.exec(argv(), None).await.unwrap_err();
    assert_eq!(refused, crate::guest_calls::CallError::TooMany);
    // A health check has room of its own, and a guest that dials unasked is refused.
    let frames = [GuestFrame::ExecExited(exit(0))];
    let (probed, _) = tokio::join!(
        calls.probe(argv()),
        run_command(&mut guest, &socket, &frames)
    );
    assert_eq!(probed, Ok(()));
    let mut uninvited = Guest::dial(&socket, Channel::Exec { session: 7 }, Phase::Running).await;
    assert_eq!(uninvited.receive().await, None);
    violations(&link, 1).await;
    // A user who leaves ends their command, and makes room.
    sessions.pop();
    assert_eq!(channels.pop().unwrap().receive().await, None);

    guest.send(&GuestFrame::Exited(exit(0))).await;
    assert_eq!(link.next().await, Some(GuestEvent::Exited(exit(0))));
    let refused = calls.exec(argv(), None).await.unwrap_err();
    assert_eq!(refused, crate::guest_calls::CallError::NotRunning);
}

#[tokio::test]
async fn a_guest_that_runs_no_command_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (link, mut guest, _) = running_guest(dir.path()).await;
    let answer = async |guest: &mut Guest, other: u32| {
        let Some(HostFrame::Exec(request)) = guest.receive().await else {
            panic!("no command");
        };
        let refused = GuestFrame::ExecRefused {
            session: request.session.wrapping_add(other),
            reason: "full\u{1b}[2J\nof it".to_owned(),
        };
        guest.send(&refused).await;
        request.session
    };
    let argv = || vec!["sh".to_owned()];
    let (refused, _) = tokio::join!(link.calls().exec(argv(), None), answer(&mut guest, 0));
    assert_eq!(refused.unwrap_err().to_string(), "full [2J of it");
    // A refusal of what nobody asked for reaches nobody, and the command that was asked for begins.
    let (session, channel) = tokio::join!(link.calls().exec(argv(), None), async {
        let session = answer(&mut guest, 7).await;
        let socket = dir.path().join("guest.sock");
        Guest::dial(&socket, Channel::Exec { session }, Phase::Running).await
    });
    session.unwrap();
    drop(channel);
    assert_eq!(link.protocol_violations(), 0);
}

#[tokio::test]
async fn the_first_end_counts_and_its_text_is_sanitized() {
    let dir = tempfile::tempdir().unwrap();
    let (mut link, socket) = link(dir.path());
    let mut guest = Guest::dial(&socket, Channel::Control, Phase::Failed).await;
    assert_eq!(link.next().await, Some(GuestEvent::Hello(Phase::Failed)));
    let forged = BootFailure {
        step: "mount\nroot".to_owned(),
        reason: format!("\u{1b}[31m{}", "ü".repeat(5000)),
        exit_code: None,
    };
    guest.send(&GuestFrame::BootFailed(forged.clone())).await;
    let Some(GuestEvent::BootFailed(failure)) = link.next().await else {
        panic!("no failure");
    };
    assert_eq!(failure.step, "mount root");
    assert!(failure.reason.len() < 1010 && !failure.reason.contains('\u{1b}'));
    // Again, on a connection of its own: heard, and not told twice.
    let mut again = Guest::dial(&socket, Channel::Control, Phase::Failed).await;
    again.send(&GuestFrame::BootFailed(forged)).await;
    assert_eq!(link.next().await, Some(GuestEvent::Hello(Phase::Failed)));
    // Another end is a lie, and costs the connection.
    again.send(&GuestFrame::Exited(exit(0))).await;
    assert_eq!(again.receive().await, None);
    violations(&link, 1).await;
    // The line is written after the violation is counted.
    let log = InstanceLog::open(&dir.path().join("log")).unwrap();
    while !log.log_tail(9).join("\n").contains("a second end") {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn case_only_init_is_served_and_the_boot_config_is_sent_no_more_once_the_app_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (mut link, socket) = link_of(dir.path(), None, Clock::start());
    let dial = |token: &'static str, channel, phase| {
        Guest::dial_as(token, &socket, CONTRACT_VERSION, channel, phase)
    };
    let waiting = dial("init", Channel::Control, Phase::Waiting).await;
    assert_eq!(
        link.next().await,
        Some(GuestEvent::Bound("init".to_owned()))
    );
    assert_eq!(link.next().await, Some(GuestEvent::Hello(Phase::Waiting)));
    link.boot(config());
    drop(waiting);
    // Init's connection broke before it had the config: it is sent to init again, and to nobody else.
    let mut refused = 0;
    for token in ["", "app", "inis", "init0"] {
        let mut app = dial(token, Channel::Control, Phase::Waiting).await;
        assert_eq!(app.receive().await, None, "{token:?}");
        refused += 1;
    }
    let mut init = dial("init", Channel::Control, Phase::Waiting).await;
    assert_eq!(link.next().await, Some(GuestEvent::Hello(Phase::Waiting)));
    assert_eq!(
        init.receive().await,
        Some(HostFrame::Boot(Box::new(config())))
    );
    init.send(&GuestFrame::Started).await;
    assert_eq!(link.next().await, Some(GuestEvent::Started));
    // From now on it is sent to no program of the guest, init's token or not.
    for token in ["", "app", "init"] {
        let mut app = dial(token, Channel::Control, Phase::Waiting).await;
        assert_eq!(app.receive().await, None, "{token:?}");
        refused += 1;
    }
    // Nor is any other channel open to the app.
    for channel in [Channel::Control, Channel::Log, Channel::Exec { session: 1 }] {
        let mut app = dial("app", channel, Phase::Running).await;
        assert_eq!(app.receive().await, None, "{channel:?}");
        refused += 1;
    }
    // None of it took the place of init's connection.
    link.stop(500);
    let stop = HostFrame::Stop { timeout_ms: 500 };
    assert_eq!(init.receive().await, Some(stop));
    violations(&link, refused).await;
}

/// As after a restart of the agent: the token is in the record.
#[tokio::test]
async fn case_a_recorded_token_keeps_the_app_from_taking_inits_place() {
    let dir = tempfile::tempdir().unwrap();
    let (mut link, socket) = link_of(dir.path(), Some("init".to_owned()), Clock::start());
    link.boot(config());
    let dial = |token: &'static str, phase| {
        Guest::dial_as(token, &socket, CONTRACT_VERSION, Channel::Control, phase)
    };
    let mut app = dial("app", Phase::Waiting).await;
    assert_eq!(app.receive().await, None);
    let mut init = dial("init", Phase::Waiting).await;
    assert_eq!(link.next().await, Some(GuestEvent::Hello(Phase::Waiting)));
    assert_eq!(
        init.receive().await,
        Some(HostFrame::Boot(Box::new(config())))
    );
    // The guest that is adopted while it runs is sent nothing.
    let mut init = dial("init", Phase::Running).await;
    assert_eq!(link.next().await, Some(GuestEvent::Hello(Phase::Running)));
    let mut again = dial("init", Phase::Waiting).await;
    assert_eq!(again.receive().await, None);
    init.send(&GuestFrame::Exited(exit(0))).await;
    assert_eq!(link.next().await, Some(GuestEvent::Exited(exit(0))));
}

#[tokio::test]
async fn case_a_guest_is_told_the_machines_time_as_it_is_after_a_step() {
    static MACHINE: AtomicU64 = AtomicU64::new(1_700_000_000);
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::with_machine(|| Duration::from_secs(MACHINE.load(Ordering::Relaxed)));
    let (_link, socket) = link_of(dir.path(), None, clock);
    let mut guest = Guest::dial(&socket, Channel::Control, Phase::Running).await;
    for (number, seconds) in [(1, 1_700_000_000), (2, 1_600_000_000), (3, 1_800_000_000)] {
        MACHINE.store(seconds, Ordering::Relaxed);
        guest
            .send(&GuestFrame::TimeAsked(guest_protocol::TimeAsked { number }))
            .await;
        let time = NodeTime {
            number,
            unix_nanos: seconds * 1_000_000_000,
        };
        assert_eq!(guest.receive().await, Some(HostFrame::Time(time)));
    }
}

#[tokio::test]
async fn case_a_guest_is_told_another_mtu_at_once_and_again_when_it_dials_again() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, mtu) = watch::channel(1420);
    let (_link, socket) = link_with_mtu(dir.path(), None, Clock::start(), mtu);
    let told = |mtu| Some(HostFrame::Mtu(guest_protocol::GuestMtu { mtu }));
    let mut guest = Guest::dial(&socket, Channel::Control, Phase::Running).await;
    assert_eq!(guest.receive_any().await, told(1420));
    cluster.send(1380).unwrap();
    assert_eq!(guest.receive_any().await, told(1380));
    cluster.send(1400).unwrap();
    assert_eq!(guest.receive_any().await, told(1400));
    let mut again = Guest::dial(&socket, Channel::Control, Phase::Running).await;
    assert_eq!(again.receive_any().await, told(1400));
}

/// This process's resident memory, in bytes.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Set in the process that runs the flood alone.
const ALONE: &str = "GUEST_LINK_FLOOD_ALONE";

#[test]
fn floods_cost_a_guest_its_connections_and_the_node_no_memory() {
    if std::env::var_os(ALONE).is_some() {
        return tokio::runtime::Runtime::new().unwrap().block_on(flood());
    }
    // In a process of its own: the memory of other tests is not this guest's doing.
    let name = "guest_link::tests::floods_cost_a_guest_its_connections_and_the_node_no_memory";
    let alone = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&alone.stdout);
    assert!(
        alone.status.success() && said.contains("1 passed"),
        "{said}"
    );
}

async fn flood() {
    let dir = tempfile::tempdir().unwrap();
    let (mut link, mut guest, socket) = running_guest(dir.path()).await;

    // A hundred megabytes of lines, half of them bytes that are no text.
    let log = Guest::dial(&socket, Channel::Log, Phase::Running).await;
    let (mut acknowledged, mut log) = log.stream.into_split();
    let hearing = tokio::spawn(async move {
        let (mut buffer, mut chunk) = (FrameBuffer::default(), [0; 4096]);
        loop {
            match buffer.next().unwrap() {
                Some(HostFrame::LogAck { seq: 6400 }) => return,
                Some(_) => {}
                None => {
                    let count = acknowledged.read(&mut chunk).await.unwrap();
                    assert!(count > 0, "the node closed the log");
                    buffer.push(&chunk[..count]);
                }
            }
        }
    });
    let mut line = vec![0xff; 16 * 1024];
    line[..6].copy_from_slice(b"\n\x1b[2J\r");
    let mut before = 0;
    for seq in 1..=6400_u64 {
        let record = LogRecord {
            seq,
            at_nanos: 0,
            stream: Stream::Stdout,
            partial: false,
            dropped: 0,
            line: line.clone(),
        };
        let frame = GuestFrame::Log(record).encode();
        log.write_all(&frame).await.unwrap();
        if seq == 640 {
            before = resident_bytes();
        }
    }
    hearing.await.unwrap();
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more after 90 MiB of lines");
    let kept: u64 = std::fs::read_dir(dir.path().join("log"))
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert!(kept <= 16 << 20, "{kept} bytes of log are kept");

    // Ten thousand connections: silent ones, half a frame, no frame, an exec channel nobody asked for.
    let before = resident_bytes();
    let half = &GuestFrame::Started.encode()[..4];
    let unasked = GuestFrame::Hello(Hello {
        contract: CONTRACT_VERSION,
        channel: Channel::Exec { session: 7 },
        phase: Phase::Running,
        token: String::new(),
    })
    .encode();
    let longest = u32::MAX.to_le_bytes();
    for number in 0..10_000 {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        // The node may close before all is written.
        let _ = match number % 4 {
            0 => Ok(()),
            1 => stream.write_all(half).await,
            2 => stream.write_all(&longest).await,
            _ => stream.write_all(&unasked).await,
        };
        let _ = stream.shutdown().await;
    }
    // Stats that nobody asked for, without end.
    for _ in 0..1000 {
        let stats = guest_protocol::GuestStats::default();
        guest.send(&GuestFrame::Stats(stats)).await;
    }
    guest.send(&GuestFrame::Exited(exit(0))).await;
    assert_eq!(link.next().await, Some(GuestEvent::Exited(exit(0))));
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more after 10k connections");
    violations(&link, 5000).await;
    let log = InstanceLog::open(&dir.path().join("log")).unwrap();
    let said = log.log_tail(20);
    assert!(
        said.iter()
            .any(|line| line.contains("closed 4096 connection(s)")),
        "{said:?}"
    );
}

#[tokio::test]
async fn case_a_word_of_progress_counts_until_the_app_was_started() {
    let dir = tempfile::tempdir().unwrap();
    let (mut link, socket) = link(dir.path());
    let mut guest = Guest::dial(&socket, Channel::Control, Phase::Starting).await;
    assert_eq!(link.next().await, Some(GuestEvent::Hello(Phase::Starting)));
    let progress =
        |bytes| GuestFrame::Progressed(guest_protocol::BootProgress { entries: 1, bytes });
    for bytes in [1, 2] {
        guest.send(&progress(bytes)).await;
        assert_eq!(link.next().await, Some(GuestEvent::Progressed));
    }
    guest.send(&GuestFrame::Started).await;
    assert_eq!(link.next().await, Some(GuestEvent::Started));
    // Late, and nobody's business any more.
    guest.send(&progress(3)).await;
    guest.send(&GuestFrame::Exited(exit(0))).await;
    assert_eq!(link.next().await, Some(GuestEvent::Exited(exit(0))));
    assert_eq!(link.protocol_violations(), 0);
}
