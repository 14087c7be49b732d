//! The control plane's state in SQL: SQLite, one file for one server, or PostgreSQL, which several servers share.
//!
//! The store knows records and no commands: [`Store::load`] reads the
//! [`scheduler::cluster_state::ClusterState`], and [`Store::write`] writes the [`scheduler::changes::Changes`] that
//! [`scheduler::apply`] returned. What an action means is written down there, and only there.
//!
//! Every write is one transaction of one leader: an acknowledged write survives `kill -9` and a loss of power, and half a write does
//! not exist. The leader ([`scheduler::leader`]) loads the cluster state once, decides in memory and writes what changed.
//! SQLite's file is locked by its one server. PostgreSQL has a lease with a term ([`Store::acquire_lease`]), which every
//! transaction of a leader checks.
//!
//! All that is stored is written and read by the same code on both: `database` is the trait of what a database is to the store,
//! `sqlite` and `postgres` implement it, and each has its migrations. The same tests run on both (`tests/`).
//!
//! JSON in rows has a version ([`JSON_VERSION`]). A row that cannot be read is kept, and named in
//! [`scheduler::cluster_state::ClusterState::unreadable`].
//!
//! Deliberately absent: any cache, because the leader has the cluster state in memory.

mod access;
mod acme;
mod backup;
mod certificates;
mod database;
mod error;
mod events;
mod file;
mod lease;
mod load;
mod logins;
mod migrations;
mod open;
mod postgres;
mod record;
mod routes;
mod rows;
mod secrets;
mod sqlite;
mod transfer;
mod write;

pub use acme::StoredAcmeName;
pub use backup::{SKIPPED_NETWORKS, SKIPPED_NUMBERS};
pub use certificates::StoredCertificate;
pub use database::READERS;
pub use error::StoreError;
pub use events::EventFilter;
pub use file::{BUSY_TIMEOUT, StoreLock};
pub use lease::Holder;
pub use open::{ClusterRecord, Store, StoredKeys};
pub use postgres::{IDLE_IN_TRANSACTION, LEASE_STATEMENT_TIMEOUT};
pub use record::JSON_VERSION;
pub use secrets::SealedBundle;
pub use write::Writing;
