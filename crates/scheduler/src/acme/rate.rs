//! How fast orders begin, and how long a name waits after one that failed.

use model::Timestamp;

/// How long a name waits after its first failure, in milliseconds.
const FIRST_RETRY_MS: u64 = 5 * 60 * 1000;
/// Longest wait, in milliseconds: a name that points elsewhere costs its authority two tries in a day.
const LONGEST_RETRY_MS: u64 = 12 * 60 * 60 * 1000;
/// An hour, in milliseconds.
const HOUR_MS: u64 = 60 * 60 * 1000;
/// Part of what may begin in an hour that may begin at once.
const BURST_PARTS: u64 = 2;

/// How long a name waits after so many failures on end, in milliseconds: 5 minutes, and twice as long each time up to 12 hours, a fifth less or more by
/// `random`, so that names which failed together do not come back together. Never shorter than the authority asked for.
pub fn retry_delay_ms(failures: u32, asked_ms: Option<u64>, random: u64) -> u64 {
    let doublings = failures.saturating_sub(1).min(16);
    let delay = (FIRST_RETRY_MS << doublings).min(LONGEST_RETRY_MS);
    let fifth = delay / 5;
    let delay = delay - fifth + random % (2 * fifth + 1);
    delay.max(asked_ms.unwrap_or(0))
}

/// How many orders may begin: so many in an hour, of which half may begin at once.
#[derive(Debug, Clone, Copy)]
pub struct OrderRate {
    per_hour: u64,
    /// In parts of an order, of which [`HOUR_MS`] are one.
    parts: u64,
    at: Timestamp,
}

impl OrderRate {
    /// From now on. A leader that begins has a burst of its own.
    pub fn new(per_hour: u32, now: Timestamp) -> Self {
        let mut rate = Self {
            per_hour: u64::from(per_hour.max(1)),
            parts: 0,
            at: now,
        };
        rate.parts = rate.burst();
        rate
    }

    /// Other settings; what was used is used.
    pub fn set_per_hour(&mut self, per_hour: u32) {
        let before = self.burst();
        self.per_hour = u64::from(per_hour.max(1));
        let more = self.burst().saturating_sub(before);
        self.parts = self.parts.saturating_add(more).min(self.burst());
    }

    fn burst(&self) -> u64 {
        (self.per_hour / BURST_PARTS).max(1) * HOUR_MS
    }

    /// An order begins.
    ///
    /// # Errors
    /// It may not yet: from when on one may.
    pub fn take(&mut self, now: Timestamp) -> Result<(), Timestamp> {
        // A clock that was set back gives nothing.
        let passed = now.millis_since(self.at).min(HOUR_MS);
        self.at = now;
        let gained = passed.saturating_mul(self.per_hour);
        self.parts = self.parts.saturating_add(gained).min(self.burst());
        if self.parts >= HOUR_MS {
            self.parts -= HOUR_MS;
            return Ok(());
        }
        let missing = (HOUR_MS - self.parts).div_ceil(self.per_hour);
        Err(Timestamp(now.0.saturating_add(missing)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_name_waits_longer_each_time_and_never_less_than_was_asked_for() {
        let minutes = |failures| retry_delay_ms(failures, None, 0) / 60_000;
        // A fifth less than 5, 10, 20 .. minutes.
        assert_eq!([1, 2, 3, 4].map(minutes), [4, 8, 16, 32]);
        assert_eq!([12, 99, u32::MAX].map(minutes), [576, 576, 576]);
        for random in [0, 1, 7, u64::MAX / 3, u64::MAX] {
            let delay = retry_delay_ms(1, None, random);
            assert!((240_000..=360_000).contains(&delay), "{delay}");
        }
        assert_eq!(retry_delay_ms(1, Some(9_000_000), 0), 9_000_000);
        assert_eq!(retry_delay_ms(0, None, 0), 240_000);
    }

    #[test]
    fn half_of_an_hours_orders_begin_at_once_and_then_one_at_a_time() {
        let mut now = Timestamp(1_000_000);
        let mut rate = OrderRate::new(90, now);
        for _ in 0..45 {
            rate.take(now).unwrap();
        }
        let next = rate.take(now).unwrap_err();
        assert_eq!(next.millis_since(now), 40_000);
        now = next;
        rate.take(now).unwrap();
        assert!(rate.take(now).is_err());
        // In any hour after that, no more than 90.
        let mut begun = 0;
        let end = Timestamp(now.0 + HOUR_MS);
        while now < end {
            match rate.take(now) {
                Ok(()) => begun += 1,
                Err(next) => now = next,
            }
        }
        assert!((89..=91).contains(&begun), "{begun}");
        // A clock that is set back gives none, and neither does a long pause more than the burst.
        assert!(rate.take(Timestamp(0)).is_err());
        let later = Timestamp(now.0 + 100 * HOUR_MS);
        let mut at_once = 0;
        while rate.take(later).is_ok() {
            at_once += 1;
        }
        assert_eq!(at_once, 45);
        assert!(OrderRate::new(0, now).take(now).is_ok());
        // Other settings count at once, and what was used is used.
        let mut rate = OrderRate::new(2, now);
        rate.take(now).unwrap();
        assert!(rate.take(now).is_err());
        rate.set_per_hour(90);
        let begun = (0..99).filter(|_| rate.take(now).is_ok()).count();
        assert_eq!(begun, 44);
        rate.set_per_hour(90);
        assert!(rate.take(now).is_err());
    }
}
