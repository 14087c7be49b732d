//! Whether a role can do its work, and what it waits for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What a role waits for before it can do its work; ready once nothing is left. Cloned handles tell the same.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    waits: Arc<Mutex<BTreeMap<u64, String>>>,
}

/// One thing that is waited for, until it is told to be there, or dropped.
#[derive(Debug)]
pub struct Waits {
    readiness: Readiness,
    number: u64,
}

impl Readiness {
    /// The role waits for this, in words for people (`the first route table`).
    #[must_use = "what is dropped is waited for no more"]
    pub fn waits_for(&self, what: impl Into<String>) -> Waits {
        let mut waits = self.lock();
        let mut taken = waits.range(..u64::MAX);
        let number = taken.next_back().map_or(0, |(last, _)| last + 1);
        waits.insert(number, format!("waits for {}", what.into()));
        drop(waits);
        Waits {
            readiness: self.clone(),
            number,
        }
    }

    /// The role was asked to end: it is never ready again, so that who sends it requests sends them elsewhere.
    pub fn ends(&self) {
        self.lock().insert(u64::MAX, "it ends".to_owned());
    }

    /// Why the role is not ready, a line each: what it waits for, the oldest first. None: it is ready.
    pub fn missing(&self) -> Vec<String> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, String>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waits {
    /// It is there.
    pub fn over(self) {}
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.readiness.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_ready_once_nothing_is_waited_for() {
        let readiness = Readiness::default();
        assert!(readiness.missing().is_empty());
        let routes = readiness.waits_for("the first route table");
        let cluster = readiness.clone().waits_for("a place in the cluster");
        assert_eq!(
            readiness.missing(),
            [
                "waits for the first route table",
                "waits for a place in the cluster"
            ]
        );
        routes.over();
        assert_eq!(readiness.missing(), ["waits for a place in the cluster"]);
        drop(cluster);
        assert!(readiness.missing().is_empty());
        readiness.ends();
        let _later = readiness.waits_for("something");
        assert_eq!(readiness.missing(), ["waits for something", "it ends"]);
    }
}
