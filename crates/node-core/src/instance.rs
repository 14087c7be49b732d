//! The life of one instance, as the node that owns it runs it.
//!
//! ```text
//!            Start            Prepared          GuestStarted
//!   created -------> preparing -------> booting -------------> running
//!                     |  ^   |           |   |                 |  |  |
//!        fails, again |  |   |   fails,  |   |  ends, again by |  |  |
//!                     v  |   |   again   |   |  the policy     |  |  |
//!                  backoff <-|-----------+---|-----------------+  |  |
//!            BackoffElapsed  |               |                    |  |
//!                            v  cannot run   v  tried too often   |  |
//!                         failed <-----------+--------------------+  | ends, not again
//!                            |                                       | by the policy
//!                            v  StopAsked, from every state          v
//!                        stopping <----------------------------------+
//!                            |  drain, ask, wait, kill; CleanedUp
//!                            v
//!                        stopped
//! ```
//!
//! Events come in with the time, a new state and effects come out; the node carries the effects of
//! one instance out in order, one at a time, and hands in what became of them. What belongs to a
//! VM that was killed is dropped by the node: after [`Effect::KillVm`] nothing of it comes in any
//! more. The whole value is written down with each step, so that an agent that was restarted goes
//! on where it was ([`Event::Adopted`], [`Event::NotFound`]): ready instances stay ready.
//!
//! Time is the node's: milliseconds that only grow while the agent runs. There is at most one
//! timer, [`Lifecycle::wake_at`]; when it is reached, [`Lifecycle::due`] names the event.
//!
//! - An end leads to a restart by the policy, after a backoff that doubles from
//!   [`BACKOFF_FIRST_MS`] to [`BACKOFF_MAX_MS`]. A run of [`STABLE_RUN_MS`] ends the row of
//!   failures. More restarts in a row than the policy's `max_retries`: failed.
//! - A restart is a fresh instance: it is prepared again, with a new scratch disk.
//! - A guest that does not say that the app runs within the boot timeout is killed and booted
//!   again, [`MAX_BOOT_ATTEMPTS`] times in a row. This is the machine's fault and does not use up
//!   the policy's retries.
//! - An app that cannot be executed (126, 127) fails at once: the root disk will not change.
//! - Ready: `healthy` probes in a row passed; without a health check, the app ran for
//!   [`SETTLE_MS`], so that one that exits at once is never called ready. `unhealthy` probes failed
//!   in a row, after the grace: not ready, and the VM is killed and restarted by policy
//!   (`never`: it stays as it is, unready).
//!
//! Deliberately absent: a graceful stop before a restart for failing health, because what does not
//! answer probes seldom answers signals.

mod states;
#[cfg(test)]
mod tests;
mod transitions;

use api::node::InstanceReport;
use guest_protocol::BootFailure;
use model::instance::{ExitEvent, HealthCheck, InstanceSpec, InstanceState, RestartPolicy};
use model::{InstanceId, Timestamp};
use serde::{Deserialize, Serialize};

/// First wait before a restart, in milliseconds; it doubles with each restart in a row.
pub const BACKOFF_FIRST_MS: u64 = 1_000;
/// Longest wait before a restart, in milliseconds.
pub const BACKOFF_MAX_MS: u64 = 60_000;
/// A run this long ends a row of failures, in milliseconds.
pub const STABLE_RUN_MS: u64 = 60_000;
/// How long an app without a health check must run to be ready, in milliseconds.
pub const SETTLE_MS: u64 = 2_000;
/// Preparations in a row that may fail for an instance that never ran; one that ran before is
/// prepared again for ever, with backoff.
pub const MAX_PREPARE_ATTEMPTS: u32 = 5;
/// Boots in a row that may miss the watchdog or fail in the guest.
pub const MAX_BOOT_ATTEMPTS: u32 = 4;
/// How long the boot watchdog waits for the app to start, in milliseconds, where the node's
/// driver does not say otherwise. Under TCG a boot takes seconds.
pub const BOOT_TIMEOUT_MS: u64 = 60_000;
/// How long a ready instance with ports goes on after its stop was asked, in milliseconds, so that
/// edges learn the new routes and end their requests.
pub const DRAIN_MS: u64 = 2_000;
/// How much longer than the stop timeout the guest may take to report the end, in milliseconds.
pub const STOP_MARGIN_MS: u64 = 5_000;

/// Times that the node chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// The boot watchdog, in milliseconds.
    pub boot_timeout_ms: u64,
    /// How long a ready instance with ports drains, in milliseconds.
    pub drain_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            boot_timeout_ms: BOOT_TIMEOUT_MS,
            drain_ms: DRAIN_MS,
        }
    }
}

/// What happened to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It is wanted.
    Start,
    /// Its root disk is there, its scratch disk and tap are made.
    Prepared,
    /// Something of that failed.
    PrepareFailed {
        /// Whether trying again may help: not for an unknown image, a wrong digest, a bad config.
        retryable: bool,
        /// The operation, its subject, its cause.
        reason: String,
    },
    /// The VMM process runs.
    VmmStarted,
    /// The VMM could not be started.
    VmmFailed {
        /// Whether trying again may help: not where this machine denies a permission.
        retryable: bool,
        /// The operation, its subject, its cause.
        reason: String,
    },
    /// The guest says that the app was started.
    GuestStarted,
    /// The guest says that it could not start the app.
    BootFailed(BootFailure),
    /// The guest says that the app ended.
    Exited(ExitEvent),
    /// The VMM process is gone, and no exit was said.
    VmmLost {
        /// How it ended, and its console's last words.
        reason: String,
    },
    /// The boot watchdog's time is up.
    BootTimeout,
    /// The app without a health check ran long enough.
    Settled,
    /// A probe passed.
    HealthPassed,
    /// A probe failed.
    HealthFailed {
        /// What it got instead of a success.
        reason: String,
    },
    /// The wait before a restart is over.
    BackoffElapsed,
    /// It is not wanted any more.
    StopAsked,
    /// The time to drain is over.
    DrainElapsed,
    /// The app did not end in time.
    StopTimeout,
    /// [`Effect::CleanUp`] was carried out.
    CleanedUp,
    /// The agent was restarted and found the VM running.
    Adopted,
    /// The agent was restarted and found no VM.
    NotFound,
}

/// What the node is to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Fetch the image, build or check the root disk, make a new scratch disk and tap. Answered by
    /// [`Event::Prepared`] or [`Event::PrepareFailed`].
    StartPreparing,
    /// Start the VMM. Answered by [`Event::VmmStarted`] or [`Event::VmmFailed`].
    BootVm,
    /// Tell the guest to stop its app, by the spec's signal and timeout.
    AskStop,
    /// Kill the VMM, if there is one, and wait for its end. Nothing of this VM comes in after.
    KillVm,
    /// End what is being prepared; remove scratch disk, tap, sockets. Answered by
    /// [`Event::CleanedUp`].
    CleanUp,
    /// Call again at this time ([`Lifecycle::due`]); it replaces an earlier one.
    ScheduleAt(Timestamp),
    /// What a report says has changed.
    Report,
}

/// An event that cannot happen in this state. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("instance {id} is {state}, where this cannot happen: {event:?}")]
pub struct IllegalEvent {
    /// The instance.
    pub id: InstanceId,
    /// Its state.
    pub state: InstanceState,
    /// The event.
    pub event: Box<Event>,
}

/// How far a stop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Stop {
    Draining,
    Asked,
    Cleaning,
}

/// Where one instance is in its life, with what is needed to go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own beside the state"
)]
pub struct Lifecycle {
    id: InstanceId,
    restart: RestartPolicy,
    health: Option<HealthCheck>,
    has_ports: bool,
    stop_timeout_ms: u64,
    timing: Timing,
    state: InstanceState,
    stop: Option<Stop>,
    stop_asked: bool,
    wake_at: Option<Timestamp>,
    started_at: Option<Timestamp>,
    ready: bool,
    healthy_in_row: u32,
    unhealthy_in_row: u32,
    /// What the last probe got instead of a success; absent: it passed, or there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    probe_failure: Option<String>,
    ran_last_time: bool,
    ran_once: bool,
    restarts: u32,
    ends_in_row: u32,
    prepares_in_row: u32,
    boots_in_row: u32,
    last_exit: Option<ExitEvent>,
    failure: Option<String>,
}

impl Lifecycle {
    /// A life that has not begun.
    pub fn new(spec: &InstanceSpec, timing: Timing) -> Self {
        Self {
            id: spec.id,
            restart: spec.restart.clone(),
            health: spec.healthcheck.clone(),
            has_ports: !spec.ports.is_empty(),
            stop_timeout_ms: spec.stop.timeout_ms,
            timing,
            state: InstanceState::Created,
            stop: None,
            stop_asked: false,
            wake_at: None,
            started_at: None,
            ready: false,
            healthy_in_row: 0,
            unhealthy_in_row: 0,
            probe_failure: None,
            ran_last_time: false,
            ran_once: false,
            restarts: 0,
            ends_in_row: 0,
            prepares_in_row: 0,
            boots_in_row: 0,
            last_exit: None,
            failure: None,
        }
    }

    /// The instance.
    pub fn id(&self) -> InstanceId {
        self.id
    }

    /// Where it is.
    pub fn state(&self) -> InstanceState {
        self.state
    }

    /// Whether it takes traffic.
    pub fn ready(&self) -> bool {
        self.ready
    }

    /// Whether it was asked to stop, and so will not start again.
    pub fn stop_asked(&self) -> bool {
        self.stop_asked
    }

    /// Times it was started again.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// When to ask [`Lifecycle::due`]; absent: never.
    pub fn wake_at(&self) -> Option<Timestamp> {
        self.wake_at
    }

    /// The event of the timer, once its time is reached.
    pub fn due(&self, now: Timestamp) -> Option<Event> {
        if self.wake_at.is_none_or(|at| now < at) {
            return None;
        }
        match (self.state, self.stop) {
            (InstanceState::Booting, _) => Some(Event::BootTimeout),
            (InstanceState::Running, _) => Some(Event::Settled),
            (InstanceState::Backoff, _) => Some(Event::BackoffElapsed),
            (InstanceState::Stopping, Some(Stop::Draining)) => Some(Event::DrainElapsed),
            (InstanceState::Stopping, Some(Stop::Asked)) => Some(Event::StopTimeout),
            (InstanceState::Stopping, Some(Stop::Cleaning) | None)
            | (
                InstanceState::Created
                | InstanceState::Preparing
                | InstanceState::Stopped
                | InstanceState::Failed,
                _,
            ) => None,
        }
    }

    /// Takes one event in; what the node is to do comes out. An illegal event changes nothing.
    pub fn step(&mut self, now: Timestamp, event: Event) -> Result<Vec<Effect>, IllegalEvent> {
        let effects = match self.state {
            InstanceState::Created => self.in_created(now, &event),
            InstanceState::Preparing => self.in_preparing(now, &event),
            InstanceState::Booting => self.in_booting(now, &event),
            InstanceState::Running => self.in_running(now, &event),
            InstanceState::Stopping => self.in_stopping(now, &event),
            InstanceState::Backoff => self.in_backoff(&event),
            InstanceState::Stopped | InstanceState::Failed => self.in_end(&event),
        };
        effects.ok_or_else(|| IllegalEvent {
            id: self.id,
            state: self.state,
            event: Box::new(event),
        })
    }

    /// What the node says about it. `log_tail` are the lines the app logged before its last end.
    pub fn report(&self, now: Timestamp, log_tail: Vec<String>) -> InstanceReport {
        InstanceReport {
            id: self.id,
            state: self.state,
            ready: self.ready,
            restarts: self.restarts,
            detail: self.detail(now),
            last_exit: self.last_exit.clone(),
            failure: self.failure.clone(),
            log_tail,
            started_at: self.started_at,
        }
    }

    fn detail(&self, now: Timestamp) -> String {
        let seconds = self
            .wake_at
            .map_or(0, |at| at.millis_since(now).div_ceil(1000));
        match (self.state, self.stop) {
            (InstanceState::Backoff, _) => format!("next start in {seconds} s"),
            (InstanceState::Booting, _) => format!("boot {}", self.boots_in_row + 1),
            (InstanceState::Running, _) if self.ready => String::new(),
            (InstanceState::Running, _) => match (&self.health, &self.probe_failure) {
                (None, _) => "about to be ready".to_owned(),
                (Some(health), Some(reason)) if self.unhealthy_in_row > 0 => {
                    let (seen, limit) = (self.unhealthy_in_row, health.unhealthy);
                    format!(
                        "health check failed {seen} times in a row, {limit} are too many: {reason}"
                    )
                }
                (Some(_), Some(reason)) => format!("health check not passed yet: {reason}"),
                (Some(health), None) => {
                    let (seen, wanted) = (self.healthy_in_row, health.healthy);
                    format!("health check passed {seen} of {wanted} times")
                }
            },
            (InstanceState::Stopping, Some(Stop::Draining)) => "draining".to_owned(),
            (InstanceState::Stopping, Some(Stop::Asked)) => "asked to stop".to_owned(),
            (InstanceState::Stopping, Some(Stop::Cleaning) | None) => "cleaning up".to_owned(),
            (
                InstanceState::Created
                | InstanceState::Preparing
                | InstanceState::Stopped
                | InstanceState::Failed,
                _,
            ) => String::new(),
        }
    }
}
