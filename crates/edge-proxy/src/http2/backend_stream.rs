//! A connection to an instance, as the rest of the edge has it: bytes of HTTP/1.1. One to an instance that speaks HTTP/2 is a stream of a connection that all
//! clients share, and is for one request.

// ring: a stream is of a connection that is shared, which makes streams.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http1::{Framing, HeadEnd, RequestHead, RequestLimits, find_request_end};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::incoming::{Incoming, broken};
use super::message;
use super::outgoing::Outgoing;
use crate::limits::{MAX_HEADERS, MAX_TARGET_BYTES};
use crate::socket;

/// What is read of a head that the edge wrote itself.
const LIMITS: RequestLimits = RequestLimits {
    // Some that it adds.
    fields: MAX_HEADERS + 16,
    target_bytes: MAX_TARGET_BYTES,
};

/// The requests of a connection.
#[derive(Debug)]
pub(super) struct Uses {
    /// Those under way.
    pub(super) now: AtomicUsize,
    /// Those that were taken back before their answer had ended.
    pub(super) taken_back: AtomicU32,
    /// Told of each that ended.
    room: Arc<Notify>,
}

impl Uses {
    pub(super) fn new(room: Arc<Notify>) -> Self {
        Self {
            now: AtomicUsize::new(0),
            taken_back: AtomicU32::new(0),
            room,
        }
    }
}

/// A request on a connection, until it is dropped.
#[derive(Debug)]
pub(super) struct InUse(Arc<Uses>);

impl InUse {
    pub(super) fn of(uses: &Arc<Uses>) -> Self {
        uses.now.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(uses))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
        self.0.room.notify_one();
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) enum BackendStream {
    /// To an instance that speaks HTTP/1.1.
    Tcp(TcpStream),
    /// To one that speaks HTTP/2.
    Http2(Box<RequestStream>),
}

impl BackendStream {
    /// Whether the backend has not closed it, and has sent nothing that was not asked for, as far as anybody knows. A stream is for one request.
    pub(crate) fn is_quiet(&self) -> bool {
        match self {
            Self::Tcp(stream) => {
                let unread = stream.try_read(&mut [0]);
                matches!(unread, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
            }
            Self::Http2(_) => false,
        }
    }

    /// Whether it is closed by a reset from now on, as what is not whole. A stream is, wherever its request is not.
    pub(crate) fn reset_at_close(&self, resets: bool) {
        if let Self::Tcp(stream) = self {
            socket::reset_at_close(stream, resets);
        }
    }
}

/// A request to an instance that speaks HTTP/2.
#[derive(Debug)]
pub(crate) struct RequestStream {
    connection: SendRequest<Bytes>,
    in_use: InUse,
    /// What was written of the request's head.
    head: Vec<u8>,
    scanned: usize,
    sent: Option<Sent>,
    /// Why it cannot be sent: whoever reads is told, too.
    unsent: Option<io::ErrorKind>,
}

#[derive(Debug)]
struct Sent {
    body: Outgoing,
    is_head: bool,
    response: ResponseFuture,
    /// The head of an answer, that is read first, and how much of it was.
    head: Vec<u8>,
    given: usize,
    incoming: Option<Incoming>,
}

impl RequestStream {
    pub(super) fn new(connection: SendRequest<Bytes>, in_use: InUse) -> Self {
        Self {
            connection,
            in_use,
            head: Vec::new(),
            scanned: 0,
            sent: None,
            unsent: None,
        }
    }

    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        match &mut self.sent {
            Some(sent) => sent.body.poll_write(context, bytes),
            None => {
                // Where it cannot be sent, nothing of it was: another connection may have it.
                let never_sent = |error| io::Error::new(io::ErrorKind::NotConnected, error);
                let is_ready = ready!(self.connection.poll_ready(context)).map_err(never_sent);
                let written = is_ready.and_then(|()| self.write_head(bytes));
                if let Err(error) = &written {
                    self.unsent = Some(error.kind());
                }
                Poll::Ready(written)
            }
        }
    }

    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match (&mut self.sent, self.unsent) {
            (Some(sent), _) => sent.poll_read(context, out),
            (None, Some(kind)) => Poll::Ready(Err(kind.into())),
            // Whoever reads writes first, and is woken for that.
            (None, None) => Poll::Pending,
        }
    }

    /// Takes what is of the head, and sends it when it is whole.
    fn write_head(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let before = self.head.len();
        self.head.extend_from_slice(bytes);
        match find_request_end(&self.head, self.scanned) {
            HeadEnd::At(end) => {
                self.head.truncate(end);
                self.send()?;
                Ok(end - before)
            }
            HeadEnd::NotYet(line) => {
                self.scanned = line;
                Ok(bytes.len())
            }
            HeadEnd::BareLineFeed => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn send(&mut self) -> io::Result<()> {
        let invalid = |error: Box<dyn std::error::Error + Send + Sync>| {
            io::Error::new(io::ErrorKind::InvalidInput, error)
        };
        let mut head = RequestHead::default();
        let read = head.read(&self.head, LIMITS);
        read.map_err(|error| invalid(error.into()))?;
        let request = message::request(&head, &self.head);
        let request = request.map_err(|error| invalid(error.into()))?;
        let is_head = request.method() == http::Method::HEAD;
        let is_whole = head.framing == Framing::Empty;
        let sent = self.connection.send_request(request, is_whole);
        let (response, frames) = sent.map_err(broken)?;
        self.sent = Some(Sent {
            body: Outgoing::of_request(frames, head.framing),
            is_head,
            response,
            head: Vec::new(),
            given: 0,
            incoming: None,
        });
        self.head = Vec::new();
        Ok(())
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        // h2 resets it then.
        let is_cut = self.sent.as_ref().is_some_and(|sent| !sent.is_ended());
        if is_cut {
            self.in_use.0.taken_back.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Sent {
    /// Whether all of the answer has come.
    fn is_ended(&self) -> bool {
        self.incoming.as_ref().is_some_and(Incoming::has_come)
    }

    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.given == self.head.len() && self.incoming.is_none() {
            ready!(self.poll_answer(context))?;
        }
        let head = &self.head[self.given..];
        if !head.is_empty() {
            let part = head.len().min(out.remaining());
            out.put_slice(&head[..part]);
            self.given += part;
            return Poll::Ready(Ok(()));
        }
        match &mut self.incoming {
            Some(incoming) if !incoming.is_ended() => incoming.poll_read(context, out),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Ready: the head of an interim answer, or of the answer, is there.
    fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.head.clear();
        self.given = 0;
        if let Poll::Ready(Some(interim)) = self.response.poll_informational(context) {
            let (parts, ()) = interim.map_err(broken)?.into_parts();
            message::write_response(&mut self.head, &parts, self.is_head, true);
            return Poll::Ready(Ok(()));
        }
        let answer = ready!(Pin::new(&mut self.response).poll(context)).map_err(broken)?;
        let (parts, frames) = answer.into_parts();
        let is_whole = frames.is_end_stream();
        let framing = message::write_response(&mut self.head, &parts, self.is_head, is_whole);
        self.incoming = Some(Incoming::new(frames, None, framing == Framing::Chunked));
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for BackendStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, out),
            Self::Http2(stream) => stream.poll_read(context, out),
        }
    }
}

impl AsyncWrite for BackendStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Http2(stream) => stream.poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
            Self::Http2(stream) => {
                let first = pieces.iter().find(|piece| !piece.is_empty());
                stream.poll_write(context, first.map_or(&[], |piece| piece))
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Http2(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Http2(_) => Poll::Ready(Ok(())),
        }
    }
}
