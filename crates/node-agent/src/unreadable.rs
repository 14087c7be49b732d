//! An instance whose record is there and could not be read.
//!
//! Its VM may run, so it counts as running and keeps its volumes and its tap, until its record can be read, the desired state
//! stops it, or it is certain that it has no VM: after a reboot, or when the VM ended since. Then a record whose content cannot
//! be used is set aside, and the instance starts anew by its spec. Not so one that does not restart by itself: it may have done
//! its work.

use futures_util::FutureExt as _;
use model::InstanceId;
use model::instance::{InstanceSpec, InstanceState, RestartWhen};

use api::node::InstanceReport;

use crate::host::{HostError, Vm};
use crate::machine::Machine;
use crate::record::{self, INSTANCE_FILE, InstanceFile, RecordError};

/// Name under which a record that cannot be used is kept.
const UNREADABLE_INSTANCE_FILE: &str = "instance.json.unreadable";

/// What is known of the VM.
enum KnownVm {
    /// It could not be looked for.
    Unknown,
    /// It was there.
    Found(Box<dyn Vm>),
    /// There is none.
    Absent,
}

/// An instance whose record is there and could not be read.
pub(crate) struct Unreadable {
    /// Why, for people.
    pub(crate) reason: String,
    /// Its spec, where the desired state names it.
    pub(crate) spec: Option<InstanceSpec>,
    /// Whether it was stopped and nothing of its VM is left.
    pub(crate) stopped: bool,
    vm: KnownVm,
}

impl Unreadable {
    pub(crate) fn new(reason: String, spec: Option<InstanceSpec>) -> Self {
        Self {
            reason,
            spec,
            stopped: false,
            vm: KnownVm::Unknown,
        }
    }

    /// Until it is known to be gone it counts as running: its VM may write to its volumes.
    pub(crate) fn state(&self) -> InstanceState {
        if self.stopped {
            InstanceState::Stopped
        } else {
            InstanceState::Running {
                ready: false,
                started_at: None,
            }
        }
    }

    pub(crate) fn report(&self, id: InstanceId) -> InstanceReport {
        let vm = match self.vm {
            KnownVm::Unknown => "whether its VM runs is not known",
            KnownVm::Found(_) => "its VM goes on",
            KnownVm::Absent => "it has no VM",
        };
        let reason = &self.reason;
        let failure = format!(
            "cannot resume the instance: {reason}; {vm}; hint: put the file right, or replace the instance: \
             `platform scale PROCESS=0`, then scale it back"
        );
        InstanceReport {
            detail: failure.clone(),
            failure: Some(failure),
            ..InstanceReport::new(id, self.state())
        }
    }

    /// Whether it is certain that it has no VM.
    async fn has_no_vm(&mut self, id: InstanceId, machine: &Machine) -> bool {
        if matches!(self.vm, KnownVm::Unknown) {
            self.vm = match machine.host.vmm.adopt(id).await {
                Ok(Some(vm)) => KnownVm::Found(vm),
                Ok(None) => KnownVm::Absent,
                Err(error) => {
                    tracing::warn!(%error, instance = %id, "cannot find out whether a VM runs");
                    KnownVm::Unknown
                }
            };
        }
        if let KnownVm::Found(vm) = &self.vm
            && vm.ended().now_or_never().is_some()
        {
            self.vm = KnownVm::Absent;
        }
        matches!(self.vm, KnownVm::Absent)
    }

    /// Whether the instance may start anew: then its record is set aside, and nothing of it is left.
    pub(crate) async fn may_start_anew(&mut self, id: InstanceId, machine: &Machine) -> bool {
        let restarts = |spec: &InstanceSpec| spec.restart.when == RestartWhen::Always;
        if !self.has_no_vm(id, machine).await || !self.spec.as_ref().is_some_and(restarts) {
            return false;
        }
        let path = machine.instance_dir(id).join(INSTANCE_FILE);
        let files = &*machine.host.files;
        // Descriptors and disks come back; what is in the file stays as it is.
        let read = record::read::<InstanceFile>(files, &path).await;
        if !matches!(read, Err(RecordError::Format(_))) {
            return false;
        }
        let aside = path.with_file_name(UNREADABLE_INSTANCE_FILE);
        if let Err(error) = set_aside(machine, id, &path, &aside).await {
            tracing::warn!(%error, instance = %id, "cannot start an instance anew whose record cannot be read");
            return false;
        }
        tracing::warn!(
            instance = %id, reason = self.reason, kept = %aside.display(),
            "an instance without a VM starts anew, because its record cannot be read"
        );
        true
    }
}

async fn set_aside(
    machine: &Machine,
    id: InstanceId,
    path: &std::path::Path,
    aside: &std::path::Path,
) -> Result<(), HostError> {
    machine.host.vmm.remove(id).await?;
    machine.leave_network(id).await;
    let renamed = machine.host.files.rename(path, aside).await;
    renamed.map_err(|error| HostError::transient(error.to_string()))?;
    machine.holders.release(id);
    Ok(())
}
