//! How long things wait: backoffs, the boot watchdog, and waits that were written down by another clock.

use expect_test::expect;
use model::Timestamp;
use model::instance::InstanceState;
use scheduler::fixtures::{exit, process, spec, worker};

use super::super::{BACKOFF_MAX_MS, BOOT_LIMIT_MS, BOOT_TIMEOUT_MS, STOP_MARGIN_MS};
use super::{Event, Lifecycle, Timing, scenario, unhealthy};

/// The first backoff of instances that ended together.
#[test]
fn case_instances_that_ended_together_start_again_at_different_times() {
    let first = |id: u32| {
        let mut spec = spec(worker(1));
        spec.id = model::InstanceId(id);
        let mut life = Lifecycle::new(&spec, Timing::default());
        for event in [Event::Start, Event::Prepared, Event::GuestStarted] {
            life.step(Timestamp(0), event).unwrap();
        }
        life.step(Timestamp(0), Event::Exited(exit(1))).unwrap();
        life.wake_at().unwrap().0
    };
    let waits: Vec<u64> = (0..40).map(first).collect();
    assert_eq!(waits, (0..40).map(first).collect::<Vec<_>>());
    let distinct: std::collections::BTreeSet<_> = waits.iter().collect();
    assert!(distinct.len() >= 30, "{waits:?}");
    assert!(
        waits.iter().all(|wait| (751..=1000).contains(wait)),
        "{waits:?}"
    );
}

#[test]
fn case_a_clock_set_back_makes_no_wait_longer() {
    const YEAR_MS: u64 = 365 * 24 * 3600 * 1000;
    let mut spec_with_check = spec(process(1));
    let grace_ms = spec_with_check.healthcheck.as_ref().unwrap().grace_ms;
    spec_with_check.restart.max_retries = 9;
    let lived = |events: &[Event]| {
        let mut life = Lifecycle::new(&spec_with_check, Timing::default());
        for event in events {
            life.step(Timestamp(YEAR_MS), event.clone()).unwrap();
        }
        // The agent is restarted, by a clock that was set back by a year.
        Lifecycle::resume(&spec_with_check, Timing::default(), life.record())
    };
    let start = [Event::Start, Event::Prepared, Event::GuestStarted];
    let with = |more: &[Event]| lived(&[&start[..], more].concat());
    for found in [Event::NotFound, Event::Adopted] {
        let mut backoff = with(&[Event::Exited(exit(1))]);
        backoff.step(Timestamp(0), found).unwrap();
        assert!(backoff.wake_at().unwrap().0 <= BACKOFF_MAX_MS);
    }
    let mut booting = lived(&start[..2]);
    booting.step(Timestamp(0), Event::Adopted).unwrap();
    assert!(booting.wake_at().unwrap().0 <= BOOT_TIMEOUT_MS);
    let mut stopping = with(&[Event::StopAsked]);
    stopping.step(Timestamp(0), Event::Adopted).unwrap();
    assert!(stopping.wake_at().unwrap().0 <= spec_with_check.stop.timeout_ms + STOP_MARGIN_MS);
    // The grace of the health check ends as if the app had started now.
    let mut running = with(&[]);
    running.step(Timestamp(0), Event::Adopted).unwrap();
    for _ in 0..spec_with_check.healthcheck.as_ref().unwrap().unhealthy {
        running.step(Timestamp(grace_ms), unhealthy()).unwrap();
    }
    let report = running.report(Timestamp(grace_ms), Vec::new());
    assert!(report.failure.unwrap().contains("failed 3 times"));
}

/// The watchdog follows progress and load.
#[test]
fn case_a_boot_under_load_is_not_missed_and_one_that_hangs_is_found_sooner() {
    let booting = || scenario(process(1)).on(Event::Start).on(Event::Prepared);
    // No load: half a minute without a word is a hang.
    booting().wait().check(expect![[r#"
             0 Start -> preparing: StartPreparing, Report
             0 Prepared -> booting: wake at 30000, BootVm, Report
         30000 BootTimeout -> backoff: KillVm, CleanUp, wake at 30893, Report
        restarts 0, next start in 1 s; the guest made no progress in its boot
    "#]]);
    // It waited for a processor most of the time.
    booting()
        .after(10_000)
        .on(Event::VmWaited { millis: 9_500 })
        .after(10_000)
        .on(Event::VmWaited { millis: 9_000 })
        .after(20_000)
        .on(Event::GuestDialled)
        .after(5_000)
        .on(Event::VmWaited { millis: 4_000 })
        .wait()
        .check(expect![[r#"
                 0 Start -> preparing: StartPreparing, Report
                 0 Prepared -> booting: wake at 30000, BootVm, Report
             10000 VmWaited { millis: 9500 } -> booting: wake at 39500
             20000 VmWaited { millis: 9000 } -> booting: wake at 48500
             40000 GuestDialled -> booting: wake at 100000
             45000 VmWaited { millis: 4000 } -> booting: wake at 104000
            104000 BootTimeout -> backoff: KillVm, CleanUp, wake at 104893, Report
            restarts 0, next start in 1 s; the guest made no progress in its boot
        "#]]);
    // Whatever the load, it ends.
    let mut loaded = booting();
    while loaded.life.state() == InstanceState::Booting {
        let left = loaded.life.wake_at().unwrap().0 - loaded.now;
        loaded = match left {
            0..=2_000 => loaded.wait(),
            _ => loaded.after(2_000).on(Event::VmWaited { millis: 2_000 }),
        };
    }
    assert!((598_000..=600_000).contains(&loaded.now), "{}", loaded.now);
}

/// A volume gets gigabytes of its image on a slow disk: as long as the guest says that it goes on, it is let go on.
#[test]
fn case_a_boot_that_makes_progress_is_not_missed_however_long_it_takes() {
    let mut copying = scenario(process(1))
        .on(Event::Start)
        .on(Event::Prepared)
        .after(10_000)
        .on(Event::GuestDialled);
    let boot_timeout = Timing::default().boot_timeout_ms;
    while copying.now < 3 * BOOT_LIMIT_MS {
        copying = copying
            .after(boot_timeout - 1_000)
            .on(Event::GuestProgressed);
        assert_eq!(copying.life.state(), InstanceState::Booting);
    }
    // It stops: a hang is found as soon as in any boot.
    let last = copying.now;
    copying = copying.wait();
    assert_eq!(copying.now, last + boot_timeout);
    assert_eq!(copying.life.state(), InstanceState::Backoff);
}
