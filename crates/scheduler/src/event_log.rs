//! The numbers of events, and the folding of what happens over and over.
//!
//! Events have the order in which they were decided. Of what one instance, node, edge or env does again and again (a crash loop, a probe
//! that fails now and then) the first [`KEPT_APART`] events of a kind are kept; each later one takes the place of the one before it, and
//! tells how many there were since when. So nothing that flaps drives the events of others out of the store. What one user does is kept apart up to
//! [`KEPT_OF_A_USER`] events of a kind in a day, and folded beyond: nobody makes what others did be forgotten by doing very much, and nobody who does what a
//! pipeline does has less than everything on record.

// ring: events are a part of the changes, and are numbered as they are added to them.

use std::collections::BTreeSet;

use api::event::{Actor, Event, EventKind};
use model::{EdgeId, EnvKey, InstanceId, NodeId, Timestamp, UserName};

use crate::changes::Changes;
use crate::table::Table;

/// Events of one kind of one subject that are kept before they are folded.
pub const KEPT_APART: u32 = 3;
/// Events of one kind that one user caused within [`USER_DAY_MS`] that are kept before they are folded.
pub const KEPT_OF_A_USER: u32 = 2_000;
/// As long are the events of a user counted together, from the first one on, in milliseconds.
pub const USER_DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// What has not happened for so long is not folded into what happened before, in milliseconds.
pub const FOLD_WITHIN_MS: u64 = 60 * 60 * 1000;
/// Events that are deleted with a batch at most, beside as many as the batch adds.
pub const PRUNED_PER_BATCH: u64 = 64;

/// What may happen to one subject over and over.
const FOLDED: &[EventKind] = &[
    EventKind::InstanceStarted,
    EventKind::InstanceReady,
    EventKind::InstanceUnready,
    EventKind::InstanceUnhealthy,
    EventKind::InstanceRestarted,
    EventKind::InstanceExited,
    EventKind::InstanceFailed,
    EventKind::NodeOnline,
    EventKind::NodeOffline,
    EventKind::NodeChanged,
    EventKind::EdgeChanged,
    EventKind::EnvQuarantined,
    EventKind::CertificateFailed,
];

/// To whom it happens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Instance(InstanceId),
    Node(NodeId),
    Edge(EdgeId),
    Env(EnvKey),
    /// By whom.
    User(UserName),
}

impl Subject {
    /// Events of a kind that are kept before they are folded.
    fn kept_apart(&self) -> u32 {
        match self {
            Self::User(_) => KEPT_OF_A_USER,
            _ => KEPT_APART,
        }
    }
}

impl Fold {
    /// Whether an event of now is one more of these.
    fn goes_on(&self, subject: &Subject, now: Timestamp) -> bool {
        match subject {
            // Not by pauses: who does something every half an hour would repeat himself for ever.
            Subject::User(_) => now.millis_since(self.since) < USER_DAY_MS,
            _ => now.millis_since(self.at) < FOLD_WITHIN_MS,
        }
    }
}

/// The same event of the same subject, so far.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fold {
    count: u32,
    since: Timestamp,
    /// The last one, and when it was.
    number: u64,
    at: Timestamp,
}

/// Which events are to be deleted: the oldest, of those that are kept no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrunedEvents {
    /// Those up to this number.
    pub up_to: u64,
    /// And those before this time.
    pub before: Timestamp,
    /// No more than so many.
    pub most: u64,
}

impl PrunedEvents {
    /// What is kept no longer once these were added.
    pub fn after(added: &[Event]) -> Option<Self> {
        let newest = added.last()?;
        Some(Self {
            up_to: newest.number.saturating_sub(api::event::MAX_EVENTS),
            before: Timestamp(newest.at.0.saturating_sub(api::event::MAX_EVENT_AGE_MS)),
            most: PRUNED_PER_BATCH.saturating_add(added.len() as u64),
        })
    }
}

/// The last number that was given, and what is folded.
#[derive(Debug, Clone, Default)]
pub struct EventLog {
    last: u64,
    /// Not stored: after a change of the leader, folding begins anew.
    folds: Table<(Subject, EventKind), Fold>,
}

/// What is folded is not stored.
impl PartialEq for EventLog {
    fn eq(&self, other: &Self) -> bool {
        self.last == other.last
    }
}

impl Eq for EventLog {}

impl EventLog {
    /// After the event with this number; 0: there was none.
    pub fn after(last: u64) -> Self {
        Self {
            last,
            folds: Table::new(),
        }
    }

    /// The number of the last event; 0: there was none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Numbers events, folds them, and adds them to the changes that they tell of.
    pub(crate) fn add(&mut self, events: Vec<Event>, changes: &mut Changes) {
        for mut event in events {
            event.number = self.last.saturating_add(1);
            if let Some(key) = fold_key(&event)
                && let Some(before) = self.folds.get(&key)
                && before.goes_on(&key.0, event.at)
            {
                let (count, kept) = (before.count.saturating_add(1), key.0.kept_apart());
                // What a user did now and then is no repetition.
                if count > kept || !matches!(key.0, Subject::User(_)) {
                    event.count = count;
                    event.since = Some(before.since);
                }
                if before.count > kept {
                    replace(
                        &mut changes.events,
                        &mut changes.replaced_events,
                        before.number,
                    );
                }
            }
            self.note(&event);
            changes.events.push(event);
        }
    }

    /// Takes notice of an event that has its number.
    pub(crate) fn note(&mut self, event: &Event) {
        self.last = self.last.max(event.number);
        if let Some(key) = fold_key(event) {
            let before = self.folds.get(&key);
            let before = before.filter(|before| before.goes_on(&key.0, event.at));
            let (count, since) = match (&key.0, before) {
                (Subject::User(_), Some(before)) => (before.count.saturating_add(1), before.since),
                _ => (event.count, event.since.unwrap_or(event.at)),
            };
            let fold = Fold {
                count,
                since,
                number: event.number,
                at: event.at,
            };
            self.folds.insert(key, fold);
        }
        let gone = match event.kind {
            EventKind::InstanceStopped => event.instance.map(Subject::Instance),
            EventKind::NodeRemoved | EventKind::NodeLost => event.node.map(Subject::Node),
            EventKind::EdgeRemoved => event.edge.map(Subject::Edge),
            EventKind::EnvDestroyed => env_of(event).map(Subject::Env),
            _ => None,
        };
        if let Some(subject) = gone {
            for kind in FOLDED {
                self.folds.remove(&(subject.clone(), *kind));
            }
        }
    }

    /// How many kinds of events of how many subjects may be folded.
    #[cfg(test)]
    fn folds(&self) -> usize {
        self.folds.len()
    }
}

/// An event is replaced by a later one: it is taken out of `events`, which are not written yet, or else out of the store.
pub(crate) fn replace(events: &mut Vec<Event>, replaced: &mut BTreeSet<u64>, number: u64) {
    match events.binary_search_by_key(&number, |event| event.number) {
        Ok(place) => drop(events.remove(place)),
        Err(_) => drop(replaced.insert(number)),
    }
}

fn env_of(event: &Event) -> Option<EnvKey> {
    Some(EnvKey {
        app: event.app.clone()?,
        env: event.env.clone()?,
    })
}

fn fold_key(event: &Event) -> Option<(Subject, EventKind)> {
    if !FOLDED.contains(&event.kind) {
        return match &event.by {
            Actor::User(name) => Some((Subject::User(name.clone()), event.kind)),
            _ => None,
        };
    }
    let subject = match (event.instance, event.edge, event.node) {
        (Some(id), ..) => Subject::Instance(id),
        (None, Some(id), _) => Subject::Edge(id),
        (None, None, Some(id)) => Subject::Node(id),
        (None, None, None) => Subject::Env(env_of(event)?),
    };
    Some((subject, event.kind))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    fn event(kind: EventKind, instance: u32, at: u64) -> Event {
        Event {
            instance: Some(InstanceId(instance)),
            ..Event::new(Timestamp(at), Actor::Node(NodeId(1)), kind, "a test")
        }
    }

    /// What the store has after these changes.
    fn store(stored: &mut Vec<Event>, changes: &Changes) {
        stored.retain(|event| !changes.replaced_events.contains(&event.number));
        stored.extend(changes.events.iter().cloned());
    }

    #[test]
    fn a_crash_loop_keeps_a_bounded_number_of_events_and_says_how_many_there_were() {
        let mut log = EventLog::default();
        let mut stored = Vec::new();
        for round in 0..57 {
            let mut changes = Changes::default();
            log.add(
                vec![
                    event(EventKind::InstanceRestarted, 7, round * 60_000),
                    event(EventKind::InstanceStarted, 7, round * 60_000 + 1),
                ],
                &mut changes,
            );
            store(&mut stored, &changes);
        }
        let restarts: Vec<_> = (stored.iter())
            .filter(|event| event.kind == EventKind::InstanceRestarted)
            .collect();
        let counts: Vec<_> = restarts.iter().map(|event| event.count).collect();
        assert_eq!(counts, [1, 2, 3, 57]);
        assert_eq!(restarts[3].since, Some(Timestamp(0)));
        assert_eq!(restarts[3].at, Timestamp(56 * 60_000));
        assert_eq!(stored.len(), 8);
        assert_eq!(log.last(), 114);
        // What has not happened for long begins anew, and what is gone is not remembered.
        let late = 57 * 60_000 + FOLD_WITHIN_MS;
        let mut changes = Changes::default();
        log.add(
            vec![
                event(EventKind::InstanceRestarted, 7, late),
                event(EventKind::InstanceStopped, 7, late),
            ],
            &mut changes,
        );
        assert_eq!(changes.events[0].count, 1);
        assert!(changes.replaced_events.is_empty());
        assert_eq!(log.folds(), 0);
    }

    #[test]
    fn case_a_user_who_does_very_much_makes_nothing_else_be_forgotten() {
        let mut log = EventLog::default();
        let mut stored = Vec::new();
        let by = Actor::User("vie".parse().unwrap());
        let rounds = KEPT_OF_A_USER + 1_000;
        for round in 0..u64::from(rounds) {
            let mut changes = Changes::default();
            let made = |kind| Event::new(Timestamp(round * 10), by.clone(), kind, "a token");
            let both = [EventKind::UserTokenCreated, EventKind::UserTokenRevoked];
            log.add(both.map(made).into(), &mut changes);
            store(&mut stored, &changes);
        }
        let kept = usize::try_from(KEPT_OF_A_USER).unwrap();
        assert_eq!(stored.len(), 2 * (kept + 1));
        let apart = stored.iter().filter(|event| event.count == 1).count();
        assert_eq!(apart, 2 * kept);
        assert!(
            stored
                .iter()
                .rev()
                .take(2)
                .all(|event| event.count == rounds)
        );
    }

    #[test]
    fn all_that_a_pipeline_does_is_kept_whatever_else_it_did_before() {
        let mut log = EventLog::default();
        let mut stored = Vec::new();
        // A deploy every ten minutes, for a month.
        let deploys = 30 * 24 * 6;
        for round in 0..deploys {
            let mut changes = Changes::default();
            let by = Actor::User("ci".parse().unwrap());
            let at = Timestamp(round * 600_000);
            let deployed = Event::new(at, by, EventKind::ReleaseDeployed, "a release");
            log.add(vec![deployed], &mut changes);
            store(&mut stored, &changes);
        }
        assert_eq!(stored.len() as u64, deploys);
        assert!(stored.iter().all(|event| event.count == 1));
    }

    #[test]
    fn what_is_kept_no_longer_is_pruned_a_bounded_number_at_a_time() {
        assert_eq!(PrunedEvents::after(&[]), None);
        let mut newest = event(
            EventKind::InstanceReady,
            1,
            api::event::MAX_EVENT_AGE_MS + 5,
        );
        newest.number = api::event::MAX_EVENTS + 9;
        let pruned = PrunedEvents::after(&[newest]).unwrap();
        assert_eq!((pruned.up_to, pruned.before), (9, Timestamp(5)));
        assert_eq!(pruned.most, PRUNED_PER_BATCH + 1);
    }

    proptest! {
        /// However instances flap, and however changes are put together: numbers grow, the last event of each kind is there with the true
        /// count, and what is kept is bounded.
        #[test]
        fn folding_loses_nothing_but_the_middle(
            steps in prop::collection::vec((0u32..3, 0usize..3, 0u64..100_000, any::<bool>()), 1..200)
        ) {
            let kinds = [EventKind::InstanceReady, EventKind::InstanceUnready, EventKind::InstanceRestarted];
            let mut log = EventLog::default();
            let mut at = 0;
            let mut stored: Vec<Event> = Vec::new();
            let mut batch = Changes::default();
            let mut happened = std::collections::BTreeMap::new();
            for (instance, kind, pause, commits) in steps {
                at += pause;
                let mut changes = Changes::default();
                log.add(vec![event(kinds[kind], instance, at)], &mut changes);
                batch.then(changes);
                let times = happened.entry((instance, kinds[kind])).or_insert((0u32, 0u64));
                times.0 = if times.0 > 0 && at - times.1 >= FOLD_WITHIN_MS { 1 } else { times.0 + 1 };
                times.1 = at;
                if commits {
                    store(&mut stored, &std::mem::take(&mut batch));
                }
            }
            store(&mut stored, &batch);
            prop_assert!(stored.is_sorted_by(|a, b| a.number < b.number));
            for ((instance, kind), (count, last)) in happened {
                let of: Vec<_> = stored.iter()
                    .filter(|event| event.instance == Some(InstanceId(instance)) && event.kind == kind)
                    .collect();
                let newest = of.last().unwrap();
                prop_assert_eq!((newest.count, newest.at), (count, Timestamp(last)));
                let within = of.iter().filter(|event| event.at.millis_since(Timestamp(0)) + FOLD_WITHIN_MS > last);
                prop_assert!(within.count() <= 2 * (KEPT_APART as usize + 1));
            }
        }
    }
}
