//! A server's machine: it may be stopped for a while, its clocks are its own, and it may be cut off.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::Timestamp;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::simulator::Simulator;

/// A step of the wall clock up to this long is followed without a word, in milliseconds.
const SLEWED_MS: u64 = 1_000;

/// What does not pass between two machines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Everything passes.
    #[default]
    None,
    /// Nothing passes.
    Both,
    /// What the one asks does not arrive.
    Requests,
    /// What is asked arrives, and its answer does not.
    Answers,
}

impl Cut {
    /// The ways in which a connection may be cut.
    pub(crate) const ALL: [Self; 3] = [Self::Both, Self::Requests, Self::Answers];

    pub(crate) fn loses_requests(self) -> bool {
        matches!(self, Self::Both | Self::Requests)
    }

    pub(crate) fn loses_answers(self) -> bool {
        matches!(self, Self::Both | Self::Answers)
    }
}

/// A server's machine. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Computer {
    pub(crate) simulator: Simulator,
    /// Which of the servers it is of, counted from 0.
    pub(crate) index: usize,
    state: Arc<Mutex<State>>,
    resumed: Arc<Notify>,
    healed: Arc<Notify>,
    /// When its monotonic clock was 0.
    booted: Instant,
}

#[derive(Default)]
struct State {
    /// Since when nothing on it runs, and whether its monotonic clock stands meanwhile: it is suspended.
    stopped: Option<(Instant, bool)>,
    /// How long its monotonic clock stood so far.
    stood: Duration,
    /// What its wall clock shows more than true time, in milliseconds.
    wall_ahead: i64,
    /// What the server's own clock shows more than true time, in milliseconds: the wall clock as it was when it was last looked at.
    now_ahead: i64,
    /// Whether it is to be stopped in the middle of its next write, and whether its clock stands then.
    stops_in_write: Option<bool>,
    store: Cut,
    /// The servers that it does not reach.
    unreachable: BTreeSet<usize>,
}

impl std::fmt::Debug for Computer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "server {}", self.index + 1)
    }
}

impl Computer {
    pub(crate) fn new(simulator: &Simulator, index: usize) -> Self {
        Self {
            simulator: simulator.clone(),
            index,
            state: Arc::default(),
            resumed: Arc::default(),
            healed: Arc::default(),
            booted: Instant::now(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing on it runs from now on. `clock_stands`: it is suspended, and not only its server stopped.
    pub(crate) fn stop(&self, clock_stands: bool) {
        let mut state = self.lock();
        if state.stopped.is_none() {
            state.stopped = Some((Instant::now(), clock_stands));
        }
    }

    /// The same, once it has begun its next write.
    pub(crate) fn stop_in_write(&self, clock_stands: bool) {
        self.lock().stops_in_write = Some(clock_stands);
    }

    /// It has begun a write.
    pub(crate) fn begins_a_write(&self) {
        let stops = self.lock().stops_in_write.take();
        if let Some(clock_stands) = stops {
            self.simulator
                .trace(format!("{self:?} is stopped in the middle of a write"));
            self.stop(clock_stands);
        }
    }

    /// It goes on, and does not know that it was stopped.
    pub(crate) fn resume(&self) {
        let mut state = self.lock();
        state.stops_in_write = None;
        let Some((since, clock_stands)) = state.stopped.take() else {
            return;
        };
        if clock_stands {
            let stood = since.elapsed();
            state.stood += stood;
            state.now_ahead -= signed(stood);
        }
        drop(state);
        self.resumed.notify_waiters();
    }

    /// Whether anything on it runs.
    pub(crate) fn is_running(&self) -> bool {
        self.lock().stopped.is_none()
    }

    /// Waits while it is stopped. Whatever a server does passes here after each wait.
    pub(crate) async fn runs(&self) {
        while !self.is_running() {
            self.resumed.notified().await;
        }
    }

    /// Lets between `low` and `high` milliseconds pass.
    pub(crate) async fn latency(&self, low: u64, high: u64) {
        self.simulator.latency(low, high).await;
        self.runs().await;
    }

    /// Lets so much time pass.
    pub(crate) async fn sleep(&self, wait: Duration) {
        sleep(wait).await;
        self.runs().await;
    }

    /// Its monotonic clock.
    pub(crate) fn uptime(&self) -> Duration {
        let state = self.lock();
        let standing = match state.stopped {
            Some((since, true)) => since.elapsed(),
            Some((_, false)) | None => Duration::ZERO,
        };
        self.booted.elapsed().saturating_sub(state.stood + standing)
    }

    /// The same in milliseconds.
    pub(crate) fn millis(&self) -> u64 {
        u64::try_from(self.uptime().as_millis()).unwrap_or(u64::MAX)
    }

    /// The time by the server's own clock, which goes on without a jump.
    pub(crate) fn now(&self) -> Timestamp {
        let ahead = self.lock().now_ahead;
        Timestamp(self.simulator.now().0.saturating_add_signed(ahead))
    }

    /// Sets the server's own clock to the machine's. The new time where that was a jump.
    pub(crate) fn follow_the_wall_clock(&self) -> Option<Timestamp> {
        let mut state = self.lock();
        let jump = state.wall_ahead.abs_diff(state.now_ahead);
        state.now_ahead = state.wall_ahead;
        drop(state);
        (jump > SLEWED_MS).then(|| self.now())
    }

    /// Somebody sets the machine's wall clock.
    pub(crate) fn step_clock(&self, by_ms: i64) {
        self.lock().wall_ahead += by_ms;
    }

    /// Cuts it off from the store.
    pub(crate) fn cut_from_store(&self, cut: Cut) {
        self.lock().store = cut;
    }

    /// Waits while what goes to the store is lost, or what comes from it; once it passes again, what was lost is sent again. False: that
    /// took longer than `limit`.
    pub(crate) async fn passes(&self, limit: Duration, loses: fn(Cut) -> bool) -> bool {
        let begun = Instant::now();
        while loses(self.lock().store) {
            let left = limit.saturating_sub(begun.elapsed());
            // Whichever comes first.
            let _ = timeout(left, self.healed.notified()).await;
            if begun.elapsed() >= limit {
                self.runs().await;
                return false;
            }
        }
        true
    }

    /// It does not reach this server any more.
    pub(crate) fn cut_from(&self, server: usize) {
        self.lock().unreachable.insert(server);
    }

    pub(crate) fn reaches(&self, server: usize) -> bool {
        !self.lock().unreachable.contains(&server)
    }

    /// Everything reaches everything again, and it runs. Its wall clock stays as it is.
    pub(crate) fn heal(&self) {
        self.resume();
        let mut state = self.lock();
        state.store = Cut::None;
        state.unreachable.clear();
        drop(state);
        self.healed.notify_waiters();
    }
}

fn signed(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
