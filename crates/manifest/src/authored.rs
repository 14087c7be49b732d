//! The manifest as it is written: the one definition.
//!
//! From these types come the JSON Schema ([`crate::schema`]), the keys and kinds that the decoder
//! accepts ([`crate::structure`]), the order in which `fmt` writes keys, the reference page, and
//! the canonical JSON. What a text must look like is a pattern from [`crate::formats`]; bounds of
//! durations and sizes, which no pattern can state, are the extensions `x-minimum` and
//! `x-maximum`; a table that `fmt` writes in one line has the extension `x-layout`, and a free key
//! that it writes first is named by `x-first`. Extensions
//! are taken out of the published schema and become part of the descriptions.
//!
//! What a manifest *means* is [`crate::Manifest`]; [`crate::resolve`] leads from here to there.

mod routes;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use self::routes::{
    Hsts, MAX_ROUTES, MAX_TCP_ROUTES, PlainHttp, Route, TCP_ROUTE_PORTS, TcpRoute, TlsMode,
};
use crate::formats;

/// Most process types of an app.
pub(crate) const MAX_PROCESSES: usize = 64;
/// Most instances of a process type.
pub const MAX_INSTANCES: u32 = 1000;
/// Most variables in one `env` table.
pub(crate) const MAX_VARIABLES: usize = 1024;
/// Most arguments of a command.
pub(crate) const MAX_ARGUMENTS: usize = 1024;
/// Most characters of an argument or the value of a variable.
pub(crate) const MAX_TEXT_CHARS: usize = 32_768;
/// Most bytes of the variables of a process type, the `[env]` table among them, and of its command. (Heroku takes 64 KB of variables.)
pub(crate) const MAX_PROCESS_BYTES: usize = 64 * 1024;
/// Most ports of a process type.
pub(crate) const MAX_PORTS: usize = 64;
/// Most secret bundles of a process type.
pub(crate) const MAX_SECRETS: usize = 64;
/// Most volumes of a process type: each is one more disk of the microVM.
pub(crate) const MAX_VOLUMES: usize = 16;
/// Longest host name, in characters, which are ASCII (RFC 1035, 2.3.4).
pub(crate) const MAX_HOST_CHARS: usize = 253;
/// Most headers of a health check.
pub(crate) const MAX_HEADERS: usize = 16;
/// Most labels that a process type asks for.
pub(crate) const MAX_LABELS: usize = 16;
/// Most restarts in a row.
pub(crate) const MAX_RETRIES: u32 = 1_000_000;
/// Most consecutive probes that are counted.
pub(crate) const MAX_PROBES: u32 = 100;

/// A text of one kind, for the schema; the structure is checked before one of these is made.
macro_rules! text {
    ($(#[$meta:meta])* $name:ident) => {
        #[derive(
            Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
        )]
        $(#[$meta])*
        pub(crate) struct $name(pub(crate) String);
    };
}

text!(
    /// A name that is one DNS label: 1 to 63 lowercase letters, digits and hyphens, starting with
    /// a letter and not ending with a hyphen.
    #[schemars(extend("pattern" = formats::LABEL), extend("examples" = ["web"]))]
    Label
);
text!(
    /// The name of an environment variable: any text without `=` and NUL. Names that start with `PLATFORM_` are the
    /// platform's own.
    #[schemars(extend("pattern" = formats::VARIABLE_NAME), extend("examples" = ["RUST_LOG"]))]
    VariableName
);
text!(
    /// The key or the value of a label of a node: 1 to 63 letters, digits and `._-/`, starting and ending with a letter or
    /// digit.
    #[schemars(extend("pattern" = formats::NODE_LABEL), extend("examples" = ["nvme"]))]
    NodeLabel
);
text!(
    /// The permissions of a file: four octal digits whose first is 0; its owner reads it.
    #[schemars(extend("pattern" = formats::FILE_MODE), extend("examples" = ["0444"]))]
    FileMode
);
text!(
    /// A path in the guest, from the root on, of letters, digits and `._@+-`, without `.` and `..` and without a slash at the end.
    #[schemars(
        extend("pattern" = formats::GUEST_PATH, "maxLength" = 255),
        extend("examples" = ["/var/lib/mysql"])
    )]
    GuestPath
);
text!(
    /// A text without NUL characters, as programs can receive it.
    #[schemars(
        extend("pattern" = formats::TEXT, "maxLength" = MAX_TEXT_CHARS),
        extend("examples" = ["info"])
    )]
    Text
);
text!(
    /// A whole number and a unit: `ms`, `s`, `m` or `h`.
    #[schemars(extend("pattern" = formats::DURATION), extend("examples" = ["10s"]))]
    Duration
);
text!(
    /// A whole number and a unit: `KiB`, `MiB`, `GiB` or `TiB`.
    #[schemars(extend("pattern" = formats::SIZE), extend("examples" = ["256MiB"]))]
    Size
);
text!(
    /// A host name in lowercase, without port and trailing dot.
    #[schemars(
        extend("pattern" = formats::HOST_NAME, "maxLength" = MAX_HOST_CHARS),
        extend("examples" = ["shop.example.com"])
    )]
    HostName
);
text!(
    /// A protocol's name for ALPN: 1 to 64 visible ASCII characters.
    #[schemars(
        extend("pattern" = formats::ALPN_PROTOCOL),
        extend("examples" = ["postgresql"])
    )]
    AlpnProtocol
);
text!(
    /// An image reference that is pinned by digest. Nothing ever runs by tag.
    #[schemars(
        extend("pattern" = formats::IMAGE, "maxLength" = 512),
        extend("examples" = ["registry.example.com/shop@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"])
    )]
    Image
);
text!(
    /// A user, and a group if wanted, by name or number: `user` or `user:group`.
    #[schemars(extend("pattern" = formats::USER, "maxLength" = 128), extend("examples" = ["shop"]))]
    User
);
text!(
    /// A path that starts with `/`, of printable ASCII characters without spaces.
    #[schemars(
        extend("pattern" = formats::HTTP_PATH, "maxLength" = 1024),
        extend("examples" = ["/healthz"])
    )]
    HttpPath
);

text!(
    /// The name of an HTTP header: letters, digits and `!#$%&'*+.^_`|~-`.
    #[schemars(extend("pattern" = formats::HEADER_NAME), extend("examples" = ["X-Forwarded-Proto"]))]
    HeaderName
);
text!(
    /// The value of an HTTP header: printable ASCII characters, with spaces only between them.
    #[schemars(
        extend("pattern" = formats::HEADER_VALUE, "maxLength" = 1024),
        extend("examples" = ["https"])
    )]
    HeaderValue
);

/// A platform manifest: what an app runs, and how (ADR 0002).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(
    description = "A platform manifest: which processes an app has and how they run. \
    Unknown keys are errors at every level."
)]
pub(crate) struct Manifest {
    /// The name of the app.
    #[schemars(extend("examples" = ["shop"]))]
    pub(crate) app: Label,
    /// The image, pinned by digest. Absent: it is given to `platform deploy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) image: Option<Image>,
    /// What instances may reach outside of the cluster, for every process; a process's own `egress` wins over it. Absent:
    /// `"all"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) egress: Option<Egress>,
    /// Variables for every process; a process's own `env` wins over these. A name is any text without `=` and NUL; one
    /// with dots is in quotes: `"discovery.type" = "single-node"`. Names that start with `PLATFORM_` are the platform's
    /// own.
    #[serde(default)]
    #[schemars(extend("maxProperties" = MAX_VARIABLES))]
    pub(crate) env: BTreeMap<VariableName, Text>,
    /// Process types by name, which is a DNS label. Each scales into microVMs of its own. Absent: one process `web`
    /// that runs the image's own command.
    #[serde(default = "default_processes")]
    #[schemars(extend("minProperties" = 1, "maxProperties" = MAX_PROCESSES, "x-first" = "web"))]
    pub(crate) processes: BTreeMap<Label, Process>,
    /// Host names, in lowercase and without a port, and where each leads.
    #[serde(default)]
    #[schemars(extend(
        "maxProperties" = MAX_ROUTES,
        "propertyNames" = { "maxLength": MAX_HOST_CHARS }
    ))]
    pub(crate) routes: BTreeMap<HostName, Route>,
    /// Ports of edges and where each leads, for what is not HTTP. An edge listens there as long as the route is, and what comes in is passed on byte by byte. Each
    /// port leads to one env of the cluster; by `host` and `tls`, each of its hosts does. Absent: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = MAX_TCP_ROUTES))]
    pub(crate) tcp_routes: Vec<TcpRoute>,
}

fn default_processes() -> BTreeMap<Label, Process> {
    BTreeMap::from([(Label("web".to_owned()), Process::default())])
}

/// One process type: the command it runs and how it scales. Each instance is one microVM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Process {
    /// The command with its arguments. It replaces the image's Cmd; the image's Entrypoint stays
    /// and comes first. Absent: the image's own Cmd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_ARGUMENTS), extend("examples" = [["/srv/shop", "serve"]]))]
    pub(crate) command: Option<Vec<Text>>,
    /// The user to run as. Absent: the image's User, else root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<User>,
    /// Who is PID 1 of the PID namespace that the app lives in. Absent: the image where its command is an init that
    /// insists on it (s6-overlay's `/init`, systemd, runit), else the platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) init: Option<Init>,
    /// Variables of this process.
    #[serde(default)]
    #[schemars(extend("maxProperties" = MAX_VARIABLES, "x-layout" = "inline"))]
    pub(crate) env: BTreeMap<VariableName, Text>,
    /// Secret bundles. The files of each are under `/run/secrets/<bundle>/`. All users in the guest may read them, because
    /// an app may start as root and become another user; `{ name = "database", mode = "0400" }` in place of the name says who may.
    #[serde(default)]
    #[schemars(length(max = MAX_SECRETS), extend("examples" = [["database"]]))]
    pub(crate) secrets: Vec<Secret>,
    /// What an instance may reach outside of the cluster. Absent: what the manifest's own `egress` says, else `"all"`. Its neighbours
    /// in the env and `.internal` names are no egress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) egress: Option<Egress>,
    /// How an instance is asked to stop.
    #[serde(default)]
    pub(crate) stop: Stop,
    /// When an instance that ended by itself is started again.
    #[serde(default)]
    pub(crate) restart: Restart,
    /// Ports that the app listens on. The first one is in the variable `PORT`.
    #[serde(default)]
    #[schemars(length(max = MAX_PORTS))]
    pub(crate) ports: Vec<Port>,
    /// How to find out whether an instance is ready: only a ready one gets traffic. It ends no instance, so it may ask for what
    /// the app depends on. Absent: an instance that a route leads to is ready when its port accepts connections, another
    /// one as soon as its app was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) healthcheck: Option<HealthCheck>,
    /// How to find out whether an instance is dead although its app runs: it is then replaced, one of a process type at a
    /// time. It must not ask for what the app depends on: where that fails, a new instance is no better. Absent: none is replaced as long as
    /// its app runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) liveness: Option<HealthCheck>,
    /// The region whose nodes run its instances. Absent: any; then they are spread over regions first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("examples" = ["eu-central"]))]
    pub(crate) region: Option<Text>,
    /// Labels that a node must have, all of them, to run its instances (`platform nodes label`). Absent: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(
        extend("maxProperties" = MAX_LABELS, "x-layout" = "inline"),
        extend("examples" = [{ "disk": "nvme" }])
    )]
    pub(crate) labels: BTreeMap<NodeLabel, NodeLabel>,
    /// What each instance gets.
    #[serde(default)]
    pub(crate) resources: Resources,
    /// How many instances run.
    #[serde(default)]
    pub(crate) scaling: Scaling,
    /// Volumes that outlive the instance.
    #[serde(default)]
    #[schemars(length(max = MAX_VOLUMES))]
    pub(crate) volumes: Vec<Volume>,
    /// How a new release replaces the one before.
    #[serde(default)]
    pub(crate) deploy: Deploy,
}

/// Who is PID 1 of the PID namespace that an app lives in: `platform` the platform's own program, as with `docker run
/// --init`, which reaps orphans, passes on the signals that PID 1 gets, and has the app's outputs at `/proc/1/fd`;
/// `image` the app itself, whose end ends every other process at once, and which gets no signal that it does not
/// handle, so that a stop is SIGKILL at `stop.timeout` then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the type's documentation says what each means")]
pub(crate) enum Init {
    Platform,
    Image,
}

/// What an instance may reach outside of the cluster: `all` the internet and the private networks that the machine reaches (all of them,
/// or those of `platform network set --private-networks`);
/// `internet` the internet, and no private network; `none` nothing, and names outside of the cluster are not resolved. What is not allowed is refused with an error at once, so an app fails and does not hang.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the type's documentation says what each means")]
pub(crate) enum Egress {
    All,
    Internet,
    None,
}

/// How an instance is asked to stop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-layout" = "inline"))]
pub(crate) struct Stop {
    /// The signal sent first. Absent: the image's StopSignal, else SIGTERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) signal: Option<Signal>,
    /// How long what edges began with it may go on once they begin no more, and then how long it may take to end. SIGKILL follows.
    #[serde(default = "Stop::default_timeout")]
    #[schemars(extend("x-minimum" = "0s", "x-maximum" = "1h"))]
    pub(crate) timeout: Duration,
}

impl Stop {
    fn default_timeout() -> Duration {
        Duration("10s".to_owned())
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self {
            signal: None,
            timeout: Self::default_timeout(),
        }
    }
}

/// A signal of Linux by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(extend("examples" = ["SIGTERM"]))]
#[allow(missing_docs, reason = "signal(7) describes them")]
pub(crate) enum Signal {
    SigHup,
    SigInt,
    SigQuit,
    SigIll,
    SigTrap,
    SigAbrt,
    SigBus,
    SigFpe,
    SigKill,
    SigUsr1,
    SigSegv,
    SigUsr2,
    SigPipe,
    SigAlrm,
    SigTerm,
    SigStkflt,
    SigChld,
    SigCont,
    SigStop,
    SigTstp,
    SigTtin,
    SigTtou,
    SigUrg,
    SigXcpu,
    SigXfsz,
    SigVtalrm,
    SigProf,
    SigWinch,
    SigIo,
    SigPwr,
    SigSys,
}

/// When an instance that ended by itself is started again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-layout" = "inline"))]
pub(crate) struct Restart {
    /// Which endings lead to a restart.
    #[serde(default = "Restart::default_policy")]
    pub(crate) policy: RestartPolicy,
    /// Restarts in a row, without a stable run between them, before the instance is given up as
    /// failed.
    #[serde(default = "Restart::default_max_retries")]
    #[schemars(range(min = 0, max = MAX_RETRIES))]
    pub(crate) max_retries: u32,
}

impl Restart {
    fn default_policy() -> RestartPolicy {
        RestartPolicy::Always
    }
    fn default_max_retries() -> u32 {
        10
    }
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            policy: Self::default_policy(),
            max_retries: Self::default_max_retries(),
        }
    }
}

/// Which endings lead to a restart: `always` any, `on-failure` an exit code other than 0, a signal
/// or a lost VMM, `never` none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the type's documentation says what each means")]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

/// A port that the app listens on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("allOf" = [
    { "if": { "properties": { "protocol": { "const": "http" } }, "required": ["protocol"] }, "then": {} },
    {
        "if": { "properties": { "protocol": { "const": "h2c" } }, "required": ["protocol"] },
        "then": { "properties": { "proxy_protocol": false } }
    },
    { "if": { "properties": { "protocol": { "const": "tcp" } }, "required": ["protocol"] }, "then": {} }
]))]
pub(crate) struct Port {
    /// The port number.
    #[schemars(range(min = 1, max = 65535), extend("examples" = [8080]))]
    pub(crate) port: u16,
    /// What is spoken there.
    #[serde(default = "Port::default_protocol")]
    pub(crate) protocol: Protocol,
    /// Whether edges tell the client's address by a PROXY v2 header. Absent: they do not. Not with `h2c`, where a connection carries the requests of
    /// many clients: those are told by headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) proxy_protocol: Option<ProxyProtocol>,
}

impl Port {
    fn default_protocol() -> Protocol {
        Protocol::Http
    }
}

/// What is spoken on a port: `http` is HTTP/1.1, routed by host name; `h2c` is HTTP/2 in clear text with prior knowledge, as servers of gRPC speak it,
/// routed by host name for clients of every version; `tcp` is any bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the type's documentation says what each means")]
pub(crate) enum Protocol {
    Http,
    H2c,
    Tcp,
}

/// Who reads the PROXY v2 header: `strip` the platform's adapter in the guest, so that the app
/// gets a plain connection; `v2` the app itself, once the adapter found it in order. Edges connect
/// to a port of the adapter's, 61001 or the next that is none of the process's own; health checks
/// and neighbours to the app's own port, without a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the type's documentation says what each means")]
pub(crate) enum ProxyProtocol {
    Strip,
    V2,
}

/// How to find out whether an instance is ready and well. Probes are made from outside the image,
/// so it needs no tool for them; only `command` runs something in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("allOf" = [
    {
        "if": { "properties": { "type": { "const": "http" } }, "required": ["type"] },
        "then": { "required": ["port"], "properties": { "command": false } }
    },
    {
        "if": { "properties": { "type": { "const": "tcp" } }, "required": ["type"] },
        "then": {
            "required": ["port"],
            "properties": { "path": false, "host": false, "headers": false, "command": false }
        }
    },
    {
        "if": { "properties": { "type": { "const": "command" } }, "required": ["type"] },
        "then": {
            "required": ["command"],
            "properties": { "port": false, "path": false, "host": false, "headers": false }
        }
    }
]))]
pub(crate) struct HealthCheck {
    /// The kind of probe.
    #[serde(rename = "type")]
    pub(crate) kind: ProbeKind,
    /// The port to connect to, one of the process's `ports`. For `http` and `tcp`, where it is
    /// required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535), extend("examples" = [8080]))]
    pub(crate) port: Option<u16>,
    /// The path to ask for, with a query if wanted. For `http`; absent: `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<HttpPath>,
    /// The host name to ask for, in the header `Host`: many apps answer for the names that they know only. For `http`;
    /// absent: the first of the process's `routes`, in the order of names and those to this port first, else the
    /// instance's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) host: Option<HostName>,
    /// Further headers to send. For `http`; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = MAX_HEADERS, "x-layout" = "inline"))]
    pub(crate) headers: Option<BTreeMap<HeaderName, HeaderValue>>,
    /// The program with its arguments. For `command`, where it is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_ARGUMENTS), extend("examples" = [["/srv/shop", "check"]]))]
    pub(crate) command: Option<Vec<Text>>,
    /// Time from the end of one probe to the start of the next.
    #[serde(default = "HealthCheck::default_interval")]
    #[schemars(extend("x-minimum" = "100ms", "x-maximum" = "1h"))]
    pub(crate) interval: Duration,
    /// A probe that has not answered by then has failed.
    #[serde(default = "HealthCheck::default_timeout")]
    #[schemars(extend("x-minimum" = "100ms", "x-maximum" = "10m"))]
    pub(crate) timeout: Duration,
    /// Failures do not count until an instance is this old. A release whose instances take longer than 5 minutes to
    /// become ready fails; a longer grace extends that, and `deploy.deadline` sets it.
    #[serde(default = "HealthCheck::default_grace")]
    #[schemars(extend("x-minimum" = "0s", "x-maximum" = "1h"))]
    pub(crate) grace: Duration,
    /// Consecutive successes that make an instance ready.
    #[serde(default = "HealthCheck::default_healthy")]
    #[schemars(range(min = 1, max = MAX_PROBES))]
    pub(crate) healthy: u32,
    /// Consecutive failures, after the grace, that make an instance unready; of `liveness`, dead.
    #[serde(default = "HealthCheck::default_unhealthy")]
    #[schemars(range(min = 1, max = MAX_PROBES))]
    pub(crate) unhealthy: u32,
}

impl HealthCheck {
    fn default_interval() -> Duration {
        Duration("5s".to_owned())
    }
    fn default_timeout() -> Duration {
        Duration("2s".to_owned())
    }
    fn default_grace() -> Duration {
        Duration("15s".to_owned())
    }
    fn default_healthy() -> u32 {
        1
    }
    fn default_unhealthy() -> u32 {
        3
    }
}

/// The kind of probe: `http` asks for `path` and takes 200 to 399 for a success; `tcp` connects;
/// `command` runs a program in the instance and takes exit code 0 for a success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the type's documentation says what each means")]
pub(crate) enum ProbeKind {
    Http,
    Tcp,
    Command,
}

/// What each instance gets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resources {
    /// CPU in cores: a request, to thousandths. An instance may use more while others do not.
    #[serde(default = "Resources::default_cpu")]
    #[schemars(range(min = 0.01, max = 256), extend("examples" = [0.5]))]
    pub(crate) cpu: f64,
    /// Memory: a hard cap. The guest's kernel takes some 35 MiB of it. Whole MiB.
    #[serde(default = "Resources::default_memory")]
    #[schemars(extend("x-minimum" = "96MiB", "x-maximum" = "1TiB", "x-multiple" = "1MiB"))]
    pub(crate) memory: Size,
    /// The writable disk under the image's files. It starts empty with each instance. Its size is
    /// promised on the node, like memory; room is taken only as it is written. Whole MiB.
    #[serde(default = "Resources::default_scratch")]
    #[schemars(extend("x-minimum" = "16MiB", "x-maximum" = "4TiB", "x-multiple" = "1MiB"))]
    pub(crate) scratch: Size,
}

impl Resources {
    fn default_cpu() -> f64 {
        0.25
    }
    fn default_memory() -> Size {
        Size("256MiB".to_owned())
    }
    fn default_scratch() -> Size {
        Size("1GiB".to_owned())
    }
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu: Self::default_cpu(),
            memory: Self::default_memory(),
            scratch: Self::default_scratch(),
        }
    }
}

/// How many instances run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scaling {
    /// How many run, unless `platform scale` says otherwise.
    #[serde(default = "Scaling::default_min")]
    #[schemars(range(min = 0, max = MAX_INSTANCES))]
    pub(crate) min: u32,
    /// The most that `platform scale` may ask for. Absent: `min`, but at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_INSTANCES), extend("examples" = [6]))]
    pub(crate) max: Option<u32>,
}

impl Scaling {
    fn default_min() -> u32 {
        1
    }
}

impl Default for Scaling {
    fn default() -> Self {
        Self {
            min: Self::default_min(),
            max: None,
        }
    }
}

/// A secret bundle of a process type: its name, or a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Secret {
    /// The name of the bundle.
    Name(Label),
    /// The bundle, and who may read it.
    Bundle(SecretBundle),
}

impl Secret {
    /// The bundle's name.
    pub(crate) fn name(&self) -> &Label {
        match self {
            Self::Name(name) | Self::Bundle(SecretBundle { name, .. }) => name,
        }
    }

    /// Its mode, where it has one.
    pub(crate) fn mode(&self) -> Option<&FileMode> {
        match self {
            Self::Name(_) => None,
            Self::Bundle(bundle) => bundle.mode.as_ref(),
        }
    }
}

/// A secret bundle, and who may read it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-layout" = "inline"))]
pub(crate) struct SecretBundle {
    /// The name of the bundle.
    #[schemars(extend("examples" = ["database"]))]
    pub(crate) name: Label,
    /// Mode of its files, which belong to the app's user. Absent: 0444.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mode: Option<FileMode>,
}

/// A volume that outlives the instance. It is at `/mnt/volumes/<name>`. Each
/// instance of the process type has one of its own, which stays on its node and keeps its size; a
/// later instance gets it when the one before is gone. Only `platform volumes delete` deletes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Volume {
    /// The name of the volume.
    #[schemars(extend("examples" = ["data"]))]
    pub(crate) name: Label,
    /// Its size. Whole MiB.
    #[schemars(
        extend("x-minimum" = "16MiB", "x-maximum" = "4TiB", "x-multiple" = "1MiB"),
        extend("examples" = ["1GiB"])
    )]
    pub(crate) size: Size,
    /// Where else the volume is, for an image that keeps its data elsewhere. An empty volume first gets what the image
    /// has there. Absent: at `/mnt/volumes/<name>` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<GuestPath>,
    /// To whom the volume belongs, in a form as `user`. What belonged to the owner before goes with it, at the start of an instance. Absent: to
    /// the app's user; if that is root, an empty volume gets the owner and mode of the image's directory at
    /// `path` or at `/mnt/volumes/<name>`, else all users may write to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<User>,
}

/// How a new release replaces the one before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Deploy {
    /// In which way.
    #[serde(default = "Deploy::default_strategy")]
    pub(crate) strategy: Strategy,
    /// How many instances fewer than wanted may be ready meanwhile.
    #[serde(default = "Deploy::default_max_unavailable")]
    #[schemars(range(min = 0, max = MAX_INSTANCES))]
    pub(crate) max_unavailable: u32,
    /// How many instances more than wanted may exist meanwhile.
    #[serde(default = "Deploy::default_max_surge")]
    #[schemars(range(min = 0, max = MAX_INSTANCES))]
    pub(crate) max_surge: u32,
    /// Whether a release that cannot become healthy gives way to the one before.
    #[serde(default = "Deploy::default_auto_revert")]
    pub(crate) auto_revert: bool,
    /// How long a new instance must be ready on end until it counts. An app that is ready once and then ends is not rolled out. This time comes
    /// on top of the `deadline`.
    #[serde(default = "Deploy::default_min_healthy")]
    #[schemars(extend("x-minimum" = "0s", "x-maximum" = "1h"))]
    pub(crate) min_healthy: Duration,
    /// How long a new instance may take until it is ready, from when its image is pulled and its disks are made; a release with
    /// one that takes longer fails. Only the time counts in which its node is heard. Absent: 5 minutes, or the `grace` of its health check
    /// and a minute, whichever is more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        extend("x-minimum" = "10s", "x-maximum" = "24h"),
        extend("examples" = ["10m"])
    )]
    pub(crate) deadline: Option<Duration>,
    /// A command that runs once for each deploy, before anything of the release is rolled out: a migration of a database. It has
    /// an instance of its own, with the image, user, variables, secrets and resources of the process type, and without its ports
    /// and volumes. A release whose command does not end with exit code 0 within the `deadline` is not rolled out; the command is
    /// never run a second time. The image's Entrypoint stays. Absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_ARGUMENTS), extend("examples" = [["/srv/shop", "migrate"]]))]
    pub(crate) release_command: Option<Vec<Text>>,
}

impl Deploy {
    fn default_strategy() -> Strategy {
        Strategy::Rolling
    }
    fn default_max_unavailable() -> u32 {
        0
    }
    fn default_max_surge() -> u32 {
        1
    }
    fn default_auto_revert() -> bool {
        true
    }
    fn default_min_healthy() -> Duration {
        Duration("10s".to_owned())
    }
}

impl Default for Deploy {
    fn default() -> Self {
        Self {
            strategy: Self::default_strategy(),
            max_unavailable: Self::default_max_unavailable(),
            max_surge: Self::default_max_surge(),
            auto_revert: Self::default_auto_revert(),
            min_healthy: Self::default_min_healthy(),
            deadline: None,
            release_command: None,
        }
    }
}

/// In which way a new release replaces the one before: `rolling` some instances at a time, by `max_surge` and `max_unavailable`;
/// `immediate` all at once, so that none serves meanwhile; `canary` one instance first, then as `rolling`; `blue-green` all new instances
/// beside the old, which serve until all the new count. With volumes `rolling` or `immediate`: a volume has one
/// instance at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the type's documentation says what each means")]
pub(crate) enum Strategy {
    Rolling,
    Immediate,
    Canary,
    BlueGreen,
}
