//! Work that blocks, away from the threads that run async tasks.
//!
//! A worker of the runtime that waits for a disk holds up every task of its program. `cargo xtask tidy` finds async code
//! that calls what blocks other than through [`blocking`].

/// Runs `work` on a thread for blocking work. A panic in it goes on in the caller. When the caller is dropped, the work
/// is done all the same; when the runtime shuts down first, this is never ready.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime shuts down: nothing waits for this any more.
            Err(_) => std::future::pending().await,
        },
    }
}
