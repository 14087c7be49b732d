//! What an edge and the server say to each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
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

/// The certificates of hosts: all of them, or those that changed since an earlier table. Only edges get it, and only those that ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateTable {
    /// The life of the store, and what counts the tables of a session: it grows with every change.
    #[serde(flatten)]
    pub generation: Generation,
    /// The term of the leader that says it. One of an older term of the same incarnation is refused.
    pub term: Term,
    /// In which session of a leader it was counted. An edge takes the whole table of another session than its own.
    pub session: LeaderSession,
    /// The counter, within the same session, of the table of which this is the difference; absent: this is the whole table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// By name.
    pub certificates: BTreeMap<String, EdgeCertificate>,
    /// Names of those that are there no more. Empty in a whole table.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub removed: BTreeSet<String>,
    /// What seals session tickets; absent in a difference: it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tickets: Option<TicketKeys>,
}

/// A certificate with its key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeCertificate {
    /// The certificate and, after it, those of its issuers, PEM.
    pub chain_pem: String,
    /// The private key, PEM. Secret.
    pub key_pem: String,
}

impl fmt::Debug for EdgeCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeCertificate").finish_non_exhaustive()
    }
}

/// The keys by which edges seal session tickets (RFC 5077), the same for all: a client resumes its session at any edge. Secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketKeys {
    /// Seals tickets, and opens them.
    pub current: String,
    /// The one before: it opens tickets only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKeys").finish_non_exhaustive()
    }
}

/// POST `paths::EDGE_HOST_CERTIFICATE`: a certificate of the ingress CA for a host that a route leads from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCertificateRequest {
    /// The host, lowercase.
    pub host: String,
    /// A request of the key that is to be certified (PKCS#10, PEM). The key stays on the edge.
    pub csr_pem: String,
}

/// The answer to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCertificateResponse {
    /// The certificate and, after it, the CA's, PEM.
    pub chain_pem: String,
}
