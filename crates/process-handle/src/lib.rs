//! Another process, held by a pidfd: signals reach it and no other, and its end is noticed whether or not it
//! is a child.
//!
//! A pid alone is not enough, because the kernel gives it to another process later. An [`Identity`] can be
//! written down and is compared with the process before its pidfd is used.
//!
//! - [`detached`]: a process that outlives the agent that started it, from both ends.
//! - [`control`]: how an agent talks to such a process.
//! - [`sandbox`]: what such a process gives up.
//!
//! Deliberately absent: starting other processes. Each user of this crate starts its own kind.

pub mod control;
pub mod detached;
pub mod sandbox;
mod udp_port;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub use udp_port::{PortHolder, udp_port_holder};

/// How long a process that is found between fork and exec may take to its exec.
const EXEC_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between two looks at it.
const EXEC_POLL: Duration = Duration::from_millis(5);

/// What identifies a process within one boot of the machine ([`boot_id`]). Readers of a stored identity ignore
/// fields that they do not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The pid.
    pub pid: i32,
    /// When the process started, in clock ticks since the machine's boot (proc(5), `/proc/<pid>/stat` 22).
    pub start_time: u64,
    /// The program that it executes, without symbolic links.
    pub exe: PathBuf,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The process exited with this code.
    Code(i32),
    /// This signal ended the process.
    Signal(i32),
    /// The process was not a child of this one, so its exit status is not known.
    Unknown,
}

/// A process held by a pidfd. Dropping it leaves the process alone.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Holds the process that has this pid now: a child, or one that the caller then examines.
    ///
    /// # Errors
    /// No process has this pid (see [`is_gone`]), or the kernel refuses.
    pub fn hold(pid: i32) -> io::Result<Self> {
        let pidfd = pidfd_open(Pid::from_raw(pid).ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
        Ok(Self {
            pid,
            pidfd: register(pidfd)?,
        })
    }

    /// The process of this identity, or nothing when it has ended. Waits for up to a second for the exec of
    /// a process that has the pid and the start time, and another program.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub async fn find(identity: &Identity) -> io::Result<Option<Self>> {
        let process = match Self::hold(identity.pid) {
            Ok(process) => process,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        // The pidfd is held first: what is read now is about this process or about none.
        match stat(identity.pid) {
            Ok(stat) if stat.start_time == identity.start_time && !stat.dead => {}
            Ok(_) => return Ok(None),
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        let give_up = tokio::time::Instant::now() + EXEC_TIMEOUT;
        loop {
            match exe(identity.pid) {
                Ok(exe) if exe == identity.exe => return Ok(Some(process)),
                // An agent that was killed just now may have released it: its exec is about to come.
                Ok(_) if tokio::time::Instant::now() < give_up => {
                    tokio::time::sleep(EXEC_POLL).await;
                }
                Ok(_) => return Ok(None),
                Err(error) if is_gone(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The pid. After the end another process may have it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether somebody stopped the process (SIGSTOP): it does nothing until it is continued. A debugger that holds it for a
    /// moment does not count. False when it has ended, or /proc cannot be read.
    pub fn is_stopped(&self) -> bool {
        stat(self.pid).is_ok_and(|stat| stat.stopped)
    }

    /// Waits for the end, and reaps a child. The first caller gets a child's exit, later ones
    /// [`Exit::Unknown`].
    pub async fn ended(&self) -> Exit {
        // A pidfd stays readable from the process's end on.
        if self.pidfd.readable().await.is_err() {
            // The runtime shuts down: nobody will look at the answer.
            return std::future::pending().await;
        }
        match waitid(
            WaitId::PidFd(self.pidfd.get_ref().as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        ) {
            Ok(Some(status)) => status
                .exit_status()
                .map(Exit::Code)
                .or_else(|| status.terminating_signal().map(Exit::Signal))
                .unwrap_or(Exit::Unknown),
            Ok(None) | Err(_) => Exit::Unknown,
        }
    }

    /// Sends SIGKILL. Does nothing when the process has ended.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
    }
}

#[allow(unsafe_code, reason = "AsyncFd wants a promise about its descriptor")]
fn register(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays the same open descriptor until it is dropped, which the AsyncFd does.
    unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.map_err(Into::into)
}

/// Whether an error about a process means that it has ended: of [`Process::hold`], and of reading its files in
/// `/proc`.
pub fn is_gone(error: &io::Error) -> bool {
    // ESRCH from pidfd_open and from reading a file of /proc, ENOENT from opening one.
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::SRCH | Errno::NOENT)
    )
}

struct Stat {
    start_time: u64,
    /// The process has ended and waits to be reaped.
    dead: bool,
    /// A signal has stopped the process.
    stopped: bool,
}

fn stat(pid: i32) -> io::Result<Stat> {
    // blocks: a read of one small file of /proc, which is in memory
    let text = fs::read(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not understood")))
}

fn parse_stat(text: &[u8]) -> Option<Stat> {
    // The second field is the name in parentheses, and may hold anything, parentheses too.
    let end_of_name = text.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&text[end_of_name + 1..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    // The state is field 3, the start time field 22.
    let start_time = fields.nth(18)?.parse().ok()?;
    Some(Stat {
        start_time,
        dead: matches!(state, "Z" | "X" | "x"),
        stopped: state == "T",
    })
}

/// When a process started ([`Identity::start_time`]).
///
/// # Errors
/// It has ended, or `/proc` cannot be read.
pub fn start_time(pid: i32) -> io::Result<u64> {
    Ok(stat(pid)?.start_time)
}

/// What identifies a process that runs now.
///
/// # Errors
/// It has ended, or `/proc` cannot be read.
pub fn identity(pid: i32) -> io::Result<Identity> {
    Ok(Identity {
        pid,
        start_time: start_time(pid)?,
        exe: exe(pid)?,
    })
}

/// The program that a process executes. A file that was replaced since (an upgrade) keeps its name.
fn exe(pid: i32) -> io::Result<PathBuf> {
    // blocks: a link of /proc, which is in memory
    let path = fs::read_link(format!("/proc/{pid}/exe"))?;
    Ok(without_deleted(&path))
}

fn without_deleted(path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    let bytes = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// The id of the machine's current boot (random(4)). An identity of another boot is of a process that has ended.
///
/// # Errors
/// `/proc` cannot be read.
pub fn boot_id() -> io::Result<String> {
    // blocks: a read of one small file of /proc, which is in memory
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_process_name_cannot_forge_the_start_time() {
        let text = b"7 (x) R 1 2) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9\n";
        let stat = parse_stat(text).unwrap();
        assert_eq!(stat.start_time, 4242);
        assert!(!stat.dead && !stat.stopped);
    }

    #[tokio::test]
    async fn a_stopped_process_is_known_as_such_until_it_goes_on() {
        let child = std::process::Command::new("sleep").arg("1000").spawn();
        let pid = i32::try_from(child.unwrap().id()).unwrap();
        let process = Process::hold(pid).unwrap();
        for (signal, stopped) in [(Signal::STOP, true), (Signal::CONT, false)] {
            rustix::process::kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
            while process.is_stopped() != stopped {
                tokio::task::yield_now().await;
            }
        }
        process.kill();
        process.ended().await;
        assert!(!process.is_stopped());
    }

    #[test]
    fn an_identity_matches_a_program_that_was_replaced_by_an_upgrade() {
        assert_eq!(
            without_deleted(Path::new("/usr/bin/qemu (deleted)")),
            Path::new("/usr/bin/qemu")
        );
    }

    #[tokio::test]
    async fn a_process_is_found_by_its_identity_and_another_with_its_pid_is_not() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let mut identity = Identity {
            pid,
            start_time: start_time(pid).unwrap(),
            exe: exe(pid).unwrap(),
        };
        assert!(Process::find(&identity).await.unwrap().is_some());
        identity.start_time += 1;
        assert!(Process::find(&identity).await.unwrap().is_none());
        identity.start_time -= 1;
        identity.exe = PathBuf::from("/bin/true");
        assert!(Process::find(&identity).await.unwrap().is_none());
    }

    #[test]
    fn an_identity_with_fields_of_a_newer_version_is_read() {
        let text = r#"{"pid":7,"start_time":42,"exe":"/usr/bin/qemu","cgroup_id":9}"#;
        let identity: Identity = serde_json::from_str(text).unwrap();
        assert_eq!((identity.pid, identity.start_time), (7, 42));
    }

    #[tokio::test]
    async fn the_end_of_a_killed_child_is_seen_with_its_signal() {
        let child = std::process::Command::new("sleep").arg("1000").spawn();
        let pid = i32::try_from(child.unwrap().id()).unwrap();
        let process = Process::hold(pid).unwrap();
        process.kill();
        assert_eq!(process.ended().await, Exit::Signal(9));
        assert_eq!(process.ended().await, Exit::Unknown);
    }
}
