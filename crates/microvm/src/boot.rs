//! Boots a VM: what all drivers have in common.

use std::io;
use std::sync::atomic::AtomicBool;

use blocking_work::blocking;

use crate::cgroup::Cgroup;
use crate::console::{self, Pump};
use crate::driver::{Boot, Started, file};
use crate::record::Record;
use crate::vm::{Processes, finish};
use crate::{BootError, HowEnded, Vm, VmSpec, drivers, programs, run_dir, spawn};

/// Boots a VM, and returns as soon as its VMM runs. The guest says itself whether it came up: the caller
/// listens for it by [`crate::listen_for_guest`] before. A VMM that ends at once has its output in
/// [`Vm::ended`].
///
/// A caller that is cancelled meanwhile leaves nothing behind: the VM is ended again.
///
/// # Errors
/// See [`BootError`]; nothing is left running then.
pub async fn boot(spec: VmSpec) -> Result<Vm, BootError> {
    let (answer, answered) = tokio::sync::oneshot::channel();
    // In a task of its own: it goes on to the end when the caller is cancelled.
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
    let driver = spec.driver;
    blocking(move || crate::check_programs(driver)).await?;
    if let Some(vm) = Vm::adopt(&spec.run_dir).await?
        && vm.has_ended().is_none()
    {
        return Err(BootError::AlreadyRunning {
            run_dir: spec.run_dir,
        });
    }
    let (spec, mut boot, pump) = blocking(move || {
        let (boot, pump) = prepare(&spec)?;
        Ok::<_, BootError>((spec, boot, pump))
    })
    .await?;
    let driver = drivers::of(spec.driver);
    let started = driver.start(&mut boot, spec).await;
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
            driver,
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
            finish(HowEnded::Killed, &dir, cgroup, Some(pump)).await;
            Err(error)
        }
    }
}

/// Makes the run directory, the console and the cgroup. Blocks; the caller has entered the runtime.
fn prepare(spec: &VmSpec) -> Result<(Boot, Pump), BootError> {
    let dir = spec.run_dir.clone();
    let user = spawn::user_of(spec.instance);
    run_dir::make_dirs(&dir).map_err(file("make", &dir))?;
    if let Some(user) = user {
        run_dir::give_sockets(&dir, user).map_err(file("hand over", &dir))?;
    }
    let ends = console::make(&dir).map_err(file("make", &run_dir::console_fifo(&dir)))?;
    let pump = Pump::start(&dir).map_err(file("open", &run_dir::console_fifo(&dir)))?;
    let boot_id = process_handle::boot_id().map_err(file("read", &dir))?;
    let memory_bytes = spec.memory_bytes + spec.driver.memory_overhead_bytes();
    let cgroup = Cgroup::make(spec.instance, memory_bytes, spec.cpu_millis);
    let record = Record::new(
        boot_id,
        spec.instance,
        spec.driver,
        cgroup.as_ref().map(|cgroup| cgroup.path().to_owned()),
    );
    let boot = Boot {
        record,
        cgroup,
        user,
        ends,
        dir,
    };
    Ok((boot, pump))
}
