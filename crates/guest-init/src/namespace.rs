//! The namespaces that the app lives in: a PID namespace and a mount namespace of its own, for as long as its
//! PID 1 lives.
//!
//! Init is outside. The app and its commands see, signal and trace each other, and no process of the platform but
//! their PID 1; what they mount or unmount changes nothing for init. When PID 1 ends, the kernel kills all
//! others, so that killing PID 1 is how init ends an app for certain.
//!
//! The app and the commands of `exec` are init's own children, born in the namespace: init gets their ends
//! from the kernel, exactly. PID 1 is either [`namespace_init`](crate::namespace_init) or, where the image wants
//! it, the app.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitOptions, getpid, pidfd_open, waitpid};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::sys::{self, ForkOptions, Forked};

/// Where cgroups are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// The app's namespaces.
pub(crate) struct AppNamespace {
    /// Its PID 1, by the pid that init sees.
    pid_1: i32,
    /// A pidfd of PID 1. It does not keep the namespaces: they go when their last process ends.
    pidfd: OwnedFd,
    /// A pidfd of init itself, for the way back.
    own: OwnedFd,
}

impl AppNamespace {
    /// The namespaces that have this process as PID 1.
    ///
    /// # Errors
    /// The kernel has no resources.
    pub(crate) fn of(pid_1: i32) -> io::Result<Self> {
        let process = Pid::from_raw(pid_1).ok_or(Errno::SRCH)?;
        Ok(Self {
            pid_1,
            pidfd: pidfd_open(process, PidfdFlags::empty())?,
            own: pidfd_open(getpid(), PidfdFlags::empty())?,
        })
    }

    /// Whether this is PID 1's pid, as init sees it.
    pub(crate) fn has_pid_1(&self, pid: i32) -> bool {
        self.pid_1 == pid
    }

    /// Starts a child in the PID namespace. It is still in init's mount namespace: see [`Self::enter`].
    ///
    /// # Errors
    /// The namespace has ended, or the kernel has no resources.
    pub(crate) fn fork(&self, options: ForkOptions<'_>) -> io::Result<Forked> {
        // A process never changes its PID namespace: this is where its children will be.
        move_into_thread_name_spaces(self.pidfd.as_fd(), ThreadNameSpaceType::PROCESS_ID)?;
        let forked = sys::fork(options);
        if let Ok(Forked::Child) = forked {
            return forked;
        }
        move_into_thread_name_spaces(self.own.as_fd(), ThreadNameSpaceType::PROCESS_ID)?;
        forked
    }

    /// In a child: moves it into the mount namespace, to its root.
    ///
    /// # Errors
    /// The namespace has ended.
    pub(crate) fn enter(&self) -> rustix::io::Result<()> {
        move_into_thread_name_spaces(self.pidfd.as_fd(), ThreadNameSpaceType::MOUNT)
    }

    /// The directory of the cgroup that the app's process `main` is in.
    pub(crate) fn cgroup_of(main: i32) -> Option<String> {
        let text = fs::read_to_string(format!("/proc/{main}/cgroup")).ok()?;
        cgroup_path(&text).map(|path| format!("{CGROUPS}{path}"))
    }

    /// Sends a signal to every process but PID 1, at once and whatever its user.
    ///
    /// # Errors
    /// As [`Self::fork`].
    pub(crate) fn signal_all(&self, signal: i32) -> io::Result<()> {
        match self.fork(ForkOptions::default())? {
            Forked::Parent(_) => Ok(()),
            Forked::Child => {
                // From within the namespace, "all" are those of the namespace.
                let _ = sys::kill(-1, signal);
                sys::exit_now(0)
            }
        }
    }

    /// Tells the platform's PID 1 to look whether the app has ended and left nothing: it ends then.
    pub(crate) fn main_ended(&self) {
        // It may have ended just now.
        let _ = sys::kill(self.pid_1, libc::SIGCHLD);
    }

    /// Kills everything in it, and waits for PID 1's end.
    pub(crate) fn kill(&self) {
        let _ = sys::kill(self.pid_1, libc::SIGKILL);
        let _ = waitpid(Pid::from_raw(self.pid_1), WaitOptions::empty());
    }
}

/// Whether a process is systemd, by whatever name it was started (`/sbin/init` is a link to it).
pub(crate) fn is_systemd(pid: i32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe"))
        .is_ok_and(|program| program.file_name().is_some_and(|name| name == "systemd"))
}

/// Whether a process handles a signal, or waits for it while it is blocked. PID 1 of a namespace does not get any other
/// but SIGKILL and SIGSTOP.
pub(crate) fn has_handler(pid: i32, signal: i32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => takes_signal(&status, signal),
        // It has ended just now.
        Err(_) => true,
    }
}

/// `signal` is in one of the masks of caught and blocked signals, whose first bit is signal 1.
fn takes_signal(status: &str, signal: i32) -> bool {
    if [libc::SIGKILL, libc::SIGSTOP].contains(&signal) {
        return true;
    }
    ["SigCgt:", "SigBlk:"]
        .iter()
        .filter_map(|name| status.lines().find_map(|line| line.strip_prefix(name)))
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask >> (signal - 1) & 1 == 1)
}

/// The path in the line of the one hierarchy of cgroup v2 (`0::/app`).
fn cgroup_path(text: &str) -> Option<&str> {
    text.lines()
        .find_map(|line| line.strip_prefix("0::"))
        .filter(|path| path.starts_with('/') && !path.contains("/.."))
}

#[cfg(test)]
mod tests {
    use super::{cgroup_path, takes_signal};

    #[test]
    fn a_process_gets_what_it_handles_or_blocks() {
        let status =
            "SigBlk:\t0000000000000001\nSigIgn:\t0000000000000002\nSigCgt:\t0000000000004000\n";
        for (signal, taken) in [(1, true), (2, false), (9, true), (15, true), (64, false)] {
            assert_eq!(takes_signal(status, signal), taken, "{signal}");
        }
    }

    #[test]
    fn a_process_has_one_path_among_cgroups() {
        assert_eq!(cgroup_path("1:name=x:/y\n0::/app/web\n"), Some("/app/web"));
        assert_eq!(cgroup_path("0::/\n"), Some("/"));
        assert_eq!(cgroup_path("0::/../other\n"), None);
        assert_eq!(cgroup_path(""), None);
    }
}
