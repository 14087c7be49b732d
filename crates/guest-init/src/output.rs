//! The app's standard output and error, from its pipes to the node.
//!
//! When the queue is full because the node is slow or gone, the pipes are not read for
//! [`STALL_LIMIT`]: the app waits and nothing is lost. If there is still no room then, lines are
//! dropped and counted until half of the queue is free, so that the app is not blocked for ever.
//!
//! The output of an app that writes often is read every [`REST`], not at each write: every wake-up takes a
//! single processor from the app, and every small packet costs the host an exit of the VM.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use guest_protocol::{Channel, HostFrame, Phase, Stream};
use rustix::buffer::spare_capacity;
use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::clock::now_nanos;
use crate::link::{Event, Link};
use crate::logs::{LineSplitter, LogQueue};

/// How long the app waits for a slow node before lines are dropped.
const STALL_LIMIT: Duration = Duration::from_secs(1);
/// How long the pipes are not read after a read.
const REST: Duration = Duration::from_millis(2);
/// Requested size of the pipes, in bytes: an app can write as much within [`REST`] without waiting.
pub(crate) const PIPE_BYTES: usize = 256 * 1024;
/// Room for one read from a pipe, in bytes.
const READ_BYTES: usize = 64 * 1024;

struct Source {
    stream: Stream,
    fd: Option<OwnedFd>,
    splitter: LineSplitter,
    /// A piece of the present line was dropped: the rest of the line is dropped too.
    cutting: bool,
}

/// The way of output: the pipes, the queue, the log channel.
pub(crate) struct Output {
    sources: Vec<Source>,
    queue: LogQueue,
    link: Link,
    stalled_since: Option<Instant>,
    dropping: bool,
    /// Lines dropped since the log said so last.
    dropped: u32,
    /// Until when the pipes are not read.
    resting_until: Option<Instant>,
}

impl Output {
    /// An output without pipes.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            sources: Vec::new(),
            queue: LogQueue::default(),
            link: Link::new(Channel::Log, now),
            stalled_since: None,
            dropping: false,
            dropped: 0,
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

    /// Stops reading, though processes may still hold the pipes.
    pub(crate) fn close(&mut self) {
        for source in &mut self.sources {
            source.fd = None;
        }
    }

    /// Adds a line of init's own to the instance's log. Dropped when there is no room.
    pub(crate) fn log(&mut self, line: &str) {
        if self.queue.has_room() {
            self.queue
                .push(now_nanos(), Stream::Platform, false, line.as_bytes());
        }
    }

    /// Whether every pipe ended and the node acknowledged every line.
    pub(crate) fn is_done(&self) -> bool {
        self.sources.iter().all(|source| source.fd.is_none()) && self.queue.is_empty()
    }

    /// Moves the lines that can be moved: from the pipes' bytes to the queue, from the queue to the link.
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
            // A line that came while there was a little room has the queue's own count already.
            let dropped = std::mem::take(&mut self.dropped);
            if dropped > 0 {
                self.log(&format!(
                    "{dropped} lines were dropped here: the node accepted them too slowly"
                ));
            }
        }
        self.send(now);
    }

    /// When [`Self::tick`] has something to do without an event.
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

    /// The events to wait for: the pipes' and the link's.
    pub(crate) fn interests(
        &self,
    ) -> impl Iterator<Item = (OutputToken, BorrowedFd<'_>, PollFlags)> {
        let reading = self.can_read() && self.resting_until.is_none();
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

    /// Handles an event that [`Self::interests`] waited for.
    pub(crate) fn ready(&mut self, token: OutputToken, phase: &Phase, now: Instant) {
        match token {
            OutputToken::Pipe(at) => {
                // Enough reads to empty a full pipe, and no more: other descriptors have their turn then.
                for _ in 0..PIPE_BYTES / READ_BYTES {
                    if !self.can_read() || !self.read(at) {
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
                        Event::Frame(_) | Event::Refused | Event::Lost => {}
                    }
                }
            }
        }
    }

    fn can_read(&self) -> bool {
        self.queue.has_room() || self.dropping
    }

    /// Reads once. False: nothing more can be read now.
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
                    self.dropped = self.dropped.saturating_add(1);
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
        if self.queue.awaits_acknowledgement() {
            self.link.expect_answer(now);
        }
    }
}

/// One of [`Output`]'s descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputToken {
    /// A pipe, by its index.
    Pipe(usize),
    /// The log channel.
    Link,
}
