//! The agent of one node: applies the desired state, keeps one task per instance, and reports.
//!
//! An instance whose record cannot be read is [`Unreadable`], because its VM may run. The agent reports its last known
//! state with the reason, keeps its volumes and its tap, and does not start it while its VM may run. It reads the record again at each
//! reconciliation. When the desired state stops the instance, the agent ends the VM by the VM's own record.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::metrics::Waits;
use api::enrollment::Hardware;
use api::node::{
    DesiredState, DriverChoice, EgressState, InstanceHolds, InstanceReport, NodeReport,
};
use futures_util::FutureExt as _;
use model::instance::{InstanceSpec, InstanceState};
use model::{EnvNetwork, Generation, InstanceId, NodeId, Term, Timestamp, VolumeId};
use node_core::boot::NodeFacts;
use node_core::instance::Timing;
use node_core::reconcile::{NodeAction, Seen, SeenInstance, reconcile};
use node_network::Endpoint;
use overlay::address_plan::env_network;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::admission::Admission;
use crate::boots::BootSlots;
use crate::clock::Clock;
use crate::directory::Directory;
use crate::host::{Egress, EndedLogOwner, Host, HostError, HostResult, endpoint};
use crate::instance_handle::{InstanceHandle, Resumed, holds_of};
use crate::machine::{Machine, instances_dir};
use crate::metrics::NodeMetrics;
use crate::record::{self, DESIRED_FILE, DesiredFile};
use crate::reporting::send_reports;
use crate::unreadable::Unreadable;
use crate::upkeep::{keep_room, measure_disk, tidy};
use display::{Repeated, chain};

/// How long one poll for the desired state waits.
pub const POLL_WAIT: Duration = Duration::from_secs(25);
/// Pause after a poll that failed, or a desired state that was refused.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The machine is compared with the desired state when something changed, and at least this often.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(10);
/// Egress is ensured when it has ended, and this often: the longest time for which the rules do not know
/// an address that the machine was given.
const EGRESS_INTERVAL: Duration = Duration::from_secs(10);
/// How often the instances of the agent before are admitted to the network before the agent gives up.
const ADMIT_TRIES: u32 = 10;
/// Name under which a desired state that could not be read is kept.
const UNREADABLE_DESIRED_FILE: &str = "desired.json.unreadable";

/// What an agent is told about its node.
#[derive(Debug)]
pub struct AgentSettings {
    /// The cluster's random id.
    pub cluster: String,
    /// The node.
    pub node: NodeId,
    /// The VMM driver, for reports.
    pub driver: DriverChoice,
    /// The machine's hardware, for reports.
    pub hardware: Hardware,
    /// What guests learn about the node.
    pub facts: NodeFacts,
    /// The MTU of the cluster, in bytes, which may change; that of the facts is the one of now.
    pub mtu: watch::Receiver<u32>,
    /// Times of the instances' life cycles.
    pub timing: Timing,
    /// The folder of the agent's files.
    pub data_dir: PathBuf,
    /// What it counts.
    pub metrics: NodeMetrics,
    /// Over when the server has taken its first report.
    pub first_report: Option<Waits>,
}

/// Runs the agent on a host until `shutdown`. Its VMs go on without it.
///
/// # Errors
/// What an agent before this one left cannot be taken over. Once the agent runs, it goes on whatever
/// happens to the server.
pub async fn run(
    settings: AgentSettings,
    host: Host,
    clock: Clock,
    directory: Directory,
    shutdown: CancellationToken,
) -> HostResult<()> {
    settings.metrics.set_memory(settings.hardware.memory_bytes);
    let machine = Arc::new(Machine {
        metrics: settings.metrics,
        host,
        holders: crate::holders::VolumeHolders::default(),
        directory,
        facts: settings.facts,
        mtu: settings.mtu,
        timing: settings.timing,
        clock,
        changed: Notify::new(),
        disk: watch::Sender::new(None),
        disk_full: Notify::new(),
        egress: watch::Sender::new(None),
        admission: Admission::default(),
        boots: BootSlots::of(&settings.hardware),
        resumed: CancellationToken::new(),
        data_dir: settings.data_dir,
    });
    let mut agent = Agent {
        cluster: settings.cluster,
        node: settings.node,
        desired: None,
        desired_is_unreadable: false,
        written: Generation::default(),
        driver: settings.driver,
        hardware: settings.hardware,
        instances: BTreeMap::new(),
        volumes: Vec::new(),
        removals: BTreeMap::new(),
        machine,
    };
    agent.resume().await?;
    // Before the first report, so that no instance is placed on a disk of unknown size.
    measure_disk(&agent.machine).await;

    let (generation_sender, generation) = watch::channel(agent.generation());
    let (desired_sender, mut desired) = mpsc::channel(1);
    let first = agent.report();
    agent.machine.host.network.set_reports(&first.instances);
    let (report_sender, report) = watch::channel(first);
    let machine = &agent.machine;
    let _tasks = [
        spawn(tidy(machine.clone())),
        spawn(keep_room(machine.clone())),
        spawn(keep_egress(machine.clone())),
        spawn(fetch_desired(machine.clone(), generation, desired_sender)),
        spawn(send_reports(machine.clone(), report, settings.first_report)),
    ];
    let mut timer = tokio::time::interval(RECONCILE_INTERVAL);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            Some(state) = desired.recv() => {
                agent.apply(state).await;
                generation_sender.send_replace(agent.generation());
            }
            () = agent.machine.changed.notified() => agent.reconcile().await,
            _ = timer.tick() => {
                agent.read_again().await;
                agent.reconcile().await;
            }
        }
        let report = agent.report();
        agent.machine.host.network.set_reports(&report.instances);
        agent.machine.metrics.set_instances(report.instances.iter());
        report_sender.send_replace(report);
    }
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}

fn desired_file(data_dir: &Path) -> PathBuf {
    data_dir.join(DESIRED_FILE)
}

struct Agent {
    cluster: String,
    node: NodeId,
    desired: Option<DesiredState>,
    /// Whether there is a desired state on disk that could not be read.
    desired_is_unreadable: bool,
    /// The generation of the desired state that is on disk. Reports name this one: a stop is
    /// acknowledged only when an agent that restarts knows of it.
    written: Generation,
    driver: DriverChoice,
    hardware: Hardware,
    instances: BTreeMap<InstanceId, Instance>,
    /// The volumes whose disks are here, as last listed.
    volumes: Vec<VolumeId>,
    /// Disks of deleted volumes that are being removed. A large one takes a file system a while, and nothing waits for it.
    removals: BTreeMap<VolumeId, AbortOnDropHandle<()>>,
    machine: Arc<Machine>,
}

/// One instance of this node.
enum Instance {
    Known(InstanceHandle),
    Unreadable(Box<Unreadable>),
}

impl Instance {
    fn seen(&self) -> SeenInstance {
        match self {
            Self::Known(handle) => {
                let status = handle.status();
                SeenInstance {
                    state: status.report.state,
                    stop_asked: status.stop_asked,
                }
            }
            Self::Unreadable(unreadable) => SeenInstance {
                state: unreadable.state(),
                stop_asked: unreadable.stopped,
            },
        }
    }

    /// Whose its log is, once it has ended; absent when that is not known.
    fn log_owner(&self, id: InstanceId, ended_at: Timestamp) -> Option<EndedLogOwner> {
        let (env, process) = match self {
            Self::Known(handle) => (handle.env(), handle.process()),
            Self::Unreadable(unreadable) => {
                let spec = unreadable.spec.as_ref()?;
                (spec.env_key(), spec.process.clone())
            }
        };
        Some(EndedLogOwner {
            id,
            env,
            process,
            ended_at,
        })
    }

    /// What it holds of the node; absent where its spec is not known.
    fn holds(&self) -> Option<InstanceHolds> {
        match self {
            Self::Known(handle) => Some(handle.holds()),
            Self::Unreadable(unreadable) => unreadable.spec.as_ref().map(holds_of),
        }
    }

    fn report(&self, id: InstanceId) -> InstanceReport {
        match self {
            Self::Known(handle) => handle.status().report,
            Self::Unreadable(unreadable) => unreadable.report(id),
        }
    }
}

impl Agent {
    /// Goes on where the agent before this one ended, without asking the server.
    async fn resume(&mut self) -> HostResult<()> {
        let machine = self.machine.clone();
        let desired = self.read_desired().await;
        let dir = instances_dir(&machine.data_dir);
        let names = machine.host.files.list(&dir).await.map_err(|error| {
            HostError::transient(format!("cannot list {}: {error}", dir.display()))
        })?;
        let mut ids: BTreeSet<InstanceId> =
            names.iter().filter_map(|name| name.parse().ok()).collect();
        // A VM whose instance's folder is gone runs on all the same.
        ids.extend(machine.host.vmm.list().await?);
        let mut unreadable = Vec::new();
        for id in ids {
            match InstanceHandle::resume(id, &machine).await {
                Ok(Resumed::Instance(handle)) => {
                    self.instances.insert(id, Instance::Known(handle));
                }
                Ok(Resumed::NoRecord) => unreadable.extend(self.without_record(id).await),
                Err(reason) => unreadable.push((id, reason)),
            }
        }
        self.volumes = machine.host.disks.list_volumes().await?;
        for (id, reason) in unreadable {
            tracing::error!(instance = %id, reason, "cannot resume an instance; its VM is left as it is");
            let spec = spec_of(desired.as_ref(), id);
            // Without its spec its volumes are unknown: every one that no other instance has may be its.
            let volumes = match &spec {
                Some(spec) => spec.volumes.iter().map(|volume| volume.id).collect(),
                None => self.volumes.clone(),
            };
            machine.holders.acquire_free(id, &volumes);
            let instance = Unreadable::new(reason, spec);
            self.instances
                .insert(id, Instance::Unreadable(Box::new(instance)));
        }
        // A stopped instance has left the network, and may be deleted before its task runs.
        let admitted = self
            .instances
            .values()
            .filter_map(|instance| match instance {
                Instance::Known(handle) if handle.is_stopped() => None,
                Instance::Known(handle) => Some(handle.endpoint()),
                Instance::Unreadable(unreadable) => {
                    let spec = unreadable.spec.as_ref()?;
                    Some(endpoint(spec))
                }
            });
        admit_all(&machine, admitted.collect()).await?;
        machine.resumed.cancel();
        if let Some(desired) = desired {
            self.apply(desired).await;
        }
        Ok(())
    }

    /// Looks after a folder without a record. Its start was never written down, so it has no VM, and the
    /// folder is removed. Where a VM may run, the record was lost: then the reason is returned.
    async fn without_record(&self, id: InstanceId) -> Option<(InstanceId, String)> {
        let host = &self.machine.host;
        // One that had ended before is adopted as ended, and its record is gone with that.
        let found = host.vmm.adopt(id).await;
        let found = found.map(|vm| vm.filter(|vm| vm.ended().now_or_never().is_none()));
        match found {
            Ok(None) => {
                let dir = self.machine.instance_dir(id);
                if let Err(error) = host.files.remove_folder(&dir).await {
                    tracing::warn!(%error, instance = %id, "cannot remove a folder without a record");
                }
                None
            }
            Ok(Some(_)) => Some((id, "it has a VM and no record".to_owned())),
            Err(error) => Some((id, format!("it has no record: {error}"))),
        }
    }

    /// The desired state on disk.
    async fn read_desired(&mut self) -> Option<DesiredState> {
        let path = desired_file(&self.machine.data_dir);
        match record::read::<DesiredFile>(&*self.machine.host.files, &path).await {
            Ok(None) => None,
            Ok(Some(DesiredFile(desired))) => {
                self.written = desired.generation;
                Some(desired)
            }
            Err(error) => {
                // The server sends it again; the file stays until then, and beside the new one afterwards.
                self.desired_is_unreadable = true;
                tracing::error!(path = %path.display(), error = chain(&error), "cannot read the last desired state");
                None
            }
        }
    }

    /// Applies a desired state; one that is refused changes nothing.
    async fn apply(&mut self, desired: DesiredState) {
        self.list_volumes().await;
        let actions = match reconcile(&desired, &self.seen()) {
            Ok(actions) => actions,
            Err(refused) => {
                tracing::error!(%refused, "refused a desired state");
                return;
            }
        };
        self.machine
            .host
            .images
            .set_pinned(desired.pinned_images.clone());
        for (id, spec) in &desired.unreadable {
            tracing::error!(instance = %id, reason = spec.reason(), "cannot read the spec of an instance; it is not started");
        }
        self.desired = Some(desired);
        self.write_desired().await;
        self.act(actions).await;
    }

    /// Writes the desired state to disk, unless it is there already.
    async fn write_desired(&mut self) {
        let Some(desired) = self.desired.as_ref() else {
            return;
        };
        if desired.generation == self.written {
            return;
        }
        let path = desired_file(&self.machine.data_dir);
        let files = &self.machine.host.files;
        if self.desired_is_unreadable {
            let aside = self.machine.data_dir.join(UNREADABLE_DESIRED_FILE);
            match files.rename(&path, &aside).await {
                Ok(()) => self.desired_is_unreadable = false,
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "cannot keep the desired state");
                    return;
                }
            }
        }
        let generation = desired.generation;
        match record::write(&**files, &path, &DesiredFile(desired.clone())).await {
            Ok(()) => self.written = generation,
            // The next reconciliation tries again; until then no report names this generation.
            Err(error) => tracing::warn!(error = chain(&error), "cannot write the desired state"),
        }
    }

    /// Compares again: an instance changed, or an action failed the last time.
    async fn reconcile(&mut self) {
        self.list_volumes().await;
        self.write_desired().await;
        let Some(desired) = &self.desired else { return };
        match reconcile(desired, &self.seen()) {
            Ok(actions) => self.act(actions).await,
            Err(refused) => tracing::error!(%refused, "the applied desired state is refused"),
        }
    }

    /// The generation of the applied desired state; 0 before the first.
    fn generation(&self) -> Generation {
        self.desired
            .as_ref()
            .map_or_else(Generation::default, |desired| desired.generation)
    }

    async fn act(&mut self, actions: Vec<NodeAction>) {
        for action in actions {
            match action {
                NodeAction::Start(spec) => self.start(*spec).await,
                NodeAction::Stop(id) => self.stop(id).await,
                NodeAction::Reap(id) => self.reap(id).await,
                NodeAction::RemoveVolume(id) => self.remove_volume(id),
                NodeAction::KeepUnknown(id) => {
                    tracing::debug!(instance = %id, "no desired state names this instance; it is kept");
                }
            }
        }
    }

    async fn start(&mut self, spec: InstanceSpec) {
        let id = spec.id;
        self.reap(id).await;
        match InstanceHandle::start(spec, &self.machine).await {
            Ok(handle) => {
                self.instances.insert(id, Instance::Known(handle));
            }
            // The next reconciliation tries again.
            Err(reason) => tracing::error!(reason, instance = %id, "cannot start an instance"),
        }
    }

    async fn stop(&mut self, id: InstanceId) {
        match self.instances.get_mut(&id) {
            Some(Instance::Known(handle)) => handle.stop(),
            Some(Instance::Unreadable(unreadable)) => {
                // The next reconciliation tries again.
                match end_vm(&self.machine, id).await {
                    Ok(()) => {
                        tracing::warn!(instance = %id, "stopped an instance without its record");
                        unreadable.stopped = true;
                        self.machine.changed.notify_one();
                    }
                    Err(error) => {
                        tracing::error!(%error, instance = %id, "cannot stop an instance without its record");
                    }
                }
            }
            None => {}
        }
    }

    async fn reap(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.remove(&id) else {
            return;
        };
        let owner = instance.log_owner(id, self.machine.clock.wall());
        drop(instance);
        if let Some(owner) = owner
            && let Err(error) = self.machine.host.logs.keep(owner).await
        {
            tracing::warn!(%error, instance = %id, "the log of an ended instance is lost");
        }
        self.machine.directory.remove(id);
        let dir = self.machine.instance_dir(id);
        if let Err(error) = self.machine.host.files.remove_folder(&dir).await {
            tracing::warn!(%error, instance = %id, "cannot remove a stopped instance's folder");
        }
    }

    fn remove_volume(&mut self, id: VolumeId) {
        if let Some(holder) = self.machine.holders.holder(id) {
            tracing::debug!(volume = %id, %holder, "a deleted volume is still in use");
            return;
        }
        self.removals.retain(|_, removal| !removal.is_finished());
        let machine = self.machine.clone();
        self.removals.entry(id).or_insert_with(|| {
            spawn(async move {
                match machine.host.disks.remove_volume(id).await {
                    Ok(()) => {
                        tracing::info!(volume = %id, "removed the disk of a deleted volume");
                        machine.changed.notify_one();
                    }
                    // The next reconciliation tries again.
                    Err(error) => tracing::error!(%error, volume = %id, "cannot remove a volume"),
                }
            })
        });
    }

    /// Tries again to read the records that could not be read.
    async fn read_again(&mut self) {
        let machine = self.machine.clone();
        let mut anew = Vec::new();
        for (id, instance) in &mut self.instances {
            let Instance::Unreadable(unreadable) = instance else {
                continue;
            };
            if unreadable.stopped {
                continue;
            }
            // The desired state on disk may have been unreadable too, and the server's came later.
            if unreadable.spec.is_none() {
                unreadable.spec = spec_of(self.desired.as_ref(), *id);
            }
            match InstanceHandle::resume(*id, &machine).await {
                Ok(Resumed::Instance(handle)) => {
                    let endpoint = handle.endpoint();
                    *instance = Instance::Known(handle);
                    if let Err(error) = machine.admit([endpoint]).await {
                        tracing::warn!(%error, instance = %id, "cannot admit a resumed instance");
                    }
                }
                // What was there and is gone was removed by hand, and its VM was not.
                Ok(Resumed::NoRecord) => {
                    "its record is gone".clone_into(&mut unreadable.reason);
                }
                Err(reason) => {
                    unreadable.reason = reason;
                    if unreadable.may_start_anew(*id, &machine).await {
                        anew.push(*id);
                    }
                }
            }
        }
        // The desired state names them: they are started by the next reconciliation.
        for id in anew {
            self.instances.remove(&id);
        }
    }

    /// Lists the volumes; when that fails, the last list holds.
    async fn list_volumes(&mut self) {
        match self.machine.host.disks.list_volumes().await {
            Ok(volumes) => self.volumes = volumes,
            Err(error) => tracing::warn!(%error, "cannot list the volumes"),
        }
    }

    fn seen(&self) -> Seen {
        let instances = self.instances.iter();
        Seen {
            cluster: self.cluster.clone(),
            node: self.node,
            generation: self.generation(),
            term: (self.desired.as_ref()).map_or(Term::default(), |desired| desired.term),
            instances: instances
                .map(|(id, instance)| (*id, instance.seen()))
                .collect(),
            volumes: self
                .volumes
                .iter()
                .map(|id| (*id, self.is_used(*id)))
                .collect(),
        }
    }

    /// Whether an instance of this node has a volume or may start with it.
    fn is_used(&self, volume: VolumeId) -> bool {
        self.machine.holders.holder(volume).is_some()
            || self.instances.values().any(|instance| match instance {
                Instance::Known(handle) => handle.volumes().contains(&volume),
                Instance::Unreadable(_) => false,
            })
    }

    /// The reports of instances that are not started, because the server is newer and their specs cannot be read.
    fn not_startable(&self) -> impl Iterator<Item = InstanceReport> {
        let unreadable = self.desired.iter().flat_map(|desired| &desired.unreadable);
        unreadable
            .filter(|(id, _)| !self.instances.contains_key(id))
            .map(|(id, spec)| InstanceReport {
                failure: Some(format!(
                    "the node cannot read the instance's spec: {}; upgrade `platform` on the node",
                    spec.reason()
                )),
                ..InstanceReport::new(*id, InstanceState::Failed)
            })
    }

    fn report(&self) -> NodeReport {
        // What the desired state names, its sender placed.
        let desired = self.desired.iter();
        let placed: BTreeSet<InstanceId> = desired
            .flat_map(|desired| {
                let specs = desired.instances.iter().map(|spec| spec.id);
                specs.chain(desired.unreadable.keys().copied())
            })
            .collect();
        NodeReport {
            generation: self.written,
            driver: self.driver.clone(),
            egress: self.machine.egress.borrow().clone(),
            hardware: Hardware {
                disk: *self.machine.disk.borrow(),
                ..self.hardware.clone()
            },
            instances: self
                .instances
                .iter()
                .map(|(id, instance)| InstanceReport {
                    holds: instance.holds().filter(|_| !placed.contains(id)),
                    ..instance.report(*id)
                })
                .chain(self.not_startable())
                .collect(),
            volumes: self.volumes.clone(),
            highest_network: self.highest_network(),
            images: self.machine.host.images.list(),
        }
    }

    /// The highest env network of any instance that this node knows of.
    fn highest_network(&self) -> EnvNetwork {
        let here = self
            .instances
            .values()
            .filter_map(|instance| match instance {
                Instance::Known(handle) => Some(handle.endpoint().address),
                Instance::Unreadable(unreadable) => Some(unreadable.spec.as_ref()?.address),
            });
        here.map(env_network).max().unwrap_or_default()
    }
}

/// Admits the instances of the agent before. The network may be without its name for a moment, and is mended meanwhile.
async fn admit_all(machine: &Machine, all: Vec<Endpoint>) -> HostResult<()> {
    let mut tries = 1;
    loop {
        match machine.admit(all.clone()).await {
            Err(error) if error.transient && tries < ADMIT_TRIES => {
                tracing::warn!(%error, "cannot admit the instances to the network; trying again");
            }
            done => return done,
        }
        tries += 1;
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// The spec of an instance, where the desired state names it.
fn spec_of(desired: Option<&DesiredState>, id: InstanceId) -> Option<InstanceSpec> {
    let mut named = desired.iter().flat_map(|desired| &desired.instances);
    named.find(|spec| spec.id == id).cloned()
}

/// Ends the VM of an instance whose record could not be read, and releases the instance's resources.
async fn end_vm(machine: &Machine, id: InstanceId) -> HostResult<()> {
    if let Some(vm) = machine.host.vmm.adopt(id).await? {
        vm.kill().await;
    }
    machine.host.vmm.remove(id).await?;
    machine.leave_network(id).await;
    machine.holders.release(id);
    Ok(())
}

/// Brings every desired state that is newer than ours.
async fn fetch_desired(
    machine: Arc<Machine>,
    mut generation: watch::Receiver<Generation>,
    sender: mpsc::Sender<DesiredState>,
) {
    let mut refused = Repeated::default();
    loop {
        let after = *generation.borrow_and_update();
        match machine.host.server.desired(after, POLL_WAIT).await {
            Ok(None) => {}
            Ok(Some(state)) => {
                let offered = state.generation;
                if sender.send(state).await.is_err() {
                    return;
                }
                // Ask again only once it was applied; one that was refused comes again later.
                let taken = generation.wait_for(|ours| !offered.supersedes(*ours));
                if let Ok(Err(_)) = tokio::time::timeout(RETRY_PAUSE, taken).await {
                    return;
                }
            }
            Err(error) => {
                if refused.is_due(tokio::time::Instant::now(), &error.to_string()) {
                    tracing::warn!(%error, "the node gets no desired state; its instances go on");
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

/// Keeps the egress, and says when its state changes.
async fn keep_egress(machine: Arc<Machine>) {
    loop {
        let (on, reason, ended) = match machine.host.network.ensure_egress().await {
            Ok(Egress { reason, ended }) => (true, reason, Some(ended)),
            Err(error) => (false, error.reason, None),
        };
        let state = Some(EgressState { on, reason });
        let changed = machine.egress.send_if_modified(|known| {
            let changed = *known != state;
            known.clone_from(&state);
            changed
        });
        if changed && let Some(EgressState { on, reason }) = state {
            if on {
                tracing::info!(reason, "instances reach the internet");
            } else {
                tracing::warn!(reason, "going on without egress");
            }
            machine.changed.notify_one();
        }
        // An egress that ends as soon as it was made is made again at this pace at most.
        tokio::time::sleep(RETRY_PAUSE).await;
        let ended = async {
            match ended {
                Some(ended) => ended.await,
                None => std::future::pending().await,
            }
        };
        // Whether it ended or the time is over: it is ensured again.
        let _ = tokio::time::timeout(EGRESS_INTERVAL, ended).await;
    }
}
