//! SQLite: one file, for one server at a time.
//!
//! Every write is begun with `BEGIN IMMEDIATE` on the one writing connection and committed with `synchronous=FULL`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use blocking_work::blocking;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteRow, SqliteSynchronous,
};
use sqlx::{Connection as _, Row as _, Sqlite, TypeInfo as _, ValueRef as _};

use crate::StoreError;
use crate::database::{
    ACQUIRE_TIMEOUT, Answer, Database, READERS, Transaction, Value, transaction,
};
use crate::file::{self, BUSY_TIMEOUT, lock, sqlite_path};
use crate::migrations::{self, migrator, newest, not_migrated};

transaction!(
    SqliteTransaction,
    Sqlite,
    SqliteRow,
    |_| "?".to_owned(),
    value,
    std::convert::identity
);

/// A database file that is open.
#[derive(Debug)]
pub(crate) struct SqliteDatabase {
    writer: SqlitePool,
    reader: SqlitePool,
    /// A store has one server: its lock, until it is closed.
    lock: File,
}

impl SqliteDatabase {
    /// Opens `sqlite:PATH`, makes the file where there is none, and brings it to this version's schema; what is to be changed
    /// is tried on a copy first. A file with a newer schema is refused, and one that another server has.
    pub(crate) async fn open(url: &str) -> Result<Self, StoreError> {
        let path = sqlite_path(url)?;
        let store = path.display().to_string();
        let opened = |source| StoreError::Open {
            store: store.clone(),
            source,
        };
        // Keys are in it, wrapped; SQLite gives its other files the mode of this one.
        tokio::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .await
            .map_err(|e| opened(sqlx::Error::Io(e)))?;
        let lock = blocking({
            let path = path.clone();
            move || lock(&path)
        })
        .await?;
        try_migrations(&path).await?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let writer = SqlitePoolOptions::new()
            .min_connections(1)
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // One that still counts a transaction was given up by SQLite in the middle of it, as where the disk is full.
            .before_acquire(|db, _| Box::pin(async { Ok(!db.is_in_transaction()) }))
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options.clone())
            .await
            .map_err(opened)?;
        migrator(migrations::SQLITE)
            .run(&writer)
            .await
            .map_err(|source| not_migrated(&store, source))?;
        let reader = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .before_acquire(|db, _| Box::pin(async { Ok(!db.is_in_transaction()) }))
            .connect_with(options.read_only(true).create_if_missing(false))
            .await
            .map_err(opened)?;
        Ok(Self {
            writer,
            reader,
            lock,
        })
    }
}

impl Database for SqliteDatabase {
    fn begin(&self) -> Answer<'_, Box<dyn Transaction>> {
        Box::pin(async {
            let begun = self.writer.begin_with("BEGIN IMMEDIATE").await?;
            Ok(Box::new(SqliteTransaction(begun)) as Box<dyn Transaction>)
        })
    }

    fn read(&self) -> Answer<'_, Box<dyn Transaction>> {
        Box::pin(async {
            let begun = self.reader.begin().await?;
            Ok(Box::new(SqliteTransaction(begun)) as Box<dyn Transaction>)
        })
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            self.reader.close().await;
            self.writer.close().await;
            // Whoever opens it next finds it closed; where this fails, the file's end unlocks it.
            let _ = self.lock.unlock();
        })
    }

    fn erase(&self) -> Answer<'_, ()> {
        Box::pin(async {
            // What is free is zeroed; then the log, which has it too, is emptied.
            for statement in [
                "PRAGMA secure_delete = ON",
                "VACUUM",
                "PRAGMA wal_checkpoint(TRUNCATE)",
            ] {
                sqlx::query(statement).execute(&self.writer).await?;
            }
            Ok(())
        })
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn lease(&self) -> Answer<'_, Box<dyn Transaction>> {
        self.begin()
    }
}

/// A value of any type that the schema has.
fn value(row: &SqliteRow, index: usize) -> Result<Value, sqlx::Error> {
    let raw = row.try_get_raw(index)?;
    if raw.is_null() {
        return Ok(Value::Integer(None));
    }
    let kind = raw.type_info().name().to_owned();
    Ok(match kind.as_str() {
        "TEXT" => Value::Text(Some(row.try_get(index)?)),
        "BLOB" => Value::Blob(Some(row.try_get(index)?)),
        _ => Value::Integer(Some(row.try_get(index)?)),
    })
}

/// Where the store has an older schema: brings a copy of it to this one first, so that a migration that fails has changed
/// nothing.
async fn try_migrations(path: &Path) -> Result<(), StoreError> {
    let mut db = file::connect(path).await?;
    // A database without the table is new.
    let schema = sqlx::query_scalar::<_, Option<i64>>("SELECT MAX(version) FROM _sqlx_migrations")
        .fetch_one(&mut db)
        .await;
    let tried = match schema {
        Ok(Some(schema)) if schema < newest() => {
            let mut copy = path.as_os_str().to_owned();
            copy.push(".migrating");
            let copy = PathBuf::from(copy);
            // Of a start that was interrupted.
            let _ = tokio::fs::remove_file(&copy).await;
            let tried = try_on_copy(&mut db, &copy, path).await;
            let _ = tokio::fs::remove_file(&copy).await;
            if tried.is_ok() {
                tracing::info!(
                    from = schema,
                    to = newest(),
                    "bringing the store to a newer schema; it was tried on a copy"
                );
            }
            tried
        }
        _ => Ok(()),
    };
    // Only read: nothing of it is lost.
    let _ = db.close().await;
    tried
}

async fn try_on_copy(
    db: &mut SqliteConnection,
    copy: &Path,
    path: &Path,
) -> Result<(), StoreError> {
    file::copy(db, copy).await?;
    let mut tried = file::connect(copy).await?;
    let migrated = migrator(migrations::SQLITE)
        .run_direct(None, &mut tried, false)
        .await;
    let _ = tried.close().await;
    migrated.map_err(|source| not_migrated(&path.display().to_string(), source))
}
