//! What an edge and the server say to each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use model::instance::ProxyProtocol;
use model::{EnvKey, Generation, InstanceId, LeaderSession, ProcessName, RouteSettings, Term};
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

/// What edges speak to the instances of a route.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AppProtocol {
    /// HTTP/1.1; to those of a TCP route, any bytes.
    #[default]
    Http1,
    /// HTTP/2 in clear text with prior knowledge (RFC 9113, 3.3).
    H2c,
}

/// Where one host leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RouteJson", into = "RouteJson")]
pub struct Route {
    /// The env it belongs to.
    pub env: EnvKey,
    /// The process type it leads to.
    pub process: ProcessName,
    /// Whether the edge starts each connection with a PROXY v2 header.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// What the edge speaks to the instances.
    pub protocol: AppProtocol,
    /// How the edge treats what comes for it.
    pub settings: RouteSettings,
    /// The ready instances; empty: none is ready, the edge answers 503.
    pub backends: Vec<Backend>,
}

/// A route as it travels and is kept. What an instance speaks is in the name of the list of instances: a program that does not know HTTP/2 to instances
/// finds none of which it knows how to speak to, and cannot read the route.
#[derive(Serialize, Deserialize)]
struct RouteJson {
    env: EnvKey,
    process: ProcessName,
    proxy_protocol: Option<ProxyProtocol>,
    #[serde(default, skip_serializing_if = "RouteSettings::is_default")]
    settings: RouteSettings,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backends: Option<Vec<Backend>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    h2c_backends: Option<Vec<Backend>>,
}

/// A route that says of no instances how to speak to them.
#[derive(Debug, thiserror::Error)]
#[error("missing field `backends`")]
struct NoBackends;

impl TryFrom<RouteJson> for Route {
    type Error = NoBackends;

    fn try_from(json: RouteJson) -> Result<Self, NoBackends> {
        let (protocol, backends) = match (json.backends, json.h2c_backends) {
            (Some(backends), _) => (AppProtocol::Http1, backends),
            (None, Some(backends)) => (AppProtocol::H2c, backends),
            (None, None) => return Err(NoBackends),
        };
        Ok(Self {
            env: json.env,
            process: json.process,
            proxy_protocol: json.proxy_protocol,
            protocol,
            settings: json.settings,
            backends,
        })
    }
}

impl From<Route> for RouteJson {
    fn from(route: Route) -> Self {
        let (backends, h2c_backends) = match route.protocol {
            AppProtocol::Http1 => (Some(route.backends), None),
            AppProtocol::H2c => (None, Some(route.backends)),
        };
        Self {
            env: route.env,
            process: route.process,
            proxy_protocol: route.proxy_protocol,
            settings: route.settings,
            backends,
            h2c_backends,
        }
    }
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

/// What edges answer to an authority of ACME that asks whether a host leads here (RFC 8555, 8). It is all of it, each time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChallengeTable {
    /// The life of the store, and what counts the tables of a session.
    #[serde(flatten)]
    pub generation: Generation,
    /// In which session of a leader it was counted.
    pub session: LeaderSession,
    /// What is asked for now.
    pub challenges: Vec<Challenge>,
}

/// One that is asked for. A kind that an edge does not know is none that it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// The host, lowercase.
    pub host: String,
    /// What is answered in plain HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpChallenge>,
    /// What is answered over TLS: SHA-256 of the key authorization, hexadecimal (RFC 8737, 3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_alpn: Option<String>,
}

/// HTTP-01 (RFC 8555, 8.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpChallenge {
    /// The last part of the path.
    pub token: String,
    /// The body.
    pub key_authorization: String,
}

/// POST [`crate::paths::EDGE_HOST_CERTIFICATE`]: a certificate of the ingress CA for a host that a route leads from.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// A route of before `h2c`, as programs of then read it.
    #[derive(Deserialize)]
    #[allow(dead_code, reason = "it is only read")]
    struct OldRoute {
        env: EnvKey,
        process: ProcessName,
        proxy_protocol: Option<ProxyProtocol>,
        backends: Vec<Backend>,
    }

    fn route(protocol: AppProtocol) -> Route {
        Route {
            env: EnvKey {
                app: "shop".parse().unwrap(),
                env: "prod".parse().unwrap(),
            },
            process: "web".parse().unwrap(),
            proxy_protocol: None,
            protocol,
            settings: RouteSettings::default(),
            backends: vec![Backend {
                instance: InstanceId(1),
                address: "[::1]:80".parse().unwrap(),
            }],
        }
    }

    #[test]
    fn a_program_of_before_reads_no_route_of_instances_that_it_cannot_speak_to() {
        let http1 = serde_json::to_value(route(AppProtocol::Http1)).unwrap();
        assert!(serde_json::from_value::<OldRoute>(http1.clone()).is_ok());
        assert_eq!(
            serde_json::from_value::<Route>(http1).unwrap(),
            route(AppProtocol::Http1)
        );
        let h2c = serde_json::to_value(route(AppProtocol::H2c)).unwrap();
        let error = serde_json::from_value::<OldRoute>(h2c.clone())
            .err()
            .unwrap();
        assert_eq!(error.to_string(), "missing field `backends`");
        assert_eq!(
            serde_json::from_value::<Route>(h2c).unwrap(),
            route(AppProtocol::H2c)
        );
    }

    /// In a table, such a route costs nothing else of it.
    #[test]
    fn a_route_without_instances_of_any_kind_is_unreadable() {
        let table = RouteTable {
            routes: BTreeMap::from([("a.test".to_owned(), route(AppProtocol::H2c))]),
            ..RouteTable::default()
        };
        let mut json = serde_json::to_value(&table).unwrap();
        assert_eq!(
            serde_json::from_value::<RouteTable>(json.clone()).unwrap(),
            table
        );
        let route = json["routes"]["a.test"].as_object_mut().unwrap();
        let backends = route.remove("h2c_backends").unwrap();
        route.insert("h3_backends".to_owned(), backends);
        let read: RouteTable = serde_json::from_value(json).unwrap();
        assert!(read.routes.is_empty());
        assert_eq!(
            read.unreadable["a.test"].reason(),
            "missing field `backends`"
        );
    }
}
