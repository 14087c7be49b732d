//! The agent's side of an interface in user space: how its process is started, found again and ended.
//!
//! The process is known by its control socket: the kernel says who listens there (`SO_PEERCRED`). A process whose socket somebody removed cannot be found;
//! its link can, and it ends when that is removed.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use blocking_work::blocking;
use process_handle::Process;
use rustix::fs::{FlockOperation, Mode, OFlags};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;

use crate::control::{Client, ControlError, Request};
use crate::link::{Place, refused};
use crate::options::{InterfaceError, InterfaceOptions};
use crate::process::READY;
use crate::settings::{Settings, Status};

/// A variable of the agent: its processes have the kernel neither cut nor join packets, because some kernels mangle them.
const NO_OFFLOAD: &str = "PLATFORM_WIREGUARD_NO_OFFLOAD";
/// Longest wait for a start, and for the end of a killed process.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of the process's standard error that an error carries.
const MAX_STDERR_BYTES: u64 = 2048;

/// A process that is an interface.
#[derive(Debug)]
pub(crate) struct Userspace {
    place: Place,
    control: PathBuf,
    process: Process,
}

/// Where the process listens.
fn control_of(options: &InterfaceOptions) -> PathBuf {
    options.run_dir.join(format!("{}.wireguard", options.name))
}

fn wrong(options: &InterfaceOptions, source: impl Into<ControlError>) -> InterfaceError {
    InterfaceError::Process {
        name: options.name.clone(),
        source: source.into(),
    }
}

/// What keeps others from making or removing the same interface.
#[derive(Debug)]
pub(crate) struct Lock(
    #[allow(dead_code, reason = "it is locked as long as it is open")] std::os::fd::OwnedFd,
);

/// Waits for those that make or remove the same interface, and makes its folder.
pub(crate) async fn lock(options: &InterfaceOptions) -> Result<Lock, InterfaceError> {
    let folder = options.run_dir.clone();
    let path = folder.join(format!("{}.lock", options.name));
    let locked = blocking(move || {
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder);
        made?;
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        Ok(Lock(file))
    });
    locked
        .await
        .map_err(|error: io::Error| wrong(options, error))
}

impl Userspace {
    /// The one that runs, if it can be gone on with: it answers, listens at this port, and its link is there. Any other is ended.
    pub(crate) async fn find(options: &InterfaceOptions) -> Result<Option<Self>, InterfaceError> {
        let control = control_of(options);
        let path = control.clone();
        let Some(process) = blocking(move || listener(&path)).await else {
            return Ok(None);
        };
        let found = Self {
            place: Place::from(options),
            control,
            process,
        };
        if !found.process.is_stopped() {
            let place = found.place.clone();
            let has_link = blocking(move || place.find().is_ok_and(|link| link.is_some())).await;
            let status = found.status().await;
            if has_link && status.is_ok_and(|status| status.port == options.port) {
                return Ok(Some(found));
            }
        }
        found.kill(options).await?;
        Ok(None)
    }

    /// Starts one, and waits until it answers.
    pub(crate) async fn start(options: &InterfaceOptions) -> Result<Self, InterfaceError> {
        let control = control_of(options);
        let path = control.clone();
        // Of a process that was killed.
        let removed = blocking(move || match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        });
        removed.await.map_err(|error| wrong(options, error))?;
        let mut arguments = vec![
            "wireguard".into(),
            "--name".into(),
            options.name.clone().into(),
        ];
        if let Some(namespace) = &options.namespace {
            arguments.extend(["--namespace".into(), namespace.clone().into_os_string()]);
        }
        arguments.extend(["--port".into(), options.port.to_string().into()]);
        arguments.extend(["--mtu".into(), options.mtu.to_string().into()]);
        arguments.extend(["--control".into(), control.clone().into_os_string()]);
        if std::env::var_os(NO_OFFLOAD).is_some() {
            arguments.push("--no-offload".into());
        }
        let command = std::iter::once(options.program.as_os_str())
            .chain(arguments.iter().map(std::ffi::OsString::as_os_str))
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        let failed = |why: String| InterfaceError::Start {
            command: command.clone(),
            why,
        };
        // By its whole path and without work in between, it starts without a copy of the agent's page tables (posix_spawn).
        let mut child = Command::new(&options.program)
            .args(&arguments)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        let ready = async {
            let mut line = String::new();
            if let Some(output) = output {
                BufReader::new(output).read_line(&mut line).await?;
            }
            io::Result::Ok(line.trim_end() == READY)
        };
        match tokio::time::timeout(PATIENCE, ready).await {
            Ok(Ok(true)) => {}
            Ok(_) => {
                let mut text = Vec::new();
                if let Some(errors) = errors {
                    let _ = errors.take(MAX_STDERR_BYTES).read_to_end(&mut text).await;
                }
                let _ = child.wait().await;
                return Err(failed(
                    String::from_utf8_lossy(&text).trim().replace('\n', "; "),
                ));
            }
            Err(_) => {
                let _ = child.kill().await;
                return Err(failed(format!(
                    "it was not ready within {} s",
                    PATIENCE.as_secs()
                )));
            }
        }
        let path = control.clone();
        let process = blocking(move || listener(&path)).await;
        Ok(Self {
            place: Place::from(options),
            control,
            process: process.ok_or_else(|| failed("it ended at once".to_owned()))?,
        })
    }

    pub(crate) async fn set(&self, settings: &Settings) -> Result<Status, InterfaceError> {
        self.ask(Request::Set(Box::new(settings.clone()))).await
    }

    pub(crate) async fn status(&self) -> Result<Status, InterfaceError> {
        self.ask(Request::Status).await
    }

    /// Sets the link up with the MTU of these options, and lets the process know it.
    pub(crate) async fn set_mtu(&self, options: &InterfaceOptions) -> Result<(), InterfaceError> {
        let (place, mtu) = (self.place.clone(), options.mtu);
        let set = blocking(move || place.set(mtu));
        set.await
            .map_err(|source| refused("set the MTU", &options.name, source))?;
        self.ask(Request::SetMtu(mtu)).await?;
        Ok(())
    }

    pub(crate) async fn ended(&self) {
        self.process.ended().await;
    }

    async fn ask(&self, request: Request) -> Result<Status, InterfaceError> {
        let control = self.control.clone();
        let asked = blocking(move || Client::connect(&control)?.ask(&request));
        asked.await.map_err(|source| InterfaceError::Process {
            name: self.place.name.clone(),
            source,
        })
    }

    async fn kill(self, options: &InterfaceOptions) -> Result<(), InterfaceError> {
        self.process.kill();
        let ended = tokio::time::timeout(PATIENCE, self.process.ended()).await;
        ended.map_err(|_| wrong(options, io::Error::from(io::ErrorKind::TimedOut)))?;
        Ok(())
    }
}

/// Ends the process of this interface, if it runs, and removes its control socket.
pub(crate) async fn end(options: &InterfaceOptions) -> Result<(), InterfaceError> {
    let control = control_of(options);
    let path = control.clone();
    if let Some(process) = blocking(move || listener(&path)).await {
        let place = Place::from(options);
        let found = Userspace {
            place,
            control: control.clone(),
            process,
        };
        found.kill(options).await?;
    }
    let removed = blocking(move || match fs::remove_file(control) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    });
    removed.await.map_err(|error| wrong(options, error))
}

/// Who listens at this path, if anybody does. It is held before it is known to be there still. Blocks.
fn listener(path: &Path) -> Option<Process> {
    let stream = UnixStream::connect(path).ok()?;
    let listener = rustix::net::sockopt::socket_peercred(stream.as_fd()).ok()?;
    let process = Process::hold(listener.pid.as_raw_nonzero().get()).ok()?;
    // Its end closes the socket: one that is open now is of the process that is held.
    UnixStream::connect(path).is_ok().then_some(process)
}
