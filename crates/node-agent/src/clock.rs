//! The node's two times.
//!
//! - [`Clock::now`] is for timers and what is written of them: the wall clock as it was when the agent started, and monotonic
//!   since, so that a wall clock that jumps moves no timer.
//! - [`Clock::wall`] is for what people and guests read: the machine's wall clock as it is now, with its steps (NTP, a machine
//!   that was suspended, a clock set by hand).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::Timestamp;
use tokio::time::Instant;

/// The node's clock. The runtime's time drives it, so under a paused runtime it is simulated time.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    wall: Timestamp,
    start: Instant,
    /// The machine's wall clock; absent: [`Clock::now`] is both.
    machine: Option<fn() -> Duration>,
}

impl Clock {
    /// A clock that starts now with the machine's wall clock.
    pub fn start() -> Self {
        Self::with_machine(|| {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
        })
    }

    /// A clock of a machine whose wall clock is this one, as time since 1970.
    pub(crate) fn with_machine(machine: fn() -> Duration) -> Self {
        Self {
            machine: Some(machine),
            ..Self::start_at(timestamp(machine()))
        }
    }

    /// A clock that shows `wall` now, and has no other.
    pub fn start_at(wall: Timestamp) -> Self {
        Self {
            wall,
            start: Instant::now(),
            machine: None,
        }
    }

    /// Now, for timers.
    pub fn now(&self) -> Timestamp {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        Timestamp(self.wall.0.saturating_add(elapsed))
    }

    /// Now, for logs.
    pub fn wall(&self) -> Timestamp {
        timestamp(self.wall_since_epoch())
    }

    /// Now, for guests: time since 1970.
    pub(crate) fn wall_since_epoch(&self) -> Duration {
        match self.machine {
            Some(machine) => machine(),
            None => Duration::from_millis(self.wall.0) + self.start.elapsed(),
        }
    }

    /// The instant of this time, for the runtime's timers; a time before the start is the start.
    pub(crate) fn instant(&self, at: Timestamp) -> Instant {
        self.start + Duration::from_millis(at.millis_since(self.wall))
    }
}

fn timestamp(since_epoch: Duration) -> Timestamp {
    Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    static MACHINE: AtomicU64 = AtomicU64::new(1_000_000);

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_that_is_set_moves_what_is_logged_and_no_timer() {
        let clock = Clock::with_machine(|| Duration::from_secs(MACHINE.load(Ordering::Relaxed)));
        let (now, wall) = (clock.now(), clock.wall());
        assert_eq!(now, wall);
        let timer = clock.instant(Timestamp(now.0 + 5_000));
        // An hour back, then a year on.
        for step in [1_000_000 - 3_600, 1_000_000 + 31_536_000] {
            MACHINE.store(step, Ordering::Relaxed);
            assert_eq!(clock.now(), now);
            assert_eq!(clock.wall(), Timestamp(step * 1000));
            assert_eq!(clock.instant(Timestamp(now.0 + 5_000)), timer);
        }
    }
}
