//! An error that comes again and again is logged once, and each minute while it goes on: a machine that is out of descriptors
//! would else fill its own disk with lines about it. So are some that take turns.

use std::collections::VecDeque;
use std::ops::Sub;
use std::time::Duration;

/// An error that was logged is logged again when it still comes after this time.
const AGAIN: Duration = Duration::from_mins(1);
/// How many errors may take turns: a member that was revoked gets a refusal and a broken connection in turn.
const KNOWN: usize = 4;

/// The errors that were logged last, and when: `T` is the time of any monotonic clock, such as tokio's `Instant`.
#[derive(Debug)]
pub struct Repeated<T> {
    known: VecDeque<(T, String)>,
}

impl<T> Default for Repeated<T> {
    fn default() -> Self {
        Self {
            known: VecDeque::new(),
        }
    }
}

impl<T: Copy + Sub<T, Output = Duration>> Repeated<T> {
    /// Whether this error is to be logged `now`: it is none of the last few, or that was logged a minute ago.
    pub fn is_due(&mut self, now: T, error: &str) -> bool {
        self.known.retain(|(at, _)| now - *at < AGAIN);
        if self.known.iter().any(|(_, known)| known == error) {
            return false;
        }
        if self.known.len() == KNOWN {
            self.known.pop_front();
        }
        self.known.push_back((now, error.to_owned()));
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

    #[test]
    fn case_two_errors_that_take_turns_are_logged_once_a_minute_each() {
        let mut repeated = Repeated::default();
        let errors = ["web-1 was revoked", "the connection was closed"];
        let lines = (0..10 * 60 * 3).filter(|tenth| {
            repeated.is_due(
                Duration::from_millis(tenth * 100),
                errors[usize::from(tenth % 2 == 0)],
            )
        });
        assert_eq!(lines.count(), 6);
        let each =
            (0..1000).filter(|nth| repeated.is_due(Duration::from_mins(3), &nth.to_string()));
        assert_eq!(each.count(), 1000, "what is new is always logged");
    }
}
