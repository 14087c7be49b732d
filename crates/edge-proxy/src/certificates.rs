//! The certificates in memory, by the hosts they are for.
//!
//! Two kinds: those that the server keeps, which users added, and those of the ingress CA, which the server signs for one host of this edge. One of the
//! first kind is used wherever there is one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use api::certificates::is_certificate_name;
use api::edge::{CertificateTable, EdgeCertificate, HasRoutes};
use identity::{HostCertificate, HostCertificateError, certified_key, host_patterns};
use model::{Generation, LeaderSession, Term, Timestamp};
use rustls::sign::CertifiedKey;

/// The time by this machine's clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.unwrap_or_default().as_millis();
    Timestamp(u64::try_from(millis).unwrap_or(u64::MAX))
}

/// A certificate that can be used.
#[derive(Clone)]
pub(crate) struct Usable {
    pub(crate) says: HostCertificate,
    pub(crate) key: Arc<CertifiedKey>,
}

impl fmt::Debug for Usable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.says.fmt(f)
    }
}

impl Usable {
    /// A certificate with its key, in PEM.
    pub(crate) fn of(pem: &EdgeCertificate) -> Result<Self, HostCertificateError> {
        let (says, key) = certified_key(&pem.chain_pem, &pem.key_pem)?;
        Ok(Self { says, key })
    }
}

/// What a table changed: to be kept on disk.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// By name.
    pub(crate) written: BTreeMap<String, EdgeCertificate>,
    pub(crate) removed: BTreeSet<String>,
    /// What cannot be used, and why.
    pub(crate) unusable: BTreeMap<String, String>,
}

/// The certificates in use. A change costs what it changes.
#[derive(Debug, Default)]
pub(crate) struct Certificates(RwLock<Table>);

#[derive(Debug, Default)]
struct Table {
    generation: Generation,
    term: Term,
    session: LeaderSession,
    /// Those that the server keeps, by name.
    kept: BTreeMap<String, Usable>,
    /// Their names by what they are for, the one that ends last at the end.
    by_pattern: BTreeMap<String, BTreeSet<(Timestamp, String)>>,
    /// Those of the ingress CA, by host.
    issued: BTreeMap<String, Usable>,
}

impl Table {
    fn set(&mut self, name: &str, certificate: Option<Usable>) {
        if let Some(before) = self.kept.remove(name) {
            let entry = (before.says.not_after, name.to_owned());
            for pattern in &before.says.hosts {
                if let Some(names) = self.by_pattern.get_mut(pattern) {
                    names.remove(&entry);
                    if names.is_empty() {
                        self.by_pattern.remove(pattern);
                    }
                }
            }
        }
        if let Some(certificate) = certificate {
            for pattern in &certificate.says.hosts {
                let names = self.by_pattern.entry(pattern.clone()).or_default();
                names.insert((certificate.says.not_after, name.to_owned()));
            }
            self.kept.insert(name.to_owned(), certificate);
        }
    }

    /// The one for a host, then the wildcard's; one that has ended only where there is no other.
    fn find(&self, host: &str, now: Timestamp) -> Option<&Usable> {
        let mut ended = None;
        for pattern in host_patterns(host) {
            let last = self.by_pattern.get(&pattern).and_then(BTreeSet::last);
            let Some(found) = last.and_then(|(_, name)| self.kept.get(name)) else {
                continue;
            };
            if found.says.not_after > now {
                return Some(found);
            }
            ended = ended.or(Some(found));
        }
        ended
    }
}

impl Certificates {
    /// Which table is in use.
    pub(crate) fn has(&self) -> HasRoutes {
        let table = self.read();
        HasRoutes {
            generation: table.generation,
            session: table.session,
        }
    }

    /// How many there are, of both kinds.
    pub(crate) fn len(&self) -> usize {
        let table = self.read();
        table.kept.len() + table.issued.len()
    }

    /// Uses one that was on disk.
    pub(crate) fn begin_with(&self, name: &str, certificate: Usable) {
        self.write().set(name, Some(certificate));
    }

    /// Takes a newer table, or what changed since the one in use, or the whole one of another session; `None`: it is none of these, or of a leader that was
    /// taken for dead. `routes`: the incarnation and the term of the route table, which is kept over restarts. A certificate that cannot be used is as none, and the
    /// one that it was to replace stays.
    pub(crate) fn take(&self, new: CertificateTable, routes: (Generation, Term)) -> Option<Taken> {
        let mut table = self.write();
        let is_old = |(generation, term): (Generation, Term)| {
            generation.incarnation == new.generation.incarnation && new.term < term
        };
        if is_old((table.generation, table.term)) || is_old(routes) {
            return None;
        }
        let is_same = new.session == table.session
            && new.generation.incarnation == table.generation.incarnation;
        let is_news = match new.since {
            Some(since) => {
                is_same && since == table.generation.counter && new.generation.counter > since
            }
            None => !is_same || new.generation.counter > table.generation.counter,
        };
        if !is_news {
            return None;
        }
        let mut taken = Taken::default();
        let removed: Vec<_> = match new.since {
            Some(_) => new.removed.into_iter().collect(),
            None => {
                let is_named = |name: &&String| !new.certificates.contains_key(*name);
                table.kept.keys().filter(is_named).cloned().collect()
            }
        };
        for name in removed {
            table.set(&name, None);
            taken.removed.insert(name);
        }
        for (name, pem) in new.certificates {
            if !is_certificate_name(&name) {
                taken
                    .unusable
                    .insert(name, "it has no name of a certificate".to_owned());
                continue;
            }
            match Usable::of(&pem) {
                Ok(usable) => {
                    table.set(&name, Some(usable));
                    taken.written.insert(name, pem);
                }
                Err(error) => drop(taken.unusable.insert(name, error.to_string())),
            }
        }
        (table.generation, table.term) = (new.generation, new.term);
        table.session = new.session;
        Some(taken)
    }

    /// The certificate for a host (lowercase) that the server keeps.
    pub(crate) fn kept_for(&self, host: &str) -> Option<Arc<CertifiedKey>> {
        let table = self.read();
        table.find(host, now()).map(|found| Arc::clone(&found.key))
    }

    /// Whether the server keeps one for a host (lowercase) that has not ended.
    pub(crate) fn is_current_for(&self, host: &str, now: Timestamp) -> bool {
        let table = self.read();
        let found = table.find(host, now);
        found.is_some_and(|found| found.says.not_after > now)
    }

    /// The certificate of the ingress CA for a host.
    pub(crate) fn issued_for(&self, host: &str) -> Option<Usable> {
        self.read().issued.get(host).cloned()
    }

    /// Uses a certificate of the ingress CA for a host.
    pub(crate) fn set_issued(&self, host: &str, certificate: Usable) {
        self.write().issued.insert(host.to_owned(), certificate);
    }

    /// Removes the certificates of the ingress CA of hosts that are not wanted any more; gives those hosts.
    pub(crate) fn sweep_issued(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let hosts: Vec<_> = self.read().issued.keys().cloned().collect();
        let gone: Vec<_> = hosts.into_iter().filter(|host| !is_wanted(host)).collect();
        let mut table = self.write();
        for host in &gone {
            table.issued.remove(host);
        }
        gone
    }

    /// Has none any more.
    pub(crate) fn clear(&self) {
        *self.write() = Table::default();
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::Duration;

    use model::Incarnation;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    /// A certificate of its own issuer for these names, which ends in so many days.
    pub(crate) fn certificate(names: &[&str], days: u64) -> EdgeCertificate {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = SystemTime::UNIX_EPOCH.into();
        params.not_after = (SystemTime::now() + Duration::from_secs(days * 86_400)).into();
        EdgeCertificate {
            chain_pem: params.self_signed(&key).unwrap().pem(),
            key_pem: key.serialize_pem(),
        }
    }

    pub(crate) fn table(
        counter: u64,
        since: Option<u64>,
        certificates: &[(&str, &EdgeCertificate)],
        removed: &[&str],
    ) -> CertificateTable {
        let certificates = certificates.iter();
        CertificateTable {
            generation: Generation {
                incarnation: Incarnation(1),
                counter,
            },
            term: Term(3),
            session: LeaderSession(7),
            since,
            certificates: certificates
                .map(|(name, one)| ((*name).to_owned(), (*one).clone()))
                .collect(),
            removed: removed.iter().map(|name| (*name).to_owned()).collect(),
            tickets: None,
        }
    }

    pub(crate) const NO_ROUTES: (Generation, Term) = (
        Generation {
            incarnation: Incarnation(0),
            counter: 0,
        },
        Term(0),
    );

    /// Which of these is used for a host.
    fn used(of: &Certificates, host: &str, among: &[(&str, &EdgeCertificate)]) -> Option<String> {
        let found = of.kept_for(host)?;
        let is_it = |one: &EdgeCertificate| Usable::of(one).unwrap().key.cert == found.cert;
        let found = among.iter().find(|(_, one)| is_it(one));
        found.map(|(name, _)| (*name).to_owned())
    }

    #[test]
    fn the_exact_host_is_before_the_wildcard_and_what_ended_is_last() {
        let exact = certificate(&["a.example.com"], 30);
        let wild = certificate(&["*.example.com"], 30);
        let all = [("exact", &exact), ("wild", &wild)];
        let certificates = Certificates::default();
        certificates
            .take(table(1, None, &all, &[]), NO_ROUTES)
            .unwrap();
        let used_for = |host| used(&certificates, host, &all);
        assert_eq!(used_for("a.example.com").unwrap(), "exact");
        assert_eq!(used_for("b.example.com").unwrap(), "wild");
        assert_eq!(used_for("example.com"), None);
        assert_eq!(used_for("a.b.example.com"), None);
        // The exact one has ended; then it is all there is.
        let ended = certificate(&["a.example.com"], 0);
        let all = [("exact", &ended), ("wild", &wild)];
        let change = table(2, Some(1), &all[..1], &[]);
        certificates.take(change, NO_ROUTES).unwrap();
        assert_eq!(used(&certificates, "a.example.com", &all).unwrap(), "wild");
        certificates
            .take(table(3, Some(2), &[], &["wild"]), NO_ROUTES)
            .unwrap();
        assert_eq!(used(&certificates, "a.example.com", &all).unwrap(), "exact");
        assert_eq!(used(&certificates, "b.example.com", &all), None);
        // Of two for one host, the one that ends last.
        let newer = certificate(&["a.example.com"], 60);
        let all = [("exact", &ended), ("newer", &newer)];
        certificates
            .take(table(4, Some(3), &all[1..], &[]), NO_ROUTES)
            .unwrap();
        assert_eq!(used(&certificates, "a.example.com", &all).unwrap(), "newer");
        assert_eq!(certificates.len(), 2);
    }

    #[test]
    fn a_difference_needs_its_table_and_an_older_leader_is_refused() {
        let one = certificate(&["a.example.com"], 30);
        let of = |change: &dyn Fn(&mut CertificateTable)| {
            let mut table = table(5, None, &[("a", &one)], &[]);
            change(&mut table);
            table
        };
        let certificates = Certificates::default();
        assert!(
            certificates
                .take(table(2, Some(1), &[], &[]), NO_ROUTES)
                .is_none()
        );
        assert!(certificates.take(of(&|_| ()), NO_ROUTES).is_some());
        assert!(certificates.take(of(&|_| ()), NO_ROUTES).is_none());
        assert!(
            certificates
                .take(table(7, Some(6), &[], &["a"]), NO_ROUTES)
                .is_none()
        );
        let older = |table: &mut CertificateTable| {
            table.term = Term(2);
            table.session = LeaderSession(8);
        };
        assert!(certificates.take(of(&older), NO_ROUTES).is_none());
        assert!(certificates.kept_for("a.example.com").is_some());
        // The table of routes knows of a later leader.
        let routes = (table(1, None, &[], &[]).generation, Term(4));
        let newer = table(6, Some(5), &[], &["a"]);
        assert!(certificates.take(newer.clone(), routes).is_none());
        assert!(certificates.take(newer, NO_ROUTES).is_some());
        assert!(certificates.kept_for("a.example.com").is_none());
        // The whole table of another session, whatever its counter; and of another store.
        let other = |table: &mut CertificateTable| {
            table.generation.counter = 1;
            table.session = LeaderSession(9);
        };
        assert!(certificates.take(of(&other), NO_ROUTES).is_some());
        let restored = |table: &mut CertificateTable| {
            table.generation.incarnation = Incarnation(2);
            table.term = Term(1);
        };
        assert!(certificates.take(of(&restored), NO_ROUTES).is_some());
    }

    #[test]
    fn a_whole_table_removes_what_it_does_not_name_and_what_cannot_be_used_is_named() {
        let (one, two) = (
            certificate(&["a.example.com"], 30),
            certificate(&["b.example.com"], 30),
        );
        let certificates = Certificates::default();
        certificates
            .take(table(1, None, &[("a", &one), ("b", &two)], &[]), NO_ROUTES)
            .unwrap();
        let mixed = EdgeCertificate {
            key_pem: two.key_pem.clone(),
            ..one.clone()
        };
        let taken = certificates
            .take(
                table(2, None, &[("a", &mixed), ("../x", &two)], &[]),
                NO_ROUTES,
            )
            .unwrap();
        assert_eq!(taken.removed.iter().collect::<Vec<_>>(), ["b"]);
        assert_eq!(taken.unusable.keys().collect::<Vec<_>>(), ["../x", "a"]);
        assert!(taken.written.is_empty());
        assert!(certificates.kept_for("a.example.com").is_some());
        assert!(certificates.kept_for("b.example.com").is_none());
    }
}
