//! Opening the store, and creating the cluster in it.

use std::path::PathBuf;
use std::time::Duration;

use model::{Incarnation, Timestamp};
use scheduler::cluster_state::ClusterSettings;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Row as _, Sqlite, Transaction};

use crate::record::{JSON_VERSION, from_json, to_json};
use crate::rows::to_i64;
use crate::{StoreError, error};

/// Connections that only read.
pub const READERS: u32 = 4;
/// How long a statement waits for another process that holds the database (a backup).
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a caller waits for a connection while others have them all.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);

/// Number, name and SQL of each file in `migrations/`, in their order; listed by `build.rs`.
const MIGRATIONS: &[(i64, &str, &str)] = include!(concat!(env!("OUT_DIR"), "/migrations.rs"));

/// The control plane's state. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) writer: SqlitePool,
    pub(crate) reader: SqlitePool,
}

/// What is made once, when the cluster is created.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterRecord {
    /// Its settings.
    pub settings: ClusterSettings,
    /// The CA's certificate, PEM.
    pub ca_cert_pem: String,
    /// The CA's key, PEM. Secret.
    pub ca_key_pem: String,
}

impl std::fmt::Debug for ClusterRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterRecord")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens `sqlite:PATH`, makes the file where there is none, and brings it to this version's
    /// schema. A file with a newer schema is refused.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let path = url
            .strip_prefix("sqlite:")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
            .ok_or_else(|| StoreError::UnknownStore(url.to_owned()))?;
        let opened = |source| StoreError::Open {
            path: path.clone(),
            source,
        };
        // The CA's key is in it; SQLite gives its other files the mode of this one.
        tokio::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .await
            .map_err(|e| opened(sqlx::Error::Io(e)))?;
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
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options.clone())
            .await
            .map_err(opened)?;
        migrator()
            .run(&writer)
            .await
            .map_err(|source| match source {
                MigrateError::VersionMissing(found) => StoreError::NewerSchema {
                    path: path.clone(),
                    found,
                    known: MIGRATIONS.last().map_or(0, |(number, ..)| *number),
                },
                source => StoreError::Migrate {
                    path: path.clone(),
                    source,
                },
            })?;
        let reader = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.read_only(true).create_if_missing(false))
            .await
            .map_err(opened)?;
        Ok(Self { writer, reader })
    }

    /// Closes every connection; what was acknowledged is in the database already.
    pub async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }

    /// What was made when the cluster was created, if it was.
    pub async fn cluster(&self) -> Result<Option<ClusterRecord>, StoreError> {
        let row =
            sqlx::query("SELECT settings_json, ca_cert_pem, ca_key_pem, json_version FROM cluster")
                .fetch_optional(&self.reader)
                .await
                .map_err(StoreError::query("read the cluster's settings"))?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(ClusterRecord {
            settings: from_json(row.get(3), row.get(0))
                .map_err(|cause| StoreError::Unreadable { cause })?,
            ca_cert_pem: row.get(1),
            ca_key_pem: row.get(2),
        }))
    }

    /// Creates the cluster, in its first incarnation. Does nothing when there is one already; ask [`Self::cluster`]
    /// afterwards.
    pub async fn create_cluster(
        &self,
        record: &ClusterRecord,
        incarnation: Incarnation,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO cluster (one, incarnation, settings_json, ca_cert_pem, ca_key_pem, created_at, json_version) \
             VALUES (1, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(incarnation.to_string())
        .bind(to_json(&record.settings)?)
        .bind(&record.ca_cert_pem)
        .bind(&record.ca_key_pem)
        .bind(to_i64("a time", now.0)?)
        .bind(JSON_VERSION)
        .execute(&self.writer)
        .await
        .map_err(StoreError::query("write the cluster's settings"))?;
        Ok(())
    }

    /// Begins a transaction that writes.
    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        self.writer
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(StoreError::query("begin a transaction"))
    }
}

pub(crate) async fn commit(
    transaction: Transaction<'static, Sqlite>,
    operation: &'static str,
) -> Result<(), StoreError> {
    transaction
        .commit()
        .await
        .map_err(error::StoreError::query(operation))
}

fn migrator() -> Migrator {
    Migrator::with_migrations(
        MIGRATIONS
            .iter()
            .map(|(version, name, sql)| {
                Migration::new(
                    *version,
                    (*name).into(),
                    MigrationType::Simple,
                    sqlx::SqlSafeStr::into_sql_str(*sql),
                    false,
                )
            })
            .collect(),
    )
}
