//! Out-of-memory kills, as the kernel's log tells them (`/dev/kmsg`): who was killed, when it happens.
//!
//! The counter of a cgroup says only that something was. Records that processes write there themselves have
//! another facility than the kernel's and are ignored.

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Room for one record, in bytes. The kernel skips a record that is larger; one about a kill has at most 500.
const RECORD_BYTES: usize = 1024;
/// Most records read at a time.
const MAX_RECORDS: usize = 256;
/// How long the log is not read after a read: processes can write much into it.
const REST: Duration = Duration::from_millis(20);
/// Most pids that are remembered until their ends are seen.
const MAX_VICTIMS: usize = 64;

/// A process that the kernel killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OomKill {
    /// Its pid, as init sees it.
    pub(crate) pid: i32,
    /// Its name, at most 15 bytes of its own choice; what is not printable is escaped.
    pub(crate) name: String,
    /// Its own memory, in KiB.
    pub(crate) kibibytes: u64,
}

/// The kernel's log, from now on.
pub(crate) struct KernelLog {
    fd: Option<OwnedFd>,
    resting_until: Option<Instant>,
    victims: VecDeque<i32>,
}

impl KernelLog {
    /// Opens it. Without it, kills are not reported.
    ///
    /// # Errors
    /// The kernel has none.
    pub(crate) fn open() -> io::Result<OwnedFd> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/kmsg")?;
        seek(&file, SeekFrom::End(0))?;
        Ok(file.into())
    }

    /// The log behind this descriptor.
    pub(crate) fn new(fd: Option<OwnedFd>) -> Self {
        Self {
            fd,
            resting_until: None,
            victims: VecDeque::new(),
        }
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> Option<BorrowedFd<'_>> {
        self.fd
            .as_ref()
            .filter(|_| self.resting_until.is_none())
            .map(|fd| fd.as_fd())
    }

    /// When [`Self::tick`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.resting_until
    }

    /// Ends a rest that is over.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.resting_until = self.resting_until.filter(|until| *until > now);
    }

    /// Reads what is new, and returns the kills among it.
    pub(crate) fn read(&mut self, now: Instant) -> Vec<OomKill> {
        let mut kills = Vec::new();
        let Some(fd) = &self.fd else {
            return kills;
        };
        let mut record = [0; RECORD_BYTES];
        for _ in 0..MAX_RECORDS {
            match rustix::io::read(fd, &mut record) {
                Ok(length) => kills.extend(parse(&record[..length])),
                // Too large, or overwritten before it was read: the next one follows.
                Err(Errno::INVAL | Errno::PIPE | Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    self.fd = None;
                    break;
                }
            }
        }
        self.resting_until = Some(now + REST);
        for kill in &kills {
            if self.victims.len() == MAX_VICTIMS {
                self.victims.pop_front();
            }
            self.victims.push_back(kill.pid);
        }
        kills
    }

    /// Whether a process that has ended was killed for want of memory. Asked once for each end.
    pub(crate) fn take_victim(&mut self, pid: i32) -> bool {
        let at = self.victims.iter().position(|victim| *victim == pid);
        at.is_some_and(|at| self.victims.remove(at).is_some())
    }
}

/// A record of a kill, `3,512,7000123,-;Out of memory: Killed process 301 (python3) total-vm:…`: the
/// record's priority with its facility, its number, its time, flags, and the text (mm/oom_kill.c).
fn parse(record: &[u8]) -> Option<OomKill> {
    let record = std::str::from_utf8(record).ok()?;
    let (prefix, text) = record.split_once(';')?;
    let priority: u32 = prefix.split(',').next()?.parse().ok()?;
    // The facility is above the three bits of the level; the kernel's is 0, and no process can write with it.
    if priority >> 3 != 0 {
        return None;
    }
    let text = text.lines().next()?;
    let (reason, killed) = text.split_once(": Killed process ")?;
    if !reason.to_ascii_lowercase().contains("out of memory") {
        return None;
    }
    let (pid, rest) = killed.split_once(" (")?;
    // The name may have any characters; what follows it is the kernel's.
    let (name, sizes) = rest.rsplit_once(") total-vm:")?;
    let kibibytes = sizes
        .split([',', ' '])
        .find_map(|size| size.strip_prefix("anon-rss:")?.strip_suffix("kB"))
        .and_then(|size| size.parse().ok())
        .unwrap_or(0);
    Some(OomKill {
        pid: pid.parse().ok()?,
        name: name.to_owned(),
        kibibytes,
    })
}

/// The pid of a process in its innermost PID namespace: the one that it and its neighbours know. Absent: the process
/// is gone.
pub(crate) fn pid_within(pid: i32) -> Option<i32> {
    innermost_pid(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn innermost_pid(status: &str) -> Option<i32> {
    let pids = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    pids.split_ascii_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{OomKill, innermost_pid, parse};

    const SIZES: &str = "total-vm:204800kB, anon-rss:98304kB, file-rss:128kB, shmem-rss:0kB, UID:33 \
                         pgtables:260kB oom_score_adj:0";

    #[test]
    fn a_kill_is_read_from_the_kernels_record_and_from_no_others() {
        let kill = |pid, name: &str| OomKill {
            pid,
            name: name.to_owned(),
            kibibytes: 98304,
        };
        let cases = [
            (
                format!("3,512,7000123,-;Out of memory: Killed process 301 (python3) {SIZES}\n"),
                Some(kill(301, "python3")),
            ),
            (
                format!(
                    "3,512,7000123,-;Memory cgroup out of memory: Killed process 5 (a) total-vm:) {SIZES}\n \
                     SUBSYSTEM=x\n"
                ),
                Some(kill(5, "a) total-vm:")),
            ),
            // A process wrote it: facility 1.
            (
                format!("11,512,7000123,-;Out of memory: Killed process 2 (x) {SIZES}\n"),
                None,
            ),
            (
                "4,511,7000100,-;python3 invoked oom-killer: gfp_mask=0x0\n".to_owned(),
                None,
            ),
            (
                format!("3,512,7000123,-;Out of memory: Killed process many (x) {SIZES}\n"),
                None,
            ),
            (String::new(), None),
        ];
        for (record, expected) in cases {
            assert_eq!(parse(record.as_bytes()), expected, "{record}");
        }
        assert_eq!(parse(b"3,1,1,-;\xff"), None);
    }

    #[test]
    fn a_process_has_the_last_of_its_pids_within() {
        assert_eq!(innermost_pid("Name:\tx\nNSpid:\t301\t7\n"), Some(7));
        assert_eq!(innermost_pid("NSpid:\t1\n"), Some(1));
        assert_eq!(innermost_pid("Name:\tx\n"), None);
    }
}
