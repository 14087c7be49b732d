//! The tokens of users.

use model::Timestamp;

use crate::rows::to_i64;
use crate::{Store, StoreError};

impl Store {
    /// Writes a user's token by its hash. `name` is for people.
    pub async fn add_user_token(
        &self,
        hash: &[u8; 32],
        name: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO user_tokens (hash, name, role, created_at) VALUES (?, ?, 'admin', ?)",
        )
        .bind(hash.as_slice())
        .bind(name)
        .bind(to_i64("a time", now.0)?)
        .execute(&self.writer)
        .await
        .map_err(StoreError::query("write a user's token"))?;
        Ok(())
    }

    /// The name of the user whose token has this hash.
    pub async fn user_of_token(&self, hash: &[u8; 32]) -> Result<Option<String>, StoreError> {
        sqlx::query_scalar("SELECT name FROM user_tokens WHERE hash = ?")
            .bind(hash.as_slice())
            .fetch_optional(&self.reader)
            .await
            .map_err(StoreError::query("look up a user's token"))
    }
}
