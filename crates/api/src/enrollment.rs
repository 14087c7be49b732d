//! `EnrollNode`: a machine becomes a member of the cluster (ADR 0004).

use std::net::Ipv6Addr;

use model::{EdgeId, NodeId};
use serde::{Deserialize, Serialize};

/// What a token lets its one user become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnrollRole {
    /// A machine that runs instances.
    Node,
    /// An ingress proxy.
    Edge,
}

impl std::fmt::Display for EnrollRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Edge => "edge",
        })
    }
}

/// Asks to join the cluster (ADR 0004): the one call that needs neither bearer token nor certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollRequest {
    /// The secret part of the one-time token.
    pub token: String,
    /// What the machine means to become; a token for another role is refused, and is not spent. Absent: whatever the
    /// token is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<EnrollRole>,
    /// Wanted name, the machine's host name; made unique by the server.
    pub name: String,
    /// Region the machine is in.
    pub region: String,
    /// PKCS#10 certificate request in PEM, for the key that never leaves the machine.
    pub csr_pem: String,
    /// WireGuard public key in base64; nodes only.
    pub wireguard_public_key: Option<String>,
    /// What the machine has.
    pub hardware: Hardware,
}

/// What a machine has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// Architecture in the OCI's words: `amd64`, `arm64`.
    pub arch: String,
    /// Logical CPUs.
    pub cpus: u32,
    /// Memory that instances may use, in bytes.
    pub memory_bytes: u64,
}

/// The answer to [`EnrollRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollResponse {
    /// Who the caller is from now on.
    pub member: Member,
    /// Its name in the cluster.
    pub name: String,
    /// The cluster's random id; desired state of another cluster is refused.
    pub cluster: String,
    /// The cluster's /48, as its first address.
    pub cluster_prefix: Ipv6Addr,
    /// MTU of the overlay, in bytes.
    pub mtu: u32,
    /// The signed client certificate, PEM.
    pub certificate_pem: String,
    /// The cluster's CA, PEM.
    pub ca_pem: String,
}

/// A member of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Member {
    /// A node.
    Node(NodeId),
    /// An edge.
    Edge(EdgeId),
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(id) => id.fmt(f),
            Self::Edge(id) => id.fmt(f),
        }
    }
}
