//! The records of instances that are gone: how long they are kept, and which of them a reader of logs sees.
//!
//! [`crate::apply`] makes a record when an instance is deleted, whatever ended it. The instance's log stays on its
//! node, which bounds it by size and age (`node_core::ended_logs`); the record says on which node, and how the instance
//! ended. The planner deletes the records that are [`expired`].

use std::cmp::Reverse;
use std::collections::BTreeMap;

use model::{EnvKey, InstanceId, ProcessName, Timestamp};

use crate::cluster_state::{ClusterState, EndedInstance};
use crate::table::Table;

/// Age at which a record is deleted, in milliseconds.
pub const MAX_ENDED_AGE_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// Most records of one process type of one env.
pub const MAX_ENDED_PER_PROCESS: usize = 20;
/// Most records of the cluster.
pub const MAX_ENDED: usize = 500;

/// An instance that ended within this time is [`recent`], in milliseconds.
pub const RECENT_MS: u64 = 60 * 60 * 1000;
/// Most instances of one process type that are [`recent`] where no time is named.
pub const MAX_RECENT: usize = 5;

/// The records that are kept no longer: those that are too old, and the oldest where there are too many of a process
/// type or in all.
pub fn expired(ended: &Table<InstanceId, EndedInstance>, now: Timestamp) -> Vec<InstanceId> {
    let mut newest_first: Vec<_> = ended.iter().collect();
    newest_first.sort_by_key(|(id, ended)| (Reverse(ended.ended_at), Reverse(**id)));
    let mut of_process: BTreeMap<(&EnvKey, &ProcessName), usize> = BTreeMap::new();
    let mut kept = 0;
    let mut expired = Vec::new();
    for (id, ended) in newest_first {
        let of_process = of_process.entry((&ended.env, &ended.process)).or_default();
        let is_old = now.millis_since(ended.ended_at) >= MAX_ENDED_AGE_MS;
        if is_old || *of_process == MAX_ENDED_PER_PROCESS || kept == MAX_ENDED {
            expired.push(*id);
        } else {
            *of_process += 1;
            kept += 1;
        }
    }
    expired
}

/// The ended instances whose lines a reader of an env's logs sees who names none, those that ended first first: of each
/// process type those that ended at or after `since`. Where no time is named: those that ended within [`RECENT_MS`],
/// the newest [`MAX_RECENT`]; of any age where the process type has no other instance.
pub fn recent<'c>(
    cluster: &'c ClusterState,
    env: &EnvKey,
    process: Option<&ProcessName>,
    since: Option<Timestamp>,
    now: Timestamp,
) -> Vec<(InstanceId, &'c EndedInstance)> {
    let has_others = |process: &ProcessName| {
        let mut instances = cluster.instances.of_env(env);
        instances
            .any(|(_, instance)| instance.spec.process == *process && !instance.is_terminating())
    };
    let is_wanted = |ended: &EndedInstance| {
        let is_named = process.is_none_or(|process| *process == ended.process);
        let is_recent = match since {
            Some(since) => ended.ended_at >= since,
            None => now.millis_since(ended.ended_at) < RECENT_MS || !has_others(&ended.process),
        };
        ended.env == *env && is_named && is_recent
    };
    let mut wanted: Vec<_> = (cluster.ended.iter())
        .filter(|(_, ended)| is_wanted(ended))
        .map(|(id, ended)| (*id, ended))
        .collect();
    wanted.sort_by_key(|(id, ended)| (Reverse(ended.ended_at), Reverse(*id)));
    if since.is_none() {
        let mut of_process: BTreeMap<&ProcessName, usize> = BTreeMap::new();
        wanted.retain(|(_, ended)| {
            let count = of_process.entry(&ended.process).or_default();
            *count += 1;
            *count <= MAX_RECENT
        });
    }
    wanted.reverse();
    wanted
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use model::{NodeId, ReleaseNumber};

    use super::*;
    use crate::fixtures::{InstanceFixture, cluster, deploy, key, manifest, name, process};

    const NOW: Timestamp = Timestamp(MAX_ENDED_AGE_MS * 2);

    fn ended(process: &str, ago_ms: u64) -> EndedInstance {
        EndedInstance {
            env: key("shop/prod"),
            process: name(process),
            release: ReleaseNumber(1),
            node: NodeId(1),
            created_at: Timestamp(0),
            ended_at: Timestamp(NOW.0 - ago_ms),
            reason: "a test".to_owned(),
            restarts: 0,
            last_exit: None,
            failure: None,
        }
    }

    fn numbered(
        ended: impl IntoIterator<Item = EndedInstance>,
    ) -> Table<InstanceId, EndedInstance> {
        (1..).map(InstanceId).zip(ended).collect()
    }

    #[test]
    fn records_expire_by_age_and_by_number_the_oldest_first() {
        let by_age = numbered([
            ended("web", 0),
            ended("web", MAX_ENDED_AGE_MS - 1),
            ended("web", MAX_ENDED_AGE_MS),
        ]);
        assert_eq!(expired(&by_age, NOW), [InstanceId(3)]);

        let many = (1..=MAX_ENDED_PER_PROCESS as u64 + 2).map(|ago| ended("web", ago));
        let many = numbered(many.chain([ended("worker", 99)]));
        let (last, before) = (InstanceId(22), InstanceId(21));
        assert_eq!(expired(&many, NOW), [before, last]);

        let all = (0..=MAX_ENDED as u64).map(|number| EndedInstance {
            env: key(&format!("shop{number}/prod")),
            ..ended("web", number)
        });
        let all = numbered(all);
        assert_eq!(expired(&all, NOW), [InstanceId(MAX_ENDED as u32 + 1)]);

        let mut rest = all;
        rest.remove(&InstanceId(MAX_ENDED as u32 + 1));
        assert_eq!(expired(&rest, NOW), []);
    }

    #[test]
    fn a_reader_sees_what_ended_lately_or_all_that_there_is() {
        let mut cluster = cluster(1);
        let release = manifest(&[("web", process(1)), ("worker", process(1))]);
        deploy(&mut cluster, "shop/prod", release, Timestamp(0));
        let minutes = |minutes: u64| minutes * 60_000;
        cluster.ended = numbered([
            ended("web", minutes(90)),
            ended("web", minutes(5)),
            ended("worker", minutes(120)),
        ]);
        let other = EndedInstance {
            env: key("other/prod"),
            ..ended("web", 0)
        };
        cluster.ended.insert(InstanceId(9), other);
        let seen = |cluster: &ClusterState, process: Option<&str>, since| {
            let process = process.map(name);
            let seen = recent(cluster, &key("shop/prod"), process.as_ref(), since, NOW);
            seen.iter().map(|(id, _)| id.0).collect::<Vec<_>>()
        };
        assert_eq!(seen(&cluster, None, None), [3, 1, 2]);
        let fixture = InstanceFixture {
            id: 7,
            env: "shop/prod",
            process: "web",
            release: 1,
            node: 1,
        };
        fixture.into_cluster(&mut cluster);
        assert_eq!(seen(&cluster, None, None), [3, 2]);
        assert_eq!(seen(&cluster, Some("web"), None), [2]);
        let since = Some(Timestamp(NOW.0 - minutes(100)));
        assert_eq!(seen(&cluster, None, since), [1, 2]);

        cluster.ended = numbered((0..9).map(|ago| ended("web", ago)));
        assert_eq!(seen(&cluster, None, None), [5, 4, 3, 2, 1]);
    }
}
