//! An instance as the agent has it: starts its task or resumes it, asks it to stop, and reads its status.

use std::sync::Arc;

use api::node::InstanceHolds;
use display::chain;
use model::instance::{InstanceSpec, InstanceState};
use model::{EnvKey, InstanceId, ProcessName, VolumeId};
use node_core::instance::{Event, Lifecycle};
use node_network::Endpoint;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::host::{ImagePin, endpoint};
use crate::instance_task::{InstanceStatus, InstanceTask};
use crate::machine::Machine;
use crate::record::{self, INSTANCE_FILE, InstanceFile};

/// An instance of this node. Dropping it ends the task and leaves the VM as it is.
#[derive(Debug)]
pub(crate) struct InstanceHandle {
    stop: watch::Sender<bool>,
    status: watch::Receiver<InstanceStatus>,
    endpoint: Endpoint,
    env: EnvKey,
    process: ProcessName,
    volumes: Vec<VolumeId>,
    holds: InstanceHolds,
    _task: AbortOnDropHandle<()>,
    /// Its root disk stays in the cache for as long as there is a handle.
    _image: ImagePin,
}

/// What an instance holds of its node, its volumes with it.
pub(crate) fn holds_of(spec: &InstanceSpec) -> InstanceHolds {
    let volumes = spec.volumes.iter().map(|volume| volume.size_bytes);
    InstanceHolds {
        cpu_millis: u64::from(spec.cpu_millis),
        memory_bytes: spec.memory_bytes,
        disk_bytes: volumes.fold(spec.scratch_bytes, u64::saturating_add),
    }
}

/// Whether an instance whose record says this may have a VM: the record is written before a boot.
fn may_have_a_vm(state: InstanceState) -> bool {
    match state {
        InstanceState::Booting
        | InstanceState::Running { .. }
        | InstanceState::Stopping
        | InstanceState::Unknown => true,
        InstanceState::Created
        | InstanceState::Preparing
        | InstanceState::Backoff
        | InstanceState::Stopped
        | InstanceState::Failed => false,
    }
}

/// What there is of an instance that an agent before this one had.
pub(crate) enum Resumed {
    /// The instance, which goes on.
    Instance(InstanceHandle),
    /// Its folder has no record.
    NoRecord,
}

impl InstanceHandle {
    /// Begins the life of an instance.
    ///
    /// # Errors
    /// For people: its log cannot be opened.
    pub(crate) async fn start(spec: InstanceSpec, machine: &Arc<Machine>) -> Result<Self, String> {
        let life = Lifecycle::new(&spec, machine.timing);
        Self::spawn(spec, life, machine, Event::Start, None).await
    }

    /// Goes on with an instance that an agent before this one had: finds its VM, or finds that it is
    /// gone.
    ///
    /// # Errors
    /// For people: its record cannot be read, or its log cannot be opened. Its VM may run.
    pub(crate) async fn resume(id: InstanceId, machine: &Arc<Machine>) -> Result<Resumed, String> {
        let path = machine.instance_dir(id).join(INSTANCE_FILE);
        let record = record::read::<InstanceFile>(&*machine.host.files, &path).await;
        let InstanceFile {
            spec,
            progress,
            guest_token,
        } = match record {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(Resumed::NoRecord),
            Err(error) => {
                return Err(format!(
                    "cannot read `{}`: {}",
                    path.display(),
                    chain(&error)
                ));
            }
        };
        // What was acquired for it while its record could not be read.
        machine.holders.release(id);
        let life = Lifecycle::resume(&spec, machine.timing, progress);
        // Before another instance starts, the volumes of a VM that may run are its own. An instance without a VM acquires
        // them when it boots: until then they may be those of a VM whose record cannot be read.
        if may_have_a_vm(life.state())
            && let Err(error) = machine.holders.acquire(id, &spec.volumes)
        {
            // A terminating instance still holds the volume. This VM is watched all the same.
            tracing::warn!(%error, instance = %id, "resuming an instance without its volumes");
        }
        let handle = Self::spawn(spec, life, machine, Event::NotFound, guest_token).await?;
        Ok(Resumed::Instance(handle))
    }

    async fn spawn(
        spec: InstanceSpec,
        life: Lifecycle,
        machine: &Arc<Machine>,
        first: Event,
        guest_token: Option<String>,
    ) -> Result<Self, String> {
        let endpoint = endpoint(&spec);
        let (env, process) = (spec.env_key(), spec.process.clone());
        let volumes = spec.volumes.iter().map(|v| v.id).collect();
        let holds = holds_of(&spec);
        let image = machine.host.images.pin(&spec.image.digest);
        let stop = watch::Sender::new(false);
        let asked = stop.subscribe();
        let (task, status) = InstanceTask::new(spec, life, machine, guest_token, asked).await?;
        let task = AbortOnDropHandle::new(tokio::spawn(task.run(first)));
        Ok(Self {
            stop,
            status,
            endpoint,
            env,
            process,
            volumes,
            holds,
            _task: task,
            _image: image,
        })
    }

    /// Asks the instance to stop, for good.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// The instance as the network knows it.
    pub(crate) fn endpoint(&self) -> Endpoint {
        self.endpoint.clone()
    }

    /// The instance's env.
    pub(crate) fn env(&self) -> EnvKey {
        self.env.clone()
    }

    /// The instance's process type.
    pub(crate) fn process(&self) -> ProcessName {
        self.process.clone()
    }

    /// The instance's volumes.
    pub(crate) fn volumes(&self) -> &[VolumeId] {
        &self.volumes
    }

    /// What it holds of the node.
    pub(crate) fn holds(&self) -> InstanceHolds {
        self.holds
    }

    /// Whether nothing of it runs and nothing will.
    pub(crate) fn is_stopped(&self) -> bool {
        self.status.borrow().report.state == InstanceState::Stopped
    }

    /// What there is to see now.
    pub(crate) fn status(&self) -> InstanceStatus {
        self.status.borrow().clone()
    }
}
