//! The logs of instances that are gone: `ended/ID/` in the node's data folder, each with a file that says whose it was.
//!
//! A log gets there by one rename, so an agent that is killed meanwhile finds it in one place or the other. How many
//! are kept is decided by `node_core::ended_logs`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use guest_protocol::LogRecord;
use model::{EnvKey, InstanceId, ProcessName, Timestamp};
use node_core::ended_logs::{EndedLog, evict};
use serde::{Deserialize, Serialize};
use state_file::StateFormat;

use crate::logs::{InstanceLog, Past, ended_tail, log_bytes};

/// Name of the file that says whose log it is, in the log's folder.
const ENDED_FILE: &str = "ended.json";

/// Whose log it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedLogOwner {
    /// The instance.
    pub id: InstanceId,
    /// Its env.
    pub env: EnvKey,
    /// Its process type.
    pub process: ProcessName,
    /// When it ended.
    pub ended_at: Timestamp,
}

impl StateFormat for EndedLogOwner {
    const VERSION: u32 = 1;
}

/// The logs of the ended instances of this node. Everything blocks.
#[derive(Debug, Clone)]
pub(crate) struct EndedLogs {
    dir: PathBuf,
}

impl EndedLogs {
    /// Those in the data folder of a node.
    pub(crate) fn in_data_dir(data_dir: &Path) -> Self {
        Self {
            dir: data_dir.join("ended"),
        }
    }

    fn dir_of(&self, id: InstanceId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// Takes the log of an ended instance over from `log_dir`. One without records is not kept, and does not replace
    /// an earlier one. `open` is the log where somebody may read it.
    pub(crate) fn keep(
        &self,
        owner: &EndedLogOwner,
        log_dir: &Path,
        open: Option<&InstanceLog>,
    ) -> io::Result<()> {
        if log_bytes(log_dir)? == 0 {
            return Ok(());
        }
        state_file::write(&log_dir.join(ENDED_FILE), owner).map_err(io::Error::other)?;
        std::fs::create_dir_all(&self.dir)?;
        let kept = self.dir_of(owner.id);
        remove(&kept)?;
        match open {
            Some(open) => open.move_to(&kept)?,
            None => std::fs::rename(log_dir, &kept)?,
        }
        self.tidy(owner.ended_at)
    }

    /// The wanted records of an ended instance; `None` when no log of it is kept.
    pub(crate) fn read(
        &self,
        id: InstanceId,
        wanted: &Past,
    ) -> io::Result<Option<(ProcessName, Vec<LogRecord>)>> {
        let dir = self.dir_of(id);
        let owner = state_file::read::<EndedLogOwner>(&dir.join(ENDED_FILE));
        let Some(owner) = owner.map_err(io::Error::other)? else {
            return Ok(None);
        };
        Ok(Some((owner.process, ended_tail(&dir, wanted)?)))
    }

    /// Deletes the logs that are kept no longer.
    pub(crate) fn tidy(&self, now: Timestamp) -> io::Result<()> {
        for id in evict(&self.list()?, now) {
            remove(&self.dir_of(id))?;
            tracing::debug!(instance = %id, "deleted the log of an ended instance");
        }
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<EndedLog>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut logs = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Some(id) = entry.file_name().to_str().and_then(|id| id.parse().ok()) else {
                continue;
            };
            // A log whose owner cannot be read is bounded like any other.
            let owner = state_file::read::<EndedLogOwner>(&entry.path().join(ENDED_FILE));
            let (env, ended_at) = match owner.ok().flatten() {
                Some(owner) => (Some(owner.env), owner.ended_at),
                None => (None, modified(&entry)?),
            };
            logs.push(EndedLog {
                id,
                env,
                ended_at,
                bytes: log_bytes(&entry.path())?,
            });
        }
        Ok(logs)
    }
}

fn modified(entry: &std::fs::DirEntry) -> io::Result<Timestamp> {
    let modified = entry.metadata()?.modified()?.duration_since(UNIX_EPOCH);
    let millis = modified.map_or(0, |since| since.as_millis());
    Ok(Timestamp(u64::try_from(millis).unwrap_or(u64::MAX)))
}

fn remove(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use guest_protocol::Stream;
    use node_core::ended_logs::MAX_AGE_MS;

    use super::*;

    const AT: Timestamp = Timestamp(5_000);

    fn owner(id: u32) -> EndedLogOwner {
        EndedLogOwner {
            id: InstanceId(id),
            env: EnvKey {
                app: "shop".parse().unwrap(),
                env: "prod".parse().unwrap(),
            },
            process: "web".parse().unwrap(),
            ended_at: AT,
        }
    }

    fn written(dir: &Path, text: &str) -> InstanceLog {
        let log = InstanceLog::open(dir).unwrap();
        log.begin_boot(Timestamp(1), "start 1").unwrap();
        let record = LogRecord {
            seq: 1,
            at_nanos: 0,
            stream: Stream::Stdout,
            partial: false,
            dropped: 0,
            line: text.as_bytes().to_vec(),
        };
        log.append(AT, vec![record]).unwrap();
        log
    }

    fn texts(ended: &EndedLogs, id: u32, previous: bool) -> Option<Vec<String>> {
        let wanted = Past {
            lines: 9,
            previous,
            ..Past::default()
        };
        let (process, records) = ended.read(InstanceId(id), &wanted).unwrap()?;
        assert_eq!(process.as_str(), "web");
        let texts = records
            .into_iter()
            .map(|record| String::from_utf8(record.line).unwrap());
        Some(texts.collect())
    }

    #[test]
    fn a_log_outlives_its_instance_and_its_agent_until_it_is_too_old() {
        let data_dir = tempfile::tempdir().unwrap();
        let log_dir = data_dir.path().join("instances/1/log");
        let log = written(&log_dir, "why I failed");
        let ended = EndedLogs::in_data_dir(data_dir.path());
        assert_eq!(texts(&ended, 1, false), None);
        ended.keep(&owner(1), &log_dir, Some(&log)).unwrap();
        assert!(!log_dir.exists());
        // Who had the log in hand goes on reading, and so does the next agent.
        let wanted = Past {
            lines: 1,
            ..Past::default()
        };
        assert_eq!(log.follow(&wanted).unwrap().0.len(), 1);
        drop(log);
        let ended = EndedLogs::in_data_dir(data_dir.path());
        assert_eq!(
            texts(&ended, 1, false).unwrap(),
            ["start 1", "why I failed"]
        );
        assert_eq!(texts(&ended, 2, false), None);

        // An agent that was killed before it removed the instance's folder finds an empty log there.
        let log = InstanceLog::open(&log_dir).unwrap();
        ended.keep(&owner(1), &log_dir, Some(&log)).unwrap();
        assert_eq!(texts(&ended, 1, false).unwrap().len(), 2);

        ended.tidy(Timestamp(AT.0 + MAX_AGE_MS - 1)).unwrap();
        assert!(texts(&ended, 1, false).is_some());
        ended.tidy(Timestamp(AT.0 + MAX_AGE_MS)).unwrap();
        assert_eq!(texts(&ended, 1, false), None);
    }

    #[test]
    fn the_previous_run_of_an_ended_instance_is_its_last_boot() {
        let data_dir = tempfile::tempdir().unwrap();
        let log_dir = data_dir.path().join("instances/1/log");
        let log = written(&log_dir, "first");
        log.begin_boot(Timestamp(2), "start 2").unwrap();
        log.note(Timestamp(3), "ended: exit code 1").unwrap();
        let ended = EndedLogs::in_data_dir(data_dir.path());
        ended.keep(&owner(1), &log_dir, None).unwrap();
        assert_eq!(texts(&ended, 1, false).unwrap().len(), 4);
        assert_eq!(
            texts(&ended, 1, true).unwrap(),
            ["start 2", "ended: exit code 1"]
        );
    }

    #[test]
    fn a_log_whose_owner_cannot_be_read_is_deleted_when_it_is_too_old() {
        let data_dir = tempfile::tempdir().unwrap();
        let log_dir = data_dir.path().join("instances/1/log");
        drop(written(&log_dir, "whose?"));
        let ended = EndedLogs::in_data_dir(data_dir.path());
        ended.keep(&owner(1), &log_dir, None).unwrap();
        let file = data_dir.path().join("ended/00000001").join(ENDED_FILE);
        std::fs::write(&file, r#"{"version": 99}"#).unwrap();
        let wanted = Past::default();
        let error = ended.read(InstanceId(1), &wanted).unwrap_err();
        assert!(display::chain(&error).contains("version 99"), "{error}");
        ended.tidy(AT).unwrap();
        assert!(file.exists());
        ended.tidy(Timestamp(u64::MAX)).unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn ended_json_of_each_version_is_read_with_and_without_added_fields() {
        state_file::fixtures::check::<EndedLogOwner>(&[include_str!(
            "fixtures/ended-log/version-1.json"
        )]);
    }
}
