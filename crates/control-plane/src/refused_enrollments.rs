//! How often the log has a refused enrollment.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::limits::{MAX_REFUSED_ENROLLMENTS_LOGGED, REFUSED_ENROLLMENTS_PERIOD};

/// How many refused enrollments were logged lately. Whoever reaches the server can be refused without end.
#[derive(Debug, Default)]
pub(crate) struct RefusedEnrollments(Mutex<VecDeque<Instant>>);

impl RefusedEnrollments {
    /// Whether one more may be logged now; then it counts.
    pub(crate) fn may_log(&self, now: Instant) -> bool {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        logged.retain(|at| now.duration_since(*at) < REFUSED_ENROLLMENTS_PERIOD);
        let may = logged.len() < MAX_REFUSED_ENROLLMENTS_LOGGED;
        if may {
            logged.push_back(now);
        }
        may
    }
}
