//! What the server and every member say to each other, a node as well as an edge: who it is, by which key, and who the others are (ADR 0004).

mod measurement;
mod overlay;

use std::net::Ipv6Addr;

use model::{Generation, NodeId, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use measurement::{
    Carrier, Echoes, LinkMeasurement, MAX_MEASUREMENT_MS, MAX_MEASUREMENT_TEXT, MAX_RELAYED,
    Measurement, MeasurementRequest, Segments, UnderlayPath,
};
pub use overlay::{
    DEFAULT_OVERLAY_PORT, KEEPALIVE_SECONDS, LinkReport, MAX_OVERLAY_ERROR_BYTES, MAX_OVERLAY_MTU,
    MAX_REPORTED_LINKS, MIN_OVERLAY_MTU, OverlayChanges, OverlayReport, Peer, PeerKind, Underlay,
    WIREGUARD_OVERHEAD,
};

/// Whether a member may do anything. Users decide it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Approval {
    /// It may do what members of its kind do.
    #[default]
    Approved,
    /// It joined with a token that asks for approval, and may do nothing before that.
    Pending,
    /// It may do nothing any more. What it had is planned elsewhere, and no peer speaks to it.
    Revoked {
        /// Since when.
        at: Timestamp,
    },
}

/// What a member is told about the cluster it is in: whole, but for the overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberState {
    /// The cluster's random id: state of another cluster is refused.
    pub cluster: String,
    /// Grows with every change of the membership. A member that asks for what is after it says that it has applied it.
    #[serde(flatten)]
    pub generation: Generation,
    /// Whether it may do anything.
    #[serde(default)]
    pub approval: Approval,
    /// For members of before [`Self::overlay`]: the approved nodes with their keys. They exchange no packets with them. Empty for others.
    pub peers: Vec<NodeKey>,
    /// The certificates of the CAs that it trusts from now on, PEM, one after the other. The first one signs: a member whose certificate is another's
    /// renews it.
    pub ca_pem: String,
    /// Whether it is to have other keys ([`CertificateRequest::replaces_key`]).
    #[serde(default)]
    pub rotate_keys: bool,
    /// Its place in the overlay, and its peers. Only a member that asked for it (`session`) is told. Absent: nothing of it changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<OverlayChanges>,
    /// What it is to measure now. Only a member that says what it measured last (`measured`) is asked. Absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measure: Option<MeasurementRequest>,
}

/// A node and its key, to members of before [`MemberState::overlay`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeKey {
    /// The node.
    pub node: NodeId,
    /// Its WireGuard public key, base64.
    pub wireguard_public_key: String,
    /// Its /64, as its first address.
    pub prefix: Ipv6Addr,
}

/// Asks for a certificate. The connection is made with the key that the member has, by a certificate that may be out of its dates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRequest {
    /// PKCS#10 certificate request in PEM: for the key of the connection, or for the one that is to replace it.
    pub csr_pem: String,
    /// Whether the request is for another key than that of the connection. The member is known by both until it comes by the new one.
    #[serde(default)]
    pub replaces_key: bool,
    /// With another key, the member's WireGuard public key from now on, base64. Absent: it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wireguard_public_key: Option<String>,
}

/// The answer to [`CertificateRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateResponse {
    /// The signed client certificate, PEM.
    pub certificate_pem: String,
    /// The certificates of the CAs that the member trusts from now on, PEM, one after the other.
    pub ca_pem: String,
}
