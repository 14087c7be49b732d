//! The database file: its path, its lock, connections to it and copies of it.

use std::fs::{File, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blocking_work::blocking;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection as _, Row as _};

use crate::StoreError;
use crate::database::is_postgres;

/// How long a statement waits for another process that holds the database (a backup).
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The lock of a store that is not opened.
#[derive(Debug)]
pub struct StoreLock {
    path: PathBuf,
    _lock: File,
}

impl StoreLock {
    pub(crate) fn new(path: PathBuf, lock: File) -> Self {
        Self { path, _lock: lock }
    }

    /// The database file, which need not be there.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The path of `sqlite:PATH`.
pub(crate) fn sqlite_path(url: &str) -> Result<PathBuf, StoreError> {
    if is_postgres(url) {
        return Err(StoreError::NotAFile);
    }
    url.strip_prefix("sqlite:")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .ok_or_else(|| StoreError::UnknownStore(url.to_owned()))
}

/// Locks a store, for as long as the file is open. The lock is a file beside the database: SQLite has locks of its own on that.
/// Blocks.
pub(crate) fn lock(path: &Path) -> Result<File, StoreError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let opened = |source| StoreError::Open {
        store: path.display().to_string(),
        source: sqlx::Error::Io(source),
    };
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(beside)
        .map_err(opened)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse {
            store: path.display().to_string(),
        }),
        Err(TryLockError::Error(source)) => Err(opened(source)),
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
            store: path.display().to_string(),
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
    tokio::fs::OpenOptions::new()
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
        let to = to.to_owned();
        Ok(blocking(move || sync(&to)).await?)
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

/// Makes a file and its name durable. Blocks.
///
/// # Errors
/// The file system refused.
pub(crate) fn sync(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
