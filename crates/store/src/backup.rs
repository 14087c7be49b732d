//! A backup beside a running server, and what a restore needs.

use std::path::Path;

use model::Incarnation;
use sqlx::Connection as _;

use crate::database::is_postgres;
use crate::file::{connect, copy, sqlite_path};
use crate::{Store, StoreError, transfer};

/// Env networks that are skipped after a restore: far more than any cluster gives out between two backups, and few of those there are.
pub const SKIPPED_NETWORKS: u32 = 1 << 20;
/// Numbers of nodes, of edges, and of both in the overlay, that are skipped after a restore: more machines than join between two backups. Where
/// more did, those that call are known by their certificates and skipped too. 255 restores use all numbers up; then free ones are given again.
pub const SKIPPED_NUMBERS: u16 = 256;

impl Store {
    /// Copies the store of this URL, as it is at one moment, to a file that is not there yet. A server may use the store
    /// meanwhile: it is not kept from writing. The copy has mode 0600, and is durable. It is a database of SQLite, also where the
    /// store is in PostgreSQL, and either takes it back.
    ///
    /// # Errors
    /// There is no such store, the file is there already or cannot be written, or the copy is damaged. No file is left then.
    pub async fn backup(url: &str, to: &Path) -> Result<(), StoreError> {
        if is_postgres(url) {
            return transfer::backup(url, to).await;
        }
        Self::backup_file(url, to).await
    }

    /// The same, of SQLite.
    pub(crate) async fn backup_file(url: &str, to: &Path) -> Result<(), StoreError> {
        let path = sqlite_path(url)?;
        let mut db = connect(&path).await?;
        let copied = copy(&mut db, to).await;
        // Only read: nothing of it is lost.
        let _ = db.close().await;
        copied
    }

    /// Whether anything in the store is sealed.
    pub async fn has_sealed(&self) -> Result<bool, StoreError> {
        let sql =
            "SELECT (SELECT COUNT(*) FROM secret_bundles) + (SELECT COUNT(*) FROM registry_logins)";
        let rows = self.rows("look for sealed secrets", sql, Vec::new());
        let rows = rows.await?;
        Ok(rows.first().is_some_and(|row| row.get::<i64>(0) > 0))
    }

    /// Begins another incarnation: this is the store of a backup. Env networks and members' numbers that may have been given out since it was made
    /// are not given again: the next [`SKIPPED_NETWORKS`] and [`SKIPPED_NUMBERS`] are skipped. Enrollment tokens that may have been used or revoked since let nobody in any more.
    pub async fn begin_incarnation(&self, incarnation: Incarnation) -> Result<(), StoreError> {
        let failed = StoreError::query("begin another incarnation");
        let mut db = self.database.begin().await.map_err(failed)?;
        // One that is near the end is not skipped past it: networks are few then, and given with care.
        let most = i64::from(u32::MAX - 2 * SKIPPED_NETWORKS);
        let most_number = i64::from(u16::MAX - SKIPPED_NUMBERS);
        let sql = "UPDATE cluster SET incarnation = $1, last_network = \
                   CASE WHEN last_network > $2 THEN last_network ELSE last_network + $3 END, last_node = \
                   CASE WHEN last_node > $4 THEN last_node ELSE last_node + $5 END, last_edge = \
                   CASE WHEN last_edge > $4 THEN last_edge ELSE last_edge + $5 END";
        let values = vec![
            incarnation.to_string().into(),
            most.into(),
            SKIPPED_NETWORKS.into(),
            most_number.into(),
            i64::from(SKIPPED_NUMBERS).into(),
        ];
        db.execute(sql, values).await.map_err(failed)?;
        let sql = "DELETE FROM enrollment_tokens WHERE used_at IS NULL";
        db.execute(sql, Vec::new()).await.map_err(failed)?;
        db.commit().await.map_err(failed)
    }
}
