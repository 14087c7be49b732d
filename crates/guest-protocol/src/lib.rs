//! The boot contract between a node and `platform-init`, PID 1 of every guest (ADR 0003).
//!
//! One transport, vsock. The guest always connects, to [`HOST_CID`] port [`HOST_PORT`]; the first
//! frame on a connection is [`GuestFrame::Hello`], which names the contract version and what the
//! connection is for ([`Channel`]). A node tells instances apart by the socket the connection came
//! in on, never by what the guest claims.
//!
//! ```text
//! control:  guest                         node
//!           Hello{control, phase} ------>
//!                                 <------ Boot(config)      when phase is `waiting`
//!           Started               ------>
//!                                 <------ Stop | Signal | Stats | Exec{session}
//!           Stats | ExecRefused{session} ->                 the answers; a session has its channel
//!           Exited{event}         ------>                   sent again after a reconnect
//!                                 <------ ExitAck           then the guest powers off
//! log:      Hello{log, phase}     ------>
//!           Log{seq,..} ..        ------>
//!                                 <------ LogAck{seq}       lets the guest forget up to seq
//! ```
//!
//! The transport has no half-close, so nothing relies on end of file: every message is a frame and
//! what matters is acknowledged. When a connection breaks, the guest dials again for as long as it
//! lives (the agent may be restarting), says its phase, and sends unacknowledged logs again.
//!
//! A frame on the wire is `u32` little-endian length of what follows, one type byte, the body.
//! Bodies are JSON but for [`LogRecord`] and exec data, which are bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use model::instance::{ExitEvent, ProxyProtocol, SecretBundle};

/// Version of this contract. A guest with another one is refused.
pub const CONTRACT_VERSION: u32 = 2;
/// The context id of the host, as guests see it (virtio spec, 5.10.4: `VMADDR_CID_HOST`).
pub const HOST_CID: u32 = 2;
/// The vsock port the node listens on for each guest; on the host it is the socket `<uds>_1024`.
pub const HOST_PORT: u32 = 1024;
/// Largest frame, type byte and body, in bytes. Both sides refuse larger ones.
pub const MAX_FRAME_BYTES: usize = 256 * 1024;
/// Largest [`BootConfig`] frame, in bytes: it carries variables and secrets.
pub const MAX_BOOT_FRAME_BYTES: usize = 4 * 1024 * 1024;
/// Largest piece of a line in one [`LogRecord`], in bytes; longer lines are split and marked.
pub const MAX_LOG_PIECE_BYTES: usize = 16 * 1024;
/// Fixed place of secret bundles in the guest.
pub const SECRETS_DIR: &str = "/run/secrets";
/// Fixed place of volumes in the guest.
pub const VOLUMES_DIR: &str = "/mnt/volumes";
/// Address of the node's end of an instance's link; the instance's default route.
pub const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Where instances ask for names. What answers there is the node's to choose (RFC 7335 keeps
/// 192.0.0.0/29 for the inside of such translations).
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 3);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// Events and calls; one at a time per guest.
    Control,
    /// Log records; one at a time per guest.
    Log,
    /// One exec session, asked for by [`HostFrame::Exec`].
    Exec {
        /// The session's number, as the host gave it.
        session: u32,
    },
}

/// How far a guest is when it says hello.
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

/// What the guest says.
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
    /// One line of output, or a piece of one. On the log channel only.
    Log(LogRecord),
    /// On an exec channel: output.
    ExecOutput {
        /// Which stream.
        stream: Stream,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// On an exec channel, last: how the command ended.
    ExecExited(ExitEvent),
    /// The answer to [`HostFrame::Exec`] when its channel will not be dialled. On the control channel.
    ExecRefused {
        /// The session's number, as the host gave it.
        session: u32,
        /// Why, for the user.
        reason: String,
    },
    /// On an exec channel, last: there is no end to tell. The node says it to the user; a guest
    /// never does.
    ExecFailed {
        /// Why, for the user.
        reason: String,
    },
}

/// What the node says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostFrame {
    /// What to run; once, to a guest that is waiting.
    Boot(Box<BootConfig>),
    /// Send the app [`BootConfig::stop_signal`], then SIGKILL after the timeout.
    Stop {
        /// Milliseconds until SIGKILL.
        timeout_ms: u64,
    },
    /// Send this signal to the app.
    Signal {
        /// Signal name, `SIGHUP`.
        signal: String,
    },
    /// Answer with [`GuestFrame::Stats`].
    Stats,
    /// Dial an exec channel with this session number and run the command.
    Exec(ExecRequest),
    /// The end was written down; power off.
    ExitAck,
    /// On the log channel: every record up to this sequence number is written down.
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
    /// The contract versions differ: this connection ends.
    Refused {
        /// Why, for the guest's console.
        reason: String,
    },
}

/// The first frame on every connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`CONTRACT_VERSION`] of the guest.
    pub contract: u32,
    /// What the connection is for.
    pub channel: Channel,
    /// How far the guest is.
    pub phase: Phase,
}

/// Why a guest could not start its app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootFailure {
    /// The step of the boot plan (`mount root disk`).
    pub step: String,
    /// Why it failed.
    pub reason: String,
    /// 127 when the command was not found, 126 when it was not executable; absent otherwise.
    pub exit_code: Option<u8>,
}

/// What to run in a guest, resolved by the node from the image's config and the instance's spec.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootConfig {
    /// Host name of the guest.
    pub hostname: String,
    /// Program and arguments; at least one. The program is looked up in `PATH` as execvp does.
    pub argv: Vec<String>,
    /// The whole environment, in order, the platform's variables included.
    pub environment: Vec<(String, String)>,
    /// Working directory; made when missing.
    pub working_dir: String,
    /// `user[:group]` by name or number, resolved by the image's own /etc/passwd and /etc/group.
    pub user: String,
    /// Signal name that stops the app: the manifest's, else the image's, else SIGTERM.
    pub stop_signal: String,
    /// The network.
    pub network: GuestNetwork,
    /// Block device of the read-only root disk (`/dev/vda`).
    pub root_device: String,
    /// Block device of the scratch disk.
    pub scratch_device: String,
    /// Volumes by device.
    pub volumes: Vec<VolumeMount>,
    /// Directories the image declares as `Volumes`; made when missing, on scratch.
    pub image_volumes: Vec<String>,
    /// Secret bundles, for the tmpfs at [`SECRETS_DIR`].
    pub secrets: Vec<SecretBundle>,
    /// Ports of the guest's PROXY adapter, which runs where there are any.
    pub proxy: Vec<ProxyPort>,
}

impl std::fmt::Debug for BootConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Variables may hold secrets: their names only.
        let names: Vec<_> = self.environment.iter().map(|(name, _)| name).collect();
        f.debug_struct("BootConfig")
            .field("hostname", &self.hostname)
            .field("argv", &self.argv)
            .field("environment", &names)
            .field("working_dir", &self.working_dir)
            .field("user", &self.user)
            .field("network", &self.network)
            .field("volumes", &self.volumes)
            .field("secrets", &self.secrets)
            .field("proxy", &self.proxy)
            .finish_non_exhaustive()
    }
}

/// A guest's network: an address in the cluster, one for egress, one gateway, one MTU (ADR 0004).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestNetwork {
    /// The instance's address, a /128.
    pub address: Ipv6Addr,
    /// What it sends to the world outside of the cluster from, a /32. Only its node knows it.
    pub ipv4: Ipv4Addr,
    /// Link-local next hop of the default routes, IPv4's too (RFC 8950).
    pub gateway: Ipv6Addr,
    /// MTU of the interface, in bytes.
    pub mtu: u32,
    /// Name servers for resolv.conf; empty: the image's own file stays.
    pub resolvers: Vec<IpAddr>,
}

/// A port where edges say by a PROXY v2 header who the client is. The guest's adapter listens there
/// and leads to the app's own port, which stays plain for its neighbours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyPort {
    /// Where the adapter listens, on the instance's own address.
    pub ingress: u16,
    /// The app's port.
    pub port: u16,
    /// Whether the app gets the header too.
    pub mode: ProxyProtocol,
    /// Who may connect: whoever has this address in the bits of [`Self::peers_mask`].
    pub peers: Ipv6Addr,
    /// The bits of [`Self::peers`] that count.
    pub peers_mask: Ipv6Addr,
}

/// A volume by device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeMount {
    /// Block device (`/dev/vdc`).
    pub device: String,
    /// The volume's name.
    pub name: String,
}

/// Standard output or standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Init's own words about this instance (dropped lines, for one).
    Platform,
}

/// One line of the app's output, or a piece of a long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Counts from 1 in each guest; what the host acknowledges.
    pub seq: u64,
    /// When init read it, nanoseconds since 1970 by the guest's clock.
    pub at_nanos: u64,
    /// Where it was written.
    pub stream: Stream,
    /// True when the line goes on in the next record of this stream.
    pub partial: bool,
    /// Lines lost just before this record because the host was slow.
    pub dropped: u32,
    /// The bytes, without the newline; not necessarily UTF-8.
    pub line: Vec<u8>,
}

/// Figures of a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
}

/// A command to run beside the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The channel to dial: [`Channel::Exec`].
    pub session: u32,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Rows and columns of a terminal; absent: pipes.
    pub terminal: Option<(u16, u16)>,
}

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
    /// No such type from this side.
    #[error("unknown frame type {0}")]
    Type(u8),
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
    /// An unknown type, or a body that does not decode.
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
    start: usize,
}

impl FrameBuffer {
    /// Adds bytes as they were read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 && (self.start == self.bytes.len() || self.start > 64 * 1024) {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// The bytes are no frame; the buffer is then of no more use.
    #[allow(
        clippy::should_implement_trait,
        reason = "an iterator has one type of item, and an end"
    )]
    pub fn next<F: Frame>(&mut self) -> Result<Option<F>, FrameError> {
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
        let frame = F::from_parts(rest[0], &rest[1..length])?;
        self.start += 4 + length;
        Ok(Some(frame))
    }
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    // Our own types with string keys: serialization cannot fail.
    serde_json::to_vec(value).unwrap_or_default()
}

fn from_json<'a, T: Deserialize<'a>>(frame_type: u8, body: &'a [u8]) -> Result<T, FrameError> {
    serde_json::from_slice(body).map_err(|error| FrameError::Body {
        frame_type,
        reason: error.to_string(),
    })
}

/// The type of frames that have a [`LogRecord`].
const LOG_FRAME: u8 = 6;
const LOG_HEAD_BYTES: usize = 8 + 8 + 1 + 1 + 4;
/// Bytes of a log record's frame before those of its line.
pub const LOG_FRAME_START_BYTES: usize = 4 + 1 + LOG_HEAD_BYTES;

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

    /// What [`Frame::encode`] gives for this record with a line of `line_bytes` in place of its own, up to where that
    /// line begins: for a guest that has many lines to say, and sets each behind its frame's start without a copy.
    pub fn frame_start(&self, line_bytes: usize) -> [u8; LOG_FRAME_START_BYTES] {
        let length = u32::try_from(1 + LOG_HEAD_BYTES + line_bytes).unwrap_or(u32::MAX);
        let mut start = [0; LOG_FRAME_START_BYTES];
        start[..4].copy_from_slice(&length.to_le_bytes());
        start[4] = LOG_FRAME;
        start[5..].copy_from_slice(&self.head());
        start
    }
}

impl Stream {
    fn code(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
            Self::Platform => 3,
        }
    }

    fn from_code(frame_type: u8, code: u8) -> Result<Self, FrameError> {
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

impl Frame for GuestFrame {
    const LIMIT: usize = MAX_FRAME_BYTES;

    fn parts(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Hello(hello) => (1, json(hello)),
            Self::Started => (2, Vec::new()),
            Self::BootFailed(failure) => (3, json(failure)),
            Self::Exited(event) => (4, json(event)),
            Self::Stats(stats) => (5, json(stats)),
            Self::Log(record) => {
                let mut body = Vec::with_capacity(LOG_HEAD_BYTES + record.line.len());
                body.extend_from_slice(&record.head());
                body.extend_from_slice(&record.line);
                (LOG_FRAME, body)
            }
            Self::ExecOutput { stream, bytes } => {
                let mut body = Vec::with_capacity(1 + bytes.len());
                body.push(stream.code());
                body.extend_from_slice(bytes);
                (7, body)
            }
            Self::ExecExited(event) => (8, json(event)),
            Self::ExecFailed { reason } => (9, json(reason)),
            Self::ExecRefused { session, reason } => (10, json(&(session, reason))),
        }
    }

    fn from_parts(frame_type: u8, body: &[u8]) -> Result<Self, FrameError> {
        Ok(match frame_type {
            1 => Self::Hello(from_json(frame_type, body)?),
            2 => Self::Started,
            3 => Self::BootFailed(from_json(frame_type, body)?),
            4 => Self::Exited(from_json(frame_type, body)?),
            5 => Self::Stats(from_json(frame_type, body)?),
            LOG_FRAME => Self::Log(log_record(body)?),
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
            other => return Err(FrameError::Type(other)),
        })
    }
}

fn log_record(body: &[u8]) -> Result<LogRecord, FrameError> {
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
    Ok(LogRecord {
        seq: u64::from_le_bytes(*seq),
        at_nanos: u64::from_le_bytes(*at),
        stream: Stream::from_code(LOG_FRAME, *stream)?,
        partial: *partial != 0,
        dropped: u32::from_le_bytes(*dropped),
        line: line.to_vec(),
    })
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
            other => return Err(FrameError::Type(other)),
        })
    }
}
