//! Starting a program: the app, or a command run beside it.
//!
//! The program is looked up as execvp does, in the `PATH` it is given, with the permissions it
//! will have. One difference, on purpose: a file that the kernel cannot run is not passed to
//! `/bin/sh`, because a program of another architecture would then end in a shell's syntax error.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::Mode;
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource, Rlimit, WaitOptions, waitpid};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

use crate::namespace::AppNamespace;
use crate::sys::{self, ForkOptions, Forked};
use crate::user::User;

/// Searched when the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Soft and hard limit of a program's open files. Images expect the limits of container engines, not the
/// kernel's 1024 and 4096.
const OPEN_FILES: (u64, u64) = (65_536, 1_048_576);
/// Exit code for a command that was not found.
pub(crate) const EXIT_NOT_FOUND: u8 = 127;
/// Exit code for a command that cannot be executed.
pub(crate) const EXIT_NOT_EXECUTABLE: u8 = 126;

/// What to start.
pub(crate) struct Program<'a> {
    /// Program and arguments.
    pub(crate) argv: &'a [String],
    /// The whole environment; `HOME` is the user's where it is not given.
    pub(crate) environment: &'a [(String, String)],
    /// Working directory.
    pub(crate) working_dir: &'a str,
    /// The user that runs it.
    pub(crate) user: &'a User,
    /// The directory of the cgroup it starts in; absent: init's own.
    pub(crate) cgroup: Option<&'a str>,
    /// Whose program it is.
    pub(crate) executable: Executable<'a>,
    /// Where it runs.
    pub(crate) namespaces: Namespaces<'a>,
}

/// Whose program one is.
#[derive(Clone, Copy)]
pub(crate) enum Executable<'a> {
    /// The image's, looked up by the name in `argv`.
    Image,
    /// The PROXY adapter's or the forwarder's: this program itself under the name in `argv`, without rights. It keeps
    /// these descriptors, under the same numbers.
    Confined(&'a [BorrowedFd<'a>]),
    /// PID 1 of the app's namespace: this program itself under the name in `argv`, with every signal blocked.
    NamespaceInit,
}

/// The PID and mount namespaces of a program.
#[derive(Clone, Copy)]
pub(crate) enum Namespaces<'a> {
    /// Init's.
    Init,
    /// New ones: it is their PID 1.
    New,
    /// The app's: it is the main process, the first one after PID 1.
    Main(&'a AppNamespace),
    /// The app's: it runs beside the main process.
    Beside(&'a AppNamespace),
}

/// A program's standard streams.
pub(crate) enum Streams {
    /// Three descriptors; no input means `/dev/null`.
    Pipes {
        /// Standard input.
        input: Option<OwnedFd>,
        /// Standard output.
        output: OwnedFd,
        /// Standard error.
        error: OwnedFd,
    },
    /// A terminal, which becomes the program's controlling one.
    Terminal(OwnedFd),
}

/// Why a program did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// No such file, in any directory of `PATH`.
    #[error("command not found: {0}")]
    NotFound(String),
    /// The file exists; its interpreter or dynamic loader does not.
    #[error("{0} exists, but the interpreter or dynamic loader that it names does not")]
    NoInterpreter(String),
    /// The file exists and cannot be executed.
    #[error("cannot execute {command}: {source}{hint}")]
    NotExecutable {
        /// As given.
        command: String,
        /// Why.
        source: io::Error,
        /// The likely cause.
        hint: &'static str,
    },
    /// Text that a program cannot be given.
    #[error("an argument or variable contains a null byte: {0:?}")]
    Text(String),
    /// A preparation of the start failed.
    #[error("{what}: {source}")]
    Prepare {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl StartError {
    /// The exit code a shell would give it, where it would give one.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        match self {
            Self::NotFound(_) | Self::NoInterpreter(_) => Some(EXIT_NOT_FOUND),
            Self::NotExecutable { .. } => Some(EXIT_NOT_EXECUTABLE),
            Self::Text(_) | Self::Prepare { .. } => None,
        }
    }
}

/// The child's stages, by the number that it reports when one fails.
const STAGES: &[&str] = &[
    "execute",
    "new session",
    "standard streams",
    "controlling terminal",
    "enter the working directory",
    "set groups",
    "set group",
    "set user",
    "drop privileges",
    "keep listeners open",
    "enter the app's namespaces",
    "mount /proc",
];
/// This program, though its file in the initramfs is removed.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// More than the number of the kernel's capabilities.
const CAPABILITIES: u32 = 64;

/// Starts a program and returns its pid, once it runs: a failure up to execve is an error here.
///
/// # Errors
/// It was not found, cannot be executed, or could not be prepared.
pub(crate) fn spawn(program: &Program<'_>, streams: Streams) -> Result<i32, StartError> {
    let prepare = |what| move |source| StartError::Prepare { what, source };
    let exec = Exec::new(program)?;
    let (read, write) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|error| prepare("make a pipe")(error.into()))?;
    let pid = match fork(program)? {
        Forked::Parent(pid) => pid,
        Forked::Child => {
            let (stage, error) = child(program, &exec, &streams);
            let mut report = [0; 5];
            report[0] = stage;
            report[1..].copy_from_slice(&error.raw_os_error().unwrap_or(0).to_ne_bytes());
            let _ = File::from(write).write_all(&report);
            sys::exit_now(i32::from(EXIT_NOT_FOUND))
        }
    };
    drop((write, streams));
    let mut report = Vec::new();
    File::from(read)
        .read_to_end(&mut report)
        .map_err(prepare("read the start's outcome"))?;
    // No report: execve closed the pipe.
    let Some((stage, Some(code))) = report.split_first().map(|(s, r)| (*s, r.first_chunk())) else {
        return Ok(pid);
    };
    // It is ending. A zombie would keep its namespace.
    let _ = waitpid(Pid::from_raw(pid), WaitOptions::empty());
    let source = io::Error::from_raw_os_error(i32::from_ne_bytes(*code));
    if stage != 0 {
        let what = STAGES.get(usize::from(stage)).copied().unwrap_or("start");
        return Err(StartError::Prepare { what, source });
    }
    let command = program.argv.first().cloned().unwrap_or_default();
    Err(match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) if exec.programs.iter().any(exists) => {
            StartError::NoInterpreter(command)
        }
        Some(libc::ENOENT | libc::ENOTDIR) => StartError::NotFound(command),
        Some(libc::ENOEXEC) => StartError::NotExecutable {
            command,
            source,
            hint: " (built for another architecture, or a script without #!)",
        },
        _ => StartError::NotExecutable {
            command,
            source,
            hint: "",
        },
    })
}

/// Starts the child, where the program belongs.
fn fork(program: &Program<'_>) -> Result<Forked, StartError> {
    let prepare = |what| move |source| StartError::Prepare { what, source };
    let cgroup = program
        .cgroup
        .map(File::open)
        .transpose()
        .map_err(prepare("open the cgroup"))?;
    let mut options = ForkOptions {
        cgroup: cgroup.as_ref().map(AsFd::as_fd),
        ..ForkOptions::default()
    };
    match program.namespaces {
        Namespaces::Init => sys::fork(options),
        Namespaces::New => {
            options.in_new_namespaces = true;
            sys::fork(options)
        }
        Namespaces::Main(app) | Namespaces::Beside(app) => app.fork(options),
    }
    .map_err(prepare("fork"))
}

fn exists(path: &CString) -> bool {
    path.to_str().is_ok_and(|path| Path::new(path).is_file())
}

/// The C strings for execve, made before the fork.
struct Exec {
    programs: Vec<CString>,
    argv: Vec<CString>,
    environment: Vec<CString>,
}

impl Exec {
    fn new(program: &Program<'_>) -> Result<Self, StartError> {
        let text = |text: String| CString::new(text.clone()).map_err(|_| StartError::Text(text));
        let path = program
            .environment
            .iter()
            .rev()
            .find_map(|(name, value)| (name == "PATH").then_some(value.as_str()));
        let of_the_image = matches!(program.executable, Executable::Image);
        let command = if of_the_image {
            program.argv.first().map_or("", String::as_str)
        } else {
            OWN_PROGRAM
        };
        let mut environment = program
            .environment
            .iter()
            .map(|(name, value)| text(format!("{name}={value}")))
            .collect::<Result<Vec<_>, _>>()?;
        let has_home = program.environment.iter().any(|(name, _)| name == "HOME");
        if !has_home && !matches!(program.executable, Executable::Confined(_)) {
            environment.push(text(format!("HOME={}", program.user.home))?);
        }
        Ok(Self {
            programs: candidates(command, path)
                .into_iter()
                .map(text)
                .collect::<Result<_, _>>()?,
            argv: program
                .argv
                .iter()
                .cloned()
                .map(text)
                .collect::<Result<_, _>>()?,
            environment,
        })
    }
}

/// The files that `command` may name, in order. A name with a slash means itself; an empty
/// directory in `PATH` means the working directory.
fn candidates(command: &str, path: Option<&str>) -> Vec<String> {
    if command.is_empty() {
        return Vec::new();
    }
    if command.contains('/') {
        return vec![command.to_owned()];
    }
    path.unwrap_or(DEFAULT_PATH)
        .split(':')
        .map(|directory| match directory {
            "" => format!("./{command}"),
            directory => format!("{}/{command}", directory.trim_end_matches('/')),
        })
        .collect()
}

/// The child's part. Returns only when a stage failed: its index in [`STAGES`], and why.
fn child(program: &Program<'_>, exec: &Exec, streams: &Streams) -> (u8, io::Error) {
    match prepare_child(program, streams) {
        Err((stage, error)) => (stage, error),
        Ok(()) => (0, execute(exec)),
    }
}

fn prepare_child(program: &Program<'_>, streams: &Streams) -> Result<(), (u8, io::Error)> {
    let at = |stage: u8| move |error: Errno| (stage, io::Error::from(error));
    match program.namespaces {
        Namespaces::Main(app) | Namespaces::Beside(app) => app.enter().map_err(at(10))?,
        Namespaces::Init | Namespaces::New => {}
    }
    // Each namespace has its own view of processes. It is mounted by the app's first process, not by
    // the platform's PID 1, so that the app need not wait for that.
    let is_first = match program.namespaces {
        Namespaces::Main(_) => true,
        Namespaces::New => matches!(program.executable, Executable::Image),
        Namespaces::Init | Namespaces::Beside(_) => false,
    };
    if is_first {
        mount_proc().map_err(at(11))?;
    }
    rustix::process::setsid().map_err(at(1))?;
    set_streams(streams, program.user).map_err(|error| (2, error))?;
    if let Streams::Terminal(_) = streams {
        rustix::process::ioctl_tiocsctty(io::stdin()).map_err(at(3))?;
    }
    rustix::process::chdir(program.working_dir).map_err(at(4))?;
    let (current, maximum) = match program.executable {
        Executable::Confined(_) => (proxy_adapter::OPEN_FILES, proxy_adapter::OPEN_FILES),
        Executable::Image | Executable::NamespaceInit => OPEN_FILES,
    };
    let limit = Rlimit {
        current: Some(current),
        maximum: Some(maximum),
    };
    // Fails without the capability, which only `examples/natively.rs` lacks.
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let user = program.user;
    let groups: Vec<_> = user
        .groups
        .iter()
        .map(|gid| rustix::fs::Gid::from_raw(*gid))
        .collect();
    if let Executable::Confined(kept) = program.executable {
        confine().map_err(at(8))?;
        for fd in kept {
            fcntl_setfd(fd, FdFlags::empty()).map_err(at(9))?;
        }
    }
    rustix::thread::set_thread_groups(&groups).map_err(at(5))?;
    rustix::thread::set_thread_gid(rustix::fs::Gid::from_raw(user.gid)).map_err(at(6))?;
    rustix::thread::set_thread_uid(rustix::fs::Uid::from_raw(user.uid)).map_err(at(7))?;
    // PID 1 of the namespace loses no signal that comes before it waits for the first.
    if !matches!(program.executable, Executable::NamespaceInit) {
        sys::reset_signals();
    }
    Ok(())
}

/// Replaces the `/proc` of init's processes by one of the app's.
fn mount_proc() -> rustix::io::Result<()> {
    unmount("/proc", UnmountFlags::DETACH)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None)
}

/// Makes this process and what it executes unable to gain rights; it has none once its user is not root.
fn confine() -> rustix::io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    for number in 0..CAPABILITIES {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match remove_capability_from_bounding_set(capability) {
            // Past the kernel's last capability.
            Err(Errno::INVAL) => break,
            result => result?,
        }
    }
    Ok(())
}

/// Mode of the pipes of a program's outputs: a program that opens `/dev/stdout` anew needs the permission, and so does
/// one that has changed its user since.
const OUTPUT_MODE: Mode = Mode::from_raw_mode(0o622);

/// Puts the streams at descriptors 0 to 2, owned by the user.
fn set_streams(streams: &Streams, user: &User) -> io::Result<()> {
    let null;
    let fds = match streams {
        Streams::Terminal(terminal) => [terminal.as_fd(); 3],
        Streams::Pipes {
            input,
            output,
            error,
        } => {
            let input = if let Some(input) = input {
                input.as_fd()
            } else {
                null = File::open("/dev/null")?;
                null.as_fd()
            };
            [input, output.as_fd(), error.as_fd()]
        }
    };
    let uid = rustix::fs::Uid::from_raw(user.uid);
    let owned = match streams {
        Streams::Pipes { input: None, .. } => &fds[1..],
        _ => &fds[..],
    };
    for fd in owned {
        rustix::fs::fchown(fd, Some(uid), None)?;
    }
    if let Streams::Pipes { output, error, .. } = streams {
        for fd in [output, error] {
            rustix::fs::fchmod(fd, OUTPUT_MODE)?;
        }
    }
    sys::replace_standard_streams(fds)
}

/// Tries each candidate as execvp does: it skips missing and forbidden files, and reports "forbidden"
/// rather than "missing" when no candidate could be run.
fn execute(exec: &Exec) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (argv, environment) = (pointers(&exec.argv), pointers(&exec.environment));
    let mut result = io::Error::from_raw_os_error(libc::ENOENT);
    for program in &exec.programs {
        let error = sys::execve(program, &argv, &environment);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(libc::EACCES) => result = error,
            _ => return error,
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::candidates;

    #[test]
    fn a_command_is_looked_up_in_path_as_execvp_does() {
        assert_eq!(candidates("/bin/sh", Some("/usr/bin")), ["/bin/sh"]);
        assert_eq!(candidates("./run", Some("/usr/bin")), ["./run"]);
        assert_eq!(
            candidates("sh", Some("/usr/bin/::/bin")),
            ["/usr/bin/sh", "./sh", "/bin/sh"]
        );
        assert_eq!(candidates("sh", None).len(), 6);
        assert!(candidates("", Some("/bin")).is_empty());
    }
}
