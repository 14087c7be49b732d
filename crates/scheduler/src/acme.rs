//! Certificates by ACME (RFC 8555): which name needs one, and when. Time and randomness are arguments.
//!
//! ```text
//!   a host is routed ---+
//!   what operators add -+--> [`AcmePlan`] --> due now: order a certificate, ask when to renew one, remove one, delete what is remembered
//!   what was ordered ---+        ^
//!   how tries ended -------------+ [`AcmeRecord`], which the store keeps: another leader waits as long as this one would have
//! ```
//!
//! - One certificate is for one name: a host, or a wildcard that the settings name. A host that fits a wildcard of the settings has none of its own.
//! - An operator's wins: while one fits a host, none is ordered for it, and edges do not have the one by ACME. It is kept: the operator's may go before it ends.
//! - A certificate is renewed when its authority says (RFC 9773), else at two thirds of its life. One whose host is routed no longer lapses.
//! - A name whose order failed waits longer each time ([`retry_delay_ms`]), and no more than so many orders begin in an hour ([`OrderRate`]).
//!
//! A change costs what it changes: the hosts that it concerns, and their places in the queue.

mod names;
mod rate;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use model::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::names::{NotWildcard, check_wildcard, is_public};
pub use self::rate::{OrderRate, retry_delay_ms};

/// Longest text of a failure that is kept, in bytes.
pub const MAX_FAILURE_BYTES: usize = 600;

/// When what is due at once is due.
const AT_ONCE: Timestamp = Timestamp(1);
/// When what costs no authority anything is due: orders that wait hold none of it up.
const BEFORE_ORDERS: Timestamp = Timestamp(0);

/// What is remembered of a name, in the store: how tries went, the order under way, and when to renew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AcmeRecord {
    /// Tries that failed since the last that did not.
    #[serde(skip_serializing_if = "is_zero")]
    pub failures: u32,
    /// No order begins before.
    pub not_before: Timestamp,
    /// How the last try failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<AcmeFailure>,
    /// The order under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<OrderUnderWay>,
    /// When the authority wants a certificate to be renewed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renewal: Option<SuggestedRenewal>,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// How a try failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcmeFailure {
    /// When.
    pub at: Timestamp,
    /// Why, for people; at most [`MAX_FAILURE_BYTES`].
    pub message: String,
}

/// An order that the authority has, so that another leader goes on with it and does not begin another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderUnderWay {
    /// Its URL.
    pub url: String,
    /// The directory of the authority.
    pub directory: String,
    /// When it began.
    pub began_at: Timestamp,
}

/// When a certificate is to be renewed, by its authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuggestedRenewal {
    /// When the certificate ends of which this was said.
    pub of: Timestamp,
    /// The time that was chosen in the window.
    pub at: Timestamp,
}

/// From when until when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// From.
    pub not_before: Timestamp,
    /// Until.
    pub not_after: Timestamp,
}

impl Lifetime {
    /// When it is renewed where its authority says nothing: at two thirds of its life.
    pub fn renewal_due(self) -> Timestamp {
        let life = self.not_after.millis_since(self.not_before);
        Timestamp(self.not_after.0.saturating_sub(life / 3))
    }

    /// The latest time at which its renewal may begin, whatever its authority says: at nine tenths of its life.
    fn renewal_latest(self) -> Timestamp {
        let life = self.not_after.millis_since(self.not_before);
        Timestamp(self.not_after.0.saturating_sub(life / 10))
    }

    /// Whether its renewal is so late that people are to look: five sixths of its life are over.
    pub fn is_late(self, now: Timestamp) -> bool {
        let life = self.not_after.millis_since(self.not_before);
        now.0 >= self.not_after.0.saturating_sub(life / 6)
    }
}

/// For which names certificates are ordered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Whether the authority is one of the cluster's own, which knows names that are not public too.
    pub is_private: bool,
    /// Names such as `*.example.com`.
    pub wildcards: BTreeSet<String>,
}

/// What is due for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// A certificate is to be ordered, or the order under way to be gone on with.
    Order {
        /// Whether there is one that is to be renewed.
        renews: bool,
    },
    /// The authority is to be asked when it is to be renewed.
    AskRenewal,
    /// Edges are to have the certificate no more: an operator's is there. It stays in the store until it ends.
    Supersede,
    /// Edges are to have the certificate again: no operator's is there any more.
    Restore,
    /// The certificate is to be removed: it has ended, and nobody needs it.
    Lapse,
    /// What is remembered of the name is to be deleted: nobody needs it.
    DeleteRecord,
}

/// What is known of a name.
#[derive(Debug, Clone, Default)]
struct Entry {
    is_routed: bool,
    lifetime: Option<Lifetime>,
    record: Option<AcmeRecord>,
    /// Whether edges do not have the certificate, because of an operator's.
    is_superseded: bool,
    /// When the authority is to be asked about the renewal; absent: it does not say.
    asks_at: Option<Timestamp>,
    /// Its place in the queue.
    due: Option<(Timestamp, Step)>,
}

/// Which names need a certificate, and when.
#[derive(Debug, Default)]
pub struct AcmePlan {
    /// Absent: nothing is ordered.
    policy: Option<Policy>,
    entries: BTreeMap<String, Entry>,
    /// The names by what is behind their first label.
    by_parent: BTreeMap<String, BTreeSet<String>>,
    /// What operators' certificates are for: the pattern, the name of the certificate, and when that ends.
    operators: BTreeMap<String, BTreeMap<String, Timestamp>>,
    /// The patterns of each operator's certificate.
    patterns: BTreeMap<String, Vec<String>>,
    queue: BTreeSet<(Timestamp, String)>,
}

/// How many names there are, for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Names that are to have a certificate by ACME.
    pub wanted: usize,
    /// Of those, names that have none.
    pub missing: usize,
    /// Names whose last try failed.
    pub failing: usize,
}

impl AcmePlan {
    /// What is ordered from now on; absent: nothing, and what there is lapses.
    pub fn set_policy(&mut self, policy: Option<Policy>, now: Timestamp) {
        let before = std::mem::replace(&mut self.policy, policy);
        if before == self.policy {
            return;
        }
        let wildcards = self.policy.iter().flat_map(|policy| &policy.wildcards);
        let all: BTreeSet<String> = self.entries.keys().chain(wildcards).cloned().collect();
        for name in all {
            self.settle(&name, now);
        }
    }

    /// A host is routed from now on, or is not.
    pub fn set_routed(&mut self, host: &str, is_routed: bool, now: Timestamp) {
        if !is_routed && !self.entries.contains_key(host) {
            return;
        }
        self.entry(host).is_routed = is_routed;
        self.settle(host, now);
    }

    /// Every host of which it knows that it is routed.
    pub fn routed(&self) -> impl Iterator<Item = &str> {
        let entries = self.entries.iter();
        entries
            .filter(|(_, entry)| entry.is_routed)
            .map(|(host, _)| host.as_str())
    }

    /// There is a certificate by ACME for this name, or there is none any more.
    pub fn set_certificate(&mut self, name: &str, lifetime: Option<Lifetime>, now: Timestamp) {
        if lifetime.is_none() && !self.entries.contains_key(name) {
            return;
        }
        let entry = self.entry(name);
        if entry.lifetime != lifetime {
            entry.lifetime = lifetime;
            entry.is_superseded = false;
            entry.asks_at = lifetime.map(|_| now);
        }
        self.settle(name, now);
    }

    /// Edges do not have the certificate of this name, or have it again.
    pub fn set_superseded(&mut self, name: &str, is_superseded: bool, now: Timestamp) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.is_superseded = is_superseded;
            self.settle(name, now);
        }
    }

    /// An operator's certificate of this name is for these patterns, and ends then; `None`: there is none of this name.
    pub fn set_operators(
        &mut self,
        certificate: &str,
        of: Option<(&[String], Timestamp)>,
        now: Timestamp,
    ) {
        let mut touched: BTreeSet<String> = BTreeSet::new();
        for pattern in self.patterns.remove(certificate).unwrap_or_default() {
            if let Some(names) = self.operators.get_mut(&pattern) {
                names.remove(certificate);
                if names.is_empty() {
                    self.operators.remove(&pattern);
                }
            }
            touched.insert(pattern);
        }
        if let Some((patterns, not_after)) = of {
            for pattern in patterns {
                let names = self.operators.entry(pattern.clone()).or_default();
                names.insert(certificate.to_owned(), not_after);
                touched.insert(pattern.clone());
            }
            self.patterns
                .insert(certificate.to_owned(), patterns.to_vec());
        }
        for pattern in touched {
            for name in self.fitting(&pattern) {
                self.settle(&name, now);
            }
        }
    }

    /// What is remembered of a name is this from now on.
    pub fn set_record(&mut self, name: &str, record: Option<AcmeRecord>, now: Timestamp) {
        if record.is_none() && !self.entries.contains_key(name) {
            return;
        }
        self.entry(name).record = record;
        self.settle(name, now);
    }

    /// What is remembered of a name.
    pub fn record(&self, name: &str) -> Option<&AcmeRecord> {
        self.entries.get(name)?.record.as_ref()
    }

    /// When there is a certificate by ACME for this name: its life.
    pub fn lifetime(&self, name: &str) -> Option<Lifetime> {
        self.entries.get(name)?.lifetime
    }

    /// The authority is asked about the renewal of this certificate again then; `None`: it does not say.
    pub fn set_asks_at(&mut self, name: &str, at: Option<Timestamp>, now: Timestamp) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.asks_at = at;
            self.settle(name, now);
        }
    }

    /// Whether a certificate by ACME is wanted for this name now.
    pub fn is_wanted(&self, name: &str, now: Timestamp) -> bool {
        self.wants(name) && self.covered_until(name).is_none_or(|end| end <= now)
    }

    /// What is due first, of the names that are not `busy`.
    pub fn due(&self, now: Timestamp, busy: &BTreeSet<String>) -> Option<(&str, Step)> {
        let due = self.queue.iter().take_while(|(at, _)| *at <= now);
        let mut free = due.filter(|(_, name)| !busy.contains(name));
        let (_, name) = free.next()?;
        let (_, step) = self.entries.get(name)?.due?;
        Some((name, step))
    }

    /// When something is due next, of the names that are not `busy`.
    pub fn next_at(&self, busy: &BTreeSet<String>) -> Option<Timestamp> {
        let mut free = self.queue.iter().filter(|(_, name)| !busy.contains(name));
        free.next().map(|(at, _)| *at)
    }

    /// When something is due for this name, and what.
    pub fn due_of(&self, name: &str) -> Option<(Timestamp, Step)> {
        self.entries.get(name)?.due
    }

    /// Every name whose last try failed, with what is remembered of it.
    pub fn failing(&self) -> impl Iterator<Item = (&str, &AcmeRecord)> {
        self.entries.iter().filter_map(|(name, entry)| {
            let record = entry.record.as_ref().filter(|record| record.failures > 0)?;
            Some((name.as_str(), record))
        })
    }

    /// Every name that has a certificate by ACME.
    pub fn certificates(&self) -> usize {
        let entries = self.entries.values();
        entries.filter(|entry| entry.lifetime.is_some()).count()
    }

    /// How many names there are. Costs what there are.
    pub fn counts(&self, now: Timestamp) -> Counts {
        let mut counts = Counts::default();
        for (name, entry) in &self.entries {
            let is_wanted = self.is_wanted(name, now);
            counts.wanted += usize::from(is_wanted);
            let has_one = entry.lifetime.is_some_and(|life| life.not_after > now);
            counts.missing += usize::from(is_wanted && !has_one);
            let failures = entry.record.as_ref().map_or(0, |record| record.failures);
            counts.failing += usize::from(failures > 0);
        }
        counts
    }

    fn entry(&mut self, name: &str) -> &mut Entry {
        if !self.entries.contains_key(name)
            && let Some((_, parent)) = name.split_once('.')
        {
            let names = self.by_parent.entry(parent.to_owned()).or_default();
            names.insert(name.to_owned());
        }
        self.entries.entry(name.to_owned()).or_default()
    }

    /// The names that a certificate for this pattern fits.
    fn fitting(&self, pattern: &str) -> Vec<String> {
        let exact = self.entries.contains_key(pattern);
        let exact = exact.then(|| pattern.to_owned());
        let below = pattern
            .strip_prefix("*.")
            .and_then(|parent| self.by_parent.get(parent));
        let below = below.into_iter().flatten();
        exact.into_iter().chain(below.cloned()).collect()
    }

    /// Whether the policy wants a certificate for this name, whatever operators have.
    fn wants(&self, name: &str) -> bool {
        let Some(policy) = &self.policy else {
            return false;
        };
        if policy.wildcards.contains(name) {
            return true;
        }
        let fits_wildcard = || {
            let wildcard = names::wildcard_of(name);
            wildcard.is_some_and(|wildcard| policy.wildcards.contains(&wildcard))
        };
        let is_routed = self.entries.get(name).is_some_and(|entry| entry.is_routed);
        is_routed && names::is_eligible(name, policy.is_private) && !fits_wildcard()
    }

    /// Until when an operator's certificate fits this name.
    fn covered_until(&self, name: &str) -> Option<Timestamp> {
        let exact = self.operators.get(name);
        let wildcard = names::wildcard_of(name);
        let wildcard = wildcard.and_then(|wildcard| self.operators.get(&wildcard));
        let ends = exact.into_iter().chain(wildcard).flat_map(BTreeMap::values);
        ends.copied().max()
    }

    /// What is due for a name, and when.
    fn next_step(&self, name: &str, entry: &Entry, now: Timestamp) -> Option<(Timestamp, Step)> {
        let record = entry.record.as_ref();
        let not_before = record.map_or(Timestamp(0), |record| record.not_before);
        let covered_until = self.covered_until(name).filter(|end| *end > now);
        if !self.wants(name) {
            return match entry.lifetime {
                Some(life) => Some((life.not_after, Step::Lapse)),
                None => record.map(|_| (not_before, Step::DeleteRecord)),
            };
        }
        // An order under way is gone on with at once: the authority has it.
        let is_under_way = record.is_some_and(|record| record.order.is_some());
        let Some(life) = entry.lifetime else {
            let at = if is_under_way {
                AT_ONCE
            } else {
                not_before.max(AT_ONCE)
            };
            let at = covered_until.map_or(at, |end| at.max(end));
            return Some((at, Step::Order { renews: false }));
        };
        match (covered_until, entry.is_superseded) {
            (Some(_), false) => return Some((BEFORE_ORDERS, Step::Supersede)),
            (Some(end), true) if life.not_after <= end => {
                return Some((life.not_after, Step::Lapse));
            }
            (Some(end), true) => return Some((end, Step::Restore)),
            (None, true) => return Some((BEFORE_ORDERS, Step::Restore)),
            (None, false) => {}
        }
        let suggested = record.and_then(|record| record.renewal);
        let suggested = suggested.filter(|suggested| suggested.of == life.not_after);
        let due = match suggested {
            Some(suggested) => suggested.at.min(life.renewal_latest()),
            None => life.renewal_due(),
        };
        let at = if is_under_way {
            AT_ONCE
        } else {
            due.max(not_before)
        };
        let order = (at, Step::Order { renews: true });
        let asks = entry.asks_at.map(|at| (at, Step::AskRenewal));
        // Who asks when to renew what is due anyway asks too late.
        Some(asks.filter(|asks| asks.0 < order.0).unwrap_or(order))
    }

    /// Gives a name its place in the queue, or drops it where nothing is known of it any more.
    fn settle(&mut self, name: &str, now: Timestamp) {
        let is_asked_for = self
            .policy
            .as_ref()
            .is_some_and(|policy| policy.wildcards.contains(name));
        if is_asked_for {
            self.entry(name);
        }
        let Some(entry) = self.entries.get(name) else {
            return;
        };
        let due = self.next_step(name, entry, now);
        let is_empty = !entry.is_routed && entry.lifetime.is_none() && entry.record.is_none();
        let before = entry.due;
        if let Some((at, _)) = before {
            self.queue.remove(&(at, name.to_owned()));
        }
        if is_empty && !is_asked_for {
            self.entries.remove(name);
            if let Some((_, parent)) = name.split_once('.')
                && let Some(names) = self.by_parent.get_mut(parent)
            {
                names.remove(name);
                if names.is_empty() {
                    self.by_parent.remove(parent);
                }
            }
            return;
        }
        if let Some((at, _)) = due {
            self.queue.insert((at, name.to_owned()));
        }
        if let Some(entry) = self.entries.get_mut(name) {
            entry.due = due;
        }
    }
}
