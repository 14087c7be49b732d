//! The node's time: the wall clock as it was when the agent started, and monotonic since, so that a
//! wall clock that jumps moves no timer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::Timestamp;
use tokio::time::Instant;

/// The node's clock. The runtime's time drives it, so under a paused runtime it is simulated time.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    wall: Timestamp,
    start: Instant,
}

impl Clock {
    /// A clock that starts now with the machine's wall clock.
    pub fn start() -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self::start_at(Timestamp(
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        ))
    }

    /// A clock that shows `wall` now.
    pub fn start_at(wall: Timestamp) -> Self {
        Self {
            wall,
            start: Instant::now(),
        }
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        Timestamp(self.wall.0.saturating_add(elapsed))
    }

    /// The instant of this time, for the runtime's timers; a time before the start is the start.
    pub(crate) fn instant(&self, at: Timestamp) -> Instant {
        self.start + Duration::from_millis(at.millis_since(self.wall))
    }
}
