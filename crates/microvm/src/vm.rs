//! A VM that runs or has ended.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blocking_work::blocking;
use model::InstanceId;
use process_handle::{Exit, Process};
use tokio::sync::{mpsc, oneshot, watch};

use crate::cgroup::Cgroup;
use crate::console::{Pump, console_tail};
use crate::driver::Driver;
use crate::health::{Question, VmHealth, observe};
use crate::{StatusError, VmStatus, load, run_dir};

/// Longest time between an orderly end of the vsock device and the end of the VMM that caused it. A VMM that still
/// runs after it has lost its device.
const VMM_GRACE: Duration = Duration::from_millis(500);
/// Questions about a VM's status that wait at a time; further ones wait for their turn.
const MAX_QUESTIONS: usize = 8;

/// How a VM ended, and the end of its console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmEnd {
    /// How.
    pub how: HowEnded,
    /// The end of its console, printable.
    pub console_tail: String,
}

/// How a VM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HowEnded {
    /// The VMM exited: with 0 when the guest powered off or panicked, else by an error of its own.
    Exited(i32),
    /// A signal ended the VMM, and it was not [`Vm::kill`]'s.
    Signal(i32),
    /// By [`Vm::kill`].
    Killed,
    /// The vsock device ended first, and the VMM was ended after it.
    VsockLost,
    /// The VMM ended in an unknown way: an earlier agent had started it.
    Unknown,
}

impl std::fmt::Display for HowEnded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(0) => f.write_str("the guest ended"),
            Self::Exited(code) => write!(f, "the VMM exited with {code}"),
            Self::Signal(signal) => write!(f, "the VMM was killed by signal {signal}"),
            Self::Killed => f.write_str("the VM was killed"),
            Self::VsockLost => f.write_str("the vsock device was lost"),
            Self::Unknown => f.write_str("the VMM ended"),
        }
    }
}

/// One VM. Dropping this changes nothing: the VM goes on, and is found again by [`Vm::adopt`].
#[derive(Debug, Clone)]
pub struct Vm {
    instance: InstanceId,
    run_dir: PathBuf,
    processes: Option<Arc<Processes>>,
    end: watch::Receiver<Option<VmEnd>>,
    health: watch::Receiver<VmHealth>,
    /// Asks for the status. The watcher of the health ends with the last of these.
    questions: mpsc::Sender<Question>,
}

#[derive(Debug)]
pub(crate) struct Processes {
    pub(crate) vmm: Process,
    pub(crate) vsock_device: Option<Process>,
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) killed: AtomicBool,
}

impl Vm {
    /// Watches both processes from now on.
    pub(crate) fn watch(
        instance: InstanceId,
        driver: &'static dyn Driver,
        run_dir: PathBuf,
        processes: Processes,
        pump: Option<Pump>,
    ) -> Self {
        let processes = Arc::new(processes);
        let (ended, end) = watch::channel(None);
        let watched = Arc::clone(&processes);
        let dir = run_dir.clone();
        let (health_sender, health) = watch::channel(VmHealth::default());
        let (questions, asked) = mpsc::channel(MAX_QUESTIONS);
        tokio::spawn(async move {
            let device = watched.vsock_device.as_ref();
            let how = tokio::select! {
                biased;
                how = watched.end_together() => how,
                // Nobody has the VM any more. Who adopts it watches it and clears what it leaves: two would clear what the
                // next boot makes.
                () = observe(driver, &dir, &watched.vmm, device, health_sender, asked) => {
                    if let Some(pump) = pump {
                        pump.leave();
                    }
                    return;
                }
            };
            let end = finish(how, &dir, watched.cgroup.clone(), pump).await;
            ended.send_replace(Some(end));
        });
        Self {
            instance,
            run_dir,
            processes: Some(processes),
            end,
            health,
            questions,
        }
    }

    pub(crate) fn ended_already(instance: InstanceId, run_dir: PathBuf, end: VmEnd) -> Self {
        // The channel keeps its value when the sender goes.
        let (_, end) = watch::channel(Some(end));
        let (_, health) = watch::channel(VmHealth::default());
        let (questions, _) = mpsc::channel(MAX_QUESTIONS);
        Self {
            instance,
            run_dir,
            processes: None,
            end,
            health,
            questions,
        }
    }

    /// The instance.
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    /// Its run directory.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// How it ended, if it did.
    pub fn has_ended(&self) -> Option<VmEnd> {
        self.end.borrow().clone()
    }

    /// Waits for its end: its processes are gone, and with them its sockets, its cgroup and its record. Cancel-safe;
    /// several callers may wait.
    pub async fn ended(&self) -> VmEnd {
        let mut end = self.end.clone();
        let ended = end.wait_for(Option::is_some).await.ok();
        match ended.and_then(|end| end.clone()) {
            Some(end) => end,
            // The runtime shuts down: nobody will look at the answer.
            None => std::future::pending().await,
        }
    }

    /// Ends it at once, and waits until nothing is left. The guest is not asked, so writes that it has not flushed
    /// are lost.
    pub async fn kill(&self) -> VmEnd {
        if let Some(processes) = &self.processes {
            processes.killed.store(true, Ordering::Relaxed);
            processes.vmm.kill();
        }
        self.ended().await
    }

    /// How long its VMM's threads were ready to run and had no processor. Absent: it has ended, or the kernel does not say.
    /// Reads some small files of /proc.
    pub fn waited_for_processors(&self) -> Option<Duration> {
        load::waited(self.processes.as_ref()?.vmm.pid()).ok()
    }

    /// Asks the VMM about its guest. A VMM that is stopped or hangs does not answer in time.
    ///
    /// # Errors
    /// The VMM did not answer, or its answer is not understood.
    pub async fn status(&self) -> Result<VmStatus, StatusError> {
        let gone = || StatusError::Answer("it has ended".to_owned());
        let (question, answer) = oneshot::channel();
        self.questions.send(question).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// How the guest is, as its VMM says; it changes with what is heard. After the VM's end it says nothing new.
    pub fn health(&self) -> watch::Receiver<VmHealth> {
        self.health.clone()
    }
}

impl Processes {
    /// Waits for the end of one process, and ends the other.
    async fn end_together(&self) -> HowEnded {
        let how = tokio::select! {
            biased;
            exit = self.vmm.ended() => self.reason(exit),
            device = ended(self.vsock_device.as_ref()) => self.after_vsock(device).await,
        };
        if let Some(device) = &self.vsock_device {
            device.kill();
            device.ended().await;
        }
        how
    }

    async fn after_vsock(&self, device: Exit) -> HowEnded {
        if let Exit::Code(_) | Exit::Unknown = device
            && let Ok(exit) = tokio::time::timeout(VMM_GRACE, self.vmm.ended()).await
        {
            return self.reason(exit);
        }
        self.vmm.kill();
        self.vmm.ended().await;
        HowEnded::VsockLost
    }

    fn reason(&self, exit: Exit) -> HowEnded {
        match exit {
            _ if self.killed.load(Ordering::Relaxed) => HowEnded::Killed,
            Exit::Code(code) => HowEnded::Exited(code),
            Exit::Signal(signal) => HowEnded::Signal(signal),
            Exit::Unknown => HowEnded::Unknown,
        }
    }
}

/// Waits for a process that may not be there.
async fn ended(process: Option<&Process>) -> Exit {
    match process {
        Some(process) => process.ended().await,
        None => std::future::pending().await,
    }
}

/// After the end of all processes: reads the rest of the console, and removes cgroup, sockets and record.
pub(crate) async fn finish(
    how: HowEnded,
    dir: &Path,
    cgroup: Option<Cgroup>,
    pump: Option<Pump>,
) -> VmEnd {
    if let Some(pump) = pump {
        pump.finish().await;
    }
    let dir = dir.to_owned();
    blocking(move || {
        if let Some(cgroup) = cgroup {
            cgroup.remove_dir();
        }
        let console_tail = console_tail(&dir);
        if let Err(error) = run_dir::clear(&dir) {
            // It was removed meanwhile, or the next boot clears it.
            tracing::debug!(%error, run_dir = %dir.display(), "run directory not cleared");
        }
        VmEnd { how, console_tail }
    })
    .await
}
