//! What can go wrong with the store.

use std::path::PathBuf;

use model::Term;

/// Why the store could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store's URL names something else than SQLite or PostgreSQL.
    #[error(
        "`{0}` is not a store this server knows: use `sqlite:PATH` or `postgres://USER@HOST/DATABASE`"
    )]
    UnknownStore(String),
    /// The URL of a database of PostgreSQL cannot be read.
    #[error(
        "`{url}` is not the URL of a database: use `postgres://USER@HOST:PORT/DATABASE`, or \
         `postgres:///DATABASE?host=/FOLDER&user=USER` for the folder of a unix socket"
    )]
    PostgresUrl {
        /// The URL, without its password.
        url: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The store cannot be opened.
    #[error("could not open the store {store}")]
    Open {
        /// The database file, or which database.
        store: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// Another server has it.
    #[error("another server uses the store {store} already")]
    InUse {
        /// The database file.
        store: String,
    },
    /// A database of PostgreSQL is no file that could be locked.
    #[error("a store in PostgreSQL is no file")]
    NotAFile,
    /// A store is backed up by a program of its own version only: nothing of it is changed.
    #[error(
        "the store has schema {found}, and this program copies schema {known}: use the `platform` that its server runs"
    )]
    OtherSchema {
        /// The schema of the store.
        found: i64,
        /// The schema that this program knows.
        known: i64,
    },
    /// Another server leads, or the lease was not renewed in time.
    #[error("this server leads no longer: its term {} is over", term.0)]
    LeaseLost {
        /// The term that is over.
        term: Term,
    },
    /// The connection broke while the database was to commit. The change may be there or not.
    #[error("the database did not say whether it has the change: it may be there or not")]
    Unconfirmed {
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// It cannot be copied.
    #[error("could not copy the store to {}", path.display())]
    Copy {
        /// The file of the copy.
        path: PathBuf,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// A newer server has brought the store to a schema that this one does not know.
    #[error(
        "the store {store} has schema {found}, and this server knows schemas up to {known}: start a server that is at \
         least as new as the one that used the store last, or restore a backup from before the upgrade"
    )]
    NewerSchema {
        /// The database file, or which database.
        store: String,
        /// The newest schema that this server does not know.
        found: i64,
        /// The newest schema that this server knows.
        known: i64,
    },
    /// The schema was changed by hand, or the database refuses.
    #[error("could not bring the store {store} to this version's schema")]
    Migrate {
        /// The database file, or which database.
        store: String,
        /// Why.
        #[source]
        source: sqlx::migrate::MigrateError,
    },
    /// The database refuses: disk full, an I/O error, a constraint.
    #[error("could not {operation}")]
    Query {
        /// What was to be done.
        operation: &'static str,
        /// Why not.
        #[source]
        source: sqlx::Error,
    },
    /// A row that is needed for everything cannot be read.
    #[error("a row of the store cannot be read: {cause}")]
    Unreadable {
        /// Which value, and what is wrong with it.
        cause: String,
    },
    /// A value is too large to be stored.
    #[error("{what} cannot be stored: {cause}")]
    Unstorable {
        /// Which value.
        what: &'static str,
        /// What is wrong with it.
        cause: String,
    },
    /// Nothing is written any more.
    #[error("the server is stopping")]
    Closed,
    /// There is no cluster in the store yet.
    #[error("the store holds no cluster yet")]
    NoCluster,
}

/// SQLite's result codes that are about what is written: SQLITE_TOOBIG, SQLITE_CONSTRAINT, SQLITE_MISMATCH. Extended codes
/// have them in their lowest byte.
const SQLITE_REFUSED_RECORD: [i32; 3] = [18, 19, 20];
/// The classes of PostgreSQL's codes that are about what is written: data exception, integrity constraint violation, program
/// limit exceeded, and what triggers raise.
const POSTGRES_REFUSED_RECORD: [&str; 4] = ["22", "23", "54", "P0"];

impl StoreError {
    /// Whether the database refuses a record, and would take others: a constraint is broken, or a value is too large.
    pub fn is_about_a_record(&self) -> bool {
        match self {
            Self::Unstorable { .. } => true,
            Self::Query { source, .. } => {
                let code = source
                    .as_database_error()
                    .and_then(sqlx::error::DatabaseError::code);
                let Some(code) = code else { return false };
                // PostgreSQL's have five characters, some of which may be digits only.
                if code.len() == 5 {
                    let class = code.get(..2).unwrap_or_default();
                    return POSTGRES_REFUSED_RECORD.contains(&class);
                }
                let code: Option<i32> = code.parse().ok();
                code.is_some_and(|code| SQLITE_REFUSED_RECORD.contains(&(code & 0xff)))
            }
            Self::UnknownStore(_)
            | Self::PostgresUrl { .. }
            | Self::Open { .. }
            | Self::InUse { .. }
            | Self::NotAFile
            | Self::OtherSchema { .. }
            | Self::LeaseLost { .. }
            | Self::Unconfirmed { .. }
            | Self::Copy { .. }
            | Self::NewerSchema { .. }
            | Self::Migrate { .. }
            | Self::Unreadable { .. }
            | Self::Closed
            | Self::NoCluster => false,
        }
    }

    /// Whether the server that got this must not go on in its term: another leads, or it does not know what the store has.
    pub fn ends_the_term(&self) -> bool {
        matches!(self, Self::LeaseLost { .. } | Self::Unconfirmed { .. })
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Open { source, .. } => disk_hint(source).or_else(|| open_hint(source)),
            Self::Query { source, .. } | Self::Copy { source, .. } => disk_hint(source),
            _ => None,
        }
    }

    pub(crate) fn query(operation: &'static str) -> impl Fn(sqlx::Error) -> Self + Copy {
        move |source| Self::Query { operation, source }
    }
}

/// SQLite's result codes for a disk that fails it: SQLITE_IOERR, SQLITE_FULL.
const SQLITE_DISK: [i32; 2] = [10, 13];

/// What to do where the database cannot write. SQLite says of a full disk SQLITE_IOERR as often as SQLITE_FULL.
fn disk_hint(source: &sqlx::Error) -> Option<&'static str> {
    let code = source.as_database_error()?.code()?;
    // lock_not_available
    if code == "55P03" {
        return Some(
            "another session of the database has locked a table: pg_stat_activity and pg_locks say which; when it lets go, it goes on",
        );
    }
    // PostgreSQL's have five characters: disk_full.
    let is_full = match code.as_ref() {
        "53100" => true,
        code if code.len() < 5 => code
            .parse::<i32>()
            .is_ok_and(|code| SQLITE_DISK.contains(&(code & 0xff))),
        _ => false,
    };
    is_full.then_some(
        "is the disk full? `df` of the store's folder says; once there is room it goes on, and nothing that was acknowledged is lost",
    )
}

/// What to do where PostgreSQL lets nobody in.
fn open_hint(source: &sqlx::Error) -> Option<&'static str> {
    let code = source
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code);
    match code.as_deref() {
        // invalid_catalog_name
        Some("3D000") => Some("make the database: createdb --owner USER DATABASE"),
        // invalid_password, invalid_authorization_specification
        Some("28P01" | "28000") => Some(
            "name the right user in `--store`, and its password in the environment variable PGPASSWORD, in ~/.pgpass, or in the \
             URL, where other users of the machine see it",
        ),
        // insufficient_privilege
        Some("42501") => {
            Some("make the user the owner of the database: ALTER DATABASE DATABASE OWNER TO USER")
        }
        // cannot_connect_now, too_many_connections
        Some("57P03" | "53300") => Some("try again when the database takes connections"),
        Some(_) => None,
        None if matches!(source, sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut) => {
            Some("does the database run, and is it reached from here?")
        }
        None => None,
    }
}
