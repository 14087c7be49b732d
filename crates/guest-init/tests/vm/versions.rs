//! Guests and nodes of different versions.

use guest_protocol::{HostFrame, Phase, Stream};

use crate::machine::{Plan, Tools, config, raw_frame};

#[test]
fn a_guest_boots_a_config_with_unknown_fields_and_skips_unknown_frames() {
    let Some(tools) = Tools::find() else { return };
    let plan = Plan {
        newer_node: true,
        ..Plan::new(&tools, config("echo booted; exec sleep 1000"))
    };
    let mut guest = plan.boot();
    guest.wait_line("booted");
    guest.send_bytes(&raw_frame(guest_protocol::IGNORABLE | 2, b"news"));
    guest.send(&HostFrame::Stop { timeout_ms: 1 });
    assert!(guest.finish().requested_stop);
    assert_eq!(guest.seen().control_phases(), [Phase::Waiting]);
}

#[test]
fn a_guest_survives_a_frame_that_it_must_not_skip_and_names_it_on_its_console() {
    let Some(tools) = Tools::find() else { return };
    let mut guest = Plan::new(&tools, config("echo ready; exec sleep 1000")).boot();
    guest.wait_line("ready");
    guest.send_bytes(&raw_frame(100, b"news"));
    guest.wait("another hello", |seen| {
        (seen.control_phases() == [Phase::Waiting, Phase::Running]).then_some(())
    });
    guest.send(&HostFrame::Stop { timeout_ms: 1 });
    guest.finish();
    assert_eq!(guest.seen().lines(Stream::Stdout), ["ready"]);
    let console = guest.console();
    assert!(
        console.contains("does not understand (unknown frame type 100)"),
        "{console}"
    );
}
