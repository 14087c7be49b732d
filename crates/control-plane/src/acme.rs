//! Certificates by ACME, of the server that leads: what was set, what is remembered of names, and what edges answer.
//!
//! ```text
//!   a user's settings --> sealed in the store, with the account's key --+
//!   routes, certificates, what is remembered of names ----------------> scheduler::acme --> an order (acme_order) --> a certificate
//!                                                                              \-- edges answer challenges (challenges), or the hook does (hook)
//! ```

pub(crate) mod authority;
pub(crate) mod challenges;
pub(crate) mod hook;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use api::acme::{
    AcmeNameRow, AcmeSettings, AcmeStatus, ChallengePreference, ExternalAccount, HostKeyType,
    MAX_ACME_NAMES_LISTED,
};
use identity::SealKey;
use model::{Term, Timestamp};
use scheduler::acme::{AcmePlan, AcmeRecord, Policy};
use serde::{Deserialize, Serialize};
use store::{Store, StoreError, StoredAcmeName};
use tokio::sync::Notify;

use self::challenges::Challenges;
use crate::certificates::{CertificatesError, open_json, seal_json};
use crate::clock::now;

/// The name of it in the store.
const ACME: &str = "acme";
/// Accounts that are kept, of directories that were used before too.
const MAX_ACCOUNTS: usize = 8;

/// What was set, as it is sealed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Config {
    /// Whether certificates are ordered.
    pub(crate) is_on: bool,
    pub(crate) directory: String,
    #[serde(default)]
    pub(crate) email: Option<String>,
    #[serde(default)]
    pub(crate) external_account: Option<ExternalAccount>,
    #[serde(default)]
    pub(crate) ca_pem: Option<String>,
    #[serde(default)]
    pub(crate) key_type: HostKeyType,
    #[serde(default)]
    pub(crate) challenge: ChallengePreference,
    #[serde(default)]
    pub(crate) wildcards: BTreeSet<String>,
    pub(crate) orders_per_hour: u32,
    pub(crate) by: String,
    pub(crate) at: Timestamp,
    /// What the library needs to speak for an account, by directory. Secret.
    #[serde(default)]
    pub(crate) accounts: BTreeMap<String, serde_json::Value>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("is_on", &self.is_on)
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// The account at the directory that is set.
    pub(crate) fn account(&self) -> Option<&serde_json::Value> {
        self.accounts.get(&self.directory)
    }

    /// Keeps the account at this directory; where there are too many, others go.
    pub(crate) fn set_account(&mut self, directory: &str, account: Option<serde_json::Value>) {
        match account {
            Some(account) => drop(self.accounts.insert(directory.to_owned(), account)),
            None => drop(self.accounts.remove(directory)),
        }
        while self.accounts.len() > MAX_ACCOUNTS {
            let other = self.accounts.keys().find(|key| *key != directory).cloned();
            other.and_then(|other| self.accounts.remove(&other));
        }
    }

    /// What is ordered.
    pub(crate) fn policy(&self) -> Option<Policy> {
        self.is_on.then(|| Policy {
            is_private: self.ca_pem.is_some(),
            wildcards: self.wildcards.clone(),
        })
    }

    fn settings(&self) -> Option<AcmeSettings> {
        let account = self.account().and_then(|account| account.get("id"));
        let account = account.and_then(|id| id.as_str());
        self.is_on.then(|| AcmeSettings {
            directory: self.directory.clone(),
            account: account.map(str::to_owned),
            email: self.email.clone(),
            external_account: (self.external_account.as_ref())
                .map(|external| external.key_id.clone()),
            is_private: self.ca_pem.is_some(),
            key_type: self.key_type,
            challenge: self.challenge,
            wildcards: self.wildcards.clone(),
            orders_per_hour: self.orders_per_hour,
            by: self.by.clone(),
            at: self.at,
        })
    }
}

/// What is known of names, in memory while this server leads.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) plan: AcmePlan,
    /// Names that are worked on just now.
    pub(crate) busy: BTreeSet<String>,
    /// The keys of certificates that are ordered, sealed.
    pub(crate) keys: BTreeMap<String, Vec<u8>>,
    /// Why nothing is ordered at the moment.
    pub(crate) waits: Option<String>,
    /// Whether an admin has asked for a try now, whatever is waited for.
    pub(crate) tries_now: bool,
}

/// Certificates by ACME in a term.
pub(crate) struct Acme {
    store: Store,
    seal: Arc<SealKey>,
    term: Term,
    /// Held while what was set is changed.
    pub(crate) changing: tokio::sync::Mutex<()>,
    config: Mutex<Option<Arc<Config>>>,
    names: Mutex<Names>,
    pub(crate) challenges: Arc<Challenges>,
    /// Notified when something else is to be done.
    pub(crate) wake: Notify,
    /// The program for DNS-01.
    pub(crate) hook: Option<PathBuf>,
    pub(crate) began: Instant,
}

impl fmt::Debug for Acme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Acme(..)")
    }
}

fn context() -> String {
    "certificates by ACME".to_owned()
}

fn key_context(name: &str) -> String {
    format!("key of the certificate that is ordered for {name}")
}

/// The private key of a certificate that is ordered, as it is sealed.
#[derive(Serialize, Deserialize)]
struct SealedOrderKey {
    key_pem: String,
}

impl Acme {
    /// What the store has, at the begin of a term. What was set and cannot be opened is named in the log: nothing is ordered then.
    pub(crate) async fn load(
        store: Store,
        seal: Arc<SealKey>,
        term: Term,
        hook: Option<PathBuf>,
    ) -> Result<Self, StoreError> {
        let config = match store.ingress_key(ACME).await? {
            None => None,
            Some((bytes, _)) => match open_json::<Config>(&seal, &bytes, &context()) {
                Ok(config) => Some(Arc::new(config)),
                Err(error) => {
                    tracing::error!(
                        cause = display::chain(&error),
                        "the settings of ACME and its account are lost: turn it on again"
                    );
                    None
                }
            },
        };
        let mut names = Names::default();
        for stored in store.acme_names().await? {
            names
                .plan
                .set_record(&stored.name, Some(stored.record), now());
            if let Some(sealed) = stored.sealed {
                names.keys.insert(stored.name, sealed);
            }
        }
        Ok(Self {
            store,
            seal,
            term,
            changing: tokio::sync::Mutex::new(()),
            config: Mutex::new(config),
            names: Mutex::new(names),
            challenges: Arc::default(),
            wake: Notify::new(),
            hook,
            began: Instant::now(),
        })
    }

    /// What was set; absent: nothing ever was.
    pub(crate) fn config(&self) -> Option<Arc<Config>> {
        let config = self.config.lock();
        config.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was set, where certificates are ordered.
    pub(crate) fn config_if_on(&self) -> Option<Arc<Config>> {
        self.config().filter(|config| config.is_on)
    }

    /// Keeps what was set.
    pub(crate) async fn set_config(&self, config: Config) -> Result<(), CertificatesError> {
        let bytes = seal_json(&self.seal, &config, &context())?;
        self.store
            .set_ingress_key(self.term, ACME, &bytes, now())
            .await?;
        let mut known = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(Arc::new(config));
        drop(known);
        self.wake.notify_one();
        Ok(())
    }

    pub(crate) fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is remembered of a name.
    pub(crate) fn record(&self, name: &str) -> AcmeRecord {
        let names = self.names();
        names.plan.record(name).cloned().unwrap_or_default()
    }

    /// The key of the certificate that is ordered for a name, where it is there and can be opened.
    pub(crate) fn order_key(&self, name: &str) -> Option<String> {
        let sealed = self.names().keys.get(name).cloned()?;
        let opened = open_json::<SealedOrderKey>(&self.seal, &sealed, &key_context(name));
        opened.ok().map(|key| key.key_pem)
    }

    /// Remembers this of a name, with the key of the certificate that is ordered.
    pub(crate) async fn remember(
        &self,
        name: &str,
        record: AcmeRecord,
        key_pem: Option<&str>,
    ) -> Result<(), CertificatesError> {
        let sealed = match key_pem {
            Some(key_pem) => {
                let key = SealedOrderKey {
                    key_pem: key_pem.to_owned(),
                };
                Some(seal_json(&self.seal, &key, &key_context(name))?)
            }
            None => None,
        };
        let stored = StoredAcmeName {
            name: name.to_owned(),
            record,
            sealed,
        };
        self.store.set_acme_name(self.term, &stored).await?;
        let mut names = self.names();
        match stored.sealed {
            Some(sealed) => drop(names.keys.insert(stored.name.clone(), sealed)),
            None => drop(names.keys.remove(&stored.name)),
        }
        names
            .plan
            .set_record(&stored.name, Some(stored.record), now());
        Ok(())
    }

    /// Remembers nothing of a name any more.
    pub(crate) async fn delete_record(&self, name: &str) -> Result<(), StoreError> {
        self.store.delete_acme_names(self.term, &[name]).await?;
        let mut names = self.names();
        names.keys.remove(name);
        names.plan.set_record(name, None, now());
        Ok(())
    }

    /// How it goes, for people.
    pub(crate) fn status(&self) -> AcmeStatus {
        let settings = self.config().and_then(|config| config.settings());
        let names = self.names();
        let counts = names.plan.counts(now());
        let number = |count| u32::try_from(count).unwrap_or(u32::MAX);
        let mut rows: BTreeMap<&str, AcmeNameRow> = BTreeMap::new();
        let busy = names.busy.iter().map(String::as_str);
        // What failed of a name that nobody needs any more concerns nobody.
        let (plan, at) = (&names.plan, now());
        let failing = plan.failing().map(|(name, _)| name);
        let failing = failing.filter(|name| plan.is_wanted(name, at));
        for name in busy.chain(failing).take(MAX_ACME_NAMES_LISTED) {
            rows.insert(name, row(&names, name));
        }
        AcmeStatus {
            waits: names.waits.clone().filter(|_| settings.is_some()),
            settings,
            has_dns_hook: self.hook.is_some(),
            wanted: number(counts.wanted),
            missing: number(counts.missing),
            names: rows.into_values().collect(),
        }
    }

    /// What is to be told of a host whose certificate could not be had.
    pub(crate) fn failure_of(&self, host: &str) -> Option<AcmeNameRow> {
        let names = self.names();
        let record = names.plan.record(host)?;
        (record.failures > 0).then(|| row(&names, host))
    }
}

fn row(names: &Names, name: &str) -> AcmeNameRow {
    let record = names.plan.record(name).cloned().unwrap_or_default();
    let is_ordering = names.busy.contains(name);
    let due = names.plan.due_of(name).filter(|_| !is_ordering);
    AcmeNameRow {
        name: name.to_owned(),
        is_ordering,
        failures: record.failures,
        failed_at: record.failure.as_ref().map(|failure| failure.at),
        failure: record.failure.map(|failure| failure.message),
        next_at: due.map(|(at, _)| at),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn config() -> Config {
        let json = serde_json::json!({
            "is_on": true, "directory": "https://ca/dir", "orders_per_hour": 90, "by": "ann", "at": 5,
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn accounts_of_other_directories_are_kept_in_bounds_and_shown_by_their_url() {
        let mut config = config();
        assert_eq!(config.settings().unwrap().account, None);
        for number in 0..20 {
            let account =
                serde_json::json!({ "id": format!("https://ca/{number}"), "key_pkcs8": "private" });
            config.set_account(&format!("https://{number}/dir"), Some(account.clone()));
            config.set_account("https://ca/dir", Some(account));
        }
        assert_eq!(config.accounts.len(), MAX_ACCOUNTS);
        assert_eq!(config.settings().unwrap().account.unwrap(), "https://ca/19");
        assert!(!format!("{config:?}").contains("private"));
        config.set_account("https://ca/dir", None);
        assert_eq!(config.account(), None);
        config.is_on = false;
        assert_eq!((config.settings(), config.policy()), (None, None));
    }
}
