//! The body of a client's request. Until a backend has read a part of it, it can go to another backend.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use prometheus_client::metrics::counter::Counter;

/// The client's body. Attempts to reach a backend read it, one after another.
#[derive(Debug)]
pub(crate) struct Upload {
    body: Mutex<Incoming>,
    /// The attempt that may read. Earlier attempts get [`UploadError::Superseded`].
    attempt: AtomicU64,
    /// Whether an attempt has read a frame: then no other backend can get the whole body.
    is_started: AtomicBool,
    progress: Mutex<Progress>,
    /// Bytes that came from clients.
    received: Counter,
}

#[derive(Debug, Clone, Copy)]
struct Progress {
    at: Instant,
    waits_for_client: bool,
}

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    /// The client disconnected, or its body is malformed.
    #[error("the client's request body broke off")]
    Client(#[source] hyper::Error),
    /// Another attempt reads the body now.
    #[error("the request was sent to another backend")]
    Superseded,
}

impl Upload {
    pub(crate) fn new(body: Incoming, received: Counter) -> Arc<Self> {
        Arc::new(Self {
            body: Mutex::new(body),
            attempt: AtomicU64::new(0),
            is_started: AtomicBool::new(false),
            progress: Mutex::new(Progress {
                at: Instant::now(),
                waits_for_client: false,
            }),
            received,
        })
    }

    /// The body for a new attempt. Earlier attempts can no longer read.
    pub(crate) fn begin(self: &Arc<Self>) -> ClientBody {
        ClientBody {
            attempt: self.attempt.fetch_add(1, Ordering::SeqCst) + 1,
            upload: Arc::clone(self),
        }
    }

    /// Whether a backend may have got a part of the body.
    pub(crate) fn is_started(&self) -> bool {
        self.is_started.load(Ordering::SeqCst)
    }

    /// When bytes last moved, and whether the client is to send the next.
    pub(crate) fn progress(&self) -> (Instant, bool) {
        let progress = *lock(&self.progress);
        (progress.at, progress.waits_for_client)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The client's body, as one attempt reads it.
#[derive(Debug)]
pub(crate) struct ClientBody {
    upload: Arc<Upload>,
    attempt: u64,
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let upload = &self.upload;
        let mut body = lock(&upload.body);
        if upload.attempt.load(Ordering::SeqCst) != self.attempt {
            return Poll::Ready(Some(Err(UploadError::Superseded)));
        }
        let polled = Pin::new(&mut *body).poll_frame(context);
        let mut progress = lock(&upload.progress);
        match polled {
            Poll::Pending => {
                progress.waits_for_client = true;
                Poll::Pending
            }
            Poll::Ready(frame) => {
                *progress = Progress {
                    at: Instant::now(),
                    waits_for_client: false,
                };
                if let Some(frame) = &frame {
                    upload.is_started.store(true, Ordering::SeqCst);
                    let data = frame.as_ref().ok().and_then(|frame| frame.data_ref());
                    upload.received.inc_by(data.map_or(0, Bytes::len) as u64);
                }
                Poll::Ready(frame.map(|frame| frame.map_err(UploadError::Client)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.upload.body).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.upload.body).size_hint()
    }
}
