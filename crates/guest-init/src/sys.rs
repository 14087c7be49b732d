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
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
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
pub(crate) struct ForkOptions<'a> {
    /// Its cgroup; absent: its parent's. Moving a running child there would make the kernel wait for every
    /// processor, which takes longer than the whole rest of a boot.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// Whether it is PID 1 of a new PID namespace, in a new mount namespace.
    pub(crate) in_new_namespaces: bool,
}

/// Starts a child.
pub(crate) fn fork(options: ForkOptions<'_>) -> io::Result<Forked> {
    let mut args = CloneArgs {
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = options.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).unwrap_or(u64::MAX);
    }
    if options.in_new_namespaces {
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

/// The first 72 bytes of the union `bpf_attr` of linux/bpf.h.
#[repr(C, align(8))]
struct BpfAttributes([u8; 72]);

impl BpfAttributes {
    fn new() -> Self {
        Self([0; 72])
    }

    fn number(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn fd(self, at: usize, fd: BorrowedFd<'_>) -> Self {
        self.number(at, fd.as_raw_fd().cast_unsigned())
    }

    fn pointer<T>(mut self, at: usize, to: &[T]) -> Self {
        self.0[at..at + 8].copy_from_slice(&(to.as_ptr() as u64).to_ne_bytes());
        self
    }

    /// Calls bpf(2).
    ///
    /// # Safety
    /// The pointers in the attributes are to what the command expects there, and live through the call.
    unsafe fn call(&self, command: libc::c_int) -> io::Result<libc::c_int> {
        // SAFETY: the attributes are of the size given; their pointers are the caller's promise.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                ptr::from_ref(self),
                size_of::<Self>(),
            )
        };
        check(result as libc::c_int)
    }
}

/// A map of BPF programs.
pub(crate) struct BpfMap {
    fd: OwnedFd,
    key_bytes: u32,
    value_bytes: u32,
}

impl BpfMap {
    /// Makes a map.
    pub(crate) fn create(
        kind: u32,
        key_bytes: u32,
        value_bytes: u32,
        entries: u32,
        flags: u32,
    ) -> io::Result<Self> {
        let numbers = [kind, key_bytes, value_bytes, entries, flags];
        let attributes = (0..)
            .step_by(4)
            .zip(numbers)
            .fold(BpfAttributes::new(), |attributes, (at, number)| {
                attributes.number(at, number)
            });
        // SAFETY: BPF_MAP_CREATE (0) takes no pointers.
        let fd = owned(unsafe { attributes.call(0) }?)?;
        Ok(Self {
            fd,
            key_bytes,
            value_bytes,
        })
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Sets the value of a key. Both have the map's sizes.
    pub(crate) fn set(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if (key.len(), value.len()) != (self.key_bytes as usize, self.value_bytes as usize) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let attributes = BpfAttributes::new()
            .fd(0, self.as_fd())
            .pointer(8, key)
            .pointer(16, value);
        // SAFETY: BPF_MAP_UPDATE_ELEM (2) reads as many bytes as the map's keys and values have.
        unsafe { attributes.call(2) }.map(|_| ())
    }
}

/// Loads a BPF program, after the kernel has proved it harmless.
pub(crate) fn bpf_program(kind: u32, attach: u32, instructions: &[[u8; 8]]) -> io::Result<OwnedFd> {
    let license = b"Apache-2.0\0";
    let attributes = BpfAttributes::new()
        .number(0, kind)
        .number(4, instructions.len() as u32)
        .pointer(8, instructions)
        .pointer(16, license)
        .number(68, attach);
    // SAFETY: BPF_PROG_LOAD (5) reads the instructions, of which it has the number, and a C string.
    owned(unsafe { attributes.call(5) }?)
}

/// Attaches a BPF program for as long as the descriptor is open.
pub(crate) fn bpf_link(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach: u32,
) -> io::Result<OwnedFd> {
    let attributes = BpfAttributes::new()
        .fd(0, program)
        .fd(4, target)
        .number(8, attach);
    // SAFETY: BPF_LINK_CREATE (28) takes no pointers for these programs.
    owned(unsafe { attributes.call(28) }?)
}

/// The number by which BPF programs know the network namespace of a socket.
pub(crate) fn network_namespace_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    /// `SO_NETNS_COOKIE` of asm-generic/socket.h.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the pointers are to a u64 and to its length, alive through the call.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    })?;
    Ok(cookie)
}

/// Lets the clock of the day gain or lose so many nanoseconds, at the kernel's pace of 500 ppm (adjtime(3)). It replaces a
/// correction that is under way.
pub(crate) fn slew_clock(nanos: i64) -> io::Result<()> {
    // SAFETY: `timex` is a plain struct, for which zeros are valid; the kernel reads and writes it during the call only.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    timex.modes = libc::ADJ_OFFSET_SINGLESHOT;
    timex.offset = nanos / 1000;
    // SAFETY: as above.
    check(unsafe { libc::adjtimex(&raw mut timex) }).map(|_| ())
}
