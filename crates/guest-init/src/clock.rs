//! Time of day by the guest's clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::Timestamp;

fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Now, for events.
pub(crate) fn now() -> Timestamp {
    Timestamp(u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX))
}

/// Now, for log records: nanoseconds since 1970.
pub(crate) fn now_nanos() -> u64 {
    u64::try_from(since_epoch().as_nanos()).unwrap_or(u64::MAX)
}
