//! One run: a cluster, operations and faults drawn from the seed, then quiet.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::node::DriverChoice;
use api::user::RolloutPhase;
use manifest::Strategy;
use model::{NodeId, ReleaseNumber};
use node_agent::agent::{self, AgentSettings};
use node_agent::host::Host;
use node_agent::{Clock, Directory};
use node_core::boot::NodeFacts;
use node_core::instance::Timing;
use scheduler::apply::Command;
use scheduler::cluster_state::Scheduling;
use scheduler::fixtures::{
    cluster, database, deployment, digest, key, manifest, name, next_release, process, release,
    worker,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::host::SimHost;
use crate::invariants;
use crate::machine::Machine;
use crate::operation::{BAD_APPS, Deployed, GOOD_APPS, OPERATIONS, Operation, STRATEGIES};
use crate::rng::Rng;
use crate::server::{Faults, Link, Server};
use crate::simulator::{App, Simulator};

/// The env of every run.
const ENV: &str = "shop/prod";
/// Where the agents keep their files.
pub(crate) const DATA_DIR: &str = "/data";
/// How often a run looks whether it is where it waits to be.
const LOOK: Duration = Duration::from_millis(500);
/// How long a cluster without faults may take to come to what was asked for, in seconds.
const CONVERGE_SECONDS: u64 = 60 * 60;
/// How long a cluster must rest, in seconds.
const REST_SECONDS: u64 = 60;
/// How deep the tasks of an agent own one another: a task is dropped after its owner.
const TASK_DEPTH: u32 = 8;
/// Pause before an agent that ended by itself is started again.
const AGENT_RESTART_PAUSE: Duration = Duration::from_secs(2);

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What happened, with the time in seconds.
    pub trace: Vec<String>,
    /// What must not have happened; absent: the run passed.
    pub violation: Option<String>,
    /// Calls of the host and the server, and plans.
    pub steps: u64,
}

/// Runs one seed to its end.
///
/// # Panics
/// The runtime cannot be made.
pub fn run(seed: u64) -> Outcome {
    in_simulated_time(async move {
        let simulator = Simulator::new(seed);
        Scenario::new(&simulator).play().await;
        simulator.trace("the end");
        Outcome {
            seed,
            violation: simulator.violation(),
            steps: simulator.steps(),
            trace: simulator.take_trace(),
        }
    })
}

/// Runs a future on one thread, in time that passes when everything waits.
pub(crate) fn in_simulated_time<T>(future: impl Future<Output = T>) -> T {
    #[allow(
        clippy::expect_used,
        reason = "without a runtime there is nothing to run"
    )]
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime of one thread");
    runtime.block_on(future)
}

/// One node of the cluster.
pub(crate) struct Node {
    pub(crate) machine: Machine,
    pub(crate) link: Link,
    agent: Option<AbortOnDropHandle<()>>,
}

impl Node {
    pub(crate) fn new(
        simulator: &Simulator,
        server: &Server,
        id: NodeId,
        leaves_tap: bool,
    ) -> Self {
        Self {
            machine: Machine::new(simulator, id, leaves_tap),
            link: server.link(id),
            agent: None,
        }
    }

    /// Starts the agent, and again whenever it ends by itself.
    pub(crate) fn start(&mut self) {
        let (machine, link) = (self.machine.clone(), self.link.clone());
        machine
            .simulator
            .trace(format!("{} starts its agent", machine.node));
        let agent = async move {
            loop {
                let host = SimHost(machine.clone());
                let host = Host {
                    vmm: Arc::new(host.clone()),
                    network: Arc::new(host.clone()),
                    images: Arc::new(host.clone()),
                    disks: Arc::new(host.clone()),
                    server: Arc::new(link.clone()),
                    files: Arc::new(host.clone()),
                    logs: Arc::new(host),
                };
                let clock = Clock::start_at(machine.simulator.now());
                let settings = settings(machine.node);
                let shutdown = CancellationToken::new();
                let ended = agent::run(settings, host, clock, Directory::default(), shutdown).await;
                machine
                    .simulator
                    .trace(format!("{} agent ended: {ended:?}", machine.node));
                sleep(AGENT_RESTART_PAUSE).await;
            }
        };
        self.agent = Some(AbortOnDropHandle::new(tokio::spawn(agent)));
    }

    /// Kills the agent. Its VMs go on.
    pub(crate) async fn kill(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.abort();
            // Its tasks end one after the other, and none of them acts after this.
            let _ = agent.await;
            for _ in 0..TASK_DEPTH {
                tokio::task::yield_now().await;
            }
            let machine = &self.machine;
            machine.agent_ended();
            machine
                .simulator
                .trace(format!("{} loses its agent", machine.node));
        }
    }
}

fn settings(node: NodeId) -> AgentSettings {
    let hardware = cluster(node.0)
        .nodes
        .remove(&node)
        .map(|node| node.hardware.clone());
    AgentSettings {
        cluster: "cluster-1".to_owned(),
        node,
        driver: DriverChoice {
            name: "simulated".to_owned(),
            reason: "a simulation".to_owned(),
        },
        hardware: hardware.unwrap_or_default(),
        facts: NodeFacts {
            region: "local".to_owned(),
            node_name: format!("node-{}", node.0),
            mtu: 1420,
            resolvers: Vec::new(),
        },
        timing: Timing::default(),
        data_dir: Path::new(DATA_DIR).to_owned(),
    }
}

/// How hard a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FaultLevel {
    /// No faults but apps that do not run: every rollout is checked to its end.
    None,
    /// Everything that may break, breaks.
    All,
    /// The same, and the store is restored from a backup: only what holds at every step is checked.
    Restored,
}

struct Scenario {
    simulator: Simulator,
    server: Server,
    _planner: AbortOnDropHandle<()>,
    nodes: Vec<Node>,
    fault_level: FaultLevel,
    /// Records that were damaged: the node's place, the file, its content before and after.
    damaged: Vec<(usize, std::path::PathBuf, Vec<u8>)>,
}

impl Scenario {
    fn new(simulator: &Simulator) -> Self {
        let (count, fault_level, leaves_tap) = simulator.draw(|rng| {
            let fault_level = match rng.below(10) {
                0..2 => FaultLevel::None,
                2 => FaultLevel::Restored,
                _ => FaultLevel::All,
            };
            (1 + rng.below(3) as u16, fault_level, rng.percent(50))
        });
        simulator.trace(format!("{count} nodes, {fault_level:?}"));
        let server = Server::new(simulator, cluster(count));
        let planner = AbortOnDropHandle::new(tokio::spawn(server.clone().run()));
        let nodes = (1..=count).map(|id| {
            let mut node = Node::new(simulator, &server, NodeId(id), leaves_tap);
            node.start();
            node
        });
        Self {
            nodes: nodes.collect(),
            simulator: simulator.clone(),
            server,
            _planner: planner,
            fault_level,
            damaged: Vec::new(),
        }
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        self.simulator.draw(draw)
    }

    async fn play(&mut self) {
        let first = self
            .draw(|rng| rng.pick(&GOOD_APPS))
            .unwrap_or(App::Healthy);
        let deployed = self.deploy(first);
        if self.fault_level == FaultLevel::None {
            self.follow_rollout(&deployed, None).await;
        }
        let operations = self.draw(|rng| 3 + rng.below(10));
        for _ in 0..operations {
            if self.simulator.violation().is_some() {
                return;
            }
            if self.fault_level == FaultLevel::None {
                self.faultless_operation().await;
            } else {
                let wait = self.draw(|rng| rng.millis(0, 30_000));
                sleep(wait).await;
                self.operate().await;
            }
        }
        self.heal();
        if self.fault_level == FaultLevel::Restored {
            sleep(Duration::from_secs(5 * REST_SECONDS)).await;
            return;
        }
        self.deploy(App::Healthy);
        if !self
            .until(
                "the last release runs and nothing else is left",
                Self::is_at_rest,
            )
            .await
        {
            return;
        }
        self.rest().await;
        self.remove_everything().await;
    }

    /// In a run without faults: another release or another size, followed to its end.
    async fn faultless_operation(&mut self) {
        let runs = self.server.with(|cluster| {
            let env = &cluster.envs[&key(ENV)];
            let release = env.releases.get(&env.rollout.wanted);
            release.is_some_and(|r| {
                r.resolved
                    .values()
                    .all(|image| self.simulator.app(&image.digest).is_good())
            })
        });
        // That a release of which no instance was wanted cannot run is not known before it is scaled.
        if runs && self.draw(|rng| rng.percent(40)) {
            self.scale();
            self.until("the cluster rests after it was scaled", Self::is_at_rest)
                .await;
            return;
        }
        let before = self
            .server
            .with(|cluster| cluster.envs[&key(ENV)].rollout.wanted);
        let apps = if self.draw(|rng| rng.percent(50)) {
            &GOOD_APPS[..]
        } else {
            &BAD_APPS[..]
        };
        let app = self.draw(|rng| rng.pick(apps)).unwrap_or(App::Healthy);
        let deployed = self.deploy(app);
        self.follow_rollout(&deployed, Some(before)).await;
    }

    /// Waits for the end of a rollout and checks that nothing was missing meanwhile and nothing is left
    /// half-done.
    async fn follow_rollout(&mut self, deployed: &Deployed, before: Option<ReleaseNumber>) {
        let web = name("web");
        let release = self
            .server
            .with(|cluster| cluster.envs[&key(ENV)].rollout.release);
        let (mut fewest, mut most) = (u32::MAX, 0);
        let start = self
            .server
            .with(|cluster| invariants::ready(cluster, &key(ENV), &web));
        for _ in 0..CONVERGE_SECONDS * 2 {
            let phase = self.phase();
            self.server.with(|cluster| {
                fewest = fewest.min(invariants::ready(cluster, &key(ENV), &web));
                most = most.max(invariants::vms_of(&self.simulator, cluster, &web));
            });
            if phase != RolloutPhase::Rolling || self.simulator.violation().is_some() {
                break;
            }
            sleep(LOOK).await;
        }
        self.until("the cluster rests after the rollout", Self::is_at_rest)
            .await;
        let (phase, wanted) = self.server.with(|cluster| {
            let rollout = &cluster.envs[&key(ENV)].rollout;
            (rollout.phase, rollout.wanted)
        });
        // Without a health check nobody notices that an app does not answer.
        let found_out = match deployed.app {
            App::Unhealthy => deployed.count > 0,
            app => !app.is_good() && deployed.count + deployed.workers > 0,
        };
        let expected = match before {
            _ if !found_out => (RolloutPhase::Done, release),
            Some(before) => (RolloutPhase::Reverted, before),
            None => (RolloutPhase::Failed, release),
        };
        if (phase, wanted) != expected {
            self.simulator.violate(format!(
                "the rollout of {release} ends as {phase:?} on {wanted}, expected {expected:?}"
            ));
        }
        let stops_first = u32::from(deployed.volumes);
        let unavailable = deployed.unavailable.max(stops_first);
        let minimum = deployed.count.saturating_sub(unavailable).min(start);
        if before.is_some() && fewest < minimum {
            self.simulator.violate(format!(
                "{fewest} instances were ready during the rollout of {release}, {minimum} are the minimum"
            ));
        }
        let surge = if deployed.volumes {
            0
        } else {
            deployed.surge.max(u32::from(unavailable == 0))
        };
        let ceiling = deployed.count.max(start) + surge;
        // A revert does not wait for what it ends: then there may be more for a moment.
        if phase == RolloutPhase::Done && most > ceiling {
            self.simulator.violate(format!(
                "{most} VMs ran during the rollout of {release}, {ceiling} are the maximum"
            ));
        }
    }

    fn phase(&self) -> RolloutPhase {
        self.server
            .with(|cluster| cluster.envs[&key(ENV)].rollout.phase)
    }

    fn deploy(&mut self, app: App) -> Deployed {
        let mut deployed = self.draw(|rng| Deployed {
            app,
            count: 1 + rng.below(4) as u32,
            workers: rng.below(3) as u32,
            surge: rng.below(3) as u32,
            unavailable: rng.below(3) as u32,
            volumes: rng.percent(40),
            strategy: rng.pick(&STRATEGIES).unwrap_or(Strategy::Rolling),
            min_healthy_ms: rng.below(3) * 5_000,
        });
        if self.fault_level == FaultLevel::None {
            // So that a rollout's minimum is that of one process type all the time.
            deployed.volumes = self.nodes[0].machine.lock().leaves_tap;
            deployed.count = 1 + self.nodes.len() as u32;
            deployed.strategy = Strategy::Rolling;
        }
        if deployed.volumes && deployed.strategy != Strategy::Immediate {
            deployed.strategy = Strategy::Rolling;
        }
        let workers = deployed.workers;
        let interval_ms = self.draw(|rng| 1_000 * (1 + rng.below(5)));
        let mut web = if deployed.volumes {
            database(deployed.count)
        } else {
            process(deployed.count)
        };
        web.deploy.max_surge = deployed.surge;
        web.deploy.max_unavailable = deployed.unavailable;
        web.deploy.strategy = deployed.strategy;
        web.deploy.min_healthy_ms = deployed.min_healthy_ms;
        if let Some(health) = &mut web.healthcheck {
            health.interval_ms = interval_ms;
        }
        let processes = [("web", web), ("worker", worker(workers))];
        let now = self.simulator.now();
        let mut number = 0;
        self.server.change(|cluster| {
            let mut release = release(manifest(&processes));
            number = next_release(cluster, ENV).0;
            // Each release has an image of its own, so that its app is known by the image.
            for image in release.resolved.values_mut() {
                image.digest = digest(number as u8);
            }
            vec![deployment(cluster, ENV, release, now)]
        });
        self.simulator.set_app(digest(number as u8), app);
        deployed.count = self.server.with(|cluster| {
            let env = &cluster.envs[&key(ENV)];
            let counts = scheduler::rollout::wanted_counts(env, ReleaseNumber(number));
            counts.get(&name("web")).copied().unwrap_or_default()
        });
        self.simulator.trace(format!(
            "deploy v{number}: {} of {app:?}, {:?}, surge {}, unavailable {}, volumes {}, {workers} workers",
            deployed.count, deployed.strategy, deployed.surge, deployed.unavailable, deployed.volumes
        ));
        deployed
    }

    fn scale(&self) {
        let count = self.draw(|rng| rng.below(5) as u32);
        self.simulator.trace(format!("scale web to {count}"));
        self.server.change(|_| {
            vec![Command::SetScale {
                env: key(ENV),
                scale: BTreeMap::from([(name("web"), count)]),
            }]
        });
    }

    async fn operate(&mut self) {
        let mut operation = self
            .draw(|rng| rng.pick(&OPERATIONS))
            .unwrap_or(Operation::Heal);
        if self.fault_level == FaultLevel::Restored && self.draw(|rng| rng.percent(25)) {
            operation = if self.draw(|rng| rng.percent(50)) {
                Operation::BackUp
            } else {
                Operation::Restore
            };
        }
        let at = self.draw(|rng| rng.below(self.nodes.len() as u64)) as usize;
        let machine = self.nodes[at].machine.clone();
        let running = machine.running();
        let victim = self.draw(|rng| rng.pick(&running));
        self.simulator
            .trace(format!("{operation:?} on {}", machine.node));
        match operation {
            Operation::Deploy => {
                let good = self.draw(|rng| rng.percent(60));
                let apps = if good { &GOOD_APPS[..] } else { &BAD_APPS[..] };
                let app = self.draw(|rng| rng.pick(apps)).unwrap_or(App::Healthy);
                self.deploy(app);
            }
            Operation::Scale => self.scale(),
            Operation::KillAgent => self.restart_agent(at).await,
            Operation::Reboot => {
                self.nodes[at].kill().await;
                machine.reboot();
                self.restart_agent(at).await;
            }
            Operation::KillVm => {
                if let Some(id) = victim {
                    machine.end_vm(id, "signal 9");
                }
            }
            Operation::CrashApp => {
                if let Some(id) = victim {
                    machine.crash_app(id);
                }
            }
            Operation::Partition => self.nodes[at].link.faults().partitioned = true,
            Operation::ServerDown => {
                self.server.crash();
                let wait = self.draw(|rng| rng.millis(0, 60_000));
                sleep(wait).await;
                self.server.start();
                self.simulator.trace("the server is back");
            }
            Operation::DiskFull => machine.lock().disk_full = true,
            Operation::RegistryDown => machine.lock().registry_down = true,
            Operation::LossyLink => {
                let mut faults = self.nodes[at].link.faults();
                faults.loss_percent = self.simulator.draw(|rng| rng.below(50));
                faults.late_percent = self.simulator.draw(|rng| rng.below(30));
            }
            Operation::FailingBoots => machine.lock().boot_failures_percent = 50,
            Operation::WrongStates => self.nodes[at].link.faults().wrong_state_percent = 20,
            Operation::DamageRecord => self.damage_record(at).await,
            Operation::UnreadableVm => {
                if let Some(id) = victim {
                    machine.lock().unreadable_vms.insert(id);
                    self.restart_agent(at).await;
                }
            }
            Operation::Schedule => {
                let modes = [
                    Scheduling::Schedulable,
                    Scheduling::Cordoned,
                    Scheduling::Draining {
                        with_volumes: false,
                    },
                    Scheduling::Draining { with_volumes: true },
                ];
                let scheduling = self.draw(|rng| rng.pick(&modes)).unwrap_or_default();
                self.schedule(machine.node, scheduling);
            }
            Operation::BackUp => self.server.back_up(),
            Operation::Restore => {
                if self.server.restore() {
                    self.simulator
                        .trace("the server has the state of its backup");
                }
            }
            Operation::Heal => self.heal(),
        }
    }

    /// A user says whether a node takes instances.
    fn schedule(&self, node: NodeId, scheduling: Scheduling) {
        self.simulator.trace(format!("{node}: {scheduling:?}"));
        self.server
            .change(|_| vec![Command::SetScheduling { node, scheduling }]);
    }

    async fn restart_agent(&mut self, at: usize) {
        self.nodes[at].kill().await;
        let wait = self.draw(|rng| rng.millis(0, 15_000));
        sleep(wait).await;
        self.nodes[at].start();
    }

    /// Damages the record of an instance while no agent runs.
    async fn damage_record(&mut self, at: usize) {
        self.nodes[at].kill().await;
        let machine = self.nodes[at].machine.clone();
        let paths: Vec<_> = {
            let state = machine.lock();
            let records = state
                .files
                .keys()
                .filter(|path| path.ends_with("instance.json"));
            records.cloned().collect()
        };
        if let Some(path) = self.draw(|rng| rng.pick(&paths)) {
            self.simulator
                .trace(format!("{} is damaged", path.display()));
            let mut state = machine.lock();
            if let Some(content) = state.files.get_mut(&path) {
                let before = std::mem::replace(content, b"{\"spec\": ".to_vec());
                self.damaged.push((at, path, before));
            }
        }
        self.restart_agent(at).await;
    }

    /// Ends every fault.
    fn heal(&mut self) {
        self.simulator.trace("everything is healed");
        for (at, path, before) in self.damaged.drain(..) {
            let mut state = self.nodes[at].machine.lock();
            if let Some(content) = state.files.get_mut(&path)
                && content.as_slice() == b"{\"spec\": "
            {
                *content = before;
            }
        }
        for node in &mut self.nodes {
            *node.link.faults() = Faults::default();
            let mut state = node.machine.lock();
            state.disk_full = false;
            state.registry_down = false;
            state.boot_failures_percent = 0;
            state.unreadable_vms.clear();
        }
        for node in &self.nodes {
            self.schedule(node.machine.node, Scheduling::Schedulable);
        }
        self.server.wake();
    }

    /// Waits until the cluster is where it should be. False: the run is over.
    async fn until(&self, what: &str, there: impl Fn(&Self) -> Result<(), String>) -> bool {
        let mut missing = String::new();
        for _ in 0..CONVERGE_SECONDS * 2 {
            if self.simulator.violation().is_some() {
                return false;
            }
            match there(self) {
                Ok(()) => return true,
                Err(why) => missing = why,
            }
            sleep(LOOK).await;
        }
        let show = self.server.with(scheduler::fixtures::show);
        self.simulator.violate(format!(
            "after {CONVERGE_SECONDS} s it is not so that {what}: {missing}\n{show}"
        ));
        false
    }

    /// Whether the wanted release runs wholly and nothing else is left.
    fn is_at_rest(&self) -> Result<(), String> {
        self.server.with(|cluster| {
            let Some(env) = cluster.envs.get(&key(ENV)) else {
                return Err("there is no env".to_owned());
            };
            let rollout = &env.rollout;
            if rollout.phase == RolloutPhase::Rolling {
                return Err(format!("the rollout goes on: {}", rollout.reason));
            }
            let failed = rollout.phase == RolloutPhase::Failed && rollout.previous.is_none();
            let mut wanted = scheduler::rollout::wanted_counts(env, rollout.wanted);
            if failed {
                wanted.clear();
            }
            let sum: u32 = wanted.values().sum();
            if cluster.instances.len() != sum as usize || !invariants::all_ready(cluster) {
                return Err(format!("{sum} instances are wanted"));
            }
            for (process, count) in &wanted {
                let ready = invariants::ready(cluster, &key(ENV), process);
                if ready != *count {
                    return Err(format!(
                        "{ready} of {count} instances of {process} are ready"
                    ));
                }
            }
            Ok(())
        })?;
        self.no_leftovers()
    }

    fn no_leftovers(&self) -> Result<(), String> {
        self.server.with(|cluster| {
            let mut machines = self.nodes.iter().map(|node| &node.machine);
            match machines.find_map(|machine| invariants::leftovers(machine, cluster)) {
                Some(leftover) => Err(leftover),
                None => Ok(()),
            }
        })
    }

    /// Checks that nothing happens any more.
    async fn rest(&self) {
        let state = || {
            let generations: Vec<_> = self.server.with(|cluster| {
                let nodes = cluster.nodes.values();
                nodes.map(|node| node.generation).collect()
            });
            let boots: Vec<_> = self.nodes.iter().map(|node| node.machine.boots()).collect();
            let files: Vec<_> = self
                .nodes
                .iter()
                .map(|node| node.machine.lock().files.clone())
                .collect();
            (self.server.actions(), generations, boots, files)
        };
        // A node that was given a wrong state reports first.
        sleep(Duration::from_secs(REST_SECONDS)).await;
        let before = state();
        sleep(Duration::from_secs(REST_SECONDS)).await;
        let after = state();
        if before != after {
            self.simulator
                .violate("the cluster does not rest".to_owned());
        }
    }

    /// Destroys the env and its volumes; nothing is left.
    async fn remove_everything(&mut self) {
        self.simulator.trace("destroy");
        let volumes = self.server.with(|cluster| cluster.volumes.clone());
        self.server
            .change(|_| vec![Command::DestroyEnv { env: key(ENV) }]);
        let gone = |scenario: &Self| {
            let empty = scenario
                .server
                .with(|c| c.envs.is_empty() && c.instances.is_empty());
            if empty {
                scenario.no_leftovers()
            } else {
                Err("the env is there".to_owned())
            }
        };
        if !self.until("the env is gone", gone).await {
            return;
        }
        if self.server.with(|cluster| cluster.volumes != volumes) {
            self.simulator
                .violate("volumes changed as their env was destroyed");
        }
        self.simulator.trace("delete the volumes");
        self.server.change(|cluster| {
            let ids = cluster.volumes.keys();
            ids.map(|id| Command::DeleteVolume { id: *id }).collect()
        });
        let gone = |scenario: &Self| {
            if scenario.server.with(|cluster| cluster.volumes.is_empty()) {
                scenario.no_leftovers()
            } else {
                Err("volumes are there".to_owned())
            }
        };
        self.until("the volumes are gone", gone).await;
    }
}
