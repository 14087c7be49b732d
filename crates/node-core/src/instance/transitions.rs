//! The ways from one state to another, with their effects.

use model::Timestamp;
use model::instance::{ExitEvent, RestartWhen};

use super::{
    BACKOFF_FIRST_MS, BACKOFF_MAX_MS, BOOT_LIMIT_MS, DRAIN_LOOK_MS, Effect, Lifecycle,
    MAX_BOOT_ATTEMPTS, Probed, Ran, Readiness, SETTLE_MS, STABLE_RUN_MS, STOP_MARGIN_MS, State,
    StopStep, Thresholds,
};

/// A backoff is shorter than its full length by less than one of so many parts.
const JITTER_PART: u64 = 4;

impl Lifecycle {
    /// Prepares a boot. An app that ran since the last preparation is started again; preparing again is not starting
    /// again.
    pub(super) fn prepare(&mut self, now: Timestamp) -> Vec<Effect> {
        if self.progress.ran == Ran::SincePrepared {
            self.progress.restarts = self.progress.restarts.saturating_add(1);
            self.progress.ran = Ran::Before;
        }
        self.progress.preparing_since = (self.progress.ran == Ran::Never).then_some(now);
        self.progress.state = State::Preparing;
        vec![Effect::StartPreparing, Effect::Report]
    }

    /// It does not start again: no end of its app leads to a restart.
    fn end_restarts(&mut self) {
        if self.progress.ran == Ran::SincePrepared {
            self.progress.ran = Ran::Before;
        }
    }

    /// The preparation is over, whichever way.
    pub(super) fn end_preparing(&mut self, now: Timestamp) {
        if let Some(since) = self.progress.preparing_since.take() {
            let took = now.millis_since(since);
            self.progress.preparing_ms = self.progress.preparing_ms.saturating_add(took);
        }
    }

    pub(super) fn boot(&mut self, now: Timestamp, start: bool) -> Vec<Effect> {
        let watchdog = self.watch_boot(now);
        let mut effects = vec![Effect::ScheduleAt(watchdog)];
        if start {
            effects.push(Effect::BootVm);
        }
        effects.push(Effect::Report);
        effects
    }

    pub(super) fn watch_boot(&mut self, now: Timestamp) -> Timestamp {
        let watchdog = Timestamp(now.0.saturating_add(self.rules.timing.hello_timeout_ms));
        self.progress.state = State::Booting {
            watchdog,
            limit: Some(Timestamp(now.0.saturating_add(BOOT_LIMIT_MS))),
        };
        watchdog
    }

    /// Puts the boot watchdog off to a time, within its limit.
    pub(super) fn put_off(
        &mut self,
        watchdog: Timestamp,
        to: Timestamp,
        limit: Option<Timestamp>,
    ) -> Vec<Effect> {
        let watchdog = to.min(limit.unwrap_or(to)).max(watchdog);
        self.progress.state = State::Booting { watchdog, limit };
        vec![Effect::ScheduleAt(watchdog)]
    }

    pub(super) fn run(&mut self, now: Timestamp) -> Vec<Effect> {
        self.progress.ran = Ran::SincePrepared;
        self.progress.boots_in_row = 0;
        let mut effects = if let Some(limits) = self.rules.health {
            self.running(now, Readiness::Probed(limits, Probed::NOT_YET));
            Vec::new()
        } else {
            self.settle(now, now)
        };
        effects.push(Effect::Report);
        effects
    }

    pub(super) fn running(&mut self, started_at: Timestamp, readiness: Readiness) {
        self.progress.state = State::Running {
            started_at,
            readiness,
        };
    }

    pub(super) fn settle(&mut self, now: Timestamp, started_at: Timestamp) -> Vec<Effect> {
        let until = Timestamp(now.0.saturating_add(SETTLE_MS));
        self.running(started_at, Readiness::Settling { until });
        vec![Effect::ScheduleAt(until)]
    }

    /// `readiness` is one that is ready.
    pub(super) fn become_ready(
        &mut self,
        started_at: Timestamp,
        readiness: Readiness,
    ) -> Vec<Effect> {
        self.progress.failure = None;
        self.running(started_at, readiness);
        vec![Effect::Report]
    }

    pub(super) fn probe_passed(
        &mut self,
        started_at: Timestamp,
        limits: Thresholds,
        probed: &Probed,
    ) -> Vec<Effect> {
        let ready = Readiness::Probed(limits, Probed::Ready { failed: 0 });
        let passed = match probed {
            Probed::Ready { .. } => {
                self.running(started_at, ready);
                return Vec::new();
            }
            Probed::Unready { passed, .. } => passed.saturating_add(1),
        };
        if passed >= limits.healthy {
            return self.become_ready(started_at, ready);
        }
        let unready = Probed::Unready {
            passed,
            failed: 0,
            reason: None,
        };
        self.running(started_at, Readiness::Probed(limits, unready));
        Vec::new()
    }

    pub(super) fn probe_failed(
        &mut self,
        now: Timestamp,
        reason: &str,
        started_at: Timestamp,
        limits: Thresholds,
        probed: &Probed,
    ) -> Vec<Effect> {
        let (ready, before, known) = match probed {
            Probed::Ready { failed } => (true, *failed, None),
            Probed::Unready { failed, reason, .. } => (false, *failed, reason.as_deref()),
        };
        let counts = now.millis_since(started_at) >= limits.grace_ms;
        let failed = before.saturating_add(u32::from(counts));
        let unready = Probed::Unready {
            passed: 0,
            failed,
            reason: Some(reason.to_owned()),
        };
        if counts && failed >= limits.unhealthy {
            let too_many = limits.unhealthy;
            let why = format!("the health check failed {too_many} times in a row: {reason}");
            let news = ready || self.progress.failure.is_none();
            self.progress.failure.get_or_insert(why);
            self.running(started_at, Readiness::Probed(limits, unready));
            return news.then_some(Effect::Report).into_iter().collect();
        }
        if ready {
            let ready = Readiness::Probed(limits, Probed::Ready { failed });
            self.running(started_at, ready);
            return Vec::new();
        }
        // While it is waited for, people see what it waits for; the same reason again is not reported again.
        let news = known != Some(reason);
        self.running(started_at, Readiness::Probed(limits, unready));
        news.then_some(Effect::Report).into_iter().collect()
    }

    pub(super) fn app_ended(
        &mut self,
        now: Timestamp,
        started_at: Timestamp,
        exit: &ExitEvent,
    ) -> Vec<Effect> {
        self.progress.last_exit = Some(exit.clone());
        let failed = exit.exit_code != 0 || exit.signal.is_some();
        let why = failed.then(|| format!("the app ended: {exit}"));
        self.ended(now, started_at, why)
    }

    /// A running instance ended by itself, for this reason if it failed: again, by the policy, or not.
    pub(super) fn ended(
        &mut self,
        now: Timestamp,
        started_at: Timestamp,
        failure: Option<String>,
    ) -> Vec<Effect> {
        let failed = failure.is_some();
        self.progress.failure = failure;
        let again = match self.rules.restart.when {
            RestartWhen::Always => true,
            RestartWhen::OnFailure => failed,
            RestartWhen::Never => false,
        };
        if !again {
            return self.clean(false, true);
        }
        if now.millis_since(started_at) >= STABLE_RUN_MS {
            self.progress.ends_in_row = 0;
        }
        self.progress.ends_in_row = self.progress.ends_in_row.saturating_add(1);
        if self.progress.ends_in_row > self.rules.restart.max_retries {
            let last = self.progress.failure.take();
            let last = last.unwrap_or_else(|| "the app ended with exit code 0".to_owned());
            let retries = self.rules.restart.max_retries;
            self.progress.failure = Some(format!(
                "given up after {retries} restarts in a row: {last}"
            ));
            return self.give_up();
        }
        self.back_off(now, self.progress.ends_in_row - 1)
    }

    /// A boot that did not lead to a running app. This is not the app's fault.
    pub(super) fn boot_missed(&mut self, now: Timestamp, why: String) -> Vec<Effect> {
        self.progress.boots_in_row = self.progress.boots_in_row.saturating_add(1);
        let boots = self.progress.boots_in_row;
        if boots >= MAX_BOOT_ATTEMPTS {
            self.progress.failure = Some(format!("given up after {boots} boots: {why}"));
            return self.give_up();
        }
        self.progress.failure = Some(why);
        self.back_off(now, boots - 1)
    }

    pub(super) fn back_off(&mut self, now: Timestamp, doublings: u32) -> Vec<Effect> {
        let wait = 1_u64
            .checked_shl(doublings)
            .and_then(|factor| BACKOFF_FIRST_MS.checked_mul(factor))
            .map_or(BACKOFF_MAX_MS, |wait| wait.min(BACKOFF_MAX_MS));
        let wait = wait - self.draw() % (wait / JITTER_PART);
        let until = Timestamp(now.0.saturating_add(wait));
        self.progress.state = State::Backoff { until };
        let schedule = Effect::ScheduleAt(until);
        vec![Effect::KillVm, Effect::CleanUp, schedule, Effect::Report]
    }

    /// A number that differs between instances and between the starts of one, and is the same each time (SplitMix64).
    fn draw(&self) -> u64 {
        let progress = &self.progress;
        let starts = [
            progress.restarts,
            progress.ends_in_row,
            progress.boots_in_row,
            progress.prepares_in_row,
        ];
        let starts: u64 = starts.map(u64::from).iter().sum();
        let mut bits =
            (u64::from(self.rules.id.0) << 32 ^ starts).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    pub(super) fn give_up(&mut self) -> Vec<Effect> {
        self.progress.state = State::Failed;
        self.end_restarts();
        vec![Effect::KillVm, Effect::CleanUp, Effect::Report]
    }

    pub(super) fn drain(&mut self, now: Timestamp, started_at: Timestamp) -> Vec<Effect> {
        let until = Timestamp(now.0.saturating_add(self.rules.timing.drain_ms));
        let limit = Timestamp(until.0.saturating_add(self.rules.stop_timeout_ms));
        self.progress.state = State::Stopping(StopStep::Draining {
            until,
            limit,
            connections: 0,
            started_at,
        });
        self.end_restarts();
        vec![Effect::ScheduleAt(until), Effect::Report]
    }

    /// Waits on for the ends of `connections`, of which there were `before` when it was looked at last.
    pub(super) fn drain_on(
        &mut self,
        now: Timestamp,
        (before, connections): (u32, u32),
        limit: Timestamp,
        started_at: Timestamp,
    ) -> Vec<Effect> {
        let until = Timestamp(now.0.saturating_add(DRAIN_LOOK_MS)).min(limit);
        self.progress.state = State::Stopping(StopStep::Draining {
            until,
            limit,
            connections,
            started_at,
        });
        let mut effects = vec![Effect::ScheduleAt(until)];
        // The control plane is not told of each that ends.
        if before == 0 {
            effects.push(Effect::Report);
        }
        effects
    }

    pub(super) fn ask_stop(&mut self, now: Timestamp, started_at: Timestamp) -> Vec<Effect> {
        let wait = self.rules.stop_timeout_ms.saturating_add(STOP_MARGIN_MS);
        let until = Timestamp(now.0.saturating_add(wait));
        self.progress.state = State::Stopping(StopStep::Asked { until, started_at });
        self.end_restarts();
        vec![Effect::AskStop, Effect::ScheduleAt(until), Effect::Report]
    }

    /// Ends what is left. `asked` says that the stop was asked; `vm` that there may be a VM.
    pub(super) fn clean(&mut self, asked: bool, vm: bool) -> Vec<Effect> {
        self.progress.state = State::Stopping(StopStep::Cleaning { asked });
        self.end_restarts();
        let mut effects = Vec::new();
        if vm {
            effects.push(Effect::KillVm);
        }
        effects.extend([Effect::CleanUp, Effect::Report]);
        effects
    }
}
