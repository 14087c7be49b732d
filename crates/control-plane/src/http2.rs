//! An HTTP/2 connection and its requests, in one task where they are one client's.
//!
//! A server usually spawns a task for each request. Most requests here are signs of life that are answered at once, thousands a second, and
//! handing each of them to another thread costs more than answering it.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use hyper::rt::Executor;

pub(crate) type Request = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where the connection puts its requests.
#[derive(Clone)]
pub(crate) enum Requests {
    /// They run in the connection's task: those of one client.
    InPlace(Arc<Mutex<Vec<Request>>>),
    /// Each has a task of its own: another server forwards those of many clients.
    Spawned,
}

impl Requests {
    pub(crate) fn in_place() -> Self {
        Self::InPlace(Arc::default())
    }

    fn take(&self) -> Vec<Request> {
        match self {
            Self::InPlace(new) => {
                std::mem::take(&mut new.lock().unwrap_or_else(PoisonError::into_inner))
            }
            Self::Spawned => Vec::new(),
        }
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Requests {
    fn execute(&self, request: F) {
        match self {
            Self::InPlace(new) => {
                let mut new = new.lock().unwrap_or_else(PoisonError::into_inner);
                new.push(Box::pin(request));
            }
            Self::Spawned => drop(tokio::spawn(request)),
        }
    }
}

/// A connection with its requests. It ends when the connection does; what is not answered then has nobody to go to.
pub(crate) struct WithRequests<C> {
    pub(crate) connection: Pin<Box<C>>,
    new: Requests,
    running: FuturesUnordered<Request>,
}

impl<C> WithRequests<C> {
    /// `requests`: those that the connection was made with.
    pub(crate) fn new(connection: C, requests: Requests) -> Self {
        Self {
            connection: Box::pin(connection),
            new: requests,
            running: FuturesUnordered::new(),
        }
    }
}

impl<C: Future> Future for WithRequests<C> {
    type Output = C::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let ended = this.connection.as_mut().poll(context);
        this.running.extend(this.new.take());
        // Each that is ready is taken out; the others wake this task.
        while let Poll::Ready(Some(())) = this.running.poll_next_unpin(context) {}
        ended
    }
}
