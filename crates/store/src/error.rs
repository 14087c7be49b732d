//! What can go wrong with the store.

use std::path::PathBuf;

use scheduler::enrollment::EnrollmentRefused;

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
    /// The schema is newer than this program, or was changed by hand.
    #[error("could not bring the store {} to this version's schema", path.display())]
    Migrate {
        /// The database file.
        path: PathBuf,
        /// Why.
        #[source]
        source: sqlx::migrate::MigrateError,
    },
    /// The database says no: disk full, an I/O error, a constraint.
    #[error("could not {operation}")]
    Query {
        /// What was to be done.
        operation: &'static str,
        /// Why not.
        #[source]
        source: sqlx::Error,
    },
    /// What is stored cannot be understood.
    #[error("the store holds {what} that cannot be read: {cause}")]
    Corrupt {
        /// Which value.
        what: String,
        /// What is wrong with it.
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
    /// There is no cluster in the store yet.
    #[error("the store holds no cluster yet")]
    NoCluster,
}

impl StoreError {
    pub(crate) fn query(operation: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Query { operation, source }
    }

    pub(crate) fn corrupt(what: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self::Corrupt {
            what: what.into(),
            cause: cause.to_string(),
        }
    }
}

/// Why a token did not let its holder in.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The token or the request is not good.
    #[error(transparent)]
    Refused(#[from] EnrollmentRefused),
    /// The store failed; the token is not spent.
    #[error(transparent)]
    Store(#[from] StoreError),
}
