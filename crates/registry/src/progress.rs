//! How far a fetch is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use oci::Descriptor;

use crate::limits::PROGRESS_STEP_BYTES;

/// How far a fetch is. Each blob counts once, also where several layers share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchProgress {
    /// Bytes of layers that arrived.
    pub done_bytes: u64,
    /// Bytes of all layers.
    pub total_bytes: u64,
    /// Layers that arrived whole and were checked.
    pub done_layers: usize,
    /// All layers.
    pub total_layers: usize,
}

/// What a fetch does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchEvent {
    /// More of the layers arrived.
    Progress(FetchProgress),
    /// An attempt failed, and the next one waits.
    Waiting {
        /// Why, for people: `docker.io answers 429: too many requests`.
        reason: String,
        /// For how long.
        pause: Duration,
    },
}

/// Called with what a fetch does, from any thread.
pub(crate) type OnEvent<'a> = dyn Fn(FetchEvent) + Send + Sync + 'a;

/// Adds up the progress of concurrent downloads.
pub(crate) struct Tally<'a> {
    done_bytes: AtomicU64,
    reported_bytes: AtomicU64,
    done_layers: AtomicU64,
    total_bytes: u64,
    total_layers: usize,
    on_event: &'a OnEvent<'a>,
}

impl<'a> Tally<'a> {
    pub(crate) fn new(layers: &[&Descriptor], on_event: &'a OnEvent<'a>) -> Self {
        let tally = Self {
            done_bytes: AtomicU64::new(0),
            reported_bytes: AtomicU64::new(0),
            done_layers: AtomicU64::new(0),
            total_bytes: layers.iter().map(|layer| layer.size).sum(),
            total_layers: layers.len(),
            on_event,
        };
        tally.report();
        tally
    }

    pub(crate) fn add(&self, bytes: u64) {
        let done = self.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let reported = self.reported_bytes.load(Ordering::Relaxed);
        if done.saturating_sub(reported) >= PROGRESS_STEP_BYTES {
            self.reported_bytes.store(done, Ordering::Relaxed);
            self.report();
        }
    }

    pub(crate) fn layer_done(&self) {
        self.done_layers.fetch_add(1, Ordering::Relaxed);
        self.report();
    }

    fn report(&self) {
        (self.on_event)(FetchEvent::Progress(FetchProgress {
            done_bytes: self.done_bytes.load(Ordering::Relaxed),
            total_bytes: self.total_bytes,
            done_layers: usize::try_from(self.done_layers.load(Ordering::Relaxed)).unwrap_or(0),
            total_layers: self.total_layers,
        }));
    }
}
