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
//! Not in the diagram:
//!
//! - A running instance without a health check is settling, then settled; one with a health check is unready until its probes
//!   pass, then ready (`Readiness`, `Probed`); see *Ready* below. Which of the two it is follows from its spec, and never changes.
//! - Whether the app ran (`Ran`): an end of an app that ran since it was last prepared leads to a restart, which is counted;
//!   a preparation or a boot that failed is only made again.
//!
//!   ```text
//!           GuestStarted                  prepared again
//!   never --------------> since prepared ----------------> before
//!                              ^       GuestStarted           |
//!                              +------------------------------+
//!   ```
//! - A stop has three steps (`StopStep`), and only the last can be of an instance that nobody asked to stop: it ended by
//!   itself and is not restarted. Draining: a ready instance with ports goes on for a moment, so that
//!   edges learn the new routes, and then as long as edges have connections with it, within its stop timeout. Asked: the app was told to end. Cleaning: scratch disk, tap and sockets are removed. A stop
//!   from created, preparing, booting, backoff or failed begins with cleaning; from running, without ports or not
//!   ready, with asked.
//! - After a restart of the agent each instance gets one event. [`Event::Adopted`] (its VM runs): created and preparing
//!   go to booting; booting stays, with a new watchdog; running stays; stopping repeats its step; in backoff, failed
//!   and stopped the VM is killed. [`Event::NotFound`] (there is no VM): preparing begins again; booting counts a missed
//!   boot; running counts an end; stopping goes to cleaning; the others stay.
//!
//! Events come in with the time, a new state and effects come out; the node carries the effects of
//! one instance out in order, one at a time, and returns their outcome as events. The node drops the events
//! of a VM that was killed: after [`Effect::KillVm`] none of it comes in. The [`ProgressRecord`] is written
//! down with each step, so that an agent that was restarted goes on where it was ([`Event::Adopted`],
//! [`Event::NotFound`]): ready instances stay ready.
//!
//! Time is the node's: milliseconds that only grow while the agent runs. There is at most one
//! timer, [`Lifecycle::wake_at`]; when it is reached, [`Lifecycle::due`] names the event.
//!
//! - An end leads to a restart by the policy, after a backoff that doubles from
//!   [`BACKOFF_FIRST_MS`] to [`BACKOFF_MAX_MS`], less up to a quarter of it: so instances that ended together do not start
//!   together. What is taken off follows from the instance's id and its count of starts, and is no accident. A run of [`STABLE_RUN_MS`] ends the row of
//!   failures. More restarts in a row than the policy's `max_retries`: failed.
//! - A restart is a fresh instance: it is prepared again, with a new scratch disk.
//! - A guest that makes no progress is killed by the boot watchdog and booted again, [`MAX_BOOT_ATTEMPTS`] times in a row. This
//!   is the machine's fault and does not use up the policy's retries. The watchdog gives the guest [`HELLO_TIMEOUT_MS`] until
//!   it dials ([`Event::GuestDialled`]), and from then [`BOOT_TIMEOUT_MS`] until the app runs. A step that takes long, such as the
//!   copy of an image's data into a volume, says how far it is ([`Event::GuestProgressed`]), and both times begin anew. Time in which the VM waited
//!   for a processor is not the guest's ([`Event::VmWaited`]): on a machine under load the watchdog waits as much longer, up to
//!   [`BOOT_LIMIT_MS`] without a word of the guest's. What the console prints is no progress: a kernel that hangs prints too.
//! - An app that cannot be executed (126, 127) fails at once: the root disk will not change.
//! - Ready: `healthy` probes in a row passed; without a health check, the app ran for
//!   [`SETTLE_MS`], so that one that exits at once is never called ready. `unhealthy` probes failed
//!   in a row, after the grace: not ready, until they pass again. An app is never ended because it is not ready: what it waits for may
//!   be what all instances wait for.
//!
//! Deliberately absent: liveness ([`crate::liveness`]), by which the control plane replaces an instance.

mod record;
mod states;
#[cfg(test)]
mod tests;
mod transitions;
mod upgrade;

use api::node::InstanceReport;
use guest_protocol::BootFailure;
use model::instance::{ExitEvent, InstanceSpec, InstanceState, RestartPolicy};
use model::{InstanceId, Timestamp};

pub use record::ProgressRecord;

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
/// How long the boot watchdog waits for the guest to dial, in milliseconds in which its VM has a processor. Under TCG it takes
/// seconds.
pub const HELLO_TIMEOUT_MS: u64 = 30_000;
/// How long the boot watchdog waits for the app of a guest that has dialled, in milliseconds in which its VM has a processor.
/// The guest checks and mounts its disks meanwhile.
pub const BOOT_TIMEOUT_MS: u64 = 60_000;
/// How long a boot may take at most, whatever the machine's load, in milliseconds: from its start, or from the last time that the
/// guest said how far it is.
pub const BOOT_LIMIT_MS: u64 = 600_000;
/// How long a ready instance with ports goes on at least after its stop was asked, in milliseconds, so that
/// edges learn the new routes.
pub const DRAIN_MS: u64 = 2_000;
/// How often a draining instance is looked at for connections that edges still have with it, in milliseconds.
pub const DRAIN_LOOK_MS: u64 = 500;
/// How much longer than the stop timeout the guest may take to report the end, in milliseconds.
pub const STOP_MARGIN_MS: u64 = 5_000;

/// Times that the node chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The boot watchdog until the guest dials, in milliseconds.
    pub hello_timeout_ms: u64,
    /// The boot watchdog from there until the app runs, in milliseconds.
    pub boot_timeout_ms: u64,
    /// How long a ready instance with ports drains at least, in milliseconds.
    pub drain_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            hello_timeout_ms: HELLO_TIMEOUT_MS,
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
    /// The guest dials: its kernel and its init run.
    GuestDialled,
    /// The guest says that a step of its boot has done more than before.
    GuestProgressed,
    /// The VM was ready to run for so long and had no processor, since the last such event.
    VmWaited {
        /// In milliseconds.
        millis: u64,
    },
    /// The guest reports that the app was started.
    GuestStarted,
    /// The guest reports that it could not start the app.
    BootFailed(BootFailure),
    /// The guest reports that the app ended.
    Exited(ExitEvent),
    /// The VMM process is gone, and no exit was reported.
    VmmLost {
        /// How it ended, and the end of its console.
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
    /// Edges know the new routes, or it is time to look again.
    DrainElapsed {
        /// How many connections of edges with the instance are open. 0 also where nobody can say.
        connections: u32,
    },
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

/// What an instance's spec and its node say about its life. It does not change.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rules {
    id: InstanceId,
    restart: RestartPolicy,
    health: Option<Thresholds>,
    has_ports: bool,
    stop_timeout_ms: u64,
    timing: Timing,
}

/// Where an instance is in its life, with what is needed to go on from there.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Nothing was done yet.
    Created,
    /// Its image is fetched and its disks are made.
    Preparing,
    /// Its VM boots.
    Booting {
        /// When the guest must have dialled, or, where it has, must have said that the app runs.
        watchdog: Timestamp,
        /// The latest that the watchdog is put off to. Absent: it is not.
        limit: Option<Timestamp>,
    },
    /// The app runs.
    Running {
        started_at: Timestamp,
        readiness: Readiness,
    },
    /// It waits for its restart, or for another preparation or boot.
    Backoff { until: Timestamp },
    /// It comes to its end.
    Stopping(StopStep),
    /// Nothing of it runs.
    Stopped {
        /// Whether the stop was asked.
        asked: bool,
    },
    /// It is given up.
    Failed,
}

/// Whether a running app takes traffic, and what that takes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Readiness {
    /// There is no health check: ready when it still runs then.
    Settling { until: Timestamp },
    /// There is no health check, and it ran long enough: ready.
    Settled,
    /// The health check decides.
    Probed(Thresholds, Probed),
}

/// What a health check's probes are counted against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Thresholds {
    /// Probes that pass in a row before the app is ready.
    healthy: u32,
    /// Probes that fail in a row before it is unhealthy.
    unhealthy: u32,
    /// How long after its start failures do not count, in milliseconds.
    grace_ms: u64,
}

/// What the probes of a running app say.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Probed {
    /// Not ready: not yet, or not any more.
    Unready {
        /// Probes in a row that passed.
        passed: u32,
        /// Probes in a row that failed, after the grace.
        failed: u32,
        /// Why the last one failed; absent: it passed, or there was none.
        reason: Option<String>,
    },
    /// Ready.
    Ready {
        /// Probes in a row that failed, after the grace.
        failed: u32,
    },
}

impl Probed {
    /// Before the first probe.
    const NOT_YET: Self = Self::Unready {
        passed: 0,
        failed: 0,
        reason: None,
    };
}

impl Readiness {
    fn is_ready(&self) -> bool {
        matches!(self, Self::Settled | Self::Probed(_, Probed::Ready { .. }))
    }
}

impl Rules {
    fn of(spec: &InstanceSpec, timing: Timing) -> Self {
        Self {
            id: spec.id,
            restart: spec.restart.clone(),
            health: spec.healthcheck.as_ref().map(|check| Thresholds {
                healthy: check.healthy,
                unhealthy: check.unhealthy,
                grace_ms: check.grace_ms,
            }),
            has_ports: !spec.ports.is_empty(),
            stop_timeout_ms: spec.stop.timeout_ms,
            timing,
        }
    }
}

/// How far a stop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StopStep {
    /// It was asked to stop. Edges learn the new routes, then what they began with it comes to its end.
    Draining {
        /// When it is looked at.
        until: Timestamp,
        /// When it is asked to end whoever is connected.
        limit: Timestamp,
        /// How many connections of edges were open when it was looked at last.
        connections: u32,
        started_at: Timestamp,
    },
    /// The app was asked to end.
    Asked {
        until: Timestamp,
        started_at: Timestamp,
    },
    /// What is left is removed.
    Cleaning {
        /// Whether the stop was asked; else it ended by itself and is not restarted.
        asked: bool,
    },
}

/// Whether the app ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ran {
    /// It never did.
    Never,
    /// It did, and not since the instance was last prepared; or it does not start again.
    Before,
    /// It did since the instance was last prepared: when it is prepared again, that is a restart.
    SincePrepared,
}

/// How far an instance is. The rest follows from its spec.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Progress {
    state: State,
    ran: Ran,
    restarts: u32,
    ends_in_row: u32,
    prepares_in_row: u32,
    /// When the preparation before the first run began, while it is under way.
    preparing_since: Option<Timestamp>,
    /// How long such preparations took, in milliseconds.
    preparing_ms: u64,
    boots_in_row: u32,
    last_exit: Option<ExitEvent>,
    failure: Option<String>,
}

/// The life of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lifecycle {
    rules: Rules,
    progress: Progress,
}

impl Lifecycle {
    /// A life that has not begun.
    pub fn new(spec: &InstanceSpec, timing: Timing) -> Self {
        let progress = Progress {
            state: State::Created,
            ran: Ran::Never,
            restarts: 0,
            ends_in_row: 0,
            prepares_in_row: 0,
            preparing_since: None,
            preparing_ms: 0,
            boots_in_row: 0,
            last_exit: None,
            failure: None,
        };
        Self {
            rules: Rules::of(spec, timing),
            progress,
        }
    }

    /// A life that goes on where its record ends.
    pub fn resume(spec: &InstanceSpec, timing: Timing, record: ProgressRecord) -> Self {
        let rules = Rules::of(spec, timing);
        let progress = record.into_progress(rules.health);
        Self { rules, progress }
    }

    /// What is written down.
    pub fn record(&self) -> ProgressRecord {
        ProgressRecord::of(&self.progress)
    }

    /// The instance.
    pub fn id(&self) -> InstanceId {
        self.rules.id
    }

    /// Where it is.
    pub fn state(&self) -> InstanceState {
        match &self.progress.state {
            State::Created => InstanceState::Created,
            State::Preparing => InstanceState::Preparing,
            State::Booting { .. } => InstanceState::Booting,
            State::Running {
                started_at,
                readiness,
            } => InstanceState::Running {
                ready: readiness.is_ready(),
                started_at: Some(*started_at),
            },
            State::Backoff { .. } => InstanceState::Backoff,
            State::Stopping(_) => InstanceState::Stopping,
            State::Stopped { .. } => InstanceState::Stopped,
            State::Failed => InstanceState::Failed,
        }
    }

    /// Whether it was asked to stop, and so will not start again.
    pub fn stop_asked(&self) -> bool {
        matches!(
            self.progress.state,
            State::Stopping(
                StopStep::Draining { .. }
                    | StopStep::Asked { .. }
                    | StopStep::Cleaning { asked: true }
            ) | State::Stopped { asked: true }
        )
    }

    /// Times it was started again.
    pub fn restarts(&self) -> u32 {
        self.progress.restarts
    }

    /// The one timer: when it is due, and the event that happens then.
    fn timer(&self) -> Option<(Timestamp, Event)> {
        match &self.progress.state {
            State::Booting { watchdog, .. } => Some((*watchdog, Event::BootTimeout)),
            State::Running {
                readiness: Readiness::Settling { until },
                ..
            } => Some((*until, Event::Settled)),
            State::Backoff { until } => Some((*until, Event::BackoffElapsed)),
            State::Stopping(step) => match step {
                StopStep::Draining { until, .. } => {
                    Some((*until, Event::DrainElapsed { connections: 0 }))
                }
                StopStep::Asked { until, .. } => Some((*until, Event::StopTimeout)),
                StopStep::Cleaning { .. } => None,
            },
            State::Created
            | State::Preparing
            | State::Running { .. }
            | State::Stopped { .. }
            | State::Failed => None,
        }
    }

    /// When to ask [`Lifecycle::due`]; absent: never.
    pub fn wake_at(&self) -> Option<Timestamp> {
        self.timer().map(|(at, _)| at)
    }

    /// The event of the timer, once its time is reached.
    pub fn due(&self, now: Timestamp) -> Option<Event> {
        let (at, event) = self.timer()?;
        (now >= at).then_some(event)
    }

    /// Takes one event in; what the node is to do comes out. An illegal event changes nothing.
    pub fn step(&mut self, now: Timestamp, event: Event) -> Result<Vec<Effect>, IllegalEvent> {
        let effects = match self.progress.state.clone() {
            State::Created => self.in_created(now, &event),
            State::Preparing => self.in_preparing(now, &event),
            State::Booting { watchdog, limit } => self.in_booting(now, &event, watchdog, limit),
            State::Running {
                started_at,
                readiness,
            } => self.in_running(now, &event, started_at, &readiness),
            State::Stopping(step) => self.in_stopping(now, &event, step),
            State::Backoff { until } => self.in_backoff(now, &event, until),
            State::Stopped { .. } | State::Failed => self.in_end(&event),
        };
        effects.ok_or_else(|| IllegalEvent {
            id: self.rules.id,
            state: self.state(),
            event: Box::new(event),
        })
    }

    /// What the node reports about it. `log_tail` are the lines the app logged before its last end.
    pub fn report(&self, now: Timestamp, log_tail: Vec<String>) -> InstanceReport {
        InstanceReport {
            id: self.rules.id,
            state: self.state(),
            restarts: self.progress.restarts,
            detail: self.detail(now),
            last_exit: self.progress.last_exit.clone(),
            failure: self.progress.failure.clone(),
            log_tail,
            preparing_ms: self.progress.preparing_ms,
            liveness_failure: None,
            holds: None,
        }
    }

    fn detail(&self, now: Timestamp) -> String {
        match &self.progress.state {
            State::Backoff { until } => {
                let seconds = until.millis_since(now).div_ceil(1000);
                format!("next start in {seconds} s")
            }
            State::Booting { .. } => format!("boot {}", self.progress.boots_in_row + 1),
            State::Running { readiness, .. } => readiness_detail(readiness),
            State::Stopping(step) => match step {
                StopStep::Draining { connections: 0, .. } => "draining".to_owned(),
                StopStep::Draining { connections: 1, .. } => {
                    "draining: a connection of an edge is open".to_owned()
                }
                StopStep::Draining { connections, .. } => {
                    format!("draining: {connections} connections of edges are open")
                }
                StopStep::Asked { .. } => "asked to stop".to_owned(),
                StopStep::Cleaning { .. } => "cleaning up".to_owned(),
            },
            State::Created | State::Preparing | State::Stopped { .. } | State::Failed => {
                String::new()
            }
        }
    }
}

fn readiness_detail(readiness: &Readiness) -> String {
    let (limits, passed, failed, reason) = match readiness {
        Readiness::Settled | Readiness::Probed(_, Probed::Ready { .. }) => return String::new(),
        Readiness::Settling { .. } => return "about to be ready".to_owned(),
        Readiness::Probed(
            limits,
            Probed::Unready {
                passed,
                failed,
                reason,
            },
        ) => (limits, passed, failed, reason),
    };
    match (reason, failed) {
        (Some(reason), 0) => format!("health check not passed yet: {reason}"),
        (Some(reason), failed) => {
            let limit = limits.unhealthy;
            format!(
                "not ready: the health check failed {failed} times in a row (of {limit}): {reason}"
            )
        }
        (None, _) => format!("health check passed {passed} of {} times", limits.healthy),
    }
}
