//! Each check: a fact of the machine, and what it means.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::node::DriverChoice;
use membership::Membership;
use node_agent::NodeError;
use rustix::process::Resource;
use tokio::process::Command;

use super::finding::Finding;
use super::listeners::{self, Protocol};
use crate::units;

/// Disk and memory below which a role does not do its work, and below which it is short of them, in bytes.
const DISK_NEEDED: u64 = 1 << 30;
const DISK_WANTED: u64 = 10 << 30;
const MEMORY_NEEDED: u64 = 256 << 20;
const MEMORY_WANTED: u64 = 1 << 30;
/// Open files of a role with a thousand members, instances or clients.
const OPEN_FILES_WANTED: u64 = 65_536;
/// Longest wait for a program or a server.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where programs are, whatever the PATH of this command.
const PROGRAM_FOLDERS: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];
/// What a node starts, and the Debian package that has it.
const PROGRAMS: [(&str, &str); 3] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("slirp4netns", "slirp4netns"),
];

pub(super) fn root() -> Finding {
    if rustix::process::geteuid().is_root() {
        return Finding::ok("root", "this command runs as root, as the roles do");
    }
    Finding::missing(
        "root",
        "this command does not run as root, and cannot see everything",
        "sudo platform doctor",
    )
}

/// Blocks.
pub(super) fn memory() -> Finding {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    memory_of(&meminfo)
}

fn memory_of(meminfo: &str) -> Finding {
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map(|kib| kib * 1024);
    let Some(bytes) = available else {
        return Finding::warning("memory", "/proc/meminfo does not say", "mount /proc");
    };
    let found = format!("{} available", units::size(bytes));
    let mend = "end what takes it, or use a machine with more";
    match bytes {
        ..MEMORY_NEEDED => Finding::missing("memory", found, mend),
        MEMORY_NEEDED..MEMORY_WANTED => Finding::warning("memory", found, mend),
        _ => Finding::ok("memory", found),
    }
}

pub(super) fn open_files() -> Finding {
    let most = rustix::process::getrlimit(Resource::Nofile).maximum;
    match most {
        Some(most) if most < OPEN_FILES_WANTED => Finding::warning(
            "open files",
            format!("at most {most}"),
            "raise LimitNOFILE= of the role's unit (the package's units do), or `ulimit -Hn`",
        ),
        Some(most) => Finding::ok("open files", format!("at most {most}")),
        None => Finding::ok("open files", "no limit"),
    }
}

/// Blocks.
pub(super) fn disk(data_dir: &Path) -> Finding {
    let folder = data_dir
        .ancestors()
        .find(|folder| folder.exists())
        .unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(folder) {
        Ok(stat) => disk_of(folder, stat.f_bavail * stat.f_frsize),
        Err(error) => Finding::missing(
            "disk",
            format!("{} cannot be measured: {error}", folder.display()),
            "mount a disk there",
        ),
    }
}

fn disk_of(folder: &Path, free: u64) -> Finding {
    let found = format!("{} free in {}", units::size(free), folder.display());
    let mend = "free some, or mount a larger disk at /var/lib/platform";
    match free {
        ..DISK_NEEDED => Finding::missing("disk", found, mend),
        DISK_NEEDED..DISK_WANTED => Finding::warning("disk", found, mend),
        _ => Finding::ok("disk", found),
    }
}

pub(super) fn driver(choice: Result<DriverChoice, NodeError>) -> Finding {
    match choice {
        Ok(choice) if choice.name == "qemu-tcg" => Finding::warning(
            "VMM",
            format!("{}: {}", choice.name, choice.reason),
            "instances run, several times slower than on KVM: switch virtualization on in the machine's firmware, then \
             modprobe kvm_intel or kvm_amd",
        ),
        Ok(choice) => Finding::ok("VMM", format!("{}: {}", choice.name, choice.reason)),
        Err(error) => Finding::missing(
            "VMM",
            display::chain(&error),
            "install the platform's package, which has what guests boot and depends on QEMU",
        ),
    }
}

/// Blocks.
pub(super) fn programs() -> Vec<Finding> {
    PROGRAMS
        .iter()
        .map(|&(program, package)| match program_at(program) {
            Some(path) => Finding::ok(program, path.display().to_string()),
            None => Finding::missing(
                program,
                format!("{program} is not installed"),
                format!("apt-get install {package}"),
            ),
        })
        .collect()
}

fn program_at(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(PROGRAM_FOLDERS.iter().map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|path| path.is_absolute() && path.is_file())
}

/// Blocks.
pub(super) fn tun() -> Finding {
    let path = "/dev/net/tun";
    let opened = std::fs::File::options().read(true).write(true).open(path);
    match opened {
        Ok(_) => Finding::ok("TUN", format!("{path} opens")),
        Err(error) => Finding::missing(
            "TUN",
            format!("{path} does not open: {error}"),
            match error.kind() {
                io::ErrorKind::NotFound => "modprobe tun",
                io::ErrorKind::PermissionDenied => {
                    "run as root, and let this machine's cgroup use the device"
                }
                _ => "modprobe tun; where the kernel has no such module, use another kernel",
            },
        ),
    }
}

/// Blocks.
pub(super) fn veth() -> Finding {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let modules = Path::new("/lib/modules").join(&release);
    if Path::new("/sys/module/veth").exists() {
        return Finding::ok("veth", "the kernel has it loaded");
    }
    let lists =
        ["modules.dep", "modules.builtin"].map(|name| std::fs::read_to_string(modules.join(name)));
    if lists.iter().flatten().any(|list| list.contains("/veth.ko")) {
        return Finding::ok("veth", format!("kernel {release} has the module"));
    }
    if lists.iter().all(Result::is_err) {
        return Finding::warning(
            "veth",
            format!(
                "{} has no list of modules, so this cannot be known",
                modules.display()
            ),
            "`platform node` says at its start whether it can make its network",
        );
    }
    Finding::missing(
        "veth",
        format!("kernel {release} has no module veth"),
        "boot a kernel of Debian: apt-get install linux-image-amd64",
    )
}

/// Blocks.
pub(super) fn cgroup() -> Finding {
    cgroup_of(std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers"))
}

fn cgroup_of(controllers: io::Result<String>) -> Finding {
    let mend = "boot with systemd.unified_cgroup_hierarchy=1; until then the memory of a VMM is not capped, and instances have equal \
                shares of the processors";
    match controllers {
        Ok(controllers) => {
            let lacks: Vec<_> = ["cpu", "memory"]
                .into_iter()
                .filter(|name| !controllers.split_whitespace().any(|word| word == *name))
                .collect();
            if lacks.is_empty() {
                Finding::ok("cgroup", "version 2, with cpu and memory")
            } else {
                Finding::warning(
                    "cgroup",
                    format!("version 2, without {}", lacks.join(" and ")),
                    mend,
                )
            }
        }
        Err(_) => Finding::warning("cgroup", "version 2 is not mounted at /sys/fs/cgroup", mend),
    }
}

/// What a program that ended well wrote; `Err` for people.
async fn output(program: &str, arguments: &[&str]) -> Result<String, String> {
    let path = program_at(program).ok_or_else(|| format!("{program} is not installed"))?;
    let run = Command::new(path)
        .args(arguments)
        .env("LC_ALL", "C")
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(PATIENCE, run).await {
        Ok(output) => output.map_err(|error| error.to_string())?,
        Err(_) => {
            return Err(format!(
                "{program} did not answer within {} s",
                PATIENCE.as_secs()
            ));
        }
    };
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

pub(super) async fn nf_tables() -> Finding {
    match output("nft", &["list", "tables"]).await {
        Ok(_) => Finding::ok("nf_tables", "the kernel answers nft"),
        Err(error) => Finding::missing(
            "nf_tables",
            format!("nft does not reach the kernel: {error}"),
            "run as root; modprobe nf_tables",
        ),
    }
}

pub(super) async fn clock() -> Finding {
    clock_of(output("timedatectl", &["show", "-p", "NTPSynchronized", "--value"]).await)
}

fn clock_of(synchronized: Result<String, String>) -> Finding {
    let mend = "apt-get install systemd-timesyncd, or chrony: certificates and tokens of a machine whose clock is off are refused";
    match synchronized.as_deref().map(str::trim) {
        Ok("yes") => Finding::ok("clock", "synchronized"),
        Ok(_) => Finding::warning("clock", "not synchronized", mend),
        Err(error) => Finding::warning(
            "clock",
            format!("it is not known whether it is synchronized: {error}"),
            mend,
        ),
    }
}

/// Blocks.
pub(super) fn port(check: &'static str, address: SocketAddr) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => Finding::ok(check, format!("{address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let programs = listeners::programs(Protocol::Tcp, address.port());
            if programs.iter().any(|program| program == "platform") {
                return Finding::ok(check, format!("platform listens on {address}"));
            }
            let who = programs.into_iter().collect::<Vec<_>>().join(", ");
            let who = if who.is_empty() { "a program" } else { &who };
            Finding::missing(
                check,
                format!("{who} listens on {address}"),
                "end it, or choose another address with --listen of `server init` or `edge join`",
            )
        }
        Err(error) => Finding::missing(
            check,
            format!("{address} cannot be listened on: {error}"),
            "choose an address of this machine with --listen of `server init` or `edge join`",
        ),
    }
}

/// The UDP port of a member's WireGuard. `is_member`: the role runs here, so that the kernel's own socket may be its interface's. Blocks.
pub(super) fn overlay_port(check: &'static str, port: u16, is_member: bool) -> Finding {
    let mend = "end it, or choose another port with --overlay-port of `node join` or `edge join`";
    match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)) {
        Ok(_) => Finding::ok(check, format!("UDP {port} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let programs = listeners::programs(Protocol::Udp, port);
            if programs.iter().any(|program| program == "platform") {
                return Finding::ok(check, format!("platform listens on UDP {port}"));
            }
            if !programs.is_empty() {
                let who = programs.into_iter().collect::<Vec<_>>().join(", ");
                return Finding::missing(check, format!("{who} listens on UDP {port}"), mend);
            }
            let found = format!("WireGuard of the kernel listens on UDP {port}");
            if is_member {
                Finding::ok(check, found)
            } else {
                // As of wg-quick.
                Finding::missing(
                    check,
                    format!("{found}: an interface of another program"),
                    mend,
                )
            }
        }
        Err(error) => Finding::missing(
            check,
            format!("UDP {port} cannot be listened on: {error}"),
            "the kernel needs IPv6 for the overlay: boot without ipv6.disable=1",
        ),
    }
}

/// Whether the server answers this member.
pub(super) async fn server(check: &'static str, member: &Membership) -> Finding {
    let found = |what: &str| format!("{} {what}", member.server);
    let mend = "is the server up, and its port open to this machine? `platform node --server URL` names another one";
    let client = match member.client() {
        Ok(client) => client,
        Err(error) => {
            return Finding::missing(
                check,
                found(&display::chain(&error)),
                "join again with a new token",
            );
        }
    };
    match tokio::time::timeout(PATIENCE, client.health()).await {
        Ok(Ok(())) => Finding::ok(check, found("answers")),
        Ok(Err(error)) => Finding::warning(check, found(&display::chain(&error)), mend),
        Err(_) => Finding::warning(check, found("does not answer"), mend),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::super::finding::Severity;
    use super::*;

    #[test]
    fn too_little_memory_and_disk_are_missing_and_little_is_a_warning() {
        let memory =
            |kib: u64| memory_of(&format!("MemTotal: 9 kB\nMemAvailable:  {kib} kB\n")).severity;
        assert_eq!(memory(8 << 20), Severity::Ok);
        assert_eq!(memory(512 << 10), Severity::Warning);
        assert_eq!(memory(100 << 10), Severity::Missing);
        assert_eq!(memory_of("").severity, Severity::Warning);
        let disk = |free| disk_of(Path::new("/"), free).severity;
        assert_eq!(disk(20 << 30), Severity::Ok);
        assert_eq!(disk(5 << 30), Severity::Warning);
        assert_eq!(disk(100 << 20), Severity::Missing);
    }

    #[test]
    fn a_cgroup_without_its_controllers_and_an_unknown_clock_are_warnings() {
        let cgroup = |text: &str| cgroup_of(Ok(text.to_owned()));
        assert_eq!(cgroup("cpuset cpu io memory pids\n").severity, Severity::Ok);
        let lacks = cgroup("cpuset io pids");
        assert_eq!(lacks.severity, Severity::Warning);
        assert!(lacks.found.ends_with("without cpu and memory"), "{lacks:?}");
        let none = cgroup_of(Err(io::Error::from(io::ErrorKind::NotFound)));
        assert_eq!(none.severity, Severity::Warning);
        assert_eq!(clock_of(Ok("yes\n".to_owned())).severity, Severity::Ok);
        assert_eq!(clock_of(Ok("no\n".to_owned())).severity, Severity::Warning);
        assert_eq!(clock_of(Err("gone".to_owned())).severity, Severity::Warning);
    }

    #[test]
    fn a_taken_port_is_missing_and_its_program_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let taken = port("port", address);
        assert_eq!(taken.severity, Severity::Missing);
        assert!(!taken.found.starts_with("a program"), "{taken:?}");
        drop(listener);
        // Another test's child may have it until it executes its program.
        let end = std::time::Instant::now() + PATIENCE;
        while port("port", address).severity != Severity::Ok {
            assert!(std::time::Instant::now() < end, "{address} is not free");
        }
        let anothers = port("port", "192.0.2.1:1".parse().unwrap());
        assert_eq!(anothers.severity, Severity::Missing);
    }

    #[test]
    fn a_taken_port_of_wireguard_is_missing_and_its_program_is_named() {
        let socket = UdpSocket::bind("[::]:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let taken = overlay_port("port", port, true);
        assert_eq!(taken.severity, Severity::Missing);
        let own = std::fs::read_to_string("/proc/self/comm").unwrap();
        assert!(taken.found.contains(own.trim()), "{taken:?}");
        assert!(taken.mend.unwrap().contains("--overlay-port"));
        drop(socket);
        // Another test's child may have it until it executes its program.
        let end = std::time::Instant::now() + PATIENCE;
        while overlay_port("port", port, false).severity != Severity::Ok {
            assert!(std::time::Instant::now() < end, "{port} is not free");
        }
    }

    #[test]
    fn a_driver_without_kvm_is_a_warning_and_none_is_missing() {
        let choice = |name: &str| {
            driver(Ok(DriverChoice {
                name: name.to_owned(),
                reason: "because".to_owned(),
            }))
        };
        assert_eq!(choice("qemu-kvm").severity, Severity::Ok);
        assert_eq!(choice("qemu-tcg").severity, Severity::Warning);
        let none = driver(Err(NodeError::Guest(io::Error::from(
            io::ErrorKind::NotFound,
        ))));
        assert_eq!(none.severity, Severity::Missing);
        assert!(none.mend.is_some());
    }
}
