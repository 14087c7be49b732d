//! Members that did not measure, and clocks.

// ring: the findings of all kinds share what they are of.

use api::user::{FindingSeverity, MeasurementState};
use model::NodeId;

use super::{Findings, Measured};

/// A clock that is further off, in milliseconds, is named; and one with which certificates and tokens are about to be refused is an error.
const CLOCK_WARNING_MS: u64 = 2_000;
const CLOCK_ERROR_MS: u64 = 300_000;
impl Findings<'_> {
    /// Members that did not measure, with what the others see of them; and what members could not measure.
    pub(super) fn of_members(&mut self) {
        for member in self.members {
            let name = &member.name;
            let service = format!("platform-{}", member.member.role());
            let look = format!(
                "see that its agent runs: `systemctl status {service}`, `journalctl -u {service}` on the machine"
            );
            let seen = self.seen_of(member.number);
            let of = vec![member.member];
            match member.state {
                MeasurementState::NoAnswer => self.add_of(
                    "no_measurement",
                    FindingSeverity::Error,
                    of,
                    [
                        format!("{name} was asked and did not answer in time; {seen}"),
                        "its agent hangs, its connection to the server broke, or its machine is down".to_owned(),
                        look,
                    ],
                ),
                MeasurementState::NotAsked => self.add_of(
                    "not_asked",
                    FindingSeverity::Error,
                    of,
                    [
                        format!("{name} does not call the server; {seen}"),
                        "its machine is down, or it does not reach the server".to_owned(),
                        look,
                    ],
                ),
                MeasurementState::TooOld => self.add_of(
                    "too_old",
                    FindingSeverity::Note,
                    of,
                    [
                        format!("{name} measured nothing; {seen}"),
                        "its `platform` is older than the server's, and does not measure".to_owned(),
                        "upgrade `platform` there".to_owned(),
                    ],
                ),
                MeasurementState::Failed => {
                    let why = member.failure.clone().unwrap_or_default();
                    self.add_of(
                        "measurement_failed",
                        FindingSeverity::Error,
                        of,
                        [
                            format!("{name} could not measure its links; {seen}"),
                            why,
                            format!("`journalctl -u {service}` on the machine says why the overlay is not up; see that root runs it"),
                        ],
                    );
                }
                MeasurementState::Measured => {}
            }
        }
    }

    /// What the others see of a member in the tunnel.
    fn seen_of(&self, number: Option<NodeId>) -> String {
        let Some(number) = number else {
            return "it has no place in the overlay".to_owned();
        };
        let (reach, miss): (Vec<_>, Vec<_>) = self
            .links()
            .filter(|measured| measured.to == number)
            .partition(|measured| measured.link.echoes.answered > 0);
        let names = |of: Vec<Measured<'_>>| {
            let numbers: Vec<_> = of.iter().map(|measured| measured.from).collect();
            self.names(&numbers)
        };
        match (reach.is_empty(), miss.is_empty()) {
            (true, true) => "nobody measured a link to it".to_owned(),
            (true, false) => "nobody who tried reaches it in the tunnel".to_owned(),
            (false, true) => format!("it is reached in the tunnel by {}", names(reach)),
            (false, false) => format!(
                "it is reached in the tunnel by {}, and not by {}",
                names(reach),
                names(miss)
            ),
        }
    }

    /// Clocks that are off.
    pub(super) fn of_clocks(&mut self) {
        for member in self.members {
            let Some(ahead) = member.clock_ahead_ms else {
                continue;
            };
            let off = ahead.unsigned_abs();
            if off < CLOCK_WARNING_MS {
                continue;
            }
            let severity = if off < CLOCK_ERROR_MS {
                FindingSeverity::Warning
            } else {
                FindingSeverity::Error
            };
            let which = if ahead > 0 { "ahead of" } else { "behind" };
            let by = for_people(off);
            self.add_of(
                "clock_skew",
                severity,
                vec![member.member],
                [
                    format!("the clock of {} is {by} {which} the server's", member.name),
                    "one of the two does not follow a time server. Times in logs do not agree; certificates and tokens are refused when it is more".to_owned(),
                    "`timedatectl` on both machines says which one; `apt-get install systemd-timesyncd`, or chrony".to_owned(),
                ],
            );
        }
    }
}

/// A time as people read it.
fn for_people(millis: u64) -> String {
    let seconds = millis / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{}.{} s", seconds, millis % 1000 / 100),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} days {hours} h"),
    }
}
