//! What can go wrong with the store.

use std::path::PathBuf;

use scheduler::apply::Refused;
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
    /// A command does not fit the cluster state.
    #[error(transparent)]
    Refused(#[from] Refused),
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
