//! Time of day by the guest's clock, which follows the node's.
//!
//! Init asks the node for its time at the start of each connection, before the app starts, and every [`ASK_INTERVAL`]. An
//! answer is as good as the half of the time that it took. So it corrects only what is larger than that: by less than
//! [`STEP_THRESHOLD`] the kernel's clock is slewed (adjtime(3), 500 ppm), and it never goes backwards; by more it is set at
//! once, which the instance's log says from [`REPORT_THRESHOLD`] on. That happens after the machine was suspended, or its own clock was set.

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use guest_protocol::{GuestFrame, NodeTime, TimeAsked};
use model::Timestamp;
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::link::Link;
use crate::sys;

/// Time between two questions for the node's time: how long a guest may be wrong after the machine was suspended.
const ASK_INTERVAL: Duration = Duration::from_secs(16);
/// From this difference on the clock is set and not slewed (ntpd's step threshold).
const STEP_THRESHOLD: Duration = Duration::from_millis(128);
/// From this difference on the instance's log says that the clock was set. A guest's clock starts by the virtual machine's
/// clock, which counts whole seconds.
const REPORT_THRESHOLD: Duration = Duration::from_secs(1);
/// Differences up to this one are no worth a correction.
const GOOD_ENOUGH: Duration = Duration::from_millis(1);

fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Now, for events.
pub(crate) fn now() -> Timestamp {
    Timestamp(u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX))
}

/// Now, for log records: nanoseconds since 1970.
pub(crate) fn now_nanos() -> u64 {
    u64::try_from(since_epoch().as_nanos()).unwrap_or(u64::MAX)
}

/// Keeps the guest's clock with the node's.
#[derive(Debug)]
pub(crate) struct ClockSync {
    /// The last question: its number, and when it was asked; absent once it was answered.
    asked: Option<(u64, Instant)>,
    /// Whether the node has ever answered: one of before this question does not.
    is_answered: bool,
    count: u64,
    next: Instant,
}

/// How the clock is corrected by a difference to the node's, in nanoseconds; positive: the node's is ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Correction {
    None,
    Slew(i64),
    Step(i64),
}

impl ClockSync {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            asked: None,
            is_answered: false,
            count: 0,
            next: now,
        }
    }

    /// A new connection: the time is asked on it.
    pub(crate) fn connected(&mut self, control: &mut Link, now: Instant) {
        self.next = now;
        self.tick(control, now);
    }

    /// When [`Self::tick`] has something to do.
    pub(crate) fn deadline(&self) -> Instant {
        self.next
    }

    /// Asks when it is time to. An earlier question that was not answered is given up.
    pub(crate) fn tick(&mut self, control: &mut Link, now: Instant) {
        if self.next > now {
            return;
        }
        self.next = now + ASK_INTERVAL;
        if control.is_up() {
            self.count += 1;
            self.asked = Some((self.count, now));
            let number = self.count;
            control.send(&GuestFrame::TimeAsked(TimeAsked { number }));
            if self.is_answered {
                control.expect_answer(now);
            }
        }
    }

    /// Corrects the clock by the node's answer. Returns what to say about it, if anything.
    pub(crate) fn answered(&mut self, time: NodeTime, now: Instant) -> Option<String> {
        self.is_answered = true;
        let (number, asked) = self.asked?;
        if number != time.number {
            return None;
        }
        self.asked = None;
        let took = now.saturating_duration_since(asked);
        let half = i128::try_from(took.as_nanos() / 2).unwrap_or(i128::MAX);
        let ours = i128::try_from(since_epoch().as_nanos()).unwrap_or(i128::MAX);
        let ahead = (i128::from(time.unix_nanos) + half).saturating_sub(ours);
        let ahead = i64::try_from(ahead).unwrap_or(if ahead > 0 { i64::MAX } else { i64::MIN });
        let corrected = match correction(ahead, took) {
            Correction::None => return None,
            Correction::Slew(by) => sys::slew_clock(by),
            Correction::Step(by) => set_clock_by(by),
        };
        let millis = ahead / 1_000_000;
        let sign = if ahead < 0 { '-' } else { '+' };
        let seconds = format!("{sign}{}.{:03}", millis.abs() / 1000, millis.abs() % 1000);
        match corrected {
            Ok(()) if ahead.unsigned_abs() < as_nanos(REPORT_THRESHOLD) => None,
            Ok(()) => Some(format!("the clock was set by {seconds} s, to the node's")),
            Err(error) => Some(format!(
                "the clock is {seconds} s from the node's and cannot be corrected: {error}"
            )),
        }
    }
}

fn as_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The correction by an answer that took so long.
fn correction(ahead: i64, took: Duration) -> Correction {
    let size = ahead.unsigned_abs();
    if size <= as_nanos(took / 2).max(as_nanos(GOOD_ENOUGH)) {
        Correction::None
    } else if size < as_nanos(STEP_THRESHOLD) {
        Correction::Slew(ahead)
    } else {
        Correction::Step(ahead)
    }
}

fn set_clock_by(nanos: i64) -> io::Result<()> {
    let to = i128::try_from(since_epoch().as_nanos()).unwrap_or(i128::MAX) + i128::from(nanos);
    let seconds = to.div_euclid(1_000_000_000);
    let rest = to.rem_euclid(1_000_000_000);
    clock_settime(
        ClockId::Realtime,
        Timespec {
            tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(rest).unwrap_or(0),
        },
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    #[test]
    fn a_difference_is_slewed_or_stepped_by_its_size_and_no_more_than_the_answer_is_good_for() {
        let quick = Duration::from_millis(2);
        let slow = Duration::from_secs(4);
        for (ahead, took, expected) in [
            (0, quick, Correction::None),
            (MS, quick, Correction::None),
            (-MS, quick, Correction::None),
            (20 * MS, quick, Correction::Slew(20 * MS)),
            (-127 * MS, quick, Correction::Slew(-127 * MS)),
            (128 * MS, quick, Correction::Step(128 * MS)),
            (-3_600_000 * MS, quick, Correction::Step(-3_600_000 * MS)),
            // Within half of four seconds the answer says nothing.
            (1999 * MS, slow, Correction::None),
            (2001 * MS, slow, Correction::Step(2001 * MS)),
            (i64::MIN, slow, Correction::Step(i64::MIN)),
        ] {
            assert_eq!(correction(ahead, took), expected, "{ahead} ns, {took:?}");
        }
    }

    #[test]
    fn only_the_answer_to_the_last_question_is_taken_and_only_once() {
        let begun = Instant::now();
        let mut sync = ClockSync::new(begun);
        let mut time = NodeTime {
            number: 1,
            unix_nanos: now_nanos(),
        };
        assert_eq!(sync.answered(time, begun), None);
        sync.asked = Some((2, begun));
        time.unix_nanos = 0;
        assert_eq!(sync.answered(time, begun), None);
        assert!(sync.asked.is_some());
        // An answer within what it took corrects nothing.
        time = NodeTime {
            number: 2,
            unix_nanos: now_nanos(),
        };
        assert_eq!(sync.answered(time, begun + Duration::from_secs(9)), None);
        assert!(sync.asked.is_none());
    }
}
