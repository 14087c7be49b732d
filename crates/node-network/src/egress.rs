//! Egress: Debian's `slirp4netns`, one process a node (ADR 0004).
//!
//! It is attached to the namespace from the machine: packets that leave by the uplink it sends on by sockets of
//! its own. So the machine forwards nothing and has no rule for it, and nothing is left of it when it ends. It is
//! in a session of its own and in a file system with little in it.
//!
//! No record is kept of it. Its program, its network namespace (the machine's), its user (root) and the namespace
//! in its command line identify it. So an agent that was restarted finds it, and one that was killed at any
//! moment leaves no unknown process behind.
//!
//! An earlier agent named the uplink `world`. Its `slirp4netns` outlives an upgrade of the agent, and the rules of
//! this agent do not know its link: it is found by the old name, ended, and replaced. Connections by egress are
//! reset once by that; those between instances and from edges are not touched.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use blocking_work::blocking;
use process_handle::{Process, is_gone};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use crate::NetworkError;
use crate::command::{MAX_STDERR_BYTES, path, run, start_error};
use crate::names::{OLD_UPLINK, UPLINK};
use crate::rules::UPLINK_NETWORK;

/// The program.
const PROGRAM: &str = "slirp4netns";
/// Longest wait until its link is up, and for the end of a killed process.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two looks at its link.
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// Files that it may have open: one for each connection.
const OPEN_FILES: u32 = 1 << 18;

/// A node's running egress.
#[derive(Debug)]
pub struct Egress {
    process: Slirp,
}

impl Egress {
    pub(crate) fn new(process: Slirp) -> Self {
        Self { process }
    }

    /// Waits until `slirp4netns` has ended.
    pub async fn ended(&self) {
        self.process.process.ended().await;
    }
}

/// A `slirp4netns` that is attached to a namespace of ours.
#[derive(Debug)]
pub(crate) struct Slirp {
    process: Process,
    /// Whether an earlier agent started it, with [`OLD_UPLINK`].
    is_old: bool,
}

impl Slirp {
    /// Every one that is attached to this namespace.
    pub(crate) async fn find_all(namespace: &Path) -> Result<Vec<Self>, NetworkError> {
        let namespace = namespace.to_owned();
        blocking(move || Self::find_in_proc(&namespace)).await
    }

    /// Looks at every process of the machine. Blocks.
    fn find_in_proc(namespace: &Path) -> Result<Vec<Self>, NetworkError> {
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
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let link = || io::Result::Ok(link_of(&fs::read(proc.join("cmdline"))?, namespace));
        if link()?.is_none() {
            return Ok(None);
        }
        // Read again after the process is held: the answer is then about this process.
        let process = Process::hold(pid)?;
        let exe = fs::read_link(proc.join("exe"))?;
        let ours = exe.file_name().is_some_and(|name| name == PROGRAM)
            && fs::read_to_string(proc.join("status"))?.contains("\nUid:\t0\t0\t")
            && fs::metadata(proc.join("ns/net"))?.ino() == fs::metadata("/proc/self/ns/net")?.ino();
        Ok(link()?.filter(|_| ours).map(|link| Self {
            process,
            is_old: link == OLD_UPLINK,
        }))
    }

    /// Whether it can serve: it is attached to the uplink of this agent, and nobody has stopped it.
    pub(crate) fn is_usable(&self) -> bool {
        !self.is_old && !self.process.is_stopped()
    }

    /// Starts one, and waits until its link is up.
    pub(crate) async fn start(namespace: &Path, name: &str, mtu: u32) -> Result<(), NetworkError> {
        let (mtu, network) = (format!("--mtu={mtu}"), format!("--cidr={UPLINK_NETWORK}"));
        let namespace = namespace.to_string_lossy();
        #[rustfmt::skip]
        let line = [
            PROGRAM, "--configure", &mtu, &network,
            // It keeps one capability (low ports), few files and few system calls. No address leads to the
            // machine's loopback.
            "--enable-sandbox", "--enable-seccomp", "--disable-host-loopback",
            "--netns-type=path", &namespace, UPLINK,
        ];
        // `ulimit` fails without CAP_SYS_RESOURCE: then the limit of open files stays as it is. Nobody reads
        // its output once it runs, hence no SIGPIPE. Its sandbox unmounts the machine's file systems, the names
        // of all namespaces among them; a slave mount namespace keeps that from reaching the machine.
        let prepare = format!(
            "ulimit -n {OPEN_FILES} 2>/dev/null; trap '' PIPE; \
             exec setsid unshare --mount --propagation slave -- \"$@\""
        );
        let mut child = Command::new("sh")
            .args(["-c", &prepare, "sh"])
            .args(line)
            // What the agent was started with is no business of it: an enrollment token, for one.
            .env_clear()
            .env("PATH", path())
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| start_error(&line.join(" "), "is there a shell?", source))?;
        let given_up = Instant::now() + PATIENCE;
        loop {
            let routes = [
                "ip", "-n", name, "-4", "route", "show", "default", "dev", UPLINK,
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
        self.process.kill();
        tokio::time::timeout(PATIENCE, self.process.ended())
            .await
            .map(|_| ())
            .map_err(|_| NetworkError::CommandTimeout {
                command: format!("{PROGRAM}, killed,"),
                limit: PATIENCE,
            })
    }
}

/// The error of a `slirp4netns` that ended at once.
async fn refused(mut child: Child, line: &str) -> NetworkError {
    let mut stderr = Vec::new();
    if let Some(says) = child.stderr.take() {
        // For people to read: as much as there is.
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

/// The name of the link, where a command line (as in `/proc`) is of a process that is attached to this namespace.
fn link_of(command_line: &[u8], namespace: &Path) -> Option<&'static str> {
    let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let [program, .., value, link, b""] = words.as_slice() else {
        return None;
    };
    let ours = program.rsplit(|byte| *byte == b'/').next() == Some(PROGRAM.as_bytes())
        && *value == namespace.as_os_str().as_encoded_bytes();
    [UPLINK, OLD_UPLINK]
        .into_iter()
        .find(|name| ours && *link == name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_slirp4netns_of_this_namespace_is_found() {
        let namespace = Path::new("/run/netns/platform-a");
        let link = |line: &[u8]| link_of(line, namespace);
        for (line, found) in [
            (
                &b"slirp4netns\0-c\0/run/netns/platform-a\0uplink\0"[..],
                Some(UPLINK),
            ),
            (
                b"/usr/bin/slirp4netns\0-c\0/run/netns/platform-a\0uplink\0",
                Some(UPLINK),
            ),
            (
                b"slirp4netns\0-c\0/run/netns/platform-a\0world\0",
                Some(OLD_UPLINK),
            ),
            (b"slirp4netns\0-c\0/run/netns/platform-ab\0uplink\0", None),
            (b"slirp4netns\0-c\0/run/netns/platform-a\0tap0\0", None),
            (
                b"setsid\0slirp4netns\0/run/netns/platform-a\0uplink\0",
                None,
            ),
            (b"vi\0/run/netns/platform-a\0uplink\0", None),
            (b"", None),
        ] {
            assert_eq!(link(line), found, "{}", String::from_utf8_lossy(line));
        }
    }
}
