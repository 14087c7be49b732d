//! Durations, sizes and ages as people write and read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::Timestamp;

const DURATIONS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];
const SIZES: [(&str, u64); 4] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// A duration such as `15m`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    parse(text, &DURATIONS)
        .map(Duration::from_millis)
        .ok_or_else(|| "write a number and a unit: `30s`, `15m`, `2h`".to_owned())
}

/// A time: so long ago (`10m`), or one of RFC 3339 (`2026-11-30T08:00:00Z`).
pub(crate) fn parse_moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(ago) = parse_duration(text) {
        let millis = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        return Ok(Timestamp(now().0.saturating_sub(millis)));
    }
    let at = text.parse::<jiff::Timestamp>().ok();
    at.and_then(|at| u64::try_from(at.as_millisecond()).ok())
        .map(Timestamp)
        .ok_or_else(|| {
            "write how long ago (`30s`, `15m`, `2h`), or a time such as `2026-11-30T08:00:00Z`"
                .to_owned()
        })
}

/// A size such as `2GiB`, in bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    parse(text, &SIZES).ok_or_else(|| "write a number and a unit: `512MiB`, `2GiB`".to_owned())
}

/// A number of things such as `100`.
pub(crate) fn parse_count(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| format!("write a whole number from 0 to {}", u32::MAX))
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, length) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*length)
}

/// A size for people: `1.5 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    let Some((name, length)) = SIZES.iter().rev().find(|(_, length)| bytes >= *length) else {
        return format!("{bytes} B");
    };
    let tenths = u128::from(bytes) * 10 / u128::from(*length);
    if tenths % 10 == 0 {
        format!("{} {name}", tenths / 10)
    } else {
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    }
}

/// Now, by this machine's clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Timestamp(since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
}

/// How long ago: `12s`, `5m`, `3h`, `2d`.
pub(crate) fn age(now: Timestamp, then: Timestamp) -> String {
    let seconds = now.millis_since(then) / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// A moment in RFC 3339, UTC, to the millisecond.
pub(crate) fn rfc3339(at: Timestamp) -> String {
    i64::try_from(at.0)
        .ok()
        .and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok())
        .map_or_else(|| at.0.to_string(), |at| format!("{at:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes() {
        assert_eq!(parse_duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_size("512MiB"), Ok(512 << 20));
        for wrong in [
            "",
            "5",
            "m",
            "5 m",
            "-5m",
            "5mm",
            "99999999999999999999s",
            "9999999999999d",
        ] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_moment_is_so_long_ago_or_a_time() {
        let before = now();
        let ago = parse_moment("10m").map(|at| before.millis_since(at));
        assert!(ago.is_ok_and(|ago| (590_000..=600_000).contains(&ago)));
        let at = Timestamp(1_700_000_000_123);
        assert_eq!(parse_moment("2023-11-14T22:13:20.123Z"), Ok(at));
        assert_eq!(parse_moment("2023-11-14T23:13:20.123+01:00"), Ok(at));
        for wrong in ["", "yesterday", "2023-11-14", "1969-12-31T23:59:59Z", "-5m"] {
            assert!(parse_moment(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn for_people() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1536 << 20), "1.5 GiB");
        assert_eq!(size(2 << 30), "2 GiB");
        assert_eq!(age(Timestamp(100_000), Timestamp(40_000)), "1m");
        assert_eq!(age(Timestamp(0), Timestamp(40_000)), "0s");
        assert_eq!(
            rfc3339(Timestamp(1_700_000_000_123)),
            "2023-11-14T22:13:20.123Z"
        );
    }
}
