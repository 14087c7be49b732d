//! From power on to the running app: the boot config from the node, and the steps of the boot plan.

use std::io;
use std::time::{Duration, Instant};

use guest_protocol::{BootConfig, BootFailure, GuestFrame, HostFrame, Phase};
use rustix::event::PollFd;

use crate::app::App;
use crate::clock::ClockSync;
use crate::console;
use crate::execute::{self, Booted};
use crate::link::{Event, Link};
use crate::plan::boot_plan;
use crate::progress::{Progress, pause};
use crate::unmount::unmount_volumes;
use crate::user::User;

/// After this long without a boot config the console says what init is waiting for.
const QUIET_WAIT: Duration = Duration::from_secs(10);

/// A boot that failed, reported on the console too.
pub(crate) fn failed(step: String, reason: String, exit_code: Option<u8>) -> GuestFrame {
    console::print(&format!("{step}: {reason}"));
    GuestFrame::BootFailed(BootFailure {
        step,
        reason,
        exit_code,
    })
}

/// Starts the app by the boot plan.
///
/// # Errors
/// The report of the step that failed.
pub(crate) fn boot(
    config: &BootConfig,
    progress: &mut Progress<'_>,
) -> Result<(User, App, Booted), GuestFrame> {
    let mut booted = Booted::default();
    for step in boot_plan(config) {
        if let Err(error) = execute::perform(&step, config, &mut booted, progress) {
            unmount_volumes(&booted.volumes);
            return Err(failed(step.name(), error.to_string(), error.exit_code()));
        }
    }
    match (booted.user.take(), booted.app.take()) {
        (Some(user), Some(app)) => Ok((user, app, booted)),
        _ => Err(failed(
            "start the app".to_owned(),
            "the boot plan has no such step".to_owned(),
            None,
        )),
    }
}

/// Dials the node until it sends the boot config. Returns also the frames that came right after it.
///
/// # Errors
/// There is no vsock device, or the node refuses this guest.
pub(crate) fn wait_for_boot(
    control: &mut Link,
    clock: &mut ClockSync,
) -> io::Result<(BootConfig, Vec<HostFrame>)> {
    let since = Instant::now();
    let mut printed = false;
    loop {
        let now = Instant::now();
        control.tick(now);
        if control.is_hopeless() {
            return Err(io::Error::other(
                "this machine has no vsock device, so no node can be asked for a boot config",
            ));
        }
        if !printed && now.duration_since(since) > QUIET_WAIT {
            printed = true;
            let reason = control
                .last_error()
                .map_or("no boot config yet".to_owned(), io::Error::to_string);
            console::print(&format!("waiting for the node: {reason}"));
        }
        let deadline = control
            .deadline()
            .or((!printed).then_some(since + QUIET_WAIT));
        let Some((fd, flags)) = control.interest(false, true) else {
            pause(&mut [], deadline);
            continue;
        };
        let mut polled = [PollFd::from_borrowed_fd(fd, flags)];
        pause(&mut polled, deadline);
        if polled[0].revents().is_empty() {
            continue;
        }
        let mut events = control.ready(&Phase::Waiting, Instant::now()).into_iter();
        while let Some(event) = events.next() {
            match event {
                Event::Frame(HostFrame::Boot(config)) => {
                    let rest = events.filter_map(|event| match event {
                        Event::Frame(frame) => Some(frame),
                        _ => None,
                    });
                    return Ok((*config, rest.collect()));
                }
                Event::Connected => clock.connected(control, Instant::now()),
                Event::Frame(HostFrame::Time(time)) => {
                    if let Some(said) = clock.answered(time, Instant::now()) {
                        console::print(&said);
                    }
                }
                Event::Refused => {
                    return Err(io::Error::other(
                        "without the node's boot config there is nothing to run",
                    ));
                }
                _ => {}
            }
        }
    }
}
