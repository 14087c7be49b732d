//! Instances' logs in files, on the threads for blocking work.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use guest_protocol::LogRecord;
use model::{InstanceId, ProcessName, Timestamp};

use crate::directory::Directory;
use crate::ended_logs::EndedLogs;
use crate::host::{EndedLogOwner, HostError, HostResult, Log, Logs};
use crate::logs::InstanceLog;
use blocking_work::blocking;

const LOG_DIR: &str = "log";

/// The logs in the folders of the instances. An opened log is in the directory, for streams.
#[derive(Debug)]
pub(crate) struct HostLogs {
    pub(crate) instances_dir: PathBuf,
    pub(crate) directory: Directory,
    pub(crate) ended: EndedLogs,
}

impl HostLogs {
    fn log_dir(&self, id: InstanceId) -> PathBuf {
        self.instances_dir.join(id.to_string()).join(LOG_DIR)
    }
}

impl Logs for HostLogs {
    fn open(
        &self,
        id: InstanceId,
        process: ProcessName,
    ) -> BoxFuture<'_, HostResult<Arc<dyn Log>>> {
        let dir = self.log_dir(id);
        async move {
            let opened = blocking(move || InstanceLog::open(&dir)).await;
            let log = opened.map_err(|error| {
                HostError::transient(format!("cannot open the log of instance {id}: {error}"))
            })?;
            let log = Arc::new(log);
            self.directory.add(id, process, log.clone());
            Ok(Arc::new(FileLog(log)) as Arc<dyn Log>)
        }
        .boxed()
    }

    fn keep(&self, owner: EndedLogOwner) -> BoxFuture<'_, HostResult<()>> {
        let (id, dir, ended) = (owner.id, self.log_dir(owner.id), self.ended.clone());
        let open = self.directory.get(id).map(|entry| entry.log);
        async move {
            let kept = blocking(move || ended.keep(&owner, &dir, open.as_deref())).await;
            kept.map_err(|error| {
                let cause = display::chain(&error);
                HostError::transient(format!("cannot keep the log of instance {id}: {cause}"))
            })
        }
        .boxed()
    }

    fn tidy(&self, now: Timestamp) -> BoxFuture<'_, ()> {
        let ended = self.ended.clone();
        async move {
            if let Err(error) = blocking(move || ended.tidy(now)).await {
                tracing::warn!(%error, "cannot delete old logs of ended instances");
            }
        }
        .boxed()
    }
}

/// The log of one instance.
#[derive(Debug)]
pub(crate) struct FileLog(pub(crate) Arc<InstanceLog>);

impl Log for FileLog {
    fn begin_boot(&self, at: Timestamp, line: String) -> BoxFuture<'_, io::Result<()>> {
        let log = self.0.clone();
        blocking(move || log.begin_boot(at, &line)).boxed()
    }

    fn note(&self, at: Timestamp, line: String) -> BoxFuture<'_, io::Result<()>> {
        let log = self.0.clone();
        blocking(move || log.note(at, &line)).boxed()
    }

    fn append(&self, now: Timestamp, records: Vec<LogRecord>) -> BoxFuture<'_, io::Result<u64>> {
        let log = self.0.clone();
        blocking(move || log.append(now, records)).boxed()
    }

    fn tail(&self, lines: usize) -> BoxFuture<'_, Vec<String>> {
        let log = self.0.clone();
        blocking(move || log.log_tail(lines)).boxed()
    }
}
