//! One run: a cluster, operations and faults drawn from the seed, then quiet.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use api::enrollment::Hardware;
use api::user::RolloutPhase;
use manifest::Strategy;
use model::{NodeId, ReleaseNumber, Timestamp};
use overlay::topology::Mode;
use scheduler::apply::Command;
use scheduler::cluster_state::ClusterState;
use scheduler::fixtures::{
    self, MIB, cluster, database, deployment, digest, key, manifest, name, next_release, process,
    release, worker,
};
use scheduler::planner::WantedCommand;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use crate::edge::Edge;
use crate::guest::{COMMAND, RELEASE_COMMAND, STAYING_COMMAND};
use crate::invariants;
use crate::machine::{DISK_BYTES, Machine};
use crate::node::Node;
use crate::operation::{BAD_APPS, Deployed, GOOD_APPS, STRATEGIES, Scarce};
use crate::rng::Rng;
use crate::servers::Servers;
use crate::simulator::{App, Simulator};

/// The env of every run.
const ENV: &str = "shop/prod";
/// How often a run looks whether it is where it waits to be.
const LOOK: Duration = Duration::from_millis(500);
/// How long a cluster without faults may take to come to what was asked for, in seconds.
const CONVERGE_SECONDS: u64 = 60 * 60;
/// How long a cluster must rest, in seconds.
const REST_SECONDS: u64 = 60;

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
    /// The step of the violation; the last one where there is none.
    pub violated_after: u64,
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
            violated_after: simulator.violated_after(),
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

/// How hard a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultLevel {
    /// No faults but apps that do not run: every rollout is checked to its end.
    None,
    /// Everything that may break, breaks.
    All,
    /// The same, and the store is restored from a backup: only what holds at every step is checked.
    Restored,
}

/// One run.
pub(crate) struct Scenario {
    pub(crate) simulator: Simulator,
    pub(crate) servers: Servers,
    pub(crate) edge: Edge,
    _edge_task: AbortOnDropHandle<()>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) fault_level: FaultLevel,
    pub(crate) scarce: Scarce,
    /// Records that were damaged: the node's place, the file, its content before.
    pub(crate) damaged: Vec<(usize, std::path::PathBuf, Vec<u8>)>,
    /// Whether the database's clock was set back since everything was healed last.
    pub(crate) was_set_back: bool,
}

/// What a machine of such a cluster has.
pub(crate) fn hardware(scarce: Scarce) -> Hardware {
    let mut hardware = fixtures::node(1, 4096).1.hardware;
    match scarce {
        Scarce::Nothing | Scarce::Disk => {}
        Scarce::Memory => hardware.memory_bytes = 7 * 256 * MIB,
        Scarce::Cpu => hardware.cpus = 1,
    }
    hardware
}

/// The disk of such a machine, in bytes.
pub(crate) fn disk_bytes(scarce: Scarce) -> u64 {
    match scarce {
        Scarce::Disk => 4 * 1024 * MIB,
        Scarce::Nothing | Scarce::Memory | Scarce::Cpu => DISK_BYTES,
    }
}

impl Scenario {
    fn new(simulator: &Simulator) -> Self {
        let (count, fault_level, leaves_tap, servers, scarce) = simulator.draw(|rng| {
            let fault_level = match rng.below(10) {
                0..2 => FaultLevel::None,
                2 => FaultLevel::Restored,
                _ => FaultLevel::All,
            };
            let scarce = match (fault_level, rng.below(8)) {
                (FaultLevel::All, 0) => Scarce::Memory,
                (FaultLevel::All, 1) => Scarce::Cpu,
                (FaultLevel::All, 2) => Scarce::Disk,
                _ => Scarce::Nothing,
            };
            let count = 1 + rng.below(3) as u16;
            (
                count,
                fault_level,
                rng.percent(50),
                1 + rng.below(3) as usize,
                scarce,
            )
        });
        simulator.trace(format!(
            "{count} nodes, {servers} servers, {fault_level:?}, scarce: {scarce:?}"
        ));
        let mut cluster = cluster(count);
        // Without a draw, which would make other runs of all seeds.
        if count % 2 == 0 {
            cluster.settings.mode = Mode::Hubs { local_mesh: 0 };
        }
        for (number, node) in cluster.nodes.values_mut().enumerate() {
            node.wireguard_key = Some(format!("key of {}", number + 1));
        }
        for node in cluster.nodes.values_mut() {
            node.hardware = hardware(scarce);
        }
        let servers = Servers::start(simulator, cluster, servers);
        let nodes = (1..=count).map(|id| {
            let (hardware, disk) = (hardware(scarce), disk_bytes(scarce));
            let machine = Machine::of(simulator, NodeId(id), hardware, disk, leaves_tap);
            let mut node = Node::on(machine, &servers);
            node.start();
            node
        });
        let edge = Edge::new(&servers);
        Self {
            nodes: nodes.collect(),
            simulator: simulator.clone(),
            servers,
            _edge_task: AbortOnDropHandle::new(tokio::spawn(edge.clone().run())),
            edge,
            fault_level,
            scarce,
            damaged: Vec::new(),
            was_set_back: false,
        }
    }

    pub(crate) fn draw<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        self.simulator.draw(draw)
    }

    async fn play(&mut self) {
        let first = self
            .draw(|rng| rng.pick(&GOOD_APPS))
            .unwrap_or(App::Healthy);
        if let Some(deployed) = self.deploy(first).await
            && self.fault_level == FaultLevel::None
        {
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
        self.heal().await;
        self.wipe_strangers().await;
        if self.fault_level == FaultLevel::Restored {
            let applied = Self::every_node_has_applied_the_state;
            self.until("every node has applied the store's state", applied)
                .await;
            sleep(Duration::from_secs(5 * REST_SECONDS)).await;
            return;
        }
        if self.scarce == Scarce::Disk {
            // Volumes stay where they are, so not everything that is wanted fits.
            sleep(Duration::from_secs(5 * REST_SECONDS)).await;
            return;
        }
        if self.deploy(App::Healthy).await.is_none() {
            self.simulator.violate("no server takes a deploy");
            return;
        }
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
        let runs = self.servers.with(|cluster| {
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
            self.scale().await;
            self.until("the cluster rests after it was scaled", Self::is_at_rest)
                .await;
            return;
        }
        let before = self
            .servers
            .with(|cluster| cluster.envs[&key(ENV)].rollout.wanted);
        let apps = if self.draw(|rng| rng.percent(50)) {
            &GOOD_APPS[..]
        } else {
            &BAD_APPS[..]
        };
        let app = self.draw(|rng| rng.pick(apps)).unwrap_or(App::Healthy);
        match self.deploy(app).await {
            Some(deployed) => self.follow_rollout(&deployed, Some(before)).await,
            None => self.simulator.violate("no server takes a deploy"),
        }
    }

    /// The machines of nodes that were removed are wiped.
    async fn wipe_strangers(&mut self) {
        self.remove_revoked().await;
        for node in &mut self.nodes {
            let id = node.machine.node;
            if !self.servers.with(|cluster| cluster.has_node(id)) {
                node.kill().await;
                node.machine.reboot();
            }
        }
    }

    /// Waits for the end of a rollout and checks that nothing was missing meanwhile and nothing is left
    /// half-done.
    async fn follow_rollout(&mut self, deployed: &Deployed, before: Option<ReleaseNumber>) {
        let web = name("web");
        let release = self
            .servers
            .with(|cluster| cluster.envs[&key(ENV)].rollout.release);
        let (mut fewest, mut most) = (u32::MAX, 0);
        let start = self
            .servers
            .with(|cluster| invariants::ready(cluster, &key(ENV), &web));
        for _ in 0..CONVERGE_SECONDS * 2 {
            let phase = self.phase();
            self.servers.with(|cluster| {
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
        let (phase, wanted) = self.servers.with(|cluster| {
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
        self.servers
            .with(|cluster| cluster.envs[&key(ENV)].rollout.phase)
    }

    /// Deploys a release with this app. `None`: no server took it.
    pub(crate) async fn deploy(&mut self, app: App) -> Option<Deployed> {
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
        if self.fault_level != FaultLevel::None
            && deployed.count > 0
            && self.draw(|rng| rng.percent(25))
        {
            web.deploy.release_command = Some(vec![RELEASE_COMMAND.to_owned()]);
        }
        if let Some(health) = &mut web.healthcheck {
            health.interval_ms = interval_ms;
        }
        if self.scarce == Scarce::Cpu {
            web.resources.cpu_millis = 1_500;
        }
        let processes = [("web", web), ("worker", worker(workers))];
        let number = Arc::new(AtomicU32::new(0));
        let (given, simulator) = (number.clone(), self.simulator.clone());
        let deploy = move |cluster: &ClusterState, now| {
            let mut release = release(manifest(&processes));
            let number = next_release(cluster, ENV).0;
            given.store(number, Ordering::Relaxed);
            // Each release has an image of its own, so that its app is known by the image.
            for image in release.resolved.values_mut() {
                image.digest = digest(number as u8);
            }
            simulator.set_app(digest(number as u8), app);
            vec![deployment(cluster, ENV, release, now)]
        };
        if !self.servers.change(deploy).await {
            return None;
        }
        let number = number.load(Ordering::Relaxed);
        let counted = self.servers.with(|cluster| {
            let env = cluster.envs.get(&key(ENV))?;
            let counts = scheduler::rollout::wanted_counts(env, ReleaseNumber(number));
            counts.get(&name("web")).copied()
        });
        deployed.count = counted.unwrap_or_default();
        self.simulator.trace(format!(
            "deploy v{number}: {} of {app:?}, {:?}, surge {}, unavailable {}, volumes {}, {workers} workers",
            deployed.count, deployed.strategy, deployed.surge, deployed.unavailable, deployed.volumes
        ));
        Some(deployed)
    }

    pub(crate) async fn scale(&self) {
        let count = self.draw(|rng| rng.below(5) as u32);
        self.simulator.trace(format!("scale web to {count}"));
        let scale = move |cluster: &ClusterState, _| {
            let is_there = cluster.envs.contains_key(&key(ENV));
            let scale = is_there.then(|| Command::SetScale {
                env: key(ENV),
                scale: BTreeMap::from([(name("web"), count)]),
            });
            scale.into_iter().collect()
        };
        self.servers.change(scale).await;
    }

    /// A user runs a command in an instance of its own, and does not ask again when no answer comes.
    pub(crate) async fn run_command(&self) {
        let (program, lifetime_ms) = self.draw(|rng| {
            let program = rng.pick(&[COMMAND, STAYING_COMMAND]).unwrap_or(COMMAND);
            (program, 1_000 + rng.below(120_000))
        });
        self.simulator
            .trace(format!("run {program} for {lifetime_ms} ms at most"));
        let wanted = move |now: Timestamp| WantedCommand {
            env: key(ENV),
            process: name("web"),
            command: vec![program.to_owned()],
            attached: false,
            ends_at: Timestamp(now.0 + lifetime_ms),
            call: None,
        };
        self.servers.run_command(wanted).await;
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
        let show = self.servers.with(scheduler::fixtures::show);
        self.simulator.violate(format!(
            "after {CONVERGE_SECONDS} s it is not so that {what}: {missing}\n{show}"
        ));
        false
    }

    /// Whether the wanted release runs wholly and nothing else is left.
    fn is_at_rest(&self) -> Result<(), String> {
        self.servers.with(|cluster| {
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
        self.servers.with(|cluster| self.edge.is_current(cluster))?;
        self.no_leftovers()
    }

    /// Whether every node that is a member has applied its desired state, whatever it had before the store was restored.
    fn every_node_has_applied_the_state(&self) -> Result<(), String> {
        self.servers.with(|cluster| {
            for node in &self.nodes {
                let id = node.machine.node;
                let wanted = cluster.generation(id);
                let taken = self.simulator.taken(id);
                // A node with nothing to do is told nothing.
                let is_told = wanted.is_some_and(|wanted| taken.is_some() || wanted.counter > 0);
                if is_told && wanted != taken {
                    return Err(format!("{id} has {taken:?} of {wanted:?}"));
                }
            }
            Ok(())
        })
    }

    fn no_leftovers(&self) -> Result<(), String> {
        self.servers.with(|cluster| {
            let machines = self.nodes.iter().map(|node| &node.machine);
            let mut machines = machines.filter(|machine| cluster.has_node(machine.node));
            match machines.find_map(|machine| invariants::leftovers(machine, cluster)) {
                Some(leftover) => Err(leftover),
                None => Ok(()),
            }
        })
    }

    /// Checks that nothing happens any more.
    async fn rest(&self) {
        let state = || {
            let generations: Vec<_> = self.servers.with(|cluster| {
                let nodes = cluster.nodes.values();
                nodes.map(|node| node.generation).collect()
            });
            let boots: Vec<_> = self.nodes.iter().map(|node| node.machine.boots()).collect();
            let files: Vec<_> = self
                .nodes
                .iter()
                .map(|node| node.machine.lock().files.clone())
                .collect();
            let stored = self.servers.store.with(|cluster| {
                let mut cluster = cluster.clone();
                // When a node was seen is written once a minute.
                for node in cluster.nodes.values_mut() {
                    node.seen_at = None;
                }
                cluster
            });
            let leading = (self.servers.store.leader(), self.servers.leading());
            let actions = self.simulator.actions();
            (actions, generations, boots, files, stored, leading)
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
        let volumes = self.servers.with(|cluster| cluster.volumes.clone());
        let destroy = |cluster: &ClusterState, _| {
            let env = cluster.envs.get(&key(ENV));
            let destroy = Command::DestroyEnv { env: key(ENV) };
            let is_there = env.is_some_and(|env| !env.destroying);
            is_there.then_some(destroy).into_iter().collect()
        };
        self.servers.change(destroy).await;
        let gone = |scenario: &Self| {
            let empty = scenario
                .servers
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
        if self.servers.with(|cluster| cluster.volumes != volumes) {
            self.simulator
                .violate("volumes changed as their env was destroyed");
        }
        self.simulator.trace("delete the volumes");
        let delete = |cluster: &ClusterState, _| {
            let volumes = cluster.volumes.iter();
            let there = volumes.filter(|(_, volume)| !volume.is_deleting());
            let delete = there.map(|(id, _)| Command::DeleteVolume { id: *id });
            delete.collect()
        };
        self.servers.change(delete).await;
        let gone = |scenario: &Self| {
            if scenario.servers.with(|cluster| cluster.volumes.is_empty()) {
                scenario.no_leftovers()
            } else {
                Err("volumes are there".to_owned())
            }
        };
        self.until("the volumes are gone", gone).await;
    }
}
