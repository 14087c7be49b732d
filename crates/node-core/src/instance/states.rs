//! Handles each event in each state; `None`: it is not possible there.

use guest_protocol::BootFailure;
use model::Timestamp;

use super::{
    BACKOFF_MAX_MS, BOOT_LIMIT_MS, Effect, Event, Lifecycle, MAX_PREPARE_ATTEMPTS, Ran, Readiness,
    State, StopStep,
};

impl Lifecycle {
    pub(super) fn in_created(&mut self, now: Timestamp, event: &Event) -> Option<Vec<Effect>> {
        match event {
            Event::Start => Some(self.prepare(now)),
            Event::StopAsked => Some(self.clean(true, false)),
            // Nothing was done yet.
            Event::NotFound => Some(Vec::new()),
            // Its record was lost and its VM was not.
            Event::Adopted => Some(self.boot(now, false)),
            Event::Prepared
            | Event::PrepareFailed { .. }
            | Event::VmmStarted
            | Event::VmmFailed { .. }
            | Event::GuestDialled
            | Event::GuestProgressed
            | Event::VmWaited { .. }
            | Event::GuestStarted
            | Event::BootFailed(_)
            | Event::Exited(_)
            | Event::VmmLost { .. }
            | Event::BootTimeout
            | Event::Settled
            | Event::HealthPassed
            | Event::HealthFailed { .. }
            | Event::BackoffElapsed
            | Event::DrainElapsed { .. }
            | Event::StopTimeout
            | Event::CleanedUp => None,
        }
    }

    pub(super) fn in_preparing(&mut self, now: Timestamp, event: &Event) -> Option<Vec<Effect>> {
        match event {
            Event::Prepared => {
                self.end_preparing(now);
                self.progress.prepares_in_row = 0;
                Some(self.boot(now, true))
            }
            Event::PrepareFailed { retryable, reason } => {
                self.end_preparing(now);
                self.progress.failure = Some(reason.clone());
                self.progress.prepares_in_row += 1;
                let attempts = self.progress.prepares_in_row;
                let tries_left = self.progress.ran != Ran::Never || attempts < MAX_PREPARE_ATTEMPTS;
                Some(if *retryable && tries_left {
                    self.back_off(now, attempts - 1)
                } else {
                    self.give_up()
                })
            }
            Event::StopAsked => Some(self.clean(true, false)),
            // The agent ended while it prepared; what was done is done again.
            Event::NotFound => Some(vec![Effect::StartPreparing]),
            // The VM was booted and that was not written down.
            Event::Adopted => {
                self.end_preparing(now);
                Some(self.boot(now, false))
            }
            Event::CleanedUp => Some(Vec::new()),
            Event::Start
            | Event::VmmStarted
            | Event::VmmFailed { .. }
            | Event::GuestDialled
            | Event::GuestProgressed
            | Event::VmWaited { .. }
            | Event::GuestStarted
            | Event::BootFailed(_)
            | Event::Exited(_)
            | Event::VmmLost { .. }
            | Event::BootTimeout
            | Event::Settled
            | Event::HealthPassed
            | Event::HealthFailed { .. }
            | Event::BackoffElapsed
            | Event::DrainElapsed { .. }
            | Event::StopTimeout => None,
        }
    }

    pub(super) fn in_booting(
        &mut self,
        now: Timestamp,
        event: &Event,
        watchdog: Timestamp,
        limit: Option<Timestamp>,
    ) -> Option<Vec<Effect>> {
        match event {
            Event::VmmStarted => Some(Vec::new()),
            Event::GuestDialled => {
                let to = Timestamp(now.0.saturating_add(self.rules.timing.boot_timeout_ms));
                Some(self.put_off(watchdog, to, limit))
            }
            // What a boot has to do is bounded, and it is doing it.
            Event::GuestProgressed => {
                let to = Timestamp(now.0.saturating_add(self.rules.timing.boot_timeout_ms));
                let limit = limit.map(|_| Timestamp(now.0.saturating_add(BOOT_LIMIT_MS)));
                Some(self.put_off(watchdog, to, limit))
            }
            Event::VmWaited { millis } => {
                let to = Timestamp(watchdog.0.saturating_add(*millis));
                Some(self.put_off(watchdog, to, limit))
            }
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
                    self.progress.failure = Some(why);
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
                    self.progress.failure = Some(why);
                    self.give_up()
                })
            }
            Event::VmmLost { reason } => {
                Some(self.boot_missed(now, format!("the VM ended while booting: {reason}")))
            }
            Event::BootTimeout => {
                let limited = limit.is_some_and(|limit| now >= limit);
                Some(self.boot_missed(
                    now,
                    if limited {
                        format!(
                            "the boot took longer than {} s without a word of progress",
                            BOOT_LIMIT_MS / 1000
                        )
                    } else {
                        "the guest made no progress in its boot".to_owned()
                    },
                ))
            }
            // The app started and ended while no agent ran.
            Event::Exited(exit) => {
                self.run(now);
                Some(self.app_ended(now, now, exit))
            }
            Event::StopAsked => Some(self.clean(true, true)),
            Event::Adopted => {
                let watchdog = self.watch_boot(now);
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
            | Event::DrainElapsed { .. }
            | Event::StopTimeout
            | Event::CleanedUp => None,
        }
    }

    pub(super) fn in_running(
        &mut self,
        now: Timestamp,
        event: &Event,
        started_at: Timestamp,
        readiness: &Readiness,
    ) -> Option<Vec<Effect>> {
        match event {
            // The guest says it again when it dials again.
            Event::GuestStarted
            | Event::GuestDialled
            | Event::GuestProgressed
            | Event::VmWaited { .. } => Some(Vec::new()),
            Event::Settled => match readiness {
                Readiness::Settling { .. } => {
                    Some(self.become_ready(started_at, Readiness::Settled))
                }
                Readiness::Settled | Readiness::Probed(..) => None,
            },
            Event::HealthPassed => match readiness {
                Readiness::Probed(limits, probed) => {
                    Some(self.probe_passed(started_at, *limits, probed))
                }
                Readiness::Settling { .. } | Readiness::Settled => None,
            },
            Event::HealthFailed { reason } => match readiness {
                Readiness::Probed(limits, probed) => {
                    Some(self.probe_failed(now, reason, started_at, *limits, probed))
                }
                Readiness::Settling { .. } | Readiness::Settled => None,
            },
            Event::Exited(exit) => Some(self.app_ended(now, started_at, exit)),
            Event::VmmLost { reason } => {
                let why = format!("the VM ended: {reason}");
                Some(self.ended(now, started_at, Some(why)))
            }
            Event::NotFound => {
                let why = "the VM ended while the agent was away".to_owned();
                Some(self.ended(now, started_at, Some(why)))
            }
            // It cannot be true of a guest whose app ran. No other end of this guest is believed, so
            // this one is its end.
            Event::BootFailed(BootFailure { step, reason, .. }) => {
                let why = format!("the guest could not {step}: {reason}");
                Some(self.ended(now, started_at, Some(why)))
            }
            Event::StopAsked => Some(if self.rules.has_ports && readiness.is_ready() {
                self.drain(now, started_at)
            } else {
                self.ask_stop(now, started_at)
            }),
            // The agent that was restarted has another clock, which may have been set back: else the grace of the health
            // check would last as much longer.
            Event::Adopted => {
                let started_at = started_at.min(now);
                self.running(started_at, readiness.clone());
                Some(match readiness {
                    Readiness::Settling { .. } => self.settle(now, started_at),
                    Readiness::Settled | Readiness::Probed(..) => Vec::new(),
                })
            }
            Event::Start
            | Event::Prepared
            | Event::PrepareFailed { .. }
            | Event::VmmStarted
            | Event::VmmFailed { .. }
            | Event::BootTimeout
            | Event::BackoffElapsed
            | Event::DrainElapsed { .. }
            | Event::StopTimeout
            | Event::CleanedUp => None,
        }
    }

    pub(super) fn in_stopping(
        &mut self,
        now: Timestamp,
        event: &Event,
        step: StopStep,
    ) -> Option<Vec<Effect>> {
        match (event, step) {
            (Event::StopAsked, StopStep::Cleaning { .. }) => {
                self.progress.state = State::Stopping(StopStep::Cleaning { asked: true });
                Some(Vec::new())
            }
            (Event::StopAsked, StopStep::Draining { .. } | StopStep::Asked { .. }) => {
                Some(Vec::new())
            }
            (
                Event::DrainElapsed { connections },
                StopStep::Draining {
                    limit,
                    connections: before,
                    started_at,
                    ..
                },
            ) => Some(if *connections == 0 || now >= limit {
                self.ask_stop(now, started_at)
            } else {
                self.drain_on(now, (before, *connections), limit, started_at)
            }),
            (Event::StopTimeout, StopStep::Asked { .. }) => Some(self.clean(true, true)),
            (Event::Exited(exit), step) => {
                self.progress.last_exit = Some(exit.clone());
                Some(match step {
                    StopStep::Cleaning { .. } => Vec::new(),
                    StopStep::Draining { .. } | StopStep::Asked { .. } => self.clean(true, true),
                })
            }
            (Event::VmmLost { .. }, StopStep::Cleaning { .. }) => Some(Vec::new()),
            (Event::NotFound, StopStep::Cleaning { asked }) => Some(self.clean(asked, false)),
            (
                Event::VmmLost { .. } | Event::NotFound,
                StopStep::Draining { .. } | StopStep::Asked { .. },
            ) => Some(self.clean(true, false)),
            (Event::CleanedUp, StopStep::Cleaning { asked }) => {
                self.progress.state = State::Stopped { asked };
                Some(vec![Effect::Report])
            }
            (Event::Adopted, StopStep::Draining { started_at, .. }) => {
                Some(self.drain(now, started_at))
            }
            (Event::Adopted, StopStep::Asked { started_at, .. }) => {
                Some(self.ask_stop(now, started_at))
            }
            (Event::Adopted, StopStep::Cleaning { asked }) => Some(self.clean(asked, true)),
            // What was on its way when the stop was asked.
            (
                Event::Prepared
                | Event::PrepareFailed { .. }
                | Event::VmmStarted
                | Event::VmmFailed { .. }
                | Event::GuestDialled
                | Event::GuestProgressed
                | Event::VmWaited { .. }
                | Event::GuestStarted
                | Event::BootFailed(_)
                | Event::HealthPassed
                | Event::HealthFailed { .. },
                _,
            ) => Some(Vec::new()),
            (
                Event::DrainElapsed { .. }
                | Event::StopTimeout
                | Event::CleanedUp
                | Event::Start
                | Event::BootTimeout
                | Event::Settled
                | Event::BackoffElapsed,
                _,
            ) => None,
        }
    }

    pub(super) fn in_backoff(
        &mut self,
        now: Timestamp,
        event: &Event,
        until: Timestamp,
    ) -> Option<Vec<Effect>> {
        match event {
            Event::BackoffElapsed => Some(self.prepare(now)),
            Event::StopAsked => Some(self.clean(true, false)),
            Event::CleanedUp => Some(Vec::new()),
            Event::NotFound => {
                let schedule = self.wait_again(now, until);
                Some(vec![Effect::CleanUp, schedule])
            }
            // It was to be killed when the agent ended.
            Event::Adopted => {
                let schedule = self.wait_again(now, until);
                Some(vec![Effect::KillVm, Effect::CleanUp, schedule])
            }
            Event::Start
            | Event::Prepared
            | Event::PrepareFailed { .. }
            | Event::VmmStarted
            | Event::VmmFailed { .. }
            | Event::GuestDialled
            | Event::GuestProgressed
            | Event::VmWaited { .. }
            | Event::GuestStarted
            | Event::BootFailed(_)
            | Event::Exited(_)
            | Event::VmmLost { .. }
            | Event::BootTimeout
            | Event::Settled
            | Event::HealthPassed
            | Event::HealthFailed { .. }
            | Event::DrainElapsed { .. }
            | Event::StopTimeout => None,
        }
    }

    /// A restarted agent has another clock: the wait is bounded by the longest there is.
    fn wait_again(&mut self, now: Timestamp, until: Timestamp) -> Effect {
        let latest = Timestamp(now.0.saturating_add(BACKOFF_MAX_MS));
        let until = until.min(latest);
        self.progress.state = State::Backoff { until };
        Effect::ScheduleAt(until)
    }

    /// Stopped and failed: nothing runs.
    pub(super) fn in_end(&mut self, event: &Event) -> Option<Vec<Effect>> {
        match event {
            Event::StopAsked if self.progress.state == State::Failed => {
                Some(self.clean(true, false))
            }
            Event::StopAsked => {
                self.progress.state = State::Stopped { asked: true };
                Some(vec![Effect::Report])
            }
            Event::CleanedUp => Some(Vec::new()),
            Event::NotFound => Some(vec![Effect::CleanUp]),
            // It was to be killed when the agent ended.
            Event::Adopted => Some(vec![Effect::KillVm, Effect::CleanUp]),
            Event::Start
            | Event::Prepared
            | Event::PrepareFailed { .. }
            | Event::VmmStarted
            | Event::VmmFailed { .. }
            | Event::GuestDialled
            | Event::GuestProgressed
            | Event::VmWaited { .. }
            | Event::GuestStarted
            | Event::BootFailed(_)
            | Event::Exited(_)
            | Event::VmmLost { .. }
            | Event::BootTimeout
            | Event::Settled
            | Event::HealthPassed
            | Event::HealthFailed { .. }
            | Event::BackoffElapsed
            | Event::DrainElapsed { .. }
            | Event::StopTimeout => None,
        }
    }
}
