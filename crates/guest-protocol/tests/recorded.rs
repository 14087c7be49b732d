//! Recorded bytes of every version that a node serves: each recording is decoded, and what this
//! version writes is compared with its own recording, so that no change of the wire goes unnoticed.
//!
//! A recording has a frame a line: its name, and its bytes with what is not printable escaped.
//! `UPDATE_EXPECT=1` records this version anew; a recording of an older version never changes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use expect_test::{expect, expect_file};
use guest_protocol::{
    BootConfig, BootFailure, CONTRACT_VERSION, Channel, ExecRequest, Frame, FrameBuffer,
    FrameError, GuestFrame, GuestNetwork, GuestStats, Hello, HostFrame, IGNORABLE, LogRecord,
    OLDEST_SERVED_VERSION, Phase, ProxyPort, Stream, VolumeMount,
};
use model::Timestamp;
use model::instance::{ExitEvent, Init, ProxyProtocol, SecretBundle};
use serde_json::Value;

fn hello(contract: u32, channel: Channel, phase: Phase) -> GuestFrame {
    GuestFrame::Hello(Hello {
        contract,
        channel,
        phase,
        token: String::new(),
    })
}

fn exit_event() -> ExitEvent {
    ExitEvent {
        exit_code: 137,
        signal: Some(9),
        oom_killed: true,
        requested_stop: false,
        at: Timestamp(1_764_000_000_123),
    }
}

fn log_record(stream: Stream, partial: bool, line: &[u8]) -> GuestFrame {
    GuestFrame::Log(LogRecord {
        seq: 42,
        at_nanos: 1_764_000_000_123_456_789,
        stream,
        partial,
        dropped: 3,
        line: line.to_vec(),
    })
}

/// One of each frame that a guest of this version sends.
fn guest_frames(contract: u32) -> Vec<(&'static str, GuestFrame)> {
    vec![
        (
            "hello on the control channel, waiting",
            hello(contract, Channel::Control, Phase::Waiting),
        ),
        (
            "hello on the log channel, starting",
            hello(contract, Channel::Log, Phase::Starting),
        ),
        (
            "hello on an exec channel, running",
            hello(contract, Channel::Exec { session: 7 }, Phase::Running),
        ),
        (
            "hello on the control channel, exited",
            hello(contract, Channel::Control, Phase::Exited),
        ),
        (
            "hello on the control channel, failed",
            hello(contract, Channel::Control, Phase::Failed),
        ),
        ("started", GuestFrame::Started),
        (
            "boot failed",
            GuestFrame::BootFailed(BootFailure {
                step: "start the app".to_owned(),
                reason: "command not found: shop".to_owned(),
                exit_code: Some(127),
            }),
        ),
        ("exited", GuestFrame::Exited(exit_event())),
        (
            "stats",
            GuestFrame::Stats(GuestStats {
                cpu_micros: 1_500_000,
                memory_bytes: 64 << 20,
                memory_total_bytes: 256 << 20,
                scratch_used_bytes: 4096,
                network_bytes: (1000, 2000),
                processes: 3,
                init_memory_bytes: 0,
                edge_connections: None,
            }),
        ),
        (
            "log, standard output",
            log_record(Stream::Stdout, false, b"listening on :8080"),
        ),
        (
            "log, standard error, a piece of a line",
            log_record(Stream::Stderr, true, b"\xff\x00not text"),
        ),
        (
            "log, platform",
            log_record(Stream::Platform, false, b"3 lines dropped here"),
        ),
        (
            "exec output",
            GuestFrame::ExecOutput {
                stream: Stream::Stdout,
                bytes: b"total 0\n".to_vec(),
            },
        ),
        ("exec exited", GuestFrame::ExecExited(exit_event())),
        (
            "exec refused",
            GuestFrame::ExecRefused {
                session: 7,
                reason: "32 commands run in it already".to_owned(),
            },
        ),
        (
            "exec failed",
            GuestFrame::ExecFailed {
                reason: "the instance ended".to_owned(),
            },
        ),
    ]
}

fn boot_config() -> BootConfig {
    BootConfig {
        hostname: "web-1".to_owned(),
        argv: vec!["/srv/shop".to_owned(), "serve".to_owned()],
        environment: vec![("PORT".to_owned(), "8080".to_owned())],
        working_dir: "/srv".to_owned(),
        user: "shop:shop".to_owned(),
        stop_signal: "SIGTERM".to_owned(),
        init: Init::Platform,
        network: GuestNetwork {
            address: "fd00:1:2:3::4".parse().unwrap(),
            ipv4: "10.128.0.5".parse().unwrap(),
            gateway: guest_protocol::GATEWAY,
            mtu: 1420,
            resolvers: vec![guest_protocol::RESOLVER.into()],
            search: Vec::new(),
        },
        root_device: "/dev/vda".to_owned(),
        scratch_device: "/dev/vdb".to_owned(),
        volumes: vec![VolumeMount {
            path: None,
            owner: None,
            device: "/dev/vdc".to_owned(),
            name: "data".to_owned(),
        }],
        image_volumes: vec!["/var/lib/shop".to_owned()],
        secrets: vec![SecretBundle {
            name: "database".to_owned(),
            files: BTreeMap::from([("password".to_owned(), b"s\xffcret".to_vec())]),
        }],
        proxy: vec![ProxyPort {
            ingress: 61001,
            port: 8080,
            mode: ProxyProtocol::Strip,
            peers: "fd00:1:2::".parse().unwrap(),
            peers_mask: "ffff:ffff:ffff::".parse().unwrap(),
        }],
        ports: Vec::new(),
        attached: false,
        secret_modes: BTreeMap::new(),
    }
}

/// One of each frame that a node sends.
fn host_frames() -> Vec<(&'static str, HostFrame)> {
    vec![
        ("boot", HostFrame::Boot(Box::new(boot_config()))),
        ("stop", HostFrame::Stop { timeout_ms: 10_000 }),
        (
            "signal",
            HostFrame::Signal {
                signal: "SIGHUP".to_owned(),
            },
        ),
        ("stats call", HostFrame::Stats),
        (
            "exec on pipes",
            HostFrame::Exec(ExecRequest {
                session: 7,
                argv: vec!["ls".to_owned(), "-l".to_owned()],
                terminal: None,
                terminal_type: None,
                main: false,
            }),
        ),
        (
            "exec on a terminal",
            HostFrame::Exec(ExecRequest {
                session: 8,
                argv: vec!["sh".to_owned()],
                terminal: Some((24, 80)),
                terminal_type: None,
                main: false,
            }),
        ),
        ("exit acknowledged", HostFrame::ExitAck),
        ("log acknowledged", HostFrame::LogAck { seq: 42 }),
        (
            "exec input",
            HostFrame::ExecInput {
                bytes: b"\x03exit\n".to_vec(),
            },
        ),
        (
            "exec input, end",
            HostFrame::ExecInput { bytes: Vec::new() },
        ),
        (
            "exec resize",
            HostFrame::ExecResize {
                rows: 50,
                columns: 132,
            },
        ),
        (
            "refused",
            HostFrame::Refused {
                reason: "the guest speaks version 1".to_owned(),
            },
        ),
    ]
}

/// The names of frames and their bytes, as a recording has them.
fn recording<F: Frame>(frames: &[(&str, F)]) -> String {
    frames.iter().fold(String::new(), |text, (name, frame)| {
        format!("{text}{name}: {}\n", frame.encode().escape_ascii())
    })
}

/// What [`recording`] wrote.
fn recorded(text: &str) -> Vec<(&str, Vec<u8>)> {
    text.lines()
        .map(|line| {
            let (name, bytes) = line.split_once(": ").unwrap();
            (name, unescape(bytes))
        })
        .collect()
}

/// The inverse of `escape_ascii`.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next().unwrap() {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'x' => {
                    let digits = [rest.next().unwrap(), rest.next().unwrap()];
                    u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                }
                quoted => quoted,
            },
            byte => byte,
        });
    }
    bytes
}

fn decode<F: Frame>(bytes: &[u8]) -> Result<Option<F>, FrameError> {
    let mut buffer = FrameBuffer::default();
    buffer.push(bytes);
    buffer.next()
}

#[track_caller]
fn decodes_to<F: Frame + PartialEq + std::fmt::Debug>(text: &str, expected: &[(&str, F)]) {
    let recorded = recorded(text);
    assert_eq!(recorded.len(), expected.len());
    for ((name, bytes), (expected_name, frame)) in recorded.iter().zip(expected) {
        assert_eq!(name, expected_name);
        assert_eq!(decode::<F>(bytes).unwrap().as_ref(), Some(frame), "{name}");
    }
}

const V2_GUEST: &str = include_str!("fixtures/v2-guest.txt");
const V2_NODE: &str = include_str!("fixtures/v2-node.txt");
const V3_GUEST: &str = include_str!("fixtures/v3-guest.txt");
const V3_NODE: &str = include_str!("fixtures/v3-node.txt");

#[test]
fn frames_of_every_served_version_decode() {
    assert_eq!(
        (OLDEST_SERVED_VERSION, CONTRACT_VERSION),
        (2, 3),
        "a new version has its recording here, and the oldest one goes"
    );
    decodes_to(V2_GUEST, &guest_frames(2));
    decodes_to(V2_NODE, &host_frames());
    decodes_to(V3_GUEST, &guest_frames(3));
    decodes_to(V3_NODE, &host_frames());
}

#[test]
fn this_version_writes_what_its_recording_has() {
    expect_file!["fixtures/v3-guest.txt"].assert_eq(&recording(&guest_frames(CONTRACT_VERSION)));
    expect_file!["fixtures/v3-node.txt"].assert_eq(&recording(&host_frames()));
}

#[test]
fn node_frames_are_those_of_version_2_as_long_as_its_strict_guests_are_served() {
    assert_eq!(recording(&host_frames()), V2_NODE);
    // Whatever the fields that were added since say.
    let added = host_frames().into_iter().map(|(name, mut frame)| {
        match &mut frame {
            HostFrame::Boot(config) => {
                config.init = Init::Image;
                config.ports = vec![8080];
                config.network.search = vec!["prod.shop.internal".to_owned()];
                config.secret_modes = BTreeMap::from([("database".to_owned(), 0o400)]);
                config.volumes[0].path = Some("/data".to_owned());
                config.volumes[0].owner = Some("shop".to_owned());
            }
            HostFrame::Exec(request) => request.terminal_type = Some("xterm-256color".to_owned()),
            _ => {}
        }
        assert_eq!(frame.clone().for_version(CONTRACT_VERSION), frame, "{name}");
        (name, frame.for_version(2))
    });
    assert_eq!(recording(&added.collect::<Vec<_>>()), V2_NODE);
}

/// Adds a field to every object that is one of our structs.
fn add_fields(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                match name.as_str() {
                    // A map of the user's files.
                    "files" => {}
                    // An enum whose one key is its variant.
                    "channel" => value
                        .as_object_mut()
                        .into_iter()
                        .flat_map(serde_json::Map::values_mut)
                        .for_each(add_fields),
                    _ => add_fields(value),
                }
            }
            fields.insert("added_later".to_owned(), Value::from(true));
        }
        Value::Array(values) => values.iter_mut().for_each(add_fields),
        _ => {}
    }
}

#[track_caller]
fn ignores_added_fields<F: Frame + PartialEq + std::fmt::Debug>(frames: &[(&str, F)]) -> usize {
    let mut changed = 0;
    for (name, frame) in frames {
        let (frame_type, body) = frame.parts();
        let Ok(mut value) = serde_json::from_slice(&body) else {
            continue;
        };
        add_fields(&mut value);
        let body = serde_json::to_vec(&value).unwrap();
        let text = String::from_utf8_lossy(&body);
        changed += text.matches("added_later").count();
        let decoded = F::from_parts(frame_type, &body);
        assert_eq!(decoded.as_ref(), Ok(frame), "{name}: {text}");
    }
    changed
}

#[test]
fn unknown_fields_are_ignored_at_every_depth() {
    let changed = ignores_added_fields(&guest_frames(CONTRACT_VERSION));
    assert!(changed >= 10, "{changed}");
    // The boot config alone has five structs in it.
    let changed = ignores_added_fields(&host_frames());
    assert!(changed >= 7, "{changed}");
}

#[test]
fn unknown_frames_are_skipped_where_their_type_allows_it_and_refused_elsewhere() {
    let unknown = |frame_type: u8| [&[4, 0, 0, 0, frame_type][..], b"new"].concat();
    let started = GuestFrame::Started.encode();
    for skipped in [IGNORABLE, 200, 255] {
        let bytes = [unknown(skipped), unknown(skipped), started.clone()].concat();
        assert_eq!(decode(&bytes), Ok(Some(GuestFrame::Started)), "{skipped}");
        assert_eq!(
            decode::<HostFrame>(&unknown(skipped)),
            Ok(None),
            "{skipped}"
        );
    }
    for refused in [0, 11, 65, 127] {
        let bytes = [unknown(refused), started.clone()].concat();
        assert_eq!(decode::<GuestFrame>(&bytes), Err(FrameError::Type(refused)));
    }
    assert_eq!(decode::<HostFrame>(&unknown(1)), Err(FrameError::Type(1)));
}

#[test]
fn a_hello_of_an_unserved_version_is_refused_by_its_version_whatever_else_it_says() {
    for contract in [0, 1, 4, u32::MAX] {
        let body = format!(r#"{{"contract":{contract},"channel":"shared-memory","mood":1}}"#);
        let error = GuestFrame::from_parts(1, body.as_bytes()).unwrap_err();
        assert_eq!(error, FrameError::Version { contract });
    }
    expect![[r#"
        the guest speaks version 1 of the guest protocol, this node serves 2 and 3; the guest's initramfs is too old: install the one that belongs to this node's version
        the guest speaks version 4 of the guest protocol, this node serves 2 and 3; the guest's initramfs is newer than the node: upgrade the node, or install the initramfs of its version
    "#]]
    .assert_eq(&format!(
        "{}\n{}\n",
        FrameError::Version { contract: 1 },
        FrameError::Version { contract: 4 }
    ));
}
