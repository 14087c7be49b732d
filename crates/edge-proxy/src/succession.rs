//! How an edge takes the place of the process before it, and gives its own to the next one. Which process that is, and how the two speak, is its caller's.
//!
//! ```text
//!   old  follows and serves --asked--> serves --(the next one is ready)--> finishes what is open, for an hour --> ends
//!   new                                opens all that it needs, waits ---> follows and serves
//! ```
//!
//! One process at a time follows the server and writes in the data folder: the one that has its lock. Where the next one comes to nothing, the old one follows again.

use std::fmt;
use std::fs::File;
use std::io;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::forward::Edge;
use crate::limits::HANDED_OVER_TIMEOUT;

/// The processes before and after an edge's own.
pub trait Succession: fmt::Debug + Send + Sync {
    /// The lock of the data folder, from the process before.
    fn lock(&self) -> Option<File>;

    /// All is there that serving needs. Done when the clients are this process's; where there is an error, they are not.
    fn take_over(&self) -> BoxFuture<'_, io::Result<()>>;

    /// Waits until another process is to take the place of this one. Cancel-safe.
    fn asked(&self) -> BoxFuture<'_, ()>;

    /// Starts that process, which gets the lock of the data folder too. Done when the clients are its own; where there is an error, or this is dropped before, it ends.
    fn hand_over<'a>(&'a self, lock: &'a File) -> BoxFuture<'a, io::Result<()>>;
}

/// There is no other process.
#[derive(Debug)]
pub(crate) struct Alone;

impl Succession for Alone {
    fn lock(&self) -> Option<File> {
        None
    }

    fn take_over(&self) -> BoxFuture<'_, io::Result<()>> {
        std::future::ready(Ok(())).boxed()
    }

    fn asked(&self) -> BoxFuture<'_, ()> {
        std::future::pending().boxed()
    }

    fn hand_over<'a>(&'a self, _: &'a File) -> BoxFuture<'a, io::Result<()>> {
        std::future::pending().boxed()
    }
}

impl Edge {
    /// Waits until idle connections of clients are to be closed. Where another process has taken the place of this one, that is not with the end of
    /// `serving`: a request that is on its way is answered, and its connection ends with that.
    pub(crate) async fn closes_idle(&self, serving: &CancellationToken) {
        serving.cancelled().await;
        if let Some(stop) = self.handed_over.get() {
            stop.cancelled().await;
        }
    }

    /// Waits until what is open when nothing is accepted any more has no more time than at a stop.
    pub(crate) async fn hurries(&self) {
        let Some(stop) = self.handed_over.get() else {
            return;
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(HANDED_OVER_TIMEOUT) => stop.cancel(),
        }
    }
}
