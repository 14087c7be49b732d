//! Somebody damages a node's end of the overlay: its agent mends it, and nothing restarts.

use std::time::Duration;

use crate::machines::{Machines, run as command};
use crate::underlay::Talk;

/// So long no answer comes: nothing passes.
const SILENCE: Duration = Duration::from_secs(1);

pub(crate) fn run(machines: &mut Machines, talk: &Talk) {
    let pings = machines.ping("prod", &talk.address);
    let namespace = Machines::namespace_of(&talk.to);
    pings.wait_for_more("answers");

    // The link is set down and up: its route is gone.
    for state in ["down", "up"] {
        command("ip", &["-n", &namespace, "link", "set", "overlay", state]);
    }
    pings.wait_for_silence(SILENCE);
    pings.wait_for_more("answers by a route that was set again");

    // Its process hangs.
    let control = machines.path(&format!("{}.run/overlay/overlay.wireguard", talk.to));
    let pid = command("pgrep", &["--full", control.to_str().unwrap()]);
    command("kill", &["-STOP", pid.trim()]);
    pings.wait_for_silence(SILENCE);
    pings.wait_for_more("answers by another process");
    pings.stop();
    let log = machines.log(&talk.to);
    for line in [
        "somebody removed the overlay's route",
        "the process of the overlay's interface was stopped",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
}
