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
//! Readers choose what they want: how much, of what time, with which text ([`Past`]). A file whose last line is older than that is not read, so
//! a reader of the last minutes costs what was written since. A log that has lost its beginning says so ([`older_is_gone`]).
//!
//! Deliberately absent: fsync. An acknowledged line survives the agent, not the machine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use guest_protocol::{Frame, FrameBuffer, GuestFrame, LogRecord, Stream};
use model::Timestamp;

use crate::backlog::{Backlog, Follower};
use crate::line_filter::{LineFilter, begins_boot, ends_line};
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
#[derive(Debug, Clone, Default)]
pub(crate) struct Past {
    /// At most this many lines, the last ones. The pieces of a long line count as one.
    pub(crate) lines: usize,
    /// Only those at or after this time.
    pub(crate) since: Option<Timestamp>,
    /// Only those before this time.
    pub(crate) until: Option<Timestamp>,
    /// Only lines with this text in them.
    pub(crate) text: Option<Arc<str>>,
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

    /// The wanted records of the past.
    ///
    /// # Errors
    /// The files cannot be read.
    pub(crate) fn past(&self, wanted: &Past) -> io::Result<Vec<LogRecord>> {
        let files = LogFiles::open(&self.lock())?;
        Ok(files.tail(wanted)?.whole())
    }

    /// The wanted records of the past, and a channel with what comes afterwards, for the filter: nothing between the
    /// two is lost or doubled.
    ///
    /// # Errors
    /// The files cannot be read.
    pub(crate) fn follow(
        &self,
        wanted: &Past,
    ) -> io::Result<(Vec<LogRecord>, LineFilter, Follower)> {
        let (files, follower) = {
            let inner = self.lock();
            (LogFiles::open(&inner)?, self.live.follow())
        };
        let mut tail = files.tail(wanted)?;
        let filter = std::mem::take(&mut tail.filter);
        Ok((tail.whole(), filter, follower))
    }

    /// The texts of the last `lines` records of the last boot, cut to [`MAX_TAIL_LINE_BYTES`] each.
    pub(crate) fn log_tail(&self, lines: usize) -> Vec<String> {
        let wanted = Past {
            lines,
            ..Past::default()
        };
        let files = LogFiles::in_dir(&self.lock().dir);
        let records = files.and_then(|files| files.tail(&wanted));
        let records = records.map(|tail| tail.records).unwrap_or_default();
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

/// The files of a log as they were at one moment. They are read without its lock: whoever reads sixteen megabytes holds
/// up nobody who writes, and so no guest and no boot.
struct LogFiles {
    /// The older one first.
    files: Vec<LogFile>,
}

struct LogFile {
    file: File,
    /// How many bytes of it are read.
    bytes: u64,
    /// When it was last written.
    written: Timestamp,
}

/// What is wanted of a log.
struct Tail {
    records: Vec<LogRecord>,
    /// With what it holds back: lines that have not ended.
    filter: LineFilter,
    /// When the oldest record was written that is kept, where older ones are gone and the reader wants them, too.
    gone_before: Option<u64>,
}

impl Tail {
    /// All of it: what the filter holds back, too.
    fn whole(mut self) -> Vec<LogRecord> {
        self.records.extend(self.filter.take());
        if let Some(at_nanos) = self.gone_before {
            self.records.insert(0, older_is_gone(at_nanos));
        }
        self.records
    }
}

/// What a reader is told who has come to the beginning of a log that has lost older lines.
fn older_is_gone(at_nanos: u64) -> LogRecord {
    let mebibytes = MAX_LOG_BYTES >> 20;
    LogRecord {
        seq: 0,
        at_nanos,
        stream: Stream::Platform,
        partial: false,
        dropped: 0,
        line: format!(
            "older lines were dropped: a node keeps the last {mebibytes} MiB of an instance"
        )
        .into_bytes(),
    }
}

impl LogFiles {
    /// Opens them. Renamed or moved, they stay the same.
    fn open(inner: &Inner) -> io::Result<Self> {
        let mut files = Self::in_dir(&inner.dir)?;
        // What is written from now on comes by the backlog.
        if let Some(current) = files.files.last_mut() {
            current.bytes = inner.bytes.min(current.bytes);
        }
        Ok(files)
    }

    fn in_dir(dir: &Path) -> io::Result<Self> {
        let mut files = Vec::new();
        for name in [PREVIOUS, CURRENT] {
            match File::open(dir.join(name)) {
                Ok(file) => {
                    let about = file.metadata()?;
                    let since = about.modified()?.duration_since(UNIX_EPOCH);
                    let millis = since.map_or(0, |since| since.as_millis());
                    files.push(LogFile {
                        file,
                        bytes: about.len(),
                        written: Timestamp(u64::try_from(millis).unwrap_or(u64::MAX)),
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { files })
    }

    fn tail(self, wanted: &Past) -> io::Result<Tail> {
        // Of the boot before, while the last one is read.
        let mut before = LastLines::new(wanted.lines);
        let mut last = LastLines::new(wanted.lines);
        let mut filter = LineFilter::new(wanted.text.clone());
        // Of the first record that is kept: its time, and whether it is the first there ever was.
        let mut oldest = None;
        for LogFile {
            file,
            bytes,
            written,
        } in self.files
        {
            // No record is of a later time than that at which it was written.
            if wanted.since.is_some_and(|since| written < since) {
                oldest = Some((0, true));
                continue;
            }
            read_records(file.take(bytes), |record| {
                // Each boot begins with a line of the node, and its guest counts from 1.
                let is_first = begins_boot(&record) || record.seq <= 1;
                oldest.get_or_insert((record.at_nanos, is_first));
                if wanted.previous && begins_boot(&record) {
                    last.extend(filter.take());
                    before = std::mem::replace(&mut last, LastLines::new(wanted.lines));
                }
                let at = record.at_nanos / NANOS_PER_MILLI;
                if wanted.lines == 0
                    || wanted.since.is_some_and(|since| at < since.0)
                    || wanted.until.is_some_and(|until| at >= until.0)
                {
                    filter.leave_out(&record);
                } else {
                    last.extend(filter.push(record));
                }
            })?;
        }
        let asked_for_more = last.lines < wanted.lines && !wanted.previous;
        let gone_before = oldest.filter(|(at_nanos, is_first)| {
            let wants_older = |since: Timestamp| since.0 < at_nanos / NANOS_PER_MILLI;
            asked_for_more && !is_first && wanted.since.is_none_or(wants_older)
        });
        let wanted = if wanted.previous { before } else { last };
        Ok(Tail {
            records: wanted.into_records(),
            filter,
            gone_before: gone_before.map(|(at_nanos, _)| at_nanos),
        })
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

    fn extend(&mut self, records: Vec<LogRecord>) {
        for record in records {
            self.push(record);
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

/// The wanted records of an ended instance, whose previous run is its last one.
///
/// # Errors
/// The files cannot be read.
pub(crate) fn ended_tail(dir: &Path, wanted: &Past) -> io::Result<Vec<LogRecord>> {
    let all = Past {
        previous: false,
        ..wanted.clone()
    };
    let mut records = LogFiles::in_dir(dir)?.tail(&all)?.whole();
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
mod tests;
