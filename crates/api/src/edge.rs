//! What an edge and the server say to each other.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use model::instance::ProxyProtocol;
use model::{EnvKey, Generation, InstanceId, ProcessName};
use serde::{Deserialize, Serialize};

use crate::Unreadable;
use crate::unreadable::Part;

/// Where hosts lead. Whole, never a difference. The default is the table before the first.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "RouteTableJson", into = "RouteTableJson")]
pub struct RouteTable {
    /// Grows with every change.
    pub generation: Generation,
    /// Host name, lowercase, without a port, to where it leads.
    pub routes: BTreeMap<String, Route>,
    /// Hosts whose routes this edge cannot read, because the server is newer. They lead where they led before.
    pub unreadable: BTreeMap<String, Unreadable>,
}

/// A route table as it travels and as edges keep it.
#[derive(Serialize, Deserialize)]
struct RouteTableJson {
    generation: Generation,
    routes: BTreeMap<String, Part<Route>>,
}

impl From<RouteTableJson> for RouteTable {
    fn from(json: RouteTableJson) -> Self {
        let mut table = Self {
            generation: json.generation,
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
            routes: read.chain(unreadable).collect(),
        }
    }
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
