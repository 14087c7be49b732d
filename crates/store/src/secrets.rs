//! Secret bundles. What is in them is sealed before it comes here.

use std::collections::{BTreeMap, BTreeSet};

use model::{EnvKey, Timestamp};
use scheduler::changes::SealedVersion;
use scheduler::table::Table;

use crate::database::{ENV_KEY, Transaction, Value, delete as delete_rows, insert, key_values};
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

const TABLE: &str = "secret_bundles";
const DELETE: &str = "delete secret bundles";

const COLUMNS: &str = "SELECT name, version, sealed, created_at FROM secret_bundles AS b \
     WHERE app = $1 AND env = $2";

impl Store {
    /// The newest version of each bundle of an env, or of the one with this name.
    pub async fn newest_secret_bundles(
        &self,
        env: &EnvKey,
        name: Option<&str>,
    ) -> Result<Vec<SealedBundle>, StoreError> {
        let mut sql = format!(
            "{COLUMNS} AND version = (SELECT MAX(version) FROM secret_bundles AS o \
             WHERE o.app = b.app AND o.env = b.env AND o.name = b.name)"
        );
        let mut values = key_values(env);
        if let Some(name) = name {
            sql.push_str(" AND name = $3");
            values.push(name.into());
        }
        self.secret_bundles(&sql, values).await
    }

    /// One version of a bundle.
    pub async fn secret_bundle(
        &self,
        env: &EnvKey,
        name: &str,
        version: u32,
    ) -> Result<Option<SealedBundle>, StoreError> {
        let sql = format!("{COLUMNS} AND name = $3 AND version = $4");
        let mut values = key_values(env);
        values.extend([name.into(), version.into()]);
        Ok(self.secret_bundles(&sql, values).await?.pop())
    }

    async fn secret_bundles(
        &self,
        sql: &str,
        values: Vec<Value>,
    ) -> Result<Vec<SealedBundle>, StoreError> {
        let rows = self.rows("read the secret bundles", sql, values).await?;
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

/// Adds versions of bundles.
pub(crate) async fn add(
    db: &mut dyn Transaction,
    versions: &BTreeMap<(EnvKey, String, u32), SealedVersion>,
) -> Result<(), StoreError> {
    let rows = versions.iter().map(|((env, name, version), content)| {
        Ok(vec![
            ("app", env.app.as_str().into()),
            ("env", env.env.as_str().into()),
            ("name", name.into()),
            ("version", (*version).into()),
            ("sealed", content.sealed.as_slice().into()),
            ("created_at", to_i64("a time", content.created_at.0)?.into()),
        ])
    });
    let rows = rows.collect::<Result<_, StoreError>>()?;
    insert(db, "write a secret bundle", TABLE, rows).await
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

/// Deletes bundles, every version of each.
pub(crate) async fn delete(
    db: &mut dyn Transaction,
    bundles: &BTreeSet<(EnvKey, String)>,
) -> Result<(), StoreError> {
    let keys = bundles.iter().map(|(env, name)| {
        let mut values = key_values(env);
        values.push(name.into());
        values
    });
    let names = ["app", "env", "name"];
    delete_rows(db, DELETE, TABLE, &names, keys.collect()).await
}

/// Deletes versions of bundles.
pub(crate) async fn delete_versions(
    db: &mut dyn Transaction,
    versions: &BTreeSet<(EnvKey, String, u32)>,
) -> Result<(), StoreError> {
    let keys = versions.iter().map(|(env, name, version)| {
        let mut values = key_values(env);
        values.extend([name.into(), (*version).into()]);
        values
    });
    let names = ["app", "env", "name", "version"];
    delete_rows(db, DELETE, TABLE, &names, keys.collect()).await
}

/// Deletes every bundle of these envs.
pub(crate) async fn delete_all(
    db: &mut dyn Transaction,
    envs: &BTreeSet<EnvKey>,
) -> Result<(), StoreError> {
    let keys = envs.iter().map(key_values).collect();
    delete_rows(db, DELETE, TABLE, ENV_KEY, keys).await
}
