//! Leading or following: performs what [`scheduler::lease`] decides about the store's lease, and begins and ends terms.
//!
//! A store in a file has one server, which leads for as long as it runs. Of several servers on one PostgreSQL one leads; the
//! others know from the lease where it is, and forward their callers there ([`crate::dispatch`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use metrics::Readiness;
use model::Term;
use scheduler::lease::{Answerer, Candidate, LeaseStep, SeenLease, TTL_MS, answerer};
use store::{Holder, StoreError};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::clock::since_boot;
use crate::limits::{FAILED_TERM_PAUSE, LEASE_TIMEOUT};
use crate::metrics::ServerMetrics;
use crate::options::ServerError;
use crate::term::{Foundation, LedTerm};

/// What this server is to its callers.
#[derive(Debug, Clone)]
pub(crate) enum Role {
    /// It leads, and answers itself.
    Leading {
        /// Since when.
        term: Term,
        /// What answers.
        router: Router,
    },
    /// Another server leads, at this URL.
    Following {
        /// Since when.
        term: Term,
        /// Where it is reached.
        leader: String,
    },
    /// Nobody is known to lead.
    Waiting,
}

impl Role {
    /// Who answers a request.
    pub(crate) fn answerer(&self, is_forwarded: bool) -> Answerer {
        let (leads, follows) = match self {
            Self::Leading { term, .. } => (Some(*term), None),
            Self::Following { term, .. } => (None, Some(*term)),
            Self::Waiting => (None, None),
        };
        answerer(leads, follows, is_forwarded)
    }

    /// The term of the leader that is known.
    pub(crate) fn term(&self) -> Option<Term> {
        match self {
            Self::Leading { term, .. } | Self::Following { term, .. } => Some(*term),
            Self::Waiting => None,
        }
    }
}

/// The role as it is now, for whoever answers callers.
#[derive(Debug, Clone)]
pub(crate) struct CurrentRole {
    role: watch::Receiver<Role>,
    /// When the lease may have expired, in milliseconds since `started`.
    leads_until: Arc<AtomicU64>,
    started: Duration,
}

impl CurrentRole {
    /// The role now. A leader whose lease may have expired is none: it was stopped for a while, or does not reach the database.
    pub(crate) fn now(&self) -> Role {
        let role = self.role.borrow().clone();
        let is_over = millis(self.started) >= self.leads_until.load(Ordering::Acquire);
        match role {
            Role::Leading { .. } if is_over => Role::Waiting,
            role => role,
        }
    }

    /// Reports whether this server leads, and whether it can answer: it leads, or knows who does. Until the election is over.
    pub(crate) async fn report(mut self, metrics: Arc<ServerMetrics>, readiness: Readiness) {
        let mut waits = None;
        loop {
            let (leads, term) = {
                let role = self.role.borrow_and_update();
                (matches!(*role, Role::Leading { .. }), role.term())
            };
            metrics.set_role(leads, term);
            match term {
                Some(_) => waits = None,
                None => {
                    waits.get_or_insert_with(|| readiness.waits_for("a server that leads"));
                }
            }
            if self.role.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until the leader of this term is not the one that is known any more.
    pub(crate) async fn changed_from(&mut self, term: Term) {
        let changed = self.role.wait_for(|role| role.term() != Some(term));
        if changed.await.is_err() {
            // The server ends; connections are ended by that.
            std::future::pending::<()>().await;
        }
    }
}

/// Milliseconds since the server started, by a clock that goes on while the machine is suspended.
fn millis(started: Duration) -> u64 {
    let since = since_boot().saturating_sub(started);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A term that is led, or is about to be.
enum Current {
    Beginning(JoinHandle<Result<LedTerm, ServerError>>),
    Begun(LedTerm),
}

/// A server's part in the election.
pub(crate) struct Election {
    foundation: Arc<Foundation>,
    me: Holder,
    candidate: Candidate,
    current: Option<Current>,
    /// Terms that end.
    ending: TaskTracker,
    role: watch::Sender<Role>,
    leads_until: Arc<AtomicU64>,
    started: Duration,
    /// How long to wait after a term that could not be begun.
    pause: Duration,
}

impl Election {
    /// A server that starts. Returns when it leads, or knows who does.
    ///
    /// # Errors
    /// The store failed, or the cluster state in it cannot be led.
    pub(crate) async fn start(
        foundation: Arc<Foundation>,
        me: Holder,
    ) -> Result<(Self, CurrentRole), ServerError> {
        let started = since_boot();
        let role = watch::Sender::new(Role::Waiting);
        let leads_until = Arc::new(AtomicU64::new(0));
        let current = CurrentRole {
            role: role.subscribe(),
            leads_until: Arc::clone(&leads_until),
            started,
        };
        let mut election = Self {
            foundation,
            me,
            candidate: Candidate::starting(0),
            current: None,
            ending: TaskTracker::new(),
            role,
            leads_until,
            started,
            pause: Duration::ZERO,
        };
        if !election.foundation.store.is_shared() {
            let led = LedTerm::begin(&election.foundation, Term::default()).await?;
            election.leads_until.store(u64::MAX, Ordering::Release);
            election.lead(led);
            return Ok((election, current));
        }
        while matches!(*election.role.borrow(), Role::Waiting) {
            let shutdown = election.foundation.shutdown.clone();
            tokio::select! {
                () = shutdown.cancelled() => break,
                stepped = election.step() => stepped?,
            }
        }
        Ok((election, current))
    }

    /// Leads and follows until the server ends.
    pub(crate) async fn run(mut self) {
        let shutdown = self.foundation.shutdown.clone();
        if self.foundation.store.is_shared() {
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    stepped = self.step() => if let Err(error) = stepped {
                        tracing::error!(error = %display::chain(&error), "this server cannot lead now");
                    }
                }
            }
        } else {
            shutdown.cancelled().await;
        }
        let term = self.role.borrow().term();
        let leads = self.current.is_some();
        self.end_term();
        self.ending.close();
        self.ending.wait().await;
        // What was queued is written. Another server may lead at once.
        if let (true, Some(term), true) = (leads, term, self.foundation.store.is_shared()) {
            self.release(term).await;
        }
    }

    fn now(&self) -> u64 {
        millis(self.started)
    }

    /// Does what is to be done next about the lease, and waits for it.
    async fn step(&mut self) -> Result<(), ServerError> {
        let asked_at = self.now();
        match self.candidate.step(asked_at) {
            LeaseStep::Look => {
                let store = self.foundation.store.clone();
                if let Some((seen, holder)) = self.answered(store.lease()).await {
                    self.candidate.on_seen(seen, asked_at, self.now());
                    self.follow(seen, holder);
                }
                Ok(())
            }
            LeaseStep::Acquire(seen) => {
                let store = self.foundation.store.clone();
                let me = self.me.clone();
                let acquiring = store.acquire_lease(seen, &me, Duration::from_millis(TTL_MS));
                if let Some(term) = self.answered(acquiring).await {
                    self.candidate.on_acquired(term, asked_at, self.now());
                    if let Some(term) = term {
                        tracing::info!(%term, "this server leads; loading the cluster state");
                        self.note_the_lease();
                        let foundation = Arc::clone(&self.foundation);
                        let begun =
                            tokio::spawn(async move { LedTerm::begin(&foundation, term).await });
                        self.current = Some(Current::Beginning(begun));
                    }
                }
                Ok(())
            }
            LeaseStep::Renew(term) => {
                let store = self.foundation.store.clone();
                let renewing = store.renew_lease(term, Duration::from_millis(TTL_MS));
                if let Some(renewed) = self.answered(renewing).await {
                    self.candidate.on_renewed(renewed, asked_at);
                    if renewed {
                        self.note_the_lease();
                    }
                }
                Ok(())
            }
            LeaseStep::StepDown(term) => {
                tracing::warn!(%term, "this server leads no longer");
                self.end_term();
                self.release(term).await;
                tokio::time::sleep(std::mem::take(&mut self.pause)).await;
                self.candidate.on_ended(self.now());
                Ok(())
            }
            LeaseStep::Wait(wait) => self.wait(Duration::from_millis(wait)).await,
        }
    }

    /// Waits for this time, or until something happens to the term.
    async fn wait(&mut self, wait: Duration) -> Result<(), ServerError> {
        match &mut self.current {
            None => tokio::time::sleep(wait).await,
            Some(Current::Begun(led)) => {
                let lost = led.lost.clone();
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = lost.cancelled() => self.candidate.give_up(),
                }
            }
            Some(Current::Beginning(beginning)) => {
                let begun = tokio::select! {
                    () = tokio::time::sleep(wait) => return Ok(()),
                    begun = beginning => begun,
                };
                let begun =
                    begun.unwrap_or_else(|error| Err(ServerError::Settle(error.to_string())));
                self.current = None;
                match begun {
                    Ok(led) => self.lead(led),
                    Err(error) => {
                        // Another server may manage; this one tries again later.
                        if let Some(term) = self.candidate.leads(self.now()) {
                            self.release(term).await;
                        }
                        self.candidate.give_up();
                        self.pause = FAILED_TERM_PAUSE;
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// The answer of the store about the lease. `None`: it failed, which is logged.
    async fn answered<T>(
        &mut self,
        asking: impl Future<Output = Result<T, StoreError>>,
    ) -> Option<T> {
        let error = match tokio::time::timeout(LEASE_TIMEOUT, asking).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => display::chain(&error),
            Err(_) => format!("the database did not answer within {LEASE_TIMEOUT:?}"),
        };
        tracing::warn!(error, "the lease cannot be looked after; trying again");
        self.candidate.on_failed(self.now());
        None
    }

    /// Lets whoever answers callers know until when this server leads.
    fn note_the_lease(&self) {
        if let Some(until) = self.candidate.leads_until() {
            self.leads_until.store(until, Ordering::Release);
        }
    }

    fn lead(&mut self, led: LedTerm) {
        if self.foundation.store.is_shared() {
            tracing::info!(term = %led.term, "this server leads and answers");
        }
        self.set_role(Role::Leading {
            term: led.term,
            router: led.router.clone(),
        });
        self.current = Some(Current::Begun(led));
    }

    fn follow(&self, seen: SeenLease, holder: Holder) {
        let role = match seen.leader_beside(holder.id == self.me.id) {
            Some(term) => Role::Following {
                term,
                leader: holder.address,
            },
            None => Role::Waiting,
        };
        self.set_role(role);
    }

    fn set_role(&self, role: Role) {
        self.role.send_if_modified(|known| {
            let changed = known.term() != role.term();
            if changed && let Role::Following { term, leader } = &role {
                tracing::info!(%term, leader, "another server leads");
            }
            *known = role;
            changed
        });
    }

    /// Ends the term. What its tasks have under way goes on: the store takes it or not.
    fn end_term(&mut self) {
        self.set_role(Role::Waiting);
        match self.current.take() {
            None => {}
            Some(Current::Begun(led)) => {
                led.stop();
                self.ending.spawn(led.ended());
            }
            Some(Current::Beginning(beginning)) => {
                self.ending.spawn(async move {
                    if let Ok(Ok(led)) = beginning.await {
                        led.ended().await;
                    }
                });
            }
        }
    }

    /// Lets another server lead at once. It would anyway when the lease expires.
    async fn release(&self, term: Term) {
        let releasing = self.foundation.store.release_lease(term);
        match tokio::time::timeout(LEASE_TIMEOUT, releasing).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %display::chain(&error), "the lease could not be given up");
            }
            Err(_) => tracing::warn!("the lease could not be given up in time"),
        }
    }
}
