//! Secret bundles. What is in them is sealed before it comes here.

use std::collections::BTreeMap;

use model::{EnvKey, Timestamp};
use scheduler::changes::SealedVersion;
use scheduler::table::Table;

use crate::database::{Transaction, insert};
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
     WHERE app = $1 AND env = $2";

impl Store {
    /// Every version of every bundle of an env, by name and version.
    pub async fn secret_bundles(&self, env: &EnvKey) -> Result<Vec<SealedBundle>, StoreError> {
        let values = vec![env.app.as_str().into(), env.env.as_str().into()];
        let rows = self
            .rows("read the secret bundles", BUNDLES, values)
            .await?;
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
    db: &mut dyn Transaction,
    env: &EnvKey,
    name: &str,
    version: u32,
    content: &SealedVersion,
) -> Result<(), StoreError> {
    let columns = vec![
        ("app", env.app.as_str().into()),
        ("env", env.env.as_str().into()),
        ("name", name.into()),
        ("version", version.into()),
        ("sealed", content.sealed.as_slice().into()),
        ("created_at", to_i64("a time", content.created_at.0)?.into()),
    ];
    insert(db, "write a secret bundle", "secret_bundles", columns).await
}

/// The newest version of each bundle.
pub(crate) async fn newest_versions(
    db: &mut dyn Transaction,
) -> Result<Table<EnvKey, BTreeMap<String, u32>>, StoreError> {
    let sql = "SELECT app, env, name, MAX(version) FROM secret_bundles GROUP BY app, env, name";
    let rows = db.fetch(sql, Vec::new()).await;
    let rows = rows.map_err(StoreError::query("read the versions of the secret bundles"))?;
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
    db: &mut dyn Transaction,
    env: &EnvKey,
    name: Option<&str>,
) -> Result<(), StoreError> {
    let mut sql = "DELETE FROM secret_bundles WHERE app = $1 AND env = $2".to_owned();
    let mut values = vec![env.app.as_str().into(), env.env.as_str().into()];
    if let Some(name) = name {
        sql.push_str(" AND name = $3");
        values.push(name.into());
    }
    let deleted = db.execute(&sql, values).await;
    deleted.map_err(StoreError::query("delete secret bundles"))?;
    Ok(())
}
