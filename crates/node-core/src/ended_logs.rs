//! Which logs of ended instances a node keeps: bounded by age, size and number.
//!
//! An instance's own log is bounded where it is written (`node-agent`). What is over a bound here is taken from the
//! env that has most, so that no env's instances push out the logs of others.

use std::collections::BTreeMap;

use model::{EnvKey, InstanceId, Timestamp};

/// Age at which a log is deleted, in milliseconds since its instance ended. As long as the control plane keeps its
/// record of the instance.
pub const MAX_AGE_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// Most bytes of all logs of ended instances on a node.
pub const MAX_BYTES: u64 = 256 << 20;
/// Most logs of ended instances on a node.
pub const MAX_LOGS: usize = 500;

/// The log of an ended instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedLog {
    /// The instance.
    pub id: InstanceId,
    /// Its env; absent when that cannot be read.
    pub env: Option<EnvKey>,
    /// When it ended.
    pub ended_at: Timestamp,
    /// What the log takes on disk, in bytes.
    pub bytes: u64,
}

/// The logs to delete: those that are too old; then, while there are too many bytes or logs, the oldest of the env that
/// has most of them.
pub fn evict(logs: &[EndedLog], now: Timestamp) -> Vec<InstanceId> {
    let mut evicted = Vec::new();
    let mut kept: BTreeMap<Option<&EnvKey>, Vec<&EndedLog>> = BTreeMap::new();
    for log in logs {
        if now.millis_since(log.ended_at) >= MAX_AGE_MS {
            evicted.push(log.id);
        } else {
            kept.entry(log.env.as_ref()).or_default().push(log);
        }
    }
    for logs in kept.values_mut() {
        // The oldest is last.
        logs.sort_by_key(|log| std::cmp::Reverse((log.ended_at, log.id)));
    }
    let bytes_of = |logs: &[&EndedLog]| logs.iter().map(|log| log.bytes).sum::<u64>();
    loop {
        let too_many_bytes = kept.values().map(|logs| bytes_of(logs)).sum::<u64>() > MAX_BYTES;
        let too_many_logs = kept.values().map(Vec::len).sum::<usize>() > MAX_LOGS;
        let largest = if too_many_bytes {
            kept.values_mut().max_by_key(|logs| bytes_of(logs))
        } else if too_many_logs {
            kept.values_mut().max_by_key(|logs| logs.len())
        } else {
            None
        };
        match largest.and_then(Vec::pop) {
            Some(log) => evicted.push(log.id),
            None => return evicted,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const NOW: Timestamp = Timestamp(MAX_AGE_MS * 2);

    fn log(id: u32, app: &str, ago_ms: u64, bytes: u64) -> EndedLog {
        let (app, env) = (app.parse().unwrap(), "prod".parse().unwrap());
        EndedLog {
            id: InstanceId(id),
            env: Some(EnvKey { app, env }),
            ended_at: Timestamp(NOW.0 - ago_ms),
            bytes,
        }
    }

    #[test]
    fn logs_are_bounded_by_age_bytes_and_number() {
        let aged = [log(1, "a", MAX_AGE_MS - 1, 1), log(2, "a", MAX_AGE_MS, 1)];
        assert_eq!(evict(&aged, NOW), [InstanceId(2)]);
        assert_eq!(evict(&aged[..1], NOW), []);

        let many: Vec<_> = (0..=MAX_LOGS as u32 + 1)
            .map(|id| log(id, "a", u64::from(id), 0))
            .collect();
        let last = MAX_LOGS as u32 + 1;
        assert_eq!(evict(&many, NOW), [InstanceId(last), InstanceId(last - 1)]);
    }

    #[test]
    fn a_large_env_pushes_out_its_own_logs_only() {
        let quarter = MAX_BYTES / 4;
        let logs = [
            log(1, "quiet", 9000, quarter),
            log(2, "noisy", 3, quarter),
            log(3, "noisy", 2, quarter),
            log(4, "noisy", 1, quarter),
            log(5, "noisy", 0, quarter),
        ];
        assert_eq!(evict(&logs[..4], NOW), []);
        assert_eq!(evict(&logs, NOW), [InstanceId(2)]);
        let unreadable = EndedLog {
            env: None,
            ..log(6, "noisy", 5, 3 * quarter)
        };
        let logs = [&logs[..], &[unreadable]].concat();
        let evicted = evict(&logs, NOW);
        assert!(!evicted.contains(&InstanceId(1)), "{evicted:?}");
    }
}
