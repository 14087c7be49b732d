//! Writing what changed of the cluster state: records, and no commands.

use std::collections::BTreeSet;

use model::{EdgeId, EnvKey, InstanceId, NodeId, ReleaseNumber, VolumeId};
use scheduler::changes::{Changes, EnvRecord};
use scheduler::cluster_state::TokenRecord;
use scheduler::cluster_state::{
    Edge, EndedInstance, Instance, InstancePhase, Node, Release, TokenHash, Volume, VolumePhase,
};
use sqlx::{Sqlite, SqliteConnection, Transaction};

use crate::open::commit;
use crate::record::{JSON_VERSION, to_json};
use crate::rows::to_i64;
use crate::{Store, StoreError, routes, secrets};

impl Store {
    /// Writes what changed since the cluster state was loaded, all of it or nothing.
    pub async fn write(&self, changes: &Changes) -> Result<(), StoreError> {
        let mut writing = self.begin_write().await?;
        writing.write(changes).await?;
        writing.commit().await
    }

    /// Begins a transaction, once nobody else writes. Until it is committed, nothing of it has happened.
    pub async fn begin_write(&self) -> Result<Writing, StoreError> {
        Ok(Writing(self.begin().await?))
    }
}

/// A transaction that writes. Dropped, it never was.
#[derive(Debug)]
pub struct Writing(Transaction<'static, Sqlite>);

impl Writing {
    /// Writes what changed since the cluster state was loaded.
    pub async fn write(&mut self, changes: &Changes) -> Result<(), StoreError> {
        write(&mut self.0, changes).await
    }

    /// Ends it as if it never was, and lets others write.
    pub async fn roll_back(self) -> Result<(), StoreError> {
        let rolled_back = self.0.rollback().await;
        rolled_back.map_err(StoreError::query("end a transaction"))
    }

    /// Makes it durable.
    pub async fn commit(self) -> Result<(), StoreError> {
        commit(self.0, "write a change").await
    }
}

/// In an order that the foreign keys allow: rows that refer to others are deleted first and written last.
pub(crate) async fn write(db: &mut SqliteConnection, changes: &Changes) -> Result<(), StoreError> {
    let Changes {
        nodes,
        edges,
        tokens,
        deleted_envs,
        envs,
        releases,
        deleted_releases,
        instances,
        ended,
        volumes,
        deleted_secrets,
        secrets,
        routes,
    } = changes;
    for (id, _) in instances.iter().filter(|(_, value)| value.is_none()) {
        delete_instance(&mut *db, *id).await?;
    }
    for (id, _) in volumes.iter().filter(|(_, value)| value.is_none()) {
        delete_volume(&mut *db, *id).await?;
    }
    delete_secrets(&mut *db, deleted_secrets).await?;
    for key in deleted_envs {
        delete_env(&mut *db, key).await?;
    }
    for (id, node) in nodes {
        put_node(&mut *db, *id, node).await?;
    }
    for (id, edge) in edges {
        put_edge(&mut *db, *id, edge).await?;
    }
    for (hash, token) in tokens {
        put_token(&mut *db, hash, token.as_ref()).await?;
    }
    for (key, env) in envs {
        put_env(&mut *db, key, env).await?;
    }
    for ((key, number), release) in releases {
        add_release(&mut *db, key, *number, release).await?;
    }
    for (key, number) in deleted_releases {
        delete_release(&mut *db, key, *number).await?;
    }
    for ((key, bundle, version), content) in secrets {
        secrets::add(&mut *db, key, bundle, *version, content).await?;
    }
    for instance in instances.values().flatten() {
        put_instance(&mut *db, instance).await?;
    }
    for (id, ended) in ended {
        put_ended(&mut *db, *id, ended.as_ref()).await?;
    }
    for (id, volume) in volumes {
        if let Some(volume) = volume {
            put_volume(&mut *db, *id, volume).await?;
        }
    }
    routes::put(db, routes).await
}

async fn put_node(db: &mut SqliteConnection, id: NodeId, node: &Node) -> Result<(), StoreError> {
    let seen_at = node.seen_at.map(|at| to_i64("a time", at.0)).transpose()?;
    sqlx::query(
        "INSERT INTO nodes (id, name, region, hardware_json, wireguard_key, driver_json, egress_json, seen_at, \
         generation, enrolled_at, json_version) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, region = excluded.region, \
         hardware_json = excluded.hardware_json, wireguard_key = excluded.wireguard_key, \
         driver_json = excluded.driver_json, egress_json = excluded.egress_json, \
         seen_at = excluded.seen_at, generation = excluded.generation, json_version = excluded.json_version",
    )
    .bind(id.0)
    .bind(&node.name)
    .bind(&node.region)
    .bind(to_json(&node.hardware)?)
    .bind(&node.wireguard_key)
    .bind(node.driver.as_ref().map(to_json).transpose()?)
    .bind(node.egress.as_ref().map(to_json).transpose()?)
    .bind(seen_at)
    .bind(to_i64("a generation", node.generation)?)
    .bind(to_i64("a time", node.enrolled_at.0)?)
    .bind(JSON_VERSION)
    .execute(&mut *db)
    .await
    .map_err(StoreError::query("write a node"))?;
    sqlx::query("UPDATE cluster SET last_node = ?1 WHERE last_node < ?1")
        .bind(id.0)
        .execute(db)
        .await
        .map_err(StoreError::query("write a node"))?;
    Ok(())
}

async fn put_edge(db: &mut SqliteConnection, id: EdgeId, edge: &Edge) -> Result<(), StoreError> {
    let operation = "write an edge";
    sqlx::query("INSERT INTO edges (id, name, region, enrolled_at) VALUES (?, ?, ?, ?)")
        .bind(id.0)
        .bind(&edge.name)
        .bind(&edge.region)
        .bind(to_i64("a time", edge.enrolled_at.0)?)
        .execute(&mut *db)
        .await
        .map_err(StoreError::query(operation))?;
    sqlx::query("UPDATE cluster SET last_edge = MAX(last_edge, ?)")
        .bind(id.0)
        .execute(db)
        .await
        .map_err(StoreError::query(operation))?;
    Ok(())
}

async fn put_token(
    db: &mut SqliteConnection,
    hash: &TokenHash,
    token: Option<&TokenRecord>,
) -> Result<(), StoreError> {
    let written = match token {
        Some(token) => {
            let (at, by) = token.used.unzip();
            sqlx::query(
                "INSERT OR REPLACE INTO enrollment_tokens (hash, role, expires_at, used_at, used_by) \
                 VALUES (?, ?, ?, ?, ?)",
            )
            .bind(hash.as_slice())
            .bind(token.role.to_string())
            .bind(to_i64("a time", token.expires_at.0)?)
            .bind(at.map(|at| to_i64("a time", at.0)).transpose()?)
            .bind(by.map(|by| by.to_string()))
            .execute(db)
            .await
        }
        None => {
            sqlx::query("DELETE FROM enrollment_tokens WHERE hash = ?")
                .bind(hash.as_slice())
                .execute(db)
                .await
        }
    };
    written.map_err(StoreError::query("write an enrollment token"))?;
    Ok(())
}

async fn put_env(
    db: &mut SqliteConnection,
    key: &EnvKey,
    env: &EnvRecord,
) -> Result<(), StoreError> {
    let operation = "write an env";
    sqlx::query(
        "INSERT INTO envs (app, env, network, rollout_json, scale_json, destroying, json_version) \
         VALUES (?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (app, env) DO UPDATE SET network = excluded.network, \
         rollout_json = excluded.rollout_json, scale_json = excluded.scale_json, \
         destroying = excluded.destroying, json_version = excluded.json_version",
    )
    .bind(key.app.as_str())
    .bind(key.env.as_str())
    .bind(i64::from(env.network.0))
    .bind(to_json(&env.rollout)?)
    .bind(to_json(&env.scale)?)
    .bind(env.destroying)
    .bind(JSON_VERSION)
    .execute(&mut *db)
    .await
    .map_err(StoreError::query(operation))?;
    sqlx::query("UPDATE cluster SET last_network = MAX(last_network, ?)")
        .bind(i64::from(env.network.0))
        .execute(db)
        .await
        .map_err(StoreError::query(operation))?;
    Ok(())
}

async fn delete_env(db: &mut SqliteConnection, key: &EnvKey) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM envs WHERE app = ? AND env = ?")
        .bind(key.app.as_str())
        .bind(key.env.as_str())
        .execute(&mut *db)
        .await
        .map_err(StoreError::query("delete an env"))?;
    secrets::delete(db, key, None).await
}

async fn delete_secrets(
    db: &mut SqliteConnection,
    bundles: &BTreeSet<(EnvKey, String)>,
) -> Result<(), StoreError> {
    for (key, bundle) in bundles {
        secrets::delete(&mut *db, key, Some(bundle)).await?;
    }
    Ok(())
}

async fn add_release(
    db: &mut SqliteConnection,
    key: &EnvKey,
    number: ReleaseNumber,
    release: &Release,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO releases (app, env, number, release_json, json_version) VALUES (?, ?, ?, ?, ?)",
    )
    .bind(key.app.as_str())
    .bind(key.env.as_str())
    .bind(i64::from(number.0))
    .bind(to_json(release)?)
    .bind(JSON_VERSION)
    .execute(db)
    .await
    .map_err(StoreError::query("write a release"))?;
    Ok(())
}

async fn delete_release(
    db: &mut SqliteConnection,
    key: &EnvKey,
    number: ReleaseNumber,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM releases WHERE app = ? AND env = ? AND number = ?")
        .bind(key.app.as_str())
        .bind(key.env.as_str())
        .bind(i64::from(number.0))
        .execute(db)
        .await
        .map_err(StoreError::query("delete a release"))?;
    Ok(())
}

async fn put_instance(db: &mut SqliteConnection, instance: &Instance) -> Result<(), StoreError> {
    let spec = &instance.spec;
    let (phase, reason) = match &instance.phase {
        InstancePhase::New => ("new", None),
        InstancePhase::Established => ("established", None),
        InstancePhase::Terminating { reason, .. } => ("terminating", Some(reason)),
        InstancePhase::Gone { reason } => ("gone", Some(reason)),
    };
    sqlx::query(
        "INSERT INTO instances (id, app, env, node, spec_json, phase, was_ready, reason, created_at, report_json, \
         json_version) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (id) DO UPDATE SET spec_json = excluded.spec_json, phase = excluded.phase, \
         was_ready = excluded.was_ready, reason = excluded.reason, report_json = excluded.report_json, \
         json_version = excluded.json_version",
    )
    .bind(i64::from(spec.id.0))
    .bind(spec.app.as_str())
    .bind(spec.env.as_str())
    .bind(instance.node.0)
    .bind(to_json(spec)?)
    .bind(phase)
    .bind(instance.was_ready())
    .bind(reason)
    .bind(to_i64("a time", instance.created_at.0)?)
    .bind(instance.report.as_ref().map(to_json).transpose()?)
    .bind(JSON_VERSION)
    .execute(db)
    .await
    .map_err(StoreError::query("write an instance"))?;
    Ok(())
}

async fn delete_instance(db: &mut SqliteConnection, id: InstanceId) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM instances WHERE id = ?")
        .bind(i64::from(id.0))
        .execute(db)
        .await
        .map_err(StoreError::query("delete an instance"))?;
    Ok(())
}

async fn put_ended(
    db: &mut SqliteConnection,
    id: InstanceId,
    ended: Option<&EndedInstance>,
) -> Result<(), StoreError> {
    let written = match ended {
        Some(ended) => {
            sqlx::query(
                "INSERT OR REPLACE INTO ended_instances (id, ended_json, json_version) VALUES (?, ?, ?)",
            )
            .bind(i64::from(id.0))
            .bind(to_json(ended)?)
            .bind(JSON_VERSION)
            .execute(db)
            .await
        }
        None => {
            sqlx::query("DELETE FROM ended_instances WHERE id = ?")
                .bind(i64::from(id.0))
                .execute(db)
                .await
        }
    };
    written.map_err(StoreError::query("write an ended instance"))?;
    Ok(())
}

async fn put_volume(
    db: &mut SqliteConnection,
    id: VolumeId,
    volume: &Volume,
) -> Result<(), StoreError> {
    let key = &volume.key;
    let phase = match volume.phase {
        VolumePhase::Planned => "planned",
        VolumePhase::Made => "made",
        VolumePhase::Deleting { .. } => "deleting",
        VolumePhase::Deleted => "deleted",
    };
    sqlx::query(
        "INSERT INTO volumes (id, app, env, process, name, ordinal, node, size_bytes, created_at, phase, made) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (id) DO UPDATE SET phase = excluded.phase, made = excluded.made",
    )
    .bind(i64::from(id.0))
    .bind(key.env.app.as_str())
    .bind(key.env.env.as_str())
    .bind(key.process.as_str())
    .bind(&key.name)
    .bind(i64::from(key.ordinal))
    .bind(volume.node.0)
    .bind(to_i64("a volume's size", volume.size_bytes)?)
    .bind(to_i64("a time", volume.created_at.0)?)
    .bind(phase)
    .bind(volume.is_made())
    .execute(db)
    .await
    .map_err(StoreError::query("write a volume"))?;
    Ok(())
}

async fn delete_volume(db: &mut SqliteConnection, id: VolumeId) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM volumes WHERE id = ?")
        .bind(i64::from(id.0))
        .execute(db)
        .await
        .map_err(StoreError::query("delete a volume"))?;
    Ok(())
}
