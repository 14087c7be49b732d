//! PostgreSQL: one database that several servers share, of which one leads (ADR 0001).
//!
//! - Writes have one connection, with `synchronous_commit = on`. A server that is stopped in the middle of a transaction holds the
//!   lock on the lease's row: the database ends such a session after [`IDLE_IN_TRANSACTION`], before the lease expires.
//! - A transaction that reads is of one moment (`REPEATABLE READ`).
//! - Migrations run in transactions, one server at a time.

use std::pin::Pin;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::{Postgres, Row as _, TypeInfo as _, ValueRef as _};

use crate::StoreError;
use crate::database::{
    ACQUIRE_TIMEOUT, Answer, Database, READERS, Transaction, Value, transaction,
};
use crate::migrations::{self, migrator, newest, not_migrated};

/// How long the database waits for the next statement of a transaction that writes.
pub const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(4);
/// How long a statement about the lease may take, locks included.
pub const LEASE_STATEMENT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a write waits for a lock that another session of the database has. The lease's row is locked for less.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take to be made at the start.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

transaction!(
    PostgresTransaction,
    Postgres,
    PgRow,
    |number| format!("${number}"),
    value,
    storable
);

/// A database that is open.
#[derive(Debug)]
pub(crate) struct PostgresDatabase {
    writer: PgPool,
    reader: PgPool,
    lease: PgPool,
}

impl PostgresDatabase {
    /// Opens `postgres://USER@HOST/DATABASE`, and brings the database to this version's schema; the term of a server that leads with
    /// an older one ends then. One with a newer schema is refused.
    pub(crate) async fn open(url: &str) -> Result<Self, StoreError> {
        // What the URL says wrong may be its password: it is not shown.
        let options: PgConnectOptions = url.parse().map_err(|source| StoreError::PostgresUrl {
            url: without_password(url),
            source,
        })?;
        let store = place(&options);
        let options = options
            .application_name("platform server")
            .options([("synchronous_commit", "on")]);
        let failed = |source| StoreError::Open {
            store: store.clone(),
            source,
        };
        let pool = |connections, wait| {
            PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(wait)
                .max_lifetime(None)
        };
        let idle = IDLE_IN_TRANSACTION.as_millis().to_string();
        let lock = LOCK_TIMEOUT.as_millis().to_string();
        let writing = options.clone().options([
            ("idle_in_transaction_session_timeout", idle),
            ("lock_timeout", lock),
        ]);
        // The first error of the database, and not that time was over.
        let connecting = sqlx::ConnectOptions::connect(&writing);
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => {
                // It was there.
                let _ = sqlx::Connection::close(connection).await;
            }
            Ok(Err(source)) => return Err(failed(source)),
            Err(_) => return Err(failed(sqlx::Error::PoolTimedOut)),
        }
        let writer = pool(1, ACQUIRE_TIMEOUT)
            .connect_with(writing)
            .await
            .map_err(failed)?;
        let before = schema(&writer).await;
        migrator(migrations::POSTGRES)
            .run(&writer)
            .await
            .map_err(|source| not_migrated(&store, source))?;
        if before.is_some_and(|before| before < newest()) {
            // A leader of an older version does not know what was added, and takes it for gone: its term ends here.
            let ended = sqlx::query("UPDATE lease SET expires_at = 0");
            ended.execute(&writer).await.map_err(failed)?;
        }
        let timeout = LEASE_STATEMENT_TIMEOUT.as_millis().to_string();
        let leasing = options.clone().options([
            ("statement_timeout", timeout.clone()),
            ("idle_in_transaction_session_timeout", timeout),
        ]);
        Ok(Self {
            writer,
            reader: pool(READERS, ACQUIRE_TIMEOUT).connect_lazy_with(options),
            lease: pool(1, LEASE_STATEMENT_TIMEOUT).connect_lazy_with(leasing),
        })
    }
}

/// The newest migration of the database; none in an empty one.
async fn schema(writer: &PgPool) -> Option<i64> {
    let newest = sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations");
    newest.fetch_one(writer).await.ok().flatten()
}

impl PostgresDatabase {
    /// Opens a database that is there, to read it only: its schema stays as it is.
    pub(crate) async fn open_reader(url: &str) -> Result<Self, StoreError> {
        let options: PgConnectOptions = url.parse().map_err(|source| StoreError::PostgresUrl {
            url: without_password(url),
            source,
        })?;
        let options = options
            .application_name("platform server backup")
            .options([("default_transaction_read_only", "on")]);
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(CONNECT_TIMEOUT)
            .connect_with(options.clone())
            .await
            .map_err(|source| StoreError::Open {
                store: place(&options),
                source,
            })?;
        Ok(Self {
            writer: pool.clone(),
            lease: pool.clone(),
            reader: pool,
        })
    }
}

/// PostgreSQL has no texts with a NUL character; others' texts, such as why an instance failed, may have one.
fn storable(text: String) -> String {
    if text.contains('\0') {
        return text.replace('\0', "\u{fffd}");
    }
    text
}

/// A URL without what may be a password.
fn without_password(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://..@{rest}"),
        _ => url.to_owned(),
    }
}

/// For people: which database it is.
fn place(options: &PgConnectOptions) -> String {
    let user = options.get_username();
    let database = options.get_database().unwrap_or(user);
    match options.get_socket() {
        Some(socket) => format!(
            "postgres database {database} of user {user} at {}",
            socket.display()
        ),
        None => format!(
            "postgres database {database} of user {user} at {}:{}",
            options.get_host(),
            options.get_port()
        ),
    }
}

async fn begun(
    pool: &PgPool,
    statement: &'static str,
) -> Result<Box<dyn Transaction>, sqlx::Error> {
    let begun = pool.begin_with(statement).await?;
    Ok(Box::new(PostgresTransaction(begun)))
}

impl Database for PostgresDatabase {
    fn begin(&self) -> Answer<'_, Box<dyn Transaction>> {
        Box::pin(begun(&self.writer, "BEGIN ISOLATION LEVEL READ COMMITTED"))
    }

    fn read(&self) -> Answer<'_, Box<dyn Transaction>> {
        let statement = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        Box::pin(begun(&self.reader, statement))
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            self.reader.close().await;
            self.lease.close().await;
            self.writer.close().await;
        })
    }

    fn erase(&self) -> Answer<'_, ()> {
        // No server wrote keys in clear to PostgreSQL.
        Box::pin(async { Ok(()) })
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn lease(&self) -> Answer<'_, Box<dyn Transaction>> {
        Box::pin(begun(&self.lease, "BEGIN ISOLATION LEVEL READ COMMITTED"))
    }
}

/// A value of any type that the schema has.
fn value(row: &PgRow, index: usize) -> Result<Value, sqlx::Error> {
    let raw = row.try_get_raw(index)?;
    if raw.is_null() {
        return Ok(Value::Integer(None));
    }
    let kind = raw.type_info().name().to_owned();
    Ok(match kind.as_str() {
        "TEXT" => Value::Text(Some(row.try_get(index)?)),
        "BYTEA" => Value::Blob(Some(row.try_get(index)?)),
        _ => Value::Integer(Some(row.try_get(index)?)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_has_the_password() {
        let url = "postgres://platform:hunter2@db.example.com:x/platform";
        let shown = without_password(url);
        assert_eq!(shown, "postgres://..@db.example.com:x/platform");
        let options: Result<PgConnectOptions, _> =
            "postgres://platform:hunter2@db.example.com/cluster".parse();
        let place = options.map(|options| place(&options)).unwrap_or_default();
        assert_eq!(
            place,
            "postgres database cluster of user platform at db.example.com:5432"
        );
    }
}
