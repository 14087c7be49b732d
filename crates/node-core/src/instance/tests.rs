//! Scenarios: events of one life and their effects.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod waits;

use expect_test::{Expect, expect};
use guest_protocol::BootFailure;
use model::Timestamp;
use model::instance::{InstanceState, RestartWhen};
use proptest::prelude::*;

use super::{Effect, Event, Lifecycle, MAX_BOOT_ATTEMPTS, SETTLE_MS, STABLE_RUN_MS, Timing};
use scheduler::fixtures::{exit, process, spec, worker};

/// A life and the record of its events.
struct Scenario {
    life: Lifecycle,
    now: u64,
    text: String,
}

fn scenario(process: manifest::Process) -> Scenario {
    Scenario {
        life: Lifecycle::new(&spec(process), Timing::default()),
        now: 0,
        text: String::new(),
    }
}

impl Scenario {
    fn on(mut self, event: Event) -> Self {
        let told = match &event {
            Event::Exited(exit) => format!("Exited {}", exit.exit_code),
            other => format!("{other:?}"),
        };
        let line = match self.life.step(Timestamp(self.now), event) {
            Err(refused) => format!("refused: {refused}"),
            Ok(effects) => {
                let effects = effects.iter().map(|effect| match effect {
                    Effect::ScheduleAt(at) => format!("wake at {}", at.0),
                    other => format!("{other:?}"),
                });
                let effects = effects.collect::<Vec<_>>().join(", ");
                let ready = if self.life.state().is_ready() {
                    " ready"
                } else {
                    ""
                };
                format!("{told} -> {}{ready}: {effects}", self.life.state())
            }
        };
        self.text += &format!("{:>6} {line}\n", self.now);
        self
    }

    fn after(mut self, millis: u64) -> Self {
        self.now += millis;
        self
    }

    /// Goes to the timer's time and lets its event happen.
    fn wait(mut self) -> Self {
        self.now = self.life.wake_at().unwrap().0;
        let event = self.life.due(Timestamp(self.now)).unwrap();
        assert_eq!(self.life.due(Timestamp(self.now - 1)), None);
        self.on(event)
    }

    fn running(self) -> Self {
        let mut scenario = self
            .on(Event::Start)
            .on(Event::Prepared)
            .on(Event::VmmStarted)
            .on(Event::GuestStarted);
        scenario.text.clear();
        scenario
    }

    fn check(&self, expected: Expect) {
        let report = self.life.report(Timestamp(self.now), Vec::new());
        let mut text = self.text.clone();
        text += &format!("restarts {}", report.restarts);
        if !report.detail.is_empty() {
            text += &format!(", {}", report.detail);
        }
        if let Some(failure) = report.failure {
            text += &format!("; {failure}");
        }
        expected.assert_eq(&(text + "\n"));
        // It is written down with each step.
        let written = serde_json::to_string(&self.life.record()).unwrap();
        let record: super::ProgressRecord = serde_json::from_str(&written).unwrap();
        assert_eq!(record, self.life.record());
    }
}

fn failed(retryable: bool) -> Event {
    Event::PrepareFailed {
        retryable,
        reason: "fetch shop: no".to_owned(),
    }
}

fn vmm_failed(retryable: bool) -> Event {
    Event::VmmFailed {
        retryable,
        reason: "cannot start qemu".to_owned(),
    }
}

fn unhealthy() -> Event {
    Event::HealthFailed {
        reason: "status 500".to_owned(),
    }
}

#[test]
fn probes_are_written_down_only_when_they_change_something() {
    let mut life = scenario(process(8080)).running().life;
    let mut now = 20_000;
    let mut step = |event: Event| {
        let before = life.record();
        now += 1_000;
        life.step(Timestamp(now), event).unwrap();
        !life.record().is_same_but_for_probes(&before)
    };
    let healthy = (0..10)
        .map(|_| step(Event::HealthPassed))
        .filter(|written| *written);
    assert_eq!(healthy.count(), 1, "it became ready");
    let one_fails = [unhealthy(), Event::HealthPassed, unhealthy()];
    assert_eq!(one_fails.map(&mut step), [false; 3]);
    let too_many = (0..10)
        .map(|_| step(unhealthy()))
        .take_while(|written| !written);
    assert!(too_many.count() < 9, "it is unready in the end");
}

#[test]
fn an_instance_that_runs_and_is_stopped_goes_through_every_state() {
    scenario(process(1))
        .on(Event::Start)
        .after(10)
        .on(Event::Prepared)
        .on(Event::VmmStarted)
        .after(2000)
        .on(Event::GuestStarted)
        .after(1000)
        .on(Event::HealthPassed)
        .after(1000)
        .on(Event::HealthPassed)
        .after(1000)
        .on(Event::HealthPassed)
        .on(Event::StopAsked)
        .wait()
        .after(100)
        .on(Event::Exited(exit(0)))
        .on(Event::CleanedUp)
        .on(Event::StopAsked)
        .check(expect![[r#"
                 0 Start -> preparing: StartPreparing, Report
                10 Prepared -> booting: wake at 30010, BootVm, Report
                10 VmmStarted -> booting: 
              2010 GuestStarted -> running: Report
              3010 HealthPassed -> running: 
              4010 HealthPassed -> running ready: Report
              5010 HealthPassed -> running ready: 
              5010 StopAsked -> stopping: wake at 7010, Report
              7010 DrainElapsed { connections: 0 } -> stopping: AskStop, wake at 22010, Report
              7110 Exited 0 -> stopping: KillVm, CleanUp, Report
              7110 CleanedUp -> stopped: Report
              7110 StopAsked -> stopped: Report
            restarts 0
        "#]]);
}

#[test]
fn an_instance_that_is_stopped_keeps_its_connections_until_they_end_or_its_time_is_over() {
    let open = |connections| Event::DrainElapsed { connections };
    let ready = || {
        scenario(process(1))
            .on(Event::Start)
            .on(Event::Prepared)
            .on(Event::VmmStarted)
            .on(Event::GuestStarted)
            .on(Event::HealthPassed)
            .on(Event::HealthPassed)
            .on(Event::StopAsked)
    };
    ready()
        .after(2000)
        .on(open(2))
        .after(500)
        .on(open(1))
        .after(500)
        .on(open(0))
        .check(expect![[r#"
                 0 Start -> preparing: StartPreparing, Report
                 0 Prepared -> booting: wake at 30000, BootVm, Report
                 0 VmmStarted -> booting: 
                 0 GuestStarted -> running: Report
                 0 HealthPassed -> running: 
                 0 HealthPassed -> running ready: Report
                 0 StopAsked -> stopping: wake at 2000, Report
              2000 DrainElapsed { connections: 2 } -> stopping: wake at 2500, Report
              2500 DrainElapsed { connections: 1 } -> stopping: wake at 3000
              3000 DrainElapsed { connections: 0 } -> stopping: AskStop, wake at 18000, Report
            restarts 0, asked to stop
        "#]]);
    ready()
        .after(2000)
        .on(open(1))
        .after(9000)
        .on(open(1))
        .after(1000)
        .on(open(1))
        .check(expect![[r#"
                 0 Start -> preparing: StartPreparing, Report
                 0 Prepared -> booting: wake at 30000, BootVm, Report
                 0 VmmStarted -> booting: 
                 0 GuestStarted -> running: Report
                 0 HealthPassed -> running: 
                 0 HealthPassed -> running ready: Report
                 0 StopAsked -> stopping: wake at 2000, Report
              2000 DrainElapsed { connections: 1 } -> stopping: wake at 2500, Report
             11000 DrainElapsed { connections: 1 } -> stopping: wake at 11500
             12000 DrainElapsed { connections: 1 } -> stopping: AskStop, wake at 27000, Report
            restarts 0, asked to stop
        "#]]);
}

#[test]
fn an_app_without_a_health_check_is_ready_when_it_lasts() {
    scenario(worker(1)).running().wait().check(expect![[r#"
          2000 Settled -> running ready: Report
        restarts 0
    "#]]);
    scenario(worker(1))
        .running()
        .after(1999)
        .on(Event::Exited(exit(0)))
        .check(expect![[r#"
              1999 Exited 0 -> backoff: KillVm, CleanUp, wake at 2892, Report
            restarts 0, next start in 1 s
        "#]]);
}

#[test]
fn an_instance_without_ports_does_not_drain_and_is_killed_when_it_ignores_its_stop() {
    scenario(worker(1))
        .running()
        .on(Event::StopAsked)
        .wait()
        .on(Event::CleanedUp)
        .check(expect![[r#"
                 0 StopAsked -> stopping: AskStop, wake at 15000, Report
             15000 StopTimeout -> stopping: KillVm, CleanUp, Report
             15000 CleanedUp -> stopped: Report
            restarts 0
        "#]]);
}

#[test]
fn restarts_in_a_row_back_off_longer_until_the_instance_is_given_up() {
    let mut web = worker(1);
    web.restart.max_retries = 2;
    let again = |scenario: Scenario| {
        scenario
            .on(Event::CleanedUp)
            .wait()
            .on(Event::Prepared)
            .on(Event::GuestStarted)
            .on(Event::Exited(exit(3)))
    };
    let scenario = scenario(web).running().on(Event::Exited(exit(3)));
    again(again(scenario)).check(expect![[r#"
             0 Exited 3 -> backoff: KillVm, CleanUp, wake at 893, Report
             0 CleanedUp -> backoff: 
           893 BackoffElapsed -> preparing: StartPreparing, Report
           893 Prepared -> booting: wake at 30893, BootVm, Report
           893 GuestStarted -> running: wake at 2893, Report
           893 Exited 3 -> backoff: KillVm, CleanUp, wake at 2884, Report
           893 CleanedUp -> backoff: 
          2884 BackoffElapsed -> preparing: StartPreparing, Report
          2884 Prepared -> booting: wake at 32884, BootVm, Report
          2884 GuestStarted -> running: wake at 4884, Report
          2884 Exited 3 -> failed: KillVm, CleanUp, Report
        restarts 2; given up after 2 restarts in a row: the app ended: exit code 3
    "#]]);
}

#[test]
fn a_stable_run_resets_the_backoff() {
    let mut web = worker(1);
    web.restart.max_retries = 1;
    scenario(web)
        .running()
        .on(Event::Exited(exit(3)))
        .wait()
        .on(Event::Prepared)
        .on(Event::GuestStarted)
        .after(STABLE_RUN_MS)
        .on(Event::Exited(exit(3)))
        .check(expect![[r#"
                 0 Exited 3 -> backoff: KillVm, CleanUp, wake at 893, Report
               893 BackoffElapsed -> preparing: StartPreparing, Report
               893 Prepared -> booting: wake at 30893, BootVm, Report
               893 GuestStarted -> running: wake at 2893, Report
             60893 Exited 3 -> backoff: KillVm, CleanUp, wake at 61695, Report
            restarts 1, next start in 1 s; the app ended: exit code 3
        "#]]);
}

#[test]
fn the_backoff_doubles_to_a_minute() {
    let mut web = worker(1);
    web.restart.max_retries = u32::MAX;
    let mut scenario = scenario(web).running();
    let mut waits = Vec::new();
    for _ in 0..40 {
        scenario = scenario.on(Event::Exited(exit(1)));
        waits.push(scenario.life.wake_at().unwrap().0 - scenario.now);
        scenario = scenario.wait().on(Event::Prepared).on(Event::GuestStarted);
    }
    for (number, wait) in waits.iter().enumerate() {
        let full = 1000 * 2_u64.pow(u32::try_from(number).unwrap().min(6));
        let full = full.min(60_000);
        assert!(
            *wait > full * 3 / 4 && *wait <= full,
            "{number}: {wait} of {full}"
        );
    }
    // Those of one length differ, and are the same each time.
    let longest: std::collections::BTreeSet<_> = waits[6..].iter().collect();
    assert!(longest.len() > 30, "{longest:?}");
}

#[test]
fn the_restart_policy_decides_whether_an_instance_starts_again() {
    let ends = |when, event: Event| {
        let mut web = worker(1);
        web.restart.when = when;
        scenario(web).running().on(event).life.state()
    };
    let lost = || Event::VmmLost {
        reason: "killed".to_owned(),
    };
    let (again, over) = (InstanceState::Backoff, InstanceState::Stopping);
    assert_eq!(ends(RestartWhen::Always, Event::Exited(exit(0))), again);
    assert_eq!(ends(RestartWhen::OnFailure, Event::Exited(exit(0))), over);
    assert_eq!(ends(RestartWhen::OnFailure, Event::Exited(exit(1))), again);
    assert_eq!(ends(RestartWhen::OnFailure, lost()), again);
    assert_eq!(ends(RestartWhen::Never, Event::Exited(exit(1))), over);
    assert_eq!(ends(RestartWhen::Never, lost()), over);
}

#[test]
fn case_a_health_check_that_fails_after_the_grace_takes_traffic_away_and_ends_nothing() {
    scenario(process(1))
        .running()
        .on(Event::HealthPassed)
        .on(Event::HealthPassed)
        .after(4999)
        .on(unhealthy())
        .on(unhealthy())
        .on(unhealthy())
        .after(1)
        .on(unhealthy())
        .on(unhealthy())
        .on(Event::HealthPassed)
        .on(unhealthy())
        .on(unhealthy())
        .on(unhealthy())
        .on(unhealthy())
        .on(Event::HealthPassed)
        .on(Event::HealthPassed)
        .check(expect![[r#"
                 0 HealthPassed -> running: 
                 0 HealthPassed -> running ready: Report
              4999 HealthFailed { reason: "status 500" } -> running ready: 
              4999 HealthFailed { reason: "status 500" } -> running ready: 
              4999 HealthFailed { reason: "status 500" } -> running ready: 
              5000 HealthFailed { reason: "status 500" } -> running ready: 
              5000 HealthFailed { reason: "status 500" } -> running ready: 
              5000 HealthPassed -> running ready: 
              5000 HealthFailed { reason: "status 500" } -> running ready: 
              5000 HealthFailed { reason: "status 500" } -> running ready: 
              5000 HealthFailed { reason: "status 500" } -> running: Report
              5000 HealthFailed { reason: "status 500" } -> running: 
              5000 HealthPassed -> running: 
              5000 HealthPassed -> running ready: Report
            restarts 0
        "#]]);
}

#[test]
fn an_instance_that_is_not_ready_reports_what_its_probes_get() {
    let refused = Event::HealthFailed {
        reason: "cannot connect".to_owned(),
    };
    let starting = scenario(process(1))
        .running()
        .on(refused.clone())
        .on(refused);
    starting.check(expect![[r#"
             0 HealthFailed { reason: "cannot connect" } -> running: Report
             0 HealthFailed { reason: "cannot connect" } -> running: 
        restarts 0, health check not passed yet: cannot connect
    "#]]);
    let answering = starting.on(unhealthy()).after(5000).on(unhealthy());
    answering.check(expect![[r#"
             0 HealthFailed { reason: "cannot connect" } -> running: Report
             0 HealthFailed { reason: "cannot connect" } -> running: 
             0 HealthFailed { reason: "status 500" } -> running: Report
          5000 HealthFailed { reason: "status 500" } -> running: 
        restarts 0, not ready: the health check failed 1 times in a row (of 3): status 500
    "#]]);
    answering.on(Event::HealthPassed).check(expect![[r#"
             0 HealthFailed { reason: "cannot connect" } -> running: Report
             0 HealthFailed { reason: "cannot connect" } -> running: 
             0 HealthFailed { reason: "status 500" } -> running: Report
          5000 HealthFailed { reason: "status 500" } -> running: 
          5000 HealthPassed -> running: 
        restarts 0, health check passed 1 of 2 times
    "#]]);
}

#[test]
fn a_failed_preparation_is_retried_only_where_that_may_help() {
    scenario(process(1))
        .on(Event::Start)
        .on(failed(false))
        .check(expect![[r#"
                 0 Start -> preparing: StartPreparing, Report
                 0 PrepareFailed { retryable: false, reason: "fetch shop: no" } -> failed: KillVm, CleanUp, Report
            restarts 0; fetch shop: no
        "#]]);
    let mut retried = scenario(process(1)).on(Event::Start);
    for _ in 0..4 {
        retried = retried.on(failed(true)).wait();
    }
    retried.on(failed(true)).check(expect![[r#"
             0 Start -> preparing: StartPreparing, Report
             0 PrepareFailed { retryable: true, reason: "fetch shop: no" } -> backoff: KillVm, CleanUp, wake at 893, Report
           893 BackoffElapsed -> preparing: StartPreparing, Report
           893 PrepareFailed { retryable: true, reason: "fetch shop: no" } -> backoff: KillVm, CleanUp, wake at 2695, Report
          2695 BackoffElapsed -> preparing: StartPreparing, Report
          2695 PrepareFailed { retryable: true, reason: "fetch shop: no" } -> backoff: KillVm, CleanUp, wake at 6686, Report
          6686 BackoffElapsed -> preparing: StartPreparing, Report
          6686 PrepareFailed { retryable: true, reason: "fetch shop: no" } -> backoff: KillVm, CleanUp, wake at 13168, Report
         13168 BackoffElapsed -> preparing: StartPreparing, Report
         13168 PrepareFailed { retryable: true, reason: "fetch shop: no" } -> failed: KillVm, CleanUp, Report
        restarts 0; fetch shop: no
    "#]]);
}

#[test]
fn a_guest_that_hangs_is_booted_again_until_it_is_given_up() {
    let mut hanging = scenario(process(1)).on(Event::Start).on(Event::Prepared);
    for _ in 1..MAX_BOOT_ATTEMPTS {
        hanging = hanging.wait().wait().on(Event::Prepared);
    }
    hanging.wait().check(expect![[r#"
             0 Start -> preparing: StartPreparing, Report
             0 Prepared -> booting: wake at 30000, BootVm, Report
         30000 BootTimeout -> backoff: KillVm, CleanUp, wake at 30893, Report
         30893 BackoffElapsed -> preparing: StartPreparing, Report
         30893 Prepared -> booting: wake at 60893, BootVm, Report
         60893 BootTimeout -> backoff: KillVm, CleanUp, wake at 62695, Report
         62695 BackoffElapsed -> preparing: StartPreparing, Report
         62695 Prepared -> booting: wake at 92695, BootVm, Report
         92695 BootTimeout -> backoff: KillVm, CleanUp, wake at 96686, Report
         96686 BackoffElapsed -> preparing: StartPreparing, Report
         96686 Prepared -> booting: wake at 126686, BootVm, Report
        126686 BootTimeout -> failed: KillVm, CleanUp, Report
        restarts 0; given up after 4 boots: the guest made no progress in its boot
    "#]]);
}

#[test]
fn a_boot_failure_of_a_running_guest_is_its_end() {
    let lie = Event::BootFailed(BootFailure {
        step: "lie".to_owned(),
        reason: "well".to_owned(),
        exit_code: Some(127),
    });
    scenario(process(1)).running().on(lie).check(expect![[r#"
             0 BootFailed(BootFailure { step: "lie", reason: "well", exit_code: Some(127) }) -> backoff: KillVm, CleanUp, wake at 893, Report
        restarts 0, next start in 1 s; the guest could not lie: well
    "#]]);
}

#[test]
fn a_command_that_does_not_exist_fails_at_once() {
    let failure = |exit_code| {
        Event::BootFailed(BootFailure {
            step: "start the app".to_owned(),
            reason: "/bin/nothing: not found".to_owned(),
            exit_code,
        })
    };
    let booting = || scenario(process(1)).on(Event::Start).on(Event::Prepared);
    booting().on(failure(Some(127))).check(expect![[r#"
             0 Start -> preparing: StartPreparing, Report
             0 Prepared -> booting: wake at 30000, BootVm, Report
             0 BootFailed(BootFailure { step: "start the app", reason: "/bin/nothing: not found", exit_code: Some(127) }) -> failed: KillVm, CleanUp, Report
        restarts 0; the guest could not start the app: /bin/nothing: not found
    "#]]);
    booting().on(failure(None)).check(expect![[r#"
             0 Start -> preparing: StartPreparing, Report
             0 Prepared -> booting: wake at 30000, BootVm, Report
             0 BootFailed(BootFailure { step: "start the app", reason: "/bin/nothing: not found", exit_code: None }) -> backoff: KillVm, CleanUp, wake at 893, Report
        restarts 0, next start in 1 s; the guest could not start the app: /bin/nothing: not found
    "#]]);
}

/// No layers that can be merged, no command, no such user: the next attempt has the same image.
#[test]
fn case_what_another_attempt_cannot_change_is_not_tried_again() {
    scenario(process(1))
        .on(Event::Start)
        .on(failed(false))
        .check(expect![[r#"
             0 Start -> preparing: StartPreparing, Report
             0 PrepareFailed { retryable: false, reason: "fetch shop: no" } -> failed: KillVm, CleanUp, Report
        restarts 0; fetch shop: no
    "#]]);
    let no_user = Event::BootFailed(BootFailure {
        step: "find the user".to_owned(),
        reason: "no user `shop` in /etc/passwd".to_owned(),
        exit_code: Some(126),
    });
    scenario(process(1))
        .on(Event::Start)
        .on(Event::Prepared)
        .on(no_user)
        .check(expect![[r#"
                 0 Start -> preparing: StartPreparing, Report
                 0 Prepared -> booting: wake at 30000, BootVm, Report
                 0 BootFailed(BootFailure { step: "find the user", reason: "no user `shop` in /etc/passwd", exit_code: Some(126) }) -> failed: KillVm, CleanUp, Report
            restarts 0; the guest could not find the user: no user `shop` in /etc/passwd
        "#]]);
}

/// The deadline of a rollout leaves it out.
#[test]
fn case_the_time_of_a_pull_is_reported_apart_from_that_of_the_app() {
    let preparing_ms = |scenario: &Scenario| {
        let report = scenario.life.report(Timestamp(scenario.now), Vec::new());
        report.preparing_ms
    };
    let pulling = scenario(process(1)).on(Event::Start).after(400_000);
    assert_eq!(preparing_ms(&pulling), 0, "it is under way");
    let failed = pulling.on(failed(true));
    assert_eq!(preparing_ms(&failed), 400_000);
    let booting = failed.wait().after(100_000).on(Event::Prepared);
    assert_eq!(preparing_ms(&booting), 500_000);
    let running = booting.on(Event::VmmStarted).on(Event::GuestStarted);
    // Starting again is the app's own time.
    let again = running.after(10).on(Event::Exited(exit(1))).wait();
    let again = again.after(50_000).on(Event::Prepared);
    assert_eq!(preparing_ms(&again), 500_000);
}

#[test]
fn a_vmm_that_this_machine_forbids_to_start_fails_the_instance_at_once() {
    let booting = || scenario(process(1)).on(Event::Start).on(Event::Prepared);
    booting().on(vmm_failed(false)).check(expect![[r#"
             0 Start -> preparing: StartPreparing, Report
             0 Prepared -> booting: wake at 30000, BootVm, Report
             0 VmmFailed { retryable: false, reason: "cannot start qemu" } -> failed: KillVm, CleanUp, Report
        restarts 0; the VM could not be started: cannot start qemu
    "#]]);
    booting().on(vmm_failed(true)).check(expect![[r#"
             0 Start -> preparing: StartPreparing, Report
             0 Prepared -> booting: wake at 30000, BootVm, Report
             0 VmmFailed { retryable: true, reason: "cannot start qemu" } -> backoff: KillVm, CleanUp, wake at 893, Report
        restarts 0, next start in 1 s; the VM could not be started: cannot start qemu
    "#]]);
}

#[test]
fn an_instance_goes_on_after_its_agent_restarted() {
    // Ready it was, and ready it stays.
    let web = || {
        scenario(process(1))
            .running()
            .on(Event::HealthPassed)
            .on(Event::HealthPassed)
    };
    web()
        .on(Event::Adopted)
        .on(Event::GuestStarted)
        .check(expect![[r#"
                 0 HealthPassed -> running: 
                 0 HealthPassed -> running ready: Report
                 0 Adopted -> running ready: 
                 0 GuestStarted -> running ready: 
            restarts 0
        "#]]);
    web().on(Event::NotFound).check(expect![[r#"
             0 HealthPassed -> running: 
             0 HealthPassed -> running ready: Report
             0 NotFound -> backoff: KillVm, CleanUp, wake at 893, Report
        restarts 0, next start in 1 s; the VM ended while the agent was away
    "#]]);
    web()
        .on(Event::StopAsked)
        .on(Event::Adopted)
        .check(expect![[r#"
                 0 HealthPassed -> running: 
                 0 HealthPassed -> running ready: Report
                 0 StopAsked -> stopping: wake at 2000, Report
                 0 Adopted -> stopping: wake at 2000, Report
            restarts 0, draining
        "#]]);
    web()
        .on(Event::StopAsked)
        .on(Event::NotFound)
        .on(Event::CleanedUp)
        .check(expect![[r#"
                 0 HealthPassed -> running: 
                 0 HealthPassed -> running ready: Report
                 0 StopAsked -> stopping: wake at 2000, Report
                 0 NotFound -> stopping: CleanUp, Report
                 0 CleanedUp -> stopped: Report
            restarts 0
        "#]]);
    // It booted when the agent went, and has ended when it came.
    let booting = || scenario(process(1)).on(Event::Start).on(Event::Prepared);
    booting()
        .after(500)
        .on(Event::Adopted)
        .on(Event::Exited(exit(1)))
        .check(expect![[r#"
                 0 Start -> preparing: StartPreparing, Report
                 0 Prepared -> booting: wake at 30000, BootVm, Report
               500 Adopted -> booting: wake at 30500
               500 Exited 1 -> backoff: KillVm, CleanUp, wake at 1393, Report
            restarts 0, next start in 1 s; the app ended: exit code 1
        "#]]);
    scenario(process(1))
        .on(Event::Start)
        .on(Event::NotFound)
        .check(expect![[r#"
                 0 Start -> preparing: StartPreparing, Report
                 0 NotFound -> preparing: StartPreparing
            restarts 0
        "#]]);
    scenario(process(1))
        .on(Event::Adopted)
        .on(Event::GuestStarted)
        .check(expect![[r#"
                 0 Adopted -> booting: wake at 30000, Report
                 0 GuestStarted -> running: Report
            restarts 0, health check passed 0 of 2 times
        "#]]);
}

#[test]
fn an_illegal_event_is_refused() {
    scenario(process(1))
        .on(Event::GuestStarted)
        .on(Event::Start)
        .on(Event::Start)
        .on(Event::BackoffElapsed)
        .check(expect![[r#"
                 0 refused: instance 1f2e3d4c is created, where this cannot happen: GuestStarted
                 0 Start -> preparing: StartPreparing, Report
                 0 refused: instance 1f2e3d4c is preparing, where this cannot happen: Start
                 0 refused: instance 1f2e3d4c is preparing, where this cannot happen: BackoffElapsed
            restarts 0
        "#]]);
}

fn any_event() -> impl Strategy<Value = Event> {
    let boot_failed = |exit_code| {
        Event::BootFailed(BootFailure {
            step: "mount".to_owned(),
            reason: "no".to_owned(),
            exit_code,
        })
    };
    prop_oneof![
        1 => Just(Event::Start),
        4 => Just(Event::Prepared),
        1 => any::<bool>().prop_map(failed),
        1 => Just(Event::VmmStarted),
        1 => any::<bool>().prop_map(vmm_failed),
        4 => Just(Event::GuestStarted),
        1 => Just(Event::GuestDialled),
        1 => Just(Event::GuestProgressed),
        1 => (0_u64..20_000).prop_map(|millis| Event::VmWaited { millis }),
        1 => proptest::option::of(Just(127)).prop_map(boot_failed),
        1 => (0_u8..2).prop_map(|code| Event::Exited(exit(code))),
        1 => Just(Event::VmmLost { reason: "killed".to_owned() }),
        4 => Just(Event::HealthPassed),
        1 => Just(unhealthy()),
        1 => Just(Event::StopAsked),
        2 => Just(Event::CleanedUp),
        1 => Just(Event::Adopted),
        1 => Just(Event::NotFound),
        1 => Just(Event::BootTimeout),
        1 => Just(Event::Settled),
        1 => Just(Event::BackoffElapsed),
        1 => (0_u32..3).prop_map(|connections| Event::DrainElapsed { connections }),
        1 => Just(Event::StopTimeout),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Whatever comes in, in any order.
    #[test]
    fn any_events_leave_a_sound_life(
        has_health: bool,
        when in prop_oneof![
            Just(RestartWhen::Always), Just(RestartWhen::OnFailure), Just(RestartWhen::Never)
        ],
        events in prop::collection::vec((0_u64..90_000, any_event()), 0..60),
    ) {
        let mut process = if has_health { process(1) } else { worker(1) };
        process.restart.when = when;
        process.restart.max_retries = 3;
        let mut life = Lifecycle::new(&spec(process), Timing::default());
        let mut now = 0;
        for (wait, event) in events {
            now += wait;
            // The timer comes first.
            if let Some(due) = life.due(Timestamp(now)) {
                prop_assert!(life.step(Timestamp(now), due).is_ok(), "a due event was refused");
            }
            let before = life.clone();
            let was_asked = life.stop_asked();
            match life.step(Timestamp(now), event) {
                Err(_) => prop_assert_eq!(&before, &life),
                Ok(effects) => {
                    let starts = effects.iter().any(|e| matches!(e, Effect::StartPreparing | Effect::BootVm));
                    prop_assert!(!(was_asked && starts), "started after its stop");
                    for effect in &effects {
                        if let Effect::ScheduleAt(at) = effect {
                            prop_assert_eq!(life.wake_at(), Some(*at));
                        }
                    }
                    if before.state() != life.state() {
                        prop_assert!(effects.contains(&Effect::Report), "a new state was not reported");
                    }
                }
            }
            prop_assert!(life.stop_asked() >= was_asked);
            prop_assert!(life.restarts() >= before.restarts());
            // Whatever waits has a timer to end it.
            let timed = matches!(life.state(), InstanceState::Booting | InstanceState::Backoff);
            prop_assert!(!timed || life.wake_at().is_some());
        }
        // A stop comes to its end.
        let _ = life.step(Timestamp(now), Event::StopAsked);
        prop_assert!(life.stop_asked());
        for _ in 0..4 {
            if let Some(at) = life.wake_at() {
                let event = life.due(at);
                if let Some(event) = event {
                    prop_assert!(life.step(at, event).is_ok());
                }
            }
        }
        let _ = life.step(Timestamp(now), Event::CleanedUp);
        prop_assert_eq!(life.state(), InstanceState::Stopped);
    }
}

#[test]
fn an_app_that_is_probed_without_a_health_check_settles() {
    let spec = spec(worker(1));
    assert_eq!(spec.healthcheck, None);
    let progress = serde_json::json!({
        "state": {
            "state": "running",
            "started_at": 1000,
            "readiness": {"readiness": "probing", "passed": 0, "failed": 2, "reason": null},
        },
        "ran_once": true, "restarts": 0, "ends_in_row": 0, "prepares_in_row": 0,
        "boots_in_row": 0, "last_exit": null, "failure": null,
    });
    let progress = serde_json::from_value(progress).unwrap();
    let life = Lifecycle::resume(&spec, Timing::default(), progress);
    assert_eq!(life.wake_at(), Some(Timestamp(1000 + SETTLE_MS)));
    assert_eq!(life.due(Timestamp(1000 + SETTLE_MS)), Some(Event::Settled));
}
