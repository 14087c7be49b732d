//! A child process that costs the same whatever memory its parent has.
//!
//! fork(2) copies the page tables of the parent, and its end tears the copy down again: with a few hundred instances that was
//! half of what a start took of the agent's processor. The child here shares the parent's memory until its exec, and only the
//! thread that made it waits (clone(2), `CLONE_VM | CLONE_VFORK`, as posix_spawn(3) does, which has no place for work of ours
//! before the exec).
//!
//! A child that becomes another user shares the agent's memory for a moment. The kernel makes that memory undumpable when it
//! changes users, and it stays so: no process of that user can attach to it (ptrace(2)). Where `fs.suid_dumpable` is set to 1,
//! which says otherwise, the child gets a copy of the memory.

use std::ffi::{CStr, CString, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::ptr;

use rustix::pipe::{PipeFlags, pipe_with};

/// Stack of a child before its exec, in units of 16 bytes: 128 KiB, of which it touches what it needs.
const STACK_UNITS: usize = 8192;
/// Exit status of a child that was not executed; nobody sees it.
const NOT_EXECUTED: i32 = 127;
/// Highest signal.
const MAX_SIGNAL: i32 = 64;
/// Says whether memory of a process that changed its user may be read by that user.
const SUID_DUMPABLE: &str = "/proc/sys/fs/suid_dumpable";
/// Its value for "yes".
const DEBUG: &str = "1";

/// What a child executes.
pub(crate) struct Program<'a> {
    pub(crate) path: &'a Path,
    /// Without the program's name.
    pub(crate) arguments: Vec<OsString>,
    /// The whole environment, as `NAME=value`.
    pub(crate) environment: &'a [&'a CStr],
    pub(crate) current_dir: &'a Path,
    pub(crate) input: &'a File,
    /// Standard output and standard error.
    pub(crate) output: &'a File,
}

/// What the child reads: all of it is made before the child is.
struct Shared<'a> {
    path: &'a CStr,
    arguments: &'a [*const libc::c_char],
    environment: &'a [*const libc::c_char],
    current_dir: &'a CStr,
    input: RawFd,
    output: RawFd,
    failed: RawFd,
    before_exec: &'a dyn Fn() -> io::Result<()>,
}

/// Makes the child, runs `before_exec` in it, and returns when it has executed the program. Nobody waits for its end.
///
/// `before_exec` runs in the parent's memory while the parent's other threads go on: it may make system calls, and must not
/// allocate, lock, panic or write to memory that is not its own.
///
/// # Errors
/// Of the system call that failed, in the child as well. The child is gone then.
pub(crate) fn execute(
    program: Program<'_>,
    before_exec: &dyn Fn() -> io::Result<()>,
) -> io::Result<()> {
    let path = c_string(program.path.as_os_str().to_owned())?;
    let current_dir = c_string(program.current_dir.as_os_str().to_owned())?;
    let arguments = program.arguments.into_iter().map(c_string);
    let arguments = arguments.collect::<io::Result<Vec<_>>>()?;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let shared = Shared {
        path: &path,
        arguments: &pointers(
            std::iter::once(path.as_c_str()).chain(arguments.iter().map(CString::as_c_str)),
        ),
        environment: &pointers(program.environment.iter().copied()),
        current_dir: &current_dir,
        input: program.input.as_raw_fd(),
        output: program.output.as_raw_fd(),
        failed: write.as_raw_fd(),
        before_exec,
    };
    let pid = clone(&shared)?;
    wait_for_exec(pid, read, write)
}

/// Reads why the exec failed, if it did.
fn wait_for_exec(pid: libc::pid_t, read: OwnedFd, write: OwnedFd) -> io::Result<()> {
    drop(write);
    let mut errno = Vec::new();
    File::from(read).read_to_end(&mut errno)?;
    let Ok(errno) = <[u8; 4]>::try_from(errno) else {
        // The exec closed the pipe, or somebody killed the child before: its pidfd says so.
        return Ok(());
    };
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    }
    Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
}

fn c_string(text: OsString) -> io::Result<CString> {
    Ok(CString::new(text.into_vec())?)
}

/// With the null pointer that ends them.
fn pointers<'a>(strings: impl Iterator<Item = &'a CStr>) -> Vec<*const libc::c_char> {
    strings
        .map(CStr::as_ptr)
        .chain(std::iter::once(ptr::null()))
        .collect()
}

/// Whether a process of another user could read the memory that its child shares with us.
fn is_readable_by_others() -> bool {
    fs::read(SUID_DUMPABLE).is_ok_and(|value| value.trim_ascii() == DEBUG.as_bytes())
}

/// The child's pid. With shared memory it has executed its program, or ended, when this returns.
#[allow(
    unsafe_code,
    reason = "there is no safe way to make a child that shares memory"
)]
fn clone(shared: &Shared<'_>) -> io::Result<libc::pid_t> {
    let sharing = if is_readable_by_others() {
        0
    } else {
        libc::CLONE_VM | libc::CLONE_VFORK
    };
    let mut stack = vec![0_u128; STACK_UNITS];
    let argument = ptr::from_ref(shared).cast_mut().cast();
    // SAFETY: every pointer is to memory that outlives the call. With `CLONE_VFORK` the call returns when the child no longer
    // runs in this memory; without `CLONE_VM` the child has a copy of it. The stack grows down, from its aligned end, and
    // nothing else uses it. A handler of ours that ran in the child would run in our memory: so all signals are blocked, in
    // the child until its handlers are the default ones.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let pid = libc::clone(
            run,
            stack.as_mut_ptr_range().end.cast(),
            sharing | libc::SIGCHLD,
            argument,
        );
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
        if pid < 0 { Err(error) } else { Ok(pid) }
    }
}

/// The child. Never returns.
#[allow(
    unsafe_code,
    reason = "between clone and exec there are system calls only"
)]
extern "C" fn run(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the argument is what `clone` was given, and lives until the exec.
    let shared = unsafe { &*argument.cast_const().cast::<Shared<'_>>() };
    let error = until_exec(shared);
    let errno = error.raw_os_error().unwrap_or(libc::EINVAL).to_ne_bytes();
    // SAFETY: system calls, with a buffer that lives meanwhile. `_exit` runs no code of the parent's.
    unsafe {
        libc::write(shared.failed, errno.as_ptr().cast(), errno.len());
        libc::_exit(NOT_EXECUTED)
    }
}

/// Returns only with the error.
#[allow(unsafe_code, reason = "system calls on the child's own state")]
fn until_exec(shared: &Shared<'_>) -> io::Error {
    // SAFETY: system calls; the child's descriptors, signal handlers and folder are its own, and the strings outlive the call.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        for signal in 1..=MAX_SIGNAL {
            // Refused for SIGKILL and SIGSTOP, whose action is the default one anyhow.
            libc::sigaction(signal, &raw const default, ptr::null_mut());
        }
        for (from, to) in [
            (shared.input, libc::STDIN_FILENO),
            (shared.output, libc::STDOUT_FILENO),
            (shared.output, libc::STDERR_FILENO),
        ] {
            if libc::dup2(from, to) < 0 {
                return io::Error::last_os_error();
            }
        }
        if libc::chdir(shared.current_dir.as_ptr()) < 0 {
            return io::Error::last_os_error();
        }
    }
    if let Err(error) = (shared.before_exec)() {
        return error;
    }
    // SAFETY: as above.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        libc::execve(
            shared.path.as_ptr(),
            shared.arguments.as_ptr(),
            shared.environment.as_ptr(),
        );
    }
    io::Error::last_os_error()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::io::Seek as _;
    use std::sync::atomic::{AtomicI32, Ordering};

    use super::*;

    /// Executes a shell's line; gives what it wrote, once it has ended.
    fn output_of(line: &str, before_exec: &dyn Fn() -> io::Result<()>) -> io::Result<String> {
        let (input, mut output) = (File::open("/dev/null")?, tempfile::tempfile()?);
        let pid = AtomicI32::new(0);
        let program = Program {
            path: Path::new("/bin/sh"),
            arguments: ["-c", line].map(Into::into).into(),
            environment: &[c"PATH=/usr/bin:/bin"],
            current_dir: Path::new("/usr"),
            input: &input,
            output: &output,
        };
        execute(program, &|| {
            // The parent's memory.
            let own = rustix::process::getpid().as_raw_nonzero().get();
            pid.store(own, Ordering::Relaxed);
            before_exec()
        })?;
        let pid = rustix::process::Pid::from_raw(pid.into_inner()).unwrap();
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())?;
        output.rewind()?;
        let mut text = String::new();
        output.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn case_a_start_copies_none_of_the_agents_memory() {
        // That the child's pid was seen here says that it ran in this memory.
        let text = output_of("pwd; echo $PATH; echo e >&2; cat", &|| Ok(())).unwrap();
        assert_eq!(text, "/usr\n/usr/bin:/bin\ne\n");
    }

    #[test]
    fn a_child_has_the_default_signals_and_its_parents_are_as_they_were() {
        let mask = || fs::read_to_string("/proc/thread-self/status").unwrap();
        let signals = |status: &str| -> Vec<String> {
            let lines = status.lines().filter(|line| line.starts_with("Sig"));
            lines.map(str::to_owned).collect()
        };
        let before = signals(&mask());
        let text = output_of("exec cat /proc/self/status", &|| Ok(())).unwrap();
        for line in signals(&text) {
            let (name, set) = line.split_once(":\t").unwrap();
            // Signals 32 and 33 are the C library's own: it leaves them as they were inherited.
            let set = u64::from_str_radix(set, 16).unwrap_or_default() & !(3 << 31);
            assert!(set == 0 || name == "SigQ", "{line}");
        }
        assert_eq!(signals(&mask())[1..], before[1..]);
    }

    #[test]
    fn a_child_that_cannot_be_executed_is_an_error() {
        let refused = output_of("true", &|| Err(io::Error::from_raw_os_error(libc::EPERM)));
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EPERM));
        let null = File::open("/dev/null").unwrap();
        let program = Program {
            path: Path::new("/no/such/program"),
            arguments: Vec::new(),
            environment: &[],
            current_dir: Path::new("/"),
            input: &null,
            output: &null,
        };
        let missing = execute(program, &|| Ok(())).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
