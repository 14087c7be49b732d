//! The namespace that an app lives in, and its PID 1.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use guest_protocol::{HostFrame, Stream};
use model::instance::Init;

use crate::commands::{ended, request};
use crate::machine::{Guest, Plan, Tools, config};

/// Runs a command and returns its standard output, without its last newline. It must succeed.
fn run(guest: &Guest, session: u32, script: &str) -> String {
    guest.send(&request(session, &["sh", "-c", script], None));
    let (stdout, stderr, code) = ended(guest, session);
    assert_eq!(code, 0, "{script}: {stderr}");
    stdout.trim_end().to_owned()
}

#[test]
fn case_signals_to_pid_1_reach_the_app_and_nothing_within_harms_init() {
    Tools::on_each_kernel(signals_to_pid_1);
}

fn signals_to_pid_1(tools: &Tools) {
    let script = "su shop -s /bin/sh -c 'echo dropped > /dev/stdout'; for s in HUP USR1 USR2 TERM; do trap \"echo got $s\" $s; done; echo ready $$; \
                  while :; do sleep 0.05; done";
    let mut guest = Plan::new(tools, config(script)).boot();
    guest.wait_line("ready 2");
    // An entrypoint that is root and drops to another user: that one may open the outputs too.
    guest.wait_line("dropped");

    // Signals of processes beside the app, and by the platform.
    for (session, signal) in (1..).zip(["USR1", "USR2", "HUP", "TERM"]) {
        run(&guest, session, &format!("kill -{signal} 1"));
        guest.wait_line(&format!("got {signal}"));
    }
    for signal in ["SIGNOPE", "SIGHUP"] {
        let signal = signal.to_owned();
        guest.send(&HostFrame::Signal { signal });
    }
    guest.wait("a second HUP", |seen| {
        let lines = seen.lines(Stream::Stdout);
        (lines.iter().filter(|line| *line == "got HUP").count() == 2).then_some(())
    });
    assert_eq!(
        guest.seen().lines(Stream::Platform),
        ["there is no signal \"SIGNOPE\""]
    );

    // What tools see is the namespace: PID 1, the app, and the command itself.
    assert_eq!(run(&guest, 10, "cat /proc/1/comm"), "platform-init");
    assert_eq!(run(&guest, 11, "cat /proc/2/comm"), "sh");
    let processes = run(&guest, 12, "cd /proc; ls -d [0-9]* | wc -l");
    assert!(
        processes.parse::<u32>().is_ok_and(|count| count <= 7),
        "{processes} processes are seen"
    );
    assert_eq!(
        run(&guest, 13, "ps -o pid,comm | grep -c platform-init"),
        "1"
    );
    // Cron images read the variables there, and write to the log there.
    let variables = run(&guest, 14, "tr '\\0' '\\n' < /proc/1/environ");
    assert!(
        variables.lines().any(|line| line == "PLATFORM_APP=shop"),
        "{variables}"
    );
    run(
        &guest,
        15,
        "echo tick by root > /proc/1/fd/1; echo tock > /proc/1/fd/2",
    );
    guest.wait_line("tick by root");
    guest.wait("tock", |seen| {
        (seen.lines(Stream::Stderr) == ["tock"]).then_some(())
    });

    // A root user within: PID 1 stays, init's own mounts stay, and the guest goes on.
    run(
        &guest,
        20,
        "kill -9 1; kill -STOP 1; umount -l /sys; mount -t tmpfs none /proc; umount -l /proc; \
         mount -t proc proc /proc; mkdir /sys/x; true",
    );
    run(&guest, 21, "test $(cat /proc/1/comm) = platform-init");
    guest.send(&HostFrame::Stats);
    let stats = guest.wait("stats", |seen| seen.stats.first().cloned());
    assert!(
        stats.memory_bytes > 0,
        "the cgroup is still read: {stats:?}"
    );
    assert!(
        (1..4 << 20).contains(&stats.init_memory_bytes),
        "{}",
        stats.init_memory_bytes
    );
    eprintln!("init's memory: {} KiB", stats.init_memory_bytes / 1024);

    // A power-off from within ends the app, and the node is told.
    guest.send(&request(30, &["poweroff", "-f"], None));
    let event = guest.finish();
    assert_eq!((event.exit_code, event.signal), (137, Some(9)));
    assert!(!event.requested_stop && !event.oom_killed, "{event:?}");
    let platform = guest.seen().lines(Stream::Platform);
    assert_eq!(
        platform.last().map(String::as_str),
        Some("the app asked for a reboot or a power-off: all its processes were killed")
    );
}

#[test]
fn case_an_app_of_another_user_writes_to_its_log_by_name() {
    Tools::on_each_kernel(log_by_name);
}

fn log_by_name(tools: &Tools) {
    // Later users of the same outputs as well: entrypoints drop to a user of their own.
    let script = "echo one > /proc/1/fd/1; echo two > /dev/stdout; echo three > /proc/1/fd/2; \
                  echo four > /dev/stderr; echo ready; \
                  while [ ! -e /tmp/end ]; do sleep 0.05; done; exit 0";
    let tree = |root: &std::path::Path| {
        crate::machine::busybox_tree(root);
        let shared = fs::Permissions::from_mode(0o1777);
        fs::create_dir(root.join("tmp")).unwrap();
        fs::set_permissions(root.join("tmp"), shared).unwrap();
    };
    let mut config = config(script);
    "33:33".clone_into(&mut config.user);
    let mut guest = Plan {
        tree: &tree,
        ..Plan::new(tools, config)
    }
    .boot();
    guest.wait_line("ready");
    run(
        &guest,
        1,
        "echo five > /proc/1/fd/1; kill -0 1; touch /tmp/end",
    );
    guest.finish();
    let seen = guest.seen();
    assert_eq!(
        seen.lines(Stream::Stdout),
        ["one", "two", "ready", "five"],
        "{:?}",
        seen.lines(Stream::Stderr)
    );
    assert_eq!(seen.lines(Stream::Stderr), ["three", "four"]);
}

#[test]
fn case_an_image_that_insists_on_being_pid_1_is_pid_1() {
    Tools::on_each_kernel(image_is_pid_1);
}

fn image_is_pid_1(tools: &Tools) {
    let script = "[ $$ = 1 ] || { echo can only run as pid 1; exit 100; }; \
                  trap 'echo got usr1' USR1; (setsid sleep 1000 &); echo ready; \
                  while :; do sleep 0.05; done";
    let mut config = config(script);
    config.init = Init::Image;
    let mut guest = Plan::new(tools, config).boot();
    guest.wait_line("ready");
    run(&guest, 1, "kill -USR1 1");
    guest.wait_line("got usr1");
    assert_eq!(run(&guest, 2, "cat /proc/1/comm"), "sh");
    assert_eq!(
        run(&guest, 3, "ps -o pid,comm | grep -c platform-init; true"),
        "0"
    );
    // As in other containers, PID 1 does not get a signal that it does not handle.
    run(&guest, 4, "kill -TERM 1; kill -9 1; true");
    guest.send(&HostFrame::Stop { timeout_ms: 300 });
    let event = guest.finish();
    assert_eq!((event.exit_code, event.signal), (137, Some(9)));
    assert!(event.requested_stop && !event.oom_killed);
    let platform = guest.seen().lines(Stream::Platform);
    assert_eq!(
        platform,
        [
            "the app is PID 1 and does not handle SIGTERM, which does nothing then: it is killed after 0.3 s"
        ]
    );
}

/// busybox's init, as an image's own: it starts what its table says, and powers off in order.
#[test]
fn case_an_image_with_an_init_of_its_own_is_served_joined_and_stopped_in_order() {
    let Some(tools) = Tools::find() else { return };
    let tree = |root: &Path| {
        crate::machine::busybox_tree(root);
        fs::create_dir(root.join("sbin")).unwrap();
        std::os::unix::fs::symlink("../bin/busybox", root.join("sbin/init")).unwrap();
        let table = "::sysinit:/bin/echo starting\n\
                     ::respawn:/bin/sh -c 'trap \"echo service stops; exit\" TERM; echo $$ >/service; \
                     echo service as $PPID of $container; \
                     while :; do sleep 0.05; done'\n\
                     ::shutdown:/bin/echo shutting down\n";
        fs::write(root.join("etc/inittab"), table).unwrap();
    };
    let boot = || {
        let mut config = config("");
        config.argv = vec!["/sbin/init".to_owned()];
        config.init = Init::Image;
        config.stop_signal = "SIGUSR2".to_owned();
        let container = ("container".to_owned(), "platform".to_owned());
        config.environment.push(container);
        let guest = Plan {
            tree: &tree,
            ..Plan::new(&tools, config)
        }
        .boot();
        guest.wait_line("service as 1 of platform");
        guest
    };
    let mut guest = boot();
    assert_eq!(run(&guest, 1, "cat /proc/1/comm"), "init");
    // A service that ends is started again by the image's init, not by the platform.
    run(&guest, 2, "kill -KILL $(cat /service)");
    guest.wait("the service again", |seen| {
        let lines = seen.lines(Stream::Stdout);
        let starts = lines.iter().filter(|line| line.starts_with("service as"));
        (starts.count() == 2).then_some(())
    });
    guest.send(&HostFrame::Stop { timeout_ms: 60_000 });
    let event = guest.finish();
    assert_eq!((event.exit_code, event.signal), (0, None));
    assert!(event.requested_stop && !event.oom_killed, "{event:?}");
    let lines = guest.seen().lines(Stream::Stdout);
    for line in ["starting", "shutting down", "service stops"] {
        assert!(lines.iter().any(|seen| seen == line), "{line}: {lines:?}");
    }
    assert_eq!(
        guest.seen().lines(Stream::Platform),
        ["the app's PID 1 powered off"]
    );

    // A power-off that nobody asked for from outside is a success, a restart is none.
    for (command, code) in [("poweroff", 0), ("reboot", 129)] {
        let mut guest = boot();
        guest.send(&request(1, &[command], None));
        let event = guest.finish();
        assert_eq!((event.exit_code, event.requested_stop), (code, false));
    }
}
