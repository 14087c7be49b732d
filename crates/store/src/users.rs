//! The tokens of users.

use model::Timestamp;

use crate::database::insert;
use crate::rows::to_i64;
use crate::{Store, StoreError};

impl Store {
    /// Writes a user's token by its hash. `name` is for people. A server does it when it starts, whether it leads or not: the
    /// row is new, and nothing in memory is of it.
    pub async fn add_user_token(
        &self,
        hash: &[u8; 32],
        name: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let operation = "write a user's token";
        let columns = vec![
            ("hash", hash.as_slice().into()),
            ("name", name.into()),
            ("role", "admin".into()),
            ("created_at", to_i64("a time", now.0)?.into()),
        ];
        let failed = StoreError::query(operation);
        let mut db = self.database.begin().await.map_err(failed)?;
        insert(&mut *db, operation, "user_tokens", vec![columns]).await?;
        db.commit().await.map_err(failed)
    }

    /// The name of the user whose token has this hash.
    pub async fn user_of_token(&self, hash: &[u8; 32]) -> Result<Option<String>, StoreError> {
        let sql = "SELECT name FROM user_tokens WHERE hash = $1";
        let values = vec![hash.as_slice().into()];
        let rows = self.rows("look up a user's token", sql, values).await?;
        Ok(rows.first().map(|row| row.get(0)))
    }
}
