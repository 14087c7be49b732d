//! What every driver does: start the processes of a VM, and give the connection by which its VMM is asked.
//!
//! [`Driver`] has two implementations, `qemu` and `firecracker`; `drivers` gives the one of a
//! [`crate::DriverKind`]. A driver knows a boot under way ([`Boot`]) and nothing of the VM that comes of it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use blocking_work::blocking;
use process_handle::{Identity, Process};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::cgroup::Cgroup;
use crate::denial::{self, Denial};
use crate::monitor::{Answer, Monitor};
use crate::record::Record;
use crate::spawn::{self, Launch};
use crate::{BootError, VmSpec, console, programs, run_dir};

/// The guest's context id. Each vsock device serves one guest, so all have the same.
pub(crate) const GUEST_CID: u32 = 3;

/// A VMM and how it is started and asked.
pub(crate) trait Driver: std::fmt::Debug + Send + Sync {
    /// Starts the processes of a VM. When a later one fails, the earlier ones are ended.
    fn start<'a>(
        &'a self,
        boot: &'a mut Boot,
        spec: VmSpec,
    ) -> Answer<'a, Result<Started, BootError>>;

    /// The VMM of a run directory, to be asked about its guest.
    fn monitor(&self, run_dir: &Path) -> Box<dyn Monitor>;

    /// Whether the vsock device is a process beside the VMM. Neither of the two outlives the other.
    fn has_vsock_process(&self) -> bool;
}

/// The processes that a driver has started.
pub(crate) struct Started {
    pub(crate) vmm: Process,
    /// Present where [`Driver::has_vsock_process`].
    pub(crate) vsock_device: Option<Process>,
}

/// A boot under way, as a driver finds it prepared.
pub(crate) struct Boot {
    pub(crate) record: Record,
    pub(crate) cgroup: Option<Cgroup>,
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
    ///
    /// All of it is one piece of blocking work. A child that waits for its release has inherited the descriptors by which
    /// other threads wait for the programs that they start: were its release to wait for one of these threads, neither
    /// would go on.
    async fn start(
        &mut self,
        program: &'static str,
        launch: Launch,
        note: fn(&mut Record, Identity),
    ) -> Result<Process, BootError> {
        let (mut record, cgroup, dir) = (self.record.clone(), self.cgroup.take(), self.dir.clone());
        let (started, record, cgroup) = blocking(move || {
            let started = start_recorded(program, launch, cgroup.as_ref(), &dir, &mut record, note);
            (started, record, cgroup)
        })
        .await;
        (self.record, self.cgroup) = (record, cgroup);
        started
    }

    pub(crate) fn copy_of(&self, file: &File) -> Result<File, BootError> {
        file.try_clone()
            .map_err(self::file("open", &run_dir::console_fifo(&self.dir)))
    }
}

/// Forks the child, puts it into its cgroup and its identity into the record, and releases it. Blocks.
fn start_recorded(
    program: &'static str,
    launch: Launch,
    cgroup: Option<&Cgroup>,
    dir: &Path,
    record: &mut Record,
    note: fn(&mut Record, Identity),
) -> Result<Process, BootError> {
    let wrong = |source| BootError::Start { program, source };
    let exe = launch.exe.clone();
    let path = launch.program.clone();
    let waiting = spawn::start(launch).map_err(wrong)?;
    if let Some(cgroup) = cgroup {
        cgroup.add_process(waiting.pid).map_err(wrong)?;
    }
    let identity = Identity {
        pid: waiting.pid,
        start_time: process_handle::start_time(waiting.pid).map_err(wrong)?,
        exe,
    };
    note(record, identity);
    let written = record.write(dir);
    written.map_err(file("write", &run_dir::record(dir)))?;
    let process = Process::hold(waiting.pid).map_err(wrong)?;
    match waiting.release() {
        Ok(()) => Ok(process),
        Err(source) if source.raw_os_error() == Some(libc::EACCES) => Err(BootError::Forbidden {
            operation: "start",
            denial: denial::to_execution(&path).unwrap_or(Denial::Unseen),
            path,
            source,
        }),
        Err(error) => Err(wrong(error)),
    }
}

pub(crate) fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BootError {
    let path = path.to_owned();
    move |source| match source.raw_os_error() {
        Some(libc::EACCES) => BootError::Forbidden {
            operation,
            denial: denial::to_opening(&path),
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

/// A file that a VMM opens again by its name, as its own user: it must be readable by everyone.
///
/// # Errors
/// The file cannot be opened, or the VM's user may not read it.
pub(crate) fn check_readable(path: &Path, user: Option<u32>) -> Result<(), BootError> {
    match open_readable(path, user)? {
        (_, true) => Ok(()),
        (_, false) => Err(BootError::NotReadableByAll(path.to_owned())),
    }
}

/// Opens a file that a VMM opens again by descriptor, as its own user. The folders above may be closed to that
/// user. When the file is closed to it as well, this is a copy in memory, which lives as long as the VM.
///
/// # Errors
/// The file cannot be opened or copied.
pub(crate) fn open_for_user(path: &Path, user: Option<u32>) -> Result<OwnedFd, BootError> {
    let (mut opened, readable) = open_readable(path, user)?;
    if readable {
        return Ok(opened.into());
    }
    tracing::warn!(
        path = %path.display(),
        "each VM holds a copy of this file in memory, because its user may not read it; hint: chmod a+r"
    );
    let copy = memfd_create("guest", MemfdFlags::CLOEXEC)
        .map_err(io::Error::from)
        .and_then(|copy| {
            let mut copy = File::from(copy);
            io::copy(&mut opened, &mut copy)?;
            Ok(copy)
        });
    Ok(copy.map_err(file("copy", path))?.into())
}

/// Opens a file, and says whether the VM's user may read it.
fn open_readable(path: &Path, user: Option<u32>) -> Result<(File, bool), BootError> {
    let opened = File::open(path).map_err(file("open", path))?;
    let mode = opened.metadata().map_err(file("examine", path))?.mode();
    Ok((opened, user.is_none() || mode & 0o004 != 0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::io::{Read as _, Seek as _};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_that_the_vms_user_may_not_read_is_copied_for_qemu_and_named_for_firecracker() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("initramfs");
        std::fs::write(&path, "initramfs").unwrap();
        let set_mode = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set_mode(0o644);
        check_readable(&path, Some(7)).unwrap();
        set_mode(0o600);
        check_readable(&path, None).unwrap();
        let error = check_readable(&path, Some(7)).unwrap_err();
        assert!(!error.is_transient());
        assert!(
            error
                .to_string()
                .contains(&format!("chmod a+r {}", path.display()))
        );
        let mut copy = File::from(open_for_user(&path, Some(7)).unwrap());
        assert!(copy.metadata().unwrap().mode() & 0o004 != 0);
        copy.rewind().unwrap();
        let mut text = String::new();
        copy.read_to_string(&mut text).unwrap();
        assert_eq!(text, "initramfs");
    }

    /// Programs that the runtime's only thread starts meanwhile: each start waits until no other process has its
    /// descriptors, so also until a child of ours that waits for its release has executed.
    #[test]
    fn a_process_is_released_while_the_runtimes_threads_start_programs() {
        const STARTS: usize = 500;
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .worker_threads(1)
                .build()
                .unwrap();
            runtime.block_on(async {
                let other = tokio::spawn(async {
                    loop {
                        // With a PATH of its own it is forked, and its exec is waited for.
                        let mut command = std::process::Command::new("true");
                        command.env("PATH", "/usr/bin:/bin");
                        command.spawn().unwrap().wait().unwrap();
                        tokio::task::yield_now().await;
                    }
                });
                for _ in 0..STARTS {
                    let started = tokio::spawn(start_true()).await.unwrap();
                    started.unwrap();
                }
                other.abort();
            });
            done.send(()).unwrap();
        });
        let released = is_done.recv_timeout(std::time::Duration::from_secs(60));
        released.expect("a child was never released");
    }

    async fn start_true() -> Result<Process, BootError> {
        let dir = tempfile::tempdir().unwrap();
        let ends = console::make(dir.path()).unwrap();
        let launch = Launch {
            program: "/bin/true".into(),
            exe: "/bin/true".into(),
            arguments: Vec::new(),
            current_dir: "/".into(),
            output: ends.writer.try_clone().unwrap(),
            pass: Vec::new(),
            user: None,
            group: None,
            prepare: None,
        };
        let boot_id = process_handle::boot_id().unwrap();
        let instance = model::InstanceId(1);
        let mut boot = Boot {
            record: Record::new(boot_id, instance, crate::DriverKind::QemuTcg, None),
            cgroup: None,
            user: None,
            ends,
            dir: dir.path().to_owned(),
        };
        boot.start_vmm("true", launch).await
    }
}
