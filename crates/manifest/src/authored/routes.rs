//! Where host names and ports of edges lead.

// ring: a manifest has routes, and their processes are named as everywhere in it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Label;

/// Most host names of an env.
pub(crate) const MAX_ROUTES: usize = 1024;
/// Most TCP routes of an env.
pub(crate) const MAX_TCP_ROUTES: usize = 64;
/// Ports at which edges listen for TCP routes where their operators say nothing else: those of node ports in Kubernetes, which neither services nor
/// outgoing connections use.
pub(crate) const TCP_ROUTE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// Where a host name leads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-layout" = "inline"))]
pub(crate) struct Route {
    /// The process type.
    #[serde(default = "Route::default_process")]
    pub(crate) process: Label,
    /// One of its `ports`, with protocol `http`.
    #[schemars(range(min = 1, max = 65535), extend("examples" = [8080]))]
    pub(crate) port: u16,
}

/// Where a port of edges leads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TcpRoute {
    /// The port of edges, 30000 to 32767 where their operators allow no others (`platform edge --tcp-ports`).
    #[schemars(range(min = 1, max = 65535), extend("examples" = [30432]))]
    pub(crate) listen: u16,
    /// The process type.
    #[serde(default = "Route::default_process")]
    pub(crate) process: Label,
    /// One of its `ports`. With `proxy_protocol` there, each connection begins with a PROXY v2 header that names the client.
    #[schemars(range(min = 1, max = 65535), extend("examples" = [5432]))]
    pub(crate) port: u16,
}

impl Route {
    fn default_process() -> Label {
        Label("web".to_owned())
    }
}
