//! `EnrollNode`: a machine becomes a member of the cluster (ADR 0004).

use std::net::Ipv6Addr;

use model::{EdgeId, NameError, NodeId, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::member::Underlay;

/// What a token lets its one user become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// WireGuard public key in base64. An edge of a version before has none.
    pub wireguard_public_key: Option<String>,
    /// How its peers reach it over the underlay; absent from a machine of a version before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay: Option<Underlay>,
    /// What the machine has.
    pub hardware: Hardware,
    /// The time by the machine's clock; absent from a machine of a version before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<Timestamp>,
}

/// What a machine has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hardware {
    /// Architecture in the OCI's words: `amd64`, `arm64`.
    pub arch: String,
    /// Logical CPUs.
    pub cpus: u32,
    /// Memory that instances may use, in bytes: their guests' and what runs them ([`InstanceOverhead`]).
    pub memory_bytes: u64,
    /// Its disk; absent from an agent that does not measure it: then disk is not counted on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<NodeDisk>,
    /// What one instance costs beside what its spec asks for; absent from an agent that does not say:
    /// then it is what agents of before need ([`InstanceOverhead::UNREPORTED`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overhead: Option<InstanceOverhead>,
}

impl Hardware {
    /// What counts of this, where that much was approved: the smaller of both, field by field. The disk counts from the first report that
    /// has it.
    #[must_use]
    pub fn within(&self, approved: &Self) -> Self {
        let disk = self.disk.map(|disk| NodeDisk {
            total_bytes: approved.disk.map_or(disk.total_bytes, |approved| {
                disk.total_bytes.min(approved.total_bytes)
            }),
            ..disk
        });
        let overhead = match (self.overhead, approved.overhead) {
            (Some(said), Some(approved)) => Some(InstanceOverhead {
                memory_bytes: said.memory_bytes.max(approved.memory_bytes),
                disk_bytes: said.disk_bytes.max(approved.disk_bytes),
            }),
            (said, approved) => said.or(approved),
        };
        Self {
            arch: approved.arch.clone(),
            cpus: self.cpus.min(approved.cpus),
            memory_bytes: self.memory_bytes.min(approved.memory_bytes),
            disk,
            overhead,
        }
    }

    /// Whether this is more than was approved, in any field.
    pub fn exceeds(&self, approved: &Self) -> bool {
        let less_overhead = |said: InstanceOverhead, approved: InstanceOverhead| {
            said.memory_bytes < approved.memory_bytes || said.disk_bytes < approved.disk_bytes
        };
        self.arch != approved.arch
            || self.cpus > approved.cpus
            || self.memory_bytes > approved.memory_bytes
            || (self.disk.zip(approved.disk))
                .is_some_and(|(said, approved)| said.total_bytes > approved.total_bytes)
            || (self.overhead.zip(approved.overhead))
                .is_some_and(|(said, approved)| less_overhead(said, approved))
    }

    /// What one instance costs this machine beside what its spec asks for.
    pub fn instance_overhead(&self) -> InstanceOverhead {
        self.overhead.unwrap_or(InstanceOverhead::UNREPORTED)
    }
}

/// The disk of a node: the file system of its data folder, and what of it instances cannot have. All in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeDisk {
    /// What the file system holds for users other than root.
    pub total_bytes: u64,
    /// The platform's reserve: for the node's own records and logs.
    pub reserved_bytes: u64,
    /// The share of cached images: their budget, or what they take where that is more.
    pub images_bytes: u64,
    /// What everything else on the machine takes, as last measured.
    pub others_bytes: u64,
}

impl NodeDisk {
    /// What the scratch disks, volumes and logs of instances may take together, in bytes.
    pub fn instances_bytes(&self) -> u64 {
        [self.reserved_bytes, self.images_bytes, self.others_bytes]
            .into_iter()
            .fold(self.total_bytes, u64::saturating_sub)
    }
}

/// What one instance costs its node beside what its spec asks for, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceOverhead {
    /// Memory of its VMM and of the vsock device beside the guest's own: a function of the VMM driver.
    pub memory_bytes: u64,
    /// Disk of its logs, its console and its record.
    pub disk_bytes: u64,
}

impl InstanceOverhead {
    /// What is counted for an instance on a node that does not say (an agent of the version before): the most of any
    /// driver, and no disk.
    pub const UNREPORTED: Self = Self {
        memory_bytes: 128 << 20,
        disk_bytes: 0,
    };
}

/// The answer to [`EnrollRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollResponse {
    /// Who the caller is from now on.
    pub member: Member,
    /// Its name in the cluster.
    pub name: String,
    /// Its region: that of the token, where the token has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Whether a user has to approve it first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
    /// The cluster's random id; desired state of another cluster is refused.
    pub cluster: String,
    /// The cluster's /48, as its first address.
    pub cluster_prefix: Ipv6Addr,
    /// MTU of the overlay, in bytes.
    pub mtu: u32,
    /// Its number in the overlay: that of a node is its id's. Absent from a server of a version before, and for an edge without a WireGuard key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<NodeId>,
    /// The signed client certificate, PEM.
    pub certificate_pem: String,
    /// The cluster's CA, PEM.
    pub ca_pem: String,
}

/// A member of the cluster.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
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

impl Member {
    /// Its kind.
    #[must_use]
    pub fn role(self) -> EnrollRole {
        match self {
            Self::Node(_) => EnrollRole::Node,
            Self::Edge(_) => EnrollRole::Edge,
        }
    }
}

impl std::str::FromStr for Member {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let node = text.parse().map(Self::Node);
        node.or_else(|_| text.parse().map(Self::Edge))
    }
}
