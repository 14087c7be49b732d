//! How far a step of the boot is, for the node.

use std::time::{Duration, Instant};

use guest_protocol::{BootProgress, GuestFrame, HostFrame, Phase};
use rustix::event::{PollFd, poll};
use rustix::fs::Timespec;

use crate::clock::ClockSync;
use crate::console;
use crate::link::{Event, Link};

/// Pause between two reports of a step that takes long. The node gives up a boot that reports nothing for a minute.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Pause between two looks at a connection that is being made.
const DIAL_INTERVAL: Duration = Duration::from_secs(1);

/// Tells the node how far a step of the boot is, so that one that takes long is not taken for a hang. A node's agent that
/// restarts meanwhile is dialled again.
pub(crate) struct Progress<'l> {
    control: &'l mut Link,
    clock: &'l mut ClockSync,
    /// What the node sent meanwhile.
    frames: Vec<HostFrame>,
    done: BootProgress,
    next: Instant,
}

impl<'l> Progress<'l> {
    pub(crate) fn new(control: &'l mut Link, clock: &'l mut ClockSync, now: Instant) -> Self {
        Self {
            control,
            clock,
            frames: Vec::new(),
            done: BootProgress {
                entries: 0,
                bytes: 0,
            },
            next: now + PROGRESS_INTERVAL,
        }
    }

    /// So many files and bytes more are done.
    pub(crate) fn add(&mut self, entries: u64, bytes: u64) {
        self.done.entries += entries;
        self.done.bytes += bytes;
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.report(now);
        let pause = if self.control.is_up() {
            PROGRESS_INTERVAL
        } else {
            DIAL_INTERVAL
        };
        self.next = now + pause;
    }

    fn report(&mut self, now: Instant) {
        self.control.tick(now);
        self.control.send(&GuestFrame::Progressed(self.done));
        let Some((fd, flags)) = self.control.interest(false, true) else {
            return;
        };
        let mut polled = [PollFd::from_borrowed_fd(fd, flags)];
        pause(&mut polled, Some(now));
        if polled[0].revents().is_empty() {
            return;
        }
        for event in self.control.ready(&Phase::Starting, now) {
            match event {
                Event::Connected => self.clock.connected(self.control, now),
                Event::Frame(HostFrame::Time(time)) => {
                    if let Some(said) = self.clock.answered(time, now) {
                        console::print(&said);
                    }
                }
                Event::Frame(frame) => self.frames.push(frame),
                Event::Refused | Event::Lost => {}
            }
        }
    }

    /// What the node sent meanwhile, in order.
    pub(crate) fn into_frames(self) -> Vec<HostFrame> {
        self.frames
    }
}

/// Waits until a descriptor is ready, or until a deadline.
pub(crate) fn pause(fds: &mut [PollFd<'_>], deadline: Option<Instant>) {
    let timeout = deadline.map(|deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        }
    });
    // A wake-up without an event is harmless, and errors of a descriptor are found by its owner.
    let _ = poll(fds, timeout.as_ref());
}
