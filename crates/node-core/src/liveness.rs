//! What the liveness probes of one run of an app say.
//!
//! A node ends no app because of them: where an app fails for want of something that all instances need, each node would end all that it
//! has. It reports what it found, and the control plane replaces one instance of a process type at a time (ADR 0001).

use model::instance::HealthCheck;

/// The liveness probes of one run of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Liveness {
    unhealthy: u32,
    grace_ms: u64,
    failed: u32,
    failure: Option<String>,
}

impl Liveness {
    /// Before the first probe of a run.
    pub fn new(check: &HealthCheck) -> Self {
        Self {
            unhealthy: check.unhealthy,
            grace_ms: check.grace_ms,
            failed: 0,
            failure: None,
        }
    }

    /// A probe passed.
    pub fn passed(&mut self) {
        (self.failed, self.failure) = (0, None);
    }

    /// A probe failed, `age_ms` after the app was started.
    pub fn failed(&mut self, age_ms: u64, reason: &str) {
        if age_ms < self.grace_ms {
            return;
        }
        self.failed = self.failed.saturating_add(1);
        if self.failed >= self.unhealthy {
            let times = self.unhealthy;
            let failure = || format!("the liveness check failed {times} times in a row: {reason}");
            // The first reason stays: another one changes nothing.
            self.failure.get_or_insert_with(failure);
        }
    }

    /// Why the app is not alive, once too many probes failed in a row.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use scheduler::fixtures::process;

    #[test]
    fn an_app_is_not_alive_when_probes_fail_in_a_row_after_the_grace() {
        let check = process(1).healthcheck.unwrap();
        let (grace, many) = (check.grace_ms, check.unhealthy);
        let mut liveness = Liveness::new(&check);
        for _ in 0..10 {
            liveness.failed(grace - 1, "no answer");
        }
        for _ in 1..many {
            liveness.failed(grace, "no answer");
        }
        assert_eq!(liveness.failure(), None);
        liveness.passed();
        for _ in 1..many {
            liveness.failed(grace, "no answer");
        }
        assert_eq!(liveness.failure(), None);
        liveness.failed(grace, "status 500");
        let why = "the liveness check failed 3 times in a row: status 500";
        assert_eq!(liveness.failure(), Some(why));
        liveness.failed(grace, "another");
        assert_eq!(liveness.failure(), Some(why));
        liveness.passed();
        assert_eq!(liveness.failure(), None);
    }
}
