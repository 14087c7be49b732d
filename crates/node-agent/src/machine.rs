//! What all instances of this node share: the host, the network's members, the clock.

use std::path::{Path, PathBuf};

use api::enrollment::NodeDisk;
use api::node::EgressState;
use microvm::Nic;
use model::InstanceId;
use model::instance::InstanceSpec;
use node_core::boot::NodeFacts;
use node_core::instance::Timing;
use node_network::Endpoint;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::boots::BootSlots;
use crate::clock::Clock;
use crate::directory::Directory;
use crate::holders::VolumeHolders;
use crate::host::{Host, HostResult, endpoint};
use crate::metrics::NodeMetrics;

/// What all instances share.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) host: Host,
    pub(crate) metrics: NodeMetrics,
    pub(crate) holders: VolumeHolders,
    pub(crate) directory: Directory,
    pub(crate) facts: NodeFacts,
    /// The MTU of the cluster as it is now, in bytes; that of `facts` is the one of the agent's start.
    pub(crate) mtu: watch::Receiver<u32>,
    pub(crate) timing: Timing,
    pub(crate) clock: Clock,
    /// Notified when something that is reported has changed.
    pub(crate) changed: Notify,
    /// The disk, as the server is told; absent: it could not be measured yet.
    pub(crate) disk: watch::Sender<Option<NodeDisk>>,
    /// Notified when a guest's disk could not grow.
    pub(crate) disk_full: Notify,
    /// Whether instances reach the internet, as last observed.
    pub(crate) egress: watch::Sender<Option<EgressState>>,
    pub(crate) admission: Admission,
    /// How many VMs boot at a time.
    pub(crate) boots: BootSlots,
    /// Cancelled once every instance of the agent before this one is known and admitted: until then a
    /// resumed instance does nothing, because it could change rules that lack the others.
    pub(crate) resumed: CancellationToken,
    pub(crate) data_dir: PathBuf,
}

impl Machine {
    /// The folder of an instance's record, log and scratch disk.
    pub(crate) fn instance_dir(&self, id: InstanceId) -> PathBuf {
        instances_dir(&self.data_dir).join(id.to_string())
    }

    /// What a guest that boots now learns about this node.
    pub(crate) fn facts_now(&self) -> NodeFacts {
        NodeFacts {
            mtu: *self.mtu.borrow(),
            ..self.facts.clone()
        }
    }

    /// Makes the tap of an instance and admits the instance to the network.
    pub(crate) async fn enter_network(&self, spec: &InstanceSpec) -> HostResult<Nic> {
        let endpoint = endpoint(spec);
        let nic = self.host.network.create_tap(endpoint.clone()).await?;
        self.admit([endpoint]).await?;
        Ok(nic)
    }

    /// Admits instances to the network, without touching their taps.
    pub(crate) async fn admit(
        &self,
        instances: impl IntoIterator<Item = Endpoint>,
    ) -> HostResult<()> {
        self.admission.admit(&*self.host.network, instances).await
    }

    /// Takes an instance that has no VM any more out of the rules.
    pub(crate) async fn leave_network(&self, id: InstanceId) {
        if self.host.vmm.leaves_tap()
            && let Err(error) = self.host.network.release(id).await
        {
            tracing::warn!(instance = %id, %error, "cannot release the tap");
        }
        if let Err(error) = self.admission.remove(&*self.host.network, id).await {
            tracing::warn!(instance = %id, %error, "cannot update the rules");
        }
    }
}

/// The folder of the instances, in a node's data folder.
pub(crate) fn instances_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("instances")
}
