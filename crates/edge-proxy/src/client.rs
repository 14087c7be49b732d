//! A client's connection: what it sent, and what it is sent.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::buffer::Buffer;
use crate::limits::BUFFER_BYTES;
use crate::socket;

/// A stream of bytes both ways: plain TCP, TLS, or what has the form of one.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {
    /// Whether it is closed by a reset from now on, as what is not whole. One that tells the end of each message by itself has no use for that.
    fn reset_at_close(&self, resets: bool);

    /// Whether its one request is for a WebSocket, and any 2xx says that it is open (RFC 8441, 5).
    fn opens_by_success(&self) -> bool {
        false
    }
}

impl Stream for TcpStream {
    fn reset_at_close(&self, resets: bool) {
        socket::reset_at_close(self, resets);
    }
}

/// Boxed: it is larger than all else of a connection, and moves on its way.
impl Stream for Box<TlsStream<TcpStream>> {
    fn reset_at_close(&self, resets: bool) {
        socket::reset_at_close(self.get_ref().0, resets);
    }
}

#[cfg(test)]
impl Stream for tokio::io::DuplexStream {
    fn reset_at_close(&self, _: bool) {}
}

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
