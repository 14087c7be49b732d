//! Bodies on their way through: the client's, which can be taken back while nothing of it was
//! read, and the backend's, which gives its connection back when it ended.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::backend::Lease;

/// What the edge answers with: a backend's body, or a text of its own.
pub(crate) type AnswerBody = Either<BackendBody, Full<Bytes>>;

/// The client's body, kept here while one attempt after the other reads it.
#[derive(Debug)]
pub(crate) struct Upload {
    body: Mutex<Incoming>,
    /// Which attempt may read; an earlier one, dying slowly, may not.
    attempt: AtomicU64,
    /// Whether any attempt has read a frame: then no other backend can be given the whole body.
    touched: AtomicBool,
    progress: Mutex<Progress>,
}

#[derive(Debug, Clone, Copy)]
struct Progress {
    at: Instant,
    waits_for_client: bool,
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    /// The client went away or sent what is no body.
    #[error("the client's request body broke off")]
    Client(#[source] hyper::Error),
    /// Another backend is being tried.
    #[error("the request was given to another backend")]
    TakenBack,
}

impl Upload {
    pub(crate) fn new(body: Incoming) -> Arc<Self> {
        Arc::new(Self {
            body: Mutex::new(body),
            attempt: AtomicU64::new(0),
            touched: AtomicBool::new(false),
            progress: Mutex::new(Progress {
                at: Instant::now(),
                waits_for_client: false,
            }),
        })
    }

    /// The body for one more attempt; the ones before can read no more.
    pub(crate) fn begin(self: &Arc<Self>) -> ClientBody {
        ClientBody {
            attempt: self.attempt.fetch_add(1, Ordering::SeqCst) + 1,
            upload: Arc::clone(self),
        }
    }

    /// Whether a backend may already have had a part of the body.
    pub(crate) fn touched(&self) -> bool {
        self.touched.load(Ordering::SeqCst)
    }

    /// When the body last moved, and whether it is the client that is waited for.
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
            return Poll::Ready(Some(Err(UploadError::TakenBack)));
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
                if frame.is_some() {
                    upload.touched.store(true, Ordering::SeqCst);
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

/// A backend's body. When it was read to its end, its connection may be used again.
#[derive(Debug)]
pub(crate) struct BackendBody {
    body: Incoming,
    lease: Option<Lease>,
}

impl BackendBody {
    pub(crate) fn new(body: Incoming, lease: Option<Lease>) -> Self {
        Self { body, lease }
    }

    fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

impl Body for BackendBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(None) = polled {
            self.give_back();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for BackendBody {
    fn drop(&mut self) {
        // A body of known length is not polled again once its last byte was seen.
        if self.body.is_end_stream() {
            self.give_back();
        }
    }
}
