//! A body that comes in DATA frames, given as the bytes of one of HTTP/1.1. What nobody has read takes the window of the one who sends it.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::{Reason, RecvStream};
use tokio::io::ReadBuf;

use super::message;
use super::meter::Meter;

/// A body that is received.
#[derive(Debug)]
pub(super) struct Incoming {
    frames: RecvStream,
    /// Of a client's connection: it counts the frames that wait.
    meter: Option<Arc<Meter>>,
    in_chunks: bool,
    stage: Stage,
    /// Whether any data came: then the end of a chunk is to be given.
    has_begun: bool,
    /// Sizes, ends and trailers that are to be given first.
    framing: Vec<u8>,
    given: usize,
    data: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// DATA frames are waited for.
    Data,
    Trailers,
    Ended,
}

impl Incoming {
    pub(super) fn new(frames: RecvStream, meter: Option<Arc<Meter>>, in_chunks: bool) -> Self {
        Self {
            frames,
            meter,
            in_chunks,
            stage: Stage::Data,
            has_begun: false,
            framing: Vec::new(),
            given: 0,
            data: Bytes::new(),
        }
    }

    /// Whether all of it was given.
    pub(super) fn is_ended(&self) -> bool {
        self.stage == Stage::Ended && self.data.is_empty() && self.given == self.framing.len()
    }

    /// Whether its sender has sent all of it.
    pub(super) fn has_come(&self) -> bool {
        self.stage == Stage::Ended || self.frames.is_end_stream()
    }

    /// Gives what has come, as much as there is room for. Nothing is given: it has ended.
    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        loop {
            self.give(out);
            if out.remaining() == 0 || self.is_ended() {
                return Poll::Ready(Ok(()));
            }
            match self.poll_next(context) {
                Poll::Ready(Ok(())) => {}
                // What was given counts first; this is found again.
                _ if out.filled().len() > before => return Poll::Ready(Ok(())),
                waits_or_failed => return waits_or_failed,
            }
        }
    }

    fn give(&mut self, out: &mut ReadBuf<'_>) {
        let framing = &self.framing[self.given..];
        let part = framing.len().min(out.remaining());
        out.put_slice(&framing[..part]);
        self.given += part;
        let part = self.data.len().min(out.remaining());
        if part > 0 {
            out.put_slice(&self.data[..part]);
            self.data.advance(part);
            // It fails where the stream is gone, and then nobody sends.
            let _ = self.frames.flow_control().release_capacity(part);
        }
    }

    /// Ready: there is more to be given, or it has ended.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.stage {
            Stage::Data => match ready!(self.frames.poll_data(context)) {
                Some(Ok(data)) => {
                    if let Some(meter) = &self.meter {
                        meter.frame_passes();
                    }
                    if self.in_chunks && !data.is_empty() {
                        self.begin_framing();
                        message::write_size(&mut self.framing, data.len());
                    }
                    self.data = data;
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None if self.in_chunks => self.stage = Stage::Trailers,
                None => self.stage = Stage::Ended,
            },
            Stage::Trailers => {
                let trailers = ready!(self.frames.poll_trailers(context)).map_err(broken)?;
                self.begin_framing();
                message::write_trailers(&mut self.framing, trailers.as_ref());
                self.stage = Stage::Ended;
            }
            Stage::Ended => {}
        }
        Poll::Ready(Ok(()))
    }

    /// The end of the chunk before, where there is one.
    fn begin_framing(&mut self) {
        self.framing.clear();
        self.given = 0;
        if self.has_begun {
            self.framing.extend_from_slice(b"\r\n");
        }
        self.has_begun = true;
    }
}

/// An error of a stream as one of a connection. Where nothing of the request was looked at (RFC 9113, 8.7), it is one that was refused, or, where the
/// connection takes no more requests (6.8), one that was never made.
pub(super) fn broken(error: h2::Error) -> io::Error {
    let kind = if !error.is_remote() {
        io::ErrorKind::ConnectionReset
    } else if error.is_go_away() {
        io::ErrorKind::NotConnected
    } else if error.reason() == Some(Reason::REFUSED_STREAM) {
        io::ErrorKind::ConnectionRefused
    } else {
        io::ErrorKind::ConnectionReset
    };
    io::Error::new(kind, error)
}
