//! How many enrollments of one address may be refused. Whoever reaches the server may ask; looking at a request costs the server time, and
//! so does each line of its log. A machine that is let in is not counted, however many join from behind one address.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::{
    ENROLLMENT_BURST, ENROLLMENTS_PER_SECOND, MAX_ENROLLMENT_ADDRESSES, MAX_ENROLLMENT_BURST,
};
use crate::shares::Peer;

/// What an address may still be refused, as of a time.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    fn new(most: u32, now: Instant) -> Self {
        Self {
            left: most.into(),
            at: now,
        }
    }

    fn refill(&mut self, most: u32, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * ENROLLMENTS_PER_SECOND).min(most.into());
        self.at = now;
    }
}

#[derive(Debug)]
struct Inner {
    addresses: BTreeMap<Peer, Allowance>,
    /// Of all addresses together: whoever has many gains nothing.
    all: Allowance,
}

/// What was refused lately, by address. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct EnrollmentRate(Arc<Mutex<Inner>>);

impl EnrollmentRate {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            addresses: BTreeMap::new(),
            all: Allowance::new(MAX_ENROLLMENT_BURST, now),
        })))
    }

    /// Whether an enrollment from this address is looked at now; else how long to wait.
    pub(crate) fn check(&self, from: SocketAddr, now: Instant) -> Result<(), Duration> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.all.refill(MAX_ENROLLMENT_BURST, now);
        let mut left = inner.all.left;
        if let Some(known) = inner.addresses.get_mut(&Peer::stranger(from.ip())) {
            known.refill(ENROLLMENT_BURST, now);
            left = left.min(known.left);
        }
        if left >= 1.0 {
            Ok(())
        } else {
            Err(Duration::from_secs_f64(
                (1.0 - left) / ENROLLMENTS_PER_SECOND,
            ))
        }
    }

    /// An enrollment from this address was refused.
    pub(crate) fn refused(&self, from: SocketAddr, now: Instant) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.all.refill(MAX_ENROLLMENT_BURST, now);
        inner.all.left -= 1.0;
        if inner.addresses.len() >= MAX_ENROLLMENT_ADDRESSES {
            inner.addresses.retain(|_, known| {
                known.refill(ENROLLMENT_BURST, now);
                known.left < f64::from(ENROLLMENT_BURST)
            });
        }
        if inner.addresses.len() >= MAX_ENROLLMENT_ADDRESSES {
            return; // All together are bounded.
        }
        let address = Peer::stranger(from.ip());
        let known = inner.addresses.entry(address);
        let known = known.or_insert(Allowance::new(ENROLLMENT_BURST, now));
        known.refill(ENROLLMENT_BURST, now);
        known.left -= 1.0;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn an_address_that_is_refused_again_and_again_waits_and_others_do_not() {
        let began = Instant::now();
        let rate = EnrollmentRate::new(began);
        let from: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let other: SocketAddr = "192.0.2.2:1".parse().unwrap();
        let mut refused = 0;
        while rate.check(from, began).is_ok() {
            rate.refused(from, began);
            refused += 1;
        }
        assert_eq!(refused, ENROLLMENT_BURST);
        assert!(rate.check(other, began).is_ok());
        let wait = rate.check(from, began).unwrap_err();
        assert!(rate.check(from, began + wait).is_ok());
    }

    #[test]
    fn any_number_of_addresses_costs_bounded_memory_and_is_bounded_together() {
        let began = Instant::now();
        let rate = EnrollmentRate::new(began);
        let mut looked_at = 0;
        for n in 0..100_000_u32 {
            let from = SocketAddr::from((n.to_be_bytes(), 1));
            if rate.check(from, began).is_ok() {
                looked_at += 1;
                rate.refused(from, began);
            }
        }
        assert_eq!(looked_at, MAX_ENROLLMENT_BURST);
        let kept = rate.0.lock().unwrap().addresses.len();
        assert!(kept <= MAX_ENROLLMENT_ADDRESSES, "{kept}");
    }
}
