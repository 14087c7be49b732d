//! `platform-init` in a real guest: QEMU without KVM, Debian's kernel, the contract's frames.
//!
//! Needs `cargo xtask guest`, vhost-device-vsock (in PATH or `PLATFORM_VHOST_DEVICE_VSOCK`) and the
//! Debian packages qemu-system-x86, e2fsprogs and busybox-static; says so and skips without.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test's name says what it shows")]

mod machine;

use contract::guest::{HostFrame, Phase, Stream};
use machine::{Plan, Tools, config};

#[test]
fn an_app_runs_says_its_lines_and_ends_with_its_code() {
    let Some(tools) = Tools::find() else { return };
    let mut guest = Plan::new(
        &tools,
        config("echo out; echo err >&2; printf rest; exit 7"),
    )
    .boot();
    guest.wait_started();
    eprintln!("QEMU start to Started: {:.2} s", guest.age().as_secs_f64());
    let event = guest.finish();
    assert_eq!((event.exit_code, event.signal), (7, None));
    assert!(!event.oom_killed && !event.requested_stop);
    let seen = guest.seen();
    assert_eq!(seen.lines(Stream::Stdout), ["out", "rest"]);
    assert_eq!(seen.lines(Stream::Stderr), ["err"]);
    assert_eq!(seen.control_phases(), [Phase::Waiting]);
    assert_eq!(guest.console(), "", "the console is for last words");
}

#[test]
fn a_death_by_signal_is_told_exactly() {
    let Some(tools) = Tools::find() else { return };
    let mut guest = Plan::new(&tools, config("echo up; kill -SEGV $$")).boot();
    let event = guest.finish();
    assert_eq!((event.exit_code, event.signal), (139, Some(11)));
    let _ = HostFrame::Stats;
}
