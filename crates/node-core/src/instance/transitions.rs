//! The ways from one state to another, with their effects.

use model::Timestamp;
use model::instance::{ExitEvent, InstanceState, RestartWhen};

use super::{
    BACKOFF_FIRST_MS, BACKOFF_MAX_MS, Effect, Lifecycle, MAX_BOOT_ATTEMPTS, SETTLE_MS,
    STABLE_RUN_MS, STOP_MARGIN_MS, Stop,
};

impl Lifecycle {
    pub(super) fn prepare(&mut self) -> Vec<Effect> {
        // What ran before is now started again; preparing again is not starting again.
        if self.ran_last_time {
            self.ran_last_time = false;
            self.restarts += 1;
        }
        self.state = InstanceState::Preparing;
        self.wake_at = None;
        vec![Effect::StartPreparing, Effect::Report]
    }

    pub(super) fn boot(&mut self, now: Timestamp, start: bool) -> Vec<Effect> {
        let watchdog = Timestamp(now.0.saturating_add(self.timing.boot_timeout_ms));
        self.state = InstanceState::Booting;
        self.wake_at = Some(watchdog);
        let mut effects = vec![Effect::ScheduleAt(watchdog)];
        if start {
            effects.push(Effect::BootVm);
        }
        effects.push(Effect::Report);
        effects
    }

    pub(super) fn run(&mut self, now: Timestamp) -> Vec<Effect> {
        self.state = InstanceState::Running;
        self.started_at = Some(now);
        self.ran_last_time = true;
        self.ran_once = true;
        self.boots_in_row = 0;
        self.healthy_in_row = 0;
        self.unhealthy_in_row = 0;
        self.probe_failure = None;
        self.wake_at = None;
        let mut effects = match self.health {
            Some(_) => Vec::new(),
            None => self.settle(now),
        };
        effects.push(Effect::Report);
        effects
    }

    pub(super) fn settle(&mut self, now: Timestamp) -> Vec<Effect> {
        let at = Timestamp(now.0.saturating_add(SETTLE_MS));
        self.wake_at = Some(at);
        vec![Effect::ScheduleAt(at)]
    }

    pub(super) fn now_ready(&mut self) -> Vec<Effect> {
        self.ready = true;
        self.failure = None;
        vec![Effect::Report]
    }

    pub(super) fn probe_passed(&mut self) -> Vec<Effect> {
        self.unhealthy_in_row = 0;
        self.probe_failure = None;
        self.healthy_in_row = self.healthy_in_row.saturating_add(1);
        let enough = self.health.as_ref().map_or(0, |health| health.healthy);
        if !self.ready && self.healthy_in_row >= enough {
            self.now_ready()
        } else {
            Vec::new()
        }
    }

    pub(super) fn probe_failed(&mut self, now: Timestamp, reason: &str) -> Vec<Effect> {
        self.healthy_in_row = 0;
        let Some(health) = &self.health else {
            return Vec::new();
        };
        // While it is waited for, people see what it waits for; the same again is no news.
        let news = !self.ready && self.probe_failure.as_deref() != Some(reason);
        let told = || news.then_some(Effect::Report).into_iter().collect();
        self.probe_failure = Some(reason.to_owned());
        let age = self.started_at.map_or(0, |at| now.millis_since(at));
        if age < health.grace_ms {
            return told();
        }
        self.unhealthy_in_row = self.unhealthy_in_row.saturating_add(1);
        if self.unhealthy_in_row < health.unhealthy {
            return told();
        }
        let seen = self.unhealthy_in_row;
        let why = format!("the health check failed {seen} times in a row: {reason}");
        if self.restart.when == RestartWhen::Never {
            let changed = self.ready;
            self.ready = false;
            self.failure = Some(why);
            return if changed {
                vec![Effect::Report]
            } else {
                Vec::new()
            };
        }
        self.ended(now, true, why)
    }

    pub(super) fn app_ended(&mut self, now: Timestamp, exit: &ExitEvent) -> Vec<Effect> {
        self.last_exit = Some(exit.clone());
        let failed = exit.exit_code != 0 || exit.signal.is_some();
        self.ended(now, failed, format!("the app ended: {exit}"))
    }

    /// A running instance ended by itself: again, by the policy, or not.
    pub(super) fn ended(&mut self, now: Timestamp, failed: bool, why: String) -> Vec<Effect> {
        self.ready = false;
        let ran_ms = self.started_at.take().map_or(0, |at| now.millis_since(at));
        self.failure = failed.then_some(why);
        let again = match self.restart.when {
            RestartWhen::Always => true,
            RestartWhen::OnFailure => failed,
            RestartWhen::Never => false,
        };
        if !again {
            self.state = InstanceState::Stopping;
            return self.clean(true);
        }
        if ran_ms >= STABLE_RUN_MS {
            self.ends_in_row = 0;
        }
        self.ends_in_row = self.ends_in_row.saturating_add(1);
        if self.ends_in_row > self.restart.max_retries {
            let last = self.failure.take();
            let last = last.unwrap_or_else(|| "the app ended with exit code 0".to_owned());
            let retries = self.restart.max_retries;
            self.failure = Some(format!(
                "given up after {retries} restarts in a row: {last}"
            ));
            return self.give_up();
        }
        self.back_off(now, self.ends_in_row - 1)
    }

    /// A boot that did not lead to a running app. This is not the app's fault.
    pub(super) fn boot_missed(&mut self, now: Timestamp, why: String) -> Vec<Effect> {
        self.boots_in_row = self.boots_in_row.saturating_add(1);
        if self.boots_in_row >= MAX_BOOT_ATTEMPTS {
            self.failure = Some(format!("given up after {} boots: {why}", self.boots_in_row));
            return self.give_up();
        }
        self.failure = Some(why);
        self.back_off(now, self.boots_in_row - 1)
    }

    pub(super) fn back_off(&mut self, now: Timestamp, doublings: u32) -> Vec<Effect> {
        let wait = 1_u64
            .checked_shl(doublings)
            .and_then(|factor| BACKOFF_FIRST_MS.checked_mul(factor))
            .map_or(BACKOFF_MAX_MS, |wait| wait.min(BACKOFF_MAX_MS));
        let at = Timestamp(now.0.saturating_add(wait));
        self.state = InstanceState::Backoff;
        self.ready = false;
        self.wake_at = Some(at);
        let schedule = Effect::ScheduleAt(at);
        vec![Effect::KillVm, Effect::CleanUp, schedule, Effect::Report]
    }

    pub(super) fn give_up(&mut self) -> Vec<Effect> {
        self.state = InstanceState::Failed;
        self.ready = false;
        self.started_at = None;
        self.wake_at = None;
        vec![Effect::KillVm, Effect::CleanUp, Effect::Report]
    }

    pub(super) fn drain(&mut self, now: Timestamp) -> Vec<Effect> {
        let at = Timestamp(now.0.saturating_add(self.timing.drain_ms));
        self.state = InstanceState::Stopping;
        self.ready = false;
        self.stop = Some(Stop::Draining);
        self.wake_at = Some(at);
        vec![Effect::ScheduleAt(at), Effect::Report]
    }

    pub(super) fn ask_stop(&mut self, now: Timestamp) -> Vec<Effect> {
        let wait = self.stop_timeout_ms.saturating_add(STOP_MARGIN_MS);
        let at = Timestamp(now.0.saturating_add(wait));
        self.state = InstanceState::Stopping;
        self.ready = false;
        self.stop = Some(Stop::Asked);
        self.wake_at = Some(at);
        vec![Effect::AskStop, Effect::ScheduleAt(at), Effect::Report]
    }

    /// Stops where no app runs that could be asked.
    pub(super) fn stop_now(&mut self, vm: bool) -> Vec<Effect> {
        self.stop_asked = true;
        self.clean(vm)
    }

    pub(super) fn clean(&mut self, vm: bool) -> Vec<Effect> {
        self.state = InstanceState::Stopping;
        self.ready = false;
        self.started_at = None;
        self.stop = Some(Stop::Cleaning);
        self.wake_at = None;
        let mut effects = Vec::new();
        if vm {
            effects.push(Effect::KillVm);
        }
        effects.extend([Effect::CleanUp, Effect::Report]);
        effects
    }
}
