//! The guest's clock follows the node's; and init alone has the token of its connections.

use std::time::{SystemTime, UNIX_EPOCH};

use guest_protocol::{HostFrame, Stream};

use crate::machine::{Guest, Plan, Tools, config};

/// How far the guest's clock may be from the node's, in seconds: lines are whole seconds, and take their time.
const NEAR: i64 = 4;

fn machine_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// Waits until the app prints the machine's time with this difference.
fn wait_for_clock(guest: &Guest, ahead: i64) {
    guest.wait(&format!("a clock {ahead} s ahead"), |seen| {
        let wanted = machine_seconds() + ahead;
        let lines = seen.lines(Stream::Stdout);
        let last: i64 = lines.last()?.strip_prefix("at ")?.parse().ok()?;
        ((last - wanted).abs() <= NEAR).then_some(())
    });
}

#[test]
fn case_the_guests_clock_follows_the_nodes_over_its_steps() {
    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;
    let Some(tools) = Tools::find() else { return };
    let script = "while :; do echo at $(date +%s); sleep 1; done";
    let mut guest = Plan::new(&tools, config(script)).boot();
    guest.wait_started();
    wait_for_clock(&guest, 0);
    assert!(guest.seen().times_asked > 0);
    // The node's clock is set on by an hour; a guest that connects anew asks at once.
    let set = |seconds: i64| {
        guest.change(|seen| seen.clock_offset_nanos = i128::from(seconds) * 1_000_000_000);
    };
    set(HOUR);
    guest.break_connections();
    wait_for_clock(&guest, HOUR);
    // Back by more than a day; on the connection that it has, it asks every 16 seconds.
    set(-DAY);
    wait_for_clock(&guest, -DAY);
    // A machine that was suspended: its clock goes on, and the guest's monotonic clock did not.
    set(HOUR);
    wait_for_clock(&guest, HOUR);
    let said = guest.seen().lines_and_clock(Stream::Platform);
    let steps = said
        .iter()
        .filter(|line| line.starts_with("the clock was set by"))
        .count();
    assert!(steps >= 3, "{said:?}");
    guest.send(&HostFrame::Stop { timeout_ms: 1 });
    guest.finish();
}

#[test]
fn case_init_has_one_token_for_all_connections_of_a_boot_and_another_for_the_next() {
    let Some(tools) = Tools::find() else { return };
    let mut tokens = Vec::new();
    for _ in 0..2 {
        let mut guest = Plan::new(&tools, config("echo ready; exec sleep 1000")).boot();
        guest.wait_line("ready");
        guest.break_connections();
        guest.wait("another hello on each channel", |seen| {
            (seen.control_phases().len() > 1 && seen.log_phases().len() > 1).then_some(())
        });
        let hellos = guest.seen().hellos.clone();
        let token = hellos[0].token.clone();
        assert_eq!(token.len(), 32, "{token}");
        assert!(hellos.iter().all(|hello| hello.token == token));
        tokens.push(token);
        guest.send(&HostFrame::Stop { timeout_ms: 1 });
        guest.finish();
    }
    assert_ne!(tokens[0], tokens[1]);
}
