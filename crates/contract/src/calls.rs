//! Calls on running instances: a command beside the app, a signal, figures.
//!
//! Nodes only dial out, so the server asks a node by a [`StreamRequest`](crate::api::StreamRequest)
//! and the node opens the stream: for figures and signals a POST with the answer, for a command a
//! connection upgraded to [`EXEC_PROTOCOL`]. The user's connection is upgraded the same way and the
//! server joins the two. What travels on them are the guest contract's frames: [`UserFrame`] towards
//! the command, [`GuestFrame`](crate::guest::GuestFrame)'s `Exec..` towards the user. The last frame
//! is `ExecExited` or `ExecFailed`; a stream that ends without one was cut.

use serde::{Deserialize, Serialize};

use crate::guest::{Frame, FrameError, GuestStats, HostFrame, MAX_FRAME_BYTES};
use crate::ids::{EnvKey, InstanceId, NodeId, ProcessName};

/// What a connection with exec frames is upgraded to (`Upgrade: ...`).
pub const EXEC_PROTOCOL: &str = "platform-exec/1";
/// Longest command with its arguments, in bytes; it travels in the query of a URL.
pub const MAX_EXEC_COMMAND_BYTES: usize = 16 * 1024;

/// The query of [`paths::EXEC`](crate::api::paths::EXEC): a command to run beside the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecQuery {
    /// Program and arguments, as a JSON array of strings.
    #[serde(with = "json_text")]
    pub command: Vec<String>,
    /// Rows of the user's terminal; with `columns`, or neither: then it runs on pipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u16>,
    /// Columns of the user's terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<u16>,
}

/// A list as one value of a query.
mod json_text {
    use serde::de::{Deserialize, Deserializer, Error as _};
    use serde::ser::{Error as _, Serializer};

    pub(super) fn serialize<S: Serializer>(list: &[String], to: S) -> Result<S::Ok, S::Error> {
        let text = serde_json::to_string(list).map_err(S::Error::custom)?;
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
        let text = String::deserialize(from)?;
        serde_json::from_str(&text)
            .map_err(|error| D::Error::custom(format!("not a JSON array of strings: {error}")))
    }
}

/// A command that a node is asked to run in one of its guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecWanted {
    /// In which instance.
    pub instance: InstanceId,
    /// Program and arguments; at least one.
    pub command: Vec<String>,
    /// Rows and columns of a terminal; absent: pipes.
    pub terminal: Option<(u16, u16)>,
}

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

/// The body of POST [`paths::SIGNAL`](crate::api::paths::SIGNAL).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignalRequest {
    /// Signal name or number: `SIGHUP`, `HUP`, `1`.
    pub signal: String,
}

/// What a node answers when asked to pass a signal on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignalAnswer {
    /// Why the guest did not get it; absent when it did.
    pub refused: Option<String>,
}

/// What a node answers when asked for figures: one for each instance asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceStats {
    /// The instance.
    pub instance: InstanceId,
    /// What its guest says; absent when it did not answer.
    pub stats: Option<GuestStats>,
    /// Why there are none.
    pub reason: Option<String>,
}

/// The figures of one instance, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatsRow {
    /// The instance.
    pub id: InstanceId,
    /// Its env.
    pub env: EnvKey,
    /// Its process type.
    pub process: ProcessName,
    /// Its node.
    pub node: NodeId,
    /// What its guest says; absent when it did not answer.
    pub stats: Option<GuestStats>,
    /// Why there are none.
    pub reason: Option<String>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::guest::FrameBuffer;

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

    #[test]
    fn a_command_travels_as_one_value_of_a_query() {
        let query = ExecQuery {
            command: vec!["sh".to_owned(), "-c".to_owned(), "a & \"b\"".to_owned()],
            rows: Some(24),
            columns: Some(80),
        };
        let value = serde_json::to_value(&query).unwrap();
        assert_eq!(value["command"], r#"["sh","-c","a & \"b\""]"#);
        assert_eq!(serde_json::from_value::<ExecQuery>(value).unwrap(), query);
    }
}
