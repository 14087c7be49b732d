//! A store from one database to another: the backup of a store in PostgreSQL is a database file like that of SQLite, and each of the two
//! takes it back.
//!
//! Both have the same tables with the same columns, which their migrations see to and a test holds. What is read is of one moment, and what
//! is written is one transaction. Not copied: which migrations were run, and PostgreSQL's lease, whose terms only grow.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::database::{Database as _, Transaction, Value, is_postgres};
use crate::lease::Holder;
use crate::migrations::newest;
use crate::postgres::PostgresDatabase;
use crate::{Store, StoreError};

/// Rows that are in memory at a time.
const PAGE: i64 = 2_000;
/// How long a restore keeps servers from leading. It ends sooner, or is given up.
const RESTORE_TTL: Duration = Duration::from_secs(600);
/// Names at which a store of before a restore may be kept.
const MAX_REPLACED: u32 = 1_000;

/// A table, as SQLite describes it.
#[derive(Debug)]
struct Table {
    name: String,
    columns: Vec<Column>,
    /// Numbers of the columns of the key.
    key: Vec<usize>,
    refers_to: BTreeSet<String>,
}

#[derive(Debug)]
struct Column {
    name: String,
    kind: String,
}

/// Copies a store in PostgreSQL, as it is at one moment, to a file that is not there yet. Servers may use it meanwhile.
pub(crate) async fn backup(url: &str, to: &Path) -> Result<(), StoreError> {
    let from = PostgresDatabase::open_reader(url).await?;
    let copied = backup_of(&from, to).await;
    from.close().await;
    copied
}

async fn backup_of(from: &PostgresDatabase, to: &Path) -> Result<(), StoreError> {
    if tokio::fs::try_exists(to).await.unwrap_or(true) {
        return Err(StoreError::Copy {
            path: to.to_owned(),
            source: sqlx::Error::Io(std::io::ErrorKind::AlreadyExists.into()),
        });
    }
    let part = beside(to, ".part");
    remove(&part).await;
    let copied = async {
        let url = format!("sqlite:{}", part.display());
        let store = Box::pin(Store::open(&url)).await?;
        let filled = fill(from, &store).await;
        store.close().await;
        filled?;
        // Checked, durable, and without what SQLite keeps beside a database.
        Store::backup_file(&url, to).await
    };
    let copied = copied.await;
    remove(&part).await;
    copied
}

async fn fill(from: &PostgresDatabase, store: &Store) -> Result<(), StoreError> {
    let reading = StoreError::query("read the store");
    let mut source = from.read().await.map_err(reading)?;
    let sql = "SELECT MAX(version) FROM _sqlx_migrations";
    let rows = source.fetch(sql, Vec::new()).await.map_err(reading)?;
    let found = rows.first().map_or(0, |row| row.get::<i64>(0));
    if found != newest() {
        return Err(StoreError::OtherSchema {
            found,
            known: newest(),
        });
    }
    let mut target = begin(store).await?;
    let tables = tables(&mut *target).await?;
    // What migrations wrote into a new store is in the source too.
    empty(&tables, &mut *target).await?;
    copy(&tables, &mut *source, &mut *target).await?;
    commit(target).await?;
    source.roll_back().await.map_err(reading)
}

/// Makes a store in PostgreSQL what is in a backup. What was there is kept in a file in `keep_in`, whose path is given where there was anything.
///
/// # Errors
/// A server leads, or the database refuses. It is as it was then.
pub(crate) async fn restore(
    url: &str,
    backup: &Store,
    keep_in: &Path,
) -> Result<Option<PathBuf>, StoreError> {
    let store = Box::pin(Store::open(url)).await?;
    let restored = restore_into(url, &store, backup, keep_in).await;
    store.close().await;
    restored
}

async fn restore_into(
    url: &str,
    store: &Store,
    backup: &Store,
    keep_in: &Path,
) -> Result<Option<PathBuf>, StoreError> {
    let (seen, holder) = store.lease().await?;
    let in_use = || StoreError::InUse {
        store: format!("in PostgreSQL (its leader is at {})", holder.address),
    };
    if seen.expires_in_ms > 0 {
        return Err(in_use());
    }
    let me = Holder {
        id: "restore".to_owned(),
        address: holder.address.clone(),
    };
    let term = store.acquire_lease(seen, &me, RESTORE_TTL).await?;
    let term = term.ok_or_else(in_use)?;
    let replaced = async {
        let kept = match store.cluster().await? {
            Some(_) => {
                let to = free_name(keep_in).await?;
                self::backup(url, &to).await?;
                Some(to)
            }
            None => None,
        };
        let mut source =
            (backup.database.read().await).map_err(StoreError::query("read the backup"))?;
        let mut target = store.begin(term).await?;
        let tables = tables(&mut *source).await?;
        empty(&tables, &mut *target).await?;
        copy(&tables, &mut *source, &mut *target).await?;
        commit(target).await?;
        Ok(kept)
    };
    let replaced = replaced.await;
    // Where this fails, the lease ends by itself.
    let _ = store.release_lease(term).await;
    replaced
}

/// Deletes every row of these tables.
async fn empty(tables: &[Table], target: &mut dyn Transaction) -> Result<(), StoreError> {
    for table in tables.iter().rev() {
        let sql = format!("DELETE FROM {}", quoted(&table.name));
        let deleted = target.execute(&sql, Vec::new()).await;
        deleted.map_err(StoreError::query("empty the store"))?;
    }
    Ok(())
}

/// Copies every row of these tables.
async fn copy(
    tables: &[Table],
    source: &mut dyn Transaction,
    target: &mut dyn Transaction,
) -> Result<(), StoreError> {
    for table in tables {
        copy_table(table, source, target).await?;
    }
    Ok(())
}

async fn copy_table(
    table: &Table,
    source: &mut dyn Transaction,
    target: &mut dyn Transaction,
) -> Result<(), StoreError> {
    let columns: Vec<_> = table
        .columns
        .iter()
        .map(|column| quoted(&column.name))
        .collect();
    let key: Vec<_> = table
        .key
        .iter()
        .filter_map(|n| columns.get(*n))
        .cloned()
        .collect();
    let places: Vec<_> = (1..=columns.len()).map(|n| format!("${n}")).collect();
    let (name, columns) = (quoted(&table.name), columns.join(", "));
    let insert = format!(
        "INSERT INTO {name} ({columns}) VALUES ({})",
        places.join(", ")
    );
    let select = format!(
        "SELECT {columns} FROM {name} ORDER BY {} LIMIT {PAGE} OFFSET $1",
        key.join(", ")
    );
    let mut done = 0;
    loop {
        let rows = source
            .fetch(&select, vec![Value::Integer(Some(done))])
            .await;
        let rows = rows.map_err(StoreError::query("read a table of the store"))?;
        let count = i64::try_from(rows.len()).unwrap_or(PAGE);
        for row in rows {
            let values = row.0.into_iter().zip(&table.columns);
            let values = values.map(|(value, column)| typed(value, &column.kind));
            let written = target.execute(&insert, values.collect()).await;
            written.map_err(StoreError::query("write a table of the store"))?;
        }
        if count < PAGE {
            return Ok(());
        }
        done += count;
    }
}

/// A value, which is NULL of the column's type where it is NULL: PostgreSQL asks so.
fn typed(value: Value, kind: &str) -> Value {
    match (value, kind) {
        (Value::Integer(None) | Value::Text(None) | Value::Blob(None), "TEXT") => Value::Text(None),
        (Value::Integer(None) | Value::Text(None) | Value::Blob(None), "BLOB") => Value::Blob(None),
        (value, _) => value,
    }
}

/// The tables of a database of SQLite; those that others refer to before those others.
async fn tables(db: &mut dyn Transaction) -> Result<Vec<Table>, StoreError> {
    let failed = StoreError::query("read the schema of the store");
    let sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' \
               AND name NOT LIKE '\\_sqlx%' ESCAPE '\\' ORDER BY name";
    let names = db.fetch(sql, Vec::new()).await.map_err(failed)?;
    let mut waiting = Vec::new();
    for name in &names {
        let name: String = name.get(0);
        let sql = format!("SELECT name, type, pk FROM pragma_table_info('{name}') ORDER BY cid");
        let rows = db.fetch(&sql, Vec::new()).await.map_err(failed)?;
        let columns = rows.iter().map(|row| Column {
            name: row.get(0),
            kind: row.get(1),
        });
        let keyed = rows.iter().enumerate();
        let mut key: Vec<(i64, usize)> = keyed
            .map(|(number, row)| (row.get(2), number))
            .filter(|(place, _)| *place > 0)
            .collect();
        key.sort_unstable();
        let sql = format!("SELECT DISTINCT \"table\" FROM pragma_foreign_key_list('{name}')");
        let referred = db.fetch(&sql, Vec::new()).await.map_err(failed)?;
        waiting.push(Table {
            columns: columns.collect(),
            key: key.into_iter().map(|(_, number)| number).collect(),
            refers_to: referred.iter().map(|row| row.get(0)).collect(),
            name,
        });
    }
    let mut ordered: Vec<Table> = Vec::new();
    while !waiting.is_empty() {
        let is_there = |name: &String| ordered.iter().any(|table| table.name == *name);
        let next = (waiting.iter()).position(|table| {
            table
                .refers_to
                .iter()
                .all(|to| *to == table.name || is_there(to))
        });
        // Tables that refer to each other in a ring are in any order.
        ordered.push(waiting.remove(next.unwrap_or(0)));
    }
    Ok(ordered)
}

async fn begin(store: &Store) -> Result<Box<dyn Transaction>, StoreError> {
    let begun = store.database.begin().await;
    begun.map_err(StoreError::query("begin a transaction"))
}

async fn commit(db: Box<dyn Transaction>) -> Result<(), StoreError> {
    db.commit()
        .await
        .map_err(StoreError::query("commit the copy of the store"))
}

fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Removes a database and what is beside it, where it is there.
async fn remove(path: &Path) {
    for suffix in ["", "-wal", "-shm", ".lock", ".migrating"] {
        let _ = tokio::fs::remove_file(beside(path, suffix)).await;
    }
}

/// A name that is free for what was in a store before a restore.
async fn free_name(folder: &Path) -> Result<PathBuf, StoreError> {
    for number in 1..=MAX_REPLACED {
        let path = folder.join(format!("postgres.before-restore-{number}.db"));
        if let Ok(false) = tokio::fs::try_exists(&path).await {
            return Ok(path);
        }
    }
    Err(StoreError::Copy {
        path: folder.to_owned(),
        source: sqlx::Error::Io(std::io::ErrorKind::AlreadyExists.into()),
    })
}

impl Store {
    /// Whether a store's URL is of PostgreSQL, so that servers share it.
    pub fn is_postgres(url: &str) -> bool {
        is_postgres(url)
    }

    /// Makes a store in PostgreSQL what is in this one, a backup that is open. What was there is kept in a file in `keep_in`, whose path is
    /// given where there was anything.
    ///
    /// # Errors
    /// A server leads, or the database refuses. It is as it was then.
    pub async fn restore_into_postgres(
        &self,
        url: &str,
        keep_in: &Path,
    ) -> Result<Option<PathBuf>, StoreError> {
        Box::pin(restore(url, self, keep_in)).await
    }
}
