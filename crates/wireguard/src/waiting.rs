//! What the thread waits for: packets of both sides, agents, and the clock.
//!
//! Each is registered once (epoll(7)), and the clock is one of them (timerfd_create(2)). So a packet costs three system calls, whatever else is waited for: to
//! learn of it, to read it and to send it.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// What is there.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ready {
    /// The TUN device has a packet, or is gone.
    pub(crate) tun: bool,
    /// The socket has a datagram, or an error.
    pub(crate) socket: bool,
    /// An agent asks something.
    pub(crate) control: bool,
    /// The clock ticked.
    pub(crate) clock: bool,
}

/// One of those that are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Tun = 0,
    Socket = 1,
    Control = 2,
    Clock = 3,
}

const SOURCES: [Source; 4] = [Source::Tun, Source::Socket, Source::Control, Source::Clock];

/// Those that are waited for.
#[derive(Debug)]
pub(crate) struct Waiting {
    epoll: OwnedFd,
    clock: OwnedFd,
}

impl Waiting {
    /// The clock alone. It ticks at once, and then at this interval, which is above zero.
    pub(crate) fn new(interval: Duration) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let clock = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let at_once = Duration::from_nanos(1);
        let timer = Itimerspec {
            it_interval: Timespec::try_from(interval).map_err(io::Error::other)?,
            it_value: Timespec::try_from(at_once).map_err(io::Error::other)?,
        };
        timerfd_settime(&clock, TimerfdTimerFlags::empty(), &timer)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let waiting = Self { epoll, clock };
        waiting.add(&waiting.clock, Source::Clock)?;
        Ok(waiting)
    }

    /// One more is waited for, until it is closed.
    pub(crate) fn add(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        let data = EventData::new_u64(source as u64);
        Ok(epoll::add(&self.epoll, fd, data, EventFlags::IN)?)
    }

    /// Waits until something is there. What is left there is there at the next call as well; a tick is not.
    pub(crate) fn wait(&self) -> io::Result<Ready> {
        let mut room = [const { MaybeUninit::uninit() }; SOURCES.len()];
        let (events, _) = match epoll::wait(&self.epoll, &mut room, None) {
            Ok(events) => events,
            Err(rustix::io::Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        };
        let mut ready = Ready::default();
        for event in events {
            let of = event.data.u64();
            let source = SOURCES.iter().find(|source| **source as u64 == of);
            match source {
                Some(Source::Tun) => ready.tun = true,
                Some(Source::Socket) => ready.socket = true,
                Some(Source::Control) => ready.control = true,
                Some(Source::Clock) => ready.clock = true,
                None => {}
            }
        }
        if ready.clock {
            // How often it ticked is of no interest.
            let _ = rustix::io::read(&self.clock, &mut [0; 8]);
        }
        Ok(ready)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    #[test]
    fn what_is_there_is_named_until_it_is_taken_and_the_clock_ticks_meanwhile() {
        let waiting = Waiting::new(Duration::from_millis(20)).unwrap();
        let tick = Ready {
            clock: true,
            ..Ready::default()
        };
        // At once, and again.
        let begun = Instant::now();
        assert_eq!(waiting.wait().unwrap(), tick);
        assert_eq!(waiting.wait().unwrap(), tick);
        assert!(begun.elapsed() >= Duration::from_millis(19));
        let mut pairs = [Source::Tun, Source::Socket, Source::Control].map(|source| {
            let (near, far) = UnixStream::pair().unwrap();
            waiting.add(&near, source).unwrap();
            (source, near, far)
        });
        for (source, near, far) in &mut pairs {
            far.write_all(b"?").unwrap();
            for _ in 0..3 {
                let ready = waiting.wait().unwrap();
                let named = [ready.tun, ready.socket, ready.control];
                let expected =
                    [Source::Tun, Source::Socket, Source::Control].map(|of| of == *source);
                assert_eq!(named, expected, "{ready:?}");
            }
            near.read_exact(&mut [0]).unwrap();
        }
        // One that is closed is waited for no more.
        drop(pairs);
        assert_eq!(waiting.wait().unwrap(), tick);
    }
}
