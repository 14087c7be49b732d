//! Frames of both directions: what is encoded is decoded, however the bytes are cut; other bytes are a typed error.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use guest_protocol::{
    BootFailure, BootProgress, CONTRACT_VERSION, Channel, ExecRequest, Forwarded, Frame,
    FrameBuffer, FrameError, GuestFrame, GuestMtu, GuestStats, Hello, HostFrame, LogRecord,
    MAX_LOG_PIECE_BYTES, Phase, Stream,
};
use model::Timestamp;
use model::instance::ExitEvent;
use proptest::prelude::*;

fn stream() -> impl Strategy<Value = Stream> {
    prop_oneof![
        Just(Stream::Stdout),
        Just(Stream::Stderr),
        Just(Stream::Platform)
    ]
}

fn exit() -> impl Strategy<Value = ExitEvent> {
    (
        any::<u8>(),
        any::<Option<u8>>(),
        any::<bool>(),
        any::<bool>(),
        any::<u64>(),
    )
        .prop_map(
            |(exit_code, signal, oom_killed, requested_stop, at)| ExitEvent {
                exit_code,
                signal,
                oom_killed,
                requested_stop,
                at: Timestamp(at),
            },
        )
}

fn guest_frame() -> impl Strategy<Value = GuestFrame> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
    prop_oneof![
        (0..3_u8, any::<u32>()).prop_map(|(kind, session)| GuestFrame::Hello(Hello {
            contract: CONTRACT_VERSION,
            channel: match kind {
                0 => Channel::Control,
                1 => Channel::Log,
                _ => Channel::Exec { session },
            },
            phase: Phase::Running,
            token: "0123abcd".repeat(session as usize % 3),
        })),
        Just(GuestFrame::Started),
        (".*", ".*", any::<Option<u8>>()).prop_map(|(step, reason, exit_code)| {
            GuestFrame::BootFailed(BootFailure {
                step,
                reason,
                exit_code,
            })
        }),
        exit().prop_map(GuestFrame::Exited),
        (any::<u32>(), ".*")
            .prop_map(|(session, reason)| GuestFrame::ExecRefused { session, reason }),
        any::<u64>().prop_map(|cpu_micros| {
            GuestFrame::Stats(GuestStats {
                cpu_micros,
                ..GuestStats::default()
            })
        }),
        (
            any::<u64>(),
            any::<u64>(),
            stream(),
            any::<bool>(),
            any::<u32>(),
            bytes()
        )
            .prop_map(|(seq, at_nanos, stream, partial, dropped, line)| {
                GuestFrame::Log(LogRecord {
                    seq,
                    at_nanos,
                    stream,
                    partial,
                    dropped,
                    line,
                })
            }),
        (stream(), bytes()).prop_map(|(stream, bytes)| GuestFrame::ExecOutput { stream, bytes }),
        exit().prop_map(GuestFrame::ExecExited),
        proptest::collection::vec(any::<u16>(), 0..4)
            .prop_map(|ports| GuestFrame::Forwarded(Forwarded { ports })),
        any::<(u64, u64)>().prop_map(|(entries, bytes)| {
            GuestFrame::Progressed(BootProgress { entries, bytes })
        }),
        ".*".prop_map(|reason| GuestFrame::ExecFailed { reason }),
    ]
}

fn host_frame() -> impl Strategy<Value = HostFrame> {
    prop_oneof![
        any::<u64>().prop_map(|timeout_ms| HostFrame::Stop { timeout_ms }),
        ".*".prop_map(|signal| HostFrame::Signal { signal }),
        Just(HostFrame::Stats),
        (
            any::<u32>(),
            proptest::collection::vec(".*", 0..4),
            any::<Option<(u16, u16)>>()
        )
            .prop_map(|(session, argv, terminal)| {
                HostFrame::Exec(ExecRequest {
                    session,
                    argv,
                    terminal,
                    terminal_type: None,
                    main: false,
                })
            }),
        Just(HostFrame::ExitAck),
        any::<u64>().prop_map(|seq| HostFrame::LogAck { seq }),
        proptest::collection::vec(any::<u8>(), 0..300)
            .prop_map(|bytes| HostFrame::ExecInput { bytes }),
        any::<(u16, u16)>().prop_map(|(rows, columns)| HostFrame::ExecResize { rows, columns }),
        ".*".prop_map(|reason| HostFrame::Refused { reason }),
        any::<u32>().prop_map(|mtu| HostFrame::Mtu(GuestMtu { mtu })),
    ]
}

/// Pushes the frames' bytes in pieces of these sizes, and returns the frames that come out.
fn through_the_wire<F: Frame>(frames: &[F], pieces: &[usize]) -> Vec<F> {
    let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
    let mut buffer = FrameBuffer::default();
    let mut decoded = Vec::new();
    let mut rest = bytes.as_slice();
    let mut sizes = pieces.iter().cycle();
    while !rest.is_empty() {
        let size = (*sizes.next().unwrap()).clamp(1, rest.len());
        buffer.push(&rest[..size]);
        rest = &rest[size..];
        while let Some(frame) = buffer.next().unwrap() {
            decoded.push(frame);
        }
    }
    decoded
}

proptest! {
    #[test]
    fn guest_frames_decode_to_what_was_encoded(
        frames in proptest::collection::vec(guest_frame(), 1..8),
        pieces in proptest::collection::vec(1..200_usize, 1..5),
    ) {
        prop_assert_eq!(through_the_wire(&frames, &pieces), frames);
    }

    #[test]
    fn a_log_frames_start_is_that_of_the_encoded_frame(frame in guest_frame()) {
        let bytes = frame.encode();
        if let GuestFrame::Log(record) = frame {
            let start = record.frame_start(record.line.len());
            prop_assert_eq!([&start[..], &record.line[..]].concat(), bytes);
        }
    }

    #[test]
    fn host_frames_decode_to_what_was_encoded(
        frames in proptest::collection::vec(host_frame(), 1..8),
        pieces in proptest::collection::vec(1..200_usize, 1..5),
    ) {
        prop_assert_eq!(through_the_wire(&frames, &pieces), frames);
    }

    #[test]
    fn arbitrary_bytes_are_frames_or_an_error_and_never_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..2000),
    ) {
        let mut buffer = FrameBuffer::default();
        buffer.push(&bytes);
        while let Ok(Some(_)) = buffer.next::<GuestFrame>() {}
    }
}

fn decode(bytes: &[u8]) -> Result<Option<GuestFrame>, FrameError> {
    let mut buffer = FrameBuffer::default();
    buffer.push(bytes);
    buffer.next()
}

#[test]
fn each_error_names_what_is_wrong_with_the_bytes() {
    assert!(matches!(
        decode(&[0, 0, 0, 0]),
        Err(FrameError::Length { length: 0, .. })
    ));
    let huge = u32::MAX.to_le_bytes();
    assert!(matches!(
        decode(&huge),
        Err(FrameError::Length {
            length: 0xffff_ffff,
            ..
        })
    ));
    assert_eq!(decode(&[1, 0, 0, 0, 100]), Err(FrameError::Type(100)));
    assert!(matches!(
        decode(&[3, 0, 0, 0, 1, b'{', 255]),
        Err(FrameError::Body { frame_type: 1, .. })
    ));
    assert_eq!(decode(&[1, 0, 0]), Ok(None));
    let long = GuestFrame::Log(LogRecord {
        seq: 1,
        at_nanos: 0,
        stream: Stream::Stdout,
        partial: false,
        dropped: 0,
        line: vec![b'x'; MAX_LOG_PIECE_BYTES + 1],
    });
    assert!(matches!(
        decode(&long.encode()),
        Err(FrameError::Body { frame_type: 6, .. })
    ));
}

#[test]
#[should_panic(expected = "attempt to add with overflow")]
fn arithmetic_that_overflows_panics_in_tests() {
    // The profile of the tests has overflow checks: without them this sum is 0.
    let length = std::hint::black_box(u32::MAX);
    std::hint::black_box(length + 1);
}
