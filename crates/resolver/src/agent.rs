//! The agent's side: how the process is started, found again, told and ended.
//!
//! The process is known by its control socket: the kernel says who listens there (`SO_PEERCRED`). One whose socket somebody removed is known by its command
//! line, and ended before another is started.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use blocking_work::blocking;
use process_handle::{Process, is_gone};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;

use crate::control::{Client, ControlError, NamespaceId, Request, Status, Version};
use crate::names::Update;
use crate::process::READY;

/// Longest wait for a start, and for the end of a killed process.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of the process's standard error that an error carries.
const MAX_STDERR_BYTES: u64 = 2048;

/// A resolver's settings.
#[derive(Debug, Clone)]
pub struct ResolverOptions {
    /// The file of the network namespace of the instances, in which it answers. It asks the machine's name servers from the agent's own.
    pub namespace: PathBuf,
    /// The program `platform`.
    pub program: PathBuf,
    /// Where its control socket is; made where it is missing.
    pub run_dir: PathBuf,
}

impl ResolverOptions {
    fn control(&self) -> PathBuf {
        self.run_dir.join("resolver.sock")
    }
}

/// Why there is no resolver, or it does not follow.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// It did not start.
    #[error("`{command}` did not start: {why}")]
    Start {
        /// The command.
        command: String,
        /// What it said, or how it was started.
        why: String,
    },
    /// It does not do what it is asked.
    #[error("cannot tell the resolver of names")]
    Control(#[from] ControlError),
    /// The machine refuses.
    #[error("cannot {what}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn wrong(what: &'static str) -> impl Fn(io::Error) -> ResolverError {
    move |source| ResolverError::Io { what, source }
}

/// A node's resolver. Dropping it leaves its process alone; [`Resolver::remove`] ends it.
#[derive(Debug)]
pub struct Resolver {
    control: PathBuf,
    process: Process,
}

impl Resolver {
    /// Finds the process that runs, whoever started it, or starts one. What it is told first must be [whole](Update::whole).
    ///
    /// # Errors
    /// It does not start.
    pub async fn ensure(options: &ResolverOptions) -> Result<Self, ResolverError> {
        let control = options.control();
        let path = control.clone();
        if let Some(process) = blocking(move || listener(&path)).await {
            let found = Self {
                control: control.clone(),
                process,
            };
            if found.is_usable(options).await {
                return Ok(found);
            }
            end(&found.process).await?;
        }
        let (path, run_dir) = (control.clone(), options.run_dir.clone());
        let left = blocking(move || {
            let made = fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(run_dir);
            made.and_then(|()| remove_file(&path))
                .and_then(|()| find_all(&path))
        });
        for process in left.await.map_err(wrong("look for processes"))? {
            end(&process).await?;
        }
        Self::start(options).await
    }

    /// Whether the process can be gone on with: it runs, is of this version, and answers in the namespace that there is.
    async fn is_usable(&self, options: &ResolverOptions) -> bool {
        if self.process.is_stopped() {
            return false;
        }
        let namespace = options.namespace.clone();
        let namespace = blocking(move || NamespaceId::of(&namespace)).await;
        let status = self.ask(Request::Status).await;
        status.is_ok_and(|status| {
            status.version == Version::default() && namespace.is_ok_and(|is| is == status.namespace)
        })
    }

    async fn start(options: &ResolverOptions) -> Result<Self, ResolverError> {
        let control = options.control();
        let arguments = [
            "resolver".into(),
            "--namespace".into(),
            options.namespace.clone().into_os_string(),
            "--control".into(),
            control.clone().into_os_string(),
        ];
        let words = std::iter::once(options.program.as_os_str());
        let words = words.chain(arguments.iter().map(std::ffi::OsString::as_os_str));
        let command = words
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        let failed = |why: String| ResolverError::Start {
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
            control,
            process: process.ok_or_else(|| failed("it ended at once".to_owned()))?,
        })
    }

    /// Tells it what changed.
    ///
    /// # Errors
    /// It does not answer: what it knows is not known any more. The caller ensures it again, and tells it everything.
    pub async fn update(&self, update: Update) -> Result<Status, ResolverError> {
        Ok(self.ask(Request::Update(Box::new(update))).await?)
    }

    /// How it is.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn status(&self) -> Result<Status, ResolverError> {
        Ok(self.ask(Request::Status).await?)
    }

    async fn ask(&self, request: Request) -> Result<Status, ControlError> {
        let control = self.control.clone();
        blocking(move || Client::connect(&control)?.ask(&request)).await
    }

    /// Waits until the process has ended.
    pub async fn ended(&self) {
        self.process.ended().await;
    }

    /// Whether somebody stopped the process: it does not answer then.
    pub fn is_stopped(&self) -> bool {
        self.process.is_stopped()
    }

    /// Ends the process of this folder, if there is one, and removes its socket.
    ///
    /// # Errors
    /// It does not end.
    pub async fn remove(run_dir: &Path) -> Result<(), ResolverError> {
        let control = run_dir.join("resolver.sock");
        let path = control.clone();
        if let Some(process) = blocking(move || listener(&path)).await {
            end(&process).await?;
        }
        let path = control.clone();
        let left = blocking(move || remove_file(&path).and_then(|()| find_all(&path)));
        for process in left.await.map_err(wrong("look for processes"))? {
            end(&process).await?;
        }
        Ok(())
    }
}

async fn end(process: &Process) -> Result<(), ResolverError> {
    process.kill();
    let ended = tokio::time::timeout(PATIENCE, process.ended()).await;
    ended.map_err(|_| wrong("end a resolver")(io::ErrorKind::TimedOut.into()))?;
    Ok(())
}

/// Blocks.
fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Who listens at this path, if anybody does. It is held before it is known to be there still. Blocks.
fn listener(path: &Path) -> Option<Process> {
    let stream = UnixStream::connect(path).ok()?;
    let listener = rustix::net::sockopt::socket_peercred(stream.as_fd()).ok()?;
    let process = Process::hold(listener.pid.as_raw_nonzero().get()).ok()?;
    // Its end closes the socket: one that is open now is of the process that is held.
    UnixStream::connect(path).is_ok().then_some(process)
}

/// Every resolver with this control socket, by its command line. Blocks.
fn find_all(control: &Path) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let is_one = || {
            is_resolver(
                &fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default(),
                control,
            )
        };
        if !is_one() {
            continue;
        }
        match Process::hold(pid) {
            // Read again after the process is held: the answer is then about this process.
            Ok(process) if is_one() => found.push(process),
            Ok(_) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Whether a command line (as in `/proc`) is of a resolver with this control socket.
fn is_resolver(command_line: &[u8], control: &Path) -> bool {
    let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    match words.as_slice() {
        [_, command, _, _, option, path, b""] => {
            (*command, *option, *path)
                == (
                    b"resolver",
                    b"--control",
                    control.as_os_str().as_encoded_bytes(),
                )
        }
        _ => false,
    }
}
