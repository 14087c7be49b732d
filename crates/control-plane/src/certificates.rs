//! The certificates of hosts: sealed in the store, in memory while this server leads, and told to edges.
//!
//! ```text
//!   a user's certificate, --> sealed in the store --> in memory --> each edge, by its long poll
//!   or one by ACME
//!   the ingress CA       --> sealed in the store;  an edge's request for a host that is routed --> signed here
//!   keys of tickets      --> sealed in the store, another every 12 h                           --> each edge
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::certificates::{CertificateRow, CertificateSource, EXPIRES_SOON_MS};
use api::edge::{CertificateTable, EdgeCertificate, HasRoutes, TicketKeys};
use identity::{CaError, HostCertificate, IngressCa, OpenError, SealKey};
use model::{Incarnation, LeaderSession, Term, Timestamp};
use scheduler::acme::Lifetime;
use serde::{Deserialize, Serialize};
use store::{Store, StoreError, StoredCertificate};

use crate::certificate_index::CertificateIndex;
use crate::clock::now;
use crate::limits::TICKET_KEY_LIFE_MS;
use crate::options::ServerError;
use crate::sealed::{self, ContentError};

/// The names of the cluster's own keys for edges in the store.
const CA: &str = "ingress-ca";
const TICKETS: &str = "session-tickets";
/// Where a certificate by ACME is from, in the store.
pub(crate) const ACME_SOURCE: &str = "acme";
/// What the name of a certificate by ACME ends in, in the store and at edges; what is before it is its host. An operator's never ends so: both may be
/// there for a host, as where the operator's has ended.
pub(crate) const ACME_ENDING: &str = "_acme";

/// Why a certificate, or a key for edges, cannot be kept or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificatesError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store was restored without its key, or changed by hand.
    #[error("{what} cannot be opened")]
    Open {
        what: String,
        #[source]
        source: OpenError,
    },
    /// It opened, and is not what this version writes.
    #[error("{what} cannot be read")]
    Content {
        what: String,
        #[source]
        source: ContentError,
    },
    #[error(transparent)]
    Key(#[from] identity::KeyError),
    #[error(transparent)]
    Ca(#[from] CaError),
}

/// A CA as it is sealed.
#[derive(Serialize, Deserialize)]
struct SealedCa {
    certificate_pem: String,
    key_pem: String,
}

/// The private key of a certificate as it is sealed.
#[derive(Serialize, Deserialize)]
struct SealedPrivateKey {
    key_pem: String,
}

/// What is known of a certificate that edges have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) source: CertificateSource,
    pub(crate) says: HostCertificate,
}

impl Known {
    /// Whether people are to look after it: it ends within 14 days. One by ACME, which is renewed by itself, when that is late.
    fn ends_soon(&self, now: Timestamp) -> bool {
        ends_soon(self.source, &self.says, now)
    }
}

fn ends_soon(source: CertificateSource, says: &HostCertificate, now: Timestamp) -> bool {
    match source {
        CertificateSource::Operator => says.not_after.0 < now.0.saturating_add(EXPIRES_SOON_MS),
        CertificateSource::Acme => lifetime(says).is_late(now),
    }
}

/// From when until when it is valid.
pub(crate) fn lifetime(says: &HostCertificate) -> Lifetime {
    Lifetime {
        not_before: says.not_before,
        not_after: says.not_after,
    }
}

/// The name of the certificate by ACME for a host.
fn acme_name(host: &str) -> String {
    format!("{host}{ACME_ENDING}")
}

/// The name by which users know a certificate: of one by ACME, its host.
pub(crate) fn shown_name(name: &str) -> &str {
    name.strip_suffix(ACME_ENDING).unwrap_or(name)
}

/// The word of the store for where a certificate is from.
fn source_of(word: &str) -> CertificateSource {
    match word {
        ACME_SOURCE => CertificateSource::Acme,
        _ => CertificateSource::Operator,
    }
}

/// The certificates of a store, and the key that opens them.
pub(crate) struct Certificates {
    store: Store,
    seal: Arc<SealKey>,
    /// The term in which they are kept.
    term: Term,
    ca: IngressCa,
    /// Held while the store and what edges are told are changed: both change in the same order.
    changing: tokio::sync::Mutex<()>,
    index: Mutex<CertificateIndex>,
    /// Those that edges do not have, because an operator's is there for their hosts; by name.
    superseded: Mutex<BTreeMap<String, EdgeCertificate>>,
    /// What edges have, by name.
    known: Mutex<BTreeMap<String, Known>>,
    /// Names that changed since somebody last looked.
    changes: Mutex<BTreeSet<String>>,
    /// Names of which an event told in this term that they end soon.
    warned: Mutex<BTreeSet<String>>,
    tickets: Mutex<(TicketKeys, Timestamp)>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificates(..)")
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn context(name: &str) -> String {
    format!("certificate {name}")
}

fn key_context(name: &str) -> String {
    format!("key for edges {name}")
}

/// What was sealed, read.
pub(crate) fn open_json<T: serde::de::DeserializeOwned>(
    seal: &SealKey,
    bytes: &[u8],
    context: &str,
) -> Result<T, CertificatesError> {
    let opened = seal.open(bytes, context);
    let text = opened.map_err(|source| CertificatesError::Open {
        what: context.to_owned(),
        source,
    })?;
    sealed::decode(&text).map_err(|source| CertificatesError::Content {
        what: context.to_owned(),
        source,
    })
}

pub(crate) fn seal_json<T: Serialize>(
    seal: &SealKey,
    value: &T,
    context: &str,
) -> Result<Vec<u8>, CertificatesError> {
    let text = sealed::encode(value).map_err(|source| CertificatesError::Content {
        what: context.to_owned(),
        source,
    })?;
    Ok(seal.seal(&text, context)?)
}

impl Certificates {
    /// Those of a store, at the begin of a term. The ingress CA and the keys of tickets are made where there are none. A certificate that cannot be
    /// opened is named in the log, and edges do not have it.
    pub(crate) async fn load(
        store: Store,
        seal: Arc<SealKey>,
        term: Term,
        cluster: &str,
    ) -> Result<Self, CertificatesError> {
        let ca = match store.ingress_key(CA).await? {
            Some((bytes, _)) => stored_ca(&seal, &bytes).or_else(|error| {
                // It stays in the store: a newer server may read it.
                tracing::error!(cause = display::chain(&error), "the CA of the hosts without a certificate is lost; another one signs until this server ends");
                IngressCa::generate(cluster, now())
            })?,
            None => {
                let ca = IngressCa::generate(cluster, now())?;
                let stored = SealedCa {
                    certificate_pem: ca.certificate_pem().to_owned(),
                    key_pem: ca.key_pem().to_owned(),
                };
                let bytes = seal_json(&seal, &stored, &key_context(CA))?;
                store.set_ingress_key(term, CA, &bytes, now()).await?;
                tracing::info!("made the CA of the hosts that have no certificate of their own");
                ca
            }
        };
        let known = match store.ingress_key(TICKETS).await? {
            Some((bytes, at)) => {
                match open_json::<TicketKeys>(&seal, &bytes, &key_context(TICKETS)) {
                    Ok(keys) => Some((keys, at)),
                    Err(error) => {
                        // Sessions begin anew, and that is all.
                        tracing::warn!(
                            cause = display::chain(&error),
                            "the keys of session tickets are lost; others are made"
                        );
                        None
                    }
                }
            }
            None => None,
        };
        let tickets = match known {
            Some(known) => known,
            None => new_tickets(&store, &seal, term, None).await?,
        };
        let mut certificates = Vec::new();
        let mut known = BTreeMap::new();
        let stored = store.certificates().await?;
        for stored in with_endings(&store, &seal, term, stored).await? {
            match open_json::<SealedPrivateKey>(&seal, &stored.sealed, &context(&stored.name)) {
                Ok(SealedPrivateKey { key_pem }) => {
                    let chain_pem = stored.chain_pem;
                    if let Ok(says) = HostCertificate::of_pem(&chain_pem) {
                        let source = source_of(&stored.source);
                        known.insert(stored.name.clone(), Known { source, says });
                    }
                    certificates.push((stored.name, EdgeCertificate { chain_pem, key_pem }));
                }
                Err(error) => {
                    tracing::warn!(
                        cause = display::chain(&error),
                        "a certificate is lost; add it again"
                    );
                }
            }
        }
        Ok(Self {
            store,
            seal,
            term,
            ca,
            changing: tokio::sync::Mutex::new(()),
            index: Mutex::new(CertificateIndex::new(certificates, tickets.0.clone())),
            superseded: Mutex::default(),
            changes: Mutex::new(known.keys().cloned().collect()),
            known: Mutex::new(known),
            warned: Mutex::default(),
            tickets: Mutex::new(tickets),
        })
    }

    /// The CA of the hosts that have no certificate of their own.
    pub(crate) fn ca(&self) -> &IngressCa {
        &self.ca
    }

    /// Every certificate as users see it, by name; of one name an operator's first.
    pub(crate) async fn rows(&self) -> Result<Vec<CertificateRow>, StoreError> {
        let stored = self.store.certificates().await?;
        let (index, superseded) = (lock(&self.index), lock(&self.superseded));
        let mut rows: Vec<_> = stored
            .into_iter()
            .map(|stored| {
                let lost = || Some("its key cannot be opened: add it again".to_owned());
                let failure =
                    if index.contains(&stored.name) || superseded.contains_key(&stored.name) {
                        None
                    } else {
                        lost()
                    };
                row(stored, failure, now())
            })
            .collect();
        rows.sort_by(|a, b| (&a.name, a.source).cmp(&(&b.name, b.source)));
        Ok(rows)
    }

    /// Keeps a certificate that was checked. One of the same name is replaced.
    pub(crate) async fn keep(
        &self,
        mut row: StoredCertificate,
        key_pem: String,
    ) -> Result<(), CertificatesError> {
        let _changing = self.changing.lock().await;
        let key = SealedPrivateKey { key_pem };
        row.sealed = seal_json(&self.seal, &key, &context(&row.name))?;
        self.store.set_certificate(self.term, &row).await?;
        lock(&self.warned).remove(&row.name);
        let says = HostCertificate::of_pem(&row.chain_pem);
        let source = source_of(&row.source);
        let known = says.ok().map(|says| Known { source, says });
        self.note(&row.name, known);
        let certificate = EdgeCertificate {
            chain_pem: row.chain_pem,
            key_pem: key.key_pem,
        };
        lock(&self.superseded).remove(&row.name);
        lock(&self.index).set(&row.name, Some(certificate));
        Ok(())
    }

    /// Keeps the certificate by ACME for a host, beside an operator's of that name.
    pub(crate) async fn keep_acme(
        &self,
        mut row: StoredCertificate,
        key_pem: String,
    ) -> Result<(), CertificatesError> {
        row.name = acme_name(&row.name);
        self.keep(row, key_pem).await
    }

    /// Edges have the certificate by ACME for a host no more. It stays in the store.
    pub(crate) async fn supersede_acme(&self, host: &str) {
        let _changing = self.changing.lock().await;
        let name = acme_name(host);
        let mut index = lock(&self.index);
        if let Some(certificate) = index.get(&name).cloned() {
            index.set(&name, None);
            lock(&self.superseded).insert(name, certificate);
        }
    }

    /// Edges have it again.
    pub(crate) async fn restore_acme(&self, host: &str) {
        let _changing = self.changing.lock().await;
        let name = acme_name(host);
        // Both locks are held in one order only, that of `rows`.
        let certificate = lock(&self.superseded).remove(&name);
        if let Some(certificate) = certificate {
            lock(&self.index).set(&name, Some(certificate));
        }
    }

    /// Removes the certificate by ACME for a host; false when there was none.
    pub(crate) async fn remove_acme(&self, host: &str) -> Result<bool, StoreError> {
        self.remove(&acme_name(host)).await
    }

    /// Removes the certificate of this name; false when there was none.
    pub(crate) async fn remove(&self, name: &str) -> Result<bool, StoreError> {
        let _changing = self.changing.lock().await;
        let removed = self.store.remove_certificate(self.term, name).await?;
        if removed {
            if lock(&self.superseded).remove(name).is_none() {
                lock(&self.index).set(name, None);
            }
            self.note(name, None);
        }
        Ok(removed)
    }

    fn note(&self, name: &str, known: Option<Known>) {
        match known {
            Some(known) => drop(lock(&self.known).insert(name.to_owned(), known)),
            None => drop(lock(&self.known).remove(name)),
        }
        lock(&self.changes).insert(name.to_owned());
    }

    /// What is known of the certificate of this name, where edges have it.
    pub(crate) fn known(&self, name: &str) -> Option<Known> {
        lock(&self.known).get(name).cloned()
    }

    /// What is known of the certificate by ACME for a host.
    pub(crate) fn known_acme(&self, host: &str) -> Option<Known> {
        self.known(&acme_name(host))
    }

    /// The chain of the certificate by ACME for a host, PEM.
    pub(crate) fn acme_chain_pem(&self, host: &str) -> Option<String> {
        let name = acme_name(host);
        if let Some(certificate) = lock(&self.superseded).get(&name) {
            return Some(certificate.chain_pem.clone());
        }
        let index = lock(&self.index);
        index.get(&name).map(|one| one.chain_pem.clone())
    }

    /// How many there are from there.
    pub(crate) fn count_of(&self, source: CertificateSource) -> usize {
        let known = lock(&self.known);
        known.values().filter(|one| one.source == source).count()
    }

    /// How many there are, and those that people are to look after: their names, and when they end.
    pub(crate) fn ending(&self, now: Timestamp) -> (usize, Vec<(String, Timestamp)>) {
        let (known, superseded) = (lock(&self.known), lock(&self.superseded));
        let in_use = known
            .iter()
            .filter(|(name, _)| !superseded.contains_key(*name));
        let ending = in_use.filter(|(_, one)| one.ends_soon(now));
        let ending = ending.map(|(name, one)| (name.clone(), one.says.not_after));
        (known.len(), ending.collect())
    }

    /// The names of certificates that came, went or changed since this was asked last; in a new term every name.
    pub(crate) fn take_changes(&self) -> BTreeSet<String> {
        std::mem::take(&mut lock(&self.changes))
    }

    /// What an edge is to be told.
    pub(crate) fn news(
        &self,
        incarnation: Incarnation,
        session: LeaderSession,
        has: HasRoutes,
    ) -> Option<CertificateTable> {
        lock(&self.index).news((incarnation, session, self.term), has)
    }

    /// Whether no event told yet, in this term, that the certificate of this name ends soon. One does now.
    pub(crate) fn warns_first(&self, name: &str) -> bool {
        lock(&self.warned).insert(name.to_owned())
    }

    /// Makes other keys of tickets where those that seal are as old as that. Whether it did.
    pub(crate) async fn rotate_tickets(&self, now: Timestamp) -> Result<bool, CertificatesError> {
        let (keys, at) = lock(&self.tickets).clone();
        // A time that has not come yet was written before the clock was set back.
        if at <= now && now.millis_since(at) < TICKET_KEY_LIFE_MS {
            return Ok(false);
        }
        let _changing = self.changing.lock().await;
        let next = new_tickets(&self.store, &self.seal, self.term, Some(keys.current)).await?;
        lock(&self.index).set_tickets(next.0.clone());
        *lock(&self.tickets) = next;
        Ok(true)
    }
}

/// Certificates by ACME that have only their host as a name, as servers of before kept them, get their names of now.
async fn with_endings(
    store: &Store,
    seal: &SealKey,
    term: Term,
    mut all: Vec<StoredCertificate>,
) -> Result<Vec<StoredCertificate>, CertificatesError> {
    let is_old = |one: &&mut StoredCertificate| {
        one.source == ACME_SOURCE && !one.name.ends_with(ACME_ENDING)
    };
    for stored in all.iter_mut().filter(is_old) {
        // One that cannot be opened is told of by its name, and stays.
        let Ok(key) = open_json::<SealedPrivateKey>(seal, &stored.sealed, &context(&stored.name))
        else {
            continue;
        };
        let name = acme_name(&stored.name);
        let before = std::mem::replace(&mut stored.name, name);
        stored.sealed = seal_json(seal, &key, &context(&stored.name))?;
        store.set_certificate(term, stored).await?;
        store.remove_certificate(term, &before).await?;
    }
    Ok(all)
}

fn stored_ca(seal: &SealKey, bytes: &[u8]) -> Result<IngressCa, CertificatesError> {
    let stored: SealedCa = open_json(seal, bytes, &key_context(CA))?;
    Ok(IngressCa::load(&stored.certificate_pem, &stored.key_pem)?)
}

async fn new_tickets(
    store: &Store,
    seal: &SealKey,
    term: Term,
    previous: Option<String>,
) -> Result<(TicketKeys, Timestamp), CertificatesError> {
    let keys = TicketKeys {
        current: SealKey::generate()?.text(),
        previous,
    };
    let at = now();
    let bytes = seal_json(seal, &keys, &key_context(TICKETS))?;
    store.set_ingress_key(term, TICKETS, &bytes, at).await?;
    Ok((keys, at))
}

/// A certificate as users see it.
pub(crate) fn row(
    stored: StoredCertificate,
    failure: Option<String>,
    now: Timestamp,
) -> CertificateRow {
    let source = source_of(&stored.source);
    let read = HostCertificate::of_pem(&stored.chain_pem);
    let expires_soon = (read.as_ref()).map_or(true, |read| ends_soon(source, read, now));
    let (hosts, issuer, not_after, failure) = match read {
        Ok(read) => (read.hosts, read.issuer, read.not_after, failure),
        Err(error) => (
            Vec::new(),
            String::new(),
            Timestamp(0),
            Some(error.to_string()),
        ),
    };
    CertificateRow {
        name: shown_name(&stored.name).to_owned(),
        hosts,
        issuer,
        not_after,
        expires_soon,
        source,
        by: stored.by,
        added_at: stored.at,
        failure,
    }
}

impl From<CertificatesError> for ServerError {
    fn from(error: CertificatesError) -> Self {
        match error {
            CertificatesError::Store(error) => Self::Store(error),
            CertificatesError::Key(error) => Self::Key(error),
            CertificatesError::Ca(error) => Self::Ca(error),
            error => Self::Settle(display::chain(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// A leader of a term on a store.
    async fn loaded(store: &Store, seal: &Arc<SealKey>) -> Certificates {
        let seal = Arc::clone(seal);
        Certificates::load(store.clone(), seal, Term::default(), "c1")
            .await
            .unwrap()
    }

    /// One of the ingress CA for a host, as the store has those from elsewhere, and its key.
    fn stored(
        certificates: &Certificates,
        host: &str,
        source: &str,
    ) -> (StoredCertificate, String) {
        let key_pem = identity::generate_host_key(api::acme::HostKeyType::EcdsaP256).unwrap();
        let request = pem(
            "CERTIFICATE REQUEST",
            &identity::host_request(&key_pem, host).unwrap(),
        );
        let chain_pem = certificates.ca().sign_host(&request, host, now()).unwrap();
        let stored = StoredCertificate {
            name: host.to_owned(),
            chain_pem,
            sealed: Vec::new(),
            source: source.to_owned(),
            by: "somebody".to_owned(),
            at: now(),
        };
        (stored, key_pem)
    }

    fn pem(label: &str, der: &[u8]) -> String {
        use base64::Engine as _;
        let text = base64::prelude::BASE64_STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    }

    async fn shown(certificates: &Certificates) -> Vec<(String, CertificateSource)> {
        let rows = certificates.rows().await.unwrap();
        rows.into_iter().map(|row| (row.name, row.source)).collect()
    }

    #[tokio::test]
    async fn an_operators_and_one_by_acme_of_one_name_are_beside_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("platform.db").display());
        let store = Store::open(&url).await.unwrap();
        let seal = Arc::new(SealKey::generate().unwrap());
        let certificates = loaded(&store, &seal).await;
        let (a, b) = ("a.example.com", "b.example.com");
        // As a server of before has kept them.
        for host in [a, b] {
            let (stored, key) = stored(&certificates, host, ACME_SOURCE);
            certificates.keep(stored, key).await.unwrap();
        }
        let certificates = loaded(&store, &seal).await;
        let (acme, operator) = (CertificateSource::Acme, CertificateSource::Operator);
        let both = [a, b].map(|host| (host.to_owned(), acme));
        assert_eq!(shown(&certificates).await, both);
        assert!(certificates.known(a).is_none());
        let chain = certificates.acme_chain_pem(a).unwrap();

        let (own, key) = stored(&certificates, a, "operator");
        certificates.keep(own, key).await.unwrap();
        for certificates in [certificates, loaded(&store, &seal).await] {
            let all = [(a, operator), (a, acme), (b, acme)];
            let all = all.map(|(host, source)| (host.to_owned(), source));
            assert_eq!(shown(&certificates).await, all);
            assert_eq!(certificates.known(a).unwrap().source, operator);
            assert_eq!(certificates.known_acme(a).unwrap().source, acme);
            assert_eq!(certificates.acme_chain_pem(a), Some(chain.clone()));
            let told = certificates.news(Incarnation(1), LeaderSession(1), HasRoutes::default());
            let told = told.unwrap().certificates;
            let names: Vec<_> = told.keys().map(String::as_str).collect();
            assert_eq!(
                names,
                ["a.example.com", "a.example.com_acme", "b.example.com_acme"]
            );
            assert!(
                told.keys()
                    .all(|name| api::certificates::is_certificate_name(name))
            );
        }
        let certificates = loaded(&store, &seal).await;
        // Edges do not have it as long as an operator's is in its place.
        let has = |certificates: &Certificates| {
            let told = certificates.news(Incarnation(1), LeaderSession(1), HasRoutes::default());
            let told = told.unwrap().certificates;
            told.contains_key("a.example.com_acme")
        };
        certificates.supersede_acme(a).await;
        assert!(!has(&certificates));
        assert_eq!(shown(&certificates).await.len(), 3);
        assert_eq!(certificates.acme_chain_pem(a), Some(chain));
        certificates.restore_acme(a).await;
        assert!(has(&certificates));
        certificates.supersede_acme(a).await;
        assert!(certificates.remove_acme(a).await.unwrap());
        assert!(!certificates.remove_acme(a).await.unwrap());
        assert!(certificates.known(a).is_some());
        store.close().await;
    }

    fn tickets(of: &Certificates) -> TicketKeys {
        let told = of.news(Incarnation(1), LeaderSession(1), HasRoutes::default());
        told.unwrap().tickets.unwrap()
    }

    #[tokio::test]
    async fn keys_of_tickets_are_others_after_12_hours_and_those_before_open_for_as_long() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("platform.db").display());
        let store = Store::open(&url).await.unwrap();
        let seal = Arc::new(SealKey::generate().unwrap());
        let certificates = loaded(&store, &seal).await;
        let first = tickets(&certificates);
        assert_eq!(first.previous, None);
        let begin = now();
        let after = |ms: u64| Timestamp(begin.0 + ms);
        let is_rotated = |at| certificates.rotate_tickets(at);
        assert!(
            !is_rotated(after(TICKET_KEY_LIFE_MS - 60_000))
                .await
                .unwrap()
        );
        assert_eq!(tickets(&certificates), first);
        assert!(
            is_rotated(after(TICKET_KEY_LIFE_MS + 60_000))
                .await
                .unwrap()
        );
        let second = tickets(&certificates);
        assert_eq!(second.previous.as_ref(), Some(&first.current));
        assert_ne!(second.current, first.current);
        // An edge that has the first ones is told of the second.
        let table = certificates.news(Incarnation(1), LeaderSession(1), HasRoutes::default());
        let has = HasRoutes {
            generation: table.unwrap().generation,
            session: LeaderSession(1),
        };
        assert_eq!(
            certificates.news(Incarnation(1), LeaderSession(1), has),
            None
        );
        // Another leader goes on with them, and a clock that was set back makes others.
        let next = loaded(&store, &seal).await;
        assert_eq!(tickets(&next), second);
        assert!(next.rotate_tickets(Timestamp(1)).await.unwrap());
        assert_eq!(tickets(&next).previous.as_ref(), Some(&second.current));
        // Sealed, and opened by no other key.
        let other = Arc::new(SealKey::generate().unwrap());
        let lost = loaded(&store, &other).await;
        assert_eq!(tickets(&lost).previous, None);
        store.close().await;
    }
}
