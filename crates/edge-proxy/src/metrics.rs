//! What an edge tells of its work (`platform_edge_*`, docs/metrics.md). Each env that is served has series of its own, which end with its
//! last route; a host that leads nowhere makes none.

use std::time::Duration;

use http::StatusCode;
use metrics::{ByState, SECONDS};
use model::EnvKey;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Which env.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfEnv {
    app: String,
    env: String,
}

/// Which env, and the first digit of the status.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStatus {
    app: String,
    env: String,
    status: &'static str,
}

/// Which env, and why an instance gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFailure {
    app: String,
    env: String,
    reason: &'static str,
}

/// Why an instance gave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No connection to it could be made.
    Connect,
    /// The connection broke before it answered.
    Broken,
    /// It did not answer in time.
    Timeout,
    /// The client's body stalled.
    Client,
}

/// In the order of [`Failure`].
const FAILURES: [&str; 4] = ["connect", "broken", "timeout", "client"];

/// Which way bytes went.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDirection {
    app: String,
    env: String,
    direction: &'static str,
}

/// From clients, and to clients.
const DIRECTIONS: [&str; 2] = ["received", "sent"];

/// Why a request was not for any env.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unrouted {
    /// It names no host, or several, or wants what is not offered.
    BadRequest,
    /// No route leads to its host.
    UnknownHost,
    /// The edge has had no routes yet.
    NoRoutesYet,
}

/// In the order of [`Unrouted`].
const UNROUTED: [&str; 3] = ["bad_request", "unknown_host", "no_routes_yet"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfUnrouted {
    reason: &'static str,
}

/// What becomes of the port of a TCP route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PortState {
    /// The edge listens there.
    Listening,
    /// It cannot: another program has the port, or the machine gives it none.
    Taken,
    /// Its operator does not allow it.
    NotAllowed,
}

/// In the order of [`PortState`].
const PORT_STATES: [&str; 3] = ["listening", "taken", "not_allowed"];

const STATUSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// All that an edge counts.
#[derive(Debug, Default)]
pub(crate) struct EdgeMetrics {
    pub(crate) connections: Gauge,
    pub(crate) tunnels: Gauge,
    pub(crate) hosts: Gauge,
    unrouted: Family<OfUnrouted, Counter>,
    tcp_ports: Family<ByState, Gauge>,
    /// Clients at ports of TCP routes that name no host of the port.
    pub(crate) unrecognized_names: Counter,
    series: EnvSeries,
}

/// The series of envs.
#[derive(Debug, Clone)]
pub(crate) struct EnvSeries {
    requests: Family<OfStatus, Counter>,
    seconds: Family<OfEnv, Histogram, fn() -> Histogram>,
    failures: Family<OfFailure, Counter>,
    bytes: Family<OfDirection, Counter>,
}

impl Default for EnvSeries {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            failures: Family::default(),
            bytes: Family::default(),
        }
    }
}

/// The counters of one env: what a request changes, without looking anything up.
#[derive(Debug, Clone)]
pub(crate) struct EnvMetrics {
    requests: [Counter; STATUSES.len()],
    seconds: Histogram,
    failures: [Counter; FAILURES.len()],
    pub(crate) received: Counter,
    pub(crate) sent: Counter,
}

impl EdgeMetrics {
    /// Tells them by this registry.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let edge = metrics::of_role(registry, "edge");
        // From 0 on: the first one is an increase, too.
        for reason in UNROUTED {
            self.unrouted
                .get_or_create(&OfUnrouted { reason })
                .inc_by(0);
        }
        for state in PORT_STATES {
            self.tcp_ports.get_or_create(&ByState { state }).set(0);
        }
        let text = "Connections of clients that are open";
        edge.register("client_connections", text, self.connections.clone());
        let text = "Upgraded connections (WebSockets), and those of TCP routes, that are open";
        edge.register("tunnels", text, self.tunnels.clone());
        let text = "Hosts that have a route";
        edge.register("routes", text, self.hosts.clone());
        let text = "Requests that were for no app";
        edge.register("unrouted_requests", text, self.unrouted.clone());
        let text = "Ports of TCP routes, by what becomes of them";
        edge.register("tcp_ports", text, self.tcp_ports.clone());
        let text = "Connections at ports of TCP routes that named no host which has a route there";
        let names = self.unrecognized_names.clone();
        edge.register("tcp_unrecognized_names", text, names);
        let series = &self.series;
        let text = "Requests that were answered, by the class of the status";
        edge.register("requests", text, series.requests.clone());
        let text = "From a request's head to the head of its answer";
        edge.register_with_unit(
            "request_duration",
            text,
            Unit::Seconds,
            series.seconds.clone(),
        );
        let text = "Tries of an instance that gave no answer";
        edge.register("backend_failures", text, series.failures.clone());
        let text = "Bytes of bodies";
        edge.register_with_unit("body", text, Unit::Bytes, series.bytes.clone());
    }

    /// An upgraded connection, until the guard is dropped.
    pub(crate) fn count_tunnel(&self) -> Open {
        Open::of(&self.tunnels)
    }

    /// The port of a TCP route, as long as this becomes of it.
    pub(crate) fn count_port(&self, state: PortState) -> Open {
        Open::of(&self.port_gauge(state))
    }

    pub(crate) fn port_gauge(&self, state: PortState) -> Gauge {
        let state = PORT_STATES[state as usize];
        self.tcp_ports.get_or_create_owned(&ByState { state })
    }

    /// A client's connection, until the guard is dropped.
    pub(crate) fn count_connection(&self) -> Open {
        Open::of(&self.connections)
    }

    #[cfg(test)]
    pub(crate) fn open_connections(&self) -> i64 {
        self.connections.get()
    }

    /// The series of envs, for the route table.
    pub(crate) fn series(&self) -> EnvSeries {
        self.series.clone()
    }

    /// A request was for no env.
    pub(crate) fn unrouted(&self, reason: Unrouted) {
        let reason = UNROUTED[reason as usize];
        self.unrouted.get_or_create(&OfUnrouted { reason }).inc();
    }
}

/// Something open that a gauge counts, until it is dropped.
#[derive(Debug)]
pub(crate) struct Open(Gauge);

impl Open {
    fn of(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl EnvSeries {
    /// The counters of this env, which go on where they were.
    pub(crate) fn of(&self, key: &EnvKey) -> EnvMetrics {
        let (app, env) = (key.app.to_string(), key.env.to_string());
        let requests = STATUSES.map(|status| {
            let labels = OfStatus {
                app: app.clone(),
                env: env.clone(),
                status,
            };
            self.requests.get_or_create_owned(&labels)
        });
        let failures = FAILURES.map(|reason| {
            let labels = OfFailure {
                app: app.clone(),
                env: env.clone(),
                reason,
            };
            self.failures.get_or_create_owned(&labels)
        });
        let [received, sent] = DIRECTIONS.map(|direction| {
            let labels = OfDirection {
                app: app.clone(),
                env: env.clone(),
                direction,
            };
            self.bytes.get_or_create_owned(&labels)
        });
        EnvMetrics {
            requests,
            seconds: self.seconds.get_or_create_owned(&OfEnv { app, env }),
            failures,
            received,
            sent,
        }
    }

    /// The env has no route any more: its series end.
    pub(crate) fn remove(&self, key: &EnvKey) {
        let (app, env) = (key.app.to_string(), key.env.to_string());
        for status in STATUSES {
            self.requests.remove(&OfStatus {
                app: app.clone(),
                env: env.clone(),
                status,
            });
        }
        for reason in FAILURES {
            self.failures.remove(&OfFailure {
                app: app.clone(),
                env: env.clone(),
                reason,
            });
        }
        for direction in DIRECTIONS {
            self.bytes.remove(&OfDirection {
                app: app.clone(),
                env: env.clone(),
                direction,
            });
        }
        self.seconds.remove(&OfEnv { app, env });
    }
}

impl EnvMetrics {
    /// A request was answered.
    pub(crate) fn answered(&self, status: StatusCode, took: Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(1, STATUSES.len());
        self.requests[class - 1].inc();
        self.seconds.observe(took.as_secs_f64());
    }

    /// An instance gave no answer.
    pub(crate) fn failed(&self, reason: Failure) {
        self.failures[reason as usize].inc();
    }
}
