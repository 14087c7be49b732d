//! The app: the start of its main process, and of PID 1 of its namespaces ([`AppNamespace`]).

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use guest_protocol::BootConfig;
use model::instance::Init;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::namespace::AppNamespace;
use crate::namespace_init;
use crate::output::PIPE_BYTES;
use crate::plan::APP_CGROUP;
use crate::spawn::{self, Executable, Namespaces, Program, StartError, Streams};
use crate::user::User;

/// The app, just started.
pub(crate) struct App {
    /// Its main process, by the pid that init sees.
    pub(crate) pid: i32,
    /// The namespaces that it lives in.
    pub(crate) namespace: AppNamespace,
    /// Its standard output.
    pub(crate) stdout: OwnedFd,
    /// Its standard error.
    pub(crate) stderr: OwnedFd,
}

impl App {
    /// Starts it.
    ///
    /// # Errors
    /// The command was not found or cannot be executed, or the kernel has no resources. Nothing is left then.
    pub(crate) fn start(config: &BootConfig, user: &User) -> Result<Self, StartError> {
        let ((stdout, output), (stderr, error)) = (output_pipe()?, output_pipe()?);
        let (pid, namespace) = match config.init {
            Init::Platform => {
                let namespace = start_platform_init(config, user, output.as_fd(), error.as_fd())?;
                let place = Namespaces::Main(&namespace);
                let start = if config.attached {
                    start_placeholder
                } else {
                    start_main
                };
                let pid =
                    start(config, user, place, output, error).inspect_err(|_| namespace.kill())?;
                (pid, namespace)
            }
            Init::Image => {
                let pid = start_main(config, user, Namespaces::New, output, error)?;
                (pid, hold(pid)?)
            }
        };
        Ok(Self {
            pid,
            namespace,
            stdout,
            stderr,
        })
    }
}

fn start_main(
    config: &BootConfig,
    user: &User,
    namespaces: Namespaces<'_>,
    output: OwnedFd,
    error: OwnedFd,
) -> Result<i32, StartError> {
    let program = Program {
        argv: &config.argv,
        environment: &config.environment,
        working_dir: &config.working_dir,
        user,
        cgroup: Some(APP_CGROUP),
        executable: Executable::Image,
        namespaces,
    };
    spawn::spawn(
        &program,
        Streams::Pipes {
            input: None,
            output,
            error,
        },
    )
}

/// Starts what holds the place of the main process until a session is the app.
fn start_placeholder(
    config: &BootConfig,
    user: &User,
    namespaces: Namespaces<'_>,
    output: OwnedFd,
    error: OwnedFd,
) -> Result<i32, StartError> {
    let program = Program {
        argv: &[namespace_init::PLACEHOLDER.to_owned()],
        environment: &config.environment,
        working_dir: &config.working_dir,
        user,
        cgroup: Some(APP_CGROUP),
        executable: Executable::NamespaceInit,
        namespaces,
    };
    spawn::spawn(
        &program,
        Streams::Pipes {
            input: None,
            output,
            error,
        },
    )
}

/// Makes the namespaces, with the platform's program as PID 1. It has the app's user, environment and outputs: images look
/// at `/proc/1/environ` and write to `/proc/1/fd/1`.
fn start_platform_init(
    config: &BootConfig,
    user: &User,
    output: BorrowedFd<'_>,
    error: BorrowedFd<'_>,
) -> Result<AppNamespace, StartError> {
    let duplicate = |fd: BorrowedFd<'_>| {
        fd.try_clone_to_owned()
            .map_err(prepare("hand over the app's output"))
    };
    let program = Program {
        argv: &[namespace_init::NAME.to_owned()],
        environment: &config.environment,
        working_dir: "/",
        user,
        cgroup: None,
        executable: Executable::NamespaceInit,
        namespaces: Namespaces::New,
    };
    let streams = Streams::Pipes {
        input: None,
        output: duplicate(output)?,
        error: duplicate(error)?,
    };
    let pid = spawn::spawn(&program, streams)?;
    // Without it the app would end too, so the kernel is to find memory elsewhere. Fails in
    // `examples/natively.rs` only.
    let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), "-1000");
    hold(pid)
}

fn hold(pid: i32) -> Result<AppNamespace, StartError> {
    AppNamespace::of(pid).map_err(prepare("hold the app's namespaces"))
}

/// A pipe for one of the app's outputs: the end to read, which does not block, and the app's.
fn output_pipe() -> Result<(OwnedFd, OwnedFd), StartError> {
    let failed = prepare("make a pipe");
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    rustix::io::ioctl_fionbio(&read, true)
        .map_err(|error| prepare("set up a pipe")(error.into()))?;
    // A smaller pipe is slower, and works.
    let _ = rustix::pipe::fcntl_setpipe_size(&read, PIPE_BYTES);
    Ok((read, write))
}

fn prepare(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Prepare { what, source }
}
