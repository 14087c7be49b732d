//! The way out of the namespace to the world: Debian's `slirp4netns`, one process a node (ADR 0004).
//!
//! It is attached to the namespace from the machine: what leaves by the link `world` it sends on by
//! sockets of its own. So nothing is forwarded by the machine, no rule is made there, and nothing is
//! left of it when it ends. It is in a session of its own and in a file system with little in it.
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
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::process::{Child, Command};

use crate::NetworkError;
use crate::command::{MAX_STDERR_BYTES, path, run};
use crate::names::WORLD_LINK;
use crate::rules::WORLD_NETWORK;

/// The program.
const PROGRAM: &str = "slirp4netns";
/// How long its link may take to be up, and a process that was killed to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two looks at its link.
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// Files that it may have open: one for each connection.
const OPEN_FILES: u32 = 1 << 18;

/// A node's way out, as it was found or made.
#[derive(Debug)]
pub struct Egress {
    /// Whether names of the world can be resolved; if not, why, and what to do.
    pub resolves: Result<(), &'static str>,
    process: Slirp,
}

impl Egress {
    pub(crate) fn new(process: Slirp, resolver: Option<Ipv4Addr>) -> Self {
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

/// A process that is attached to a namespace of ours, held by a pidfd.
#[derive(Debug)]
pub(crate) struct Slirp {
    pidfd: AsyncFd<OwnedFd>,
}

impl Slirp {
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
                Ok(slirp) => found.extend(slirp),
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
        let ours = exe.file_name().is_some_and(|name| name == PROGRAM)
            && fs::read_to_string(proc.join("status"))?.contains("\nUid:\t0\t0\t")
            && fs::metadata(proc.join("ns/net"))?.ino() == fs::metadata("/proc/self/ns/net")?.ino()
            && is_for(&fs::read(proc.join("cmdline"))?, namespace);
        if !ours {
            return Ok(None);
        }
        Ok(Some(Self {
            pidfd: register(pidfd)?,
        }))
    }

    /// Starts one, and waits until its link is up.
    pub(crate) async fn start(namespace: &Path, name: &str, mtu: u32) -> Result<(), NetworkError> {
        let (mtu, network) = (format!("--mtu={mtu}"), format!("--cidr={WORLD_NETWORK}"));
        let namespace = namespace.to_string_lossy();
        #[rustfmt::skip]
        let line = [
            PROGRAM, "--configure", &mtu, &network,
            // It gives up its rights but for low ports, most files and most system calls. No address
            // leads to the machine's loopback.
            "--enable-sandbox", "--enable-seccomp", "--disable-host-loopback",
            "--netns-type=path", &namespace, WORLD_LINK,
        ];
        // Where more files than now need a capability that we lack, it has to do with fewer. Nobody
        // reads what it writes once it runs. It takes the machine's mounts off its own root in a way
        // that the machine would follow, the names of all namespaces among them, were it not a slave.
        let prepare = format!(
            "ulimit -n {OPEN_FILES} 2>/dev/null; trap '' PIPE; \
             exec setsid unshare --mount --propagation slave -- \"$@\""
        );
        let mut child = Command::new("sh")
            .args(["-c", &prepare, "sh"])
            .args(line)
            .env("PATH", path())
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| NetworkError::Start {
                command: line.join(" "),
                hint: "is there a shell?",
                source,
            })?;
        let given_up = Instant::now() + PATIENCE;
        loop {
            let routes = [
                "ip", "-n", name, "-4", "route", "show", "default", "dev", WORLD_LINK,
            ];
            // Until its link is there, asking for its routes is an error.
            if run(&routes, "")
                .await
                .is_ok_and(|routes| !routes.trim().is_empty())
            {
                return Ok(());
            }
            if let Ok(Some(_)) = child.try_wait() {
                return Err(refused(child, &line.join(" ")).await);
            }
            if Instant::now() > given_up {
                let _ = child.kill().await;
                return Err(NetworkError::CommandTimeout {
                    command: line.join(" "),
                    limit: PATIENCE,
                });
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// Ends it, and waits for its end.
    pub(crate) async fn end(self) -> Result<(), NetworkError> {
        // One that has ended already cannot be told to.
        let _ = pidfd_send_signal(self.pidfd.get_ref().as_fd(), Signal::KILL);
        tokio::time::timeout(PATIENCE, self.ended())
            .await
            .map_err(|_| NetworkError::CommandTimeout {
                command: format!("{PROGRAM}, killed,"),
                limit: PATIENCE,
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

/// Why it ended at once.
async fn refused(mut child: Child, line: &str) -> NetworkError {
    let mut stderr = Vec::new();
    if let Some(says) = child.stderr.take() {
        // What it says is for people: as much as there is.
        let _ = says
            .take(MAX_STDERR_BYTES as u64)
            .read_to_end(&mut stderr)
            .await;
    }
    let stderr = String::from_utf8_lossy(&stderr).trim().replace('\n', "; ");
    let missing = stderr.contains(PROGRAM) && stderr.contains("No such file");
    NetworkError::Command {
        command: line.to_owned(),
        hint: if missing {
            "apt-get install slirp4netns"
        } else {
            "run the command by hand to see more"
        },
        stderr,
    }
}

/// Whether a command line, as in `/proc`, is of a process that is attached to this namespace.
fn is_for(command_line: &[u8], namespace: &Path) -> bool {
    let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let [program, .., value, link, b""] = words.as_slice() else {
        return false;
    };
    program.rsplit(|byte| *byte == b'/').next() == Some(PROGRAM.as_bytes())
        && *value == namespace.as_os_str().as_encoded_bytes()
        && *link == WORLD_LINK.as_bytes()
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
    fn only_a_process_of_this_namespace_is_ours() {
        let namespace = Path::new("/run/netns/platform-a");
        let is = |line: &[u8]| is_for(line, namespace);
        assert!(is(b"slirp4netns\0-c\0/run/netns/platform-a\0world\0"));
        assert!(is(
            b"/usr/bin/slirp4netns\0-c\0/run/netns/platform-a\0world\0"
        ));
        assert!(!is(b"slirp4netns\0-c\0/run/netns/platform-ab\0world\0"));
        assert!(!is(b"slirp4netns\0-c\0/run/netns/platform-a\0tap0\0"));
        assert!(!is(b"setsid\0slirp4netns\0/run/netns/platform-a\0world\0"));
        assert!(!is(b"vi\0/run/netns/platform-a\0world\0"));
        assert!(!is(b""));
    }
}
