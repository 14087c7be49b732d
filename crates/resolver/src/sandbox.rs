//! What the process gives up before it sees a question: its user, its capabilities, new rights by programs, and most system calls.

use std::io;

use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// The user and group nobody.
const NOBODY: u32 = 65534;
/// Open files: a few sockets for each question that waits, and the connections.
const MAX_OPEN_FILES: u64 = 8192;

/// Gives up what is not needed to answer. The caller is root and has one thread.
///
/// # Errors
/// The kernel refuses: it has no seccomp, or this process may not do so.
pub(crate) fn enter() -> io::Result<()> {
    for (resource, most) in [(Resource::Core, 0), (Resource::Nofile, MAX_OPEN_FILES)] {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        rustix::process::setrlimit(resource, limit)?;
    }
    for capability in CapabilitySet::all() {
        // One that this kernel does not know is in nobody's set.
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    rustix::thread::set_thread_groups(&[])?;
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    let none = CapabilitySet::empty();
    let none = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    rustix::thread::set_capabilities(None, none)?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    rustix::thread::set_no_new_privs(true)?;
    seccompiler::apply_filter(&filter()?).map_err(io::Error::other)
}

/// The system calls that receive, ask and answer, and hold memory. Any other fails with EPERM; no file can be opened.
fn filter() -> io::Result<BpfProgram> {
    let wrong = |error: seccompiler::BackendError| io::Error::other(error);
    let arch = std::env::consts::ARCH.try_into().map_err(wrong)?;
    let argument = |number, operation, value| -> io::Result<SeccompRule> {
        let condition = SeccompCondition::new(number, SeccompCmpArgLen::Dword, operation, value)
            .map_err(wrong)?;
        SeccompRule::new(vec![condition]).map_err(wrong)
    };
    #[rustfmt::skip]
    let mut allowed: Vec<(i64, Vec<SeccompRule>)> = [
        // Questions, answers and requests.
        libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_ppoll,
        libc::SYS_read, libc::SYS_readv, libc::SYS_write, libc::SYS_writev,
        libc::SYS_sendmsg, libc::SYS_sendto, libc::SYS_recvmsg, libc::SYS_recvfrom,
        libc::SYS_bind, libc::SYS_connect, libc::SYS_accept4, libc::SYS_close, libc::SYS_shutdown, libc::SYS_fcntl,
        libc::SYS_setsockopt, libc::SYS_getsockopt, libc::SYS_getsockname, libc::SYS_getpeername,
        // Memory, clocks and randomness.
        libc::SYS_brk, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_futex,
        libc::SYS_clock_gettime, libc::SYS_clock_nanosleep, libc::SYS_nanosleep, libc::SYS_getrandom,
        libc::SYS_sched_yield, libc::SYS_gettid, libc::SYS_getpid, libc::SYS_sigaltstack,
        libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_restart_syscall,
        libc::SYS_exit, libc::SYS_exit_group,
    ].into_iter().map(|call| (call, Vec::new())).collect();
    #[cfg(target_arch = "x86_64")]
    allowed.extend([
        (libc::SYS_poll, Vec::new()),
        (libc::SYS_epoll_wait, Vec::new()),
    ]);
    // Sockets of the internet protocols only.
    let families = [libc::AF_INET, libc::AF_INET6]
        .map(|family| argument(0, SeccompCmpOp::Eq, u64::from(family.unsigned_abs())));
    let families = families.into_iter().collect::<Result<_, _>>()?;
    allowed.push((libc::SYS_socket, families));
    // Whether a descriptor waits, and memory that is not executed.
    let nonblocking = argument(1, SeccompCmpOp::Eq, libc::FIONBIO)?;
    allowed.push((libc::SYS_ioctl, vec![nonblocking]));
    let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        allowed.push((
            call,
            vec![argument(2, SeccompCmpOp::MaskedEq(executable), 0)?],
        ));
    }
    let filter = SeccompFilter::new(
        allowed.into_iter().collect(),
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        SeccompAction::Allow,
        arch,
    );
    filter.map_err(wrong)?.try_into().map_err(wrong)
}
