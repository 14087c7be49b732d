//! What a log holds, and what its readers get.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

/// After everything that these tests write.
const LATE: Timestamp = Timestamp(1_000_000);

fn record(seq: u64, text: &str) -> LogRecord {
    LogRecord {
        seq,
        at_nanos: seq * 1_000_000,
        stream: Stream::Stdout,
        partial: false,
        dropped: 0,
        line: text.as_bytes().to_vec(),
    }
}

/// Readers of a log's whole past take a second each on a busy machine. A boot and the guest's lines wait for none.
#[test]
fn case_readers_of_the_past_hold_up_no_writer() {
    const READERS: usize = 16;
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(InstanceLog::open(dir.path()).unwrap());
    let line = "x".repeat(1000);
    for seq in 1..=100 {
        let batch = (0..70)
            .map(|n| record((seq - 1) * 70 + n + 1, &line))
            .collect();
        log.append(LATE, batch).unwrap();
    }
    let wanted = Past {
        lines: 10,
        ..Past::default()
    };
    let reading: Vec<_> = (0..READERS)
        .map(|_| {
            let (log, wanted) = (log.clone(), wanted.clone());
            std::thread::spawn(move || log.follow(&wanted).unwrap().0.len())
        })
        .collect();
    let mut written = 0;
    while reading.iter().any(|reader| !reader.is_finished()) {
        log.note(LATE, "a line of a boot").unwrap();
        written += 1;
    }
    for reader in reading {
        assert_eq!(reader.join().unwrap(), 10);
    }
    assert!(
        written > 10 * READERS,
        "{written} lines were written meanwhile"
    );
}

#[test]
fn records_behind_a_frame_of_a_newer_agent_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let log = InstanceLog::open(dir.path()).unwrap();
    log.append(LATE, vec![record(1, "before")]).unwrap();
    drop(log);
    let path = dir.path().join(CURRENT);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.extend_from_slice(&4_u32.to_le_bytes());
    bytes.extend_from_slice(&[guest_protocol::IGNORABLE | 0x7f, 1, 2, 3]);
    std::fs::write(&path, bytes).unwrap();
    let log = InstanceLog::open(dir.path()).unwrap();
    log.append(LATE, vec![record(2, "after")]).unwrap();
    drop(log);
    let log = InstanceLog::open(dir.path()).unwrap();
    assert_eq!(log.log_tail(10), ["before", "after"]);
}

#[test]
fn a_record_sent_again_is_written_once_even_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let log = InstanceLog::open(dir.path()).unwrap();
    log.begin_boot(Timestamp(0), "starting").unwrap();
    assert_eq!(
        log.append(LATE, vec![record(1, "a"), record(2, "b")])
            .unwrap(),
        2
    );
    drop(log);
    let log = InstanceLog::open(dir.path()).unwrap();
    assert_eq!(
        log.append(LATE, vec![record(2, "b"), record(3, "c")])
            .unwrap(),
        3
    );
    assert_eq!(log.log_tail(10), ["a", "b", "c"]);
}

#[test]
fn a_new_boot_counts_from_one_again() {
    let dir = tempfile::tempdir().unwrap();
    let log = InstanceLog::open(dir.path()).unwrap();
    log.append(LATE, vec![record(1, "old"), record(2, "old")])
        .unwrap();
    log.begin_boot(Timestamp(0), "starting").unwrap();
    assert_eq!(log.append(LATE, vec![record(1, "new")]).unwrap(), 1);
    assert_eq!(log.log_tail(10), ["new"]);
}

#[test]
fn the_boot_before_the_last_can_be_read_alone() {
    let dir = tempfile::tempdir().unwrap();
    let log = InstanceLog::open(dir.path()).unwrap();
    let previous = |lines| {
        let wanted = Past {
            lines,
            previous: true,
            ..Past::default()
        };
        let records = log.follow(&wanted).unwrap().0.into_iter();
        let texts = records.map(|record| String::from_utf8(record.line).unwrap());
        texts.collect::<Vec<_>>()
    };
    log.begin_boot(Timestamp(0), "start 1").unwrap();
    log.note(Timestamp(0), "early").unwrap();
    log.append(LATE, vec![record(1, "a"), record(2, "b")])
        .unwrap();
    assert!(previous(9).is_empty(), "there was none before the first");
    log.note(Timestamp(0), "ended").unwrap();
    log.begin_boot(Timestamp(0), "start 2").unwrap();
    log.append(LATE, vec![record(1, "c")]).unwrap();
    assert_eq!(previous(9), ["start 1", "early", "a", "b", "ended"]);
    assert_eq!(previous(2), ["b", "ended"]);
}

#[test]
fn case_a_line_in_pieces_counts_as_one_and_is_never_cut() {
    let dir = tempfile::tempdir().unwrap();
    let log = InstanceLog::open(dir.path()).unwrap();
    let piece = |seq, text, stream, partial| LogRecord {
        stream,
        partial,
        ..record(seq, text)
    };
    let (out, err) = (Stream::Stdout, Stream::Stderr);
    let records = vec![
        piece(1, "a1", out, true),
        piece(2, "e1", err, true),
        piece(3, "a2", out, true),
        piece(4, "a3", out, false),
        piece(5, "e2", err, false),
        piece(6, "b", out, false),
    ];
    log.append(LATE, records).unwrap();
    let texts = |lines, since| {
        let wanted = Past {
            lines,
            since,
            ..Past::default()
        };
        let records = log.follow(&wanted).unwrap().0.into_iter();
        let texts = records.map(|record| String::from_utf8(record.line).unwrap());
        texts.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(texts(1, None), "b");
    // `e1` lies between the pieces of the line that is left out.
    assert_eq!(texts(2, None), "b");
    assert_eq!(texts(3, None), "a1 e1 a2 a3 e2 b");
    assert_eq!(texts(9, Some(Timestamp(3))), "b");
    assert_eq!(log.log_tail(9), ["a1", "e1", "b"]);
}

#[test]
fn since_leaves_out_what_is_older() {
    let dir = tempfile::tempdir().unwrap();
    let log = InstanceLog::open(dir.path()).unwrap();
    log.append(LATE, (1..=9).map(|seq| record(seq, "x")).collect())
        .unwrap();
    let wanted = Past {
        lines: 5,
        since: Some(Timestamp(7)),
        ..Past::default()
    };
    let seqs = log.follow(&wanted).unwrap().0.into_iter().map(|r| r.seq);
    assert!(seqs.eq(7..=9));
}

#[test]
fn a_guest_cannot_write_before_its_boot_or_in_times_to_come() {
    let year_2500 = 16_725_225_600_000_000_000;
    let dir = tempfile::tempdir().unwrap();
    let log = InstanceLog::open(dir.path()).unwrap();
    let mut seq = 0;
    let mut believed = |log: &InstanceLog, now, at_nanos| {
        seq += 1;
        let forged = LogRecord {
            at_nanos,
            ..record(seq, "forged")
        };
        log.append(now, vec![forged]).unwrap();
        let wanted = Past {
            lines: 1,
            ..Past::default()
        };
        log.follow(&wanted).unwrap().0[0].at_nanos
    };
    log.begin_boot(Timestamp(5_000), "starting").unwrap();
    let (boot, now) = (5_000_000_000, Timestamp(7_000));
    assert_eq!(believed(&log, now, 0), boot);
    assert_eq!(believed(&log, now, boot + 17), boot + 17);
    assert_eq!(believed(&log, now, year_2500), 7_000_999_999);
    assert_eq!(believed(&log, now, u64::MAX), 7_000_999_999);
    // An agent after this one knows when the boot began.
    drop(log);
    let log = InstanceLog::open(dir.path()).unwrap();
    assert_eq!(believed(&log, now, 1), boot);
    // The node's clock is set back during the boot: the bound goes with it, and lines are not of times to come.
    assert_eq!(believed(&log, Timestamp(3_000), year_2500), 3_000_999_999);
    assert_eq!(believed(&log, now, 1), 3_000_000_000);
}

#[test]
fn a_torn_frame_at_the_end_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let log = InstanceLog::open(dir.path()).unwrap();
    log.append(LATE, vec![record(1, "whole")]).unwrap();
    drop(log);
    let torn = &GuestFrame::Log(record(2, "torn")).encode()[..9];
    let mut file = OpenOptions::new()
        .append(true)
        .open(dir.path().join(CURRENT))
        .unwrap();
    file.write_all(torn).unwrap();
    let log = InstanceLog::open(dir.path()).unwrap();
    assert_eq!(log.append(LATE, vec![record(2, "again")]).unwrap(), 2);
    assert_eq!(log.log_tail(10), ["whole", "again"]);
}

#[test]
fn two_files_bound_the_space_and_the_tail_spans_both() {
    let dir = tempfile::tempdir().unwrap();
    let log = InstanceLog::open(dir.path()).unwrap();
    let big = "x".repeat(16 * 1024);
    for seq in 1..=1500 {
        log.append(LATE, vec![record(seq, &big)]).unwrap();
    }
    let size: u64 = [CURRENT, PREVIOUS]
        .iter()
        .map(|name| std::fs::metadata(dir.path().join(name)).unwrap().len())
        .sum();
    assert!(size <= 2 * ROTATE_BYTES, "{size}");
    let wanted = Past {
        lines: 600,
        ..Past::default()
    };
    let (past, ..) = log.follow(&wanted).unwrap();
    assert_eq!(past.len(), 600);
    assert_eq!(past.last().unwrap().seq, 1500);
    assert_eq!(past[0].seq, 901);
}

#[test]
fn who_comes_to_the_beginning_of_a_log_that_lost_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let log = InstanceLog::open(dir.path()).unwrap();
    log.begin_boot(Timestamp(0), "start 1").unwrap();
    let first = |log: &InstanceLog, wanted: &Past| {
        let past = log.past(wanted).unwrap();
        String::from_utf8(past[0].line.clone()).unwrap()
    };
    let all = Past {
        lines: usize::MAX,
        ..Past::default()
    };
    assert_eq!(first(&log, &all), "start 1");
    let big = "x".repeat(16 * 1024);
    for seq in 1..=1500 {
        log.append(LATE, vec![record(seq, &big)]).unwrap();
    }
    let told = "older lines were dropped: a node keeps the last 16 MiB of an instance";
    assert_eq!(first(&log, &all), told);
    let named = Past {
        text: Some("start".into()),
        ..all.clone()
    };
    assert_eq!(first(&log, &named), told);
    // Who asks for no more than is there is not.
    let last = Past {
        lines: 3,
        ..Past::default()
    };
    assert_eq!(first(&log, &last), big);
    let since = Past {
        since: Some(Timestamp(1400)),
        ..all
    };
    assert_eq!(first(&log, &since), big);
}

#[test]
fn a_file_that_was_last_written_before_the_time_that_is_asked_for_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let log = InstanceLog::open(dir.path()).unwrap();
    log.append(LATE, vec![record(1, "a")]).unwrap();
    let at = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
    let file = File::options()
        .append(true)
        .open(dir.path().join(CURRENT))
        .unwrap();
    file.set_modified(at).unwrap();
    let past = |since| {
        let wanted = Past {
            lines: 9,
            since: Some(Timestamp(since)),
            ..Past::default()
        };
        let files = LogFiles::in_dir(dir.path()).unwrap();
        files.tail(&wanted).unwrap().records.len()
    };
    assert_eq!((past(0), past(1)), (1, 1));
    // Damaged where it is not read: nobody notices.
    std::fs::write(dir.path().join(PREVIOUS), [0xff; 64]).unwrap();
    let old = File::options()
        .append(true)
        .open(dir.path().join(PREVIOUS))
        .unwrap();
    old.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(past(1), 1);
}
