//! What a member measures of its links in the overlay when a user asks for it (`platform network doctor`), and what it answers (ADR 0004).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use model::{NodeId, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::MAX_REPORTED_LINKS;

/// How many members that are no peers a member is asked to reach in one run, by way of hubs.
pub const MAX_RELAYED: usize = 64;
/// Longest time that a member is given for a run, in milliseconds.
pub const MAX_MEASUREMENT_MS: u64 = 60_000;
/// Longest text of a member in a [`Measurement`], in bytes: the release of its kernel, the name of a link.
pub const MAX_MEASUREMENT_TEXT: usize = 128;
/// Largest packet of IPv6, in bytes, of which a [`Measurement`] says that it passed (RFC 8200, 3).
const MAX_PACKET: u32 = 40 + u16::MAX as u32;
/// The least MTU of a network, in bytes, that a [`Measurement`] may name (RFC 791, 3.2).
const MIN_UNDERLAY_MTU: u32 = 68;
/// Most echoes that a member asks one other for in a run.
const MAX_ECHOES: u32 = 10_000;
/// The greatest age of a handshake that a [`Measurement`] tells, in seconds: WireGuard makes a new one every two minutes where anything is sent, and an
/// interface lives as long as its machine.
const MAX_HANDSHAKE_AGE: u64 = 10 * 365 * 86_400;

/// What a member is to measure. It is in [`super::MemberState`] until the member has answered it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasurementRequest {
    /// Names the run. Never 0.
    pub run: u64,
    /// Which of its peers; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<BTreeSet<NodeId>>,
    /// Members that are no peers of its own, which it reaches by way of hubs. At most [`MAX_RELAYED`].
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub relayed: BTreeSet<NodeId>,
    /// After so many milliseconds nobody waits for the answer. A member believes at most [`MAX_MEASUREMENT_MS`].
    pub within_ms: u64,
}

/// The body of POST [`paths::MEMBER_MEASUREMENT`](crate::paths::MEMBER_MEASUREMENT): what a member measured. All of it is about its own links, and counts
/// for those only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measurement {
    /// Which run asked for it.
    pub run: u64,
    /// When the request came, by the member's clock.
    pub received_at: Timestamp,
    /// When this was sent, by the member's clock.
    pub sent_at: Timestamp,
    /// The release of its kernel, as `uname -r` says it.
    #[serde(default)]
    pub kernel: String,
    /// Who carries its packets. Absent: it has no interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<Carrier>,
    /// What it measured of its peers. At most [`MAX_REPORTED_LINKS`].
    #[serde(default)]
    pub links: BTreeMap<NodeId, LinkMeasurement>,
    /// Echoes of members that are no peers. At most [`MAX_RELAYED`].
    #[serde(default)]
    pub relayed: BTreeMap<NodeId, Echoes>,
    /// Why it measured nothing, or not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl Measurement {
    /// Whether it is within the bounds of its lists. Its texts are cut by [`Self::bounded`].
    pub fn is_within_bounds(&self) -> bool {
        self.links.len() <= MAX_REPORTED_LINKS && self.relayed.len() <= MAX_RELAYED
    }

    /// The same with each text cut to [`MAX_MEASUREMENT_TEXT`], and four times that for the failure; and without numbers that nobody can have measured.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        cut(&mut self.kernel, MAX_MEASUREMENT_TEXT);
        if let Some(failure) = &mut self.failure {
            cut(failure, 4 * MAX_MEASUREMENT_TEXT);
        }
        for echoes in self.relayed.values_mut() {
            *echoes = echoes.bounded();
        }
        for link in self.links.values_mut() {
            link.echoes = link.echoes.bounded();
            link.mtu = link.mtu.filter(|size| *size <= MAX_PACKET);
            let age = link.handshake_age_seconds;
            link.handshake_age_seconds = age.filter(|age| *age <= MAX_HANDSHAKE_AGE);
            if let Some(underlay) = &mut link.underlay {
                let sizes = MIN_UNDERLAY_MTU..=MAX_PACKET;
                underlay.mtu = underlay.mtu.filter(|size| sizes.contains(size));
                cut(&mut underlay.interface, MAX_MEASUREMENT_TEXT);
                cut(&mut underlay.kind, MAX_MEASUREMENT_TEXT);
            }
        }
        self
    }
}

fn cut(text: &mut String, bytes: usize) {
    let end = text.floor_char_boundary(bytes);
    text.truncate(end);
}

/// Who carries a member's packets, and what the kernel does for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Carrier {
    /// The kernel's WireGuard. Else a process of its own, `platform wireguard`.
    pub is_kernel: bool,
    /// Whether the process has the kernel cut and join packets (`PLATFORM_WIREGUARD_NO_OFFLOAD` is not set, and the kernel can). Always true of the
    /// kernel's own.
    pub offload: bool,
}

/// Echoes that were asked for in the tunnel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Echoes {
    /// How many were sent.
    pub sent: u32,
    /// How many came back.
    pub answered: u32,
    /// The fastest, in microseconds. Absent: none came back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fastest_us: Option<u64>,
}

impl Echoes {
    /// The same within what a run can have: not more come back than were sent, and none later than the run's end.
    fn bounded(self) -> Self {
        let sent = self.sent.min(MAX_ECHOES);
        let most = MAX_MEASUREMENT_MS * 1000;
        Self {
            sent,
            answered: self.answered.min(sent),
            fastest_us: self.fastest_us.filter(|fastest| *fastest <= most),
        }
    }
}

/// What a member measured of the link to one peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LinkMeasurement {
    /// Where the peer was last seen, or is recorded. Absent: nowhere; it has to call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// Seconds since the last handshake, at the end of the measurement. Absent: there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_age_seconds: Option<u64>,
    /// Bytes that came from the peer while it was measured, handshakes included.
    pub received_bytes: u64,
    /// Echoes of the peer's probe address.
    pub echoes: Echoes,
    /// The largest packet that came back, in bytes of the tunnel, up to the cluster's MTU. Absent: it was not measured, because no echo came back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Whether the peer answers a packet that is too large for one of its links by Packet Too Big. Absent: it was not tried, because no echo came back, or
    /// the peer is an edge, which forwards nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packet_too_big: Option<bool>,
    /// Whether what TCP sends arrives as it was sent. Absent: the other end tries it, or nobody can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments: Option<Segments>,
    /// The way to the peer's endpoint outside of the tunnel. Absent: there is none, or it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay: Option<UnderlayPath>,
}

/// Whether what TCP sends to a peer and back arrives as it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Segments {
    /// One segment after the other, so that the kernel has nothing to cut or to join (GSO and GRO are off).
    pub single: bool,
    /// Many at once, so that the kernel cuts and joins them (GSO and GRO are on, where they are).
    pub large: bool,
}

/// The way to a peer's endpoint outside of the tunnel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnderlayPath {
    /// Its MTU, in bytes, as far as routers on the way say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The name of the link by which it begins.
    pub interface: String,
    /// The kind of that link, as `ip -d link` names it: `wireguard`, `tun`, `veth`. Empty: a device.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_nobody_can_have_measured_are_dropped() {
        let echoes = Echoes {
            sent: 1,
            answered: u32::MAX,
            fastest_us: Some(u64::MAX),
        };
        let underlay = |mtu| UnderlayPath {
            mtu: Some(mtu),
            ..UnderlayPath::default()
        };
        let link = |mtu| LinkMeasurement {
            handshake_age_seconds: Some(u64::MAX),
            echoes,
            mtu: Some(u32::MAX),
            underlay: Some(underlay(mtu)),
            ..LinkMeasurement::default()
        };
        let said = Measurement {
            links: [(NodeId(1), link(0)), (NodeId(2), link(u32::MAX))].into(),
            relayed: [(NodeId(3), echoes)].into(),
            ..Measurement::default()
        };
        let bounded = said.bounded();
        let expected = Echoes {
            sent: 1,
            answered: 1,
            fastest_us: None,
        };
        assert_eq!(bounded.relayed[&NodeId(3)], expected);
        for link in bounded.links.values() {
            assert_eq!(link.echoes, expected);
            assert_eq!((link.mtu, link.handshake_age_seconds), (None, None));
            assert_eq!(link.underlay, Some(UnderlayPath::default()));
        }
    }

    #[test]
    fn texts_of_a_member_are_cut_where_characters_end() {
        let mut said = Measurement {
            kernel: "ä".repeat(MAX_MEASUREMENT_TEXT),
            ..Measurement::default()
        };
        let underlay = UnderlayPath {
            interface: "x".repeat(1 << 20),
            ..UnderlayPath::default()
        };
        let link = LinkMeasurement {
            underlay: Some(underlay),
            ..LinkMeasurement::default()
        };
        said.links.insert(NodeId(1), link);
        let bounded = said.bounded();
        assert_eq!(bounded.kernel.len(), MAX_MEASUREMENT_TEXT);
        let underlay = bounded.links[&NodeId(1)].underlay.as_ref();
        assert_eq!(
            underlay.map(|path| path.interface.len()),
            Some(MAX_MEASUREMENT_TEXT)
        );
        assert!(bounded.is_within_bounds());
    }
}
