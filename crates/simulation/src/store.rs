//! The simulated store. Several servers may share it: then it has a lease, whose clock is the database's, and a transaction that writes
//! checks its term, as the statements of `store::lease` and `store::database` do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::instance::Runs;
use model::{EnvKey, Incarnation, InstanceId, ReleaseNumber, Term};
use scheduler::cluster_state::ClusterState;
use scheduler::leader::Batch;
use scheduler::lease::{SeenLease, StoredLease};
use scheduler::routes::{RouteIndex, StoredRoute, routes};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::computer::{Computer, Cut};
use crate::simulator::Simulator;

/// How long a server waits for an answer about the lease.
const LEASE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a statement about the lease may wait for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the database waits for the next statement of a transaction that writes.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(4);
/// How long a server waits for an answer to a statement that reads or writes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A process of a server: another one at each start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    /// Which server, counted from 0.
    pub(crate) server: usize,
    /// Which of its processes.
    pub(crate) life: u64,
}

/// Why the store did not do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreFailure {
    /// It did not answer, or ended the transaction.
    Failed,
    /// The term is over.
    LeaseLost,
    /// It did not answer when it was to commit: it may have.
    Unconfirmed,
}

impl StoreFailure {
    /// Whether the server that got this must not go on in its term.
    pub(crate) fn ends_the_term(self) -> bool {
        matches!(self, Self::LeaseLost | Self::Unconfirmed)
    }
}

/// A transaction that writes.
#[derive(Debug)]
pub(crate) struct Writing(u64);

/// What a term begins with.
pub(crate) struct Loaded {
    pub(crate) cluster: ClusterState,
    pub(crate) routes: RouteIndex,
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Store {
    simulator: Simulator,
    is_shared: bool,
    state: Arc<Mutex<State>>,
    /// A transaction has ended.
    ended: Arc<Notify>,
}

struct State {
    cluster: ClusterState,
    routes: BTreeMap<String, StoredRoute>,
    /// Counts the route tables, those that only removed hosts too.
    route_counter: u64,
    lease: StoredLease,
    holder: Option<Process>,
    /// What the database's clock shows more than true time, in milliseconds.
    clock_ahead: i64,
    transactions: BTreeMap<u64, Transaction>,
    next_transaction: u64,
    /// Who wrote in each term.
    writers: BTreeMap<(Incarnation, Term), Process>,
    /// The instance of each release command that was started.
    release_commands: BTreeMap<(Incarnation, EnvKey, ReleaseNumber), InstanceId>,
    backup: Option<ClusterState>,
    was_restored: bool,
}

struct Transaction {
    process: Process,
    term: Term,
    /// Until when the database waits for its next statement.
    until: Instant,
}

impl Store {
    pub(crate) fn new(simulator: &Simulator, cluster: ClusterState, is_shared: bool) -> Self {
        let mut cluster = cluster;
        cluster.clear_presence();
        Self {
            simulator: simulator.clone(),
            is_shared,
            state: Arc::new(Mutex::new(State {
                cluster,
                routes: BTreeMap::new(),
                route_counter: 0,
                lease: StoredLease::default(),
                holder: None,
                clock_ahead: 0,
                transactions: BTreeMap::new(),
                next_transaction: 0,
                writers: BTreeMap::new(),
                release_commands: BTreeMap::new(),
                backup: None,
                was_restored: false,
            })),
            ended: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether several servers may use it, of which one leads by the lease.
    pub(crate) fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Looks at what it has.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&ClusterState) -> T) -> T {
        look(&self.lock().cluster)
    }

    /// The newest term, and whose it is.
    pub(crate) fn leader(&self) -> (Term, Option<Process>) {
        let state = self.lock();
        (state.lease.term, state.holder)
    }

    pub(crate) fn was_restored(&self) -> bool {
        self.lock().was_restored
    }

    /// Somebody sets the clock of the database.
    pub(crate) fn step_clock(&self, by_ms: i64) {
        self.lock().clock_ahead += by_ms;
    }

    /// The database's clock, in milliseconds.
    fn clock(&self) -> i64 {
        let true_time = i64::try_from(self.simulator.now().0).unwrap_or(i64::MAX);
        true_time.saturating_add(self.lock().clock_ahead)
    }

    /// The connections of a process that ended are closed: its transactions never were.
    pub(crate) fn disconnect(&self, process: Process) {
        let mut state = self.lock();
        (state.transactions).retain(|_, transaction| transaction.process != process);
        drop(state);
        self.ended.notify_waiters();
    }

    pub(crate) fn back_up(&self) {
        let mut state = self.lock();
        state.backup = Some(state.cluster.clone());
    }

    /// Puts the backup in place of what it has, as `platform server restore` does while no server runs. False: there is none.
    pub(crate) fn restore(&self) -> bool {
        let mut state = self.lock();
        let Some(mut backup) = state.backup.clone() else {
            return false;
        };
        backup.incarnation = Incarnation(state.cluster.incarnation.0 + 1);
        state.cluster = backup;
        state.routes.clear();
        // Terms begin anew.
        state.lease = StoredLease::default();
        state.holder = None;
        state.was_restored = true;
        true
    }

    /// Asks the database; `None`: no answer came in time.
    async fn ask<T>(
        &self,
        from: &Computer,
        limit: Duration,
        does: impl Future<Output = T>,
    ) -> Option<T> {
        let (low, high) = if self.is_shared { (1, 8) } else { (0, 1) };
        from.latency(low, high).await;
        if !from.passes(limit, Cut::loses_requests).await {
            return None;
        }
        let done = does.await;
        if !from.passes(limit, Cut::loses_answers).await {
            return None;
        }
        from.latency(low, high).await;
        Some(done)
    }

    /// The lease as it is now, and who holds it.
    pub(crate) async fn lease(&self, from: &Computer) -> Option<(SeenLease, Option<Process>)> {
        let read = async {
            let clock = self.clock();
            let state = self.lock();
            (state.lease.seen(clock), state.holder)
        };
        self.ask(from, LEASE_TIMEOUT, read).await
    }

    /// Takes the lease for a new term, if it is as it was seen, once every transaction of the leader before has ended.
    pub(crate) async fn acquire_lease(
        &self,
        from: &Computer,
        seen: SeenLease,
        process: Process,
    ) -> Option<Option<Term>> {
        let take = async {
            timeout(LOCK_TIMEOUT, self.nobody_writes()).await.ok()?;
            let clock = self.clock();
            let mut state = self.lock();
            let term = state.lease.acquire(seen, clock);
            if term.is_some() {
                state.holder = Some(process);
            }
            Some(term)
        };
        self.ask(from, LEASE_TIMEOUT, take).await.flatten()
    }

    async fn nobody_writes(&self) {
        loop {
            let now = Instant::now();
            let next = {
                let mut state = self.lock();
                state.transactions.retain(|_, open| open.until > now);
                state.transactions.values().map(|open| open.until).min()
            };
            let Some(until) = next else { return };
            // Whichever comes first.
            let _ = tokio::time::timeout_at(until, self.ended.notified()).await;
        }
    }

    /// Renews the lease of a term. False: the term is over.
    pub(crate) async fn renew_lease(&self, from: &Computer, term: Term) -> Option<bool> {
        let renew = async {
            let clock = self.clock();
            self.lock().lease.renew(term, clock)
        };
        self.ask(from, LEASE_TIMEOUT, renew).await
    }

    /// Gives up the lease of a term.
    pub(crate) async fn release_lease(&self, from: &Computer, term: Term) {
        let release = async { self.lock().lease.release(term) };
        // It expires anyway.
        let _ = self.ask(from, LEASE_TIMEOUT, release).await;
    }

    /// What a term begins with.
    pub(crate) async fn load(&self, from: &Computer) -> Option<Loaded> {
        let load = async {
            let state = self.lock();
            Loaded {
                cluster: state.cluster.clone(),
                routes: RouteIndex::new(state.routes.clone(), state.route_counter),
            }
        };
        self.ask(from, ANSWER_TIMEOUT, load).await
    }

    /// Begins a transaction of this term.
    pub(crate) async fn begin_write(
        &self,
        from: &Computer,
        process: Process,
        term: Term,
    ) -> Result<Writing, StoreFailure> {
        let begin = async {
            let clock = self.clock();
            let mut state = self.lock();
            if self.is_shared && !state.lease.seen(clock).admits(term) {
                return Err(StoreFailure::LeaseLost);
            }
            state.next_transaction += 1;
            let number = state.next_transaction;
            let transaction = Transaction {
                process,
                term,
                until: Instant::now() + IDLE_IN_TRANSACTION,
            };
            state.transactions.insert(number, transaction);
            Ok(Writing(number))
        };
        let begun = self.ask(from, ANSWER_TIMEOUT, begin).await;
        from.begins_a_write();
        from.runs().await;
        begun.unwrap_or(Err(StoreFailure::Failed))
    }

    /// Ends a transaction as if it never was.
    pub(crate) async fn roll_back(
        &self,
        from: &Computer,
        writing: Writing,
    ) -> Result<(), StoreFailure> {
        // It may have been ended by the database.
        let end = async { self.end(&writing).is_some() };
        let ended = self.ask(from, ANSWER_TIMEOUT, end).await;
        ended.map(|_| ()).ok_or(StoreFailure::Failed)
    }

    /// Writes a batch and commits it.
    pub(crate) async fn commit(
        &self,
        from: &Computer,
        writing: Writing,
        batch: &Batch,
    ) -> Result<(), StoreFailure> {
        let commit = async {
            let open = self.end(&writing).ok_or(StoreFailure::Failed)?;
            self.take(&open, batch);
            Ok(())
        };
        let committed = self.ask(from, ANSWER_TIMEOUT, commit).await;
        committed.unwrap_or(Err(StoreFailure::Unconfirmed))
    }

    /// The transaction, which ends; `None`: the database has ended it.
    fn end(&self, writing: &Writing) -> Option<Transaction> {
        let transaction = self.lock().transactions.remove(&writing.0);
        self.ended.notify_waiters();
        transaction.filter(|open| open.until > Instant::now())
    }

    /// Takes what a transaction wrote, and checks that it may.
    fn take(&self, by: &Transaction, batch: &Batch) {
        let mut state = self.lock();
        let state = &mut *state;
        let newest = state.lease.term;
        if self.is_shared && newest != by.term {
            let what = format!("a write of term {} is taken in term {newest}", by.term);
            self.simulator.violate(what);
        }
        let term = (state.cluster.incarnation, by.term);
        let writer = state.writers.entry(term).or_insert(by.process);
        if self.is_shared && *writer != by.process {
            let (one, two) = (writer.server + 1, by.process.server + 1);
            let what = format!("servers {one} and {two} write in term {}", by.term);
            self.simulator.violate(what);
        }
        if let Err(what) = scheduler::events::check::check(&state.cluster, &batch.changes) {
            self.simulator.violate(format!("events: {what}"));
        }
        batch.changes.patch(&mut state.cluster);
        for (host, stored) in &batch.changes.routes {
            match stored {
                Some(stored) => drop(state.routes.insert(host.clone(), stored.clone())),
                None => drop(state.routes.remove(host)),
            }
        }
        if !batch.changes.routes.is_empty() {
            state.route_counter = batch.routes.counter();
        }
        for (id, instance) in &batch.changes.instances {
            if let Some(spec) = instance.as_ref().map(|instance| &instance.spec)
                && spec.runs == Runs::ReleaseCommand
            {
                let of = (state.cluster.incarnation, spec.env_key(), spec.release);
                let first = state.release_commands.entry(of).or_insert(*id);
                if first != id {
                    let what = format!(
                        "the release command of {} runs in {first} and in {id}",
                        spec.release
                    );
                    self.simulator.violate(what);
                }
            }
            if instance
                .as_ref()
                .is_none_or(|instance| instance.is_terminating())
            {
                self.simulator.terminated(*id);
            }
        }
        let whole = batch.routes.whole(state.cluster.incarnation).routes;
        if !batch.touched.is_empty() && whole != routes(&batch.after) {
            let what = "the routes that were kept up to date are others than the cluster state's";
            self.simulator.violate(what);
        }
        let mut decided = batch.after.clone();
        // Which nodes are heard is not stored.
        decided.clear_presence();
        state.cluster.clear_presence();
        if decided != state.cluster {
            let what = "the store has another cluster state than was decided";
            self.simulator.violate(what);
        }
    }
}
