//! Registries that the cluster is logged in to. What is secret comes and goes sealed: no key is here.

use api::user::RegistryRow;
use model::Timestamp;
use sqlx::Row as _;

use crate::rows::{number, to_i64};
use crate::{Store, StoreError};

impl Store {
    /// Keeps a login; one to the same registry is replaced.
    pub async fn set_registry_login(
        &self,
        login: &RegistryRow,
        sealed: &[u8],
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT OR REPLACE INTO registry_logins (registry, user, sealed, by, at) \
             VALUES (?, ?, ?, ?, ?)",
        )
        .bind(&login.registry)
        .bind(&login.user)
        .bind(sealed)
        .bind(&login.by)
        .bind(to_i64("a time", login.at.0)?)
        .execute(&self.writer)
        .await
        .map_err(StoreError::query("write a registry login"))?;
        Ok(())
    }

    /// Every login, by registry, without its secret.
    pub async fn registry_logins(&self) -> Result<Vec<RegistryRow>, StoreError> {
        let rows =
            sqlx::query("SELECT registry, user, by, at FROM registry_logins ORDER BY registry")
                .fetch_all(&self.reader)
                .await
                .map_err(StoreError::query("read the registry logins"))?;
        rows.iter()
            .map(|row| {
                Ok(RegistryRow {
                    registry: row.get(0),
                    user: row.get(1),
                    by: row.get(2),
                    at: Timestamp(number("a time", row.get(3))?),
                })
            })
            .collect()
    }

    /// The sealed secret of the login to a registry, if there is one.
    pub async fn sealed_registry_login(
        &self,
        registry: &str,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        sqlx::query_scalar("SELECT sealed FROM registry_logins WHERE registry = ?")
            .bind(registry)
            .fetch_optional(&self.reader)
            .await
            .map_err(StoreError::query("read a registry login"))
    }

    /// Forgets a login; false when there was none.
    pub async fn remove_registry_login(&self, registry: &str) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM registry_logins WHERE registry = ?")
            .bind(registry)
            .execute(&self.writer)
            .await
            .map_err(StoreError::query("delete a registry login"))?;
        Ok(done.rows_affected() > 0)
    }
}
