//! The certificates of a term in memory, and what edges are to be told of them. A change costs what it changes.

use std::collections::{BTreeMap, BTreeSet};

use api::edge::{CertificateTable, EdgeCertificate, HasRoutes, TicketKeys};
use model::{Generation, Incarnation, LeaderSession, Term};

/// Names of changed certificates that are kept for edges which ask for differences. An edge that is further behind gets all.
const MAX_LOG: usize = 10_000;

/// The certificates, by name, and when each changed.
#[derive(Debug)]
pub(crate) struct CertificateIndex {
    certificates: BTreeMap<String, (u64, EdgeCertificate)>,
    /// Names by when they changed, those that were removed too: each name once.
    log: BTreeSet<(u64, String)>,
    /// When each name of the log changed.
    changed: BTreeMap<String, u64>,
    tickets: (u64, TicketKeys),
    /// Counts the tables of this session, from 1: every edge of another session is told once.
    counter: u64,
    /// What changed after this counter is in the log.
    log_begin: u64,
}

impl CertificateIndex {
    /// The certificates of a term that begins.
    pub(crate) fn new(
        certificates: impl IntoIterator<Item = (String, EdgeCertificate)>,
        tickets: TicketKeys,
    ) -> Self {
        let certificates = certificates.into_iter();
        Self {
            certificates: certificates.map(|(name, one)| (name, (1, one))).collect(),
            log: BTreeSet::new(),
            changed: BTreeMap::new(),
            tickets: (1, tickets),
            counter: 1,
            log_begin: 1,
        }
    }

    /// Adds a certificate, or removes the one of this name.
    pub(crate) fn set(&mut self, name: &str, certificate: Option<EdgeCertificate>) {
        self.counter += 1;
        match certificate {
            Some(one) => drop(
                self.certificates
                    .insert(name.to_owned(), (self.counter, one)),
            ),
            None => drop(self.certificates.remove(name)),
        }
        if let Some(before) = self.changed.insert(name.to_owned(), self.counter) {
            self.log.remove(&(before, name.to_owned()));
        }
        self.log.insert((self.counter, name.to_owned()));
        if self.log.len() > MAX_LOG
            && let Some((counter, name)) = self.log.pop_first()
        {
            self.log_begin = counter;
            self.changed.remove(&name);
        }
    }

    /// Has other keys seal session tickets.
    pub(crate) fn set_tickets(&mut self, tickets: TicketKeys) {
        self.counter += 1;
        self.tickets = (self.counter, tickets);
    }

    /// The one of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&EdgeCertificate> {
        self.certificates.get(name).map(|(_, one)| one)
    }

    /// Whether edges have one of this name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.certificates.contains_key(name)
    }

    /// What an edge is to be told: what changed, where it has a table of this session and that is known; else all. `None`: it has this table.
    pub(crate) fn news(
        &self,
        (incarnation, session, term): (Incarnation, LeaderSession, Term),
        has: HasRoutes,
    ) -> Option<CertificateTable> {
        let its = has.generation.counter;
        let is_comparable = has.session == session && has.generation.incarnation == incarnation;
        if is_comparable && its == self.counter {
            return None;
        }
        let since = (is_comparable && (self.log_begin..self.counter).contains(&its)).then_some(its);
        let mut table = CertificateTable {
            generation: Generation {
                incarnation,
                counter: self.counter,
            },
            term,
            session,
            since,
            certificates: BTreeMap::new(),
            removed: BTreeSet::new(),
            tickets: None,
        };
        let Some(since) = since else {
            let all = self.certificates.iter();
            table.certificates = all
                .map(|(name, (_, one))| (name.clone(), one.clone()))
                .collect();
            table.tickets = Some(self.tickets.1.clone());
            return Some(table);
        };
        for (_, name) in self.log.range((since + 1, String::new())..) {
            match self.certificates.get(name) {
                Some((_, one)) => drop(table.certificates.insert(name.clone(), one.clone())),
                None => drop(table.removed.insert(name.clone())),
            }
        }
        if self.tickets.0 > since {
            table.tickets = Some(self.tickets.1.clone());
        }
        Some(table)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const OF: (Incarnation, LeaderSession, Term) = (Incarnation(1), LeaderSession(7), Term(3));

    fn one(text: &str) -> EdgeCertificate {
        EdgeCertificate {
            chain_pem: text.to_owned(),
            key_pem: text.to_owned(),
        }
    }

    fn keys(text: &str) -> TicketKeys {
        TicketKeys {
            current: text.to_owned(),
            previous: None,
        }
    }

    fn index() -> CertificateIndex {
        let both = ["a", "b"].map(|name| (name.to_owned(), one(name)));
        CertificateIndex::new(both, keys("k1"))
    }

    fn has(table: &CertificateTable) -> HasRoutes {
        HasRoutes {
            generation: table.generation,
            session: table.session,
        }
    }

    fn names(table: &CertificateTable) -> (Vec<&str>, Vec<&str>) {
        let names = table.certificates.keys().map(String::as_str).collect();
        (names, table.removed.iter().map(String::as_str).collect())
    }

    #[test]
    fn an_edge_gets_all_once_and_then_what_changed() {
        let mut index = index();
        let whole = index.news(OF, HasRoutes::default()).unwrap();
        assert_eq!((whole.since, names(&whole).0), (None, vec!["a", "b"]));
        assert_eq!(whole.tickets, Some(keys("k1")));
        assert_eq!(index.news(OF, has(&whole)), None);

        index.set("c", Some(one("c")));
        index.set("a", None);
        let change = index.news(OF, has(&whole)).unwrap();
        assert_eq!(change.since, Some(whole.generation.counter));
        assert_eq!(names(&change), (vec!["c"], vec!["a"]));
        assert_eq!(change.tickets, None);
        index.set_tickets(keys("k2"));
        let rotated = index.news(OF, has(&change)).unwrap();
        assert_eq!(names(&rotated), (vec![], vec![]));
        assert_eq!(rotated.tickets, Some(keys("k2")));
        assert_eq!(index.news(OF, has(&rotated)), None);
    }

    #[test]
    fn an_edge_of_another_session_or_another_life_of_the_store_gets_all() {
        let mut index = index();
        let whole = index.news(OF, HasRoutes::default()).unwrap();
        index.set("c", Some(one("c")));
        let mut other = has(&whole);
        other.session = LeaderSession(8);
        assert_eq!(index.news(OF, other).unwrap().since, None);
        let mut other = has(&whole);
        other.generation.incarnation = Incarnation(2);
        assert_eq!(index.news(OF, other).unwrap().since, None);
        // One that is ahead of what there is.
        let mut other = has(&whole);
        other.generation.counter = 99;
        assert_eq!(index.news(OF, other).unwrap().since, None);
    }

    #[test]
    fn a_name_is_in_the_log_once_and_the_log_has_an_end() {
        let mut index = index();
        let whole = index.news(OF, HasRoutes::default()).unwrap();
        for _ in 0..100 {
            index.set("a", Some(one("new")));
        }
        assert_eq!((index.log.len(), index.changed.len()), (1, 1));
        let change = index.news(OF, has(&whole)).unwrap();
        assert_eq!(change.certificates["a"], one("new"));
        for number in 0..=MAX_LOG {
            index.set(&format!("n{number}"), None);
        }
        assert_eq!(index.log.len(), MAX_LOG);
        assert_eq!(index.changed.len(), MAX_LOG);
        assert_eq!(index.news(OF, has(&whole)).unwrap().since, None);
        assert!(index.news(OF, has(&change)).unwrap().since.is_none());
    }
}
