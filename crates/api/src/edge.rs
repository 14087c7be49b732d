//! What an edge and the server say to each other.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use model::instance::ProxyProtocol;
use model::{EnvKey, Generation, InstanceId, ProcessName};
use serde::{Deserialize, Serialize};

/// Where hosts lead. Whole, never a difference. The default is the table before the first.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTable {
    /// Grows with every change.
    pub generation: Generation,
    /// Host name, lowercase, without a port, to where it leads.
    pub routes: BTreeMap<String, Route>,
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
