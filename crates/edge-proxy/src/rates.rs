//! How often each client may ask: a token bucket for each, kept as the time at which it would be full again (the "generic cell rate algorithm", ITU-T I.371).
//! A client that has not asked for long costs nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use model::RateLimit;

use crate::limits::{MAX_RATED_CLIENTS, MIN_RATED_CLIENTS};
use crate::shares::site;

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// The clients of one route.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    /// When each would have all of its burst again, in nanoseconds.
    full_at: BTreeMap<IpAddr, u64>,
    /// How many were left when those that had theirs were dropped.
    swept_to: usize,
    swept_at: u64,
}

impl Rates {
    /// One more request of a client. `now`: since any moment, the same at each call.
    ///
    /// # Errors
    /// It has had its requests; after so long it has one again. Where more clients ask than are counted, the others are not limited: each of them has as many
    /// requests anyway.
    pub(crate) fn take(
        &mut self,
        client: IpAddr,
        limit: RateLimit,
        now: Duration,
    ) -> Result<(), Duration> {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let each = SECOND / u64::from(limit.requests_per_second.max(1));
        let saved = each * u64::from(limit.burst.max(1) - 1);
        let client = site(client);
        let full_at = self.full_at.get(&client).copied().unwrap_or(0).max(now);
        let early = full_at - now;
        if early > saved {
            return Err(Duration::from_nanos(early - saved));
        }
        if !self.full_at.contains_key(&client) {
            self.sweep(now);
            if self.full_at.len() >= MAX_RATED_CLIENTS {
                return Ok(());
            }
        }
        self.full_at.insert(client, full_at + each);
        Ok(())
    }

    /// Drops those that have all of theirs, when there are twice as many as were left last time; where there is no room, once a second.
    fn sweep(&mut self, now: u64) {
        let many = self.full_at.len();
        let is_due = if many >= MAX_RATED_CLIENTS {
            now.saturating_sub(self.swept_at) >= SECOND
        } else {
            many >= MIN_RATED_CLIENTS.max(2 * self.swept_to)
        };
        if is_due {
            self.full_at.retain(|_, full_at| *full_at > now);
            (self.swept_to, self.swept_at) = (self.full_at.len(), now);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    fn client(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    proptest! {
        /// In whatever time: not more than the burst and the rate; and who was told to wait so long is served then.
        #[test]
        fn a_client_has_its_burst_and_its_rate(
            rate in 1..40_u32,
            burst in 1..40_u32,
            steps in prop::collection::vec((0..400_u64, 1..30_usize), 1..60),
        ) {
            let limit = RateLimit { requests_per_second: rate, burst };
            let mut rates = Rates::default();
            let (mut now, mut taken, mut times) = (Duration::ZERO, 0_u64, Vec::new());
            for (millis, wanted) in steps {
                now += Duration::from_millis(millis);
                for _ in 0..wanted {
                    match rates.take(client(1), limit, now) {
                        Ok(()) => {
                            taken += 1;
                            times.push(now);
                        }
                        Err(later) => {
                            now += later;
                            prop_assert_eq!(rates.take(client(1), limit, now), Ok(()));
                            times.push(now);
                            taken += 1;
                            break;
                        }
                    }
                }
            }
            for (at, begin) in times.iter().enumerate() {
                for (count, end) in (1_u64..).zip(&times[at..]) {
                    let millis = end.saturating_sub(*begin).as_millis();
                    let by_time = millis * u128::from(rate) / 1000;
                    let most = u128::from(burst) + by_time + 2;
                    let count = u128::from(count);
                    prop_assert!(count <= most, "{count} of {most}, of {taken}");
                }
            }
        }
    }

    #[test]
    fn clients_are_apart_and_sites_are_one() {
        let limit = RateLimit {
            requests_per_second: 1,
            burst: 2,
        };
        let mut rates = Rates::default();
        let mut take = |text: &str, millis| {
            rates.take(text.parse().unwrap(), limit, Duration::from_millis(millis))
        };
        assert_eq!(take("192.0.2.1", 0), Ok(()));
        assert_eq!(take("::ffff:192.0.2.1", 0), Ok(()));
        assert_eq!(take("192.0.2.1", 0), Err(Duration::from_secs(1)));
        assert_eq!(take("192.0.2.1", 400), Err(Duration::from_millis(600)));
        assert_eq!(take("192.0.2.2", 400), Ok(()));
        assert_eq!(take("192.0.2.1", 1000), Ok(()));
        assert!(take("192.0.2.1", 1000).is_err());
        assert_eq!(take("2001:db8::1", 0), Ok(()));
        assert_eq!(take("2001:db8::2", 0), Ok(()));
        assert!(take("2001:db8::3", 0).is_err());
        assert_eq!(take("2001:db8:0:1::1", 0), Ok(()));
    }

    #[test]
    fn many_clients_take_bounded_memory() {
        let limit = RateLimit {
            requests_per_second: 1,
            burst: 1,
        };
        let mut rates = Rates::default();
        // Each has its one a second.
        for number in 0..MAX_RATED_CLIENTS as u32 + 10 {
            assert_eq!(rates.take(client(number), limit, Duration::ZERO), Ok(()));
        }
        assert_eq!(rates.full_at.len(), MAX_RATED_CLIENTS);
        assert!(rates.take(client(1), limit, Duration::ZERO).is_err());
        let later = Duration::from_secs(2);
        assert_eq!(rates.take(client(u32::MAX), limit, later), Ok(()));
        assert_eq!(rates.full_at.len(), 1);
    }
}
