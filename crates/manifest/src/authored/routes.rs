//! Where host names and ports of edges lead.

// ring: a manifest has routes, and their processes are named as everywhere in it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AlpnProtocol, Duration, HostName, Label};

/// Most host names of an env.
pub(crate) const MAX_ROUTES: usize = 1024;
/// Most TCP routes of an env.
pub(crate) const MAX_TCP_ROUTES: usize = 64;
/// Ports at which edges listen for TCP routes where their operators say nothing else: those of node ports in Kubernetes, which neither services nor
/// outgoing connections use.
pub(crate) const TCP_ROUTE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// Most protocols that a route offers by ALPN.
pub(crate) const MAX_ALPN: usize = 8;

/// Most requests under way of a route, at an edge: as many as an edge serves of one host.
pub(crate) const MAX_REQUESTS: u32 = 5_000;
/// Most requests a second that a limit names, and most at once.
pub(crate) const MAX_RATE: u32 = 1_000_000;

/// Where a host name leads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-layout" = "inline"))]
pub(crate) struct Route {
    /// The process type.
    #[serde(default = "Route::default_process")]
    pub(crate) process: Label,
    /// One of its `ports`, with protocol `http` or `h2c`.
    #[schemars(range(min = 1, max = 65535), extend("examples" = [8080]))]
    pub(crate) port: u16,
    /// Whether a client goes to the instance that it went to before, as long as that serves: edges set the cookie `platform_sticky`. It goes to another
    /// one when its own is gone, leaves or refuses. Absent: to any.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) sticky: bool,
    /// How long edges keep a client's idle connection. Absent: 75 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-minimum" = "1s", "x-maximum" = "1h"), extend("examples" = ["75s"]))]
    pub(crate) idle_timeout: Option<Duration>,
    /// How many requests an edge has under way at most; others are answered by 429. Absent: 5000, and 503.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_REQUESTS), extend("examples" = [200]))]
    pub(crate) max_requests: Option<u32>,
    /// How many requests an edge has under way at one instance at most. Where all have as many, others wait, for 5 s, and are answered by 503 then. Absent: any
    /// number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_REQUESTS), extend("examples" = [25]))]
    pub(crate) hard_limit: Option<u32>,
    /// How many requests a second an edge takes of one client on average, an IPv4 address or a /64 of IPv6; others are answered by 429. Absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_RATE), extend("examples" = [10]))]
    pub(crate) rate_limit: Option<u32>,
    /// How many requests it takes of one client at once after a while without any. Absent: as many as `rate_limit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_RATE), extend("examples" = [20]))]
    pub(crate) burst: Option<u32>,
    /// What becomes of plain HTTP. Absent: it is redirected to HTTPS where the edge has a certificate for the host that an operator added or that came by
    /// ACME; else the app gets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) http: Option<PlainHttp>,
    /// That browsers are told to use HTTPS only for this host (RFC 6797): in answers over HTTPS, in place of what the app says of it. Absent: what the app
    /// says passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hsts: Option<Hsts>,
}

/// What becomes of a request in plain HTTP: `redirect` it is redirected to HTTPS wherever the edge has a port for that, by a certificate of the cluster's
/// own CA too; `serve` the app gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the type's documentation says what each means")]
pub(crate) enum PlainHttp {
    Redirect,
    Serve,
}

/// What the header `Strict-Transport-Security` says. Browsers remember it: begin with a short `max_age`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-layout" = "inline"))]
pub(crate) struct Hsts {
    /// How long browsers remember it. `"0s"`: they are to forget it.
    #[schemars(extend("x-minimum" = "0s", "x-maximum" = "87600h"), extend("examples" = ["8760h"]))]
    pub(crate) max_age: Duration,
    /// Whether it is for every host below this one too.
    #[serde(default)]
    pub(crate) include_subdomains: bool,
    /// Whether browsers may have it built in (https://hstspreload.org), which is not taken back for months. It needs a `max_age` of a year or more
    /// and `include_subdomains`.
    #[serde(default)]
    pub(crate) preload: bool,
}

/// Where a port of edges leads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TcpRoute {
    /// The port of edges, 30000 to 32767 where their operators allow no others (`platform edge --tcp-ports`).
    #[schemars(range(min = 1, max = 65535), extend("examples" = [30432]))]
    pub(crate) listen: u16,
    /// The host that clients name by TLS (SNI, RFC 6066). Several routes have the same port then, each for a host of its own, those of other envs too. A host
    /// leads to one env of the cluster, by `[routes]` or here. It goes with `tls`. Absent: the port is for whoever connects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("examples" = ["db.example.com"]))]
    pub(crate) host: Option<HostName>,
    /// Where TLS ends, for clients that name `host`. Absent: edges look at nothing, and pass on all that comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tls: Option<TlsMode>,
    /// What edges offer by ALPN (RFC 7301), the best first; a client that offers other protocols only is refused. For `terminate`; absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_ALPN), extend("examples" = [["postgresql"]]))]
    pub(crate) alpn: Option<Vec<AlpnProtocol>>,
    /// The process type.
    #[serde(default = "Route::default_process")]
    pub(crate) process: Label,
    /// One of its `ports`. With `proxy_protocol` there, each connection begins with a PROXY v2 header that names the client.
    #[schemars(range(min = 1, max = 65535), extend("examples" = [5432]))]
    pub(crate) port: u16,
    /// Whether the connections of one client, an IPv4 address or a /64 of IPv6, go to the same instance, as long as that serves. Absent: to any.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) sticky: bool,
}

/// Where TLS ends: `terminate` at edges, with the certificate that they have for the host by HTTPS, and the app gets what was in it; `passthrough` at the app,
/// which has the certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the type's documentation says what each means")]
pub(crate) enum TlsMode {
    Terminate,
    Passthrough,
}

impl Route {
    fn default_process() -> Label {
        Label("web".to_owned())
    }
}
