//! A body that is written as the bytes of one of HTTP/1.1, sent in DATA frames. No more is taken than the other side has a window for.

use std::io;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use h2::SendStream;
use http1::{Chunks, Framing, Step};

use super::incoming::broken;
use super::message;

/// A body that is sent.
#[derive(Debug)]
pub(super) struct Outgoing {
    frames: SendStream<Bytes>,
    body: Body,
    /// Bytes of data that come next, and were followed already.
    left: usize,
    is_ended: bool,
}

#[derive(Debug)]
enum Body {
    Length(u64),
    Chunks(Chunks),
    /// Until whoever writes it says so.
    UntilEnd,
}

impl Outgoing {
    /// Of a response.
    pub(super) fn of_response(frames: SendStream<Bytes>, framing: Framing) -> Self {
        Self::new(frames, framing, Chunks::of_response())
    }

    /// Of a request.
    pub(super) fn of_request(frames: SendStream<Bytes>, framing: Framing) -> Self {
        Self::new(frames, framing, Chunks::of_request())
    }

    fn new(frames: SendStream<Bytes>, framing: Framing, chunks: Chunks) -> Self {
        Self {
            frames,
            body: match framing {
                Framing::Empty => Body::Length(0),
                Framing::Length(length) => Body::Length(length),
                Framing::Chunked => Body::Chunks(chunks),
                Framing::UntilClose => Body::UntilEnd,
            },
            left: 0,
            is_ended: false,
        }
    }

    /// Whether the other side was told that this is all.
    pub(super) fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// The stream, to be reset or asked whether it was.
    pub(super) fn frames(&mut self) -> &mut SendStream<Bytes> {
        &mut self.frames
    }

    /// Sends of these bytes, of which there is one at least, what there is a window for.
    pub(super) fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let (mut at, mut data, mut trailers) = (0, BytesMut::new(), None);
        let mut room = None;
        let is_over = loop {
            if self.left == 0 {
                match self.follow(&bytes[at..])? {
                    Step::Data(length) => self.left = length,
                    Step::Framing(length) => {
                        let framing = &bytes[at..at + length];
                        at += length;
                        if self.is_followed() {
                            trailers = message::trailers(framing);
                        }
                        continue;
                    }
                    Step::More => break false,
                    Step::Done => break true,
                }
            }
            let left = match room {
                Some(left) => left,
                None => self.poll_room(context, bytes.len() - at)?,
            };
            if left == 0 {
                break false;
            }
            let part = self.left.min(left);
            data.extend_from_slice(&bytes[at..at + part]);
            at += part;
            self.left -= part;
            room = Some(left - part);
        };
        let ends_with_data = is_over && trailers.is_none();
        if ends_with_data || !data.is_empty() {
            let sent = self.frames.send_data(data.freeze(), ends_with_data);
            sent.map_err(broken)?;
        }
        if let Some(trailers) = trailers {
            self.frames.send_trailers(trailers).map_err(broken)?;
        }
        self.is_ended = is_over;
        if !is_over && room.is_some() && matches!(self.body, Body::Chunks(_)) {
            // What was asked for sizes and ends is for other streams.
            self.frames.reserve_capacity(0);
        }
        if at == 0 {
            return Poll::Pending;
        }
        Poll::Ready(Ok(at))
    }

    /// Sends the end of what has no other.
    pub(super) fn end(&mut self) -> io::Result<()> {
        if self.is_ended || !matches!(self.body, Body::UntilEnd) {
            return Ok(());
        }
        self.is_ended = true;
        self.frames.send_data(Bytes::new(), true).map_err(broken)
    }

    /// What these bytes begin with.
    fn follow(&mut self, bytes: &[u8]) -> io::Result<Step> {
        let available = bytes.len() as u64;
        match &mut self.body {
            Body::Length(0) => Ok(Step::Done),
            _ if bytes.is_empty() => match &self.body {
                Body::Chunks(chunks) if chunks.is_done() => Ok(Step::Done),
                _ => Ok(Step::More),
            },
            Body::Length(length) => {
                let part = available.min(*length);
                *length -= part;
                Ok(Step::Data(usize::try_from(part).unwrap_or(bytes.len())))
            }
            Body::UntilEnd => Ok(Step::Data(bytes.len())),
            Body::Chunks(chunks) => match chunks.step(bytes) {
                // Whoever writes knows where a size ends.
                Ok(Step::More) => Err(io::ErrorKind::InvalidData.into()),
                step => step.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
            },
        }
    }

    /// Whether the bytes of the body were all followed.
    fn is_followed(&self) -> bool {
        matches!(&self.body, Body::Chunks(chunks) if chunks.is_done())
    }

    /// How much may be sent now, of so much; 0: the task is woken when it is more.
    fn poll_room(&mut self, context: &mut Context<'_>, wanted: usize) -> io::Result<usize> {
        self.frames.reserve_capacity(wanted);
        let room = self.frames.capacity();
        if room > 0 {
            return Ok(room.min(wanted));
        }
        match self.frames.poll_capacity(context) {
            Poll::Ready(Some(Ok(room))) => Ok(room.min(wanted)),
            Poll::Ready(Some(Err(error))) => Err(broken(error)),
            Poll::Ready(None) => Err(io::ErrorKind::BrokenPipe.into()),
            Poll::Pending => Ok(0),
        }
    }
}
