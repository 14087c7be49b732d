//! Boots a VM: opens everything it needs, starts the vsock device, then the VMM.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::time::Instant;

use crate::cgroup::Cgroup;
use crate::console::{self, Pump, console_tail};
use crate::kernel::boot_arguments;
use crate::process::{self, Identity, Process};
use crate::qemu::CommandLine;
use crate::record::Record;
use crate::spawn::{self, Launch, number};
use crate::vm::{Processes, finish};
use crate::{BootError, Driver, HowEnded, Programs, Vm, VmSpec, programs, run_dir, tsc};

/// How long the vsock device may take until it listens.
const VSOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is tried meanwhile.
const VSOCK_POLL: Duration = Duration::from_millis(2);
/// The guest's context id. Each vsock device serves one guest, so all have the same.
const GUEST_CID: u32 = 3;
const MIB: u64 = 1024 * 1024;

/// Boots a VM, and gives it as soon as its VMM runs; whether the guest comes up is heard from the
/// guest. The node listens by [`crate::listen_for_guest`] before. A VMM that does not like what it
/// was given ends at once: [`Vm::ended`] has its words.
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
    let programs = Programs::find()?;
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
    let started = boot.processes(spec, programs).await;
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
        Ok((vmm, vsock_device)) => Ok(Vm::watch(
            record.instance,
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

struct Boot {
    record: Record,
    cgroup: Option<Cgroup>,
    user: Option<u32>,
    ends: console::Ends,
    dir: PathBuf,
}

impl Boot {
    /// Starts both; when the second fails, the first is ended.
    async fn processes(
        &mut self,
        spec: VmSpec,
        programs: Programs,
    ) -> Result<(Process, Process), BootError> {
        let vsock_device = self.start_vsock_device(programs.vsock_device).await?;
        match self.start_vmm(spec, programs.qemu, &vsock_device).await {
            Ok(vmm) => Ok((vmm, vsock_device)),
            Err(error) => {
                vsock_device.kill();
                vsock_device.ended().await;
                Err(error)
            }
        }
    }

    async fn start_vsock_device(&mut self, program: PathBuf) -> Result<Process, BootError> {
        let cid = GUEST_CID.to_string();
        let arguments = [
            "--guest-cid",
            &cid,
            "--socket",
            run_dir::DEVICE_SOCKET,
            "--uds-path",
            run_dir::GUEST_SOCKET,
        ];
        let launch = Launch {
            program,
            arguments: arguments.map(Into::into).into(),
            // Its paths are relative: it need not reach the directories above.
            current_dir: run_dir::vsock_dir(&self.dir),
            output: self.copy_of(&self.ends.writer)?,
            pass: vec![self.copy_of(&self.ends.keeper)?.into()],
            user: self.user,
            group: None,
        };
        self.start(programs::VSOCK_DEVICE, launch, |record, identity| {
            record.vsock_device = Some(identity);
        })
        .await
    }

    async fn start_vmm(
        &mut self,
        spec: VmSpec,
        program: PathBuf,
        vsock_device: &Process,
    ) -> Result<Process, BootError> {
        let kernel = open_for_everyone(&spec.kernel.kernel, self.user)?;
        let initramfs = open_for_everyone(&spec.kernel.initramfs, self.user)?;
        let mut disks = Vec::new();
        for disk in &spec.disks {
            let opened: OwnedFd = OpenOptions::new()
                .read(true)
                .write(!disk.read_only)
                .open(&disk.path)
                .map_err(file("open", &disk.path))?
                .into();
            disks.push((opened, disk.read_only));
        }
        let monitor: OwnedFd = run_dir::bind(&self.dir, "qmp.sock")
            .map_err(file("bind", &run_dir::qmp_socket(&self.dir)))?
            .into();
        let console: OwnedFd = self.copy_of(&self.ends.writer)?.into();
        let vsock = self.connect_vsock(vsock_device).await?;
        let tsc_khz = blocking(|| Ok(tsc::khz())).await.unwrap_or_default();
        let line = CommandLine {
            instance: spec.instance,
            driver: spec.driver,
            machine: spec.kernel.machine,
            vcpus: spec.vcpus,
            memory_mib: spec.memory_bytes / MIB,
            kernel: number(&kernel),
            initramfs: number(&initramfs),
            boot_arguments: boot_arguments(spec.driver, tsc_khz),
            disks: disks.iter().map(|(fd, ro)| (number(fd), *ro)).collect(),
            nic: spec.nic.as_ref().map(|nic| (number(&nic.tap), nic.mac)),
            vsock: number(&vsock),
            monitor: number(&monitor),
            console: number(&console),
        };
        let mut pass = vec![kernel, initramfs, monitor, console, vsock];
        pass.extend(disks.into_iter().map(|(fd, _)| fd));
        pass.extend(spec.nic.map(|nic| nic.tap));
        pass.push(self.copy_of(&self.ends.keeper)?.into());
        let launch = Launch {
            program,
            arguments: line.arguments(),
            current_dir: PathBuf::from("/"),
            output: self.copy_of(&self.ends.writer)?,
            pass,
            user: self.user,
            group: match spec.driver {
                Driver::QemuKvm => kvm_group(),
                Driver::QemuTcg => None,
            },
        };
        self.start(programs::QEMU, launch, |record, identity| {
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
        let exe = launch.program.clone();
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
            Err(error) => Err(wrong(error)),
        }
    }

    /// Connects to the vsock device as soon as it listens.
    async fn connect_vsock(&self, device: &Process) -> Result<OwnedFd, BootError> {
        let dir = run_dir::vsock_dir(&self.dir);
        let give_up = Instant::now() + VSOCK_TIMEOUT;
        loop {
            let error = match run_dir::connect(&dir, run_dir::DEVICE_SOCKET) {
                Ok(stream) => return Ok(stream.into()),
                Err(error) => error,
            };
            let what = if Instant::now() >= give_up {
                format!(
                    "did not listen within {} s ({error})",
                    VSOCK_TIMEOUT.as_secs()
                )
            } else if let Ok(exit) = tokio::time::timeout(VSOCK_POLL, device.ended()).await {
                format!("ended at once ({exit:?})")
            } else {
                continue;
            };
            return Err(BootError::VsockDevice {
                what,
                said: console_tail(&self.dir),
            });
        }
    }

    fn copy_of(&self, file: &File) -> Result<File, BootError> {
        file.try_clone()
            .map_err(self::file("open", &console::fifo(&self.dir)))
    }
}

fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BootError {
    let path = path.to_owned();
    move |source| BootError::File {
        operation,
        path,
        source,
    }
}

/// The VMM opens it again, as its own user, by the number of ours: the way there need not be open
/// to that user, the file must be.
fn open_for_everyone(path: &Path, user: Option<u32>) -> Result<OwnedFd, BootError> {
    let opened = File::open(path).map_err(file("open", path))?;
    let mode = opened.metadata().map_err(file("examine", path))?.mode();
    if user.is_some() && mode & 0o004 == 0 {
        return Err(BootError::NotWorldReadable(path.to_owned()));
    }
    Ok(opened.into())
}

fn kvm_group() -> Option<u32> {
    let metadata = std::fs::metadata("/dev/kvm").ok()?;
    (metadata.mode() & 0o060 == 0o060).then(|| metadata.gid())
}

async fn blocking<T, W>(work: W) -> io::Result<T>
where
    T: Send + 'static,
    W: FnOnce() -> io::Result<T> + Send + 'static,
{
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}
