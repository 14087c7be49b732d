//! The QEMU driver: two processes, whose files and sockets are opened before they start and handed over by
//! number.

mod command_line;
mod qmp;

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blocking_work::blocking;
use process_handle::Process;
use tokio::time::Instant;

use self::command_line::CommandLine;
use crate::driver::{Boot, Driver, GUEST_CID, Started, file, open_for_user};
use crate::kernel::boot_arguments;
use crate::monitor::{Answer, Monitor};
use crate::programs::{self, QemuPrograms};
use crate::spawn::{Launch, number};
use crate::view::View;
use crate::{BootError, DriverKind, VmSpec, console, run_dir, tsc};

/// Longest wait until the vsock device listens.
const VSOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two tries.
const VSOCK_POLL: Duration = Duration::from_millis(2);
const MIB: u64 = 1024 * 1024;

/// QEMU, with KVM or TCG as the spec says.
#[derive(Debug)]
pub(crate) struct Qemu;

impl Driver for Qemu {
    fn start<'a>(
        &'a self,
        boot: &'a mut Boot,
        spec: VmSpec,
    ) -> Answer<'a, Result<Started, BootError>> {
        Box::pin(start(boot, spec))
    }

    fn monitor(&self, run_dir: &Path) -> Box<dyn Monitor> {
        Box::new(qmp::Qmp::new(run_dir))
    }

    fn has_vsock_process(&self) -> bool {
        true
    }
}

/// Starts both processes; when the second fails, the first is ended.
async fn start(boot: &mut Boot, spec: VmSpec) -> Result<Started, BootError> {
    let programs = blocking(QemuPrograms::find).await?;
    let vsock_device = start_vsock_device(boot, programs.vsock_device).await?;
    match start_vmm(boot, spec, programs.qemu, &vsock_device).await {
        Ok(vmm) => Ok(Started {
            vmm,
            vsock_device: Some(vsock_device),
        }),
        Err(error) => {
            vsock_device.kill();
            vsock_device.ended().await;
            Err(error)
        }
    }
}

async fn start_vsock_device(boot: &mut Boot, program: PathBuf) -> Result<Process, BootError> {
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
        exe: program.clone(),
        // blocks: the starting thread enters it
        prepare: View::of_vsock_device(&boot.dir, &program).prepare(boot.user),
        program,
        arguments: arguments.map(Into::into).into(),
        // Its paths are relative, so the directories above may be closed to it.
        current_dir: run_dir::vsock_dir(&boot.dir),
        output: boot.copy_of(&boot.ends.writer)?,
        pass: vec![boot.copy_of(&boot.ends.keeper)?.into()],
        user: boot.user,
        group: None,
    };
    boot.start_vsock_device(launch).await
}

async fn start_vmm(
    boot: &mut Boot,
    spec: VmSpec,
    program: PathBuf,
    vsock_device: &Process,
) -> Result<Process, BootError> {
    let (dir, user) = (boot.dir.clone(), boot.user);
    let (spec, opened) = blocking(move || {
        let opened = Opened::open(&spec, &dir, user)?;
        Ok::<_, BootError>((spec, opened))
    })
    .await?;
    let Opened {
        kernel,
        initramfs,
        disks,
        monitor,
        kvm_group,
        tsc_khz,
    } = opened;
    let console: OwnedFd = boot.copy_of(&boot.ends.writer)?.into();
    let vsock = connect_vsock(&boot.dir, vsock_device).await?;
    let machine = spec.kernel.machine;
    let line = CommandLine {
        instance: spec.instance,
        driver: spec.driver,
        machine,
        vcpus: spec.vcpus,
        memory_mib: spec.memory_bytes / MIB,
        kernel: number(&kernel),
        initramfs: number(&initramfs),
        boot_arguments: boot_arguments(spec.driver, machine, tsc_khz),
        disks: disks.iter().map(|(fd, ro)| (number(fd), *ro)).collect(),
        nic: spec.nic.as_ref().map(|nic| (number(&nic.tap), nic.mac)),
        vsock: number(&vsock),
        monitor: number(&monitor),
        console: number(&console),
    };
    let mut pass = vec![kernel, initramfs, monitor, console, vsock];
    pass.extend(disks.into_iter().map(|(fd, _)| fd));
    pass.extend(spec.nic.map(|nic| nic.tap));
    pass.push(boot.copy_of(&boot.ends.keeper)?.into());
    let launch = Launch {
        exe: program.clone(),
        // blocks: the starting thread enters it
        prepare: View::of_vmm(&boot.dir, &program, spec.driver == DriverKind::QemuKvm)
            .prepare(boot.user),
        program,
        arguments: line.arguments(),
        current_dir: PathBuf::from("/"),
        output: boot.copy_of(&boot.ends.writer)?,
        pass,
        user: boot.user,
        group: match spec.driver {
            DriverKind::QemuKvm => kvm_group,
            _ => None,
        },
    };
    boot.start_vmm(programs::QEMU, launch).await
}

/// What QEMU is handed, and what its command line depends on.
struct Opened {
    kernel: OwnedFd,
    initramfs: OwnedFd,
    /// Each with whether it is read-only.
    disks: Vec<(OwnedFd, bool)>,
    monitor: OwnedFd,
    kvm_group: Option<u32>,
    tsc_khz: Option<u64>,
}

impl Opened {
    /// Blocks.
    fn open(spec: &VmSpec, dir: &Path, user: Option<u32>) -> Result<Self, BootError> {
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
        Ok(Self {
            kernel: open_for_user(&spec.kernel.kernel, user)?,
            initramfs: open_for_user(&spec.kernel.initramfs, user)?,
            disks,
            monitor: run_dir::bind(dir, "qmp.sock")
                .map_err(file("bind", &run_dir::qmp_socket(dir)))?
                .into(),
            kvm_group: kvm_group(),
            tsc_khz: tsc::khz(),
        })
    }
}

/// Connects to the vsock device as soon as it listens.
async fn connect_vsock(run_dir: &Path, device: &Process) -> Result<OwnedFd, BootError> {
    let dir = run_dir::vsock_dir(run_dir);
    let give_up = Instant::now() + VSOCK_TIMEOUT;
    loop {
        let connected = run_dir::connect(&dir, run_dir::DEVICE_SOCKET).await;
        // Handed over as a socket is by default: blocking. QEMU sets what it needs.
        let stream = connected.and_then(|stream| {
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            Ok(stream)
        });
        let error = match stream {
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
            output_tail: console::read_tail(run_dir).await,
        });
    }
}

fn kvm_group() -> Option<u32> {
    let metadata = std::fs::metadata("/dev/kvm").ok()?;
    (metadata.mode() & 0o060 == 0o060).then(|| metadata.gid())
}
