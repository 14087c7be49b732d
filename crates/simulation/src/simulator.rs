//! What everything in a simulated cluster shares: the random numbers, the trace, the first violation, and
//! the facts that the invariants are about.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::{Digest, Generation, InstanceId, NodeId, Term, Timestamp, VolumeId};
use node_agent::Clock;

use crate::rng::Rng;

/// The time at which every run starts, in milliseconds since 1970.
const START: Timestamp = Timestamp(1_700_000_000_000);

/// What the app of a release does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum App {
    Healthy,
    /// Its command does not exist.
    NotFound,
    /// It exits with this code as soon as it runs.
    Exits(u8),
    /// Its health check never passes.
    Unhealthy,
    /// There is no such image.
    NoImage,
    /// The registry does not answer the first two times on each node.
    SlowImage,
    /// Its guest hangs at the first boot on each node.
    HangsOnce,
    /// Its guest always hangs.
    Hangs,
}

impl App {
    pub(crate) fn is_good(self) -> bool {
        matches!(self, Self::Healthy | Self::SlowImage | Self::HangsOnce)
    }
}

/// A desired state that a node took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TakenState {
    pub(crate) generation: Generation,
    pub(crate) term: Term,
}

/// Handle to the shared state. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Simulator(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: Clock,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    rng: Rng,
    trace: Vec<String>,
    /// What happened first that must not, and after how many steps.
    violation: Option<(String, u64)>,
    steps: u64,
    apps: BTreeMap<Digest, App>,
    /// Every running VM, by instance: its node and its volumes.
    running: BTreeMap<InstanceId, (NodeId, Vec<VolumeId>)>,
    /// Instances that a leader stopped or deleted, as the store knows.
    terminated: BTreeSet<InstanceId>,
    /// Instances whose command, a release's or a user's, has begun.
    commands: BTreeSet<InstanceId>,
    /// Whether the store was put back: it may have what ended since.
    restored: bool,
    /// The desired state that each node took last.
    taken: BTreeMap<NodeId, TakenState>,
    /// Actions that were planned so far.
    actions: u64,
}

impl Simulator {
    /// A simulator that begins now, in the time of the runtime.
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Shared {
            clock: Clock::start_at(START),
            inner: Mutex::new(Inner {
                rng: Rng::new(seed),
                trace: Vec::new(),
                violation: None,
                steps: 0,
                apps: BTreeMap::new(),
                running: BTreeMap::new(),
                terminated: BTreeSet::new(),
                commands: BTreeSet::new(),
                restored: false,
                taken: BTreeMap::new(),
                actions: 0,
            }),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Draws from the run's random numbers.
    pub(crate) fn draw<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.lock().rng)
    }

    /// Lets between `low` and `high` milliseconds pass.
    pub(crate) async fn latency(&self, low: u64, high: u64) {
        let wait = self.draw(|rng| rng.millis(low, high));
        self.step();
        tokio::time::sleep(wait).await;
    }

    /// Counts one step of the simulation.
    pub(crate) fn step(&self) {
        self.lock().steps += 1;
    }

    pub(crate) fn steps(&self) -> u64 {
        self.lock().steps
    }

    /// Adds a line to the trace.
    pub(crate) fn trace(&self, line: impl AsRef<str>) {
        let at = Duration::from_millis(self.now().millis_since(START));
        let line = format!("{:>9.3} {}", at.as_secs_f64(), line.as_ref());
        self.lock().trace.push(line);
    }

    pub(crate) fn take_trace(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().trace)
    }

    /// Something happened that must not: the run ends with this. The first one counts.
    pub(crate) fn violate(&self, what: impl Into<String>) {
        let what = what.into();
        self.trace(format!("VIOLATION {what}"));
        let mut inner = self.lock();
        let steps = inner.steps;
        inner.violation.get_or_insert((what, steps));
    }

    pub(crate) fn violation(&self) -> Option<String> {
        self.lock().violation.clone().map(|(what, _)| what)
    }

    /// After how many steps the violation happened, or all of them.
    pub(crate) fn violated_after(&self) -> u64 {
        let inner = self.lock();
        let violation = inner.violation.as_ref();
        violation.map_or(inner.steps, |(_, steps)| *steps)
    }

    pub(crate) fn set_app(&self, digest: Digest, app: App) {
        self.lock().apps.insert(digest, app);
    }

    /// The app of an image; healthy where the test does not say otherwise.
    pub(crate) fn app(&self, digest: &Digest) -> App {
        self.lock()
            .apps
            .get(digest)
            .copied()
            .unwrap_or(App::Healthy)
    }

    /// A VM begins to run. Checks that no other VM is of this instance or writes to these volumes.
    pub(crate) fn vm_started(&self, node: NodeId, id: InstanceId, volumes: Vec<VolumeId>) {
        let mut inner = self.lock();
        let mut found = Vec::new();
        if let Some((other, _)) = inner.running.get(&id) {
            found.push(format!(
                "instance {id} has a VM on {other} and one on {node}"
            ));
        }
        for (other, (_, theirs)) in &inner.running {
            if let Some(volume) = volumes.iter().find(|volume| theirs.contains(volume)) {
                found.push(format!("volume {volume} has two writers, {other} and {id}"));
            }
        }
        inner.running.insert(id, (node, volumes));
        drop(inner);
        for what in found {
            self.violate(what);
        }
    }

    /// A VM ended.
    pub(crate) fn vm_ended(&self, id: InstanceId) {
        self.lock().running.remove(&id);
    }

    /// Whether a running VM writes to a volume.
    pub(crate) fn writer(&self, volume: VolumeId) -> Option<InstanceId> {
        let inner = self.lock();
        let mut running = inner.running.iter();
        running
            .find(|(_, (_, volumes))| volumes.contains(&volume))
            .map(|(id, _)| *id)
    }

    pub(crate) fn running(&self) -> BTreeMap<InstanceId, NodeId> {
        let inner = self.lock();
        let running = inner.running.iter();
        running.map(|(id, (node, _))| (*id, *node)).collect()
    }

    /// The store knows that an instance goes.
    pub(crate) fn terminated(&self, id: InstanceId) {
        self.lock().terminated.insert(id);
    }

    /// A release's command begins, or a user's. Checks that it never did before.
    pub(crate) fn command_began(&self, id: InstanceId) {
        let mut inner = self.lock();
        let is_first = inner.commands.insert(id) || inner.restored;
        drop(inner);
        if !is_first {
            self.violate(format!("the command in {id} runs again"));
        }
    }

    /// The store was put back.
    pub(crate) fn restored(&self) {
        self.lock().restored = true;
    }

    /// So many actions were planned.
    pub(crate) fn planned(&self, actions: usize) {
        self.lock().actions += actions as u64;
    }

    pub(crate) fn actions(&self) -> u64 {
        self.lock().actions
    }

    /// A node took a desired state. Checks that it goes back neither to an older one nor to a leader of before.
    pub(crate) fn took_state(&self, node: NodeId, taken: TakenState) {
        let before = self.lock().taken.insert(node, taken);
        let Some(before) = before else { return };
        let TakenState { generation, term } = taken;
        if generation.is_before(before.generation) {
            let had = before.generation;
            self.violate(format!(
                "{node} takes a desired state of generation {generation}, after one of {had}"
            ));
        }
        let same_store = generation.incarnation == before.generation.incarnation;
        if same_store && term < before.term {
            let had = before.term;
            self.violate(format!(
                "{node} takes a desired state of term {term}, after one of term {had}"
            ));
        }
    }

    /// The generation of the desired state that a node took last.
    pub(crate) fn taken(&self, node: NodeId) -> Option<Generation> {
        self.lock().taken.get(&node).map(|taken| taken.generation)
    }

    /// Whether the desired state that a node took last is of this term.
    pub(crate) fn knows_term(&self, node: NodeId, term: Term) -> bool {
        let inner = self.lock();
        let taken = inner.taken.get(&node);
        taken.is_some_and(|taken| taken.term == term)
    }

    /// Checks that a VM that is well is only ended when its instance was to stop.
    pub(crate) fn vm_stopped_by_its_node(&self, node: NodeId, id: InstanceId) {
        if !self.lock().terminated.contains(&id) {
            self.violate(format!(
                "{node} stops instance {id}, which is well and which nobody asked to stop"
            ));
        }
    }
}
