//! Forward streams: a TCP connection, from a user's machine through the server to a port of an instance.
//!
//! They are opened as [exec streams](crate::exec) are: the server asks the instance's node, the node opens a connection that is
//! upgraded to [`FORWARD_PROTOCOL`], and the server joins it to the user's, which is upgraded the same way. Each carries one TCP
//! connection. [`ForwardFrame`]s travel on it, so that an end of either direction (RFC 9293, 3.6: half-closed), a reset and the
//! reason of a failure arrive as what they are.
//!
//! ```text
//! node -> user: Opened | Failed
//! both ways:    Data*, then End or Failed
//! ```
//!
//! A stream that ends before `End` went both ways was cut, and its TCP connections are reset.

use guest_protocol::{Frame, FrameError, MAX_FRAME_BYTES};
use serde::{Deserialize, Serialize};

/// What a connection with forward frames is upgraded to (`Upgrade: ...`).
pub const FORWARD_PROTOCOL: &str = "platform-forward/1";

/// One piece of a forwarded connection, at most [`MAX_FRAME_BYTES`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForwardFrame {
    /// The first frame of the node: the port has accepted the connection.
    Opened,
    /// Bytes, in order.
    Data(Vec<u8>),
    /// The sender's direction has ended: nothing more comes from there, and it still receives (FIN).
    End,
    /// The last frame, in either direction: there is no connection, or none any more (RST).
    Failed(ForwardFailure),
}

/// Why a forwarded connection failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}")]
pub struct ForwardFailure {
    /// What kind of failure, for programs.
    pub kind: ForwardFailureKind,
    /// For people.
    pub reason: String,
}

/// What kind of failure ended a forwarded connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardFailureKind {
    /// Nothing listens on the port in the instance.
    PortClosed,
    /// The instance did not answer in time.
    NoAnswer,
    /// The instance does not run, or not on the node that was asked.
    InstanceGone,
    /// One of the TCP connections was reset, or the stream was cut.
    Reset,
    /// One that this program does not know: its sender is newer.
    #[serde(other)]
    Unknown,
}

impl ForwardFailure {
    /// A failure of this kind.
    pub fn new(kind: ForwardFailureKind, reason: impl Into<String>) -> Self {
        Self {
            kind,
            reason: reason.into(),
        }
    }
}

const OPENED: u8 = 1;
const DATA: u8 = 2;
const END: u8 = 3;
const FAILED: u8 = 4;

impl Frame for ForwardFrame {
    const LIMIT: usize = MAX_FRAME_BYTES;

    fn parts(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Opened => (OPENED, Vec::new()),
            Self::Data(bytes) => (DATA, bytes.clone()),
            Self::End => (END, Vec::new()),
            // Our own type with string keys: serialization cannot fail.
            Self::Failed(failure) => (FAILED, serde_json::to_vec(failure).unwrap_or_default()),
        }
    }

    fn from_parts(frame_type: u8, body: &[u8]) -> Result<Self, FrameError> {
        Ok(match frame_type {
            OPENED => Self::Opened,
            DATA => Self::Data(body.to_vec()),
            END => Self::End,
            FAILED => {
                Self::Failed(
                    serde_json::from_slice(body).map_err(|error| FrameError::Body {
                        frame_type,
                        reason: error.to_string(),
                    })?,
                )
            }
            other => return Err(FrameError::Type(other)),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use guest_protocol::FrameBuffer;

    use super::*;

    #[test]
    fn forward_frames_are_what_they_were_on_the_other_side() {
        let failure = ForwardFailure::new(ForwardFailureKind::PortClosed, "nothing listens");
        let frames = [
            ForwardFrame::Opened,
            ForwardFrame::Data(b"select 1".to_vec()),
            ForwardFrame::Data(Vec::new()),
            ForwardFrame::End,
            ForwardFrame::Failed(failure),
        ];
        let mut buffer = FrameBuffer::default();
        for frame in &frames {
            buffer.push(&frame.encode());
        }
        for frame in frames {
            assert_eq!(buffer.next::<ForwardFrame>().unwrap(), Some(frame));
        }
        let newer = br#"{"kind":"out-of-paper","reason":"x","more":1}"#;
        let read = ForwardFrame::from_parts(FAILED, newer).unwrap();
        let unknown = ForwardFailure::new(ForwardFailureKind::Unknown, "x");
        assert_eq!(read, ForwardFrame::Failed(unknown));
        assert!(ForwardFrame::from_parts(9, b"").is_err());
        assert!(ForwardFrame::from_parts(FAILED, b"{").is_err());
    }
}
