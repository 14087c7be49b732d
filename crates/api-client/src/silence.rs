//! Connections that are open and on which nothing comes: something between the two ends stalls, and neither of their kernels notices.
//!
//! The other end sends a sign of life every [`STREAM_SIGN_OF_LIFE`] where it has nothing to say. One of before does not, so its absence means
//! something only after the first has come.

use std::future::Future;
use std::time::Duration;

/// How often a stream that has nothing to say gives a sign of life.
pub const STREAM_SIGN_OF_LIFE: Duration = Duration::from_secs(15);
/// The silence after which users are told that a stream stalls: two signs of life are missed.
pub const STREAM_SILENCE: Duration = Duration::from_secs(35);
/// The silence after which a stream is taken for lost.
pub const STREAM_LOST: Duration = Duration::from_secs(120);

/// What comes next. `silent` is called when it has not come for [`STREAM_SILENCE`], and the answer is `None` when it has not for [`STREAM_LOST`].
///
/// `next` has to be cancel-safe. `gives_signs`: whether the other end has given a sign of life before; without, it is waited for however long it takes.
pub async fn unless_silent<T>(
    gives_signs: bool,
    next: impl Future<Output = T>,
    silent: impl FnOnce(),
) -> Option<T> {
    if !gives_signs {
        return Some(next.await);
    }
    tokio::pin!(next);
    if let Ok(next) = tokio::time::timeout(STREAM_SILENCE, next.as_mut()).await {
        return Some(next);
    }
    silent();
    let left = STREAM_LOST.saturating_sub(STREAM_SILENCE);
    tokio::time::timeout(left, next).await.ok()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::pending;

    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn case_a_stream_that_stalls_is_noticed_and_at_last_given_up() {
        let began = Instant::now();
        let told = Cell::new(None);
        let tell = || told.set(Some(began.elapsed()));
        assert_eq!(unless_silent(true, pending::<()>(), tell).await, None);
        assert_eq!(told.get(), Some(STREAM_SILENCE));
        assert_eq!(began.elapsed(), STREAM_LOST);

        // What comes late is not lost.
        let told = Cell::new(false);
        let late = async {
            sleep(Duration::from_secs(60)).await;
            7
        };
        assert_eq!(unless_silent(true, late, || told.set(true)).await, Some(7));
        assert!(told.get());

        // Who gives no signs may be silent.
        let told = Cell::new(false);
        let hours = async {
            sleep(Duration::from_secs(7200)).await;
            7
        };
        assert_eq!(
            unless_silent(false, hours, || told.set(true)).await,
            Some(7)
        );
        assert!(!told.get());
    }
}
