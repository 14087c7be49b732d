//! Secret bundles. What is in them is sealed before it comes here.

use std::collections::BTreeMap;

use model::{EnvKey, Timestamp};
use sqlx::{Row as _, SqliteConnection};

use crate::open::commit;
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

    /// Adds the next version of a bundle, made from the newest one (absent: the bundle is new) by
    /// `make`, which is told the number. When it refuses, nothing is written.
    pub async fn add_secret_version<E: From<StoreError>>(
        &self,
        env: &EnvKey,
        name: &str,
        now: Timestamp,
        make: impl FnOnce(Option<(u32, Vec<u8>)>, u32) -> Result<Vec<u8>, E>,
    ) -> Result<u32, E> {
        let operation = "write a secret bundle";
        let mut tx = self.begin().await?;
        let newest = sqlx::query(
            "SELECT version, sealed FROM secret_bundles WHERE app = ? AND env = ? AND name = ? \
             ORDER BY version DESC LIMIT 1",
        )
        .bind(env.app.as_str())
        .bind(env.env.as_str())
        .bind(name)
        .fetch_optional(&mut *tx)
        .await
        .map_err(StoreError::query(operation))?;
        let newest: Option<(u32, Vec<u8>)> = match newest {
            Some(row) => Some((number("a version", row.get(0))?, row.get(1))),
            None => None,
        };
        let version = newest.as_ref().map_or(0, |(version, _)| *version) + 1;
        let sealed = make(newest, version)?;
        sqlx::query(
            "INSERT INTO secret_bundles (app, env, name, version, sealed, created_at) \
             VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(env.app.as_str())
        .bind(env.env.as_str())
        .bind(name)
        .bind(i64::from(version))
        .bind(sealed)
        .bind(to_i64("a time", now.0)?)
        .execute(&mut *tx)
        .await
        .map_err(StoreError::query(operation))?;
        commit(tx, operation).await?;
        Ok(version)
    }
}

/// The newest version of each bundle.
pub(crate) async fn newest_versions(
    db: &mut SqliteConnection,
) -> Result<BTreeMap<EnvKey, BTreeMap<String, u32>>, StoreError> {
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
    Ok(newest)
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
