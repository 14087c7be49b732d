//! Starts a process that outlives the agent, is recorded before it runs, and inherits only what it needs.
//!
//! The child sends its pid by a pipe and waits. The agent records it and releases it, and only then does the child
//! exec. If the agent is killed before the release, the kernel kills the child (PDEATHSIG). So every process has a
//! record at any moment.
//!
//! A program is executed by the VM's own user, from wherever it is installed: the child keeps
//! `CAP_DAC_OVERRIDE` up to its exec, so neither a closed folder (0700) on the way nor the umask that the
//! program was built under stops it. The exec itself takes the capability away (capabilities(7): a user
//! other than root keeps none that the file does not grant).

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::thread::JoinHandle;

use model::InstanceId;
use rustix::io::FdFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Gid, Resource, Rlimit, Signal, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::child::{self, Program};

/// Users that VMs run as when the agent is root, one for each: the first, and how many follow.
/// The range is free by systemd's plan of user ids (1879048192 to 2147483647, "unused"), so nothing
/// on the machine belongs to them.
pub const VMM_UIDS: (u32, u32) = (0x7000_0000, 0x0fff_ffff);

/// Most open files of a process of a VM. QEMU has some tens. The vsock device has two for each connection of its
/// guest, and 64 KiB of memory with them: so a guest that dials without end gets some five hundred connections,
/// which cost its device some 32 MiB.
const MAX_OPEN_FILES: u64 = 1024;

/// Releases the child.
const GO: u8 = 1;
/// Ends the child before its exec.
const NO: u8 = 0;

/// The user that an instance's processes run as. Absent when the agent is not root: they run as the agent's user.
pub(crate) fn user_of(instance: InstanceId) -> Option<u32> {
    rustix::process::geteuid()
        .is_root()
        .then(|| VMM_UIDS.0 + instance.0 % VMM_UIDS.1)
}

/// A process to start.
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    /// The final `/proc/<pid>/exe`: the program, or the one that it executes in turn.
    pub(crate) exe: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) current_dir: PathBuf,
    /// Standard output and standard error.
    pub(crate) output: File,
    /// Open in the child under the same numbers; everything else is closed.
    pub(crate) pass: Vec<OwnedFd>,
    /// User and group to become.
    pub(crate) user: Option<u32>,
    /// Its one supplementary group.
    pub(crate) group: Option<u32>,
    /// Runs before the fork, in a thread of its own whose namespaces the child inherits.
    pub(crate) prepare: Option<Prepare>,
}

/// Work before a fork.
pub(crate) type Prepare = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// A child that waits before its exec.
pub(crate) struct Waiting {
    pub(crate) pid: i32,
    gate: Option<File>,
    starter: Option<JoinHandle<io::Result<()>>>,
}

impl Waiting {
    /// Releases the child to its exec.
    ///
    /// # Errors
    /// The exec failed; `EACCES` when the program may not be executed.
    pub(crate) fn release(mut self) -> io::Result<()> {
        self.answer(GO)
    }

    fn answer(&mut self, byte: u8) -> io::Result<()> {
        use io::Write as _;
        let Some(mut gate) = self.gate.take() else {
            return Ok(());
        };
        let written = gate.write_all(&[byte]);
        let started = match self.starter.take().map(JoinHandle::join) {
            Some(Ok(started)) => started,
            _ => Err(io::Error::other("the starting thread panicked")),
        };
        started.and(written)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Not released: the child ends before its exec.
        let _ = self.answer(NO);
    }
}

/// Forks the child and waits for its pid. Blocks for some milliseconds.
pub(crate) fn start(launch: Launch) -> io::Result<Waiting> {
    use io::Read as _;
    let (pid_read, pid_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (gate_read, gate_write) = pipe_with(PipeFlags::CLOEXEC)?;
    // PDEATHSIG follows the thread that forks: this one stays until the exec.
    let starter = std::thread::Builder::new()
        .name("start-vmm".to_owned())
        .spawn(move || spawn(launch, pid_write, gate_read))?;
    let mut pid = [0; 4];
    match File::from(pid_read).read_exact(&mut pid) {
        Ok(()) => Ok(Waiting {
            pid: i32::from_ne_bytes(pid),
            gate: Some(gate_write.into()),
            starter: Some(starter),
        }),
        Err(_) => Err(match starter.join() {
            Ok(Err(error)) => error,
            _ => io::Error::other("the child ended before it started"),
        }),
    }
}

fn spawn(launch: Launch, pid_write: OwnedFd, gate_read: OwnedFd) -> io::Result<()> {
    let parent = rustix::process::getpid();
    let Launch {
        program,
        arguments,
        current_dir,
        output,
        pass,
        user,
        group,
        prepare,
        ..
    } = launch;
    // The namespace may have no such file.
    let input = File::open("/dev/null")?;
    if let Some(prepare) = prepare {
        prepare()?;
    }
    // Only system calls: see `child::execute`.
    let before_exec = || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::from_raw_os_error(libc::ECANCELED));
        }
        rustix::process::setsid()?;
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        rustix::io::write(&pid_write, &pid.to_ne_bytes())?;
        let mut answer = [NO];
        while let Err(error) = rustix::io::read(&gate_read, &mut answer) {
            if error != rustix::io::Errno::INTR {
                return Err(error.into());
            }
        }
        if answer != [GO] {
            return Err(io::Error::from_raw_os_error(libc::ECANCELED));
        }
        rustix::process::set_parent_process_death_signal(None)?;
        close_all_but(&pass)?;
        // The guest's memory must not end in a core file.
        for (resource, most) in [(Resource::Core, 0), (Resource::Nofile, MAX_OPEN_FILES)] {
            rustix::process::setrlimit(
                resource,
                Rlimit {
                    current: Some(most),
                    maximum: Some(most),
                },
            )?;
        }
        if let Some(user) = user {
            enter_empty_namespaces()?;
            become_user(user, group)?;
        }
        rustix::thread::set_no_new_privs(true)?;
        Ok(())
    };
    let program = Program {
        path: &program,
        arguments,
        environment: &[c"PATH=/usr/bin:/bin"],
        current_dir: &current_dir,
        input: &input,
        output: &output,
    };
    child::execute(program, &before_exec)
}

/// Closes at exec whatever was inherited, but for these.
#[allow(unsafe_code, reason = "close_range has no safe wrapper")]
fn close_all_but(pass: &[OwnedFd]) -> io::Result<()> {
    // SAFETY: marking descriptors close-on-exec closes nothing now. Linux before 5.11 refuses it; the agent's
    // own descriptors are close-on-exec anyhow.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
    }
    for fd in pass {
        rustix::io::fcntl_setfd(fd.as_fd(), FdFlags::empty())?;
    }
    Ok(())
}

/// Moves the child to empty network and IPC namespaces of its own: its channels are open already, or sockets in
/// the file system.
#[allow(
    unsafe_code,
    reason = "unshare can break a process with threads; the child has one"
)]
fn enter_empty_namespaces() -> io::Result<()> {
    // SAFETY: a system call without pointers; neither namespace is shared with another thread.
    if unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWIPC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The child has one thread, so these calls, which are by thread, are of the whole process.
fn become_user(user: u32, group: Option<u32>) -> io::Result<()> {
    let uid = Uid::from_raw(user);
    let gid = Gid::from_raw(user);
    match group {
        Some(group) => rustix::thread::set_thread_groups(&[Gid::from_raw(group)])?,
        None => rustix::thread::set_thread_groups(&[])?,
    }
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_keep_capabilities(true)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    // A root without this capability executes what its modes let everyone execute.
    let until_exec = rustix::thread::capabilities(None)?.permitted & CapabilitySet::DAC_OVERRIDE;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: until_exec,
            permitted: until_exec,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}

/// The number under which a passed descriptor is open in the child.
pub(crate) fn number(fd: &OwnedFd) -> i32 {
    fd.as_raw_fd()
}
