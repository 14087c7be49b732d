//! The life cycle in version 1 of instance.json: one structure of twenty fields, of which not every combination
//! has a meaning.

use model::Timestamp;
use model::instance::ExitEvent;
use serde::Deserialize;

use super::record::{ProgressRecord, ReadinessRecord, StateRecord, StopStepRecord};

/// A life as version 1 of `instance.json` has it. What follows from the spec is not read.
#[derive(Debug, Deserialize)]
struct FirstVersion {
    state: FirstState,
    stop: Option<Stop>,
    stop_asked: bool,
    wake_at: Option<Timestamp>,
    started_at: Option<Timestamp>,
    ready: bool,
    healthy_in_row: u32,
    unhealthy_in_row: u32,
    #[serde(default)]
    probe_failure: Option<String>,
    /// The health check of the spec; present: there is one.
    health: Option<serde_json::Value>,
    ran_last_time: bool,
    ran_once: bool,
    restarts: u32,
    ends_in_row: u32,
    prepares_in_row: u32,
    boots_in_row: u32,
    last_exit: Option<ExitEvent>,
    failure: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FirstState {
    Created,
    Preparing,
    Booting,
    Running,
    Stopping,
    Stopped,
    Backoff,
    Failed,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Stop {
    Draining,
    Asked,
    Cleaning,
}

impl ProgressRecord {
    /// A life from version 1 of `instance.json`.
    ///
    /// # Errors
    /// The value is no such life.
    pub fn from_first_version(life: serde_json::Value) -> Result<Self, serde_json::Error> {
        let old: FirstVersion = serde_json::from_value(life)?;
        // Timers were optional. One that is missing is due at once.
        let timer = old.wake_at.unwrap_or(Timestamp(0));
        let started_at = old.started_at.unwrap_or(timer);
        let state = match old.state {
            FirstState::Created => StateRecord::Created,
            FirstState::Preparing => StateRecord::Preparing,
            FirstState::Booting => StateRecord::Booting {
                watchdog: timer,
                limit: None,
            },
            FirstState::Running => StateRecord::Running {
                started_at,
                readiness: if old.ready {
                    ReadinessRecord::Ready {
                        failed: old.unhealthy_in_row,
                    }
                } else if old.health.is_some() {
                    ReadinessRecord::Probing {
                        passed: old.healthy_in_row,
                        failed: old.unhealthy_in_row,
                        reason: old.probe_failure,
                    }
                } else {
                    ReadinessRecord::Settling { until: timer }
                },
            },
            FirstState::Stopping => StateRecord::Stopping {
                asked: old.stop_asked,
                step: match old.stop {
                    Some(Stop::Draining) => StopStepRecord::Draining {
                        until: timer,
                        started_at,
                    },
                    Some(Stop::Asked) => StopStepRecord::Asked {
                        until: timer,
                        started_at,
                    },
                    Some(Stop::Cleaning) | None => StopStepRecord::Cleaning,
                },
            },
            FirstState::Stopped => StateRecord::Stopped {
                asked: old.stop_asked,
            },
            FirstState::Backoff => StateRecord::Backoff {
                until: timer,
                ran: old.ran_last_time,
            },
            FirstState::Failed => StateRecord::Failed,
        };
        Ok(Self {
            state,
            ran_once: old.ran_once,
            restarts: old.restarts,
            ends_in_row: old.ends_in_row,
            prepares_in_row: old.prepares_in_row,
            preparing_since: None,
            preparing_ms: 0,
            boots_in_row: old.boots_in_row,
            last_exit: old.last_exit,
            failure: old.failure,
        })
    }
}
