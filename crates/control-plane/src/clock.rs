//! The clock and the random ids that the pure crates take as arguments.

use std::time::{SystemTime, UNIX_EPOCH};

use identity::KeyError;
use model::Timestamp;

/// Now, by this machine's clock.
pub(crate) fn now() -> Timestamp {
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
