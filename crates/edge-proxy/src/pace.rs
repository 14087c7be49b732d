//! Clients that send or take so little that they only hold a connection ("slow loris"): the time in which a client is waited for, against the bytes that
//! moved. While the app is waited for, no time counts: events, long polls and WebSockets may be silent for as long as the app likes.

use std::time::{Duration, Instant};

use crate::limits::{MIN_BYTES_PER_SECOND, SLOW_GRACE};

/// How long one body has waited for its client.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    waited: Duration,
    since: Option<Instant>,
}

impl Pace {
    /// Whether the client is waited for from now on, which moved so many bytes in all. Some: when it will have been too slow, unless more moves.
    pub(crate) fn update(
        &mut self,
        is_waited_for: bool,
        bytes: u64,
        now: impl Fn() -> Instant,
    ) -> Option<Instant> {
        if !is_waited_for && self.since.is_none() {
            return None;
        }
        let now = now();
        if let Some(since) = self.since.take() {
            self.waited += now.saturating_duration_since(since);
        }
        if !is_waited_for {
            return None;
        }
        self.since = Some(now);
        let paid = Duration::from_secs(bytes / MIN_BYTES_PER_SECOND);
        // The same as long as nothing moves, also when it is over: a timer that is set to it ends.
        let due = now + SLOW_GRACE + paid;
        Some(due.checked_sub(self.waited).unwrap_or(now))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A client is too slow exactly when it was waited for longer than the grace and what its bytes paid for; the app's time is nobody's.
        #[test]
        fn time_counts_while_the_client_is_waited_for(
            steps in prop::collection::vec((any::<bool>(), 0..3_000_u64, 0..20_000_u64), 1..80),
        ) {
            let begin = Instant::now();
            let (mut pace, mut now, mut bytes, mut waited) = (Pace::default(), begin, 0, Duration::ZERO);
            for (waits, more, millis) in steps {
                bytes += more;
                let due = pace.update(waits, bytes, || now);
                prop_assert_eq!(due.is_some(), waits);
                let later = Duration::from_millis(millis);
                if let Some(due) = due {
                    let most = SLOW_GRACE + Duration::from_secs(bytes / MIN_BYTES_PER_SECOND);
                    prop_assert_eq!(now + later > due, waited + later > most);
                    waited += later;
                }
                now += later;
            }
        }
    }

    #[test]
    fn a_byte_now_and_then_is_too_slow_and_the_least_rate_is_not() {
        let begin = Instant::now();
        let lives = |bytes_each: u64, seconds: u64| {
            let mut pace = Pace::default();
            (0..1000)
                .take_while(|step| {
                    let now = begin + Duration::from_secs(step * seconds);
                    let due = pace.update(true, step * bytes_each, || now);
                    due.is_some_and(|due| due > now)
                })
                .count() as u64
                * seconds
        };
        assert!(lives(1, 59) <= 120);
        assert_eq!(lives(MIN_BYTES_PER_SECOND * 10, 10), 10_000);
    }
}
