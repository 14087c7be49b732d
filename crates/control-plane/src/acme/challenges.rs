//! What edges are to answer to authorities of ACME now, and which edges have it. In memory only: who leads next says it anew.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::edge::{Challenge, ChallengeTable, HasRoutes};
use model::{EdgeId, Generation, Incarnation, LeaderSession};
use tokio::sync::Notify;

/// What an edge answers by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answers {
    /// The counter of its table; 0: it has none of this leader.
    pub(crate) counter: u64,
    /// Whether it has a port for HTTPS.
    pub(crate) has_https: bool,
}

/// What is asked for, by the number of the request for it.
#[derive(Debug, Default)]
pub(crate) struct Challenges {
    table: Mutex<Table>,
    /// Notified when an edge has another table.
    pub(crate) answered: Notify,
}

#[derive(Debug, Default)]
struct Table {
    counter: u64,
    wanted: BTreeMap<u64, Challenge>,
    answers: BTreeMap<EdgeId, Answers>,
}

/// A challenge that edges answer as long as this is there.
#[derive(Debug)]
pub(crate) struct Published {
    challenges: Arc<Challenges>,
    number: u64,
    /// The counter of the first table that has it.
    pub(crate) counter: u64,
}

impl Drop for Published {
    fn drop(&mut self) {
        let mut table = self.challenges.lock();
        table.wanted.remove(&self.number);
        table.counter += 1;
    }
}

impl Challenges {
    /// Has edges answer this. Who tells them is the caller.
    pub(crate) fn publish(self: &Arc<Self>, challenge: Challenge) -> Published {
        let mut table = self.lock();
        table.counter += 1;
        let counter = table.counter;
        table.wanted.insert(counter, challenge);
        Published {
            challenges: Arc::clone(self),
            number: counter,
            counter,
        }
    }

    /// An edge asks, and has this table.
    pub(crate) fn asked(
        &self,
        edge: EdgeId,
        (incarnation, session): (Incarnation, LeaderSession),
        has: HasRoutes,
        has_https: bool,
    ) {
        let is_ours = has.session == session && has.generation.incarnation == incarnation;
        let counter = if is_ours { has.generation.counter } else { 0 };
        let answers = Answers { counter, has_https };
        let before = self.lock().answers.insert(edge, answers);
        if before != Some(answers) {
            self.answered.notify_waiters();
        }
    }

    /// What an edge is to be told; `None`: it has this table.
    pub(crate) fn news(
        &self,
        (incarnation, session): (Incarnation, LeaderSession),
        has: HasRoutes,
    ) -> Option<ChallengeTable> {
        let table = self.lock();
        let generation = Generation {
            incarnation,
            counter: table.counter,
        };
        let is_known = has.session == session && has.generation == generation;
        (!is_known).then(|| ChallengeTable {
            generation,
            session,
            challenges: table.wanted.values().cloned().collect(),
        })
    }

    /// What an edge answers by; absent: it has not asked in this term.
    pub(crate) fn answers_of(&self, edge: EdgeId) -> Option<Answers> {
        self.lock().answers.get(&edge).copied()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const OF: (Incarnation, LeaderSession) = (Incarnation(1), LeaderSession(7));

    fn challenge(host: &str) -> Challenge {
        Challenge {
            host: host.to_owned(),
            http: None,
            tls_alpn: None,
        }
    }

    fn has(table: &ChallengeTable) -> HasRoutes {
        HasRoutes {
            generation: table.generation,
            session: table.session,
        }
    }

    #[test]
    fn edges_are_told_all_of_it_and_say_what_they_answer_by() {
        let challenges = Arc::new(Challenges::default());
        let edge = EdgeId(3);
        assert_eq!(challenges.answers_of(edge), None);
        // The empty table too, once.
        let first = challenges.news(OF, HasRoutes::default()).unwrap();
        assert!(first.challenges.is_empty());
        assert_eq!(challenges.news(OF, has(&first)), None);
        challenges.asked(edge, OF, has(&first), true);
        let published = challenges.publish(challenge("a.test"));
        assert!(challenges.answers_of(edge).unwrap().counter < published.counter);
        let other = challenges.publish(challenge("b.test"));
        let second = challenges.news(OF, has(&first)).unwrap();
        assert_eq!(second.challenges.len(), 2);
        challenges.asked(edge, OF, has(&second), true);
        let answers = challenges.answers_of(edge).unwrap();
        assert!(answers.counter >= published.counter.max(other.counter));
        drop(published);
        let third = challenges.news(OF, has(&second)).unwrap();
        assert_eq!(third.challenges, [challenge("b.test")]);
        // A table of another leader is none.
        let mut foreign = has(&third);
        foreign.session = LeaderSession(8);
        challenges.asked(edge, OF, foreign, false);
        assert_eq!(
            challenges.answers_of(edge),
            Some(Answers {
                counter: 0,
                has_https: false
            })
        );
        assert!(challenges.news(OF, foreign).is_some());
    }
}
