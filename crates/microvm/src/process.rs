//! A process that is not mistaken for another one, and whose end is noticed whoever started it.

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

/// How long a child that was let go may take to its exec, when it is looked for just then.
const EXEC_TIMEOUT: Duration = Duration::from_secs(1);
/// How often it is looked at meanwhile.
const EXEC_POLL: Duration = Duration::from_millis(5);

/// What one process is known by, within one boot of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// Its number, which is used again later.
    pub(crate) pid: i32,
    /// When it started, in clock ticks since the machine's boot (proc(5), `/proc/<pid>/stat` 22).
    pub(crate) start_time: u64,
    /// What it executes, without symbolic links.
    pub(crate) exe: PathBuf,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It was not our child, so only that it ended is known.
    Unknown,
}

/// A process held by a pidfd: its number cannot be used again for our signals.
#[derive(Debug)]
pub(crate) struct Process {
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Holds a process that is known to be the right one, such as a child.
    pub(crate) fn hold(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self {
            pidfd: register(pidfd)?,
        })
    }

    /// The process of this identity, or nothing when it has ended.
    pub(crate) async fn find(identity: &Identity) -> io::Result<Option<Self>> {
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
                // An agent that was killed just now had let it go, and its exec is yet to come.
                Ok(_) if tokio::time::Instant::now() < give_up => {
                    tokio::time::sleep(EXEC_POLL).await;
                }
                Ok(_) => return Ok(None),
                Err(error) if is_gone(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for the end, and reaps a child. The exit is known to the first who asks.
    pub(crate) async fn ended(&self) -> Exit {
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

    /// SIGKILL; nothing happens when it has ended.
    pub(crate) fn kill(&self) {
        let _ = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
    }
}

#[allow(unsafe_code, reason = "AsyncFd wants a promise about its descriptor")]
fn register(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays the same open descriptor until it is dropped, which the AsyncFd does.
    unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.map_err(Into::into)
}

fn is_gone(error: &io::Error) -> bool {
    // ESRCH from pidfd_open and from reading a file of /proc, ENOENT from opening one.
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::SRCH | Errno::NOENT)
    )
}

struct Stat {
    start_time: u64,
    /// It has ended and waits to be reaped.
    dead: bool,
}

fn stat(pid: i32) -> io::Result<Stat> {
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
    })
}

pub(crate) fn start_time(pid: i32) -> io::Result<u64> {
    Ok(stat(pid)?.start_time)
}

/// What the process executes. A file that was replaced meanwhile (an upgrade) keeps its name.
fn exe(pid: i32) -> io::Result<PathBuf> {
    let path = fs::read_link(format!("/proc/{pid}/exe"))?;
    Ok(without_deleted(&path))
}

fn without_deleted(path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    let bytes = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// The machine's current boot: identities of another one are of processes long gone.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_name_cannot_forge_the_start_time() {
        let text = b"7 (x) R 1 2) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9\n";
        let stat = parse_stat(text).unwrap();
        assert_eq!(stat.start_time, 4242);
        assert!(!stat.dead);
    }

    #[test]
    fn an_upgraded_program_keeps_its_name() {
        assert_eq!(
            without_deleted(Path::new("/usr/bin/qemu (deleted)")),
            Path::new("/usr/bin/qemu")
        );
    }

    #[tokio::test]
    async fn this_process_is_found_and_a_younger_one_of_its_number_is_not() {
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
}
