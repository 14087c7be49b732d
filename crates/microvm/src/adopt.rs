//! Finds the VM of a run directory again, after a restart of the agent.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use blocking_work::blocking;
use process_handle::{Identity, Process};

use crate::cgroup::Cgroup;
use crate::console::Pump;
use crate::record::Record;
use crate::vm::{Processes, finish};
use crate::{AdoptError, HowEnded, Vm, drivers, run_dir};

impl Vm {
    /// The VM that was booted in this run directory, running or ended. Nothing when there was none, or when
    /// its boot had not started the VMM: the processes that it had started are ended.
    ///
    /// When only one of QEMU's two processes is left, it is killed, and the VM is given as ended.
    ///
    /// # Errors
    /// The record or a process cannot be examined: the VM may run, and nothing was killed. A caller must not
    /// take this for an absent VM.
    pub async fn adopt(run_dir: &Path) -> Result<Option<Self>, AdoptError> {
        let dir = run_dir.to_owned();
        let Some(record) = blocking(move || read_or_clear(&dir)).await? else {
            return Ok(None);
        };
        let boot_id = process_handle::boot_id()
            .map_err(file("read", "/proc/sys/kernel/random/boot_id".into()))?;
        let same_boot = record.boot_id == boot_id;
        let vsock_device = find(record.vsock_device.as_ref().filter(|_| same_boot)).await?;
        let vmm = find(record.vmm.as_ref().filter(|_| same_boot)).await?;
        let cgroup = record.cgroup.clone().map(Cgroup::at);
        // Before anything is killed: what the FIFO holds goes with its last holder.
        let dir = run_dir.to_owned();
        let pump = match blocking(move || Pump::start(&dir)).await {
            Ok(pump) => Some(pump),
            Err(error) => {
                tracing::debug!(%error, run_dir = %run_dir.display(), "console is gone");
                None
            }
        };
        let driver = drivers::of(record.driver);
        let (vmm, vsock_device) = match (vmm, vsock_device) {
            (Some(vmm), vsock_device) if vsock_device.is_some() || !driver.has_vsock_process() => {
                let processes = Processes {
                    vmm,
                    vsock_device,
                    cgroup,
                    killed: AtomicBool::new(false),
                };
                return Ok(Some(Self::watch(
                    record.instance,
                    driver,
                    run_dir.to_owned(),
                    processes,
                    pump,
                )));
            }
            others => others,
        };
        let how = if vmm.is_some() {
            HowEnded::VsockLost
        } else {
            HowEnded::Unknown
        };
        for process in [&vmm, &vsock_device].into_iter().flatten() {
            process.kill();
            process.ended().await;
        }
        let end = finish(how, run_dir, cgroup, pump).await;
        Ok(record
            .vmm
            .is_some()
            .then(|| Self::ended_already(record.instance, run_dir.to_owned(), end)))
    }
}

/// The record; without one, the leftovers of a boot that did not come that far are removed. Blocks.
fn read_or_clear(run_dir: &Path) -> Result<Option<Record>, AdoptError> {
    let record = Record::read(run_dir)?;
    if record.is_none() && run_dir.exists() {
        run_dir::clear(run_dir).map_err(file("clear", run_dir.to_owned()))?;
    }
    Ok(record)
}

fn file(operation: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> AdoptError {
    move |source| AdoptError::File {
        operation,
        path,
        source,
    }
}

async fn find(identity: Option<&Identity>) -> Result<Option<Process>, AdoptError> {
    let Some(identity) = identity else {
        return Ok(None);
    };
    Process::find(identity)
        .await
        .map_err(|source| AdoptError::Process {
            pid: identity.pid,
            source,
        })
}
