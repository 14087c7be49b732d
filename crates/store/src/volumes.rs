//! Volumes: disks on nodes, which outlive everything but a user's word.

use std::collections::{BTreeMap, BTreeSet};

use model::{NameError, NodeId, Timestamp, VolumeId};
use scheduler::cluster_state::{Volume, VolumeKey};
use scheduler::planner::PlannedVolume;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};

use crate::StoreError;
use crate::rows::{env_key, number, to_i64};

const VOLUMES: &str = "SELECT id, app, env, process, name, ordinal, node, size_bytes, created_at, \
     made, deleting, deletion_acknowledged FROM volumes";
const VOLUMES_OF_NODE: &str = "SELECT id, app, env, process, name, ordinal, node, size_bytes, \
     created_at, made, deleting, deletion_acknowledged FROM volumes WHERE node = ?";

/// Every volume.
pub(crate) async fn load_volumes(
    db: &mut SqliteConnection,
) -> Result<BTreeMap<VolumeId, Volume>, StoreError> {
    let rows = sqlx::query(VOLUMES).fetch_all(db).await;
    volumes(&rows.map_err(StoreError::query("read the volumes"))?)
}

/// The volumes of one node.
pub(crate) async fn load_volumes_of(
    db: &mut SqliteConnection,
    node: NodeId,
) -> Result<BTreeMap<VolumeId, Volume>, StoreError> {
    let rows = sqlx::query(VOLUMES_OF_NODE)
        .bind(node.0)
        .fetch_all(db)
        .await;
    volumes(&rows.map_err(StoreError::query("read a node's volumes"))?)
}

fn volumes(rows: &[SqliteRow]) -> Result<BTreeMap<VolumeId, Volume>, StoreError> {
    let bad = |e: NameError| StoreError::corrupt("a volume's process type", e);
    rows.iter()
        .map(|row| {
            let volume = Volume {
                key: VolumeKey {
                    env: env_key(row.get(1), row.get(2))?,
                    process: row.get::<&str, _>(3).parse().map_err(bad)?,
                    name: row.get(4),
                    ordinal: number("a volume's ordinal", row.get(5))?,
                },
                node: NodeId(number("a node's number", row.get(6))?),
                size_bytes: number("a volume's size", row.get(7))?,
                created_at: Timestamp(number("a time", row.get(8))?),
                made: row.get(9),
                deleting: row.get(10),
                deletion_acknowledged: row.get(11),
            };
            Ok((VolumeId(number("a volume's id", row.get(0))?), volume))
        })
        .collect()
}

pub(crate) async fn make(
    db: &mut SqliteConnection,
    planned: &PlannedVolume,
) -> Result<(), StoreError> {
    let key = &planned.key;
    sqlx::query(
        "INSERT INTO volumes (id, app, env, process, name, ordinal, node, size_bytes, created_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(i64::from(planned.id.0))
    .bind(key.env.app.as_str())
    .bind(key.env.env.as_str())
    .bind(key.process.as_str())
    .bind(&key.name)
    .bind(i64::from(key.ordinal))
    .bind(planned.node.0)
    .bind(to_i64("a volume's size", planned.size_bytes)?)
    .bind(to_i64("a time", planned.created_at.0)?)
    .execute(db)
    .await
    .map_err(StoreError::query("write a volume"))?;
    Ok(())
}

pub(crate) async fn delete(
    db: &mut SqliteConnection,
    id: VolumeId,
    touched: &mut BTreeSet<NodeId>,
) -> Result<(), StoreError> {
    let node: Option<i64> = sqlx::query_scalar("DELETE FROM volumes WHERE id = ? RETURNING node")
        .bind(i64::from(id.0))
        .fetch_optional(db)
        .await
        .map_err(StoreError::query("delete a volume"))?;
    if let Some(node) = node {
        touched.insert(NodeId(number("a node's number", node)?));
    }
    Ok(())
}

pub(crate) async fn mark_deleting(
    db: &mut SqliteConnection,
    id: VolumeId,
    touched: &mut BTreeSet<NodeId>,
) -> Result<(), StoreError> {
    let node: Option<i64> = sqlx::query_scalar(
        "UPDATE volumes SET deleting = 1 WHERE id = ? AND deleting = 0 RETURNING node",
    )
    .bind(i64::from(id.0))
    .fetch_optional(db)
    .await
    .map_err(StoreError::query("begin to delete a volume"))?;
    if let Some(node) = node {
        touched.insert(NodeId(number("a node's number", node)?));
    }
    Ok(())
}

/// Writes what a report said about a volume.
pub(crate) async fn reported(
    db: &mut SqliteConnection,
    id: VolumeId,
    volume: &Volume,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE volumes SET made = ?, deletion_acknowledged = ? WHERE id = ?")
        .bind(volume.made)
        .bind(volume.deletion_acknowledged)
        .bind(i64::from(id.0))
        .execute(db)
        .await
        .map_err(StoreError::query("write what a node reports of a volume"))?;
    Ok(())
}
