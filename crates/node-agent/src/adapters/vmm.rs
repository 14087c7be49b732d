//! microVMs of this machine's driver.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use guest_protocol::HOST_PORT;
use microvm::{Disk, DriverKind, GuestKernel, MAX_VCPUS, VmHealth, VmSpec};
use model::InstanceId;
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::host::{GuestListener, GuestStream, HostError, HostResult, Vm, VmRequest, Vmm};
use blocking_work::blocking;
use display::chain;

/// The VMs of this node.
#[derive(Debug)]
pub(crate) struct MicroVms {
    pub(crate) driver: DriverKind,
    pub(crate) kernel: GuestKernel,
    /// Sockets and records of running VMs, a folder for each instance.
    pub(crate) run_dir: PathBuf,
}

impl MicroVms {
    fn vm_dir(&self, id: InstanceId) -> PathBuf {
        self.run_dir.join(id.to_string())
    }
}

impl Vmm for MicroVms {
    fn leaves_tap(&self) -> bool {
        self.driver.leaves_tap()
    }

    fn boot(&self, vm: VmRequest) -> BoxFuture<'_, HostResult<Box<dyn Vm>>> {
        let mut disks = vec![Disk {
            path: vm.root,
            read_only: true,
        }];
        disks.extend(vm.disks.into_iter().map(|path| Disk {
            path,
            read_only: false,
        }));
        let mut spec = VmSpec {
            instance: vm.instance,
            run_dir: self.vm_dir(vm.instance),
            driver: self.driver,
            kernel: self.kernel.clone(),
            vcpus: vm.cpu_millis.div_ceil(1000).clamp(1, MAX_VCPUS),
            cpu_millis: vm.cpu_millis,
            memory_bytes: vm.memory_bytes,
            disks,
            nic: Some(vm.nic),
        };
        async move {
            let spec = blocking(move || {
                spec.kernel = spec.kernel.for_disks(spec.driver, spec.disks.len());
                spec
            });
            match microvm::boot(spec.await).await {
                Ok(vm) => Ok(Box::new(MicroVm(vm)) as Box<dyn Vm>),
                Err(error) => Err(HostError {
                    transient: error.is_transient(),
                    reason: chain(&error),
                }),
            }
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, HostResult<Vec<InstanceId>>> {
        let dir = self.run_dir.clone();
        blocking(move || {
            microvm::recorded(&dir).map_err(|error| {
                HostError::transient(format!("cannot list {}: {error}", dir.display()))
            })
        })
        .boxed()
    }

    fn adopt(&self, id: InstanceId) -> BoxFuture<'_, HostResult<Option<Box<dyn Vm>>>> {
        async move {
            match microvm::Vm::adopt(&self.vm_dir(id)).await {
                Ok(vm) => Ok(vm.map(|vm| Box::new(MicroVm(vm)) as Box<dyn Vm>)),
                Err(error) => Err(HostError::transient(chain(&error))),
            }
        }
        .boxed()
    }

    fn listen(&self, id: InstanceId) -> BoxFuture<'_, HostResult<Box<dyn GuestListener>>> {
        async move {
            let dir = self.vm_dir(id);
            match blocking(move || microvm::listen_for_guest(&dir, HOST_PORT)).await {
                Ok(listener) => Ok(Box::new(UnixGuestListener(listener)) as Box<dyn GuestListener>),
                Err(error) => Err(HostError::transient(format!(
                    "cannot listen for the guest of {id}: {error}"
                ))),
            }
        }
        .boxed()
    }

    fn remove(&self, id: InstanceId) -> BoxFuture<'_, HostResult<()>> {
        let dir = self.vm_dir(id);
        blocking(move || {
            microvm::remove_run_dir(&dir).map_err(|error| {
                HostError::transient(format!("cannot remove {}: {error}", dir.display()))
            })
        })
        .boxed()
    }
}

#[derive(Debug)]
struct MicroVm(microvm::Vm);

impl Vm for MicroVm {
    fn ended(&self) -> BoxFuture<'_, String> {
        async move { self.0.ended().await.how.to_string() }.boxed()
    }

    fn kill(&self) -> BoxFuture<'_, ()> {
        async move {
            self.0.kill().await;
        }
        .boxed()
    }

    fn health(&self) -> watch::Receiver<VmHealth> {
        self.0.health()
    }

    fn waited(&self) -> BoxFuture<'_, Option<Duration>> {
        let vm = self.0.clone();
        blocking(move || vm.waited_for_processors()).boxed()
    }
}

/// The Unix socket that a guest's connections come in on.
#[derive(Debug)]
pub(crate) struct UnixGuestListener(pub(crate) UnixListener);

impl GuestListener for UnixGuestListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Box<dyn GuestStream>>> {
        async move {
            let (stream, _) = self.0.accept().await?;
            Ok(Box::new(stream) as Box<dyn GuestStream>)
        }
        .boxed()
    }
}
