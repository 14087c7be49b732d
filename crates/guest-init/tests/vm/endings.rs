//! How an app ends, and the report that the node gets.

use guest_protocol::{HostFrame, Phase, Stream};

use crate::machine::{Plan, Tools, config};

#[test]
fn an_apps_output_and_exit_code_reach_the_node() {
    let Some(tools) = Tools::find() else { return };
    let mut guest = Plan::new(
        &tools,
        config("echo out; echo err >&2; printf rest; exit 7"),
    )
    .boot();
    guest.wait_started();
    let started = guest.age();
    let event = guest.finish();
    eprintln!(
        "QEMU start to Started {:.2} s, to power-off {:.2} s",
        started.as_secs_f64(),
        guest.age().as_secs_f64()
    );
    assert_eq!((event.exit_code, event.signal), (7, None));
    assert!(!event.oom_killed && !event.requested_stop);
    let seen = guest.seen();
    assert_eq!(seen.lines(Stream::Stdout), ["out", "rest"]);
    assert_eq!(seen.lines(Stream::Stderr), ["err"]);
    assert_eq!(
        seen.lines(Stream::Platform),
        [""; 0],
        "nothing was left that had to be killed"
    );
    assert_eq!(seen.control_phases(), [Phase::Waiting]);
    drop(seen);
    let console = guest.console();
    assert!(
        !console.contains("platform-init"),
        "nothing went wrong: {console}"
    );
}

#[test]
fn a_death_by_signal_is_reported_exactly() {
    let Some(tools) = Tools::find() else { return };
    let mut guest = Plan::new(&tools, config("kill -SEGV $$")).boot();
    let event = guest.finish();
    assert_eq!((event.exit_code, event.signal), (139, Some(11)));
    assert!(!event.requested_stop);
}

#[test]
fn a_real_time_signal_stops_an_app_that_does_not_catch_it() {
    let Some(tools) = Tools::find() else { return };
    let mut config = config("echo ready; exec sleep 1000");
    config.stop_signal = "SIGRTMIN+3".to_owned();
    let mut guest = Plan::new(&tools, config).boot();
    guest.wait_line("ready");
    guest.send(&HostFrame::Stop { timeout_ms: 30_000 });
    let event = guest.finish();
    assert_eq!((event.exit_code, event.signal), (165, Some(37)));
    assert!(event.requested_stop);
}

#[test]
fn an_app_stops_by_its_stop_signal_and_its_children_are_killed() {
    let Some(tools) = Tools::find() else { return };
    let mut config = config(
        "trap 'echo stopping; exit 3' QUIT; trap '' TERM; sleep 1000 & echo ready; \
         while :; do sleep 0.05; done",
    );
    config.stop_signal = "SIGQUIT".to_owned();
    let mut guest = Plan::new(&tools, config).boot();
    guest.wait_line("ready");
    let asked = guest.age();
    guest.send(&HostFrame::Stop { timeout_ms: 30_000 });
    let event = guest.finish();
    eprintln!(
        "stop to gone {:.2} s",
        guest.age().saturating_sub(asked).as_secs_f64()
    );
    assert_eq!((event.exit_code, event.signal), (3, None));
    assert!(event.requested_stop);
    assert_eq!(guest.seen().lines(Stream::Stdout), ["ready", "stopping"]);
}

#[test]
fn an_app_that_ignores_its_stop_signal_is_killed_at_the_timeout() {
    let Some(tools) = Tools::find() else { return };
    let script = "trap '' TERM; (trap '' TERM; sleep 1000; sleep 1000) & echo ready; \
                  while :; do sleep 1; done";
    let mut guest = Plan::new(&tools, config(script)).boot();
    guest.wait_line("ready");
    guest.send(&HostFrame::Stop { timeout_ms: 300 });
    let event = guest.finish();
    assert_eq!((event.exit_code, event.signal), (137, Some(9)));
    assert!(event.requested_stop && !event.oom_killed);
}

#[test]
fn case_what_a_main_process_leaves_has_the_rest_of_the_timeout_to_stop() {
    let Some(tools) = Tools::find() else { return };
    // A shell that does not replace itself by what it starts: the signal ends it at once. One of those that it
    // leaves is in a session of its own.
    let child = "trap \"echo $0 draining; sleep 1; echo $0 drained; exit 0\" TERM; echo $0 up; \
                 while :; do sleep 0.05; done";
    let script =
        format!("child='{child}'; sh -c \"$child\" first & setsid sh -c \"$child\" second & wait");
    let mut guest = Plan::new(&tools, config(&script)).boot();
    guest.wait_line("first up");
    guest.wait_line("second up");
    guest.send(&HostFrame::Stop { timeout_ms: 50_000 });
    let event = guest.finish();
    assert_eq!((event.exit_code, event.signal), (143, Some(15)));
    assert!(event.requested_stop);
    let lines = guest.seen().lines(Stream::Stdout);
    for line in [
        "first draining",
        "first drained",
        "second draining",
        "second drained",
    ] {
        assert!(lines.iter().any(|known| known == line), "{line}: {lines:?}");
    }
    // The last one's end is the end: the timeout did not come.
    assert_eq!(guest.seen().lines(Stream::Platform), [""; 0]);
}

#[test]
fn case_what_an_app_leaves_that_ends_by_itself_has_a_moment_to_stop() {
    let Some(tools) = Tools::find() else { return };
    let script = "sh -c 'trap \"echo drained; exit 0\" USR1; echo up; while :; do sleep 0.05; done' & \
                  (trap '' USR1; echo deaf; sleep 1000; sleep 1000) & \
                  while [ ! -e /end ]; do sleep 0.05; done; exit 5";
    let mut config = config(script);
    config.stop_signal = "SIGUSR1".to_owned();
    let mut guest = Plan::new(&tools, config).boot();
    guest.wait_line("up");
    guest.wait_line("deaf");
    guest.send(&crate::commands::request(1, &["touch", "/end"], None));
    let event = guest.finish();
    assert_eq!((event.exit_code, event.signal), (5, None));
    assert!(!event.requested_stop);
    guest.wait_line("drained");
    assert_eq!(
        guest.seen().lines(Stream::Platform),
        ["processes that the app's main process left did not stop in time: they are killed"]
    );
}

#[test]
fn orphans_are_reaped_and_killed_when_the_app_ends() {
    let Some(tools) = Tools::find() else { return };
    // Ten orphans that end at once, and one that would live on; then no zombie may be left.
    let script = "for i in 0 1 2 3 4 5 6 7 8 9; do (true &) ; done; (setsid sleep 1000 &); \
                  while grep -q '^State:.Z' /proc/[0-9]*/status 2>/dev/null; do sleep 0.02; done; \
                  echo clean; exit 255";
    let mut guest = Plan::new(&tools, config(script)).boot();
    let event = guest.finish();
    assert_eq!(event.exit_code, 255);
    assert_eq!(guest.seen().lines(Stream::Stdout), ["clean"]);
}

#[test]
fn case_a_kill_of_the_main_process_for_want_of_memory_is_the_apps_end() {
    Tools::on_each_kernel(main_process_without_memory);
}

fn main_process_without_memory(tools: &Tools) {
    let script = "echo eating; exec tail /dev/zero";
    let mut guest = Plan::new(tools, config(script)).boot();
    let event = guest.finish();
    assert_eq!((event.exit_code, event.signal), (137, Some(9)));
    assert!(event.oom_killed && !event.requested_stop);
    let platform = guest.seen().lines(Stream::Platform).join("\n");
    assert!(
        platform
            .starts_with("out of memory: the kernel killed the app's main process tail (pid 2, "),
        "{platform}"
    );
}

#[test]
fn case_a_kill_of_another_process_for_want_of_memory_is_reported_when_it_happens() {
    Tools::on_each_kernel(child_without_memory);
}

fn child_without_memory(tools: &Tools) {
    // A child of the app, as a worker of a server is.
    let script = "tail /dev/zero; echo child $?; while [ ! -e /end ]; do sleep 0.05; done; exit 0";
    let mut guest = Plan::new(tools, config(script)).boot();
    guest.wait_line("child 137");
    guest.wait("the report", |seen| {
        let lines = seen.lines(Stream::Platform);
        let first = lines.first()?;
        assert!(
            first.starts_with("out of memory: the kernel killed tail (pid 3, "),
            "{first}"
        );
        Some(())
    });
    // A command beside the app: its own end tells it.
    guest.send(&crate::commands::request(1, &["tail", "/dev/zero"], None));
    let exit = guest.wait("the command's end", |seen| seen.exec.get(&1)?.exit.clone());
    assert_eq!((exit.exit_code, exit.oom_killed), (137, true));
    // A record that a process of the app forges is none of the kernel's; one that is killed otherwise is no victim.
    let forged = "echo '<3>Out of memory: Killed process 2 (sh) total-vm:1kB, anon-rss:1kB' > /dev/kmsg; kill -9 $$";
    guest.send(&crate::commands::request(2, &["sh", "-c", forged], None));
    let exit = guest.wait("the command's end", |seen| seen.exec.get(&2)?.exit.clone());
    assert_eq!((exit.exit_code, exit.oom_killed), (137, false));
    guest.send(&crate::commands::request(3, &["touch", "/end"], None));
    let event = guest.finish();
    assert_eq!((event.exit_code, event.signal), (0, None));
    assert!(!event.oom_killed, "the app itself was not killed");
    assert_eq!(guest.seen().lines(Stream::Platform).len(), 2);
}

#[test]
fn a_missing_command_is_reported_by_name_with_code_127() {
    let Some(tools) = Tools::find() else { return };
    let mut config = config("");
    config.argv = vec!["nginx".to_owned()];
    let mut guest = Plan::new(&tools, config).boot();
    let failure = guest.wait("the failure", |seen| seen.failures.first().cloned());
    assert_eq!(failure.step, "start the app");
    assert_eq!(failure.reason, "command not found: nginx");
    assert_eq!(failure.exit_code, Some(127));
    // A node that dials again gets the report again.
    guest.break_connections();
    guest.wait("the failure again", |seen| {
        (seen.failures.len() == 2).then_some(())
    });
    assert_eq!(
        guest.seen().control_phases(),
        [Phase::Waiting, Phase::Failed]
    );
    guest.send(&HostFrame::ExitAck);
    assert!(guest.wait_for_power_off().success());
    assert!(
        guest
            .console()
            .contains("platform-init: start the app: command not found: nginx")
    );
}

#[test]
fn a_command_that_cannot_be_executed_is_reported_with_code_126() {
    let Some(tools) = Tools::find() else { return };
    let mut config = config("");
    config.argv = vec!["/etc/passwd".to_owned()];
    let mut guest = Plan::new(&tools, config).boot();
    let failure = guest.wait("the failure", |seen| seen.failures.first().cloned());
    assert_eq!(failure.exit_code, Some(126));
    assert!(
        failure.reason.starts_with("cannot execute /etc/passwd: "),
        "{failure:?}"
    );
    guest.send(&HostFrame::ExitAck);
    assert!(guest.wait_for_power_off().success());
}

#[test]
fn a_failed_boot_step_is_reported_by_name() {
    let Some(tools) = Tools::find() else { return };
    let mut config = config("true");
    config.user = "nobody-here".to_owned();
    let mut guest = Plan::new(&tools, config).boot();
    let failure = guest.wait("the failure", |seen| seen.failures.first().cloned());
    assert_eq!(failure.step, "find the user");
    assert_eq!(
        failure.reason,
        "the image's /etc/passwd has no user `nobody-here`"
    );
    assert_eq!(failure.exit_code, Some(126));
    guest.send(&HostFrame::ExitAck);
    assert!(guest.wait_for_power_off().success());
}

#[test]
fn case_a_path_of_the_image_that_is_a_file_fails_the_boot_for_good() {
    let Some(tools) = Tools::find() else { return };
    let mut directory = config("true");
    directory.working_dir = "/etc/passwd".to_owned();
    let mut volume = config("true");
    volume.image_volumes = vec!["/etc/passwd/data".to_owned()];
    for (config, step) in [
        (directory, "make the working directory"),
        (volume, "make the image's volume"),
    ] {
        let guest = Plan::new(&tools, config).boot();
        let failure = guest.wait("the failure", |seen| seen.failures.first().cloned());
        assert_eq!(
            (failure.step.as_str(), failure.exit_code),
            (step, Some(126))
        );
        assert!(failure.reason.contains("/etc/passwd"), "{failure:?}");
    }
}
