//! What all instances of this node share: images, network, driver, clock, folders.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::node::EgressState;
use api_client::ApiClient;
use guest_protocol::HOST_PORT;
use microvm::{AdoptError, Disk, DriverKind, GuestKernel, MAX_VCPUS, Nic, Vm, VmSpec};
use model::instance::InstanceSpec;
use model::{InstanceId, Timestamp};
use node_core::boot::NodeFacts;
use node_core::instance::Timing;
use node_network::{Endpoint, Network, NetworkError};
use overlay::address_plan::egress_address;
use tokio::net::UnixListener;
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::Instant;

use crate::images::Images;
use crate::streams::Directory;
use crate::volumes::Volumes;
use display::chain;

/// What all instances share.
#[derive(Debug)]
pub(crate) struct Machine {
    /// To the server, which may be away.
    pub(crate) server: ApiClient,
    pub(crate) images: Images,
    pub(crate) volumes: Volumes,
    pub(crate) directory: Directory,
    pub(crate) facts: NodeFacts,
    pub(crate) timing: Timing,
    pub(crate) clock: Clock,
    /// Notified when something that is reported has changed.
    pub(crate) changed: Notify,
    pub(crate) network: Network,
    /// Whether instances reach the world outside of the cluster, as last seen.
    pub(crate) egress: watch::Sender<Option<EgressState>>,
    /// Who may use the network; the rules are made from this, whole.
    pub(crate) admitted: Mutex<BTreeMap<InstanceId, Ipv6Addr>>,
    pub(crate) driver: DriverKind,
    pub(crate) kernel: GuestKernel,
    pub(crate) data_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
}

impl Machine {
    /// Where an instance's record, log and scratch disk are.
    pub(crate) fn instance_dir(&self, id: InstanceId) -> PathBuf {
        instances_dir(&self.data_dir).join(id.to_string())
    }

    fn vm_dir(&self, id: InstanceId) -> PathBuf {
        self.run_dir.join(id.to_string())
    }

    /// Listens where the instance's guest will dial.
    pub(crate) fn listen_for_guest(&self, id: InstanceId) -> Result<UnixListener, String> {
        microvm::listen_for_guest(&self.vm_dir(id), HOST_PORT)
            .map_err(|error| format!("cannot listen for the guest of {id}: {}", chain(&error)))
    }

    /// The running VM of an instance, if there is one.
    pub(crate) async fn adopt(&self, id: InstanceId) -> Result<Option<Vm>, AdoptError> {
        Vm::adopt(&self.vm_dir(id)).await
    }

    /// Boots the VM of an instance: `/dev/vda` is the root disk, then come `own`, its own disks:
    /// `/dev/vdb` is scratch, then the volumes. A failure says whether trying again may help, and why.
    pub(crate) async fn boot(
        &self,
        spec: &InstanceSpec,
        root: PathBuf,
        own: Vec<PathBuf>,
    ) -> Result<Vm, (bool, String)> {
        let tap = self
            .network
            .create_tap(&endpoint(spec.id, spec.address))
            .await
            .map_err(|error| {
                let cause = chain(&error);
                (true, format!("cannot make the tap of {}: {cause}", spec.id))
            })?;
        self.enter_network(spec.id, spec.address)
            .await
            .map_err(|error| {
                let cause = chain(&error);
                (
                    true,
                    format!("cannot admit {} to the network: {cause}", spec.id),
                )
            })?;
        let mut disks = vec![Disk {
            path: root,
            read_only: true,
        }];
        disks.extend(own.into_iter().map(|path| Disk {
            path,
            read_only: false,
        }));
        let vm = VmSpec {
            instance: spec.id,
            run_dir: self.vm_dir(spec.id),
            driver: self.driver,
            kernel: self.kernel.for_disks(self.driver, disks.len()),
            vcpus: spec.cpu_millis.div_ceil(1000).clamp(1, MAX_VCPUS),
            cpu_millis: spec.cpu_millis,
            memory_bytes: spec.memory_bytes,
            disks,
            nic: Some(Nic {
                tap: tap.fd,
                mac: tap.mac,
            }),
        };
        microvm::boot(vm)
            .await
            .map_err(|error| (error.is_transient(), chain(&error)))
    }

    async fn enter_network(&self, id: InstanceId, address: Ipv6Addr) -> Result<(), NetworkError> {
        let mut admitted = self.admitted.lock().await;
        if admitted.insert(id, address) == Some(address) {
            return Ok(());
        }
        self.apply_rules(&admitted).await
    }

    /// Takes an instance that has no VM any more out of the rules.
    pub(crate) async fn leave_network(&self, id: InstanceId) {
        let mut admitted = self.admitted.lock().await;
        if admitted.remove(&id).is_none() {
            return;
        }
        if self.driver.leaves_tap()
            && let Err(error) = self.network.release(id).await
        {
            tracing::warn!(instance = %id, error = chain(&error), "cannot remove the tap");
        }
        // The next change of the rules takes it out as well; until then its address leads nowhere.
        if let Err(error) = self.apply_rules(&admitted).await {
            tracing::warn!(instance = %id, error = chain(&error), "cannot update the rules");
        }
    }

    pub(crate) async fn apply_rules(
        &self,
        admitted: &BTreeMap<InstanceId, Ipv6Addr>,
    ) -> Result<(), NetworkError> {
        let whole: Vec<_> = admitted
            .iter()
            .map(|(id, address)| endpoint(*id, *address))
            .collect();
        self.network.apply_rules(&whole).await
    }

    /// Removes the sockets and the console of a VM that ended.
    pub(crate) fn remove_run_dir(&self, id: InstanceId) {
        if let Err(error) = microvm::remove_run_dir(&self.vm_dir(id)) {
            tracing::warn!(%error, instance = %id, "cannot remove the run folder");
        }
    }
}

/// An instance as the network knows it.
fn endpoint(instance: InstanceId, address: Ipv6Addr) -> Endpoint {
    Endpoint {
        instance,
        address,
        ipv4: egress_address(instance),
    }
}

/// Where instances are kept, in a node's data folder.
pub(crate) fn instances_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("instances")
}

/// The node's time: the wall clock as it was when the agent started, and monotonic since, so that a
/// clock that jumps moves no timer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    wall: Timestamp,
    start: Instant,
}

impl Clock {
    /// Starts now.
    pub(crate) fn start() -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let wall = Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        Self {
            wall,
            start: Instant::now(),
        }
    }

    /// Now.
    pub(crate) fn now(&self) -> Timestamp {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        Timestamp(self.wall.0.saturating_add(elapsed))
    }

    /// When this time will be, for the runtime's timers; a time of before the start is now.
    pub(crate) fn instant(&self, at: Timestamp) -> Instant {
        self.start + Duration::from_millis(at.millis_since(self.wall))
    }
}
