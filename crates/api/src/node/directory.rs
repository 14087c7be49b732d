//! The directory: what a node knows of the envs that it runs instances of, wherever their instances are (ADR 0004).
//!
//! A node that runs no instance of an env hears nothing of it. From the directory follow the names that the node's resolver answers, and which
//! peers may send from which env.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use model::instance::Port;
use model::{AppName, EnvName, EnvNetwork, Incarnation, InstanceId, NodeId, ProcessName, Term};
use serde::{Deserialize, Serialize};

/// What changed in a node's directory since what it has, or all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryChanges {
    /// The cluster's random id: the directory of another cluster is refused.
    pub cluster: String,
    /// The life of the store that this is of.
    #[serde(default)]
    pub incarnation: Incarnation,
    /// The term of the leader that says it. One of an older term of the same incarnation is refused: its leader was taken for dead.
    #[serde(default)]
    pub term: Term,
    /// Who counts: another one after each change of the leader. A difference is only made of what the same session gave.
    pub session: u64,
    /// Grows within the session with every change.
    pub counter: u64,
    /// The counter of which this is the difference; absent: this is the whole directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// The envs that the node runs instances of, where anything of them changed.
    #[serde(default)]
    pub envs: BTreeMap<EnvNetwork, EnvDirectory>,
    /// The envs that the node runs no instance of any more. Empty in a whole directory.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub removed: BTreeSet<EnvNetwork>,
}

/// The instances of one env: all of them, or those that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvDirectory {
    /// The app.
    pub app: AppName,
    /// The env.
    pub env: EnvName,
    /// Whether these are all instances of the env: what was known and is not in it is gone.
    #[serde(default)]
    pub whole: bool,
    /// Its instances that are new or other than before, those that terminate too.
    #[serde(default)]
    pub instances: BTreeMap<InstanceId, DirectoryEntry>,
    /// Its instances that are gone. Empty where these are all.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub removed: BTreeSet<InstanceId>,
    /// Nodes with instances of it of which no more is known, because the server cannot read their records. Usually none.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub also_on: BTreeSet<NodeId>,
}

/// One instance, to the nodes that run instances of its env.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryEntry {
    /// Its process type.
    pub process: ProcessName,
    /// Its address, which says its node, too.
    pub address: Ipv6Addr,
    /// Whether names lead to it: it is ready, does not terminate, and its node is heard.
    #[serde(default)]
    pub ready: bool,
    /// The ports on which its app listens, in the manifest's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
}
