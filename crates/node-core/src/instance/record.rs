//! What is written down of a life, as version 2 of `instance.json` has it.
//!
//! The file admits combinations that cannot be. They are read as the nearest that can: an instance that drains was asked to
//! stop, an app whose restart is waited for has run, and whether an app settles or is probed is what its spec says.

use model::Timestamp;
use model::instance::ExitEvent;
use serde::{Deserialize, Serialize};

use super::{Probed, Progress, Ran, Readiness, SETTLE_MS, State, StopStep, Thresholds};

/// How far an instance is, as it is written down. The rest of its life follows from its spec:
/// [`Lifecycle::resume`](super::Lifecycle::resume).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressRecord {
    pub(super) state: StateRecord,
    /// Whether the app ever ran.
    pub(super) ran_once: bool,
    pub(super) restarts: u32,
    pub(super) ends_in_row: u32,
    pub(super) prepares_in_row: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) preparing_since: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) preparing_ms: u64,
    pub(super) boots_in_row: u32,
    pub(super) last_exit: Option<ExitEvent>,
    pub(super) failure: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(super) enum StateRecord {
    Created,
    Preparing,
    Booting {
        watchdog: Timestamp,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<Timestamp>,
    },
    Running {
        started_at: Timestamp,
        readiness: ReadinessRecord,
    },
    Backoff {
        until: Timestamp,
        /// Whether the app ran since it was last prepared.
        ran: bool,
    },
    Stopping {
        asked: bool,
        step: StopStepRecord,
    },
    Stopped {
        asked: bool,
    },
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "readiness", rename_all = "snake_case")]
pub(super) enum ReadinessRecord {
    Settling {
        until: Timestamp,
    },
    Probing {
        passed: u32,
        failed: u32,
        reason: Option<String>,
    },
    Ready {
        failed: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(super) enum StopStepRecord {
    Draining {
        until: Timestamp,
        started_at: Timestamp,
    },
    Asked {
        until: Timestamp,
        started_at: Timestamp,
    },
    Cleaning,
}

impl ReadinessRecord {
    fn of(readiness: &Readiness) -> Self {
        match readiness.clone() {
            Readiness::Settling { until } => Self::Settling { until },
            Readiness::Settled => Self::Ready { failed: 0 },
            Readiness::Probed(_, Probed::Ready { failed }) => Self::Ready { failed },
            Readiness::Probed(
                _,
                Probed::Unready {
                    passed,
                    failed,
                    reason,
                },
            ) => Self::Probing {
                passed,
                failed,
                reason,
            },
        }
    }

    /// The readiness of an app that was started at `started_at` and has the health check `health`.
    fn into_readiness(self, health: Option<Thresholds>, started_at: Timestamp) -> Readiness {
        let Some(limits) = health else {
            return match self {
                Self::Ready { .. } => Readiness::Settled,
                Self::Settling { until } => Readiness::Settling { until },
                Self::Probing { .. } => Readiness::Settling {
                    until: Timestamp(started_at.0.saturating_add(SETTLE_MS)),
                },
            };
        };
        let probed = match self {
            Self::Ready { failed } => Probed::Ready { failed },
            Self::Settling { .. } => Probed::NOT_YET,
            Self::Probing {
                passed,
                failed,
                reason,
            } => Probed::Unready {
                passed,
                failed,
                reason,
            },
        };
        Readiness::Probed(limits, probed)
    }
}

impl ProgressRecord {
    pub(super) fn of(progress: &Progress) -> Self {
        let progress = progress.clone();
        let state = match progress.state {
            State::Created => StateRecord::Created,
            State::Preparing => StateRecord::Preparing,
            State::Booting { watchdog, limit } => StateRecord::Booting { watchdog, limit },
            State::Running {
                started_at,
                readiness,
            } => StateRecord::Running {
                started_at,
                readiness: ReadinessRecord::of(&readiness),
            },
            State::Backoff { until } => StateRecord::Backoff {
                until,
                ran: progress.ran == Ran::SincePrepared,
            },
            State::Stopping(step) => {
                let (asked, step) = match step {
                    // It drains anew when it is found again, so the times in between are of no use.
                    StopStep::Draining {
                        limit, started_at, ..
                    } => {
                        let until = limit;
                        (true, StopStepRecord::Draining { until, started_at })
                    }
                    StopStep::Asked { until, started_at } => {
                        (true, StopStepRecord::Asked { until, started_at })
                    }
                    StopStep::Cleaning { asked } => (asked, StopStepRecord::Cleaning),
                };
                StateRecord::Stopping { asked, step }
            }
            State::Stopped { asked } => StateRecord::Stopped { asked },
            State::Failed => StateRecord::Failed,
        };
        Self {
            state,
            ran_once: progress.ran != Ran::Never,
            restarts: progress.restarts,
            ends_in_row: progress.ends_in_row,
            prepares_in_row: progress.prepares_in_row,
            preparing_since: progress.preparing_since,
            preparing_ms: progress.preparing_ms,
            boots_in_row: progress.boots_in_row,
            last_exit: progress.last_exit,
            failure: progress.failure,
        }
    }

    /// What is written down means this for an instance whose health check is `health`.
    pub(super) fn into_progress(self, health: Option<Thresholds>) -> Progress {
        let ran = match &self.state {
            StateRecord::Running { .. } | StateRecord::Backoff { ran: true, .. } => {
                Ran::SincePrepared
            }
            _ if self.ran_once => Ran::Before,
            _ => Ran::Never,
        };
        let state = match self.state {
            StateRecord::Created => State::Created,
            StateRecord::Preparing => State::Preparing,
            StateRecord::Booting { watchdog, limit } => State::Booting { watchdog, limit },
            StateRecord::Running {
                started_at,
                readiness,
            } => State::Running {
                started_at,
                readiness: readiness.into_readiness(health, started_at),
            },
            StateRecord::Backoff { until, .. } => State::Backoff { until },
            StateRecord::Stopping { asked, step } => State::Stopping(match step {
                StopStepRecord::Draining { until, started_at } => StopStep::Draining {
                    until,
                    limit: until,
                    connections: 0,
                    started_at,
                },
                StopStepRecord::Asked { until, started_at } => {
                    StopStep::Asked { until, started_at }
                }
                StopStepRecord::Cleaning => StopStep::Cleaning { asked },
            }),
            StateRecord::Stopped { asked } => State::Stopped { asked },
            StateRecord::Failed => State::Failed,
        };
        Progress {
            state,
            ran,
            restarts: self.restarts,
            ends_in_row: self.ends_in_row,
            prepares_in_row: self.prepares_in_row,
            preparing_since: self.preparing_since,
            preparing_ms: self.preparing_ms,
            boots_in_row: self.boots_in_row,
            last_exit: self.last_exit,
            failure: self.failure,
        }
    }

    /// Whether two are the same but for the probes that are counted in a row, and the boot watchdog. Those alone are not worth a
    /// write to disk: an agent that is restarted counts again.
    pub fn is_same_but_for_probes(&self, other: &Self) -> bool {
        let without_counts = |record: &Self| {
            let mut record = record.clone();
            match &mut record.state {
                StateRecord::Booting { watchdog, limit } => {
                    (*watchdog, *limit) = (Timestamp(0), None);
                }
                StateRecord::Running { readiness, .. } => match readiness {
                    ReadinessRecord::Settling { .. } => {}
                    ReadinessRecord::Probing {
                        passed,
                        failed,
                        reason,
                    } => (*passed, *failed, *reason) = (0, 0, None),
                    ReadinessRecord::Ready { failed } => *failed = 0,
                },
                StateRecord::Created
                | StateRecord::Preparing
                | StateRecord::Backoff { .. }
                | StateRecord::Stopping { .. }
                | StateRecord::Stopped { .. }
                | StateRecord::Failed => {}
            }
            record
        };
        without_counts(self) == without_counts(other)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use scheduler::fixtures::{process, spec, worker};
    use serde_json::{Value, json};

    use crate::instance::{Lifecycle, Timing};

    /// What is written of a life that goes on from this record.
    fn written(process: manifest::Process, state: &Value, ran_once: bool) -> Value {
        let record = json!({
            "state": state, "ran_once": ran_once, "restarts": 0, "ends_in_row": 0,
            "prepares_in_row": 0, "boots_in_row": 0, "last_exit": null, "failure": null,
        });
        let record = serde_json::from_value(record).unwrap();
        let life = Lifecycle::resume(&spec(process), Timing::default(), record);
        serde_json::to_value(life.record()).unwrap()
    }

    #[test]
    fn a_combination_that_cannot_be_is_read_as_the_nearest_that_can() {
        let step = json!({"step": "draining", "until": 5, "started_at": 1});
        let draining = json!({"state": "stopping", "asked": false, "step": step});
        let draining = written(worker(1), &draining, true);
        assert_eq!(draining["state"]["asked"], true);

        let restart = json!({"state": "backoff", "until": 5, "ran": true});
        assert_eq!(written(worker(1), &restart, false)["ran_once"], true);
    }

    #[test]
    fn whether_an_app_settles_or_is_probed_is_what_its_spec_says() {
        let settling = json!({"readiness": "settling", "until": 5});
        let probing =
            json!({"readiness": "probing", "passed": 1, "failed": 2, "reason": "status 500"});
        let not_yet = json!({"readiness": "probing", "passed": 0, "failed": 0, "reason": null});
        let settles = json!({"readiness": "settling", "until": 3000});
        let ready = |failed: u32| json!({"readiness": "ready", "failed": failed});
        let readiness = |process: manifest::Process, readiness: &Value| {
            let running = json!({"state": "running", "started_at": 1000, "readiness": readiness});
            written(process, &running, true)["state"]["readiness"].clone()
        };
        for (record, with_a_check, without) in [
            (settling.clone(), not_yet, settling),
            (probing.clone(), probing, settles),
            (ready(2), ready(2), ready(0)),
        ] {
            assert_eq!(readiness(process(1), &record), with_a_check);
            assert_eq!(readiness(worker(1), &record), without);
        }
    }

    #[test]
    fn whether_what_is_waited_for_is_a_restart_survives_the_file() {
        for (ran, ran_once) in [(true, true), (false, true), (false, false)] {
            let state = json!({"state": "backoff", "until": 5, "ran": ran});
            let written = written(worker(1), &state, ran_once);
            assert_eq!(
                (&written["state"], &written["ran_once"]),
                (&state, &json!(ran_once))
            );
        }
    }
}
