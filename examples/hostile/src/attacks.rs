//! Attacks by connections to the node.

use std::io;
use std::time::{Duration, Instant};

use guest_protocol::{
    BootFailure, CONTRACT_VERSION, Channel, Frame as _, GuestFrame, GuestStats, HostFrame,
    LogRecord, MAX_FRAME_BYTES, MAX_LOG_PIECE_BYTES, Phase, Stream,
};
use model::Timestamp;
use model::instance::ExitEvent;

use crate::connection::{Connection, hello, raw};
use crate::output::ESCAPES;
use crate::report::report;

/// Connections of random bytes among the malformed ones.
const RANDOM: u64 = 20;
/// Connections in a row that cannot be made: the vsock device's bound is reached.
const REFUSED_IN_A_ROW: u32 = 3;
/// How long the connections of [`connections`] are kept: longer than a node waits for a hello.
const KEEP: Duration = Duration::from_secs(7);
/// Files this process may have open: more than any number of connections that a test asks for.
const MAX_FILES: u64 = 65_536;
/// Tries to end its own guest in init's place.
const ENDS: u32 = 20;
/// Forged records on each connection.
const RECORDS: usize = 20;
/// Nanoseconds since 1970 of the year 2500.
const YEAR_2500: u64 = 16_725_225_600_000_000_000;
/// Sequence numbers of forged records: far beyond those of init.
const FORGED_SEQ: u64 = 1 << 40;

/// Connections with malformed frames, or frames where they do not belong: the node must close each.
pub(crate) fn frames() -> io::Result<()> {
    let log = hello(CONTRACT_VERSION, Channel::Log, Phase::Running).encode();
    let control = hello(CONTRACT_VERSION, Channel::Control, Phase::Running).encode();
    let with = |hello: &[u8], rest: Vec<u8>| [hello, &rest].concat();
    let over = u32::try_from(MAX_FRAME_BYTES + 1).unwrap_or(u32::MAX);
    let mut all = vec![
        ("length 0", vec![0, 0, 0, 0, 1]),
        ("length 2^32-1", u32::MAX.to_le_bytes().to_vec()),
        ("one byte over the most", over.to_le_bytes().to_vec()),
        (
            "the most, of no type",
            raw(99, &vec![7; MAX_FRAME_BYTES - 1]),
        ),
        ("half a frame", log[..log.len() / 2].to_vec()),
        ("no byte", Vec::new()),
        ("no UTF-8", raw(1, &[0xff; 40])),
        ("no JSON", raw(1, b"{\"contract\":")),
        ("a node's frame", raw(70, &[])),
        ("no hello first", GuestFrame::Started.encode()),
        (
            "a command nobody asked for",
            hello(
                CONTRACT_VERSION,
                Channel::Exec { session: 7 },
                Phase::Running,
            )
            .encode(),
        ),
        ("hello twice, log", with(&log, log.clone())),
        ("hello twice, control", with(&control, control.clone())),
        ("an exit on the log channel", with(&log, raw(4, b"{}"))),
        (
            "a line longer than any",
            with(&log, raw(6, &vec![1; 22 + MAX_LOG_PIECE_BYTES + 1])),
        ),
        (
            "stats without their fields",
            with(&control, raw(5, b"{\"cpu\":1}")),
        ),
    ];
    for contract in [0, 1, CONTRACT_VERSION + 1, u32::MAX] {
        let bytes = hello(contract, Channel::Control, Phase::Waiting).encode();
        all.push(("an unserved version", bytes));
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    all.extend((0..RANDOM).map(|_| ("random bytes", random.bytes(4096))));
    let mut open = Vec::new();
    for (what, bytes) in &all {
        let mut connection = Connection::dial()?;
        // The node may close before all is written.
        let _ = connection.write(bytes);
        if !connection.is_closed_by_the_node() {
            open.push(*what);
        }
    }
    report(&format!(
        "{} of {} connections were closed by the node; still open: {open:?}",
        all.len() - open.len(),
        all.len(),
    ))
}

/// Hellos in init's place, of each channel and phase, while init is connected too: the node must close each, and send none of
/// them the boot config.
pub(crate) fn hellos() -> io::Result<()> {
    let (mut made, mut refused, mut boot_configs) = (0, 0, 0);
    for _ in 0..10 {
        for channel in [Channel::Control, Channel::Log, Channel::Exec { session: 1 }] {
            for phase in [Phase::Waiting, Phase::Running, Phase::Starting] {
                made += 1;
                let mut connection = Connection::hello(channel, phase)?;
                let stats = GuestFrame::Stats(GuestStats {
                    cpu_micros: u64::MAX,
                    ..GuestStats::default()
                });
                let frames = [&[GuestFrame::Started][..], &vec![stats; 100]].concat();
                let bytes: Vec<u8> = frames.iter().flat_map(GuestFrame::encode).collect();
                // The node may close before all is written.
                let _ = connection.write(&bytes);
                loop {
                    match connection.receive() {
                        Ok(Some(HostFrame::Boot(_))) => boot_configs += 1,
                        Ok(Some(_)) => {}
                        Ok(None) => {
                            refused += 1;
                            break;
                        }
                        Err(_) => break,
                    }
                }
            }
        }
    }
    report(&format!(
        "{refused} of {made} hellos in init's place were refused; they got the boot config {boot_configs} times"
    ))
}

/// As many connections at a time as the device allows, up to `count`, kept for [`KEEP`]; then one after the
/// other, up to `count` in all.
pub(crate) fn connections(count: usize) -> io::Result<()> {
    raise_open_files()?;
    let mut kept = Vec::new();
    let mut refused = 0;
    while kept.len() < count && refused < REFUSED_IN_A_ROW {
        match Connection::dial() {
            Ok(connection) => {
                kept.push(connection);
                refused = 0;
            }
            Err(_) => refused += 1,
        }
    }
    let at_once = kept.len();
    report(&format!("keeping {at_once} connections"))?;
    std::thread::sleep(KEEP);
    drop(kept);
    let mut made = at_once;
    let mut failed = 0;
    while made < count && failed < count {
        match Connection::dial() {
            Ok(_) => made += 1,
            Err(_) => failed += 1,
        }
    }
    report(&format!(
        "{made} connections made, {at_once} of them at once, {failed} refused"
    ))
}

fn raise_open_files() -> io::Result<()> {
    let most = rustix::process::Rlimit {
        current: Some(MAX_FILES),
        maximum: Some(MAX_FILES),
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, most)?;
    Ok(())
}

/// Records on a log channel in init's place: impossible times, escape sequences, false counts of lost lines.
pub(crate) fn records(connections: usize) -> io::Result<()> {
    let mut seq = FORGED_SEQ;
    let mut acknowledged = 0;
    for _ in 0..connections {
        let mut connection = Connection::hello(Channel::Log, Phase::Running)?;
        for _ in 0..RECORDS {
            seq += 1;
            let text = format!("forged {seq} {ESCAPES}");
            let mut bytes = vec![0xff; MAX_LOG_PIECE_BYTES];
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            let frame = GuestFrame::Log(LogRecord {
                seq,
                at_nanos: if seq % 2 == 0 { 0 } else { YEAR_2500 },
                stream: Stream::Platform,
                partial: seq % 3 == 0,
                dropped: u32::MAX,
                line: bytes,
            });
            if connection.write(&frame.encode()).is_err() {
                break;
            }
        }
        while let Ok(Some(frame)) = connection.receive() {
            acknowledged += usize::from(matches!(frame, HostFrame::LogAck { .. }));
        }
    }
    report(&format!(
        "{acknowledged} acknowledgements of forged records on {connections} connections"
    ))
}

fn exit(exit_code: u8) -> GuestFrame {
    GuestFrame::Exited(ExitEvent {
        exit_code,
        signal: None,
        oom_killed: false,
        requested_stop: true,
        at: Timestamp(u64::MAX),
    })
}

/// Two different exits, while the app runs.
pub(crate) fn ends() -> io::Result<()> {
    until_all_are_refused(
        &Phase::Running,
        &[exit(0).encode(), exit(1).encode()].concat(),
    )
}

/// A failed boot, reported while the app runs, in escape sequences.
pub(crate) fn failure() -> io::Result<()> {
    let failure = GuestFrame::BootFailed(BootFailure {
        step: format!("{ESCAPES}step"),
        reason: format!("{ESCAPES}{}", "reason ".repeat(20_000)),
        exit_code: None,
    });
    until_all_are_refused(&Phase::Failed, &failure.encode())
}

/// Sends frames in init's place, again and again. This program goes on afterwards only if none of them ended its guest.
fn until_all_are_refused(phase: &Phase, frames: &[u8]) -> io::Result<()> {
    let mut refused = 0;
    for _ in 0..ENDS {
        let mut connection = Connection::hello(Channel::Control, phase.clone())?;
        // The node may close before all is written.
        let _ = connection.write(frames);
        refused += u32::from(connection.is_closed_by_the_node());
    }
    report(&format!(
        "{refused} of {ENDS} ends in init's place were refused"
    ))
}

/// Hellos without a pause, so that the node gets nothing else from this guest.
pub(crate) fn redial(seconds: usize) -> io::Result<()> {
    let until = Instant::now() + Duration::from_secs(seconds as u64);
    let mut count = 0_u32;
    report("dialling")?;
    while Instant::now() < until {
        if Connection::hello(Channel::Control, Phase::Running).is_ok() {
            count += 1;
        }
    }
    report(&format!("{count} hellos"))
}

/// Pseudo-random bytes, the same each time (xorshift).
struct Random(u64);

impl Random {
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut next = || {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.to_le_bytes()[3]
        };
        (0..count).map(|_| next()).collect()
    }
}
