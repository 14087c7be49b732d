//! The control plane's state in SQL: SQLite, one file.
//!
//! The store knows records and no commands: [`Store::load`] reads the
//! [`scheduler::cluster_state::ClusterState`], and [`Store::write`] writes the [`scheduler::changes::Changes`] that
//! [`scheduler::apply`] returned. What an action means is written down there, and only there.
//!
//! Every write is one transaction, begun with `BEGIN IMMEDIATE` on the one writing connection and committed with
//! `synchronous=FULL`: an acknowledged write survives `kill -9` and a loss of power, and half a write does not exist.
//! The leader ([`scheduler::leader`]) loads the cluster state once, decides in memory and writes what changed.
//!
//! JSON in rows has a version ([`JSON_VERSION`]). A row that cannot be read is kept, and named in
//! [`scheduler::cluster_state::ClusterState::unreadable`].
//!
//! Deliberately absent: PostgreSQL and the fenced lease by which several servers would share it
//! (a later issue: [`StoreError::UnknownStore`] says so), and any cache: SQLite's own is enough.

mod backup;
mod error;
mod file;
mod load;
mod logins;
mod open;
mod record;
mod routes;
mod rows;
mod secrets;
mod users;
mod write;

pub use error::StoreError;
pub use file::{BUSY_TIMEOUT, StoreLock};
pub use open::{ClusterRecord, READERS, Store, StoredKeys};
pub use record::JSON_VERSION;
pub use secrets::SealedBundle;
pub use write::Writing;
