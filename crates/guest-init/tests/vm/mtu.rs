//! The MTU of a guest follows the cluster's.

use guest_protocol::{GuestMtu, HostFrame, Stream};

use crate::machine::{Plan, Tools, config};

#[test]
fn case_a_guest_that_runs_follows_another_mtu() {
    let Some(tools) = Tools::find() else { return };
    let script = "while :; do echo mtu $(cat /sys/class/net/eth0/mtu); sleep 1; done";
    let mut guest = Plan::new(&tools, config(script)).boot();
    guest.wait_line("mtu 1420");
    guest.send(&HostFrame::Mtu(GuestMtu { mtu: 1380 }));
    guest.wait_line("mtu 1380");
    // Less than IPv6 needs would take the guest's address: the interface's IPv6 ends with it.
    guest.send(&HostFrame::Mtu(GuestMtu { mtu: 576 }));
    guest.wait("the refusal", |seen| {
        let said = seen.lines(Stream::Platform);
        let refusal = "the MTU stays as it was: 576 bytes are less than the 1280 that IPv6 needs";
        said.iter().any(|line| line == refusal).then_some(())
    });
    guest.send(&HostFrame::Stop { timeout_ms: 1 });
    guest.finish();
}
