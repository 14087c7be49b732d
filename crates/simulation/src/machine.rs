//! One simulated machine: what is on it outlives the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::enrollment::{Hardware, NodeDisk};
use guest_protocol::LogRecord;
use model::{Digest, InstanceId, NodeId, VolumeId};
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::guest;
use crate::simulator::Simulator;

/// The disk of a machine that is not tight, in bytes.
pub(crate) const DISK_BYTES: u64 = 1 << 40;
/// Bytes that a connection between guest and node holds in each direction.
const CONNECTION_BYTES: usize = 16 * 1024;
/// Connections of a guest that may wait to be accepted.
const ACCEPT_QUEUE: usize = 16;

/// A machine. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) simulator: Simulator,
    pub(crate) node: NodeId,
    pub(crate) hardware: Hardware,
    pub(crate) disk: NodeDisk,
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Machine({})", self.node)
    }
}

/// What is on a machine.
pub(crate) struct State {
    /// Whether a tap outlives its VM.
    pub(crate) leaves_tap: bool,
    /// Whether every write fails for want of room.
    pub(crate) disk_full: bool,
    /// Whether the machine has no default route.
    pub(crate) no_uplink: bool,
    /// The egress that runs: replaced when it ends.
    pub(crate) egress: watch::Sender<()>,
    /// Whether image pulls fail.
    pub(crate) registry_down: bool,
    /// Whether the agent gets no descriptor any more.
    pub(crate) no_descriptors: bool,
    /// Instances whose VM's record cannot be read.
    pub(crate) unreadable_vms: BTreeSet<InstanceId>,
    /// How many boots in a hundred fail.
    pub(crate) boot_failures_percent: u64,
    pub(crate) vms: BTreeMap<InstanceId, SimVm>,
    pub(crate) taps: BTreeSet<InstanceId>,
    pub(crate) admitted: BTreeMap<InstanceId, Ipv6Addr>,
    pub(crate) cached: BTreeSet<Digest>,
    pub(crate) scratch: BTreeSet<InstanceId>,
    pub(crate) volumes: BTreeSet<VolumeId>,
    pub(crate) files: BTreeMap<PathBuf, Vec<u8>>,
    pub(crate) logs: BTreeMap<InstanceId, Vec<LogRecord>>,
    /// What happens only the first time.
    seen: BTreeMap<String, u32>,
    listeners: BTreeMap<InstanceId, mpsc::Sender<DuplexStream>>,
    boots: u64,
    /// The most VMs that booted at the same time.
    pub(crate) most_booting: usize,
}

impl State {
    /// Whether there is a file below this path.
    pub(crate) fn is_folder(&self, path: &Path) -> bool {
        let mut below = self.files.range(path.to_owned()..);
        below.any(|(file, _)| file != path && file.starts_with(path))
    }
}

/// A VM that was booted, until its record is removed.
pub(crate) struct SimVm {
    pub(crate) address: Ipv6Addr,
    /// How it ended; absent while it runs.
    pub(crate) end: watch::Sender<Option<String>>,
    /// Whether its guest has not come to its app yet.
    booting: bool,
    /// Whether the app runs and answers.
    app_up: bool,
    /// Whether something befell it that entitles its node to end it.
    disturbed: bool,
    crash: watch::Sender<bool>,
    tasks: Vec<AbortHandle>,
}

/// Which VM, and of which image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VmKey {
    pub(crate) id: InstanceId,
    /// Counts the VMs of this machine.
    pub(crate) boot: u64,
    pub(crate) image: Digest,
}

impl VmKey {
    /// What shows that a connection is its guest's init's.
    pub(crate) fn token(&self) -> String {
        format!("{:016x}", self.boot)
    }

    pub(crate) fn image_key(&self) -> String {
        format!("boot {}", self.image)
    }
}

impl SimVm {
    pub(crate) fn runs(&self) -> bool {
        self.end.borrow().is_none()
    }
}

impl Machine {
    /// A machine with the hardware of the fixtures' node.
    #[cfg(test)]
    pub(crate) fn new(simulator: &Simulator, node: NodeId, leaves_tap: bool) -> Self {
        let hardware = scheduler::fixtures::node(node.0, 4096).1.hardware;
        Self::of(simulator, node, hardware, DISK_BYTES, leaves_tap)
    }

    pub(crate) fn of(
        simulator: &Simulator,
        node: NodeId,
        hardware: Hardware,
        disk_bytes: u64,
        leaves_tap: bool,
    ) -> Self {
        Self {
            simulator: simulator.clone(),
            node,
            hardware,
            disk: NodeDisk {
                total_bytes: disk_bytes,
                reserved_bytes: disk_bytes / 20,
                images_bytes: disk_bytes / 5,
                others_bytes: 0,
            },
            state: Arc::new(Mutex::new(State {
                leaves_tap,
                disk_full: false,
                no_uplink: false,
                egress: watch::Sender::new(()),
                registry_down: false,
                no_descriptors: false,
                unreadable_vms: BTreeSet::new(),
                boot_failures_percent: 0,
                vms: BTreeMap::new(),
                taps: BTreeSet::new(),
                admitted: BTreeMap::new(),
                cached: BTreeSet::new(),
                scratch: BTreeSet::new(),
                volumes: BTreeSet::new(),
                files: BTreeMap::new(),
                logs: BTreeMap::new(),
                seen: BTreeMap::new(),
                listeners: BTreeMap::new(),
                boots: 0,
                most_booting: 0,
            })),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often this happened before on this machine.
    pub(crate) fn times(&self, what: String) -> u32 {
        let mut state = self.lock();
        let times = state.seen.entry(what).or_default();
        *times += 1;
        *times - 1
    }

    pub(crate) fn first_time(&self, what: String) -> bool {
        self.times(what) == 0
    }

    /// Starts a VM and its guest.
    pub(crate) fn start_vm(
        &self,
        id: InstanceId,
        image: Digest,
        address: Ipv6Addr,
        volumes: Vec<VolumeId>,
    ) {
        let app = self.simulator.app(&image);
        let mut state = self.lock();
        state.boots += 1;
        let key = VmKey {
            id,
            boot: state.boots,
            image,
        };
        if state.vms.get(&id).is_some_and(SimVm::runs) {
            drop(state);
            self.simulator
                .violate(format!("{} boots instance {id} twice", self.node));
            return;
        }
        let (crash, crashes) = watch::channel(false);
        let vm = SimVm {
            address,
            end: watch::Sender::new(None),
            booting: true,
            app_up: false,
            // Until its app was up once, its node may give it up.
            disturbed: true,
            crash,
            tasks: Vec::new(),
        };
        state.vms.insert(id, vm);
        let booting = state.vms.values().filter(|vm| vm.runs() && vm.booting);
        state.most_booting = state.most_booting.max(booting.count());
        drop(state);
        self.simulator.vm_started(self.node, id, volumes);
        let machine = self.clone();
        self.spawn_in_vm(id, async move {
            guest::run(machine.clone(), key, app, crashes).await;
            machine.end_vm(id, "exited with code 0");
        });
    }

    /// Runs a task that ends with the VM.
    pub(crate) fn spawn_in_vm(
        &self,
        id: InstanceId,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let handle = tokio::spawn(task).abort_handle();
        if let Some(vm) = self.lock().vms.get_mut(&id) {
            vm.tasks.retain(|task| !task.is_finished());
            vm.tasks.push(handle);
        }
    }

    /// Ends a VM. Its record stays.
    pub(crate) fn end_vm(&self, id: InstanceId, how: &str) {
        let mut state = self.lock();
        let leaves_tap = state.leaves_tap;
        let Some(vm) = state.vms.get_mut(&id).filter(|vm| vm.runs()) else {
            return;
        };
        vm.end.send_replace(Some(how.to_owned()));
        vm.app_up = false;
        vm.disturbed = true;
        for task in vm.tasks.drain(..) {
            task.abort();
        }
        if !leaves_tap {
            state.taps.remove(&id);
        }
        drop(state);
        self.simulator.vm_ended(id);
        self.simulator
            .trace(format!("{} VM of {id} ended: {how}", self.node));
    }

    /// The machine loses power: its VMs, taps and sockets are gone, its disks stay.
    pub(crate) fn reboot(&self) {
        let ids: Vec<_> = self.lock().vms.keys().copied().collect();
        for id in ids {
            self.end_vm(id, "the machine rebooted");
        }
        let mut state = self.lock();
        state.vms.clear();
        state.taps.clear();
        state.admitted.clear();
        state.listeners.clear();
        state.unreadable_vms.clear();
    }

    /// The agent ended: taps that no VM holds are gone with its file descriptors.
    pub(crate) fn agent_ended(&self) {
        let mut state = self.lock();
        if !state.leaves_tap {
            let running: BTreeSet<_> = state
                .vms
                .iter()
                .filter(|(_, vm)| vm.runs())
                .map(|(id, _)| *id)
                .collect();
            state.taps = running;
        }
    }

    /// A connection of a guest to its node; none while nobody listens.
    pub(crate) async fn dial(&self, vm: &VmKey) -> Option<DuplexStream> {
        let listener = self.lock().listeners.get(&vm.id).cloned()?;
        let (guest, node) = tokio::io::duplex(CONNECTION_BYTES);
        listener.send(node).await.ok()?;
        Some(guest)
    }

    /// Listens for an instance's guest, in place of an earlier listener.
    pub(crate) fn listen(&self, id: InstanceId) -> mpsc::Receiver<DuplexStream> {
        let (sender, receiver) = mpsc::channel(ACCEPT_QUEUE);
        self.lock().listeners.insert(id, sender);
        receiver
    }

    /// The guest of a VM has started its app, or cannot.
    pub(crate) fn booted(&self, id: InstanceId) {
        if let Some(vm) = self.lock().vms.get_mut(&id) {
            vm.booting = false;
        }
    }

    /// The app of a VM runs, and answers or not.
    pub(crate) fn app_is(&self, id: InstanceId, up: bool) {
        if let Some(vm) = self.lock().vms.get_mut(&id).filter(|vm| vm.runs()) {
            vm.app_up = up;
            vm.disturbed &= !up;
        }
    }

    /// Something befell a VM: its node may end it.
    pub(crate) fn disturb(&self, id: InstanceId) {
        if let Some(vm) = self.lock().vms.get_mut(&id) {
            vm.disturbed = true;
        }
    }

    pub(crate) fn is_healthy(&self, id: InstanceId) -> bool {
        self.lock().vms.get(&id).is_some_and(|vm| vm.app_up)
    }

    /// The node asks the guest of a VM to stop its app.
    pub(crate) fn stop_was_asked(&self, vm: &VmKey) {
        self.check_stop(vm.id);
    }

    /// Whether the node may end this VM.
    pub(crate) fn check_stop(&self, id: InstanceId) {
        let well = self
            .lock()
            .vms
            .get(&id)
            .is_some_and(|vm| vm.runs() && !vm.disturbed);
        if well {
            self.simulator.vm_stopped_by_its_node(self.node, id);
        }
    }

    /// The app of a VM crashes.
    pub(crate) fn crash_app(&self, id: InstanceId) {
        self.disturb(id);
        if let Some(vm) = self.lock().vms.get(&id) {
            vm.crash.send_replace(true);
        }
    }

    pub(crate) fn running(&self) -> Vec<InstanceId> {
        let state = self.lock();
        let vms = state.vms.iter().filter(|(_, vm)| vm.runs());
        vms.map(|(id, _)| *id).collect()
    }

    /// How many VMs were booted so far.
    pub(crate) fn boots(&self) -> u64 {
        self.lock().boots
    }
}
