//! The system calls that neither std nor rustix has. All `unsafe` of this crate is in this file.

#![allow(
    clippy::cast_possible_truncation,
    reason = "constants of libc, whose types differ from the fields they are for"
)]
#![allow(
    unsafe_code,
    reason = "fork, execve, signals, vsock and terminals have no safe wrapper"
)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// Which side of a fork this is.
pub(crate) enum Forked {
    /// The parent, with the child's pid.
    Parent(i32),
    /// The child.
    Child,
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the call before returned this descriptor, and nothing else uses it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor that this process was started with.
pub(crate) fn inherited(fd: i32) -> OwnedFd {
    // SAFETY: the process that started this one passed the descriptor for this purpose, and nothing else
    // here uses it. Calls on a descriptor that is not open fail with EBADF.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Blocks every signal and returns a descriptor that they are read from instead.
pub(crate) fn signal_fd() -> io::Result<OwnedFd> {
    // SAFETY: an all-zero sigset_t is a valid value; sigfillset then sets it wholly. The pointers
    // are to it and live through the calls.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            &raw const all,
            ptr::null_mut(),
        ))?;
        owned(libc::signalfd(
            -1,
            &raw const all,
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        ))
    }
}

/// In a child before exec: resets signals to those of a fresh process. execve resets handlers by itself; the
/// one signal that this process ignores, because of std, is `SIGPIPE`.
pub(crate) fn reset_signals() {
    // SAFETY: as in `signal_fd`; SIG_DFL is a valid disposition of SIGPIPE.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

/// The arguments of `clone3` (linux/sched.h), in their version of 88 bytes.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// `CLONE_INTO_CGROUP` of linux/sched.h.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Where a child is born.
#[derive(Clone, Copy, Default)]
pub(crate) struct Birth<'a> {
    /// Its cgroup; absent: its parent's. Moving a running child there would make the kernel wait for every
    /// processor, which takes longer than the whole rest of a boot.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// Whether it is PID 1 of a new PID namespace, in a new mount namespace.
    pub(crate) in_new_namespaces: bool,
}

/// Starts a child.
pub(crate) fn fork(birth: Birth<'_>) -> io::Result<Forked> {
    let mut args = CloneArgs {
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = birth.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).unwrap_or(u64::MAX);
    }
    if birth.in_new_namespaces {
        args.flags |= (libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u64;
    }
    // SAFETY: without CLONE_VM and with no stack given this is a fork. The C library is not informed,
    // which matters to programs with threads and to callers of raise(3): this program has neither.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match check(pid as libc::c_int)? {
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid)),
    }
}

/// Waits for the next signal, all of which must be blocked, and returns its number.
pub(crate) fn next_signal() -> i32 {
    // SAFETY: as in `signal_fd`. No information about the signal is asked for.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        loop {
            let signal = libc::sigwaitinfo(&raw const all, ptr::null_mut());
            // Negative: interrupted, because this process was stopped and continued.
            if signal > 0 {
                return signal;
            }
        }
    }
}

/// Makes these descriptors standard input, output and error.
pub(crate) fn replace_standard_streams(fds: [BorrowedFd<'_>; 3]) -> io::Result<()> {
    for (target, fd) in (0..).zip(fds) {
        // SAFETY: takes no pointers. Nothing here owns descriptors 0 to 2: init never closes them,
        // so a descriptor of ours is never one of them.
        check(unsafe { libc::dup2(fd.as_raw_fd(), target) })?;
    }
    Ok(())
}

/// Replaces this process. Returns only on failure, with the reason.
pub(crate) fn execve(
    program: &CStr,
    argv: &[*const libc::c_char],
    environment: &[*const libc::c_char],
) -> io::Error {
    debug_assert!(argv.last().is_some_and(|last| last.is_null()));
    debug_assert!(environment.last().is_some_and(|last| last.is_null()));
    // SAFETY: both arrays end with a null pointer and point to C strings that the caller holds.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends this process at once.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit does not return and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Sends a signal to a process, to a process group (negative), or to every process but init (-1).
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::kill(pid, signal) }).map(|_| ())
}

/// Starts connecting a non-blocking vsock socket. It is connected, or has failed, when it is
/// ready for writing.
pub(crate) fn vsock_connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = owned(unsafe {
        libc::socket(
            libc::AF_VSOCK,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            0,
        )
    })?;
    // SAFETY: an all-zero sockaddr_vm is a valid value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    // SAFETY: the pointer is to a sockaddr_vm of the length given, alive through the call.
    let result = unsafe {
        libc::connect(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_vm>() as libc::socklen_t,
        )
    };
    match check(result) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(fd),
    }
}

/// The other end of a new terminal whose master is `/dev/ptmx` opened.
pub(crate) fn terminal_of(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads an int through the pointer; TIOCGPTPEER takes open flags by value.
    unsafe {
        check(libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCSPTLCK,
            &raw const unlock,
        ))?;
        owned(libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCGPTPEER,
            libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
        ))
    }
}
