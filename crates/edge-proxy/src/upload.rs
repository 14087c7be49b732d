//! A request on its way to a backend: its head, as backends get it, and its body. Until a backend got a part of the body, it can go to
//! another backend. Backends of HTTP/2 say of a request whether they did nothing of it: what such a one got of a body is kept, up to a bound, and another may get it.

use std::io;
use std::task::{Context, Poll};

use http1::BadChunk;
use prometheus_client::metrics::counter::Counter;

use crate::body::Body;
use crate::client::{Client, Stream, poll_write};
use crate::http2::BackendStream;
use crate::limits::{BUFFER_BYTES, MAX_KEPT_BODY_BYTES};
use crate::pace::Pace;

/// What of a request is still to be sent.
#[derive(Debug)]
pub(crate) struct Upload {
    body: Body,
    /// Bytes at the begin of the client's buffer that were checked, and are to be sent.
    checked: usize,
    is_begun: bool,
    /// What a backend got of the body, and another may get again; `None`: nothing is kept.
    kept: Option<Vec<u8>>,
    /// How much of that the present backend got.
    again: usize,
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
    /// `keeps`: whether a backend may do nothing of a request of which it got the body.
    pub(crate) fn new(body: Body, received: Counter, keeps: bool) -> Self {
        Self {
            body,
            checked: 0,
            is_begun: false,
            kept: keeps.then(Vec::new),
            again: 0,
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
        self.again = 0;
    }

    /// A backend answers: no other gets the request.
    pub(crate) fn settle(&mut self) {
        self.kept = self.kept.take().filter(|kept| self.again < kept.len());
    }

    /// Whether a backend may have got a part of the body that is not kept: then no other can get the whole.
    pub(crate) fn is_begun(&self) -> bool {
        self.is_begun
    }

    /// Whether the client has sent a part of the body.
    pub(crate) fn has_come(&self) -> bool {
        self.is_begun || self.kept.as_ref().is_some_and(|kept| !kept.is_empty())
    }

    /// What the present backend is to get again.
    fn to_repeat(&self) -> &[u8] {
        self.kept.as_ref().map_or(&[], |kept| &kept[self.again..])
    }

    /// Whether all of the body was sent to a backend.
    pub(crate) fn is_done(&self) -> bool {
        self.checked == 0 && self.body.is_done() && self.to_repeat().is_empty()
    }

    /// The backend got so much, behind the head.
    fn sent<S>(&mut self, client: &mut Client<S>, bytes: usize) {
        if bytes == 0 {
            return;
        }
        if !self.to_repeat().is_empty() {
            self.again += bytes;
            return;
        }
        let has_room = |kept: &Vec<u8>| kept.len() + bytes <= MAX_KEPT_BODY_BYTES;
        self.kept = self.kept.take().filter(has_room);
        match &mut self.kept {
            Some(kept) => {
                kept.extend_from_slice(&client.buffer.data()[..bytes]);
                self.again = kept.len();
            }
            None => self.is_begun = true,
        }
        self.checked -= bytes;
        client.buffer.consume(bytes);
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
            if head.is_empty() && self.checked == 0 && self.to_repeat().is_empty() {
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
            let body = match self.to_repeat() {
                [] => &client.buffer.data()[..self.checked],
                kept => kept,
            };
            match poll_write(backend, context, head, body) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(written)) => {
                    let of_head = written.min(head.len());
                    *head = &head[of_head..];
                    self.sent(client, written - of_head);
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
