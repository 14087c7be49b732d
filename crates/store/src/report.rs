//! What nodes report.

use std::collections::BTreeMap;

use api::node::{EgressState, NodeReport};
use model::{Generation, InstanceId, NodeId, Timestamp, VolumeId};
use scheduler::cluster_state::{ClusterState, Node};
use scheduler::reports::{Recorded, record};
use sqlx::{Row as _, SqliteConnection};

use crate::load::load_instances_of;
use crate::open::commit;
use crate::rows::{from_json, number, to_i64, to_json};
use crate::volumes::{self, load_volumes_of};
use crate::{Store, StoreError};

/// How old the stored time of a node's last report may be, in milliseconds, before it is written
/// again: a report that says nothing new costs no write.
pub const SEEN_GRANULARITY_MS: u64 = 60_000;

/// What a report led to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReportEffect {
    /// Whether anything changed that the planner, routes or users look at.
    pub changed: bool,
    /// Instances that the node runs and this store does not know there. They are left running.
    pub unknown: Vec<InstanceId>,
    /// Volumes whose disks the node has and this store does not know there. They are kept.
    pub unknown_volumes: Vec<VolumeId>,
}

impl Store {
    /// Takes a node's report; writes only what is new. `None`: there is no such node.
    pub async fn report(
        &self,
        node: NodeId,
        report: &NodeReport,
        now: Timestamp,
    ) -> Result<Option<ReportEffect>, StoreError> {
        let mut reading = self
            .reader
            .begin()
            .await
            .map_err(StoreError::query("begin to read"))?;
        let taken = take(&mut reading, node, report, now).await?;
        drop(reading);
        let Some(taken) = taken else { return Ok(None) };
        if taken.is_nothing_new() {
            return Ok(Some(taken.effect()));
        }

        let mut tx = self.begin().await?;
        let Some(taken) = take(&mut tx, node, report, now).await? else {
            return Ok(None);
        };
        write(&mut tx, node, report, now, &taken).await?;
        commit(tx, "write a node's report").await?;
        Ok(Some(taken.effect()))
    }
}

/// A report held against what is stored.
struct Taken {
    recorded: Recorded,
    cluster: ClusterState,
    /// The driver, the hardware or the egress is another.
    machine_changed: bool,
    seen_long_ago: bool,
}

impl Taken {
    fn is_nothing_new(&self) -> bool {
        !self.effect().changed && !self.seen_long_ago
    }

    fn effect(&self) -> ReportEffect {
        ReportEffect {
            changed: !self.recorded.changed.is_empty()
                || !self.recorded.changed_volumes.is_empty()
                || self.recorded.raised_to.is_some()
                || self.machine_changed,
            unknown: self.recorded.unknown.clone(),
            unknown_volumes: self.recorded.unknown_volumes.clone(),
        }
    }
}

async fn take(
    db: &mut SqliteConnection,
    node: NodeId,
    report: &NodeReport,
    now: Timestamp,
) -> Result<Option<Taken>, StoreError> {
    let row = sqlx::query(
        "SELECT nodes.name, nodes.region, hardware_json, driver_json, seen_at, generation, \
         settings_json, egress_json FROM nodes, cluster WHERE nodes.id = ?",
    )
    .bind(node.0)
    .fetch_optional(&mut *db)
    .await
    .map_err(StoreError::query("read a node"))?;
    let Some(row) = row else { return Ok(None) };
    let hardware = from_json("a node's hardware", row.get(2))?;
    let driver = row
        .get::<Option<&str>, _>(3)
        .map(|text| from_json("a node's driver", text))
        .transpose()?;
    let seen_at: Option<i64> = row.get(4);
    let seen_at: Option<u64> = seen_at.map(|at| number("a time", at)).transpose()?;
    let egress: Option<EgressState> = row
        .get::<Option<&str>, _>(7)
        .map(|text| from_json("a node's egress", text))
        .transpose()?;
    let machine_changed = hardware != report.hardware
        || driver.as_ref() != Some(&report.driver)
        || egress != report.egress;
    // The cluster state as far as this report goes: the one node and its instances.
    let mut cluster = ClusterState {
        settings: from_json("the cluster's settings", row.get(6))?,
        nodes: BTreeMap::from([(
            node,
            Node {
                name: row.get(0),
                region: row.get(1),
                hardware,
                online: true,
                generation: Generation(number("a generation", row.get(5))?),
            },
        )]),
        envs: BTreeMap::new(),
        instances: load_instances_of(&mut *db, node).await?,
        volumes: load_volumes_of(db, node).await?,
    };
    let recorded = record(&mut cluster, node, report);
    Ok(Some(Taken {
        recorded,
        cluster,
        machine_changed,
        seen_long_ago: seen_at.is_none_or(|at| now.0.abs_diff(at) >= SEEN_GRANULARITY_MS),
    }))
}

async fn write(
    db: &mut SqliteConnection,
    node: NodeId,
    report: &NodeReport,
    now: Timestamp,
    taken: &Taken,
) -> Result<(), StoreError> {
    let operation = "write a node's report";
    let egress = report.egress.as_ref();
    let egress = egress.map(|egress| to_json("a node's egress", egress));
    sqlx::query(
        "UPDATE nodes SET seen_at = ?, hardware_json = ?, driver_json = ?, egress_json = ? WHERE id = ?",
    )
        .bind(to_i64("a time", now.0)?)
        .bind(to_json("a node's hardware", &report.hardware)?)
        .bind(to_json("a node's driver", &report.driver)?)
        .bind(egress.transpose()?)
        .bind(node.0)
        .execute(&mut *db)
        .await
        .map_err(StoreError::query(operation))?;
    if let Some(generation) = taken.recorded.raised_to {
        sqlx::query("UPDATE nodes SET generation = ? WHERE id = ?")
            .bind(to_i64("a generation", generation.0)?)
            .bind(node.0)
            .execute(&mut *db)
            .await
            .map_err(StoreError::query(operation))?;
    }
    for id in &taken.recorded.changed {
        let Some(instance) = taken.cluster.instances.get(id) else {
            continue;
        };
        let report = instance
            .report
            .as_ref()
            .map(|report| to_json("an instance's report", report))
            .transpose()?;
        sqlx::query(
            "UPDATE instances SET report_json = ?, was_ready = ?, stop_acknowledged = ? WHERE id = ?",
        )
        .bind(report)
        .bind(instance.was_ready)
        .bind(instance.stop_acknowledged)
        .bind(i64::from(id.0))
        .execute(&mut *db)
        .await
        .map_err(StoreError::query(operation))?;
    }
    for id in &taken.recorded.changed_volumes {
        if let Some(volume) = taken.cluster.volumes.get(id) {
            volumes::reported(&mut *db, *id, volume).await?;
        }
    }
    Ok(())
}
