//! The body of a response: a backend's, whose connection goes back to the idle ones at its end, or a text of the edge.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use prometheus_client::metrics::counter::Counter;

use crate::backend::Lease;

/// The body that the edge answers with: a backend's, or a text of its own.
pub(crate) type AnswerBody = Either<BackendBody, Full<Bytes>>;

/// A backend's body. At its end, the connection serves another request.
#[derive(Debug)]
pub(crate) struct BackendBody {
    body: Incoming,
    lease: Option<Lease>,
    /// Bytes that go to clients.
    sent: Counter,
}

impl BackendBody {
    pub(crate) fn new(body: Incoming, lease: Option<Lease>, sent: Counter) -> Self {
        Self { body, lease, sent }
    }

    fn release(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.release();
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
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                self.sent.inc_by(bytes as u64);
            }
            Poll::Ready(None) => self.release(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
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
            self.release();
        }
    }
}
