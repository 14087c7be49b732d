//! A whole small cluster in one process: the planner against nodes that run the real
//! [`node_core::reconcile::reconcile`] and [`node_core::instance::Lifecycle`], with apps that behave as told.
//! What holds at every step is checked at every step.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use api::node::{DriverChoice, InstanceReport, NodeReport};
use api::user::RolloutPhase;
use guest_protocol::BootFailure;
use model::instance::{InstanceSpec, InstanceState};
use model::{
    EnvKey, Generation, InstanceId, NodeId, ProcessName, ReleaseNumber, Timestamp, VolumeId,
};
use proptest::prelude::*;

use node_core::instance::{Effect, Event, Lifecycle, Timing};
use node_core::reconcile::{NodeAction, Seen, SeenInstance, reconcile};
use scheduler::apply::{Command, apply};
use scheduler::cluster_state::{ClusterState, Instance, Volume};
use scheduler::desired::desired_state;
use scheduler::fixtures::{
    cluster, database, deploy, exit, key, manifest, name, process, show, worker,
};
use scheduler::planner::{Action, Plan, plan};
use scheduler::reports::unknown;
use scheduler::rollout;
use scheduler::routes::routes;

/// One step of the simulation, in milliseconds.
const STEP_MS: u64 = 500;
const ENV: &str = "shop/prod";

/// What the app of a release does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum App {
    Healthy,
    /// Its command does not exist.
    NotFound,
    /// It exits with this code as soon as it runs.
    Exits(u8),
    /// Its health check never passes.
    Unhealthy,
    /// There is no such image.
    NoImage,
    /// The registry does not answer the first two times.
    SlowImage,
    /// Its guest hangs the first time.
    HangsOnce,
    /// Its guest always hangs.
    Hangs,
}

impl App {
    fn is_good(self) -> bool {
        matches!(self, Self::Healthy | Self::SlowImage | Self::HangsOnce)
    }
}

/// A running life on a simulated node.
struct Life {
    spec: InstanceSpec,
    lifecycle: Lifecycle,
    vm: bool,
    prepares: u32,
    boots: u32,
    next_probe: Timestamp,
    queue: Vec<Event>,
}

struct SimNode {
    generation: Generation,
    connected: bool,
    lives: BTreeMap<InstanceId, Life>,
    /// The volumes whose disks it has.
    disks: BTreeSet<VolumeId>,
}

struct Sim {
    cluster: ClusterState,
    now: Timestamp,
    nodes: BTreeMap<NodeId, SimNode>,
    apps: BTreeMap<ReleaseNumber, App>,
    draws: u32,
    /// The lowest number of ready instances of `web` since it was last reset.
    fewest_ready: u32,
    /// The most instances of `web` on nodes at once since it was last reset.
    most_vms: u32,
}

impl Sim {
    fn new(nodes: u16) -> Self {
        let cluster = cluster(nodes);
        let sim_node = |id: &NodeId| {
            let node = SimNode {
                generation: Generation(0),
                connected: true,
                lives: BTreeMap::new(),
                disks: BTreeSet::new(),
            };
            (*id, node)
        };
        Self {
            nodes: cluster.nodes.keys().map(sim_node).collect(),
            cluster,
            now: Timestamp(1_000_000),
            apps: BTreeMap::new(),
            draws: 0,
            fewest_ready: u32::MAX,
            most_vms: 0,
        }
    }

    fn deploy(&mut self, processes: &[(&str, manifest::Process)], app: App) {
        deploy(&mut self.cluster, ENV, manifest(processes), self.now);
        let release = self.cluster.envs[&key(ENV)].rollout.release;
        self.apps.insert(release, app);
    }

    fn phase(&self) -> RolloutPhase {
        self.cluster.envs[&key(ENV)].rollout.phase
    }

    fn ready(&self, process: &ProcessName) -> u32 {
        let mine = |i: &&scheduler::cluster_state::Instance| {
            i.spec.process == *process
                && !i.is_terminating()
                && i.report.as_ref().is_some_and(|r| r.ready)
        };
        self.cluster.instances.values().filter(mine).count() as u32
    }

    /// Steps until `done`, at most 20 minutes of the cluster's time.
    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..(20 * 60 * 1000 / STEP_MS) {
            if done(self) {
                return;
            }
            self.step();
        }
        panic!("never {what}:\n{}", show(&self.cluster));
    }

    /// Steps until nothing changes for a while.
    fn settle(&mut self) {
        let mut quiet = 0;
        for _ in 0..(20 * 60 * 1000 / STEP_MS) {
            let before = self.cluster.instances.len();
            let actions = self.step();
            let starting = self
                .cluster
                .instances
                .values()
                .any(Instance::is_terminating);
            if actions == 0 && before == self.cluster.instances.len() && !starting {
                quiet += 1;
            } else {
                quiet = 0;
            }
            if quiet > 240 {
                return;
            }
        }
        panic!("never quiet:\n{}", show(&self.cluster));
    }

    fn step(&mut self) -> usize {
        self.now = Timestamp(self.now.0 + STEP_MS);
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            self.step_node(id);
        }
        let plan = self.plan();
        for action in &plan.actions {
            apply(&mut self.cluster, &Command::Plan(action.clone())).unwrap();
        }
        self.check(&plan);
        let web = name("web");
        self.fewest_ready = self.fewest_ready.min(self.ready(&web));
        let vms = self.nodes.values().flat_map(|node| node.lives.values());
        let vms = vms
            .filter(|life| life.vm && life.spec.process == web)
            .count();
        self.most_vms = self.most_vms.max(vms as u32);
        plan.actions.len()
    }

    fn plan(&mut self) -> Plan {
        // Numbers collide now and then, on purpose.
        let draws = &mut self.draws;
        plan(&self.cluster, self.now, &mut || {
            *draws += 1;
            *draws / 3
        })
    }

    fn check(&mut self, planned: &Plan) {
        let again = self.plan();
        assert_eq!(
            again.actions,
            [],
            "planning a planned cluster changes it: {planned:?}"
        );
        let mut addresses = BTreeSet::new();
        for instance in self.cluster.instances.values() {
            assert!(addresses.insert(instance.spec.address), "an address twice");
        }
        // A volume is wanted by one instance, on its node, and has one writer.
        let mut wanted = BTreeSet::new();
        for instance in self.cluster.instances.values() {
            for volume in &instance.spec.volumes {
                assert!(wanted.insert(volume.id), "volume {} twice", volume.id);
                assert_eq!(self.cluster.volumes[&volume.id].node, instance.node);
            }
        }
        let mut written = BTreeSet::new();
        for life in self.nodes.values().flat_map(|node| node.lives.values()) {
            for volume in life.spec.volumes.iter().filter(|_| life.vm) {
                assert!(
                    written.insert(volume.id),
                    "volume {} has two writers",
                    volume.id
                );
            }
        }
        for route in routes(&self.cluster).values() {
            for backend in &route.backends {
                let instance = &self.cluster.instances[&backend.instance];
                assert!(!instance.is_terminating() && instance.report.as_ref().unwrap().ready);
            }
        }
    }

    fn step_node(&mut self, id: NodeId) {
        let (now, apps) = (self.now, &self.apps);
        let node = self.nodes.get_mut(&id).unwrap();
        if node.connected {
            let desired = desired_state(&self.cluster, id).unwrap();
            let seen = |life: &Life| SeenInstance {
                state: life.lifecycle.state(),
                stop_asked: life.lifecycle.stop_asked(),
            };
            let seen = Seen {
                cluster: self.cluster.settings.id.clone(),
                node: id,
                generation: node.generation,
                instances: node
                    .lives
                    .iter()
                    .map(|(id, life)| (*id, seen(life)))
                    .collect(),
                volumes: node.disks.iter().map(|id| (*id, node.has(*id))).collect(),
            };
            for action in reconcile(&desired, &seen).unwrap() {
                node.act(action, now);
            }
            node.generation = desired.generation;
        }
        for life in node.lives.values_mut() {
            life.step(now, apps[&life.spec.release]);
        }
        node.make_disks();
        if node.connected {
            let report = NodeReport {
                generation: node.generation,
                egress: None,
                driver: DriverChoice {
                    name: "qemu-tcg".to_owned(),
                    reason: "a test".to_owned(),
                },
                hardware: self.cluster.nodes[&id].hardware.clone(),
                instances: node.lives.values().map(|life| life.report(now)).collect(),
                volumes: node.disks.iter().copied().collect(),
                images: Vec::new(),
            };
            let strangers = unknown(&self.cluster, id, &report);
            assert_eq!(
                strangers.instances,
                [],
                "an instance was deleted before it was gone"
            );
            let command = Command::Report {
                node: id,
                report: Box::new(report),
                now,
            };
            apply(&mut self.cluster, &command).unwrap();
        }
        self.cluster.nodes.get_mut(&id).unwrap().online = node.connected;
    }
}

impl SimNode {
    fn has(&self, volume: VolumeId) -> bool {
        let mut specs = self.lives.values().map(|life| &life.spec);
        specs.any(|spec| spec.volumes.iter().any(|v| v.id == volume))
    }

    fn make_disks(&mut self) {
        for life in self.lives.values().filter(|life| life.vm) {
            for volume in &life.spec.volumes {
                let is_new = self.disks.insert(volume.id);
                assert!(!(is_new && volume.made), "a lost disk was made anew");
            }
        }
    }

    fn act(&mut self, action: NodeAction, now: Timestamp) {
        match action {
            NodeAction::Start(spec) => {
                let life = Life {
                    lifecycle: Lifecycle::new(&spec, Timing::default()),
                    spec: *spec,
                    vm: false,
                    prepares: 0,
                    boots: 0,
                    next_probe: now,
                    queue: vec![Event::Start],
                };
                self.lives.insert(life.spec.id, life);
            }
            NodeAction::Stop(id) => self
                .lives
                .get_mut(&id)
                .unwrap()
                .queue
                .push(Event::StopAsked),
            NodeAction::Reap(id) => {
                let life = self.lives.remove(&id).unwrap();
                assert!(!life.vm, "a VM was forgotten");
            }
            NodeAction::RemoveVolume(id) => assert!(self.disks.remove(&id)),
            NodeAction::KeepUnknown(id) => panic!("{id} is unknown to the control plane"),
        }
    }
}

impl Life {
    fn step(&mut self, now: Timestamp, app: App) {
        let health = self.spec.healthcheck.as_ref();
        if let Some(health) = health
            && self.lifecycle.state() == InstanceState::Running
            && now >= self.next_probe
        {
            self.next_probe = Timestamp(now.0 + health.interval_ms);
            self.queue.push(if app == App::Unhealthy {
                let reason = "connection refused".to_owned();
                Event::HealthFailed { reason }
            } else {
                Event::HealthPassed
            });
        }
        // What effects lead to happens in the next step; the timer is asked when its turn comes.
        for event in std::mem::take(&mut self.queue) {
            self.happen(now, event, app);
        }
        if let Some(event) = self.lifecycle.due(now) {
            self.happen(now, event, app);
        }
    }

    fn happen(&mut self, now: Timestamp, event: Event, app: App) {
        let before = self.lifecycle.clone();
        match self.lifecycle.step(now, event) {
            Ok(effects) => {
                for effect in effects {
                    self.perform(now, &effect, app);
                }
            }
            Err(refused) => {
                assert_eq!(before, self.lifecycle, "a refused event changed something");
                panic!("{refused}");
            }
        }
    }

    fn perform(&mut self, now: Timestamp, effect: &Effect, app: App) {
        match effect {
            Effect::StartPreparing => {
                self.prepares += 1;
                self.queue.push(match app {
                    App::NoImage => Event::PrepareFailed {
                        retryable: false,
                        reason: "fetch shop: manifest unknown".to_owned(),
                    },
                    App::SlowImage if self.prepares <= 2 => Event::PrepareFailed {
                        retryable: true,
                        reason: "fetch shop: timed out".to_owned(),
                    },
                    _ => Event::Prepared,
                });
            }
            Effect::BootVm => {
                assert!(!self.vm, "two VMs of one instance");
                self.vm = true;
                self.boots += 1;
                self.queue.push(Event::VmmStarted);
                match app {
                    App::Hangs => {}
                    App::HangsOnce if self.boots == 1 => {}
                    App::NotFound => self.queue.push(Event::BootFailed(BootFailure {
                        step: "start the app".to_owned(),
                        reason: "/bin/nothing: not found".to_owned(),
                        exit_code: Some(127),
                    })),
                    App::Exits(code) => {
                        self.queue.push(Event::GuestStarted);
                        self.queue.push(Event::Exited(exit(code)));
                    }
                    _ => self.queue.push(Event::GuestStarted),
                }
            }
            Effect::AskStop => self.queue.push(Event::Exited(exit(0))),
            Effect::KillVm => {
                self.vm = false;
                self.queue.clear();
            }
            Effect::CleanUp => {
                assert!(!self.vm, "cleaned up under a running VM");
                self.queue.push(Event::CleanedUp);
            }
            Effect::ScheduleAt(at) => assert_eq!(self.lifecycle.wake_at(), Some(*at), "{now:?}"),
            Effect::Report => {}
        }
    }

    fn report(&self, now: Timestamp) -> InstanceReport {
        self.lifecycle.report(now, vec!["hello".to_owned()])
    }
}

fn web(min: u32, max_surge: u32, max_unavailable: u32, volumes: bool) -> manifest::Process {
    let mut web = if volumes { database(min) } else { process(min) };
    web.deploy.max_surge = max_surge;
    web.deploy.max_unavailable = max_unavailable;
    web
}

fn bad_app() -> impl Strategy<Value = App> {
    prop_oneof![
        Just(App::NotFound),
        Just(App::Exits(0)),
        Just(App::Exits(3)),
        Just(App::Unhealthy),
        Just(App::NoImage),
        Just(App::Hangs),
    ]
}

fn good_app() -> impl Strategy<Value = App> {
    prop_oneof![
        Just(App::Healthy),
        Just(App::SlowImage),
        Just(App::HangsOnce)
    ]
}

fn releases_of(cluster: &ClusterState, env: &EnvKey) -> BTreeSet<ReleaseNumber> {
    let mine = cluster
        .instances
        .values()
        .filter(|i| i.spec.env_key() == *env);
    mine.map(|i| i.spec.release).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// First a good release, then any other: done on the new one, or all as it was.
    #[test]
    fn a_rollout_ends_whole(
        nodes in 1_u16..4,
        count in 1_u32..5,
        workers in 0_u32..3,
        surge in 0_u32..3,
        unavailable in 0_u32..3,
        volumes: bool,
        first in good_app(),
        second in prop_oneof![good_app(), bad_app()],
    ) {
        let mut sim = Sim::new(nodes);
        let processes = [("web", web(count, surge, unavailable, volumes)), ("worker", worker(workers))];
        sim.deploy(&processes, first);
        sim.until("done", |sim| sim.phase() == RolloutPhase::Done);
        sim.settle();
        prop_assert_eq!(sim.phase(), RolloutPhase::Done);
        prop_assert_eq!(sim.ready(&name("web")), count);

        (sim.fewest_ready, sim.most_vms) = (u32::MAX, 0);
        sim.deploy(&processes, second);
        sim.until("an end", |sim| sim.phase() != RolloutPhase::Rolling);
        sim.settle();
        let (phase, release) = if second.is_good() {
            (RolloutPhase::Done, ReleaseNumber(2))
        } else {
            (RolloutPhase::Reverted, ReleaseNumber(1))
        };
        prop_assert_eq!(sim.phase(), phase, "{}", show(&sim.cluster));
        prop_assert_eq!(sim.ready(&name("web")), count);
        prop_assert_eq!(sim.ready(&name("worker")), workers);
        prop_assert_eq!(releases_of(&sim.cluster, &key(ENV)), BTreeSet::from([release]));
        // What has volumes stops first and starts then.
        let unavailable = unavailable.max(u32::from(volumes));
        let surge = if volumes { 0 } else { surge.max(u32::from(unavailable == 0)) };
        prop_assert!(sim.most_vms <= count + surge, "{} VMs", sim.most_vms);
        prop_assert!(sim.fewest_ready >= count.saturating_sub(unavailable), "{}", sim.fewest_ready);
    }

    /// A first release that cannot run leaves nothing behind, and says why.
    #[test]
    fn a_bad_first_release_leaves_nothing(nodes in 1_u16..3, count in 1_u32..4, app in bad_app()) {
        let mut sim = Sim::new(nodes);
        sim.deploy(&[("web", web(count, 1, 0, false))], app);
        sim.until("failed", |sim| sim.phase() == RolloutPhase::Failed);
        sim.settle();
        prop_assert_eq!(sim.cluster.instances.len(), 0);
        prop_assert!(routes(&sim.cluster).is_empty());
        prop_assert!(sim.nodes.values().all(|node| node.lives.is_empty()));
        let reason = &sim.cluster.envs[&key(ENV)].rollout.reason;
        prop_assert!(reason.starts_with("instance "), "{reason}");
        prop_assert!(reason.ends_with("last log lines:\n  hello"), "{reason}");
    }

    /// Deploys, scalings and lost connections in any order, then quiet: what was asked for last is
    /// there, or what served before it.
    #[test]
    fn the_cluster_comes_to_rest_where_it_was_asked_to(
        nodes in 1_u16..4,
        volumes: bool,
        operations in prop::collection::vec(
            (0_u64..60_000, prop_oneof![
                3 => (good_app(), 0_u32..4, any::<bool>()).prop_map(Operation::deploy),
                2 => (bad_app(), 0_u32..4, any::<bool>()).prop_map(Operation::deploy),
                3 => (0_u32..6).prop_map(Operation::Scale),
                2 => (1_u16..4).prop_map(Operation::Disconnect),
                2 => Just(Operation::ConnectAll),
            ]),
            1..12,
        ),
    ) {
        let mut sim = Sim::new(nodes);
        let first = [("web", web(2, 1, 0, volumes)), ("worker", worker(1))];
        sim.deploy(&first, App::Healthy);
        for (wait, operation) in operations {
            let target = sim.now.0 + wait;
            while sim.now.0 < target {
                sim.step();
            }
            operation.perform(&mut sim);
        }
        Operation::ConnectAll.perform(&mut sim);
        sim.until("an end", |sim| sim.phase() != RolloutPhase::Rolling);
        sim.settle();
        let env = &sim.cluster.envs[&key(ENV)];
        let release = match (env.rollout.phase, env.rollout.previous) {
            (RolloutPhase::Failed, None) => None,
            (RolloutPhase::Done | RolloutPhase::Reverted, _) => Some(env.rollout.wanted),
            other => panic!("{other:?}"),
        };
        let wanted = release.map(|r| rollout::wanted_counts(env, r)).unwrap_or_default();
        // A bad release of which no instance was wanted is not found out before it is scaled.
        let good = release.is_some_and(|release| sim.apps[&release].is_good());
        for (process, wanted) in wanted.iter().filter(|_| good) {
            prop_assert_eq!(sim.ready(process), *wanted, "{}", show(&sim.cluster));
        }
        if good || release.is_none() {
            let all: u32 = wanted.values().sum();
            prop_assert_eq!(sim.cluster.instances.len(), all as usize, "{}", show(&sim.cluster));
        }

        sim.cluster.envs.get_mut(&key(ENV)).unwrap().destroying = true;
        sim.until("removed", |sim| sim.cluster.envs.is_empty());
        sim.step();
        prop_assert!(sim.cluster.instances.is_empty());
        prop_assert!(sim.nodes.values().all(|node| node.lives.is_empty()));
    }
}

/// Something an operator does, or that befalls a cluster.
#[derive(Debug, Clone)]
enum Operation {
    /// An app, how many of it, and whether they have volumes.
    Deploy(App, u32, bool),
    Scale(u32),
    Disconnect(u16),
    ConnectAll,
}

impl Operation {
    fn deploy((app, min, volumes): (App, u32, bool)) -> Self {
        Self::Deploy(app, min, volumes)
    }

    fn perform(&self, sim: &mut Sim) {
        match self {
            Self::Deploy(app, min, volumes) => {
                let web = web(*min, 1, 0, *volumes);
                sim.deploy(&[("web", web), ("worker", worker(1))], *app);
            }
            Self::Scale(count) => {
                let env = sim.cluster.envs.get_mut(&key(ENV)).unwrap();
                env.scale.insert(name("web"), *count);
            }
            Self::Disconnect(number) => {
                if let Some(node) = sim.nodes.get_mut(&NodeId(*number)) {
                    node.connected = false;
                }
            }
            Self::ConnectAll => {
                for node in sim.nodes.values_mut() {
                    node.connected = true;
                }
            }
        }
    }
}

/// A store restored from an old backup: no VM stops, and the node takes the new state up.
#[test]
fn a_restored_store_stops_nothing() {
    let mut sim = Sim::new(1);
    sim.deploy(&[("web", web(2, 1, 0, false))], App::Healthy);
    sim.until("done", |sim| sim.phase() == RolloutPhase::Done);
    let backup = sim.cluster.clone();
    sim.deploy(&[("web", web(2, 1, 0, false))], App::Healthy);
    // The second release has come to no node yet: the backup knows all there is.
    for _ in 0..3 {
        sim.cluster.nodes.get_mut(&NodeId(1)).unwrap().generation.0 += 1;
        let node = sim.nodes.get_mut(&NodeId(1)).unwrap();
        node.generation = sim.cluster.nodes[&NodeId(1)].generation;
    }
    sim.cluster = backup;
    let node = &sim.nodes[&NodeId(1)];
    let running: Vec<_> = node.lives.keys().copied().collect();
    let report = NodeReport {
        generation: node.generation,
        egress: None,
        driver: DriverChoice {
            name: "qemu-tcg".to_owned(),
            reason: "a test".to_owned(),
        },
        hardware: sim.cluster.nodes[&NodeId(1)].hardware.clone(),
        instances: node.lives.values().map(|l| l.report(sim.now)).collect(),
        volumes: Vec::new(),
        images: Vec::new(),
    };
    let ahead = report.generation;
    let command = Command::Report {
        node: NodeId(1),
        report: Box::new(report),
        now: sim.now,
    };
    apply(&mut sim.cluster, &command).unwrap();
    let generation = sim.cluster.nodes[&NodeId(1)].generation;
    assert_eq!(generation, Generation(ahead.0 + 1));
    sim.settle();
    let now_running: Vec<_> = sim.nodes[&NodeId(1)].lives.keys().copied().collect();
    assert_eq!(running, now_running);
}

/// `auto_revert = false`: the rollout halts, what serves stays, what is missing is the previous.
#[test]
fn without_auto_revert_nothing_gives_way() {
    let mut sim = Sim::new(2);
    let mut process = web(3, 1, 0, false);
    process.deploy.auto_revert = false;
    sim.deploy(&[("web", process.clone())], App::Healthy);
    sim.until("done", |sim| sim.phase() == RolloutPhase::Done);
    sim.fewest_ready = u32::MAX;
    sim.deploy(&[("web", process)], App::Exits(1));
    sim.until("failed", |sim| sim.phase() == RolloutPhase::Failed);
    sim.settle();
    assert_eq!(sim.fewest_ready, 3);
    assert_eq!(
        releases_of(&sim.cluster, &key(ENV)),
        BTreeSet::from([ReleaseNumber(1)])
    );
    let scaled = sim.cluster.envs.get_mut(&key(ENV)).unwrap();
    scaled.scale.insert(name("web"), 5);
    sim.until("scaled", |sim| sim.ready(&name("web")) == 5);
}

/// A process type that a release drops goes last, and comes back with a revert.
#[test]
fn a_dropped_process_leaves_last() {
    let mut sim = Sim::new(2);
    let both = [("web", web(2, 1, 0, false)), ("worker", worker(2))];
    sim.deploy(&both, App::Healthy);
    sim.until("done", |sim| sim.phase() == RolloutPhase::Done);
    sim.deploy(&[("web", web(2, 1, 0, false))], App::Unhealthy);
    while sim.phase() == RolloutPhase::Rolling {
        assert_eq!(sim.ready(&name("worker")), 2);
        sim.step();
    }
    assert_eq!(sim.phase(), RolloutPhase::Reverted);
    sim.deploy(&[("web", web(2, 1, 0, false))], App::Healthy);
    sim.until("done", |sim| sim.phase() == RolloutPhase::Done);
    assert_eq!(sim.ready(&name("worker")), 0);
    sim.settle();
    assert_eq!(sim.cluster.instances.len(), 2);
}

/// An offline node fails no release: it is waited for.
#[test]
fn an_offline_node_is_waited_for() {
    let mut sim = Sim::new(2);
    sim.deploy(&[("web", web(2, 1, 0, false))], App::Healthy);
    sim.step();
    sim.step();
    sim.nodes.get_mut(&NodeId(2)).unwrap().connected = false;
    for _ in 0..(2 * rollout::READY_DEADLINE_MS / STEP_MS) {
        sim.step();
    }
    assert_eq!(sim.phase(), RolloutPhase::Rolling);
    let found = sim.plan().findings;
    assert_eq!(found.len(), 1);
    assert!(found[0].message.contains("offline"), "{found:?}");
    sim.nodes.get_mut(&NodeId(2)).unwrap().connected = true;
    sim.until("done", |sim| sim.phase() == RolloutPhase::Done);
}

/// An action for each change, and nothing for none.
#[test]
fn an_empty_world_needs_nothing() {
    let mut sim = Sim::new(2);
    assert_eq!(sim.step(), 0);
    sim.deploy(&[("web", web(2, 1, 0, false))], App::Healthy);
    let planned = sim.plan();
    let creates = |action: &Action| matches!(action, Action::Create(_));
    assert_eq!(planned.actions.iter().filter(|a| creates(a)).count(), 2);
    assert_eq!(planned.actions.len(), 2);
}

/// Volumes stay with their ordinal over releases, scalings and a destroyed env; the last word is a
/// user's.
#[test]
fn volumes_outlive_everything_but_their_deletion() {
    let mut sim = Sim::new(3);
    let databases = [("web", web(3, 1, 0, true))];
    sim.deploy(&databases, App::Healthy);
    sim.until("done", |sim| sim.phase() == RolloutPhase::Done);
    sim.settle();
    let made = sim.cluster.volumes.clone();
    assert_eq!(made.len(), 3);
    assert!(made.values().all(Volume::is_made));
    let nodes: BTreeSet<_> = made.values().map(|volume| volume.node).collect();
    assert_eq!(nodes.len(), 3);

    sim.deploy(&databases, App::Healthy);
    sim.until("done", |sim| sim.phase() == RolloutPhase::Done);
    let scale = |sim: &mut Sim, count| {
        let env = sim.cluster.envs.get_mut(&key(ENV)).unwrap();
        env.scale.insert(name("web"), count);
        sim.until("scaled", |sim| sim.ready(&name("web")) == count);
        sim.settle();
    };
    scale(&mut sim, 1);
    scale(&mut sim, 3);
    sim.cluster.envs.get_mut(&key(ENV)).unwrap().destroying = true;
    sim.until("removed", |sim| sim.cluster.envs.is_empty());
    sim.settle();
    assert_eq!(sim.cluster.volumes, made);

    sim.deploy(&databases, App::Healthy);
    sim.until("done", |sim| sim.phase() == RolloutPhase::Done);
    assert_eq!(sim.cluster.volumes, made);
    scale(&mut sim, 2);
    let last = made.iter().find(|(_, volume)| volume.key.ordinal == 2);
    let id = *last.unwrap().0;
    assert!(sim.cluster.user_of(id).is_none());
    apply(&mut sim.cluster, &Command::DeleteVolume { id }).unwrap();
    sim.until("deleted", |sim| sim.cluster.volumes.len() == 2);
    assert!(sim.nodes.values().all(|node| !node.disks.contains(&id)));
}

/// A volume on a node that is offline keeps its writer: nobody else gets it.
#[test]
fn a_volume_waits_for_its_node() {
    let mut sim = Sim::new(2);
    let databases = [("web", web(1, 1, 0, true))];
    sim.deploy(&databases, App::Healthy);
    sim.until("done", |sim| sim.phase() == RolloutPhase::Done);
    let node = sim.cluster.volumes.values().next().unwrap().node;
    sim.nodes.get_mut(&node).unwrap().connected = false;
    sim.deploy(&databases, App::Healthy);
    for _ in 0..(2 * rollout::READY_DEADLINE_MS / STEP_MS) {
        sim.step();
    }
    assert_eq!(sim.phase(), RolloutPhase::Rolling);
    let found = sim.plan().findings;
    assert!(
        found
            .iter()
            .any(|f| f.message.contains("it may still write")),
        "{found:?}"
    );
    sim.nodes.get_mut(&node).unwrap().connected = true;
    sim.until("done", |sim| sim.phase() == RolloutPhase::Done);
}
