//! The certificates of hosts: sealed in the store, in memory while this server leads, and told to edges.
//!
//! ```text
//!   a user's certificate --> sealed in the store --> in memory --> each edge, by its long poll
//!   the ingress CA       --> sealed in the store;  an edge's request for a host that is routed --> signed here
//!   keys of tickets      --> sealed in the store, another every 12 h                           --> each edge
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::certificates::{CertificateRow, CertificateSource, EXPIRES_SOON_MS};
use api::edge::{CertificateTable, EdgeCertificate, HasRoutes, TicketKeys};
use identity::{CaError, HostCertificate, IngressCa, OpenError, SealKey};
use model::{Incarnation, LeaderSession, Term, Timestamp};
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
fn opened_json<T: serde::de::DeserializeOwned>(
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

fn sealed_json<T: Serialize>(
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
                let bytes = sealed_json(&seal, &stored, &key_context(CA))?;
                store.set_ingress_key(term, CA, &bytes, now()).await?;
                tracing::info!("made the CA of the hosts that have no certificate of their own");
                ca
            }
        };
        let known = match store.ingress_key(TICKETS).await? {
            Some((bytes, at)) => {
                match opened_json::<TicketKeys>(&seal, &bytes, &key_context(TICKETS)) {
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
        for stored in store.certificates().await? {
            match opened_json::<SealedPrivateKey>(&seal, &stored.sealed, &context(&stored.name)) {
                Ok(SealedPrivateKey { key_pem }) => {
                    let chain_pem = stored.chain_pem;
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
            warned: Mutex::default(),
            tickets: Mutex::new(tickets),
        })
    }

    /// The CA of the hosts that have no certificate of their own.
    pub(crate) fn ca(&self) -> &IngressCa {
        &self.ca
    }

    /// Every certificate, by name, as users see it.
    pub(crate) async fn rows(&self) -> Result<Vec<CertificateRow>, StoreError> {
        let stored = self.store.certificates().await?;
        let index = lock(&self.index);
        let rows = stored.into_iter().map(|stored| {
            let lost = || Some("its key cannot be opened: add it again".to_owned());
            let failure = if index.contains(&stored.name) {
                None
            } else {
                lost()
            };
            row(stored, failure, now())
        });
        Ok(rows.collect())
    }

    /// Keeps a certificate that was checked. One of the same name is replaced.
    pub(crate) async fn keep(
        &self,
        mut row: StoredCertificate,
        key_pem: String,
    ) -> Result<(), CertificatesError> {
        let key = SealedPrivateKey { key_pem };
        row.sealed = sealed_json(&self.seal, &key, &context(&row.name))?;
        let _changing = self.changing.lock().await;
        self.store.set_certificate(self.term, &row).await?;
        lock(&self.warned).remove(&row.name);
        let certificate = EdgeCertificate {
            chain_pem: row.chain_pem,
            key_pem: key.key_pem,
        };
        lock(&self.index).set(&row.name, Some(certificate));
        Ok(())
    }

    /// Removes the certificate of this name; false when there was none.
    pub(crate) async fn remove(&self, name: &str) -> Result<bool, StoreError> {
        let _changing = self.changing.lock().await;
        let removed = self.store.remove_certificate(self.term, name).await?;
        if removed {
            lock(&self.index).set(name, None);
        }
        Ok(removed)
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

fn stored_ca(seal: &SealKey, bytes: &[u8]) -> Result<IngressCa, CertificatesError> {
    let stored: SealedCa = opened_json(seal, bytes, &key_context(CA))?;
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
    let bytes = sealed_json(seal, &keys, &key_context(TICKETS))?;
    store.set_ingress_key(term, TICKETS, &bytes, at).await?;
    Ok((keys, at))
}

/// A certificate as users see it.
pub(crate) fn row(
    stored: StoredCertificate,
    failure: Option<String>,
    now: Timestamp,
) -> CertificateRow {
    let read = HostCertificate::of_pem(&stored.chain_pem);
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
        name: stored.name,
        hosts,
        issuer,
        not_after,
        expires_soon: not_after.0 < now.0.saturating_add(EXPIRES_SOON_MS),
        source: CertificateSource::Operator,
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
