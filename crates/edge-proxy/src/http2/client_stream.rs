//! A client's stream, as a connection of HTTP/1.1 with one request: [`crate::connection`] reads the request's bytes from it, and writes those of the answer.
//!
//! ```text
//!   written: head --> interim answers go at once --> body, of its length or in chunks --> done
//!                 \-> 101 of a WebSocket --> bytes as they are, until either end
//!   read:    head --> body --> (nothing, until the answer is written or the client takes the stream back) --> end
//! ```
//!
//! A stream that ends before its answer does is reset: what is cut off is never taken for whole. One whose answer ends before its request is read for a moment
//! more, as a connection is: curl 7.88 drops an answer whose stream is reset at once. Then it is reset without an error, by which the client learns that the
//! rest is not wanted (RFC 9113, 8.1).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, StatusCode};
use http1::{Framing, HeadEnd, ResponseHead, find_response_end};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::incoming::{Incoming, broken};
use super::message;
use super::meter::Meter;
use super::outgoing::Outgoing;
use crate::client::Stream;
use crate::limits::MAX_HEADERS;

/// Headers that the edge adds to an app's answer, at most.
const MAX_OWN_HEADERS: usize = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct ClientStream {
    request: Vec<u8>,
    /// Bytes of `request` that were read.
    given: usize,
    incoming: Incoming,
    is_head: bool,
    is_websocket: bool,
    respond: SendResponse<Bytes>,
    answer: Answer,
    /// What was written of a head.
    head: Vec<u8>,
    /// Lines of `head` before this place were looked at.
    scanned: usize,
}

#[derive(Debug)]
enum Answer {
    /// Its head is waited for.
    Awaited,
    Body(Outgoing),
    Tunnel(Outgoing),
    Done,
}

impl ClientStream {
    /// # Errors
    /// The request is malformed, and its stream is to be reset for this reason.
    pub(super) fn new(
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        meter: Arc<Meter>,
    ) -> Result<Self, Reason> {
        let (parts, frames) = request.into_parts();
        let asked = message::write_request(&parts, frames.is_end_stream());
        let asked = asked.inspect_err(|reason| respond.send_reset(*reason))?;
        Ok(Self {
            request: asked.head,
            given: 0,
            incoming: Incoming::new(frames, Some(meter), asked.in_chunks),
            is_head: asked.is_head,
            is_websocket: asked.is_websocket,
            respond,
            answer: Answer::Awaited,
            head: Vec::new(),
            scanned: 0,
        })
    }

    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.answer {
            _ if bytes.is_empty() => Poll::Ready(Ok(0)),
            Answer::Awaited => Poll::Ready(self.write_head(bytes)),
            Answer::Body(body) => {
                let polled = body.poll_write(context, bytes);
                if body.is_ended() {
                    self.answer = Answer::Done;
                }
                polled
            }
            Answer::Tunnel(tunnel) => tunnel.poll_write(context, bytes),
            Answer::Done => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Takes what is of a head.
    fn write_head(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let before = self.head.len();
        // Where a body follows in the same bytes, it is not copied for that.
        let end = if before == 0 {
            find_response_end(bytes, 0)
        } else {
            self.head.extend_from_slice(bytes);
            find_response_end(&self.head, self.scanned)
        };
        let HeadEnd::At(end) = end else {
            if before == 0 {
                self.head.extend_from_slice(bytes);
            }
            if let HeadEnd::NotYet(line) = end {
                self.scanned = line;
            }
            return Ok(bytes.len());
        };
        if before == 0 {
            self.head.extend_from_slice(&bytes[..end]);
        }
        self.head.truncate(end);
        self.answer()?;
        self.head.clear();
        self.scanned = 0;
        Ok(end - before)
    }

    /// Sends a whole head.
    fn answer(&mut self) -> io::Result<()> {
        let mut head = ResponseHead::default();
        let read = head.read(&mut self.head, MAX_HEADERS + MAX_OWN_HEADERS);
        read.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let status = StatusCode::from_u16(head.status)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
            let interim = message::response(&head, &self.head, status);
            return self.respond.send_informational(interim).map_err(broken);
        }
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let opened = message::response(&head, &self.head, StatusCode::OK);
            let frames = self.respond.send_response(opened, false).map_err(broken)?;
            let tunnel = Outgoing::of_response(frames, Framing::UntilClose);
            self.answer = Answer::Tunnel(tunnel);
            return Ok(());
        }
        let framing = head.framing(self.is_head);
        let is_whole = framing == Framing::Empty;
        let answer = message::response(&head, &self.head, status);
        let frames = self.respond.send_response(answer, is_whole);
        let frames = frames.map_err(broken)?;
        self.answer = if is_whole {
            Answer::Done
        } else {
            Answer::Body(Outgoing::of_response(frames, framing))
        };
        Ok(())
    }

    /// Ready: the client took the stream back, or its connection broke.
    fn poll_reset(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let polled = match &mut self.answer {
            Answer::Awaited => self.respond.poll_reset(context),
            Answer::Body(frames) | Answer::Tunnel(frames) => frames.frames().poll_reset(context),
            Answer::Done => return Poll::Pending,
        };
        polled.map(|reset| match reset {
            Ok(reason) => io::Error::new(io::ErrorKind::ConnectionReset, h2::Error::from(reason)),
            Err(error) => broken(error),
        })
    }
}

impl Stream for ClientStream {
    /// One whose answer is not whole is reset whenever it is dropped.
    fn reset_at_close(&self, _: bool) {}

    fn opens_by_success(&self) -> bool {
        self.is_websocket
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let head = &this.request[this.given..];
        if !head.is_empty() {
            let part = head.len().min(out.remaining());
            out.put_slice(&head[..part]);
            this.given += part;
            return Poll::Ready(Ok(()));
        }
        if !this.incoming.is_ended() {
            let before = out.filled().len();
            match this.incoming.poll_read(context, out) {
                Poll::Ready(Ok(())) if out.filled().len() == before => {}
                polled => return polled,
            }
        }
        if matches!(this.answer, Answer::Tunnel(_) | Answer::Done) {
            return Poll::Ready(Ok(()));
        }
        this.poll_reset(context).map(Err)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Self::poll_write(self.get_mut(), context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut written = 0;
        for piece in pieces {
            let mut rest = &piece[..];
            while !rest.is_empty() {
                match Self::poll_write(this, context, rest) {
                    Poll::Ready(Ok(part)) => {
                        written += part;
                        rest = &rest[part..];
                    }
                    // What was taken counts first; this is found again.
                    _ if written > 0 => return Poll::Ready(Ok(written)),
                    waits_or_failed => return waits_or_failed,
                }
            }
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What waits is written by the task of the connection.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &mut this.answer {
            Answer::Body(frames) | Answer::Tunnel(frames) => Poll::Ready(frames.end()),
            Answer::Awaited | Answer::Done => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        match &mut self.answer {
            Answer::Awaited => self.respond.send_reset(Reason::INTERNAL_ERROR),
            Answer::Body(frames) if !frames.is_ended() => {
                frames.frames().send_reset(Reason::INTERNAL_ERROR);
            }
            Answer::Tunnel(frames) if !frames.is_ended() || !self.incoming.is_ended() => {
                frames.frames().send_reset(Reason::CANCEL);
            }
            // Where the client still sends, h2 resets it without an error.
            Answer::Body(_) | Answer::Tunnel(_) | Answer::Done => {}
        }
    }
}
