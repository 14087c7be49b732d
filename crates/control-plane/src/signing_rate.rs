//! How many hosts' certificates the ingress CA signs for an edge. One that asks without end, because it is broken or in others' hands, costs the server no more than that.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use model::EdgeId;

use crate::limits::{SIGNATURES_AT_ONCE, SIGNATURES_PER_SECOND};

/// What is left of each edge, and as of when.
#[derive(Debug, Default)]
pub(crate) struct SigningRate(Mutex<BTreeMap<EdgeId, (f64, Instant)>>);

impl SigningRate {
    /// A certificate is signed for an edge.
    ///
    /// # Errors
    /// It has had too many; how long it has to wait.
    pub(crate) fn take(&self, edge: EdgeId, now: Instant) -> Result<(), Duration> {
        let mut edges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, at) = edges.entry(edge).or_insert((SIGNATURES_AT_ONCE, now));
        let passed = now.saturating_duration_since(*at).as_secs_f64();
        *left = (*left + passed * SIGNATURES_PER_SECOND).min(SIGNATURES_AT_ONCE);
        *at = now;
        if *left >= 1.0 {
            *left -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64(
            (1.0 - *left) / SIGNATURES_PER_SECOND,
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn an_edge_that_asks_without_end_waits_and_others_do_not() {
        let (rate, begin) = (SigningRate::default(), Instant::now());
        let mut signed = 0;
        let wait = loop {
            match rate.take(EdgeId(1), begin) {
                Ok(()) => signed += 1,
                Err(wait) => break wait,
            }
        };
        assert_eq!(signed, 1_000);
        assert!(wait <= Duration::from_millis(100), "{wait:?}");
        assert!(rate.take(EdgeId(2), begin).is_ok());
        let later = begin + Duration::from_secs(1);
        for _ in 0..10 {
            rate.take(EdgeId(1), later).unwrap();
        }
        assert!(rate.take(EdgeId(1), later).is_err());
    }
}
