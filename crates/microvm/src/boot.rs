//! Boots a VM: what all drivers have in common, and the choice between them.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::cgroup::Cgroup;
use crate::console::{self, Pump};
use crate::process::{self, Identity, Process};
use crate::record::Record;
use crate::spawn::{self, Launch};
use crate::vm::{Processes, finish};
use crate::{
    BootError, Driver, HowEnded, Obstacle, Vm, VmSpec, firecracker, obstacle, programs, qemu,
    run_dir,
};

/// The guest's context id. Each vsock device serves one guest, so all have the same.
pub(crate) const GUEST_CID: u32 = 3;

/// Boots a VM, and gives it as soon as its VMM runs; whether the guest comes up is heard from the
/// guest. The node listens by [`crate::listen_for_guest`] before. A VMM that ends at once has its
/// words in [`Vm::ended`].
///
/// When the caller goes away meanwhile, the VM is ended again.
///
/// # Errors
/// See [`BootError`]; nothing is left running then.
pub async fn boot(spec: VmSpec) -> Result<Vm, BootError> {
    let (answer, answered) = tokio::sync::oneshot::channel();
    // A task of its own, so that a caller that is cancelled does not leave a boot half done.
    tokio::spawn(async move {
        if let Err(Ok(vm)) = answer.send(boot_whole(spec).await) {
            vm.kill().await;
        }
    });
    answered.await.unwrap_or_else(|_| {
        Err(BootError::Start {
            program: programs::QEMU,
            source: io::Error::other("the agent is shutting down"),
        })
    })
}

async fn boot_whole(spec: VmSpec) -> Result<Vm, BootError> {
    if let Some(reason) = spec.problem() {
        return Err(BootError::Spec {
            instance: spec.instance,
            reason,
        });
    }
    crate::check_programs(spec.driver)?;
    if let Some(vm) = Vm::adopt(&spec.run_dir).await?
        && vm.has_ended().is_none()
    {
        return Err(BootError::AlreadyRunning {
            run_dir: spec.run_dir,
        });
    }
    let dir = spec.run_dir.clone();
    let user = spawn::user_of(spec.instance);
    run_dir::make_dirs(&dir).map_err(file("make", &dir))?;
    if let Some(user) = user {
        run_dir::give_sockets(&dir, user).map_err(file("hand over", &dir))?;
    }
    let ends = console::make(&dir).map_err(file("make", &console::fifo(&dir)))?;
    let pump = Pump::start(&dir).map_err(file("open", &console::fifo(&dir)))?;
    let boot_id = process::boot_id().map_err(file("read", &dir))?;
    let cgroup = Cgroup::make(spec.instance, spec.memory_bytes, spec.cpu_millis);
    let mut boot = Boot {
        record: Record::new(
            boot_id,
            spec.instance,
            spec.driver,
            cgroup.as_ref().map(|cgroup| cgroup.path().to_owned()),
        ),
        cgroup,
        user,
        ends,
        dir,
    };
    let started = match spec.driver {
        Driver::Firecracker => firecracker::start(&mut boot, spec).await,
        Driver::QemuKvm | Driver::QemuTcg => qemu::start(&mut boot, spec).await,
    };
    let Boot {
        cgroup,
        dir,
        ends,
        record,
        ..
    } = boot;
    // Only the processes themselves hold the console from now on.
    drop(ends);
    match started {
        Ok(Started { vmm, vsock_device }) => Ok(Vm::watch(
            record.instance,
            record.driver,
            dir,
            Processes {
                vmm,
                vsock_device,
                cgroup,
                killed: AtomicBool::new(false),
            },
            Some(pump),
        )),
        Err(error) => {
            finish(HowEnded::Killed, &dir, cgroup.as_ref(), Some(pump)).await;
            Err(error)
        }
    }
}

/// What a driver has started.
pub(crate) struct Started {
    pub(crate) vmm: Process,
    /// A process of its own under QEMU; Firecracker has it inside.
    pub(crate) vsock_device: Option<Process>,
}

/// A boot under way: what a driver finds prepared.
pub(crate) struct Boot {
    record: Record,
    cgroup: Option<Cgroup>,
    /// The VM's user; absent when the agent is not root.
    pub(crate) user: Option<u32>,
    pub(crate) ends: console::Ends,
    pub(crate) dir: PathBuf,
}

impl Boot {
    /// Starts the vsock device.
    pub(crate) async fn start_vsock_device(
        &mut self,
        launch: Launch,
    ) -> Result<Process, BootError> {
        self.start(programs::VSOCK_DEVICE, launch, |record, identity| {
            record.vsock_device = Some(identity);
        })
        .await
    }

    /// Starts the VMM.
    pub(crate) async fn start_vmm(
        &mut self,
        program: &'static str,
        launch: Launch,
    ) -> Result<Process, BootError> {
        self.start(program, launch, |record, identity| {
            record.vmm = Some(identity);
        })
        .await
    }

    /// Starts one process: it is in its cgroup and in the record before it runs.
    async fn start(
        &mut self,
        program: &'static str,
        launch: Launch,
        note: impl FnOnce(&mut Record, Identity),
    ) -> Result<Process, BootError> {
        let wrong = |source| BootError::Start { program, source };
        let exe = launch.exe.clone();
        let started = launch.program.clone();
        let waiting = blocking(|| spawn::start(launch)).await.map_err(wrong)?;
        if let Some(cgroup) = &self.cgroup {
            cgroup.add(waiting.pid).map_err(wrong)?;
        }
        let identity = Identity {
            pid: waiting.pid,
            start_time: process::start_time(waiting.pid).map_err(wrong)?,
            exe,
        };
        note(&mut self.record, identity);
        self.record
            .write(&self.dir)
            .map_err(file("write", &crate::record::path(&self.dir)))?;
        let process = Process::hold(waiting.pid).map_err(wrong)?;
        match blocking(|| waiting.release()).await {
            Ok(()) => Ok(process),
            Err(source) if source.raw_os_error() == Some(libc::EACCES) => {
                Err(BootError::Forbidden {
                    operation: "start",
                    obstacle: obstacle::to_execution(&started).unwrap_or(Obstacle::Unseen),
                    path: started,
                    source,
                })
            }
            Err(error) => Err(wrong(error)),
        }
    }

    pub(crate) fn copy_of(&self, file: &File) -> Result<File, BootError> {
        file.try_clone()
            .map_err(self::file("open", &console::fifo(&self.dir)))
    }
}

pub(crate) fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BootError {
    let path = path.to_owned();
    move |source| match source.raw_os_error() {
        Some(libc::EACCES) => BootError::Forbidden {
            operation,
            obstacle: obstacle::to_opening(&path),
            path,
            source,
        },
        _ => BootError::File {
            operation,
            path,
            source,
        },
    }
}

/// A file that the VMM opens again as its own user: the way there need not be open to that user, the
/// file must be.
pub(crate) fn open_for_everyone(path: &Path, user: Option<u32>) -> Result<OwnedFd, BootError> {
    let opened = File::open(path).map_err(file("open", path))?;
    let mode = opened.metadata().map_err(file("examine", path))?.mode();
    if user.is_some() && mode & 0o004 == 0 {
        return Err(BootError::NotWorldReadable(path.to_owned()));
    }
    Ok(opened.into())
}

pub(crate) async fn blocking<T, W>(work: W) -> io::Result<T>
where
    T: Send + 'static,
    W: FnOnce() -> io::Result<T> + Send + 'static,
{
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}
