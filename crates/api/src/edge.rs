//! What an edge and the server say to each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use model::instance::ProxyProtocol;
use model::{EnvKey, Generation, InstanceId, LeaderSession, ProcessName, Term};
use serde::{Deserialize, Serialize};

use crate::Unreadable;
use crate::unreadable::Part;

/// Where hosts lead: all of them, or those that changed since an earlier table. The default is the table before the first.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "RouteTableJson", into = "RouteTableJson")]
pub struct RouteTable {
    /// Grows with every change.
    pub generation: Generation,
    /// The term of the leader that says it. One of an older term of the same incarnation is refused: its leader was taken for
    /// dead, and does not know what was decided since.
    pub term: Term,
    /// In which session of a leader it was counted. An edge takes the whole table of another session than its own, whatever its counter.
    pub session: LeaderSession,
    /// The counter, within the same session, of the table of which this is the difference; absent: this is the whole
    /// table.
    pub since: Option<u64>,
    /// Host name, lowercase, without a port, to where it leads.
    pub routes: BTreeMap<String, Route>,
    /// Hosts that lead nowhere any more. Empty in a whole table.
    pub removed: BTreeSet<String>,
    /// Hosts whose routes this edge cannot read, because the server is newer. They lead where they led before.
    pub unreadable: BTreeMap<String, Unreadable>,
}

impl RouteTable {
    /// How an edge that has it names it.
    pub fn as_had(&self) -> HasRoutes {
        HasRoutes {
            generation: self.generation,
            session: self.session,
        }
    }
}

/// A route table as it travels and as edges keep it.
#[derive(Serialize, Deserialize)]
struct RouteTableJson {
    #[serde(flatten)]
    generation: Generation,
    #[serde(default, skip_serializing_if = "Term::is_sole")]
    term: Term,
    #[serde(default, skip_serializing_if = "LeaderSession::is_none")]
    session: LeaderSession,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
    routes: BTreeMap<String, Part<Route>>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    removed: BTreeSet<String>,
}

impl From<RouteTableJson> for RouteTable {
    fn from(json: RouteTableJson) -> Self {
        let mut table = Self {
            generation: json.generation,
            term: json.term,
            session: json.session,
            since: json.since,
            removed: json.removed,
            ..Self::default()
        };
        for (host, part) in json.routes {
            match part {
                Part::Read(route) => drop(table.routes.insert(host, route)),
                Part::Unreadable(route) => drop(table.unreadable.insert(host, route)),
            }
        }
        table
    }
}

impl From<RouteTable> for RouteTableJson {
    fn from(table: RouteTable) -> Self {
        let read = table.routes.into_iter();
        let read = read.map(|(host, route)| (host, Part::Read(route)));
        let unreadable = table.unreadable.into_iter();
        let unreadable = unreadable.map(|(host, route)| (host, Part::Unreadable(route)));
        Self {
            generation: table.generation,
            term: table.term,
            session: table.session,
            since: table.since,
            routes: read.chain(unreadable).collect(),
            removed: table.removed,
        }
    }
}

/// Which table an edge has. The default: none.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct HasRoutes {
    /// Its generation.
    pub generation: Generation,
    /// The session in which it was counted.
    pub session: LeaderSession,
}

/// Where one host leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The env it belongs to.
    pub env: EnvKey,
    /// The process type it leads to.
    pub process: ProcessName,
    /// Whether the edge starts each connection with a PROXY v2 header.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The ready instances; empty: none is ready, the edge answers 503.
    pub backends: Vec<Backend>,
}

/// One ready instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// The instance.
    pub instance: InstanceId,
    /// Its address and the app's port.
    pub address: SocketAddr,
}
