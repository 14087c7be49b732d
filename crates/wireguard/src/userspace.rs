//! The agent's side of an interface in user space: how its process is started, found again and ended.
//!
//! The process is known by its control socket: the kernel says who listens there (`SO_PEERCRED`). A process whose socket somebody removed cannot be found;
//! its link can, and it ends when that is removed.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blocking_work::blocking;
use process_handle::Process;
use process_handle::control::{Client, ControlError};
use process_handle::detached::{self, listener, remove_socket};
use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::control::Request;
use crate::link::{Place, refused};
use crate::options::{InterfaceError, InterfaceOptions};
use crate::settings::{Settings, Status};

/// A variable of the agent: its processes have the kernel neither cut nor join packets, because some kernels mangle them.
const NO_OFFLOAD: &str = "PLATFORM_WIREGUARD_NO_OFFLOAD";
/// How often the process is asked whether it answers.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Longest wait for an answer, and how many on end may be missing: a machine that is overloaded answers late, and its packets pass all the same.
const ANSWER_PATIENCE: Duration = Duration::from_secs(3);
const MISSED_ANSWERS: u32 = 3;

/// A process that is an interface. As long as this is held, the process is ended when it does not answer: [`Userspace::ended`] says so then.
#[derive(Debug)]
pub(crate) struct Userspace {
    place: Place,
    control: PathBuf,
    process: Arc<Process>,
    _watch: Watch,
}

/// A task that ends with this.
#[derive(Debug)]
struct Watch(tokio::task::JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where the process listens.
fn control_of(options: &InterfaceOptions) -> PathBuf {
    options.run_dir.join(format!("{}.wireguard", options.name))
}

/// The names of all interfaces that were made or removed with this folder, of either kind: their locks stay. Blocks.
pub(crate) fn names_in(run_dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(run_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let name = name.to_str().and_then(|name| name.strip_suffix(".lock"));
        names.extend(name.map(str::to_owned));
    }
    Ok(names)
}

/// Whether the process of this interface runs. Blocks.
pub(crate) fn is_running(options: &InterfaceOptions) -> bool {
    listener(&control_of(options)).is_some()
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
        if !process.is_stopped() {
            let place = Place::from(options);
            let has_link = blocking(move || place.find().is_ok_and(|link| link.is_some())).await;
            let status = ask(&control, Request::Status).await;
            if has_link && status.is_ok_and(|status| status.port == options.port) {
                return Ok(Some(Self::hold(options, process)));
            }
        }
        kill(&process, options).await?;
        Ok(None)
    }

    fn hold(options: &InterfaceOptions, process: Process) -> Self {
        let (place, control) = (Place::from(options), control_of(options));
        let process = Arc::new(process);
        let watch = watch(place.name.clone(), control.clone(), process.clone());
        Self {
            place,
            control,
            process,
            _watch: Watch(tokio::spawn(watch)),
        }
    }

    /// Starts one, and waits until it answers.
    pub(crate) async fn start(options: &InterfaceOptions) -> Result<Self, InterfaceError> {
        let control = control_of(options);
        let path = control.clone();
        // Of a process that was killed.
        let removed = blocking(move || remove_socket(&path));
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
        let process = detached::start(&options.program, &arguments).await?;
        Ok(Self::hold(options, process))
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
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

    pub(crate) fn is_stopped(&self) -> bool {
        self.process.is_stopped()
    }

    pub(crate) async fn ended(&self) {
        self.process.ended().await;
    }

    async fn ask(&self, request: Request) -> Result<Status, InterfaceError> {
        let asked = ask(&self.control, request).await;
        asked.map_err(|source| InterfaceError::Process {
            name: self.place.name.clone(),
            source,
        })
    }
}

async fn ask(control: &Path, request: Request) -> Result<Status, ControlError> {
    let control = control.to_owned();
    blocking(move || Client::connect(&control)?.ask(&request)).await
}

async fn kill(process: &Process, options: &InterfaceOptions) -> Result<(), InterfaceError> {
    let ended = detached::end(process).await;
    ended.map_err(|error| wrong(options, error))
}

/// Ends the process when it leaves several questions on end without an answer: whoever waits for its end makes another.
async fn watch(link: String, control: PathBuf, process: Arc<Process>) {
    let mut missed = 0;
    while missed < MISSED_ANSWERS {
        tokio::select! {
            _ = process.ended() => return,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
        missed = if answers(&control).await {
            0
        } else {
            missed + 1
        };
    }
    tracing::warn!(
        link,
        pid = process.pid(),
        "the process of the overlay's interface does not answer; another takes its place"
    );
    process.kill();
}

/// Whether the process answers in time, be it that it refuses.
async fn answers(control: &Path) -> bool {
    let asked = tokio::time::timeout(ANSWER_PATIENCE, ask(control, Request::Answer));
    !matches!(asked.await, Err(_) | Ok(Err(ControlError::Io(_))))
}

/// Ends the process of this interface, if it runs, and removes its control socket.
pub(crate) async fn end(options: &InterfaceOptions) -> Result<(), InterfaceError> {
    let control = control_of(options);
    let path = control.clone();
    if let Some(process) = blocking(move || listener(&path)).await {
        kill(&process, options).await?;
    }
    let removed = blocking(move || remove_socket(&control));
    removed.await.map_err(|error| wrong(options, error))
}
