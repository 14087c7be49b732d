//! What a database is to the store: transactions that write, transactions that read, statements with values.
//!
//! Two databases implement [`Database`]: [`crate::sqlite`] and [`crate::postgres`]. Everything else of this crate is written once, on
//! [`Transaction`], in the SQL that both read: parameters are `$1`, truth values are integers, and rows are put by
//! [`put`] and [`insert`].

use std::fmt::Debug;
use std::pin::Pin;
use std::time::Duration;

use model::{EnvKey, Term};
use scheduler::lease::SeenLease;

use crate::StoreError;
use crate::rows::number;

/// Connections that only read.
pub const READERS: u32 = 4;
/// How long a caller waits for a connection while others have them all.
pub(crate) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);

/// The time by the clock of PostgreSQL, in milliseconds since 1970: now, not at the transaction's begin.
pub(crate) const CLOCK: &str = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";

/// Whether a URL is one of PostgreSQL.
pub(crate) fn is_postgres(url: &str) -> bool {
    ["postgres:", "postgresql:"]
        .iter()
        .any(|scheme| url.starts_with(scheme))
}

/// A future of a database.
pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, sqlx::Error>> + Send + 'a>>;

/// A database that holds a store.
pub(crate) trait Database: Debug + Send + Sync {
    /// Begins a transaction that writes, once nobody else of this server writes.
    fn begin(&self) -> Answer<'_, Box<dyn Transaction>>;

    /// Begins a transaction that reads: all that it reads is of one moment.
    fn read(&self) -> Answer<'_, Box<dyn Transaction>>;

    /// Closes every connection, and lets another server open the store.
    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// Leaves nothing of what was overwritten in the files of the database, where that is possible.
    fn erase(&self) -> Answer<'_, ()>;

    /// Whether several servers may use it, of which one leads by a lease ([`crate::lease`]). Else a lock keeps others away.
    fn is_shared(&self) -> bool;

    /// The connection of the lease, apart from those of writes, which may take longer than a lease lives.
    fn lease(&self) -> Answer<'_, Box<dyn Transaction>>;
}

/// A transaction. Dropped, it never was.
pub(crate) trait Transaction: Debug + Send {
    /// The place of the next value in a statement of many, which has this number, from 1. To SQLite `$1` is a name, and it looks each
    /// of them up among all.
    fn place(&self, number: usize) -> String;

    /// Runs a statement. Gives the number of rows that it wrote.
    fn execute<'t>(&'t mut self, sql: &str, values: Vec<Value>) -> Answer<'t, u64>;

    /// The rows of a query.
    fn fetch<'t>(&'t mut self, sql: &str, values: Vec<Value>) -> Answer<'t, Vec<Row>>;

    /// Makes it durable.
    fn commit(self: Box<Self>) -> Answer<'static, ()>;

    /// Ends it as if it never was.
    fn roll_back(self: Box<Self>) -> Answer<'static, ()>;
}

/// A value of a column. `None`: SQL's NULL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Integer(Option<i64>),
    Text(Option<String>),
    Blob(Option<Vec<u8>>),
}

/// A row of an answer.
#[derive(Debug)]
pub(crate) struct Row(pub(crate) Vec<Value>);

impl Row {
    /// The value of a column, counted from 0.
    ///
    /// # Panics
    /// The query and the schema do not fit: there is no such column, or it is of another type.
    pub(crate) fn get<'r, T: Column<'r>>(&'r self, index: usize) -> T {
        let value = self.0.get(index);
        value
            .and_then(T::read)
            .unwrap_or_else(|| panic!("column {index} of a row has another type: {value:?}"))
    }
}

/// A type that columns are read as.
pub(crate) trait Column<'r>: Sized {
    /// The value, where it has this type.
    fn read(value: &'r Value) -> Option<Self>;
}

impl Column<'_> for i64 {
    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Integer(number) => *number,
            _ => None,
        }
    }
}

impl Column<'_> for bool {
    fn read(value: &Value) -> Option<Self> {
        i64::read(value).map(|number| number != 0)
    }
}

impl<'r> Column<'r> for &'r str {
    fn read(value: &'r Value) -> Option<Self> {
        match value {
            Value::Text(text) => text.as_deref(),
            _ => None,
        }
    }
}

impl Column<'_> for String {
    fn read(value: &Value) -> Option<Self> {
        <&str>::read(value).map(str::to_owned)
    }
}

impl<'r> Column<'r> for &'r [u8] {
    fn read(value: &'r Value) -> Option<Self> {
        match value {
            Value::Blob(bytes) => bytes.as_deref(),
            _ => None,
        }
    }
}

impl Column<'_> for Vec<u8> {
    fn read(value: &Value) -> Option<Self> {
        <&[u8]>::read(value).map(<[u8]>::to_vec)
    }
}

impl<'r, T: Column<'r>> Column<'r> for Option<T> {
    fn read(value: &'r Value) -> Option<Self> {
        match value {
            Value::Integer(None) | Value::Text(None) | Value::Blob(None) => Some(None),
            value => T::read(value).map(Some),
        }
    }
}

macro_rules! from_number {
    ($($number:ty),*) => {$(
        impl From<$number> for Value {
            fn from(number: $number) -> Self {
                Self::Integer(Some(i64::from(number)))
            }
        }
    )*};
}

from_number!(bool, u16, u32, i64);

impl From<Option<i64>> for Value {
    fn from(number: Option<i64>) -> Self {
        Self::Integer(number)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(Some(text.to_owned()))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Some(text))
    }
}

impl From<&String> for Value {
    fn from(text: &String) -> Self {
        Self::Text(Some(text.clone()))
    }
}

impl From<Option<String>> for Value {
    fn from(text: Option<String>) -> Self {
        Self::Text(text)
    }
}

impl From<Option<&str>> for Value {
    fn from(text: Option<&str>) -> Self {
        Self::Text(text.map(str::to_owned))
    }
}

impl From<&Option<String>> for Value {
    fn from(text: &Option<String>) -> Self {
        Self::Text(text.clone())
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        Self::Blob(Some(bytes.to_vec()))
    }
}

impl From<Option<&[u8]>> for Value {
    fn from(bytes: Option<&[u8]>) -> Self {
        Self::Blob(bytes.map(<[u8]>::to_vec))
    }
}

/// The columns of an env's name.
pub(crate) const ENV_KEY: &[&str] = &["app", "env"];

/// The values of [`ENV_KEY`].
pub(crate) fn key_values(key: &EnvKey) -> Vec<Value> {
    vec![key.app.as_str().into(), key.env.as_str().into()]
}

/// A column to be written, and its value.
pub(crate) type Columns<'c> = Vec<(&'c str, Value)>;

/// How many rows one statement writes, or deletes: what is left over goes by the next size. Few sizes, so that each statement is
/// prepared once; the most stay under the values that SQLite takes in one (32,766).
const ROWS: [usize; 4] = [256, 32, 4, 1];

/// Splits rows into groups of those sizes.
fn grouped<T>(mut rows: Vec<T>) -> Vec<Vec<T>> {
    let mut groups = Vec::new();
    for size in ROWS {
        while rows.len() >= size {
            groups.push(rows.split_off(rows.len() - size));
        }
    }
    groups
}

/// Adds rows that are not there yet.
pub(crate) async fn insert(
    db: &mut dyn Transaction,
    operation: &'static str,
    table: &str,
    rows: Vec<Columns<'_>>,
) -> Result<(), StoreError> {
    write_rows(db, operation, table, rows, |_| String::new()).await
}

/// Writes rows, each in the place of the one that has the same key where there is one. The first columns, `key` in number, are
/// the key. No two rows have the same.
pub(crate) async fn put(
    db: &mut dyn Transaction,
    operation: &'static str,
    table: &str,
    key: usize,
    rows: Vec<Columns<'_>>,
) -> Result<(), StoreError> {
    write_rows(db, operation, table, rows, |columns| {
        let (keys, others) = columns.split_at(key);
        let keys: Vec<_> = keys.iter().map(|(name, _)| quoted(name)).collect();
        let others = others.iter().map(|(name, _)| quoted(name));
        let others: Vec<_> = others
            .map(|name| format!("{name} = excluded.{name}"))
            .collect();
        let (keys, others) = (keys.join(", "), others.join(", "));
        format!(" ON CONFLICT ({keys}) DO UPDATE SET {others}")
    })
    .await
}

/// Writes rows of the same columns. `on_conflict`: what becomes of one that is there, by the columns.
async fn write_rows(
    db: &mut dyn Transaction,
    operation: &'static str,
    table: &str,
    rows: Vec<Columns<'_>>,
    on_conflict: impl Fn(&[(&str, Value)]) -> String,
) -> Result<(), StoreError> {
    for group in grouped(rows) {
        let Some(first) = group.first() else { continue };
        let places = places(&*db, first.len(), group.len());
        let sql = insertion(table, first, &places) + &on_conflict(first);
        let values = group.into_iter().flatten().map(|(_, value)| value);
        let written = db.execute(&sql, values.collect()).await;
        written.map_err(StoreError::query(operation))?;
    }
    Ok(())
}

/// Deletes the rows with these keys. Each key has a value for each of the columns `names`.
pub(crate) async fn delete(
    db: &mut dyn Transaction,
    operation: &'static str,
    table: &str,
    names: &[&str],
    keys: Vec<Vec<Value>>,
) -> Result<(), StoreError> {
    for group in grouped(keys) {
        let sql = format!(
            "DELETE FROM {table} WHERE ({}) IN (VALUES {})",
            names.join(", "),
            places(&*db, names.len(), group.len())
        );
        let values = group.into_iter().flatten().collect();
        let deleted = db.execute(&sql, values).await;
        deleted.map_err(StoreError::query(operation))?;
    }
    Ok(())
}

/// Adds a row unless one with its key is there. Gives the number of rows that it added.
pub(crate) async fn insert_once(
    db: &mut dyn Transaction,
    operation: &'static str,
    table: &str,
    columns: Columns<'_>,
) -> Result<u64, StoreError> {
    let places = places(&*db, columns.len(), 1);
    let sql = insertion(table, &columns, &places) + " ON CONFLICT DO NOTHING";
    let values = columns.into_iter().map(|(_, value)| value).collect();
    let added = db.execute(&sql, values).await;
    added.map_err(StoreError::query(operation))
}

fn insertion(table: &str, columns: &[(&str, Value)], places: &str) -> String {
    let names: Vec<_> = columns.iter().map(|(name, _)| quoted(name)).collect();
    format!("INSERT INTO {table} ({}) VALUES {places}", names.join(", "))
}

/// The places of the values of rows: `($1, $2), ($3, $4)`.
fn places(db: &dyn Transaction, columns: usize, rows: usize) -> String {
    let mut text = String::new();
    for row in 0..rows {
        text.push_str(if row == 0 { "(" } else { ", (" });
        for column in 0..columns {
            text.push_str(if column == 0 { "" } else { ", " });
            text.push_str(&db.place(row * columns + column + 1));
        }
        text.push(')');
    }
    text
}

/// Some names are words of SQL.
fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

/// Makes sure that the term is the current one, and that no other begins before the transaction has ended: who takes the
/// lease over waits for the lock on its row.
pub(crate) async fn check_term(db: &mut dyn Transaction, term: Term) -> Result<(), StoreError> {
    let sql = format!("SELECT term, renewals, expires_at - {CLOCK} FROM lease FOR KEY SHARE");
    let rows = db.fetch(&sql, Vec::new()).await;
    let rows = rows.map_err(StoreError::query("check the term of the lease"))?;
    let row = rows.first().ok_or_else(no_lease)?;
    if seen_lease(row)?.admits(term) {
        Ok(())
    } else {
        Err(StoreError::LeaseLost { term })
    }
}

/// The lease of a row that begins with `term, renewals, expires_at - clock`.
pub(crate) fn seen_lease(row: &Row) -> Result<SeenLease, StoreError> {
    Ok(SeenLease {
        term: Term(number("a term", row.get(0))?),
        renewals: number("the renewals of a lease", row.get(1))?,
        expires_in_ms: row.get(2),
    })
}

pub(crate) fn no_lease() -> StoreError {
    StoreError::Unreadable {
        cause: "the table `lease` has no row".to_owned(),
    }
}

/// Implements [`Transaction`] for a transaction of `sqlx`.
macro_rules! transaction {
    ($name:ident, $database:ty, $row:ty, $place:expr, $read:expr, $text:expr) => {
        /// A transaction of this database.
        #[derive(Debug)]
        struct $name(sqlx::Transaction<'static, $database>);

        impl $name {
            fn query(
                sql: &str,
                values: Vec<crate::database::Value>,
            ) -> sqlx::query::Query<'static, $database, <$database as sqlx::Database>::Arguments>
            {
                // Statements are texts of this crate; what varies is bound.
                let query = sqlx::query(sqlx::AssertSqlSafe(sql.to_owned()));
                values.into_iter().fold(query, |query, value| match value {
                    crate::database::Value::Integer(number) => query.bind(number),
                    crate::database::Value::Text(text) => query.bind(text.map($text)),
                    crate::database::Value::Blob(bytes) => query.bind(bytes),
                })
            }
        }

        impl crate::database::Transaction for $name {
            fn place(&self, number: usize) -> String {
                $place(number)
            }

            fn execute<'t>(
                &'t mut self,
                sql: &str,
                values: Vec<crate::database::Value>,
            ) -> crate::database::Answer<'t, u64> {
                let query = Self::query(sql, values);
                Box::pin(async move { Ok(query.execute(&mut *self.0).await?.rows_affected()) })
            }

            fn fetch<'t>(
                &'t mut self,
                sql: &str,
                values: Vec<crate::database::Value>,
            ) -> crate::database::Answer<'t, Vec<crate::database::Row>> {
                let query = Self::query(sql, values);
                Box::pin(async move {
                    let rows = query.fetch_all(&mut *self.0).await?;
                    let read = |row: &$row| {
                        let values = (0..sqlx::Row::len(row)).map(|index| $read(row, index));
                        values.collect::<Result<_, _>>().map(crate::database::Row)
                    };
                    rows.iter().map(read).collect()
                })
            }

            fn commit(self: Box<Self>) -> crate::database::Answer<'static, ()> {
                Box::pin(self.0.commit())
            }

            fn roll_back(self: Box<Self>) -> crate::database::Answer<'static, ()> {
                Box::pin(self.0.rollback())
            }
        }
    };
}

pub(crate) use transaction;
