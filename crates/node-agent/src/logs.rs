//! An instance's log on the node: a bounded, rotated pair of files of [`LogRecord`] frames.
//!
//! The guest sends records with sequence numbers that start again at 1 with each boot, and sends
//! again what was not acknowledged. A record with sequence number 0 that is marked partial, written
//! here when a boot begins, separates the boots ([`begins_boot`]); so after an agent's restart the last number of this boot can be read
//! off the file, and a record that is already there is not written twice. A torn frame at the end
//! (the machine lost power) is cut off when the file is opened.
//!
//! A guest's clock is the guest's: the time of a record is believed between the beginning of its boot
//! and now, by the node's clock ([`believable`]), so that no guest puts its lines before or after
//! those of others.
//!
//! When an instance is gone its log is moved to where those of ended instances are kept (`crate::ended_logs`).
//!
//! Deliberately absent: fsync. An acknowledged line survives the agent, not the machine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_protocol::{Frame, FrameBuffer, GuestFrame, LogRecord, Stream};
use model::Timestamp;

use crate::backlog::{Backlog, Follower};
use display::one_line;

/// The current file is moved aside when it is this large, in bytes; two are kept.
const ROTATE_BYTES: u64 = 8 * 1024 * 1024;
/// Most that the files of one log take, in bytes.
pub(crate) const MAX_LOG_BYTES: u64 = 2 * ROTATE_BYTES;
/// Longest line of a log tail, in bytes: the tail goes into every report.
const MAX_TAIL_LINE_BYTES: usize = 500;

const NANOS_PER_MILLI: u64 = 1_000_000;

const CURRENT: &str = "current.log";
const PREVIOUS: &str = "previous.log";

/// Which records of the past are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Past {
    /// At most this many lines, the last ones. The pieces of a long line count as one.
    pub(crate) lines: usize,
    /// Only those at or after this time.
    pub(crate) since: Option<Timestamp>,
    /// Only those of the boot before the last one.
    pub(crate) previous: bool,
}

/// One instance's log. Shared between the link that writes it and the streams that read it.
#[derive(Debug)]
pub(crate) struct InstanceLog {
    inner: Mutex<Inner>,
    live: Arc<Backlog>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    file: File,
    bytes: u64,
    last_seq: u64,
    /// When this boot began, in nanoseconds since 1970; after an agent's restart, if that is not in
    /// the current file any more, when its first record was written.
    boot_nanos: u64,
}

impl InstanceLog {
    /// Opens the log in `dir`, making it when there is none.
    ///
    /// # Errors
    /// The folder or the file cannot be made or read.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join(CURRENT);
        let mut whole_bytes = 0;
        let mut last_seq = 0;
        let mut boot_nanos = 0;
        if path.exists() {
            whole_bytes = for_each_record(&path, |record| {
                if boot_nanos == 0 || begins_boot(&record) {
                    boot_nanos = record.at_nanos;
                }
                last_seq = record.seq;
            })?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        file.set_len(whole_bytes)?;
        Ok(Self {
            inner: Mutex::new(Inner {
                dir: dir.to_owned(),
                file,
                bytes: whole_bytes,
                last_seq,
                boot_nanos,
            }),
            live: Backlog::new(),
        })
    }

    /// Marks the beginning of a boot, with a line for the reader.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn begin_boot(&self, at: Timestamp, line: &str) -> io::Result<()> {
        self.write_platform_line(at, line, true)
    }

    /// Adds a line of the platform's own, between the guest's.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn note(&self, at: Timestamp, line: &str) -> io::Result<()> {
        self.write_platform_line(at, line, false)
    }

    fn write_platform_line(&self, at: Timestamp, line: &str, new_boot: bool) -> io::Result<()> {
        let mut inner = self.lock();
        let seq = if new_boot { 0 } else { inner.last_seq };
        let at_nanos = at.0.saturating_mul(NANOS_PER_MILLI);
        let record = LogRecord {
            seq,
            at_nanos,
            stream: Stream::Platform,
            partial: new_boot,
            dropped: 0,
            line: line.as_bytes().to_vec(),
        };
        self.write(&mut inner, &[record])?;
        inner.last_seq = seq;
        if new_boot {
            inner.boot_nanos = at_nanos;
        }
        Ok(())
    }

    /// Writes a guest's records that are not there yet; returns the sequence number to acknowledge.
    ///
    /// # Errors
    /// The file cannot be written; nothing is to be acknowledged then.
    pub(crate) fn append(&self, now: Timestamp, mut records: Vec<LogRecord>) -> io::Result<u64> {
        let mut inner = self.lock();
        // The machine's clock may have been set back during this boot: the log's times follow it.
        let earliest = now.0.saturating_mul(NANOS_PER_MILLI);
        inner.boot_nanos = inner.boot_nanos.min(earliest);
        for record in &mut records {
            record.at_nanos = believable(record.at_nanos, inner.boot_nanos, now);
        }
        let mut last = inner.last_seq;
        let fresh: Vec<_> = records
            .into_iter()
            .filter(|record| {
                let new = record.seq > last;
                last = last.max(record.seq);
                new
            })
            .collect();
        self.write(&mut inner, &fresh)?;
        inner.last_seq = last;
        Ok(last)
    }

    fn write(&self, inner: &mut Inner, records: &[LogRecord]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for record in records {
            bytes.extend_from_slice(&GuestFrame::Log(record.clone()).encode());
        }
        if inner.bytes > 0 && inner.bytes + bytes.len() as u64 > ROTATE_BYTES {
            std::fs::rename(inner.dir.join(CURRENT), inner.dir.join(PREVIOUS))?;
            inner.file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(inner.dir.join(CURRENT))?;
            inner.bytes = 0;
        }
        if let Err(error) = inner.file.write_all(&bytes) {
            // No half frame stays behind (the disk may be full).
            let _ = inner.file.set_len(inner.bytes);
            return Err(error);
        }
        inner.bytes += bytes.len() as u64;
        for record in records {
            self.live.push(record);
        }
        Ok(())
    }

    /// The wanted records of the past, and a channel with what comes afterwards: nothing between the
    /// two is lost or doubled.
    ///
    /// # Errors
    /// The files cannot be read.
    pub(crate) fn follow(&self, wanted: Past) -> io::Result<(Vec<LogRecord>, Follower)> {
        let (files, follower) = {
            let inner = self.lock();
            (LogFiles::open(&inner)?, self.live.follow())
        };
        Ok((files.tail(wanted)?, follower))
    }

    /// The texts of the last `lines` records of the last boot, cut to [`MAX_TAIL_LINE_BYTES`] each.
    pub(crate) fn log_tail(&self, lines: usize) -> Vec<String> {
        let wanted = Past {
            lines,
            ..Past::default()
        };
        let files = LogFiles::in_dir(&self.lock().dir);
        let records = files
            .and_then(|files| files.tail(wanted))
            .unwrap_or_default();
        let boot = records.iter().rposition(begins_boot).map_or(0, |at| at + 1);
        // Of a long line its first piece is more than enough.
        let mut goes_on = BTreeMap::new();
        let firsts = records[boot..].iter().filter(|record| {
            let before = goes_on.insert(record.stream as u8, record.partial);
            !before.unwrap_or(false)
        });
        firsts
            .map(|record| one_line(&String::from_utf8_lossy(&record.line), MAX_TAIL_LINE_BYTES))
            .collect()
    }

    /// Moves the files to a folder that is not there yet. Those who have the log in hand find them there.
    ///
    /// # Errors
    /// The folder cannot be renamed; the log is where it was.
    pub(crate) fn move_to(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        std::fs::rename(&inner.dir, dir)?;
        dir.clone_into(&mut inner.dir);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every write leaves the state whole, so a panic elsewhere does not spoil it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A guest's time, in nanoseconds since 1970, as far as it can be true: not before its boot began and
/// not after now.
fn believable(at_nanos: u64, boot_nanos: u64, now: Timestamp) -> u64 {
    // The last nanosecond of this millisecond.
    let now = now
        .0
        .saturating_mul(NANOS_PER_MILLI)
        .saturating_add(NANOS_PER_MILLI - 1);
    at_nanos.min(now).max(boot_nanos)
}

/// Whether a record is the first of a boot. Guests' records count from 1, so none of theirs is.
pub(crate) fn begins_boot(record: &LogRecord) -> bool {
    record.seq == 0 && record.partial
}

/// The files of a log as they were at one moment. They are read without its lock: whoever reads sixteen megabytes holds
/// up nobody who writes, and so no guest and no boot.
struct LogFiles {
    /// Each with how many bytes of it are read, the older one first.
    files: Vec<(File, u64)>,
}

impl LogFiles {
    /// Opens them. Renamed or moved, they stay the same.
    fn open(inner: &Inner) -> io::Result<Self> {
        let mut files = Self::in_dir(&inner.dir)?;
        // What is written from now on comes by the backlog.
        if let Some((_, bytes)) = files.files.last_mut() {
            *bytes = inner.bytes.min(*bytes);
        }
        Ok(files)
    }

    fn in_dir(dir: &Path) -> io::Result<Self> {
        let mut files = Vec::new();
        for name in [PREVIOUS, CURRENT] {
            match File::open(dir.join(name)) {
                Ok(file) => {
                    let bytes = file.metadata()?.len();
                    files.push((file, bytes));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { files })
    }

    fn tail(self, wanted: Past) -> io::Result<Vec<LogRecord>> {
        // Of the boot before, while the last one is read.
        let mut before = LastLines::new(wanted.lines);
        let mut last = LastLines::new(wanted.lines);
        for (file, bytes) in self.files {
            read_records(file.take(bytes), |record| {
                if wanted.previous && begins_boot(&record) {
                    before = std::mem::replace(&mut last, LastLines::new(wanted.lines));
                }
                let at = record.at_nanos / NANOS_PER_MILLI;
                if wanted.lines == 0 || wanted.since.is_some_and(|since| at < since.0) {
                    last.leave_out(&record);
                } else {
                    last.push(record);
                }
            })?;
        }
        let wanted = if wanted.previous { before } else { last };
        Ok(wanted.into_records())
    }
}

/// The last lines of a log, none of which lacks its beginning.
struct LastLines {
    most: usize,
    records: VecDeque<LogRecord>,
    /// How many of the records end a line.
    lines: usize,
    /// The streams of which a piece of a line was left out whose rest may be in `records`.
    cut: BTreeSet<u8>,
}

impl LastLines {
    fn new(most: usize) -> Self {
        Self {
            most,
            records: VecDeque::new(),
            lines: 0,
            cut: BTreeSet::new(),
        }
    }

    fn push(&mut self, record: LogRecord) {
        self.lines += usize::from(ends_line(&record));
        self.records.push_back(record);
        while self.lines > self.most {
            let Some(first) = self.records.pop_front() else {
                break;
            };
            self.lines -= usize::from(ends_line(&first));
            self.leave_out(&first);
        }
    }

    fn leave_out(&mut self, record: &LogRecord) {
        if ends_line(record) {
            self.cut.remove(&(record.stream as u8));
        } else {
            self.cut.insert(record.stream as u8);
        }
    }

    fn into_records(mut self) -> Vec<LogRecord> {
        self.records.retain(|record| {
            let is_rest = self.cut.contains(&(record.stream as u8));
            if is_rest && ends_line(record) {
                self.cut.remove(&(record.stream as u8));
            }
            !is_rest
        });
        self.records.into()
    }
}

/// Whether a record is a line, or the last piece of one.
fn ends_line(record: &LogRecord) -> bool {
    !record.partial || begins_boot(record)
}

/// The wanted records of an ended instance, whose previous run is its last one.
///
/// # Errors
/// The files cannot be read.
pub(crate) fn ended_tail(dir: &Path, wanted: Past) -> io::Result<Vec<LogRecord>> {
    let all = Past {
        previous: false,
        ..wanted
    };
    let mut records = LogFiles::in_dir(dir)?.tail(all)?;
    if wanted.previous
        && let Some(begin) = records.iter().rposition(begins_boot)
    {
        records.drain(..begin);
    }
    Ok(records)
}

/// What the files of a log take, in bytes; 0 when there are none.
///
/// # Errors
/// The files cannot be looked at.
pub(crate) fn log_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for name in [PREVIOUS, CURRENT] {
        match std::fs::metadata(dir.join(name)) {
            Ok(file) => bytes += file.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// Calls `each` with every whole record; returns how many bytes whole frames take, those that are skipped among them.
fn for_each_record(path: &Path, each: impl FnMut(LogRecord)) -> io::Result<u64> {
    read_records(File::open(path)?, each)
}

fn read_records(mut file: impl Read, mut each: impl FnMut(LogRecord)) -> io::Result<u64> {
    let mut frames = FrameBuffer::default();
    let mut chunk = vec![0; 64 * 1024];
    let mut read = 0;
    loop {
        let count = file.read(&mut chunk)?;
        if count == 0 {
            return Ok(read - frames.pending_bytes() as u64);
        }
        frames.push(&chunk[..count]);
        read += count as u64;
        loop {
            let before = frames.pending_bytes() as u64;
            match frames.next::<GuestFrame>() {
                Ok(Some(GuestFrame::Log(record))) => each(record),
                Ok(Some(_)) => {}
                Ok(None) => break,
                // What follows a damaged frame cannot be read: what came before it is kept.
                Err(_) => return Ok(read - before),
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
                let log = log.clone();
                std::thread::spawn(move || log.follow(wanted).unwrap().0.len())
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
            let records = log.follow(wanted).unwrap().0.into_iter();
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
            let records = log.follow(wanted).unwrap().0.into_iter();
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
        let seqs = log.follow(wanted).unwrap().0.into_iter().map(|r| r.seq);
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
            log.follow(wanted).unwrap().0[0].at_nanos
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
        let (past, _) = log.follow(wanted).unwrap();
        assert_eq!(past.len(), 600);
        assert_eq!(past.last().unwrap().seq, 1500);
        assert_eq!(past[0].seq, 901);
    }
}
