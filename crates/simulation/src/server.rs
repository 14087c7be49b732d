//! A simulated server: a process on its machine, which leads or follows by the real `scheduler::lease`, as `control_plane::election`
//! does.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::Term;
use scheduler::lease::{Answerer, Candidate, LeaseStep, SeenLease, answerer};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::computer::Computer;
use crate::store::{Process, Store};
use crate::tasks::Tasks;
use crate::term::LedTerm;

/// How long to wait after a term that could not be begun.
const FAILED_TERM_PAUSE: Duration = Duration::from_secs(5);

/// What a server is to its callers.
#[derive(Clone)]
enum Role {
    Leading(Arc<LedTerm>),
    Following { term: Term, leader: usize },
    Waiting,
}

/// Who answers a request.
pub(crate) enum Answering {
    /// The server that was asked.
    Me(Arc<LedTerm>),
    /// This one, to which it goes on.
    Leader(usize),
    Nobody,
}

/// A server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) computer: Computer,
    store: Store,
    state: Arc<Mutex<State>>,
}

struct State {
    lives: u64,
    is_up: bool,
    role: Role,
    /// When its lease may have expired, by its monotonic clock in milliseconds.
    leads_until: u64,
    tasks: Tasks,
}

impl Server {
    pub(crate) fn new(computer: Computer, store: Store) -> Self {
        Self {
            computer,
            store,
            state: Arc::new(Mutex::new(State {
                lives: 0,
                is_up: false,
                role: Role::Waiting,
                leads_until: 0,
                tasks: Tasks::default(),
            })),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_up(&self) -> bool {
        self.lock().is_up
    }

    /// Starts a process, unless one is up.
    pub(crate) fn start(&self) {
        let mut state = self.lock();
        if state.is_up {
            return;
        }
        state.is_up = true;
        state.lives += 1;
        state.leads_until = 0;
        state.tasks = Tasks::default();
        let process = Process {
            server: self.computer.index,
            life: state.lives,
        };
        let election = Election {
            server: self.clone(),
            process,
            candidate: Candidate::starting(self.computer.millis()),
            current: None,
            pause: Duration::ZERO,
            tasks: state.tasks.clone(),
        };
        state.tasks.spawn(election.run());
    }

    /// The process ends, in the middle of whatever it does.
    pub(crate) fn crash(&self) {
        let mut state = self.lock();
        if !state.is_up {
            return;
        }
        state.is_up = false;
        state.tasks.abort();
        let role = std::mem::replace(&mut state.role, Role::Waiting);
        let process = Process {
            server: self.computer.index,
            life: state.lives,
        };
        drop(state);
        if let Role::Leading(led) = role {
            led.stop();
        }
        self.store.disconnect(process);
    }

    /// Runs a task that ends with the process.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let tasks = self.lock().tasks.clone();
        tasks.spawn(task);
    }

    /// Who answers a request that came to this server.
    pub(crate) fn answering(&self, is_forwarded: bool) -> Answering {
        let now = self.computer.millis();
        let state = self.lock();
        let is_over = now >= state.leads_until;
        let (leads, follows) = match &state.role {
            Role::Leading(led) if !is_over => (Some(led.term), None),
            Role::Following { term, .. } => (None, Some(*term)),
            Role::Leading(_) | Role::Waiting => (None, None),
        };
        match (answerer(leads, follows, is_forwarded), &state.role) {
            (Answerer::Me, Role::Leading(led)) => Answering::Me(Arc::clone(led)),
            (Answerer::Leader, Role::Following { leader, .. }) => Answering::Leader(*leader),
            _ => Answering::Nobody,
        }
    }

    /// The term that it leads, or believes to lead.
    pub(crate) fn led(&self) -> Option<Arc<LedTerm>> {
        match &self.lock().role {
            Role::Leading(led) => Some(Arc::clone(led)),
            Role::Following { .. } | Role::Waiting => None,
        }
    }

    fn set_role(&self, role: Role) {
        self.lock().role = role;
    }
}

/// A term that is led, or is about to be.
enum Current {
    Beginning(oneshot::Receiver<Option<Arc<LedTerm>>>),
    Begun(Arc<LedTerm>),
}

/// A process's part in the election.
struct Election {
    server: Server,
    process: Process,
    candidate: Candidate,
    current: Option<Current>,
    pause: Duration,
    tasks: Tasks,
}

impl Election {
    async fn run(mut self) {
        let computer = self.server.computer.clone();
        computer.latency(1, 200).await;
        if !self.server.store.is_shared() {
            loop {
                if let Some(led) = self.begin(Term::default()).await {
                    self.server.lock().leads_until = u64::MAX;
                    self.server.set_role(Role::Leading(led));
                    return;
                }
                computer.sleep(FAILED_TERM_PAUSE).await;
            }
        }
        loop {
            self.step().await;
            computer.runs().await;
        }
    }

    fn begin(&self, term: Term) -> impl Future<Output = Option<Arc<LedTerm>>> + use<> {
        let (computer, store) = (self.server.computer.clone(), self.server.store.clone());
        let (process, tasks) = (self.process, self.tasks.clone());
        async move { LedTerm::begin(&computer, &store, process, term, &tasks).await }
    }

    fn now(&self) -> u64 {
        self.server.computer.millis()
    }

    /// Does what is to be done next about the lease, and waits for it.
    async fn step(&mut self) {
        let (computer, store) = (self.server.computer.clone(), self.server.store.clone());
        let asked_at = self.now();
        match self.candidate.step(asked_at) {
            LeaseStep::Look => match store.lease(&computer).await {
                Some((seen, holder)) => {
                    self.candidate.on_seen(seen, asked_at, self.now());
                    self.follow(seen, holder);
                }
                None => self.candidate.on_failed(self.now()),
            },
            LeaseStep::Acquire(seen) => {
                match store.acquire_lease(&computer, seen, self.process).await {
                    Some(term) => {
                        self.candidate.on_acquired(term, asked_at, self.now());
                        if let Some(term) = term {
                            self.note_the_lease();
                            self.begin_in_background(term);
                        }
                    }
                    None => self.candidate.on_failed(self.now()),
                }
            }
            LeaseStep::Renew(term) => match store.renew_lease(&computer, term).await {
                Some(renewed) => {
                    self.candidate.on_renewed(renewed, asked_at);
                    self.note_the_lease();
                }
                None => self.candidate.on_failed(self.now()),
            },
            LeaseStep::StepDown(term) => {
                let line = format!("{computer:?} leads no longer in term {term}");
                computer.simulator.trace(line);
                self.end_term();
                store.release_lease(&computer, term).await;
                computer.sleep(std::mem::take(&mut self.pause)).await;
                self.candidate.on_ended(self.now());
            }
            LeaseStep::Wait(wait) => self.wait(Duration::from_millis(wait)).await,
        }
    }

    fn begin_in_background(&mut self, term: Term) {
        let computer = &self.server.computer;
        computer
            .simulator
            .trace(format!("{computer:?} leads in term {term}"));
        let (sender, begun) = oneshot::channel();
        let beginning = self.begin(term);
        self.tasks.spawn(async move {
            // Nobody waits for it any more: the term ended meanwhile.
            if let Err(Some(led)) = sender.send(beginning.await) {
                led.stop();
            }
        });
        self.current = Some(Current::Beginning(begun));
    }

    /// Waits for this time, or until something happens to the term.
    async fn wait(&mut self, wait: Duration) {
        match &mut self.current {
            None => sleep(wait).await,
            Some(Current::Begun(led)) => {
                if timeout(wait, led.lost.cancelled()).await.is_ok() {
                    self.candidate.give_up();
                }
            }
            Some(Current::Beginning(beginning)) => {
                let Ok(begun) = timeout(wait, beginning).await else {
                    return;
                };
                self.server.computer.runs().await;
                if let Some(led) = begun.ok().flatten() {
                    self.server.set_role(Role::Leading(Arc::clone(&led)));
                    self.current = Some(Current::Begun(led));
                } else {
                    self.current = None;
                    if let Some(term) = self.candidate.leads(self.now()) {
                        let (computer, store) = (&self.server.computer, &self.server.store);
                        store.release_lease(computer, term).await;
                    }
                    self.candidate.give_up();
                    self.pause = FAILED_TERM_PAUSE;
                }
            }
        }
    }

    fn note_the_lease(&self) {
        if let Some(until) = self.candidate.leads_until() {
            self.server.lock().leads_until = until;
        }
    }

    fn follow(&self, seen: SeenLease, holder: Option<Process>) {
        let role = match (seen.leader_beside(holder == Some(self.process)), holder) {
            (Some(term), Some(holder)) => Role::Following {
                term,
                leader: holder.server,
            },
            _ => Role::Waiting,
        };
        self.server.set_role(role);
    }

    fn end_term(&mut self) {
        self.server.set_role(Role::Waiting);
        if let Some(Current::Begun(led)) = self.current.take() {
            led.stop();
        }
    }
}
