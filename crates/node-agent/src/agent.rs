//! The agent: takes up what the control plane wants, keeps one task per instance, and reports.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::enrollment::{EnrollRole, Hardware, Member};
use api::node::{DesiredState, DriverChoice, EgressState, NodeReport};
use api_client::ApiClient;
use guest_protocol::RESOLVER;
use membership::{Applicant, Membership};
use microvm::{GuestKernel, Vm};
use model::{Generation, InstanceId, NodeId};
use node_core::boot::NodeFacts;
use node_core::instance::Timing;
use node_core::reconcile::{NodeAction, Seen, SeenInstance, reconcile};
use node_network::{Network, NetworkSettings};
use registry::{Credentials, Registry, RegistryOptions};
use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::images::Images;
use crate::instance_task::InstanceHandle;
use crate::logins::ServerLogins;
use crate::machine::{Clock, Machine, instances_dir};
use crate::streams::{self, Directory};
use crate::volumes::Volumes;
use crate::{DownOptions, NodeError, NodeOptions, hardware};
use display::chain;

/// How long one poll for the desired state waits.
const POLL_WAIT: Duration = Duration::from_secs(25);
/// Pause after a poll or a report that failed, or a desired state that was refused.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Reports go out when something changed, and at least this often: the sign of life.
const REPORT_INTERVAL: Duration = Duration::from_secs(3);
/// The machine is compared with what is wanted when something changed, and at least this often.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(10);
/// The image cache is brought within its budget this often.
const TIDY_INTERVAL: Duration = Duration::from_secs(30);
/// The way out to the world is looked after when it has ended, and this often: so long may an address that
/// the machine was given stay unknown to the rules.
const EGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// `desired.json`: the desired state that was applied last.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
struct DesiredFile(DesiredState);

impl state_file::StateFormat for DesiredFile {
    const VERSION: u32 = 1;
}

fn desired_file(data_dir: &Path) -> PathBuf {
    data_dir.join("desired.json")
}

/// Runs the agent until `shutdown`.
pub(crate) async fn run(
    options: NodeOptions,
    shutdown: CancellationToken,
) -> Result<(), NodeError> {
    let _lock = lock(&options.data_dir)?;
    let kernel = GuestKernel::in_directory(&options.guest_dir).map_err(NodeError::Guest)?;
    let choice = microvm::choose_driver(&microvm::probe().await, &kernel)?;
    microvm::check_programs(choice.driver)?;
    let hardware = hardware::find(options.memory_bytes).map_err(NodeError::Hardware)?;
    tracing::info!(
        driver = choice.driver.name(),
        reason = choice.reason,
        "chose the VMM driver"
    );

    let applicant = Applicant {
        role: EnrollRole::Node,
        server: options.server.clone(),
        token: options.token.clone(),
        name: options.name.clone(),
        region: options.region.clone(),
        hardware: hardware.clone(),
    };
    let membership = Membership::load_or_join(&options.data_dir, &applicant).await?;
    let node = node_id(&membership)?;
    let client = membership.client().map_err(NodeError::Client)?;
    let network = Network::ensure(&NetworkSettings {
        suffix: network_suffix(&membership, node),
        cluster_prefix: membership.cluster_prefix,
        node,
        mtu: membership.mtu,
    })
    .await?;
    let registry = Registry::new(RegistryOptions {
        insecure: options.insecure_registries.clone(),
        mirrors: options.registry_mirrors.clone(),
        credentials: Credentials::Source(Arc::new(ServerLogins(client.clone()))),
        limits: registry::Limits::default(),
    })
    .map_err(NodeError::Registry)?;
    let images = Images::open(&options.data_dir, registry, options.image_cache_bytes);
    let images = images.map_err(|source| NodeError::Folder {
        path: options.data_dir.clone(),
        source,
    })?;
    let volumes = Volumes::open(&options.data_dir).map_err(|source| NodeError::Folder {
        path: options.data_dir.clone(),
        source,
    })?;
    let directory = Directory::default();
    let machine = Arc::new(Machine {
        server: client.clone(),
        images,
        volumes,
        directory: directory.clone(),
        facts: NodeFacts {
            region: membership.region.clone(),
            node_name: membership.name.clone(),
            mtu: membership.mtu,
            resolvers: vec![RESOLVER.into()],
        },
        timing: Timing::default(),
        clock: Clock::start(),
        changed: Notify::new(),
        network,
        egress: watch::Sender::new(None),
        admitted: Mutex::default(),
        driver: choice.driver,
        kernel,
        data_dir: options.data_dir.clone(),
        run_dir: options.run_dir.clone(),
    });
    let mut agent = Agent {
        cluster: membership.cluster.clone(),
        node,
        desired: None,
        driver: DriverChoice {
            name: choice.driver.name().to_owned(),
            reason: choice.reason,
        },
        hardware,
        instances: BTreeMap::new(),
        machine,
    };
    agent.resume().await?;

    let (generation_sender, generation) = watch::channel(agent.generation());
    let (desired_sender, mut desired) = mpsc::channel(1);
    let (report_sender, report) = watch::channel(agent.report());
    let _tasks = [
        spawn(tidy_images(agent.machine.clone())),
        spawn(keep_egress(agent.machine.clone())),
        spawn(fetch_desired(client.clone(), generation, desired_sender)),
        spawn(send_reports(client.clone(), report)),
        spawn(streams::serve(client, directory)),
    ];
    tracing::info!(%node, server = membership.server, "the node is up");
    let mut timer = tokio::time::interval(RECONCILE_INTERVAL);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Some(state) = desired.recv() => {
                agent.apply(state);
                generation_sender.send_replace(agent.generation());
            }
            () = agent.machine.changed.notified() => agent.reconcile(),
            _ = timer.tick() => agent.reconcile(),
        }
        report_sender.send_replace(agent.report());
    }
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}

/// One agent per data folder.
fn lock(data_dir: &Path) -> Result<File, NodeError> {
    let folder = |source| NodeError::Folder {
        path: data_dir.to_owned(),
        source,
    };
    std::fs::create_dir_all(data_dir).map_err(folder)?;
    let file = File::create(data_dir.join("agent.lock")).map_err(folder)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(NodeError::Busy(data_dir.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(folder(source)),
    }
}

fn node_id(membership: &Membership) -> Result<NodeId, NodeError> {
    match membership.member {
        Member::Node(id) => Ok(id),
        Member::Edge(_) => Err(NodeError::NotANode(membership.member)),
    }
}

/// The cluster's last 24 random bits and the node's number: several nodes of several clusters can
/// live on one machine.
fn network_suffix(membership: &Membership, node: NodeId) -> String {
    let [_, _, _, a, b, c, ..] = membership.cluster_prefix.octets();
    format!("{a:02x}{b:02x}{c:02x}{:x}", node.0)
}

struct Agent {
    cluster: String,
    node: NodeId,
    desired: Option<DesiredState>,
    driver: DriverChoice,
    hardware: Hardware,
    instances: BTreeMap<InstanceId, InstanceHandle>,
    machine: Arc<Machine>,
}

impl Agent {
    /// Goes on where the agent before us ended, without asking anyone.
    async fn resume(&mut self) -> Result<(), NodeError> {
        let dir = instances_dir(&self.machine.data_dir);
        let folder = |source| NodeError::Folder {
            path: dir.clone(),
            source,
        };
        std::fs::create_dir_all(&dir).map_err(folder)?;
        for entry in std::fs::read_dir(&dir).map_err(folder)? {
            let path = entry.map_err(folder)?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let Ok(id) = name.parse::<InstanceId>() else {
                continue;
            };
            match InstanceHandle::resume(&path, &self.machine) {
                Ok(Some(handle)) => {
                    self.instances.insert(id, handle);
                }
                Ok(None) => {}
                // Its VM goes on unwatched; a damaged record must not stop the others.
                Err(error) => tracing::error!(%error, instance = %id, "cannot resume an instance"),
            }
        }
        let mut admitted = self.machine.admitted.lock().await;
        for (id, handle) in &self.instances {
            admitted.insert(*id, handle.address());
        }
        self.machine.apply_rules(&admitted).await?;
        drop(admitted);
        let file = desired_file(&self.machine.data_dir);
        match state_file::read::<DesiredFile>(&file) {
            Ok(Some(DesiredFile(desired))) => self.apply(desired),
            Ok(None) => {}
            // The control plane will say it again.
            Err(error) => {
                tracing::warn!(error = chain(&error), "cannot read the last desired state");
            }
        }
        Ok(())
    }

    /// Makes a newer desired state ours; one that is refused changes nothing.
    fn apply(&mut self, desired: DesiredState) {
        let actions = match reconcile(&desired, &self.seen()) {
            Ok(actions) => actions,
            Err(refused) => {
                tracing::error!(%refused, "refused a desired state");
                return;
            }
        };
        if desired.generation != self.generation()
            && let Err(error) = state_file::write(
                &desired_file(&self.machine.data_dir),
                &DesiredFile(desired.clone()),
            )
        {
            // Without it a restarted agent would ask again: it may go on.
            tracing::warn!(error = chain(&error), "cannot keep the desired state");
        }
        self.machine.images.keep(desired.keep_images.clone());
        self.desired = Some(desired);
        for action in actions {
            self.act(action);
        }
    }

    /// Compares again: an instance changed, or something could not be begun the last time.
    fn reconcile(&mut self) {
        let Some(desired) = &self.desired else { return };
        match reconcile(desired, &self.seen()) {
            Ok(actions) => {
                for action in actions {
                    self.act(action);
                }
            }
            Err(refused) => tracing::error!(%refused, "our own desired state does not fit"),
        }
    }

    /// The generation taken up; 0 before the first.
    fn generation(&self) -> Generation {
        self.desired
            .as_ref()
            .map_or(Generation(0), |desired| desired.generation)
    }

    fn act(&mut self, action: NodeAction) {
        match action {
            NodeAction::Start(spec) => {
                let id = spec.id;
                self.reap(id);
                match InstanceHandle::start(*spec, &self.machine) {
                    Ok(handle) => {
                        self.instances.insert(id, handle);
                    }
                    // The next reconciliation tries again.
                    Err(error) => {
                        tracing::error!(%error, instance = %id, "cannot begin an instance");
                    }
                }
            }
            NodeAction::Stop(id) => {
                if let Some(handle) = self.instances.get(&id) {
                    handle.stop();
                }
            }
            NodeAction::Reap(id) => self.reap(id),
            NodeAction::RemoveVolume(id) => match self.machine.volumes.remove(id) {
                Ok(()) => tracing::info!(volume = %id, "removed the disk of a deleted volume"),
                // The next reconciliation tries again.
                Err(error) => tracing::error!(%error, volume = %id, "cannot remove a volume"),
            },
            NodeAction::KeepUnknown(id) => {
                tracing::debug!(instance = %id, "nobody asked for this instance; it is left as it is");
            }
        }
    }

    fn reap(&mut self, id: InstanceId) {
        if let Some(handle) = self.instances.remove(&id) {
            handle.reap(id, &self.machine);
        }
    }

    fn seen(&self) -> Seen {
        let see = |handle: &InstanceHandle| {
            let status = handle.status();
            SeenInstance {
                state: status.report.state,
                stop_asked: status.stop_asked,
            }
        };
        Seen {
            cluster: self.cluster.clone(),
            node: self.node,
            generation: self.generation(),
            instances: self
                .instances
                .iter()
                .map(|(id, handle)| (*id, see(handle)))
                .collect(),
            volumes: self
                .machine
                .volumes
                .list()
                .into_iter()
                .map(|id| {
                    (
                        id,
                        self.instances.values().any(|i| i.volumes().contains(&id)),
                    )
                })
                .collect(),
        }
    }

    fn report(&self) -> NodeReport {
        NodeReport {
            generation: self.generation(),
            driver: self.driver.clone(),
            egress: self.machine.egress.borrow().clone(),
            hardware: self.hardware.clone(),
            instances: self
                .instances
                .values()
                .map(|handle| handle.status().report)
                .collect(),
            volumes: self.machine.volumes.list(),
            images: self.machine.images.listed(),
        }
    }
}

/// Brings every desired state that is newer than ours.
async fn fetch_desired(
    client: ApiClient,
    mut generation: watch::Receiver<Generation>,
    sender: mpsc::Sender<DesiredState>,
) {
    let mut quiet = false;
    loop {
        let after = *generation.borrow_and_update();
        match client.desired(after, POLL_WAIT).await {
            Ok(None) => quiet = false,
            Ok(Some(state)) => {
                quiet = false;
                let offered = state.generation;
                if sender.send(state).await.is_err() {
                    return;
                }
                // Ask again only once it was taken up; one that was refused comes again later.
                let taken = generation.wait_for(|ours| *ours >= offered);
                if let Ok(Err(_)) = tokio::time::timeout(RETRY_PAUSE, taken).await {
                    return;
                }
            }
            Err(error) => {
                if !quiet {
                    tracing::warn!(
                        error = chain(&error),
                        "cannot reach the server; going on without"
                    );
                }
                quiet = true;
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

/// Keeps the image cache within its budget.
async fn tidy_images(machine: Arc<Machine>) {
    let mut timer = tokio::time::interval(TIDY_INTERVAL);
    loop {
        timer.tick().await;
        machine.images.tidy().await;
    }
}

/// Keeps the way out to the world, and says when that changes.
async fn keep_egress(machine: Arc<Machine>) {
    loop {
        let (egress, on, reason) = match machine.network.ensure_egress().await {
            Ok(egress) => {
                let reason = egress.resolves.err().unwrap_or("by slirp4netns").to_owned();
                (Some(egress), true, reason)
            }
            Err(error) => (None, false, chain(&error)),
        };
        let state = Some(EgressState { on, reason });
        let changed = machine.egress.send_if_modified(|said| {
            let changed = *said != state;
            said.clone_from(&state);
            changed
        });
        if changed && let Some(EgressState { on, reason }) = state {
            if on {
                tracing::info!(reason, "instances reach the world outside of the cluster");
            } else {
                tracing::warn!(reason, "going on without egress");
            }
            machine.changed.notify_one();
        }
        // One that ends as soon as it was made is made again at this pace at most.
        tokio::time::sleep(RETRY_PAUSE).await;
        let ended = async {
            match &egress {
                Some(egress) => egress.ended().await,
                None => std::future::pending().await,
            }
        };
        // Whatever woke us: it is looked at again.
        let _ = tokio::time::timeout(EGRESS_INTERVAL, ended).await;
    }
}

/// Sends the newest report when it changed, and as a sign of life.
async fn send_reports(client: ApiClient, mut report: watch::Receiver<NodeReport>) {
    loop {
        let newest = report.borrow_and_update().clone();
        let pause = match client.report(&newest).await {
            Ok(()) => REPORT_INTERVAL,
            Err(error) => {
                tracing::debug!(error = chain(&error), "cannot report");
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            }
        };
        // A changed report goes out at once; an ended channel means that the agent ends.
        if let Ok(Err(_)) = tokio::time::timeout(pause, report.changed()).await {
            return;
        }
    }
}

/// Stops every microVM of the node that kept its things there, and removes its network.
pub(crate) async fn down(options: &DownOptions) -> Result<(), NodeError> {
    let _lock = lock(&options.data_dir)?;
    let mut failed = Vec::new();
    if options.run_dir.exists() {
        let folder = |source| NodeError::Folder {
            path: options.run_dir.clone(),
            source,
        };
        for entry in std::fs::read_dir(&options.run_dir).map_err(folder)? {
            let path = entry.map_err(folder)?.path();
            match Vm::adopt(&path).await {
                Ok(vm) => {
                    if let Some(vm) = vm {
                        vm.kill().await;
                    }
                    std::fs::remove_dir_all(&path).map_err(folder)?;
                }
                Err(error) => failed.push(chain(&error)),
            }
        }
    }
    if !failed.is_empty() {
        return Err(NodeError::Left(failed.join("; ")));
    }
    if let Some(membership) = Membership::load(&options.data_dir).map_err(NodeError::State)? {
        Network::remove(&network_suffix(&membership, node_id(&membership)?)).await?;
    }
    let instances = instances_dir(&options.data_dir);
    match std::fs::remove_dir_all(&instances) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(NodeError::Folder {
            path: instances,
            source: error,
        }),
        _ => Ok(()),
    }
}
