//! Copies of the whole store: a backup beside a running server, and a copy on which a new schema is tried first.

use std::path::{Path, PathBuf};

use model::Incarnation;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection as _, Row as _};

use crate::open::{BUSY_TIMEOUT, sqlite_path};
use crate::{Store, StoreError};

impl Store {
    /// Copies the store of this URL, as it is at one moment, to a file that is not there yet. A server may use the store
    /// meanwhile: it is not kept from writing. The copy has mode 0600, and is durable.
    ///
    /// # Errors
    /// There is no such store, the file is there already or cannot be written, or the copy is damaged. No file is left then.
    pub async fn backup(url: &str, to: &Path) -> Result<(), StoreError> {
        let path = sqlite_path(url)?;
        let mut db = connect(&path).await?;
        let copied = copy(&mut db, to).await;
        // Only read: nothing of it is lost.
        let _ = db.close().await;
        copied
    }

    /// Whether anything in the store is sealed.
    pub async fn has_sealed(&self) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "SELECT EXISTS (SELECT 1 FROM secret_bundles) OR EXISTS (SELECT 1 FROM registry_logins)",
        )
        .fetch_one(&self.reader)
        .await
        .map_err(StoreError::query("look for sealed secrets"))?;
        Ok(row.get(0))
    }

    /// Begins another incarnation: this is the store of a backup.
    pub async fn begin_incarnation(&self, incarnation: Incarnation) -> Result<(), StoreError> {
        sqlx::query("UPDATE cluster SET incarnation = ?")
            .bind(incarnation.to_string())
            .execute(&self.writer)
            .await
            .map_err(StoreError::query("begin another incarnation"))?;
        Ok(())
    }
}

/// A connection to a database that is there.
pub(crate) async fn connect(path: &Path) -> Result<SqliteConnection, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .busy_timeout(BUSY_TIMEOUT);
    SqliteConnection::connect_with(&options)
        .await
        .map_err(|source| StoreError::Open {
            path: path.to_owned(),
            source,
        })
}

/// Copies a database to a file that is not there yet.
pub(crate) async fn copy(db: &mut SqliteConnection, to: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Copy {
        path: to.to_owned(),
        source,
    };
    // SQLite writes into an empty file, and keeps its mode.
    let file = tokio::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .await
        .map_err(|error| failed(sqlx::Error::Io(error)))?;
    let copied = async {
        sqlx::query("VACUUM INTO ?")
            .bind(to.to_string_lossy())
            .execute(db)
            .await?;
        let mut copy = SqliteConnection::connect_with(
            &SqliteConnectOptions::new()
                .filename(to)
                .create_if_missing(false),
        )
        .await?;
        let checked = sqlx::query("PRAGMA quick_check")
            .fetch_one(&mut copy)
            .await?;
        copy.close().await?;
        let said: String = checked.get(0);
        if said != "ok" {
            return Err(sqlx::Error::Protocol(format!(
                "the copy is damaged: {said}"
            )));
        }
        file.sync_all().await?;
        let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.map_or_else(|| PathBuf::from("."), Path::to_owned);
        tokio::fs::File::open(folder).await?.sync_all().await?;
        Ok(())
    };
    match copied.await {
        Ok(()) => Ok(()),
        Err(error) => {
            // It would look like a backup.
            let _ = tokio::fs::remove_file(to).await;
            Err(failed(error))
        }
    }
}
