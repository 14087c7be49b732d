//! The probes of a running app: is it ready, is it alive.

use std::time::Duration;

use model::instance::HealthCheck;
use node_core::liveness::Liveness;
use tokio::time::Instant;

/// Until it was ready once, an instance within its grace is probed at least this often.
const STARTUP_PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// When the app of an instance is probed next, and what its liveness probes said.
#[derive(Debug, Default)]
pub(super) struct Probing {
    /// Since when it runs, as far as this agent knows; absent: it does not.
    running_since: Option<Instant>,
    ready_at: Option<Instant>,
    alive_at: Option<Instant>,
    liveness: Option<Liveness>,
}

impl Probing {
    /// The app was started, or found running.
    pub(super) fn begin(&mut self, liveness: Option<&HealthCheck>) {
        let now = Some(Instant::now());
        *self = Self {
            running_since: now,
            ready_at: now,
            alive_at: now.filter(|_| liveness.is_some()),
            liveness: liveness.map(Liveness::new),
        };
    }

    /// The app does not run any more.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    /// When the health check is due.
    pub(super) fn ready_at(&self) -> Option<Instant> {
        self.ready_at
    }

    /// When the liveness check is due.
    pub(super) fn alive_at(&self) -> Option<Instant> {
        self.alive_at
    }

    /// Why the app is not alive.
    pub(super) fn failure(&self) -> Option<&str> {
        self.liveness.as_ref().and_then(Liveness::failure)
    }

    /// The health check was made, and the next one is due later. `ready`: the instance was ready before.
    pub(super) fn ready_probed(&mut self, check: &HealthCheck, ready: bool) {
        let interval = Duration::from_millis(check.interval_ms);
        let starting = !ready && self.age() < Duration::from_millis(check.grace_ms);
        let wait = if starting {
            interval.min(STARTUP_PROBE_INTERVAL)
        } else {
            interval
        };
        self.ready_at = Some(Instant::now() + wait);
    }

    /// The liveness check was made, and the next one is due later. What is to be logged of it.
    pub(super) fn alive_probed(
        &mut self,
        check: &HealthCheck,
        result: Result<(), String>,
    ) -> Option<String> {
        self.alive_at = Some(Instant::now() + Duration::from_millis(check.interval_ms));
        let age_ms = u64::try_from(self.age().as_millis()).unwrap_or(u64::MAX);
        let liveness = self.liveness.as_mut()?;
        let was_alive = liveness.failure().is_none();
        match result {
            Ok(()) => liveness.passed(),
            Err(reason) => liveness.failed(age_ms, &reason),
        }
        match (was_alive, liveness.failure()) {
            (true, Some(failure)) => Some(failure.to_owned()),
            (false, None) => Some("the liveness check passes again".to_owned()),
            (true, None) | (false, Some(_)) => None,
        }
    }

    fn age(&self) -> Duration {
        self.running_since
            .map_or(Duration::ZERO, |since| since.elapsed())
    }
}
