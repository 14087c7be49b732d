//! A client's connection: what it sent, and what it is sent.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::buffer::Buffer;
use crate::limits::BUFFER_BYTES;

/// Any stream of bytes both ways: plain TCP, or TLS.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

#[derive(Debug)]
pub(crate) struct Client<S> {
    pub(crate) stream: S,
    pub(crate) buffer: Buffer,
    /// Whether it has closed its sending side. It may still wait for an answer.
    pub(crate) has_ended: bool,
}

impl<S: Stream> Client<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: Buffer::default(),
            has_ended: false,
        }
    }

    /// Reads what it sends, behind what there is, which is `limit` bytes at most. `Ok(0)`: it has ended.
    pub(crate) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        if self.has_ended {
            return Poll::Ready(Ok(0));
        }
        let polled = self.buffer.poll_read(&mut self.stream, context, limit);
        self.has_ended = matches!(polled, Poll::Ready(Ok(0)));
        polled
    }

    /// While nothing is expected of it: ready when its connection broke. What it sends meanwhile, its next requests, is kept up to a buffer full.
    pub(crate) fn poll_broken(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        while !self.has_ended && self.buffer.data().len() < BUFFER_BYTES {
            match self.poll_read(context, BUFFER_BYTES) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }
}

/// Writes what there is of two pieces, with one call where the stream can.
pub(crate) fn poll_write<S: AsyncWrite + Unpin>(
    stream: &mut S,
    context: &mut Context<'_>,
    first: &[u8],
    second: &[u8],
) -> Poll<io::Result<usize>> {
    let stream = Pin::new(stream);
    let polled = match (first, second) {
        ([], piece) | (piece, []) => stream.poll_write(context, piece),
        _ => {
            let pieces = [IoSlice::new(first), IoSlice::new(second)];
            stream.poll_write_vectored(context, &pieces)
        }
    };
    match polled {
        Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        polled => polled,
    }
}
