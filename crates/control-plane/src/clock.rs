//! The clock and the random ids that the pure crates take as arguments.

use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use identity::KeyError;
use model::Timestamp;

/// What [`now`] is counted from.
#[derive(Clone, Copy)]
struct Base {
    wall: Timestamp,
    at: Instant,
}

impl Base {
    fn now(&self) -> Timestamp {
        let since = u64::try_from(self.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        Timestamp(self.wall.0.saturating_add(since))
    }
}

static BASE: LazyLock<Mutex<Base>> = LazyLock::new(|| {
    Mutex::new(Base {
        wall: wall_clock(),
        at: Instant::now(),
    })
});

/// A difference from the machine's clock that is followed without a word, in milliseconds: it is slewed.
const SLEWED_MS: u64 = 1000;

/// Now. It goes on without a jump, and is the machine's clock as it was when [`follow_the_wall_clock`] last looked at it.
pub(crate) fn now() -> Timestamp {
    BASE.lock().unwrap_or_else(PoisonError::into_inner).now()
}

/// Sets [`now`] to the machine's clock. The new time where that was a jump: the machine's clock was set, or the machine was suspended.
pub(crate) fn follow_the_wall_clock() -> Option<Timestamp> {
    let mut base = BASE.lock().unwrap_or_else(PoisonError::into_inner);
    let (before, wall) = (base.now(), wall_clock());
    *base = Base {
        wall,
        at: Instant::now(),
    };
    (before.0.abs_diff(wall.0) > SLEWED_MS).then_some(wall)
}

/// The time since the machine booted, with the time in which it was suspended: a lease goes on meanwhile.
pub(crate) fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // Neither is negative: it counts from the boot.
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(time.tv_nsec).unwrap_or_default();
    Duration::new(seconds, nanos)
}

fn wall_clock() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Numbers for new ids: they must differ, not be secret. `SplitMix64` (Steele, Lea, Flood 2014)
/// from a random seed.
pub(crate) struct IdGenerator(u64);

impl IdGenerator {
    /// A new sequence.
    pub(crate) fn new() -> Result<Self, KeyError> {
        Ok(Self(u64::from_le_bytes(identity::random("a seed")?)))
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let [a, b, c, d, ..] = (z ^ (z >> 31)).to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }
}
