//! Exec streams: a command beside the app, from a user through the server to a guest.
//!
//! Nodes only dial out, so the server asks a node by a [`StreamRequest`](crate::node::StreamRequest)
//! and the node opens the stream: a connection upgraded to [`EXEC_PROTOCOL`]. The user's connection
//! is upgraded the same way and the server joins the two. What travels on them are the guest
//! protocol's frames: [`UserFrame`] towards the command, [`GuestFrame`](guest_protocol::GuestFrame)'s
//! `Exec..` towards the user. The last frame is `ExecExited` or `ExecFailed`; a stream that ends
//! without one was cut.

use guest_protocol::{Frame, FrameError, HostFrame, MAX_FRAME_BYTES};

/// What a connection with exec frames is upgraded to (`Upgrade: ...`).
pub const EXEC_PROTOCOL: &str = "platform-exec/1";

/// What a user says to a command: [`HostFrame`]s of an exec channel and no others, at most
/// [`MAX_FRAME_BYTES`] each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserFrame(HostFrame);

impl UserFrame {
    /// Input; empty means end of input.
    pub fn input(bytes: Vec<u8>) -> Self {
        Self(HostFrame::ExecInput { bytes })
    }

    /// The terminal's new size.
    pub fn resize(rows: u16, columns: u16) -> Self {
        Self(HostFrame::ExecResize { rows, columns })
    }

    /// A signal to the command and what it started: `SIGINT`.
    pub fn signal(name: &str) -> Self {
        Self(HostFrame::Signal {
            signal: name.to_owned(),
        })
    }
}

impl From<UserFrame> for HostFrame {
    fn from(UserFrame(frame): UserFrame) -> Self {
        frame
    }
}

impl Frame for UserFrame {
    const LIMIT: usize = MAX_FRAME_BYTES;

    fn parts(&self) -> (u8, Vec<u8>) {
        self.0.parts()
    }

    fn from_parts(frame_type: u8, body: &[u8]) -> Result<Self, FrameError> {
        match HostFrame::from_parts(frame_type, body)? {
            frame @ (HostFrame::ExecInput { .. }
            | HostFrame::ExecResize { .. }
            | HostFrame::Signal { .. }) => Ok(Self(frame)),
            _ => Err(FrameError::Type(frame_type)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use guest_protocol::FrameBuffer;

    #[test]
    fn a_user_says_what_belongs_on_an_exec_channel_and_nothing_else() {
        let mut buffer = FrameBuffer::default();
        for frame in [
            UserFrame::input(b"ls\n".to_vec()),
            UserFrame::input(Vec::new()),
            UserFrame::resize(30, 100),
            UserFrame::signal("SIGINT"),
        ] {
            buffer.push(&frame.encode());
            assert_eq!(buffer.next::<UserFrame>().unwrap(), Some(frame));
        }
        for forged in [
            HostFrame::ExitAck,
            HostFrame::Stats,
            HostFrame::Stop { timeout_ms: 0 },
        ] {
            let mut buffer = FrameBuffer::default();
            buffer.push(&forged.encode());
            assert!(buffer.next::<UserFrame>().is_err(), "{forged:?}");
        }
        let mut buffer = FrameBuffer::default();
        buffer.push(&UserFrame::input(vec![0; MAX_FRAME_BYTES]).encode());
        assert!(buffer.next::<UserFrame>().is_err(), "over the limit");
    }
}
