//! The way out of the namespace to the world: Debian's `pasta`, one process a node (ADR 0004).
//!
//! It is attached to the namespace from the machine: what leaves by the link `world` it sends on by
//! sockets of its own. So nothing is forwarded by the machine, no rule is made there, and nothing is
//! left of it when it ends. It goes into a session, a PID namespace and an empty file system of its
//! own, and ends when the namespace loses its name.
//!
//! No record is kept of it. It is known by what it executes, by the namespace that its command line
//! names, and by being root's in our own network namespace; so an agent that was restarted finds it,
//! and one that was killed at any moment leaves none behind unknown.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use contract::guest::RESOLVER;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::NetworkError;
use crate::command::run;
use crate::names::WORLD_LINK;
use crate::rules::{WORLD_ADDRESS, WORLD_BITS, WORLD_GATEWAY};

/// How long a process that was killed may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// Where its name stands in the command line that starts it.
const PROGRAM: usize = 6;
/// Files that it may have open: two for each connection.
const OPEN_FILES: u32 = 1 << 18;
/// Names, in its environment, the loopback name server that it was started for.
const RESOLVER_VARIABLE: &str = "PLATFORM_EGRESS_RESOLVER";
/// What it writes about a machine without a system log is of no interest.
const SYSLOG_NOISE: &str = "to syslog";

/// A node's way out, as it was found or made.
#[derive(Debug)]
pub struct Egress {
    /// Whether names of the world can be resolved; if not, why, and what to do.
    pub resolves: Result<(), &'static str>,
    process: Pasta,
}

impl Egress {
    pub(crate) fn new(process: Pasta, resolver: Option<Ipv4Addr>) -> Self {
        Self {
            resolves: resolver.map(|_| ()).ok_or(
                "names are not resolved, because /etc/resolv.conf names no server with an IPv4 address; name one",
            ),
            process,
        }
    }

    /// Waits until the way out is gone.
    pub async fn ended(&self) {
        self.process.ended().await;
    }
}

/// A `pasta` that is attached to a namespace of ours, held by a pidfd.
#[derive(Debug)]
pub(crate) struct Pasta {
    pidfd: AsyncFd<OwnedFd>,
    /// The loopback name server it passes questions on to.
    resolver: Option<Ipv4Addr>,
}

impl Pasta {
    /// Every one that is attached to this namespace.
    pub(crate) fn find_all(namespace: &Path) -> Result<Vec<Self>, NetworkError> {
        let wrong = |source| NetworkError::Process { source };
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").map_err(wrong)? {
            let name = entry.map_err(wrong)?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            match Self::hold(pid, namespace) {
                Ok(pasta) => found.extend(pasta),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(wrong(error)),
            }
        }
        Ok(found)
    }

    /// Holds the process, if it is one.
    fn hold(pid: i32, namespace: &Path) -> io::Result<Option<Self>> {
        if !is_for(&fs::read(format!("/proc/{pid}/cmdline"))?, namespace) {
            return Ok(None);
        }
        let pidfd = pidfd_open(Pid::from_raw(pid).ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
        // The pidfd is held first: what is read now is about this process or about none.
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let exe = fs::read_link(proc.join("exe"))?;
        // `pasta` is another name of it, and it may continue as `passt.avx2`.
        let known = exe.file_name().and_then(|name| name.to_str());
        let ours = known.is_some_and(|name| name.starts_with("passt"))
            && fs::read_to_string(proc.join("status"))?.contains("\nUid:\t0\t0\t")
            && fs::metadata(proc.join("ns/net"))?.ino() == fs::metadata("/proc/self/ns/net")?.ino()
            && is_for(&fs::read(proc.join("cmdline"))?, namespace);
        if !ours {
            return Ok(None);
        }
        let prefix = format!("{RESOLVER_VARIABLE}=");
        let environment = fs::read(proc.join("environ"))?;
        let resolver = environment
            .split(|byte| *byte == 0)
            .find_map(|variable| std::str::from_utf8(variable).ok()?.strip_prefix(&prefix))
            .and_then(|address| address.parse().ok());
        Ok(Some(Self {
            pidfd: register(pidfd)?,
            resolver,
        }))
    }

    /// Whether it does what is to be done now. A resolver that is not on loopback is the rules' matter.
    pub(crate) fn serves(&self, resolver: Option<Ipv4Addr>) -> bool {
        let loopback = on_loopback(resolver);
        loopback.is_none() || loopback == self.resolver
    }

    /// Starts one, and waits until its link is up.
    pub(crate) async fn start(
        namespace: &Path,
        mtu: u32,
        resolver: Option<Ipv4Addr>,
    ) -> Result<(), NetworkError> {
        // Where more files than now need a capability that we lack, it has to do with fewer.
        let with_files = format!("ulimit -n {OPEN_FILES} 2>/dev/null; exec \"$@\"");
        let variable =
            on_loopback(resolver).map_or_else(String::new, |address| address.to_string());
        let variable = format!("{RESOLVER_VARIABLE}={variable}");
        let (mtu, bits, namespace) = (
            mtu.to_string(),
            WORLD_BITS.to_string(),
            namespace.to_string_lossy(),
        );
        let (address, gateway) = (WORLD_ADDRESS.to_string(), WORLD_GATEWAY.to_string());
        let asked = RESOLVER.to_string();
        #[rustfmt::skip]
        let mut line = vec![
            "sh", "-c", &with_files, "sh", "env", &variable, "pasta", "--quiet",
            // As another user it may not enter the namespace. It gives up all but two capabilities.
            "--runas", "0:0",
            "--ipv4-only", "--config-net", "-I", WORLD_LINK, "--mtu", &mtu,
            "--address", &address, "--netmask", &bits, "--gateway", &gateway,
            // No address leads to the machine's loopback, and no port of either side to the other.
            "--no-map-gw", "-t", "none", "-u", "none", "-T", "none", "-U", "none",
        ];
        if on_loopback(resolver).is_some() {
            // It finds the name server in /etc/resolv.conf. Without need, it would take answers of that
            // server for answers to its own questions.
            line.extend(["--dns-forward", &asked]);
        }
        line.extend(["--netns", &namespace]);
        match run(&line, "").await {
            Ok(_) => Ok(()),
            Err(NetworkError::Command { stderr, hint, .. }) => {
                let stderr: Vec<&str> = stderr
                    .lines()
                    .filter(|line| !line.contains(SYSLOG_NOISE))
                    .collect();
                let stderr = stderr.join("; ");
                let missing = stderr.contains("pasta") && stderr.contains("No such file");
                Err(NetworkError::Command {
                    command: line[PROGRAM..].join(" "),
                    hint: if missing {
                        "apt-get install passt"
                    } else {
                        hint
                    },
                    stderr,
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Ends it, and waits for its end.
    pub(crate) async fn end(self) -> Result<(), NetworkError> {
        // One that has ended already cannot be told to.
        let _ = pidfd_send_signal(self.pidfd.get_ref().as_fd(), Signal::KILL);
        tokio::time::timeout(END_TIMEOUT, self.ended())
            .await
            .map_err(|_| NetworkError::CommandTimeout {
                command: "pasta, killed,".to_owned(),
                limit: END_TIMEOUT,
            })
    }

    async fn ended(&self) {
        // A pidfd stays readable from the process's end on.
        if self.pidfd.readable().await.is_err() {
            // The runtime shuts down: nobody will look at the answer.
            std::future::pending::<()>().await;
        }
    }
}

#[allow(unsafe_code, reason = "AsyncFd wants a promise about its descriptor")]
fn register(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays the same open descriptor until it is dropped, which the AsyncFd does.
    unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.map_err(Into::into)
}

/// A name server on the machine's loopback is out of the rules' reach: pasta itself asks it.
pub(crate) fn on_loopback(resolver: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
    resolver.filter(Ipv4Addr::is_loopback)
}

/// Whether a command line, as in `/proc`, is of a pasta that is attached to this namespace.
fn is_for(command_line: &[u8], namespace: &Path) -> bool {
    let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let [program, .., option, value, b""] = words.as_slice() else {
        return false;
    };
    program.rsplit(|byte| *byte == b'/').next() == Some(b"pasta")
        && *option == b"--netns"
        && *value == namespace.as_os_str().as_encoded_bytes()
}

fn is_gone(error: &io::Error) -> bool {
    // ESRCH from pidfd_open and from reading a file of /proc, ENOENT from opening one.
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::SRCH | Errno::NOENT)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pasta_of_this_namespace_is_ours() {
        let namespace = Path::new("/run/netns/platform-a");
        let is = |line: &[u8]| is_for(line, namespace);
        assert!(is(b"pasta\0-q\0--netns\0/run/netns/platform-a\0"));
        assert!(is(b"/usr/bin/pasta\0-q\0--netns\0/run/netns/platform-a\0"));
        assert!(!is(b"pasta\0-q\0--netns\0/run/netns/platform-ab\0"));
        assert!(!is(b"pasta\0-q\0--netns\0/run/netns/platform-a\0-f\0"));
        assert!(!is(
            b"prlimit\0--x\0pasta\0-q\0--netns\0/run/netns/platform-a\0"
        ));
        assert!(!is(b"vi\0--netns\0/run/netns/platform-a\0"));
        assert!(!is(b""));
    }
}
