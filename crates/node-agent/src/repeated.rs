//! An error that comes again and again is logged once, and each minute while it goes on: a machine that is out of descriptors
//! would else fill its own disk with lines about it.

use std::time::Duration;

use tokio::time::Instant;

/// An error that was logged is logged again when it still comes after this time.
const AGAIN: Duration = Duration::from_mins(1);

/// The error that was logged last.
#[derive(Debug, Default)]
pub(crate) struct Repeated {
    last: Option<(Instant, String)>,
}

impl Repeated {
    /// Whether this error is to be logged now.
    pub(crate) fn is_due(&mut self, error: &str) -> bool {
        let now = Instant::now();
        let known = self.last.as_ref();
        if known.is_some_and(|(at, last)| last == error && now.duration_since(*at) < AGAIN) {
            return false;
        }
        self.last = Some((now, error.to_owned()));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn case_an_error_that_comes_ten_times_a_second_is_logged_once_a_minute() {
        let mut repeated = Repeated::default();
        let mut lines = 0;
        for _ in 0..10 * 60 * 3 {
            lines += u32::from(repeated.is_due("too many open files"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(lines, 3);
        assert!(repeated.is_due("another"));
    }
}
