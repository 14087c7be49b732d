//! Which ports of the edge routes may take.

use std::fmt;
use std::str::FromStr;

/// The least port that a route may take where its edge's operator names none: the first of Kubernetes' node ports, which no service has and from which
/// Linux makes no connection by itself.
const FIRST: u16 = 30_000;
/// The last of them.
const LAST: u16 = 32_767;

/// Ranges of ports, as `--tcp-ports` has them: `5432,30000-32767`, or `none`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRanges(Vec<(u16, u16)>);

/// What is no range of ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no port and no range of ports: write them like 5432,30000-32767, or `none`")]
pub struct PortRangesError(String);

impl PortRanges {
    /// Whether a port is in one of the ranges.
    pub fn contains(&self, port: u16) -> bool {
        let is_in = |(first, last): &(u16, u16)| (*first..=*last).contains(&port);
        self.0.iter().any(is_in)
    }
}

impl Default for PortRanges {
    fn default() -> Self {
        Self(vec![(FIRST, LAST)])
    }
}

impl FromStr for PortRanges {
    type Err = PortRangesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" {
            return Ok(Self(Vec::new()));
        }
        let one = |range: &str| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let port = |text: &str| text.trim().parse().ok().filter(|port| *port > 0);
            let (first, last) = (port(first)?, port(last)?);
            (first <= last).then_some((first, last))
        };
        let ranges = text.split(',').map(|range| {
            let read = one(range);
            read.ok_or_else(|| PortRangesError(range.trim().to_owned()))
        });
        ranges.collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for PortRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (place, (first, last)) in self.0.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn ranges_are_read_as_they_are_written() {
        for text in [
            "none",
            "5432",
            "30000-32767",
            "25,5432,6000-6100",
            "1-65535",
        ] {
            assert_eq!(text.parse::<PortRanges>().unwrap().to_string(), text);
        }
        let ranges: PortRanges = " 25 , 6000 - 6100".parse().unwrap();
        let are_in = [25, 6000, 6050, 6100]
            .iter()
            .all(|port| ranges.contains(*port));
        assert!(
            are_in
                && ![24, 26, 5999, 6101]
                    .iter()
                    .any(|port| ranges.contains(*port))
        );
        for wrong in ["", "0", "70000", "5-3", "a", "1,", "1--2", "-5", "None"] {
            let error = wrong.parse::<PortRanges>().unwrap_err().to_string();
            assert!(error.contains("is no port"), "{wrong}: {error}");
        }
    }
}
