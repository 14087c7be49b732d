//! Runs of commands that were asked for with a key of their caller's: who asks again with it, because an answer was lost, is answered with the same run.
//!
//! They are a part of their env, so that a server that begins to lead has them, and they are gone with it. The newest [`MAX_KEYED_RUNS`] are kept,
//! whether they run still or not.

use model::{InstanceId, NodeId, ProcessName, ReleaseNumber, Timestamp, UserName};
use serde::{Deserialize, Serialize};

/// Runs of one env that are found by their keys: more than may run in an env at a time.
pub const MAX_KEYED_RUNS: usize = 100;

/// A run that was asked for with a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyedRun {
    /// Who asked for it. Another user's key is another one.
    pub by: UserName,
    /// What the caller named the call.
    pub key: String,
    /// What tells the call from another one with its key: a digest of what it says.
    pub call: String,
    /// The instance that was made.
    pub instance: InstanceId,
    /// The release that it runs.
    pub release: ReleaseNumber,
    /// The process type.
    pub process: ProcessName,
    /// Its node.
    pub node: NodeId,
    /// When it is ended, should it still run then.
    pub ends_at: Timestamp,
}

/// The runs of one env that are found by their keys, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyedRuns(Vec<KeyedRun>);

impl KeyedRuns {
    /// The run that a user has asked for with a key.
    pub fn find(&self, by: &UserName, key: &str) -> Option<&KeyedRun> {
        let mut runs = self.0.iter().rev();
        runs.find(|run| run.by == *by && run.key == key)
    }

    /// Adds the newest; the oldest goes where there are too many.
    pub(crate) fn add(&mut self, run: KeyedRun) {
        self.0.push(run);
        let many = self.0.len().saturating_sub(MAX_KEYED_RUNS);
        self.0.drain(..many);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_run_is_found_by_its_caller_and_key_until_there_are_too_many() {
        let run = |by: &str, number: u32| KeyedRun {
            by: by.parse().unwrap(),
            key: format!("key-{number}"),
            call: "a digest".to_owned(),
            instance: InstanceId(number),
            release: ReleaseNumber(1),
            process: "web".parse().unwrap(),
            node: NodeId(1),
            ends_at: Timestamp(1),
        };
        let mut runs = KeyedRuns::default();
        let most = u32::try_from(MAX_KEYED_RUNS).unwrap();
        for number in 0..most {
            runs.add(run("ann", number));
        }
        let found = |runs: &KeyedRuns, by: &str, number: u32| {
            let found = runs.find(&by.parse().unwrap(), &format!("key-{number}"));
            found.map(|run| run.instance.0)
        };
        assert_eq!(found(&runs, "ann", 0), Some(0));
        assert_eq!(found(&runs, "ben", 0), None);
        runs.add(run("ben", most));
        assert_eq!(found(&runs, "ann", 0), None);
        assert_eq!(found(&runs, "ann", 1), Some(1));
        assert_eq!(found(&runs, "ben", most), Some(most));
    }
}
