//! An error that comes again and again is logged once, and each minute while it goes on.

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
