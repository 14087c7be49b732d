//! Secret bundles. What is in them is sealed before it comes here.

use std::collections::BTreeMap;

use model::{EnvKey, Timestamp};
use scheduler::changes::SealedVersion;
use scheduler::table::Table;
use sqlx::{Row as _, SqliteConnection};

use crate::rows::{env_key, number, to_i64};
use crate::{Store, StoreError};

/// One version of a bundle, sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedBundle {
    /// The bundle's name.
    pub name: String,
    /// Counts from 1.
    pub version: u32,
    /// Its content.
    pub sealed: Vec<u8>,
    /// When it was made.
    pub created_at: Timestamp,
}

const BUNDLES: &str = "SELECT name, version, sealed, created_at FROM secret_bundles \
     WHERE app = ? AND env = ?";

impl Store {
    /// Every version of every bundle of an env, by name and version.
    pub async fn secret_bundles(&self, env: &EnvKey) -> Result<Vec<SealedBundle>, StoreError> {
        let rows = sqlx::query(BUNDLES)
            .bind(env.app.as_str())
            .bind(env.env.as_str())
            .fetch_all(&self.reader)
            .await
            .map_err(StoreError::query("read the secret bundles"))?;
        rows.into_iter()
            .map(|row| {
                Ok(SealedBundle {
                    name: row.get(0),
                    version: number("a version", row.get(1))?,
                    sealed: row.get(2),
                    created_at: Timestamp(number("a time", row.get(3))?),
                })
            })
            .collect()
    }
}

/// Adds a version of a bundle.
pub(crate) async fn add(
    db: &mut SqliteConnection,
    env: &EnvKey,
    name: &str,
    version: u32,
    content: &SealedVersion,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO secret_bundles (app, env, name, version, sealed, created_at) \
         VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(env.app.as_str())
    .bind(env.env.as_str())
    .bind(name)
    .bind(i64::from(version))
    .bind(&content.sealed)
    .bind(to_i64("a time", content.created_at.0)?)
    .execute(db)
    .await
    .map_err(StoreError::query("write a secret bundle"))?;
    Ok(())
}

/// The newest version of each bundle.
pub(crate) async fn newest_versions(
    db: &mut SqliteConnection,
) -> Result<Table<EnvKey, BTreeMap<String, u32>>, StoreError> {
    let rows = sqlx::query(
        "SELECT app, env, name, MAX(version) FROM secret_bundles GROUP BY app, env, name",
    )
    .fetch_all(db)
    .await
    .map_err(StoreError::query("read the versions of the secret bundles"))?;
    let mut newest: BTreeMap<EnvKey, BTreeMap<String, u32>> = BTreeMap::new();
    for row in rows {
        let key = env_key(row.get(0), row.get(1));
        let key = key.map_err(|cause| StoreError::Unreadable { cause })?;
        let versions = newest.entry(key).or_default();
        versions.insert(row.get(2), number("a version", row.get(3))?);
    }
    Ok(newest.into_iter().collect())
}

/// Deletes a bundle (absent: all of the env), every version.
pub(crate) async fn delete(
    db: &mut SqliteConnection,
    env: &EnvKey,
    name: Option<&str>,
) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM secret_bundles WHERE app = ?1 AND env = ?2 AND (?3 IS NULL OR name = ?3)",
    )
    .bind(env.app.as_str())
    .bind(env.env.as_str())
    .bind(name)
    .execute(db)
    .await
    .map_err(StoreError::query("delete secret bundles"))?;
    Ok(())
}
