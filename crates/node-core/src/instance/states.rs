//! What each state makes of each event. Absent: the event cannot happen there.

use guest_protocol::BootFailure;
use model::Timestamp;
use model::instance::InstanceState;

use super::{Effect, Event, Lifecycle, MAX_PREPARE_ATTEMPTS, Stop};

impl Lifecycle {
    pub(super) fn in_created(&mut self, now: Timestamp, event: &Event) -> Option<Vec<Effect>> {
        match event {
            Event::Start => Some(self.prepare()),
            Event::StopAsked => Some(self.stop_now(false)),
            // Nothing was done yet.
            Event::NotFound => Some(Vec::new()),
            // Its record was lost and its VM was not.
            Event::Adopted => Some(self.boot(now, false)),
            Event::Prepared
            | Event::PrepareFailed { .. }
            | Event::VmmStarted
            | Event::VmmFailed { .. }
            | Event::GuestStarted
            | Event::BootFailed(_)
            | Event::Exited(_)
            | Event::VmmLost { .. }
            | Event::BootTimeout
            | Event::Settled
            | Event::HealthPassed
            | Event::HealthFailed { .. }
            | Event::BackoffElapsed
            | Event::DrainElapsed
            | Event::StopTimeout
            | Event::CleanedUp => None,
        }
    }

    pub(super) fn in_preparing(&mut self, now: Timestamp, event: &Event) -> Option<Vec<Effect>> {
        match event {
            Event::Prepared => {
                self.prepares_in_row = 0;
                Some(self.boot(now, true))
            }
            Event::PrepareFailed { retryable, reason } => {
                self.failure = Some(reason.clone());
                self.prepares_in_row += 1;
                let tries_left = self.ran_once || self.prepares_in_row < MAX_PREPARE_ATTEMPTS;
                Some(if *retryable && tries_left {
                    self.back_off(now, self.prepares_in_row - 1)
                } else {
                    self.give_up()
                })
            }
            Event::StopAsked => Some(self.stop_now(false)),
            // The agent ended while it prepared; what was done is done again.
            Event::NotFound => Some(vec![Effect::StartPreparing]),
            // The VM was booted and that was not written down.
            Event::Adopted => Some(self.boot(now, false)),
            Event::CleanedUp => Some(Vec::new()),
            Event::Start
            | Event::VmmStarted
            | Event::VmmFailed { .. }
            | Event::GuestStarted
            | Event::BootFailed(_)
            | Event::Exited(_)
            | Event::VmmLost { .. }
            | Event::BootTimeout
            | Event::Settled
            | Event::HealthPassed
            | Event::HealthFailed { .. }
            | Event::BackoffElapsed
            | Event::DrainElapsed
            | Event::StopTimeout => None,
        }
    }

    pub(super) fn in_booting(&mut self, now: Timestamp, event: &Event) -> Option<Vec<Effect>> {
        match event {
            Event::VmmStarted => Some(Vec::new()),
            Event::GuestStarted => Some(self.run(now)),
            Event::BootFailed(failure) => {
                let BootFailure {
                    step,
                    reason,
                    exit_code,
                } = failure;
                let why = format!("the guest could not {step}: {reason}");
                Some(if let Some(126 | 127) = exit_code {
                    // The root disk will be the same another time.
                    self.failure = Some(why);
                    self.give_up()
                } else {
                    self.boot_missed(now, why)
                })
            }
            Event::VmmFailed { retryable, reason } => {
                let why = format!("the VM could not be started: {reason}");
                Some(if *retryable {
                    self.boot_missed(now, why)
                } else {
                    self.failure = Some(why);
                    self.give_up()
                })
            }
            Event::VmmLost { reason } => {
                Some(self.boot_missed(now, format!("the VM ended while booting: {reason}")))
            }
            Event::BootTimeout => {
                let seconds = self.timing.boot_timeout_ms / 1000;
                Some(self.boot_missed(now, format!("the guest did not start within {seconds} s")))
            }
            // The agent was away when the app started, and ended.
            Event::Exited(exit) => {
                self.run(now);
                Some(self.app_ended(now, exit))
            }
            Event::StopAsked => Some(self.stop_now(true)),
            Event::Adopted => {
                let watchdog = Timestamp(now.0.saturating_add(self.timing.boot_timeout_ms));
                self.wake_at = Some(watchdog);
                Some(vec![Effect::ScheduleAt(watchdog)])
            }
            Event::NotFound => {
                Some(self.boot_missed(now, "the VM ended while the agent was away".to_owned()))
            }
            Event::Start
            | Event::Prepared
            | Event::PrepareFailed { .. }
            | Event::Settled
            | Event::HealthPassed
            | Event::HealthFailed { .. }
            | Event::BackoffElapsed
            | Event::DrainElapsed
            | Event::StopTimeout
            | Event::CleanedUp => None,
        }
    }

    pub(super) fn in_running(&mut self, now: Timestamp, event: &Event) -> Option<Vec<Effect>> {
        match event {
            // The guest says it again when it dials again.
            Event::GuestStarted => Some(Vec::new()),
            Event::Settled if self.health.is_none() => {
                self.wake_at = None;
                Some(self.now_ready())
            }
            Event::HealthPassed => Some(self.probe_passed()),
            Event::HealthFailed { reason } => Some(self.probe_failed(now, reason)),
            Event::Exited(exit) => Some(self.app_ended(now, exit)),
            Event::VmmLost { reason } => {
                Some(self.ended(now, true, format!("the VM ended: {reason}")))
            }
            Event::NotFound => {
                let why = "the VM ended while the agent was away".to_owned();
                Some(self.ended(now, true, why))
            }
            // A lie, since its app ran; but no other end will be believed, so this one is its end.
            Event::BootFailed(BootFailure { step, reason, .. }) => {
                let why = format!("the guest could not {step}: {reason}");
                Some(self.ended(now, true, why))
            }
            Event::StopAsked => {
                self.stop_asked = true;
                Some(if self.has_ports && self.ready {
                    self.drain(now)
                } else {
                    self.ask_stop(now)
                })
            }
            Event::Adopted => Some(if self.ready || self.health.is_some() {
                Vec::new()
            } else {
                self.settle(now)
            }),
            Event::Settled
            | Event::Start
            | Event::Prepared
            | Event::PrepareFailed { .. }
            | Event::VmmStarted
            | Event::VmmFailed { .. }
            | Event::BootTimeout
            | Event::BackoffElapsed
            | Event::DrainElapsed
            | Event::StopTimeout
            | Event::CleanedUp => None,
        }
    }

    pub(super) fn in_stopping(&mut self, now: Timestamp, event: &Event) -> Option<Vec<Effect>> {
        match event {
            Event::StopAsked => {
                self.stop_asked = true;
                Some(Vec::new())
            }
            Event::DrainElapsed if self.stop == Some(Stop::Draining) => Some(self.ask_stop(now)),
            Event::StopTimeout if self.stop == Some(Stop::Asked) => Some(self.clean(true)),
            Event::Exited(exit) => {
                self.last_exit = Some(exit.clone());
                Some(match self.stop {
                    Some(Stop::Cleaning) => Vec::new(),
                    _ => self.clean(true),
                })
            }
            Event::VmmLost { .. } => Some(match self.stop {
                Some(Stop::Cleaning) => Vec::new(),
                _ => self.clean(false),
            }),
            Event::NotFound => Some(self.clean(false)),
            Event::CleanedUp if self.stop == Some(Stop::Cleaning) => {
                self.stop = None;
                self.state = InstanceState::Stopped;
                Some(vec![Effect::Report])
            }
            Event::Adopted => Some(match self.stop {
                Some(Stop::Draining) => self.drain(now),
                Some(Stop::Asked) => self.ask_stop(now),
                Some(Stop::Cleaning) | None => self.clean(true),
            }),
            // What was on its way when the stop was asked.
            Event::Prepared
            | Event::PrepareFailed { .. }
            | Event::VmmStarted
            | Event::VmmFailed { .. }
            | Event::GuestStarted
            | Event::BootFailed(_)
            | Event::HealthPassed
            | Event::HealthFailed { .. } => Some(Vec::new()),
            Event::DrainElapsed
            | Event::StopTimeout
            | Event::CleanedUp
            | Event::Start
            | Event::BootTimeout
            | Event::Settled
            | Event::BackoffElapsed => None,
        }
    }

    pub(super) fn in_backoff(&mut self, event: &Event) -> Option<Vec<Effect>> {
        match event {
            Event::BackoffElapsed => Some(self.prepare()),
            Event::StopAsked => Some(self.stop_now(false)),
            Event::CleanedUp => Some(Vec::new()),
            Event::NotFound => {
                let again = self.wake_at.map(Effect::ScheduleAt);
                let mut effects = vec![Effect::CleanUp];
                effects.extend(again);
                Some(effects)
            }
            // It was to be killed when the agent ended.
            Event::Adopted => {
                let again = self.wake_at.map(Effect::ScheduleAt);
                let mut effects = vec![Effect::KillVm, Effect::CleanUp];
                effects.extend(again);
                Some(effects)
            }
            Event::Start
            | Event::Prepared
            | Event::PrepareFailed { .. }
            | Event::VmmStarted
            | Event::VmmFailed { .. }
            | Event::GuestStarted
            | Event::BootFailed(_)
            | Event::Exited(_)
            | Event::VmmLost { .. }
            | Event::BootTimeout
            | Event::Settled
            | Event::HealthPassed
            | Event::HealthFailed { .. }
            | Event::DrainElapsed
            | Event::StopTimeout => None,
        }
    }

    /// Stopped and failed: nothing runs.
    pub(super) fn in_end(&mut self, event: &Event) -> Option<Vec<Effect>> {
        match event {
            Event::StopAsked if self.state == InstanceState::Stopped => {
                self.stop_asked = true;
                Some(vec![Effect::Report])
            }
            Event::StopAsked => Some(self.stop_now(false)),
            Event::CleanedUp => Some(Vec::new()),
            Event::NotFound => Some(vec![Effect::CleanUp]),
            // It was to be killed when the agent ended.
            Event::Adopted => Some(vec![Effect::KillVm, Effect::CleanUp]),
            Event::Start
            | Event::Prepared
            | Event::PrepareFailed { .. }
            | Event::VmmStarted
            | Event::VmmFailed { .. }
            | Event::GuestStarted
            | Event::BootFailed(_)
            | Event::Exited(_)
            | Event::VmmLost { .. }
            | Event::BootTimeout
            | Event::Settled
            | Event::HealthPassed
            | Event::HealthFailed { .. }
            | Event::BackoffElapsed
            | Event::DrainElapsed
            | Event::StopTimeout => None,
        }
    }
}
