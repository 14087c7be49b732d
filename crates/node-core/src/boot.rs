//! What a guest is told to run: the image's config and the instance's spec made into one
//! [`BootConfig`] (ADR 0003).
//!
//! The image's Entrypoint stays, the manifest's command replaces its Cmd. Variables come in this
//! order, and a later one of the same name replaces the value of an earlier one in its place:
//! the default `PATH`, the image's Env, the manifest's, the platform's. What depends on files of
//! the image (user names, `PATH` lookup) is the guest's.

use guest_protocol::{BootConfig, GATEWAY, GuestNetwork, INTERNAL_DOMAIN, ProxyPort, VolumeMount};
use model::image::ImageConfig;
use model::instance::{Init, InstanceSpec, Probe, SecretBundle};
use std::collections::BTreeSet;
use std::net::IpAddr;

use overlay::address_plan::egress_address;

use overlay::address_plan::platform_peers;
use overlay::ingress::ingress_ports;

/// `PATH` where neither image nor manifest sets one, as other container runtimes have it.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Signal that stops an app where neither manifest nor image names one.
pub const DEFAULT_STOP_SIGNAL: &str = "SIGTERM";
/// Block device of the read-only root disk.
pub const ROOT_DEVICE: &str = "/dev/vda";
/// Block device of the scratch disk.
pub const SCRATCH_DEVICE: &str = "/dev/vdb";
/// Most volumes of one instance: `/dev/vdc` to `/dev/vdz`.
pub const MAX_VOLUMES: usize = 24;
/// Longest host name, in bytes: one DNS label.
const MAX_HOSTNAME_BYTES: usize = 63;

/// What the guest learns about its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// The node's region.
    pub region: String,
    /// The node's name.
    pub node_name: String,
    /// MTU of the guest's interface, in bytes.
    pub mtu: u32,
    /// Name servers; empty: the image's own resolv.conf stays.
    pub resolvers: Vec<IpAddr>,
}

/// Why an image cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootConfigError {
    /// There is nothing to run.
    #[error(
        "image {image} has neither Entrypoint nor Cmd, and process {process} has no `command`; \
         name one in the manifest"
    )]
    NoCommand {
        /// The image.
        image: String,
        /// The process type.
        process: String,
    },
    /// Its `StopSignal` is no signal.
    #[error("`{0}` is not a signal; name one as in SIGTERM, TERM, 15 or SIGRTMIN+3")]
    NotASignal(String),
    /// There are more volumes than device letters.
    #[error("{0} volumes are wanted, an instance can have {MAX_VOLUMES}")]
    TooManyVolumes(usize),
}

/// What the guest of `spec` is told to run. `secrets` are the bundles that it names.
pub fn boot_config(
    image: &ImageConfig,
    spec: &InstanceSpec,
    secrets: &[SecretBundle],
    facts: &NodeFacts,
) -> Result<BootConfig, BootConfigError> {
    let argv = argv(image, spec.command.as_deref()).ok_or_else(|| BootConfigError::NoCommand {
        image: spec.image.to_string(),
        process: spec.process.to_string(),
    })?;
    if spec.volumes.len() > MAX_VOLUMES {
        return Err(BootConfigError::TooManyVolumes(spec.volumes.len()));
    }
    let volumes = spec
        .volumes
        .iter()
        .zip('c'..='z')
        .map(|(volume, letter)| VolumeMount {
            device: format!("/dev/vd{letter}"),
            name: volume.name.clone(),
            path: volume.path.clone(),
            owner: volume.owner.clone(),
        })
        .collect();
    let user = spec.user.as_deref().unwrap_or(&image.user);
    let attached = spec.runs.is_attached();
    let init = match spec.init {
        // The command is a session beside a placeholder, which is no image's PID 1.
        _ if attached => Init::Platform,
        Some(init) => init,
        None => init_of(&argv),
    };
    Ok(BootConfig {
        hostname: hostname(spec),
        argv,
        environment: environment(image, spec, init, facts),
        working_dir: match image.working_dir.as_str() {
            "" => "/".to_owned(),
            absolute if absolute.starts_with('/') => absolute.to_owned(),
            relative => format!("/{relative}"),
        },
        // By number, because an image need not have an /etc/passwd.
        user: if user.is_empty() { "0" } else { user }.to_owned(),
        stop_signal: stop_signal(image, spec)?,
        init,
        network: GuestNetwork {
            address: spec.address,
            ipv4: egress_address(spec.id),
            gateway: GATEWAY,
            mtu: facts.mtu,
            resolvers: facts.resolvers.clone(),
            search: if facts.resolvers.is_empty() {
                Vec::new()
            } else {
                vec![format!("{}.{}.{INTERNAL_DOMAIN}", spec.env, spec.app)]
            },
        },
        root_device: ROOT_DEVICE.to_owned(),
        scratch_device: SCRATCH_DEVICE.to_owned(),
        volumes,
        image_volumes: image.volumes.clone(),
        secrets: secrets.to_vec(),
        proxy: proxy_ports(spec),
        ports: declared_ports(spec),
        attached,
        secret_modes: spec
            .secrets
            .iter()
            .filter_map(|bundle| Some((bundle.name.clone(), bundle.mode?)))
            .collect(),
    })
}

/// The program and its arguments, given the manifest's `command`; absent: there is no program. `[""]` in an image is as
/// if there were nothing: the way to clear what a base image has (moby, `daemon/create.go`).
pub fn argv(image: &ImageConfig, command: Option<&[String]>) -> Option<Vec<String>> {
    let cleared = |words: &'_ [String]| matches!(words, [only] if only.is_empty());
    let own = |words: &[String]| {
        if cleared(words) {
            Vec::new()
        } else {
            words.to_vec()
        }
    };
    let mut argv = own(&image.entrypoint);
    match command {
        Some(command) => argv.extend_from_slice(command),
        None => argv.extend(own(&image.cmd)),
    }
    argv.first()
        .is_some_and(|program| !program.is_empty())
        .then_some(argv)
}

/// The ports that the manifest names: those that the app is to be reached at though it listens on loopback only.
fn declared_ports(spec: &InstanceSpec) -> Vec<u16> {
    let probed = match spec.healthcheck.as_ref().map(|health| &health.probe) {
        Some(Probe::Http { port, .. } | Probe::Tcp { port }) => Some(*port),
        Some(Probe::Command { .. }) | None => None,
    };
    let ports = spec.ports.iter().map(|port| port.port).chain(probed);
    ports.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The ports of the guest's PROXY adapter: only the platform's own network may connect.
fn proxy_ports(spec: &InstanceSpec) -> Vec<ProxyPort> {
    let (peers, peers_mask) = platform_peers(spec.address);
    ingress_ports(&spec.ports)
        .map(|(ingress, port, mode)| ProxyPort {
            ingress,
            port: port.port,
            mode,
            peers,
            peers_mask,
        })
        .collect()
}

/// Programs that do not work unless they are PID 1: systemd, the many `/init` of s6-overlay, `/sbin/init`, phusion's
/// `my_init`, runit, OpenRC. Those that also work as another process (tini, dumb-init, s6-svscan, supervisord) are
/// not among them: the platform's PID 1 gives their children the time to stop.
const INITS: [&str; 6] = [
    "init",
    "my_init",
    "openrc-init",
    "runit",
    "runit-init",
    "systemd",
];

/// Who is PID 1 where the manifest names nobody: the command, where it is a program that insists on it.
fn init_of(argv: &[String]) -> Init {
    let program = argv.first().map(String::as_str).unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or(program);
    if INITS.contains(&name) {
        Init::Image
    } else {
        Init::Platform
    }
}

/// The name of the signal that stops the app: the manifest's, else the image's, else SIGTERM.
pub fn stop_signal(image: &ImageConfig, spec: &InstanceSpec) -> Result<String, BootConfigError> {
    let named = spec.stop.signal.as_deref().unwrap_or(&image.stop_signal);
    if named.is_empty() {
        return Ok(DEFAULT_STOP_SIGNAL.to_owned());
    }
    signal_name(named).ok_or_else(|| BootConfigError::NotASignal(named.to_owned()))
}

/// Linux's signals 1 to 31, in order.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// The first real-time signal, as glibc and musl count them.
const SIGRTMIN: u8 = 34;
/// The last real-time signal.
const SIGRTMAX: u8 = 64;

/// The name of a signal, in the one form that guests are told: `15`, `TERM` and `SIGTERM` are
/// `SIGTERM`; `37` and `SIGRTMAX-27` are `SIGRTMIN+3`. Absent: there is no such signal.
pub fn signal_name(text: &str) -> Option<String> {
    let real_time = |number: u8| {
        (SIGRTMIN..=SIGRTMAX)
            .contains(&number)
            .then(|| format!("SIGRTMIN+{}", number - SIGRTMIN))
    };
    if let Ok(number) = text.parse::<u8>() {
        return match number {
            1..=31 => Some(format!("SIG{}", SIGNALS[usize::from(number) - 1])),
            _ => real_time(number),
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if SIGNALS.contains(&name) {
        return Some(format!("SIG{name}"));
    }
    match name {
        "RTMIN" => return real_time(SIGRTMIN),
        "RTMAX" => return real_time(SIGRTMAX),
        _ => {}
    }
    if let Some(above) = name.strip_prefix("RTMIN+") {
        return real_time(SIGRTMIN.checked_add(above.parse().ok()?)?);
    }
    let below = name.strip_prefix("RTMAX-")?.parse().ok()?;
    real_time(SIGRTMAX.checked_sub(below)?)
}

/// `<process>-<instance>`, cut to one DNS label.
fn hostname(spec: &InstanceSpec) -> String {
    let id = spec.id.to_string();
    let process = spec.process.as_str();
    // Names are ASCII, so any byte is a character boundary.
    let stem = &process[..process.len().min(MAX_HOSTNAME_BYTES - 1 - id.len())];
    format!("{}-{id}", stem.trim_end_matches('-'))
}

fn environment(
    image: &ImageConfig,
    spec: &InstanceSpec,
    init: Init,
    facts: &NodeFacts,
) -> Vec<(String, String)> {
    let mut environment: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: String| {
        if let Some(known) = environment.iter_mut().find(|(known, _)| known == name) {
            known.1 = value;
        } else {
            environment.push((name.to_owned(), value));
        }
    };
    set("PATH", DEFAULT_PATH.to_owned());
    // As container engines do: a shell sets it by itself, other programs count on it.
    set("HOSTNAME", hostname(spec));
    if init == Init::Image {
        // By it systemd leaves devices, modules and terminals alone (systemd.io/CONTAINER_INTERFACE).
        set("container", "platform".to_owned());
    }
    for variable in &image.env {
        // An entry without `=` sets nothing.
        if let Some((name, value)) = variable.split_once('=')
            && !name.is_empty()
        {
            set(name, value.to_owned());
        }
    }
    for (name, value) in &spec.variables {
        set(name, value.clone());
    }
    set("PLATFORM_APP", spec.app.to_string());
    set("PLATFORM_ENV", spec.env.to_string());
    set("PLATFORM_PROCESS", spec.process.to_string());
    set("PLATFORM_RELEASE", spec.release.to_string());
    set("PLATFORM_INSTANCE", spec.id.to_string());
    set("PLATFORM_REGION", facts.region.clone());
    set("PLATFORM_NODE", facts.node_name.clone());
    set("PLATFORM_IPV6", spec.address.to_string());
    if let Some(port) = spec.ports.first() {
        set("PORT", port.port.to_string());
    }
    environment
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use expect_test::{Expect, expect};
    use model::VolumeId;
    use model::instance::{AttachedVolume, Port, Protocol, ProxyProtocol};
    use scheduler::fixtures::{process, spec};
    use std::fmt::Write as _;

    fn facts() -> NodeFacts {
        NodeFacts {
            region: "local".to_owned(),
            node_name: "node-1".to_owned(),
            mtu: 1420,
            resolvers: Vec::new(),
        }
    }

    #[test]
    fn a_guest_that_has_name_servers_looks_for_short_names_in_its_env() {
        let (image, spec) = (image(), spec(process(1)));
        let search = |resolvers| {
            let facts = NodeFacts {
                resolvers,
                ..facts()
            };
            boot_config(&image, &spec, &[], &facts)
                .unwrap()
                .network
                .search
        };
        assert_eq!(
            search(vec![guest_protocol::RESOLVER.into()]),
            ["prod.shop.internal"]
        );
        assert!(search(Vec::new()).is_empty());
    }

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(|word| (*word).to_owned()).collect()
    }

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: words(&["/entry"]),
            cmd: words(&["serve"]),
            env: words(&[
                "PATH=/opt/bin:/bin",
                "LEVEL=debug",
                "HOME=/srv",
                "broken",
                "=x",
            ]),
            user: "shop:staff".to_owned(),
            working_dir: "srv".to_owned(),
            stop_signal: "3".to_owned(),
            volumes: words(&["/data"]),
            ..ImageConfig::default()
        }
    }

    fn volume(name: String) -> AttachedVolume {
        AttachedVolume {
            path: None,
            owner: None,
            id: VolumeId(1),
            name,
            ordinal: 0,
            size_bytes: 1,
            made: false,
        }
    }

    fn check(image: &ImageConfig, spec: &InstanceSpec, expected: Expect) {
        let text = match boot_config(image, spec, &[], &facts()) {
            Err(error) => format!("error: {error}\n"),
            Ok(config) => {
                let mut text = format!(
                    "{} runs {:?} as {} in {}, stopped by {}\n",
                    config.hostname,
                    config.argv,
                    config.user,
                    config.working_dir,
                    config.stop_signal
                );
                for (name, value) in &config.environment {
                    let _ = writeln!(text, "{name}={value}");
                }
                for volume in &config.volumes {
                    let _ = writeln!(text, "{} is {}", volume.device, volume.name);
                }
                text
            }
        };
        expected.assert_eq(&text);
    }

    #[test]
    fn case_an_empty_word_clears_an_entrypoint_or_a_command() {
        let run = |entrypoint: &[&str], cmd: &[&str], command: Option<&[&str]>| {
            let image = ImageConfig {
                entrypoint: words(entrypoint),
                cmd: words(cmd),
                ..ImageConfig::default()
            };
            argv(&image, command.map(words).as_deref()).map(|argv| argv.join(" "))
        };
        assert_eq!(run(&[""], &["/app", "x"], None).as_deref(), Some("/app x"));
        assert_eq!(run(&["/app"], &[""], None).as_deref(), Some("/app"));
        assert_eq!(
            run(&[""], &["/app"], Some(&["/own"])).as_deref(),
            Some("/own")
        );
        assert_eq!(
            run(&[], &["/app"], Some(&["/own"])).as_deref(),
            Some("/own")
        );
        let args = run(&["/app"], &["x"], Some(&["", "y"]));
        assert_eq!(args.as_deref(), Some("/app  y"));
        for (entrypoint, cmd) in [(&[""][..], &[""][..]), (&[], &[]), (&["", "x"], &["y"])] {
            assert_eq!(run(entrypoint, cmd, None), None);
        }
        assert_eq!(run(&[""], &["/app"], Some(&[""])), None);
    }

    #[test]
    fn image_and_manifest_become_one() {
        let mut spec = spec(process(1));
        spec.variables.insert("HOME".to_owned(), "/home".to_owned());
        check(
            &image(),
            &spec,
            expect![[r#"
                web-1f2e3d4c runs ["/entry", "serve"] as shop:staff in /srv, stopped by SIGQUIT
                PATH=/opt/bin:/bin
                HOSTNAME=web-1f2e3d4c
                LEVEL=info
                HOME=/home
                PLATFORM_APP=shop
                PLATFORM_ENV=prod
                PLATFORM_PROCESS=web
                PLATFORM_RELEASE=v1
                PLATFORM_INSTANCE=1f2e3d4c
                PLATFORM_REGION=local
                PLATFORM_NODE=node-1
                PLATFORM_IPV6=fd00:1111:2222:1:0:1:1f2e:3d4c
                PORT=8080
            "#]],
        );
    }

    #[test]
    fn the_manifest_replaces_cmd_user_and_signal() {
        let mut spec = spec(process(1));
        spec.command = Some(words(&["work", "--fast"]));
        spec.user = Some("nobody".to_owned());
        spec.stop.signal = Some("SIGINT".to_owned());
        spec.ports.clear();
        spec.volumes = words(&["data", "more"]).into_iter().map(volume).collect();
        check(
            &image(),
            &spec,
            expect![[r#"
                web-1f2e3d4c runs ["/entry", "work", "--fast"] as nobody in /srv, stopped by SIGINT
                PATH=/opt/bin:/bin
                HOSTNAME=web-1f2e3d4c
                LEVEL=info
                HOME=/srv
                PLATFORM_APP=shop
                PLATFORM_ENV=prod
                PLATFORM_PROCESS=web
                PLATFORM_RELEASE=v1
                PLATFORM_INSTANCE=1f2e3d4c
                PLATFORM_REGION=local
                PLATFORM_NODE=node-1
                PLATFORM_IPV6=fd00:1111:2222:1:0:1:1f2e:3d4c
                /dev/vdc is data
                /dev/vdd is more
            "#]],
        );
    }

    #[test]
    fn a_port_with_proxy_protocol_gets_an_adapter_for_the_platform_alone() {
        let mut spec = spec(process(1));
        spec.ports[0].proxy_protocol = Some(ProxyProtocol::Strip);
        spec.ports.push(Port {
            port: 9090,
            protocol: Protocol::Tcp,
            proxy_protocol: Some(ProxyProtocol::V2),
        });
        let config = boot_config(&image(), &spec, &[], &facts()).unwrap();
        let lines = config.proxy.iter().map(|port| {
            let (peers, mask) = (port.peers, port.peers_mask);
            let (ingress, app, mode) = (port.ingress, port.port, port.mode);
            format!("{ingress} leads to {app} by {mode:?}, for {peers} & {mask}\n")
        });
        expect![[r#"
            61001 leads to 8080 by Strip, for fd00:1111:2222:: & ffff:ffff:ffff:0:ffff:ffff::
            61002 leads to 9090 by V2, for fd00:1111:2222:: & ffff:ffff:ffff:0:ffff:ffff::
        "#]]
        .assert_eq(&lines.collect::<String>());
    }

    #[test]
    fn an_empty_image_runs_what_the_manifest_says() {
        let mut spec = spec(process(1));
        spec.command = Some(words(&["/app"]));
        let config = boot_config(&ImageConfig::default(), &spec, &[], &facts()).unwrap();
        assert_eq!(config.argv, ["/app"]);
        assert_eq!(
            (config.user.as_str(), config.working_dir.as_str()),
            ("0", "/")
        );
        assert_eq!(
            config.environment[0],
            ("PATH".to_owned(), DEFAULT_PATH.to_owned())
        );
        assert_eq!(config.stop_signal, "SIGTERM");
    }

    #[test]
    fn a_config_that_cannot_run_is_refused_with_the_reason() {
        let mut spec = spec(process(1));
        check(
            &ImageConfig::default(),
            &spec,
            expect![[r#"
            error: image 127.0.0.1:5000/shop@sha256:0707070707070707070707070707070707070707070707070707070707070707 has neither Entrypoint nor Cmd, and process web has no `command`; name one in the manifest
        "#]],
        );
        let mut image = image();
        image.stop_signal = "SIGNOPE".to_owned();
        check(
            &image,
            &spec,
            expect![[r#"
            error: `SIGNOPE` is not a signal; name one as in SIGTERM, TERM, 15 or SIGRTMIN+3
        "#]],
        );
        spec.volumes = vec![volume("data".to_owned()); 25];
        check(
            &image,
            &spec,
            expect![[r#"
            error: 25 volumes are wanted, an instance can have 24
        "#]],
        );
    }

    #[test]
    fn case_programs_that_insist_on_it_are_pid_1_and_the_manifest_decides_before_all() {
        let init = |entrypoint: &str, wanted: Option<Init>| {
            let mut image = image();
            image.entrypoint = words(&[entrypoint]);
            let mut spec = spec(process(1));
            spec.init = wanted;
            boot_config(&image, &spec, &[], &facts()).unwrap().init
        };
        for program in [
            "/init",
            "init",
            "/sbin/init",
            "/lib/systemd/systemd",
            "systemd",
            "/sbin/my_init",
            "/sbin/runit",
        ] {
            assert_eq!(init(program, None), Init::Image, "{program}");
            assert_eq!(init(program, Some(Init::Platform)), Init::Platform);
        }
        // They learn that they are in a container, unless the image says in which.
        let container = |image: &ImageConfig, init| {
            let mut spec = spec(process(1));
            spec.init = Some(init);
            let config = boot_config(image, &spec, &[], &facts()).unwrap();
            let mut variables = config.environment.into_iter();
            variables.find(|(name, _)| name == "container")
        };
        let value = |text: &str| Some(("container".to_owned(), text.to_owned()));
        let mut named = image();
        assert_eq!(container(&named, Init::Platform), None);
        assert_eq!(container(&named, Init::Image), value("platform"));
        named.env.push("container=docker".to_owned());
        assert_eq!(container(&named, Init::Image), value("docker"));
        for program in ["/entry", "/usr/bin/tini", "/init.sh", "/init/run", "sh"] {
            assert_eq!(init(program, None), Init::Platform, "{program}");
            assert_eq!(init(program, Some(Init::Image)), Init::Image);
        }
    }

    #[test]
    fn signals_by_any_name() {
        for (text, name) in [
            ("15", Some("SIGTERM")),
            ("TERM", Some("SIGTERM")),
            ("sigterm", Some("SIGTERM")),
            ("31", Some("SIGSYS")),
            ("37", Some("SIGRTMIN+3")),
            ("SIGRTMIN+3", Some("SIGRTMIN+3")),
            ("RTMIN", Some("SIGRTMIN+0")),
            ("SIGRTMAX", Some("SIGRTMIN+30")),
            ("SIGRTMAX-27", Some("SIGRTMIN+3")),
            ("0", None),
            ("32", None),
            ("65", None),
            ("SIGRTMIN+31", None),
            ("SIGRTMAX-255", None),
            ("SIG", None),
        ] {
            assert_eq!(signal_name(text).as_deref(), name, "{text}");
        }
    }

    #[test]
    fn a_long_process_name_still_is_a_host_name() {
        let mut spec = spec(process(1));
        spec.process = "a".repeat(63).parse().unwrap();
        assert_eq!(hostname(&spec).len(), 63);
    }
}
