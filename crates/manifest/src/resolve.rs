//! From what is written to what it means, and back: the back way gives the canonical form.

use model::instance::{
    self, EgressPolicy, HealthCheck, Probe, RestartPolicy, RestartWhen, StopPolicy,
};
use model::{
    AppName, Hsts, NameError, PlainHttp, ProcessName, RateLimit, RouteSettings, TlsMode, route_name,
};

use crate::authored::{self, Duration, Label, NodeLabel, Size, Text};
use crate::model::{Deploy, Manifest, Process, Resources, RouteTarget, Scaling, Strategy};
use crate::units;

/// The meaning of a manifest whose structure and semantics are right. Absent: they are not.
pub(crate) fn resolve(written: &authored::Manifest) -> Option<Manifest> {
    let name = |label: &Label| -> Result<ProcessName, NameError> { label.0.parse() };
    let mut manifest = Manifest {
        app: written.app.0.parse::<AppName>().ok()?,
        image: written.image.as_ref().map(|image| image.0.clone()),
        env: variables(&written.env),
        processes: std::collections::BTreeMap::new(),
        routes: std::collections::BTreeMap::new(),
    };
    let default_egress = written.egress;
    for (label, written) in &written.processes {
        manifest
            .processes
            .insert(name(label).ok()?, process(written, default_egress)?);
    }
    for (host, route) in &written.routes {
        let target = RouteTarget {
            process: name(&route.process).ok()?,
            port: route.port,
            settings: settings(route)?,
        };
        manifest.routes.insert(host.0.clone(), target);
    }
    for route in &written.tcp_routes {
        let target = RouteTarget {
            process: name(&route.process).ok()?,
            port: route.port,
            settings: RouteSettings {
                sticky: route.sticky,
                tls: route.tls.map(|tls| match tls {
                    authored::TlsMode::Terminate => TlsMode::Terminate,
                    authored::TlsMode::Passthrough => TlsMode::Passthrough,
                }),
                alpn: route
                    .alpn
                    .iter()
                    .flatten()
                    .map(|name| name.0.clone())
                    .collect(),
                ..RouteSettings::default()
            },
        };
        let name = match &route.host {
            Some(host) => route_name::of_tls(&host.0, route.listen),
            None => route_name::of_tcp(route.listen),
        };
        manifest.routes.insert(name, target);
    }
    Some(manifest)
}

/// How edges treat what comes for a host.
fn settings(route: &authored::Route) -> Option<RouteSettings> {
    let hsts = match &route.hsts {
        Some(hsts) => Some(Hsts {
            max_age_seconds: millis(&hsts.max_age)? / 1000,
            include_subdomains: hsts.include_subdomains,
            preload: hsts.preload,
        }),
        None => None,
    };
    Some(RouteSettings {
        sticky: route.sticky,
        idle_timeout_ms: match &route.idle_timeout {
            Some(timeout) => Some(millis(timeout)?),
            None => None,
        },
        max_requests: route.max_requests,
        hard_limit: route.hard_limit,
        rate_limit: route.rate_limit.map(|average| RateLimit {
            requests_per_second: average,
            burst: route.burst.unwrap_or(average),
        }),
        http: route.http.map(|http| match http {
            authored::PlainHttp::Redirect => PlainHttp::Redirect,
            authored::PlainHttp::Serve => PlainHttp::Serve,
        }),
        hsts,
        ..RouteSettings::default()
    })
}

fn variables(
    env: &std::collections::BTreeMap<authored::VariableName, Text>,
) -> std::collections::BTreeMap<String, String> {
    env.iter()
        .map(|(name, value)| (name.0.clone(), value.0.clone()))
        .collect()
}

fn texts(list: &[Text]) -> Vec<String> {
    list.iter().map(|text| text.0.clone()).collect()
}

fn millis(duration: &Duration) -> Option<u64> {
    units::parse_duration(&duration.0)
}

fn bytes(size: &Size) -> Option<u64> {
    units::parse_size(&size.0)
}

fn process(
    written: &authored::Process,
    default_egress: Option<authored::Egress>,
) -> Option<Process> {
    let ports = written.ports.iter().map(|port| instance::Port {
        port: port.port,
        protocol: match port.protocol {
            authored::Protocol::Http => instance::Protocol::Http,
            authored::Protocol::H2c => instance::Protocol::H2c,
            authored::Protocol::Tcp => instance::Protocol::Tcp,
        },
        proxy_protocol: port.proxy_protocol.map(|proxy| match proxy {
            authored::ProxyProtocol::Strip => instance::ProxyProtocol::Strip,
            authored::ProxyProtocol::V2 => instance::ProxyProtocol::V2,
        }),
    });
    let volumes = written.volumes.iter().map(|volume| {
        Some(instance::Volume {
            name: volume.name.0.clone(),
            size_bytes: bytes(&volume.size)?,
            path: volume.path.as_ref().map(|path| path.0.clone()),
            owner: volume.owner.as_ref().map(|owner| owner.0.clone()),
        })
    });
    let healthcheck = match &written.healthcheck {
        Some(check) => Some(healthcheck_of(check)?),
        None => None,
    };
    let liveness = match &written.liveness {
        Some(check) => Some(healthcheck_of(check)?),
        None => None,
    };
    let min = written.scaling.min;
    Some(Process {
        command: written.command.as_deref().map(texts),
        user: written.user.as_ref().map(|user| user.0.clone()),
        init: written.init.map(|init| match init {
            authored::Init::Platform => instance::Init::Platform,
            authored::Init::Image => instance::Init::Image,
        }),
        env: variables(&written.env),
        secrets: written
            .secrets
            .iter()
            .map(|secret| secret.name().0.clone())
            .collect(),
        secret_modes: written
            .secrets
            .iter()
            .filter_map(|secret| {
                let mode = u32::from_str_radix(&secret.mode()?.0, 8).ok()?;
                Some((secret.name().0.clone(), mode))
            })
            .collect(),
        egress: egress(written.egress.or(default_egress)),
        stop: StopPolicy {
            signal: written.stop.signal.map(signal_name),
            timeout_ms: millis(&written.stop.timeout)?,
        },
        restart: RestartPolicy {
            when: match written.restart.policy {
                authored::RestartPolicy::Always => RestartWhen::Always,
                authored::RestartPolicy::OnFailure => RestartWhen::OnFailure,
                authored::RestartPolicy::Never => RestartWhen::Never,
            },
            max_retries: written.restart.max_retries,
        },
        ports: ports.collect(),
        healthcheck,
        liveness,
        region: written.region.as_ref().map(|region| region.0.clone()),
        labels: (written.labels.iter())
            .map(|(key, value)| (key.0.clone(), value.0.clone()))
            .collect(),
        resources: Resources {
            cpu_millis: cpu_millis(written.resources.cpu)?,
            memory_bytes: bytes(&written.resources.memory)?,
            scratch_bytes: bytes(&written.resources.scratch)?,
        },
        scaling: Scaling {
            min,
            max: written.scaling.max.unwrap_or(min.max(1)),
        },
        volumes: volumes.collect::<Option<_>>()?,
        deploy: Deploy {
            strategy: match written.deploy.strategy {
                authored::Strategy::Rolling => Strategy::Rolling,
                authored::Strategy::Immediate => Strategy::Immediate,
                authored::Strategy::Canary => Strategy::Canary,
                authored::Strategy::BlueGreen => Strategy::BlueGreen,
            },
            max_unavailable: written.deploy.max_unavailable,
            max_surge: written.deploy.max_surge,
            auto_revert: written.deploy.auto_revert,
            min_healthy_ms: millis(&written.deploy.min_healthy)?,
            deadline_ms: match &written.deploy.deadline {
                Some(deadline) => Some(millis(deadline)?),
                None => None,
            },
            release_command: written.deploy.release_command.as_deref().map(texts),
        },
    })
}

fn egress(written: Option<authored::Egress>) -> EgressPolicy {
    match written {
        None | Some(authored::Egress::All) => EgressPolicy::All,
        Some(authored::Egress::Internet) => EgressPolicy::Internet,
        Some(authored::Egress::None) => EgressPolicy::None,
    }
}

fn healthcheck_of(written: &authored::HealthCheck) -> Option<HealthCheck> {
    let probe = match written.kind {
        authored::ProbeKind::Http => Probe::Http {
            port: written.port?,
            path: written
                .path
                .as_ref()
                .map_or_else(|| "/".to_owned(), |path| path.0.clone()),
            host: written.host.as_ref().map(|host| host.0.clone()),
            headers: written
                .headers
                .iter()
                .flatten()
                .map(|(name, value)| (name.0.clone(), value.0.clone()))
                .collect(),
        },
        authored::ProbeKind::Tcp => Probe::Tcp {
            port: written.port?,
        },
        authored::ProbeKind::Command => Probe::Command {
            command: texts(written.command.as_ref()?),
        },
    };
    Some(HealthCheck {
        probe,
        interval_ms: millis(&written.interval)?,
        timeout_ms: millis(&written.timeout)?,
        grace_ms: millis(&written.grace)?,
        healthy: written.healthy,
        unhealthy: written.unhealthy,
    })
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the value is rounded and its range was checked"
)]
fn cpu_millis(cpu: f64) -> Option<u32> {
    let millis = (cpu * 1000.0).round();
    (1.0..=f64::from(u32::MAX))
        .contains(&millis)
        .then_some(millis as u32)
}

/// The name as the schema has it.
fn signal_name(signal: authored::Signal) -> String {
    format!("{signal:?}").to_ascii_uppercase()
}

/// The manifest as one would write it with every default filled in.
pub(crate) fn write(manifest: &Manifest) -> authored::Manifest {
    let label = |name: &str| Label(name.to_owned());
    authored::Manifest {
        app: label(manifest.app.as_str()),
        image: manifest.image.clone().map(authored::Image),
        // Each process has its own.
        egress: None,
        env: write_variables(&manifest.env),
        processes: manifest
            .processes
            .iter()
            .map(|(name, process)| (label(name.as_str()), write_process(process)))
            .collect(),
        routes: (manifest.routes.iter())
            .filter(|(name, _)| route_name::is_host(name))
            .map(|(host, target)| {
                let settings = &target.settings;
                let route = authored::Route {
                    process: label(target.process.as_str()),
                    port: target.port,
                    sticky: settings.sticky,
                    idle_timeout: settings.idle_timeout_ms.map(write_duration),
                    max_requests: settings.max_requests,
                    hard_limit: settings.hard_limit,
                    rate_limit: settings.rate_limit.map(|limit| limit.requests_per_second),
                    burst: settings.rate_limit.map(|limit| limit.burst),
                    http: target.settings.http.and_then(write_plain_http),
                    hsts: target.settings.hsts.map(write_hsts),
                };
                (authored::HostName(host.clone()), route)
            })
            .collect(),
        tcp_routes: (manifest.routes.iter())
            .filter_map(|(name, target)| {
                let alpn = &target.settings.alpn;
                let alpn = alpn.iter().cloned().map(authored::AlpnProtocol);
                Some(authored::TcpRoute {
                    listen: route_name::port_of_edges(name)?,
                    host: route_name::tls(name)
                        .map(|(host, _)| authored::HostName(host.to_owned())),
                    tls: target.settings.tls.and_then(write_tls),
                    alpn: (!target.settings.alpn.is_empty()).then(|| alpn.collect()),
                    process: label(target.process.as_str()),
                    port: target.port,
                    sticky: target.settings.sticky,
                })
            })
            .collect(),
    }
}

/// `None`: a newer server's, which this one does not know.
fn write_plain_http(http: PlainHttp) -> Option<authored::PlainHttp> {
    match http {
        PlainHttp::Redirect => Some(authored::PlainHttp::Redirect),
        PlainHttp::Serve => Some(authored::PlainHttp::Serve),
        PlainHttp::Unknown => None,
    }
}

/// `None`: a newer server's, which this one does not know.
fn write_tls(tls: TlsMode) -> Option<authored::TlsMode> {
    match tls {
        TlsMode::Terminate => Some(authored::TlsMode::Terminate),
        TlsMode::Passthrough => Some(authored::TlsMode::Passthrough),
        TlsMode::Unknown => None,
    }
}

fn write_hsts(hsts: Hsts) -> authored::Hsts {
    authored::Hsts {
        max_age: write_duration(hsts.max_age_seconds.saturating_mul(1000)),
        include_subdomains: hsts.include_subdomains,
        preload: hsts.preload,
    }
}

fn write_variables(
    env: &std::collections::BTreeMap<String, String>,
) -> std::collections::BTreeMap<authored::VariableName, Text> {
    env.iter()
        .map(|(name, value)| (authored::VariableName(name.clone()), Text(value.clone())))
        .collect()
}

fn write_texts(list: &[String]) -> Vec<Text> {
    list.iter().cloned().map(Text).collect()
}

fn write_duration(millis: u64) -> Duration {
    Duration(units::format_duration(millis))
}

fn write_size(bytes: u64) -> Size {
    Size(units::format_size(bytes))
}

fn write_process(process: &Process) -> authored::Process {
    authored::Process {
        command: process.command.as_deref().map(write_texts),
        user: process.user.clone().map(authored::User),
        init: process.init.map(|init| match init {
            instance::Init::Platform => authored::Init::Platform,
            instance::Init::Image => authored::Init::Image,
        }),
        env: write_variables(&process.env),
        secrets: process
            .secrets
            .iter()
            .map(|name| match process.secret_modes.get(name) {
                None => authored::Secret::Name(Label(name.clone())),
                Some(mode) => authored::Secret::Bundle(authored::SecretBundle {
                    name: Label(name.clone()),
                    mode: Some(authored::FileMode(format!("{mode:04o}"))),
                }),
            })
            .collect(),
        egress: Some(match process.egress {
            EgressPolicy::All => authored::Egress::All,
            EgressPolicy::Internet => authored::Egress::Internet,
            EgressPolicy::None => authored::Egress::None,
        }),
        stop: authored::Stop {
            signal: process.stop.signal.as_deref().and_then(read_signal),
            timeout: write_duration(process.stop.timeout_ms),
        },
        restart: authored::Restart {
            policy: match process.restart.when {
                RestartWhen::Always => authored::RestartPolicy::Always,
                RestartWhen::OnFailure => authored::RestartPolicy::OnFailure,
                RestartWhen::Never => authored::RestartPolicy::Never,
            },
            max_retries: process.restart.max_retries,
        },
        ports: process.ports.iter().map(write_port).collect(),
        healthcheck: process.healthcheck.as_ref().map(write_healthcheck),
        liveness: process.liveness.as_ref().map(write_healthcheck),
        region: process.region.clone().map(Text),
        labels: (process.labels.iter())
            .map(|(key, value)| (NodeLabel(key.clone()), NodeLabel(value.clone())))
            .collect(),
        resources: authored::Resources {
            cpu: f64::from(process.resources.cpu_millis) / 1000.0,
            memory: write_size(process.resources.memory_bytes),
            scratch: write_size(process.resources.scratch_bytes),
        },
        scaling: authored::Scaling {
            min: process.scaling.min,
            max: Some(process.scaling.max),
        },
        volumes: process
            .volumes
            .iter()
            .map(|volume| authored::Volume {
                name: Label(volume.name.clone()),
                size: write_size(volume.size_bytes),
                path: volume.path.clone().map(authored::GuestPath),
                owner: volume.owner.clone().map(authored::User),
            })
            .collect(),
        deploy: authored::Deploy {
            strategy: match process.deploy.strategy {
                Strategy::Rolling => authored::Strategy::Rolling,
                Strategy::Immediate => authored::Strategy::Immediate,
                Strategy::Canary => authored::Strategy::Canary,
                Strategy::BlueGreen => authored::Strategy::BlueGreen,
            },
            max_unavailable: process.deploy.max_unavailable,
            max_surge: process.deploy.max_surge,
            auto_revert: process.deploy.auto_revert,
            min_healthy: write_duration(process.deploy.min_healthy_ms),
            deadline: process.deploy.deadline_ms.map(write_duration),
            release_command: process.deploy.release_command.as_deref().map(write_texts),
        },
    }
}

fn read_signal(name: &str) -> Option<authored::Signal> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
}

fn write_port(port: &instance::Port) -> authored::Port {
    authored::Port {
        port: port.port,
        protocol: match port.protocol {
            instance::Protocol::Http => authored::Protocol::Http,
            instance::Protocol::H2c => authored::Protocol::H2c,
            instance::Protocol::Tcp => authored::Protocol::Tcp,
        },
        proxy_protocol: port.proxy_protocol.map(|proxy| match proxy {
            instance::ProxyProtocol::Strip => authored::ProxyProtocol::Strip,
            instance::ProxyProtocol::V2 => authored::ProxyProtocol::V2,
        }),
    }
}

fn write_healthcheck(check: &HealthCheck) -> authored::HealthCheck {
    let nothing = authored::HealthCheck {
        kind: authored::ProbeKind::Tcp,
        port: None,
        path: None,
        host: None,
        headers: None,
        command: None,
        interval: write_duration(check.interval_ms),
        timeout: write_duration(check.timeout_ms),
        grace: write_duration(check.grace_ms),
        healthy: check.healthy,
        unhealthy: check.unhealthy,
    };
    match &check.probe {
        Probe::Http {
            port,
            path,
            host,
            headers,
        } => {
            let named = |(name, value): (&String, &String)| {
                let name = authored::HeaderName(name.clone());
                (name, authored::HeaderValue(value.clone()))
            };
            authored::HealthCheck {
                kind: authored::ProbeKind::Http,
                port: Some(*port),
                path: Some(authored::HttpPath(path.clone())),
                host: host.clone().map(authored::HostName),
                headers: (!headers.is_empty()).then(|| headers.iter().map(named).collect()),
                ..nothing
            }
        }
        Probe::Tcp { port } => authored::HealthCheck {
            port: Some(*port),
            ..nothing
        },
        Probe::Command { command } => authored::HealthCheck {
            kind: authored::ProbeKind::Command,
            command: Some(write_texts(command)),
            ..nothing
        },
    }
}
