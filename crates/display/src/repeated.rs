//! An error that comes again and again is logged once, and each minute while it goes on: a machine that is out of descriptors
//! would else fill its own disk with lines about it.

use std::ops::Sub;
use std::time::Duration;

/// An error that was logged is logged again when it still comes after this time.
const AGAIN: Duration = Duration::from_mins(1);

/// The error that was logged last, and when: `T` is the time of any monotonic clock, such as tokio's `Instant`.
#[derive(Debug)]
pub struct Repeated<T> {
    last: Option<(T, String)>,
}

impl<T> Default for Repeated<T> {
    fn default() -> Self {
        Self { last: None }
    }
}

impl<T: Copy + Sub<T, Output = Duration>> Repeated<T> {
    /// Whether this error is to be logged `now`: it is another than the last one, or that was logged a minute ago.
    pub fn is_due(&mut self, now: T, error: &str) -> bool {
        let known = self.last.as_ref();
        if known.is_some_and(|(at, last)| last == error && now - *at < AGAIN) {
            return false;
        }
        self.last = Some((now, error.to_owned()));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_an_error_that_comes_ten_times_a_second_is_logged_once_a_minute() {
        let mut repeated = Repeated::default();
        let lines = (0..10 * 60 * 3)
            .map(|tenth| Duration::from_millis(tenth * 100))
            .filter(|now| repeated.is_due(*now, "too many open files"));
        assert_eq!(lines.count(), 3);
        assert!(repeated.is_due(Duration::from_mins(3), "another"));
    }
}
