//! What the server and every member say to each other, a node as well as an edge: who it is, by which key, and who the others are (ADR 0004).

use std::net::Ipv6Addr;

use model::{Generation, NodeId, Timestamp};
use serde::{Deserialize, Serialize};

/// Whether a member may do anything. Users decide it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// What a member is told about the cluster it is in. Whole, never a difference.
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
    /// The nodes that it may exchange packets with over the overlay.
    pub peers: Vec<Peer>,
    /// The certificates of the CAs that it trusts from now on, PEM, one after the other. The first one signs: a member whose certificate is another's
    /// renews it.
    pub ca_pem: String,
    /// Whether it is to have other keys ([`CertificateRequest::replaces_key`]).
    #[serde(default)]
    pub rotate_keys: bool,
}

/// A node, to those that exchange packets with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
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
    /// With another key, a node's WireGuard public key from now on, base64. Absent: it stays.
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
