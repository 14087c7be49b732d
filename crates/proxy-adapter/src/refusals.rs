//! Refused connections: counted, and logged at once and then not before some time has passed.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use crate::header::Invalid;

/// Why the adapter closed a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Its peer is not an edge.
    Foreign,
    /// Its header did not come in time.
    Late,
    /// It ended within its header.
    Cut,
    /// Its header is invalid.
    Header(Invalid),
    /// The app does not accept connections.
    App,
}

impl Refusal {
    /// For people.
    fn text(self) -> &'static str {
        match self {
            Self::Foreign => "only edges may connect to this port",
            Self::Late => "its PROXY header did not come in time",
            Self::Cut => "it ended within its PROXY header",
            Self::Header(invalid) => invalid.text(),
            Self::App => "the app does not listen on its port",
        }
    }
}

/// The refusals since the last line, and when the next line is due.
pub(crate) struct Refusals<L> {
    /// Who refuses, for people.
    name: &'static str,
    log: L,
    interval: Duration,
    foreign: u32,
    without_header: u32,
    without_app: u32,
    last: Option<(Ipv6Addr, Refusal)>,
    next_line: Option<Instant>,
}

impl<L: FnMut(&str)> Refusals<L> {
    /// No refusals yet. `log` gets a line at most every `interval`.
    pub(crate) fn new(name: &'static str, log: L, interval: Duration) -> Self {
        Self {
            name,
            log,
            interval,
            foreign: 0,
            without_header: 0,
            without_app: 0,
            last: None,
            next_line: None,
        }
    }

    /// Counts a refusal, and logs it when a line is due.
    pub(crate) fn count(&mut self, peer: Ipv6Addr, refusal: Refusal, now: Instant) {
        let count = match refusal {
            Refusal::Foreign => &mut self.foreign,
            Refusal::Late | Refusal::Cut | Refusal::Header(_) => &mut self.without_header,
            Refusal::App => &mut self.without_app,
        };
        *count = count.saturating_add(1);
        self.last = Some((peer, refusal));
        self.tick(now);
    }

    /// Logs the refusals since the last line, when a line is due.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.next_line = self.next_line.filter(|at| *at > now);
        if self.next_line.is_some() {
            return;
        }
        if let Some((peer, refusal)) = self.last.take() {
            (self.log)(&format!(
                "{}: refused connections: {} not from edges, {} without a valid header, {} while the \
                 app did not listen; the last, from {peer}: {}",
                self.name,
                std::mem::take(&mut self.foreign),
                std::mem::take(&mut self.without_header),
                std::mem::take(&mut self.without_app),
                refusal.text()
            ));
            self.next_line = Some(now + self.interval);
        }
    }

    /// When [`Self::tick`] has something to log.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.next_line.filter(|_| self.last.is_some())
    }
}
