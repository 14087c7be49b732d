//! What a guest is told to run: the image's config and the instance's spec made into one
//! [`BootConfig`] (ADR 0003).
//!
//! The image's Entrypoint stays, the manifest's command replaces its Cmd. Variables come in this
//! order, and a later one of the same name replaces the value of an earlier one in its place:
//! the default `PATH`, the image's Env, the manifest's, the platform's. What depends on files of
//! the image (user names, `PATH` lookup) is the guest's.

use contract::guest::{BootConfig, GATEWAY, GuestNetwork, VolumeMount};
use contract::image::ImageConfig;
use contract::instance::InstanceSpec;
use std::net::Ipv6Addr;

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
    pub resolvers: Vec<Ipv6Addr>,
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
    /// Its StopSignal is no signal.
    #[error("`{0}` is not a signal; name one as in SIGTERM, TERM, 15 or SIGRTMIN+3")]
    NotASignal(String),
    /// There are more volumes than device letters.
    #[error("{0} volumes are wanted, an instance can have {MAX_VOLUMES}")]
    TooManyVolumes(usize),
}

/// What the guest of `spec` is told to run.
pub fn boot_config(
    image: &ImageConfig,
    spec: &InstanceSpec,
    facts: &NodeFacts,
) -> Result<BootConfig, BootConfigError> {
    let command = spec.command.as_ref().unwrap_or(&image.cmd);
    let argv: Vec<String> = image.entrypoint.iter().chain(command).cloned().collect();
    if argv.first().is_none_or(String::is_empty) {
        return Err(BootConfigError::NoCommand {
            image: spec.image.to_string(),
            process: spec.process.to_string(),
        });
    }
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
        })
        .collect();
    let user = spec.user.as_deref().unwrap_or(&image.user);
    Ok(BootConfig {
        hostname: hostname(spec),
        argv,
        environment: environment(image, spec, facts),
        working_dir: match image.working_dir.as_str() {
            "" => "/".to_owned(),
            absolute if absolute.starts_with('/') => absolute.to_owned(),
            relative => format!("/{relative}"),
        },
        // By number, because an image need not have an /etc/passwd.
        user: if user.is_empty() { "0" } else { user }.to_owned(),
        stop_signal: stop_signal(image, spec)?,
        network: GuestNetwork {
            address: spec.address,
            gateway: GATEWAY,
            mtu: facts.mtu,
            resolvers: facts.resolvers.clone(),
        },
        root_device: ROOT_DEVICE.to_owned(),
        scratch_device: SCRATCH_DEVICE.to_owned(),
        volumes,
        image_volumes: image.volumes.clone(),
        secrets: spec.secrets.clone(),
    })
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

/// `15`, `TERM` and `SIGTERM` are `SIGTERM`; `37` and `SIGRTMAX-27` are `SIGRTMIN+3`.
fn signal_name(text: &str) -> Option<String> {
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
