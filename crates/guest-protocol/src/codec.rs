//! Frames as bytes: `u32` little-endian length of what follows, one type byte, the body.

use serde::{Deserialize, Serialize};

use crate::version::refusal;

/// Largest frame, type byte and body, in bytes. Both sides refuse larger ones.
pub const MAX_FRAME_BYTES: usize = 256 * 1024;
/// Largest frame from the node, in bytes: a [`BootConfig`](crate::BootConfig) carries variables and secrets.
pub const MAX_BOOT_FRAME_BYTES: usize = 4 * 1024 * 1024;
/// The bit of a frame's type that says: a receiver that does not know this type skips the frame.
/// A frame of an unknown type without it ends the connection ([`FrameError::Type`]).
pub const IGNORABLE: u8 = 0x80;
/// Consumed bytes that a [`FrameBuffer`] keeps at most before it moves the rest to its start.
const MAX_CONSUMED_BYTES: usize = 64 * 1024;

/// Why bytes are not a frame. The connection they came from is to be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is 0 or larger than allowed.
    #[error("frame of {length} bytes: from 1 to {limit} are allowed")]
    Length {
        /// As announced.
        length: usize,
        /// As allowed.
        limit: usize,
    },
    /// This direction has no such type in this version, and the type is not [`IGNORABLE`].
    #[error("unknown frame type {0}")]
    Type(u8),
    /// A hello names a version that is not served. The sender is told [`HostFrame::Refused`](crate::HostFrame::Refused).
    #[error("{}", refusal(*.contract))]
    Version {
        /// The version that the hello names.
        contract: u32,
    },
    /// The body does not decode.
    #[error("frame of type {frame_type}: {reason}")]
    Body {
        /// The type byte.
        frame_type: u8,
        /// What is wrong.
        reason: String,
    },
}

/// A frame that travels in one direction.
pub trait Frame: Sized {
    /// Largest frame of this direction, in bytes.
    const LIMIT: usize;
    /// The type byte and the body.
    fn parts(&self) -> (u8, Vec<u8>);
    /// From the type byte and the body.
    ///
    /// # Errors
    /// An unknown type, an unserved version, or a body that does not decode.
    fn from_parts(frame_type: u8, body: &[u8]) -> Result<Self, FrameError>;

    /// The bytes to write.
    fn encode(&self) -> Vec<u8> {
        let (frame_type, body) = self.parts();
        let length = u32::try_from(body.len() + 1).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(body.len() + 5);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.push(frame_type);
        bytes.extend_from_slice(&body);
        bytes
    }
}

/// Takes frames out of a stream of bytes. Holds at most one frame and one read's bytes.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    /// Where the next frame begins: what lies before was taken.
    start: usize,
}

impl FrameBuffer {
    /// Adds bytes as they were read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 && (self.start == self.bytes.len() || self.start > MAX_CONSUMED_BYTES) {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// How many bytes were added and are in no frame that [`FrameBuffer::next`] went past.
    pub fn pending_bytes(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// The next whole frame, if there is one. [`IGNORABLE`] frames of an unknown type are skipped.
    ///
    /// # Errors
    /// The bytes are no frame; the buffer is then of no more use.
    #[allow(
        clippy::should_implement_trait,
        reason = "an iterator has one type of item, and an end"
    )]
    pub fn next<F: Frame>(&mut self) -> Result<Option<F>, FrameError> {
        loop {
            let rest = &self.bytes[self.start..];
            let Some((head, rest)) = rest.split_first_chunk::<4>() else {
                return Ok(None);
            };
            let length = u32::from_le_bytes(*head) as usize;
            if length == 0 || length > F::LIMIT {
                return Err(FrameError::Length {
                    length,
                    limit: F::LIMIT,
                });
            }
            if rest.len() < length {
                return Ok(None);
            }
            let decoded = F::from_parts(rest[0], &rest[1..length]);
            self.start += 4 + length;
            match decoded {
                Err(FrameError::Type(frame_type)) if frame_type & IGNORABLE != 0 => {}
                decoded => return decoded.map(Some),
            }
        }
    }
}

/// A value as the body of a frame.
pub(crate) fn json<T: Serialize>(value: &T) -> Vec<u8> {
    // Our own types with string keys: serialization cannot fail.
    serde_json::to_vec(value).unwrap_or_default()
}

/// A value from the body of a frame.
pub(crate) fn from_json<'a, T: Deserialize<'a>>(
    frame_type: u8,
    body: &'a [u8],
) -> Result<T, FrameError> {
    serde_json::from_slice(body).map_err(|error| FrameError::Body {
        frame_type,
        reason: error.to_string(),
    })
}
