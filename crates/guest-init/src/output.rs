//! The app's standard output and error, from its pipes to the node.
//!
//! When the queue is full because the node is slow or away, the pipes are not read for
//! [`STALL_LIMIT`], so the app waits and nothing is lost. If there is still no room then, lines are
//! dropped and counted until half of the queue is free: the app is never blocked for ever.
//!
//! A chatty app is read every [`REST`], not at each of its writes: on one processor every wake-up
//! would take it from the app, and every small packet costs the host an exit of the VM.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use guest_protocol::{Channel, HostFrame, Phase, Stream};
use rustix::buffer::spare_capacity;
use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::link::{Event, Link};
use crate::logs::{LineSplitter, LogQueue};

/// How long the app may be kept waiting for a slow node before lines are dropped.
const STALL_LIMIT: Duration = Duration::from_secs(1);
/// How long the pipes are left alone after they were read.
const REST: Duration = Duration::from_millis(2);
/// Size asked for the pipes, in bytes: what an app can write within [`REST`] without waiting.
pub(crate) const PIPE_BYTES: usize = 256 * 1024;
/// Least that may be taken from a pipe at a time, in bytes.
const READ_BYTES: usize = 64 * 1024;

struct Source {
    stream: Stream,
    fd: Option<OwnedFd>,
    splitter: LineSplitter,
    /// A piece of the present line was dropped: the rest of it goes too.
    cutting: bool,
}

/// Output on its way: two pipes, the queue, the log channel.
pub(crate) struct Output {
    sources: Vec<Source>,
    queue: LogQueue,
    link: Link,
    stalled_since: Option<Instant>,
    dropping: bool,
    /// Until when the pipes are left alone.
    resting_until: Option<Instant>,
}

impl Output {
    /// Nothing to read yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            sources: Vec::new(),
            queue: LogQueue::default(),
            link: Link::new(Channel::Log, now),
            stalled_since: None,
            dropping: false,
            resting_until: None,
        }
    }

    /// Adds a pipe to read.
    pub(crate) fn read_from(&mut self, stream: Stream, fd: OwnedFd) {
        self.sources.push(Source {
            stream,
            fd: Some(fd),
            splitter: LineSplitter::default(),
            cutting: false,
        });
    }

    /// Stops reading: what still holds the pipes does not matter any more.
    pub(crate) fn close(&mut self) {
        for source in &mut self.sources {
            source.fd = None;
        }
    }

    /// Adds a line of init's own.
    pub(crate) fn say(&mut self, line: &str) {
        if self.queue.has_room() {
            self.queue
                .push(now_nanos(), Stream::Platform, false, line.as_bytes());
        }
    }

    /// Whether every pipe ended and the node has every line.
    pub(crate) fn is_done(&self) -> bool {
        self.sources.iter().all(|source| source.fd.is_none()) && self.queue.is_empty()
    }

    /// Moves what can be moved, from the pipes' bytes to the queue to the link.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.link.tick(now);
        self.resting_until = self.resting_until.filter(|until| *until > now);
        self.fill_queue();
        if self.queue.has_room() {
            self.stalled_since = None;
        } else if now.duration_since(*self.stalled_since.get_or_insert(now)) >= STALL_LIMIT {
            self.dropping = true;
            self.fill_queue();
        }
        if self.dropping && self.queue.is_half_empty() {
            self.dropping = false;
            let dropped = self.queue.dropped();
            if dropped > 0 {
                self.say(&format!(
                    "{dropped} lines dropped here: the node was too slow to take them"
                ));
            }
        }
        self.send(now);
    }

    /// When [`Self::tick`] has something to do of its own accord.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let stall = self
            .stalled_since
            .filter(|_| !self.dropping)
            .map(|since| since + STALL_LIMIT);
        [stall, self.resting_until, self.link.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// What to wait for: the pipes by their place, then the link.
    pub(crate) fn interests(
        &self,
    ) -> impl Iterator<Item = (OutputToken, BorrowedFd<'_>, PollFlags)> {
        let reading = self.takes_more() && self.resting_until.is_none();
        let pipes = self
            .sources
            .iter()
            .enumerate()
            .filter_map(move |(at, source)| {
                let fd = source.fd.as_ref().filter(|_| reading)?;
                Some((OutputToken::Pipe(at), fd.as_fd(), PollFlags::IN))
            });
        let link = self
            .link
            .interest(!self.queue.unsent().is_empty(), true)
            .map(|(fd, flags)| (OutputToken::Link, fd, flags));
        pipes.chain(link)
    }

    /// Handles what [`Self::interests`] waited for.
    pub(crate) fn ready(&mut self, token: OutputToken, phase: &Phase, now: Instant) {
        match token {
            OutputToken::Pipe(at) => {
                // As many reads as empty a full pipe: others wait for their turn.
                for _ in 0..PIPE_BYTES / READ_BYTES {
                    if !self.takes_more() || !self.read(at) {
                        break;
                    }
                    self.fill_queue();
                }
                self.resting_until = Some(now + REST);
            }
            OutputToken::Link => {
                for event in self.link.ready(phase, now) {
                    match event {
                        Event::Connected => self.queue.send_again(),
                        Event::Frame(HostFrame::LogAck { seq }) => self.queue.acknowledge(seq),
                        Event::Frame(_) | Event::Lost => {}
                    }
                }
            }
        }
    }

    fn takes_more(&self) -> bool {
        self.queue.has_room() || self.dropping
    }

    /// Reads once. False: there is nothing more now, or ever.
    fn read(&mut self, at: usize) -> bool {
        let Some(source) = self.sources.get_mut(at) else {
            return false;
        };
        let Some(fd) = &source.fd else {
            return false;
        };
        match rustix::io::read(fd, spare_capacity(source.splitter.space(READ_BYTES))) {
            Ok(length) if length > 0 => true,
            Err(Errno::AGAIN | Errno::INTR) => false,
            Ok(_) | Err(_) => {
                source.fd = None;
                false
            }
        }
    }

    fn fill_queue(&mut self) {
        let at = now_nanos();
        for source in &mut self.sources {
            while self.queue.has_room() || self.dropping {
                let ended = source.fd.is_none();
                let piece = match source.splitter.next_piece() {
                    None if ended => match source.splitter.finish() {
                        Some(rest) => rest,
                        None => break,
                    },
                    None => break,
                    Some(piece) => piece,
                };
                if self.queue.has_room() && !source.cutting {
                    self.queue
                        .push(at, source.stream, piece.partial, piece.bytes);
                    continue;
                }
                source.cutting = piece.partial;
                if !piece.partial {
                    self.queue.drop_line();
                }
            }
        }
    }

    fn send(&mut self, now: Instant) {
        while self.link.is_up() && !self.queue.unsent().is_empty() {
            match self.link.write(self.queue.unsent()) {
                Ok(0) => return,
                Ok(bytes) => self.queue.mark_sent(bytes),
                Err(error) => self.link.lost(Some(error), now),
            }
        }
    }
}

/// Which of [`Output`]'s descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputToken {
    /// A pipe, by its place.
    Pipe(usize),
    /// The log channel.
    Link,
}

fn now_nanos() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        })
}
