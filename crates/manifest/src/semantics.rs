//! What no schema can state: values that must go together.
//!
//! Every rule names the paths it looks at, and is silent when there is a mistake at one of them:
//! a mistake is reported once, not again by everything that depends on it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::authored;
use crate::diagnostic::{Code, Finding, Path, Severity, Sink, Step, shown_key};
use crate::formats::shown;
use crate::structure::Checked;
use crate::suggest;
use crate::units;

/// Names of variables that are the platform's own start so.
const RESERVED_PREFIX: &str = "PLATFORM_";
/// The variable that holds the first port.
const PORT_VARIABLE: &str = "PORT";
/// Headers that say how a request is sent, in lower case.
const CONNECTION_HEADERS: [&str; 9] = [
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// The largest number of a user or group: 2^32 - 1 means "none" to the kernel.
const MAX_ID: u64 = u32::MAX as u64 - 1;

/// Reports every mistake in the manifest's meaning.
pub(crate) fn check(
    manifest: &authored::Manifest,
    checked: &Checked,
    root: &DeTable<'_>,
    sink: &mut Sink<'_>,
) {
    let mut rules = Rules {
        manifest,
        checked,
        root,
        sink,
    };
    rules.variables(&manifest.env, &[key("env")]);
    for (name, process) in &manifest.processes {
        rules.process(name.0.as_str(), process);
    }
    for (host, route) in &manifest.routes {
        rules.route(&host.0, route);
    }
    rules.tcp_routes();
}

struct Rules<'a, 't> {
    manifest: &'a authored::Manifest,
    checked: &'a Checked,
    root: &'a DeTable<'a>,
    sink: &'a mut Sink<'t>,
}

fn key(name: &str) -> Step {
    Step::Key(name.to_owned())
}

fn join(path: &[Step], more: impl IntoIterator<Item = Step>) -> Path {
    path.iter().cloned().chain(more).collect()
}

/// Directories at and below which no volume may be.
const PLATFORM_PLACES: [&str; 5] = ["/proc", "/sys", "/dev", "/run/secrets", "/mnt/volumes"];
/// Directories at which no volume may be.
const PLATFORM_PARENTS: [&str; 3] = ["/run", "/mnt", "/etc"];

impl<'a> Rules<'a, '_> {
    fn refuse(&mut self, code: Code, path: Path, message: String, hint: String) {
        self.report(Severity::Error, code, path, message, hint);
    }

    fn warn(&mut self, code: Code, path: Path, message: String, hint: String) {
        self.report(Severity::Warning, code, path, message, hint);
    }

    fn report(
        &mut self,
        severity: Severity,
        code: Code,
        path: Path,
        message: String,
        hint: String,
    ) {
        let span = locate(self.root, &path);
        self.sink.report(
            severity,
            Finding {
                code,
                span,
                path,
                message,
                hint: Some(hint),
            },
        );
    }

    /// True when there is a mistake at the path, below it, or at a table around it.
    fn tainted(&self, path: &[Step]) -> bool {
        self.checked.tainted.iter().any(|bad| {
            let common = bad.len().min(path.len());
            bad[..common] == path[..common]
        })
    }

    /// The index that an item had in the text.
    fn index(&self, array: &[Step], index: usize) -> Step {
        let kept = self
            .checked
            .kept
            .get(array)
            .and_then(|kept| kept.get(index));
        Step::Index(kept.copied().unwrap_or(index))
    }

    fn process(&mut self, name: &str, process: &authored::Process) {
        let path = vec![key("processes"), key(name)];
        self.variables(&process.env, &join(&path, [key("env")]));
        self.variables_and_commands(name, process, &path);
        self.port_variable(process, &path);
        if let Some(user) = &process.user {
            self.user(&user.0, join(&path, [key("user")]));
        }
        let secrets = process
            .secrets
            .iter()
            .map(|secret| secret.name().0.as_str());
        self.duplicates(
            secrets,
            &join(&path, [key("secrets")]),
            None,
            "secret bundle",
        );
        let ports: Vec<String> = process
            .ports
            .iter()
            .map(|port| port.port.to_string())
            .collect();
        let ports = ports.iter().map(String::as_str);
        self.duplicates(ports, &join(&path, [key("ports")]), Some("port"), "port");
        let volumes = process.volumes.iter().map(|volume| volume.name.0.as_str());
        self.duplicates(
            volumes,
            &join(&path, [key("volumes")]),
            Some("name"),
            "volume",
        );
        self.volumes(&process.volumes, &join(&path, [key("volumes")]));
        let checks = [
            ("healthcheck", &process.healthcheck),
            ("liveness", &process.liveness),
        ];
        for (table, check) in checks {
            let Some(check) = check else { continue };
            if let Some(port) = check.port {
                let at = join(&path, [key(table), key("port")]);
                if self.port_exists(name, process, port, at.clone()) {
                    self.probe_of_h2c(process, check, port, at);
                }
            }
            if let Some(headers) = &check.headers {
                self.headers(headers, &join(&path, [key(table), key("headers")]));
            }
        }
        self.cpu(
            process.resources.cpu,
            join(&path, [key("resources"), key("cpu")]),
        );
        self.scaling(&process.scaling, &join(&path, [key("scaling")]));
        self.deploy(process, &join(&path, [key("deploy")]));
    }

    /// Where volumes are found, and to whom they belong.
    fn volumes(&mut self, volumes: &[authored::Volume], array: &[Step]) {
        let mut first: BTreeMap<&str, &str> = BTreeMap::new();
        for (position, volume) in volumes.iter().enumerate() {
            let item = join(array, [self.index(array, position)]);
            if let Some(owner) = &volume.owner {
                self.user(&owner.0, join(&item, [key("owner")]));
            }
            let Some(path) = volume.path.as_ref().map(|path| path.0.as_str()) else {
                continue;
            };
            let at = join(&item, [key("path")]);
            let below = |place: &&&str| {
                path.strip_prefix(**place)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            if let Some(place) = PLATFORM_PLACES.iter().find(below) {
                self.refuse(
                    Code::ReservedName,
                    at,
                    format!("`{place}` is a place that the platform keeps for itself"),
                    "a volume is at `/mnt/volumes/<name>` anyway; `path` is for images that keep their data elsewhere"
                        .to_owned(),
                );
            } else if PLATFORM_PARENTS.contains(&path) {
                self.refuse(
                    Code::ReservedName,
                    at,
                    format!("a volume at `{path}` would hide what the platform has there"),
                    format!("name a directory in it, such as \"{path}/data\""),
                );
            } else if let Some(other) = first.insert(path, &volume.name.0) {
                self.refuse(
                    Code::Duplicate,
                    at,
                    format!("the path `{}` is there twice", shown(path)),
                    format!("the volume `{}` has it as well", shown(other)),
                );
            }
        }
    }

    fn variables(&mut self, env: &BTreeMap<authored::VariableName, authored::Text>, path: &[Step]) {
        for name in env
            .keys()
            .filter(|name| name.0.starts_with(RESERVED_PREFIX))
        {
            self.refuse(
                Code::ReservedName,
                join(path, [key(&name.0)]),
                format!(
                    "`{}` is a name that the platform keeps for itself",
                    shown(&name.0)
                ),
                format!("choose a name that does not start with `{RESERVED_PREFIX}`"),
            );
        }
    }

    /// What every instance of a process type carries with it: its record, the desired state of its node and its memory have it once each.
    fn variables_and_commands(&mut self, name: &str, process: &authored::Process, path: &[Step]) {
        let variables = |env: &BTreeMap<authored::VariableName, authored::Text>| {
            let each = env.iter().map(|(name, value)| name.0.len() + value.0.len());
            each.sum::<usize>()
        };
        let command = |command: Option<&Vec<authored::Text>>| {
            let arguments = command.into_iter().flatten();
            arguments.map(|argument| argument.0.len()).sum::<usize>()
        };
        let shared = variables(&self.manifest.env);
        let own = variables(&process.env) + command(process.command.as_ref());
        let most = authored::MAX_PROCESS_BYTES;
        if shared + own <= most {
            return;
        }
        let at = if own > shared {
            path.to_vec()
        } else {
            vec![key("env")]
        };
        if self.tainted(&at) {
            return;
        }
        self.refuse(
            Code::WrongLength,
            at,
            format!(
                "the variables and the command of `{}` take {} bytes, those of `[env]` among them; {most} are the most",
                shown(name),
                shared + own,
            ),
            "put what is large into a secret bundle, a volume or the image: every instance carries its variables with it".to_owned(),
        );
    }

    /// The platform sets `PORT`; a variable of that name in the manifest is a second opinion.
    fn port_variable(&mut self, process: &authored::Process, path: &[Step]) {
        let Some(first) = process.ports.first().map(|port| port.port) else {
            return;
        };
        let name = authored::VariableName(PORT_VARIABLE.to_owned());
        let (value, at) = match (process.env.get(&name), self.manifest.env.get(&name)) {
            (Some(value), _) => (value, join(path, [key("env"), key(PORT_VARIABLE)])),
            (None, Some(value)) => (value, vec![key("env"), key(PORT_VARIABLE)]),
            (None, None) => return,
        };
        if value.0 != first.to_string() && !self.tainted(&join(path, [key("ports")])) {
            self.warn(
                Code::Overridden,
                at,
                format!(
                    "`PORT` is \"{}\", but the first port is {first}",
                    shown(&value.0)
                ),
                "leave it out: the platform sets `PORT` to the first of the `ports`".to_owned(),
            );
        }
    }

    fn user(&mut self, user: &str, path: Path) {
        let too_large = user.split(':').any(|part| {
            part.bytes().all(|b| b.is_ascii_digit())
                && part.parse::<u64>().is_ok_and(|id| id > MAX_ID)
                || part.len() > 20 && part.bytes().all(|b| b.is_ascii_digit())
        });
        if too_large {
            self.refuse(
                Code::OutOfRange,
                path,
                format!("`{}` is not the number of a user", shown(user)),
                format!("numbers of users and groups are from 0 to {MAX_ID}"),
            );
        }
    }

    fn duplicates<'v>(
        &mut self,
        values: impl Iterator<Item = &'v str>,
        array: &[Step],
        field: Option<&str>,
        what: &str,
    ) {
        let mut first: BTreeMap<&str, Path> = BTreeMap::new();
        for (position, value) in values.enumerate() {
            let index = self.index(array, position);
            let path = join(array, [index].into_iter().chain(field.map(key)));
            let Some(earlier) = first.get(value) else {
                first.insert(value, path);
                continue;
            };
            let hint = format!(
                "it is also at `{}`; remove one",
                crate::diagnostic::dotted(earlier)
            );
            let message = format!("the {what} `{}` is there twice", shown(value));
            self.refuse(Code::Duplicate, path, message, hint);
        }
    }

    /// Reports a port that the process has not. True when it has it.
    fn port_exists(
        &mut self,
        name: &str,
        process: &authored::Process,
        port: u16,
        at: Path,
    ) -> bool {
        let ports = [key("processes"), key(name), key("ports")];
        if self.tainted(&ports) || self.tainted(&at) {
            return false;
        }
        if process.ports.iter().any(|known| known.port == port) {
            return true;
        }
        let known: BTreeSet<u16> = process.ports.iter().map(|p| p.port).collect();
        let known: Vec<String> = known.iter().map(u16::to_string).collect();
        let name = shown_key(name);
        let hint = if known.is_empty() {
            format!("add it: `[[processes.{name}.ports]]` with `port = {port}`")
        } else {
            format!("`processes.{name}` has {}", known.join(", "))
        };
        let message = format!("process `{name}` has no port {port}");
        self.refuse(Code::UnknownPort, at, message, hint);
        false
    }

    /// Nodes ask by HTTP/1.1.
    fn probe_of_h2c(
        &mut self,
        process: &authored::Process,
        check: &authored::HealthCheck,
        port: u16,
        at: Path,
    ) {
        let mut ports = process.ports.iter();
        let is_h2c = |known: &authored::Port| {
            known.port == port && known.protocol == authored::Protocol::H2c
        };
        if check.kind == authored::ProbeKind::Http && ports.any(is_h2c) {
            self.warn(
                Code::ProbeProtocol,
                at,
                format!("port {port} is `h2c`, and the check asks by HTTP/1.1"),
                "write `type = \"tcp\"`, unless the app speaks HTTP/1.1 there, too".to_owned(),
            );
        }
    }

    /// Headers of a probe, which is a request like any other.
    fn headers(
        &mut self,
        headers: &BTreeMap<authored::HeaderName, authored::HeaderValue>,
        path: &[Step],
    ) {
        let mut seen = BTreeSet::new();
        for name in headers.keys().map(|name| name.0.as_str()) {
            let at = join(path, [key(name)]);
            let lower = name.to_ascii_lowercase();
            if lower == "host" {
                self.refuse(
                    Code::NotAllowed,
                    at,
                    format!("`{name}` is not allowed here"),
                    "write it as `healthcheck.host`".to_owned(),
                );
            } else if CONNECTION_HEADERS.contains(&lower.as_str()) {
                self.refuse(
                    Code::NotAllowed,
                    at,
                    format!("`{name}` is not allowed here"),
                    "it is about the connection, which the node makes; leave it out".to_owned(),
                );
            } else if !seen.insert(lower) {
                self.refuse(
                    Code::Duplicate,
                    at,
                    format!("the header `{name}` is there twice"),
                    "the case of letters makes no difference; remove one".to_owned(),
                );
            }
        }
    }

    fn cpu(&mut self, cpu: f64, path: Path) {
        let thousandths = cpu * 1000.0;
        if (thousandths - thousandths.round()).abs() > 1e-6 {
            self.refuse(
                Code::OutOfRange,
                path,
                format!("`{cpu}` is finer than a thousandth of a core"),
                format!("write {}", thousandths.round() / 1000.0),
            );
        }
    }

    fn scaling(&mut self, scaling: &authored::Scaling, path: &[Step]) {
        let Some(max) = scaling.max.filter(|max| scaling.min > *max) else {
            return;
        };
        if self.tainted(path) {
            return;
        }
        let min = scaling.min;
        // Where only `max` is written, that is the place to look at.
        let both = [join(path, [key("min")]), join(path, [key("max")])];
        let [at_min, at_max] = both;
        let at = if exists(self.root, &at_min) {
            at_min
        } else {
            at_max
        };
        self.refuse(
            Code::MinAboveMax,
            at,
            format!("`min` is {min} and `max` is {max}"),
            format!("`max` must be at least `min`: write `max = {min}` or `min = {max}`"),
        );
    }

    fn deploy(&mut self, process: &authored::Process, path: &[Step]) {
        let deploy = &process.deploy;
        let needs_both = matches!(
            deploy.strategy,
            authored::Strategy::Canary | authored::Strategy::BlueGreen
        );
        if needs_both && !process.volumes.is_empty() && !self.tainted(path) {
            self.refuse(
                Code::NoProgress,
                join(path, [key("strategy")]),
                "a process type with volumes has no new instance beside the old one: a volume has one instance at a time"
                    .to_owned(),
                "write `strategy = \"rolling\"`".to_owned(),
            );
        }
        if deploy.max_surge == 0 && deploy.max_unavailable == 0 && !self.tainted(path) {
            self.refuse(
                Code::NoProgress,
                join(path, [key("max_surge")]),
                "`max_surge` and `max_unavailable` are both 0: no instance could be replaced"
                    .to_owned(),
                "let one of them be at least 1".to_owned(),
            );
        }
    }

    fn tcp_routes(&mut self) {
        let array = [key("tcp_routes")];
        let routes = &self.manifest.tcp_routes;
        self.ports_of_edges(&array, routes);
        for (position, route) in routes.iter().enumerate() {
            let path = join(&array, [self.index(&array, position)]);
            self.tls_of(&path, route);
            let target = self.target(&path, &route.process, route.port);
            let at_listen = join(&path, [key("listen")]);
            if target.is_some()
                && !authored::TCP_ROUTE_PORTS.contains(&route.listen)
                && !self.tainted(&at_listen)
            {
                let (first, last) = authored::TCP_ROUTE_PORTS.into_inner();
                self.warn(
                    Code::PortOfEdges,
                    at_listen,
                    format!(
                        "edges listen at port {} only where their operators allow it",
                        route.listen
                    ),
                    format!("take one of {first} to {last}, or run each edge with `--tcp-ports {first}-{last},{}`", route.listen),
                );
            }
        }
    }

    /// A port is for whoever connects, by one route, or for hosts, each by one route.
    fn ports_of_edges(&mut self, array: &[Step], routes: &[authored::TcpRoute]) {
        let mut ports: BTreeMap<u16, BTreeMap<Option<&str>, Path>> = BTreeMap::new();
        for (position, route) in routes.iter().enumerate() {
            let path = join(array, [self.index(array, position)]);
            let [at_listen, at_host] = ["listen", "host"].map(|name| join(&path, [key(name)]));
            if self.tainted(&at_listen) || self.tainted(&at_host) {
                continue;
            }
            let host = route.host.as_ref().map(|host| host.0.as_str());
            let known = ports.entry(route.listen).or_default();
            let dotted = crate::diagnostic::dotted;
            if let Some(earlier) = known.get(&host) {
                let hint = format!("it is also at `{}`; remove one", dotted(earlier));
                let (at, message) = match host {
                    Some(host) => (
                        at_host,
                        format!(
                            "the host `{}` is there twice at port of edges {}",
                            shown(host),
                            route.listen
                        ),
                    ),
                    None => (
                        at_listen,
                        format!("the port of edges `{}` is there twice", route.listen),
                    ),
                };
                self.refuse(Code::Duplicate, at, message, hint);
                continue;
            }
            let of_other_kind = match host {
                Some(_) => known.get(&None),
                None => known.values().next(),
            };
            if let Some(earlier) = of_other_kind {
                let hint = format!(
                    "give both a `host` and `tls`, or one of them another port; the other is at `{}`",
                    dotted(earlier)
                );
                let message = format!(
                    "port of edges {} is for a host and for whoever connects",
                    route.listen
                );
                self.refuse(Code::Conflict, at_listen, message, hint);
                continue;
            }
            known.insert(host, if host.is_some() { at_host } else { at_listen });
        }
    }

    /// Only by TLS does a client name a host.
    fn tls_of(&mut self, path: &[Step], route: &authored::TcpRoute) {
        let at = |name| join(path, [key(name)]);
        let keys = ["host", "tls", "alpn"];
        if keys.iter().any(|name| self.tainted(&at(name))) {
            return;
        }
        match (&route.host, route.tls) {
            (None, Some(_)) => self.refuse(
                Code::Conflict,
                at("tls"),
                "missing key `host`, which `tls` needs".to_owned(),
                "add it, such as `host = \"db.example.com\"`, or remove `tls`: then all is passed on, TLS too".to_owned(),
            ),
            (Some(_), None) => self.refuse(
                Code::Conflict,
                at("host"),
                "missing key `tls`, which `host` needs: only by TLS does a client name its host"
                    .to_owned(),
                "add `tls = \"terminate\"`, where edges have the certificate, or `tls = \"passthrough\"`, where the app has it; or remove `host`".to_owned(),
            ),
            (None, None) | (Some(_), Some(_)) => {}
        }
        if route.alpn.is_some() && route.tls != Some(authored::TlsMode::Terminate) {
            self.refuse(
                Code::Conflict,
                at("alpn"),
                "`alpn` goes with `tls = \"terminate\"` only".to_owned(),
                "remove it: where TLS ends at the app, the app says what it offers".to_owned(),
            );
        }
    }

    /// The process that a route leads to; reports what is wrong with it. `None`: something is.
    fn target(
        &mut self,
        path: &[Step],
        label: &authored::Label,
        port: u16,
    ) -> Option<&'a authored::Process> {
        let name = label.0.as_str();
        let target = [key("processes"), key(name)];
        let at_process = join(path, [key("process")]);
        if self.tainted(&at_process) {
            return None;
        }
        let Some(process) = self.manifest.processes.get(label) else {
            if self.tainted(&target) {
                return None;
            }
            let names: BTreeSet<&str> = self
                .manifest
                .processes
                .keys()
                .map(|name| name.0.as_str())
                .collect();
            let hint = match suggest::nearest(name, names.iter().copied()) {
                Some(nearest) => format!("did you mean \"{nearest}\"?"),
                None => format!("there is {}", quoted_list(names.iter().copied())),
            };
            let message = format!("there is no process `{}`", shown(name));
            let at = if exists(self.root, &at_process) {
                at_process
            } else {
                path.to_vec()
            };
            self.refuse(Code::UnknownProcess, at, message, hint);
            return None;
        };
        let at_port = join(path, [key("port")]);
        self.port_exists(name, process, port, at_port)
            .then_some(process)
    }

    fn route(&mut self, host: &str, route: &authored::Route) {
        let path = vec![key("routes"), key(host)];
        let [at_rate, at_burst] = ["rate_limit", "burst"].map(|name| join(&path, [key(name)]));
        if let Some(burst) = route.burst.filter(|_| route.rate_limit.is_none())
            && !self.tainted(&at_rate)
        {
            self.refuse(
                Code::Conflict,
                at_burst,
                "missing key `rate_limit`, which `burst` needs".to_owned(),
                format!("add it, such as `rate_limit = {burst}`, or remove `burst`"),
            );
        }
        let name = route.process.0.as_str();
        let target = [key("processes"), key(name)];
        let Some(process) = self.target(&path, &route.process, route.port) else {
            return;
        };
        let at_port = join(&path, [key("port")]);
        let port = process.ports.iter().find(|port| port.port == route.port);
        if port.is_some_and(|port| port.protocol == authored::Protocol::Tcp) {
            self.refuse(
                Code::NotHttp,
                at_port,
                format!(
                    "port {} of process `{name}` is `tcp`, which has no host names",
                    route.port
                ),
                "give the port `protocol = \"http\"` or `\"h2c\"`, or lead a port of edges to it: `[[tcp_routes]]`".to_owned(),
            );
        }
        self.hsts(&path, route);
        if process.healthcheck.is_none() && !self.tainted(&join(&target, [key("healthcheck")])) {
            self.warn(
                Code::NoHealthcheck,
                path,
                format!(
                    "process `{name}` has no health check: it gets requests as soon as port {} accepts connections",
                    route.port
                ),
                format!(
                    "add `[processes.{}.healthcheck]` with `type = \"http\"` and `port = {}`",
                    shown_key(name),
                    route.port
                ),
            );
        }
    }
}

impl Rules<'_, '_> {
    /// What the lists that browsers have built in ask for (hstspreload.org).
    fn hsts(&mut self, route_path: &[Step], route: &authored::Route) {
        let Some(hsts) = route.hsts.as_ref().filter(|hsts| hsts.preload) else {
            return;
        };
        let at_hsts = join(route_path, [key("hsts")]);
        if self.tainted(&at_hsts) || self.tainted(&join(&at_hsts, [key("max_age")])) {
            return;
        }
        let remembered = units::parse_duration(&hsts.max_age.0).unwrap_or_default();
        if remembered >= YEAR_MS && hsts.include_subdomains {
            return;
        }
        self.refuse(
            Code::Conflict,
            join(&at_hsts, [key("preload")]),
            "`preload` goes with a `max_age` of a year or more and `include_subdomains = true` only".to_owned(),
            "write `hsts = { max_age = \"8760h\", include_subdomains = true, preload = true }`, or leave `preload` out".to_owned(),
        );
    }
}

/// A year, in milliseconds.
const YEAR_MS: u64 = 365 * 24 * 3_600_000;
/// How many names a hint lists.
const LISTED: usize = 10;

fn quoted_list<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let all: Vec<String> = names.map(|name| format!("\"{}\"", shown(name))).collect();
    let more = if all.len() > LISTED { ", ..." } else { "" };
    format!("{}{more}", all[..all.len().min(LISTED)].join(", "))
}

/// The place of the path in the text: the value where there is one, the key of a table, else the
/// nearest table around it.
pub(crate) fn locate(root: &DeTable<'_>, path: &[Step]) -> Range<usize> {
    walk(root, path).0
}

fn exists(root: &DeTable<'_>, path: &[Step]) -> bool {
    walk(root, path).1
}

fn walk(root: &DeTable<'_>, path: &[Step]) -> (Range<usize>, bool) {
    let mut place = 0..0;
    let mut table = Some(root);
    let mut here: Option<&Spanned<DeValue<'_>>> = None;
    for step in path {
        let next = match step {
            Step::Key(name) => {
                let entry = table.and_then(|table| table.get_key_value(name.as_str()));
                entry.map(|(key, value)| (key.span(), value))
            }
            Step::Index(index) => here
                .and_then(|value| value.get_ref().as_array())
                .and_then(|items| items.get(*index))
                .map(|value| (value.span(), value)),
        };
        let Some((key, value)) = next else {
            return (place, false);
        };
        place = match value.get_ref() {
            DeValue::Table(_) | DeValue::Array(_) => key,
            _ => value.span(),
        };
        table = value.get_ref().as_table();
        here = Some(value);
    }
    (place, true)
}
