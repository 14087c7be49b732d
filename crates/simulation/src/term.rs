//! A term in which a server leads: the real leader, its commits, its planning, and what it answers, as in `control_plane::term`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::edge::{HasRoutes, RouteTable};
use api::event::Actor;
use api::node::{DesiredState, ReportAnswer, ReportDelta};
use api::protocol::PROTOCOL_VERSION;
use api::user::RolloutPhase;
use model::{Generation, InstanceId, LeaderSession, NodeId, Term, Timestamp};
use scheduler::action::{Action, PlacedInstance};
use scheduler::apply::{Command, Refused, apply};
use scheduler::cluster_state::ClusterState;
use scheduler::desired::newer_state;
use scheduler::events::Origin;
use scheduler::heartbeats::{Heartbeats, heartbeat_interval};
use scheduler::leader::Leader;
use scheduler::planner::{WantedCommand, plan};
use scheduler::report_receiver::{ReportReceiver, Verdict};
use scheduler::routes::RouteIndex;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::computer::Computer;
use crate::invariants;
use crate::overlay::Told;
use crate::simulator::Simulator;
use crate::store::{Loaded, Process, Store, StoreFailure};
use crate::tasks::Tasks;

/// The planner runs at least this often.
const PLAN_INTERVAL: Duration = Duration::from_secs(2);
/// Requests that one transaction carries at most.
const MAX_BATCH: usize = 64;

/// Tells the caller whether its batch was committed.
type Reply = Box<dyn FnOnce(Result<(), StoreFailure>) + Send>;
/// Decides one request. The reply waits for the batch.
type Request = Box<dyn FnOnce(Result<&mut Leader, StoreFailure>) -> Option<Reply> + Send>;

/// Why a server did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CallFailure {
    /// It does not lead, or it is not known whether it was done.
    NoLeader(&'static str),
    /// It is no member's request, or not any more.
    NotAMember,
    /// The cluster state does not allow it.
    Refused(Refused),
}

/// What the store has, for readers.
pub(crate) struct Published {
    pub(crate) cluster: ClusterState,
    pub(crate) routes: RouteIndex,
    pub(crate) told: Told,
}

/// A term that is led.
pub(crate) struct LedTerm {
    pub(crate) term: Term,
    /// Drawn when it began.
    session: LeaderSession,
    pub(crate) process: Process,
    computer: Computer,
    store: Store,
    requests: Mutex<VecDeque<Request>>,
    requested: Notify,
    published: Mutex<Arc<Published>>,
    /// Wakes everyone who waits for a change, in the order in which they came: a `watch` wakes in random order.
    changed: Notify,
    heartbeats: Arc<Mutex<Heartbeats>>,
    /// What is known of each node's reports in this term.
    receivers: Mutex<BTreeMap<NodeId, Arc<tokio::sync::Mutex<ReportReceiver>>>>,
    /// Something is to be planned.
    wake: Notify,
    /// The store refused a write of the term.
    pub(crate) lost: CancellationToken,
    end: CancellationToken,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LedTerm {
    /// Loads the cluster state and begins to decide and plan. `None`: the store failed.
    pub(crate) async fn begin(
        computer: &Computer,
        store: &Store,
        process: Process,
        term: Term,
        tasks: &Tasks,
    ) -> Option<Arc<Self>> {
        let Loaded {
            mut cluster,
            routes,
        } = store.load(computer).await?;
        computer.follow_the_wall_clock();
        cluster.counting_since = computer.now();
        let nodes = cluster.nodes.keys().copied();
        let heartbeats = Heartbeats::starting(nodes, computer.uptime());
        let published = Published {
            cluster: cluster.clone(),
            routes: routes.clone(),
            told: Told::new(&cluster),
        };
        let led = Arc::new(Self {
            term,
            session: LeaderSession(computer.simulator.steps() + 1),
            process,
            computer: computer.clone(),
            store: store.clone(),
            requests: Mutex::default(),
            requested: Notify::new(),
            published: Mutex::new(Arc::new(published)),
            changed: Notify::new(),
            heartbeats: Arc::new(Mutex::new(heartbeats)),
            receivers: Mutex::default(),
            wake: Notify::new(),
            lost: CancellationToken::new(),
            end: CancellationToken::new(),
        });
        tasks.spawn(led.clone().decide_and_commit(Leader::new(cluster, routes)));
        if led.plan(false).await.is_err() {
            led.stop();
            return None;
        }
        tasks.spawn(led.clone().plan_always());
        Some(led)
    }

    fn simulator(&self) -> &Simulator {
        &self.computer.simulator
    }

    /// Ends it: whoever waits is answered, and nothing more is decided.
    pub(crate) fn stop(&self) {
        self.end.cancel();
        self.requested.notify_one();
        self.wake.notify_one();
        self.changed.notify_waiters();
    }

    /// What the store had when it last answered.
    pub(crate) fn published(&self) -> Arc<Published> {
        Arc::clone(&locked(&self.published))
    }

    /// Decides and commits until the term ends.
    async fn decide_and_commit(self: Arc<Self>, mut leader: Leader) {
        loop {
            let waiting = locked(&self.requests).len();
            if waiting == 0 {
                if self.end.is_cancelled() {
                    return;
                }
                self.requested.notified().await;
                continue;
            }
            self.computer.runs().await;
            let committed = self.commit_batch(&mut leader).await;
            if committed.is_err_and(StoreFailure::ends_the_term) {
                self.end.cancel();
                self.lost.cancel();
                self.refuse_all(StoreFailure::LeaseLost);
                return;
            }
        }
    }

    fn refuse_all(&self, failure: StoreFailure) {
        let gathered = std::mem::take(&mut *locked(&self.requests));
        for decide in gathered {
            decide(Err(failure));
        }
    }

    /// Decides the requests that have gathered, and commits what they changed in one transaction.
    async fn commit_batch(&self, leader: &mut Leader) -> Result<(), StoreFailure> {
        let (computer, store) = (&self.computer, &self.store);
        let begun = store.begin_write(computer, self.process, self.term).await;
        let writing = match begun {
            Ok(writing) => writing,
            Err(failure) => {
                self.refuse_all(failure);
                return Err(failure);
            }
        };
        let gathered: Vec<_> = {
            let mut requests = locked(&self.requests);
            let count = requests.len().min(MAX_BATCH);
            requests.drain(..count).collect()
        };
        let replies: Vec<_> = (gathered.into_iter())
            .filter_map(|decide| decide(Ok(leader)))
            .collect();
        let batch = leader.take_batch();
        let changes = !batch.changes.is_empty();
        let written = if changes {
            store.commit(computer, writing, &batch).await
        } else {
            store.roll_back(computer, writing).await
        };
        match written {
            Ok(()) => {
                leader.commit(&batch);
                let mut told = self.published().told.clone();
                told.update(self.simulator(), &batch);
                let published = Published {
                    cluster: batch.after,
                    routes: batch.routes,
                    told,
                };
                *locked(&self.published) = Arc::new(published);
                if changes {
                    self.changed.notify_waiters();
                }
            }
            Err(_) => leader.roll_back(),
        }
        for reply in replies {
            reply(written);
        }
        written
    }

    /// Has the leader decide, and waits until the store has what it decided.
    async fn submit<T: Send + 'static>(
        &self,
        decide: impl FnOnce(&mut Leader) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, CallFailure> {
        let stopping = CallFailure::NoLeader("the server leads no longer");
        if self.end.is_cancelled() {
            return Err(stopping);
        }
        let (answer, answered) = oneshot::channel();
        let request: Request = Box::new(move |leader| {
            if answer.is_closed() {
                return None;
            }
            let failed = |_| CallFailure::NoLeader("the store did not take it");
            let decided = leader.map_err(failed).and_then(|leader| {
                let decided = decide(leader);
                decided.map_err(CallFailure::Refused)
            });
            match decided {
                Ok(result) => Some(Box::new(move |committed| {
                    // Who left needs no answer.
                    let _ = answer.send(committed.map(|()| result).map_err(failed));
                })),
                Err(refused) => {
                    let _ = answer.send(Err(refused));
                    None
                }
            }
        });
        locked(&self.requests).push_back(request);
        self.requested.notify_one();
        answered.await.unwrap_or(Err(stopping))
    }

    /// Carries out what a user wants of the cluster state.
    pub(crate) async fn change(
        &self,
        decide: impl FnOnce(&ClusterState, Timestamp) -> Vec<Command> + Send + 'static,
    ) -> Result<(), CallFailure> {
        let computer = self.computer.clone();
        let decided = self.submit(move |leader| {
            let now = computer.now();
            let commands = decide(leader.state(), now);
            leader.execute(&Origin::server(now), &commands)?;
            Ok(())
        });
        decided.await?;
        self.wake.notify_one();
        Ok(())
    }

    /// Makes the instance of a user's command, where it can be made now.
    pub(crate) async fn run_command(
        self: &Arc<Self>,
        wanted: impl FnOnce(Timestamp) -> WantedCommand + Send + 'static,
    ) -> Result<(), CallFailure> {
        let led = Arc::clone(self);
        let decided = self.submit(move |leader| {
            led.run_now(leader, wanted);
            Ok(())
        });
        decided.await?;
        self.wake.notify_one();
        Ok(())
    }

    fn run_now(&self, leader: &mut Leader, wanted: impl FnOnce(Timestamp) -> WantedCommand) {
        let (simulator, now) = (self.simulator(), self.computer.now());
        let mut draw = || simulator.draw(|rng| rng.next() as u32);
        let given = leader.state().clone();
        let made = leader.run_command(&Origin::server(now), &wanted(now), &mut draw);
        let id = match made {
            Ok(id) => id,
            Err(refused) => return simulator.trace(format!("server runs no command: {refused}")),
        };
        let Some(instance) = leader.state().instances.get(&id) else {
            return simulator.violate(format!("there is no instance {id} of a command"));
        };
        let create = Action::Create(Box::new(PlacedInstance {
            spec: Arc::clone(&instance.spec),
            node: instance.node,
            created_at: now,
        }));
        self.trace(&create);
        simulator.planned(1);
        invariants::check_plan(simulator, &given, &[create], leader.state(), now);
    }

    /// Plans when something changed, and in intervals, until the term ends.
    async fn plan_always(self: Arc<Self>) {
        let mut tick_at = Instant::now() + PLAN_INTERVAL;
        loop {
            // Whichever comes first.
            let _ = timeout_at(tick_at, self.wake.notified()).await;
            if self.end.is_cancelled() {
                return;
            }
            self.computer.latency(1, 20).await;
            let ticks = Instant::now() >= tick_at;
            if ticks {
                tick_at = Instant::now() + PLAN_INTERVAL;
            }
            // It is tried again at the next tick.
            let _ = self.plan(ticks).await;
        }
    }

    /// Plans until nothing is left to do. `ticks`: what time brings first.
    async fn plan(self: &Arc<Self>, ticks: bool) -> Result<(), CallFailure> {
        let led = Arc::clone(self);
        let set = ticks
            .then(|| self.computer.follow_the_wall_clock())
            .flatten();
        let planned = self.submit(move |leader| {
            let now = led.computer.now();
            if let Some(now) = set {
                led.simulator()
                    .trace(format!("{:?} finds that its clock was set", led.computer));
                leader.clock_was_set(now);
            }
            let overdue = if ticks {
                locked(&led.heartbeats).overdue(led.computer.uptime())
            } else {
                Vec::new()
            };
            for node in &overdue {
                leader.set_heard(*node, None, now);
            }
            led.plan_now(leader, now);
            Ok(overdue)
        });
        // Until it is published they are overdue.
        for node in planned.await? {
            locked(&self.heartbeats).lapse(node, self.computer.uptime());
        }
        Ok(())
    }

    fn plan_now(&self, leader: &mut Leader, now: Timestamp) {
        let simulator = self.simulator();
        let mut draw = || simulator.draw(|rng| rng.next() as u32);
        let mut count = 0;
        loop {
            simulator.step();
            let given = leader.state().clone();
            let Some(actions) = leader.plan_next(now, &mut draw) else {
                break;
            };
            for action in &actions {
                self.trace(action);
            }
            count += actions.len();
            if !actions.is_empty() {
                invariants::check_plan(simulator, &given, &actions, leader.state(), now);
            }
        }
        let pruned = leader.prune(now);
        for action in &pruned {
            self.trace(action);
        }
        simulator.planned(count + pruned.len());
        // The planner that looked at what changed finds what one finds that looks at everything. Rollouts have deadlines, for which
        // it looks now and then.
        let mut envs = leader.state().envs.values();
        let rolls = envs.any(|env| env.rollout.phase == RolloutPhase::Rolling);
        if !rolls {
            let whole = plan(leader.state(), now, &mut || 1);
            if !whole.actions.is_empty() {
                let what = format!("the planner rests, and would decide {:?}", whole.actions);
                simulator.violate(what);
            }
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
            Action::Terminate { id, reason } => format!("server terminates {id}: {reason}"),
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
        self.simulator().trace(line);
    }

    /// Whether more than `limit` has passed since `sent_at`: whoever sent it waits no more.
    pub(crate) fn now_is_after(&self, sent_at: Timestamp, limit: Duration) -> bool {
        let passed = self.simulator().now().millis_since(sent_at);
        u128::from(passed) > limit.as_millis()
    }

    /// Takes a node's report. `late`: it says what was, and may be no more.
    pub(crate) async fn report(
        &self,
        node: NodeId,
        mut report: ReportDelta,
        late: bool,
    ) -> Result<ReportAnswer, CallFailure> {
        let heartbeat_interval = heartbeat_interval(self.published().cluster.nodes.len());
        locked(&self.heartbeats).reported(node, heartbeat_interval, self.computer.uptime());
        // The reports of a node are taken one after the other.
        let receiver = Arc::clone(locked(&self.receivers).entry(node).or_default());
        let mut receiver = receiver.lock().await;
        self.computer.runs().await;
        let published = self.published();
        let known = published.cluster.nodes.get(&node);
        let known = known.filter(|known| known.is_approved());
        let known = known.ok_or(CallFailure::NotAMember)?;
        let now = self.computer.now();
        let exceeded = report.bound();
        let verdict = receiver.check(&report);
        let command = match verdict {
            Verdict::Apply => receiver.command(&published.cluster, node, &report, now),
            _ => None,
        };
        let changes_anything = |command: &Command| {
            let changes = apply(&mut published.cluster.clone(), command);
            changes.is_ok_and(|changes| !changes.is_empty())
        };
        let command = command.filter(changes_anything);
        if !known.is_online() || command.is_some() {
            let (heartbeats, uptime) = (Arc::clone(&self.heartbeats), self.computer.uptime());
            let taken = self.submit(move |leader| {
                if locked(&heartbeats).is_heard(node, uptime) {
                    leader.set_heard(node, Some(PROTOCOL_VERSION), now);
                }
                let origin = Origin {
                    by: Actor::Node(node),
                    at: now,
                };
                leader.execute(&origin, command.as_slice())
            });
            match taken.await {
                Err(CallFailure::Refused(Refused::NoNode(_))) => {
                    return Err(CallFailure::NotAMember);
                }
                Err(CallFailure::Refused(refused)) => {
                    let what = format!("a report of {node} is refused: {refused}");
                    self.simulator().violate(what);
                }
                taken => drop(taken?),
            }
            self.wake.notify_one();
        }
        if verdict == Verdict::Apply {
            let published = self.published();
            receiver.received(&published.cluster, node, &report, exceeded);
            self.check_strangers(node, &receiver, late);
        }
        Ok(receiver.answer(verdict, heartbeat_interval))
    }

    /// An instance that the store knows no more must not run.
    fn check_strangers(&self, node: NodeId, receiver: &ReportReceiver, late: bool) {
        if late || self.store.was_restored() {
            return;
        }
        let unknown = self.store.with(|cluster| {
            let known = cluster.nodes.contains_key(&node);
            known.then(|| receiver.unknown(cluster, node).instances)
        });
        let running = self.simulator().running();
        let lives = |id: &InstanceId| running.contains_key(id);
        if let Some(id) = unknown.into_iter().flatten().find(lives) {
            let what = format!("{node} runs {id}, which the server deleted");
            self.simulator().violate(what);
        }
    }

    /// Waits until what is published gives an answer; `None` when the time is over.
    async fn wait_for<T>(
        &self,
        wait: Duration,
        answer: impl Fn(&Published) -> Result<Option<T>, CallFailure>,
    ) -> Result<Option<T>, CallFailure> {
        let answered = async {
            loop {
                let changed = self.changed.notified();
                if self.end.is_cancelled() {
                    return Err(CallFailure::NoLeader("the server leads no longer"));
                }
                if let Some(answer) = answer(&self.published())? {
                    return Ok(Some(answer));
                }
                changed.await;
                self.computer.runs().await;
            }
        };
        let answered = timeout(wait, answered).await;
        self.computer.runs().await;
        answered.unwrap_or(Ok(None))
    }

    /// A node's desired state, once it is another than the one it has.
    pub(crate) async fn desired(
        &self,
        node: NodeId,
        has: Generation,
        wait: Duration,
    ) -> Result<Option<DesiredState>, CallFailure> {
        let newer = |published: &Published| {
            let known = published.cluster.nodes.get(&node);
            let may_call = known.map_or_else(
                || published.cluster.has_node(node),
                scheduler::cluster_state::Node::is_approved,
            );
            if !may_call {
                return Err(CallFailure::NotAMember);
            }
            Ok(newer_state(&published.cluster, node, has, self.term))
        };
        self.wait_for(wait, newer).await
    }

    /// An edge's routes, once they are others than those it has: what changed, or all.
    pub(crate) async fn routes(
        &self,
        has: HasRoutes,
        wait: Duration,
    ) -> Result<Option<RouteTable>, CallFailure> {
        let newer = |published: &Published| {
            let incarnation = published.cluster.incarnation;
            Ok(published.routes.news(incarnation, self.session, has))
        };
        self.wait_for(wait, newer).await
    }
}
