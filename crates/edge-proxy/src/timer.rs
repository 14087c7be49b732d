//! The one timer of a connection. It is moved at each step of a request, so a later time costs nothing: the timer of the runtime, which fires earlier
//! then, is set again.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

/// Longer than any connection lives.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The time by which timers go. In tests it may stand still.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[derive(Debug)]
pub(crate) struct Timer {
    sleep: Pin<Box<Sleep>>,
    /// When `sleep` ends: not after `due`.
    armed: Instant,
    due: Instant,
}

impl Timer {
    pub(crate) fn new(due: Instant) -> Self {
        Self {
            sleep: Box::pin(tokio::time::sleep_until(due.into())),
            armed: due,
            due,
        }
    }

    /// One that does not end until it is set.
    pub(crate) fn stopped() -> Self {
        Self::new(now() + NEVER)
    }

    pub(crate) fn set(&mut self, due: Instant) {
        self.due = due;
        if due < self.armed {
            self.arm();
        }
    }

    /// It does not end until it is set again.
    pub(crate) fn stop(&mut self) {
        self.due = self.armed + NEVER;
    }

    fn arm(&mut self) {
        self.sleep.as_mut().reset(self.due.into());
        self.armed = self.due;
    }

    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            std::task::ready!(self.sleep.as_mut().poll(context));
            if self.armed >= self.due {
                return Poll::Ready(());
            }
            self.arm();
        }
    }
}
