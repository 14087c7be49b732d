//! The simulated server: the real scheduler on a cluster state that survives crashes of the server, and
//! each node's faulty link to it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::edge::RouteTable;
use api::node::{DesiredState, NodeReport};
use api::user::RolloutPhase;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use model::instance::{SecretBundle, SecretVersion};
use model::{Generation, Incarnation, InstanceId, NodeId, Timestamp};
use node_agent::host::{HostError, HostResult, Server as ServerApi};
use scheduler::action::Action;
use scheduler::apply::Command;
use scheduler::cluster_state::ClusterState;
use scheduler::desired::desired_state;
use scheduler::heartbeats::Heartbeats;
use scheduler::leader::Leader;
use scheduler::planner::plan;
use scheduler::reports::unknown;
use scheduler::routes::{RouteIndex, StoredRoute, routes};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::invariants;
use crate::simulator::Simulator;

/// The planner runs at least this often.
const PLAN_INTERVAL: Duration = Duration::from_secs(2);
/// A request without an answer is given up after this time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Server {
    simulator: Simulator,
    state: Arc<Mutex<State>>,
    /// Wakes everyone who waits for a change of the cluster state, in the order in which they came: a
    /// `watch` wakes in random order.
    changed: Arc<Notify>,
}

struct State {
    /// The leader, and what the store has.
    leader: Leader,
    stored: ClusterState,
    stored_routes: BTreeMap<String, StoredRoute>,
    /// What an edge has that takes every difference.
    edge: RouteTable,
    up: bool,
    /// When nodes lapse, counted from `began`.
    heartbeats: Heartbeats,
    began: Instant,
    /// An older cluster state, to restore.
    backup: Option<ClusterState>,
    /// Whether an older state was restored: nodes may have what it does not know.
    restored: bool,
    /// Actions that were planned so far.
    actions: u64,
    /// Whether something changed since the last planning.
    unplanned: bool,
}

impl State {
    /// The store takes what was decided: the records that changed.
    fn commit(&mut self, simulator: &Simulator) {
        let batch = self.leader.take_batch();
        batch.changes.patch(&mut self.stored);
        for (host, stored) in &batch.changes.routes {
            match stored {
                Some(stored) => drop(self.stored_routes.insert(host.clone(), stored.clone())),
                None => drop(self.stored_routes.remove(host)),
            }
        }
        self.leader.commit(&batch);
        self.follow(&batch.routes);
        if self.edge.routes != routes(&batch.after) {
            simulator.violate("an edge has other routes than the cluster state".to_owned());
        }
        let mut decided = batch.after;
        // Which nodes are heard is not stored.
        decided.clear_presence();
        self.stored.clear_presence();
        if decided != self.stored {
            simulator.violate("the store has another cluster state than was decided".to_owned());
        }
    }

    /// The edge asks for what changed.
    fn follow(&mut self, routes: &RouteIndex) {
        let incarnation = self.stored.incarnation;
        let has = self.edge.generation;
        let difference = (has.incarnation == incarnation)
            .then(|| routes.since(incarnation, has.counter))
            .flatten();
        match difference {
            Some(difference) => {
                self.edge
                    .routes
                    .retain(|host, _| !difference.removed.contains(host));
                self.edge.routes.extend(difference.routes);
                self.edge.generation = difference.generation;
            }
            None => self.edge = routes.whole(incarnation),
        }
    }

    /// No node was heard yet: each has the time to turn up.
    fn begin_to_hear(&mut self) {
        let nodes = self.stored.nodes.keys().copied();
        self.heartbeats = Heartbeats::starting(nodes, self.began.elapsed());
    }

    /// A leader of what the store has.
    fn lead(&mut self, now: Timestamp) {
        let counter = self.stored_routes.values().map(|stored| stored.changed);
        // The store counts the tables that only removed hosts, too.
        let counter = counter.max().unwrap_or(0).max(self.edge.generation.counter);
        let routes = RouteIndex::new(self.stored_routes.clone(), counter);
        let mut cluster = self.stored.clone();
        cluster.counting_since = now;
        self.leader = Leader::new(cluster, routes);
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}

impl Server {
    pub(crate) fn new(simulator: &Simulator, cluster: ClusterState) -> Self {
        let heartbeats = Heartbeats::starting(cluster.nodes.keys().copied(), Duration::ZERO);
        Self {
            simulator: simulator.clone(),
            state: Arc::new(Mutex::new(State {
                leader: Leader::new(cluster.clone(), RouteIndex::default()),
                stored: cluster,
                stored_routes: BTreeMap::new(),
                edge: RouteTable::default(),
                up: true,
                heartbeats,
                began: Instant::now(),
                backup: None,
                restored: false,
                actions: 0,
                unplanned: true,
            })),
            changed: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the cluster state.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&ClusterState) -> T) -> T {
        look(self.lock().leader.committed())
    }

    /// Carries out what a user wants of the cluster state.
    pub(crate) fn change(&self, decide: impl FnOnce(&ClusterState) -> Vec<Command>) {
        let mut state = self.lock();
        let commands = decide(state.leader.state());
        if let Err(refused) = state.leader.execute(&commands) {
            let what = format!("a user's command is refused: {refused}");
            self.simulator.violate(what);
        }
        state.commit(&self.simulator);
        drop(state);
        self.wake();
    }

    pub(crate) fn wake(&self) {
        self.lock().unplanned = true;
        self.changed.notify_waiters();
    }

    pub(crate) fn actions(&self) -> u64 {
        self.lock().actions
    }

    /// The server ends in the middle of a plan. What the store has stays.
    pub(crate) fn crash(&self) {
        let mut state = self.lock();
        if state.up {
            let (simulator, now) = (&self.simulator, self.simulator.now());
            let mut draw = || simulator.draw(|rng| rng.next() as u32);
            while state.leader.plan_next(now, &mut draw).is_some() {}
        }
        state.up = false;
        state.lead(self.simulator.now());
        drop(state);
        self.wake();
    }

    /// The server starts. It has heard no node yet.
    pub(crate) fn start(&self) {
        let mut state = self.lock();
        state.up = true;
        state.lead(self.simulator.now());
        state.begin_to_hear();
        drop(state);
        self.wake();
    }

    pub(crate) fn back_up(&self) {
        let mut state = self.lock();
        state.backup = Some(state.stored.clone());
    }

    /// Puts the backup in place of the cluster state. False: there is none.
    pub(crate) fn restore(&self) -> bool {
        let mut state = self.lock();
        let Some(mut backup) = state.backup.clone() else {
            return false;
        };
        // `platform server restore` draws a new one.
        backup.incarnation = Incarnation(state.stored.incarnation.0 + 1);
        state.stored = backup;
        state.stored_routes.clear();
        state.lead(self.simulator.now());
        state.begin_to_hear();
        state.restored = true;
        drop(state);
        self.wake();
        true
    }

    /// Plans whenever something changed, and in intervals.
    pub(crate) async fn run(self) {
        loop {
            if !self.lock().unplanned {
                // Whatever comes first: it plans again.
                let _ = timeout(PLAN_INTERVAL, self.changed.notified()).await;
            }
            self.simulator.latency(1, 20).await;
            self.lock().unplanned = false;
            self.plan();
        }
    }

    /// One planning, applied to the cluster state.
    fn plan(&self) {
        let mut state = self.lock();
        if !state.up {
            return;
        }
        let state = &mut *state;
        let before = state.actions;
        let (simulator, now) = (&self.simulator, self.simulator.now());
        for id in state.heartbeats.lapsed(state.began.elapsed()) {
            state.leader.set_heard(id, false, now);
        }
        let mut draw = || simulator.draw(|rng| rng.next() as u32);
        loop {
            simulator.step();
            let given = state.leader.state().clone();
            let Some(planned) = state.leader.plan_next(now, &mut draw) else {
                break;
            };
            for action in &planned.actions {
                self.trace(action);
            }
            state.actions += planned.actions.len() as u64;
            if !planned.actions.is_empty() {
                let minimums = invariants::ready_minimums(&given);
                invariants::check_plan(simulator, &minimums, state.leader.state());
            }
        }
        for action in &state.leader.prune(now).actions {
            self.trace(action);
            state.actions += 1;
        }
        state.commit(simulator);
        // The planner that looked at what changed finds what one finds that looks at everything. Rollouts have deadlines,
        // for which it looks now and then.
        let mut envs = state.leader.state().envs.values();
        let rolls = envs.any(|env| env.rollout.phase == RolloutPhase::Rolling);
        let whole = plan(state.leader.state(), now, &mut || 1);
        if !rolls && !whole.actions.is_empty() {
            let what = format!("the planner rests, and would decide {:?}", whole.actions);
            simulator.violate(what);
        }
        if state.actions != before {
            self.changed.notify_waiters();
        }
    }

    fn trace(&self, action: &Action) {
        let line = match action {
            Action::Create(placed) => {
                let spec = &placed.spec;
                format!(
                    "server places {} ({} {}) on {}",
                    spec.id, spec.process, spec.release, placed.node
                )
            }
            Action::Terminate { id, reason } => {
                self.simulator.terminated(*id);
                format!("server terminates {id}: {reason}")
            }
            Action::Delete { id, .. } => format!("server deletes {id}"),
            Action::PruneEnded { id } => format!("server prunes {id}"),
            Action::MakeVolume(volume) => {
                format!("server makes volume {} on {}", volume.id, volume.node)
            }
            Action::DeleteVolume { id } => format!("server deletes volume {id}"),
            Action::SetRollout { rollout, .. } => format!(
                "server sets the rollout of {} to {:?}: {}",
                rollout.release,
                rollout.phase,
                rollout.reason.lines().next().unwrap_or_default()
            ),
            Action::RemoveEnv { env } => format!("server removes {env}"),
        };
        self.simulator.trace(line);
    }

    fn receive(&self, node: NodeId, report: &NodeReport, late: bool) -> HostResult<()> {
        let mut state = self.lock();
        if !state.up {
            return Err(HostError::transient("cannot connect to the server"));
        }
        let (heard_at, now) = (state.began.elapsed(), self.simulator.now());
        state.heartbeats.reported(node, heard_at);
        state.leader.set_heard(node, true, now);
        let unknown = unknown(state.leader.state(), node, report);
        let command = Command::Report {
            node,
            report: Box::new(report.clone()),
            now: self.simulator.now(),
        };
        if let Err(refused) = state.leader.execute(&[command]) {
            self.simulator
                .violate(format!("a report of {node} is refused: {refused}"));
        }
        state.commit(&self.simulator);
        let restored = state.restored;
        drop(state);
        let running = self.simulator.running();
        let lives = |id: &&InstanceId| running.contains_key(*id);
        if let Some(id) = unknown.instances.iter().find(lives)
            && !restored
            && !late
        {
            let what = format!("{node} runs {id}, which the server deleted");
            self.simulator.violate(what);
        }
        self.wake();
        Ok(())
    }

    /// The link of a node.
    pub(crate) fn link(&self, node: NodeId) -> Link {
        Link {
            server: self.clone(),
            node,
            faults: Arc::default(),
        }
    }
}

/// What is wrong with a link.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// Nothing passes.
    pub(crate) partitioned: bool,
    /// How many messages in a hundred are lost.
    pub(crate) loss_percent: u64,
    /// How many reports in a hundred arrive after the node gave them up.
    pub(crate) late_percent: u64,
    /// How many answers in a hundred are a desired state that is not this node's.
    pub(crate) wrong_state_percent: u64,
}

/// A node's connection to the server.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    server: Server,
    node: NodeId,
    faults: Arc<Mutex<Faults>>,
}

impl Link {
    pub(crate) fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn simulator(&self) -> &Simulator {
        &self.server.simulator
    }

    /// One message on its way.
    async fn pass(&self) -> HostResult<()> {
        self.simulator().latency(1, 50).await;
        let Faults {
            partitioned,
            loss_percent,
            ..
        } = self.faults().clone();
        if partitioned || self.simulator().draw(|rng| rng.percent(loss_percent)) {
            sleep(REQUEST_TIMEOUT).await;
            return Err(HostError::transient("the server did not answer"));
        }
        Ok(())
    }

    fn chance(&self, percent: u64) -> bool {
        percent > 0 && self.simulator().draw(|rng| rng.percent(percent))
    }

    /// A desired state that must not stop anything: of another cluster, for another node, older, or empty.
    fn wrong_state(&self, after: Generation) -> Option<DesiredState> {
        let state = self.server.lock();
        let mut wrong = desired_state(state.leader.committed(), self.node)?;
        drop(state);
        wrong
            .stop
            .extend(wrong.instances.iter().map(|spec| spec.id));
        wrong.instances.clear();
        wrong.generation = Generation {
            counter: after.counter + 1,
            ..after
        };
        match self.simulator().draw(|rng| rng.below(4)) {
            0 => "cluster-2".clone_into(&mut wrong.cluster),
            1 => wrong.node = NodeId(self.node.0 + 1),
            2 => wrong.generation.counter = after.counter.checked_sub(1)?,
            _ => {
                // Of another store, which is empty, and which this server is not: the node goes back to ours.
                wrong.generation = Generation {
                    incarnation: Incarnation(u64::MAX),
                    counter: self.simulator().draw(|rng| rng.below(1_000)),
                };
                wrong.stop.clear();
            }
        }
        self.simulator()
            .trace(format!("{} gets a wrong desired state", self.node));
        Some(wrong)
    }
}

impl ServerApi for Link {
    fn desired(
        &self,
        after: Generation,
        wait: Duration,
    ) -> BoxFuture<'_, HostResult<Option<DesiredState>>> {
        async move {
            self.pass().await?;
            let wrong_state_percent = self.faults().wrong_state_percent;
            if self.chance(wrong_state_percent)
                && let Some(wrong) = self.wrong_state(after)
            {
                return Ok(Some(wrong));
            }
            let newer = async {
                loop {
                    {
                        let state = self.server.lock();
                        if !state.up {
                            return Err(HostError::transient("cannot connect to the server"));
                        }
                        let cluster = state.leader.committed();
                        let newest = cluster.generation(self.node);
                        if newest.is_some_and(|newest| newest.supersedes(after)) {
                            return Ok(desired_state(cluster, self.node));
                        }
                    }
                    self.server.changed.notified().await;
                }
            };
            let newer = timeout(wait, newer).await.unwrap_or(Ok(None))?;
            self.pass().await?;
            Ok(newer)
        }
        .boxed()
    }

    fn report(&self, report: NodeReport) -> BoxFuture<'_, HostResult<()>> {
        async move {
            let late_percent = self.faults().late_percent;
            if self.chance(late_percent) {
                let (link, late) = (self.clone(), report);
                tokio::spawn(async move {
                    link.simulator().latency(5_000, 20_000).await;
                    if !link.faults().partitioned {
                        link.simulator()
                            .trace(format!("a late report of {} arrives", link.node));
                        let _ = link.server.receive(link.node, &late, true);
                    }
                });
                sleep(REQUEST_TIMEOUT).await;
                return Err(HostError::transient("the server did not answer"));
            }
            self.pass().await?;
            self.server.receive(self.node, &report, false)?;
            // A lost answer makes the node send the report again.
            self.pass().await
        }
        .boxed()
    }

    fn secrets(&self, id: InstanceId) -> BoxFuture<'_, HostResult<Vec<SecretBundle>>> {
        async move {
            self.pass().await?;
            let wanted = self.server.with(|cluster| {
                let instance = cluster.instances.get(&id);
                let instance = instance.filter(|instance| instance.node == self.node)?;
                Some(instance.spec.secrets.clone())
            });
            let Some(wanted) = wanted else {
                return Err(HostError::permanent("there is no such instance"));
            };
            let bundle = |secret: &SecretVersion| SecretBundle {
                name: secret.name.clone(),
                files: [(
                    "VERSION".to_owned(),
                    secret.version.to_string().into_bytes(),
                )]
                .into(),
            };
            Ok(wanted.iter().map(bundle).collect())
        }
        .boxed()
    }
}
