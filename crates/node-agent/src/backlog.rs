//! What followers of a log have not read yet: the newest records, bounded by their bytes, whatever
//! the guest writes and however slow a reader is. There is one for all followers of an instance.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_protocol::LogRecord;
use tokio::sync::watch;

/// Most bytes of records that are kept for followers, as [`cost`] counts them.
const MAX_BYTES: usize = 1024 * 1024;

/// The newest records of one instance, while somebody follows them.
#[derive(Debug)]
pub(crate) struct Backlog {
    ring: Mutex<Ring>,
    /// How many records there ever were; each follower waits for more.
    count: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    records: VecDeque<Arc<LogRecord>>,
    bytes: usize,
    /// The number of the first that is kept.
    first: u64,
}

impl Ring {
    fn next(&self) -> u64 {
        self.first + self.records.len() as u64
    }

    fn drop_first(&mut self) {
        if let Some(record) = self.records.pop_front() {
            self.bytes -= cost(&record);
            self.first += 1;
        }
    }
}

/// What a record takes in memory, in bytes.
fn cost(record: &LogRecord) -> usize {
    record.line.len() + size_of::<LogRecord>() + size_of::<Arc<LogRecord>>()
}

impl Backlog {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            ring: Mutex::default(),
            count: watch::Sender::new(0),
        })
    }

    /// Adds a record for those who follow; the oldest make room. Without a follower nothing is kept.
    pub(crate) fn push(&self, record: &LogRecord) {
        let mut ring = self.lock();
        if self.count.receiver_count() == 0 {
            *ring = Ring {
                first: ring.next() + 1,
                ..Ring::default()
            };
        } else {
            ring.bytes += cost(record);
            ring.records.push_back(Arc::new(record.clone()));
            while ring.bytes > MAX_BYTES {
                ring.drop_first();
            }
        }
        self.count.send_replace(ring.next());
    }

    /// Everything that comes from now on.
    pub(crate) fn follow(self: &Arc<Self>) -> Follower {
        let ring = self.lock();
        Follower {
            next: ring.next(),
            count: self.count.subscribe(),
            backlog: self.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        // Every change leaves the ring whole, so a panic elsewhere does not spoil it.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader of what comes.
#[derive(Debug)]
pub(crate) struct Follower {
    backlog: Arc<Backlog>,
    next: u64,
    count: watch::Receiver<u64>,
}

impl Follower {
    /// The next record, or how many were lost before it because this reader was too slow. Waits for
    /// it as long as it takes. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Arc<LogRecord>, u64> {
        loop {
            if let Some(next) = self.read() {
                return next;
            }
            if self.count.changed().await.is_err() {
                // Never: the sender is in the backlog, which is held here.
                std::future::pending::<()>().await;
            }
        }
    }

    fn read(&mut self) -> Option<Result<Arc<LogRecord>, u64>> {
        self.count.mark_unchanged();
        let ring = self.backlog.lock();
        let lost = ring.first.saturating_sub(self.next);
        if lost > 0 {
            self.next = ring.first;
            return Some(Err(lost));
        }
        let at = usize::try_from(self.next - ring.first).ok()?;
        let record = ring.records.get(at)?.clone();
        self.next += 1;
        Some(Ok(record))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use guest_protocol::{MAX_LOG_PIECE_BYTES, Stream};

    use super::*;

    fn record(seq: u64, bytes: usize) -> LogRecord {
        LogRecord {
            seq,
            at_nanos: 0,
            stream: Stream::Stdout,
            partial: false,
            dropped: 0,
            line: vec![b'x'; bytes],
        }
    }

    #[tokio::test]
    async fn a_slow_follower_costs_bytes_and_no_more_whatever_the_lines() {
        for bytes in [0, MAX_LOG_PIECE_BYTES] {
            let backlog = Backlog::new();
            backlog.push(&record(0, bytes));
            assert_eq!(backlog.lock().records.len(), 0, "nobody follows yet");
            let mut follower = backlog.follow();
            let mut slow = backlog.follow();
            for seq in 1..=20_000 {
                backlog.push(&record(seq, bytes));
                assert_eq!(follower.next().await.unwrap().seq, seq);
            }
            let kept = backlog.lock().records.len() as u64;
            let each = (bytes + size_of::<LogRecord>()) as u64;
            assert!(kept * each <= MAX_BYTES as u64, "{kept} of {each} bytes");
            assert_eq!(slow.next().await, Err(20_000 - kept));
            for seq in 20_001 - kept..=20_000 {
                assert_eq!(slow.next().await.unwrap().seq, seq);
            }
            let (come, ()) = tokio::join!(slow.next(), async {
                backlog.push(&record(20_001, bytes));
            });
            assert_eq!(come.unwrap().seq, 20_001);
            drop((slow, follower));
            backlog.push(&record(20_002, bytes));
            assert_eq!(backlog.lock().records.len(), 0, "nobody follows any more");
        }
    }
}
