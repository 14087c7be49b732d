//! The agent's side: how the process is started, found again, told and ended.
//!
//! The process is known by its control socket: the kernel says who listens there (`SO_PEERCRED`). One whose socket somebody removed is known by its command
//! line, and ended before another is started.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use blocking_work::blocking;
use process_handle::Process;
use process_handle::control::{Client, ControlError};
use process_handle::detached::{self, StartError, find_all, listener, remove_socket};

use crate::control::{NamespaceId, Request, Status, Version};
use crate::names::Update;

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
    #[error(transparent)]
    Start(#[from] StartError),
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
            made.and_then(|()| remove_socket(&path))
                .and_then(|()| resolvers(&path))
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
        let process = detached::start(&options.program, &arguments).await?;
        Ok(Self { control, process })
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
        let left = blocking(move || remove_socket(&path).and_then(|()| resolvers(&path)));
        for process in left.await.map_err(wrong("look for processes"))? {
            end(&process).await?;
        }
        Ok(())
    }
}

async fn end(process: &Process) -> Result<(), ResolverError> {
    detached::end(process)
        .await
        .map_err(wrong("end a resolver"))
}

/// Every resolver with this control socket, by its command line. Blocks.
fn resolvers(control: &Path) -> io::Result<Vec<Process>> {
    find_all(|command_line| is_resolver(command_line, control))
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
