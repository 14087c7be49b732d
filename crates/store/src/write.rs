//! Writing what changed of the cluster state: records, and no commands.

use std::collections::BTreeSet;

use model::{EdgeId, EnvKey, InstanceId, NodeId, ReleaseNumber, Term, VolumeId};
use scheduler::changes::{Changes, EnvRecord};
use scheduler::cluster_state::TokenRecord;
use scheduler::cluster_state::{
    Edge, EndedInstance, Instance, InstancePhase, Node, Release, Scheduling, TokenHash, Volume,
    VolumePhase,
};

use crate::database::{Transaction, Value, insert, put};
use crate::record::{JSON_VERSION, to_json};
use crate::rows::to_i64;
use crate::{Store, StoreError, routes, secrets};

impl Store {
    /// Writes what changed since the cluster state was loaded, all of it or nothing, in this term.
    pub async fn write(&self, term: Term, changes: &Changes) -> Result<(), StoreError> {
        let mut writing = self.begin_write(term).await?;
        writing.write(changes).await?;
        writing.commit().await
    }

    /// Begins a transaction of this term, once nobody else writes. Until it is committed, nothing of it has happened.
    ///
    /// A store that is not shared has one server, and takes any term. In a shared one the term has to be that of its lease
    /// ([`Store::acquire_lease`]), and stays so until the transaction ends.
    pub async fn begin_write(&self, term: Term) -> Result<Writing, StoreError> {
        Ok(Writing {
            db: self.begin(term).await?,
            is_shared: self.is_shared(),
        })
    }
}

/// A transaction that writes. Dropped, it never was.
#[derive(Debug)]
pub struct Writing {
    db: Box<dyn Transaction>,
    is_shared: bool,
}

impl Writing {
    /// Writes what changed since the cluster state was loaded.
    pub async fn write(&mut self, changes: &Changes) -> Result<(), StoreError> {
        write(&mut *self.db, changes).await
    }

    /// Ends it as if it never was, and lets others write.
    pub async fn roll_back(self) -> Result<(), StoreError> {
        let rolled_back = self.db.roll_back().await;
        rolled_back.map_err(StoreError::query("end a transaction"))
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// It is not, but for [`StoreError::Unconfirmed`]: the connection broke while the database was to commit, and it may
    /// have.
    pub async fn commit(self) -> Result<(), StoreError> {
        let operation = "write a change";
        let is_shared = self.is_shared;
        self.db.commit().await.map_err(|source| {
            if is_shared {
                StoreError::Unconfirmed { source }
            } else {
                StoreError::Query { operation, source }
            }
        })
    }
}

/// In an order that the foreign keys allow: rows that refer to others are deleted first and written last.
pub(crate) async fn write(db: &mut dyn Transaction, changes: &Changes) -> Result<(), StoreError> {
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
        match node {
            Some(node) => put_node(&mut *db, *id, node).await?,
            None => delete_node(&mut *db, *id).await?,
        }
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

async fn put_node(db: &mut dyn Transaction, id: NodeId, node: &Node) -> Result<(), StoreError> {
    let operation = "write a node";
    let seen_at = node.seen_at.map(|at| to_i64("a time", at.0)).transpose()?;
    let columns = vec![
        ("id", id.0.into()),
        ("name", (&node.name).into()),
        ("region", (&node.region).into()),
        ("hardware_json", to_json(&node.hardware)?.into()),
        ("wireguard_key", (&node.wireguard_key).into()),
        (
            "driver_json",
            node.driver.as_ref().map(to_json).transpose()?.into(),
        ),
        (
            "egress_json",
            node.egress.as_ref().map(to_json).transpose()?.into(),
        ),
        ("seen_at", seen_at.into()),
        (
            "generation",
            to_i64("a generation", node.generation)?.into(),
        ),
        ("enrolled_at", to_i64("a time", node.enrolled_at.0)?.into()),
        ("json_version", JSON_VERSION.into()),
        (
            "scheduling",
            match node.scheduling {
                Scheduling::Schedulable => "schedulable",
                Scheduling::Cordoned => "cordoned",
                Scheduling::Draining {
                    with_volumes: false,
                } => "draining",
                Scheduling::Draining { with_volumes: true } => "draining_with_volumes",
            }
            .into(),
        ),
        ("labels_json", to_json(&node.labels)?.into()),
    ];
    put(&mut *db, operation, "nodes", 1, columns).await?;
    let sql = "UPDATE cluster SET last_node = $1 WHERE last_node < $1";
    execute(db, operation, sql, vec![id.0.into()]).await
}

async fn delete_node(db: &mut dyn Transaction, id: NodeId) -> Result<(), StoreError> {
    let sql = "DELETE FROM nodes WHERE id = $1";
    execute(db, "remove a node", sql, vec![id.0.into()]).await
}

async fn put_edge(db: &mut dyn Transaction, id: EdgeId, edge: &Edge) -> Result<(), StoreError> {
    let operation = "write an edge";
    let columns = vec![
        ("id", id.0.into()),
        ("name", (&edge.name).into()),
        ("region", (&edge.region).into()),
        ("enrolled_at", to_i64("a time", edge.enrolled_at.0)?.into()),
    ];
    insert(&mut *db, operation, "edges", columns).await?;
    let sql = "UPDATE cluster SET last_edge = $1 WHERE last_edge < $1";
    execute(db, operation, sql, vec![id.0.into()]).await
}

async fn put_token(
    db: &mut dyn Transaction,
    hash: &TokenHash,
    token: Option<&TokenRecord>,
) -> Result<(), StoreError> {
    let operation = "write an enrollment token";
    let Some(token) = token else {
        let sql = "DELETE FROM enrollment_tokens WHERE hash = $1";
        return execute(db, operation, sql, vec![hash.as_slice().into()]).await;
    };
    let (at, by) = token.used.unzip();
    let used_at = at.map(|at| to_i64("a time", at.0)).transpose()?;
    let columns = vec![
        ("hash", hash.as_slice().into()),
        ("role", token.role.to_string().into()),
        ("expires_at", to_i64("a time", token.expires_at.0)?.into()),
        ("used_at", used_at.into()),
        ("used_by", by.map(|by| by.to_string()).into()),
    ];
    put(db, operation, "enrollment_tokens", 1, columns).await
}

async fn put_env(
    db: &mut dyn Transaction,
    key: &EnvKey,
    env: &EnvRecord,
) -> Result<(), StoreError> {
    let operation = "write an env";
    let columns = vec![
        ("app", key.app.as_str().into()),
        ("env", key.env.as_str().into()),
        ("network", env.network.0.into()),
        ("rollout_json", to_json(&env.rollout)?.into()),
        ("scale_json", to_json(&env.scale)?.into()),
        ("destroying", env.destroying.into()),
        ("json_version", JSON_VERSION.into()),
    ];
    put(&mut *db, operation, "envs", 2, columns).await?;
    let sql = "UPDATE cluster SET last_network = $1 WHERE last_network < $1";
    execute(db, operation, sql, vec![env.network.0.into()]).await
}

async fn delete_env(db: &mut dyn Transaction, key: &EnvKey) -> Result<(), StoreError> {
    let sql = "DELETE FROM envs WHERE app = $1 AND env = $2";
    execute(&mut *db, "delete an env", sql, key_values(key)).await?;
    secrets::delete(db, key, None).await
}

async fn delete_secrets(
    db: &mut dyn Transaction,
    bundles: &BTreeSet<(EnvKey, String)>,
) -> Result<(), StoreError> {
    for (key, bundle) in bundles {
        secrets::delete(&mut *db, key, Some(bundle)).await?;
    }
    Ok(())
}

async fn add_release(
    db: &mut dyn Transaction,
    key: &EnvKey,
    number: ReleaseNumber,
    release: &Release,
) -> Result<(), StoreError> {
    let columns = vec![
        ("app", key.app.as_str().into()),
        ("env", key.env.as_str().into()),
        ("number", number.0.into()),
        ("release_json", to_json(release)?.into()),
        ("json_version", JSON_VERSION.into()),
    ];
    insert(db, "write a release", "releases", columns).await
}

async fn delete_release(
    db: &mut dyn Transaction,
    key: &EnvKey,
    number: ReleaseNumber,
) -> Result<(), StoreError> {
    let sql = "DELETE FROM releases WHERE app = $1 AND env = $2 AND number = $3";
    let mut values = key_values(key);
    values.push(number.0.into());
    execute(db, "delete a release", sql, values).await
}

async fn put_instance(db: &mut dyn Transaction, instance: &Instance) -> Result<(), StoreError> {
    let spec = &instance.spec;
    let (phase, reason) = match &instance.phase {
        InstancePhase::New => ("new", None),
        InstancePhase::Established => ("established", None),
        InstancePhase::Terminating { reason, .. } => ("terminating", Some(reason.as_str())),
        InstancePhase::Gone { reason } => ("gone", Some(reason.as_str())),
    };
    let columns = vec![
        ("id", spec.id.0.into()),
        ("app", spec.app.as_str().into()),
        ("env", spec.env.as_str().into()),
        ("node", instance.node.0.into()),
        ("spec_json", to_json(spec.as_ref())?.into()),
        ("phase", phase.into()),
        ("was_ready", instance.was_ready().into()),
        ("reason", reason.into()),
        (
            "created_at",
            to_i64("a time", instance.created_at.0)?.into(),
        ),
        (
            "report_json",
            instance.report.as_ref().map(to_json).transpose()?.into(),
        ),
        ("json_version", JSON_VERSION.into()),
    ];
    put(db, "write an instance", "instances", 1, columns).await
}

async fn delete_instance(db: &mut dyn Transaction, id: InstanceId) -> Result<(), StoreError> {
    let sql = "DELETE FROM instances WHERE id = $1";
    execute(db, "delete an instance", sql, vec![id.0.into()]).await
}

async fn put_ended(
    db: &mut dyn Transaction,
    id: InstanceId,
    ended: Option<&EndedInstance>,
) -> Result<(), StoreError> {
    let operation = "write an ended instance";
    let Some(ended) = ended else {
        let sql = "DELETE FROM ended_instances WHERE id = $1";
        return execute(db, operation, sql, vec![id.0.into()]).await;
    };
    let columns = vec![
        ("id", id.0.into()),
        ("ended_json", to_json(ended)?.into()),
        ("json_version", JSON_VERSION.into()),
    ];
    put(db, operation, "ended_instances", 1, columns).await
}

async fn put_volume(
    db: &mut dyn Transaction,
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
    let columns = vec![
        ("id", id.0.into()),
        ("app", key.env.app.as_str().into()),
        ("env", key.env.env.as_str().into()),
        ("process", key.process.as_str().into()),
        ("name", (&key.name).into()),
        ("ordinal", key.ordinal.into()),
        ("node", volume.node.0.into()),
        (
            "size_bytes",
            to_i64("a volume's size", volume.size_bytes)?.into(),
        ),
        ("created_at", to_i64("a time", volume.created_at.0)?.into()),
        ("phase", phase.into()),
        ("made", volume.is_made().into()),
    ];
    put(db, "write a volume", "volumes", 1, columns).await
}

async fn delete_volume(db: &mut dyn Transaction, id: VolumeId) -> Result<(), StoreError> {
    let sql = "DELETE FROM volumes WHERE id = $1";
    execute(db, "delete a volume", sql, vec![id.0.into()]).await
}

fn key_values(key: &EnvKey) -> Vec<Value> {
    vec![key.app.as_str().into(), key.env.as_str().into()]
}

async fn execute(
    db: &mut dyn Transaction,
    operation: &'static str,
    sql: &str,
    values: Vec<Value>,
) -> Result<(), StoreError> {
    let executed = db.execute(sql, values).await;
    executed.map_err(StoreError::query(operation))?;
    Ok(())
}
