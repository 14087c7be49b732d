//! The frames of both directions, and the channels they travel on.

use model::instance::{ExitEvent, Init};
use serde::{Deserialize, Serialize};

use crate::boot::BootConfig;
use crate::codec::{
    Frame, FrameError, IGNORABLE, MAX_BOOT_FRAME_BYTES, MAX_FRAME_BYTES, from_json, json,
};
use crate::log::{LOG_FRAME, LogRecord, Stream};
use crate::version::{ignores_unknown_fields, is_served};

/// The context id of the host, as guests see it (virtio spec, 5.10.4: `VMADDR_CID_HOST`).
pub const HOST_CID: u32 = 2;
/// The vsock port the node listens on for each guest; on the host it is the socket `<uds>_1024`.
pub const HOST_PORT: u32 = 1024;

/// The type of [`GuestFrame::Forwarded`].
const FORWARDED_FRAME: u8 = IGNORABLE + 11;
/// The type of [`GuestFrame::TimeAsked`].
const TIME_ASKED_FRAME: u8 = IGNORABLE + 12;
/// The type of [`GuestFrame::Progressed`].
const PROGRESSED_FRAME: u8 = IGNORABLE + 13;
/// The type of [`HostFrame::Time`].
const TIME_FRAME: u8 = IGNORABLE + 75;
/// The type of [`HostFrame::Mtu`].
const MTU_FRAME: u8 = IGNORABLE + 76;

/// The purpose of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// Events and calls; one connection at a time per guest.
    Control,
    /// Log records; one connection at a time per guest.
    Log,
    /// One exec session, asked for by [`HostFrame::Exec`].
    Exec {
        /// The session's number, as the node chose it.
        session: u32,
    },
}

/// The state of a guest when it says hello.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Just booted: it needs its [`BootConfig`].
    Waiting,
    /// It has its config and is starting the app.
    Starting,
    /// The app runs.
    Running,
    /// The app ended; [`GuestFrame::Exited`] follows.
    Exited,
    /// The boot failed; [`GuestFrame::BootFailed`] follows.
    Failed,
}

/// A frame from the guest to the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestFrame {
    /// The first frame on every connection.
    Hello(Hello),
    /// The app was started.
    Started,
    /// A step of the boot failed; the guest powers off after [`HostFrame::ExitAck`].
    BootFailed(BootFailure),
    /// The app ended; the guest powers off after [`HostFrame::ExitAck`].
    Exited(ExitEvent),
    /// The answer to [`HostFrame::Stats`].
    Stats(GuestStats),
    /// Connections to these ports are forwarded, because nothing listens on them over IPv6: all such ports so far. A receiver
    /// that does not know it skips it.
    Forwarded(Forwarded),
    /// Answer with [`HostFrame::Time`]. A receiver that does not know it skips it.
    TimeAsked(TimeAsked),
    /// A step of the boot that takes long has done more than before. A receiver that does not know it skips it.
    Progressed(BootProgress),
    /// One line of output, or a piece of one. On the log channel only.
    Log(LogRecord),
    /// On an exec channel: output.
    ExecOutput {
        /// Where the command wrote it.
        stream: Stream,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// On an exec channel, last: how the command ended.
    ExecExited(ExitEvent),
    /// The answer to [`HostFrame::Exec`] when its channel will not be dialled. On the control channel.
    ExecRefused {
        /// The session's number, as the node chose it.
        session: u32,
        /// Why, for the user.
        reason: String,
    },
    /// On an exec channel, last, in place of [`Self::ExecExited`]: the command's end is not known. The
    /// node sends it to the user's client; a guest never sends it.
    ExecFailed {
        /// Why, for the user.
        reason: String,
    },
}

/// A frame from the node to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostFrame {
    /// What to run; once, to a guest that waits for it.
    Boot(Box<BootConfig>),
    /// Send the app [`BootConfig::stop_signal`], and what is left of it when its main process has ended. After the
    /// timeout, send SIGKILL to all.
    Stop {
        /// Milliseconds until SIGKILL.
        timeout_ms: u64,
    },
    /// Send this signal to the app's main process.
    Signal {
        /// Signal name, `SIGHUP`.
        signal: String,
    },
    /// Answer with [`GuestFrame::Stats`].
    Stats,
    /// Dial an exec channel with this session number and run the command.
    Exec(ExecRequest),
    /// The node has recorded the guest's end; power off.
    ExitAck,
    /// On the log channel: the node has recorded every record up to this sequence number.
    LogAck {
        /// The last record's [`LogRecord::seq`].
        seq: u64,
    },
    /// On an exec channel: input. Empty means end of input.
    ExecInput {
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// On an exec channel: the terminal's new size.
    ExecResize {
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// The node does not serve the guest's version: this connection ends.
    Refused {
        /// Why, for the guest's console.
        reason: String,
    },
    /// The answer to [`GuestFrame::TimeAsked`]. A receiver that does not know it skips it.
    Time(NodeTime),
    /// The MTU of the cluster is another now: that of the guest's interface is to be the same. A receiver that does not know it
    /// skips it, but for one of version 2 ([`HostFrame::may_be_sent_to`]).
    Mtu(GuestMtu),
}

/// The first frame on every connection. Its type and its field `contract` are the same in every version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The guest's version of this protocol. One that a node does not serve decodes to
    /// [`FrameError::Version`], whatever else the hello says.
    pub contract: u32,
    /// The purpose of the connection.
    pub channel: Channel,
    /// The state of the guest.
    pub phase: Phase,
    /// What only init knows: random, the same on every connection of one boot, at most [`MAX_TOKEN_BYTES`]. The node keeps that
    /// of the first connection, which comes before anything else runs in the guest, and refuses every other. Empty: the
    /// guest's init is older and has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub token: String,
}

/// Longest [`Hello::token`], in bytes.
pub const MAX_TOKEN_BYTES: usize = 128;

impl Hello {
    fn from_body(frame_type: u8, body: &[u8]) -> Result<Self, FrameError> {
        /// What a hello of any version has.
        #[derive(Deserialize)]
        struct Version {
            contract: u32,
        }
        let Version { contract } = from_json(frame_type, body)?;
        if !is_served(contract) {
            return Err(FrameError::Version { contract });
        }
        from_json(frame_type, body)
    }
}

/// Why a guest could not start its app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFailure {
    /// The step of the boot plan (`mount root disk`).
    pub step: String,
    /// Why it failed.
    pub reason: String,
    /// 127 when the command was not found, 126 when it cannot be executed, also because there is no such user,
    /// a path of the image is a file, or a volume is too small; absent otherwise: another boot may succeed.
    pub exit_code: Option<u8>,
}

/// Resource use of a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GuestStats {
    /// CPU time of the app's processes, microseconds.
    pub cpu_micros: u64,
    /// Memory of the app's processes, bytes.
    pub memory_bytes: u64,
    /// Memory of the guest, bytes.
    pub memory_total_bytes: u64,
    /// Bytes used on the scratch disk.
    pub scratch_used_bytes: u64,
    /// Bytes received and sent on the network.
    pub network_bytes: (u64, u64),
    /// Processes.
    pub processes: u32,
    /// Resident memory of init, bytes; 0: not known. It is none of the app's.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub init_memory_bytes: u64,
    /// Connections of edges with the app that are open, those through init's proxies included. Absent: an older guest, which does not count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge_connections: Option<u32>,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde asks for"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Ports that connections are forwarded to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarded {
    /// In ascending order.
    pub ports: Vec<u16>,
}

/// How far a step of the boot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootProgress {
    /// Files and directories that are done.
    pub entries: u64,
    /// Bytes of their content that are copied.
    pub bytes: u64,
}

/// A question for the node's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeAsked {
    /// The question's number, as the guest chose it.
    pub number: u64,
}

/// The node's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeTime {
    /// The question that it answers ([`TimeAsked::number`]).
    pub number: u64,
    /// Nanoseconds since 1970 (UTC) by the node's clock, as the answer was written.
    pub unix_nanos: u64,
}

/// The MTU of a guest's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMtu {
    /// In bytes; at least 1280 (RFC 8200, 5).
    pub mtu: u32,
}

/// A command to run beside the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The channel to dial: [`Channel::Exec`].
    pub session: u32,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Rows and columns of a terminal; absent: pipes.
    pub terminal: Option<(u16, u16)>,
    /// The type of the user's terminal, the value of `TERM`. Absent: the app's own, else `xterm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal_type: Option<String>,
    /// Whether the command is what the guest is for ([`BootConfig::attached`]): it is [`BootConfig::argv`] then, whatever [`Self::argv`] says. A guest
    /// runs it once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub main: bool,
}

impl HostFrame {
    /// Whether a guest of this version reads the frame or skips it. One of version 2 ends the connection by a frame that came later.
    pub fn may_be_sent_to(&self, version: u32) -> bool {
        !matches!(self, Self::Mtu(_)) || ignores_unknown_fields(version)
    }

    /// The frame as a guest of this version reads it: without the fields of later versions, where it would refuse those.
    #[must_use]
    pub fn for_version(mut self, version: u32) -> Self {
        if !ignores_unknown_fields(version) {
            match &mut self {
                Self::Boot(config) => {
                    config.init = Init::default();
                    config.ports.clear();
                    config.secret_modes.clear();
                    config.attached = false;
                    config.network.search.clear();
                    for volume in &mut config.volumes {
                        (volume.path, volume.owner) = (None, None);
                    }
                }
                Self::Exec(request) => {
                    request.terminal_type = None;
                    request.main = false;
                }
                _ => {}
            }
        }
        self
    }
}

impl Frame for GuestFrame {
    const LIMIT: usize = MAX_FRAME_BYTES;

    fn parts(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Hello(hello) => (1, json(hello)),
            Self::Started => (2, Vec::new()),
            Self::BootFailed(failure) => (3, json(failure)),
            Self::Exited(event) => (4, json(event)),
            Self::Stats(stats) => (5, json(stats)),
            Self::Log(record) => (LOG_FRAME, record.body()),
            Self::ExecOutput { stream, bytes } => {
                let mut body = Vec::with_capacity(1 + bytes.len());
                body.push(stream.code());
                body.extend_from_slice(bytes);
                (7, body)
            }
            Self::ExecExited(event) => (8, json(event)),
            Self::ExecFailed { reason } => (9, json(reason)),
            Self::ExecRefused { session, reason } => (10, json(&(session, reason))),
            Self::Forwarded(forwarded) => (FORWARDED_FRAME, json(forwarded)),
            Self::TimeAsked(asked) => (TIME_ASKED_FRAME, json(asked)),
            Self::Progressed(progress) => (PROGRESSED_FRAME, json(progress)),
        }
    }

    fn from_parts(frame_type: u8, body: &[u8]) -> Result<Self, FrameError> {
        Ok(match frame_type {
            1 => Self::Hello(Hello::from_body(frame_type, body)?),
            2 => Self::Started,
            3 => Self::BootFailed(from_json(frame_type, body)?),
            4 => Self::Exited(from_json(frame_type, body)?),
            5 => Self::Stats(from_json(frame_type, body)?),
            LOG_FRAME => Self::Log(LogRecord::from_body(body)?),
            7 => match body.split_first() {
                Some((code, bytes)) => Self::ExecOutput {
                    stream: Stream::from_code(frame_type, *code)?,
                    bytes: bytes.to_vec(),
                },
                None => {
                    return Err(FrameError::Body {
                        frame_type,
                        reason: "empty".to_owned(),
                    });
                }
            },
            8 => Self::ExecExited(from_json(frame_type, body)?),
            9 => Self::ExecFailed {
                reason: from_json(frame_type, body)?,
            },
            10 => {
                let (session, reason) = from_json(frame_type, body)?;
                Self::ExecRefused { session, reason }
            }
            FORWARDED_FRAME => Self::Forwarded(from_json(frame_type, body)?),
            TIME_ASKED_FRAME => Self::TimeAsked(from_json(frame_type, body)?),
            PROGRESSED_FRAME => Self::Progressed(from_json(frame_type, body)?),
            other => return Err(FrameError::Type(other)),
        })
    }
}

impl Frame for HostFrame {
    const LIMIT: usize = MAX_BOOT_FRAME_BYTES;

    fn parts(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Boot(config) => (65, json(config)),
            Self::Stop { timeout_ms } => (66, json(timeout_ms)),
            Self::Signal { signal } => (67, json(signal)),
            Self::Stats => (68, Vec::new()),
            Self::Exec(request) => (69, json(request)),
            Self::ExitAck => (70, Vec::new()),
            Self::LogAck { seq } => (71, seq.to_le_bytes().to_vec()),
            Self::ExecInput { bytes } => (72, bytes.clone()),
            Self::ExecResize { rows, columns } => (73, json(&(rows, columns))),
            Self::Refused { reason } => (74, json(reason)),
            Self::Time(time) => (TIME_FRAME, json(time)),
            Self::Mtu(mtu) => (MTU_FRAME, json(mtu)),
        }
    }

    fn from_parts(frame_type: u8, body: &[u8]) -> Result<Self, FrameError> {
        Ok(match frame_type {
            65 => Self::Boot(from_json(frame_type, body)?),
            66 => Self::Stop {
                timeout_ms: from_json(frame_type, body)?,
            },
            67 => Self::Signal {
                signal: from_json(frame_type, body)?,
            },
            68 => Self::Stats,
            69 => Self::Exec(from_json(frame_type, body)?),
            70 => Self::ExitAck,
            71 => {
                let seq = body.try_into().map_err(|_| FrameError::Body {
                    frame_type,
                    reason: "not 8 bytes".to_owned(),
                })?;
                Self::LogAck {
                    seq: u64::from_le_bytes(seq),
                }
            }
            72 => Self::ExecInput {
                bytes: body.to_vec(),
            },
            73 => {
                let (rows, columns) = from_json(frame_type, body)?;
                Self::ExecResize { rows, columns }
            }
            74 => Self::Refused {
                reason: from_json(frame_type, body)?,
            },
            TIME_FRAME => Self::Time(from_json(frame_type, body)?),
            MTU_FRAME => Self::Mtu(from_json(frame_type, body)?),
            other => return Err(FrameError::Type(other)),
        })
    }
}
