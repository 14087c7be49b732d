//! A request on its way to a backend: its head, as backends get it, and its body. Until a backend got a part of the body, it can go to
//! another backend.

use std::io;
use std::task::{Context, Poll};

use http1::BadChunk;
use prometheus_client::metrics::counter::Counter;

use crate::body::Body;
use crate::client::{Client, Stream, poll_write};
use crate::http2::BackendStream;
use crate::limits::BUFFER_BYTES;
use crate::pace::Pace;

/// What of a request is still to be sent.
#[derive(Debug)]
pub(crate) struct Upload {
    body: Body,
    /// Bytes at the begin of the client's buffer that were checked, and are to be sent.
    checked: usize,
    is_begun: bool,
    /// Whether the backend takes no more.
    is_abandoned: bool,
    /// Whether the client is to send the next.
    pub(crate) waits_for_client: bool,
    pub(crate) pace: Pace,
    /// Bytes of data that came.
    pub(crate) bytes: u64,
    received: Counter,
}

/// Why a body ended early. Each is the client's doing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("the client's connection broke")]
    Broken(#[source] io::Error),
    #[error("the client closed its connection within the request's body")]
    Ended,
    #[error("the request's body is malformed: {0}")]
    Malformed(#[from] BadChunk),
}

impl Upload {
    pub(crate) fn new(body: Body, received: Counter) -> Self {
        Self {
            body,
            checked: 0,
            is_begun: false,
            is_abandoned: false,
            waits_for_client: false,
            pace: Pace::default(),
            bytes: 0,
            received,
        }
    }

    /// Before another backend is tried, which is only where [`Self::is_begun`] is false.
    pub(crate) fn retry(&mut self) {
        self.is_abandoned = false;
    }

    /// Whether a backend may have got a part of the body: then no other can get the whole.
    pub(crate) fn is_begun(&self) -> bool {
        self.is_begun
    }

    /// Whether all of the body was sent to a backend.
    pub(crate) fn is_done(&self) -> bool {
        self.checked == 0 && self.body.is_done()
    }

    /// Sends what there is of the head and the body. Ready: there is no more to send, or the backend takes no more, which its answer may explain.
    pub(crate) fn poll<S: Stream>(
        &mut self,
        context: &mut Context<'_>,
        client: &mut Client<S>,
        backend: &mut BackendStream,
        head: &mut &[u8],
        moved: &mut bool,
    ) -> Poll<Result<(), UploadError>> {
        if self.is_abandoned {
            return Poll::Ready(Ok(()));
        }
        loop {
            if self.checked == 0 && !self.body.is_done() {
                self.check(client)?;
            }
            if head.is_empty() && self.checked == 0 {
                if self.body.is_done() {
                    self.waits_for_client = false;
                    return Poll::Ready(Ok(()));
                }
                match client.poll_read(context, BUFFER_BYTES) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(UploadError::Ended)),
                    Poll::Ready(Ok(_)) => *moved = true,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(UploadError::Broken(error))),
                    Poll::Pending => {
                        self.waits_for_client = true;
                        return Poll::Pending;
                    }
                }
                continue;
            }
            self.waits_for_client = false;
            let body = &client.buffer.data()[..self.checked];
            match poll_write(backend, context, head, body) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(written)) => {
                    let of_head = written.min(head.len());
                    *head = &head[of_head..];
                    let of_body = written - of_head;
                    if of_body > 0 {
                        self.is_begun = true;
                        self.checked -= of_body;
                        client.buffer.consume(of_body);
                    }
                    *moved = true;
                }
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "a backend takes no more of a request");
                    self.is_abandoned = true;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    fn check<S>(&mut self, client: &Client<S>) -> Result<(), BadChunk> {
        let part = self.body.take(client.buffer.data())?;
        self.checked = part.bytes;
        self.bytes += part.data as u64;
        self.received.inc_by(part.data as u64);
        Ok(())
    }

    /// Reads the rest of a body that no backend wants, up to `limit` bytes of data. Ready with true: the next request follows.
    pub(crate) fn poll_drain<S: Stream>(
        &mut self,
        context: &mut Context<'_>,
        client: &mut Client<S>,
        limit: u64,
    ) -> Poll<bool> {
        let end = self.bytes + limit;
        loop {
            client.buffer.consume(self.checked);
            self.checked = 0;
            if self.body.is_done() {
                return Poll::Ready(true);
            }
            if self.bytes > end || self.check(client).is_err() {
                return Poll::Ready(false);
            }
            if self.checked > 0 {
                continue;
            }
            match client.poll_read(context, BUFFER_BYTES) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(false),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
