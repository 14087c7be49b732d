//! The protocol between a node and `platform-init`, PID 1 of every guest (ADR 0003).
//!
//! One transport, vsock. The guest always connects, to [`HOST_CID`] port [`HOST_PORT`]; the first
//! frame on a connection is [`GuestFrame::Hello`], which names the protocol version and the purpose of
//! the connection ([`Channel`]). A node tells instances apart by the socket the connection came
//! in on, never by what the guest claims. Within a guest only init is answered: its first hello has a random
//! [token](Hello::token), which the node keeps and asks of every later connection of this boot.
//!
//! ```text
//! control:  guest                         node
//!           Hello{control, phase} ------>
//!                                 <------ Boot(config)      when phase is `waiting`; never once the app was started
//!           Progressed{done}      ------>                   while a step of the boot takes long
//!           Started               ------>
//!                                 <------ Stop | Signal | Stats | Exec{session}
//!           Stats | ExecRefused{session} ->                 the answers; a session has its channel
//!           TimeAsked{number}     ------>                   every some seconds
//!                                 <------ Time{number}      the node's clock, which the guest's follows
//!                                 <------ Mtu{mtu}          when the cluster's MTU changes, and on each new connection
//!           Exited{event}         ------>                   sent again after a reconnect
//!                                 <------ ExitAck           then the guest powers off
//! log:      Hello{log, phase}     ------>
//!           Log{seq,..} ..        ------>
//!                                 <------ LogAck{seq}       the guest drops what it kept up to seq
//! ```
//!
//! The transport has no half-close, so nothing relies on end of file: every message is a frame and
//! what matters is acknowledged. When a connection breaks, the guest dials again for as long as it
//! lives (the agent may be restarting), says its phase, and sends unacknowledged logs again.
//!
//! A frame on the wire is `u32` little-endian length of what follows, one type byte, the body.
//! Bodies are JSON but for [`LogRecord`] and exec data, which are bytes.
//!
//! # Versions
//!
//! Guests outlive upgrades of their node's agent: a node of version N serves guests of N and N-1
//! ([`is_served`]), and answers any other hello with [`HostFrame::Refused`], which says both versions and what
//! to do. A guest serves the node that booted it and that node's next version; an older node refuses it.
//!
//! What may change without a new version, because receivers from version 3 on ignore it:
//! - a field is added to a JSON object. It has a default, because older senders do not send it;
//! - a frame type with the bit [`IGNORABLE`] is added: a receiver that does not know it skips it.
//!
//! What makes a new version: a frame type without that bit, which an older receiver answers by closing the
//! connection; a new value of an enum ([`Channel`], [`Phase`], [`Stream`]); a field that is removed, or whose meaning
//! changes; any change of a body that is not a JSON object. The hello's type and its field `contract` never change.
//!
//! Version 2 is strict: its guests refuse any field or frame type that they do not know. As long as it is served, what
//! the node sends them ([`HostFrame::for_version`]) is byte for byte of version 2, which a test holds against a
//! recording of it; a field that was added since is not written where it has its default.
//! `tests/fixtures` has the recorded bytes of each served version; the oldest goes with the version.

mod boot;
mod codec;
mod frames;
mod log;
mod version;

pub use boot::{
    BootConfig, GATEWAY, GuestNetwork, INTERNAL_DOMAIN, ProxyPort, RESOLVER, SECRETS_DIR,
    VOLUMES_DIR, VolumeMount,
};
pub use codec::{Frame, FrameBuffer, FrameError, IGNORABLE, MAX_BOOT_FRAME_BYTES, MAX_FRAME_BYTES};
pub use frames::{
    BootFailure, BootProgress, Channel, ExecRequest, Forwarded, GuestFrame, GuestMtu, GuestStats,
    HOST_CID, HOST_PORT, Hello, HostFrame, MAX_TOKEN_BYTES, NodeTime, Phase, TimeAsked,
};
pub use log::{LOG_FRAME_START_BYTES, LogRecord, MAX_LOG_PIECE_BYTES, Stream};
pub use version::{CONTRACT_VERSION, OLDEST_SERVED_VERSION, is_served, refusal};
