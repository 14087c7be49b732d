//! What a leader knows of the overlay in memory only: what members say of their links, and what does not work of the hubs (ADR 0004).

// ring: the shared state holds what is known of the overlay, and is asked here what is published.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::enrollment::Member;
use api::member::LinkReport;
use model::NodeId;
use overlay::topology::HubFaults;
use scheduler::hubs::HubWatch;

use crate::clock::now;
use crate::failure::ApiFailure;
use crate::limits::{HUB_EVALUATION_PAUSE, HUB_LOOK_INTERVAL, UNDERLAY_CHANGE_INTERVAL};
use crate::options::ServerError;
use crate::state::Shared;

/// What is known of the overlay in this term.
#[derive(Debug)]
pub(crate) struct Overlay {
    /// Names the counting of this term: what another term counted says nothing here. Never 0.
    pub(crate) session: u64,
    began: Instant,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    hubs: HubWatch,
    faults: Arc<HubFaults>,
    links: BTreeMap<Member, BTreeMap<NodeId, LinkReport>>,
    /// Why a member's end is not as it is to be, where it says so.
    errors: BTreeMap<Member, String>,
    /// When the hubs were last evaluated, since the term began.
    evaluated_at: Option<Duration>,
    /// When a member's endpoint was last recorded anew.
    moved_at: BTreeMap<Member, Instant>,
}

impl Overlay {
    pub(crate) fn new() -> Result<Self, ServerError> {
        let random: [u8; 8] = identity::random("the overlay's session")?;
        Ok(Self {
            session: u64::from_le_bytes(random).max(1),
            began: Instant::now(),
            known: Mutex::default(),
        })
    }

    /// What does not work of the hubs.
    pub(crate) fn faults(&self) -> Arc<HubFaults> {
        Arc::clone(&self.lock().faults)
    }

    /// What a member last said of its links.
    pub(crate) fn links_of(&self, member: Member) -> BTreeMap<NodeId, LinkReport> {
        self.lock().links.get(&member).cloned().unwrap_or_default()
    }

    /// Why a member's end is not as it is to be, as it last said.
    pub(crate) fn error_of(&self, member: Member) -> Option<String> {
        self.lock().errors.get(&member).cloned()
    }

    /// A member says whether its end is as it is to be.
    pub(crate) fn record_error(&self, member: Member, error: Option<String>) {
        let mut known = self.lock();
        if known.errors.get(&member) == error.as_ref() {
            return;
        }
        match error {
            Some(error) => {
                tracing::warn!(%member, error, "a member cannot make its end of the overlay");
                known.errors.insert(member, error);
            }
            None => drop(known.errors.remove(&member)),
        }
    }

    /// Whether the member's endpoint may be recorded anew now; else how long it has to wait.
    pub(crate) fn may_move(&self, member: Member, now: Instant) -> Result<(), Duration> {
        let mut known = self.lock();
        let last = known.moved_at.get(&member);
        let since = last.map(|last| now.saturating_duration_since(*last));
        match since.and_then(|since| UNDERLAY_CHANGE_INTERVAL.checked_sub(since)) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                known.moved_at.insert(member, now);
                Ok(())
            }
        }
    }

    /// A member says what it knows of its links.
    fn record_links(
        &self,
        member: Member,
        number: Option<NodeId>,
        links: BTreeMap<NodeId, LinkReport>,
    ) {
        let answers = links.iter();
        let answers = answers.filter_map(|(id, link)| Some((*id, link.answers?)));
        let answers = answers.collect();
        let at = self.began.elapsed();
        let mut known = self.lock();
        if let Some(number) = number {
            known.hubs.report(number, answers, at);
        }
        known.links.insert(member, links);
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// A member says what it knows of its links. Where a hub is dead by that, or is not reached by this member, those concerned are told before this returns, or within
    /// [`HUB_LOOK_INTERVAL`] where many say something.
    pub(crate) async fn report_links(
        &self,
        member: Member,
        number: Option<NodeId>,
        links: BTreeMap<NodeId, LinkReport>,
    ) -> Result<(), ApiFailure> {
        self.overlay.record_links(member, number, links);
        let evaluated = self.overlay.lock().evaluated_at;
        let is_due =
            evaluated.is_none_or(|at| self.overlay.began.elapsed() >= at + HUB_EVALUATION_PAUSE);
        if is_due && self.watches_hubs() {
            self.evaluate_hubs().await?;
        }
        Ok(())
    }

    /// Finds what does not work of the hubs now, and tells who is concerned where that is something else than before.
    pub(crate) async fn evaluate_hubs(&self) -> Result<(), ApiFailure> {
        let changed = {
            let published = Arc::clone(&self.published.borrow());
            let topology = published.peers.topology();
            let at = self.overlay.began.elapsed();
            // One that this leader has not heard yet is silent since the term began, and no longer.
            let silent_for = |hub| {
                let seen = self.presence.seen_at(hub);
                let silent =
                    seen.map_or(at, |seen| Duration::from_millis(now().millis_since(seen)));
                Some(silent)
            };
            let mut known = self.overlay.lock();
            known.evaluated_at = Some(at);
            let faults = known.hubs.evaluate(topology, silent_for, at);
            let changed = faults != *known.faults;
            if changed {
                log_changes(&known.faults, &faults);
                known.faults = Arc::new(faults);
            }
            changed
        };
        if changed {
            // What is published next is with them.
            self.change(|_| Ok::<_, ApiFailure>((Vec::new(), ())))
                .await?;
        }
        Ok(())
    }

    /// Whether there are hubs.
    fn watches_hubs(&self) -> bool {
        let mode = self.published.borrow().cluster.settings.mode;
        matches!(mode, overlay::topology::Mode::Hubs { .. })
    }
}

fn log_changes(before: &HubFaults, now: &HubFaults) {
    for hub in now.dead.difference(&before.dead) {
        tracing::warn!(%hub, "a hub does not answer its members: its place is another's until it is well");
    }
    for hub in before.dead.difference(&now.dead) {
        tracing::info!(%hub, "a hub is on trial again");
    }
    for (member, hub) in now.unreached.difference(&before.unreached) {
        tracing::warn!(%member, %hub, "a member does not reach a hub that others reach: another hub is its home until it does");
    }
    for (member, hub) in before.unreached.difference(&now.unreached) {
        tracing::info!(%member, %hub, "a hub may be the home of a member again");
    }
}

/// Looks at the hubs now and then: one may be silent from now on, or its hold-down over.
pub(crate) async fn watch_hubs(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = tokio::time::sleep(HUB_LOOK_INTERVAL) => {}
        }
        if shared.watches_hubs()
            && let Err(failure) = shared.evaluate_hubs().await
        {
            tracing::debug!(reason = failure.reason(), "the hubs were not looked at");
        }
    }
}
