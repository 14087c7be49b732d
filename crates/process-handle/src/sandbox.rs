//! What a process gives up before it reads what others sent: its user, its capabilities, new rights by programs, and most system calls.

use std::io;

use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// The user and group nobody.
const NOBODY: u32 = 65534;

/// What a process keeps.
#[derive(Debug, Clone, Copy)]
pub struct Sandbox<'a> {
    /// Open files, at most.
    pub open_files: u64,
    /// System calls of its work (`libc::SYS_..`). Those of memory that is not executed, clocks, randomness and its end are kept always; no other.
    pub calls: &'a [i64],
    /// The families of sockets that it may open (`libc::AF_..`); empty: none.
    pub socket_families: &'a [i32],
}

#[rustfmt::skip]
const CALLS_OF_ALL: [i64; 21] = [
    libc::SYS_brk, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_futex,
    libc::SYS_clock_gettime, libc::SYS_clock_nanosleep, libc::SYS_nanosleep, libc::SYS_getrandom,
    libc::SYS_sched_yield, libc::SYS_gettid, libc::SYS_getpid, libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_restart_syscall,
    libc::SYS_exit, libc::SYS_exit_group, libc::SYS_close, libc::SYS_fcntl,
];

/// Gives up what is not kept. The caller is root and has one thread.
///
/// # Errors
/// The kernel refuses: it has no seccomp, or this process may not do so.
pub(crate) fn enter(sandbox: &Sandbox<'_>) -> io::Result<()> {
    // Keys must not end in a core file.
    for (resource, most) in [(Resource::Core, 0), (Resource::Nofile, sandbox.open_files)] {
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
    // Another user than root has no capabilities, and its memory cannot be read by others of that user.
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
    seccompiler::apply_filter(&filter(sandbox)?).map_err(io::Error::other)
}

/// Any other system call fails with EPERM; no file can be opened.
fn filter(sandbox: &Sandbox<'_>) -> io::Result<BpfProgram> {
    let wrong = |error: seccompiler::BackendError| io::Error::other(error);
    let arch = std::env::consts::ARCH.try_into().map_err(wrong)?;
    let argument = |number, operation, value| -> io::Result<SeccompRule> {
        let condition = SeccompCondition::new(number, SeccompCmpArgLen::Dword, operation, value)
            .map_err(wrong)?;
        SeccompRule::new(vec![condition]).map_err(wrong)
    };
    let calls = CALLS_OF_ALL.iter().chain(sandbox.calls);
    let mut allowed: Vec<(i64, Vec<SeccompRule>)> = calls.map(|call| (*call, Vec::new())).collect();
    let families = sandbox.socket_families.iter();
    let families = families
        .map(|family| argument(0, SeccompCmpOp::Eq, u64::from(family.unsigned_abs())))
        .collect::<io::Result<Vec<_>>>()?;
    if !families.is_empty() {
        allowed.push((libc::SYS_socket, families));
    }
    // Whether a descriptor waits, and memory that is not executed.
    let nonblocking = argument(1, SeccompCmpOp::Eq, libc::FIONBIO)?;
    allowed.push((libc::SYS_ioctl, vec![nonblocking]));
    let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let rule = argument(2, SeccompCmpOp::MaskedEq(executable), 0)?;
        allowed.push((call, vec![rule]));
    }
    let filter = SeccompFilter::new(
        allowed.into_iter().collect(),
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        SeccompAction::Allow,
        arch,
    );
    filter.map_err(wrong)?.try_into().map_err(wrong)
}
