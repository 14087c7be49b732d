//! What can go wrong with the store.

use std::path::PathBuf;

/// Why the store could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store's URL names something else than SQLite.
    #[error("`{0}` is not a store this server knows: use `sqlite:PATH`")]
    UnknownStore(String),
    /// The database file cannot be opened.
    #[error("could not open the store {}", path.display())]
    Open {
        /// The database file.
        path: PathBuf,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// Another server has it.
    #[error("another server uses the store {} already", path.display())]
    InUse {
        /// The database file.
        path: PathBuf,
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
        "the store {} has schema {found}, and this server knows schemas up to {known}: start a server that is at \
         least as new as the one that used the store last, or restore a backup from before the upgrade",
        path.display()
    )]
    NewerSchema {
        /// The database file.
        path: PathBuf,
        /// The newest schema that this server does not know.
        found: i64,
        /// The newest schema that this server knows.
        known: i64,
    },
    /// The schema was changed by hand, or the database refuses.
    #[error("could not bring the store {} to this version's schema", path.display())]
    Migrate {
        /// The database file.
        path: PathBuf,
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
const REFUSED_RECORD: [i32; 3] = [18, 19, 20];

impl StoreError {
    /// Whether the database refuses a record, and would take others: a constraint is broken, or a value is too large.
    pub fn is_about_a_record(&self) -> bool {
        match self {
            Self::Unstorable { .. } => true,
            Self::Query { source, .. } => {
                let code = source
                    .as_database_error()
                    .and_then(sqlx::error::DatabaseError::code);
                let code: Option<i32> = code.and_then(|code| code.parse().ok());
                code.is_some_and(|code| REFUSED_RECORD.contains(&(code & 0xff)))
            }
            Self::UnknownStore(_)
            | Self::Open { .. }
            | Self::InUse { .. }
            | Self::Copy { .. }
            | Self::NewerSchema { .. }
            | Self::Migrate { .. }
            | Self::Unreadable { .. }
            | Self::Closed
            | Self::NoCluster => false,
        }
    }

    pub(crate) fn query(operation: &'static str) -> impl Fn(sqlx::Error) -> Self + Copy {
        move |source| Self::Query { operation, source }
    }
}
