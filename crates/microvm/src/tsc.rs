//! The frequency of this machine's time stamp counter, measured once.
//!
//! Under TCG the guest reads the host's counter. On a busy host the guest's own calibration fails
//! or is off, and its watchdog then distrusts the counter for good, which leaves it with a clock
//! that costs a trap for each reading. So the guest is told: it need not calibrate.

use std::sync::OnceLock;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time between the two readings: their error, below a microsecond, is then below 10 ppm.
const MEASURE: Duration = Duration::from_millis(100);
/// Readings at each end, of which the one with the least uncertainty counts.
const READINGS: u32 = 8;

/// In kHz; nothing where the counter is not constant. Blocks for a moment the first time.
pub(crate) fn khz() -> Option<u64> {
    static KHZ: OnceLock<Option<u64>> = OnceLock::new();
    *KHZ.get_or_init(|| {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").ok()?;
        is_constant(&cpuinfo).then(measure).flatten()
    })
}

fn is_constant(cpuinfo: &str) -> bool {
    let Some(flags) = cpuinfo.lines().find(|line| line.starts_with("flags")) else {
        return false;
    };
    let has = |name: &str| flags.split_whitespace().any(|flag| flag == name);
    has("constant_tsc") && has("nonstop_tsc")
}

fn measure() -> Option<u64> {
    let (ticks_before, nanos_before) = reading()?;
    std::thread::sleep(MEASURE);
    let (ticks_after, nanos_after) = reading()?;
    let ticks = u128::from(ticks_after.checked_sub(ticks_before)?);
    let nanos = u128::from(nanos_after.checked_sub(nanos_before)?);
    let khz = (ticks * 1_000_000).checked_div(nanos)?;
    u64::try_from(khz).ok().filter(|khz| *khz > 0)
}

/// The counter and the monotonic clock, in nanoseconds, at the same moment.
fn reading() -> Option<(u64, u64)> {
    (0..READINGS)
        .filter_map(|_| {
            let before = ticks();
            let now = clock_gettime(ClockId::Monotonic);
            let after = ticks();
            let nanos = u64::try_from(now.tv_sec).ok()? * 1_000_000_000
                + u64::try_from(now.tv_nsec).ok()?;
            let uncertain = after.checked_sub(before)?;
            Some((uncertain, (before + uncertain / 2, nanos)))
        })
        .min()
        .map(|(_, reading)| reading)
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "there is no safe way to read the counter")]
fn ticks() -> u64 {
    // SAFETY: RDTSC only reads a counter, and every x86-64 processor has it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_stamp_counter_that_stops_is_not_used() {
        assert!(is_constant("x\nflags\t\t: tsc constant_tsc nonstop_tsc\n"));
        assert!(!is_constant("flags\t\t: tsc constant_tsc\n"));
        assert!(!is_constant(""));
    }

    #[test]
    fn two_measurements_of_the_time_stamp_counter_agree() {
        if let (Some(one), Some(two)) = (measure(), measure()) {
            assert!(one.abs_diff(two) * 10_000 < one, "{one} {two}");
        }
    }
}
