//! What a client's frames cost, counted as they come in, and before h2 acts on them: who asks for work without end that is no request is named, and cut off.
//!
//! h2 itself bounds the headers of a block, streams that were reset before they were begun, and small DATA frames. What is bounded here is what it answers
//! each time: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty and unknown frames, and requests that are reset one after the other (CVE-2023-44487).
//!
//! Such a frame costs a credit. Requests and bodies, in both directions, bring some, and so does time: a client that does anything has enough. Each DATA frame
//! brings some, however small it is: a client of gRPC answers each message with WINDOW_UPDATEs of the stream and of the connection, and often a PING.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::buffer::Buffer;
use crate::limits::{
    CREDITS, CREDITS_A_DATA_FRAME, CREDITS_A_REQUEST, CREDITS_A_SECOND, MAX_RESETS,
    UNASKED_PONG_CREDITS,
};

/// The preface of a client (RFC 9113, 3.4).
const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
/// Bytes of a body that bring a credit.
const BYTES_A_CREDIT: usize = 1024;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// What the connection's task is told of it.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    is_flooded: AtomicBool,
    is_within: AtomicBool,
    begun: AtomicU64,
    reads: AtomicU64,
    awaits_pong: AtomicBool,
    waiting: AtomicUsize,
    most_waiting: AtomicUsize,
}

impl Meter {
    /// Whether the client asks for more than it pays for.
    pub(crate) fn is_flooded(&self) -> bool {
        self.is_flooded.load(Ordering::Relaxed)
    }

    /// The number of the header block, or of the frame that is no DATA, of which the end has not come; `None`: there is no such.
    pub(crate) fn within(&self) -> Option<u64> {
        let is_within = self.is_within.load(Ordering::Relaxed);
        is_within.then(|| self.begun.load(Ordering::Relaxed))
    }

    /// Grows whenever bytes come.
    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Most frames of bodies that waited at once to be passed on; those of streams that were taken back count until the connection is idle.
    pub(crate) fn most_waiting(&self) -> usize {
        self.most_waiting.load(Ordering::Relaxed)
    }

    fn frame_waits(&self) {
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_waiting.fetch_max(waiting, Ordering::Relaxed);
    }

    /// One of them is passed on.
    pub(crate) fn frame_passes(&self) {
        let one_less = |waiting: usize| Some(waiting.saturating_sub(1));
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        // It is never `None`.
        let _ = self.waiting.fetch_update(set, fetch, one_less);
    }

    /// No request is under way, and so no frame waits.
    pub(crate) fn is_idle(&self) {
        self.waiting.store(0, Ordering::Relaxed);
    }

    /// The client is to answer a PING.
    pub(crate) fn await_pong(&self) {
        self.awaits_pong.store(true, Ordering::Relaxed);
    }
}

/// A client's connection whose frames are counted. What was read of it already is read first.
#[derive(Debug)]
pub(crate) struct Metered<S> {
    stream: S,
    begin: Buffer,
    frames: Frames,
    written: Written,
    meter: Arc<Meter>,
}

impl<S> Metered<S> {
    pub(crate) fn new(stream: S, begin: Buffer, meter: Arc<Meter>) -> Self {
        Self {
            stream,
            begin,
            frames: Frames::new(Instant::now()),
            written: Written::default(),
            meter,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.meter.is_flooded() {
            // The task looks at it when this returns.
            return Poll::Pending;
        }
        let before = out.filled().len();
        if this.begin.is_empty() {
            ready!(Pin::new(&mut this.stream).poll_read(context, out))?;
        } else {
            let bytes = this.begin.data();
            let bytes = &bytes[..bytes.len().min(out.remaining())];
            out.put_slice(bytes);
            this.begin.consume(bytes.len());
        }
        this.frames.take(&out.filled()[before..], &this.meter);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write(context, bytes))?;
        this.frames.earn(written);
        let begun = this.written.take(&bytes[..written]);
        this.frames.note(begun);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(context, pieces))?;
        this.frames.earn(written);
        let mut left = written;
        for piece in pieces {
            let part = piece.len().min(left);
            left -= part;
            let begun = this.written.take(&piece[..part]);
            this.frames.note(begun);
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// Frames to a client.
#[derive(Debug, Default, Clone, Copy)]
struct Begun {
    /// DATA that is not empty.
    bodies: u32,
    /// HEADERS: an answer begins, or ends.
    heads: u64,
}

/// How far the frames to a client were followed.
#[derive(Debug, Default)]
struct Written {
    head: [u8; HEAD_BYTES],
    /// How many bytes of `head` are there.
    have: usize,
    /// Bytes of the frame's payload that are still to come.
    left: usize,
}

impl Written {
    /// The frames that begin in these bytes.
    fn take(&mut self, mut bytes: &[u8]) -> Begun {
        let mut begun = Begun::default();
        while !bytes.is_empty() {
            let of_payload = self.left.min(bytes.len());
            self.left -= of_payload;
            bytes = &bytes[of_payload..];
            let of_head = (HEAD_BYTES - self.have).min(bytes.len());
            self.head[self.have..self.have + of_head].copy_from_slice(&bytes[..of_head]);
            self.have += of_head;
            bytes = &bytes[of_head..];
            if self.have == HEAD_BYTES {
                self.have = 0;
                let [a, b, c, kind, ..] = self.head;
                self.left = payload_bytes([a, b, c]);
                begun.bodies += u32::from(kind == DATA && self.left > 0);
                begun.heads += u64::from(kind == HEADERS);
            }
        }
        begun
    }
}

fn payload_bytes([a, b, c]: [u8; 3]) -> usize {
    usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)
}

/// How far the frames of a client were followed.
#[derive(Debug)]
struct Frames {
    /// Bytes of the preface that are still to come.
    preface: usize,
    head: [u8; HEAD_BYTES],
    /// How many bytes of `head` are there.
    have: usize,
    /// Bytes of the frame's payload that are still to come.
    left: usize,
    /// Whether the frame that is under way is one of a body.
    is_data: bool,
    /// Whether a header block has begun, and not ended.
    is_in_block: bool,
    credits: u32,
    /// Bytes of bodies that have brought no credit yet.
    unpaid: usize,
    paid: Instant,
    requests: u64,
    resets: u64,
    /// Heads of answers that were written. A stream that is reset when its answer has begun has cost no more than any other: so ends a call of gRPC that streams.
    answers: u64,
}

impl Frames {
    fn new(now: Instant) -> Self {
        Self {
            preface: PREFACE_BYTES,
            head: [0; HEAD_BYTES],
            have: 0,
            left: 0,
            is_data: false,
            is_in_block: false,
            credits: CREDITS,
            unpaid: 0,
            paid: now,
            requests: 0,
            resets: 0,
            answers: 0,
        }
    }

    fn take(&mut self, mut bytes: &[u8], meter: &Meter) {
        if bytes.is_empty() {
            return;
        }
        meter.reads.fetch_add(1, Ordering::Relaxed);
        let of_preface = self.preface.min(bytes.len());
        self.preface -= of_preface;
        bytes = &bytes[of_preface..];
        while !bytes.is_empty() {
            if self.left > 0 {
                let part = self.left.min(bytes.len());
                self.left -= part;
                bytes = &bytes[part..];
                if self.is_data {
                    self.earn(part);
                }
                continue;
            }
            let part = (HEAD_BYTES - self.have).min(bytes.len());
            self.head[self.have..self.have + part].copy_from_slice(&bytes[..part]);
            self.have += part;
            bytes = &bytes[part..];
            if self.have == HEAD_BYTES {
                self.have = 0;
                self.begin(meter);
            } else {
                self.is_data = false;
            }
        }
        let is_within = (self.left > 0 && !self.is_data) || self.have > 0 || self.is_in_block;
        meter.is_within.store(is_within, Ordering::Relaxed);
    }

    /// A frame begins.
    fn begin(&mut self, meter: &Meter) {
        let [a, b, c, kind, flags, ..] = self.head;
        self.left = payload_bytes([a, b, c]);
        self.is_data = kind == DATA;
        if !self.is_data && !self.is_in_block {
            meter.begun.fetch_add(1, Ordering::Relaxed);
        }
        let mut cost = 1;
        match kind {
            DATA if self.left > 0 || flags & END_STREAM != 0 => {
                self.earn_frames(u32::from(self.left > 0));
                meter.frame_waits();
                cost = 0;
            }
            HEADERS => {
                self.requests += 1;
                self.credits = (self.credits + CREDITS_A_REQUEST).min(CREDITS);
                self.is_in_block = flags & END_HEADERS == 0;
                cost = 0;
            }
            CONTINUATION => self.is_in_block = flags & END_HEADERS == 0,
            RST_STREAM => {
                self.resets += 1;
                let unanswered = self.resets.saturating_sub(self.answers);
                if unanswered > MAX_RESETS && self.resets * 2 > self.requests {
                    meter.is_flooded.store(true, Ordering::Relaxed);
                }
            }
            SETTINGS if flags & ACK != 0 => cost = 0,
            PING if flags & ACK != 0 => {
                let was_asked = meter.awaits_pong.swap(false, Ordering::Relaxed);
                cost = if was_asked { 0 } else { UNASKED_PONG_CREDITS };
            }
            _ => {}
        }
        if !self.pay(cost) {
            meter.is_flooded.store(true, Ordering::Relaxed);
        }
    }

    /// Bytes of bodies went by.
    fn earn(&mut self, bytes: usize) {
        self.unpaid += bytes;
        if self.unpaid >= BYTES_A_CREDIT {
            let credits = u32::try_from(self.unpaid / BYTES_A_CREDIT).unwrap_or(CREDITS);
            self.credits = self.credits.saturating_add(credits).min(CREDITS);
            self.unpaid %= BYTES_A_CREDIT;
        }
    }

    /// Frames were written.
    fn note(&mut self, begun: Begun) {
        self.answers += begun.heads;
        self.earn_frames(begun.bodies);
    }

    /// So many DATA frames went by, whatever their size.
    fn earn_frames(&mut self, frames: u32) {
        let credits = frames.saturating_mul(CREDITS_A_DATA_FRAME);
        self.credits = self.credits.saturating_add(credits).min(CREDITS);
    }

    /// Whether there was enough.
    fn pay(&mut self, cost: u32) -> bool {
        if self.credits < cost {
            let now = Instant::now();
            let seconds = now.duration_since(self.paid).as_secs();
            let earned = u32::try_from(seconds).unwrap_or(u32::MAX);
            self.credits = earned.saturating_mul(CREDITS_A_SECOND).min(CREDITS);
            self.paid = now;
        }
        let left = self.credits.checked_sub(cost);
        self.credits = left.unwrap_or(0);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let [.., a, b, c] = length.to_be_bytes();
        let mut frame = vec![a, b, c, kind, flags, 0, 0, 0, 1];
        frame.resize(HEAD_BYTES + length, 0);
        frame
    }

    /// Frames behind a preface, given in pieces of so many bytes.
    fn metered(frames: &[Vec<u8>], piece: usize) -> Meter {
        let meter = Meter::default();
        let mut followed = Frames::new(Instant::now());
        let bytes = [vec![0; PREFACE_BYTES], frames.concat()].concat();
        for piece in bytes.chunks(piece) {
            followed.take(piece, &meter);
        }
        meter
    }

    #[test]
    fn frames_that_ask_for_nothing_are_a_flood() {
        let many = CREDITS as usize + 1;
        for (name, kind, flags, length) in [
            ("PING", PING, 0, 8),
            ("SETTINGS", SETTINGS, 0, 0),
            ("PRIORITY", 2, 0, 5),
            ("WINDOW_UPDATE", 8, 0, 4),
            ("empty DATA", DATA, 0, 0),
            ("unknown", 77, 0, 3),
        ] {
            let frames = vec![frame(kind, flags, length); many];
            for piece in [1, 7, 1000] {
                assert!(metered(&frames, piece).is_flooded(), "{name}");
                assert!(!metered(&frames[1..], piece).is_flooded(), "{name}");
            }
        }
        let pongs = vec![frame(PING, ACK, 8); 1 + (CREDITS / UNASKED_PONG_CREDITS) as usize];
        assert!(metered(&pongs, 100).is_flooded());
    }

    #[test]
    fn requests_and_bodies_pay_for_what_goes_with_them() {
        let mut frames = Vec::new();
        for _ in 0..10 * CREDITS {
            frames.push(frame(HEADERS, END_HEADERS, 10));
            frames.push(frame(8, 0, 4));
            frames.push(frame(PING, 0, 8));
            frames.push(frame(DATA, 0, 2048));
            frames.push(frame(8, 0, 4));
        }
        assert!(!metered(&frames, 16 * 1024).is_flooded());
    }

    #[test]
    fn small_messages_pay_for_the_updates_of_windows_and_the_pings_that_answer_them() {
        for piece in [1, 7, 16 * 1024] {
            let meter = Meter::default();
            let (mut followed, mut written) = (Frames::new(Instant::now()), Written::default());
            followed.take(&[0; PREFACE_BYTES], &meter);
            followed.take(&frame(HEADERS, END_HEADERS, 10), &meter);
            for _ in 0..10 * CREDITS {
                let to_client = [frame(PING, ACK, 8), frame(DATA, 0, 20)].concat();
                for bytes in to_client.chunks(piece) {
                    let begun = written.take(bytes);
                    followed.note(begun);
                }
                let answer = [frame(8, 0, 4), frame(8, 0, 4), frame(PING, 0, 8)].concat();
                followed.take(&answer, &meter);
            }
            assert!(!meter.is_flooded());
            // Nothing is written: nothing pays.
            for _ in 0..CREDITS {
                followed.take(&frame(8, 0, 4), &meter);
                written.take(&frame(PING, ACK, 8));
            }
            followed.take(&frame(8, 0, 4), &meter);
            assert!(meter.is_flooded());
        }
    }

    #[test]
    fn requests_that_are_reset_one_after_the_other_are_a_flood_and_some_are_not() {
        let mut frames = Vec::new();
        for _ in 0..=MAX_RESETS {
            frames.push(frame(HEADERS, END_HEADERS, 10));
            frames.push(frame(RST_STREAM, 0, 4));
        }
        assert!(metered(&frames, 100).is_flooded());
        let half = (MAX_RESETS as usize + 1) * 2 - 2;
        assert!(!metered(&frames[..half], 100).is_flooded());
        // Of three requests one is taken back.
        let others = vec![frame(HEADERS, END_HEADERS, 10); 2 * MAX_RESETS as usize + 2];
        frames.splice(0..0, others);
        assert!(!metered(&frames, 100).is_flooded());
    }

    #[test]
    fn a_head_is_within_until_its_block_ends() {
        let begun = frame(HEADERS, 0, 10);
        let goes_on = frame(CONTINUATION, 0, 10);
        let ends = frame(CONTINUATION, END_HEADERS, 10);
        let all = [begun, goes_on, ends];
        assert_eq!(metered(&all, 1).within(), None);
        assert_eq!(metered(&all[..1], 1).within(), Some(1));
        assert_eq!(metered(&all[..2], 1).within(), Some(1));
        // A body that comes slowly is not.
        let mut data = frame(DATA, 0, 100);
        data.truncate(50);
        assert_eq!(metered(&[data.clone()], 1).within(), None);
        data.truncate(4);
        assert!(metered(&[data], 1).within().is_some());
        let mut ping = frame(PING, 0, 8);
        ping.truncate(12);
        assert!(metered(&[frame(PING, 0, 8), ping], 5).within().is_some());
    }
}
