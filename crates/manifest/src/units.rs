//! Durations and sizes as a manifest writes them: a whole number and one unit.
//!
//! There is one spelling rule for reading (any unit that the table below has) and one for writing
//! (the largest unit that divides the value), so that equal values are written alike. Decimal
//! units (`MB`) are absent on purpose: they are taken for binary ones too often.

/// Units of durations with their length in milliseconds, largest first.
const DURATION_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Units of sizes with their length in bytes, largest first.
const SIZE_UNITS: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

/// Digits a number may have: with the largest unit it still fits in 64 bits.
pub(crate) const MAX_DIGITS: usize = 6;

/// A duration such as `10s`, in milliseconds.
pub(crate) fn parse_duration(text: &str) -> Option<u64> {
    parse(text, &DURATION_UNITS)
}

/// A size such as `256MiB`, in bytes.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    parse(text, &SIZE_UNITS)
}

/// The one way to write this many milliseconds.
pub(crate) fn format_duration(milliseconds: u64) -> String {
    if milliseconds == 0 {
        return "0s".to_owned();
    }
    format(milliseconds, &DURATION_UNITS)
}

/// The one way to write this many bytes; sizes are whole KiB.
pub(crate) fn format_size(bytes: u64) -> String {
    if bytes == 0 {
        return "0KiB".to_owned();
    }
    format(bytes, &SIZE_UNITS)
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 || digits > MAX_DIGITS {
        return None;
    }
    let (number, unit) = text.split_at(digits);
    let (_, length) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*length)
}

fn format(value: u64, units: &[(&str, u64)]) -> String {
    for (name, length) in units {
        if value.is_multiple_of(*length) {
            return format!("{}{name}", value / length);
        }
    }
    // Only a size that is no whole KiB gets here; `resolve` never makes one.
    format!("{value}B")
}

/// What the writer of `text` probably meant by it, as a duration.
pub(crate) fn guess_duration(text: &str) -> Option<String> {
    let (number, unit) = split_number(text)?;
    let unit = match unit.to_ascii_lowercase().as_str() {
        "" | "s" | "sec" | "secs" | "second" | "seconds" => "s",
        "ms" | "msec" | "millis" | "milliseconds" => "ms",
        "m" | "min" | "mins" | "minute" | "minutes" => "m",
        "h" | "hr" | "hrs" | "hour" | "hours" => "h",
        _ => return None,
    };
    Some(format!("{number}{unit}")).filter(|guess| parse_duration(guess).is_some())
}

/// What the writer of `text` probably meant by it, as a size.
pub(crate) fn guess_size(text: &str) -> Option<String> {
    let (number, unit) = split_number(text)?;
    let unit = match unit.to_ascii_lowercase().as_str() {
        "k" | "kb" | "ki" | "kib" => "KiB",
        "" | "m" | "mb" | "mi" | "mib" => "MiB",
        "g" | "gb" | "gi" | "gib" => "GiB",
        "t" | "tb" | "ti" | "tib" => "TiB",
        _ => return None,
    };
    Some(format!("{number}{unit}")).filter(|guess| parse_size(guess).is_some())
}

fn split_number(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    (digits > 0).then(|| (&text[..digits], text[digits..].trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_write() {
        for (text, value) in [
            ("0s", 0),
            ("1ms", 1),
            ("10s", 10_000),
            ("90s", 90_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("999999h", 999_999 * 3_600_000),
        ] {
            assert_eq!(parse_duration(text), Some(value), "{text}");
            assert_eq!(
                parse_duration(&format_duration(value)),
                Some(value),
                "{text}"
            );
        }
        assert_eq!(format_duration(60_000), "1m");
        assert_eq!(format_duration(1_500), "1500ms");
        for text in [
            "", "s", "10", "10 s", "-1s", "1.5s", "10S", "1000000s", "1m30s", "１s",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_read_and_write() {
        for (text, value) in [("4KiB", 4096), ("256MiB", 256 << 20), ("1TiB", 1 << 40)] {
            assert_eq!(parse_size(text), Some(value), "{text}");
            assert_eq!(format_size(value), text);
        }
        assert_eq!(format_size(1024 << 20), "1GiB");
        for text in [
            "", "MiB", "256", "256MB", "256M", "1.5GiB", "256mib", "256 MiB", "5B",
        ] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn guesses_what_was_meant() {
        assert_eq!(guess_size("256MB").as_deref(), Some("256MiB"));
        assert_eq!(guess_size("1 g").as_deref(), Some("1GiB"));
        assert_eq!(guess_size("many"), None);
        assert_eq!(guess_duration("10 sec").as_deref(), Some("10s"));
        assert_eq!(guess_duration("10").as_deref(), Some("10s"));
        assert_eq!(guess_duration("1.5s"), None);
    }
}
