//! JSON in rows: which version it has, and how an older one is read.
//!
//! Every row with JSON has a column `json_version`: the [`JSON_VERSION`] of the server that wrote it. A row of an older
//! version is brought to the current one by [`Record::upgrade`], a version at a time. Fields that this server does not
//! know are ignored. A row of a newer version, or one that is damaged, is not read: the caller decides what that means,
//! and it never means that the row is absent.
//!
//! | version | what changed |
//! |---|---|
//! | 1 | rows without a version: up to commit f29f308 |
//! | 2 | `last_words` (old word: the name in version 1) of an instance's report is `log_tail` |
//!
//! To change a format: raise [`JSON_VERSION`], add a row to the table, an arm to the `upgrade` of the type, and a fixture
//! of the version before to `tests/fixtures/`.

use std::collections::BTreeMap;

use api::edge::Route;
use api::enrollment::Hardware;
use api::event::Event;
use api::node::{DriverChoice, EgressState, InstanceReport};
use api::user::{Grants, RolloutPhase};
use model::instance::InstanceSpec;
use model::{InstanceId, LabelKey, LabelValue, ProcessName, ReleaseNumber};
use scheduler::cluster_state::{ClusterSettings, EndedInstance, Release, Rollout, UnknownInstance};
use scheduler::keyed_runs::KeyedRuns;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::StoreError;

/// The version of the JSON that this server writes.
pub const JSON_VERSION: i64 = 2;

/// A type that is stored as JSON.
pub(crate) trait Record: Serialize + DeserializeOwned {
    /// For people: `a rollout`.
    const WHAT: &'static str;

    /// Brings JSON of the version `from` to the next one.
    fn upgrade(_from: i64, _json: &mut Value) {}
}

impl Record for ClusterSettings {
    const WHAT: &'static str = "the cluster's settings";
}

impl Record for BTreeMap<ReleaseNumber, RolloutPhase> {
    const WHAT: &'static str = "how the rollouts of an env ended";
}

impl Record for Grants {
    const WHAT: &'static str = "what a user may";
}

impl Record for Hardware {
    const WHAT: &'static str = "a node's hardware";
}

impl Record for BTreeMap<LabelKey, LabelValue> {
    const WHAT: &'static str = "a node's labels";
}

impl Record for BTreeMap<InstanceId, UnknownInstance> {
    const WHAT: &'static str = "what a node runs that is not known";
}

impl Record for DriverChoice {
    const WHAT: &'static str = "a node's driver";
}

impl Record for EgressState {
    const WHAT: &'static str = "a node's egress";
}

impl Record for KeyedRuns {
    const WHAT: &'static str = "the runs of an env";
}

impl Record for Rollout {
    const WHAT: &'static str = "a rollout";
}

impl Record for BTreeMap<ProcessName, u32> {
    const WHAT: &'static str = "a scale";
}

impl Record for Release {
    const WHAT: &'static str = "a release";
}

impl Record for InstanceSpec {
    const WHAT: &'static str = "an instance's spec";
}

impl Record for InstanceReport {
    const WHAT: &'static str = "an instance's report";

    fn upgrade(from: i64, json: &mut Value) {
        if from == 1
            && let Some(report) = json.as_object_mut()
            // old word: the name in version 1
            && let Some(lines) = report.remove("last_words")
        {
            report.insert("log_tail".to_owned(), lines);
        }
    }
}

impl Record for EndedInstance {
    const WHAT: &'static str = "an ended instance";
}

impl Record for Event {
    const WHAT: &'static str = "an event";
}

impl Record for Route {
    const WHAT: &'static str = "a route";
}

/// A value as JSON of the current version.
pub(crate) fn to_json<T: Record>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|e| StoreError::Unstorable {
        what: T::WHAT,
        cause: e.to_string(),
    })
}

/// A value from JSON of any version up to the current one; else why it cannot be read, for people.
pub(crate) fn from_json<T: Record>(version: i64, text: &str) -> Result<T, String> {
    let damaged = |error: serde_json::Error| format!("{} is damaged: {error}", T::WHAT);
    if version == JSON_VERSION {
        return serde_json::from_str(text).map_err(damaged);
    }
    if !(1..JSON_VERSION).contains(&version) {
        return Err(format!(
            "{} has version {version}, and this server reads up to {JSON_VERSION}: upgrade the server",
            T::WHAT
        ));
    }
    let mut json = serde_json::from_str(text).map_err(damaged)?;
    for from in version..JSON_VERSION {
        T::upgrade(from, &mut json);
    }
    serde_json::from_value(json).map_err(damaged)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn an_added_field_is_ignored_and_a_newer_version_is_not_read() {
        let text = r#"{"on":true,"reason":"slirp4netns","since":5}"#;
        let egress: EgressState = from_json(JSON_VERSION, text).unwrap();
        assert!(egress.on);
        assert_eq!(from_json::<EgressState>(1, text), Ok(egress));
        let newer = from_json::<EgressState>(JSON_VERSION + 1, text).unwrap_err();
        assert_eq!(
            newer,
            "a node's egress has version 3, and this server reads up to 2: upgrade the server"
        );
        let damaged = from_json::<EgressState>(JSON_VERSION, "{").unwrap_err();
        assert!(
            damaged.starts_with("a node's egress is damaged: "),
            "{damaged}"
        );
        assert!(from_json::<EgressState>(0, text).is_err());
    }

    #[test]
    fn the_log_tail_of_version_1_had_another_name() {
        // old word: the name in version 1
        let text = r#"{"id":"00000007","state":"failed","last_words":["no such file"],"ready":false,"restarts":3,
            "detail":"","last_exit":null,"failure":"given up","started_at":null}"#;
        let report: InstanceReport = from_json(1, text).unwrap();
        assert_eq!(report.log_tail, ["no such file"]);
    }
}
