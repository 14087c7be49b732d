//! Lanes for work that blocks.
//!
//! The runtime has a bounded number of threads for such work (512), and short work of many kinds shares them: a record that is
//! written, a log line, a process that is started. Work that may take long, or that many ask for at once, goes through
//! a [`Lane`] of its own, so that it never takes all of them.

use std::sync::Arc;

use blocking_work::blocking;
use tokio::sync::Semaphore;

/// Blocking work of one kind, so many at a time; more wait in their order, without a thread.
#[derive(Debug, Clone)]
pub(crate) struct Lane(Arc<Semaphore>);

impl Lane {
    pub(crate) fn new(at_a_time: usize) -> Self {
        Self(Arc::new(Semaphore::new(at_a_time)))
    }

    /// As [`blocking`], when it is this work's turn. Work whose caller gives up keeps its place until it has ended.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let permit = Arc::clone(&self.0).acquire_owned().await;
        blocking(move || {
            let _permit = permit;
            work()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn case_a_lane_that_is_full_leaves_threads_to_others() {
        let lane = Lane::new(2);
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(std::sync::Mutex::new(released));
        let slow: Vec<_> = (0..600)
            .map(|_| {
                let (lane, released) = (lane.clone(), released.clone());
                tokio::spawn(async move { lane.run(move || released.lock().unwrap().recv()).await })
            })
            .collect();
        // More than all threads of the pool wait in the lane; other work is done at once.
        assert_eq!(blocking(|| 7).await, 7);
        for _ in 0..600 {
            release.send(()).unwrap();
        }
        for task in slow {
            task.await.unwrap().unwrap();
        }
    }
}
