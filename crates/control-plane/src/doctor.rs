//! The measurement that members make just now, where a user asked for one: what each is to measure, and what it answered. In memory only, and one at a time.
//!
//! ```text
//! user: POST doctor ----> begin --> MemberState.measure <--long poll-- member
//!       <-- findings ---- answers <----------- POST measurement ------ member
//! ```

// ring: the shared state holds the run, and members are woken by it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::enrollment::Member;
use api::member::{Measurement, MeasurementRequest};
use model::Timestamp;
use scheduler::doctor::clock_ahead;
use tokio::sync::Notify;

/// The run that goes on, if one does.
#[derive(Debug, Default)]
pub(crate) struct Doctor(Mutex<Option<Run>>);

#[derive(Debug)]
struct Run {
    id: u64,
    began: Instant,
    asked: BTreeMap<Member, Asked>,
    answered: Arc<Notify>,
}

#[derive(Debug)]
struct Asked {
    request: MeasurementRequest,
    /// When the member was last given the request.
    given_at: Option<Timestamp>,
    answer: Option<Answer>,
}

/// What a member answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) measurement: Measurement,
    /// By how many milliseconds its clock is ahead of the server's at least.
    pub(crate) clock_ahead_ms: i64,
}

/// Why there is no run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Busy {
    /// Since when another one goes on.
    pub(crate) since: Duration,
}

/// A run. It is over when this is dropped: a user who left waits for nothing.
#[derive(Debug)]
pub(crate) struct Running<'d> {
    doctor: &'d Doctor,
    id: u64,
    answered: Arc<Notify>,
}

impl Doctor {
    /// Begins a run, in which these members are asked.
    pub(crate) fn begin(
        &self,
        id: u64,
        requests: BTreeMap<Member, MeasurementRequest>,
    ) -> Result<Running<'_>, Busy> {
        let mut run = self.lock();
        if let Some(run) = &*run {
            let since = run.began.elapsed();
            return Err(Busy { since });
        }
        let asked = requests.into_iter().map(|(member, request)| {
            let asked = Asked {
                request,
                given_at: None,
                answer: None,
            };
            (member, asked)
        });
        let answered = Arc::new(Notify::new());
        *run = Some(Run {
            id,
            began: Instant::now(),
            asked: asked.collect(),
            answered: Arc::clone(&answered),
        });
        Ok(Running {
            doctor: self,
            id,
            answered,
        })
    }

    /// What a member is to measure that took the run `measured` last. It is given again as long as the member does not say that it has it.
    pub(crate) fn request_for(
        &self,
        member: Member,
        measured: u64,
        now: Timestamp,
    ) -> Option<MeasurementRequest> {
        let mut run = self.lock();
        let run = run.as_mut().filter(|run| run.id != measured)?;
        let asked = run.asked.get_mut(&member)?;
        if asked.answer.is_some() {
            return None;
        }
        asked.given_at = Some(now);
        Some(asked.request.clone())
    }

    /// A member answers. False: nobody waits for it, or it answered already. What it says of others than those that it was asked about is dropped.
    pub(crate) fn answer(
        &self,
        member: Member,
        measurement: Measurement,
        now: Timestamp,
        is_peer: impl Fn(model::NodeId) -> bool,
    ) -> bool {
        let mut run = self.lock();
        let Some(run) = run.as_mut().filter(|run| run.id == measurement.run) else {
            return false;
        };
        let Some(asked) = run.asked.get_mut(&member) else {
            return false;
        };
        let (Some(given_at), None) = (asked.given_at, &asked.answer) else {
            return false;
        };
        let mut measurement = measurement.bounded();
        let request = &asked.request;
        measurement.links.retain(|number, _| {
            let is_asked = (request.peers.as_ref()).is_none_or(|peers| peers.contains(number));
            is_asked && is_peer(*number)
        });
        measurement
            .relayed
            .retain(|number, _| request.relayed.contains(number));
        let (received_at, sent_at) = (measurement.received_at, measurement.sent_at);
        asked.answer = Some(Answer {
            measurement,
            clock_ahead_ms: clock_ahead(given_at, received_at, sent_at, now),
        });
        run.answered.notify_waiters();
        true
    }

    fn lock(&self) -> MutexGuard<'_, Option<Run>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running<'_> {
    /// Waits until all have answered, or for so long.
    pub(crate) async fn wait(&self, most: Duration) {
        let all = async {
            loop {
                let answered = self.answered.notified();
                tokio::pin!(answered);
                answered.as_mut().enable();
                if self.is_complete() {
                    return;
                }
                answered.await;
            }
        };
        // Those that have not answered are named.
        let _ = tokio::time::timeout(most, all).await;
    }

    /// What each member that was asked answered; absent: nothing yet.
    pub(crate) fn answers(&self) -> BTreeMap<Member, Option<Answer>> {
        let run = self.doctor.lock();
        let asked = run.iter().flat_map(|run| &run.asked);
        asked
            .map(|(member, asked)| (*member, asked.answer.clone()))
            .collect()
    }

    fn is_complete(&self) -> bool {
        let run = self.doctor.lock();
        run.as_ref()
            .is_none_or(|run| run.asked.values().all(|asked| asked.answer.is_some()))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut run = self.doctor.lock();
        if run.as_ref().is_some_and(|run| run.id == self.id) {
            *run = None;
        }
    }
}
