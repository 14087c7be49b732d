//! Opening the store, and creating the cluster in it.

use std::sync::Arc;

use blocking_work::blocking;
use model::{Incarnation, Term, Timestamp};
use scheduler::cluster_state::ClusterSettings;

use crate::StoreError;
use crate::database::{
    Columns, Database, Row, Transaction, Value, check_term, insert_once, is_postgres,
};
use crate::file::{StoreLock, lock, sqlite_path};
use crate::postgres::PostgresDatabase;
use crate::record::{JSON_VERSION, from_json, to_json};
use crate::rows::to_i64;
use crate::sqlite::SqliteDatabase;

/// The control plane's state. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) database: Arc<dyn Database>,
}

/// What is made once, when the cluster is created.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterRecord {
    /// Its settings.
    pub settings: ClusterSettings,
    /// The CA's certificate, PEM.
    pub ca_cert_pem: String,
    /// The CAs before it that are trusted still, PEM.
    pub ca_before_pem: String,
    /// The certificates of CAs by those before them, PEM.
    pub ca_cross_pem: String,
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
    /// Opens `sqlite:PATH` or `postgres://USER@HOST/DATABASE`, and brings it to this version's schema.
    ///
    /// SQLite's file is made where there is none; what is to be changed of its schema is tried on a copy first; one that another
    /// server has is refused. A database of PostgreSQL has to be there, and several servers may open it
    /// ([`Self::is_shared`]). A newer schema is refused.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let database: Arc<dyn Database> = if is_postgres(url) {
            Arc::new(Box::pin(PostgresDatabase::open(url)).await?)
        } else {
            Arc::new(Box::pin(SqliteDatabase::open(url)).await?)
        };
        Ok(Self { database })
    }

    /// Keeps every server from a store in a file, without opening it.
    ///
    /// # Errors
    /// Another server has it, or it is no store in a file.
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
        self.database.close().await;
    }

    /// What was made when the cluster was created, if it was.
    pub async fn cluster(&self) -> Result<Option<ClusterRecord>, StoreError> {
        let failed = StoreError::query("read the cluster's settings");
        let mut db = self.database.read().await.map_err(failed)?;
        let rows = db
            .fetch(
                "SELECT settings_json, ca_cert_pem, ca_key_pem, json_version, ca_key_wrapped, seal_key_wrapped, ca_before_pem, ca_cross_pem FROM cluster",
                Vec::new(),
            )
            .await
            .map_err(failed)?;
        db.roll_back().await.map_err(failed)?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
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
            ca_before_pem: row.get(6),
            ca_cross_pem: row.get(7),
            keys,
        }))
    }

    /// Replaces the keys of the cluster, and leaves nothing of those before in the file.
    pub async fn wrap_keys(&self, keys: &StoredKeys) -> Result<(), StoreError> {
        let failed = StoreError::query("write the cluster's keys");
        let [(_, in_clear), (_, ca_key), (_, seal_key)] = columns(keys);
        let mut db = self.database.begin().await.map_err(failed)?;
        db.execute(
            "UPDATE cluster SET ca_key_pem = $1, ca_key_wrapped = $2, seal_key_wrapped = $3",
            vec![in_clear, ca_key, seal_key],
        )
        .await
        .map_err(failed)?;
        db.commit().await.map_err(failed)?;
        self.database.erase().await.map_err(failed)
    }

    /// Another CA signs from now on, in this term; or other ones are trusted beside it.
    pub async fn set_ca(&self, term: Term, record: &ClusterRecord) -> Result<(), StoreError> {
        let failed = StoreError::query("write the cluster's CA");
        let [_, (_, ca_key), _] = columns(&record.keys);
        let mut db = self.begin(term).await?;
        db.execute(
            "UPDATE cluster SET ca_cert_pem = $1, ca_key_wrapped = $2, ca_before_pem = $3, ca_cross_pem = $4",
            vec![
                (&record.ca_cert_pem).into(),
                ca_key,
                (&record.ca_before_pem).into(),
                (&record.ca_cross_pem).into(),
            ],
        )
        .await
        .map_err(failed)?;
        db.commit().await.map_err(failed)
    }

    /// Creates the cluster, in its first incarnation. Does nothing when there is one already; ask [`Self::cluster`]
    /// afterwards.
    pub async fn create_cluster(
        &self,
        record: &ClusterRecord,
        incarnation: Incarnation,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut columns: Columns<'_> = vec![
            ("one", 1_i64.into()),
            ("incarnation", incarnation.to_string().into()),
            ("settings_json", to_json(&record.settings)?.into()),
            ("ca_cert_pem", (&record.ca_cert_pem).into()),
            ("created_at", to_i64("a time", now.0)?.into()),
            ("json_version", JSON_VERSION.into()),
        ];
        columns.extend(self::columns(&record.keys));
        let operation = "write the cluster's settings";
        let failed = StoreError::query(operation);
        let mut db = self.database.begin().await.map_err(failed)?;
        insert_once(&mut *db, operation, "cluster", columns).await?;
        db.commit().await.map_err(failed)
    }

    /// The rows of one query.
    pub(crate) async fn rows(
        &self,
        operation: &'static str,
        sql: &str,
        values: Vec<Value>,
    ) -> Result<Vec<Row>, StoreError> {
        let failed = StoreError::query(operation);
        let mut db = self.database.read().await.map_err(failed)?;
        let rows = db.fetch(sql, values).await.map_err(failed)?;
        db.roll_back().await.map_err(failed)?;
        Ok(rows)
    }

    /// Begins a transaction that writes in this term.
    ///
    /// # Errors
    /// The term is over ([`StoreError::LeaseLost`]), or the database takes nothing.
    pub(crate) async fn begin(&self, term: Term) -> Result<Box<dyn Transaction>, StoreError> {
        let begun = self.database.begin().await;
        let mut db = begun.map_err(StoreError::query("begin a transaction"))?;
        if self.is_shared() {
            check_term(&mut *db, term).await?;
        }
        Ok(db)
    }
}

/// The columns of the keys: the CA's in clear, the CA's, the one that seals.
fn columns(keys: &StoredKeys) -> [(&'static str, Value); 3] {
    let (in_clear, ca_key, seal_key) = match keys {
        StoredKeys::Wrapped { ca_key, seal_key } => {
            ("", Some(ca_key.as_slice()), Some(seal_key.as_slice()))
        }
        StoredKeys::Clear { ca_key_pem } => (ca_key_pem.as_str(), None, None),
    };
    [
        ("ca_key_pem", in_clear.into()),
        ("ca_key_wrapped", ca_key.into()),
        ("seal_key_wrapped", seal_key.into()),
    ]
}
