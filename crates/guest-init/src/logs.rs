//! The app's output on its way to the node: bytes to lines, lines to frames, frames kept until
//! they are acknowledged. Pure: time comes as an argument.
//!
//! Memory is bounded: [`LineSplitter`] holds less than a piece and one read, [`LogQueue`] at most
//! [`LOG_BUFFER_BYTES`]. When the queue is full, `output` decides: the app waits a little, then
//! lines are dropped and counted.

use std::collections::VecDeque;

use std::io::BufRead as _;

use guest_protocol::{LOG_FRAME_START_BYTES, LogRecord, MAX_LOG_PIECE_BYTES, Stream};

/// Most unacknowledged frames that are kept, in bytes.
pub(crate) const LOG_BUFFER_BYTES: usize = 1024 * 1024;

/// Most bytes one frame takes.
const LARGEST_FRAME_BYTES: usize = LOG_FRAME_START_BYTES + MAX_LOG_PIECE_BYTES;

/// Cuts a stream of bytes into lines, and lines longer than [`MAX_LOG_PIECE_BYTES`] into pieces.
#[derive(Debug, Default)]
pub(crate) struct LineSplitter {
    bytes: Vec<u8>,
    start: usize,
    /// Bytes after `start` that are known to hold no newline.
    searched: usize,
}

/// A line, or a piece of one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    /// The bytes, without the newline.
    pub(crate) bytes: &'a [u8],
    /// Whether the line goes on.
    pub(crate) partial: bool,
}

impl LineSplitter {
    /// The buffer that reads append to, with room for this many bytes. Take out every piece first, so that it
    /// stays small.
    pub(crate) fn space(&mut self, bytes: usize) -> &mut Vec<u8> {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.reserve(bytes);
        &mut self.bytes
    }

    /// The next whole line or full piece.
    pub(crate) fn next_piece(&mut self) -> Option<Piece<'_>> {
        let rest = &self.bytes[self.start..];
        // One byte more than a piece: the newline of a line that just fits.
        let window = &rest[..rest.len().min(MAX_LOG_PIECE_BYTES + 1)];
        // std looks for a byte a word at a time, but only for readers.
        let mut unsearched = &window[self.searched.min(window.len())..];
        let passed = unsearched.skip_until(b'\n').unwrap_or(0);
        let newline = (self.searched + passed)
            .checked_sub(1)
            .filter(|at| passed > 0 && window.get(*at) == Some(&b'\n'));
        let start = self.start;
        let (length, skipped, partial) = match newline {
            Some(at) => (at, 1, false),
            None if rest.len() > MAX_LOG_PIECE_BYTES => (MAX_LOG_PIECE_BYTES, 0, true),
            None => {
                self.searched = window.len();
                return None;
            }
        };
        self.searched = 0;
        self.start += length + skipped;
        Some(Piece {
            bytes: &self.bytes[start..start + length],
            partial,
        })
    }

    /// The rest after the stream's end: a line without its newline.
    pub(crate) fn finish(&mut self) -> Option<Piece<'_>> {
        let start = self.start;
        self.start = self.bytes.len();
        self.searched = 0;
        (start < self.bytes.len()).then(|| Piece {
            bytes: &self.bytes[start..],
            partial: false,
        })
    }
}

/// Frames of log records, in order, until they are acknowledged.
#[derive(Debug)]
pub(crate) struct LogQueue {
    /// Encoded frames, end to end.
    bytes: VecDeque<u8>,
    /// The length of each.
    lengths: VecDeque<u32>,
    /// Sequence number of the first frame that is kept.
    first_seq: u64,
    /// Bytes that were written to the present connection and are kept.
    sent: usize,
    /// Lines dropped since the last record.
    dropped: u32,
}

impl Default for LogQueue {
    fn default() -> Self {
        Self {
            bytes: VecDeque::new(),
            lengths: VecDeque::new(),
            first_seq: 1,
            sent: 0,
            dropped: 0,
        }
    }
}

impl LogQueue {
    /// Whether any record fits.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes.len() + LARGEST_FRAME_BYTES <= LOG_BUFFER_BYTES
    }

    /// Whether at most half is in use, so that dropping can stop.
    pub(crate) fn is_half_empty(&self) -> bool {
        self.bytes.len() <= LOG_BUFFER_BYTES / 2
    }

    /// Whether a whole frame was written to the present connection and not acknowledged yet.
    pub(crate) fn awaits_acknowledgement(&self) -> bool {
        let first = self.lengths.front();
        first.is_some_and(|length| self.sent >= *length as usize)
    }

    /// Whether everything was acknowledged.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds a record. Call only when [`Self::has_room`]; the line is cut to a piece's size.
    pub(crate) fn push(&mut self, at_nanos: u64, stream: Stream, partial: bool, line: &[u8]) {
        let line = &line[..line.len().min(MAX_LOG_PIECE_BYTES)];
        let record = LogRecord {
            seq: self.first_seq + self.lengths.len() as u64,
            at_nanos,
            stream,
            partial,
            dropped: std::mem::take(&mut self.dropped),
            line: Vec::new(),
        };
        self.bytes.extend(record.frame_start(line.len()));
        self.bytes.extend(line);
        self.lengths
            .push_back(u32::try_from(LOG_FRAME_START_BYTES + line.len()).unwrap_or(u32::MAX));
    }

    /// Counts a dropped line; the next record carries the count.
    pub(crate) fn drop_line(&mut self) {
        self.dropped = self.dropped.saturating_add(1);
    }

    /// Drops every record up to `seq` that was completely sent.
    pub(crate) fn acknowledge(&mut self, seq: u64) {
        let mut bytes = 0;
        while self.first_seq <= seq {
            let Some(length) = self.lengths.front().map(|length| *length as usize) else {
                break;
            };
            if bytes + length > self.sent {
                break;
            }
            bytes += length;
            self.lengths.pop_front();
            self.first_seq += 1;
        }
        self.bytes.drain(..bytes);
        self.sent -= bytes;
    }

    /// A part of the bytes that were not sent on the present connection.
    pub(crate) fn unsent(&self) -> &[u8] {
        let (front, back) = self.bytes.as_slices();
        match self.sent.checked_sub(front.len()) {
            Some(at) => &back[at..],
            None => &front[self.sent..],
        }
    }

    /// Marks this many bytes of [`Self::unsent`] as sent.
    pub(crate) fn mark_sent(&mut self, bytes: usize) {
        self.sent = (self.sent + bytes).min(self.bytes.len());
    }

    /// Starts a new connection: unacknowledged frames are sent again.
    pub(crate) fn send_again(&mut self) {
        self.sent = 0;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use guest_protocol::{FrameBuffer, GuestFrame, MAX_LOG_PIECE_BYTES, Stream};
    use proptest::prelude::*;

    use super::{LOG_BUFFER_BYTES, LineSplitter, LogQueue};

    fn pieces(splitter: &mut LineSplitter) -> Vec<(Vec<u8>, bool)> {
        let mut all = Vec::new();
        while let Some(piece) = splitter.next_piece() {
            all.push((piece.bytes.to_vec(), piece.partial));
        }
        all
    }

    #[test]
    fn lines_are_whole_however_the_bytes_are_read() {
        let mut splitter = LineSplitter::default();
        splitter.space(0).extend_from_slice(b"one\ntw");
        assert_eq!(pieces(&mut splitter), [(b"one".to_vec(), false)]);
        splitter.space(0).extend_from_slice(b"o\n\n\xff\r\nrest");
        assert_eq!(
            pieces(&mut splitter),
            [
                (b"two".to_vec(), false),
                (Vec::new(), false),
                (b"\xff\r".to_vec(), false)
            ]
        );
        assert_eq!(splitter.finish().unwrap().bytes, b"rest");
        assert_eq!(splitter.finish(), None);
    }

    #[test]
    fn a_line_that_just_fits_is_one_piece_and_one_byte_more_makes_two() {
        for (extra, expected) in [(0, vec![false]), (1, vec![true, false])] {
            let mut splitter = LineSplitter::default();
            let mut line = vec![b'x'; MAX_LOG_PIECE_BYTES + extra];
            splitter.space(0).extend_from_slice(&line);
            let mut found = pieces(&mut splitter);
            line.clear();
            splitter.space(0).extend_from_slice(b"\n");
            found.extend(pieces(&mut splitter));
            let partial: Vec<_> = found.iter().map(|(_, partial)| *partial).collect();
            assert_eq!(partial, expected);
        }
    }

    proptest! {
        /// Joining the pieces gives the bytes back, and no piece is too long.
        #[test]
        fn the_pieces_of_a_stream_are_its_bytes(
            chunks in prop::collection::vec(
                prop::collection::vec(prop_oneof![9 => Just(b'x'), 1 => Just(b'\n')], 0..9000),
                0..12,
            )
        ) {
            let mut splitter = LineSplitter::default();
            let mut joined = Vec::new();
            for chunk in &chunks {
                splitter.space(0).extend_from_slice(chunk);
                for (bytes, partial) in pieces(&mut splitter) {
                    prop_assert!(bytes.len() <= MAX_LOG_PIECE_BYTES);
                    joined.extend(bytes);
                    if !partial {
                        joined.push(b'\n');
                    }
                }
            }
            if let Some(piece) = splitter.finish() {
                joined.extend(piece.bytes);
            }
            prop_assert_eq!(joined, chunks.concat());
        }
    }

    fn decode(bytes: &[u8]) -> Vec<(u64, u32, Vec<u8>)> {
        let mut buffer = FrameBuffer::default();
        buffer.push(bytes);
        let mut all = Vec::new();
        while let Some(GuestFrame::Log(record)) = buffer.next::<GuestFrame>().unwrap() {
            all.push((record.seq, record.dropped, record.line));
        }
        all
    }

    fn send_all(queue: &mut LogQueue) -> Vec<u8> {
        let mut sent = Vec::new();
        while !queue.unsent().is_empty() {
            let part = queue.unsent().to_vec();
            queue.mark_sent(part.len());
            sent.extend(part);
        }
        sent
    }

    #[test]
    fn unacknowledged_records_are_sent_again() {
        let mut queue = LogQueue::default();
        for line in [b"a", b"b", b"c"] {
            queue.push(5, Stream::Stdout, false, line);
        }
        assert_eq!(decode(&send_all(&mut queue)).len(), 3);
        queue.acknowledge(1);
        queue.send_again();
        let again = decode(&send_all(&mut queue));
        assert_eq!(again, [(2, 0, b"b".to_vec()), (3, 0, b"c".to_vec())]);
        queue.acknowledge(99);
        assert!(queue.is_empty());
        queue.drop_line();
        queue.drop_line();
        queue.push(6, Stream::Stderr, false, b"d");
        assert_eq!(decode(&send_all(&mut queue)), [(4, 2, b"d".to_vec())]);
    }

    #[test]
    fn an_acknowledgement_of_an_unsent_record_is_ignored() {
        let mut queue = LogQueue::default();
        queue.push(5, Stream::Stdout, false, b"first");
        queue.push(5, Stream::Stdout, false, b"second");
        queue.mark_sent(queue.unsent().len() - 1);
        queue.acknowledge(2);
        queue.send_again();
        assert_eq!(decode(&send_all(&mut queue)), [(2, 0, b"second".to_vec())]);
    }

    #[test]
    fn the_queue_fills_to_its_bound_and_no_further() {
        let mut queue = LogQueue::default();
        while queue.has_room() {
            queue.push(5, Stream::Stdout, false, &[b'x'; 999]);
        }
        assert!(queue.bytes.len() <= LOG_BUFFER_BYTES);
        assert!(queue.bytes.len() > LOG_BUFFER_BYTES - 2 * MAX_LOG_PIECE_BYTES);
        assert!(!queue.is_half_empty());
    }
}
