//! Changes: decided on the cluster state as it is in the transaction, written in the same one.

use std::collections::{BTreeMap, BTreeSet};

use model::{EnvKey, NodeId, ProcessName, ReleaseNumber, VolumeId};
use scheduler::cluster_state::{Env, Release, Rollout};
use scheduler::planner::Action;
use sqlx::{SqliteConnection, sqlite::SqliteQueryResult};

use crate::load::load;
use crate::open::commit;
use crate::rows::{number, to_i64, to_json};
use crate::{Snapshot, Store, StoreError, secrets, volumes};

/// One thing to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// What the planner decided.
    Planned(Action),
    /// A new env with its first releases.
    AddEnv {
        /// Its key.
        key: EnvKey,
        /// The env.
        env: Env,
    },
    /// A release of an env that is there, and the rollout that begins with it.
    AddRelease {
        /// The env.
        key: EnvKey,
        /// The release's number.
        number: ReleaseNumber,
        /// The release.
        release: Box<Release>,
        /// The rollout.
        rollout: Rollout,
    },
    /// How many instances of processes are wanted.
    SetScale {
        /// The env.
        key: EnvKey,
        /// Process type to instances.
        scale: BTreeMap<ProcessName, u32>,
    },
    /// Delete a secret bundle, every version of it.
    DeleteSecrets {
        /// The env.
        key: EnvKey,
        /// The bundle.
        name: String,
    },
    /// Begin to delete a volume.
    DeleteVolume {
        /// The volume.
        id: VolumeId,
    },
    /// Begin to destroy an env.
    Destroy {
        /// The env.
        key: EnvKey,
    },
}

impl Store {
    /// Looks at the cluster state, decides, and writes what was decided, all in one transaction. When
    /// `decide` returns no change or refuses, nothing is written.
    ///
    /// Generations of the nodes whose desired state changes grow with it.
    pub async fn update<T, E: From<StoreError>>(
        &self,
        online: &BTreeSet<NodeId>,
        decide: impl FnOnce(&Snapshot) -> Result<(Vec<Change>, T), E>,
    ) -> Result<T, E> {
        let operation = "write a change";
        let mut tx = self.begin().await?;
        let snapshot = load(&mut tx, online).await?;
        let (changes, result) = decide(&snapshot)?;
        if changes.is_empty() {
            return Ok(result);
        }
        let mut touched = BTreeSet::new();
        for change in &changes {
            write(&mut tx, change, &mut touched).await?;
        }
        for node in touched {
            sqlx::query("UPDATE nodes SET generation = generation + 1 WHERE id = ?")
                .bind(node.0)
                .execute(&mut *tx)
                .await
                .map_err(StoreError::query(operation))?;
        }
        commit(tx, operation).await?;
        Ok(result)
    }
}

async fn write(
    db: &mut SqliteConnection,
    change: &Change,
    touched: &mut BTreeSet<NodeId>,
) -> Result<(), StoreError> {
    match change {
        Change::Planned(action) => perform(db, action, touched).await,
        Change::AddEnv { key, env } => {
            sqlx::query(
                "INSERT INTO envs (app, env, network, rollout_json, scale_json, destroying) \
                 VALUES (?, ?, ?, ?, ?, ?)",
            )
            .bind(key.app.as_str())
            .bind(key.env.as_str())
            .bind(i64::from(env.network.0))
            .bind(to_json("a rollout", &env.rollout)?)
            .bind(to_json("a scale", &env.scale)?)
            .bind(env.destroying)
            .execute(&mut *db)
            .await
            .map_err(StoreError::query("write an env"))?;
            sqlx::query("UPDATE cluster SET last_network = MAX(last_network, ?)")
                .bind(i64::from(env.network.0))
                .execute(&mut *db)
                .await
                .map_err(StoreError::query("write an env"))?;
            for (number, release) in &env.releases {
                add_release(db, key, *number, release).await?;
            }
            Ok(())
        }
        Change::AddRelease {
            key,
            number,
            release,
            rollout,
        } => {
            add_release(db, key, *number, release).await?;
            set_rollout(db, key, rollout).await
        }
        Change::SetScale { key, scale } => {
            let done = sqlx::query("UPDATE envs SET scale_json = ? WHERE app = ? AND env = ?")
                .bind(to_json("a scale", scale)?)
                .bind(key.app.as_str())
                .bind(key.env.as_str())
                .execute(db)
                .await
                .map_err(StoreError::query("write a scale"))?;
            one_row(&done, "an env", key)
        }
        Change::DeleteSecrets { key, name } => secrets::delete(db, key, Some(name)).await,
        Change::DeleteVolume { id } => volumes::mark_deleting(db, *id, touched).await,
        Change::Destroy { key } => {
            let done = sqlx::query("UPDATE envs SET destroying = 1 WHERE app = ? AND env = ?")
                .bind(key.app.as_str())
                .bind(key.env.as_str())
                .execute(db)
                .await
                .map_err(StoreError::query("begin to destroy an env"))?;
            one_row(&done, "an env", key)
        }
    }
}

async fn perform(
    db: &mut SqliteConnection,
    action: &Action,
    touched: &mut BTreeSet<NodeId>,
) -> Result<(), StoreError> {
    match action {
        Action::MakeVolume(planned) => volumes::make(db, planned).await?,
        Action::DeleteVolume { id } => volumes::delete(db, *id, touched).await?,
        Action::Create(placed) => {
            let spec = &placed.spec;
            sqlx::query(
                "INSERT INTO instances (id, app, env, node, spec_json, created_at) \
                 VALUES (?, ?, ?, ?, ?, ?)",
            )
            .bind(i64::from(spec.id.0))
            .bind(spec.app.as_str())
            .bind(spec.env.as_str())
            .bind(placed.node.0)
            .bind(to_json("an instance's spec", spec)?)
            .bind(to_i64("a time", placed.created_at.0)?)
            .execute(db)
            .await
            .map_err(StoreError::query("write an instance"))?;
            touched.insert(placed.node);
        }
        Action::Terminate { id, reason } => {
            let node: Option<i64> = sqlx::query_scalar(
                "UPDATE instances SET terminating = 1, leave_reason = ? \
                 WHERE id = ? AND terminating = 0 RETURNING node",
            )
            .bind(reason)
            .bind(i64::from(id.0))
            .fetch_optional(db)
            .await
            .map_err(StoreError::query("write that an instance leaves"))?;
            if let Some(node) = node {
                touched.insert(NodeId(number("a node's number", node)?));
            }
        }
        Action::Delete { id } => {
            let node: Option<i64> =
                sqlx::query_scalar("DELETE FROM instances WHERE id = ? RETURNING node")
                    .bind(i64::from(id.0))
                    .fetch_optional(db)
                    .await
                    .map_err(StoreError::query("delete an instance"))?;
            if let Some(node) = node {
                touched.insert(NodeId(number("a node's number", node)?));
            }
        }
        Action::SetRollout { env, rollout } => set_rollout(db, env, rollout).await?,
        Action::RemoveEnv { env } => {
            sqlx::query("DELETE FROM envs WHERE app = ? AND env = ?")
                .bind(env.app.as_str())
                .bind(env.env.as_str())
                .execute(&mut *db)
                .await
                .map_err(StoreError::query("remove an env"))?;
            secrets::delete(db, env, None).await?;
        }
    }
    Ok(())
}

async fn add_release(
    db: &mut SqliteConnection,
    key: &EnvKey,
    number: ReleaseNumber,
    release: &Release,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO releases (app, env, number, release_json) VALUES (?, ?, ?, ?)")
        .bind(key.app.as_str())
        .bind(key.env.as_str())
        .bind(i64::from(number.0))
        .bind(to_json("a release", release)?)
        .execute(db)
        .await
        .map_err(StoreError::query("write a release"))?;
    Ok(())
}

async fn set_rollout(
    db: &mut SqliteConnection,
    key: &EnvKey,
    rollout: &Rollout,
) -> Result<(), StoreError> {
    let done = sqlx::query("UPDATE envs SET rollout_json = ? WHERE app = ? AND env = ?")
        .bind(to_json("a rollout", rollout)?)
        .bind(key.app.as_str())
        .bind(key.env.as_str())
        .execute(db)
        .await
        .map_err(StoreError::query("write a rollout"))?;
    one_row(&done, "an env", key)
}

/// A change of something that is not there is a mistake of whoever decided it.
fn one_row(done: &SqliteQueryResult, what: &'static str, key: &EnvKey) -> Result<(), StoreError> {
    if done.rows_affected() == 1 {
        Ok(())
    } else {
        Err(StoreError::Unstorable {
            what,
            cause: format!("{key} does not exist"),
        })
    }
}
