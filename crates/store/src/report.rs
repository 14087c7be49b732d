//! What nodes report. Reports are frequent, so only the part of the cluster state that a report is about is loaded.
//! That ends when the leader holds the cluster state in memory: it applies a report as any other command.

use api::node::NodeReport;
use model::{NodeId, Timestamp};
use scheduler::apply::{Command, apply};
use scheduler::changes::Changes;
use scheduler::reports::{Unknown, unknown};
use sqlx::SqliteConnection;

use crate::load::load_node;
use crate::open::commit;
use crate::write::write;
use crate::{Store, StoreError};

/// What a report led to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReportEffect {
    /// Whether anything changed.
    pub changed: bool,
    /// What the node has and this store does not know there.
    pub unknown: Unknown,
}

impl Store {
    /// Takes a node's report; writes only what is new. `None`: there is no such node.
    pub async fn report(
        &self,
        node: NodeId,
        report: &NodeReport,
        now: Timestamp,
    ) -> Result<Option<ReportEffect>, StoreError> {
        let command = Command::Report {
            node,
            report: Box::new(report.clone()),
            now,
        };
        let mut reading =
            (self.reader.begin().await).map_err(StoreError::query("begin to read"))?;
        let taken = take(&mut reading, node, report, &command).await?;
        drop(reading);
        let Some((changes, unknown)) = taken else {
            return Ok(None);
        };
        if changes.is_empty() {
            let changed = false;
            return Ok(Some(ReportEffect { changed, unknown }));
        }

        let mut tx = self.begin().await?;
        let Some((changes, unknown)) = take(&mut tx, node, report, &command).await? else {
            return Ok(None);
        };
        write(&mut tx, &changes).await?;
        commit(tx, "write a node's report").await?;
        let changed = true;
        Ok(Some(ReportEffect { changed, unknown }))
    }
}

async fn take(
    db: &mut SqliteConnection,
    node: NodeId,
    report: &NodeReport,
    command: &Command,
) -> Result<Option<(Changes, Unknown)>, StoreError> {
    let Some(mut cluster) = load_node(db, node).await? else {
        return Ok(None);
    };
    let unknown = unknown(&cluster, node, report);
    let changes = apply(&mut cluster, command)?;
    Ok(Some((changes, unknown)))
}
