//! The overlay, to people: its settings, its members, and what is known of the links between them (ADR 0004).

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};

use model::NodeId;
use overlay::private_networks::PrivateNetworks;
use overlay::topology::{HubRole, Mode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::enrollment::Member;
use crate::member::LinkReport;

/// The answer of [`paths::NETWORK`](crate::paths::NETWORK).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkStatus {
    /// The cluster's /48, as its first address.
    pub prefix: Ipv6Addr,
    /// How members reach one another.
    pub mode: Mode,
    /// MTU of the overlay, the taps and the guests, in bytes.
    pub mtu: u32,
    /// Which private networks instances of egress `all` reach. Absent: all, as a server of before the setting means.
    #[serde(default)]
    pub private_networks: PrivateNetworks,
    /// Every member that is approved.
    pub members: Vec<NetworkMember>,
    /// What is not as it should be.
    #[serde(default)]
    pub warnings: Vec<NetworkWarning>,
}

/// One member of the overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkMember {
    /// The member.
    pub member: Member,
    /// Its name.
    pub name: String,
    /// Its region.
    pub region: String,
    /// Its number in the overlay. Absent: it has none, because it runs a version of before the overlay.
    pub number: Option<NodeId>,
    /// Whether it may be a hub.
    pub role: HubRole,
    /// Whether it is one now.
    pub is_hub: bool,
    /// Whether it would be a hub, and is taken for dead.
    pub is_dead: bool,
    /// The hub through which it sends and gets everything. Absent for a hub, and in a mesh.
    pub home: Option<NodeId>,
    /// Where its peers first try to reach it. Absent: it is not known; it has to call them.
    pub endpoint: Option<SocketAddr>,
    /// Whether a NAT is between it and the server.
    pub is_behind_nat: bool,
    /// MTU of its underlay, in bytes; absent: it did not say.
    pub underlay_mtu: Option<u32>,
    /// How many peers it has.
    pub peers: u32,
    /// What it last said of its links. Empty: it has not said in this term of the leader.
    pub links: BTreeMap<NodeId, LinkReport>,
    /// Why its end of the overlay is not as it is to be; absent: it is, as far as it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether it is not known to have applied the last change that concerns it.
    #[serde(default)]
    pub is_behind: bool,
}

/// What is not as it should be, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkWarning {
    /// What.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// The body of PATCH [`paths::NETWORK`](crate::paths::NETWORK): what is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkSettingsRequest {
    /// How members reach one another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// MTU of the overlay, the taps and the guests, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Which private networks instances of egress `all` reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_networks: Option<PrivateNetworks>,
}
