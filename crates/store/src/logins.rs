//! Registries that the cluster is logged in to. What is secret comes and goes sealed: no key is here.

use api::user::RegistryRow;
use model::{Term, Timestamp};

use crate::database::put;
use crate::rows::{number, to_i64};
use crate::{Store, StoreError};

impl Store {
    /// Keeps a login, in this term; one to the same registry is replaced.
    pub async fn set_registry_login(
        &self,
        term: Term,
        login: &RegistryRow,
        sealed: &[u8],
    ) -> Result<(), StoreError> {
        let operation = "write a registry login";
        let columns = vec![
            ("registry", (&login.registry).into()),
            ("user", (&login.user).into()),
            ("sealed", sealed.into()),
            ("by", (&login.by).into()),
            ("at", to_i64("a time", login.at.0)?.into()),
        ];
        let mut db = self.begin(term).await?;
        put(&mut *db, operation, "registry_logins", 1, vec![columns]).await?;
        db.commit().await.map_err(StoreError::query(operation))
    }

    /// Every login, by registry, without its secret.
    pub async fn registry_logins(&self) -> Result<Vec<RegistryRow>, StoreError> {
        let sql =
            "SELECT registry, \"user\", \"by\", \"at\" FROM registry_logins ORDER BY registry";
        let rows = self
            .rows("read the registry logins", sql, Vec::new())
            .await?;
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
        let sql = "SELECT sealed FROM registry_logins WHERE registry = $1";
        let values = vec![registry.into()];
        let rows = self.rows("read a registry login", sql, values).await?;
        Ok(rows.first().map(|row| row.get(0)))
    }

    /// Deletes a login, in this term; false when there was none.
    pub async fn remove_registry_login(
        &self,
        term: Term,
        registry: &str,
    ) -> Result<bool, StoreError> {
        let failed = StoreError::query("delete a registry login");
        let mut db = self.begin(term).await?;
        let sql = "DELETE FROM registry_logins WHERE registry = $1";
        let deleted = db.execute(sql, vec![registry.into()]).await;
        let deleted = deleted.map_err(failed)?;
        db.commit().await.map_err(failed)?;
        Ok(deleted > 0)
    }
}
