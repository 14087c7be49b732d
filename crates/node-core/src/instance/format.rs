//! A life as version 2 of `instance.json` has it.
//!
//! The file admits combinations that cannot be. They are read as the nearest that can: an instance that drains was asked to
//! stop, and an app whose restart is waited for has run.

use model::Timestamp;
use model::instance::ExitEvent;
use serde::{Deserialize, Serialize};

use super::{Progress, Ran, Readiness, State, StopStep};

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ProgressJson {
    pub(super) state: StateJson,
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

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(super) enum StateJson {
    Created,
    Preparing,
    Booting {
        watchdog: Timestamp,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<Timestamp>,
    },
    Running {
        started_at: Timestamp,
        readiness: Readiness,
    },
    Backoff {
        until: Timestamp,
        /// Whether the app ran since it was last prepared.
        ran: bool,
    },
    Stopping {
        asked: bool,
        step: StopStepJson,
    },
    Stopped {
        asked: bool,
    },
    Failed,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(super) enum StopStepJson {
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

impl From<ProgressJson> for Progress {
    fn from(json: ProgressJson) -> Self {
        let ran = match &json.state {
            StateJson::Running { .. } | StateJson::Backoff { ran: true, .. } => Ran::SincePrepared,
            _ if json.ran_once => Ran::Before,
            _ => Ran::Never,
        };
        let state = match json.state {
            StateJson::Created => State::Created,
            StateJson::Preparing => State::Preparing,
            StateJson::Booting { watchdog, limit } => State::Booting { watchdog, limit },
            StateJson::Running {
                started_at,
                readiness,
            } => State::Running {
                started_at,
                readiness,
            },
            StateJson::Backoff { until, .. } => State::Backoff { until },
            StateJson::Stopping { asked, step } => State::Stopping(match step {
                StopStepJson::Draining { until, started_at } => {
                    StopStep::Draining { until, started_at }
                }
                StopStepJson::Asked { until, started_at } => StopStep::Asked { until, started_at },
                StopStepJson::Cleaning => StopStep::Cleaning { asked },
            }),
            StateJson::Stopped { asked } => State::Stopped { asked },
            StateJson::Failed => State::Failed,
        };
        Self {
            state,
            ran,
            restarts: json.restarts,
            ends_in_row: json.ends_in_row,
            prepares_in_row: json.prepares_in_row,
            preparing_since: json.preparing_since,
            preparing_ms: json.preparing_ms,
            boots_in_row: json.boots_in_row,
            last_exit: json.last_exit,
            failure: json.failure,
        }
    }
}

impl From<Progress> for ProgressJson {
    fn from(progress: Progress) -> Self {
        let state = match progress.state {
            State::Created => StateJson::Created,
            State::Preparing => StateJson::Preparing,
            State::Booting { watchdog, limit } => StateJson::Booting { watchdog, limit },
            State::Running {
                started_at,
                readiness,
            } => StateJson::Running {
                started_at,
                readiness,
            },
            State::Backoff { until } => StateJson::Backoff {
                until,
                ran: progress.ran == Ran::SincePrepared,
            },
            State::Stopping(step) => {
                let (asked, step) = match step {
                    StopStep::Draining { until, started_at } => {
                        (true, StopStepJson::Draining { until, started_at })
                    }
                    StopStep::Asked { until, started_at } => {
                        (true, StopStepJson::Asked { until, started_at })
                    }
                    StopStep::Cleaning { asked } => (asked, StopStepJson::Cleaning),
                };
                StateJson::Stopping { asked, step }
            }
            State::Stopped { asked } => StateJson::Stopped { asked },
            State::Failed => StateJson::Failed,
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
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::{Value, json};

    use super::*;

    fn read(state: Value, ran_once: bool) -> Progress {
        serde_json::from_value(json!({
            "state": state, "ran_once": ran_once, "restarts": 0, "ends_in_row": 0,
            "prepares_in_row": 0, "boots_in_row": 0, "last_exit": null, "failure": null,
        }))
        .unwrap()
    }

    #[test]
    fn a_combination_that_cannot_be_is_read_as_the_nearest_that_can() {
        let step = json!({"step": "draining", "until": 5, "started_at": 1});
        let draining = read(
            json!({"state": "stopping", "asked": false, "step": step}),
            true,
        );
        let written = serde_json::to_value(&draining).unwrap();
        assert_eq!(written["state"]["asked"], true);

        let restart = read(json!({"state": "backoff", "until": 5, "ran": true}), false);
        assert_eq!(restart.ran, Ran::SincePrepared);
        let written = serde_json::to_value(&restart).unwrap();
        assert_eq!(written["ran_once"], true);
    }

    #[test]
    fn whether_what_is_waited_for_is_a_restart_survives_the_file() {
        for (ran, ran_once, expected) in [
            (true, true, Ran::SincePrepared),
            (false, true, Ran::Before),
            (false, false, Ran::Never),
        ] {
            let state = json!({"state": "backoff", "until": 5, "ran": ran});
            let progress = read(state.clone(), ran_once);
            assert_eq!(progress.ran, expected);
            let written = serde_json::to_value(&progress).unwrap();
            assert_eq!(
                (&written["state"], &written["ran_once"]),
                (&state, &json!(ran_once))
            );
        }
    }
}
