//! Opening the store, and creating the cluster in it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blocking_work::blocking;
use model::{Incarnation, Timestamp};
use scheduler::cluster_state::ClusterSettings;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{Connection as _, Row as _, Sqlite, Transaction};

use crate::file::{BUSY_TIMEOUT, StoreLock, lock, sqlite_path};
use crate::record::{JSON_VERSION, from_json, to_json};
use crate::rows::to_i64;
use crate::{StoreError, error, file};

/// Connections that only read.
pub const READERS: u32 = 4;
/// How long a caller waits for a connection while others have them all.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);

/// Number, name and SQL of each file in `migrations/`, in their order; listed by `build.rs`.
const MIGRATIONS: &[(i64, &str, &str)] = include!(concat!(env!("OUT_DIR"), "/migrations.rs"));

/// The control plane's state. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) writer: SqlitePool,
    pub(crate) reader: SqlitePool,
    /// A store has one server: its lock, until it is closed or the last clone is gone.
    lock: Arc<File>,
}

/// What is made once, when the cluster is created.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterRecord {
    /// Its settings.
    pub settings: ClusterSettings,
    /// The CA's certificate, PEM.
    pub ca_cert_pem: String,
    /// Its keys.
    pub keys: StoredKeys,
}

/// The keys of the cluster, as the store has them.
#[derive(Clone, PartialEq, Eq)]
pub enum StoredKeys {
    /// Wrapped by the key-encryption key, which is not in the store.
    Wrapped {
        /// The CA's key.
        ca_key: Vec<u8>,
        /// The key that seals secrets.
        seal_key: Vec<u8>,
    },
    /// As servers of before wrote them: the CA's key, PEM. The key that seals secrets is in a file beside the store.
    Clear {
        /// The CA's key, PEM. Secret.
        ca_key_pem: String,
    },
}

impl std::fmt::Debug for StoredKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Wrapped { .. } => "Wrapped",
            Self::Clear { .. } => "Clear",
        })
    }
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
    /// schema; what is to be changed is tried on a copy first. A file with a newer schema is refused, and one that another
    /// server has.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let path = sqlite_path(url)?;
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
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options.clone())
            .await
            .map_err(opened)?;
        migrator()
            .run(&writer)
            .await
            .map_err(|source| not_migrated(&path, source))?;
        let reader = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.read_only(true).create_if_missing(false))
            .await
            .map_err(opened)?;
        Ok(Self {
            writer,
            reader,
            lock: Arc::new(lock),
        })
    }

    /// Keeps every server from a store without opening it.
    ///
    /// # Errors
    /// Another server has it.
    pub async fn lock(url: &str) -> Result<StoreLock, StoreError> {
        let path = sqlite_path(url)?;
        let lock = blocking({
            let path = path.clone();
            move || lock(&path)
        })
        .await?;
        Ok(StoreLock::new(path, lock))
    }

    /// Closes every connection; what was acknowledged is in the database already.
    pub async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
        // Whoever opens it next finds it closed; where this fails, the file's end unlocks it.
        let _ = self.lock.unlock();
    }

    /// What was made when the cluster was created, if it was.
    pub async fn cluster(&self) -> Result<Option<ClusterRecord>, StoreError> {
        let row = sqlx::query(
            "SELECT settings_json, ca_cert_pem, ca_key_pem, json_version, ca_key_wrapped, seal_key_wrapped FROM cluster",
        )
        .fetch_optional(&self.reader)
        .await
        .map_err(StoreError::query("read the cluster's settings"))?;
        let Some(row) = row else { return Ok(None) };
        let wrapped: (Option<Vec<u8>>, Option<Vec<u8>>) = (row.get(4), row.get(5));
        let keys = match wrapped {
            (Some(ca_key), Some(seal_key)) => StoredKeys::Wrapped { ca_key, seal_key },
            _ => StoredKeys::Clear {
                ca_key_pem: row.get(2),
            },
        };
        Ok(Some(ClusterRecord {
            settings: from_json(row.get(3), row.get(0))
                .map_err(|cause| StoreError::Unreadable { cause })?,
            ca_cert_pem: row.get(1),
            keys,
        }))
    }

    /// Replaces the keys of the cluster, and leaves nothing of those before in the file.
    pub async fn wrap_keys(&self, keys: &StoredKeys) -> Result<(), StoreError> {
        let failed = StoreError::query("write the cluster's keys");
        let [ca_key_pem, ca_key, seal_key] = columns(keys);
        let mut db = self.writer.acquire().await.map_err(failed)?;
        // What is overwritten is zeroed; then the log, which has it too, is emptied.
        let statements = [
            "PRAGMA secure_delete = ON",
            "UPDATE cluster SET ca_key_pem = ?1, ca_key_wrapped = ?2, seal_key_wrapped = ?3",
            "VACUUM",
            "PRAGMA wal_checkpoint(TRUNCATE)",
        ];
        for statement in statements {
            let query = sqlx::query(statement);
            let query = if statement.starts_with("UPDATE") {
                let text = ca_key_pem.map(String::from_utf8_lossy).unwrap_or_default();
                query.bind(text.into_owned()).bind(ca_key).bind(seal_key)
            } else {
                query
            };
            query.execute(&mut *db).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Creates the cluster, in its first incarnation. Does nothing when there is one already; ask [`Self::cluster`]
    /// afterwards.
    pub async fn create_cluster(
        &self,
        record: &ClusterRecord,
        incarnation: Incarnation,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let [ca_key_pem, ca_key, seal_key] = columns(&record.keys);
        sqlx::query(
            "INSERT INTO cluster (one, incarnation, settings_json, ca_cert_pem, ca_key_pem, ca_key_wrapped, \
             seal_key_wrapped, created_at, json_version) VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(incarnation.to_string())
        .bind(to_json(&record.settings)?)
        .bind(&record.ca_cert_pem)
        .bind(ca_key_pem.map(String::from_utf8_lossy).unwrap_or_default())
        .bind(ca_key)
        .bind(seal_key)
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

/// The columns of the keys: the CA's in clear, the CA's, the one that seals.
fn columns(keys: &StoredKeys) -> [Option<&[u8]>; 3] {
    match keys {
        StoredKeys::Wrapped { ca_key, seal_key } => [None, Some(ca_key), Some(seal_key)],
        StoredKeys::Clear { ca_key_pem } => [Some(ca_key_pem.as_bytes()), None, None],
    }
}

fn not_migrated(path: &Path, source: MigrateError) -> StoreError {
    match source {
        MigrateError::VersionMissing(found) => StoreError::NewerSchema {
            path: path.to_owned(),
            found,
            known: MIGRATIONS.last().map_or(0, |(number, ..)| *number),
        },
        source => StoreError::Migrate {
            path: path.to_owned(),
            source,
        },
    }
}

/// Where the store has an older schema: brings a copy of it to this one first, so that a migration that fails has changed
/// nothing.
async fn try_migrations(path: &Path) -> Result<(), StoreError> {
    let newest = MIGRATIONS.last().map_or(0, |(number, ..)| *number);
    let mut db = file::connect(path).await?;
    // A database without the table is new.
    let schema = sqlx::query_scalar::<_, Option<i64>>("SELECT MAX(version) FROM _sqlx_migrations")
        .fetch_one(&mut db)
        .await;
    let tried = match schema {
        Ok(Some(schema)) if schema < newest => {
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
                    to = newest,
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
    let migrated = migrator().run_direct(None, &mut tried, false).await;
    let _ = tried.close().await;
    migrated.map_err(|source| not_migrated(path, source))
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
