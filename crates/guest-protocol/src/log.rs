//! Log records, whose bodies are bytes: one line of output, or a piece of a long one.

use serde::{Deserialize, Serialize};

use crate::codec::FrameError;

/// Largest piece of a line in one [`LogRecord`], in bytes; longer lines are split and marked.
pub const MAX_LOG_PIECE_BYTES: usize = 16 * 1024;
/// The type of frames that have a [`LogRecord`].
pub(crate) const LOG_FRAME: u8 = 6;
/// Bytes of a record before its line: sequence number, time, stream, `partial`, `dropped`.
const LOG_HEAD_BYTES: usize = 8 + 8 + 1 + 1 + 4;
/// Bytes of a log record's frame before those of its line.
pub const LOG_FRAME_START_BYTES: usize = 4 + 1 + LOG_HEAD_BYTES;

/// Where a line was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The platform itself: init reports dropped lines, for one.
    Platform,
}

/// One line of the app's output, or a piece of a long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Counts from 1 in each guest; what the node acknowledges.
    pub seq: u64,
    /// When init read it, in nanoseconds since 1970 by the guest's clock.
    pub at_nanos: u64,
    /// Where it was written.
    pub stream: Stream,
    /// True when the line goes on in the next record of this stream.
    pub partial: bool,
    /// Lines lost just before this record because the node was slow.
    pub dropped: u32,
    /// The bytes, without the newline; not necessarily UTF-8. At most [`MAX_LOG_PIECE_BYTES`].
    pub line: Vec<u8>,
}

impl LogRecord {
    fn head(&self) -> [u8; LOG_HEAD_BYTES] {
        let mut head = [0; LOG_HEAD_BYTES];
        head[..8].copy_from_slice(&self.seq.to_le_bytes());
        head[8..16].copy_from_slice(&self.at_nanos.to_le_bytes());
        head[16] = self.stream.code();
        head[17] = u8::from(self.partial);
        head[18..].copy_from_slice(&self.dropped.to_le_bytes());
        head
    }

    /// The bytes of this record's [frame](crate::Frame::encode) up to its line, for a line of `line_bytes` in place of
    /// its own: a guest writes each line behind its frame's start without a copy.
    pub fn frame_start(&self, line_bytes: usize) -> [u8; LOG_FRAME_START_BYTES] {
        let length = u32::try_from(1 + LOG_HEAD_BYTES + line_bytes).unwrap_or(u32::MAX);
        let mut start = [0; LOG_FRAME_START_BYTES];
        start[..4].copy_from_slice(&length.to_le_bytes());
        start[4] = LOG_FRAME;
        start[5..].copy_from_slice(&self.head());
        start
    }

    pub(crate) fn body(&self) -> Vec<u8> {
        [&self.head()[..], &self.line].concat()
    }

    pub(crate) fn from_body(body: &[u8]) -> Result<Self, FrameError> {
        let wrong = |reason: &str| FrameError::Body {
            frame_type: LOG_FRAME,
            reason: reason.to_owned(),
        };
        let (seq, rest) = body
            .split_first_chunk::<8>()
            .ok_or_else(|| wrong("short"))?;
        let (at, rest) = rest
            .split_first_chunk::<8>()
            .ok_or_else(|| wrong("short"))?;
        let ([stream, partial], rest) = rest
            .split_first_chunk::<2>()
            .ok_or_else(|| wrong("short"))?;
        let (dropped, line) = rest
            .split_first_chunk::<4>()
            .ok_or_else(|| wrong("short"))?;
        if line.len() > MAX_LOG_PIECE_BYTES {
            return Err(wrong("line too long"));
        }
        Ok(Self {
            seq: u64::from_le_bytes(*seq),
            at_nanos: u64::from_le_bytes(*at),
            stream: Stream::from_code(LOG_FRAME, *stream)?,
            partial: *partial != 0,
            dropped: u32::from_le_bytes(*dropped),
            line: line.to_vec(),
        })
    }
}

impl Stream {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
            Self::Platform => 3,
        }
    }

    pub(crate) fn from_code(frame_type: u8, code: u8) -> Result<Self, FrameError> {
        match code {
            1 => Ok(Self::Stdout),
            2 => Ok(Self::Stderr),
            3 => Ok(Self::Platform),
            other => Err(FrameError::Body {
                frame_type,
                reason: format!("unknown stream {other}"),
            }),
        }
    }
}
